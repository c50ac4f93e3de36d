"""Axis-angle, quaternions and matrices: closed forms and round trips."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.geometry.rotations import aligned, matrix_to_quaternion, quaternion_to_matrix, rotations_of


def axes_and_angles() -> tuple[Tensor, Tensor]:
    """Unit axes [k,3], each with angles around 0 and the half turn, where formulas divide by nothing."""
    some = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes = torch.nn.functional.normalize(torch.cat([torch.eye(3).double(), -torch.eye(3).double(), some]), dim=1)
    angles = torch.tensor([0.0, 1e-9, 1.0, math.pi - 1e-9, math.pi], dtype=torch.float64)
    return axes.repeat_interleave(len(angles), dim=0), angles.repeat(len(axes))[:, None]


def rodrigues(axes: Tensor, angles: Tensor) -> Tensor:
    x, y, z = axes.unbind(1)
    cross = torch.stack([0 * x, -z, y, z, 0 * x, -x, -y, x, 0 * x], dim=1).reshape(-1, 3, 3)
    sine, cosine = angles.sin()[:, :, None], angles.cos()[:, :, None]
    return torch.eye(3, dtype=torch.float64) + sine * cross + (1 - cosine) * (cross @ cross)


def test_axis_angle_of_every_kind_of_rotation() -> None:
    axes, angles = axes_and_angles()
    torch.testing.assert_close(rotations_of(axes * angles), rodrigues(axes, angles), atol=3e-15, rtol=0)


def test_quaternions_of_every_kind_of_rotation() -> None:
    axes, angles = axes_and_angles()
    found = matrix_to_quaternion(rodrigues(axes, angles))
    expected = torch.cat([(angles / 2).cos(), (angles / 2).sin() * axes], dim=1)
    error = torch.minimum((found - expected).abs().amax(dim=1), (found + expected).abs().amax(dim=1))
    assert float(error.max()) < 1e-12 and float(found[:, 0].min()) >= 0


def test_quaternions_round_trip() -> None:
    q = torch.nn.functional.normalize(
        torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1
    )
    q = torch.cat([q, torch.eye(4, dtype=torch.float64)])  # and the half turns, where w is 0
    again = matrix_to_quaternion(quaternion_to_matrix(q))
    torch.testing.assert_close((q * again).sum(dim=1).abs(), torch.ones(204, dtype=torch.float64))


def test_aligned_quaternions_are_neighbours() -> None:
    q = torch.nn.functional.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    signed = aligned(q)
    assert bool(((signed[1:] * signed[:-1]).sum(dim=1) >= 0).all())
    torch.testing.assert_close(quaternion_to_matrix(signed), quaternion_to_matrix(q))
