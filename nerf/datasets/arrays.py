"""Arrays of any library to what a reader would have found: images, lenses, splits, each checked by itself as it enters;
messages name the argument and the image's number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from nerf.datasets.parsed import Lens
from nerf.errors import UserError, brief
from nerf.geometry.cameras import OPENCV, PERSPECTIVE


def as_array(values: Any, name: str) -> np.ndarray:
    """A tensor of any device, an array or nested lists as an array of numbers; `name` is what messages call it."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of several lengths, a tensor without data
        raise UserError(f"{name}: is no array of numbers ({brief(error)})") from error
    if array.dtype.kind not in "buif":
        raise UserError(f"{name}: is {_type(values)}, expected an array of numbers")
    return array


def as_floats(values: Any, name: str) -> np.ndarray:
    """The same of float64, without NaN and infinity."""
    array = as_array(values, name).astype(np.float64)
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        raise UserError(f"{name}{f'[{bad[0]}]' if array.ndim > 1 else ''}: holds NaN or infinity")
    return array


def as_list(values: Any, name: str, what: str = "one for each image") -> list[Any]:
    """What is given for each image, as a list."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__") or getattr(values, "ndim", 1) == 0:
        raise UserError(f"{name}: is {_type(values)}, expected a list, {what}")
    return list(values)


def _type(values: Any) -> str:
    return repr(values) if isinstance(values, (str, type(None))) else f"of the type {type(values).__name__}"


def as_images(images: Any, linear: bool) -> list[np.ndarray]:
    """[h,w,c] each, of uint8, uint16, float16 or float32; floats without NaN and, unless linear, within [0,1]."""
    found = []
    for i, image in enumerate(as_list(images, "images")):
        array = as_array(image, f"images[{i}]")
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
    given = [None] * n if maps is None else as_list(maps, name)
    found = [None if values is None else as_array(values, f"{name}[{i}]") for i, values in enumerate(given)]
    for i, array in enumerate(found):
        if array is not None and array.ndim == 3 and array.shape[2] == 1:
            found[i] = array = array[..., 0]
        if array is not None and array.ndim != 2:
            raise UserError(f"{name}[{i}]: has shape {array.shape}, expected [height, width]")
    _same_number(found, name, n)
    return found


def as_masks(masks: Any, n: int) -> list[np.ndarray | None]:
    """`as_maps` without NaN, which neither shows nor hides a pixel."""
    found = as_maps(masks, "masks", n)
    for i, mask in enumerate(found):
        if mask is not None and np.isnan(mask).any():
            raise UserError(f"masks[{i}]: holds NaN, expected 0 where a pixel is to be ignored")
    return found


def as_poses(c2w: Any, n: int) -> np.ndarray:
    """[n,3 or 4,4] float64."""
    poses = as_floats(c2w, "c2w")
    if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)):
        raise UserError(f"c2w: has shape {poses.shape}, expected [images, 4, 4] or [images, 3, 4] (camera to world)")
    _same_number(poses, "c2w", n)
    for i, row in enumerate(poses[:, 3:]):
        if not np.allclose(row, [0, 0, 0, 1]):
            raise UserError(f"c2w[{i}]: its last row is {row[0].tolist()}, expected 0, 0, 0, 1: is it transposed?")
    return poses


def as_lenses(intrinsics: Any, distortion: Any, images: Sequence[np.ndarray]) -> list[Lens]:
    """One for each image, of [fx,fy,cx,cy] or K [3,3], and of k1,k2,k3,k4,p1,p2; each for one image or for all."""
    n, given = len(images), as_floats(intrinsics, "intrinsics")
    values = given
    if values.shape[-2:] == (3, 3) and values.ndim in (2, 3):
        if not np.allclose(values[..., [0, 1, 2, 2, 2], [1, 0, 0, 1, 2]], [0, 0, 0, 0, 1]):
            raise UserError("intrinsics: a K has the form [[fx,0,cx],[0,fy,cy],[0,0,1]]; a skew is not supported")
        values = values[..., [0, 1, 0, 1], [0, 1, 2, 2]]
    if values.shape[-1:] != (4,) or values.ndim > 2:
        raise UserError(f"intrinsics: has shape {given.shape}, expected [fx,fy,cx,cy] or K [3,3], for all or each")
    k = np.zeros(6) if distortion is None else as_floats(distortion, "distortion")
    if k.shape[-1:] != (6,) or k.ndim > 2:
        raise UserError(f"distortion: has shape {k.shape}, expected [k1,k2,k3,k4,p1,p2], for one or for all images")
    for name, rows in (("intrinsics", values), ("distortion", k)):
        if rows.ndim == 2:
            _same_number(rows, name, n)
    each = zip(images, np.broadcast_to(values, (n, 4)).tolist(), np.broadcast_to(k, (n, 6)).tolist(), strict=True)
    return [
        Lens(OPENCV if any(kk) else PERSPECTIVE, fx, fy, cx, cy, image.shape[1], image.shape[0], tuple(kk))
        for image, (fx, fy, cx, cy), kk in each
    ]


def as_points(points: Any) -> np.ndarray | None:
    """[m,3] float64."""
    if points is None:
        return None
    found = as_floats(points, "points")
    if found.ndim != 2 or found.shape[1] != 3:
        raise UserError(f"points: has shape {found.shape}, expected [points, 3] (world)")
    return found


def as_splits(splits: Mapping[str, Any] | None, n: int) -> list[str | None]:
    """The split of each image, of {"train", "val", "test": indices}."""
    found: list[str | None] = [None] * n
    if splits is None:
        return found
    if not isinstance(splits, Mapping):
        raise UserError(f'splits: is {_type(splits)}, expected {{"train": indices, "test": indices}} of the images')
    for name, ids in splits.items():
        if name not in ("train", "val", "test"):
            raise UserError(f"splits: there is no split {name!r}; images are in train, val or test")
        given = as_array(as_list(ids, f"splits[{name!r}]", "indices of images"), f"splits[{name!r}]")
        if given.ndim != 1 or (given.size and given.dtype.kind not in "ui"):
            raise UserError(f"splits[{name!r}]: expected indices of images, whole numbers from 0 to {n - 1}")
        for i in given.astype(int).tolist():
            if not 0 <= i < n:
                raise UserError(f"splits[{name!r}]: there is no image {i}, they are counted from 0 to {n - 1}")
            if found[i] is not None:
                twice = f"in {found[i]} and in {name}" if found[i] != name else f"twice in {name}"
                raise UserError(f"splits: image {i} is {twice}, expected each image once")
            found[i] = name
    if None in found:
        raise UserError(f"splits: image {found.index(None)} is in none of them, expected each image in one")
    if "train" not in found:
        raise UserError('splits: no image is in "train", so there is none to train on')
    return found


def _same_number(values: Sequence[Any] | np.ndarray, name: str, n: int) -> None:
    if len(values) != n:
        raise UserError(f"{name}: there are {len(values)} for {n} images, expected one for each")
