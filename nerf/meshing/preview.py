"""Draws a triangle mesh as a camera of the photos sees it; no window, no driver."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nerf import kernels
from nerf.geometry.cameras import Cameras
from nerf.kernels.raster import weights_in
from nerf.rendering.view import View

if TYPE_CHECKING:
    import trimesh

_CHUNK = 1 << 18  # pixels worked on at once
_POINTS = 1 << 22  # tested at once, in rows of pixels: a large picture needs little more than itself


def render_mesh(
    mesh: trimesh.Trimesh,
    cameras: Cameras,
    i: int,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    lit: bool = False,
    supersample: int = 2,
    added: Tensor | None = None,
) -> View[np.ndarray]:
    """What camera i sees of a mesh in the world frame; as Model.render_image gives it.

    color: of its texture or vertices (else grey), plus what is `added` at vertices [v,3], over the background; lit adds
    a light at the camera. opacity: share of
    the pixel that is covered. depth: distance in world length; normal: outward. Faces show from both sides;
    supersample^2 points a pixel are tested. Lens distortion moves the corners of triangles alone. Not differentiable.
    """
    camera = cameras.subset([i])
    h, w = int(camera.heights[0]), int(camera.widths[0])
    camera = camera.resized(w * supersample, h * supersample)
    vertices = torch.from_numpy(np.array(mesh.vertices, np.float64))
    normals = torch.from_numpy(np.array(mesh.vertex_normals, np.float64))
    faces = torch.from_numpy(np.array(mesh.faces, np.int64))
    uv, z = (t[0] for t in camera.project(vertices))

    def rows_from(first: int, rows: int) -> Tensor:
        """Sums over the points of each pixel [rows,w,8]: color, normal, distance, how many are covered."""
        moved = uv - torch.tensor([0.0, first * supersample], dtype=uv.dtype)
        size = w * supersample, rows * supersample
        pixel, face, weights = rasterise(moved, z, faces, *size, seam(camera))
        corners = faces[face]
        view = (weights[..., None] * vertices[corners]).sum(dim=1) - camera.centres[0]
        distance = view.norm(dim=1)
        normal = torch.nn.functional.normalize((weights[..., None] * normals[corners]).sum(dim=1), dim=1)
        color = surface_colors(mesh, corners, weights)
        if added is not None:
            color = (color + (weights[..., None] * added.double()[corners]).sum(dim=1)).clamp(0, 1)
        if lit:
            color = color * (0.3 + 0.7 * (normal * view).sum(dim=1).abs() / distance)[:, None]
        total = torch.zeros(size[0] * size[1], 8, dtype=torch.float64)
        total[pixel] = torch.cat([color, normal, distance[:, None], torch.ones(len(pixel), 1).double()], dim=1)
        return total.reshape(rows, supersample, w, supersample, 8).sum(dim=(1, 3))

    band = max(1, _POINTS // (w * supersample**2))
    total = torch.cat([rows_from(first, min(band, h - first)) for first in range(0, h, band)])
    hits = total[..., 7:]
    mean = total / hits.clamp_min(1)
    opacity = hits / supersample**2
    color = mean[..., :3] * opacity + (1 - opacity) * torch.tensor(background, dtype=torch.float64)
    normal = torch.nn.functional.normalize(mean[..., 3:6], dim=-1)
    return View(*(part.float().numpy() for part in (color, opacity[..., 0], mean[..., 6], normal)))


def surface_colors(mesh: trimesh.Trimesh, corners: Tensor, weights: Tensor) -> Tensor:
    """Colours [p,3] at points given by vertices [p,3] and weights [p,3]: of the texture, the vertices, or grey."""
    visual: Any = mesh.visual
    if getattr(visual, "kind", None) == "texture" and visual.uv is not None:
        image = getattr(visual.material, "baseColorTexture", None) or getattr(visual.material, "image", None)
        if image is not None:
            texture = torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
            uv = torch.from_numpy(np.array(visual.uv, np.float64))
            at = (weights[..., None] * uv[corners]).sum(dim=1)
            size = torch.tensor([texture.shape[1], texture.shape[0]], dtype=torch.float64)
            return bilinear(texture, torch.stack([at[:, 0], 1 - at[:, 1]], dim=1) * size).double()
    rgb = getattr(visual, "vertex_colors", None) if getattr(visual, "kind", None) == "vertex" else None
    if rgb is None or len(rgb) != len(mesh.vertices):
        return torch.full((len(corners), 3), 0.72, dtype=torch.float64)
    return (weights[..., None] * (torch.from_numpy(np.array(rgb[:, :3], np.float64)) / 255)[corners]).sum(dim=1)


def bilinear(picture: Tensor, uv: Tensor) -> Tensor:
    """Colours [n,c] of a picture [h,w,c] at OpenCV pixels uv [n,2]; the edge goes on outside."""
    h, w = picture.shape[:2]
    x, y = (uv[:, 0] - 0.5).clamp(0, w - 1), (uv[:, 1] - 0.5).clamp(0, h - 1)
    x0, y0 = x.floor().long(), y.floor().long()
    x1, y1 = (x0 + 1).clamp_max(w - 1), (y0 + 1).clamp_max(h - 1)
    fx, fy = (x - x0)[:, None].to(picture.dtype), (y - y0)[:, None].to(picture.dtype)
    upper = picture[y0, x0] * (1 - fx) + picture[y0, x1] * fx
    lower = picture[y1, x0] * (1 - fx) + picture[y1, x1] * fx
    return upper * (1 - fy) + lower * fy


def facing(camera: Cameras, vertices: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Of a surface at vertices [v,3], as camera 0 sees it: cosine [v] to its normal, and slope [v] (the tangent)."""
    away = vertices - camera.centres[0]
    cosine = -(normals * away).sum(dim=1) / away.norm(dim=1).clamp_min(1e-300)
    return cosine, (1 - cosine.square()).clamp_min(0).sqrt() / cosine.clamp_min(0.05)


def seam(camera: Cameras) -> float:
    """Pixels after which the picture of camera 0 begins anew: a panorama's full turn; 0 where it does not."""
    return 2 * math.pi * float(camera.fx[0]) if bool(camera.spherical[0]) else 0.0


def across_seam(uv: Tensor, z: Tensor, faces: Tensor, turn: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Corners uv [v,2], z [v] and faces [f,3] as they are drawn, and which of the faces given each is: those that reach
    over the edge of a panorama, where it goes on at the other, are drawn at both. turn: see `seam`."""
    owner, u = torch.arange(len(faces)), uv[:, 0]
    if not turn or not len(faces):
        return uv, z, faces, owner
    faces, corner = faces.long(), u[faces.long()]
    over = ((corner.amax(dim=1) - corner.amin(dim=1)) > turn / 2).nonzero()[:, 0]
    left, n = corner[over] < turn / 2, len(uv)
    parts = [torch.where(left, faces[over] + n, faces[over]), torch.where(left, faces[over], faces[over] + 2 * n)]
    keep = torch.ones(len(faces), dtype=torch.bool).index_fill(0, over, False)
    step = torch.tensor([turn, 0.0], dtype=uv.dtype)
    return (
        torch.cat([uv, uv + step, uv - step]),
        z.repeat(3),
        torch.cat([faces[keep], *parts]),
        torch.cat([owner[keep], over, over]),
    )


def rasterise(
    uv: Tensor, z: Tensor, faces: Tensor, width: int, height: int, turn: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest face at every pixel centre that has one: (flat pixels [p] ascending, faces [p], weights [p,3] of the
    triangle's corners in space: w_k / z_k over their sum); see `kernels.nearest_faces`. turn: `seam` of the camera."""
    uv, z, faces, owner = across_seam(uv, z, faces, turn)
    nearest = kernels.nearest_faces(uv, z, faces, width, height)
    pixel = (nearest >= 0).nonzero()[:, 0]
    face = nearest[pixel].long()
    weights = torch.empty(len(pixel), 3, dtype=torch.float64)
    for k in range(0, len(pixel), _CHUNK):
        some, corners = pixel[k : k + _CHUNK], faces[face[k : k + _CHUNK]].long()
        at = torch.stack([some % width, torch.div(some, width, rounding_mode="floor")], dim=1) + 0.5
        part = weights_in(uv[corners].double(), at.double()).clamp_min(0) / z[corners]
        weights[k : k + _CHUNK] = part / part.sum(dim=1, keepdim=True)
    return pixel, owner[face], weights
