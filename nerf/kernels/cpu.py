"""The CPU backend: autograd around the loops of the native library; no arithmetic of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.errors import BadValue
from nerf.kernels.bindings import (
    MAX_LAYERS,
    FieldDesc,
    MarchDesc,
    OccupancyDesc,
    Pointers,
    RenderDesc,
    RenderGrads,
    check_in_place,
    grid_levels,
    native,
)
from nerf.kernels.checks import check_occupied
from nerf.kernels.records import (
    FieldView,
    GradAccumulator,
    GridLayout,
    MarchSettings,
    OccupancyBits,
    Rays,
    RenderedRays,
    Samples,
)

# ---- hash grid -----------------------------------------------------------------------------------------------------


class _HashGrid(torch.autograd.Function):
    """Around `encode(positions, table, layout)` and `backward(grad_out, positions, table, layout, *grads)`, which adds
    to the gradients of positions and table where they are not None."""

    @staticmethod
    def forward(
        ctx: Any,
        encode: Callable[..., Tensor],
        backward: Callable[..., None],
        positions: Tensor,
        table: Tensor,
        layout: GridLayout,
    ) -> Tensor:
        ctx.about = backward, layout
        ctx.save_for_backward(positions, table)
        return encode(positions, table, layout)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        inputs, (backward, layout) = ctx.saved_tensors, ctx.about
        wanted = zip(inputs, ctx.needs_input_grad[2:4], strict=True)
        grads = [torch.zeros(t.shape, device=t.device) if needs else None for t, needs in wanted]
        backward(grad_out, *inputs, layout, *grads)
        return None, None, *grads, None


def grid_function(encode: Callable[..., Tensor], backward: Callable[..., None]) -> Callable[..., Tensor]:
    """The hash grid of one kind of machine, as `reference.hashgrid_encode`; float32, once differentiable in positions
    and table."""

    def hashgrid_encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        if positions.dim() != 2 or positions.shape[1] != layout.n_dims:
            raise ValueError(f"positions: expected shape [n, {layout.n_dims}], got {list(positions.shape)}")
        return _HashGrid.apply(encode, backward, positions, table, layout)

    return hashgrid_encode


def _grid_arguments(positions: Tensor, table: Tensor, layout: GridLayout, p: Pointers) -> tuple:
    at = p("positions", positions, (len(positions), layout.n_dims))
    rows = p("table", table, (layout.n_rows, layout.n_features_per_level))
    return layout.n_dims, layout.n_features_per_level, at, len(positions), grid_levels(layout), layout.n_levels, rows


def _encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    n, p = len(positions), Pointers()
    out = torch.empty(n, layout.n_features)
    args = _grid_arguments(positions, table, layout, p)
    if n and native().nerf_hashgrid_forward(*args, out.data_ptr(), torch.get_num_threads()):
        raise ValueError(
            f"layout: {layout.n_features_per_level} features per level are not compiled, expected 1, 2, 4 or 8"
        )
    return out


def _encode_backward(
    grad_out: Tensor,
    positions: Tensor,
    table: Tensor,
    layout: GridLayout,
    grad_positions: Tensor | None,
    grad_table: Tensor | None,
) -> None:
    n, p = len(positions), Pointers()
    if n:
        native().nerf_hashgrid_backward(
            *_grid_arguments(positions, table, layout, p),
            p("grad_out", grad_out, (n, layout.n_features)),
            p("grad_table", grad_table, (None, None)),
            p("grad_positions", grad_positions, (None, None)),
            torch.get_num_threads(),
        )


hashgrid_encode = grid_function(_encode, _encode_backward)


# ---- field ---------------------------------------------------------------------------------------------------------


def field_desc(field: FieldView, p: Pointers) -> FieldDesc:
    params, config = field.params, field.config
    layout, width = config.layout, params.density_weights[0].shape[0]
    if layout.n_dims != 3 or layout.n_features_per_level not in (2, 4) or layout.n_features % 16:
        raise BadValue(
            "layout: the fused field takes 3 dimensions, 2 or 4 features per level and a multiple of 16 features, got "
            f"{layout.n_dims}, {layout.n_features_per_level} and {layout.n_features}"
        )
    networks = (
        ("density_weights", params.density_weights, layout.n_features, 16),
        ("color_weights", params.color_weights, 32, 3),
    )
    for name, weights, *_ in networks:
        if not 1 <= len(weights) <= MAX_LAYERS:
            raise BadValue(f"{name}: expected 1 to {MAX_LAYERS} layers, got {len(weights)}")
    if width % 16 or not 16 <= width <= 128:
        raise BadValue(f"density_weights[0]: expected a width of 16 to 128 in steps of 16, got {width}")
    desc = FieldDesc(
        layout.n_levels,
        layout.n_features_per_level,
        width,
        len(params.density_weights),
        len(params.color_weights),
        int(config.contracted),
        config.density_bias,
    )
    shape = layout.n_rows, layout.n_features_per_level
    desc.table = p("table", params.table, shape)
    desc.table_half = p("table_half", field.half, shape, torch.float16)
    for name, weights, n_in, n_out in networks:
        for i, w in enumerate(weights):
            shape = (n_out if i + 1 == len(weights) else width, n_in if i == 0 else width)
            getattr(desc, name)[i] = p(f"{name}[{i}]", w, shape)
    desc.levels = grid_levels(layout)
    return desc


def field_forward(positions: Tensor, directions: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
    """Density [n] (1/scene length) and, where directions are given, colour [n,3] at scene positions [n,3]. Not
    differentiable."""
    p, n = Pointers(), len(positions)
    desc = field_desc(field, p)
    sigmas = torch.empty(n)
    rgbs = torch.empty(n, 3) if directions is not None else None
    if n:
        native().nerf_field_forward(
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


def pack_occupancy(occupied: Tensor) -> OccupancyBits:
    """occupied bool [levels,R,R,R], indexed [level,z,y,x], R a multiple of 32 -> bits."""
    levels, r = check_occupied(occupied, 32)
    fine = torch.empty(levels * r**3 // 32, dtype=torch.int32)
    clearance = torch.empty(levels * (r // 4) ** 3, dtype=torch.uint8)
    occupied = occupied.contiguous()
    native().nerf_pack_occupancy(occupied.data_ptr(), levels, r, fine.data_ptr(), clearance.data_ptr())
    return OccupancyBits(fine, clearance, r, levels)


def places_set(mask: Tensor) -> Tensor:
    """See `kernels.places_set`."""
    p, places = (
        Pointers(),
        torch.empty(int(np.count_nonzero(mask.numpy())), dtype=torch.int64),
    )  # torch.sum takes longer
    native().nerf_places_set(p("mask", mask, (len(mask),), torch.bool), len(mask), places.data_ptr())
    return places


def threshold_cells(values: Tensor, candidates: Tensor, step_size: float, highest: float) -> Tensor:
    """See `kernels.threshold_cells`."""
    p, n, occupied = Pointers(), len(values), torch.empty(len(values), dtype=torch.bool)
    at = p("values", values, (n,)), p("candidates", candidates, (n,), torch.bool)
    native().nerf_threshold_cells(*at, n, step_size, highest, occupied.data_ptr(), torch.get_num_threads())
    return occupied


def occupancy_desc(bits: OccupancyBits, p: Pointers) -> OccupancyDesc:
    fine = p("fine", bits.fine, (None,), torch.int32)
    return OccupancyDesc(fine, p("clearance", bits.clearance, (None,), torch.uint8), bits.resolution, bits.n_levels)


def march_desc(settings: MarchSettings) -> MarchDesc:
    return MarchDesc(settings.step_size, settings.cone_angle, settings.max_step)


def ray_pointers(struct: ctypes.Structure, rays: Rays, p: Pointers) -> None:
    """Sets the rays' fields of a struct, all but `viewdirs`."""
    n = len(rays.o)
    for name, tensor in (("rays_o", rays.o), ("rays_d", rays.d)):
        setattr(struct, name, p(name, tensor, (n, 3)))
    for name in ("t_near", "t_far", "jitter"):
        setattr(struct, name, p(name, getattr(rays, name), (n,)))


def render_desc(rays: Rays, bits: OccupancyBits, settings: MarchSettings, p: Pointers) -> RenderDesc:
    n = len(rays.o)
    desc = RenderDesc(
        grid=occupancy_desc(bits, p),
        march=march_desc(settings),
        stop_threshold=settings.stop_threshold,
        alpha_threshold=settings.alpha_threshold,
        gradient_distance=settings.gradient_distance,
        n_rays=n,
        n_threads=torch.get_num_threads(),
    )
    ray_pointers(desc, rays, p)
    desc.viewdirs = p("viewdirs", rays.viewdirs, (n, 3))
    return desc


def march(rays: Rays, bits: OccupancyBits, settings: MarchSettings) -> Samples:
    """See `reference.march`: the same samples to the bit. float32. Not differentiable."""
    p, n = Pointers(), len(rays.o)
    desc = render_desc(rays, bits, settings, p)
    counts = torch.zeros(n, dtype=torch.int64)
    native().nerf_march(ctypes.addressof(desc), 0, counts.data_ptr(), 0, 0, 0)
    starts = counts.cumsum(0) - counts
    total = int(counts.sum())
    t_starts, t_ends, ray_indices = torch.empty(total), torch.empty(total), torch.empty(total, dtype=torch.int64)
    if total:
        native().nerf_march(
            ctypes.addressof(desc), starts.data_ptr(), 0, t_starts.data_ptr(), t_ends.data_ptr(), ray_indices.data_ptr()
        )
    return Samples(t_starts, t_ends, ray_indices, torch.stack([starts, counts], dim=1))


def ray_jitter(seed: int, step: int, n: int, step_at: Tensor | None = None) -> Tensor:
    """One float in [0,1) per ray, an integer hash of (seed, step, ray): the same on every machine. See
    `reference.ray_jitter`."""
    out = torch.empty(n)
    native().nerf_jitter(seed & 0xFFFFFFFF, step & 0xFFFFFFFF, n, out.data_ptr())
    return out


# ---- fused render --------------------------------------------------------------------------------------------------


class _Context:
    """Owns the native memory of one forward pass (its kept samples) until the backward pass is done with it."""

    def __init__(self, address: int | None) -> None:
        self.address = address

    def __del__(self) -> None:
        if self.address:
            native().nerf_render_free(self.address)
            self.address = None


@dataclass
class _Job:
    """What autograd must not see of one fused pass."""

    rays: Rays
    bits: OccupancyBits
    field: FieldView
    settings: MarchSettings
    accumulator: GradAccumulator | None
    evaluated: int = 0
    kept: int = 0


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, job: _Job, rays_o: Tensor, rays_d: Tensor, viewdirs: Tensor, *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        n, p = len(rays_o), Pointers()
        field = field_desc(job.field, p)
        render = render_desc(job.rays, job.bits, job.settings, p)
        outputs = (torch.zeros(n, 3), *(torch.zeros(n) for _ in range(5)))
        for name, tensor in zip(("colors", *RenderedRays._fields[1:6]), outputs, strict=True):
            setattr(render, name, tensor.data_ptr())
        keep = any(ctx.needs_input_grad)
        numbers = (ctypes.c_longlong * 2)()
        address = native().nerf_render_forward(ctypes.addressof(field), ctypes.addressof(render), int(keep), numbers)
        job.evaluated, job.kept = int(numbers[0]), int(numbers[1])
        if keep:
            ctx.state = (p, field, render, _Context(address), job)
            ctx.save_for_backward(rays_o, rays_d, viewdirs, *leaves)  # notices changes made in between
        ctx.mark_non_differentiable(outputs[3])
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,
        grad_colors: Tensor,
        grad_opacities: Tensor,
        grad_depths: Tensor,
        _median: Tensor,
        grad_moments: Tensor,
        grad_distortions: Tensor,
    ) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        _alive, field, render, context, job = ctx.state
        n, p, params, sink = render.n_rays, Pointers(), job.field.params, job.accumulator
        grads = RenderGrads(colors=p("grad_colors", grad_colors, (n, 3)))
        per_ray = grad_opacities, grad_depths, grad_moments, grad_distortions
        for name, tensor in zip(("opacities", "depths", "second_moments", "distortions"), per_ray, strict=True):
            setattr(grads, name, p(f"grad_{name}", tensor, (n,)))
        if sink is not None:
            check_in_place("grad_accumulator.table", sink.table, tuple(params.table.shape), torch.float32)
            torch.autograd.graph.increment_version(sink.table)
        grad_table = sink.table if sink is not None else torch.zeros(params.table.shape)
        grads.table = grad_table.data_ptr()
        grad_density = [torch.empty(w.shape) for w in params.density_weights]
        grad_color = [torch.empty(w.shape) for w in params.color_weights]
        for slots, found in ((grads.density_weights, grad_density), (grads.color_weights, grad_color)):
            for i, g in enumerate(found):
                slots[i] = g.data_ptr()
        grad_rays: tuple[Tensor, ...] | tuple[None, ...] = (None, None, None)
        if any(ctx.needs_input_grad[:3]):
            grad_rays = tuple(torch.empty(n, 3) for _ in range(3))
            grads.rays_o, grads.rays_d, grads.viewdirs = (g.data_ptr() for g in grad_rays)
        native().nerf_render_backward(
            context.address, ctypes.addressof(field), ctypes.addressof(render), ctypes.addressof(grads)
        )
        ctx.state = None
        return (None, *grad_rays, None if sink is not None else grad_table, *grad_density, *grad_color)


def render_rays(
    rays: Rays,
    bits: OccupancyBits,
    field: FieldView,
    settings: MarchSettings,
    grad_accumulator: GradAccumulator | None = None,
    overflow: str = "grow",
) -> RenderedRays:
    """March, field and composite in one op: as `reference.render_rays`, evaluated lazily from front to back.

    float32. Differentiable once to rays.o, d, viewdirs, table and weights (t is constant); with `grad_accumulator` the
    table's gradient is added there instead of returned. A field in mixed precision: features are read from its half
    copy of the table, and the networks' products read bfloat16 where the processor has it (their sums stay float32).
    """
    job = _Job(rays, bits, field, settings, grad_accumulator)
    outputs = _Render.apply(job, rays.o, rays.d, rays.viewdirs, *field.leaves)
    return RenderedRays(*outputs)._replace(evaluated=job.evaluated, kept=job.kept)
