"""Smaller pictures: the mean over the area that each new pixel covers, in the colour space of the file."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nerf.io.images import Picture

LARGE = 2 << 30  # bytes of pixels (60 photos of 12 megapixels) from which on a set is large ...
LONGEST = 1600  # ... and its photos are brought to so many pixels on the longer side, unless another size is asked for


@dataclass
class Sizes:
    """(height, width) of each picture of a scene, and what is to be said of how they came about."""

    sizes: list[tuple[int, int]]
    longest: int | None  # that they were brought to; None: they keep the size that `downscale` leaves
    note: str = ""


def choose_sizes(pictures: list[Picture], downscale: int, longest: int | None, pixel_bytes: int) -> Sizes:
    """Sizes after averaging `downscale` squared blocks, then with at most `longest` pixels on the longer side (None: as
    they are, but LONGEST where the whole set would take more than LARGE bytes)."""
    sizes = [(p.height // downscale, p.width // downscale) for p in pictures]
    n_bytes = sum(h * w for h, w in sizes) * pixel_bytes
    chosen = LONGEST if longest is None and n_bytes > LARGE else longest
    new = [fitted(size, chosen) for size in sizes] if chosen else sizes
    if new == sizes:
        return Sizes(sizes, None)
    n = sum(a != b for a, b in zip(sizes, new, strict=True))
    text = f"{n} of {len(sizes)} photos brought to {chosen} pixels on the longer side (area average)"
    if longest is None:
        text += f", for as they are they would take {n_bytes / 1e9:.1f} GB; --longest asks for another size"
    return Sizes(new, chosen, text)


def fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) with at most `longest` on the longer side; never enlarged."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def jpeg_reduction(picture: Picture, size: tuple[int, int]) -> int:
    """8, 4, 2 or 1: by how much a JPEG may be reduced while it is decoded, which takes a fraction of the time; so that
    no fraction of a pixel is left over and not fewer pixels than the (height, width) asked for."""
    h, w = picture.height, picture.width  # the decoder sums blocks of pixels up to a lowpass, like the area average
    return next((k for k in (8, 4, 2) if h % k == w % k == 0 and h // k >= size[0] and w // k >= size[1]), 1)


def shrink(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Area average of factor x factor blocks of [h,w,c], in its own type; colours are weighted by alpha."""
    if factor == 1:
        return pixels
    h, w, c = pixels.shape[0] // factor, pixels.shape[1] // factor, pixels.shape[2]
    pixels = pixels[: h * factor, : w * factor]

    def total(a: np.ndarray) -> np.ndarray:  # rows first: those sums run along memory
        columns = a.reshape(h, factor, -1).sum(axis=1, dtype=np.float64 if a.dtype.kind == "f" else np.uint64)
        return columns.reshape(h, w, factor, -1).sum(axis=2).astype(np.float64)

    if c in (2, 4):
        alpha = pixels[..., -1:].astype(np.float64 if pixels.dtype.kind == "f" else np.uint64)
        weight = total(alpha)
        colour = total(pixels[..., :-1] * alpha) / np.maximum(weight, 1e-12)
        plain = total(pixels[..., :-1]) / factor**2
        mean = np.concatenate([np.where(weight > 0, colour, plain), weight / factor**2], axis=-1)
    else:
        mean = total(pixels) / factor**2
    return (np.rint(mean) if pixels.dtype.kind == "u" else mean).astype(pixels.dtype)


def area_average(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h,w,c] to a (height, width) that is not larger, in its own type: the mean over the rectangle that each new pixel
    covers, fractions of pixels included; colours are weighted by alpha."""
    h, w, c = pixels.shape
    if (h, w) == size:
        return pixels
    if c in (2, 4):
        values = pixels.astype(np.float32)
        alpha = values[..., -1:]
        plain = values[..., :-1].copy()
        values[..., :-1] *= alpha
        mean = _averaged(values, size)
        weight = mean[..., -1:]
        colour = mean[..., :-1] / np.where(weight > 0, weight, 1)
        if (weight <= 0).any():
            colour = np.where(weight > 0, colour, _averaged(plain, size))
        mean = np.concatenate([colour, weight], axis=2)
    else:
        mean = _averaged(pixels, size)
    return (np.rint(mean) if pixels.dtype.kind == "u" else mean).astype(pixels.dtype)


def _averaged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rows, then columns: as rows of the transposed picture, for those sums run along memory."""
    h, w, c = values.shape
    rows = _rows_averaged(values.reshape(h, w * c), size[0])
    turned = np.ascontiguousarray(rows.reshape(size[0], w, c).transpose(1, 0, 2)).reshape(w, size[0] * c)
    return _rows_averaged(turned, size[1]).reshape(size[1], size[0], c).transpose(1, 0, 2)


def _rows_averaged(values: np.ndarray, n: int) -> np.ndarray:
    """[h,k] -> [n,k] float32 (or what is given, where n is h): row i is the mean of rows i h/n to (i+1) h/n. Only the
    rows in use are made floats: a whole photo of 108 megapixels is 1.3 GB of them."""
    h = len(values)
    if n == h:
        return values
    edges = np.arange(n + 1) * (h / n)
    first = np.floor(edges[:-1] + 1e-9).astype(np.int64)
    total = np.zeros((n, values.shape[1]), np.float32)
    for t in range(math.ceil(h / n) + 1):
        row = first + t
        weight = np.minimum(edges[1:], row + 1) - np.maximum(edges[:-1], row)
        weight = np.where(row < h, np.clip(weight, 0, None), 0) * (n / h)
        total += values[np.minimum(row, h - 1)] * weight[:, None].astype(np.float32)
    return total
