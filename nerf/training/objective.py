"""What a batch of rays is held to: the pixels that its photos show, and depths where some are known."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import RadianceField
from nerf.geometry import light
from nerf.kernels import GradAccumulator, RenderedRays
from nerf.rendering import losses
from nerf.rendering.marching import Marching
from nerf.rendering.rays import render_rays
from nerf.training.exposure import SATURATED, PhotoGains
from nerf.training.pixel_sampler import PixelBatch

NEAR, NEAR_RAYS = 0.25, 8  # viewing distances before a camera that are held to be air; asked of one ray in so many
DARKEST = 0.02  # linear light below which the surface loss of dark pixels grows no further


def photo_loss(
    out: RenderedRays,
    batch: PixelBatch,
    background: Tensor,
    linear: bool,
    exposure: float = 1.0,
    surface: float | Tensor | None = None,
    gains: PhotoGains | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, squared errors [n] without gradient) of rendered rays over background [n,3].

    Ten times a Huber loss of the colours as they are shown (linear light: encoded, with its exposure), and `surface`
    times the radiance-field loss, where it is wanted. With gains the photos' own exposure is applied to what was drawn;
    the surface loss, of single samples, sees the photos brought to the common one instead. Pixels outside of masks
    agree with themselves; `out` comes from `without_masked`.
    """
    target = batch.rgb * batch.alpha + background * (1.0 - batch.alpha)
    common, colors = target, out.over(background)
    if gains is not None:
        common = gains.even(batch.image_ids, batch.rgb) * batch.alpha + background * (1.0 - batch.alpha)
        own = gains.apply(batch.image_ids, out.foregrounds, out.opacities)
        colors = out._replace(foregrounds=own).over(background)
        saturated = (target >= SATURATED) & (colors.detach() > target)  # it may have been brighter than the file says
        colors = torch.where(saturated, target, colors)
    if batch.used is not None:  # masked pixels teach nothing
        inside = batch.used > 0
        target, colors = (torch.where(inside, t, colors.detach()) for t in (target, colors))
        common = torch.where(inside, common, out.over(background).detach())
    shown, wanted, weights = colors, target, None
    if linear:  # light is compared as it is shown, without a limit at white, so that shadows count as well
        shown, wanted = light.encode(colors * exposure), light.encode(target * exposure)
        brighter = torch.maximum(colors.detach().mean(dim=1), target.mean(dim=1)) * exposure
        weights = (light.encode_slope(brighter.clamp_min(DARKEST)) * exposure).square()
    loss = losses.huber(shown, wanted) * 10.0
    if surface is not None:
        loss = loss + surface * losses.surface(
            out.second_moments, out.foregrounds, out.opacities, common, background, weights
        )
    return loss, (shown.detach() - wanted).square().mean(dim=1)


def without_masked(out: RenderedRays, batch: PixelBatch) -> RenderedRays:
    """The same rays, of which those outside of masks have lost the gradients that a loss of colours would give them."""
    if batch.used is None:
        return out
    used = batch.used[:, 0] > 0

    def held(t: Tensor) -> Tensor:
        return torch.where(used if t.dim() == 1 else used[:, None], t, t.detach())

    parts = (out.foregrounds, out.opacities, out.second_moments)
    foregrounds, opacities, second_moments = (held(t) for t in parts)
    return out._replace(foregrounds=foregrounds, opacities=opacities, second_moments=second_moments)


def near_fog(
    field: RadianceField,
    occupancy: OccupancyGrid,
    marching: Marching,
    rays_o: Tensor,
    rays_d: Tensor,
    coarser: float,
    grad_accumulator: GradAccumulator,
    random: torch.Generator,
) -> Tensor:
    """Mean opacity of what lies right before the cameras, over some of the rays [n,3]: differentiable in the field.

    What a camera sees from much nearer than all others do is its own: fog there mends that photo's errors, costs the
    other photos nothing, and blinds every new view from beside it. Gradients that are scaled down near cameras do not
    keep it away, for Adam divides by their size. A surface loses nothing by this: an opaque ray's opacity has no slope.
    Source: after the occlusion regularisation of FreeNeRF (Yang, Pavone and Wang 2023), of opacities, not densities.
    """
    n = len(rays_o)
    some = torch.randint(n, (-(-n // NEAR_RAYS),), generator=random, device=rays_o.device)
    short = replace(marching, far=max(marching.near, NEAR * marching.gradient_distance))
    rays = rays_o.detach()[some], rays_d.detach()[some]
    jitter = torch.rand(len(some), generator=random, device=rays_o.device)
    seen = render_rays(
        field, occupancy, short, *rays, jitter=jitter, step_scale=coarser, grad_accumulator=grad_accumulator
    )
    return seen.opacities.mean()
