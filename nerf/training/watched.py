"""Some pixels that are asked again and again during a training, of the photos trained on and of held-out ones: only the
latter say what new views look like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nerf.geometry.light import shown_as
from nerf.rendering.metrics import psnr_of
from nerf.training.exposure import OPAQUE, ExposureCorrections, apply_exposure_over, fitted
from nerf.training.some_pixels import random_pixels

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.rendering.model import Model

N_PIXELS = 1024  # of all photos together, the same each time: about half a per cent of the time of a training
FEWEST = 16  # pixels of a photo that its exposure is fitted on


class WatchedPixels:
    """Pixels spread evenly over these photos. `exposures`: what is learnt of the photos' light, of which a held-out
    photo's own gains are fitted.

    >>> scene = nerf.load("data/sample", downscale=8)
    >>> trainer = nerf.Trainer(scene, nerf.TrainConfig(steps=2))
    >>> sorted(trainer.watched)
    ['held_out', 'psnr']
    >>> 0 < trainer.watched["held_out"].psnr(trainer.model) < 60
    True
    """

    def __init__(
        self, scene: Scene, ids: Tensor, exposures: ExposureCorrections | None = None, held_out: bool = True
    ) -> None:
        ids = ids.cpu()[:N_PIXELS]
        self.each = N_PIXELS // len(ids)
        self.exposures = exposures
        self.fits = held_out and exposures is not None and exposures.gains() is not None and self.each >= FEWEST
        self.pixels = random_pixels(scene, ids.repeat_interleave(self.each), torch.Generator().manual_seed(0))

    def psnr(self, model: Model) -> float:
        """Of all these pixels together, as the photos are shown, dB; NaN where masks leave none."""
        shown = self.pixels
        rendered = model.render_rays(shown.rays_o, shown.rays_d)
        background = model.background.to(shown.rgb.device)
        truth = shown_as(model, shown.rgb * shown.alpha + background * (1 - shown.alpha))
        colors = shown_as(model, rendered.over(model.behind(shown.rays_d)))
        if self.exposures is not None:
            over = rendered.opacities[:, None], shown_as(model, background)
            logs = self.exposures.at(shown.image_ids, shown.rows, shown.cols, rendered.median_depths).detach()
            colors = apply_exposure_over(colors, logs, *over)
            if self.fits:
                colors = self._as_exposed(colors, truth, *over)
        errors = (colors.clamp(0, 1) - truth.clamp(0, 1)).square().mean(dim=1)
        return psnr_of(float(errors[shown.used].mean())) if bool(shown.used.any()) else math.nan

    def _as_exposed(self, colors: Tensor, truth: Tensor, opacities: Tensor, background: Tensor) -> Tensor:
        """Colours [n,3] with the gains of each photo that come nearest to the truth."""
        votes = (opacities[:, 0] > OPAQUE) & self.pixels.used
        per_photo = [t.unflatten(0, (-1, self.each)) for t in (colors, truth, votes)]
        logs = fitted(*per_photo).repeat_interleave(self.each, dim=0)
        return apply_exposure_over(colors, logs, opacities, background)


def watched_pixels(scene: Scene, exposures: ExposureCorrections | None) -> dict[str, WatchedPixels]:
    """Of the photos trained on, by the name "psnr", and of those held out, where there are some."""
    splits = {"psnr": scene.splits["train"], "held_out": scene.splits.get("test", torch.zeros(0))}
    return {name: WatchedPixels(scene, ids, exposures, name == "held_out") for name, ids in splits.items() if len(ids)}


def curve_in_words(psnr: float, curve: list[dict[str, float]]) -> str:
    """How far a training is, by the last point of its curve, and before there is one by the PSNR of its batches.

    >>> curve_in_words(20.0, []), curve_in_words(20.0, [{"step": 50, "psnr": 24.56, "held_out": 19.12}])
    ('PSNR 20.0 dB', 'PSNR 24.6 dB learnt, 19.1 dB held out')
    """
    last = curve[-1] if curve else {}
    held_out = f" learnt, {last['held_out']:.1f} dB held out" if "held_out" in last else ""
    return f"PSNR {last.get('psnr', psnr):.1f} dB{held_out}"
