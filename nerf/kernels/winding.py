"""Generalised winding numbers of triangle meshes and oriented point clouds: what lies inside, holes or not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nerf.kernels import bindings
from nerf.kernels.nearest import about_the_middle, check

_PAIRS = 1 << 21  # of a point and an element, looked at together by the reference


def of_mesh(points: Tensor, vertices: Tensor, faces: Tensor, native: bool) -> Tensor:
    """How often the mesh of vertices [v,3] and faces [f,3], counter-clockwise from outside, goes around points [n,3].

    [n] float32: 1 inside and 0 outside of a closed mesh, 2 where it overlaps itself, something between near holes.
    The native one is within a few hundredths of the exact sum of solid angles. Raises ValueError as `nearest_points`
    does. Not differentiable. Source: Jacobson, Kavan, Sorkine-Hornung 2013, "Robust Inside-Outside Segmentation Using
    Generalized Winding Numbers", equation 5; fast: Barill et al. 2018.
    """
    check(points, vertices, faces)
    near, mesh, _ = about_the_middle(points, vertices)
    if not native:
        corners = mesh[faces.long()].double()
        return _reference(near.double(), corners.mean(dim=1), lambda q: _half_angles(corners, q) / (2 * math.pi))
    return _native(near, mesh, faces, None)


def of_cloud(points: Tensor, cloud: Tensor, areas: Tensor, native: bool) -> Tensor:
    """The same for points cloud [m,3] on a surface, each with its outward normal times the area [m,3] it stands for:
    the sum of (c - q) . areas / (4 pi |c - q|^3). Meaningless nearer to the surface than the points to each other."""
    numbers = torch.arange(len(cloud))
    faces = numbers[:, None].expand(-1, 3)
    check(points, cloud, faces)
    if areas.shape != cloud.shape:
        raise ValueError(f"areas: expected shape {list(cloud.shape)}, got {list(areas.shape)}")
    near, at, _ = about_the_middle(points, cloud)
    if native:
        return _native(near, at, faces, areas)
    centres, weights = at.double(), areas.double()

    def dipoles(q: Tensor) -> Tensor:
        to = centres - q[:, None]
        return (to * weights).sum(dim=-1) / (4 * math.pi * to.norm(dim=-1).clamp_min(1e-15) ** 3)

    return _reference(near.double(), centres, dipoles)


def _native(points: Tensor, vertices: Tensor, faces: Tensor, areas: Tensor | None) -> Tensor:
    corners, out = faces.to(torch.int32).contiguous(), torch.empty(len(points))
    weights = None if areas is None else areas.detach().float().contiguous()
    bindings.native().nerf_winding_numbers(
        *(vertices.data_ptr(), corners.data_ptr(), len(corners), 0 if weights is None else weights.data_ptr()),
        *(points.data_ptr(), len(points), out.data_ptr(), torch.get_num_threads()),
    )
    return out


def _reference(points: Tensor, elements: Tensor, terms: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of terms(q [k,3]) -> [k, m] over all m elements, a part of the points at a time."""
    parts = [terms(some).sum(dim=1).float() for some in points.split(max(1, _PAIRS // len(elements)))]
    return torch.cat(parts) if parts else torch.zeros(0)


def _half_angles(corners: Tensor, q: Tensor) -> Tensor:
    """[k, m] halves of the solid angles of triangles [m,3,3] from q [k,3] (Van Oosterom and Strackee 1983)."""
    a, b, c = (corners[:, k] - q[:, None] for k in range(3))
    la, lb, lc = a.norm(dim=-1), b.norm(dim=-1), c.norm(dim=-1)
    below = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return torch.atan2((a * torch.linalg.cross(b, c)).sum(dim=-1), below)
