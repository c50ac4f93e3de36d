"""Depth maps of many views fused into one signed distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nerf.kernels import bindings


@dataclass(frozen=True)
class DepthView:
    """A pinhole camera and what it measures."""

    camera_from_scene: Tensor  # [3,4] float64; x right, y down, z ahead
    intrinsics: tuple[float, float, float, float]  # fx, fy, cx, cy in pixels; the first centre is at (0.5, 0.5)
    depths: Tensor  # [h,w] float32 along z, scene length; infinity where the ray hits nothing, NaN: no say
    weights: Tensor  # [h,w] float32 of each pixel's say


class Fused(NamedTuple):
    """What depth maps say of n points."""

    distances: Tensor  # [n] signed, in units of `front` and cut to 1, above 0 in front of the surface
    weights: Tensor  # [n] of the views that say so; 0 where none does, -1 where the point is in no picture
    supports: Tensor  # [n] of the views that see a surface within `front` of the point, pixels weighing 1


def fuse_depths(
    points: Tensor, views: list[DepthView], front: float, back: float, scales: Tensor | None, native: bool
) -> Fused:
    """Where points [n,3] lie between what is empty and what is solid, as the views have it.

    A view's say is the distance along its ray from the point to the surface it sees. It counts as much as the nearest
    pixel weighs before the surface, less behind it, and nothing from `back` behind it, where something may hide.
    Between pixel centres depth is linear where the four around differ by less than `front`; across an edge the nearest
    counts. Lengths are those of the scene; scales [n]: times what `front` and `back` are at each point (None: 1). Not
    differentiable. Source: Curless and Levoy, "A Volumetric Method for Building Complex Models from Range Images",
    1996; weights behind the surface as Bylow et al. 2013, section III.
    """
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"points: expected shape [n,3], got {list(points.shape)}")
    if not (front > 0 and back > 0):
        raise ValueError(f"front, back: expected lengths above 0, got {front}, {back}")
    if scales is not None and scales.shape != points.shape[:1]:
        raise ValueError(f"scales: expected shape [{len(points)}], got {list(scales.shape)}")
    for view in views:
        maps = (view.depths, view.weights)
        if any(m.shape != maps[0].shape or m.dim() != 2 or m.dtype != torch.float32 for m in maps):
            raise ValueError("views: expected depths and weights [h,w] float32")
        if view.camera_from_scene.shape != (3, 4):
            raise ValueError(f"views: expected camera_from_scene [3,4], got {list(view.camera_from_scene.shape)}")
    if scales is not None:
        scales = scales.detach().float().contiguous()
    return (_native if native else _reference)(points.detach().float().contiguous(), views, front, back, scales)


def _native(points: Tensor, views: list[DepthView], front: float, back: float, scales: Tensor | None) -> Fused:
    maps = [(view.depths.contiguous(), view.weights.contiguous()) for view in views]  # alive until the call is over
    table = (bindings.DepthViewDesc * len(views))()
    for entry, view, (depths, weights) in zip(table, views, maps, strict=True):
        entry.camera_from_scene[:] = view.camera_from_scene.flatten().tolist()
        entry.intrinsics[:] = view.intrinsics
        entry.height, entry.width = depths.shape
        entry.depths, entry.weights = depths.data_ptr(), weights.data_ptr()
    fused = Fused(*(torch.empty(len(points)) for _ in range(3)))
    bindings.native().nerf_fuse_depths(
        *(points.data_ptr(), None if scales is None else scales.data_ptr(), len(points)),
        *(table, len(views), front, back),
        *(t.data_ptr() for t in fused),
        torch.get_num_threads(),
    )
    return fused


def _reference(points: Tensor, views: list[DepthView], front: float, back: float, scales: Tensor | None) -> Fused:
    fronts, backs = (torch.full((len(points),), length) for length in (front, back))
    if scales is not None:
        fronts, backs = fronts * scales, backs * scales
    total, weights, supports = (torch.zeros(len(points)) for _ in range(3))
    pictured = torch.zeros(len(points), dtype=torch.bool)
    for view in views:
        local = points @ view.camera_from_scene[:, :3].float().T + view.camera_from_scene[:, 3].float()
        fx, fy, cx, cy = view.intrinsics
        ahead = local[:, 2]
        right, down = (local[:, :2] / ahead[:, None]).unbind(dim=1)
        u, v = fx * right + cx, fy * down + cy
        h, w = view.depths.shape
        seen = (ahead > 0) & (u >= 0) & (v >= 0) & (u < w) & (v < h)
        at = seen.nonzero()[:, 0]
        u, v, ahead, front_here, back_here = u[at], v[at], ahead[at], fronts[at], backs[at]
        x, y = (u - 0.5).clamp_min(0), (v - 0.5).clamp_min(0)
        x0, y0 = x.long(), y.long()
        x1, y1 = (x0 + 1).clamp_max(w - 1), (y0 + 1).clamp_max(h - 1)
        a, b, c, d = (view.depths[j, i] for j in (y0, y1) for i in (x0, x1))
        s, t = x - x0, y - y0
        smooth = torch.stack([a, b, c, d])
        one_surface = smooth.amax(dim=0) - smooth.amin(dim=0) < front_here
        between = (a + s * (b - a)) * (1 - t) + (c + s * (d - c)) * t
        nearest = v.long(), u.long()
        depth = torch.where(one_surface, between, view.depths[nearest])
        before = (depth - ahead) * (1 + right[at].square() + down[at].square()).sqrt()
        counts = torch.where(before > -back_here, torch.where(before < 0, 1 + before / back_here, 1.0), 0.0)
        weight = counts * view.weights[nearest]
        pictured[at] = True
        weights[at] += weight
        supports[at] += torch.where(before.abs() < front_here, counts, 0.0)
        total[at] += torch.where(weight > 0, weight * (before / front_here).clamp_max(1), 0.0)
    distances = torch.where(weights > 0, total / weights, 0.0)
    return Fused(distances, torch.where(pictured, weights, -1.0), supports)
