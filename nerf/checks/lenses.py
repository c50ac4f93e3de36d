"""What lenses may have been meant, where the given ones do not fit: for pictures of another size, with another focal
length, without their distortion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.checks.residuals import FITS, Batch, of_cameras
from nerf.geometry.cameras import Cameras

PAIRS = 24
FOCALS = torch.logspace(-1, 1, 33, base=4.0, dtype=torch.float64).tolist()  # a quarter to four times
SIZES = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)


@dataclass
class LensReading:
    """One way to understand the given intrinsics."""

    kind: str
    words: str
    cameras: Cameras
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
    given = _judged(LensReading("given", "as given", cameras, 1.0), few)
    tried = [given]
    if bool((cameras.distortion != 0).any()):
        plain = _changed(cameras, distortion=torch.zeros_like(cameras.distortion))
        words = "the photos are undistorted already: they fit without the distortion that is stated"
        tried.append(_judged(LensReading("distortion", words, plain, 1.0), few))
    middle = {"cx": cameras.widths / 2.0, "cy": cameras.heights / 2.0}
    off_centre = max(
        float((cameras.cx / cameras.widths - 0.5).abs().max()), float((cameras.cy / cameras.heights - 0.5).abs().max())
    )
    if off_centre > 0.05:
        ratio = float((cameras.widths / (2 * cameras.cx)).median())
        for factor in {*SIZES, ratio} if ratio > 0 else SIZES:
            sized = _changed(cameras, **{k: getattr(cameras, k) * factor for k in ("fx", "fy", "cx", "cy")})
            w, h = (int(cameras.widths[0]), int(cameras.heights[0]))
            words = f"the intrinsics belong to pictures of {w / factor:.0f}x{h / factor:.0f} reduced pixels"
            tried.append(_judged(LensReading("size", words, sized, factor), few))
        centred = _changed(cameras, **middle)
        tried.append(
            _judged(LensReading("principal-point", "the principal point is not where it is stated", centred, 1.0), few)
        )
        tried.append(_focal_search(centred, few, "principal-point"))
    tried.append(_focal_search(cameras, few, "focal"))
    # a simpler change is believed where a richer one is hardly better: they stand in this order
    best = max(t.mean for t in tried)
    return next(
        t
        for t in tried
        if t.mean >= best - 0.03 and t.pixels <= 1.5 * min(u.pixels for u in tried if u.mean >= best - 0.03)
    )


def _focal_search(cameras: Cameras, batch: Batch, kind: str) -> LensReading:
    """Over a grid, then ever finer about the best."""
    best, width = None, FOCALS[1] / FOCALS[0]
    grid = FOCALS
    for _ in range(4):
        for factor in grid:
            scaled = _changed(cameras, fx=cameras.fx * factor, fy=cameras.fy * factor)
            found = _judged(LensReading(kind, "", scaled, factor), batch)
            if best is None or (found.mean, -found.pixels) > (best.mean, -best.pixels):
                best = found
        assert best is not None
        width = width**0.4
        grid = [best.factor / width, best.factor * width]
    assert best is not None
    return best


def _judged(reading: LensReading, batch: Batch) -> LensReading:
    found = of_cameras(reading.cameras, batch)
    reading.mean, reading.ok = float(found.mean), float((found.shares >= FITS).double().mean())
    reading.pixels = float(found.medians.nanmedian())
    return reading


def _changed(cameras: Cameras, **what: Tensor) -> Cameras:
    return Cameras(**cameras.tensors() | what)
