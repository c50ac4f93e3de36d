"""Cameras: intrinsics, lens distortion and poses; pixels to rays and points to pixels.

Conventions. Poses are camera-to-world, OpenGL camera: x right, y up, looking along -z. Intrinsics are OpenCV pixels: x
right, y down, and the pixel in row i, column j has its centre at (j + 0.5, i + 0.5). Distortion is applied when rays
are made, never to images.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from nerf.geometry.space import Similarity

PERSPECTIVE, OPENCV, FISHEYE = 0, 1, 2
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
    >>> uv, z_depths = cameras.project(torch.tensor([[0.0, 0.0, -2.0]]))
    >>> uv.tolist(), z_depths.tolist()
    ([[[32.0, 24.0]]], [[2.0]])
    """

    c2w: Tensor  # [n,3,4] float64, camera to world, OpenGL camera, rotation orthonormal with determinant +1
    fx: Tensor  # [n] float64 pixels, as are fy, cx, cy
    fy: Tensor
    cx: Tensor
    cy: Tensor
    widths: Tensor  # [n] int64
    heights: Tensor
    models: Tensor  # [n] int64: PERSPECTIVE, OPENCV (radial-tangential) or FISHEYE (OpenCV fisheye, theta polynomial)
    distortion: Tensor  # [n,6] float64: k1,k2,k3,k4,p1,p2; k3 multiplies r^6 and k4 r^8 (fisheye: theta^7, theta^9)
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
        packed = self._packed(scene_from_world)  # [n_cameras,16] float32
        p = packed.index_select(0, image_ids)
        if self._distorted():
            table = None if rows.is_floating_point() or cols.is_floating_point() else self._table()
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
        """Where world points [m,3] fall: (uv [n,m,2] OpenCV pixels with distortion, z_depths [n,m] along the optical
        axis, <= 0 behind the camera, where uv means nothing). Differentiable in the points, poses and intrinsics."""
        local = torch.einsum("nij,nmi->nmj", self.c2w[:, :, :3], points_world.double()[None] - self.c2w[:, None, :, 3])
        x, y, z = local[..., 0], -local[..., 1], -local[..., 2]
        k, model = self.distortion[:, None, :], self.models[:, None]
        safe = torch.where(z.abs() < 1e-12, torch.full_like(z, 1e-12), z)
        xn, yn = x / safe, y / safe
        if bool((self.models == OPENCV).any()):
            xd, yd = _distort(xn, yn, k)
            lens = model == OPENCV
            xn, yn = torch.where(lens, xd, xn), torch.where(lens, yd, yn)
        if bool((self.models == FISHEYE).any()):
            r = torch.sqrt(x * x + y * y + 1e-24)
            scale = _fisheye(torch.atan2(r, z), k) / r
            lens = model == FISHEYE
            xn, yn = torch.where(lens, x * scale, xn), torch.where(lens, y * scale, yn)
        uv = self.fx[:, None] * xn + self.cx[:, None], self.fy[:, None] * yn + self.cy[:, None]
        return torch.stack(uv, dim=-1), z

    def _distorted(self) -> bool:
        if "distorted" not in self._cache:
            self._cache["distorted"] = bool(((self.models == FISHEYE) | (self.distortion != 0).any(dim=1)).any())
        return bool(self._cache["distorted"])

    def _packed(self, scene_from_world: Similarity | None) -> Tensor:
        """[n,16] float32: axes right, down, forward in the scene; origin; 1/fx, 1/fy, cx-0.5, cy-0.5."""
        cached = self._cache.get("packed")
        if isinstance(cached, tuple) and cached[0] is scene_from_world:
            return cached[1]
        host = self._cache.get("host")
        if isinstance(host, Cameras):
            packed = host._packed(scene_from_world).to(self.c2w.device)
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
        return undistort(x, y, self.distortion[image_ids], self.models[image_ids])

    def _table(self) -> tuple[Tensor, Tensor] | None:
        """(directions [h*w of every distinct lens, 3] float32, offset of each camera [n]), or None if too large."""
        host = self._cache.get("host")
        if "table" not in self._cache and isinstance(host, Cameras):
            there = host._table()
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


def _distort(x: Tensor, y: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """OpenCV radial-tangential: ideal (z = 1) to distorted coordinates; k [...,6] = k1,k2,k3,k4,p1,p2."""
    r2 = x * x + y * y
    radial = 1 + r2 * (k[..., 0] + r2 * (k[..., 1] + r2 * (k[..., 2] + r2 * k[..., 3])))
    p1, p2 = k[..., 4], k[..., 5]
    return x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y


def _fisheye(theta: Tensor, k: Tensor) -> Tensor:
    """Distorted radius of a ray at angle theta from the axis: theta (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8)."""
    t2 = theta * theta
    return theta * (1 + t2 * (k[..., 0] + t2 * (k[..., 1] + t2 * (k[..., 2] + t2 * k[..., 3]))))


def picture_border(height: float, width: float, n: int) -> tuple[Tensor, Tensor]:
    """Fractional (rows, cols) [4n] float64 along the outer edges of a picture: top, bottom, left, right."""
    along = torch.linspace(0, 1, n, dtype=torch.float64)
    rows = torch.cat([along * 0, along * 0 + height, along * height, along * height]) - 0.5
    cols = torch.cat([along * width, along * width, along * 0, along * 0 + width]) - 0.5
    return rows, cols


def undistort(x: Tensor, y: Tensor, k: Tensor, models: Tensor, n_steps: int = 12) -> Tensor:
    """Distorted normalised coordinates [n] to directions [n,3] float64 (OpenCV camera frame, z forward) by Newton's
    method; where the lens polynomial has no inverse (far corners of a poor calibration), the last finite estimate."""
    dx, dy, dz = x.clone(), y.clone(), torch.ones_like(x)
    lens = models == OPENCV
    if bool(lens.any()):
        xd, yd, kk = x[lens], y[lens], k[lens]
        u, v = xd.clone(), yd.clone()
        k1, k2, k3, k4, p1, p2 = kk.unbind(-1)
        for _ in range(n_steps):
            ex, ey = _distort(u, v, kk)
            ex, ey = ex - xd, ey - yd
            if float(torch.maximum(ex.abs(), ey.abs()).max()) < 1e-10:
                break
            r2 = u * u + v * v
            radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
            slope = 2 * (k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4)))  # d radial / d(u) = slope * u
            jxx = radial + slope * u * u + 2 * p1 * v + 6 * p2 * u
            jxy = slope * u * v + 2 * p1 * u + 2 * p2 * v
            jyy = radial + slope * v * v + 6 * p1 * v + 2 * p2 * u
            det = jxx * jyy - jxy * jxy
            good = det > 1e-3  # beyond that the polynomial folds over: stay
            det = torch.where(good, det, torch.ones_like(det))
            u = torch.where(good, u - (jyy * ex - jxy * ey) / det, u)
            v = torch.where(good, v - (jxx * ey - jxy * ex) / det, v)
        dx[lens], dy[lens] = u, v
    lens = models == FISHEYE
    if bool(lens.any()):
        xd, yd, kk = x[lens], y[lens], k[lens]
        k1, k2, k3, k4 = kk[:, :4].unbind(-1)
        r = torch.sqrt(xd * xd + yd * yd)
        theta = r.clamp_max(torch.pi)
        for _ in range(n_steps):
            error = _fisheye(theta, kk) - r
            if float(error.abs().max()) < 1e-10:
                break
            t2 = theta * theta
            slope = 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))
            good = slope > 1e-3
            step = torch.where(good, error / torch.where(good, slope, torch.ones_like(slope)), torch.zeros_like(r))
            theta = (theta - step).clamp(0, torch.pi)
        ratio = torch.where(r > 1e-12, torch.sin(theta) / r.clamp_min(1e-12), torch.ones_like(r))
        dx[lens], dy[lens], dz[lens] = xd * ratio, yd * ratio, torch.cos(theta)
    return torch.stack([dx, dy, dz], dim=-1)
