"""Restoration: images of which some pixels are unknown, noisy or averaged; and how close to the truth a fit is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerf.errors import UserError
from nerf.metrics import psnr_of
from nerf.signals.fields import SignalField
from nerf.signals.image import read_image
from nerf.signals.record import Signal, keep_fraction


def keep_known(signal: Signal, mask: Path | None, keep: float | None, seed: int = 0) -> None:
    """Learn an image only where its mask is not black, or only from a random share of its pixels."""
    if mask is not None and keep is not None:
        raise UserError("--mask and --keep both say which pixels are known: give one of them")
    if keep is not None:
        signal.known = keep_fraction(len(signal.values), keep, seed)
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


def measure(field: SignalField, signal: Signal, chunk: int = 1 << 18) -> dict[str, Any]:
    """Mean squared error over all values (clipped to their range), and PSNR where there is a peak; of in-painting also
    over the unknown values alone."""
    low, high = (0.0, 1.0) if signal.kind != "audio" else (-1.0, 1.0)
    known = np.zeros(len(signal.values), bool)
    if signal.known is not None:
        known[signal.known.numpy()] = True
    sums = np.zeros(2)  # over known or not
    for start in range(0, len(signal.values), chunk):
        indices = torch.arange(start, min(start + chunk, len(signal.values)))
        found = field.evaluate(signal.coordinates(indices)).clamp(low, high)
        error = (found.double() - signal.targets(indices).double()).square().sum(dim=1).numpy()
        here = known[start : start + chunk]
        sums += (error[~here].sum(), error[here].sum())
    mse = float(sums.sum() / signal.values.size)
    result: dict[str, Any] = {"mse": mse}
    if signal.peak is not None:
        result["psnr"] = psnr_of(mse, signal.peak)
        if signal.known is not None and len(signal.known) < len(signal.values):
            unknown = float(sums[0] / ((len(signal.values) - len(signal.known)) * signal.n_channels))
            result["psnr_of_unknown"] = psnr_of(unknown, signal.peak)
    return result
