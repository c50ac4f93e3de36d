"""What the samples of a ray add up to, and which of them count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.kernels.checks import check
from nerf.kernels.records import RenderedRays, Samples


def _index_in_ray(packed_info: Tensor, ray_indices: Tensor) -> Tensor:
    """Position of each sample within its ray. [s] int64."""
    starts = packed_info[:, 0].index_select(0, ray_indices)
    return torch.arange(ray_indices.shape[0], device=ray_indices.device) - starts


def _sums_before(x: Tensor, index_in_ray: Tensor, longest: int) -> Tensor:
    """Sum over the samples before each one on its ray (exclusive). [s] to [s].

    Doubling (Hillis and Steele): no ray's sum ever meets another's, so a huge density or a NaN on one ray costs no
    other ray its digits, as subtracting from one long running sum would.
    """

    def from_earlier(values: Tensor, shift: int) -> Tensor:
        moved = torch.cat([values.new_zeros(shift), values[:-shift]])
        return torch.where(index_in_ray >= shift, moved, torch.zeros_like(moved))

    if longest == 0:
        return x
    total = from_earlier(x, 1)  # reaches one sample back, and makes the sum exclusive
    reach = 1
    while reach < longest:
        total = total + from_earlier(total, reach)
        reach *= 2
    return total


def composite(samples: Samples, sigmas: Tensor, rgbs: Tensor, n_rays: int, stop_threshold: float = 0.0) -> RenderedRays:
    """Volume rendering quadrature per ray, without a background.

    `alpha = 1 - exp(-sigma*dt)`, `trans_i = exp(-sum_{j<i} sigma_j dt_j)`, `w = trans*alpha`, `t_mid = (t_start +
    t_end)/2`.

    Of s intervals of n rays, whose t are constants: sigmas [s] >= 0 (1/scene length), rgbs [s,3]. A sample with
    `trans < stop_threshold` contributes nothing: weight 0, no gradient. Returns foregrounds [n,3] (sum w*rgb),
    opacities [n] (sum w), depths [n] (sum w*t_mid), second_moments [n] (sum w*|rgb|^2), distortions [n]
    (sum_ij w_i w_j |m_i - m_j| + sum w^2 dt / 3, m = t_mid), median_depths [n] (t at which the opacity reaches 1/2,
    with sigma constant in each sample, 0 where it does not; not differentiable), and per sample weights, trans [s].
    A ray without samples has zeros. Differentiable in sigmas and rgbs.
    Source: NeRF (Mildenhall et al. 2020), equation 3; distortion: Mip-NeRF 360, equation 15 (in scene length).
    """
    n_samples = samples.t_starts.shape[0]
    check("sigmas", sigmas, (n_samples,))
    check("rgbs", rgbs, (n_samples, 3))
    check("samples.packed_info", samples.packed_info, (n_rays, 2), floating=False)
    dtype, ray = sigmas.dtype, samples.ray_indices
    t_starts, t_ends = samples.t_starts.to(dtype), samples.t_ends.to(dtype)
    dts, mids = t_ends - t_starts, 0.5 * (t_starts + t_ends)
    index_in_ray = _index_in_ray(samples.packed_info, ray)
    longest = int(samples.packed_info[:, 1].max()) if n_samples else 0

    depth = sigmas * dts
    alphas = -torch.expm1(-depth)
    trans = torch.exp(-_sums_before(depth, index_in_ray, longest))
    contributes = trans >= stop_threshold
    weights = torch.where(contributes, trans * alphas, torch.zeros_like(trans))

    def per_ray(values: Tensor) -> Tensor:
        return values.new_zeros((n_rays, *values.shape[1:])).index_add(0, ray, values)

    # |m_i - m_j| over sorted middles: 2 sum_i w_i (m_i W_<i - (wm)_<i). Middles count from the ray's first, against
    # cancellation.
    first = samples.packed_info[:, 0].index_select(0, ray)
    from_first = mids - mids.index_select(0, first)
    before = _sums_before(weights, index_in_ray, longest)
    moment_before = _sums_before(weights * from_first, index_in_ray, longest)
    distortion = 2.0 * weights * (from_first * before - moment_before) + weights * weights * dts / 3.0

    with torch.no_grad():
        reached = (contributes & (trans * torch.exp(-depth) <= 0.5)).nonzero().squeeze(1)
        first_reached = torch.full((n_rays,), n_samples, dtype=torch.int64, device=ray.device)
        first_reached.scatter_reduce_(0, ray[reached], reached, "amin")
        # light falls as exp(-sigma t); of an opaque sample float32 only knows that a millionth at most is left
        within = (torch.log(2 * trans) / depth.clamp(1e-30, math.log(1e6))).clamp(0, 1)
        with_none = torch.cat([t_starts + within * dts, mids.new_zeros(1)])
        median_depths = with_none[first_reached]

    return RenderedRays(
        per_ray(weights.unsqueeze(1) * rgbs),
        per_ray(weights),
        per_ray(weights * mids),
        median_depths,
        per_ray(weights * (rgbs * rgbs).sum(dim=1)),
        per_ray(distortion),
        evaluated=n_samples,
        kept=n_samples,
        weights=weights,
        trans=trans,
    )


def seen_samples(
    samples: Samples, sigmas: Tensor, n_rays: int, stop_threshold: float, alpha_threshold: float
) -> tuple[Samples, Tensor, Tensor]:
    """The samples that are not too faint and that enough light reaches (see `render_rays`), by their densities [s].

    Returns them, which they are [kept], and the transmittance in front of all samples [s]. No gradient.
    """
    ray, dtype = samples.ray_indices, sigmas.dtype
    depth = sigmas * (samples.t_ends.to(dtype) - samples.t_starts.to(dtype))
    is_seen = -torch.expm1(-depth) >= alpha_threshold
    depth = torch.where(is_seen, depth, torch.zeros_like(depth))
    longest = int(samples.packed_info[:, 1].max()) if len(ray) else 0
    trans = torch.exp(-_sums_before(depth, _index_in_ray(samples.packed_info, ray), longest))
    kept = (is_seen & (trans >= stop_threshold)).nonzero().squeeze(1)
    return Samples.of(samples.t_starts[kept], samples.t_ends[kept], ray[kept], n_rays), kept, trans


def scale_near_gradients(samples: Samples, sigmas: Tensor, rgbs: Tensor, distance: float) -> tuple[Tensor, Tensor]:
    """The same densities [s] and colours [s,3], whose gradients are scaled by (t / distance)^2 nearer than that."""
    if distance <= 0:
        return sigmas, rgbs
    mids = 0.5 * (samples.t_starts.to(sigmas.dtype) + samples.t_ends.to(sigmas.dtype))
    scale = (mids / distance).clamp(max=1.0).square()
    sigmas = sigmas.detach() + scale * (sigmas - sigmas.detach())
    return sigmas, rgbs.detach() + scale.unsqueeze(1) * (rgbs - rgbs.detach())
