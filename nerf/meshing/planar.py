"""Planes of a scene, fitted to points that photos agree on, for pixels without texture: walls, floors, furniture.

A plane has an extent, the convex hull of its points, and in each view it stands for the pixels around those that
support it. Sources: sequential RANSAC (Fischler and Bolles 1981); plane hypotheses for what has no texture as Xu and
Tao, "Planar Prior Assisted PatchMatch Multi-View Stereo", 2020 (ACMP), their support chosen by geometric consistency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nerf.kernels import DepthView
from nerf.meshing.consistency import AGREE, CONTRADICT, ask_views, unproject_pixels
from nerf.meshing.walker import halved, spread

_TRIALS = 1000  # planes through three points that are counted
_MOST_POINTS = 10_000  # that are asked
_MAX_PLANES = 24
_LEAST_SHARE = 0.01  # of the points, below which a plane is none
_TANGENT, _LEAST_TANGENT = 0.85, 0.3  # cosine to a plane's normal of those of its points, for a share of them
_PARALLEL, _SAME_DIRECTION = 0.9, 0.9986  # cosines between normals
_MAX_DIRECTIONS = 6  # of planes found, in which more are looked for
_ALIGNED, _AS_MANY = 0.99, 0.7  # cosine to such a direction from which a plane takes it; if it keeps so many inliers
_BEYOND = 0.05  # share of the points that may lie beyond a bound of the scene
_N_ASKED, _THROUGH = 1000, 0.06  # points around a plane's middle; the share that may be seen through of a bound
_HALO = 3.0  # tolerances from a plane within which there is no other: its own points' larger errors
_DIRECTIONS = 32  # of the lines around an extent
_EXTENT_QUANTILE, _MARGIN = 0.001, 0.1  # of the points that may lie beyond each; the share by which it is wider
_NEAR = 0.1  # of the depth: what a field's depth lies before a plain wall


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
    views see through; a plane that none is of is a bound of the scene. Of bounds, but of no others, points may lie on
    planes found before: those of a plain wall lie on its borders.
    """
    random = torch.Generator().manual_seed(seed)
    some = _thinned(points, random)
    cloud = _Cloud(points[some], normals[some], tolerances[some], seen_through, random)
    found: list[_Plane] = []
    if len(some) >= 3:
        cloud.find(found, *_trial_planes(cloud.points, cloud.normals, random))
        cloud.find(found, *_trial_bounds(cloud, _directions(found), random), bounds=True)
    if not found:
        none = torch.zeros(0, dtype=torch.float64)
        return Planes(none.reshape(0, 3), none, none.reshape(0, 2, 3), none.reshape(0, _DIRECTIONS), none > 0)
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
    random: torch.Generator

    def find(self, found: list[_Plane], normals: Tensor, offsets: Tensor, bounds: bool = False) -> None:
        """Add to those found what most points lie on of planes with normals [m,3] and offsets [m], largest first;
        bounds: only such, and points on planes found before count unless these are parallel."""
        fits = ((self.points @ normals.T - offsets).abs() < self.tolerances[:, None]).T
        tangent = (self.normals @ normals.T).abs().T > _TANGENT
        least = max(3, round(_LEAST_SHARE * len(self.points)))
        free, alive = torch.ones_like(fits), torch.ones(len(fits), dtype=torch.bool)
        new = found.copy()
        while len(normals) and len(found) < _MAX_PLANES:
            for plane in new:
                near = (self.points @ plane.normal - plane.offset).abs() <= _HALO * self.tolerances
                parallel = (normals @ plane.normal).abs() > _PARALLEL
                free &= ~(near & (parallel[:, None] | (not bounds)))
            new = []
            inliers = fits & free
            counts = inliers.sum(dim=1)
            counts[~alive | ((inliers & tangent).sum(dim=1) < _LEAST_TANGENT * counts)] = 0
            best = int(counts.argmax())
            if int(counts[best]) < least:
                break
            alive[best] = False
            settled = self._settled(inliers[best], free[best], least, _directions(found))
            if settled is not None and (bool(settled.is_bound) or not bounds):
                found.append(settled)
                new = [settled]

    def _settled(self, inlier: Tensor, free: Tensor, least: int, directions: list[Tensor]) -> _Plane | None:
        """The plane nearest to the inliers [n], and to those that it has instead, in one of the directions where that
        is nearly as good; None where these get too few."""
        for _ in range(3):
            normal, offset = _least_squares(self.points[inlier], 1 / self.tolerances[inlier].square())
            inlier = ((self.points @ normal - offset).abs() < self.tolerances) & free
            if int(inlier.sum()) < least:
                return None
        normal, offset, inlier = self._aligned(normal, offset, inlier, free, directions)
        axes, limits = _extent(self.points[inlier], normal)
        across = (torch.rand(_N_ASKED, 2, dtype=torch.float64, generator=self.random) * 2 - 1) * limits.max()
        across = across[(across @ _around().T <= limits).all(dim=1)]
        is_bound = self.seen_through(across @ axes + offset * normal).double().mean() < _THROUGH
        return _Plane(normal, offset, axes, limits, is_bound)

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


def _thinned(points: Tensor, random: torch.Generator) -> Tensor:
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


def _trial_planes(points: Tensor, normals: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
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


def _trial_bounds(cloud: _Cloud, ways: list[Tensor], random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normals [m,3] and offsets [m] of planes in given directions through points that have few points beyond."""
    if not ways:
        return cloud.points[:0], cloud.points[:0, 0]
    places = cloud.points[torch.randint(len(cloud.points), (len(ways), _TRIALS // 4), generator=random)]
    normal = torch.stack(ways).repeat_interleave(_TRIALS // 4, dim=0)
    offset = (normal * places.reshape(-1, 3)).sum(dim=1)
    apart = (cloud.points @ normal.T - offset) / cloud.tolerances[:, None]
    beyond = torch.minimum(*((sign * apart > _HALO).double().mean(dim=0) for sign in (-1, 1)))
    return normal[beyond < _BEYOND], offset[beyond < _BEYOND]


def _directions(found: list[_Plane]) -> list[Tensor]:
    """Unit normals of planes, and across two of them: rooms and houses have few directions."""
    first = [plane.normal for plane in found[:_MAX_DIRECTIONS]]
    across = [torch.linalg.cross(a, b) for i, a in enumerate(first) for b in first[:i]]
    ways: list[Tensor] = []
    for way in [*first, *(normal / normal.norm() for normal in across if float(normal.norm()) > 0.5)]:
        if all(float((way @ other).abs()) < _SAME_DIRECTION for other in ways):
            ways.append(way)
    return ways


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
    axes = torch.linalg.qr(torch.cat([normal[:, None], torch.eye(3, dtype=torch.float64)], dim=1)).Q[:, 1:3].T
    along = points @ axes.T @ _around().T
    last = max(1, round((1 - _EXTENT_QUANTILE) * len(along)))
    reach = along.sort(dim=0).values[last - 1]
    width = reach + reach.roll(_DIRECTIONS // 2)  # from the end in one direction to that in the opposite one
    return axes, reach + _MARGIN * width


def planes_in_view(planes: Planes, view: DepthView) -> Tensor:
    """[k,h,w] float32: inverse z-depths of planes at the pixels of a view; below 0 behind its camera."""
    h, w = view.depths.shape
    fx, fy, cx, cy = view.intrinsics
    rotation, shift = view.camera_from_scene[:, :3], view.camera_from_scene[:, 3]
    normals = planes.normals @ rotation.T
    scaled = normals / (planes.offsets + normals @ shift)[:, None]  # 1/z is this times the ray (x, y, 1)
    right, down = scaled[:, 0, None, None] / fx, scaled[:, 1, None, None] / fy
    x, y = torch.arange(w) + 0.5 - cx, torch.arange(h) + 0.5 - cy
    return (scaled[:, 2, None, None] + right * x + down * y[:, None]).float()


def complete(
    view: DepthView, picture: Tensor, sure: DepthView, planes: Planes, others: list[DepthView]
) -> tuple[Tensor, Tensor]:
    """z-depths [h,w] of planes at the pixels of a view with a grey picture [h,w] that are not sure (weight 0), NaN
    where none will do, and those of the bounds of the scene, infinite where there are none.

    Sure pixels lie on the bounds, on another plane or on none, and a random walker says to which of these each pixel
    belongs. Where a pixel's own depth is within _NEAR of the bounds it belongs to them, too: a field errs towards the
    camera. So no plane but a bound will do before that depth, nor one outside its extent, nor where others, the sure
    pixels of near views, see through it. Every second pixel of every second row is asked for all four.
    """
    h, w = view.depths.shape
    inverse = planes_in_view(planes, view)
    # Of planes around the scene, what is seen is the nearest.
    bound = torch.cat([torch.zeros(1, h, w), inverse[planes.is_bound]]).amax(dim=0)
    single = (~planes.is_bound).nonzero()[:, 0].tolist()
    kinds, none = torch.cat([bound[None], inverse[single], torch.zeros(1, h, w)]), 1 + len(single)
    rows, cols = (h + 1) // 2, (w + 1) // 2
    pixels = (2 * torch.arange(rows)[:, None] * w + 2 * torch.arange(cols)).flatten()
    q, own, sure_depths, weights = (
        values.flatten(-2)[..., pixels] for values in (kinds, view.depths, sure.depths, sure.weights)
    )
    seeds = ((sure_depths * q - 1).abs() < AGREE).float()
    seeds[none] = (seeds.amax(dim=0) == 0).float()
    seeds /= seeds.sum(dim=0)
    tried = [c for c in range(len(seeds)) if c == none or float((seeds[c] * weights).sum()) > 0]
    shares = spread(seeds[tried].reshape(-1, rows, cols), weights.reshape(rows, cols), halved(picture))
    label = torch.tensor(tried)[shares.flatten(1).argmax(dim=0)]
    for c, k in enumerate(single, start=1):
        asked = (label == c).nonzero()[:, 0]
        inside = planes.contain(k, unproject_pixels(view, pixels[asked], 1 / q[c, asked]))
        label[asked[~inside | ~(q[c, asked] > 0) | (q[c, asked] * own[asked] > 1 + CONTRADICT)]] = none
    label[(label == none) & (q[0] * own > 1 - _NEAR)] = 0
    label[((label == 0) & (q[0] == 0)) | own.isinf() | (weights > 0)] = none
    asked = (label != none).nonzero()[:, 0]
    z = 1 / q.gather(0, label[asked][None])[0] if len(asked) else own[asked]
    through = ask_views(unproject_pixels(view, pixels[asked], z).float(), others)
    label[asked[through.contradicting > through.agreeing]] = none
    full = label.reshape(rows, cols).repeat_interleave(2, dim=0)[:h].repeat_interleave(2, dim=1)[:, :w]
    flat = kinds.gather(0, full[None])[0]
    is_flat = (flat > 0) & (sure.weights <= 0) & ~view.depths.isinf()
    return torch.where(is_flat, 1 / flat, torch.nan), 1 / bound
