"""Geometric consistency: what the depth maps of other views say of points that one view sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nerf.kernels import DepthView

AGREE, CONTRADICT = 0.01, 0.03  # of the depth: within the one two views agree; from the other on one sees through


class Votes(NamedTuple):
    """Of other views on n points."""

    agreeing: Tensor  # [n] sum of the weights of the pixels that see a surface there
    contradicting: Tensor  # [n] and of those that see through
    n_agreeing: Tensor  # [n] how many agree


def ask_views(points: Tensor, views: list[DepthView]) -> Votes:
    """How the nearest pixels of views see points [n,3] float32: OpenMVS's rule. What hides a point says nothing."""
    agreeing, contradicting, n_agreeing = (torch.zeros(len(points)) for _ in range(3))
    for view in views:
        uv, z = project(view, points)
        h, w = view.depths.shape
        inside = ((z > 0) & (uv >= 0).all(dim=1) & (uv[:, 0] < w) & (uv[:, 1] < h)).nonzero()[:, 0]
        column, row = uv[inside].long().unbind(dim=1)
        behind = view.depths[row, column] / z[inside] - 1
        weight = view.weights[row, column]
        agrees = (behind.abs() < AGREE) & (weight > 0)
        agreeing[inside] += agrees * weight
        n_agreeing[inside] += agrees
        contradicting[inside] += (behind > CONTRADICT) * weight
    return Votes(agreeing, contradicting, n_agreeing)


def unproject(view: DepthView, v: Tensor, u: Tensor, z: Tensor) -> Tensor:
    """Scene points [n,3] float64 of pixels (u, v) at z-depths [n]."""
    fx, fy, cx, cy = view.intrinsics
    local = torch.stack([(u - cx) / fx * z, (v - cy) / fy * z, z], dim=-1).double()
    return (local - view.camera_from_scene[:, 3]) @ view.camera_from_scene[:, :3]


def project(view: DepthView, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (u, v) [n,2] and z-depths [n] of scene points [n,3]."""
    local = points @ view.camera_from_scene[:, :3].T.to(points.dtype) + view.camera_from_scene[:, 3].to(points.dtype)
    fx, fy, cx, cy = view.intrinsics
    z = local[:, 2]
    return torch.stack([fx * local[:, 0] / z + cx, fy * local[:, 1] / z + cy], dim=1), z


def unproject_pixels(view: DepthView, pixels: Tensor, z: Tensor) -> Tensor:
    """Scene points [n,3] float64 of the centres of pixels [n] (flat) at z-depths [n]."""
    width = view.depths.shape[1]
    return unproject(view, torch.div(pixels, width, rounding_mode="floor") + 0.5, pixels % width + 0.5, z)
