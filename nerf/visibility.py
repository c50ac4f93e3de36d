"""Cells of the scene that cannot hold anything the photos show: seen by no camera, or outside a silhouette."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nerf.cameras import PERSPECTIVE, Cameras
from nerf.datasets import Scene
from nerf.pixels import may_show

CHUNK = 1 << 17


def possible_cells(scene: Scene, image_ids: Tensor, slack: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """A test for `OccupancyGrid.restrict`: (centres [n,3] scene, sizes [n]) -> bool [n].

    Photos without alpha: a cell stays if two cameras see it (three from 20 photos up); what fewer see cannot be placed,
    and fills with pictures of itself. Photos with alpha: a cell stays unless some camera sees nothing but transparency
    in its place. This is the visual hull (Laurentini 1994) of cells grown to their bounding spheres, so thin parts
    stay; `slack`, a scene length, grows them further, for cameras that are not quite where they are said to be.
    """
    world_from_scene = scene.scene_from_world.inverse()
    views = [scene.cameras.subset([i]) for i in image_ids.tolist()]

    def possible(centres: Tensor, sizes: Tensor) -> Tensor:
        points = world_from_scene.apply(centres.double())
        radii = (sizes.double() * (0.5 * 3**0.5) + slack) / scene.scene_from_world.scale
        if scene.has_alpha:
            return _inside_silhouettes(points, radii)
        enough = 3 if len(views) >= 20 else min(2, len(views))
        seen = torch.zeros(len(points), dtype=torch.int32)
        for view in views:
            left = (seen < enough).nonzero()[:, 0]
            if len(left) == 0:
                break
            for part in left.split(CHUNK):
                box, _, in_front = _footprint(view, points[part], radii[part])
                x0, y0, x1, y1 = box.unbind(1)
                seen[part] += (in_front & (x1 > 0) & (y1 > 0) & (x0 < view.widths[0]) & (y0 < view.heights[0])).int()
        return seen >= enough

    def _inside_silhouettes(points: Tensor, radii: Tensor) -> Tensor:
        keep = torch.arange(len(points))
        for view, i in zip(views, image_ids.tolist(), strict=True):
            table = _alpha_sums(scene, i)
            w, h = int(view.widths[0]), int(view.heights[0])
            stays = []
            for part in keep.split(CHUNK):
                box, whole, in_front = _footprint(view, points[part], radii[part])
                x0, y0 = box[:, 0].floor().clamp(0, w).long(), box[:, 1].floor().clamp(0, h).long()
                x1, y1 = box[:, 2].ceil().clamp(0, w).long(), box[:, 3].ceil().clamp(0, h).long()
                shown = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0] > 0
                stays.append(part[shown | ~whole | ~in_front])  # what lies outside a picture may be anything
            keep = torch.cat(stays)
        result = torch.zeros(len(points), dtype=torch.bool)
        result[keep] = True
        return result

    return possible


def _footprint(view: Cameras, points: Tensor, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel box [n,4] (x0, y0, x1, y1) around the images of balls, whether it lies within the picture, and in front.

    A ball at (x, z) with radius r < z spans the slopes (x z -+ r sqrt(x^2 + z^2 - r^2)) / (z^2 - r^2) in that plane:
    its tangents through the camera. A lens bends them; there the box of an ideal camera is moved and grown by half.
    """
    uv, depths = view.project(points)
    uv, z = uv[0], depths[0]
    across = (points - view.c2w[0, :, 3]) @ view.c2w[0, :, :2] * torch.tensor([1.0, -1.0], dtype=torch.float64)
    r, z1 = radii[:, None], torch.maximum(z, radii * 1.000001)[:, None]  # a ball around the camera: all of the picture
    half = r * (across.square() + z1.square() - r.square()).clamp_min(0).sqrt() / (z1.square() - r.square())
    middle = across * z1 / (z1.square() - r.square())
    focal, centre = torch.cat([view.fx, view.fy]), torch.cat([view.cx, view.cy])
    if int(view.models[0]) == PERSPECTIVE and not bool(view.distortion.any()):
        low, high = centre + focal * (middle - half), centre + focal * (middle + half)
    else:
        reach = 1.5 * focal * (half + (middle - across / z1).abs())
        low, high = uv - reach, uv + reach
    box = torch.cat([low, high], dim=1)
    w, h = int(view.widths[0]), int(view.heights[0])
    whole = (box[:, 0] >= 0) & (box[:, 1] >= 0) & (box[:, 2] <= w) & (box[:, 3] <= h) & (z > radii)
    return box, whole, z > -radii


def _alpha_sums(scene: Scene, i: int) -> Tensor:
    """Summed-area table [h+1,w+1] of the pixels that are not wholly transparent."""
    shown = may_show(scene, i)
    table = torch.zeros(shown.shape[0] + 1, shown.shape[1] + 1, dtype=torch.int32)
    table[1:, 1:] = shown.to(torch.int32).cumsum(0).cumsum(1)
    return table
