"""The surface where density crosses a level: no view is asked, so it is there without cameras too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nerf.meshing.marching import ASK, OUTSIDE, Grid, Known
from nerf.meshing.warp import Warp

if TYPE_CHECKING:
    from nerf.rendering.model import Model

# Density of the iso-surface in 1/scene length, which absorbs half the light over a cell of a 128^3 occupancy grid,
# 1/64; not tied to the step of the mesh grid, so that a finer mesh shows the same surface.
DEFAULT_THRESHOLD = math.log(2) / (1 / 64)
_CLAMP = 3.0  # of log(density / level): beyond a factor of 20 a value says "inside" or "outside", not how far


class LevelSurface:
    """Positive inside: the logarithm of density over the level, which is nearly linear where density is exp(network): a
    test measures what that gains over plain density."""

    method, outside, warp = "density", -_CLAMP, Warp()
    smooth, denoise = 0, 0  # rounds by default

    def __init__(self, model: Model, grid: Grid, level: float) -> None:
        self.model, self.grid, self.level, self.highest = model, grid, level, 0.0
        self.known = near_occupied(model.occupancy.occupied, grid)

    def values(self, points: Tensor) -> Tensor:
        """[n] in [-3,3] at scene points [n,3]."""
        density = self.model.density(points)
        self.highest = max(self.highest, float(density.max())) if len(density) else self.highest
        return (density.clamp_min(1e-30).log() - math.log(self.level)).clamp(-_CLAMP, _CLAMP)

    def explain_empty(self) -> str:
        return (
            f"the density reaches {self.highest:.3g} in the box, the threshold is {self.level:.3g} (1/scene length); "
            "give a lower --threshold, or train longer"
        )


def near_occupied(occupied: Tensor, grid: Grid) -> Known:
    """Which grid points are worth evaluating: within one grid step of an occupied cell of the level that serves there.
    occupied [levels,R,R,R] bool (z, y, x); level k covers [-2^k, 2^k]^3 and serves where no finer one reaches."""
    levels = [level.numpy() for level in occupied.cpu()]
    resolution = occupied.shape[-1]

    def known(*ranges: slice) -> NDArray[np.uint8]:  # z, y, x
        positions = [grid.origin[2 - a] + grid.step * np.arange(r.start, r.stop) for a, r in enumerate(ranges)]
        chosen = np.zeros([len(p) for p in positions], bool)
        for k in reversed(range(len(levels))):  # a finer level overrules
            extent = 2.0**k
            cell = 2 * extent / resolution
            here = [np.flatnonzero(np.abs(p) <= extent + (grid.step if k == len(levels) - 1 else 0)) for p in positions]
            if not all(len(h) for h in here):
                continue
            part = levels[k]
            for axis, (p, h) in enumerate(zip(positions, here, strict=True)):
                ends = ((p[h] + side + extent) / cell for side in (-grid.step, grid.step))
                first, last = (np.clip(end.astype(int), 0, resolution - 1) for end in ends)
                spread = part.take(first, axis=axis)
                for further in range(1, int((last - first).max()) + 1):
                    spread |= part.take(np.minimum(first + further, last), axis=axis)
                part = spread
            chosen[tuple(slice(h[0], h[-1] + 1) for h in here)] = part
        return np.where(chosen, np.uint8(ASK), np.uint8(OUTSIDE))

    return known
