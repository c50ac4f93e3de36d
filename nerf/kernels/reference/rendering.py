"""From rays to colours: march, field and composite, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nerf.kernels.records import FieldConfig, FieldParams, MarchSettings, Samples
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
    return render_samples(
        lambda x, directions: radiance_field(x, directions, params, config),
        lambda x: radiance_density(x, params, config),
        march(o, d, near, far, start, occupied, step_size, cone_angle, max_step),
        rays_o,
        rays_d,
        viewdirs,
        MarchSettings(step_size, cone_angle, max_step, stop_threshold, alpha_threshold, gradient_distance),
    )


def render_samples(
    field: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    density: Callable[[Tensor], Tensor] | None,
    samples: Samples,
    rays_o: Tensor,
    rays_d: Tensor,
    viewdirs: Tensor,
    settings: MarchSettings,
) -> dict:
    """What is left of `render_rays` once rays [n,3] are marched, for any field.

    field: (positions [s,3], unit directions [s,3]) -> (sigmas [s], rgbs [s,3]); density: positions -> sigmas, asked
    first and without gradient where there is one, so that samples that contribute nothing cost no colour and gradient.
    Without it all samples are evaluated once, and those that do not count get no weight and no gradient.
    """
    n_rays, n_samples = rays_o.shape[0], samples.t_starts.shape[0]
    stop, alpha = settings.stop_threshold, settings.alpha_threshold
    positions, ray = sample_positions(samples, rays_o, rays_d), samples.ray_indices
    kept: Tensor | None = None
    values: Any = None
    if density is None:
        values = field(positions, viewdirs.index_select(0, ray))
    if (stop > 0 or alpha > 0) and n_samples:
        with torch.no_grad():
            sigmas = density(positions) if density is not None else values[0]
            samples, kept, all_trans = seen_samples(samples, sigmas, n_rays, stop, alpha)
        ray = samples.ray_indices
        positions = sample_positions(samples, rays_o, rays_d)
        if values is not None:
            values = values[0][kept], values[1][kept]
    if values is None:
        values = field(positions, viewdirs.index_select(0, ray))
    sigmas, rgbs = scale_near_gradients(samples, values[0], values[1], settings.gradient_distance)
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
