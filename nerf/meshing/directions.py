"""The main directions of a scene: the three at right angles to one another along which points lie in layers.

Rooms, houses, shelves and tables have walls, floors and tops in few directions. A plane fitted to a few points, some of
them of what stands before a wall, does not tell them; all points together do: looked at along a wall, its points, and
those of all that is parallel to it, fall into few narrow layers. Source: the Manhattan frame of Coughlan and Yuille,
"Manhattan World", 1999, here by the layers of points in the place of edges in a picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST_POINTS = 3000  # that are asked first
_REACH = 3.0  # times the median distance from the middle: what lies farther away is not asked
_MOST_LAYERS = 2000  # within that reach
# Random turns around the best so far, in radians, and the width of layers, in rounds: wide ones lead to the truth, and
# narrow ones are sharp there alone.
_ROUNDS = ((0.06, 1.0), (0.02, 0.5), (0.007, 0.25), (0.002, 0.25))
_TRIED = 60  # turns in each of these
_STEPS = 180  # of a quarter turn about the first direction


def main_directions(points: Tensor, width: float, trials: Tensor, random: torch.Generator) -> Tensor:
    """Unit vectors [3,3] float64, orthogonal: the one along which points [n,3] lie in the sharpest layers of a width,
    tried from unit vectors [m,3] on, and the two across it along which they do."""
    away = (points - points.median(dim=0).values).norm(dim=1)
    reach = _REACH * float(away.median())
    points = points[away <= reach]
    width = max(width, reach / _MOST_LAYERS)
    some = points[torch.randperm(len(points), generator=random)[:_MOST_POINTS]]

    best = trials[_sharpness(some, trials, width).argmax()]
    for turn, part in _ROUNDS:
        tried = best + turn * torch.randn(_TRIED, 3, dtype=torch.float64, generator=random)
        tried = torch.nn.functional.normalize(torch.cat([best[None], tried]), dim=1)
        best = tried[_sharpness(points, tried, part * width).argmax()]
    across = torch.linalg.qr(torch.cat([best[:, None], torch.eye(3, dtype=torch.float64)], dim=1)).Q[:, 1:3]

    def turned(angles: Tensor) -> Tensor:
        """Pairs [m,2,3] across the first direction."""
        c, s = angles.cos(), angles.sin()
        return torch.stack([torch.stack([c, s], dim=1), torch.stack([-s, c], dim=1)], dim=1) @ across.T

    def sharpest(angles: Tensor, width: float) -> Tensor:
        both = _sharpness(points, turned(angles).reshape(-1, 3), width).reshape(-1, 2)
        return angles[both.sum(dim=1).argmax()]

    angle = sharpest(torch.arange(_STEPS, dtype=torch.float64) * (math.pi / 2 / _STEPS), width)
    for turn, part in _ROUNDS[1:]:
        turns = torch.cat([torch.zeros(1), turn * torch.randn(_TRIED, generator=random)]).double()
        angle = sharpest(angle + turns, part * width)
    return torch.cat([best[None], turned(angle[None])[0]])


def _sharpness(points: Tensor, ways: Tensor, width: float) -> Tensor:
    """For each unit vector [m,3] the sum [m] of the squares of how many points [n,3] lie in each layer of a width
    across it; a point counts for the two layers that it lies between, by how near it is to their middles."""
    along = (points @ ways.T).T / width
    along = along - along.amin(dim=1, keepdim=True)
    layer = along.floor()
    share, layer = along - layer, layer.long()
    counts = torch.zeros(len(ways), int(layer.max()) + 2, dtype=torch.float64)
    counts.scatter_add_(1, layer, 1 - share).scatter_add_(1, layer + 1, share)
    return counts.square().sum(dim=1)
