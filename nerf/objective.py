"""What a batch of rays is held to: the pixels that its photos show, and depths where some are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerf import light, losses
from nerf.appearance import SATURATED, PhotoGains
from nerf.pixels import PixelBatch

DARKEST = 0.02  # linear light below which the surface loss of dark pixels grows no further


def photo_loss(
    out: dict[str, Any],
    batch: PixelBatch,
    background: Tensor,
    linear: bool,
    exposure: float = 1.0,
    surface: float | Tensor | None = None,
    gains: PhotoGains | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, squared errors [n] without gradient) of rays that `render_rays` has drawn over background [n,3].

    Ten times a Huber loss of the colours as they are shown (linear light: encoded, with its exposure), and `surface`
    times the radiance-field loss, where it is wanted. With gains the photos' own exposure is applied to what was drawn;
    the surface loss, of single samples, sees the photos brought to the common one instead. Pixels outside of masks
    agree with themselves: `out` loses their gradients.
    """
    target = batch.rgb * batch.alpha + background * (1.0 - batch.alpha)
    common, colors = target, out["colors"]
    if gains is not None:
        common = gains.even(batch.image_ids, batch.rgb) * batch.alpha + background * (1.0 - batch.alpha)
        own = gains.apply(batch.image_ids, out["foregrounds"], out["opacities"])
        colors = own + (1.0 - out["opacities"])[:, None] * background
        saturated = (target >= SATURATED) & (colors.detach() > target)  # it may have been brighter than the file says
        colors = torch.where(saturated, target, colors)
    if batch.used is not None:  # masked pixels teach nothing
        inside = batch.used > 0
        target, colors = (torch.where(inside, t, colors.detach()) for t in (target, colors))
        common = torch.where(inside, common, out["colors"].detach())
        for name in ("colors", "foregrounds", "opacities", "second_moments"):
            used = inside if out[name].dim() == 2 else inside[:, 0]
            out[name] = torch.where(used, out[name], out[name].detach())
    shown, wanted, weights = colors, target, None
    if linear:  # light is compared as it is shown, without a limit at white, so that shadows count as well
        shown, wanted = light.encode(colors * exposure), light.encode(target * exposure)
        brighter = torch.maximum(colors.detach().mean(dim=1), target.mean(dim=1)) * exposure
        weights = (light.encode_slope(brighter.clamp_min(DARKEST)) * exposure).square()
    loss = losses.huber(shown, wanted) * 10.0
    if surface is not None:
        loss = loss + surface * losses.surface(
            out["second_moments"], out["foregrounds"], out["opacities"], common, background, weights
        )
    return loss, (shown.detach() - wanted).square().mean(dim=1)
