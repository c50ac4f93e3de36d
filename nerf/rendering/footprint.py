"""Pixels are cones: how many rays a pixel takes so that none is wider than those that the field was trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nerf.geometry.cameras import Cameras
from nerf.rendering.view import View

if TYPE_CHECKING:
    from nerf.rendering.model import Model

_ACROSS = 32  # rays a side of a view that are asked how far they go
_MOST = 8  # rays a side of a pixel
_ALIKE = 0.5  # cosine between two lines of sight to a point, from which on both are taken to see it
_CHUNK = 256  # cameras asked at once


def rays_a_side(model: Model, camera: Cameras) -> int:
    """The square root of how many rays each pixel of a view (one camera, world frame) takes, 1 to 8.

    A field trained on photos holds detail as fine as their pixels, and a ray through the middle of a wider pixel, of a
    smaller picture or of a view from farther away, sees one point of it: edges become jagged and films shimmer. The
    width of a pixel is its angle times the distance to what is seen; it is compared with that of the training photos'
    pixels that see the same.
    """
    h, w = int(camera.heights[0]), int(camera.widths[0])
    rows, cols = torch.meshgrid(*((torch.arange(_ACROSS) + 0.5) / _ACROSS * n - 0.5 for n in (h, w)), indexing="ij")
    ids = torch.zeros(_ACROSS**2, dtype=torch.int64)
    to_model = camera.to(model.device)
    ids, rows, cols = (t.flatten().to(model.device) for t in (ids, rows, cols))
    rays = to_model.rays(ids, rows, cols, model.scene_from_world)
    depth, _ = model.median_depths(*rays)
    hit = (depth > 0) & depth.isfinite()
    middle = torch.zeros(1, 3, dtype=torch.float64)  # of the scene, where no ray meets anything
    seen = (rays[0] + depth[:, None] * rays[1])[hit].cpu().double() if bool(hit.any()) else middle
    points = model.scene_from_world.inverse().apply(seen)
    here, towards = _widths(camera, points)
    ratios = []
    for first in range(0, len(model.cameras), _CHUNK):
        some = torch.arange(first, min(first + _CHUNK, len(model.cameras)))
        widths, directions = _widths(model.cameras.subset(some), points)
        ratios.append(torch.where((directions * towards).sum(dim=2) > _ALIKE, here / widths, torch.nan))
    ratio = torch.cat(ratios).nanmedian(dim=0).values.nanmedian()
    return min(_MOST, max(1, round(float(ratio)))) if bool(ratio.isfinite()) else 1


def _widths(cameras: Cameras, points: Tensor) -> tuple[Tensor, Tensor]:
    """World widths [n,m] of the pixels in which cameras see world points [m,3], NaN where they do not; and unit
    directions [n,m,3] from points to cameras."""
    cameras = cameras.to(torch.device("cpu"))
    uv, z = cameras.project(points)
    inside = (z > 0) & (uv >= 0).all(dim=2)
    inside &= (uv[..., 0] < cameras.widths[:, None]) & (uv[..., 1] < cameras.heights[:, None])
    away = cameras.centres[:, None] - points
    widths = away.norm(dim=2) / cameras.fx[:, None]
    return torch.where(inside, widths, torch.nan), torch.nn.functional.normalize(away, dim=2)


def averaged(view: View[Tensor], n: int) -> View[Tensor]:
    """Of each n rays [m*n], one after another, the mean [m]: of depths and normals, of those that meet something."""
    if n == 1:
        return view
    color, opacity, depth = (t.reshape(-1, n, *t.shape[1:]) for t in (view.color, view.opacity, view.depth))
    hit = depth > 0
    depth = torch.where(hit, depth, 0.0).sum(dim=1) / hit.sum(dim=1).clamp_min(1)
    normal = view.normal
    if normal is not None:
        normal = torch.nn.functional.normalize(normal.reshape(-1, n, 3).sum(dim=1), dim=1)
    return View(color.mean(dim=1), opacity.mean(dim=1), depth, normal)
