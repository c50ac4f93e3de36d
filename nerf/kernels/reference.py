"""Every kernel again in plain torch: the oracle of the native backends, and the fallback where there is none.

Differentiable operations are written in terms of torch's own, so that they work in any float dtype, on any device, and
to any order of differentiation; the dtype of the positions (or rays) decides. Two marchers stand side by side:
`march_loop` is the definition, one ray and one interval at a time; `march` gives the same samples, vectorised.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nerf.kernels.layout import FieldConfig, FieldParams, GradientSink, GridLayout, Samples

HASH_PRIMES = (1, 2654435761, 805459861, 3674653429)
UINT32 = 0xFFFFFFFF
# exp(15) = 3.3e6 per scene length is opaque at every step length in use.
DENSITY_CLAMP = 15.0

# The vectorised march tests about this many lattice points at a time: arrays of this size still live in the cache.
MARCH_CHUNK = 1 << 18


# --- checks ----------------------------------------------------------------------------------------------------------


def _check(name: str, tensor: Tensor, shape: Sequence[int | str], floating: bool = True) -> None:
    """Raise with the argument's name unless `tensor` has this shape (letters stand for any size) and a float dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(tensor).__name__}")
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name}: expected shape [{expected}], got {list(tensor.shape)}")
    if floating and not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a float dtype, got {tensor.dtype}")


# --- encodings -------------------------------------------------------------------------------------------------------


def hashgrid_encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Interpolate the features of a multi-resolution hash grid, linearly per level.

    `pos = x*scale + 0.5; cell = floor(pos); w = pos - cell`; rows at the 2^d corners of the cell, each times its
    product of `w` or `1-w`. Corner `i` of a dense level is row `i0 + i1*res + i2*res^2 + ...`, of a hashed level the
    exclusive or of all `i_k*prime_k`: unsigned 32-bit numbers, modulo the level's size (which guards x = 1 if dense).

    Args:
        positions: [n, d] float, unit frame. Values outside [0,1] are clamped to it (no gradient there); no error.
        table: [n_rows, F] float.
        layout: the shape of the grid; `d` and `F` must be its own.
    Returns:
        [n, L*F] of the positions' dtype, level-major: feature f of level l in column l*F + f.

    Differentiable in `table` and in `positions` (piecewise: the gradient jumps at cell walls).
    Source: Mueller et al. 2022, equations 2 to 4; conventions of tiny-cuda-nn.
    """
    _check("positions", positions, ("n", layout.n_dims))
    _check("table", table, (layout.n_rows, layout.n_features_per_level))
    table, positions = table.to(positions.dtype), positions.clamp(0.0, 1.0)
    levels = []
    for level in range(layout.n_levels):
        size, dense = layout.level_sizes[level], layout.dense[level]
        pos = positions.t() * layout.scales[level] + 0.5  # [d, n], so that each axis is contiguous
        cell = pos.detach().floor()
        upper = pos - cell
        # (row index, weight) of the corners, one axis after the other: 2, 4, 8, ... of them.
        corners: list[tuple[Tensor | int, Tensor | float]] = [(0, 1.0)]
        for axis in range(layout.n_dims):
            # Of a product modulo a power of two only the low bits matter, so the prime may be reduced first.
            stride = layout.resolutions[level] ** axis if dense else HASH_PRIMES[axis] % size
            low = cell[axis].to(torch.int64) * stride
            sides = ((low, 1.0 - upper[axis]), (low + stride, upper[axis]))
            corners = [
                (index + term if dense else index ^ (term & (size - 1)), weight * side_weight)
                for index, weight in corners
                for term, side_weight in sides
            ]
        # Features first, [F, rows] and [F, n]: torch is much faster along long rows than along rows of two or four.
        rows = table[layout.offsets[level] : layout.offsets[level + 1]].t().contiguous()
        features: list[Tensor] = []
        for index, weight in corners:
            assert isinstance(index, Tensor)
            if dense:
                index = (index & UINT32) % size
            features.append(rows.index_select(1, index) * weight)
        levels.append(functools.reduce(torch.add, features))
    return torch.cat(levels).t().contiguous()


def sh_encode(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics of unit directions, all bands below `degree`.

    Order and signs are instant-ngp's: band l holds m = -l..l in columns l^2..l^2+2l, with the Condon-Shortley sign, so
    band 1 is `sqrt(3/(4 pi)) * (-y, z, -x)`.

    Args:
        directions: [n, 3] float, unit length (not checked: the polynomials are evaluated as they are).
        degree: 1 to 4.
    Returns:
        [n, degree^2] of the same dtype. Differentiable.
    """
    _check("directions", directions, ("n", 3))
    if degree not in (1, 2, 3, 4):
        raise ValueError(f"degree: expected 1, 2, 3 or 4, got {degree!r}")
    x, y, z = directions.unbind(1)
    root = math.sqrt
    pi = math.pi
    bands = [torch.full_like(x, 0.5 * root(1 / pi))]
    if degree > 1:
        c = root(3 / (4 * pi))
        bands += [-c * y, c * z, -c * x]
    if degree > 2:
        c = root(15 / (4 * pi))
        bands += [
            c * (x * y),
            -c * (y * z),
            root(5 / (16 * pi)) * (3 * z * z - 1),
            -c * (x * z),
            0.5 * c * (x * x - y * y),
        ]
    if degree > 3:
        c1, c2, c3 = root(21 / (32 * pi)), root(105 / (16 * pi)), root(35 / (32 * pi))
        bands += [
            c3 * y * (y * y - 3 * x * x),
            2 * c2 * (x * y * z),
            c1 * y * (1 - 5 * z * z),
            root(7 / (16 * pi)) * z * (5 * z * z - 3),
            c1 * x * (1 - 5 * z * z),
            c2 * z * (x * x - y * y),
            c3 * x * (3 * y * y - x * x),
        ]
    return torch.stack(bands, dim=1)


# --- networks and the field ------------------------------------------------------------------------------------------


def mlp(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Fully connected network without biases: `x <- relu(x W^T)` for all layers but the last, which is linear.

    Args:
        x: [n, i]; weights: at least one [out, in], in order, each `in` the `out` before it.
    Returns:
        [n, o]. Differentiable in all.
    """
    if not weights:
        raise ValueError("weights: expected at least one layer, got none")
    _check("x", x, ("n", weights[0].shape[-1]))
    for i, weight in enumerate(weights):
        _check(f"weights[{i}]", weight, ("out", x.shape[1]))
        x = x @ weight.to(x.dtype).t()
        if i + 1 < len(weights):
            x = torch.relu(x)
    return x


def contract(x: Tensor) -> Tensor:
    """L-inf contraction of space into [-2,2]^d: identity where `|x|_inf <= 1`, else `(2 - 1/|x|_inf) * x/|x|_inf`.

    x: [n, d], scene frame. Differentiable; where two coordinates tie for the maximum they share its gradient.
    Source: Mip-NeRF 360 (Barron et al. 2022), equation 10, with the maximum norm as nerfacto and NeRFacc use it.
    """
    _check("x", x, ("n", "d"))
    # With the norm clamped at 1 the factor is exactly 1 inside, so one formula serves both sides.
    norm = x.abs().amax(dim=1, keepdim=True).clamp(min=1.0)
    return x * ((2.0 - 1.0 / norm) / norm)


def scene_to_unit(x: Tensor, contracted: bool) -> Tensor:
    """Scene frame to unit frame: `(x+1)/2` for the box [-1,1]^d, `(contract(x)+2)/4` for unbounded space. [n,d] to
    [n,d]."""
    return (contract(x) + 2.0) * 0.25 if contracted else (x + 1.0) * 0.5


class _TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(h)
        return h.clamp(max=DENSITY_CLAMP).exp()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        # Made of differentiable operations, so that a second derivative exists (gradgradchecked).
        (h,) = ctx.saved_tensors
        return grad * h.clamp(-DENSITY_CLAMP, DENSITY_CLAMP).exp()


def density_activation(h: Tensor) -> Tensor:
    """`exp(min(h, 15))`, whose gradient is taken as `exp(clamp(h, -15, 15))` so that no sample is ever stuck.

    Any shape. The gradient is that of exp within |h| <= 15; outside it is the value at the nearer end, not the true
    derivative.
    """
    return _TruncatedExp.apply(h)


def _density_features(positions: Tensor, params: FieldParams, config: FieldConfig) -> Tensor:
    _check("positions", positions, ("n", 3))
    unit = scene_to_unit(positions, config.contracted)
    return mlp(hashgrid_encode(unit, params.table, config.layout), params.density_weights)


def radiance_density(positions: Tensor, params: FieldParams, config: FieldConfig) -> Tensor:
    """Density alone: `sigmas` [n] (1/scene length) at scene positions [n,3]. As `radiance_field`, without the
    colour."""
    return density_activation(_density_features(positions, params, config)[:, 0] + config.density_bias)


def radiance_field(
    positions: Tensor, directions: Tensor, params: FieldParams, config: FieldConfig
) -> tuple[Tensor, Tensor]:
    """Density and colour of the field.

    `h = mlp(hashgrid(unit), density_weights)`; `sigma = density_activation(h[0] + density_bias)`;
    `rgb = sigmoid(mlp([sh_encode(direction, 4), h], color_weights))`, where h is taken whole, its first column
    included.

    Args:
        positions: [n, 3], scene frame; directions: [n, 3], unit.
        params, config: table, weights; layout, contraction, bias.
    Returns:
        sigmas [n] (1/scene length), rgbs [n, 3] in (0,1). Differentiable in positions, directions and all parameters.
    """
    _check("directions", directions, (positions.shape[0], 3))
    h = _density_features(positions, params, config)
    sigmas = density_activation(h[:, 0] + config.density_bias)
    rgbs = torch.sigmoid(mlp(torch.cat([sh_encode(directions, 4), h], dim=1), params.color_weights))
    return sigmas, rgbs


# --- rays ------------------------------------------------------------------------------------------------------------


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
    _check("rays_o", rays_o, ("n", 3))
    _check("rays_d", rays_d, (rays_o.shape[0], 3))
    parallel = rays_d == 0
    divisor = torch.where(parallel, torch.ones_like(rays_d), rays_d)
    t0 = (-half_extent - rays_o) / divisor
    t1 = (half_extent - rays_o) / divisor
    inside = rays_o.abs() <= half_extent
    unlimited = torch.where(inside, math.inf, -math.inf).to(rays_o.dtype)
    t_enter = torch.where(parallel, -unlimited, torch.minimum(t0, t1)).amax(dim=1)
    t_exit = torch.where(parallel, unlimited, torch.maximum(t0, t1)).amin(dim=1)
    return t_enter.clamp(min=near), t_exit.clamp(max=far)


def _mul_u32(value: Tensor, factor: int) -> Tensor:
    """`value * factor` modulo 2^32, for int64 values below 2^32, without overflowing int64."""
    high = (value * (factor >> 16)) & 0xFFFF
    return (value * (factor & 0xFFFF) + (high << 16)) & UINT32


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
    h = (_mul_u32(ray_index.to(torch.int64) & UINT32, 0xC2B2AE35) + start) & UINT32
    h = _mul_u32(h ^ (h >> 16), 0x7FEB352D)
    h = _mul_u32(h ^ (h >> 15), 0x846CA68B)
    h = h ^ (h >> 16)
    return (h >> 8).to(torch.float32) * 2.0**-24


# --- march: the definition -------------------------------------------------------------------------------------------


def _fma32(a: np.ndarray | np.float32, b: np.ndarray | np.float32, c: np.ndarray | np.float32) -> np.ndarray:
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
    _check_march(rays_o, rays_d, t_near, t_far, jitter, occupied, step_size, cone_angle, max_step)
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
        t_first = f32(_fma32(jitters[ray], span(nears[ray]), nears[ray]))
        t, k = t_first, 0
        while True:
            dt = span(t)
            t_mid = f32(t + f32(f32(0.5) * dt))
            if not t_mid < fars[ray]:
                break
            point = _fma32(np.full(3, t_mid), directions[ray], origins[ray])
            norm = np.abs(point).max()
            k += 1
            t_next = f32(_fma32(f32(k), step, t_first)) if cone == 0 else f32(t + dt)
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


def _check_march(
    rays_o: Tensor,
    rays_d: Tensor,
    t_near: Tensor,
    t_far: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    step_size: float,
    cone_angle: float,
    max_step: float,
) -> None:
    _check("rays_o", rays_o, ("n", 3))
    n = rays_o.shape[0]
    for name, tensor, shape in (
        ("rays_o", rays_o, (n, 3)),
        ("rays_d", rays_d, (n, 3)),
        ("t_near", t_near, (n,)),
        ("t_far", t_far, (n,)),
        ("jitter", jitter, (n,)),
    ):
        _check(name, tensor, shape)
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name}: expected float32 (samples must be the same on every backend), got {tensor.dtype}")
    _check("occupied", occupied, ("K", "R", "R", "R"), floating=False)
    if occupied.dtype != torch.bool or len(set(occupied.shape[1:])) != 1 or 0 in occupied.shape:
        raise ValueError(f"occupied: expected a bool cube [K,R,R,R], got {occupied.dtype} {list(occupied.shape)}")
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size: expected a positive length, got {step_size!r}")
    if not (math.isfinite(cone_angle) and cone_angle >= 0):
        raise ValueError(f"cone_angle: expected a number >= 0, got {cone_angle!r}")
    if not max_step >= step_size:
        raise ValueError(f"max_step: expected at least step_size ({step_size!r}), got {max_step!r}")


# --- march: vectorised -----------------------------------------------------------------------------------------------


@torch.no_grad()
def march(
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
    """Cut rays into intervals and keep those whose middle lies in an occupied cell.

    `dt(t) = clamp(t*cone_angle, step_size, max_step)` (`step_size` where the angle is 0), and
    `t_0 = fma(jitter, dt(t_near), t_near)`; `t_{k+1} = t_k + dt(t_k)`, or `fma(k, step_size, t_0)` for angle 0.
    Interval k is kept if `t_mid = t_k + dt/2 < t_far`, `p = fma(t_mid, d, o)` lies in the outermost box,
    `|p|_inf < 2^(K-1)`, and its cell is occupied in the finest level that holds p, the smallest k with `|p|_inf < 2^k`.
    float32 arithmetic, each operation rounded once. A ray may start outside the box; having left it, it is over.

    Args:
        rays_o, rays_d: [n, 3] float32, scene frame. t_near, t_far: [n] float32 (`t_near >= t_far`: no samples).
        jitter: [n] float32 in [0,1), see `ray_jitter`.
        occupied: [K, R, R, R] bool, indexed [level, z, y, x]; level k covers [-2^k, 2^k]^3.
        step_size, max_step: scene length; cone_angle: growth of the step per length.
    Returns:
        Samples; not differentiable (t values are constants of the step).
    Errors:
        ValueError where a ray never leaves the box and its t_far is infinite.
    """
    _check_march(rays_o, rays_d, t_near, t_far, jitter, occupied, step_size, cone_angle, max_step)
    rays_o, rays_d = rays_o.detach(), rays_d.detach()
    step, cone, longest = (float(np.float32(value)) for value in (step_size, cone_angle, max_step))
    grid = _MarchGrid(occupied)
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
        t_first = _fma_tensor(jitter, torch.full_like(jitter, step), t_near)
        pieces = _march_constant(rays_o, rays_d, t_first, t_far, t_enter - slack, t_last, grid, step)
    else:
        t_first = _fma_tensor(jitter, (t_near * cone).clamp(step, longest), t_near)
        pieces = _march_cone(rays_o, rays_d, t_first, t_far, t_last, grid, step, cone, longest)
    t_starts, t_ends, ray_indices = pieces
    counts = torch.bincount(ray_indices, minlength=rays_o.shape[0])
    packed_info = torch.stack([counts.cumsum(0) - counts, counts], dim=1)
    return Samples(t_starts, t_ends, ray_indices, packed_info)


def _fma_tensor(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`_fma32` of float32 tensors."""
    return torch.from_numpy(_fma32(a.cpu().numpy(), b.cpu().numpy(), c.cpu().numpy())).to(a.device)


class _MarchGrid:
    """Occupancy laid flat, and for one level with a constant step a coarse, dilated copy that rules out whole runs of
    steps."""

    def __init__(self, occupied: Tensor) -> None:
        self.occupied = occupied
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
        coarse = self.occupied[0]
        for axis in range(3):
            halves = coarse.unflatten(axis, (self.resolution // 2, 2))
            coarse = halves.select(axis + 1, 0) | halves.select(axis + 1, 1)
        for axis in range(3):
            inner = coarse.shape[axis] - 1
            wide = coarse.clone()
            wide.narrow(axis, 1, inner).logical_or_(coarse.narrow(axis, 0, inner))
            wide.narrow(axis, 0, inner).logical_or_(coarse.narrow(axis, 1, inner))
            coarse = wide
        self.coarse = coarse.reshape(-1)
        return run

    def keeps(self, t_mid: Tensor, ray: Tensor, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """Whether the points at t_mid lie inside the outermost box, in an occupied cell.

        p is rounded from float64: that differs from one rounding about once in 2^29, and matters only on a cell wall.
        """
        t = t_mid.to(torch.float64)
        axes, norm = [], None
        for axis in range(3):
            d = rays_d[:, axis].to(torch.float64).index_select(0, ray)
            o = rays_o[:, axis].to(torch.float64).index_select(0, ray)
            p = (t * d).add_(o).to(torch.float32)
            axes.append(p)
            norm = p.abs() if norm is None else torch.maximum(norm, p.abs())
        assert norm is not None
        inside = norm < self.half_extent
        if self.n_levels == 1:
            return inside & self.flat[self._cell(axes, self.resolution)]
        level = sum((norm >= 2.0**k).to(torch.int64) for k in range(self.n_levels - 1))
        assert isinstance(level, Tensor)
        shrink = torch.exp2(-level.to(torch.float32))
        cell = level * self.resolution**3 + self._cell([p * shrink for p in axes], self.resolution)
        return inside & self.flat[cell]

    def near_occupied(self, t: Tensor, ray: Tensor, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """Whether anything occupied may lie within half a run of the points at t: never wrongly false."""
        axes = [rays_o[:, a].index_select(0, ray) + t * rays_d[:, a].index_select(0, ray) for a in range(3)]
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
    rays_o: Tensor,
    rays_d: Tensor,
    t_first: Tensor,
    t_far: Tensor,
    t_enter: Tensor,
    t_last: Tensor,
    grid: _MarchGrid,
    step: float,
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
        run_length = grid.plan_runs(step * float(rays_d.abs().max()), 1e-6 * (2.0 + farthest))
    if run_length > 1:
        n_runs = -(n_steps // -run_length)
        runs = []
        for ray, run in _ragged_chunks(n_runs):
            t_run = t_first[ray] + ((run * run_length + k_first[ray]).to(torch.float32) + 0.5 * run_length) * step
            near = grid.near_occupied(t_run, ray, rays_o, rays_d).nonzero().squeeze(1)
            runs.append((ray[near], run[near] * run_length + k_first[ray[near]]))
        offsets = torch.arange(run_length, device=rays_o.device)
        per_chunk = max(1, MARCH_CHUNK // run_length)
        candidates = (
            (ray.repeat_interleave(run_length), (first[:, None] + offsets).flatten())
            for rays, firsts in runs
            for ray, first in zip(rays.split(per_chunk), firsts.split(per_chunk), strict=True)
        )
    else:
        candidates = ((ray, k + k_first[ray]) for ray, k in _ragged_chunks(n_steps))
    kept_rays, kept_ks = [rays_o.new_zeros(0, dtype=torch.int64)], [rays_o.new_zeros(0, dtype=torch.int64)]
    for ray, k in candidates:
        # k*step is exact in float64 and so is the sum, for all ranges that occur: one rounding.
        t = (k.to(torch.float64) * step).add_(t_first.double().index_select(0, ray)).to(torch.float32)
        t_mid = t + half
        occupied = grid.keeps(t_mid, ray, rays_o, rays_d)
        kept = (occupied & (t_mid < t_far.index_select(0, ray))).nonzero().squeeze(1)
        kept_rays.append(ray[kept])
        kept_ks.append(k[kept])
    ray, k = torch.cat(kept_rays), torch.cat(kept_ks)
    t_zero = t_first.index_select(0, ray).cpu().numpy()
    steps = k.cpu().numpy().astype(np.float32)
    starts, ends = (torch.from_numpy(_fma32(s, np.float32(step), t_zero)) for s in (steps, steps + np.float32(1)))
    return starts.to(ray.device), ends.to(ray.device), ray


def _ragged_chunks(counts: Tensor):  # type: ignore[no-untyped-def]
    """Yield (ray, k) for all k < counts[ray], in order, about MARCH_CHUNK pairs at a time and never less than one
    ray."""
    ends = counts.cumsum(0)
    begin = 0
    while begin < counts.numel():
        base = int(ends[begin - 1]) if begin else 0
        stop = int(torch.searchsorted(ends, base + MARCH_CHUNK, right=True))
        stop = max(begin + 1, stop)
        piece = counts[begin:stop]
        ray = torch.repeat_interleave(torch.arange(begin, min(stop, counts.numel()), device=counts.device), piece)
        if ray.numel():
            firsts = (ends[begin:stop] - piece - base).repeat_interleave(piece)
            yield ray, torch.arange(ray.numel(), device=counts.device) - firsts
        begin = stop


def _march_cone(
    rays_o: Tensor,
    rays_d: Tensor,
    t_first: Tensor,
    t_far: Tensor,
    t_last: Tensor,
    grid: _MarchGrid,
    step: float,
    cone: float,
    longest: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each step depends on the one before, so all rays walk together and those that ended are dropped in batches."""
    alive = torch.arange(rays_o.shape[0], device=rays_o.device)
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
        occupied = grid.keeps(t_mid.reshape(-1), ray.reshape(-1), rays_o, rays_d)
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


# --- composite -------------------------------------------------------------------------------------------------------


def _places(packed_info: Tensor, ray_indices: Tensor) -> Tensor:
    """Position of each sample within its ray. [s] int64."""
    starts = packed_info[:, 0].index_select(0, ray_indices)
    return torch.arange(ray_indices.shape[0], device=ray_indices.device) - starts


def _sums_before(x: Tensor, places: Tensor, longest: int) -> Tensor:
    """Sum over the samples before each one on its ray (exclusive). [s] to [s].

    Doubling (Hillis and Steele): no ray's sum ever meets another's, so a huge density or a NaN on one ray costs no
    other ray its digits, as subtracting from one long running sum would.
    """

    def from_earlier(values: Tensor, shift: int) -> Tensor:
        moved = torch.cat([values.new_zeros(shift), values[:-shift]])
        return torch.where(places >= shift, moved, torch.zeros_like(moved))

    if longest == 0:
        return x
    total = from_earlier(x, 1)  # reaches one sample back, and makes the sum exclusive
    reach = 1
    while reach < longest:
        total = total + from_earlier(total, reach)
        reach *= 2
    return total


def composite(
    samples: Samples, sigmas: Tensor, rgbs: Tensor, n_rays: int, stop_threshold: float = 0.0
) -> dict[str, Tensor]:
    """Volume rendering quadrature per ray, without a background.

    `alpha = 1 - exp(-sigma*dt)`, `trans_i = exp(-sum_{j<i} sigma_j dt_j)`, `w = trans*alpha`, `t_mid = (t_start +
    t_end)/2`.

    Args:
        samples: s intervals of n rays; their t are constants. sigmas: [s] >= 0 (1/scene length); rgbs: [s, 3].
        n_rays: n, also counting rays without samples.
        stop_threshold: a sample with `trans < stop_threshold` contributes nothing: weight 0, no gradient.
    Returns:
        colors [n,3] (sum w*rgb), opacities [n] (sum w), depths [n] (sum w*t_mid), second_moments [n] (sum w*|rgb|^2),
        distortions [n] (sum_ij w_i w_j |m_i - m_j| + sum w^2 dt / 3, m = t_mid), median_depths [n] (t at which the
        opacity reaches 1/2, with sigma constant in each sample, 0 where it does not; not differentiable), and per
        sample weights, trans [s].
        A ray without samples has zeros. Differentiable in sigmas and rgbs.
    Source: NeRF (Mildenhall et al. 2020), equation 3; distortion: Mip-NeRF 360, equation 15 (in scene length).
    """
    n_samples = samples.t_starts.shape[0]
    _check("sigmas", sigmas, (n_samples,))
    _check("rgbs", rgbs, (n_samples, 3))
    _check("samples.packed_info", samples.packed_info, (n_rays, 2), floating=False)
    dtype, ray = sigmas.dtype, samples.ray_indices
    t_starts, t_ends = samples.t_starts.to(dtype), samples.t_ends.to(dtype)
    dts, mids = t_ends - t_starts, 0.5 * (t_starts + t_ends)
    places = _places(samples.packed_info, ray)
    longest = int(samples.packed_info[:, 1].max()) if n_samples else 0

    depth = sigmas * dts
    alphas = -torch.expm1(-depth)
    trans = torch.exp(-_sums_before(depth, places, longest))
    contributes = trans >= stop_threshold
    weights = torch.where(contributes, trans * alphas, torch.zeros_like(trans))

    def per_ray(values: Tensor) -> Tensor:
        return values.new_zeros((n_rays, *values.shape[1:])).index_add(0, ray, values)

    # |m_i - m_j| over sorted middles: 2 sum_i w_i (m_i W_<i - (wm)_<i). Middles count from the ray's first, against
    # cancellation.
    first = samples.packed_info[:, 0].index_select(0, ray)
    from_first = mids - mids.index_select(0, first)
    before = _sums_before(weights, places, longest)
    moment_before = _sums_before(weights * from_first, places, longest)
    distortion = 2.0 * weights * (from_first * before - moment_before) + weights * weights * dts / 3.0

    with torch.no_grad():
        reached = (contributes & (trans * torch.exp(-depth) <= 0.5)).nonzero().squeeze(1)
        first_reached = torch.full((n_rays,), n_samples, dtype=torch.int64, device=ray.device)
        first_reached.scatter_reduce_(0, ray[reached], reached, "amin")
        # light falls as exp(-sigma t); of an opaque sample float32 only knows that a millionth at most is left
        within = (torch.log(2 * trans) / depth.clamp(1e-30, math.log(1e6))).clamp(0, 1)
        with_none = torch.cat([t_starts + within * dts, mids.new_zeros(1)])
        median_depths = with_none[first_reached]

    return {
        "colors": per_ray(weights.unsqueeze(1) * rgbs),
        "opacities": per_ray(weights),
        "depths": per_ray(weights * mids),
        "second_moments": per_ray(weights * (rgbs * rgbs).sum(dim=1)),
        "distortions": per_ray(distortion),
        "median_depths": median_depths,
        "weights": weights,
        "trans": trans,
    }


def render_rays(
    rays_o: Tensor,
    rays_d: Tensor,
    viewdirs: Tensor,
    t_near: Tensor,
    t_far: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    params: FieldParams,
    config: FieldConfig,
    *,
    step_size: float,
    cone_angle: float = 0.0,
    max_step: float = math.inf,
    stop_threshold: float = 0.0,
    alpha_threshold: float = 0.0,
    gradient_distance: float = 0.0,
) -> dict:
    """March, evaluate the field, composite: the staged path, whose numbers the fused kernels must give.

    Args:
        rays_o, rays_d: [n, 3], scene frame; viewdirs: [n, 3] unit, what the colour network sees (in NDC not rays_d).
        t_near, t_far, jitter, occupied, step_size, cone_angle, max_step: see `march`; marched in float32 in any dtype.
        params, config: see `radiance_field`; stop_threshold: see `composite`.
        alpha_threshold: samples with `alpha < alpha_threshold` are taken out first, as if their density were zero: they
            have no weight and no gradient, and hide nothing behind them.
        gradient_distance: gradients of samples nearer than this are scaled by (t / gradient_distance)^2, because
            space near a camera is sampled more densely by as much (Philip and Deschaintre 2023); values do not change.
    Returns:
        the dictionary of `composite`, with weights and trans [s] of all samples marched, and two numbers of samples:
        "evaluated" (density) and "kept" (colour and gradient). Differentiable in rays_o, rays_d, viewdirs, table and
        weights; t values are constants.
    """
    _check("viewdirs", viewdirs, (rays_o.shape[0], 3))
    o, d, near, far, start = (x.detach().to(torch.float32) for x in (rays_o, rays_d, t_near, t_far, jitter))
    samples = march(o, d, near, far, start, occupied, step_size, cone_angle, max_step)
    n_rays, n_samples = rays_o.shape[0], samples.t_starts.shape[0]

    kept = None
    if (stop_threshold > 0 or alpha_threshold > 0) and n_samples:
        # Samples that contribute nothing are found by density alone, and spared their colours and gradients.
        with torch.no_grad():
            sigmas = radiance_density(sample_positions(samples, rays_o, rays_d), params, config)
            samples, kept, all_trans = seen_samples(samples, sigmas, n_rays, stop_threshold, alpha_threshold)
    ray = samples.ray_indices
    positions = sample_positions(samples, rays_o, rays_d)
    sigmas, rgbs = radiance_field(positions, viewdirs.index_select(0, ray), params, config)
    sigmas, rgbs = scale_near_gradients(samples, sigmas, rgbs, gradient_distance)
    out: dict = composite(samples, sigmas, rgbs, n_rays)
    out["evaluated"], out["kept"] = n_samples, ray.shape[0]
    if kept is not None:
        out["weights"] = out["weights"].new_zeros(n_samples).index_copy(0, kept, out["weights"])
        out["trans"] = all_trans.index_copy(0, kept, out["trans"])
    return out


def sample_positions(samples: Samples, rays_o: Tensor, rays_d: Tensor) -> Tensor:
    """Scene positions [s,3] of the samples' middles on their rays [n,3]; differentiable in the rays."""
    mids = 0.5 * (samples.t_starts.to(rays_o.dtype) + samples.t_ends.to(rays_o.dtype))
    ray = samples.ray_indices
    return rays_o.index_select(0, ray) + mids.unsqueeze(1) * rays_d.index_select(0, ray)


def seen_samples(
    samples: Samples, sigmas: Tensor, n_rays: int, stop_threshold: float, alpha_threshold: float
) -> tuple[Samples, Tensor, Tensor]:
    """The samples that are not too faint and that enough light reaches (see `render_rays`), by their densities [s].

    Returns them, which they are [kept], and the transmittance in front of all samples [s]. No gradient.
    """
    ray, dtype = samples.ray_indices, sigmas.dtype
    depth = sigmas * (samples.t_ends.to(dtype) - samples.t_starts.to(dtype))
    is_seen = -torch.expm1(-depth) >= alpha_threshold
    depth = torch.where(is_seen, depth, torch.zeros_like(depth))
    longest = int(samples.packed_info[:, 1].max()) if len(ray) else 0
    trans = torch.exp(-_sums_before(depth, _places(samples.packed_info, ray), longest))
    kept = (is_seen & (trans >= stop_threshold)).nonzero().squeeze(1)
    counts = torch.bincount(ray[kept], minlength=n_rays)
    packed_info = torch.stack([counts.cumsum(0) - counts, counts], dim=1)
    return Samples(samples.t_starts[kept], samples.t_ends[kept], ray[kept], packed_info), kept, trans


def scale_near_gradients(samples: Samples, sigmas: Tensor, rgbs: Tensor, distance: float) -> tuple[Tensor, Tensor]:
    """The same densities [s] and colours [s,3], whose gradients are scaled by (t / distance)^2 nearer than that."""
    if distance <= 0:
        return sigmas, rgbs
    mids = 0.5 * (samples.t_starts.to(sigmas.dtype) + samples.t_ends.to(sigmas.dtype))
    scale = (mids / distance).clamp(max=1.0).square()
    sigmas = sigmas.detach() + scale * (sigmas - sigmas.detach())
    return sigmas, rgbs.detach() + scale.unsqueeze(1) * (rgbs - rgbs.detach())


class IntoSink(torch.autograd.Function):
    """The table itself, whose gradient goes to the sink instead."""

    @staticmethod
    def forward(ctx, table: Tensor, sink: GradientSink) -> Tensor:  # type: ignore[override]
        ctx.sink = sink
        return table.view_as(table)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        ctx.sink.table.add_(grad)
        return None, None


# --- optimiser -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def adam_step(
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    skip_zero_rows: bool = False,
) -> None:
    """One step of Adam in place: `m`, `v` and `param` change, `grad` does not.

    `m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2; param <- param - lr * (m/(1-b1^step)) / (sqrt(v/(1-b2^step)) + eps)`.

    Args:
        param, grad, m, v: one shape. step: global, 1 for the first.
        skip_zero_rows: leave rows whose gradient is all zero untouched, their moments too (param must be 2-D). The bias
            correction still counts global steps, so a row that is seldom hit moves by less at first.
    Source: Kingma and Ba 2015, algorithm 1; skipped rows: Mueller et al. 2022, section 4.
    """
    _check("param", param, tuple(param.shape))
    for name, tensor in (("grad", grad), ("m", m), ("v", v)):
        _check(name, tensor, tuple(param.shape))
    if step < 1:
        raise ValueError(f"step: expected 1 or more (it counts from 1), got {step!r}")
    rate = lr / (1.0 - beta1**step)
    correction = math.sqrt(1.0 - beta2**step)
    if not skip_zero_rows:
        m.mul_(beta1).add_(grad, alpha=1.0 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        param.addcdiv_(m, (v.sqrt() / correction).add_(eps), value=-rate)
        return
    if param.dim() != 2:
        raise ValueError(f"param: expected a table [rows, F] with skip_zero_rows, got shape {list(param.shape)}")
    rows = (grad != 0).any(dim=1).nonzero().squeeze(1)
    g = grad[rows]
    m_rows = m[rows].mul_(beta1).add_(g, alpha=1.0 - beta1)
    v_rows = v[rows].mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
    m[rows], v[rows] = m_rows, v_rows
    param[rows] = param[rows].addcdiv_(m_rows, (v_rows.sqrt() / correction).add_(eps), value=-rate)
