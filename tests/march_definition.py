"""The march as it is defined: one ray and one interval at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nerf.kernels import reference
from nerf.kernels.records import MarchSettings, Rays, Samples
from nerf.kernels.reference.arithmetic import fma32
from nerf.kernels.reference.march_vectorised import check_march


def march_loop(
    rays_o: Tensor,
    rays_d: Tensor,
    t_near: Tensor,
    t_far: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    step_size: float,
    cone_angle: float = 0.0,
    max_step: float = math.inf,
) -> Samples:
    """The definition of `march`, interval by interval in float32: slow, and what every other marcher must reproduce
    exactly."""
    check_march(Rays(rays_o, rays_d, rays_d, t_near, t_far, jitter), occupied)
    MarchSettings(step_size, cone_angle, max_step)  # refuses steps that never end
    f32 = np.float32
    step, cone, longest = f32(step_size), f32(cone_angle), f32(max_step)
    n_levels, resolution = occupied.shape[0], occupied.shape[1]
    half_extent = 2.0 ** (n_levels - 1)
    cells = occupied.cpu().numpy().astype(bool)
    origins, directions = rays_o.detach().cpu().numpy(), rays_d.detach().cpu().numpy()
    nears, fars, jitters = (x.detach().cpu().numpy() for x in (t_near, t_far, jitter))

    def span(t: np.float32) -> np.float32:
        return step if cone == 0 else np.minimum(np.maximum(f32(t * cone), step), longest)

    starts: list[np.float32] = []
    ends: list[np.float32] = []
    owners: list[int] = []
    packed: list[tuple[int, int]] = []
    for ray in range(len(origins)):
        first = len(starts)
        t_first = f32(fma32(jitters[ray], span(nears[ray]), nears[ray]))
        t, k = t_first, 0
        while True:
            dt = span(t)
            t_mid = f32(t + f32(f32(0.5) * dt))
            if not t_mid < fars[ray]:
                break
            point = fma32(np.full(3, t_mid), directions[ray], origins[ray])
            norm = np.abs(point).max()
            k += 1
            t_next = f32(fma32(f32(k), step, t_first)) if cone == 0 else f32(t + dt)
            if norm < half_extent:
                level = 0
                while norm >= 2.0**level:
                    level += 1
                place = f32(point * f32(2.0**-level) * f32(0.5) + f32(0.5)) * f32(resolution)
                x, y, z = np.clip(np.floor(place).astype(np.int64), 0, resolution - 1)
                if cells[level, z, y, x]:
                    starts.append(t)
                    ends.append(t_next)
                    owners.append(ray)
            elif np.isnan(norm) or (np.abs(point) >= half_extent)[point * directions[ray] >= 0].any():
                break  # outside, and not on the way in: it never comes back
            if cone > 0 and not t_next > t:
                break  # the step is too short for the distance: t no longer moves
            t = t_next
        packed.append((first, len(starts) - first))
    device = rays_o.device
    return Samples(
        torch.tensor(np.array(starts, f32), device=device),
        torch.tensor(np.array(ends, f32), device=device),
        torch.tensor(owners, dtype=torch.int64, device=device),
        torch.tensor(packed, dtype=torch.int64, device=device).reshape(-1, 2),
    )


def march_at_once(
    rays_o: Tensor,
    rays_d: Tensor,
    t_near: Tensor,
    t_far: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    step_size: float,
    cone_angle: float = 0.0,
    max_step: float = math.inf,
) -> Samples:
    """`reference.march` of the same arguments."""
    rays = Rays(rays_o, rays_d, rays_d, t_near, t_far, jitter)
    return reference.march(rays, occupied, MarchSettings(step_size, cone_angle, max_step))
