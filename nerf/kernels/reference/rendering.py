"""From rays to colours: march, field and composite, stage by stage."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.kernels.layout import FieldConfig, FieldParams, Samples
from nerf.kernels.reference.checks import check
from nerf.kernels.reference.compositing import composite, scale_near_gradients, seen_samples
from nerf.kernels.reference.field import radiance_density, radiance_field
from nerf.kernels.reference.march_vectorised import march


def render_rays(
    rays_o: Tensor,
    rays_d: Tensor,
    viewdirs: Tensor,
    t_near: Tensor,
    t_far: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    params: FieldParams,
    config: FieldConfig,
    *,
    step_size: float,
    cone_angle: float = 0.0,
    max_step: float = math.inf,
    stop_threshold: float = 0.0,
    alpha_threshold: float = 0.0,
    gradient_distance: float = 0.0,
) -> dict:
    """March, evaluate the field, composite: the staged path, whose numbers the fused kernels must give.

    Args:
        rays_o, rays_d: [n, 3], scene frame; viewdirs: [n, 3] unit, what the colour network sees (in NDC not rays_d).
        t_near, t_far, jitter, occupied, step_size, cone_angle, max_step: see `march`; marched in float32 in any dtype.
        params, config: see `radiance_field`; stop_threshold: see `composite`.
        alpha_threshold: samples with `alpha < alpha_threshold` are taken out first, as if their density were zero: they
            have no weight and no gradient, and hide nothing behind them.
        gradient_distance: gradients of samples nearer than this are scaled by (t / gradient_distance)^2, because
            space near a camera is sampled more densely by as much (Philip and Deschaintre 2023); values do not change.
    Returns:
        the dictionary of `composite`, with weights and trans [s] of all samples marched, and two numbers of samples:
        "evaluated" (density) and "kept" (colour and gradient). Differentiable in rays_o, rays_d, viewdirs, table and
        weights; t values are constants.
    """
    check("viewdirs", viewdirs, (rays_o.shape[0], 3))
    o, d, near, far, start = (x.detach().to(torch.float32) for x in (rays_o, rays_d, t_near, t_far, jitter))
    samples = march(o, d, near, far, start, occupied, step_size, cone_angle, max_step)
    n_rays, n_samples = rays_o.shape[0], samples.t_starts.shape[0]

    kept = None
    if (stop_threshold > 0 or alpha_threshold > 0) and n_samples:
        # Samples that contribute nothing are found by density alone, and spared their colours and gradients.
        with torch.no_grad():
            sigmas = radiance_density(sample_positions(samples, rays_o, rays_d), params, config)
            samples, kept, all_trans = seen_samples(samples, sigmas, n_rays, stop_threshold, alpha_threshold)
    ray = samples.ray_indices
    positions = sample_positions(samples, rays_o, rays_d)
    sigmas, rgbs = radiance_field(positions, viewdirs.index_select(0, ray), params, config)
    sigmas, rgbs = scale_near_gradients(samples, sigmas, rgbs, gradient_distance)
    out: dict = composite(samples, sigmas, rgbs, n_rays)
    out["evaluated"], out["kept"] = n_samples, ray.shape[0]
    if kept is not None:
        out["weights"] = out["weights"].new_zeros(n_samples).index_copy(0, kept, out["weights"])
        out["trans"] = all_trans.index_copy(0, kept, out["trans"])
    return out


def sample_positions(samples: Samples, rays_o: Tensor, rays_d: Tensor) -> Tensor:
    """Scene positions [s,3] of the samples' middles on their rays [n,3]; differentiable in the rays."""
    mids = 0.5 * (samples.t_starts.to(rays_o.dtype) + samples.t_ends.to(rays_o.dtype))
    ray = samples.ray_indices
    return rays_o.index_select(0, ray) + mids.unsqueeze(1) * rays_d.index_select(0, ray)
