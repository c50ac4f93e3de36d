"""Two cameras and the same point in both pictures: how far apart the pictures say it is from what the cameras allow.

Everything goes through rays, so any lens model that `Cameras` knows serves, and lenses may differ between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.geometry.cameras import Cameras

_STEP = 0.5  # pixels to either side, for the derivative of a ray: lenses are smooth, and rays are float32


@dataclass
class PixelRays:
    """Where pixels of one picture look, in the frame of their camera, so that poses can be tried without new rays.

    >>> cameras = Cameras.perspective(torch.eye(4, dtype=torch.float64)[None, :3], 100.0, width=64, height=48)
    >>> rays = pixel_rays(cameras, 0, torch.tensor([[32.0, 24.0]]))
    >>> rays.directions.tolist(), rays.slopes[0, 0].round(decimals=4).tolist()
    ([[0.0, 0.0, -1.0]], [0.01, 0.0])
    """

    directions: Tensor  # [...,n,3] float64 of unit length, OpenGL camera frame
    slopes: Tensor  # [...,n,3,2] float64, derivative of the direction by the pixel's (u, v)

    def __getitem__(self, rows: Tensor) -> PixelRays:
        return PixelRays(self.directions[rows], self.slopes[rows])


def pixel_rays(cameras: Cameras, ids: int | Tensor, uv: Tensor) -> PixelRays:
    """The rays of one camera, or of one for each [...,n], through uv [...,n,2], OpenCV pixels (the middle of the first
    pixel is (0.5, 0.5)).

    >>> cameras = Cameras.perspective(torch.eye(4, dtype=torch.float64)[None, :3], 100.0, width=64, height=48)
    >>> pixel_rays(cameras, 0, torch.tensor([[132.0, 24.0]])).directions.round(decimals=4).tolist()
    [[0.7071, 0.0, -0.7071]]
    """
    here = cameras.with_poses(torch.eye(4, dtype=torch.float64)[None, :3].expand(len(cameras), 3, 4))
    shape = uv.shape[:-1]
    image_ids = torch.as_tensor(ids, dtype=torch.int64).expand(shape).reshape(-1)
    shifts = torch.tensor([[0.0, 0.0], [_STEP, 0], [-_STEP, 0], [0, _STEP], [0, -_STEP]], dtype=torch.float64)
    places = (uv.double().reshape(-1, 2)[None] + shifts[:, None]).reshape(-1, 2) - 0.5
    _, found = here.rays(image_ids.repeat(len(shifts)), places[:, 1], places[:, 0])
    d = found.double().reshape(len(shifts), *shape, 3)
    slopes = torch.stack([d[1] - d[2], d[3] - d[4]], dim=-1) / (2 * _STEP)
    return PixelRays(torch.nn.functional.normalize(d[0], dim=-1), slopes)


def sampson_pixels(a: PixelRays, b: PixelRays, c2w_a: Tensor, c2w_b: Tensor) -> Tensor:
    """How far in pixels matches are from fitting two cameras: [..., n] for poses [..., 3, 4], OpenGL camera to world;
    what stands for ... is broadcast.

    The Sampson distance (Hartley and Zisserman 11.4.3), to first order the least distance by which the two pixels have
    to move, together, so that their rays meet: |e| / |grad e| with e = d_a . (t x d_b), the gradient by all four pixel
    coordinates and t the direction from a to b. Without a baseline there is no epipolar line: NaN. The scene's scale,
    and motion along the line, do not show; `triangulate` tells about the latter.

    >>> from nerf.geometry.epipolar import pixel_rays, sampson_pixels
    >>> poses = torch.eye(4, dtype=torch.float64)[None, :3].repeat(2, 1, 1)
    >>> poses[1, 0, 3] = 1.0  # a step to the right
    >>> cameras = Cameras.perspective(poses, 100.0, width=64, height=48)
    >>> a = pixel_rays(cameras, 0, torch.tensor([[32.0, 24.0], [32.0, 24.0]]))
    >>> b = pixel_rays(cameras, 1, torch.tensor([[22.0, 24.0], [22.0, 26.0]]))  # in the same row, and two rows below
    >>> [round(x, 2) for x in sampson_pixels(a, b, *poses).tolist()]
    [0.0, 1.41]
    """
    rotation_a, rotation_b = c2w_a[..., :3], c2w_b[..., :3]
    baseline = c2w_b[..., 3] - c2w_a[..., 3]
    t = baseline / baseline.norm(dim=-1, keepdim=True)
    zero = torch.zeros_like(t[..., 0])
    cross = torch.stack(
        [zero, -t[..., 2], t[..., 1], t[..., 2], zero, -t[..., 0], -t[..., 1], t[..., 0], zero], dim=-1
    ).reshape(*t.shape[:-1], 3, 3)
    essential = rotation_a.transpose(-1, -2) @ cross @ rotation_b
    lines_in_a = torch.einsum("...ij,...nj->...ni", essential, b.directions)
    lines_in_b = torch.einsum("...ij,...ni->...nj", essential, a.directions)
    error = (lines_in_a * a.directions).sum(dim=-1)
    slope_a = torch.einsum("...ni,...nik->...nk", lines_in_a, a.slopes)
    slope_b = torch.einsum("...ni,...nik->...nk", lines_in_b, b.slopes)
    return error.abs() / (slope_a.square().sum(dim=-1) + slope_b.square().sum(dim=-1)).sqrt()


def triangulate(a: PixelRays, b: PixelRays, c2w_a: Tensor, c2w_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the rays of matches come nearest to each other: (distance along the ray of a, and of b, the angle between
    the rays in radians), [..., n] each for poses [..., 3, 4]. A distance below zero: the rays meet behind the camera.

    >>> from nerf.geometry.epipolar import pixel_rays, triangulate
    >>> poses = torch.eye(4, dtype=torch.float64)[None, :3].repeat(2, 1, 1)
    >>> poses[1, 0, 3] = 1.0
    >>> cameras = Cameras.perspective(poses, 100.0, width=64, height=48)
    >>> a, b = (pixel_rays(cameras, i, torch.tensor([[u, 24.0]])) for i, u in ((0, 37.0), (1, 27.0)))
    >>> [round(float(x), 3) for x in triangulate(a, b, *poses)]
    [10.012, 10.012, 0.1]
    """
    d_a = torch.einsum("...ij,...nj->...ni", c2w_a[..., :3], a.directions)
    d_b = torch.einsum("...ij,...nj->...ni", c2w_b[..., :3], b.directions)
    baseline = (c2w_b[..., 3] - c2w_a[..., 3])[..., None, :]
    cosine = (d_a * d_b).sum(dim=-1).clamp(-1, 1)
    sine2 = torch.linalg.cross(d_a, d_b).square().sum(dim=-1)
    along_a, along_b = (d_a * baseline).sum(dim=-1), (d_b * baseline).sum(dim=-1)
    safe = sine2.clamp_min(1e-18)
    depth_a = (along_a - cosine * along_b) / safe
    depth_b = (cosine * along_a - along_b) / safe
    return depth_a, depth_b, torch.atan2(sine2.sqrt(), cosine)
