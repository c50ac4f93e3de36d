"""Arrays of any library to what a reader would have found: images, lenses and splits, each checked by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from nerf.datasets.parsed import Lens
from nerf.errors import UserError
from nerf.geometry.cameras import OPENCV, PERSPECTIVE


def as_array(values: Any) -> np.ndarray:
    """A tensor of any device, an array or nested lists as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def as_images(images: Any, linear: bool) -> list[np.ndarray]:
    """[h,w,c] each, of uint8, uint16, float16 or float32; floats without NaN and, unless linear, within [0,1]."""
    found = []
    for i, array in enumerate(map(as_array, images)):
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
            raise UserError(f"images[{i}]: has shape {array.shape}, expected [height, width, 1 to 4 channels]")
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        if array.dtype not in (np.uint8, np.uint16, np.float16, np.float32):
            raise UserError(f"images[{i}]: is of type {array.dtype}, expected uint8, uint16 or floats")
        if array.dtype.kind == "f":
            if not np.isfinite(array).all():
                raise UserError(f"images[{i}]: holds NaN or infinity: repair or leave out this image")
            if array.min() < 0 or (array.max() > 1 and not linear):
                raise UserError(
                    f"images[{i}]: holds floats from {array.min():.4g} to {array.max():.4g}, expected 0 to 1 "
                    "(sRGB), or linear=True for light that may be brighter than white"
                )
        found.append(array)
    if not found:
        raise UserError("images: there are none, expected at least one")
    return found


def as_maps(maps: Any, name: str, n: int) -> list[np.ndarray | None]:
    """One [h,w] (or [h,w,1]) for each of n images, or None; `name` is what messages call them."""
    given = [None] * n if maps is None else maps
    found: list[np.ndarray | None] = [None if values is None else as_array(values) for values in given]
    for i, array in enumerate(found):
        if array is not None and array.ndim == 3 and array.shape[2] == 1:
            found[i] = array = array[..., 0]
        if array is not None and (array.ndim != 2 or array.dtype.kind not in "buif"):
            raise UserError(f"{name}[{i}]: has shape {array.shape} of {array.dtype}, expected numbers [height, width]")
    _same_number(found, name, n)
    return found


def as_poses(c2w: Any, n: int) -> np.ndarray:
    """[n,3 or 4,4] float64."""
    poses = as_array(c2w)
    if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)):
        raise UserError(f"c2w: has shape {poses.shape}, expected [images, 4, 4] or [images, 3, 4] (camera to world)")
    _same_number(poses, "c2w", n)
    return poses.astype(np.float64)


def as_lenses(intrinsics: Any, distortion: Any, images: Sequence[np.ndarray]) -> list[Lens]:
    """One for each image, of [fx,fy,cx,cy] or K [3,3], and of k1,k2,k3,k4,p1,p2; each for one image or for all."""
    n, values = len(images), as_array(intrinsics).astype(np.float64)
    if values.shape[-2:] == (3, 3) and values.ndim in (2, 3):
        if not np.allclose(values[..., [0, 1, 2, 2, 2], [1, 0, 0, 1, 2]], [0, 0, 0, 0, 1]):
            raise UserError("intrinsics: a K has the form [[fx,0,cx],[0,fy,cy],[0,0,1]]; a skew is not supported")
        values = values[..., [0, 1, 0, 1], [0, 1, 2, 2]]
    if values.shape[-1:] != (4,) or values.ndim > 2:
        raise UserError(
            f"intrinsics: has shape {as_array(intrinsics).shape}, expected [fx,fy,cx,cy] or K [3,3], for all or each"
        )
    k = np.zeros(6) if distortion is None else as_array(distortion).astype(np.float64)
    if k.shape[-1:] != (6,) or k.ndim > 2:
        raise UserError(f"distortion: has shape {k.shape}, expected [k1,k2,k3,k4,p1,p2], for one or for all images")
    for name, rows in (("intrinsics", values), ("distortion", k)):
        if rows.ndim == 2:
            _same_number(rows, name, n)
        if not np.isfinite(rows).all():
            raise UserError(f"{name}: holds NaN or infinity")
    each = zip(images, np.broadcast_to(values, (n, 4)).tolist(), np.broadcast_to(k, (n, 6)).tolist(), strict=True)
    return [
        Lens(OPENCV if any(kk) else PERSPECTIVE, fx, fy, cx, cy, image.shape[1], image.shape[0], tuple(kk))
        for image, (fx, fy, cx, cy), kk in each
    ]


def as_splits(splits: Mapping[str, Any] | None, n: int) -> list[str | None]:
    """The split of each image, of {"train", "val", "test": indices}."""
    found: list[str | None] = [None] * n
    for name, ids in (splits or {}).items():
        if name not in ("train", "val", "test"):
            raise UserError(f"splits: {name!r} is none of train, val and test")
        for i in as_array(ids).astype(int).reshape(-1).tolist():
            if not 0 <= i < n or found[i] is not None:
                raise UserError(f"splits: image {i} is in two of them, or there is none of that number")
            found[i] = name
    if splits is not None and None in found:
        raise UserError(f"splits: image {found.index(None)} is in none of them")
    return found


def _same_number(values: Sequence[Any] | np.ndarray, name: str, n: int) -> None:
    if len(values) != n:
        raise UserError(f"{name}: there are {len(values)} for {n} images, expected one for each")
