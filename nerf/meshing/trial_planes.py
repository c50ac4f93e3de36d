"""Planes that are tried on points, before it is counted how many lie on them."""

from __future__ import annotations

import torch
from torch import Tensor

_TRIALS = 1000  # planes through three points, or tangent ones
_MOST_POINTS = 10_000  # that are asked
BEYOND = 0.05  # share of the points that may lie beyond a bound of the scene
_SLOPE, _TRIED_SLOPES = 0.035, 16  # radians between slopes that are tried; offsets of each
_ALONG = 0.99  # cosine to a main direction from which on a slope is none

Trials = tuple[Tensor, Tensor]  # normals [m,3], unit, and offsets [m]


def thinned(points: Tensor, random: torch.Generator) -> Tensor:
    """Indices of at most _MOST_POINTS points, one in each cell of a grid, as fine as that allows."""
    order = torch.randperm(len(points), generator=random)
    if not len(order):
        return order
    size = float((points.amax(dim=0) - points.amin(dim=0)).max()) / 400 + 1e-12
    while True:
        cells = ((points[order] - points.amin(dim=0)) / size).long()
        key = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
        _, which = torch.unique(key, return_inverse=True)
        first = torch.full((int(which.max()) + 1,), len(order)).scatter_reduce(
            0, which, torch.arange(len(order)), "amin"
        )
        if len(first) <= _MOST_POINTS:
            return order[first]
        size *= 1.3


def trial_planes(points: Tensor, normals: Tensor, random: torch.Generator) -> Trials:
    """Normals [m,3] and offsets [m]: half through three points that lie near one another, half tangent ones."""
    n = len(points)
    first = torch.randint(n, (_TRIALS,), generator=random)
    others = torch.randint(n, (_TRIALS, 64), generator=random)
    near = (points[others] - points[first][:, None]).norm(dim=2)
    nearest = others.gather(1, near.topk(8, dim=1, largest=False).indices)
    b, c = points[nearest[:, 3]], points[nearest[:, 6]]
    across = torch.linalg.cross(b - points[first], c - points[first])
    size = across.norm(dim=1, keepdim=True)
    through = torch.where(size > 0, across / size.clamp_min(1e-300), normals[first])
    normal = torch.where(torch.arange(_TRIALS)[:, None] % 2 == 0, through, normals[first])
    return normal, (normal * points[first]).sum(dim=1)


def trial_layers(points: Tensor, ways: Tensor, random: torch.Generator) -> Trials:
    """Normals [m,3] and offsets [m] of planes across the main directions."""
    places = points[torch.randint(len(points), (len(ways), _TRIALS // 4), generator=random)]
    offsets = (places * ways[:, None]).sum(dim=2)
    return ways.repeat_interleave(_TRIALS // 4, dim=0), offsets.flatten()


def trial_slopes(points: Tensor, tolerances: Tensor, ways: Tensor, random: torch.Generator) -> Trials:
    """Normals [m,3] and offsets [m] of planes that hold a main direction, as roofs do, and have few points beyond:
    of each slope that which most points lie on."""
    normals, offsets = [], []
    for k in range(3):
        a, b = ways[(k + 1) % 3], ways[(k + 2) % 3]
        for angle in torch.arange(_SLOPE, 2 * torch.pi, _SLOPE, dtype=torch.float64):
            normal = angle.cos() * a + angle.sin() * b
            if max(float((normal @ a).abs()), float((normal @ b).abs())) < _ALONG:
                tried = _outermost(points, normal, _TRIED_SLOPES, random)
                on = ((points @ normal - tried[:, None]).abs() < tolerances).sum(dim=1)
                normals.append(normal)
                offsets.append(tried[on.argmax()])
    return torch.stack(normals), torch.stack(offsets)


def trial_bounds(points: Tensor, ways: list[Tensor], random: torch.Generator) -> Trials:
    """Normals [m,3] and offsets [m] of planes in given directions, either way, that have few points beyond."""
    both = [sign * way for way in ways for sign in (1, -1)]
    offsets = [_outermost(points, normal, _TRIALS // 8, random) for normal in both]
    return torch.stack(both).repeat_interleave(_TRIALS // 8, dim=0), torch.cat(offsets)


def _outermost(points: Tensor, normal: Tensor, n: int, random: torch.Generator) -> Tensor:
    """Offsets [n] of planes through points that have few points beyond."""
    along = (points @ normal).topk(max(1, round(BEYOND * len(points)))).values
    return along[torch.randint(len(along), (n,), generator=random)]


def joined(*trials: Trials) -> Trials:
    normals, offsets = zip(*trials, strict=True)
    return torch.cat(normals), torch.cat(offsets)
