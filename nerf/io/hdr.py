"""HDR video to sRGB: HLG, in which phones record by default, and PQ (HDR10).

What the file holds becomes display light, with reference white at 203 cd/m2 (ITU-R BT.2408), then the primaries of
BT.709 and the curve of SDR video (BT.1886); what is brighter than white is rolled off. HLG's display gamma of 1.2 is
applied to each channel, as video converters do. Sources: ITU-R BT.2100-2, tables 4 and 5; BT.2087.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageFilter

from nerf.io.video import input_options

if TYPE_CHECKING:
    from PIL.ImageFilter import Color3DLUT

PQ, HLG = 16, 18  # transfer characteristics in a video's header (ITU-T H.273)
NAMES = {PQ: "PQ, as HDR10", HLG: "HLG"}
_BT709 = 1  # primaries
_WHITE = 203.0  # cd/m2
_PEAK = 1000.0  # of the display that HLG is meant for
_KNEE = 0.9  # of white, from where on highlights are rolled off
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


def to_srgb(transfer: int, primaries: int) -> Color3DLUT | None:
    """A table for `Image.filter` that brings 8-bit RGB of such a video to sRGB; None where it is no HDR.

    >>> from PIL import Image
    >>> white = Image.new("RGB", (1, 1), (191, 191, 191))  # 75 %, reference white in HLG
    >>> min(white.filter(to_srgb(HLG, 9)).getpixel((0, 0))) > 245
    True
    """
    return _table(transfer, primaries != _BT709) if transfer in NAMES else None


@functools.cache
def _table(transfer: int, wide: bool) -> Color3DLUT:
    grid = np.linspace(0, 1, 65)
    blue, green, red = np.meshgrid(grid, grid, grid, indexing="ij")  # red changes fastest
    colour = _converted(np.stack([red, green, blue], axis=-1).reshape(-1, 3), transfer, wide)
    return ImageFilter.Color3DLUT(65, colour.astype(np.float32).reshape(-1))


def _converted(coded: np.ndarray, transfer: int, wide: bool) -> np.ndarray:
    """[n,3] of 0 to 1 as in the file -> sRGB."""
    light = (_hlg(coded) * _PEAK if transfer == HLG else _pq(coded)) / _WHITE
    if wide:
        light = light @ _TO_BT709.T
    light = light.clip(0)
    over = (light - _KNEE).clip(0) / (1 - _KNEE)
    return np.where(light > _KNEE, _KNEE + (1 - _KNEE) * over / (1 + over), light) ** (1 / 2.4)


def _hlg(coded: np.ndarray) -> np.ndarray:
    """Display light, 1 the peak."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    return scene**1.2


def _pq(coded: np.ndarray) -> np.ndarray:
    """Display light in cd/m2."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    root = coded ** (1 / m2)
    return 10000 * ((root - c1).clip(0) / (c2 - c3 * root)) ** (1 / m1)


def transfer_of(video: Path) -> tuple[int, int]:
    """(transfer characteristics, primaries) that a video's first frame states; (2, 2), unknown, where none can be
    read."""
    try:
        import av
    except ImportError:
        return 2, 2
    try:
        with av.open(str(video.absolute()), options=input_options()) as container:
            frame = next(container.decode(video=0))
            return int(frame.color_trc), int(frame.color_primaries)
    except (av.FFmpegError, OSError, ValueError, LookupError, AttributeError, StopIteration):
        return 2, 2
