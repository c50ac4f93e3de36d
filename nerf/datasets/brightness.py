"""Linear light as files hold it: what of it is no number, how bright it gets, and how bright it is to be shown."""

from __future__ import annotations

import numpy as np

from nerf.datasets.store import PixelStore
from nerf.geometry import light

_SAMPLES = 1 << 20  # pixels that the exposure is chosen from
SHOWN = (0.2, 5.0)  # a 95th percentile within is shown as it is: pictures are exposed for white at 1
_TARGET = 0.8  # where an exposure of ours puts it


def to_linear(pixels: np.ndarray) -> np.ndarray:
    """sRGB integers [h,w,c] as linear float32; alpha (of 2 or 4 channels) keeps its meaning."""
    values = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    n = values.shape[2] - 1 if values.shape[2] in (2, 4) else values.shape[2]
    values[..., :n] = light.decode(values[..., :n])
    return values


def repaired(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """(floats [h,w,c] without NaN, which become 0, and infinities, which become the largest number of the picture; how
    many pixels that were)."""
    finite = np.isfinite(pixels)
    if finite.all():
        return pixels, 0
    largest = pixels[finite].max(initial=0.0)
    fixed = np.nan_to_num(pixels, nan=0.0, posinf=float(largest), neginf=0.0)
    return fixed.astype(pixels.dtype), int((~finite.all(axis=2)).sum())


def measure(store: PixelStore) -> tuple[float, float]:
    """(the largest colour, at least 1; the factor from light to what is shown, 1 where the light is exposed already):
    a 95th percentile of opaque pixels far from white (cd/m2, underexposed renders) is shown at 0.8."""
    memory, c = store.memory, store.n_channels
    n_colours = c - 1 if c in (2, 4) else c
    brightest, step = 1.0, 1 << 22
    for start in range(0, len(memory), step):
        brightest = max(brightest, float(memory[start : start + step, :n_colours].max(initial=0)))
    some = np.asarray(memory[:: max(1, len(memory) // _SAMPLES)], np.float32)
    seen = some[some[:, -1] > 0.5] if c in (2, 4) else some
    high = float(np.percentile(seen[:, :n_colours].mean(axis=1), 95)) if len(seen) else 1.0
    exposure = 1.0 if SHOWN[0] <= high <= SHOWN[1] or high <= 0 else _TARGET / high
    return brightest, exposure
