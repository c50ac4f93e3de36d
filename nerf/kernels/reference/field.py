"""The networks, and the radiance field made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nerf.geometry.space import scene_to_unit
from nerf.kernels.checks import check
from nerf.kernels.records import FieldConfig, FieldParams, GridLayout
from nerf.kernels.reference.hashgrid import hashgrid_encode
from nerf.kernels.reference.sh import sh_encode

# exp(15) = 3.3e6 per scene length is opaque at every step length in use.
DENSITY_CLAMP = 15.0

Encode = Callable[[Tensor, Tensor, GridLayout], Tensor]


def mlp(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Fully connected network without biases: `x <- relu(x W^T)` for all layers but the last, which is linear; x [n,i],
    weights [out,in] in order, to [n,o]. Differentiable in all."""
    if not weights:
        raise ValueError("weights: expected at least one layer, got none")
    check("x", x, ("n", weights[0].shape[-1]))
    for i, weight in enumerate(weights):
        check(f"weights[{i}]", weight, ("out", x.shape[1]))
        x = x @ weight.to(x.dtype).t()
        if i + 1 < len(weights):
            x = torch.relu(x)
    return x


class _TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h.clamp(max=DENSITY_CLAMP).exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Made of differentiable operations, so that a second derivative exists (gradgradchecked).
        (h,) = ctx.saved_tensors
        return grad * h.clamp(-DENSITY_CLAMP, DENSITY_CLAMP).exp()


def density_activation(h: Tensor) -> Tensor:
    """`exp(min(h, 15))`, whose gradient is taken as `exp(clamp(h, -15, 15))` so that no sample is ever stuck.

    Any shape. The gradient is that of exp within |h| <= 15; outside it is the value at the nearer end, not the true
    derivative.
    """
    return _TruncatedExp.apply(h)


def _density_features(positions: Tensor, params: FieldParams, config: FieldConfig, encode: Encode) -> Tensor:
    check("positions", positions, ("n", 3))
    unit = scene_to_unit(positions, config.contracted)
    return mlp(encode(unit, params.table, config.layout), params.density_weights)


def radiance_density(
    positions: Tensor, params: FieldParams, config: FieldConfig, encode: Encode = hashgrid_encode
) -> Tensor:
    """Density alone: `sigmas` [n] (1/scene length) at scene positions [n,3]. As `radiance_field`, without the
    colour."""
    return density_activation(_density_features(positions, params, config, encode)[:, 0] + config.density_bias)


def radiance_field(
    positions: Tensor, directions: Tensor, params: FieldParams, config: FieldConfig, encode: Encode = hashgrid_encode
) -> tuple[Tensor, Tensor]:
    """`h = mlp(hashgrid(unit), density_weights)`; `sigma = density_activation(h[0] + density_bias)`;
    `rgb = sigmoid(mlp([sh_encode(direction, 4), h], color_weights))`: h is taken whole, its first column included.
    Scene positions and unit directions [n,3] to sigmas [n] (1/scene length) and rgbs [n,3] in (0,1). `encode`: the hash
    grid, this one or a native one. Differentiable in positions, directions and all parameters.
    """
    check("directions", directions, (positions.shape[0], 3))
    h = _density_features(positions, params, config, encode)
    sigmas = density_activation(h[:, 0] + config.density_bias)
    rgbs = torch.sigmoid(mlp(torch.cat([sh_encode(directions, 4), h], dim=1), params.color_weights))
    return sigmas, rgbs
