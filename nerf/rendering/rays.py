"""Rendering: scene rays through occupancy and field to colours; one path for training, pictures and meshes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerf import kernels
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import RadianceField
from nerf.kernels import GradientSink
from nerf.rendering.marching import Marching

RENDER_CHUNK = 1 << 16  # rays rendered at once where no gradient is wanted
GPU_CHUNK = 1 << 21  # the same on a GPU, which many launches of little work would leave idle: a picture of 1920x1080


def render_rays(
    field: RadianceField,
    occupancy: OccupancyGrid,
    marching: Marching,
    rays_o: Tensor,
    rays_d: Tensor,
    background: Tensor,
    jitter: Tensor | None = None,
    coarser: float = 1.0,
    sink: GradientSink | None = None,
    seen_from: Tensor | None = None,
) -> dict[str, Any]:
    """Colours of scene rays [n,3] over a background ([3] or [n,3]).

    Returns per ray: colors [n,3] with the background, foregrounds [n,3] without it, opacities, depths (sum w t),
    median_depths, second_moments, distortions [n]; and the numbers of samples "evaluated" and "kept". Differentiable
    once in rays and field. The background is added here and nowhere else. `jitter` [n] in [0,1) shifts each ray's steps
    (0.5 when None). `seen_from` [n,3]: unit directions that the colours are asked for instead of the rays' own.
    """
    o, d, viewdirs, t_near, t_far = marching.enter(rays_o, rays_d)
    if seen_from is not None:
        viewdirs = seen_from
    if jitter is None:
        jitter = torch.full_like(t_near, 0.5)
    out = kernels.render_rays(
        o,
        d,
        viewdirs,
        t_near,
        t_far,
        jitter,
        occupancy.occupied,
        field.params(),
        field.config,
        marching.settings(coarser),
        occupancy.bits,
        field.table_half,
        sink,
    )
    scale = field.options.color_scale
    if scale != 1.0:
        out["colors"], out["second_moments"] = out["colors"] * scale, out["second_moments"] * scale**2
    out["foregrounds"] = out["colors"]
    out["colors"] = out["foregrounds"] + (1.0 - out["opacities"])[:, None] * background.to(out["opacities"].device)
    return out


def render_chunk(device: torch.device) -> int:
    """Rays to render at once on this device; few where all their samples are in memory at once (tinycudann)."""
    return RENDER_CHUNK if device.type == "cpu" or kernels.backend() == "tinycudann" else GPU_CHUNK


@torch.no_grad()
def render_many(
    field: RadianceField,
    occupancy: OccupancyGrid,
    marching: Marching,
    rays_o: Tensor,
    rays_d: Tensor,
    background: Tensor,
) -> dict[str, Tensor]:
    """`render_rays` for any number of rays, without gradients, in bounded memory."""
    names = ("colors", "opacities", "depths", "median_depths", "distortions")
    chunk = render_chunk(field.table.device)
    parts = [
        render_rays(field, occupancy, marching, o, d, background)
        for o, d in zip(rays_o.split(chunk), rays_d.split(chunk), strict=True)
    ]
    return {name: torch.cat([p[name] for p in parts]) for name in names}


@torch.no_grad()
def density_normals(field: RadianceField, points: Tensor, radius: Tensor | float) -> Tensor:
    """Unit normals [n,3] at scene points [n,3]: against the density's gradient, by central differences over `radius`
    (scene length, one or [n,1])."""
    gradient = torch.empty_like(points)
    for axis in range(3):
        shift = torch.zeros(3, device=points.device)
        shift[axis] = 1.0
        shift = radius * shift
        gradient[:, axis] = field.density(points + shift).log1p() - field.density(points - shift).log1p()
    return -torch.nn.functional.normalize(gradient, dim=1)
