"""What comes out of a checkpoint or a pack, checked once where it enters: numbers that steer loops, and sizes before
they take memory. ValueError says which value was what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def whole(value: Any, name: str, low: int, high: int) -> int:
    """The value, a whole number from low to high.

    >>> whole(3, "n_levels", 1, 16)
    3
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {_short(value)}, expected a whole number from {low} to {high}")
    return value


def number(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """The value, a finite number from low to high.

    >>> number(0.5, "scale", low=0)
    0.5
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not good or not math.isfinite(value):
        limits = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise ValueError(f"{name} is {_short(value)}, expected a finite number{limits}")
    return float(value)


def check_curve(saved: Any) -> None:
    """What a training has noted as it went on: a list of records of numbers."""
    if not isinstance(saved, list) or not all(isinstance(point, dict) for point in saved):
        raise ValueError("its curve is no list of records")
    if not all(isinstance(value, (int, float)) for point in saved for value in point.values()):
        raise ValueError("its curve has values that are no numbers")


def same_kinds(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """What has been taken from a checkpoint has the shapes and types of what was there before, where that was."""
    for name, t in before.items():
        if name in now and (now[name].shape != t.shape or now[name].dtype != t.dtype):
            raise ValueError(
                f"{name} is {now[name].dtype} of the shape {list(now[name].shape)}, expected {t.dtype}, {list(t.shape)}"
            )


def same_shapes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str) -> None:
    """The tensors whose names begin so, followed by a dot, are those that a module would have; it may still be on the
    device meta, without memory."""
    expected = {f"{prefix}.{name}": tensor for name, tensor in expected.items()}
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
    names = [name for name in (*expected, *found) if (name in expected) != (name in found)]
    if names:
        raise ValueError(f"its settings and its tensors do not agree: {names[0]} is in one of them alone")
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise ValueError(
                f"its settings and its tensors do not agree: {name} has the shape {list(found[name].shape)}, expected "
                f"{list(tensor.shape)}"
            )


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of many digits"
    return text if len(text) < 60 else f"{text[:60]}..."
