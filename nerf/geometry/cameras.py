"""Cameras: intrinsics, lenses and poses; pixels to rays and points to pixels.

Conventions. Poses are camera-to-world, OpenGL camera: x right, y up, looking along -z. Intrinsics are OpenCV pixels: x
right, y down, and the pixel in row i, column j has its centre at (j + 0.5, i + 0.5). Distortion is applied when rays
are made, never to images.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from nerf.geometry.lenses import (
    EQUIRECTANGULAR,
    FISHEYE,
    OPENCV,
    PERSPECTIVE,
    SKEW,
    distort,
    sees_ahead_only,
    undistort,
    widest_angles,
)
from nerf.geometry.space import Similarity

__all__ = ["EQUIRECTANGULAR", "FISHEYE", "OPENCV", "PERSPECTIVE", "Cameras", "picture_border", "undistort"]

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # a pose [4,4] of either kind times this is one of the other
_AXES = torch.from_numpy(OPENGL_FROM_OPENCV.diagonal()[:3].copy())
_TABLE_BYTES = 256 << 20  # largest table of undistorted directions that is kept


@dataclass
class Cameras:
    """n cameras, not to be changed in place; sizes, models and lenses may differ from one to the next.

    Poses are in world units, OpenGL (looking along -z); all else is in OpenCV pixels. `rays` gives float32 rays without
    gradients; `project` is differentiable in points, poses and intrinsics.

    >>> import torch
    >>> cameras = Cameras.perspective(torch.eye(4, dtype=torch.float64)[None, :3], 100.0, width=64, height=48)
    >>> rays_o, rays_d = cameras.rays(torch.tensor([0]), torch.tensor([23.5]), torch.tensor([31.5]))  # the middle
    >>> rays_o.tolist(), rays_d.tolist()
    ([[0.0, 0.0, 0.0]], [[0.0, 0.0, -1.0]])
    >>> uv, depths = cameras.project(torch.tensor([[0.0, 0.0, -2.0]]))
    >>> uv.tolist(), depths.tolist()
    ([[[32.0, 24.0]]], [[2.0]])
    """

    c2w: Tensor  # [n,3,4] float64, camera to world, OpenGL camera, rotation orthonormal with determinant +1
    fx: Tensor  # [n] float64 pixels, as are fy, cx, cy
    fy: Tensor
    cx: Tensor
    cy: Tensor
    widths: Tensor  # [n] int64
    heights: Tensor
    models: Tensor  # [n] int64, of nerf.geometry.lenses: PERSPECTIVE, OPENCV, FISHEYE, ..., EQUIRECTANGULAR
    distortion: Tensor  # [n,6] float64: k1,k2,k3,k4,p1,p2; or [n,13] where a lens has more, see COEFFICIENTS there
    _cache: dict[str, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.c2w)

    @staticmethod
    def perspective(c2w: Tensor, focal: Tensor | float, width: int, height: int) -> Cameras:
        """Cameras without distortion at poses [n,3,4], the principal point in the middle of width x height pixels;
        focal: pixels, for all, or [n], or [n,2] (fx, fy)."""
        n = len(c2w)
        focal = torch.as_tensor(focal, dtype=torch.float64)
        fx, fy = (focal if focal.dim() == 2 else focal.expand(n)[:, None].expand(n, 2)).clone().unbind(1)
        cx, cy = (torch.full((n,), size / 2, dtype=torch.float64) for size in (width, height))
        widths, heights, models = (torch.full((n,), value) for value in (width, height, PERSPECTIVE))
        return Cameras(c2w.double(), fx, fy, cx, cy, widths, heights, models, torch.zeros(n, 6, dtype=torch.float64))

    @property
    def centres(self) -> Tensor:
        """[n,3] world."""
        return self.c2w[:, :, 3]

    @property
    def up(self) -> Tensor:
        """[n,3] of unit length, world: the pictures' vertical axis, upwards."""
        return self.c2w[:, :, 1]

    @property
    def forward(self) -> Tensor:
        """[n,3] of unit length, world: the optical axis, away from the camera."""
        return -self.c2w[:, :, 2]

    @property
    def spherical(self) -> Tensor:
        """Which are panoramas of the whole sphere, that look nowhere in particular: bool [n]."""
        return self.models == EQUIRECTANGULAR

    @property
    def opencv_axes(self) -> Tensor:
        """[n,3,3], world: right, down and forward as columns."""
        return self.c2w[:, :, :3] * _AXES.to(self.c2w.device)

    def with_poses(self, c2w: Tensor) -> Cameras:
        """The same cameras at other poses [n,3,4]."""
        return Cameras(**self.tensors() | {"c2w": c2w.to(self.c2w.device)})

    def tensors(self) -> dict[str, Tensor]:
        """Everything there is to store; Cameras(**tensors) is the same set again."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def subset(self, ids: Tensor | list[int]) -> Cameras:
        """The cameras of the given indices, in that order."""
        index = torch.as_tensor(ids, dtype=torch.int64)
        return Cameras(**{name: t[index] for name, t in self.tensors().items()})

    def to(self, device: torch.device) -> Cameras:
        """The same cameras for pixels that live on a device; what makes `rays` fast is still prepared on the CPU."""
        if device == self.c2w.device:
            return self
        moved = self._cache.get("moved")
        if not (isinstance(moved, Cameras) and moved.c2w.device == device):
            moved = Cameras(**{name: t.to(device) for name, t in self.tensors().items()})
            moved._cache["host"] = self
            self._cache["moved"] = moved
        return moved

    def scaled(self, factor: int) -> Cameras:
        """Cameras of images down-scaled by averaging factor x factor blocks (incomplete last ones are cut)."""
        if factor < 1:
            raise ValueError(f"factor must be a whole number from 1 up, got {factor}")
        t = self.tensors()
        t |= {name: t[name] / factor for name in ("fx", "fy", "cx", "cy")}
        return Cameras(**t | {name: t[name] // factor for name in ("widths", "heights")})

    def resized(self, widths: Tensor | int, heights: Tensor | int) -> Cameras:
        """The same views drawn with another number of pixels [n] or one for all (aspect ratio may change)."""
        widths, heights = (torch.as_tensor(x, dtype=torch.int64).expand(len(self)).clone() for x in (widths, heights))
        sx, sy = widths / self.widths.double(), heights / self.heights.double()
        lens = {"fx": self.fx * sx, "fy": self.fy * sy, "cx": self.cx * sx, "cy": self.cy * sy}
        return Cameras(**self.tensors() | lens | {"widths": widths, "heights": heights})

    def rays(
        self, image_ids: Tensor, rows: Tensor, cols: Tensor, scene_from_world: Similarity | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rays through pixels: (rays_o [n,3], rays_d [n,3] of unit length), float32, in the scene frame (world when
        None). image_ids [n] int; rows, cols [n] are pixel indices, whole (int) or fractional (float): (row, col) is the
        centre of that pixel, (row + 0.5, col + 0.5) its lower right corner."""
        packed = self.packed(scene_from_world)  # [n_cameras,16] float32
        p = packed.index_select(0, image_ids)
        if self.distorted():
            table = None if rows.is_floating_point() or cols.is_floating_point() else self.lens_table()
            if table is not None:
                d = table[0].index_select(0, table[1][image_ids] + rows * self.widths[image_ids] + cols)
            else:
                d = self._camera_directions(image_ids, rows, cols).float()
            x, y, z = d[:, 0:1], d[:, 1:2], d[:, 2:3]
            rays_d = p[:, 0:3] * x + p[:, 3:6] * y + p[:, 6:9] * z
        else:
            x = (cols.float() - p[:, 14]) * p[:, 12]
            y = (rows.float() - p[:, 15]) * p[:, 13]
            rays_d = torch.addcmul(torch.addcmul(p[:, 6:9], p[:, 0:3], x[:, None]), p[:, 3:6], y[:, None])
        return p[:, 9:12].contiguous(), rays_d / rays_d.norm(dim=1, keepdim=True)

    def image_rays(self, i: int, scene_from_world: Similarity | None = None) -> tuple[Tensor, Tensor]:
        """The rays of a whole image, row-major: (rays_o [h*w,3], rays_d [h*w,3])."""
        h, w = int(self.heights[i]), int(self.widths[i])
        pixels = torch.arange(h * w, device=self.c2w.device)
        return self.rays(torch.full_like(pixels, i), pixels // w, pixels % w, scene_from_world)

    def project(self, points_world: Tensor) -> tuple[Tensor, Tensor]:
        """Where world points [m,3] fall: (uv [n,m,2] OpenCV pixels with distortion, depths [n,m] in world units, <= 0
        where the lens does not see the point, and uv means nothing). Differentiable in points, poses and intrinsics.

        Depths are along the optical axis for lenses that see what is ahead only, and distances for those that may see
        more (fisheyes, EUCM, ..., panoramas), which have points behind the camera in the picture.
        """
        local = torch.einsum("nij,nmi->nmj", self.c2w[:, :, :3], points_world.double()[None] - self.c2w[:, None, :, 3])
        local = local * _AXES.to(local.device)
        present = self.models.unique().tolist()
        if len(present) == 1:
            xn, yn = distort(local, self.distortion, present[0])
        else:
            xn, yn = torch.empty_like(local[..., 0]), torch.empty_like(local[..., 0])
            for model in present:
                some = self.models == model
                xn[some], yn[some] = distort(local[some], self.distortion[some], model)
        xn = self._skewed(xn, yn)
        uv = self.fx[:, None] * xn + self.cx[:, None], self.fy[:, None] * yn + self.cy[:, None]
        return torch.stack(uv, dim=-1), self._depths(local)

    def _depths(self, local: Tensor) -> Tensor:
        """Of points [n,m,3] in the OpenCV cameras: along the axis; of wide lenses the distance. Below 0: not seen."""
        z = local[..., 2]
        ahead = sees_ahead_only(self.models)
        if not self.distorted():
            return z
        distance = local.norm(dim=-1)
        widest = self.widest_angles[:, None]
        seen = (z > distance * widest.cos()) | (widest > 3.1415)
        size = torch.where(ahead[:, None], z.abs(), distance)
        return torch.where(seen, size, -size)

    def _skewed(self, x: Tensor, y: Tensor) -> Tensor:
        """x [n,m] with what the sensor's axes add that are not at right angles."""
        return x + self.distortion[:, SKEW, None] * y if self.distortion.shape[1] > SKEW else x

    @property
    def widest_angles(self) -> Tensor:
        """[n] radians from the optical axis beyond which the lenses show nothing, wherever the picture ends."""
        if "widest" not in self._cache:
            self._cache["widest"] = widest_angles(self.distortion.detach(), self.models)
        return self._cache["widest"]  # type: ignore[return-value]

    def distorted(self) -> bool:
        """Whether any lens bends what it sees, or sees to the side."""
        if "distorted" not in self._cache:
            wide = ~sees_ahead_only(self.models)
            self._cache["distorted"] = bool((wide | (self.distortion != 0).any(dim=1)).any())
        return bool(self._cache["distorted"])

    def packed(self, scene_from_world: Similarity | None) -> Tensor:
        """[n,16] float32: axes right, down, forward in the scene; origin; 1/fx, 1/fy, cx-0.5, cy-0.5."""
        cached = self._cache.get("packed")
        if isinstance(cached, tuple) and cached[0] is scene_from_world:
            return cached[1]
        host = self._cache.get("host")
        if isinstance(host, Cameras):
            packed = host.packed(scene_from_world).to(self.c2w.device)
        else:
            s = (scene_from_world or Similarity.identity()).to(self.c2w.device)
            axes = torch.einsum("ij,njk->nik", s.rotation, self.c2w[:, :, :3]) * _AXES
            rest = torch.stack([1 / self.fx, 1 / self.fy, self.cx - 0.5, self.cy - 0.5], dim=1)
            packed = torch.cat([axes.transpose(1, 2).reshape(-1, 9), s.apply(self.centres), rest], dim=1).float()
        self._cache["packed"] = (scene_from_world, packed)
        return packed

    def _camera_directions(self, image_ids: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Undistorted directions [n,3] float64 in the OpenCV camera frame (not all of unit length)."""
        x = (cols.double() + 0.5 - self.cx[image_ids]) / self.fx[image_ids]
        y = (rows.double() + 0.5 - self.cy[image_ids]) / self.fy[image_ids]
        k = self.distortion[image_ids]
        if k.shape[1] > SKEW:
            x = x - k[:, SKEW] * y
        return undistort(x, y, k, self.models[image_ids], self.widest_angles[image_ids])

    def lens_table(self) -> tuple[Tensor, Tensor] | None:
        """(directions [h*w of every distinct lens, 3] float32, offset of each camera [n]), or None if too large."""
        host = self._cache.get("host")
        if "table" not in self._cache and isinstance(host, Cameras):
            there = host.lens_table()
            self._cache["table"] = None if there is None else tuple(t.to(self.c2w.device) for t in there)
        if "table" not in self._cache:
            lens = torch.stack([self.fx, self.fy, self.cx, self.cy, self.widths, self.heights, self.models], dim=1)
            distinct, which = torch.unique(torch.cat([lens, self.distortion], dim=1), dim=0, return_inverse=True)
            sizes = (distinct[:, 4] * distinct[:, 5]).long()
            table = None
            if int(sizes.sum()) * 12 <= _TABLE_BYTES:
                starts = sizes.cumsum(0) - sizes
                directions = torch.empty(int(sizes.sum()), 3)
                for k, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
                    i = int((which == k).nonzero()[0])
                    for a in range(0, size, 1 << 18):
                        pixels = torch.arange(a, min(a + (1 << 18), size))
                        rows, cols = pixels // self.widths[i], pixels % self.widths[i]
                        found = self._camera_directions(torch.full_like(pixels, i), rows, cols)
                        directions[start + a : start + a + len(pixels)] = found.float()
                table = (directions, starts[which])
            self._cache["table"] = table
        return self._cache["table"]  # type: ignore[return-value]


def picture_border(height: float, width: float, n: int) -> tuple[Tensor, Tensor]:
    """Fractional (rows, cols) [4n] float64 along the outer edges of a picture: top, bottom, left, right."""
    along = torch.linspace(0, 1, n, dtype=torch.float64)
    rows = torch.cat([along * 0, along * 0 + height, along * height, along * height]) - 0.5
    cols = torch.cat([along * width, along * width, along * 0, along * 0 + width]) - 0.5
    return rows, cols
