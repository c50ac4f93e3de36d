"""Poisson's problem: an image found from nothing but its gradients or its Laplacian (Sitzmann et al. 2020, 4.1)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.encodings import FourierFeatures, Identity
from nerf.errors import UserError
from nerf.signals import derivatives
from nerf.signals.fields import SignalField
from nerf.signals.record import Signal

LEARN = ("gradient", "laplacian")


class PoissonProblem:
    """Derivatives of an image at its pixels; a field that has them everywhere is the image, up to what they leave open:
    a constant (gradient), or a harmonic function (Laplacian). `settle` then sets the constant by the image's mean.

    The derivatives are those of the cosine series through all pixels, mirrored at the borders: a band-limited image has
    them exactly, where differences of neighbours are those of a blurred one.
    """

    peak = None  # the error shown is relative: of the derivatives, divided by their mean square

    def __init__(self, image: Signal, learn: str = "gradient") -> None:
        if learn not in LEARN:
            raise UserError(f"--learn {learn}: expected one of value, {', '.join(LEARN)}")
        if min(image.shape) < 2:
            raise UserError(f"an image of {image.shape[1]}x{image.shape[0]} pixels has no {learn}")
        self.kind, self.image, self.learn = "image", image, learn
        self.shape, self.extents, self.span = image.shape, image.extents, image.span
        self.n_dims, self.n_channels = image.n_dims, image.n_channels
        pixels = image.targets(torch.arange(len(image.values))).double().numpy().reshape(*image.shape, -1)
        order = 1 if learn == "gradient" else 2
        along = [_derivative(pixels, axis, order) for axis in (1, 0)]  # x, then y
        found = np.stack(along, axis=-1) if learn == "gradient" else along[0] + along[1]
        self.targets = torch.from_numpy(found.reshape(len(image.values), *found.shape[2:])).float()
        self.size = max(float(self.targets.square().mean()), 1e-12)

    def loss(self, field: SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        indices = self.image.draw(batch, random)
        u, wanted = self.image.coordinates(indices).to(field.device), self.targets[indices].to(field.device)
        if self.learn == "laplacian":
            found = derivatives.laplacian(field, u, train=True)[1]
        elif isinstance(field.encoding, (Identity, FourierFeatures)):
            found = field.with_gradient(u)[1]
        else:
            found = derivatives.gradient(field, u, train=True)[1]
        error = (found - wanted).square().mean() / self.size
        return error, error.detach()

    def settle(self, field: SignalField) -> None:
        """Move the field by a constant, so that its mean over the pixels is the image's."""
        indices = torch.arange(len(self.image.values))
        missing = self.image.targets(indices).mean(dim=0) - field.evaluate(self.image.coordinates(indices)).mean(dim=0)
        bias = field.network.as_layers()[-1].bias
        assert bias is not None
        with torch.no_grad():
            bias += (missing / field.scale).to(field.device)

    def describe(self) -> dict[str, Any]:
        return {**self.image.describe(), "learn": self.learn}


def _derivative(pixels: np.ndarray, axis: int, order: int) -> np.ndarray:
    """Derivative of [h,w,c] along an axis, per length of that side, of the cosine series through the pixels."""
    n = pixels.shape[axis]
    mirrored = np.concatenate([pixels, np.flip(pixels, axis)], axis)  # period 2 sides, even about both ends
    waves = np.arange(n + 1) * math.pi  # radians per side
    if order % 2:
        waves[n] = 0.0  # the highest cosine is zero at all pixels, whatever its slope
    shape = [1] * pixels.ndim
    shape[axis] = n + 1
    spectrum = np.fft.rfft(mirrored, axis=axis) * ((1j * waves) ** order).reshape(shape)
    return np.take(np.fft.irfft(spectrum, 2 * n, axis=axis), np.arange(n), axis=axis)
