"""Which face of a triangle mesh is nearest at every pixel of a picture: a z-buffer."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.kernels import bindings
from nerf.kernels.reference.arithmetic import ragged_chunks

_CANDIDATES = 1 << 22  # pairs of a triangle and a pixel tested at once
_TOUCH = 1e-5  # in weights: a pixel centre this near an edge counts for both sides, so that rounding opens no hole
_DEPTH_BITS = 31  # of the z-buffer's keys; the lower 32 bits of a key are the face


def nearest_faces(uv: Tensor, z: Tensor, faces: Tensor, width: int, height: int, native: bool) -> Tensor:
    """The nearest face at every pixel centre: [height*width] int32, -1 where there is none.

    uv [v,2] OpenCV pixels, z [v] depths along the optical axis, faces [f,3]. Along a triangle 1/z is linear in the
    picture. A centre on an edge belongs to both faces; of equal depths the first face wins. A triangle that reaches
    behind the camera is left out. Not differentiable.
    """
    if uv.dim() != 2 or uv.shape[1] != 2 or z.shape != uv.shape[:1]:
        raise ValueError(f"uv, z: expected shapes [v,2] and [v], got {list(uv.shape)} and {list(z.shape)}")
    if faces.dim() != 2 or faces.shape[1] != 3 or faces.is_floating_point():
        raise ValueError(f"faces: expected whole numbers [f,3], got {faces.dtype} {list(faces.shape)}")
    if len(faces) and (int(faces.min()) < 0 or int(faces.max()) >= len(uv)):
        raise ValueError(f"faces: expected vertices from 0 to {len(uv) - 1}")
    return (_native if native else _reference)(uv.detach().double(), z.detach().double(), faces, width, height)


def _native(uv: Tensor, z: Tensor, faces: Tensor, width: int, height: int) -> Tensor:
    uv, z, faces = uv.contiguous(), z.contiguous(), faces.to(torch.int32).contiguous()
    nearest = torch.empty(height * width, dtype=torch.int32)
    bindings.native().nerf_rasterise(
        *(uv.data_ptr(), z.data_ptr(), faces.data_ptr(), len(faces), width, height),
        *(nearest.data_ptr(), torch.get_num_threads()),
    )
    return nearest


def _reference(uv: Tensor, z: Tensor, faces: Tensor, width: int, height: int) -> Tensor:
    faces = faces.long()
    corner, depth = uv[faces], z[faces]  # [f,3,2], [f,3]
    low = torch.ceil(corner.amin(dim=1) - 0.5).clamp_min(0)
    limit = torch.tensor([width - 1, height - 1], dtype=uv.dtype)
    size = (torch.minimum(torch.floor(corner.amax(dim=1) - 0.5), limit) - low + 1).clamp_min(0)
    a, b, c = corner.unbind(dim=1)
    area = cross(b - a, c - a)
    # behind the camera, off the picture, between pixel centres or edge-on nothing is covered (NaN fails the tests too)
    seen = (depth > 0).all(dim=1) & (size > 0).all(dim=1) & (area.abs() > 1e-12) & (size < 1e9).all(dim=1)
    visible = seen.nonzero()[:, 0]
    buffer = torch.full((width * height,), 2**63 - 1, dtype=torch.int64)
    if len(visible):
        corner, depth, area, low, size = (x[visible] for x in (corner, depth, area, low, size.long()))
        # at the first pixel of each bounding box; then how weights change to the right, down
        first = weights_in(corner, low + 0.5)
        a, b, c = corner.unbind(dim=1)
        across = torch.stack([b - c, c - a, a - b], dim=1) / area[:, None, None]
        slopes = torch.stack([first, across[..., 1], -across[..., 0]], dim=1)  # [f, (first, right, down), 3]
        inverse = (slopes / depth[:, None]).sum(dim=2)  # 1/z is linear too
        near, far = float((1 / depth).max()), float((1 / depth).min())
        scale = (2**_DEPTH_BITS - 1) / max(near - far, 1e-300)
        # float32 is enough from here: offsets are whole pixels within one triangle
        table = torch.cat([slopes[..., 1:], inverse[..., None]], dim=2).float()  # [f, 3, (w1, w2, 1/z)]
        widths, origin = size[:, 0], low[:, 1].long() * width + low[:, 0].long()
        for owner, k in ragged_chunks(size.prod(dim=1), _CANDIDATES):
            down = torch.div(k, widths[owner], rounding_mode="floor")
            right = k - down * widths[owner]
            terms = table[owner]
            value = terms[:, 0] + right[:, None] * terms[:, 1] + down[:, None] * terms[:, 2]
            u, v = value[:, 0], value[:, 1]
            inside = ((u >= -_TOUCH) & (v >= -_TOUCH) & (u + v <= 1 + _TOUCH)).nonzero()[:, 0]
            owner, pixel = owner[inside], down[inside] * width + right[inside]
            key = ((near - value[inside, 2].double()) * scale).round().long().clamp(0, 2**_DEPTH_BITS - 1)
            buffer.scatter_reduce_(0, origin[owner] + pixel, (key << 32) | visible[owner], "amin")
    return torch.where(buffer < 2**63 - 1, buffer & (2**32 - 1), -1).int()


def cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def weights_in(corner: Tensor, p: Tensor) -> Tensor:
    """Barycentric weights [n,3], in the picture, of points [n,2] in triangles [n,3,2]; their sum is 1."""
    a, b, c = corner.unbind(dim=1)
    first, second = cross(b - p, c - p), cross(c - p, a - p)
    area = cross(b - a, c - a)
    return torch.stack([first, second, area - first - second], dim=1) / area[:, None]
