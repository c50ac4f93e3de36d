"""The data set's images/ and masks/: upright pictures that all programs read alike; what needs no change is copied."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from nerf.capture.photos import Photo
from nerf.errors import UserError
from nerf.io.files import atomic_write
from nerf.io.images import TURNS, read_mask, read_png_16, write_png_16
from nerf.io.opening import opened

JPEG_QUALITY = 97
_FICLONE = 0x40049409  # Linux: share the blocks of another file


def write_photo(photo: Photo, folder: Path) -> None:
    """Write images/NAME, and masks/NAME.png where there is a mask. A picture that is there already is kept."""
    target, mask = folder / "images" / photo.name, folder / "masks" / f"{photo.name}.png"
    try:
        if not target.exists():
            _rewrite(photo, target) if photo.rewrite else copy(photo.source, target)
        if photo.mask is not None and not mask.exists():
            _write_mask(photo, photo.mask, mask)
    except UserError:
        raise
    except OSError as error:
        if error.errno is None:  # Pillow's word for a damaged file
            raise ValueError(str(error)) from error
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); choose a place with more room with -o"
        ) from error


def copy(source: Path, target: Path) -> None:
    """A file of its own; where the file system can share what is alike (Btrfs, XFS), it takes no room and no time."""
    with atomic_write(target) as temporary:
        if not _cloned(source, temporary):
            shutil.copyfile(source, temporary)


def _cloned(source: Path, target: Path) -> bool:
    try:
        import fcntl

        with open(source, "rb") as a, open(target, "wb") as b:
            fcntl.ioctl(b.fileno(), _FICLONE, a.fileno())
    except (ImportError, OSError):  # another system, file system or disk
        return False
    return True


def _rewrite(photo: Photo, target: Path) -> None:
    from PIL import ImageOps

    if photo.rewrite == "16":  # through ffmpeg, which keeps them; turned upright by numpy
        pixels = read_png_16(photo.source, 3)
        try:
            with atomic_write(target) as temporary:
                write_png_16(temporary, TURNS.get(photo.orientation, lambda a: a)(pixels))
        except ValueError as error:
            raise OSError(5, str(error)) from None
        return
    with opened(photo.source) as image:
        upright = ImageOps.exif_transpose(image)
        if target.suffix == ".jpg":
            options: dict[str, Any] = {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0}
            upright = upright.convert("RGB")
        else:
            options = {"format": "PNG", "compress_level": 4}
            upright = upright if upright.mode in ("L", "LA", "RGB", "RGBA") else upright.convert("RGB")
        upright.info.pop("exif", None)  # its orientation is no longer true
        if profile := image.info.get("icc_profile"):
            options["icc_profile"] = profile
        with atomic_write(target) as temporary:
            upright.save(temporary, exif=b"", **options)


def _write_mask(photo: Photo, source: Path, target: Path) -> None:
    """The mask as 0 and 255, turned with its photo when it was drawn on the unturned one."""
    from PIL import Image

    try:
        mask = read_mask(source)
    except UserError as error:
        raise UserError(f"{source}: is no mask: {error}") from None
    upright, stored = (photo.height, photo.width), (photo.width, photo.height)
    if photo.orientation >= 5 and _same_shape(mask.shape, stored) and not _same_shape(mask.shape, upright):
        mask = TURNS[photo.orientation](mask[..., None])[..., 0]
    if not _same_shape(mask.shape, upright):
        raise UserError(
            f"{source}: the mask is {mask.shape[1]}x{mask.shape[0]}, its photo {photo.width}x{photo.height}: "
            "expected the same shape"
        )
    with atomic_write(target) as temporary:
        Image.fromarray(np.where(mask > 127, 255, 0).astype(np.uint8)).save(temporary, format="PNG")


def _same_shape(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return abs(a[0] * b[1] - a[1] * b[0]) <= 0.02 * a[0] * b[1]
