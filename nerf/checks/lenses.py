"""What lenses may have been meant, where the given ones do not fit: for pictures of another size, with another focal
length, without their distortion."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nerf.checks.residuals import FITS, Batch, of_cameras
from nerf.datasets.readings import read_as
from nerf.geometry.cameras import Cameras

PAIRS = 24
FOCALS = torch.logspace(-1, 1, 33, base=4.0, dtype=torch.float64).tolist()  # a quarter to four times
SIZES = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)


@dataclass
class LensReading:
    """One way to understand the given intrinsics."""

    kind: str
    words: str
    terms: str  # that `cameras_are` calls it by; empty: as given
    factor: float  # of the focal lengths
    mean: float = 0.0  # share of matches that fit
    ok: float = 0.0  # share of pairs that fit
    pixels: float = float("inf")  # median over the pairs


def outside(cameras: Cameras) -> list[int]:
    """The cameras whose principal point lies outside their picture."""
    x, y = cameras.cx / cameras.widths, cameras.cy / cameras.heights
    return ((x <= 0.02) | (x >= 0.98) | (y <= 0.02) | (y >= 0.98)).nonzero()[:, 0].tolist()


def best_lens(cameras: Cameras, batch: Batch) -> LensReading:
    """The lens under which most matches fit, the given one where no other does clearly better."""
    few = batch.rows(torch.arange(0, len(batch), max(1, len(batch) // PAIRS))[:PAIRS])
    tried: list[LensReading] = []

    def judge(kind: str, words: str, terms: str, factor: float = 1.0) -> None:
        tried.append(_judged(LensReading(kind, words, terms, factor), cameras, few))

    judge("given", "as given", "")
    if bool((cameras.distortion != 0).any()):
        words = "the photos are undistorted already: they fit without the distortion that is stated"
        judge("distortion", words, "undistorted")
    off_centre = max(
        float((cameras.cx / cameras.widths - 0.5).abs().max()), float((cameras.cy / cameras.heights - 0.5).abs().max())
    )
    if off_centre > 0.05:
        ratio = float((cameras.widths / (2 * cameras.cx)).median())
        for factor in {*SIZES, ratio} if SIZES[0] / 4 < ratio < 4 * SIZES[-1] else SIZES:
            judge("size", "", f"scale={factor:.6f}".rstrip("0").rstrip("."), factor)
        judge("principal-point", "the principal point is not where it is stated", "centred")
        tried.append(_focal_search(cameras, few, "principal-point", "centred+"))
    tried.append(_focal_search(cameras, few, "focal"))
    # a simpler change is believed where a richer one is hardly better: they stand in this order
    best = max(t.mean for t in tried)
    return next(
        t
        for t in tried
        if t.mean >= best - 0.03 and t.pixels <= 1.5 * min(u.pixels for u in tried if u.mean >= best - 0.03)
    )


def _focal_search(cameras: Cameras, batch: Batch, kind: str, first: str = "") -> LensReading:
    """Over a grid, then ever finer about the best."""
    best, width = None, FOCALS[1] / FOCALS[0]
    grid = FOCALS
    for _ in range(4):
        for factor in grid:
            found = _judged(LensReading(kind, "", f"{first}focal={factor:.4f}", factor), cameras, batch)
            if best is None or (found.mean, -found.pixels) > (best.mean, -best.pixels):
                best = found
        assert best is not None
        width = width**0.4
        grid = [best.factor / width, best.factor * width]
    assert best is not None
    return best


def _judged(reading: LensReading, cameras: Cameras, batch: Batch) -> LensReading:
    found = of_cameras(read_as(cameras, reading.terms or None), batch)
    reading.mean, reading.ok = float(found.mean), float((found.shares >= FITS).double().mean())
    reading.pixels = float(found.medians.nanmedian())
    return reading
