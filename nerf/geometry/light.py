"""Light and how it is shown: the sRGB curve (IEC 61966-2-1), continued above 1 for light brighter than white."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Colours = TypeVar("Colours", Tensor, NDArray)


class Shown(Protocol):
    """A scene, a model or a loss: whether its colours are linear light, and how that is exposed when shown."""

    linear: bool
    exposure: float


def encode(light: Colours) -> Colours:
    """Linear light to sRGB values, any shape and sign: 12.92 x below 0.0031308, else 1.055 x^(1/2.4) - 0.055.

    Differentiable, with a gradient between 0 and 12.92 everywhere. Nothing is clipped.
    """
    if isinstance(light, Tensor):
        bright = 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
        return torch.where(light <= 0.0031308, 12.92 * light, bright)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055)


def decode(values: Colours) -> Colours:
    """sRGB values to linear light, the inverse of `encode`."""
    if isinstance(values, Tensor):
        bright = ((values.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
        return torch.where(values <= 0.04045, values / 12.92, bright)
    return np.where(values <= 0.04045, values / 12.92, ((np.maximum(values, 0.04045) + 0.055) / 1.055) ** 2.4)


def shown_as(of: Shown, colors: Tensor) -> Tensor:
    """Colours as the sRGB values in which they are compared; linear light is encoded with its exposure."""
    return encode(colors * of.exposure) if of.linear else colors


def encode_slope(light: Tensor) -> Tensor:
    """Derivative of `encode`: by how much what is shown changes with the light."""
    return torch.where(light <= 0.0031308, 12.92, 1.055 / 2.4 * light.clamp_min(0.0031308) ** (1 / 2.4 - 1))
