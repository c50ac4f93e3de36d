"""A small z-buffer that draws a triangle mesh as a camera of the photos sees it; torch alone, no window, no driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.cameras import Cameras

if TYPE_CHECKING:
    import trimesh

_CANDIDATES = 1 << 22  # pairs of a triangle and a pixel tested at once
_TOUCH = 1e-5  # in weights: a pixel centre this near an edge counts for both sides, so that rounding opens no hole
_DEPTH_BITS = 31  # of the z-buffer's keys; the lower 32 bits of a key are the face


def render_mesh(
    mesh: trimesh.Trimesh,
    cameras: Cameras,
    i: int,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    lit: bool = False,
    supersample: int = 2,
) -> dict[str, NDArray[np.float32]]:
    """What camera i sees of a mesh in the world frame; float32 arrays of its size, as Model.render_image gives.

    "color" [h,w,3]: vertex colours (grey where there are none) over the background; lit adds a light at the camera,
    which shows the shape. "opacity" [h,w]: share of the pixel that is covered. "depth" [h,w]: distance from the camera
    in world length, 0 where nothing is. "normal" [h,w,3]: unit, world frame, outward, 0 where nothing is. Faces show
    from both sides. supersample^2 points a pixel are tested. A triangle that reaches behind the camera is left out.
    Lens distortion moves the corners of triangles; their edges stay straight. Deterministic; not differentiable.
    """
    camera = cameras.subset([i])
    h, w = int(camera.heights[0]), int(camera.widths[0])
    camera = camera.resized(w * supersample, h * supersample)
    vertices = torch.from_numpy(np.array(mesh.vertices, np.float64))
    faces = torch.from_numpy(np.array(mesh.faces, np.int64))
    uv, z = (t[0] for t in camera.project(vertices))
    pixel, face, weights = rasterise(uv, z, faces, w * supersample, h * supersample)

    corners = faces[face]
    points = (weights[..., None] * vertices[corners]).sum(dim=1)
    view = points - camera.c2w[0, :, 3]
    distance = view.norm(dim=1)
    normals = torch.from_numpy(np.array(mesh.vertex_normals, np.float64))
    normal = torch.nn.functional.normalize((weights[..., None] * normals[corners]).sum(dim=1), dim=1)
    rgb = getattr(mesh.visual, "vertex_colors", None)
    if rgb is None or len(rgb) != len(vertices):
        color = torch.full_like(points, 0.72)
    else:
        color = (weights[..., None] * (torch.from_numpy(np.array(rgb[:, :3], np.float64)) / 255)[corners]).sum(dim=1)
    if lit:
        color = color * (0.3 + 0.7 * (normal * view).sum(dim=1).abs() / distance)[:, None]

    total = torch.zeros(h * supersample * w * supersample, 8, dtype=torch.float64)
    total[pixel] = torch.cat([color, normal, distance[:, None], torch.ones(len(pixel), 1).double()], dim=1)
    total = total.reshape(h, supersample, w, supersample, 8).sum(dim=(1, 3))
    hits = total[..., 7:]
    mean = total / hits.clamp_min(1)
    opacity = hits / supersample**2
    color = mean[..., :3] * opacity + (1 - opacity) * torch.tensor(background, dtype=torch.float64)
    normal = torch.nn.functional.normalize(mean[..., 3:6], dim=-1)
    parts = {"color": color, "opacity": opacity[..., 0], "depth": mean[..., 6], "normal": normal}
    return {name: part.float().numpy() for name, part in parts.items()}


def rasterise(uv: Tensor, z: Tensor, faces: Tensor, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest face at every pixel centre: (flat pixels [p] ascending, faces [p], weights [p,3]).

    uv [v,2] OpenCV pixels, z [v] depths along the optical axis, faces [f,3]. Along a triangle 1/z is linear in the
    picture, so weights are w_k / z_k over their sum. A centre on an edge belongs to both faces; of equal depths the
    first face wins.
    """
    corner, depth = uv[faces], z[faces]  # [f,3,2], [f,3]
    low = torch.ceil(corner.amin(dim=1) - 0.5).clamp_min(0)
    limit = torch.tensor([width - 1, height - 1], dtype=uv.dtype)
    size = (torch.minimum(torch.floor(corner.amax(dim=1) - 0.5), limit) - low + 1).clamp_min(0)
    a, b, c = corner.unbind(dim=1)
    area = _cross(b - a, c - a)
    # behind the camera, off the picture, between pixel centres or edge-on nothing is covered (NaN fails the tests too)
    seen = (depth > 0).all(dim=1) & (size > 0).all(dim=1) & (area.abs() > 1e-12) & (size < 1e9).all(dim=1)
    visible = seen.nonzero()[:, 0]
    buffer = torch.full((width * height,), 2**63 - 1, dtype=torch.int64)
    if len(visible):
        corner, depth, area, low, size = (
            corner[visible],
            depth[visible],
            area[visible],
            low[visible],
            size[visible].long(),
        )
        first = _weights(
            corner, low + 0.5
        )  # at the first pixel of each bounding box; then how weights change to the right, down
        a, b, c = corner.unbind(dim=1)
        across = torch.stack([b - c, c - a, a - b], dim=1) / area[:, None, None]
        slopes = torch.stack([first, across[..., 1], -across[..., 0]], dim=1)  # [f, (first, right, down), 3]
        inverse = (slopes / depth[:, None]).sum(dim=2)  # 1/z is linear too
        near, far = float((1 / depth).max()), float((1 / depth).min())
        scale = (2**_DEPTH_BITS - 1) / max(near - far, 1e-300)
        # float32 is enough from here: offsets are whole pixels within one triangle
        table = torch.cat(
            [slopes[..., 1:], inverse[..., None]], dim=2
        ).float()  # [f, (first, right, down), (w1, w2, 1/z)]
        widths, origin = size[:, 0], low[:, 1].long() * width + low[:, 0].long()
        ends = size.prod(dim=1).cumsum(0)
        start = 0
        while start < len(visible):  # as many triangles as fit; a single one may fill the picture
            done = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(torch.searchsorted(ends, done + _CANDIDATES, right=True)))
            counts = size[start:stop].prod(dim=1)
            owner = torch.repeat_interleave(torch.arange(start, stop), counts)
            k = torch.arange(len(owner)) - torch.repeat_interleave(ends[start:stop] - counts - done, counts)
            down = torch.div(k, widths[owner], rounding_mode="floor")
            right = k - down * widths[owner]
            terms = table[owner]
            value = terms[:, 0] + right[:, None] * terms[:, 1] + down[:, None] * terms[:, 2]
            u, v = value[:, 0], value[:, 1]
            inside = ((u >= -_TOUCH) & (v >= -_TOUCH) & (u + v <= 1 + _TOUCH)).nonzero()[:, 0]
            owner, pixel = owner[inside], down[inside] * width + right[inside]
            key = ((near - value[inside, 2].double()) * scale).round().long().clamp(0, 2**_DEPTH_BITS - 1)
            buffer.scatter_reduce_(0, origin[owner] + pixel, (key << 32) | visible[owner], "amin")
            start = stop

    pixel = (buffer < 2**63 - 1).nonzero()[:, 0]
    face = buffer[pixel] & (2**32 - 1)
    rows, cols = torch.div(pixel, width, rounding_mode="floor"), pixel % width
    weights = _weights(uv[faces[face]], torch.stack([cols, rows], dim=1) + 0.5).clamp_min(0) / z[faces[face]]
    return pixel, face, weights / weights.sum(dim=1, keepdim=True)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _weights(corner: Tensor, p: Tensor) -> Tensor:
    """Barycentric weights [n,3], in the picture, of points [n,2] in triangles [n,3,2]; their sum is 1."""
    a, b, c = corner.unbind(dim=1)
    first, second = _cross(b - p, c - p), _cross(c - p, a - p)
    area = _cross(b - a, c - a)
    return torch.stack([first, second, area - first - second], dim=1) / area[:, None]
