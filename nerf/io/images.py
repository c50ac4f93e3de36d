"""Image files: their headers and their pixels, in the type that the file holds."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nerf.errors import UserError, brief
from nerf.io import exr
from nerf.io.opening import opened
from nerf.io.video import ffmpeg

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES: tuple[str, ...] = (
    *(".png", ".jpg", ".jpeg", ".exr", ".webp", ".tif", ".tiff", ".bmp", ".jpe", ".jfif", ".mpo"),
    *(".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jpx"),
)


@dataclass
class Picture:
    """What the header of an image file says, after its EXIF orientation."""

    path: Path
    width: int
    height: int
    n_channels: int
    dtype: np.dtype
    orientation: int = 1  # EXIF: 1 is upright; 5 to 8 swap width and height


def read_header(path: Path) -> Picture:
    """Size, channels and type of an image file without decoding it."""
    if path.suffix.lower() == ".exr":
        width, height, channels = exr.read_header(path)
        names = exr.colour_channels(list(channels), path)
        dtype = np.dtype(np.float16) if channels[names[0]] == np.float16 else np.dtype(np.float32)
        return Picture(path, width, height, len(names), dtype)
    try:
        with opened(path) as im:
            width, height = stored_size(im)
            # a PNG without EXIF up front would be decoded whole by getexif
            orientation = int(im.getexif().get(0x0112, 1)) if im.format != "PNG" or "exif" in im.info else 1
            mode, transparent, deep = im.mode, "transparency" in im.info, deep_channels(im, path)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{path}: cannot be read as an image ({brief(e)}): restore or remove the file") from e
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    if deep or mode.startswith("I;16"):
        return Picture(path, width, height, deep or 1, np.dtype(np.uint16), orientation)
    if mode == "F":
        return Picture(path, width, height, 1, np.dtype(np.float32), orientation)
    return Picture(path, width, height, len(_eight_bit_mode(mode, transparent)), np.dtype(np.uint8), orientation)


def read_pixels(picture: Picture, reduction: int = 1) -> np.ndarray:
    """Decode to [h,w,c] in the file's own type, turned upright; reduction: 2, 4 or 8 asks the decoder of a JPEG (of no
    other file) for so many times fewer pixels each way."""
    path = picture.path
    mode = ("L", "LA", "RGB", "RGBA")[picture.n_channels - 1] if picture.dtype == np.uint8 else None
    turned = 1
    try:
        if path.suffix.lower() == ".exr":
            return exr.read_colours(path)
        if picture.dtype == np.uint16 and picture.n_channels > 1:
            pixels = read_png_16(path, picture.n_channels)
        else:
            with opened(path) as im:
                if reduction > 1 and im.format in ("JPEG", "MPO"):
                    im.draft(None, (im.width // reduction, im.height // reduction))
                turned = int(im.getexif().get(0x0112, 1)) if im.format == "TIFF" else 1
                pixels = _in_bands(im, mode).astype(picture.dtype, copy=False)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{path}: the image is damaged ({brief(e)}): restore or remove the file") from e
    pixels = pixels.reshape(pixels.shape[0], pixels.shape[1], -1)
    if turned > 1:  # back again, for Pillow turns TIFFs by itself
        pixels = TURNS.get({6: 8, 8: 6}.get(turned, turned), lambda a: a)(pixels)
    return TURNS.get(picture.orientation, lambda a: a)(pixels)


def _in_bands(image: Image, mode: str | None) -> np.ndarray:
    """The pixels of a picture, brought to sRGB and a mode (None: as it is); of a large one a band of rows at a time,
    for Pillow copies it three times on its way to an array."""

    def pixels(part: Image) -> np.ndarray:
        return np.asarray(part if mode is None else in_srgb(part).convert(mode))

    width, height = image.size
    if width * height <= _BAND:
        return pixels(image)
    whole, n = np.empty((0,)), max(1, _BAND // width)
    for top in range(0, height, n):
        rows = pixels(image.crop((0, top, width, min(top + n, height))))
        if top == 0:
            whole = np.empty((height, *rows.shape[1:]), rows.dtype)
        whole[top : top + n] = rows
    return whole


_BAND = 1 << 24  # pixels


def stored_size(image: Image) -> tuple[int, int]:
    """(width, height) of an opened picture before EXIF turns it, as Pillow has already done with that of a TIFF."""
    width, height = image.size
    return (height, width) if image.format == "TIFF" and image.getexif().get(0x0112, 1) >= 5 else (width, height)


def in_srgb(image: Image) -> Image:
    """The picture of 8 bits with the colours of its profile (Display P3 of phones, Adobe RGB, CMYK) brought to sRGB."""
    profile = image.info.get("icc_profile")
    transform = _from_profile(profile, image.mode) if profile and image.mode in _WITH_PROFILES else None
    return image if transform is None else transform.apply(image)


_WITH_PROFILES = ("RGB", "RGBA", "CMYK", "L")


@functools.lru_cache(maxsize=16)
def _from_profile(profile: bytes, mode: str) -> Any:
    """What brings pictures of that profile to sRGB; None where they are so already, or the profile says nothing that
    can be used."""
    from PIL import Image, ImageCms

    try:
        given, wanted = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(
            given, wanted, mode, "RGBA" if mode == "RGBA" else "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        if mode not in ("RGB", "RGBA"):
            return transform
        steps = np.linspace(0, 255, 6).astype(np.uint8)
        swatches = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(36, 6, 3)).convert(mode)
        change = np.asarray(transform.apply(swatches)).astype(int) - np.asarray(swatches)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform if np.abs(change).max() > 2 else None


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF 2.3, tag 0x0112
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def _eight_bit_mode(mode: str, transparent: bool) -> str:
    """The Pillow mode, one letter a channel, that an image of another mode is read as."""
    if mode in ("L", "1", "LA", "La"):
        return "LA" if transparent or mode in ("LA", "La") else "L"
    return "RGBA" if transparent or mode in ("RGBA", "RGBa", "PA") else "RGB"


def deep_channels(image: Image, path: Path) -> int:
    """Channels of an opened PNG or TIFF with 16 bits a channel, else 0: Pillow would cut its colours to 8 bits. Of
    grey TIFFs it keeps them; of rare kinds (tiles) 8 bits have to do. Source: TIFF 6.0, sections 3 to 6, 18."""
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        bits, n, photometric, kinds = tags.get(258, (8,)), tags.get(277, 1), tags.get(262), tags.get(339, (1,))
        plain = tags.get(259, 1) in _COMPRESSIONS and tags.get(284, 1) == 1 and 322 not in tags  # what ffmpeg can do
        return int(n) if plain and set(bits) == {16} and set(kinds) == {1} and (n, photometric) in _DEEP_TIFFS else 0
    if image.format != "PNG":
        return 0
    with open(path, "rb") as f:
        header = f.read(26)
    return {0: 1, 2: 3, 4: 2, 6: 4}.get(header[25], 0) if len(header) == 26 and header[24] == 16 else 0


_COMPRESSIONS = (1, 5, 8, 32773, 32946)  # none, LZW, deflate, PackBits; of interleaved channels in strips
_DEEP_TIFFS = ((2, 1), (3, 2), (4, 2))  # channels and photometric interpretation: grey and alpha, RGB, RGBA


def read_png_16(path: Path, n_channels: int) -> np.ndarray:
    """[h,w,c] uint16 of a PNG or TIFF, as it is stored, through ffmpeg: Pillow cuts 16-bit colours to 8. Its name is
    absolute, or it could be taken for a protocol, and no pattern."""
    with opened(path) as im:
        (width, height), kind = stored_size(im), str(im.format).lower()
    layout = {1: "gray16le", 2: "ya16le", 3: "rgb48le", 4: "rgba64le"}[n_channels]
    source = ("-noautorotate", "-f", "image2", "-pattern_type", "none", "-c:v", kind, "-i", str(path.absolute()))
    data = ffmpeg(*source, "-f", "rawvideo", "-pix_fmt", layout, "-")
    return np.frombuffer(data, "<u2").reshape(height, width, n_channels)


def write_png_16(path: Path, pixels: np.ndarray) -> None:
    """[h,w,3] uint16 to a PNG, which Pillow could not write."""
    size = ("-pix_fmt", "rgb48le", "-s", f"{pixels.shape[1]}x{pixels.shape[0]}")
    png = ("-f", "image2pipe", "-c:v", "png", "-")
    path.write_bytes(ffmpeg("-f", "rawvideo", *size, "-i", "-", *png, data=pixels.astype("<u2").tobytes()))


def read_mask(path: Path) -> np.ndarray:
    """[h,w] uint8 of a mask of any kind: its alpha where its colours are all one; 0 and 1 are black and white."""
    pixels = read_pixels(read_header(path))
    if pixels.shape[2] in (2, 4) and not np.ptp(pixels[..., :-1], axis=(0, 1)).any() and np.ptp(pixels[..., -1]):
        pixels = pixels[..., -1:]
    if pixels.dtype.kind == "f":
        pixels = (pixels > 0.5).astype(np.uint8)
    if pixels.max(initial=0) == 1:
        pixels = pixels * np.iinfo(pixels.dtype).max
    return convert(pixels, 3, np.dtype(np.uint8)).max(axis=2)


def convert(pixels: np.ndarray, n_channels: int, dtype: np.dtype) -> np.ndarray:
    """Bring [h,w,c] to common channels and type: grey is repeated, missing alpha is opaque, integers are widened
    or narrowed."""
    if pixels.dtype != dtype:
        if pixels.dtype == np.uint8 and dtype == np.uint16:
            pixels = pixels.astype(np.uint16) * 257
        elif pixels.dtype == np.uint16 and dtype == np.uint8:
            pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        elif pixels.dtype.kind == "u":
            pixels = (pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).astype(dtype)
        else:
            pixels = pixels.astype(dtype)
    if pixels.shape[2] == n_channels:
        return pixels
    alpha = np.full((*pixels.shape[:2], 1), np.iinfo(dtype).max if dtype.kind == "u" else 1, dtype)
    colour, alpha = (pixels[..., :-1], pixels[..., -1:]) if pixels.shape[2] in (2, 4) else (pixels, alpha)
    if n_channels >= 3 and colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    return np.concatenate([colour, alpha], axis=2) if n_channels in (2, 4) else colour
