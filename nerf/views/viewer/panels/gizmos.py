"""Handles of a region, and marks where somebody clicked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nerf.views.viewer.regions import Region

if TYPE_CHECKING:
    from nerf.views.viewer.client import Client

_CORNERS = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
EDGES = [(i, j) for i in range(8) for j in range(i) if int(np.abs(_CORNERS[i] - _CORNERS[j]).sum()) == 1]
_RINGS = 48  # points of a circle of a ball
MARK = (230, 120, 20)


def outline(region: Region) -> np.ndarray:
    """Line segments [n,2,3] of a region about its centre, along its own axes."""
    if region.shape == "box":
        corners = _CORNERS * np.array(region.size)
        return np.array([[corners[i], corners[j]] for i, j in EDGES])
    turns = np.linspace(0, 2 * np.pi, _RINGS + 1)
    circle = np.stack([np.cos(turns), np.sin(turns), 0 * turns], axis=1) * region.size[0] / 2
    rings = [np.roll(circle, k, axis=1) for k in range(3)]
    return np.concatenate([np.stack([ring[:-1], ring[1:]], axis=1) for ring in rings])


def with_corner(region: Region, corner: Tensor) -> Region:
    """The box whose upper corner (along all three of its axes) was dragged to a world point; the opposite corner stays.

    >>> with_corner(Region("box", (0, 0, 0), (2, 2, 2)), torch.tensor([3.0, 1.0, 1.0]).double()).size
    (4.0, 2.0, 2.0)
    """
    axes, size = region.axes, torch.tensor(region.size, dtype=torch.float64)
    centre = torch.tensor(region.centre, dtype=torch.float64)
    low = centre - axes @ size / 2
    new = (axes.T @ (corner.double() - low)).clamp_min(0.02 * float(size.max()))
    middle = low + axes @ new / 2
    return Region(region.shape, tuple(middle.tolist()), tuple(new.tolist()), region.rotation)


class RegionHandles:
    """An outline with a handle in its middle, and of a box another in a corner; `dragged` gets the region when a drag
    has ended."""

    def __init__(
        self, client: Client, name: str, color: tuple[int, int, int], dragged: Callable[[Region], None]
    ) -> None:
        self.client, self.name, self.color, self.dragged = client, name, color, dragged
        self.region: Region | None = None
        self._lines: Any = None

    def show(self, region: Region | None) -> None:
        """Draw a region, or none."""
        self.region = region
        self.client.clear(self.name)  # before nodes of the same names are added
        if region is None:
            return
        scene, frame = self.client.handle.scene, self.client.frame
        place = frame.points(torch.tensor([region.centre], dtype=torch.float64))[0]
        wxyz, position = tuple(frame.wxyz(region.axes)), tuple(place.tolist())
        self._lines = scene.add_line_segments(
            f"{self.name}/outline",
            (outline(region) * frame.scale).astype(np.float32),
            self.color,
            thickness=2.0,
            thickness_units="screen",
            wxyz=wxyz,
            position=position,
        )
        reach = max(region.size) * frame.scale
        middle = scene.add_transform_controls(
            f"{self.name}/middle", scale=0.45 * reach, wxyz=wxyz, position=position, depth_test=False, opacity=0.7
        )
        middle.on_update(self.client.safely(lambda event: self._moved(event, middle)))
        nodes = [self._lines, middle]
        if region.shape == "box":
            corner = region.corners()[-1:]
            at = scene.add_transform_controls(
                f"{self.name}/corner",
                scale=0.22 * reach,
                wxyz=wxyz,
                position=tuple(frame.points(corner)[0].tolist()),
                disable_rotations=True,
                disable_sliders=True,
                depth_test=False,
                opacity=0.9,
            )
            at.on_update(self.client.safely(lambda event: self._stretched(event, at)))
            nodes.append(at)
        self.client.put(self.name, nodes)

    def _moved(self, event: Any, handle: Any) -> None:
        assert self.region is not None
        frame = self.client.frame
        centre = frame.to_world(torch.tensor(np.asarray(handle.position)[None], dtype=torch.float64))[0]
        axes = frame.axes_to_world(handle.wxyz)
        rows = tuple(map(tuple, axes.tolist()))
        self._changed(event, Region(self.region.shape, tuple(centre.tolist()), self.region.size, rows))

    def _stretched(self, event: Any, handle: Any) -> None:
        assert self.region is not None
        corner = self.client.frame.to_world(torch.tensor(np.asarray(handle.position)[None], dtype=torch.float64))[0]
        changed = with_corner(self.region, corner)
        self._changed(event, changed)

    def _changed(self, event: Any, region: Region) -> None:
        """While it is dragged only the outline follows."""
        if event.phase == "end":
            self.dragged(region)
            return
        frame = self.client.frame
        place = frame.points(torch.tensor([region.centre], dtype=torch.float64))[0]
        self._lines.points = (outline(region) * frame.scale).astype(np.float32)
        self._lines.wxyz, self._lines.position = tuple(frame.wxyz(region.axes)), tuple(place.tolist())


def draw_points(client: Client, points: list[Tensor]) -> None:
    """Small balls at world points, and a line from each to the next."""
    client.clear("/clicks")
    if not points:
        return
    scene = client.handle.scene
    there = client.frame.points(torch.stack(points).double()).numpy()
    nodes = [
        scene.add_icosphere(f"/clicks/{k}", radius=0.012, color=MARK, position=tuple(p), cast_shadow=False)
        for k, p in enumerate(there)
    ]
    if len(there) > 1:
        lines = np.stack([there[:-1], there[1:]], axis=1).astype(np.float32)
        nodes.append(scene.add_line_segments("/clicks/line", lines, MARK, thickness=3.0, thickness_units="screen"))
    client.put("/clicks", nodes)
