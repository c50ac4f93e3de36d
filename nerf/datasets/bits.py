"""Masks in memory: a bit for each pixel, where the photo has three bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nerf.datasets.store import fill_rows


@dataclass
class MaskBits:
    """Masks of any sizes, used as a PixelStore of one channel whose values are 0 (ignored) and 1; the bits of image i
    begin at byte offsets[i], its pixels follow row by row, the highest bit first."""

    memory: Tensor  # [bytes] uint8
    offsets: Tensor  # [n] int64
    heights: Tensor  # [n] int64
    widths: Tensor  # [n] int64
    tile: int = 0  # as in a PixelStore whose images lie row after row
    ranges: None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def to(self, device: torch.device) -> MaskBits:
        """The same masks on a device."""
        here = {name: getattr(self, name).to(device) for name in ("memory", "offsets", "heights", "widths")}
        return replace(self, **here)

    def gather(self, image_ids: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Of the pixels (image, row, column) [n]: 1 where they are to be used, else 0; float32 [n,1]."""
        at = rows * self.widths[image_ids] + cols
        byte = self.memory.index_select(0, self.offsets[image_ids] + (at >> 3))
        return ((byte >> (7 - (at & 7)).to(torch.uint8)) & 1).float()[:, None]

    def image(self, i: int) -> Tensor:
        """The whole mask as float32 [h,w,1], on the CPU."""
        h, w, start = int(self.heights[i]), int(self.widths[i]), int(self.offsets[i])
        packed = self.memory[start : start + (h * w + 7) // 8].cpu().numpy()
        return torch.from_numpy(np.unpackbits(packed, count=h * w)).float().reshape(h, w, 1)


def packed(sizes: list[tuple[int, int]], decode: Callable[[int], np.ndarray], n_threads: int = 2) -> MaskBits:
    """Masks of the given (height, width), decoded once by decode(i) -> [h,w,1] uint8; used is what is above 127."""
    counts = [(h * w + 7) // 8 for h, w in sizes]
    memory = np.zeros(sum(counts), np.uint8)
    rows = fill_rows(memory, sizes, counts, lambda i: np.packbits(decode(i).reshape(-1) > 127), n_threads)
    return MaskBits(torch.from_numpy(memory), *rows)
