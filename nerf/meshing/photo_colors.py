"""Colours of a surface's vertices from the photos that show them.

Where photos moved the surface off the field's own, as on plain walls before which the field holds fog, the field's
colours are those of nothing that is seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nerf.meshing.consistency import CONTRADICT
from nerf.meshing.fused import draw_surface, nearest_depths, view_origin
from nerf.meshing.preview import bilinear
from nerf.meshing.texture import load_photo_colors, shown_pixels, without_flash
from nerf.training.alignment import as_trained

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.kernels import DepthView
    from nerf.rendering.model import Model

_MARGIN = 1  # pixels beside what stands before it in which the surface takes no colour from a view
_BEHIND = 0.01  # of the depth, by which it may lie behind what a view sees nearest


def photo_colors(
    model: Model, scene: Scene, photos: Tensor, views: list[DepthView], points: Tensor, faces: Tensor, normals: Tensor
) -> tuple[Tensor, Tensor]:
    """sRGB values [n,3] of vertices at scene points [n,3] with faces [f,3] and unit normals [n,3], means over the
    photos [k] of which the views [k] hold the depths; and which vertices [n] any shows.

    A photo counts by the area that a piece of the surface covers in it, and by the weight of the depth there; not where
    that is another one, nor beside what stands before the surface. Not differentiable.
    """
    scene = as_trained(scene, model)
    index = {scene.names[i]: i for i in scene.splits["train"].tolist()}
    world_from_scene = model.scene_from_world.inverse()
    sums, total = torch.zeros(len(points), 3), torch.zeros(len(points))
    for photo, view in zip(photos.tolist(), views, strict=True):
        i = index.get(model.names[photo])
        if i is None:
            continue
        some, weights = _visible(view, points, faces, normals)
        camera = scene.cameras.subset([i])
        there = world_from_scene.apply(model.space.points_to_scene(points[some].double()))
        uv, depths = (t[0] for t in camera.project(there))
        h, w = int(camera.heights[0]), int(camera.widths[0])
        inside = (depths > 0) & (uv >= 0).all(dim=1) & (uv[:, 0] < w) & (uv[:, 1] < h)
        row, col = (uv[:, k].clamp(0, n - 1).long() for k, n in ((1, h), (0, w)))
        weights = weights * (inside & shown_pixels(scene, i)[row * w + col])
        found = without_flash(model, camera, there, bilinear(load_photo_colors(model, scene, i), uv))
        sums[some] += weights[:, None] * found
        total[some] += weights
    return sums / total.clamp_min(1e-30)[:, None], total > 0


def _visible(view: DepthView, points: Tensor, faces: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Which points [m] a view sees, and how much they count [m]."""
    uv, z, face = draw_surface(view, points, faces)
    h, w = view.depths.shape
    size = 2 * _MARGIN + 1
    front = -torch.nn.functional.max_pool2d(
        -nearest_depths(z, face, faces).clamp_max(1e30).reshape(1, 1, h, w), size, 1, _MARGIN
    )
    some = ((z > 0) & (uv >= 0).all(dim=1) & (uv[:, 0] < w) & (uv[:, 1] < h)).nonzero()[:, 0]
    col, row = uv[some].long().unbind(dim=1)
    z = z[some]
    away = view_origin(view) - points[some]
    cosine = (normals[some] * away).sum(dim=1) / away.norm(dim=1).clamp_min(1e-12)
    slope = (1 - cosine.square()).clamp_min(0).sqrt() / cosine.clamp_min(0.05)
    reach = _BEHIND * z + (_MARGIN + 1) * slope * z / view.intrinsics[0]  # what is aslant comes nearer by itself
    seen = (cosine > 0) & (z < front.flatten()[row * w + col] + reach)
    seen &= (z / view.depths[row, col] - 1).abs() < CONTRADICT
    weights = view.weights[row, col] * (cosine / z).square()
    return some[seen], weights[seen].float()
