"""Pixels: reading image files, and the flat memory that holds a scene's images once, in the type they came in."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nerf.io.memory import allocate
from nerf.io.threads import in_threads


@dataclass
class PixelStore:
    """Images of any sizes as one flat [total pixels, c] memory of grey, grey + alpha, RGB or RGBA (straight alpha) as
    the files hold it; row r, column j of image i is at offsets[i] + r * widths[i] + j. Where `tile` is not 0, it is
    cut into squares of `tile` pixels, filled up at its right and lower edge, in row-major order (nerf.datasets.tiles).
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
    def flat(self) -> Tensor:
        """The memory as torch has it (see `as_tensor`), where it is used."""
        return self._flat

    @property
    def is_integer(self) -> bool:
        """Whether it holds numbers of 8 or 16 bits, of which the largest means 1."""
        return self.memory.dtype in (np.uint8, np.uint16)

    def is_on(self, device: torch.device) -> bool:
        """Whether the pixels themselves are there, not only what finds them."""
        return not self.tile and self._flat.device == device

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


def fill(
    sizes: list[tuple[int, int]],
    n_channels: int,
    dtype: np.dtype,
    decode: Callable[[int], np.ndarray],
    n_threads: int = 2,
) -> PixelStore:
    """A store of images of the given (height, width), each decoded once by decode(i) -> [h,w,c], in threads."""
    counts = [h * w for h, w in sizes]
    memory = allocate(sum(counts), n_channels, dtype)
    return PixelStore(memory, *fill_rows(memory, sizes, counts, lambda i: decode(i).reshape(-1, n_channels), n_threads))


def fill_rows(
    memory: np.ndarray,
    sizes: list[tuple[int, int]],
    counts: list[int],
    decode: Callable[[int], np.ndarray],
    n_threads: int,
) -> Tensor:
    """Put decode(i), of counts[i] rows, one after the other into memory; (offsets, heights, widths) [3,n] int64."""
    offsets = np.cumsum([0, *counts])

    def one(i: int) -> None:
        memory[offsets[i] : offsets[i + 1]] = decode(i)

    in_threads(one, len(sizes), n_threads)
    return torch.cat([torch.from_numpy(offsets[:-1])[None], torch.tensor(sizes).T])
