"""Where rays enter and leave the box, and their jitter."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.kernels.reference.arithmetic import UINT32, mul_u32
from nerf.kernels.reference.checks import check


def ray_box(
    rays_o: Tensor, rays_d: Tensor, half_extent: float, near: float = 0.0, far: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Where rays cross the box [-half_extent, half_extent]^3, cut to [near, far].

    Per axis the planes are met at `(-+half_extent - o) / d`; the ray is inside between the last entry and the first
    exit.
    A ray parallel to an axis meets no plane of it: that axis allows everything, or nothing if the origin lies outside.

    Args:
        rays_o, rays_d: [n, 3].
    Returns:
        t_near, t_far [n], in units of |d|; `t_near >= t_far` is a miss.
    """
    check("rays_o", rays_o, ("n", 3))
    check("rays_d", rays_d, (rays_o.shape[0], 3))
    parallel = rays_d == 0
    divisor = torch.where(parallel, torch.ones_like(rays_d), rays_d)
    t0 = (-half_extent - rays_o) / divisor
    t1 = (half_extent - rays_o) / divisor
    inside = rays_o.abs() <= half_extent
    unlimited = torch.where(inside, math.inf, -math.inf).to(rays_o.dtype)
    t_enter = torch.where(parallel, -unlimited, torch.minimum(t0, t1)).amax(dim=1)
    t_exit = torch.where(parallel, unlimited, torch.maximum(t0, t1)).amin(dim=1)
    return t_enter.clamp(min=near), t_exit.clamp(max=far)


def ray_jitter(seed: int, step: int, ray_index: Tensor) -> Tensor:
    """A number in [0,1) for each ray: an integer hash of (seed, step, ray), the same on every machine.

    `h = seed*0x9E3779B9 + step*0x85EBCA6B + ray*0xC2B2AE35` in uint32, the lowbias32 finaliser, then the top 24 bits /
    2^24.

    Args:
        ray_index: [n] integers. seed, step: integers; all three count modulo 2^32.
    Returns:
        [n] float32, exact.
    """
    if ray_index.is_floating_point():
        raise TypeError(f"ray_index: expected an integer dtype, got {ray_index.dtype}")
    start = (seed * 0x9E3779B9 + step * 0x85EBCA6B) & UINT32
    h = (mul_u32(ray_index.to(torch.int64) & UINT32, 0xC2B2AE35) + start) & UINT32
    h = mul_u32(h ^ (h >> 16), 0x7FEB352D)
    h = mul_u32(h ^ (h >> 15), 0x846CA68B)
    h = h ^ (h >> 16)
    return (h >> 8).to(torch.float32) * 2.0**-24
