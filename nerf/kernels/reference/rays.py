"""The jitter of rays."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.kernels.reference.arithmetic import UINT32, mul_u32


def ray_jitter(seed: int, step: int, ray_index: Tensor) -> Tensor:
    """A number in [0,1) for each ray: an integer hash of (seed, step, ray), the same on every machine.

    `h = seed*0x9E3779B9 + step*0x85EBCA6B + ray*0xC2B2AE35` in uint32, the lowbias32 finaliser, then the top 24 bits /
    2^24.
    ray_index [n] integers, all three modulo 2^32, to [n] float32, exact.
    """
    if ray_index.is_floating_point():
        raise TypeError(f"ray_index: expected an integer dtype, got {ray_index.dtype}")
    start = (seed * 0x9E3779B9 + step * 0x85EBCA6B) & UINT32
    h = (mul_u32(ray_index.to(torch.int64) & UINT32, 0xC2B2AE35) + start) & UINT32
    h = mul_u32(h ^ (h >> 16), 0x7FEB352D)
    h = mul_u32(h ^ (h >> 15), 0x846CA68B)
    h = h ^ (h >> 16)
    return (h >> 8).to(torch.float32) * 2.0**-24
