"""The multi-resolution hash grid."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from nerf.kernels.checks import check
from nerf.kernels.records import FieldView, GradAccumulator, GridLayout
from nerf.kernels.reference.arithmetic import UINT32

HASH_PRIMES = (1, 2654435761, 805459861, 3674653429)


def hashgrid_encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Interpolate the features of a multi-resolution hash grid, linearly per level.

    `pos = x*scale + 0.5; cell = floor(pos); w = pos - cell`; rows at the 2^d corners of the cell, each times its
    product of `w` or `1-w`. Corner `i` of a dense level is row `i0 + i1*res + i2*res^2 + ...`, of a hashed level the
    exclusive or of all `i_k*prime_k`: unsigned 32-bit numbers, modulo the level's size (which guards x = 1 if dense).

    Positions [n,d], clamped to [0,1] (no gradient outside), and a table [n_rows,F] to [n, L*F] of the positions' dtype:
    feature f of level l in column l*F + f. Differentiable in both (the gradient in positions jumps at cell walls).
    Source: Mueller et al. 2022, equations 2 to 4; conventions of tiny-cuda-nn.
    """
    check("positions", positions, ("n", layout.n_dims))
    check("table", table, (layout.n_rows, layout.n_features_per_level))
    table, positions = table.to(positions.dtype), positions.clamp(0.0, 1.0)
    levels = []
    for level in range(layout.n_levels):
        size, dense = layout.level_sizes[level], layout.dense[level]
        pos = positions.t() * layout.scales[level] + 0.5  # [d, n], so that each axis is contiguous
        cell = pos.detach().floor()
        upper = pos - cell
        # (row index, weight) of the corners, one axis after the other: 2, 4, 8, ... of them.
        corners: list[tuple[Tensor | int, Tensor | float]] = [(0, 1.0)]
        for axis in range(layout.n_dims):
            # Of a product modulo a power of two only the low bits matter, so the prime may be reduced first.
            stride = layout.resolutions[level] ** axis if dense else HASH_PRIMES[axis] % size
            low = cell[axis].to(torch.int64) * stride
            sides = ((low, 1.0 - upper[axis]), (low + stride, upper[axis]))
            corners = [
                (index + term if dense else index ^ (term & (size - 1)), weight * side_weight)
                for index, weight in corners
                for term, side_weight in sides
            ]
        # Features first, [F, rows] and [F, n]: torch is much faster along long rows than along rows of two or four.
        rows = table[layout.offsets[level] : layout.offsets[level + 1]].t().contiguous()
        features: list[Tensor] = []
        for index, weight in corners:
            assert isinstance(index, Tensor)
            if dense:
                index = (index & UINT32) % size
            features.append(rows.index_select(1, index) * weight)
        levels.append(functools.reduce(torch.add, features))
    return torch.cat(levels).t().contiguous()


class _IntoAccumulator(torch.autograd.Function):
    """The table itself, whose gradient is added to the accumulator instead."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, accumulator: GradAccumulator) -> Tensor:
        ctx.accumulator = accumulator
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        ctx.accumulator.table.add_(grad)
        return None, None


def accumulating(field: FieldView, accumulator: GradAccumulator | None) -> FieldView:
    """The field, whose table's gradient is added to the accumulator where there is one."""
    if accumulator is None:
        return field
    table, *weights = field.leaves
    return field.with_leaves([_IntoAccumulator.apply(table, accumulator), *weights])
