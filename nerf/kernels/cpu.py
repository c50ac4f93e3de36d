"""The CPU backend: checks, pointers and autograd around the native libraries of `build.py`; no arithmetic of its
own."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch  # before our library, so that both share one OpenMP runtime
from torch import Tensor

from nerf.kernels import build
from nerf.kernels.layout import FieldConfig, FieldParams, GridLayout, Samples

_P, _I, _F, _LL = ctypes.c_void_p, ctypes.c_int, ctypes.c_float, ctypes.c_longlong
MAX_LEVELS, MAX_LAYERS = 24, 4


class _GridLevel(ctypes.Structure):
    _fields_ = [
        ("scale", _F),
        ("resolution", ctypes.c_uint32),
        ("rows", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
        ("hashed", ctypes.c_uint32),
    ]


class _FieldDesc(ctypes.Structure):
    _fields_ = [
        ("n_levels", _I),
        ("n_features", _I),
        ("width", _I),
        ("n_density_layers", _I),
        ("n_color_layers", _I),
        ("contracted", _I),
        ("density_bias", _F),
        ("reserved", _I),
        ("table", _P),
        ("table_half", _P),
        ("density_weights", _P * MAX_LAYERS),
        ("color_weights", _P * MAX_LAYERS),
        ("levels", _GridLevel * MAX_LEVELS),
    ]


class _RenderDesc(ctypes.Structure):
    _fields_ = [
        ("fine", _P),
        ("coarse", _P),
        ("resolution", ctypes.c_uint32),
        ("n_levels", ctypes.c_uint32),
        ("step_size", _F),
        ("cone_angle", _F),
        ("max_step", _F),
        ("stop_threshold", _F),
        ("alpha_threshold", _F),
        ("gradient_distance", _F),
        ("n_rays", _I),
        ("n_threads", _I),
        *(
            (name, _P)
            for name in (
                "rays_o",
                "rays_d",
                "viewdirs",
                "t_near",
                "t_far",
                "jitter",
                "colors",
                "opacities",
                "depths",
                "median_depths",
                "second_moments",
                "distortions",
            )
        ),
    ]


class _RenderGrads(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("colors", "opacities", "depths", "second_moments", "distortions", "table")),
        ("density_weights", _P * MAX_LAYERS),
        ("color_weights", _P * MAX_LAYERS),
        *((name, _P) for name in ("rays_o", "rays_d", "viewdirs")),
    ]


class _AdamDesc(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("param", "grad", "m", "v", "half_copy")),
        ("n_rows", _LL),
        ("n_columns", _I),
        ("skip_zero_rows", _I),
        ("zero_grad", _I),
        ("n_threads", _I),
        *((name, _F) for name in ("lr", "beta1", "beta2", "eps", "correction1", "correction2", "weight_decay")),
    ]


# ---- loading -------------------------------------------------------------------------------------------------------


def cpu_flags() -> set[str]:
    """Instruction-set flags of this machine as the kernel lists them (Linux); empty where they cannot be read."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def suitable_variants() -> list[str]:
    """Library variants this machine can execute, best first. NERF_CPU_VARIANT narrows it to one, for tests."""
    machine, flags = platform.machine().lower(), cpu_flags()
    if machine in ("aarch64", "arm64"):
        variants = ["neon"]
    else:
        variants = ["baseline"]
        if {"avx2", "fma", "f16c"} <= flags:
            variants.insert(0, "avx2")
        if {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
            variants.insert(0, "avx512")
    wanted = os.environ.get("NERF_CPU_VARIANT")
    return [v for v in variants if v == wanted] if wanted else variants


@dataclass(frozen=True)
class Library:
    """A loaded native library, or the reason why there is none."""

    handle: ctypes.CDLL | None
    variant: str = ""
    reason: str = ""


@lru_cache(maxsize=1)
def native_library() -> Library:
    """Load the best library that is there, once. A library built from other sources than the ones beside it is
    refused."""
    reasons = []
    for variant in suitable_variants():
        path = build.LIBRARIES / build.file_name_of(variant)
        if not path.exists():
            reasons.append(f"{path.name} was not built")
            continue
        try:
            handle = ctypes.CDLL(str(path))
        except OSError as error:
            reasons.append(f"{path.name} does not load ({error})")
            continue
        handle.nerf_source_hash.restype = ctypes.c_char_p
        if handle.nerf_source_hash().decode() != build.source_hash():
            reasons.append(f"{path.name} was built from other sources (run `python -m nerf.kernels.build`)")
            continue
        _declare(handle)
        return Library(handle, variant)
    return Library(None, reason="; ".join(reasons) or "this processor fits none of the built libraries")


def _declare(lib: ctypes.CDLL) -> None:
    for name, restype, argtypes in (
        ("nerf_hashgrid_forward", _I, [_I, _I, _P, _LL, _P, _I, _P, _P, _I]),
        ("nerf_hashgrid_backward", _I, [_I, _I, _P, _LL, _P, _I, _P, _P, _P, _P, _I]),
        ("nerf_field_forward", None, [_P, _P, _P, _LL, _P, _P, _I]),
        ("nerf_march", None, [_P, _P, _P, _P, _P, _P]),
        ("nerf_pack_occupancy", None, [_P, _I, _I, _P, _P]),
        ("nerf_render_forward", _P, [_P, _P, _I, _P]),
        ("nerf_render_backward", None, [_P, _P, _P, _P]),
        ("nerf_render_free", None, [_P]),
        ("nerf_adam_step", None, [_P]),
        ("nerf_to_half", None, [_P, _P, _LL]),
        ("nerf_jitter", None, [ctypes.c_uint32, ctypes.c_uint32, _I, _P]),
        ("nerf_lanes", _I, []),
        ("nerf_has_openmp", _I, []),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes


def _native() -> ctypes.CDLL:
    handle = native_library().handle
    if handle is None:
        raise RuntimeError(f"the CPU backend is not available: {native_library().reason}")
    return handle


# ---- tensors to pointers -------------------------------------------------------------------------------------------


class Pointers:
    """Turns tensors into addresses and keeps the tensors alive for as long as this object lives."""

    def __init__(self) -> None:
        self.alive: list[object] = []

    def __call__(
        self, name: str, tensor: Tensor | None, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32
    ) -> int:
        if tensor is None:
            return 0
        if tensor.device.type != "cpu" or tensor.dtype != dtype:
            raise TypeError(f"{name}: expected a {dtype} tensor on the cpu, got {tensor.dtype} on {tensor.device}")
        if tensor.dim() != len(shape) or any(
            w is not None and w != g for w, g in zip(shape, tensor.shape, strict=True)
        ):
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        tensor = tensor.detach().contiguous()
        self.alive.append(tensor)
        return tensor.data_ptr()

    def struct(self, value: ctypes.Structure) -> int:
        self.alive.append(value)
        return ctypes.addressof(value)


def _check_in_place(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Native code writes here: a copy made to fit would swallow the result."""
    Pointers()(name, tensor, shape, dtype)
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, it is written in place")


def _levels(layout: GridLayout) -> ctypes.Array:
    if layout.n_levels > MAX_LEVELS:
        raise ValueError(f"layout: expected at most {MAX_LEVELS} levels, got {layout.n_levels}")
    levels = (_GridLevel * MAX_LEVELS)()
    for i in range(layout.n_levels):
        levels[i] = _GridLevel(
            layout.scales[i],
            layout.resolutions[i],
            layout.level_sizes[i],
            layout.offsets[i],
            0 if layout.dense[i] else 1,
        )
    return levels


# ---- hash grid -----------------------------------------------------------------------------------------------------


class _HashGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        n = len(positions)
        out = torch.empty(n, layout.n_features)
        p = Pointers()
        levels = _levels(layout)
        args = (
            p("positions", positions, (n, layout.n_dims)),
            n,
            levels,
            layout.n_levels,
            p("table", table, (layout.n_rows, layout.n_features_per_level)),
        )
        if n and _native().nerf_hashgrid_forward(
            layout.n_dims, layout.n_features_per_level, *args, out.data_ptr(), torch.get_num_threads()
        ):
            raise ValueError(
                f"layout: {layout.n_features_per_level} features per level are not compiled, expected 1, 2, 4 or 8"
            )
        ctx.layout = layout
        ctx.save_for_backward(positions, table)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out: Tensor):  # type: ignore[override]
        positions, table = ctx.saved_tensors
        layout, n, p = ctx.layout, len(positions), Pointers()
        grad_positions = torch.zeros(n, layout.n_dims) if ctx.needs_input_grad[0] else None
        grad_table = torch.zeros(table.shape) if ctx.needs_input_grad[1] else None
        if n:
            _native().nerf_hashgrid_backward(
                layout.n_dims,
                layout.n_features_per_level,
                p("positions", positions, (n, layout.n_dims)),
                n,
                _levels(layout),
                layout.n_levels,
                p("table", table, (None, None)),
                p("grad_out", grad_out, (n, layout.n_features)),
                p("grad_table", grad_table, (None, None)),
                p("grad_positions", grad_positions, (None, None)),
                torch.get_num_threads(),
            )
        return grad_positions, grad_table, None


def hashgrid_encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """See `reference.hashgrid_encode`; float32, once differentiable in positions and table."""
    if positions.dim() != 2 or positions.shape[1] != layout.n_dims:
        raise ValueError(f"positions: expected shape [n, {layout.n_dims}], got {list(positions.shape)}")
    return _HashGrid.apply(positions, table, layout)


# ---- field ---------------------------------------------------------------------------------------------------------


def field_desc(params: FieldParams, config: FieldConfig, table_half: Tensor | None, p: Pointers) -> _FieldDesc:
    layout, width = config.layout, params.density_weights[0].shape[0]
    if layout.n_dims != 3 or layout.n_features_per_level not in (2, 4) or layout.n_features % 16:
        raise ValueError(
            "layout: the fused field takes 3 dimensions, 2 or 4 features per level and a multiple of 16 features, got "
            f"{layout.n_dims}, {layout.n_features_per_level} and {layout.n_features}"
        )
    if layout.n_levels > MAX_LEVELS:
        raise ValueError(f"layout: expected at most {MAX_LEVELS} levels, got {layout.n_levels}")
    for name, weights in (("density_weights", params.density_weights), ("color_weights", params.color_weights)):
        if not 1 <= len(weights) <= MAX_LAYERS:
            raise ValueError(f"{name}: expected 1 to {MAX_LAYERS} layers, got {len(weights)}")
    if width % 16 or not 16 <= width <= 128:
        raise ValueError(f"density_weights[0]: expected a width of 16 to 128 in steps of 16, got {width}")
    desc = _FieldDesc(
        layout.n_levels,
        layout.n_features_per_level,
        width,
        len(params.density_weights),
        len(params.color_weights),
        int(config.contracted),
        config.density_bias,
        0,
    )
    desc.table = p("table", params.table, (layout.n_rows, layout.n_features_per_level))
    if table_half is not None:
        desc.table_half = p("table_half", table_half, (layout.n_rows, layout.n_features_per_level), torch.float16)
    for name, weights, n_in, n_out in (
        ("density_weights", params.density_weights, layout.n_features, 16),
        ("color_weights", params.color_weights, 32, 3),
    ):
        for i, w in enumerate(weights):
            shape = (n_out if i + 1 == len(weights) else width, n_in if i == 0 else width)
            getattr(desc, name)[i] = p(f"{name}[{i}]", w, shape)
    desc.levels = _levels(layout)
    return desc


def field_forward(
    positions: Tensor,
    directions: Tensor | None,
    params: FieldParams,
    config: FieldConfig,
    table_half: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Density [n] (1/scene length) and, where directions are given, colour [n,3] at scene positions [n,3]. Not
    differentiable."""
    p, n = Pointers(), len(positions)
    desc = field_desc(params, config, table_half, p)
    sigmas = torch.empty(n)
    rgbs = torch.empty(n, 3) if directions is not None else None
    if n:
        _native().nerf_field_forward(
            ctypes.addressof(desc),
            p("positions", positions, (n, 3)),
            p("directions", directions, (n, 3)),
            n,
            sigmas.data_ptr(),
            rgbs.data_ptr() if rgbs is not None else 0,
            torch.get_num_threads(),
        )
    return sigmas, rgbs


# ---- occupancy, march ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OccupancyBits:
    """Occupancy as the marchers read it: one bit a cell, x fastest, and one bit for every block of 4^3 cells."""

    fine: Tensor
    coarse: Tensor
    resolution: int
    n_levels: int


def pack_occupancy(occupied: Tensor) -> OccupancyBits:
    """occupied bool [levels,R,R,R], indexed [level,z,y,x], R a multiple of 32 -> bits."""
    if occupied.dim() != 4:
        raise ValueError(f"occupied: expected a bool tensor [levels,R,R,R], got shape {list(occupied.shape)}")
    levels, r = occupied.shape[0], occupied.shape[1]
    if occupied.shape != (levels, r, r, r) or r % 32 or occupied.dtype != torch.bool:
        raise ValueError(
            f"occupied: expected a bool tensor [levels,R,R,R] with R a multiple of 32, "
            f"got {occupied.dtype} {list(occupied.shape)}"
        )
    fine = torch.empty(levels * r**3 // 32, dtype=torch.int32)
    coarse = torch.empty((levels * (r // 4) ** 3 + 31) // 32, dtype=torch.int32)
    occupied = occupied.contiguous()
    _native().nerf_pack_occupancy(occupied.data_ptr(), levels, r, fine.data_ptr(), coarse.data_ptr())
    return OccupancyBits(fine, coarse, r, levels)


@dataclass(frozen=True)
class MarchSettings:
    """step_size, max_step: scene length; cone_angle: 0, or growth of the step with distance. See `march.h`."""

    step_size: float
    cone_angle: float = 0.0
    max_step: float = 1e10
    stop_threshold: float = 0.0
    alpha_threshold: float = 0.0
    gradient_distance: float = 0.0  # gradients of samples nearer than this are scaled by (t / distance)^2


def _render_desc(
    rays_o: Tensor,
    rays_d: Tensor,
    viewdirs: Tensor,
    t_near: Tensor,
    t_far: Tensor,
    jitter: Tensor,
    bits: OccupancyBits,
    settings: MarchSettings,
    p: Pointers,
) -> _RenderDesc:
    if not (0 < settings.step_size < math.inf and settings.cone_angle >= 0 and settings.max_step >= settings.step_size):
        raise ValueError(
            "settings: expected step_size > 0, cone_angle >= 0 and max_step >= step_size, got "
            f"{settings.step_size}, {settings.cone_angle} and {settings.max_step}"
        )
    n = len(rays_o)
    desc = _RenderDesc(
        fine=p("fine", bits.fine, (None,), torch.int32),
        coarse=p("coarse", bits.coarse, (None,), torch.int32),
        resolution=bits.resolution,
        n_levels=bits.n_levels,
        step_size=settings.step_size,
        cone_angle=settings.cone_angle,
        max_step=settings.max_step,
        stop_threshold=settings.stop_threshold,
        alpha_threshold=settings.alpha_threshold,
        gradient_distance=settings.gradient_distance,
        n_rays=n,
        n_threads=torch.get_num_threads(),
    )
    for name, tensor in (("rays_o", rays_o), ("rays_d", rays_d), ("viewdirs", viewdirs)):
        setattr(desc, name, p(name, tensor, (n, 3)))
    for name, tensor in (("t_near", t_near), ("t_far", t_far), ("jitter", jitter)):
        setattr(desc, name, p(name, tensor, (n,)))
    return desc


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    t_near: Tensor,
    t_far: Tensor,
    jitter: Tensor,
    bits: OccupancyBits,
    settings: MarchSettings,
) -> Samples:
    """See `reference.march`: the same samples to the bit. float32; rays [n,3], the rest [n]. Not differentiable."""
    p, n = Pointers(), len(rays_o)
    desc = _render_desc(rays_o, rays_d, rays_d, t_near, t_far, jitter, bits, settings, p)
    counts = torch.zeros(n, dtype=torch.int64)
    _native().nerf_march(ctypes.addressof(desc), 0, counts.data_ptr(), 0, 0, 0)
    starts = counts.cumsum(0) - counts
    total = int(counts.sum())
    t_starts, t_ends, ray_indices = torch.empty(total), torch.empty(total), torch.empty(total, dtype=torch.int64)
    if total:
        _native().nerf_march(
            ctypes.addressof(desc), starts.data_ptr(), 0, t_starts.data_ptr(), t_ends.data_ptr(), ray_indices.data_ptr()
        )
    return Samples(t_starts, t_ends, ray_indices, torch.stack([starts, counts], dim=1))


def ray_jitter(seed: int, step: int, n: int) -> Tensor:
    """One float in [0,1) per ray, an integer hash of (seed, step, ray): the same on every machine. See
    `reference.ray_jitter`."""
    out = torch.empty(n)
    _native().nerf_jitter(seed & 0xFFFFFFFF, step & 0xFFFFFFFF, n, out.data_ptr())
    return out


# ---- fused render --------------------------------------------------------------------------------------------------


@dataclass
class GradientSink:
    """Where the table's gradient is added in place instead of into a new tensor the size of the table at every step."""

    table: Tensor


class _Context:
    """Owns the native memory of one forward pass (its kept samples) until the backward pass is done with it."""

    def __init__(self, address: int | None) -> None:
        self.address = address

    def __del__(self) -> None:
        if self.address:
            _native().nerf_render_free(self.address)
            self.address = None


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        rays_o,
        rays_d,
        viewdirs,
        t_near,
        t_far,
        jitter,
        bits,
        settings,
        config,
        table_half,
        sink,
        counts,
        table,
        n_density,
        *weights,
    ):  # type: ignore[override]
        n, p = len(rays_o), Pointers()
        params = FieldParams(table, list(weights[:n_density]), list(weights[n_density:]))
        field = field_desc(params, config, table_half, p)
        render = _render_desc(rays_o, rays_d, viewdirs, t_near, t_far, jitter, bits, settings, p)
        colors = torch.zeros(n, 3)
        scalars = [torch.zeros(n) for _ in range(5)]
        for name, tensor in zip(
            ("colors", "opacities", "depths", "median_depths", "second_moments", "distortions"),
            (colors, *scalars),
            strict=True,
        ):
            setattr(render, name, tensor.data_ptr())
        keep = any(ctx.needs_input_grad)
        numbers = (ctypes.c_longlong * 2)()
        address = _native().nerf_render_forward(ctypes.addressof(field), ctypes.addressof(render), int(keep), numbers)
        counts["evaluated"], counts["kept"] = int(numbers[0]), int(numbers[1])
        if keep:
            ctx.state = (p, field, render, _Context(address), params, sink, n_density)
            ctx.save_for_backward(rays_o, rays_d, viewdirs, table, *weights)  # notices changes made in between
        ctx.mark_non_differentiable(scalars[2])
        return (colors, *scalars)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_colors, grad_opacities, grad_depths, _median, grad_moments, grad_distortions):  # type: ignore[override]
        _ = ctx.saved_tensors
        _alive, field, render, context, params, sink, n_density = ctx.state
        n, p = render.n_rays, Pointers()
        grads = _RenderGrads(colors=p("grad_colors", grad_colors, (n, 3)))
        for name, tensor in (
            ("opacities", grad_opacities),
            ("depths", grad_depths),
            ("second_moments", grad_moments),
            ("distortions", grad_distortions),
        ):
            setattr(grads, name, p(f"grad_{name}", tensor, (n,)))
        if sink is not None:
            _check_in_place("sink.table", sink.table, tuple(params.table.shape), torch.float32)
        grad_table = sink.table if sink is not None else torch.zeros(params.table.shape)
        grads.table = grad_table.data_ptr()
        if sink is not None:
            torch.autograd.graph.increment_version(sink.table)
        grad_weights = [torch.empty(w.shape) for w in params.density_weights + params.color_weights]
        for i, g in enumerate(grad_weights):
            if i < n_density:
                grads.density_weights[i] = g.data_ptr()
            else:
                grads.color_weights[i - n_density] = g.data_ptr()
        grad_rays = [None, None, None]
        if any(ctx.needs_input_grad[:3]):
            grad_rays = [torch.empty(n, 3) for _ in range(3)]
            grads.rays_o, grads.rays_d, grads.viewdirs = (g.data_ptr() for g in grad_rays)
        _native().nerf_render_backward(
            context.address, ctypes.addressof(field), ctypes.addressof(render), ctypes.addressof(grads)
        )
        ctx.state = None
        return (
            *grad_rays,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None if sink is not None else grad_table,
            None,
            *grad_weights,
        )


def render_rays(
    rays_o: Tensor,
    rays_d: Tensor,
    viewdirs: Tensor,
    t_near: Tensor,
    t_far: Tensor,
    jitter: Tensor,
    bits: OccupancyBits,
    params: FieldParams,
    config: FieldConfig,
    settings: MarchSettings,
    table_half: Tensor | None = None,
    sink: GradientSink | None = None,
) -> dict:
    """The fused op: march, field and composite. Same meaning as `reference.render_rays`, evaluated lazily from front to
    back.

    rays [n,3] and t, jitter [n], float32, scene frame. Returns per-ray colors [n,3] (without background), opacities,
    depths,
    second_moments, distortions [n], median_depths [n] (not differentiable) and the numbers "evaluated" and "kept" of
    samples.
    Differentiable once to rays_o, rays_d, viewdirs, table and weights (t is constant); with `sink` the table's gradient
    is added to
    `sink.table` instead of returned. With `table_half` features are read from that copy of the table.
    """
    counts: dict = {}
    outputs = _Render.apply(
        rays_o,
        rays_d,
        viewdirs,
        t_near,
        t_far,
        jitter,
        bits,
        settings,
        config,
        table_half,
        sink,
        counts,
        params.table,
        len(params.density_weights),
        *params.density_weights,
        *params.color_weights,
    )
    names = ("colors", "opacities", "depths", "median_depths", "second_moments", "distortions")
    return dict(zip(names, outputs, strict=True)) | counts


# ---- optimiser -----------------------------------------------------------------------------------------------------


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
    half_copy: Tensor | None = None,
    zero_grad: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """One Adam step in place over rows [n,c]; see `reference.adam_step`. Also refreshes `half_copy` and clears the
    gradient."""
    p, shape = Pointers(), tuple(param.shape)
    if step < 1:
        raise ValueError(f"step: expected 1 or more (it counts from 1), got {step!r}")
    for name, t in (("param", param), ("grad", grad), ("m", m), ("v", v)):
        _check_in_place(name, t, shape, torch.float32)
    if half_copy is not None:
        _check_in_place("half_copy", half_copy, shape, torch.float16)
    n_columns = shape[-1] if len(shape) > 1 else 1
    desc = _AdamDesc(
        p("param", param, shape),
        p("grad", grad, shape),
        p("m", m, shape),
        p("v", v, shape),
        p("half_copy", half_copy, shape, torch.float16),
        param.numel() // n_columns,
        n_columns,
        int(skip_zero_rows),
        int(zero_grad),
        torch.get_num_threads(),
        lr,
        beta1,
        beta2,
        eps,
        1.0 - beta1**step,
        1.0 - beta2**step,
        weight_decay,
    )
    _native().nerf_adam_step(ctypes.addressof(desc))
    torch.autograd.graph.increment_version([t for t in (param, grad, m, v, half_copy) if t is not None])
