"""Light and how it is shown: the sRGB curve (IEC 61966-2-1), continued above 1 for light brighter than white."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

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
    where, bright = _where_above(light, 0.0031308)
    return where(light <= 0.0031308, 12.92 * light, 1.055 * bright ** (1 / 2.4) - 0.055)


def decode(values: Colours) -> Colours:
    """sRGB values to linear light, the inverse of `encode`."""
    where, bright = _where_above(values, 0.04045)
    return where(values <= 0.04045, values / 12.92, ((bright + 0.055) / 1.055) ** 2.4)


def _where_above(values: Colours, low: float) -> tuple[Any, Any]:
    return (torch.where, values.clamp_min(low)) if isinstance(values, Tensor) else (np.where, np.maximum(values, low))


def shown_as(of: Shown, colors: Tensor) -> Tensor:
    """Colours as the sRGB values in which they are compared; linear light is encoded with its exposure."""
    return encode(colors * of.exposure) if of.linear else colors


def encode_slope(light: Tensor) -> Tensor:
    """Derivative of `encode`: by how much what is shown changes with the light."""
    return torch.where(light <= 0.0031308, 12.92, 1.055 / 2.4 * light.clamp_min(0.0031308) ** (1 / 2.4 - 1))
