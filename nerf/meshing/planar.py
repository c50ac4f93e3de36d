"""Planes of a scene, fitted to points that photos agree on, for pixels without texture: walls, floors, furniture.

A plane has an extent, the convex hull of its points, and in each view it stands for the pixels around those that
support it. Sources: sequential RANSAC (Fischler and Bolles 1981); plane hypotheses for what has no texture as Xu and
Tao, "Planar Prior Assisted PatchMatch Multi-View Stereo", 2020 (ACMP), their support chosen by geometric consistency.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nerf.kernels import DepthView
from nerf.meshing.consistency import AGREE, CONTRADICT, ask_views, unproject_pixels

_TRIALS = 1000  # planes through three points that are counted
_MOST_POINTS = 10_000  # that are asked
_MAX_PLANES = 24
_LEAST_SHARE = 0.01  # of the points, below which a plane is none
_TANGENT, _LEAST_TANGENT = 0.85, 0.3  # cosine to a plane's normal of those of its points, for a share of them
_HALO = 3.0  # tolerances from a plane within which there is no other: its own points' larger errors
_DIRECTIONS = 32  # of the lines around an extent
_EXTENT_QUANTILE, _MARGIN = 0.001, 0.1  # of the points that may lie beyond each; the share by which it is wider
_FARTHEST = 1.5  # times a pixel's depth: where no plane is put behind what may be a plain thing of its own
_FEWEST_ALIKE = 3  # views with the same depth by which a pixel keeps its own
_REACHES = (4, 8, 16, 32, 64, 128, 256)  # pixels around a pixel in which planes are voted for


class Planes(NamedTuple):
    """k planes n x = d of the scene, each with an extent."""

    normals: Tensor  # [k,3] float64, unit
    offsets: Tensor  # [k]
    axes: Tensor  # [k,2,3] within them, orthonormal
    limits: Tensor  # [k,_DIRECTIONS] along directions within them

    def contain(self, k: int, points: Tensor) -> Tensor:
        """Which points [n,3] of plane k lie within its extent: bool [n]."""
        return (points @ self.axes[k].T @ _around().T <= self.limits[k]).all(dim=-1)


def fit_planes(points: Tensor, normals: Tensor, tolerances: Tensor, seed: int = 0) -> Planes:
    """The planes of most points [n,3] with unit normals [n,3] that lie within tolerances [n], float64: largest first.

    Points are thinned to one in a cell first, so that they count by the area they cover. A third of a plane's points
    must have its normal: at edges, which are what plain walls have, they may have any.
    """
    random = torch.Generator().manual_seed(seed)
    some = _thinned(points, random)
    points, normals, tolerances = points[some], normals[some], tolerances[some]
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    if len(points) >= 3:
        left = torch.ones(len(points), dtype=torch.bool)
        trials = _trial_planes(points, normals, random)
        fits = ((points @ trials[0].T - trials[1]).abs() < tolerances[:, None]).T
        tangent = (normals @ trials[0].T).abs().T > _TANGENT
        least = max(3, round(_LEAST_SHARE * len(points)))
        alive = torch.ones(len(fits), dtype=torch.bool)
        while len(found) < _MAX_PLANES:
            inliers = fits & left
            counts = inliers.sum(dim=1)
            counts[~alive | ((inliers & tangent).sum(dim=1) < _LEAST_TANGENT * counts)] = 0
            best = int(counts.argmax())
            if int(counts[best]) < least:
                break
            alive[best] = False
            inlier = inliers[best]
            for _ in range(3):
                normal, offset = _least_squares(points[inlier], 1 / tolerances[inlier].square())
                inlier = ((points @ normal - offset).abs() < tolerances) & left
                if int(inlier.sum()) < least:
                    break
            else:
                left &= (points @ normal - offset).abs() > _HALO * tolerances
                found.append((normal, offset, *_extent(points[inlier], normal)))
    if not found:
        none = torch.zeros(0, dtype=torch.float64)
        return Planes(none.reshape(0, 3), none, none.reshape(0, 2, 3), none.reshape(0, _DIRECTIONS))
    return Planes(*(torch.stack(parts) for parts in zip(*found, strict=True)))


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
    """[k,3,h,w] float32: planes as kernels.match_planes takes them, of the camera of a view."""
    h, w = view.depths.shape
    fx, fy, cx, cy = view.intrinsics
    rotation, shift = view.camera_from_scene[:, :3], view.camera_from_scene[:, 3]
    normals = planes.normals @ rotation.T
    scaled = normals / (planes.offsets + normals @ shift)[:, None]  # 1/z is this times the ray (x, y, 1)
    right, down = scaled[:, 0] / fx, scaled[:, 1] / fy
    x, y = torch.arange(w) + 0.5 - cx, torch.arange(h) + 0.5 - cy
    inverse = scaled[:, 2, None, None] + right[:, None, None] * x + down[:, None, None] * y[:, None]
    return torch.stack([inverse, *(t[:, None, None].expand(-1, h, w) for t in (right, down))], dim=1).float()


def vote(support: Tensor) -> Tensor:
    """Of support [k,h,w] (bool or weights) around each pixel, as 1 / distance^2: [k,h,w] float32."""
    total = torch.zeros(support.shape)
    for reach in _REACHES:
        total += _box_sum(support.double(), reach).float() / (2 * reach + 1) ** 2
    return total


def _box_sum(values: Tensor, reach: int) -> Tensor:
    """Sums of [k,h,w] over squares of 2 reach + 1 pixels, cut at the border."""
    for dim in (1, 2):
        n = values.shape[dim]
        sums = torch.cat([torch.zeros_like(values.narrow(dim, 0, 1)), values.cumsum(dim=dim)], dim=dim)
        last, first = torch.arange(n) + reach + 1, torch.arange(n) - reach
        values = sums.index_select(dim, last.clamp_max(n)) - sums.index_select(dim, first.clamp_min(0))
    return values


class Filled(NamedTuple):
    """What may stand where a view measures nothing: [h,w] bool, and planes."""

    planes: Tensor  # [3,h,w] float32, see kernels.match_planes
    is_planar: Tensor  # where one of them will do
    alike: Tensor  # where other views have the pixel's own depth
    refuted: Tensor  # where they see through it


def complete(
    view: DepthView, sure: DepthView, planes: Planes, sure_others: list[DepthView], others: list[DepthView]
) -> Filled:
    """Planes for the pixels of a view that are not sure (weight 0), given others and those of them that are sure.

    Its own depth is alike where _FEWEST_ALIKE others have the same, refuted where those that are sure see through. A
    plane will do where the pixel lies within its extent, not before the pixel's own depth (a field errs towards the
    camera) nor, unless that is refuted, _FARTHEST times as far, and views that are sure do not see through; of several,
    that which most sure pixels around support. Every second pixel of every second row is asked for all four.
    """
    h, w = view.depths.shape
    own = view.depths[::2, ::2].flatten()
    rows, cols = (h + 1) // 2, (w + 1) // 2
    pixels = (2 * torch.arange(rows)[:, None] * w + 2 * torch.arange(cols)).flatten()
    is_open = (sure.weights[::2, ::2] <= 0).flatten() & ~own.isinf()
    refuted, alike = (torch.zeros(len(pixels), dtype=torch.bool) for _ in range(2))
    known = (is_open & (own > 0)).nonzero()[:, 0]
    points = unproject_pixels(view, pixels[known], own[known]).float()
    through = ask_views(points, sure_others)
    refuted[known] = through.contradicting > through.agreeing
    alike[known] = (ask_views(points, others).n_agreeing >= _FEWEST_ALIKE) & ~refuted[known]

    there = planes_in_view(planes, view)[:, 0]
    inverse = there[:, ::2, ::2].reshape(-1, len(pixels))
    support = (sure.depths[::2, ::2].flatten() * inverse - 1).abs() < AGREE
    votes = vote(support.reshape(-1, rows, cols)).reshape(-1, len(pixels))
    which, most = torch.full((len(pixels),), -1), torch.zeros(len(pixels))
    for k, (q, votes_for) in enumerate(zip(inverse, votes, strict=True)):
        elsewhere = (q * own > 1 + CONTRADICT) | ((q * own < 1 / _FARTHEST) & ~refuted)
        asked = (is_open & ~elsewhere & (q > 0) & (votes_for > most)).nonzero()[:, 0]
        points = unproject_pixels(view, pixels[asked], 1 / q[asked])
        inside = planes.contain(k, points)
        asked, points = asked[inside], points[inside]
        through = ask_views(points.float(), sure_others)
        asked = asked[through.contradicting <= through.agreeing]
        which[asked], most[asked] = k, votes_for[asked]

    def finer(values: Tensor) -> Tensor:
        return values.reshape(rows, cols).repeat_interleave(2, dim=0)[:h].repeat_interleave(2, dim=1)[:, :w]

    label = finer(which)
    is_planar = (label >= 0) & (sure.weights <= 0) & ~view.depths.isinf()
    flat = torch.zeros(3, h, w)
    if len(planes.normals):
        index = label.clamp_min(0)
        flat = planes_in_view(planes, view).gather(0, index.expand(1, 3, h, w))[0]
    return Filled(flat, is_planar, finer(alike), finer(refuted))
