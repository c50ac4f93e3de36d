"""The staged path: any field along rays - samples, densities and colours, compositing - with gradients by autograd.

The fused op of `nerf.kernels` is its fast special case for our RadianceField, and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nerf import kernels
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.own import checked
from nerf.kernels import MarchSettings, Rays, RenderedRays, Samples, reference
from nerf.rendering.marching import Marching

# (positions [s,3], unit directions [s,3]) -> (sigmas [s], 1/scene length, rgbs [s,3])
FieldFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def sample_rays(
    rays_o: Tensor,
    rays_d: Tensor,
    occupancy: OccupancyGrid,
    marching: Marching,
    *,
    jitter: Tensor | None = None,
    step_scale: float = 1.0,
) -> Samples:
    """The intervals of scene rays [n,3] (unit directions) that lie in occupied cells, sorted by ray and t.

    `jitter` [n] in [0,1) shifts each ray's steps (0.5 when None), `step_scale` stretches them. t is length along the
    rays, in the march's space. Not differentiable.

    >>> import torch
    >>> from nerf import Marching, OccupancyGrid, sample_rays
    >>> from nerf.geometry.space import Box
    >>> marching = Marching(Box(), near=0.0, far=10.0, step_size=0.5)
    >>> samples = sample_rays(torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]]), OccupancyGrid(), marching)
    >>> samples.t_starts
    tensor([1.2500, 1.7500, 2.2500])
    """
    return march(marched_rays(rays_o, rays_d, marching, jitter), occupancy, marching.settings(step_scale))


def render_with(
    field: FieldFunction,
    rays_o: Tensor,
    rays_d: Tensor,
    occupancy: OccupancyGrid,
    marching: Marching,
    *,
    jitter: Tensor | None = None,
    step_scale: float = 1.0,
    viewdirs: Tensor | None = None,
) -> RenderedRays:
    """What scene rays [n,3] (unit directions) see of any field, in front of any background: `.over` adds one.

    field: (positions [s,3], unit directions [s,3]) -> (sigmas [s] >= 0 in 1/scene length, rgbs [s,3]), such as an
    nn.Module. Differentiable in whatever the field is differentiable in, and in the rays; which samples there are is
    constant. If the field also has `density(positions) -> sigmas`, samples that are hidden or too faint are found by
    it first, and spared their colours and gradients. For the other arguments see `render_rays`. Tensors live where the
    occupancy does. Source: NeRF (Mildenhall et al. 2020), equation 3.

    >>> import torch
    >>> from nerf import Marching, OccupancyGrid, render_with
    >>> from nerf.geometry.space import Box
    >>> sigma = torch.tensor(1.0, requires_grad=True)
    >>> uniform = lambda x, d: (sigma.expand(len(x)), torch.ones_like(x))
    >>> rays_o, rays_d = torch.tensor([[0.0, 0.0, -2.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    >>> rays = render_with(uniform, rays_o, rays_d, OccupancyGrid(), Marching(Box(), near=0.0, far=10.0))
    >>> round(float(rays.opacities.detach()), 2)  # 1 - exp(-2): the box is 2 deep
    0.86
    >>> rays.over(torch.zeros(3)).sum().backward()
    >>> round(float(sigma.grad), 1)  # 3 channels of 2 exp(-2)
    0.8
    """
    rays, settings = marched_rays(rays_o, rays_d, marching, jitter, viewdirs), marching.settings(step_scale)
    asked = checked(field)
    density = None if getattr(field, "density", None) is None else asked.density
    return reference.render_samples(asked, density, march(rays, occupancy, settings), rays, settings)


def composite(samples: Samples, sigmas: Tensor, rgbs: Tensor) -> RenderedRays:
    """Volume rendering of samples with densities [s] (1/scene length) and colours [s,3], in front of any background.

    `w_i = exp(-sum_{j<i} sigma_j dt_j) (1 - exp(-sigma_i dt_i))`; see `nerf.kernels.reference.composite` for the sums.
    Differentiable in sigmas and rgbs. Source: NeRF (Mildenhall et al. 2020), equation 3.

    >>> import torch
    >>> from nerf import Marching, OccupancyGrid, composite, sample_rays
    >>> from nerf.geometry.space import Box
    >>> marching = Marching(Box(), near=0.0, far=10.0, step_size=0.5)
    >>> samples = sample_rays(torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]]), OccupancyGrid(), marching)
    >>> sigmas, rgbs = torch.full((3,), 2.0), torch.ones(3, 3)
    >>> composite(samples, sigmas, rgbs).opacities  # 1 - exp(-2 * 1.5)
    tensor([0.9502])
    """
    return reference.composite(samples, sigmas, rgbs, len(samples.packed_info))


def marched_rays(
    rays_o: Tensor, rays_d: Tensor, marching: Marching, jitter: Tensor | None = None, viewdirs: Tensor | None = None
) -> Rays:
    """Scene rays [n,3] in the space in which they are marched; jitter None: 0.5, viewdirs None: the rays' own."""
    o, d, own, t_near, t_far = marching.enter(rays_o, rays_d)
    shift = torch.full_like(t_near, 0.5) if jitter is None else jitter
    return Rays(o, d, own if viewdirs is None else viewdirs, t_near, t_far, shift)


def march(rays: Rays, occupancy: OccupancyGrid, settings: MarchSettings) -> Samples:
    """The rays' intervals in occupied cells; not differentiable."""
    still = rays.each(lambda t: t.detach().float())
    return kernels.march(still, occupancy.occupied, settings, occupancy.bits)
