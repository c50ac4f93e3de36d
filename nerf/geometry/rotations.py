"""Rotations: axis-angle, quaternions and matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def aligned(quaternions: Tensor) -> Tensor:
    """q and -q are one rotation: choose signs [k,4] so that each is on the side of the one before."""
    out = quaternions.clone()
    for i in range(1, len(out)):
        if float((out[i] * out[i - 1]).sum()) < 0:
            out[i] = -out[i]
    return out


def matrix_to_quaternion(rotations: Tensor) -> Tensor:
    """[n,3,3] -> unit quaternions [n,4] (w, x, y, z), w >= 0, from the largest component: none is divided by 0."""
    m = rotations
    x, y, z = m.diagonal(dim1=1, dim2=2).unbind(1)
    a0, a1, a2 = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    s01, s02, s12 = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    products = [  # each row is 4 q_k q: the quaternion times its own k-th component
        torch.stack([1 + x + y + z, a0, a1, a2], dim=1),
        torch.stack([a0, 1 + x - y - z, s01, s02], dim=1),
        torch.stack([a1, s01, 1 - x + y - z, s12], dim=1),
        torch.stack([a2, s02, s12, 1 - x - y + z], dim=1),
    ]
    rows = torch.stack(products, dim=1)
    largest = rows.diagonal(dim1=1, dim2=2).argmax(dim=1)
    best = torch.nn.functional.normalize(rows[torch.arange(len(m)), largest], dim=1)
    return torch.where(best[:, :1] < 0, -best, best)


def quaternion_to_matrix(quaternions: Tensor) -> Tensor:
    """Unit quaternions [n,4] (w, x, y, z) -> rotations [n,3,3]."""
    w, x, y, z = quaternions.unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def rotations_of(vectors: Tensor) -> Tensor:
    """Axis times angle (radians) [n,3] to rotations [n,3,3]: the exponential map of SO(3) (Rodrigues' formula)."""
    angles = vectors.norm(dim=1)[:, None, None]
    x, y, z = vectors.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    # sin(a)/a and (1 - cos a)/a^2, without 0/0: torch.sinc(t) is sin(pi t)/(pi t).
    first, second = torch.sinc(angles / torch.pi), 0.5 * torch.sinc(angles / (2 * torch.pi)).square()
    return torch.eye(3, dtype=vectors.dtype, device=vectors.device) + first * cross + second * (cross @ cross)
