"""Pixels: reading image files, and the flat memory that holds a scene's images once, in the type they came in."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf.datasets import exr
from nerf.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".exr", ".webp", ".tif", ".tiff", ".bmp")
_MEMORY_LIMIT = 1 << 30  # larger stores live in a temporary file


@dataclass
class PixelStore:
    """Images of any sizes as one flat [total pixels, c] memory; image i, row r, column j is row offsets[i] + r *
    widths[i] + j.

    Channels are grey (1), grey + alpha (2), RGB (3) or RGBA (4); alpha is straight; colours are what the files hold,
    unconverted. Large sets lie in a file in tiles (see nerf.datasets.tiles): image i is then cut into squares of
    `tile` pixels, those at its right and lower edge filled up, which stand one after the other in row-major order.
    """

    memory: np.ndarray  # [total,c] uint8, uint16, float16 or float32; a memory-mapped file when large
    offsets: Tensor  # [n] int64
    heights: Tensor  # [n] int64
    widths: Tensor  # [n] int64
    tile: int = 0  # pixels along the side of a tile; 0: images lie row after row
    ranges: Tensor | None = None  # [tiles,2] of tiles: smallest and largest value of the last channel, float32

    def __post_init__(self) -> None:
        self._flat = as_tensor(self.memory)

    def to(self, device: torch.device) -> PixelStore:
        """The same pixels for indices that live on a device. The memory goes there too, unless it would fill half of
        what is free: then pixels travel batch by batch."""
        if device == self.offsets.device:
            return self
        store = replace(self, **{name: getattr(self, name).to(device) for name in ("offsets", "heights", "widths")})
        if self.tile:
            return store
        if device.type != "cuda" or self.memory.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
            store._flat = self._flat.to(device)
        return store

    @property
    def n_channels(self) -> int:
        return int(self.memory.shape[1])

    def __len__(self) -> int:
        return len(self.offsets)

    def gather(self, image_ids: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """The pixels (image, row, column) as float32 [n,c]; integers are divided by their largest value."""
        if self.tile:
            t = self.tile
            number = (rows // t) * (-(-self.widths[image_ids] // t)) + cols // t
            flat = self.offsets[image_ids] + number * t * t + rows % t * t + cols % t
        else:
            flat = self.offsets[image_ids] + rows * self.widths[image_ids] + cols
        values = self._flat.index_select(0, flat.to(self._flat.device))
        return self.to_float(values.to(flat.device))

    def image(self, i: int) -> Tensor:
        """The whole image as float32 [h,w,c]."""
        if self.tile:
            return self.to_float(as_tensor(self.raw(i)))
        h, w, start = int(self.heights[i]), int(self.widths[i]), int(self.offsets[i])
        return self.to_float(self._flat[start : start + h * w]).reshape(h, w, -1)

    def raw(self, i: int) -> np.ndarray:
        """The whole image [h,w,c] in the stored type; without a copy where it does not lie in tiles."""
        h, w, start = int(self.heights[i]), int(self.widths[i]), int(self.offsets[i])
        if self.tile:
            t = self.tile
            down, across = -(-h // t), -(-w // t)
            tiles = self.memory[start : start + down * across * t * t].reshape(down, across, t, t, -1)
            return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4).reshape(down * t, across * t, -1)[:h, :w])
        return self.memory[start : start + h * w].reshape(h, w, -1)

    def to_float(self, values: Tensor) -> Tensor:
        """Stored values (see `as_tensor`) as float32; integers are divided by their largest."""
        if self.memory.dtype == np.uint16:
            return (values.int() & 0xFFFF).float() / 65535
        return values.float() / 255 if self.memory.dtype == np.uint8 else values.float()


def as_tensor(values: np.ndarray) -> Tensor:
    """Without a copy, not to be written to. torch has no full support of uint16: it is looked at as int16, and
    `to_float` undoes the sign."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file that is mapped for reading cannot be written to, which is as it should
        return torch.from_numpy(values.view(np.int16) if values.dtype == np.uint16 else values)


@dataclass
class Picture:
    """What the header of an image file says, after its EXIF orientation."""

    path: Path
    width: int
    height: int
    n_channels: int
    dtype: np.dtype
    orientation: int = 1  # EXIF: 1 is upright; 5 to 8 swap width and height


def fill(
    sizes: list[tuple[int, int]], n_channels: int, dtype: np.dtype, decode: Callable[[int], np.ndarray]
) -> PixelStore:
    """A store of images of the given (height, width), each decoded once by decode(i) -> [h,w,c], in two threads."""
    counts = np.array([h * w for h, w in sizes], dtype=np.int64)
    offsets = np.cumsum(counts) - counts
    memory = allocate(int(counts.sum()), n_channels, dtype)

    def one(i: int) -> None:
        memory[offsets[i] : offsets[i] + counts[i]] = decode(i).reshape(-1, n_channels)

    in_two_threads(one, len(sizes))
    heights, widths = (torch.tensor([s[k] for s in sizes], dtype=torch.int64) for k in (0, 1))
    return PixelStore(memory, torch.from_numpy(offsets), heights, widths)


def in_two_threads(job: Callable[[int], None], n: int) -> None:
    """job(0) to job(n - 1), each once; raises the first error in that order."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        for _ in pool.map(job, range(n)):
            pass


def allocate(n_pixels: int, n_channels: int, dtype: np.dtype) -> np.ndarray:
    """Room for [n_pixels, n_channels]: in memory, or in an unlinked file on disk where it is large."""
    n_bytes = n_pixels * n_channels * dtype.itemsize
    if n_bytes <= _MEMORY_LIMIT:
        return np.empty((n_pixels, n_channels), dtype)
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < n_bytes * 1.05:
        raise UserError(
            f"the images need {n_bytes / 1e9:.1f} GB of disk in {folder}, which has less left: "
            "set TMPDIR to a larger disk, or load with a larger downscale"
        )
    handle, name = tempfile.mkstemp(prefix="nerf-pixels-")
    with os.fdopen(handle, "r+b") as f:
        f.truncate(n_bytes)
        memory = np.memmap(f, dtype, "r+", shape=(n_pixels, n_channels))
    try:
        os.unlink(name)  # the mapping keeps it alive, and the disk is freed whatever happens to us
    except OSError:
        pass  # Windows: stays in the temporary folder
    return memory


def read_header(path: Path) -> Picture:
    """Size, channels and type of an image file without decoding it."""
    if path.suffix.lower() == ".exr":
        width, height, channels = exr.read_header(path)
        names = exr.colour_channels(list(channels), path)
        dtype = np.dtype(np.float16) if channels[names[0]] == np.float16 else np.dtype(np.float32)
        return Picture(path, width, height, len(names), dtype)
    from PIL import Image

    try:
        with Image.open(path) as im:
            width, height = im.size
            # a PNG without EXIF up front would be decoded whole by getexif
            orientation = int(im.getexif().get(0x0112, 1)) if im.format != "PNG" or "exif" in im.info else 1
            mode, transparent = im.mode, "transparency" in im.info
            deep = _png_16_bit_channels(path) if im.format == "PNG" else 0
    except Exception as e:
        raise UserError(f"{path}: cannot be read as an image ({_brief(e)}): restore or remove the file") from e
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    if deep:
        return Picture(path, width, height, deep, np.dtype(np.uint16), orientation)
    if mode.startswith("I;16"):
        return Picture(path, width, height, 1, np.dtype(np.uint16), orientation)
    if mode == "F":
        return Picture(path, width, height, 1, np.dtype(np.float32), orientation)
    return Picture(path, width, height, len(_eight_bit_mode(mode, transparent)), np.dtype(np.uint8), orientation)


def read_pixels(picture: Picture, reduction: int = 1) -> np.ndarray:
    """Decode to [h,w,c] in the file's own type, turned upright unless picture.orientation is 1.

    reduction: 2, 4 or 8 asks the decoder of a JPEG for so many times fewer pixels each way; of other files it is
    ignored.
    """
    from PIL import Image

    path = picture.path
    try:
        if path.suffix.lower() == ".exr":
            return exr.read_colours(path)
        if picture.dtype == np.uint16 and picture.n_channels > 1:
            pixels = _read_png_16(path, picture.n_channels)
        else:
            with Image.open(path) as im:
                if reduction > 1 and im.format in ("JPEG", "MPO"):
                    im.draft(None, (im.width // reduction, im.height // reduction))  # type: ignore[arg-type]
                if picture.dtype == np.uint8:
                    im = im.convert(_eight_bit_mode(im.mode, "transparency" in im.info))
                pixels = np.asarray(im).astype(picture.dtype, copy=False)
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{path}: the image is damaged ({_brief(e)}): restore or remove the file") from e
    pixels = pixels.reshape(pixels.shape[0], pixels.shape[1], -1)
    return TURNS.get(picture.orientation, lambda a: a)(pixels)


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
    if mode in ("L", "1"):
        return "LA" if transparent else "L"
    if mode in ("LA", "La"):
        return "LA"
    return "RGBA" if transparent or mode in ("RGBA", "RGBa", "PA") else "RGB"


def _png_16_bit_channels(path: Path) -> int:
    """Channels of a PNG with 16 bits a channel, else 0 (Pillow would cut its colours to 8 bits)."""
    with open(path, "rb") as f:
        header = f.read(26)
    return {0: 1, 2: 3, 4: 2, 6: 4}.get(header[25], 0) if len(header) == 26 and header[24] == 16 else 0


def _read_png_16(path: Path, n_channels: int) -> np.ndarray:
    """[h,w,c] uint16 through ffmpeg, the decoder that is installed with us and keeps all 16 bits."""
    import subprocess

    import imageio_ffmpeg
    from PIL import Image

    with Image.open(path) as im:
        width, height = im.size
    layout = {1: "gray16be", 2: "ya16be", 3: "rgb48be", 4: "rgba64be"}[n_channels]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-noautorotate", "-i", str(path.absolute())]
    done = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", layout, "-"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if len(done.stdout) != width * height * n_channels * 2:
        raise ValueError(done.stderr.decode(errors="replace").strip().splitlines()[-1:] or "no picture in it")
    return np.frombuffer(done.stdout, ">u2").reshape(height, width, n_channels).astype(np.uint16)


def _brief(e: Exception) -> str:
    text = " ".join(str(e).split())
    return text[:120] or type(e).__name__


def convert(pixels: np.ndarray, n_channels: int, dtype: np.dtype) -> np.ndarray:
    """Bring [h,w,c] to common channels and type: grey is repeated, missing alpha is opaque, bytes are widened."""
    if pixels.dtype != dtype:
        if pixels.dtype == np.uint8 and dtype == np.uint16:
            pixels = pixels.astype(np.uint16) * 257
        elif pixels.dtype.kind == "u":
            pixels = (pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).astype(dtype)
        else:
            pixels = pixels.astype(dtype)
    c = pixels.shape[2]
    if c == n_channels:
        return pixels
    opaque = np.full(pixels.shape[:2] + (1,), np.iinfo(dtype).max if dtype.kind == "u" else 1, dtype)
    alpha = pixels[..., c - 1 :] if c in (2, 4) else opaque
    colour = pixels[..., : c - 1] if c in (2, 4) else pixels
    if n_channels >= 3 and colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    return np.concatenate([colour, alpha], axis=2) if n_channels in (2, 4) else colour
