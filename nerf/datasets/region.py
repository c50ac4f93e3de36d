"""Where the scene is: the choice of scene_from_world, space kind, near and far, from silhouettes, sparse points or cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nerf.cameras import Cameras
from nerf.datasets.pixels import PixelStore
from nerf.datasets.scene import Capture, Frame
from nerf.space import Similarity

_PAD = 0.03  # of the box's longest side, on each side


@dataclass
class Region:
    scene_from_world: Similarity
    space: str
    near: float
    far: float
    n_levels: int
    ndc: tuple[float, float] | None = None


def choose_region(
    capture: Capture, frames: list[Frame], cameras: Cameras, store: PixelStore, has_alpha: bool, notes: list[str]
) -> Region:
    """Alpha: an object in a box; a file's own statement comes first; everything else is an unbounded scene around what is looked at."""
    if capture.space == "box" and capture.region is not None and not has_alpha:
        return _box(capture.region, cameras)
    if has_alpha:
        hull = visual_hull_box(cameras, store)
        if hull is not None:
            low, high = hull
            half = 0.5 * float((high - low).max()) * (1 + 2 * _PAD)
            notes.append(f"object box from the silhouettes: {_corner(low)} to {_corner(high)} in world units")
            return _box(Similarity.around((low + high) / 2, half), cameras)
        notes.append("the silhouettes agree on no object, so the box comes from the cameras alone")
    centre, distance = look_at(cameras)
    if has_alpha or capture.space == "box":
        reach = visible_radius(cameras, centre)
        notes.append(f"object box from the cameras: centre {_corner(centre)}, half size {reach:.3g} world units")
        return _box(Similarity.around(centre, reach), cameras)
    scale = 1.5 / distance
    s = Similarity(scale, torch.eye(3, dtype=torch.float64), -scale * centre)
    n_levels = 5
    notes.append("unbounded scene around the point the cameras look at; cameras at about 1.5 scene units")
    return Region(s, "unbounded", 0.05, 2.0 ** (n_levels - 1) * 2 * math.sqrt(3), n_levels)


def _corner(p: Tensor) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in p.tolist()) + ")"


def _box(s: Similarity, cameras: Cameras) -> Region:
    far = float(s.apply(cameras.c2w[:, :, 3]).norm(dim=1).max()) + math.sqrt(3)
    return Region(s, "box", 0.0, far, 1)


def look_at(cameras: Cameras) -> tuple[Tensor, float]:
    """(point [3] closest to all optical axes in the least-squares sense, median distance of the cameras from it)."""
    origins, axes = cameras.c2w[:, :, 3], -cameras.c2w[:, :, 2]
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]  # removes the part along the axis
    # a weak pull to the mean camera settles parallel axes
    pull = 1e-3 * torch.eye(3, dtype=torch.float64)
    a = across.mean(dim=0) + pull
    b = (across @ origins[:, :, None]).mean(dim=0)[:, 0] + pull @ origins.mean(dim=0)
    centre = torch.linalg.solve(a, b)
    distance = float((origins - centre).norm(dim=1).median())
    return centre, max(distance, 1e-9)


def visible_radius(cameras: Cameras, centre: Tensor) -> float:
    """Radius of the largest ball around the centre that lies within the pictures of half of the cameras."""
    half = torch.minimum(cameras.widths / cameras.fx, cameras.heights / cameras.fy) / 2
    return float(((cameras.c2w[:, :, 3] - centre).norm(dim=1) * torch.sin(torch.atan(half))).median())


def visual_hull_box(cameras: Cameras, store: PixelStore, max_views: int = 64) -> tuple[Tensor, Tensor] | None:
    """Bounds (low [3], high [3], world) of the points whose image lies on the silhouette in all but a few views; None if there are none.

    A grid is carved three times, each time within the bounds found before. Silhouettes are max-pooled to at most 200 pixels and
    grown by a cell's footprint, so that thin parts are never lost; a view whose silhouette touches the picture's edge says nothing
    about what lies outside the picture.
    """
    ids = np.unique(np.linspace(0, len(store) - 1, min(max_views, len(store))).round().astype(int)).tolist()
    views = []
    for i in ids:
        alpha = store.raw(i)[..., -1]
        step = max(1, math.ceil(max(alpha.shape) / 200))
        on = alpha > (0.1 * (np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 1))
        grid = F.max_pool2d(torch.from_numpy(on.astype(np.float32))[None, None], step, ceil_mode=True)[0, 0]
        if bool(grid.any()):
            edge = torch.cat([grid[0], grid[-1], grid[:, 0], grid[:, -1]])
            views.append((cameras.subset([i]), grid, step, bool(edge.any())))
    if len(views) < 2:
        return None
    centre, distance = look_at(cameras)
    low, high = centre - distance, centre + distance
    allowed = len(views) // 30  # a few bad masks do not cut the object away
    for resolution in (40, 64, 96):
        cell = float((high - low).max()) / resolution
        counts = ((high - low) / cell).ceil().long().clamp_min(1)
        axes = [low[k] + (torch.arange(int(counts[k])) + 0.5) * cell for k in range(3)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        misses = torch.zeros(len(points), dtype=torch.int16)
        for camera, grid, step, touches in views:
            uv, depth = camera.project(points)
            depth = depth[0]
            footprint = float(camera.fx[0]) * 0.87 * cell / float(depth.clamp_min(0.2 * distance).min()) / step
            radius = min(max(1, math.ceil(footprint)), 40)
            grown = F.max_pool2d(grid[None, None], 2 * radius + 1, 1, radius)[0, 0]
            u, v = (uv[0] / step).floor().long().unbind(-1)
            inside = (depth > 0) & (u >= 0) & (v >= 0) & (u < grid.shape[1]) & (v < grid.shape[0])
            on = grown[v.clamp(0, grid.shape[0] - 1), u.clamp(0, grid.shape[1] - 1)] > 0
            misses += ~torch.where(inside, on, torch.tensor(touches))
            keep = misses <= allowed
            points, misses = points[keep], misses[keep]
            if len(points) == 0:
                return None
        low, high = points.amin(dim=0) - cell, points.amax(dim=0) + cell
    return low + cell / 2, high - cell / 2
