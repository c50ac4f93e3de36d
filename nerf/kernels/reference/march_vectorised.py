"""The march for all rays at once: the samples of the definition, to the bit."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from nerf.geometry.space import ray_box
from nerf.kernels.checks import check, check_occupied
from nerf.kernels.records import MarchSettings, Rays, Samples
from nerf.kernels.reference.arithmetic import fma32, fma_tensor, ragged_chunks

# The vectorised march tests about this many lattice points at a time: arrays of this size still live in the cache.
MARCH_CHUNK = 1 << 18


@torch.no_grad()
def march(rays: Rays, occupied: Tensor, settings: MarchSettings) -> Samples:
    """Cut rays into intervals and keep those whose middle lies in an occupied cell.

    `dt(t) = clamp(t*cone_angle, step_size, max_step)` (`step_size` where the angle is 0), and
    `t_0 = fma(jitter, dt(t_near), t_near)`; `t_{k+1} = t_k + dt(t_k)`, or `fma(k, step_size, t_0)` for angle 0.
    Interval k is kept if `t_mid = t_k + dt/2 < t_far`, `p = fma(t_mid, d, o)` lies in the outermost box,
    `|p|_inf < 2^(K-1)`, and its cell is occupied in the finest level that holds p, the smallest k with `|p|_inf < 2^k`.
    float32 arithmetic, each operation rounded once. A ray may start outside the box; having left it, it is over.

    Rays in float32; t_near >= t_far: no samples. occupied: [K,R,R,R] bool, indexed [level,z,y,x]; level k covers
    [-2^k, 2^k]^3. Not differentiable (t values are constants of the step). Raises ValueError where a ray never leaves
    the box and its t_far is infinite.
    """
    check_march(rays, occupied)
    rays_o, rays_d, t_near, t_far, jitter = rays.o.detach(), rays.d.detach(), rays.t_near, rays.t_far, rays.jitter
    steps = settings.step_size, settings.cone_angle, settings.max_step
    step, cone, longest = (float(np.float32(value)) for value in steps)
    grid = _MarchGrid(rays_o, rays_d, occupied)
    # t_far, or where the ray has surely left the outermost box; from where it may be inside. The exact crossings bound
    # the rounded ones: p rounds to below the box's wall only if it is below. The slack is for the lattice's rounding.
    t_enter, t_leave = ray_box(rays_o.double(), rays_d.double(), grid.half_extent, -math.inf, math.inf)
    slack = 1e-5 * (1.0 + torch.maximum(t_near.double().abs(), torch.minimum(t_enter.abs(), t_leave.abs())))
    t_last = torch.minimum(t_far.double(), t_leave + slack)
    t_last = torch.where(t_enter <= t_leave + slack, t_last, -math.inf)
    if bool((t_last == math.inf).any()):
        ray = int((t_last == math.inf).nonzero()[0])
        raise ValueError(
            f"rays_d, t_far: ray {ray} never ends; expected a direction other than zero, or a finite t_far"
        )
    if cone == 0:
        t_first = fma_tensor(jitter, torch.full_like(jitter, step), t_near)
        pieces = _march_constant(grid, t_first, t_far, t_enter - slack, t_last, step)
    else:
        t_first = fma_tensor(jitter, (t_near * cone).clamp(step, longest), t_near)
        pieces = _march_cone(grid, t_first, t_far, t_last, step, cone, longest)
    return Samples.of(*pieces, n_rays=len(rays_o))


class _MarchGrid:
    """Rays, occupancy laid flat, and for one level with a constant step a coarse, dilated copy that rules out whole
    runs of steps."""

    def __init__(self, rays_o: Tensor, rays_d: Tensor, occupied: Tensor) -> None:
        self.rays_o, self.rays_d, self.occupied = rays_o, rays_d, occupied
        self.n_levels, self.resolution = occupied.shape[0], occupied.shape[1]
        self.half_extent = 2.0 ** (self.n_levels - 1)
        self.flat = occupied.reshape(-1)

    def plan_runs(self, step: float, slack: float) -> int:
        """How many lattice steps one coarse test may stand for, 1 for no coarse tests; prepares `near_occupied`.

        step: the most that a coordinate of p changes from one lattice point to the next; slack: what rounding may add.
        A coarse cell is 2x2x2 cells, dilated by one coarse cell: it knows about everything within 4/R of any point of
        it.
        """
        if self.n_levels > 1 or self.resolution % 2 or self.resolution < 16 or step <= 0:
            return 1
        run = int(min(2.0 * (0.95 * 4.0 / self.resolution - slack) / step, 64.0))
        if run < 4:
            return 1
        halves = max_pool3d(self.occupied[0].float()[None], 2)
        self.coarse = (max_pool3d(halves, 3, stride=1, padding=1) > 0).reshape(-1)
        return run

    def keeps(self, t_mid: Tensor, ray: Tensor) -> Tensor:
        """Whether the points at t_mid lie inside the outermost box, in an occupied cell.

        p is rounded from float64: that differs from one rounding about once in 2^29, and matters only on a cell wall.
        """
        t = t_mid.to(torch.float64)
        o, d = self.rays_o.t().double(), self.rays_d.t().double()
        axes = [(t * d[a].index_select(0, ray)).add_(o[a].index_select(0, ray)).to(torch.float32) for a in range(3)]
        norm = torch.maximum(torch.maximum(axes[0].abs(), axes[1].abs()), axes[2].abs())
        inside = norm < self.half_extent
        if self.n_levels == 1:
            return inside & self.flat[self._cell(axes, self.resolution)]
        level = sum((norm >= 2.0**k).to(torch.int64) for k in range(self.n_levels - 1))
        assert isinstance(level, Tensor)
        shrink = torch.exp2(-level.to(torch.float32))
        cell = level * self.resolution**3 + self._cell([p * shrink for p in axes], self.resolution)
        return inside & self.flat[cell]

    def near_occupied(self, t: Tensor, ray: Tensor) -> Tensor:
        """Whether anything occupied may lie within half a run of the points at t: never wrongly false."""
        o, d = self.rays_o.t(), self.rays_d.t()
        axes = [o[a].index_select(0, ray) + t * d[a].index_select(0, ray) for a in range(3)]
        return self.coarse[self._cell(axes, self.resolution // 2)]

    @staticmethod
    def _cell(axes: list[Tensor], resolution: int) -> Tensor:
        index: Tensor | int = 0
        for p in reversed(axes):  # z slowest
            # Clamped before the conversion: beyond the range of the integer it is undefined. Truncation is floor from
            # 0 up.
            place = ((p * 0.5 + 0.5) * resolution).clamp_(0, resolution - 1).nan_to_num_(0.0)
            index = index * resolution + place.to(torch.int64)
        assert isinstance(index, Tensor)
        return index


def _march_constant(
    grid: _MarchGrid, t_first: Tensor, t_far: Tensor, t_enter: Tensor, t_last: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The lattice of each ray is known in advance, so (ray, k) pairs are laid out flat and tested in chunks."""
    half = 0.5 * step
    # Bounds on k with room for rounding; `keeps` and t_far decide. Not-a-number rays get no steps.
    k_first = ((t_enter - t_first.double()) / step - 2.0).clamp(min=0.0).nan_to_num_(0.0, posinf=0.0).floor_()
    counts = ((t_last - t_first.double()) / step + 2.0 - k_first).nan_to_num_(0.0, neginf=0.0).clamp_(min=0.0)
    if counts.numel() and float((k_first + counts).max()) >= 2**24:
        worst = int((k_first + counts).argmax())
        raise ValueError(
            f"step_size: ray {worst} would take {float((k_first + counts)[worst]):.3g} steps of {step:g}; "
            "expected fewer than 2^24 from t_near to where it leaves the grid"
        )
    k_first = k_first.to(torch.int64)
    n_steps = counts.to(torch.int64)
    run_length = 1
    if int(n_steps.sum()) > MARCH_CHUNK // 8:  # below that the coarse grid costs more than it saves
        farthest = float(torch.where(n_steps > 0, t_last.abs(), 0.0).max())
        run_length = grid.plan_runs(step * float(grid.rays_d.abs().max()), 1e-6 * (2.0 + farthest))
    if run_length > 1:
        n_runs = -(n_steps // -run_length)
        runs = []
        for ray, run in ragged_chunks(n_runs, MARCH_CHUNK):
            t_run = t_first[ray] + ((run * run_length + k_first[ray]).to(torch.float32) + 0.5 * run_length) * step
            near = grid.near_occupied(t_run, ray).nonzero().squeeze(1)
            runs.append((ray[near], run[near] * run_length + k_first[ray[near]]))
        offsets = torch.arange(run_length, device=t_first.device)
        per_chunk = max(1, MARCH_CHUNK // run_length)
        candidates = (
            (ray.repeat_interleave(run_length), (first[:, None] + offsets).flatten())
            for rays, firsts in runs
            for ray, first in zip(rays.split(per_chunk), firsts.split(per_chunk), strict=True)
        )
    else:
        candidates = ((ray, k + k_first[ray]) for ray, k in ragged_chunks(n_steps, MARCH_CHUNK))
    kept_rays, kept_ks = [n_steps[:0]], [n_steps[:0]]
    for ray, k in candidates:
        # k*step is exact in float64 and so is the sum, for all ranges that occur: one rounding.
        t = (k.to(torch.float64) * step).add_(t_first.double().index_select(0, ray)).to(torch.float32)
        t_mid = t + half
        occupied = grid.keeps(t_mid, ray)
        kept = (occupied & (t_mid < t_far.index_select(0, ray))).nonzero().squeeze(1)
        kept_rays.append(ray[kept])
        kept_ks.append(k[kept])
    ray, k = torch.cat(kept_rays), torch.cat(kept_ks)
    t_zero = t_first.index_select(0, ray).cpu().numpy()
    steps = k.cpu().numpy().astype(np.float32)
    starts, ends = (torch.from_numpy(fma32(s, np.float32(step), t_zero)) for s in (steps, steps + np.float32(1)))
    return starts.to(ray.device), ends.to(ray.device), ray


def _march_cone(
    grid: _MarchGrid, t_first: Tensor, t_far: Tensor, t_last: Tensor, step: float, cone: float, longest: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each step depends on the one before, so all rays walk together and those that ended are dropped in batches."""
    alive = torch.arange(len(t_first), device=t_first.device)
    t = t_first
    starts, ends, rays = [t_first.new_zeros(0)], [t_first.new_zeros(0)], [alive[:0]]
    while alive.numel():
        # A block of lattice points [block, alive], then one flat test.
        block = max(1, min(64, MARCH_CHUNK // alive.numel()))
        ts, dts = [], []
        for _ in range(block):
            dt = (t * cone).clamp(step, longest)
            ts.append(t)
            dts.append(dt)
            t = t + dt
        t_k, dt_k = torch.stack(ts), torch.stack(dts)
        t_mid = t_k + 0.5 * dt_k
        ray = alive.expand(block, -1)
        occupied = grid.keeps(t_mid.reshape(-1), ray.reshape(-1))
        t_next = t_k + dt_k
        goes_on = (t_mid < t_far[alive]) & (t_mid <= t_last[alive])
        # A step too short for its distance no longer moves t: that point is still tested, none after it.
        moves = torch.ones_like(goes_on)
        moves[1:] = (t_next > t_k)[:-1].cummin(dim=0).values
        goes_on &= moves
        kept = (goes_on & occupied.view(block, -1)).nonzero(as_tuple=True)
        starts.append(t_k[kept])
        ends.append(t_next[kept])
        rays.append(ray[kept])
        going = (goes_on[-1] & (t_next > t_k)[-1]).nonzero().squeeze(1)
        alive, t = alive[going], t[going]
    ray = torch.cat(rays)
    order = torch.argsort(ray, stable=True)  # blocks came in order of t
    return torch.cat(starts)[order], torch.cat(ends)[order], ray[order]


def check_march(rays: Rays, occupied: Tensor) -> None:
    n = rays.o.shape[0]
    for name, tensor, shape in (
        ("rays_o", rays.o, (n, 3)),
        ("rays_d", rays.d, (n, 3)),
        ("t_near", rays.t_near, (n,)),
        ("t_far", rays.t_far, (n,)),
        ("jitter", rays.jitter, (n,)),
    ):
        check(name, tensor, shape)
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name}: expected float32 (samples must be the same on every backend), got {tensor.dtype}")
    check_occupied(occupied)
