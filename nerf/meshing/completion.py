"""Planes for the pixels of a view without texture: walls, floors, furniture.

In each view a plane stands for the pixels around those that support it. Sources: plane hypotheses for what has no
texture as Xu and Tao, "Planar Prior Assisted PatchMatch Multi-View Stereo", 2020 (ACMP), their support chosen by
geometric consistency; labels by a random walker (see walker.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.kernels import DepthView
from nerf.meshing.consistency import AGREE, CONTRADICT, ask_views, project, unproject_pixels
from nerf.meshing.planar import Planes
from nerf.meshing.walker import halved, spread

_NEAR = 0.1  # of the depth: what a field's depth lies before a plain wall
_FIELD, _BEFORE = 0.1, 0.001  # weights of what only fields say, as seeds: on the bounds, and solid before
_SKY = 0.5  # the same of the sky
_FEWEST = 4  # views whose fields say the same, that believe it


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


def bounds_in_view(planes: Planes, view: DepthView) -> Tensor:
    """z-depths [h,w] of the bounds of the scene, infinite where there are none. Of planes around the scene, what is
    seen is the nearest."""
    inverse = planes_in_view(planes, view)[planes.is_bound]
    return 1 / torch.cat([torch.zeros(1, *view.depths.shape), inverse]).amax(dim=0)


def solid_points(view: DepthView, fields: list[DepthView]) -> Tensor:
    """Scene points [n,3] float32 that a view sees by its field's depths, as do more of other views' than see through,
    of every second pixel of every second row: there is something, photos or no photos."""
    pixels = _every_second(view)
    z = view.depths.flatten()[pixels]
    pixels, z = pixels[known := (z > 0) & z.isfinite()], z[known]
    points = unproject_pixels(view, pixels, z).float()
    votes = ask_views(points, fields)
    return points[(votes.n_agreeing >= _FEWEST) & (votes.agreeing > votes.contradicting)]


def complete(
    view: DepthView,
    picture: Tensor,
    sure: DepthView,
    planes: Planes,
    others: list[DepthView],
    solid: Tensor,
    sky: Tensor | None = None,
) -> Tensor:
    """z-depths [h,w] of planes at the pixels of a view with a grey picture [h,w] that are not sure (weight 0), NaN
    where none will do. sky [h,w] bool: some that show it.

    Sure pixels lie on the bounds, on another plane or on none, and a random walker says to which of these each pixel
    belongs. Of those that belong to no plane but a bound it is asked again, with what fields say: where a pixel's own
    depth is within _NEAR of the bounds it belongs to them, as a field errs towards the camera, unless solid points
    [n,3], of this view's field and near ones', lie before. Those belong to none, but count little, for there is fog
    that fields agree on: on what stands before a wall the picture has edges, and sure pixels on them. No plane but a
    bound will do before a pixel's own depth, nor one outside its extent, nor where others, the sure pixels of near
    views, see through it. Every second pixel of every second row is asked for all four.
    """
    h, w = view.depths.shape
    inverse, bound = planes_in_view(planes, view), 1 / bounds_in_view(planes, view)
    single = (~planes.is_bound).nonzero()[:, 0].tolist()
    kinds, none = torch.cat([bound[None], inverse[single], torch.zeros(1, h, w)]), 1 + len(single)
    rows, cols = (h + 1) // 2, (w + 1) // 2
    pixels, small = _every_second(view), halved(picture)
    q, own, sure_depths, weights = (
        values.flatten(-2)[..., pixels] for values in (kinds, view.depths, sure.depths, sure.weights)
    )
    off = (sure_depths * q - 1).abs()
    points = unproject_pixels(view, pixels, sure_depths)
    for c, k in enumerate(single, start=1):
        off[c] = torch.where(planes.contain(k, points), off[c], torch.inf)
    seeds = ((off < AGREE) & (off <= off.amin(dim=0))).float()
    seeds[none] = (seeds.amax(dim=0) == 0).float()
    if sky is not None:
        weights = torch.where(sky.flatten()[pixels] & (weights <= 0), _SKY, weights)
    seeds /= seeds.sum(dim=0)
    tried = [c for c in range(len(seeds)) if c == none or float((seeds[c] * weights).sum()) > 0]
    shares = spread(seeds[tried].reshape(-1, rows, cols), weights.reshape(rows, cols), small)
    label = torch.tensor(tried)[shares.flatten(1).argmax(dim=0)]
    for c, k in enumerate(single, start=1):
        asked = (label == c).nonzero()[:, 0]
        inside = planes.contain(k, unproject_pixels(view, pixels[asked], 1 / q[c, asked]))
        label[asked[~inside | ~(q[c, asked] > 0) | (q[c, asked] * own[asked] > 1 + CONTRADICT)]] = none
    free = ((label == 0) | (label == none)) & (weights == 0) & (q[0] > 0)
    if bool(free.any()):
        before = _in_front(view, solid, q[0])
        is_bound = torch.where(weights > 0, seeds[0], (free & ~before & (q[0] * own > 1 - _NEAR)).float())
        field = torch.where(is_bound > 0, _FIELD, torch.where(free & before, _BEFORE, 0.0))
        said = torch.where(weights > 0, weights, field)
        halves = torch.stack([is_bound, 1 - is_bound]).reshape(2, rows, cols)
        bounded, open_ = spread(halves, said.reshape(rows, cols), small).flatten(1)
        label = torch.where(free, torch.where(bounded > open_, 0, none), label)
    label[((label == 0) & (q[0] == 0)) | own.isinf() | (weights > 0)] = none
    asked = (label != none).nonzero()[:, 0]
    z = 1 / q.gather(0, label[asked][None])[0] if len(asked) else own[asked]
    through = ask_views(unproject_pixels(view, pixels[asked], z).float(), others)
    label[asked[through.contradicting > through.agreeing]] = none
    full = label.reshape(rows, cols).repeat_interleave(2, dim=0)[:h].repeat_interleave(2, dim=1)[:, :w]
    flat = kinds.gather(0, full[None])[0]
    is_flat = (flat > 0) & (sure.weights <= 0) & ~view.depths.isinf()
    return torch.where(is_flat, 1 / flat, torch.nan)


def _every_second(view: DepthView) -> Tensor:
    """Indices of every second pixel of every second row."""
    h, w = view.depths.shape
    return (torch.arange(0, h, 2)[:, None] * w + torch.arange(0, w, 2)).flatten()


def _in_front(view: DepthView, points: Tensor, bound: Tensor) -> Tensor:
    """Before which of every second pixel of every second row scene points [n,3] lie, clearly nearer than the inverse
    z-depth of the bounds [m]: bool [m]."""
    h, w = view.depths.shape
    uv, z = project(view, points)
    inside = (z > 0) & (uv >= 0).all(dim=1) & (uv[:, 0] < w) & (uv[:, 1] < h)
    column, row = torch.div(uv[inside], 2, rounding_mode="floor").long().unbind(dim=1)
    pixel = row * ((w + 1) // 2) + column
    front = torch.zeros_like(bound, dtype=torch.bool)
    front[pixel[z[inside] * bound[pixel] < 1 - _NEAR]] = True
    return front
