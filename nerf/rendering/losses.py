"""Losses on per-ray tensors: each returns one number, differentiable in all its float arguments."""

from __future__ import annotations

import torch
from torch import Tensor

HUBER_DELTA = 0.1  # instant-ngp's
DEPTH_ROUNDING = 0.01  # share of a depth within which its error counts as a square


def huber(colors: Tensor, targets: Tensor, delta: float = HUBER_DELTA, weights: Tensor | None = None) -> Tensor:
    """Mean of `d^2/2` where `|d| <= delta`, else `delta*(|d| - delta/2)`: a parabola, then a line of slope `delta`.

    weights: [n], of the rays, whose number the mean is over; None: 1.

    Source: Huber 1964; delta 0.1 is instant-ngp's.
    """
    _check_same(colors, targets)
    if not delta > 0:
        raise ValueError(f"delta: expected a positive number, got {delta!r}")
    distance = (colors - targets).abs()
    near = distance.clamp(max=delta)
    # near*(d - near/2) is d^2/2 inside and delta*(d - delta/2) outside: both branches in one.
    terms = near * (distance - 0.5 * near)
    return (terms if weights is None else terms * weights[:, None]).mean()


def distortion(distortions: Tensor) -> Tensor:
    """Mean of the rays' distortions [n], in scene length: small where each ray's weight sits in one place.

    Source: Mip-NeRF 360 (Barron et al. 2022), equation 15; `composite` computes the terms.
    """
    # An empty batch has no distortion, where torch's mean would be nan.
    return distortions.sum() / max(1, distortions.numel())


def surface(
    second_moments: Tensor,
    colors: Tensor,
    opacities: Tensor,
    targets: Tensor,
    backgrounds: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Radiance-field loss: compares each sample's own colour with the pixel, instead of the blend of them.

    `sum_i w_i |rgb_i - y|^2 + (1 - opacity) |background - y|^2`, averaged over rays and channels, so that a ray which
    sees one opaque sample scores its mean squared error. A blend of wrong colours that averages to the right one is
    not rewarded, so density gathers on surfaces. Expanded, it needs only per-ray sums:
    `sum_i w_i |rgb_i - y|^2 = second_moment - 2 y.color + |y|^2 opacity`.

    second_moments [n], colors [n, 3] (without background), opacities [n]: of `composite`. targets: [n, 3], y.
    backgrounds: [n, 3] or [3]; None leaves out the background's term. weights: [n], of the rays; None: 1.
    Source: Radiance Surfaces (Zhang et al. 2025, arXiv 2501.18627).
    """
    _check_same(colors, targets)
    if second_moments.shape != colors.shape[:1] or opacities.shape != colors.shape[:1]:
        raise ValueError(
            f"second_moments, opacities: expected shape [{colors.shape[0]}], "
            f"got {list(second_moments.shape)} and {list(opacities.shape)}"
        )
    per_ray = second_moments - 2.0 * (targets * colors).sum(dim=1) + targets.square().sum(dim=1) * opacities
    if backgrounds is not None:
        per_ray = per_ray + (1.0 - opacities) * (backgrounds - targets).square().sum(dim=1)
    if weights is not None:
        per_ray = per_ray * weights
    return per_ray.mean() / colors.shape[1]


def depth(depths: Tensor, opacities: Tensor, targets: Tensor, rounding: float = DEPTH_ROUNDING) -> Tensor:
    """How far rays stop from where a depth map says that they do, as a share of that distance.

    Mean over all rays [n] of `sqrt(e^2 + r^2) - r + (1 - opacity)^2` where the target t > 0, with
    `e = (depth - t opacity) / t = sum_i w_i (t_i - t) / t` and r = `rounding`: absolute beyond one per cent, so that
    wrong depths at silhouettes pull no harder than right ones; the second term because light that stops nowhere has
    e = 0. Rays without a target (0) add nothing, but count: few depths weigh little.

    depths [n] (sum w t), opacities [n], targets [n] lengths along the rays, all in one unit.
    Source: after the terminating-depth losses of Deng et al., "Depth-supervised NeRF", 2022, equation 7, and Rematas et
    al., "Urban Radiance Fields", 2022, equation 10, with moments of the weights instead of the weights themselves.
    """
    _check_same(depths, targets)
    _check_same(opacities, targets)
    known = targets > 0
    error = torch.where(known, depths - targets * opacities, torch.zeros_like(depths)) / torch.where(
        known, targets, 1.0
    )
    per_ray = (error.square() + rounding**2).sqrt() - rounding + (1.0 - opacities).square()
    return torch.where(known, per_ray, torch.zeros_like(per_ray)).sum() / max(1, targets.numel())


def _check_same(colors: Tensor, targets: Tensor) -> None:
    # Broadcasting [n, 3] against [n] or [3] would give a plausible wrong number.
    if colors.shape != targets.shape:
        raise ValueError(f"targets: expected the shape of colors, {list(colors.shape)}, got {list(targets.shape)}")
    if not torch.is_floating_point(targets):
        raise TypeError(f"targets: expected a float dtype, got {targets.dtype}")
