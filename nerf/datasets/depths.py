"""Depth maps beside the photos: z-depths in world units, kept at their own resolution; 0 where nothing is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nerf.datasets.store import PixelStore, fill
from nerf.errors import UserError, brief
from nerf.io import exr
from nerf.io.images import read_header, read_pixels

MILLIMETRES = 1e-3  # what one step of an integer depth map means where the file says nothing else, world units being m
_EXR_NAMES = ("Z", "depth.Z", "R", "Y", "V")


@dataclass
class DepthMap:
    """A file of z-depths (along the optical axis, not along the ray) that covers the whole of its photo."""

    path: Path
    scale: float | None = None  # world units per unit of the file; None: 1e-3 for integers, 1 for floats
    confidence: Path | None = None  # picture of the same size; where it is 0, the depth is not used


def read_depths(
    maps: Sequence[DepthMap | np.ndarray | None], sizes: list[tuple[int, int]], notes: list[str]
) -> PixelStore | None:
    """One float32 channel for each photo of (height, width), at the depth map's own size ([1,1] zero where there is
    none); None where no photo has one that is there."""
    there = [None if isinstance(m, DepthMap) and not m.path.is_file() else m for m in maps]
    missing = [m.path.name for m in maps if isinstance(m, DepthMap) and not m.path.is_file()]
    if missing:
        notes.append(f"{len(missing)} depth maps are named but missing, the first {missing[0]}")
    if all(m is None for m in there):
        return None

    def shape(i: int) -> tuple[int, int]:
        chosen = there[i]
        if chosen is None:
            return 1, 1
        if isinstance(chosen, np.ndarray):
            (h, w), where = chosen.shape, f"depths[{i}]"
        else:
            (h, w), where = _size(chosen.path), str(chosen.path)
        ph, pw = sizes[i]
        if abs(w * ph - h * pw) > 0.02 * h * pw + max(ph, pw):  # a row or column more or less is rounding
            raise UserError(
                f"{where}: the depth map is {w}x{h}, its photo {pw}x{ph}: expected the same shape, upright alike"
            )
        return h, w

    def decode(i: int) -> np.ndarray:
        chosen = there[i]
        if chosen is None:
            return np.zeros((1, 1, 1), np.float32)
        z = chosen.astype(np.float32) if isinstance(chosen, np.ndarray) else _values(chosen)
        z = np.where(np.isfinite(z) & (z > 0), z, np.float32(0))
        if isinstance(chosen, DepthMap) and chosen.confidence is not None and chosen.confidence.is_file():
            z = np.where(_confident(chosen.confidence, z.shape), z, 0)
        return z[..., None]

    store = fill([shape(i) for i in range(len(there))], 1, np.dtype(np.float32), decode)
    known = float((store.memory > 0).mean())
    if known == 0:
        notes.append("the depth maps hold no depth above zero, so they are not used")
        return None
    n = sum(m is not None for m in there)
    notes.append(f"depth maps for {n} of {len(there)} photos, {100 * known:.0f} % of their pixels known")
    return store


def _size(path: Path) -> tuple[int, int]:
    """(height, width) without reading the depths."""
    kind = path.suffix.lower()
    if kind == ".npy":
        return _array(path).shape[:2]
    if kind == ".exr":
        width, height, _ = exr.read_header(path)
        return height, width
    if kind in (".png", ".tif", ".tiff"):
        picture = read_header(path)
        return picture.height, picture.width
    raise UserError(f"{path}: expected a depth map as .png or .tif (16 bits), .exr or .npy")


def _array(path: Path) -> np.ndarray:
    """[h,w] of a .npy file, memory-mapped."""
    raw = read_npy(path, "r")
    if raw.ndim == 3 and 1 in (raw.shape[0], raw.shape[2]):
        raw = raw[..., 0] if raw.shape[2] == 1 else raw[0]
    if raw.ndim != 2 or raw.dtype.kind not in "fiu":
        raise UserError(f"{path}: holds shape {raw.shape} of type {raw.dtype}, expected numbers [rows, columns]")
    return raw


def read_npy(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array of a .npy file; UserError where it is none."""
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except Exception as e:  # numpy raises whatever its parser of headers comes upon
        raise UserError(
            f"{path}: cannot be read as a NumPy array ({brief(e)}): the file is damaged, write it again or remove it"
        ) from e


def _values(depth: DepthMap) -> np.ndarray:
    """[h,w] float32 in world units, as the file holds them."""
    path, kind = depth.path, depth.path.suffix.lower()
    if kind == ".npy":
        raw = _array(path)
    elif kind == ".exr":
        found = exr.read_channels(path)
        name = next(iter(found)) if len(found) == 1 else next((n for n in _EXR_NAMES if n in found), None)
        if name is None:
            raise UserError(f"{path}: holds the channels {', '.join(found)}, expected one, or Z")
        raw = found[name]
    else:
        picture = read_header(path)
        raw = read_pixels(picture)[..., 0]
        if picture.n_channels != 1 or raw.dtype == np.uint8:
            raise UserError(
                f"{path}: holds {picture.n_channels} channels of {8 * raw.dtype.itemsize} bits, expected one of 16 "
                "bits or floats: a depth map coloured for looking at holds no depths"
            )
    scale = depth.scale if depth.scale is not None else 1.0 if raw.dtype.kind == "f" else MILLIMETRES
    return raw.astype(np.float32) * np.float32(scale)


def _confident(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """[h,w] bool: where the sensor trusts its depth at all."""
    confidence = read_pixels(read_header(path))[..., 0]
    if confidence.shape != size:
        raise UserError(
            f"{path}: the confidence is {confidence.shape[1]}x{confidence.shape[0]}, its depth map "
            f"{size[1]}x{size[0]}: expected the same size"
        )
    return confidence > 0
