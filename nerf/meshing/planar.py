"""Planes of a scene, fitted to points that photos agree on: walls, floors, furniture.

A plane has an extent, the convex hull of its points. Source: sequential RANSAC (Fischler and Bolles 1981).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from nerf.meshing.directions import main_directions
from nerf.meshing.trial_planes import BEYOND, joined, thinned, trial_bounds, trial_layers, trial_planes, trial_slopes

_MAX_PLANES = 24
_LEAST_SHARE, _LEAST_SHARE_OF_WALL = 0.01, 0.004  # of the points, below which a plane is none
_TANGENT, _LEAST_TANGENT = 0.85, 0.3  # cosine to a plane's normal of those of its points, for a share of them
_PARALLEL, _SAME_DIRECTION = 0.9, 0.9986  # cosines between normals
_MAX_DIRECTIONS = 6  # of planes found, in which more are looked for
_ALIGNED, _AS_MANY = 0.99, 0.7  # cosine to such a direction from which a plane takes it; if it keeps so many inliers
_WIDE = 10.0  # tolerances: so wide are the points of a bound, or a wall, at least
_N_ASKED, _THROUGH = 1000, 0.06  # points around a plane's middle; the share that may be seen through of a bound
_HALO = 3.0  # tolerances from a plane within which there is no other: its own points' larger errors
_DIRECTIONS = 32  # of the lines around an extent
_EXTENT_QUANTILE, _MARGIN = 0.001, 0.1  # of the points that may lie beyond each; the share by which it is wider
_PLACED, _ALIKE = 2.0, 0.2  # tolerances: from a bound, within which it is placed; between parts of it
_ACROSS, _LEAST_IN_CELL, _LEAST_CELLS = 24, 8, 6  # cells across a bound; points and cells that tell something
_OUTERMOST = 1 / 3  # of the most that lies at one level, at which it may be the bound's
_UPRIGHT = 0.02  # cosine between two bounds, or sine, below which they are taken for perpendicular, or parallel


_Kind = Literal["any", "bound", "wall"]


class Planes(NamedTuple):
    """k planes n x = d of the scene, each with an extent."""

    normals: Tensor  # [k,3] float64, unit
    offsets: Tensor  # [k]
    axes: Tensor  # [k,2,3] within them, orthonormal
    limits: Tensor  # [k,_DIRECTIONS] along directions within them
    is_bound: Tensor  # [k] bool: nothing is seen beyond

    def contain(self, k: int, points: Tensor) -> Tensor:
        """Which points [n,3] of plane k lie within its extent: bool [n]."""
        return (points @ self.axes[k].T @ _around().T <= self.limits[k]).all(dim=-1)


def fit_planes(
    points: Tensor, normals: Tensor, tolerances: Tensor, seen_through: Callable[[Tensor], Tensor], seed: int = 0
) -> Planes:
    """The planes of most points [n,3] with unit normals [n,3] that lie within tolerances [n], float64.

    Points are thinned to one in a cell first, so that they count by the area they cover. A third of a plane's points
    must have its normal: at edges, which are what plain walls have, they may have any. seen_through: which points [m,3]
    views see through; a plane that none is of, with few points beyond, bounds the scene. Of bounds points may lie on
    planes found before: those of a plain wall lie on its borders.
    """
    random = torch.Generator().manual_seed(seed)
    some = thinned(points, random)
    found: list[_Plane] = []
    if len(some) >= 3:
        few, leeway = points[some], tolerances[some]
        trials = trial_planes(few, normals[some], random)
        main = main_directions(few, float(leeway.median()), trials[0], random)
        cloud = _Cloud(few, normals[some], leeway, seen_through, list(main), random)
        layers, slopes = trial_layers(few, main, random), trial_slopes(few, leeway, main, random)
        cloud.find(found, *joined(trials, layers, slopes))
        cloud.find(found, *trial_bounds(few, cloud.directions(found), random), kind="bound")
        cloud.find(found, *joined(layers, trial_layers(few, main, random)), kind="wall")
    if not found:
        none = torch.zeros(0, dtype=torch.float64)
        return Planes(none.reshape(0, 3), none, none.reshape(0, 2, 3), none.reshape(0, _DIRECTIONS), none > 0)
    found = _place_bounds(found, points, tolerances)
    return Planes(*(torch.stack(parts) for parts in zip(*found, strict=True)))


class _Plane(NamedTuple):
    normal: Tensor
    offset: Tensor
    axes: Tensor
    limits: Tensor
    is_bound: Tensor


@dataclass
class _Cloud:
    """What planes are fitted to, see fit_planes."""

    points: Tensor
    normals: Tensor
    tolerances: Tensor
    seen_through: Callable[[Tensor], Tensor]
    main: list[Tensor]  # see main_directions
    random: torch.Generator

    def directions(self, found: list[_Plane]) -> list[Tensor]:
        """The main ones, unit normals of planes, and across two of these: rooms and houses have few directions."""
        first = [plane.normal for plane in found[:_MAX_DIRECTIONS]]
        across = [torch.linalg.cross(a, b) for i, a in enumerate(first) for b in first[:i]]
        across = [normal / normal.norm() for normal in across if float(normal.norm()) > 0.5]
        ways: list[Tensor] = []
        for way in [*self.main, *first, *across]:
            if all(float((way @ other).abs()) < _SAME_DIRECTION for other in ways):
                ways.append(way)
        return ways

    def _is_solid(self, plane: _Plane) -> bool:
        """Whether views see hardly anything through it."""
        across = (torch.rand(_N_ASKED, 2, dtype=torch.float64, generator=self.random) * 2 - 1) * plane.limits.max()
        across = across[(across @ _around().T <= plane.limits).all(dim=1)]
        points = across @ plane.axes + plane.offset * plane.normal
        return bool(self.seen_through(points).double().mean() < _THROUGH)

    def _few_beyond(self, plane: _Plane) -> bool:
        apart = (self.points @ plane.normal - plane.offset) / self.tolerances
        return min(float((sign * apart > _HALO).double().mean()) for sign in (-1, 1)) < BEYOND

    def _is_wide(self, plane: _Plane) -> bool:
        """Whether its points tell a plane: those along an edge lie on any through it."""
        width = plane.limits + plane.limits.roll(_DIRECTIONS // 2)
        return float(width.min()) > _WIDE * float(self.tolerances.median())

    def find(self, found: list[_Plane], normals: Tensor, offsets: Tensor, kind: _Kind = "any") -> None:
        """Add to those found what most points lie on of planes with normals [m,3] and offsets [m], largest first.

        Of bounds and walls points on planes found before count unless these are parallel, and nothing is seen through
        them. Walls are no bounds: they stand within the scene, and few points with their normal are enough.
        """
        fits = ((self.points @ normals.T - offsets).abs() < self.tolerances[:, None]).T
        tangent = (self.normals @ normals.T).abs().T > _TANGENT
        least = max(3, round((_LEAST_SHARE_OF_WALL if kind == "wall" else _LEAST_SHARE) * len(self.points)))
        free = tangent.clone() if kind == "wall" else torch.ones_like(fits)
        alive = torch.ones(len(fits), dtype=torch.bool)
        new = found.copy()
        while len(normals) and len(found) < _MAX_PLANES:
            for plane in new:
                near = (self.points @ plane.normal - plane.offset).abs() <= _HALO * self.tolerances
                if kind != "any":  # a bound may stand right behind what leans before it
                    beside_bound = kind == "bound" and not bool(plane.is_bound)
                    near = near & ((normals @ plane.normal).abs() > (_ALIGNED if beside_bound else _PARALLEL))[:, None]
                free &= ~near
            new = []
            inliers = fits & free
            counts = inliers.sum(dim=1)
            counts[~alive | ((inliers & tangent).sum(dim=1) < _LEAST_TANGENT * counts)] = 0
            best = int(counts.argmax())
            if int(counts[best]) < least:
                break
            alive[best] = False
            settled = self._settled(inliers[best], free[best], least, self.directions(found))
            if settled is None:
                continue
            is_solid = self._is_solid(settled)
            if kind == "any" or (is_solid and self._is_wide(settled)):
                is_bound = is_solid and kind != "wall" and self._few_beyond(settled)
                new = [settled._replace(is_bound=torch.tensor(is_bound))]
                found += new

    def _settled(self, inlier: Tensor, free: Tensor, least: int, directions: list[Tensor]) -> _Plane | None:
        """The plane nearest to the inliers [n], and to those that it has instead, in one of the directions where that
        is nearly as good; None where these get too few."""
        for _ in range(3):
            normal, offset = _least_squares(self.points[inlier], 1 / self.tolerances[inlier].square())
            inlier = ((self.points @ normal - offset).abs() < self.tolerances) & free
            if int(inlier.sum()) < least:
                return None
        normal, offset, inlier = self._aligned(normal, offset, inlier, free, directions)
        return _Plane(normal, offset, *_extent(self.points[inlier], normal), torch.tensor(False))

    def _aligned(
        self, normal: Tensor, offset: Tensor, inlier: Tensor, free: Tensor, directions: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The plane and its inliers [n] turned to one of the directions: few points on the borders of a plain wall,
        some of them of what stands before it, do not tell its slope."""
        for direction in directions:
            if float((direction @ normal).abs()) > _ALIGNED:
                turned, level, there = direction * (direction @ normal).sign(), offset, inlier
                for _ in range(3):
                    if bool(there.any()):
                        level = (self.points[there] @ turned).median()
                        there = ((self.points @ turned - level).abs() < self.tolerances) & free
                if int(there.sum()) > _AS_MANY * int(inlier.sum()):
                    return turned, level, there
        return normal, offset, inlier


def _place_bounds(found: list[_Plane], points: Tensor, tolerances: Tensor) -> list[_Plane]:
    """The planes, with bounds of the scene that are nearly perpendicular or parallel turned to be so, each moved to
    where nothing is behind, and those of what hangs or lies on it: pictures before a wall, a carpet on the floor."""
    placed: list[_Plane] = []
    normals: list[Tensor] = []
    for plane in found:
        if not bool(plane.is_bound):
            placed.append(plane)
            continue
        normal = plane.normal
        for other in normals:
            cosine = normal @ other
            if float(cosine.abs()) < _UPRIGHT:
                normal = torch.nn.functional.normalize(normal - cosine * other, dim=0)
            elif float((normal - cosine * other).norm()) < _UPRIGHT:
                normal = other * cosine.sign()
        normals.append(normal)
        inlier = (points @ plane.normal - plane.offset).abs() < tolerances
        layers = _layers(points, tolerances, normal, (points[inlier] @ normal).median())
        placed.append(plane._replace(normal=normal, offset=layers[0][0], axes=_axes(normal)))
        for offset, some in layers[1:]:
            placed.append(_Plane(normal, offset, *_extent(points[some], normal), torch.tensor(False)))
    return placed


def _layers(points: Tensor, tolerances: Tensor, normal: Tensor, offset: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The offset nearest to the outside at which about as much of a bound lies as anywhere near the given one, and
    those of the patches before it; with the indices of their points.

    Points [n,3] are taken together by cells within the bound, whose medians are as precise as their points are many: so
    a wall and the pictures on it, an inch before, are told apart, though a point is not as precise.
    """
    apart = points @ normal - offset
    inward = 1.0 if float(apart.median()) > 0 else -1.0
    near = (apart.abs() < _PLACED * tolerances).nonzero()[:, 0]
    across = points[near] @ _axes(normal).T
    across -= across.amin(dim=0)
    cell = (across * (_ACROSS / across.max().clamp_min(1e-12))).long().clamp_max(_ACROSS - 1)
    cell = cell[:, 0] * _ACROSS + cell[:, 1]
    count = torch.bincount(cell, minlength=_ACROSS**2)
    by_cell = (cell + apart[near].argsort().argsort().double() / (len(near) + 1)).argsort()
    middle = by_cell[(count.cumsum(0) - count + count // 2).clamp_max(len(near) - 1)]
    levels = torch.where(count >= _LEAST_IN_CELL, apart[near[middle]] * inward, torch.nan)
    reach = _ALIKE * float(tolerances[near].median())
    n_alike = ((levels[:, None] - levels).abs() < reach).sum(dim=1)
    if int((n_alike > 0).sum()) < _LEAST_CELLS:
        return [(offset, near)]
    many = n_alike >= _OUTERMOST * n_alike.max()
    outermost = (levels - levels[torch.where(many, levels, torch.inf).argmin()]).abs() < reach
    level = levels[outermost].median()
    layers = [(offset + inward * level, near[outermost[cell]])]
    patches = _patches(torch.where(levels > level + 2 * reach, levels, torch.nan), reach)
    return layers + [(offset + inward * levels[patch].median(), near[patch[cell]]) for patch in patches]


def _patches(levels: Tensor, reach: float) -> list[Tensor]:
    """Neighbouring cells, many, whose levels [_ACROSS^2] differ by less than the reach from one to the next: bool."""
    of = levels.reshape(1, 1, _ACROSS, _ACROSS)
    label = torch.arange(1.0, of.numel() + 1).reshape(of.shape)
    while True:  # each takes the largest label of those around that are alike
        around = [
            torch.nn.functional.unfold(torch.nn.functional.pad(x, (1, 1, 1, 1), value=v), 3)
            for x, v in ((of.float(), torch.nan), (label, 0.0))
        ]
        alike = (around[0] - of.reshape(1, 1, -1)).abs() < reach
        new = torch.where(alike, around[1], 0.0).amax(dim=1).reshape(of.shape)
        if bool((new == label).all()):
            break
        label = new
    found = [(label == k).flatten() for k in label.unique() if k > 0]
    return [patch for patch in found if int(patch.sum()) >= _LEAST_CELLS]


def _axes(normal: Tensor) -> Tensor:
    """Orthonormal axes [2,3] within a plane."""
    return torch.linalg.qr(torch.cat([normal[:, None], torch.eye(3, dtype=torch.float64)], dim=1)).Q[:, 1:3].T


def _least_squares(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Normal and offset of the plane nearest to points."""
    middle = (weights[:, None] * points).sum(dim=0) / weights.sum()
    apart = points - middle
    normal = torch.linalg.eigh(apart.T @ (weights[:, None] * apart)).eigenvectors[:, 0]
    return normal, normal @ middle


def _around() -> Tensor:
    angle = torch.arange(_DIRECTIONS, dtype=torch.float64) * (2 * torch.pi / _DIRECTIONS)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def _extent(points: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Axes [2,3] within a plane, and how far points reach along directions there."""
    axes = _axes(normal)
    along = points @ axes.T @ _around().T
    last = max(1, round((1 - _EXTENT_QUANTILE) * len(along)))
    reach = along.sort(dim=0).values[last - 1]
    width = reach + reach.roll(_DIRECTIONS // 2)  # from the end in one direction to that in the opposite one
    return axes, reach + _MARGIN * width
