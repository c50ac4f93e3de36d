"""What an evaluation measures, with the protocol that must stand beside it: as records, and as eval.json holds them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A view beside its photo, or the means over views. Infinite for equal pictures, NaN where a mask leaves no pixels
    and for the SSIM of a view under 11 pixels: null in JSON, which leaves out what was not measured (None)."""

    psnr: float  # dB
    ssim: float
    psnr_colour_corrected: float  # dB, after a fit of the view's colours to its photo's
    # Of a model with refined poses: from the pose at which the view looks most like its photo.
    psnr_aligned: float | None = None  # dB
    ssim_aligned: float | None = None
    # Of a model that learnt the photos' exposure: the right half, with gains fitted on the left half.
    psnr_exposed: float | None = None  # dB
    psnr_hdr: float | None = None  # dB, of linear light, which sees what is brighter than white

    def to_dict(self) -> dict[str, Any]:
        measured = {name: getattr(self, name) for name in NAMES if getattr(self, name) is not None}
        return {name: value if math.isfinite(value) else None for name, value in measured.items()}


NAMES = tuple(f.name for f in fields(Scores))


@dataclass(frozen=True, kw_only=True)
class ViewScores(Scores):
    """One view of an evaluation."""

    name: str  # of the photo
    index: int  # in the scene
    width: int  # pixels that were compared
    height: int
    seconds: float  # to render it

    def to_dict(self) -> dict[str, Any]:
        about = {name: getattr(self, name) for name in ("name", "index", "width", "height")}
        return about | super().to_dict() | {"seconds": self.seconds}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that must stand beside a number for it to mean something, in words that can be shown."""

    data: str  # name of the scene's folder
    format: str  # that it was read as
    split: str
    held_out: bool  # whether these views were not trained on
    n_views: int  # measured
    n_views_in_split: int
    n_train_views: int
    resolution: list[str]  # each size that was compared, WIDTHxHEIGHT
    down_scaling: str  # of the photos, and of what was compared
    background: str
    colour_space: str
    masks: str
    poses: str
    vignetting: str | None = None  # how it was treated, where it was learnt
    psnr_exposed: str | None = None  # how it was measured, where it was
    psnr: str = "of a view -10 log10(mean squared error over its pixels, both clipped to [0, 1]); mean over views"
    psnr_hdr: str | None = None  # how it was measured, where it was
    ssim: str = "Wang et al. 2004, 11x11 Gaussian of 1.5 px, data range 1, mean of the channels; mean over views"
    psnr_colour_corrected: str = "after a least-squares quadratic fit of each view's colours to the truth"
    training: dict[str, Any]  # steps, seconds, minutes and seed, as far as the model says
    backend: str
    machine: dict[str, Any]  # see nerf.io.machine
    date: str  # ISO 8601, UTC

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Evaluation(Scores):
    """What `evaluate` measures: means over the views, each view (the same numbers, its name, index, width, height and
    seconds), and the protocol that must stand beside them. As a string it is one line.

    >>> model = nerf.Model.load("runs/robot/checkpoint.safetensors")
    >>> found = nerf.evaluate(model, nerf.load("data/sample", downscale=8), max_views=1, show_progress=False)
    >>> found.psnr == found.views[0].psnr, found.protocol.split, found.psnr_hdr
    (True, 'test', None)
    """

    views: list[ViewScores]
    protocol: Protocol
    seconds: float  # all of it took, with what is written

    @staticmethod
    def of(views: list[ViewScores], protocol: Protocol, seconds: float) -> Evaluation:
        """With the means over the views."""
        means = {name: _mean([getattr(view, name) for view in views]) for name in NAMES}
        return Evaluation(**means, views=views, protocol=protocol, seconds=seconds)  # type: ignore[arg-type]

    @property
    def n_views(self) -> int:
        """That were measured."""
        return len(self.views)

    @property
    def render_seconds_per_view(self) -> float:
        """The mean."""
        return sum(view.seconds for view in self.views) / len(self.views)

    def to_dict(self) -> dict[str, Any]:
        """As eval.json holds it: JSON-able."""
        return super().to_dict() | {
            "n_views": self.n_views,
            "seconds": self.seconds,
            "render_seconds_per_view": self.render_seconds_per_view,
            "protocol": self.protocol.to_dict(),
            "views": [view.to_dict() for view in self.views],
        }

    def __str__(self) -> str:
        """The means in one line."""
        kind = "held-out views" if self.protocol.held_out else "views that were TRAINED on"
        parts = [f"PSNR {in_words(self.psnr)} dB, SSIM {in_words(self.ssim, 4)}"]
        parts.append(f"colour-corrected PSNR {in_words(self.psnr_colour_corrected)} dB")
        if self.psnr_hdr is not None:
            parts.append(f"HDR PSNR {in_words(self.psnr_hdr)} dB")
        if self.psnr_aligned is not None:
            parts.append(f"{in_words(self.psnr_aligned)} dB with poses found by sight")
        if self.psnr_exposed is not None:
            parts.append(f"{in_words(self.psnr_exposed)} dB with fitted exposure")
        return f"{', '.join(parts)}: mean over {self.n_views} {kind} ({self.protocol.split})"


def in_words(value: float, digits: int = 2) -> str:
    return "-" if not math.isfinite(value) else f"{value:.{digits}f}"


def _mean(values: list[float | None]) -> float | None:
    """Of those that are finite; None where it was not measured."""
    if values[0] is None:
        return None
    present = [value for value in values if value is not None and math.isfinite(value)]
    return sum(present) / len(present) if present else math.nan
