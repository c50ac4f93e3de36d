"""Exposure and white balance of single photos: a gain for each of them and channel, learnt beside the field."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.training.optimiser import SmallAdam

TOE, GAMMA = 0.055, 2.4  # of the sRGB curve
SATURATED = 0.998  # values from here on may have been brighter than the file can say
OPAQUE = 0.99  # from here on a pixel shows the scene alone, and votes on its photo's gain
HEADROOM = 1.25  # brightest colour of the field: what is white in a dark photo is brighter in the others' exposure


def apply_exposure(colors: Tensor, logs: Tensor, linear: bool, opacities: Tensor | float = 1.0) -> Tensor:
    """Colours [n,3] as a photo with log gains [n,3] of its light shows them; opacities [n,1] where they are composited.

    Light times g is, as sRGB values c beyond the curve's short straight part, a (c + 0.055) - 0.055 with
    a = g^(1/2.4): linear in c, so it may be applied after compositing. Differentiable.
    """
    if linear:
        return colors * logs.exp()
    a = (logs / GAMMA).exp()
    return a * colors + TOE * (a - 1.0) * opacities


def apply_exposure_over(colors: Tensor, logs: Tensor, opacities: Tensor, background: Tensor) -> Tensor:
    """Colours [...,3] that were composited over background [3] (sRGB values), as a photo with log gains [...,3] shows
    them: what lies in front is brighter, the background is not. opacities [...,1]. Differentiable."""
    behind = (1.0 - opacities) * background
    return apply_exposure(colors - behind, logs, linear=False, opacities=opacities) + behind


def remove_exposure(colors: Tensor, logs: Tensor, linear: bool) -> Tensor:
    """The inverse of `apply_exposure` for opaque colours: a photo's colours in the exposure common to all."""
    if linear:
        return colors / logs.exp()
    return (colors + TOE) / (logs / GAMMA).exp() - TOE


def fitted(rendered: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """The log gains [...,3] with which rendered [...,n,3] comes nearest to truth, both sRGB values: least squares over
    the pixels that are not saturated; mask [...,n] bool, True where a pixel counts. 0 where nothing can be told."""
    usable = ((truth < SATURATED).all(dim=-1) & (rendered < SATURATED).all(dim=-1) & mask)[..., None]
    c, t = (rendered + TOE) * usable, (truth + TOE) * usable
    total = c.square().sum(dim=-2)
    a = torch.where(total > 0, (c * t).sum(dim=-2) / total.clamp_min(1e-12), 1.0)
    return GAMMA * a.clamp(0.1, 10.0).log()


class ExposureCorrections:
    """Log gains [n_images,3] of the photos' light, 0 in the mean over those that are trained on."""

    def __init__(self, ids: Tensor, n_images: int, device: torch.device) -> None:
        self.ids = ids.to(device)
        self.logs = torch.zeros(n_images, 3, device=device, requires_grad=True)
        self.adam = SmallAdam((n_images, 3), device)

    def step(self, rate: float) -> None:
        """One step of Adam; what is common to all photos stays with the field."""
        assert self.logs.grad is not None
        values = self.logs.data
        self.adam.step(values, self.logs.grad, rate)
        values -= values[self.ids].mean(dim=0)
        self.logs.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored to go on bit for bit."""
        return {"logs": self.logs.data} | self.adam.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.logs.data.copy_(tensors["logs"])
        self.adam.restore(tensors)
