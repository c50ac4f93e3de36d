"""Multi-view stereo: depth maps moved to where the photos agree, by PatchMatch from the depths that the field gives.

A field's depths are good where light and shape leave one answer, and off by centimetres to half a metre where a veil
in the air explains the training photos as well. The photos tell: a patch of one, warped by the right plane into
another, correlates with it. Each pixel of a view holds a plane; a search tries those of its neighbours and random
changes, coarse to fine, and keeps what correlates best. Sources: Bleyer et al., "PatchMatch Stereo", 2011; propagation
along strips as Xu and Tao, "Multi-Scale Geometric Consistency Guided Multi-View Stereo", 2019 (ACMH).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nerf import kernels
from nerf.io.threads import in_threads
from nerf.kernels import DepthView, MatchSource, MatchWindow
from nerf.meshing.completion import bounds_in_view, complete, solid_points
from nerf.meshing.consistency import ask_views, unproject, unproject_pixels
from nerf.meshing.open_sky import far_around, find_sky, textured
from nerf.meshing.planar import fit_planes
from nerf.meshing.walker import spread

N_SOURCES = 6  # pictures that each view is compared with
_ANGLES = (2.0, 12.0, 45.0)  # degrees between two lines of sight: fewest, best, most
_MAX_ZOOM = 1.6  # how many times larger a patch may be in one picture than in the other
_LEVELS = 3  # of the pyramid, halves
_WINDOW = MatchWindow(color=0.04)
_NEAR_STRIP, _FAR_STRIP = (1, 2, 3, 4, 5), (7, 10, 14, 19, 25)  # pixels, whose best plane is tried, in four directions
# Random changes that are tried at each level, coarse to fine, in each sweep: (depth, relative; slope, tangent).
_CHANGES = (
    ((0.3, 0.5), (0.15, 0.3), (0.08, 0.2), (0.04, 0.5), (0.02, 0.2), (0.01, 0.1)),
    ((0.15, 0.3), (0.04, 0.3), (0.01, 0.1)),
    ((0.04, 0.2), (0.01, 0.1), (0.004, 0.05), (0.0015, 0.02)),
)
_SWEEPS = (3, 2, 1)  # at each level
_RISE_AT, _RISE = 0.02, 0.2  # confident is whose cost rises by the latter for a depth that differs by the former share
_LEAST_CONFIDENCE = 0.05  # below which a pixel measures nothing
_N_ASKED, _FEWEST = 10, 2  # views that are asked of a pixel's depth; that must agree
_SUPPORT_PIXELS, _FLAT = 3000, 0.01  # of a view, to which planes are fitted; of the depth: how far they may be off
_FARTHEST = 1e-4  # 1/scene length, below which what others say is that there is nothing
_AROUND, _LESS_ALIKE = 3, 0.05  # pixels around one, over which costs are averaged; how much more a plane may cost
_NEARER = 0.05  # of the field's depth, by which what is measured may be nearer than that
_PLAIN = 0.004  # grey: standard deviation around a pixel, below which it shows but one shade (8 bits and JPEG: 0.002)
_BELIEVED = (0.9, 1.35)  # times the field's depth of such a pixel, within which its surroundings' is taken instead
# Times the field's depth: up to which bounds stand behind what is refuted. (Of a rendered room without any limit and
# with this one F at 5 cm is 0.990 and 0.989; of a real one, with a floor and an open door, 1.9 and 0.8 % are holes.)
_FARTHER = 1.5
MEASURED, PLANAR, KEPT, FILLED = (0.75, 1.5), 0.7, 0.3, 0.05  # weights: see refine_depths


class Matched(NamedTuple):
    """What the search found at the pixels of a view."""

    planes: Tensor  # [3,h,w] float32: inverse z-depth, and by how much it changes to the right and down
    confidences: Tensor  # [h,w] float32, 0 to 1: how alike the photos are there, and only there


@dataclass
class _Level:
    """A view at one level of the pyramid."""

    k: Tensor  # [3,3] float64, from the camera to pixels
    pose: Tensor  # [3,4] float64, camera from scene
    picture: Tensor  # [h,w] float32 grey, NaN where it shows nothing


def refine_depths(
    views: list[DepthView], pictures: list[Tensor], seed: int = 0, up: Tensor | None = None
) -> list[DepthView]:
    """The views with depths that photos [h,w] (grey, NaN: shows nothing) and planes confirm, and weights to match.

    Where photos agree on a pixel and two other views find the same, its depth is what they say, with a weight of
    MEASURED[0] to MEASURED[1] by its confidence. Elsewhere a plane of the scene may stand (see `complete`), with the
    weight PLANAR. Other depths stay and count as KEPT of what they did, but where more such pixels of others see
    through them than others see the same, bounds of the scene stand, if they are not far behind. What is left without
    a depth takes that of its surroundings, as all weigh FILLED at least: where photos look the surface goes on. So does
    what shows but one shade, as far as the field does not say something quite different: there it errs by a tenth and
    more, and all views alike. up: of the scene, [3] float64; with it, the sky is empty (see open_sky). Not
    differentiable.
    """
    near = choose_sources(views, _N_ASKED)
    matched = match_views(views, pictures, near, seed)
    sure = keep_consistent([_measured(view, found) for view, found in zip(views, matched, strict=True)], near)

    def seen_through(points: Tensor) -> Tensor:
        votes = ask_views(points.float(), sure)
        return votes.contradicting > votes.agreeing

    planes = fit_planes(*_support(sure, matched, seed), seen_through)
    solids: dict[int, Tensor] = {}
    solid: dict[int, DepthView] = {}
    bounds = [bounds_in_view(planes, view) for view in views]
    refined: dict[int, DepthView] = {}
    sky: list[Tensor] | None = None
    low, high = MEASURED

    def solidify(i: int) -> None:
        around = torch.cat([solids[j] for j in (i, *near[i])])
        at = sky[i] if sky is not None else None
        flat = complete(views[i], pictures[i], sure[i], planes, [sure[j] for j in near[i]], around, at)
        others = [(views[j], pictures[j]) for j in near[i][:N_SOURCES]]
        flat = torch.where(contradicted(views[i], pictures[i], flat, others), torch.nan, flat)
        is_sure = sure[i].weights > 0
        weights = torch.where(is_sure, low + (high - low) * sure[i].weights, torch.where(flat > 0, PLANAR, 0.0))
        solid[i] = replace(views[i], depths=torch.where(is_sure, sure[i].depths, flat), weights=weights)

    def refine(i: int) -> None:
        view, known = views[i], solid[i]
        pixels = ((known.weights == 0) & (view.depths > 0) & ~view.depths.isinf()).flatten().nonzero()[:, 0]
        points = unproject_pixels(view, pixels, view.depths.flatten()[pixels])
        votes = ask_views(points.float(), [solid[j] for j in near[i]])
        agreeing = votes.agreeing + KEPT * ask_views(points.float(), [views[j] for j in near[i]]).agreeing
        refuted = torch.zeros(view.depths.numel(), dtype=torch.bool)
        refuted[pixels[votes.contradicting > agreeing]] = True
        refuted = refuted.view_as(view.depths)
        behind = torch.where(bounds[i] < _FARTHER * view.depths, bounds[i], torch.nan)
        depths = torch.where(known.weights > 0, known.depths, torch.where(refuted, behind, view.depths))
        weights = torch.where(known.weights > 0, known.weights, torch.where(refuted, PLANAR, KEPT * view.weights))
        plain = ~textured(pictures[i], _PLAIN) & view.depths.isfinite() & ~refuted & (known.weights == 0)
        around, _ = fill(torch.where(plain, torch.nan, depths), weights, pictures[i])
        plain &= (around > _BELIEVED[0] * view.depths) & (around < _BELIEVED[1] * view.depths)
        depths, filled = fill(torch.where(plain, around, depths), torch.where(plain, FILLED, weights), pictures[i])
        weights = torch.where(filled | plain, FILLED, weights.clamp_min(FILLED))
        if sky is not None:
            depths, weights = torch.where(sky[i], torch.inf, depths), torch.where(sky[i], KEPT, weights)
        refined[i] = replace(view, depths=depths, weights=weights)

    def find_solid(i: int) -> None:
        solids[i] = solid_points(views[i], [views[j] for j in near[i]])

    def look_up(known: list[Tensor]) -> None:
        nonlocal sky
        if up is not None:
            sky = find_sky(views, pictures, known, bounds, up)

    in_threads(find_solid, len(views))
    look_up([far_around(view.weights > 0) for view in sure])
    in_threads(solidify, len(views))
    look_up([solid[i].weights > 0 for i in range(len(views))])
    in_threads(refine, len(views))
    return [refined[i] for i in range(len(views))]


def contradicted(view: DepthView, picture: Tensor, flat: Tensor, others: list[tuple[DepthView, Tensor]]) -> Tensor:
    """Where the photos are less alike at the z-depths flat [h,w] of planes than at the view's own: bool [h,w]. On what
    has no texture they are as alike at both."""
    pair = _Pair(_pyramid(view, picture)[0], [_pyramid(*other)[0] for other in others])
    more = pair.costs(planes_of(flat)) - pair.costs(planes_of(view.depths))
    asked = (flat > 0) & (view.depths > 0) & more.isfinite()
    total, count = (
        avg_pool2d(t[None, None], 2 * _AROUND + 1, 1, _AROUND)[0, 0]
        for t in (torch.where(asked, more, 0.0), asked.float())
    )
    return asked & (total > _LESS_ALIKE * count)


def fill(depths: Tensor, weights: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """z-depths [h,w] where those that are NaN are what the others around say, as far as the picture [h,w] has no edges,
    and which these are [h,w]."""
    missing = depths.isnan()
    known = torch.where(missing, 0.0, weights)
    inverse = torch.where(missing, 0.0, 1 / depths)
    shares = spread(torch.stack([inverse, torch.ones_like(inverse)]), known, picture)
    filled = missing & (shares[1] > 0)
    near = shares[0] > _FARTHEST * shares[1]
    return torch.where(filled, torch.where(near, shares[1] / shares[0], torch.inf), depths), filled


def match_views(views: list[DepthView], pictures: list[Tensor], near: list[list[int]], seed: int = 0) -> list[Matched]:
    """Planes for the pixels of views with pictures [h,w], found from their depths on by comparing each with its first
    N_SOURCES of `near`."""
    pyramid = [_pyramid(view, picture) for view, picture in zip(views, pictures, strict=True)]
    matched: dict[int, Matched] = {}

    def match(i: int) -> None:
        random = torch.Generator().manual_seed(seed + i)
        start = planes_of(views[i].depths)
        found: tuple[Tensor, Tensor] | None = None
        for level in reversed(range(_LEVELS)):
            pair = _Pair(pyramid[i][level], [pyramid[j][level] for j in near[i][:N_SOURCES]])
            given = _coarser(start, level)
            best = given, pair.costs(given)
            if found is not None:
                best = pair.better(best, _finer(found[0], given))
            for _ in range(_SWEEPS[-1 - level]):
                best = _sweep(pair, best, level, random)
            found = best
        assert found is not None
        planes, costs = found
        nearby = torch.minimum(*(pair.costs(planes * (1 + change)) for change in (-_RISE_AT, _RISE_AT)))
        matched[i] = Matched(planes, (1 - costs) * ((nearby - costs) / _RISE).clamp(0, 1))

    in_threads(match, len(views))
    return [matched[i] for i in range(len(views))]


class _Pair:
    """A view and those that it is compared with."""

    def __init__(self, here: _Level, others: list[_Level]) -> None:
        self.here, self.sources = here, [_source(here, other) for other in others]

    def costs(self, planes: Tensor) -> Tensor:
        return kernels.match_planes(self.here.picture, self.sources, planes, _WINDOW)

    def better(self, best: tuple[Tensor, Tensor], tried: Tensor) -> tuple[Tensor, Tensor]:
        """The planes and costs that cost less at each pixel, of those so far and others."""
        costs = self.costs(tried)
        take = costs < best[1]
        return torch.where(take, tried, best[0]), torch.where(take, costs, best[1])


def _sweep(pair: _Pair, best: tuple[Tensor, Tensor], level: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Planes and costs after trying those of neighbours and random changes."""
    for strip in (_NEAR_STRIP, _FAR_STRIP) if level else (_NEAR_STRIP,):
        for direction in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            best = pair.better(best, _from_strip(*best, direction, strip))
    for depth, slope in _CHANGES[-1 - level]:
        best = pair.better(best, _changed(best[0], depth, slope / float(pair.here.k[0, 0]), random))
    return best


def _from_strip(planes: Tensor, costs: Tensor, direction: tuple[int, int], strip: tuple[int, ...]) -> Tensor:
    """For each pixel, the plane of that one of a strip of pixels beside it that costs least, extended to the pixel."""
    best = torch.full_like(costs, torch.inf)
    found = planes
    for distance in strip:
        down, right = direction[0] * distance, direction[1] * distance
        there, cost = _shifted(planes, down, right), _shifted(costs, down, right)
        here = torch.stack([there[0] - right * there[1] - down * there[2], there[1], there[2]])
        found = torch.where(cost < best, here, found)
        best = torch.minimum(best, cost)
    return found


def _shifted(values: Tensor, down: int, right: int) -> Tensor:
    """values [...,h,w] of the pixels so far down and to the right; those of the other side at the border."""
    return torch.roll(values, (-down, -right), (-2, -1))


def _changed(planes: Tensor, depth: float, slope: float, random: torch.Generator) -> Tensor:
    """Planes after random changes: of depths by a share, of slopes by a share of the inverse depth a pixel."""
    noise = torch.rand(planes.shape, generator=random) * 2 - 1
    inverse = planes[0] * (1 + depth * noise[0])
    return torch.stack([inverse, planes[1] + slope * inverse * noise[1], planes[2] + slope * inverse * noise[2]])


def _measured(view: DepthView, found: Matched) -> DepthView:
    """The view with what was found, the confidences as weights; 0 where that is little, and where it is nearer than the
    field's own depth: fields err towards the camera, but beside what stands before a wall, the window of a pixel of the
    wall holds its edge, and matches where that is."""
    nearer = 1 / found.planes[0] < (1 - _NEARER) * view.depths
    weights = torch.where((found.confidences > _LEAST_CONFIDENCE) & ~nearer, found.confidences, 0.0)
    return replace(view, depths=torch.where(weights > 0, 1 / found.planes[0], torch.nan), weights=weights)


def keep_consistent(measured: list[DepthView], near: list[list[int]]) -> list[DepthView]:
    """The views without the pixels (weight 0, NaN) on which fewer than _FEWEST others agree, or that views together as
    sure see through."""
    kept = []
    for i, view in enumerate(measured):
        pixels = (view.weights > 0).flatten().nonzero()[:, 0]
        points = unproject_pixels(view, pixels, view.depths.flatten()[pixels])
        votes = ask_views(points.float(), [measured[j] for j in near[i]])
        own = view.weights.flatten()[pixels]
        stays = pixels[(votes.n_agreeing >= _FEWEST) & (own + votes.agreeing > votes.contradicting)]
        is_kept = torch.zeros(view.depths.numel(), dtype=torch.bool).index_fill(0, stays, True).view_as(view.depths)
        depths = torch.where(is_kept, view.depths, torch.nan)
        kept.append(replace(view, depths=depths, weights=torch.where(is_kept, view.weights, 0.0)))
    return kept


def _support(sure: list[DepthView], matched: list[Matched], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Some points [n,3], normals [n,3] and tolerances [n] of the pixels that are sure, float64."""
    random = torch.Generator().manual_seed(seed)
    parts = []
    for view, found in zip(sure, matched, strict=True):
        pixels = (view.weights > 0).flatten().nonzero()[:, 0]
        pixels = pixels[torch.randperm(len(pixels), generator=random)[:_SUPPORT_PIXELS]]
        z = view.depths.flatten()[pixels].double()
        fx, fy, cx, cy = view.intrinsics
        q, right, down = found.planes.reshape(3, -1)[:, pixels].double()
        x, y = pixels % view.depths.shape[1] + 0.5, torch.div(pixels, view.depths.shape[1], rounding_mode="floor") + 0.5
        normals = torch.stack([right * fx, down * fy, q - right * (x - cx) - down * (y - cy)], dim=1)
        normals = torch.nn.functional.normalize(normals @ view.camera_from_scene[:, :3], dim=1)
        parts.append((unproject_pixels(view, pixels, z), normals, _FLAT * z))
    points, normals, tolerances = (torch.cat(part) for part in zip(*parts, strict=True))
    return points, normals, tolerances


# ---- depths and planes ---------------------------------------------------------------------------------------------


def planes_of(depths: Tensor) -> Tensor:
    """Planes [3,h,w] of z-depths [h,w]: tangent ones where neighbours tell, else those of one depth."""
    inverse = torch.where(depths > 0, 1 / depths, torch.nan)
    slopes = []
    for dim in (1, 0):
        change = inverse.diff(dim=dim)
        none = torch.full_like(inverse.narrow(dim, 0, 1), torch.nan)
        before, after = torch.cat([none, change], dim), torch.cat([change, none], dim)
        # Across an edge the change is large on one side only.
        slope = torch.where(before.abs() < after.abs(), before, after)
        slopes.append(torch.where(after.isnan(), before, slope).nan_to_num(nan=0.0))
    return torch.stack([inverse.nan_to_num(nan=0.0), *slopes])


def _coarser(planes: Tensor, level: int) -> Tensor:
    """Planes for pixels 2^level times as large: of the first in the middle of each."""
    size = 2**level
    if size == 1:
        return planes
    h, w = (n // size * size for n in planes.shape[1:])
    at = size // 2
    some = planes[:, at:h:size, at:w:size]
    return torch.stack([some[0] - (some[1] + some[2]) / 2, some[1] * size, some[2] * size])


def _finer(planes: Tensor, like: Tensor) -> Tensor:
    """Planes of pixels for those half as large; the last go on where there is one more."""
    h, w = like.shape[1:]
    rows, cols = (torch.arange(n) // 2 for n in (h, w))
    rows, cols = rows.clamp_max(planes.shape[1] - 1), cols.clamp_max(planes.shape[2] - 1)
    some = planes[:, rows][:, :, cols]
    right, down = ((torch.arange(n) + 0.5) / 2 - (index + 0.5) for n, index in ((w, cols), (h, rows)))
    inverse = some[0] + right * some[1] + down[:, None] * some[2]
    return torch.stack([inverse, some[1] / 2, some[2] / 2])


# ---- views and what they are compared with -------------------------------------------------------------------------


def choose_sources(views: list[DepthView], n: int = N_SOURCES) -> list[list[int]]:
    """For each view those that show most of what it shows, from another side but not too different a one: best first.

    Each of its points counts as its angle between the two lines of sight is good (see _ANGLES) and as the two pictures
    are alike in scale; OpenMVS's rule.
    """
    least, best, most = _ANGLES
    poses = torch.stack([view.camera_from_scene for view in views])
    lens = torch.tensor([view.intrinsics for view in views], dtype=torch.float64)
    sizes = torch.tensor([view.depths.shape[::-1] for view in views])
    centres = -(poses[:, :, :3].transpose(1, 2) @ poses[:, :, 3:])[..., 0]
    chosen = []
    for i, view in enumerate(views):
        points, z = _sample_points(view)
        local = torch.einsum("vij,nj->vni", poses[:, :, :3], points) + poses[:, None, :, 3]
        there = local[..., 2]
        uv = lens[:, None, :2] * local[..., :2] / there[..., None] + lens[:, None, 2:]
        inside = (there > 0) & (uv >= 0).all(dim=2) & (uv < sizes[:, None]).all(dim=2)
        a, b = points - centres[i], points - centres[:, None]
        cosine = (a * b).sum(dim=2) / (a.norm(dim=1) * b.norm(dim=2)).clamp_min(1e-12)
        angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
        zoom = (there / lens[:, None, 0]) / (z / view.intrinsics[0])
        zoom = torch.maximum(zoom, 1 / zoom.clamp_min(1e-6))
        worth = torch.where(angle < best, (angle / best) ** 1.5, torch.exp(-(((angle - best) / 15) ** 2) / 2))
        worth = worth.clamp_min(0.1) * torch.where(zoom < _MAX_ZOOM, 1.0, (_MAX_ZOOM / zoom) ** 2)
        scores = (worth * (inside & (angle > least) & (angle < most))).sum(dim=1) / max(1, len(points))
        scores[i] = 0.0
        order = scores.argsort(descending=True, stable=True)[:n]
        chosen.append(order[scores[order] > 0.01].tolist())
    return chosen


def _sample_points(view: DepthView) -> tuple[Tensor, Tensor]:
    """Some hundred scene points [n,3] of a view and their z-depths; float64."""
    h, w = view.depths.shape
    stride = max(1, round((h * w / 300) ** 0.5))
    row, col = torch.meshgrid(torch.arange(stride // 2, h, stride), torch.arange(stride // 2, w, stride), indexing="ij")
    z = view.depths[row, col].double()
    known = z.isfinite() & (z > 0)
    row, col, z = row[known], col[known], z[known]
    return unproject(view, row + 0.5, col + 0.5, z), z


def _pyramid(view: DepthView, picture: Tensor) -> list[_Level]:
    fx, fy, cx, cy = view.intrinsics
    levels = []
    for level in range(_LEVELS):
        size = 2**level
        k = torch.tensor([[fx / size, 0, cx / size], [0, fy / size, cy / size], [0, 0, 1]], dtype=torch.float64)
        small = avg_pool2d(picture[None, None], size)[0, 0] if size > 1 else picture
        levels.append(_Level(k, view.camera_from_scene, small))
    return levels


def _source(here: _Level, there: _Level) -> MatchSource:
    rotation = there.pose[:, :3] @ here.pose[:, :3].T
    shift = there.pose[:, 3] - rotation @ here.pose[:, 3]
    return MatchSource(there.k @ rotation @ torch.linalg.inv(here.k), there.k @ shift, there.picture)
