"""What is meshed where no box is given: of open scenes the region whose surfaces several views see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.errors import UserError
from nerf.kernels import DepthView
from nerf.meshing.fused import FEWEST_VIEWS, MIN_PARALLAX, find_supported, unproject_depths
from nerf.meshing.marching import Grid
from nerf.meshing.warp import Warp

if TYPE_CHECKING:
    from nerf.rendering.model import Model

CELL_PIXELS = 0.75  # of a pixel: larger cells round the edges off (bundled scene)
OPEN_FACES = 3_000_000  # that the cells of open scenes are sized for
MAX_OPEN_RESOLUTION = 1024  # cells along the longest side of their grid
_NDC_FAR = 0.96  # NDC depth that is still meshed: 50 times the near distance; at 1 lies infinity
_SAMPLES = 200_000  # pixels of the depth maps that say where surfaces are
_AGREEMENT = 1 / 25  # scene length, times the scale of the grid, by which views of one surface differ
# Share of what pixels show, from the middle on, that has the finest cells. A bonsai in its room as its views (whole
# mesh): 16.2 dB with the finest cells up to the cameras, 16.8 and 17.1 dB up to a half and a quarter of that.
_SUBJECT, _LEAST_RADIUS = 0.25, 0.1
_OUTLIERS = 0.001  # share of the voxels with surfaces that may lie beyond either end of each axis
_MIN_POINTS = 3  # of the sample, which a voxel must hold to count
_PAD = 0.02  # of the longest side, so that surfaces at the ends are whole
_VOXELS = 64  # along the longest side, by which the extent and the area of all surfaces are estimated


def uniform_grid(low: NDArray[np.float64], high: NDArray[np.float64], step: float) -> Grid:
    """The points of a grid of this step that fill a box from its lower corner on."""
    nx, ny, nz = (np.maximum(np.ceil((high - low) / step - 1e-6).astype(int), 1) + 1).tolist()
    x, y, z = low.tolist()
    return Grid((x, y, z), step, (nx, ny, nz))


def box_grid(model: Model, resolution: int | None, box: tuple[float, ...] | None) -> Grid:
    """The grid points to march through: around the box or, without one, around what the model shows."""
    low, high = default_bounds(model) if box is None else (np.array(box[:3], float), np.array(box[3:], float))
    longest = float((high - low).max())
    return uniform_grid(
        low, high, longest / (default_resolution(model, low, high) if resolution is None else resolution)
    )


def open_grid(model: Model, views: list[DepthView], resolution: int | None) -> tuple[Grid, Warp]:
    """The grid for an open scene, around what its depth maps show well, in the coordinates of the warp beside it."""
    centres = model.scene_from_world.apply(model.cameras.centres).abs().amax(dim=1)
    # once to find out what is seen, and then with the finest cells for the nearest quarter of that
    points = _seen_points(views, Warp(max(1.0, float(centres.median()))))
    warp = Warp(max(_LEAST_RADIUS, float(points.abs().amax(dim=1).quantile(_SUBJECT))))
    seen = warp.to_grid(points).double().numpy()
    low, high = seen.min(axis=0), seen.max(axis=0)
    for _ in range(2):  # voxels count, not points: of far surfaces there are few
        voxel = float((high - low).max()) / _VOXELS
        cells, counts = np.unique(((seen - low) / voxel).astype(int), axis=0, return_counts=True)
        cells = cells[counts >= _MIN_POINTS]
        ends = np.quantile(cells, _OUTLIERS, axis=0), np.quantile(cells + 1, 1 - _OUTLIERS, axis=0)
        low, high = (end * voxel + low for end in ends)
        seen = seen[((seen >= low) & (seen <= high)).all(axis=1)]
    area = len(cells) * voxel**2
    pad = _PAD * float((high - low).max())
    low, high = low - pad, high + pad
    longest = float((high - low).max())
    if resolution is None:
        step = max(_pixel_size(model, np.zeros(3)) * CELL_PIXELS, (4 * area / OPEN_FACES) ** 0.5)
        resolution = int(np.clip(np.ceil(longest / step), 64, MAX_OPEN_RESOLUTION))
    return uniform_grid(low, high, longest / resolution), warp


def _seen_points(views: list[DepthView], warp: Warp) -> Tensor:
    """Scene points [n,3] of some of the pixels, those that two views see from places apart."""
    stride = max(1, sum(view.depths.numel() for view in views) // _SAMPLES)
    points = torch.cat([unproject_depths(view)[::stride] for view in views])
    good = find_supported(points, views, _AGREEMENT, FEWEST_VIEWS, warp.scales(points), parallax=MIN_PARALLAX)
    if not bool(good.any()):
        raise UserError(
            "no surface is seen by several photos from places apart: train longer, or choose what is meshed with --box"
        )
    return points[good]


def default_bounds(model: Model) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The box to mesh when none is given: corners [3], scene frame (NDC for forward-facing scenes)."""
    if model.space.contracted:
        return np.full(3, -1.0), np.full(3, 1.0)
    occupied = model.occupancy.occupied[0].cpu()
    if not bool(occupied.any()):
        raise UserError("the model's occupancy grid is empty, so there is no surface; train it longer")
    low, high = np.empty((2, 3))
    for axis in range(3):  # x, y, z are dimensions 2, 1, 0
        cells = occupied.amax(dim=tuple(d for d in range(3) if d != 2 - axis)).nonzero()
        low[axis], high[axis] = int(cells.min()), int(cells.max()) + 1
    low, high = low * 2 / occupied.shape[0] - 1, high * 2 / occupied.shape[0] - 1
    if model.space.warped:
        high[2] = min(high[2], _NDC_FAR)
        low[2] = min(low[2], high[2] - 2 / occupied.shape[0])
    return low, high


def default_resolution(model: Model, low: NDArray[np.float64], high: NDArray[np.float64]) -> int:
    """Cells along the longest side of a box of the scene, each CELL_PIXELS of what a photo's pixel spans in its
    middle (the median of the photos), from 64 to 512."""
    if model.space.warped:
        return 512
    cell = CELL_PIXELS * _pixel_size(model, (low + high) / 2)
    return int(np.clip(np.ceil((high - low).max() / cell), 64, 512))


def _pixel_size(model: Model, middle: NDArray[np.float64]) -> float:
    """What a photo's pixel spans at a point of the scene, the median of the photos."""
    origins = model.scene_from_world.apply(model.cameras.centres)
    return float(((origins - torch.from_numpy(middle)).norm(dim=1) / model.cameras.fx).median())
