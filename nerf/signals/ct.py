"""Tomography: a slice from its Radon projections, by a field whose line integrals are compared with what was measured.

Geometry (parallel beams, as scikit-image's `radon`): a sinogram [detectors, angles]; the ray of detector k at angle
theta goes through s (cos, -sin) + t (sin, cos), s = k - centre, in pixels of x right and y down about the axis of
rotation. The slice has as many pixels a side as there are detectors, and is 0 outside the circle that all projections
see.

Forward operator: the field at the pixels' centres, linear between them, summed along each ray in steps of half a pixel
(a sparse matrix, built once); neither a scanner's data nor our benchmark's (exact integrals) are made by it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.errors import UserError
from nerf.io.files import write_file
from nerf.signals.fields import SignalField
from nerf.signals.image import image_of_field, read_image
from nerf.signals.record import centres, check_finite, read_array, unit_grid

STEP = 0.5  # pixels between samples of a ray
_EDGE = 1e-3  # differences of neighbours, in units of the slice, below which the total variation is round


@dataclass
class Sinogram:
    """Projections as something to fit (a `record.Problem`): the field is the slice.

    sinogram: [detectors, angles] line integrals, lengths in pixels; angles: degrees; centre: the detector that the axis
    of rotation falls on. variation: weight of the slice's total variation, negative: of its negative values.
    """

    sinogram: NDArray[np.float32]
    angles: NDArray[np.float64]
    centre: float | None = None
    variation: float = 0.03
    negative: float = 1.0
    name: str = "sinogram"
    peak: float | None = field(default=None, init=False)
    kind, n_dims, n_channels = "ct", 2, 1

    def __post_init__(self) -> None:
        n, count = self.sinogram.shape
        if len(self.angles) != count:
            raise UserError(
                f"{self.name}: has {count} columns (one projection each) and {len(self.angles)} angles were given"
                + (": its rows and columns seem to be swapped, give --transpose" if len(self.angles) == n else "")
            )
        self.n, self.shape = n, (n, n)
        self.centre = (n - 1) / 2 if self.centre is None else self.centre
        mass = float(np.abs(self.sinogram).sum(axis=0).mean())
        self.unit = 4.0 * mass / (math.pi / 4 * n * n) or 1.0  # of the field, in the sinogram's units per pixel
        at = np.arange(n) - self.centre
        self.where = torch.from_numpy(np.flatnonzero(_seen(at, at, self.centre, n)))
        self.u = unit_grid(centres(n), centres(n))[self.where]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's own about sparse matrices: they are in beta
            self.rays = _matrix(n, torch.from_numpy(self.angles).double(), self.centre, self.where)
            self.back = self.rays.to_sparse_coo().t().coalesce().to_sparse_csr()
        self.truth = torch.from_numpy(self.sinogram).double().reshape(-1).float() / self.unit

    def loss(self, field: SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """All rays at once, whatever `batch`; shown is the mean squared error over the projections' own mean square."""
        values = field(self.u.to(field.device))[:, 0].cpu()
        error = _Project.apply(values, self.rays, self.back) - self.truth
        size = self.truth.square().mean().clamp_min(1e-12)
        mse = error.square().mean() / size
        image = torch.zeros(self.n * self.n).index_put((self.where,), values).reshape(self.n, self.n)
        loss = mse + self.negative * values.clamp_max(0).square().mean()
        if self.variation:
            dx, dy = image[:-1, 1:] - image[:-1, :-1], image[1:, :-1] - image[:-1, :-1]
            loss = loss + self.variation * (dx.square() + dy.square() + _EDGE**2).sqrt().mean()
        return loss, mse.detach()

    def relative_error(self, field: SignalField) -> float:
        """Root mean square of the projections' errors over that of the projections."""
        values = field.evaluate(self.u)[:, 0]
        error = self.rays @ values - self.truth
        return float((error.square().sum() / self.truth.square().sum()).sqrt())

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "n_angles": len(self.angles),
            "angles": [float(self.angles.min()), float(self.angles.max())],
            "centre": self.centre,
            "variation": self.variation,
            "negative": self.negative,
            "unit": self.unit,
        }


class _Project(torch.autograd.Function):
    """Line integrals A x; the gradient is A^T g with a transposed copy, as fast as the product itself."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rays: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return rays @ values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back @ grad, None, None


def _seen(y: NDArray[np.float64], x: NDArray[np.float64], centre: float, n: int) -> NDArray[np.bool_]:
    """[h,w] whether all projections see what lies at rows y and columns x, in pixels from the axis."""
    return y[:, None] ** 2 + x**2 <= (min(centre, n - 1 - centre) + 0.5) ** 2


def _matrix(n: int, angles: Tensor, centre: float, where: Tensor) -> Tensor:
    """The forward operator [detectors * angles, pixels of `where`], sparse by rows, float32."""
    column = torch.full((n * n + 1,), -1, dtype=torch.int64)
    column[where] = torch.arange(len(where))
    s = torch.arange(n).double() - centre
    t = torch.arange(-math.ceil(n / 2 / STEP), math.ceil(n / 2 / STEP) + 1).double() * STEP
    found: list[tuple[Tensor, Tensor]] = []  # of each angle, whose rays no other angle has
    for k, theta in enumerate(torch.deg2rad(angles)):
        cos, sin = theta.cos(), theta.sin()
        x = (s[:, None] * cos + t * sin + centre).reshape(-1)
        y = (-s[:, None] * sin + t * cos + centre).reshape(-1)
        ray = (torch.arange(n) * len(angles) + k)[:, None].expand(-1, len(t)).reshape(-1)
        parts = []  # (rays, pixels, weights)
        x0, y0 = x.floor(), y.floor()
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            weight = STEP * (1 - (x - x0 - dx).abs()) * (1 - (y - y0 - dy).abs())
            inside = (x0 + dx >= 0) & (x0 + dx < n) & (y0 + dy >= 0) & (y0 + dy < n)
            at = column[torch.where(inside, (y0 + dy) * n + x0 + dx, n * n).long()]
            good = (at >= 0) & (weight > 0)
            parts.append((ray[good], at[good], weight[good].float()))
        rows, columns, weights = (torch.cat(x) for x in zip(*parts, strict=True))
        size = (n * len(angles), len(where))
        part = torch.sparse_coo_tensor(torch.stack([rows, columns]), weights, size).coalesce()
        found.append((part.indices(), part.values()))
    indices, values = (torch.cat(x, dim=-1) for x in zip(*found, strict=True))
    del found  # the matrix is most of what a fit keeps in memory
    return torch.sparse_coo_tensor(indices, values, size).coalesce().to_sparse_csr()


def read_sinogram(path: Path, transpose: bool = False) -> NDArray[np.float32]:
    """[detectors, angles] of a .npy, or of a grey PNG, TIFF or EXR: one column a projection, as scikit-image has it."""
    if path.suffix.lower() == ".npy":
        values = read_array(path, "a NumPy array")
    else:
        signal = read_image(path)
        if signal.n_channels > 2 and np.ptp(signal.values[:, :3].astype(np.float64), axis=1).max() > 0:
            raise UserError(f"{path}: is in colour; expected a grey sinogram, one column for each projection")
        values = signal.values[:, 0].reshape(signal.shape)
    if values.ndim != 2 or min(values.shape) < 2 or values.dtype.kind not in "uif":
        raise UserError(
            f"{path}: holds {values.dtype} numbers of shape {list(values.shape)}; "
            "expected a sinogram of detectors x angles, at least 2 x 2"
        )
    values = values.astype(np.float32)
    check_sinogram(values, path)
    return np.ascontiguousarray(values.T) if transpose else values


def check_sinogram(values: NDArray[np.float32], path: Path) -> None:
    """UserError where it holds NaN, or nothing but zeros."""
    check_finite(path, values)
    if not np.abs(values).max() > 0:
        raise UserError(f"{path}: is zero everywhere: nothing was projected")


def read_angles(path: Path | None, count: int, found: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Degrees: of a text file (or .npy), else those found with the sinogram, else `count` of them evenly from 0 to 180,
    the end left out."""
    if path is None and found is not None:
        return found
    if path is None:
        return np.arange(count, dtype=np.float64) * (180.0 / count)
    angles = read_array(path, "angles", ": expected one number a line, in degrees", text=True)
    degrees = np.asarray(angles, np.float64).reshape(-1)
    check_finite(path, degrees, "angles")
    return degrees


def slice_of_field(field: SignalField, signal: dict[str, Any], height: int, width: int) -> NDArray[np.float32]:
    """[h,w] of a fitted slice at any size, in the sinogram's units per pixel of its detector."""
    h, w = signal["shape"]
    values = image_of_field(field, height, width)[..., 0] * signal["unit"]
    y = (np.arange(height) + 0.5) / height * h - 0.5 - signal["centre"]
    x = (np.arange(width) + 0.5) / width * w - 0.5 - signal["centre"]
    return np.where(_seen(y, x, signal["centre"], h), np.maximum(values, 0), 0).astype(np.float32)


def write_slice(path: Path, values: NDArray[np.float32]) -> None:
    """A slice to .npy (as it is) or .png (16 bits, 0 to its largest value)."""
    from PIL import Image

    file = BytesIO()
    if path.suffix.lower() == ".npy":
        np.save(file, values)
    elif path.suffix.lower() == ".png":
        stretched = values / max(float(values.max()), 1e-30) * 65535
        Image.fromarray(stretched.round().astype(np.uint16)).save(file, format="PNG")
    else:
        raise UserError(f"{path}: expected a name that ends in .npy (values as they are) or .png (16 bits, stretched)")
    write_file(path, file.getvalue())
