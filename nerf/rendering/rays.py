"""Rendering: scene rays through occupancy and field to colours; one path for training, pictures and meshes."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf import kernels
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.own import checked
from nerf.fields.radiance import Field, RadianceField
from nerf.kernels import GradAccumulator, RenderedRays
from nerf.rendering.marching import Marching
from nerf.rendering.sampling import FieldFunction, marched_rays, render_with

RENDER_CHUNK = 1 << 16  # rays rendered at once where no gradient is wanted
GPU_CHUNK = 1 << 21  # the same on a GPU, which many launches of little work would leave idle: a picture of 1920x1080


def render_rays(
    field: FieldFunction,
    occupancy: OccupancyGrid,
    marching: Marching,
    rays_o: Tensor,
    rays_d: Tensor,
    *,
    jitter: Tensor | None = None,
    step_scale: float = 1.0,
    viewdirs: Tensor | None = None,
    grad_accumulator: GradAccumulator | None = None,
) -> RenderedRays:
    """What scene rays [n,3] (unit directions) see of a field, in front of any background: `.over` adds one.

    Differentiable once in rays and field. Our RadianceField goes through the fused op, any other field through
    `render_with`. `jitter` [n] in [0,1) shifts each ray's steps (0.5 when None), `step_scale` stretches them.
    `viewdirs` [n,3]: unit directions that the colours are asked for instead of the rays' own. `grad_accumulator`: where
    the gradient of our field's table is added instead of into its `grad`.

    >>> import torch
    >>> from nerf import FieldOptions, Marching, OccupancyGrid, RadianceField, render_rays
    >>> from nerf.geometry.space import Box
    >>> field, marching = RadianceField(FieldOptions(density_bias=0.0)), Marching(Box(), near=0.0, far=10.0)
    >>> rays_o, rays_d = torch.tensor([[0.0, 0.0, -2.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    >>> rays = render_rays(field, OccupancyGrid(), marching, rays_o, rays_d)
    >>> rays.over(torch.ones(3)).shape, 0 < rays.opacities.item() < 1
    (torch.Size([1, 3]), True)
    """
    if not isinstance(field, RadianceField):
        if grad_accumulator is not None:
            raise ValueError(
                "grad_accumulator: expected None for a field of one's own, which has no hash table of ours"
            )
        return render_with(
            field, rays_o, rays_d, occupancy, marching, jitter=jitter, step_scale=step_scale, viewdirs=viewdirs
        )
    return kernels.render_rays(
        marched_rays(rays_o, rays_d, marching, jitter, viewdirs),
        occupancy.occupied,
        field.view(),
        marching.settings(step_scale),
        occupancy.bits,
        grad_accumulator,
        "grow" if grad_accumulator is None else "drop",
    )


def render_chunk(device: torch.device) -> int:
    """Rays to render at once on this device; few where all their samples are in memory at once (tinycudann)."""
    return RENDER_CHUNK if device.type == "cpu" or kernels.backend() == "tinycudann" else GPU_CHUNK


@torch.no_grad()
def render_many(
    field: FieldFunction,
    occupancy: OccupancyGrid,
    marching: Marching,
    rays_o: Tensor,
    rays_d: Tensor,
) -> RenderedRays:
    """`render_rays` for any number of rays, without gradients, in bounded memory."""
    chunk = render_chunk(occupancy.occupied.device)
    parts = [
        render_rays(field, occupancy, marching, o, d)
        for o, d in zip(rays_o.split(chunk), rays_d.split(chunk), strict=True)
    ]
    f, o, t, medians, moments, spreads = (torch.cat(column) for column in list(zip(*parts, strict=True))[:6])
    evaluated, kept = sum(p.evaluated for p in parts), sum(p.kept for p in parts)
    return RenderedRays(f, o, t, medians, moments, spreads, evaluated, kept)


@torch.no_grad()
def density_normals(field: Field, points: Tensor, radius: Tensor | float) -> Tensor:
    """Unit normals [n,3] at scene points [n,3]: against the density's gradient, by central differences over `radius`
    (scene length, one or [n,1])."""
    gradient, field = torch.empty_like(points), checked(field)
    for axis in range(3):
        shift = torch.zeros(3, device=points.device)
        shift[axis] = 1.0
        shift = radius * shift
        gradient[:, axis] = field.density(points + shift).log1p() - field.density(points - shift).log1p()
    return -torch.nn.functional.normalize(gradient, dim=1)
