"""Opening picture files: the one place where Pillow meets a file from outside.

Only the formats that photos come in: Pillow would also run Ghostscript on what says that it is EPS. And only sizes that
the file can hold: Pillow's own limit refuses what phones take (108 and 200 megapixels), and allows what takes gigabytes
to decode from a file of a few hundred bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from nerf.errors import MissingPackage, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "AVIF", "HEIF", "JPEG2000")
HUGE = 1 << 25  # pixels; what is smaller is decoded in a moment, whatever the file says
# Pixels that one byte of a file can stand for at most. Deflate (PNG, TIFF) makes at most 1032 bytes of one, which is
# eight pixels each where they are black or white; no other format comes near with a photo. A JPEG has at least a bit
# for the mean of each block of 8x8; twice that is allowed.
_MOST, _MOST_JPEG = 8 * 1032, 1024

# What an ISO media file says that it is, in bytes 4 to 12, where its picture is HEIC's (ISO/IEC 23008-12) ...
_HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_HEIC_OR_AVIF = (b"ftypmif1", b"ftypmsf1")  # ... or that of one of the two

_lock = threading.Lock()
_n_open = 0  # pictures, in all threads
_limit: int | None = None  # of Pillow, before the first of them was opened


class _Bounded(BufferedReader):
    """A file that takes no memory for more bytes than it has, whatever a chunk in it says of its length."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(-1 if size is None else min(size, os.fstat(self.fileno()).st_size))


@contextmanager
def opened(path: Path | str) -> Iterator[Image]:
    """The picture in a file, its header read and its pixels not, whatever its name says. UserError where its size is
    none that the file can hold, or a package is missing; else whatever Pillow raises for what it cannot read.

    >>> from PIL import Image
    >>> Image.new("L", (6, 4)).save("grey.png")
    >>> with opened("grey.png") as image:
    ...     image.size
    (6, 4)
    """
    from PIL import Image, UnidentifiedImageError

    with _without_limit(), _Bounded(FileIO(path)) as file:
        n_bytes, head = os.fstat(file.fileno()).st_size, file.read(30)
        file.seek(0)
        if head[4:12] in (*_HEIC, *_HEIC_OR_AVIF):
            _learn_heic(path, head[4:12] in _HEIC)
        if (size := _webp_size(head)) is not None:  # its decoder takes the memory when it is opened
            check_size(size, n_bytes, path)
        try:
            image = Image.open(file, formats=_formats())
        except UnidentifiedImageError:
            raise UnidentifiedImageError("it is none of the kinds that are read, or its start is damaged") from None
        with image:
            most = _MOST_JPEG if image.format in ("JPEG", "MPO") else _MOST
            if image.format == "PNG" and len(head) == 30:
                most = _MOST // max(1, head[24] * {2: 3, 4: 2, 6: 4}.get(head[25], 1))  # bits of a pixel
            check_size(image.size, n_bytes, path, most)
            yield image


def check_size(size: tuple[int, int], n_bytes: int, name: object, most: int = _MOST, n_layers: int = 1) -> None:
    """UserError where a file of n_bytes cannot hold so many layers of this (width, height), at `most` pixels a byte."""
    width, height = size
    if (n_pixels := width * height * n_layers) > HUGE and n_pixels > most * n_bytes:
        raise UserError(
            f"{name}: says that it is {width}x{height} pixels, which its {n_bytes:,} bytes cannot hold: the file is "
            "damaged, restore or remove it"
        )


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """(width, height) of a file that begins as a WebP, else None. Source: RFC 9649, 2.7 and 3.4; RFC 6386, 9.1."""
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return tuple(int.from_bytes(head[k : k + 2], "little") & 0x3FFF for k in (26, 28))  # type: ignore[return-value]


def _learn_heic(path: Path | str, needed: bool) -> None:
    """Teach Pillow to read HEIC, whatever the file's name; MissingPackage where it is needed and cannot be."""
    from PIL import Image

    if "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError:
        if not needed:
            return
        raise MissingPackage(
            f"{path}: is a HEIC photo, which needs the package pillow-heif: pip install pillow-heif "
            '(or "nerf-reconstruct[capture]" for all that captures need)'
        ) from None
    pillow_heif.register_heif_opener()


def _formats() -> list[str]:
    """Those of ours that this Pillow has; HEIF once a HEIC file was met."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow's own limit is off while any of our pictures is open, in whatever thread; then as it was."""
    global _n_open, _limit
    from PIL import Image

    with _lock:
        if _n_open == 0:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _n_open += 1
    try:
        yield
    finally:
        with _lock:
            _n_open -= 1
            if _n_open == 0:
                Image.MAX_IMAGE_PIXELS = _limit
