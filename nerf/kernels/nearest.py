"""Nearest points on a triangle mesh: exact distances from points to faces, not to vertices or samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nerf.kernels import bindings

_PAIRS = 1 << 21  # of a point and a face, looked at together by the reference


class Nearest(NamedTuple):
    """For each of n points: its distance [n] to the mesh, the face [n] (int64) and the point [n,3] of it that is
    nearest."""

    distances: Tensor
    faces: Tensor
    points: Tensor


def nearest_points(points: Tensor, vertices: Tensor, faces: Tensor, native: bool) -> Nearest:
    """Points [n,3] against the mesh of vertices [v,3] and faces [f,3] (whole numbers); float32 arithmetic about the
    mesh's middle, whatever the dtype.

    Of several equally near faces any one is named. Errors: about 1e-6 of the mesh's extent. Raises ValueError for a
    mesh without faces, faces of vertices that do not exist, or coordinates that are not finite. Not differentiable.
    """
    check(points, vertices, faces)
    near, mesh, middle = about_the_middle(points, vertices)
    found = (_native if native else _reference)(near, mesh, faces)
    return Nearest(found.distances, found.faces, (found.points.double() + middle).to(points.dtype))


def about_the_middle(points: Tensor, vertices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points and vertices in float32, less the middle [3] of the vertices in float64."""
    middle = ((vertices.amin(dim=0) + vertices.amax(dim=0)) / 2).double()
    near, mesh = ((x.detach().double() - middle).float().contiguous() for x in (points, vertices))
    return near, mesh, middle


def check(points: Tensor, vertices: Tensor, faces: Tensor) -> None:
    """ValueError unless points and vertices are [n,3] and finite, and there are faces, of vertices that exist."""
    for name, x in (("points", points), ("vertices", vertices), ("faces", faces)):
        if x.dim() != 2 or x.shape[1] != 3:
            raise ValueError(f"{name}: expected shape [n,3], got {list(x.shape)}")
    if faces.is_floating_point() or not len(faces):
        raise ValueError(f"faces: expected at least one face of whole numbers, got {faces.dtype} {list(faces.shape)}")
    if int(faces.min()) < 0 or int(faces.max()) >= len(vertices):
        raise ValueError(
            f"faces: expected vertices from 0 to {len(vertices) - 1}, got {int(faces.min())} to {int(faces.max())}"
        )
    for name, x in (("points", points), ("vertices", vertices)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name}: expected finite coordinates")


def _native(points: Tensor, vertices: Tensor, faces: Tensor) -> Nearest:
    corners = faces.to(torch.int32).contiguous()
    distances, at = torch.empty(len(points)), torch.empty_like(points)
    which = torch.empty(len(points), dtype=torch.int32)
    bindings.native().nerf_nearest_points(
        *(vertices.data_ptr(), corners.data_ptr(), len(corners), points.data_ptr(), len(points)),
        *(distances.data_ptr(), which.data_ptr(), at.data_ptr(), torch.get_num_threads()),
    )
    return Nearest(distances, which.long(), at)


def _reference(points: Tensor, vertices: Tensor, faces: Tensor) -> Nearest:
    """Every point against every face: the nearest point of the plane if it lies inside, else of the three edges."""
    a, b, c = (vertices[faces[:, k].long()] for k in range(3))
    parts = []
    for some in points.split(max(1, _PAIRS // len(faces))):
        p = some[:, None]
        best, at = torch.full((len(some), len(faces)), torch.inf), torch.zeros(len(some), len(faces), 3)
        for start, end in ((a, b), (b, c), (c, a)):
            along = end - start
            length = (along * along).sum(dim=-1).clamp_min(1e-37)
            t = (((p - start) * along).sum(dim=-1) / length).clamp(0, 1)
            best, at = _nearer(p, start + t[..., None] * along, best, at)
        normal = torch.linalg.cross(b - a, c - a)
        area = (normal * normal).sum(dim=-1)
        inside = (area > 0).expand(best.shape)
        for start, end in ((a, b), (b, c), (c, a)):
            across = torch.linalg.cross((end - start).expand_as(p - start), p - start)
            inside = inside & ((across * normal).sum(dim=-1) >= 0)
        height = ((p - a) * normal).sum(dim=-1) / area.clamp_min(1e-37)
        flat = torch.where(inside[..., None], p - height[..., None] * normal, torch.inf)
        best, at = _nearer(p, flat, best, at)
        distances, which = best.min(dim=1)
        parts.append((distances, which, at[torch.arange(len(some)), which]))
    if not parts:
        return Nearest(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3))
    return Nearest(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _nearer(p: Tensor, candidate: Tensor, best: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    distance = (p - candidate).norm(dim=-1)
    closer = distance < best
    return torch.where(closer, distance, best), torch.where(closer[..., None], candidate, at)
