"""Many signals by one network: a short latent for each of them shifts the phases of shared sine layers.

h_1 = sin(omega_0 (W_1 x + b_1 + M_1 z)) and so on, learned so that a few steps of gradient descent from z = 0, of
learned length, find the latent of any signal of the kind. Sources: Dupont et al. 2022, "From data to functa" and
"COIN++", sections 3; Li et al. 2017, "Meta-SGD".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nerf.errors import UserError
from nerf.fields.networks import SineLayer, Siren
from nerf.io.files import write_file
from nerf.rendering.metrics import psnr_of
from nerf.signals.fields import FieldChoice, SignalField
from nerf.signals.image import read_image
from nerf.signals.record import centres, check_finite, read_array, unit_grid

INNER_STEPS = 3  # of gradient descent on a latent, as it is learned
STEP_LENGTH = 50.0  # of the first of them, before it is learned
HELD_OUT = 10  # every so manyth signal is not learned from
LATENT, WIDTH, DEPTH = 64, 64, 3


class ModulatedField(SignalField):
    """A SIREN whose phases a latent z [b, latent] shifts: coordinates u [p, d] to values [b, p, c]."""

    def __init__(self, choice: FieldChoice, latent: int, **sizes: Any) -> None:
        super().__init__(choice, **sizes)
        if choice.kind != "siren":
            raise UserError(f"--field {choice.kind}: a set of signals is fitted with the field siren")
        if latent < 1:
            raise UserError(f"--latent {latent}: expected a length of 1 or more")
        self.latent = latent
        random = torch.Generator().manual_seed(self.seed + 1)
        weights = torch.randn(choice.depth * choice.width, latent, generator=random) / (30.0 * latent**0.5)
        self.shifts = nn.Parameter(weights)
        self.rates = nn.Parameter(torch.full((INNER_STEPS, latent), STEP_LENGTH))

    def values(self, u: Tensor, z: Tensor) -> Tensor:
        """[b, p, c] at u [p, d] or [b, p, d] for latents z [b, latent]; differentiable to any order."""
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise UserError(f"a latent of length {z.shape[-1]} was given, and this field's have {self.latent}")
        h: Tensor = self.encoding(self.positions(u))
        assert isinstance(self.network, Siren)
        *sines, last = self.network.layers.children()
        shifts = (z @ self.shifts.t()).reshape(len(z), len(sines), 1, -1)
        for k, layer in enumerate(sines):
            assert isinstance(layer, SineLayer)
            h = torch.sin(layer.omega_0 * (layer.linear(h) + shifts[:, k]))
        return self.offset + self.scale * last(h)

    def find_latents(self, u: Tensor, targets: Tensor, train: bool = False) -> Tensor:
        """Latents [b, latent] of signals [b, p, c] known at u, by the learned steps from 0; train: differentiable in
        what is shared."""
        z = torch.zeros(len(targets), self.latent, dtype=targets.dtype, device=targets.device).requires_grad_()
        with torch.enable_grad():
            for rates in self.rates:
                error = (self.values(u, z) - targets).square().mean(dim=(1, 2)).sum()
                (slope,) = torch.autograd.grad(error, z, create_graph=train)
                z = z - rates * slope
                if not train:
                    z = z.detach().requires_grad_()
        return z if train else z.detach()

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"latent": self.latent}


@dataclass
class LatentFields:
    """A set of signals of one size as something to fit (a `record.Problem`): values [n, h, w, c] in [0,1]."""

    images: NDArray[np.float32]
    name: str = "set"
    pixels: int = 256  # of each signal in a step
    peak: float | None = field(default=1.0, init=False)
    kind, n_dims = "set", 2

    def __post_init__(self) -> None:
        n, h, w, c = self.images.shape
        self.n_channels, self.shape = c, (h, w)
        held = torch.arange(n) % HELD_OUT == 0 if n >= HELD_OUT else torch.zeros(n, dtype=torch.bool)
        self.learned, self.held_out = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
        self.values = torch.from_numpy(self.images).reshape(n, h * w, c)
        self.u = unit_grid(centres(h), centres(w))

    @property
    def extents(self) -> tuple[float, float]:
        h, w = self.shape
        return (w / max(h, w), h / max(h, w))

    def loss(self, field: SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """The error after the inner steps, for as many signals as `batch` values hold; of other pixels at each step."""
        assert isinstance(field, ModulatedField)
        n_pixels = min(self.pixels, len(self.u))
        passes = INNER_STEPS + 1  # over the pixels of a signal
        count = max(1, min(len(self.learned), batch // (n_pixels * passes)))
        which = self.learned[torch.randperm(len(self.learned), generator=random)[:count]]
        at = torch.randperm(len(self.u), generator=random)[:n_pixels]
        u, targets = self.u[at].to(field.device), self.values[which][:, at].to(field.device)
        z = field.find_latents(u, targets, train=True)
        mse = (field.values(u, z) - targets).square().mean()
        return mse + 1e-4 * z.square().mean(), mse.detach()

    def describe(self) -> dict[str, Any]:
        h, w = self.shape
        about = {"name": self.name, "n": len(self.images), "shape": [h, w], "n_channels": self.n_channels}
        return about | {"pixels": self.pixels, "held_out": len(self.held_out)}


def latent_field(
    problem: LatentFields, latent: int = LATENT, width: int | None = None, depth: int | None = None, seed: int = 0
) -> ModulatedField:
    choice = FieldChoice("siren", width or WIDTH, depth or DEPTH, first_omega_0=20.0, omega_0=20.0)
    sizes: dict[str, Any] = {"n_dims": 2, "n_channels": problem.n_channels, "extents": problem.extents, "seed": seed}
    return ModulatedField(choice, latent, **sizes)


def latents_of(field: ModulatedField, problem: LatentFields, chunk: int = 64) -> Tensor:
    """[n, latent] of all signals of a set, held out or not."""
    return torch.cat([field.find_latents(problem.u, part) for part in problem.values.split(chunk)])


def measure_set(problem: LatentFields, found: NDArray[np.float32]) -> dict[str, float]:
    """Mean PSNR over the pictures that were learned from, and over those that were not."""
    errors = np.square(found.astype(np.float64) - problem.images).mean(axis=(1, 2, 3))
    each = torch.tensor([psnr_of(float(e)) for e in errors])
    parts = {"psnr": problem.learned, "psnr_held_out": problem.held_out}
    return {name: float(each[which].mean()) for name, which in parts.items() if len(which)}


def pictures_of(field: ModulatedField, z: Tensor, h: int, w: int, chunk: int = 16) -> NDArray[np.float32]:
    """[b, h, w, c] in [0,1] of latents [b, latent], at any size."""
    u = unit_grid(centres(h), centres(w))
    with torch.no_grad():
        parts = [field.values(u, part).clamp(0, 1).cpu() for part in z.split(chunk)]
    return torch.cat(parts).reshape(len(z), h, w, -1).numpy()


@dataclass(frozen=True)
class LatentPrior:
    """A Gaussian over the directions that latents span; new ones of `temperature` 1 lie as widely as they do."""

    mean: Tensor
    axes: Tensor  # [k, latent] orthonormal
    deviations: Tensor  # [k]

    @staticmethod
    def of(z: Tensor) -> LatentPrior:
        if len(z) < 3:
            raise UserError(f"a density needs 3 latents or more, got {len(z)}")
        mean = z.mean(dim=0)
        _, size, axes = torch.linalg.svd((z - mean).double(), full_matrices=False)
        return LatentPrior(mean, axes.float(), (size / (len(z) - 1) ** 0.5).float())

    def draw(self, n: int, seed: int = 0, temperature: float = 0.8) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(n, len(self.deviations), generator=random)
        return self.mean + temperature * (noise * self.deviations) @ self.axes


def sheet(pictures: NDArray[np.float32], columns: int) -> NDArray[np.uint8]:
    """Pictures [n,h,w,c] side by side, `columns` in a row, as one 8-bit picture [.., .., 3]."""
    n, h, w, c = pictures.shape
    rows = -(-n // columns)
    page = np.ones((rows * (h + 1), columns * (w + 1), 3), np.float32)
    for i, picture in enumerate(pictures):
        y, x = i // columns * (h + 1), i % columns * (w + 1)
        page[y : y + h, x : x + w] = picture[..., :1] if c < 3 else picture[..., :3]
    return (page.clip(0, 1) * 255).round().astype(np.uint8)


def read_set(path: Path) -> NDArray[np.float32]:
    """[n,h,w,c] in [0,1]: a .npy of [n,h,w] or [n,h,w,c], or a folder of pictures of one size."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".tif"))
        if len(files) < 2:
            raise UserError(f"{path}: holds {len(files)} pictures: expected a set of 2 or more")
        parts: list[NDArray[np.float32]] = []
        for file in files:
            signal = read_image(file)
            parts.append((signal.values / signal.one).astype(np.float32).reshape(*signal.shape, -1))
            if parts[-1].shape != parts[0].shape:
                this, first = ("x".join(map(str, part.shape)) for part in (parts[-1], parts[0]))
                raise UserError(
                    f"{file} is {this} and {files[0].name} is {first} (height x width x channels): a set has one size"
                )
        return np.stack(parts)
    values = read_array(path, "a set", ": expected a folder of pictures, or a .npy")
    if values.dtype.kind not in "uif" or values.ndim not in (3, 4) or len(values) < 2 or min(values.shape) < 1:
        raise UserError(
            f"{path}: holds {values.dtype} numbers of shape {list(values.shape)}; expected [n,h,w] or [n,h,w,c], n > 1"
        )
    wide = values.astype(np.float32)
    check_finite(path, wide)
    if values.dtype.kind == "f":
        wide = (wide - wide.min()) / max(float(np.ptp(wide)), 1e-12)
    else:
        wide /= np.iinfo(values.dtype).max
    return wide if wide.ndim == 4 else wide[..., None]


def write_latents(path: Path, z: Tensor) -> None:
    """Write latents [b, latent] as a .npy, which `check_latents` reads."""
    file = BytesIO()
    np.save(file, z.numpy())
    write_file(path, file.getvalue())


def check_latents(path: Path, latent: int) -> Tensor:
    """Latents [b, latent] of a .npy; UserError where they are not of this field's length."""
    z = np.atleast_2d(read_array(path, "latents", ": expected a .npy of numbers"))
    if z.ndim != 2 or z.shape[1] != latent or z.dtype.kind not in "uif" or not np.isfinite(z).all():
        raise UserError(f"{path}: holds {list(z.shape)}, expected finite latents of length {latent}, one a row")
    return torch.from_numpy(z.astype(np.float32))
