"""Smooth curves through positions and rotations: Catmull-Rom splines and quaternions."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.geometry.rotations import aligned, matrix_to_quaternion, quaternion_to_matrix


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


def poses_through(times: Tensor, poses: Tensor, at: Tensor) -> Tensor:
    """Poses [n,3,4] at times [n] on a smooth way through poses [k,3,4] at increasing times [k]: positions and
    (sign-aligned, normalised) quaternions run along Catmull-Rom splines."""
    if len(poses) == 1:
        return poses.double().expand(len(at), 3, 4).clone()
    quaternions = aligned(matrix_to_quaternion(poses[:, :, :3].double()))
    values = catmull_rom(times, torch.cat([poses[:, :, 3].double(), quaternions], dim=1), at)
    rotations = quaternion_to_matrix(torch.nn.functional.normalize(values[:, 3:], dim=1))
    return torch.cat([rotations, values[:, :3, None]], dim=2)
