"""From rays to colours: march, field and composite, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nerf.kernels.checks import check
from nerf.kernels.records import FieldView, GradAccumulator, MarchSettings, Rays, RenderedRays, Samples
from nerf.kernels.reference.compositing import composite, scale_near_gradients, seen_samples
from nerf.kernels.reference.field import radiance_density, radiance_field
from nerf.kernels.reference.hashgrid import accumulating
from nerf.kernels.reference.march_vectorised import march


def render_rays(
    rays: Rays,
    occupied: Tensor,
    field: FieldView,
    settings: MarchSettings,
    grad_accumulator: GradAccumulator | None = None,
    overflow: str = "grow",
) -> RenderedRays:
    """March, evaluate the field in the precision of the rays, composite: the staged path, whose numbers the fused
    kernels must give.

    Rays are marched in float32 in any dtype through `occupied`, see `march`; stop_threshold: see `composite`. Samples
    with `alpha < alpha_threshold` are taken out first, as if their density were zero: they have no weight and no
    gradient, and hide nothing behind them. Gradients of samples nearer than gradient_distance are scaled by
    (t / gradient_distance)^2, because space near a camera is sampled more densely by as much (Philip and Deschaintre
    2023); values do not change. Returns what `composite` does, with weights and trans [s] of all samples marched.
    Differentiable in rays.o, d, viewdirs, table and weights; t values are constants.
    """
    check("viewdirs", rays.viewdirs, (rays.o.shape[0], 3))
    field = accumulating(field, grad_accumulator)
    return render_samples(
        lambda x, d: radiance_field(x, d, field.params, field.config),
        lambda x: radiance_density(x, field.params, field.config),
        march(rays.each(lambda t: t.detach().to(torch.float32)), occupied, settings),
        rays,
        settings,
    )


def render_samples(
    field: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    density: Callable[[Tensor], Tensor] | None,
    samples: Samples,
    rays: Rays,
    settings: MarchSettings,
) -> RenderedRays:
    """What is left of `render_rays` once rays are marched, for any field.

    field: (positions [s,3], unit directions [s,3]) -> (sigmas [s], rgbs [s,3]); density: positions -> sigmas, asked
    first and without gradient where there is one, so that samples that contribute nothing cost no colour and gradient.
    Without it all samples are evaluated once, and those that do not count get no weight and no gradient.
    """
    n_rays, n_samples = rays.o.shape[0], samples.t_starts.shape[0]
    stop, alpha = settings.stop_threshold, settings.alpha_threshold
    positions, ray = sample_positions(samples, rays.o, rays.d), samples.ray_indices
    kept: Tensor | None = None
    values: Any = None
    if density is None:
        values = field(positions, rays.viewdirs.index_select(0, ray))
    if (stop > 0 or alpha > 0) and n_samples:
        with torch.no_grad():
            sigmas = density(positions) if density is not None else values[0]
            samples, kept, all_trans = seen_samples(samples, sigmas, n_rays, stop, alpha)
        ray = samples.ray_indices
        positions = sample_positions(samples, rays.o, rays.d)
        if values is not None:
            values = values[0][kept], values[1][kept]
    if values is None:
        values = field(positions, rays.viewdirs.index_select(0, ray))
    sigmas, rgbs = scale_near_gradients(samples, values[0], values[1], settings.gradient_distance)
    out = composite(samples, sigmas, rgbs, n_rays)
    if kept is not None:
        assert out.weights is not None and out.trans is not None
        weights = out.weights.new_zeros(n_samples).index_copy(0, kept, out.weights)
        out = out._replace(weights=weights, trans=all_trans.index_copy(0, kept, out.trans))
    return out._replace(evaluated=n_samples)


def sample_positions(samples: Samples, rays_o: Tensor, rays_d: Tensor) -> Tensor:
    """Scene positions [s,3] of the samples' middles on their rays [n,3]; differentiable in the rays."""
    mids = 0.5 * (samples.t_starts.to(rays_o.dtype) + samples.t_ends.to(rays_o.dtype))
    ray = samples.ray_indices
    return rays_o.index_select(0, ray) + mids.unsqueeze(1) * rays_d.index_select(0, ray)
