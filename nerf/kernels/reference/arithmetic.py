"""Unsigned 32-bit products, float32 sums of products with one rounding as in native code, and ragged loops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

UINT32 = 0xFFFFFFFF


def mul_u32(value: Tensor, factor: int) -> Tensor:
    """`value * factor` modulo 2^32, for int64 values below 2^32, without overflowing int64."""
    high = (value * (factor >> 16)) & 0xFFFF
    return (value * (factor & 0xFFFF) + (high << 16)) & UINT32


def fma32(a: np.ndarray | np.float32, b: np.ndarray | np.float32, c: np.ndarray | np.float32) -> np.ndarray:
    """`a*b + c` of float32 values with one rounding, in float64 arithmetic.

    The product of two float32 is exact in float64. Where the sum is not, it is rounded to odd (Boldo and Melquiond
    2008): the last bit then remembers that something was lost, and the final rounding to float32 cannot be misled by
    the first.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    c = np.asarray(c, np.float64)
    total = product + c
    part = total - product
    with np.errstate(invalid="ignore"):
        error = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    lost = even & (error != 0) & np.isfinite(error)
    return np.where(lost, np.nextafter(total, toward), total).astype(np.float32)


def fma_tensor(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`fma32` of float32 tensors."""
    return torch.from_numpy(fma32(a.cpu().numpy(), b.cpu().numpy(), c.cpu().numpy())).to(a.device)


def ragged_chunks(counts: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(owner, k) for all k < counts[owner], in order, about `chunk` pairs at a time and never less than one owner."""
    ends = counts.cumsum(0)
    begin = 0
    while begin < counts.numel():
        base = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(torch.searchsorted(ends, base + chunk, right=True)))
        piece = counts[begin:stop]
        owner = torch.arange(begin, begin + len(piece), device=counts.device).repeat_interleave(piece)
        if owner.numel():
            firsts = (ends[begin:stop] - piece - base).repeat_interleave(piece)
            yield owner, torch.arange(owner.numel(), device=counts.device) - firsts
        begin = stop
