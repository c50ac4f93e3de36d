"""Poisson's problem: an image found from nothing but its gradients or its Laplacian.

Source: SIREN (Sitzmann et al. 2020), section 4.1, where gradients are compared pixel by pixel: `gradient-points`. A
wave of k cycles weighs k^2 in that, so it hardly sees the coarsest waves, which hold most of an image's contrast.
`gradient` therefore also compares what field and image gain along rows and columns: between two points, a field with
the given gradients differs by their integral on the way (taken once), and a long way shows what is coarse.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.fields.encodings import FourierFeatures, Identity
from nerf.signals import derivatives
from nerf.signals.fields import SignalField
from nerf.signals.record import Signal

LEARN = ("gradient", "gradient-points", "laplacian")
POINT_WEIGHT = 0.3  # of the relative error of gradients, beside that of the gains along lines


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
            raise UserError(f"an image of {image.shape[1]}x{image.shape[0]} pixels has no {learn.split('-')[0]}")
        self.kind, self.image, self.learn = "image", image, learn
        self.shape, self.extents, self.span = image.shape, image.extents, image.span
        self.n_dims, self.n_channels = image.n_dims, image.n_channels
        pixels = image.targets(torch.arange(len(image.values))).double().numpy().reshape(*image.shape, -1)
        order = 2 if learn == "laplacian" else 1
        along = [_derivative(pixels, axis, order) for axis in (1, 0)]  # x, then y
        found = along[0] + along[1] if learn == "laplacian" else np.stack(along, axis=-1)
        self.targets = torch.from_numpy(found.reshape(len(image.values), *found.shape[2:])).float()
        self.size = max(float(self.targets.square().mean()), 1e-12)
        if learn == "gradient":
            integrals = [_integral(slopes, axis) for slopes, axis in zip(along, (1, 0), strict=True)]
            self.gains = [torch.from_numpy(g).float() for g in integrals]  # [h, w, c] along rows, then along columns
            self.gain_size = max(sum(float(np.square(g).mean()) for g in integrals), 1e-12)

    def loss(self, field: SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.learn == "gradient":
            return self._along_lines(field, batch, random)
        indices = self.image.draw(batch, random)
        u, wanted = self.image.coordinates(indices).to(field.device), self.targets[indices].to(field.device)
        derived = derivatives.laplacian(field, u, train=True) if self.learn == "laplacian" else _with_gradient(field, u)
        error = (derived[1] - wanted).square().mean() / self.size
        return error, error.detach()

    def _along_lines(self, field: SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """At points where random rows cross random columns, a third of the batch, as a value and two derivatives cost
        three. The variance of e, the field less the integral along its line, is half the mean square of all e_i - e_j.
        """
        h, w = self.shape
        n_rows = min(max(round(math.sqrt(batch / 3 * h / w)), 2), h)
        n_columns = min(max(round(batch / 3 / n_rows), 2), w)
        rows, columns = _spread(h, n_rows, random), _spread(w, n_columns, random)
        indices = (rows[:, None] * w + columns).reshape(-1)
        values, found = _with_gradient(field, self.image.coordinates(indices).to(field.device))
        values = values.reshape(n_rows, n_columns, -1)
        lines = values.new_zeros(())
        for gains, line in zip(self.gains, (1, 0), strict=True):
            error = values - gains[rows][:, columns].to(field.device)
            lines = lines + (error - error.mean(dim=line, keepdim=True)).square().mean()
        points = (found - self.targets[indices].to(field.device)).square().mean() / self.size
        return lines / self.gain_size + POINT_WEIGHT * points, points.detach()

    def relative_error(self, field: SignalField, chunk: int = 1 << 13) -> float:
        """Mean squared error of the field's derivatives at all pixels, divided by the mean square of the given ones."""
        total = 0.0
        for indices in torch.arange(len(self.targets)).split(chunk):
            u = self.image.coordinates(indices).to(field.device)
            derive = derivatives.laplacian if self.learn == "laplacian" else derivatives.gradient
            total += float((derive(field, u)[1].cpu() - self.targets[indices]).square().sum())
        return total / self.targets.numel() / self.size

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


def _with_gradient(field: SignalField, u: Tensor) -> tuple[Tensor, Tensor]:
    """(values [n, c], gradients [n, c, 2]) to learn from, natively where the encoding lets them through."""
    if isinstance(field.encoding, (Identity, FourierFeatures)):
        return field.with_gradient(u)
    return derivatives.gradient(field, u, train=True)


def _spread(n: int, count: int, random: torch.Generator) -> Tensor:
    """`count` of n indices in order, one from each equal part."""
    return ((torch.arange(count) + torch.rand(count, generator=random)) * (n / count)).long().clamp_(max=n - 1)


def _derivative(pixels: np.ndarray, axis: int, order: int) -> np.ndarray:
    """Derivative of [h,w,c] along an axis, per length of that side, of the cosine series through the pixels."""
    n = pixels.shape[axis]
    factors = (1j * np.arange(n + 1) * math.pi) ** order  # radians per side
    if order % 2:
        factors[n] = 0.0  # the highest cosine is zero at all pixels, whatever its slope
    return _filter(pixels, axis, factors, 1)


def _integral(slopes: np.ndarray, axis: int) -> np.ndarray:
    """What first derivatives [h,w,c] of `_derivative` add up to along their axis, with mean zero on each line."""
    n = slopes.shape[axis]
    factors = np.zeros(n + 1, complex)
    factors[1:n] = 1.0 / (1j * (np.arange(1, n) * math.pi))  # the highest cosine is zero at all pixels
    return _filter(slopes, axis, factors, -1)  # cosines have sines as derivatives


def _filter(values: np.ndarray, axis: int, factors: np.ndarray, mirror: int) -> np.ndarray:
    """[h,w,c] with its waves along an axis, of half a cycle to n/2 cycles a side, times factors [n+1]; it goes on
    beyond its ends with its mirror image (1) or that with the other sign (-1)."""
    n = values.shape[axis]
    mirrored = np.concatenate([values, mirror * np.flip(values, axis)], axis)  # period 2 sides
    shape = [1] * values.ndim
    shape[axis] = n + 1
    spectrum = np.fft.rfft(mirrored, axis=axis) * factors.reshape(shape)
    return np.take(np.fft.irfft(spectrum, 2 * n, axis=axis), np.arange(n), axis=axis)
