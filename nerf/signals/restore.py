"""Restoration: images of which some pixels are unknown, noisy or averaged; and how close to the truth a fit is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.errors import Range, UserError, check_numbers
from nerf.rendering.metrics import psnr_of
from nerf.signals.fields import FieldChoice, SignalField, choose
from nerf.signals.image import read_image
from nerf.signals.record import Signal, unit_grid


def keep_known(signal: Signal, mask: Path | None, keep: float | None, seed: int = 0) -> None:
    """Learn an image only where its mask is not black, or only from a random share of its pixels."""
    if mask is not None and keep is not None:
        raise UserError("--mask and --keep both say which pixels are known: give one of them")
    if keep is not None:
        if not 0.0 < keep <= 1.0:
            raise UserError(f"--keep {keep:g}: expected a share of the values above 0 and up to 1")
        order = torch.randperm(len(signal.values), generator=torch.Generator().manual_seed(seed))
        signal.known = order[: max(1, round(keep * len(order)))].sort().values
    if mask is None:
        return
    black = read_image(mask)
    if black.shape != signal.shape:
        (h, w), (mask_h, mask_w) = signal.shape, black.shape
        raise UserError(f"{mask}: the mask has {mask_w}x{mask_h} pixels and the image {w}x{h}: expected one size")
    colours = black.values[:, :3] if black.n_channels >= 3 else black.values[:, :1]
    known = np.flatnonzero((colours > black.one / 2).any(axis=1))
    if len(known) == 0:
        raise UserError(f"{mask}: is black everywhere, so that no pixel is known: white marks the known ones")
    signal.known = torch.from_numpy(known)


def choose_for_few(kind: str, shape: tuple[int, ...], share: float) -> FieldChoice:
    """The field for an image of which a share of the pixels is known: no finer than they are, to fill in the others."""
    known = max(16.0, max(shape) * share**0.5)  # along the longest side
    sizes: dict[str, dict[str, Any]] = {
        "hash": {"finest_resolution": round(known), "n_levels": 8, "log2_hashmap_size": 18, "n_features_per_level": 4},
        "siren": {"first_omega_0": max(10.0, min(30.0, known / 6))},
        "fourier": {"sigma": known / 32},
    }
    return replace(choose(kind, shape), **sizes.get(kind, {}))


def noise_mse(noise: float | None) -> float | None:
    """The mean squared error at which a fit has learnt all but the noise (Morozov's discrepancy principle)."""
    if noise is not None and not 0.0 < noise < 1.0:
        raise UserError(f"--noise {noise:g}: expected a standard deviation as a share of the range, above 0, below 1")
    return None if noise is None else noise * noise


class SuperResolution:
    """An image K times as fine as the one that is given: the mean of each K x K fine pixels is the given one."""

    def __init__(self, image: Signal, factor: int) -> None:
        check_numbers({"super_resolution": factor}, {"super_resolution": Range(2, 64, whole=True)}, "--")
        self.kind, self.image, self.factor, self.peak = "image", image, factor, image.peak
        self.shape = tuple(side * factor for side in image.shape)
        self.extents, self.span = image.extents, image.span
        self.n_dims, self.n_channels = image.n_dims, image.n_channels
        h, w = image.shape
        offsets = (torch.arange(factor).float() + 0.5) / factor - 0.5
        self.fine = unit_grid(offsets / h, offsets / w)

    def loss(self, field: SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        indices = self.image.draw(max(1, batch // self.factor**2), random)
        means = self._means(field, indices)
        mse = (means - self.image.targets(indices).to(field.device)).square().mean()
        return mse, mse.detach()

    def _means(self, field: SignalField, indices: Tensor) -> Tensor:
        """What a field says [m, c] of the given pixels [m]: the mean over the fine ones in each."""
        fine = (self.image.coordinates(indices)[:, None] + self.fine).reshape(-1, 2)
        return field(fine.to(field.device)).reshape(len(indices), -1, self.n_channels).mean(dim=1)

    def measure(self, field: SignalField) -> dict[str, Any]:
        """How close the averages of the fine image come to the given one."""
        total, n = 0.0, len(self.image.values)
        for indices in torch.arange(n).split(max(1, (1 << 18) // self.factor**2)):
            with torch.no_grad():
                means = self._means(field, indices).cpu().double()
            total += float((means - self.image.targets(indices).double()).square().sum())
        mse = total / self.image.values.size
        return {"mse_of_averages": mse, "psnr_of_averages": psnr_of(mse)}

    def describe(self) -> dict[str, Any]:
        """Of the fine image, which `nerf sample` gives out."""
        return {**self.image.describe(), "shape": list(self.shape), "super_resolution": self.factor}


def psnr_against(field: SignalField, truth: Signal, shape: tuple[int, ...], path: Path) -> dict[str, float]:
    """PSNR of a fitted image against a true one of the same size, which it has not seen."""
    if truth.shape != shape:
        raise UserError(f"{path}: has {truth.shape[1]}x{truth.shape[0]} pixels, expected {shape[1]}x{shape[0]}")
    if truth.n_channels != field.n_channels:
        raise UserError(f"{path}: has {truth.n_channels} channels, expected {field.n_channels}")
    return {"psnr_against_clean": measure(field, truth)["psnr"]}


def measure(field: SignalField, signal: Signal, chunk: int = 1 << 18) -> dict[str, Any]:
    """Mean squared error over all values, clipped to their range, and PSNR; of in-painting also of the unknown ones."""
    low, high = (0.0, 1.0) if signal.kind != "audio" else (-1.0, 1.0)
    known = np.zeros(len(signal.values), bool)
    if signal.known is not None:
        known[signal.known.numpy()] = True
    sums = np.zeros(2)  # over unknown and known values
    for indices in torch.arange(len(signal.values)).split(chunk):
        found = field.evaluate(signal.coordinates(indices)).clamp(low, high)
        error = (found.double() - signal.targets(indices).double()).square().sum(dim=1).numpy()
        here = known[indices.numpy()]
        sums += (error[~here].sum(), error[here].sum())
    mse = float(sums.sum() / signal.values.size)
    result: dict[str, Any] = {"mse": mse}
    if signal.peak is not None:
        result["psnr"] = psnr_of(mse, signal.peak)
        if signal.known is not None and len(signal.known) < len(signal.values):
            unknown = float(sums[0] / ((len(signal.values) - len(signal.known)) * signal.n_channels))
            result["psnr_of_unknown"] = psnr_of(unknown, signal.peak)
    return result
