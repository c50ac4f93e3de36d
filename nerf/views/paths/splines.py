"""Smooth curves through positions and rotations: Catmull-Rom splines and quaternions."""

from __future__ import annotations

import torch
from torch import Tensor


def catmull_rom(times: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """Cubic Hermite spline through values [k,c] at increasing times [k], evaluated at [n]: [n,c]; its tangents are the
    slopes of the parabolas through neighbouring keys (non-uniform Catmull-Rom), one-sided at the ends."""
    step = times[1:] - times[:-1]
    slope = (values[1:] - values[:-1]) / step[:, None]
    weight = (step[1:] / (step[1:] + step[:-1]))[:, None]
    tangent = torch.cat([slope[:1], weight * slope[:-1] + (1 - weight) * slope[1:], slope[-1:]])
    k = (torch.searchsorted(times, at, right=True) - 1).clamp(0, len(times) - 2)
    u = ((at - times[k]) / step[k])[:, None]
    h = step[k][:, None]
    return (
        (1 + 2 * u) * (1 - u) ** 2 * values[k]
        + u * (1 - u) ** 2 * h * tangent[k]
        + u**2 * (3 - 2 * u) * values[k + 1]
        + u**2 * (u - 1) * h * tangent[k + 1]
    )
