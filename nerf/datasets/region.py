"""Where the scene is: scene_from_world, space kind, near and far, chosen from silhouettes, sparse points or cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nerf.datasets.bits import MaskBits
from nerf.datasets.parsed import ParsedScene
from nerf.datasets.store import PixelStore
from nerf.errors import UserError
from nerf.geometry.aim import nearest_point_to_axes
from nerf.geometry.cameras import Cameras, picture_border
from nerf.geometry.space import Box, Ndc, Similarity, Space, Unbounded

_PAD = 0.03  # of the object box's longest side, on each side
ANYWHERE = 1e9  # scene units: a box ends rays by itself, and a view may be from farther away than any photo
_PARALLEL = 0.03  # mean squared sine of the angles of axes (10 degrees): less hardly says where they meet
_N_LEVELS = 5  # of an unbounded scene: out to 16 times the region of interest


@dataclass
class Region:
    scene_from_world: Similarity
    space: Space
    near: float
    far: float


def choose_region(
    capture: ParsedScene,
    cameras: Cameras,
    store: PixelStore,
    has_alpha: bool,
    space: str | None,
    silhouettes: MaskBits | None = None,
) -> Region:
    """The space asked for, else "box" for an object (with alpha, with silhouettes before a plain background, or a
    data set of objects), "ndc" for forward-facing LLFF, "unbounded"."""
    notes, asked = capture.notes, space is not None
    if space is None:
        if has_alpha or silhouettes is not None or (capture.objects and capture.region is not None):
            space = "box"
        elif capture.depth_bounds is not None and _forward_facing(cameras):
            space = "ndc"
        else:
            space = "unbounded"
    if space == "box":
        return _object_box(capture, cameras, store, has_alpha, silhouettes)
    if space == "ndc":
        region = _forward_region(capture, cameras)
        if region is not None:
            return region
        if asked:
            raise UserError(
                "space 'ndc' needs cameras side by side that look one way; some of these look elsewhere, or "
                "stand beyond the near plane: use 'unbounded'"
            )
        notes.append(
            "not forward-facing enough for NDC (some camera looks elsewhere or is beyond the near plane): unbounded"
        )
    return _unbounded(capture, cameras)


# ---- objects


def _object_box(
    capture: ParsedScene, cameras: Cameras, store: PixelStore, has_alpha: bool, silhouettes: MaskBits | None
) -> Region:
    notes, s = capture.notes, None
    if has_alpha or silhouettes is not None:
        hull = visual_hull_box(cameras, store, silhouettes=silhouettes)
        if hull is None:
            notes.append("the silhouettes agree on no object, so they do not say where the box is")
        elif capture.region is not None and has_alpha and _cut(store) > 0.5:  # what lies beyond is left open
            notes.append("the pictures' edges cut most silhouettes, so they do not say where the box ends")
        else:
            s = _around(*hull)
            notes.append(f"object box from the silhouettes: {_text(hull[0])} to {_text(hull[1])} in world units")
    if s is None and capture.region is not None:
        s = capture.region
        notes.append("object box as the files state it")
    centre, distance = middle_of_view(cameras)
    if s is None and (near := _robust(capture.points, centre, distance)) is not None:
        low, high = (torch.from_numpy(np.percentile(near, q, axis=0)) for q in (1, 99))
        s = _around(low - 0.05 * (high - low), high + 0.05 * (high - low))
        notes.append(f"object box from the sparse points: {_text(low)} to {_text(high)} in world units")
    if s is None:
        reach = visible_radius(cameras, centre)
        if reach == 0:
            raise UserError("all cameras stand in one place, which shows no object from its sides: check the poses")
        s = Similarity.around(centre, reach)
        notes.append(f"object box from the cameras: centre {_text(centre)}, half size {reach:.3g} world units")
    return Region(s, Box(), 0.0, ANYWHERE)


def _cut(store: PixelStore) -> float:
    """Share of the silhouettes that reach the edge of their picture."""
    found = [store.raw(i)[..., -1] > 0 for i in some_of(store, 64)]
    return float(np.mean([on[[0, -1]].any() or on[:, [0, -1]].any() for on in found]))


def _around(low: Tensor, high: Tensor) -> Similarity:
    return Similarity.around((low + high) / 2, 0.5 * float((high - low).max()) * (1 + 2 * _PAD))


def _text(p: Tensor) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in p.tolist()) + ")"


def some_of(store: PixelStore, most: int) -> list[int]:
    """Images spread evenly over the store."""
    return np.unique(np.linspace(0, len(store) - 1, min(most, len(store))).round().astype(int)).tolist()


def middle_of_view(cameras: Cameras) -> tuple[Tensor, float]:
    """(point [3] closest to all optical axes by least squares, median distance of the cameras from it), world."""
    centre = nearest_point_to_axes(cameras, pull=1e-3)
    assert centre is not None
    return centre, max(float((cameras.centres - centre).norm(dim=1).median()), 1e-9)


def visible_radius(cameras: Cameras, centre: Tensor) -> float:
    """Radius of the ball around the centre that fits into the pictures of half of the cameras."""
    half = torch.minimum(cameras.widths / cameras.fx, cameras.heights / cameras.fy) / 2
    return float(((cameras.centres - centre).norm(dim=1) * torch.sin(torch.atan(half))).median())


def visual_hull_box(
    cameras: Cameras, store: PixelStore, max_views: int = 64, silhouettes: MaskBits | None = None
) -> tuple[Tensor, Tensor] | None:
    """Bounds (low [3], high [3], world) of the points that fall on the silhouette (alpha, where none are given) in all
    but a few views; None if there are none. A grid is carved three times, each time within the bounds found before."""
    # Silhouettes are max-pooled to at most 200 pixels and grown by a cell's footprint, so that thin parts are never
    # lost; a view whose silhouette touches the picture's edge says nothing about what lies outside the picture.
    views = []
    for i in some_of(store, max_views):
        if silhouettes is None:
            alpha = store.raw(i)[..., -1]
            on = alpha > (0.1 * (np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 1))
        else:
            on = silhouettes.image(i)[..., 0].numpy() > 0.5
        step = max(1, math.ceil(max(on.shape) / 200))
        for axis in (0, 1):
            on = np.logical_or.reduceat(on, np.arange(0, on.shape[axis], step), axis=axis)
        if on.any():
            touches = bool(on[[0, -1]].any() or on[:, [0, -1]].any())
            views.append((cameras.subset([i]), torch.from_numpy(on.astype(np.float32)), step, touches))
    if len(views) < 2:
        return None
    centre, distance = middle_of_view(cameras)
    low, high = centre - distance, centre + distance
    allowed = len(views) // 30  # a few bad masks do not cut the object away
    for resolution in (40, 64, 96):
        cell = float((high - low).max()) / resolution
        counts = ((high - low) / cell).ceil().long().clamp_min(1)
        axes = [low[k] + (torch.arange(int(counts[k])) + 0.5) * cell for k in range(3)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        misses = torch.zeros(len(points), dtype=torch.int16)
        for camera, silhouette, step, touches in views:
            uv, depth = camera.project(points)
            in_front = depth[0] > 0
            nearest = max(float(depth[0].min()), 0.2 * distance)
            h, w = silhouette.shape
            grown = _grow(silhouette, math.ceil(float(camera.fx[0]) * 0.87 * cell / nearest / step))
            u, v = (uv[0] / step).floor().nan_to_num(-1).clamp(-1, 1e6).long().unbind(-1)
            inside = in_front & (u >= 0) & (v >= 0) & (u < w) & (v < h)
            hit = grown[v.clamp(0, h - 1), u.clamp(0, w - 1)] > 0
            if bool(camera.spherical[0]):  # near the poles a cell is wider than `grown` has it
                hit |= ((points - camera.centres[0]) / depth[0][:, None]) @ camera.up[0] > 0.8
                hit |= ((points - camera.centres[0]) / depth[0][:, None]) @ camera.up[0] < -0.8
            misses += ~torch.where(inside, hit, torch.tensor(touches))
            keep = misses <= allowed
            points, misses = points[keep], misses[keep]
            if len(points) == 0:
                return None
        low, high = points.amin(dim=0) - cell, points.amax(dim=0) + cell
    return low + cell / 2, high - cell / 2


def _grow(on: Tensor, radius: int) -> Tensor:
    """Max filter of a [h,w] mask with a square of the given radius."""
    radius = min(max(radius, 1), 40)
    rows = F.max_pool2d(on[None, None], (1, 2 * radius + 1), 1, (0, radius))
    return F.max_pool2d(rows, (2 * radius + 1, 1), 1, (radius, 0))[0, 0]


# ---- forward-facing captures


def _forward_facing(cameras: Cameras, degrees: float = 40) -> bool:
    """Whether all optical axes lie within so many degrees of their mean."""
    axes = cameras.forward
    mean = F.normalize(axes.mean(dim=0), dim=0)
    return float((axes @ mean).min()) > math.cos(math.radians(degrees))


def _forward_region(capture: ParsedScene, cameras: Cameras) -> Region | None:
    """Average pose at the origin looking along -z, near plane (3/4 of the nearest depth) at z = -1, and a space in
    which every picture falls within [-1,1]^3; None where a camera stands beyond that plane or looks elsewhere."""
    if not _forward_facing(cameras, 60) or bool(cameras.spherical.any()):
        return None
    nearest = _nearest_depth(capture, cameras)
    if nearest is None:
        nearest = 0.5 * middle_of_view(cameras)[1]
    back = F.normalize(-cameras.forward.mean(dim=0), dim=0)
    right = F.normalize(torch.linalg.cross(cameras.up.mean(dim=0), back), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(back, right), back])
    scale = 1.0 / (0.75 * nearest)
    s = Similarity(scale, rotation, -scale * (rotation @ cameras.centres.mean(dim=0)))
    if float(s.apply(cameras.centres)[:, 2].min()) < -0.9:
        return None
    reach = torch.zeros(2, dtype=torch.float64)  # largest |x|, |y| of any picture between the near plane and infinity
    for i in range(len(cameras)):
        rows, cols = picture_border(float(cameras.heights[i]), float(cameras.widths[i]), 9)
        start, direction, _, t_far = Ndc(1.0, 1.0).warp_rays(*cameras.rays(torch.full((36,), i), rows, cols, s))
        ends = torch.stack([start, start + direction * t_far[:, None]])[:, t_far > 0, :2]
        if ends.numel():
            reach = torch.maximum(reach, ends.abs().amax(dim=(0, 1)).double())
    a, b = (1.0 / max(float(r), 1e-6) for r in reach)
    capture.notes.append(
        f"forward-facing: normalised device coordinates, near plane at {0.75 * nearest:.3g} world units"
    )
    return Region(s, Ndc(a, b), 0.0, 2 * math.sqrt(3))


def _nearest_depth(capture: ParsedScene, cameras: Cameras) -> float | None:
    """z-depth of the nearest content, world units: as the files state it, else from the sparse points in view."""
    if capture.depth_bounds is not None:
        near = capture.depth_bounds[:, 0]
        near = near[np.isfinite(near) & (near > 0)]
        return float(near.min()) if len(near) else None
    if capture.points is None or len(capture.points) < 100:
        return None
    step = max(1, len(capture.points) // 5000)
    points = torch.from_numpy(np.ascontiguousarray(capture.points[::step], dtype=np.float64))
    nearest = []
    for i in range(0, len(cameras), max(1, len(cameras) // 100)):
        depth, shown = _seen(cameras.subset([i]), points)
        if shown.sum() >= 20:
            nearest.append(float(depth[shown].quantile(0.01)))
    return float(np.percentile(nearest, 5)) if nearest else None


# ---- unbounded captures


def _seen(cameras: Cameras, points: Tensor) -> tuple[Tensor, Tensor]:
    """(z-depths, whether in the picture), both [n,m], of points [m,3]."""
    uv, depth = cameras.project(points)
    size = torch.stack([cameras.widths, cameras.heights], dim=1)[:, None]
    return depth, (depth > 0) & ((uv > 0) & (uv < size)).all(dim=2)


def look_inwards(cameras: Cameras, centre: Tensor | None = None) -> bool:
    """Whether most cameras have in their pictures what all of them look at (its centre [3], where that is known)."""
    centre = middle_of_view(cameras)[0] if centre is None else centre
    return float((_seen(cameras, centre[None])[1][:, 0] & ~cameras.spherical).double().mean()) > 0.5


def _robust(points: np.ndarray | None, centre: Tensor, distance: float) -> np.ndarray | None:
    """The sparse points nearer to the centre than the cameras are; None where they are fewer than 100."""
    near = () if points is None else points[np.linalg.norm(points - centre.numpy(), axis=1) < distance]
    return near if len(near) >= 100 else None  # type: ignore[return-value]


def _ground_below(capture: ParsedScene, cameras: Cameras) -> tuple[Tensor, float] | None:
    """(middle [3] of the sparse points, median distance of the cameras from it), where all cameras look one way, as on
    a flight that looks straight down, and their axes meet far from the points, if at all; else None."""
    axes, points = cameras.forward[~cameras.spherical], capture.points
    if points is None or len(points) < 100 or not len(axes):
        return None
    if 1 - float(axes.mean(dim=0).norm()) ** 2 > _PARALLEL:
        return None
    there = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float64))
    middle, ahead = there.median(dim=0).values, axes.mean(dim=0)
    meet, ground = (
        float((place - cameras.centres.mean(dim=0)) @ ahead) for place in (middle_of_view(cameras)[0], middle)
    )
    if ground <= 0 or 0.5 * ground < meet < 2 * ground:
        return None
    return middle, max(float((cameras.centres - middle).norm(dim=1).median()), 1e-9)


def _unbounded(capture: ParsedScene, cameras: Cameras) -> Region:
    """What all cameras look at fills [-1,1]^3, they stand 1 to 2 from its middle; looking outwards, they fill it."""
    notes, origins = capture.notes, cameras.centres
    ground = _ground_below(capture, cameras)
    centre, distance = ground or middle_of_view(cameras)
    inward = ground is not None or look_inwards(cameras, centre)
    if capture.region is not None:
        s = capture.region
        notes.append("unbounded scene; scale and offset as the file states them")
    elif inward:
        half = visible_radius(cameras, centre)
        if (near := _robust(capture.points, centre, distance)) is not None:
            half = float(np.percentile(np.abs(near - centre.numpy()).max(axis=1), 95))
        s = Similarity.around(centre, min(max(half, distance / 2), distance))
        notes.append(
            f"unbounded scene around what the cameras look at: centre {_text(centre)}, half size {1 / s.scale:.3g} "
            f"world units, cameras at {distance * s.scale:.2f} times that"
        )
    else:
        low, high = origins.amin(dim=0), origins.amax(dim=0)
        half = max(0.5 * float((high - low).max()), 1e-9)
        if bool(cameras.spherical.all()) and capture.points is not None and len(capture.points) >= 100:
            away = np.abs(capture.points - ((low + high) / 2).numpy()).max(axis=1)  # the walls around a few panoramas
            half = float(np.clip(np.median(away), half, 8 * half))
        s = Similarity.around((low + high) / 2, half)
        notes.append(
            f"unbounded scene around the cameras, which look at nothing in common: half size {half:.3g} world units"
        )
    reach = capture.extent * s.scale  # what the files declare relevant
    if capture.points is not None and len(capture.points) >= 100:
        x = s.apply(torch.from_numpy(np.ascontiguousarray(capture.points, dtype=np.float64)))
        reach = max(reach, float(np.percentile(x.abs().amax(dim=1).numpy(), 99)))
    n_levels = min(max(_N_LEVELS, math.ceil(math.log2(min(max(reach, 1.0), 1e9))) + 1), 8)
    if capture.extent:
        notes.append(
            f"aabb_scale asks for {reach:.3g} scene units; the field reaches {2 ** (n_levels - 1)}, so nothing is cut"
        )
    nearest = _nearest_depth(capture, cameras)
    default = 0.1 * distance * s.scale if inward else 0.05
    t_near = default if nearest is None else 0.5 * nearest * s.scale
    space = Unbounded(n_levels)
    return Region(s, space, min(max(t_near, 0.01), 0.5), space.half_extent * 2 * math.sqrt(3))
