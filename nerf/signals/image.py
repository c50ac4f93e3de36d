"""Images as signals: 8 and 16 bits, float; grey, RGB, with or without alpha; as large as the disk."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nerf.errors import UserError
from nerf.io import exr
from nerf.io.files import atomic_write
from nerf.io.images import read_header, read_pixels
from nerf.signals.record import Signal, centres, check_file, check_finite, to_values, unit_grid

if TYPE_CHECKING:
    from nerf.signals.fields import SignalField

CHANNELS = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGB and alpha"}
STRIP = 1 << 18  # pixels evaluated at once when a field is sampled


def read_image(path: str | Path) -> Signal:
    """An image file as it is: values keep the file's type, colour space and straight alpha; EXIF turns it upright.

    Raises UserError for what is missing, empty, broken or not finite.

    >>> from PIL import Image
    >>> Image.new("RGB", (6, 4), (255, 0, 0)).save("red.png")
    >>> signal = nerf.read_image("red.png")
    >>> signal.shape, signal.n_channels, signal.one
    ((4, 6), 3, 255.0)
    """
    path = Path(path)
    pixels = _decoded(path)
    if pixels.size == 0:
        raise UserError(f"{path}: holds no pixels")
    check_finite(path, pixels)
    h, w, c = pixels.shape
    one = float(np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else pixels.max())
    one = one if one > 0 else 1.0
    space = "linear light" if path.suffix.lower() == ".exr" else "as in the file (sRGB where it does not say otherwise)"
    meta = {"name": path.name, "channels": CHANNELS[c], "colour_space": space, "range": f"0 to {one:g}"}
    return Signal("image", pixels.reshape(h * w, c), (h, w), 0.0, one, meta=meta)


def _decoded(path: Path) -> np.ndarray:
    check_file(path, "an image (PNG, JPEG, EXR, TIFF, WebP)")
    return read_pixels(read_header(path))


def rows_of_field(field: SignalField, height: int, width: int) -> Iterator[np.ndarray]:
    """Strips [rows, width, c] of a fitted image at any size, from the top, float32: never the whole at once."""
    for rows in centres(height).split(max(1, STRIP // width)):
        yield field.evaluate(unit_grid(rows, centres(width))).reshape(len(rows), width, -1).numpy()


def image_of_field(field: SignalField, height: int, width: int) -> np.ndarray:
    """[h,w,c] float32 of a fitted image at any size; no gradient.

    >>> field = nerf.SignalField(nerf.FieldChoice("mlp"), n_dims=2, n_channels=3)
    >>> nerf.image_of_field(field, height=4, width=6).shape
    (4, 6, 3)
    """
    return np.concatenate(list(rows_of_field(field, height, width)))


def write_image(path: Path, field: SignalField, meta: dict[str, Any], height: int, width: int) -> None:
    """Sample a fitted image to a PNG (8 or 16 bits, as its original) or EXR (floats); meta: of Signal.describe()."""
    dtype = np.dtype(meta["dtype"])
    suffix, about = (".exr", " (floats, linear light)") if dtype.kind == "f" else (".png", "")
    if path.suffix.lower() != suffix:
        raise UserError(f"{path}: expected a name that ends in {suffix}{about}, for the image was of that kind")
    strips = (to_values(s, dtype, meta["zero"], meta["one"]) for s in rows_of_field(field, height, width))
    if dtype.kind == "f":
        pixels = np.concatenate(list(strips))
        names = {1: "Y", 2: "YA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
        if names[-1] == "A":  # EXR stores colours times alpha
            pixels = np.concatenate([pixels[..., :-1] * pixels[..., -1:], pixels[..., -1:]], axis=2)
        exr.write_exr(path, {name: pixels[..., k] for k, name in enumerate(names)})
        return
    with png_writer(path, width, height, field.n_channels, dtype) as write:
        for strip in strips:
            write(strip)


@contextmanager
def png_writer(path: Path, width: int, height: int, n_channels: int, dtype: np.dtype) -> Iterator[Any]:
    """A function that takes strips [rows, width, c] of uint8 or uint16 from the top; the file gets its name when whole.

    Pillow writes neither 16-bit colours nor strips. Source: the PNG specification (W3C), sections 5, 9 and 10.
    """
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[n_channels]
    pack = zlib.compressobj(6)
    depth = dtype.itemsize * 8
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:

            def chunk(name: bytes, data: bytes) -> None:
                file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

            def write(strip: np.ndarray) -> None:
                wide = strip.astype(dtype.newbyteorder(">")).view(np.uint8).reshape(len(strip), -1)
                # filter 2: what is above, taken off within the strip; its first row goes as it is
                above = np.vstack([np.zeros_like(wide[:1]), wide[:-1]])
                filters = np.full((len(wide), 1), 2, np.uint8)
                filters[0] = 0
                if data := pack.compress(np.hstack([filters, wide - above]).tobytes()):
                    chunk(b"IDAT", data)

            file.write(b"\x89PNG\r\n\x1a\n")
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
            yield write
            chunk(b"IDAT", pack.flush())
            chunk(b"IEND", b"")
    except OSError as error:
        raise UserError(f"{path}: writing the picture failed ({error.strerror or error}); is the disk full?") from error
