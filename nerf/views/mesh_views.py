"""Pictures of a mesh from six sides for the report, with torch alone: points over its faces, and a depth buffer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nerf.surfaces import spread
from nerf.views.pictures import write_png

if TYPE_CHECKING:
    import trimesh

VIEWS = ("front", "right", "back", "left", "top", "bottom")
_POINTS = 3_000_000


def six_views(mesh: trimesh.Trimesh, front: Tensor, up: Tensor, size: int = 420) -> dict[str, np.ndarray]:
    """Name -> [size,size,3] uint8: the mesh in its vertex colours, lit from the viewer, on white, without perspective.

    front [3]: towards the viewer of the view "front" (what of it lies along up is ignored); up [3]; world frame. The
    four views around look down by 15 degrees. Faces seen from behind are not drawn, so a mesh that is inside out shows.
    Where the mesh has no colours it is grey. Deterministic.
    """
    points, normals, colors = _spread(mesh, _POINTS)
    middle = (points.amin(dim=0) + points.amax(dim=0)) / 2
    points = points - middle
    radius = float(points.norm(dim=1).max()) or 1.0
    up = up.float() / up.norm().float()
    level = front.float() - (front.float() @ up) * up
    if float(level.norm()) < 1e-6:
        level = torch.linalg.cross(up, torch.eye(3)[int(up.abs().argmin())])
    ahead = level / level.norm()
    right = torch.linalg.cross(up, ahead)
    c, s = float(np.cos(np.radians(15))), float(np.sin(np.radians(15)))
    towards = [c * ahead + s * up, c * right + s * up, -c * ahead + s * up, -c * right + s * up, up, -up]
    uppers = [up] * 4 + [-ahead, ahead]
    scaled = points / (1.02 * radius)
    return {
        name: _draw(scaled, normals, colors, to_viewer, upper, size)
        for name, to_viewer, upper in zip(VIEWS, towards, uppers, strict=True)
    }


def write_six_views(mesh: trimesh.Trimesh, front: Tensor, up: Tensor, folder: Path) -> None:
    """The pictures of `six_views` as folder/front.png ..."""
    folder.mkdir(exist_ok=True)
    for name, picture in six_views(mesh, front, up).items():
        write_png(folder / f"{name}.png", picture)


def _spread(mesh: trimesh.Trimesh, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """n points over the faces, even by area: positions, face normals, colours in [0,1], each [n,3] float32."""
    vertices = torch.from_numpy(np.asarray(mesh.vertices, dtype=np.float64))
    faces = torch.from_numpy(np.asarray(mesh.faces, dtype=np.int64))
    rgb = getattr(mesh.visual, "vertex_colors", None)
    if rgb is None or len(rgb) != len(vertices):
        colors = torch.full((len(vertices), 3), 0.72)
    else:
        colors = torch.from_numpy(np.asarray(rgb)[:, :3].astype(np.float32) / 255)
    which, weights = spread(vertices, faces, n)
    corners = faces[which]
    a, b, c = (vertices[corners[:, k]] for k in range(3))
    points = (weights[..., None] * torch.stack([a, b, c], dim=1)).sum(dim=1) - vertices.mean(dim=0)
    normals = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-300)
    shades = (weights.float()[..., None] * colors[corners]).sum(dim=1)
    return points.float(), normals.float(), shades


def _draw(points: Tensor, normals: Tensor, colors: Tensor, to_viewer: Tensor, up: Tensor, size: int) -> np.ndarray:
    """Points [n,3] in the unit ball -> [size,size,3] uint8, seen along -to_viewer; twice the size, then averaged."""
    backward = to_viewer / to_viewer.norm()
    right = torch.linalg.cross(up, backward)
    right = right / right.norm()
    upward = torch.linalg.cross(backward, right)
    fine = 2 * size
    facing = normals @ backward
    seen = facing > 0
    points, colors, facing = points[seen], colors[seen], facing[seen]
    cols = ((points @ right * 0.5 + 0.5) * fine).long().clamp(0, fine - 1)
    rows = ((0.5 - points @ upward * 0.5) * fine).long().clamp(0, fine - 1)
    pixel = rows * fine + cols
    depth = -(points @ backward)
    nearest = torch.full((fine * fine,), 9.0).scatter_reduce_(0, pixel, depth, "amin")
    front = depth <= nearest[pixel] + 0.5 / size  # all points of the front layer share a pixel's colour
    pixel, lit = pixel[front], colors[front] * (0.45 + 0.55 * facing[front, None])
    total = torch.zeros(fine * fine, 4).index_add_(0, pixel, torch.cat([lit, torch.ones(len(lit), 1)], dim=1))
    color = total[:, :3] / total[:, 3:].clamp_min(1)
    hit = (total[:, 3:] > 0).float()
    blocks = torch.cat([color * hit, hit], dim=1).reshape(size, 2, size, 2, 4).sum(dim=(1, 3))
    covered = blocks[..., 3:]
    mean = blocks[..., :3] / covered.clamp_min(1)
    # One of four hit is an edge; three of four is a hole that chance left, and counts as whole.
    alpha = torch.where(covered >= 3, torch.ones_like(covered), covered / 4)
    return ((mean * alpha + 1 - alpha).clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()
