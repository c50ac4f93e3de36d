"""Cells: boxes that fill all of space between them, cut along the ground; rays cross them one after another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nerf.errors import Range, UserError, check_numbers

Corner = tuple[float, float, float]
ANYWHERE = (-math.inf,) * 3, (math.inf,) * 3
_FINITE = Range(-1e15, 1e15)
_UNEVEN = 0.1  # share of the places by which a cut may miss the middle, for a wider gap


@dataclass(frozen=True)
class Cell:
    """The points x with low <= x < high in each coordinate of a frame; sides may lie at infinity.

    >>> import torch
    >>> left, right = divide(torch.tensor([[-2.0, 0, 0], [-1.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0]]), 2)
    >>> left.high, right.low
    ((0.0, inf, inf), (0.0, -inf, -inf))
    >>> along = torch.tensor([[-3.0, 0, 0]]), torch.tensor([[1.0, 0, 0]])
    >>> [side.item() for side in (*left.clip_rays(*along), *right.clip_rays(*along))]
    [0.0, 3.0, 3.0, inf]
    """

    low: Corner
    high: Corner

    def contains(self, points: Tensor) -> Tensor:
        """Which points [n,3] lie inside: bool [n]. Of cells that fill space each point lies in exactly one."""
        low, high = self._sides(points)
        return ((points >= low) & (points < high)).all(dim=1)

    def clip_rays(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
        """Where rays [n,3] enter and leave: (t_near, t_far) [n] from 0 on, a miss where the first is not the smaller.
        A ray along a side belongs to one of the two cells beside it."""
        low, high = self._sides(rays_o)
        parallel = rays_d == 0
        divisor = torch.where(parallel, 1.0, rays_d)
        t0, t1 = (low - rays_o) / divisor, (high - rays_o) / divisor
        always = torch.where((rays_o >= low) & (rays_o < high), math.inf, -math.inf).to(rays_o.dtype)
        t_near = torch.where(parallel, -always, torch.minimum(t0, t1)).amax(dim=1)
        t_far = torch.where(parallel, always, torch.maximum(t0, t1)).amin(dim=1)
        return t_near.clamp_min(0), t_far

    def _sides(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.low), like.new_tensor(self.high)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: null where a side lies at infinity."""
        return {side: [v if math.isfinite(v) else None for v in getattr(self, side)] for side in ("low", "high")}

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Cell:
        """The inverse of `to_dict`. KeyError, TypeError or UserError for what it did not write."""
        sides = []
        for side, end in zip(("low", "high"), (-math.inf, math.inf), strict=True):
            x, y, z = (end if v is None else v for v in d[side])
            check_numbers({side: [v for v in (x, y, z) if v != end]}, {side: _FINITE._replace(many=True)})
            sides.append((float(x), float(y), float(z)))
        if not all(a < b for a, b in zip(*sides, strict=True)):
            raise UserError(f"a cell from {d['low']} to {d['high']} holds nothing")
        return Cell(*sides)


def divide(places: Tensor, n: int) -> list[Cell]:
    """n cells that fill space and hold about as many of the places [m,3] each: halves (or as nearly as n allows), each
    cut across its longer side along x or y, midway between two places, and halved again. Source: k-d trees, Bentley,
    "Multidimensional Binary Search Trees Used for Associative Searching", 1975. UserError where places are too few or
    coincide."""
    return _divided(places.double(), Cell(*ANYWHERE), n, n)


def _divided(places: Tensor, cell: Cell, n: int, whole: int) -> list[Cell]:
    if n == 1:
        return [cell]
    ground = places[:, :2]
    axis = int((ground.amax(dim=0) - ground.amin(dim=0)).argmax()) if len(ground) else 0
    along = ground[:, axis].sort().values
    gaps = along[1:] - along[:-1]
    if not bool((gaps > 0).any()):
        raise UserError(
            f"{whole} cells are too many: cameras stand in too few places to divide the ground between them"
        )
    off = (torch.arange(1, len(along)) - len(along) * (n // 2) / n).abs()
    near = torch.where(gaps > 0, off, math.inf)
    near = near <= max(float(near.min()), _UNEVEN * len(along))
    wide = near & (gaps > 0.99 * gaps[near].max())
    k = int(torch.where(wide, off, math.inf).argmin())
    cut = float((along[k] + along[k + 1]) / 2)
    sides = list(cell.high), list(cell.low)
    for side in sides:
        side[axis] = cut
    lower, upper = Cell(cell.low, tuple(sides[0])), Cell(tuple(sides[1]), cell.high)  # type: ignore[arg-type]
    below = places[:, axis] < cut
    return [*_divided(places[below], lower, n // 2, whole), *_divided(places[~below], upper, n - n // 2, whole)]
