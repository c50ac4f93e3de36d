"""Smooth curves through positions and rotations: Catmull-Rom splines and quaternions."""

from __future__ import annotations

import torch
from torch import Tensor


def catmull_rom(times: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """Cubic Hermite spline through values [k,c] at increasing times [k], evaluated at [n]: [n,c].

    Tangents are the slopes of the parabolas through neighbouring keys (non-uniform Catmull-Rom), one-sided at the ends.
    """
    step = times[1:] - times[:-1]
    slope = (values[1:] - values[:-1]) / step[:, None]
    tangent = torch.cat([slope[:1], slope[-1:]]) if len(times) == 2 else torch.empty_like(values)
    if len(times) > 2:
        weight = (step[1:] / (step[1:] + step[:-1]))[:, None]
        tangent[1:-1] = weight * slope[:-1] + (1 - weight) * slope[1:]
        tangent[0], tangent[-1] = slope[0], slope[-1]
    k = (torch.searchsorted(times, at, right=True) - 1).clamp(0, len(times) - 2)
    u = ((at - times[k]) / step[k])[:, None]
    h = step[k][:, None]
    return (
        (1 + 2 * u) * (1 - u) ** 2 * values[k]
        + u * (1 - u) ** 2 * h * tangent[k]
        + u**2 * (3 - 2 * u) * values[k + 1]
        + u**2 * (u - 1) * h * tangent[k + 1]
    )


def aligned(quaternions: Tensor) -> Tensor:
    """q and -q are one rotation: choose signs [k,4] so that each is on the side of the one before."""
    out = quaternions.clone()
    for i in range(1, len(out)):
        if float((out[i] * out[i - 1]).sum()) < 0:
            out[i] = -out[i]
    return out


def matrix_to_quaternion(rotations: Tensor) -> Tensor:
    """[n,3,3] -> unit quaternions [n,4] (w, x, y, z), from the largest component, so that none is divided by 0."""
    m = rotations
    squares = torch.stack(
        [
            1 + m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2],
            1 + m[:, 0, 0] - m[:, 1, 1] - m[:, 2, 2],
            1 - m[:, 0, 0] + m[:, 1, 1] - m[:, 2, 2],
            1 - m[:, 0, 0] - m[:, 1, 1] + m[:, 2, 2],
        ],
        dim=1,
    )
    a = torch.stack([m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], dim=1)
    s01, s02, s12 = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    rows = torch.stack(
        [
            torch.stack([squares[:, 0], a[:, 0], a[:, 1], a[:, 2]], dim=1),
            torch.stack([a[:, 0], squares[:, 1], s01, s02], dim=1),
            torch.stack([a[:, 1], s01, squares[:, 2], s12], dim=1),
            torch.stack([a[:, 2], s02, s12, squares[:, 3]], dim=1),
        ],
        dim=1,
    )  # each row is 4 q_k q: the quaternion times its own k-th component
    best = rows[torch.arange(len(m)), squares.argmax(dim=1)]
    return torch.nn.functional.normalize(best, dim=1)


def quaternion_to_matrix(quaternions: Tensor) -> Tensor:
    """Unit quaternions [n,4] (w, x, y, z) -> rotations [n,3,3]."""
    w, x, y, z = quaternions.unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)
