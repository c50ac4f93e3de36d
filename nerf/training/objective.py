"""The loss of a batch of rays: against the pixels that its photos show, and against depths where some are known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.geometry import light
from nerf.kernels import GradAccumulator, RenderedRays
from nerf.rendering import losses
from nerf.rendering.marching import Marching
from nerf.rendering.rays import render_rays
from nerf.rendering.sampling import FieldFunction
from nerf.training.exposure import SATURATED, ExposureCorrections, apply_exposure, remove_exposure
from nerf.training.pixel_sampler import PixelBatch
from nerf.training.viewpoints import Viewpoints

NEAR, NEAR_RAYS = 0.25, 4  # scene scales before a camera in which density is penalised; on one ray in so many
BEYOND = 0.15  # scene scales of it that lie beyond the near plane, at least
DARKEST = 0.02  # linear light below which the surface loss of dark pixels grows no further


def nothing_learns(own_loss: bool) -> UserError:
    """What is said of a loss without a gradient."""
    if own_loss:
        return UserError("the loss given returned no single number with a gradient: return, say, a mean of the rays")
    return UserError("the field returned densities and colours without a gradient: has it parameters to learn?")


@dataclass
class SceneLoss:
    """`loss(rendered, batch) -> Tensor`, the loss of `nerf train`: with the batch's weights, the sum of

    photo: a Huber loss of the colours as they are shown (linear light: encoded, with its exposure);
    surface: the radiance-field loss (`losses.surface`);
    depth: `losses.depth`, of rays whose depth is known.

    Pixels outside of masks count nothing. With `corrections` the photos' own exposure is applied to what was rendered;
    the surface loss, of single samples, sees the photos brought to the common one instead. Differentiable in the
    rendered rays and in the corrections.

    >>> scene = nerf.load("data/sample", downscale=8)
    >>> trainer = nerf.Trainer(scene, nerf.TrainConfig(steps=2), loss=SceneLoss())  # what `loss=None` is here
    >>> 0 < trainer.train_step() < 1
    True
    """

    linear: bool = False  # colours are linear light
    exposure: float = 1.0  # of linear light: colours times this are shown, white at 1
    corrections: ExposureCorrections | None = None

    def __call__(self, rendered: RenderedRays, batch: PixelBatch) -> Tensor:
        weights, used = batch.weights, None if batch.used is None else batch.used[:, 0]
        loss = losses.huber(*self._shown(rendered, batch), weights=used) * weights.photo
        if isinstance(batch.surface, Tensor) or batch.surface > 0:
            loss = loss + batch.surface * self._surface(rendered, batch)
        if batch.t_depths is not None and weights.depth > 0:
            loss = loss + weights.depth * losses.depth(rendered.depths, rendered.opacities, batch.t_depths)
        return loss

    @torch.no_grad()
    def errors(self, rendered: RenderedRays, batch: PixelBatch) -> Tensor:
        """Squared errors [n] of the rays' colours as they are shown, 0 outside of masks."""
        shown, wanted = self._shown(rendered, batch)
        errors = (shown - wanted).square().mean(dim=1)
        return errors if batch.used is None else errors * batch.used[:, 0]

    def _colors(self, rendered: RenderedRays, batch: PixelBatch) -> tuple[Tensor, Tensor]:
        """(colours, targets) [n,3] over the batch's background."""
        if self.corrections is None:
            return rendered.over(batch.background), batch.targets
        logs = self.corrections.at(batch.image_ids, batch.rows, batch.cols, rendered.median_depths)
        own = apply_exposure(rendered.foregrounds, logs, self.linear, rendered.opacities[:, None])
        colors, targets = rendered._replace(foregrounds=own).over(batch.background), batch.targets
        saturated = (targets >= SATURATED) & (colors.detach() > targets)  # it may have been brighter than the file says
        return torch.where(saturated, targets, colors), targets

    def _shown(self, rendered: RenderedRays, batch: PixelBatch) -> tuple[Tensor, Tensor]:
        """(colours, targets) [n,3] as they are compared: light as it is shown, so that shadows count as well, without a
        limit at white."""
        colors, targets = self._colors(rendered, batch)
        return light.shown_as(self, colors), light.shown_as(self, targets)

    def _surface(self, rendered: RenderedRays, batch: PixelBatch) -> Tensor:
        common, weights = batch.targets, None if batch.used is None else batch.used[:, 0]
        if self.corrections is not None:
            logs = self.corrections.at(batch.image_ids, batch.rows, batch.cols, rendered.median_depths).detach()
            common = batch.over_background(remove_exposure(batch.rgb, logs, self.linear))
        if self.linear:
            colors, targets = self._colors(rendered, batch)
            brighter = torch.maximum(colors.detach().mean(dim=1), targets.mean(dim=1)) * self.exposure
            slopes = (light.encode_slope(brighter.clamp_min(DARKEST)) * self.exposure).square()
            weights = slopes if weights is None else slopes * weights
        r = rendered
        return losses.surface(r.second_moments, r.foregrounds, r.opacities, common, batch.background, weights)


def near_end(marching: Marching) -> float:
    """Where what is right before a camera ends, scene length."""
    scale = marching.gradient_distance
    return max(NEAR * scale, marching.near + BEYOND * scale)


def near_camera_opacity_loss(
    field: FieldFunction,
    occupancy: OccupancyGrid,
    marching: Marching,
    rays_o: Tensor,
    rays_d: Tensor,
    step_scale: float,
    grad_accumulator: GradAccumulator | None,
    random: torch.Generator,
    viewpoints: Viewpoints,
) -> Tensor:
    """Mean opacity right before the cameras, and before viewpoints between them, over some of the rays [n,3]:
    differentiable in the field.

    What a camera sees from much nearer than all others do is its own: floaters there mend that photo's errors, cost the
    other photos nothing, and blind every new view from beside it. Gradients that are scaled down near cameras do not
    keep them away, for Adam divides by their size. Likewise fog in the colour of something plain, where few cameras
    look through: it costs them nothing, and hides all from new views there. A surface loses nothing by this: an opaque
    ray's opacity has no slope. Source: after the occlusion regularisation of FreeNeRF (Yang, Pavone and Wang 2023), of
    opacities, not densities.
    """
    n, short = len(rays_o), replace(marching, far=near_end(marching))
    some = torch.randint(n, (-(-n // NEAR_RAYS),), generator=random, device=rays_o.device)
    origins = torch.cat([viewpoints.draw(len(some) // 2, random), rays_o.detach()[some[len(some) // 2 :]]])
    rays = origins, rays_d.detach()[some]
    jitter = torch.rand(len(some), generator=random, device=rays_o.device)
    rendered = render_rays(
        *(field, occupancy, short, *rays), jitter=jitter, step_scale=step_scale, grad_accumulator=grad_accumulator
    )
    return rendered.opacities.mean()
