"""The backends: one object each, with the same ops. An entry in `BACKENDS` adds one, to the command line as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from nerf.kernels import bindings, cpu, cuda, cuda_render, nvrtc, reference, tcnn
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


class Backend(Protocol):
    """The ops of scenes on one kind of machine; `reference` defines each. Tensors come on `device()`.

    `bits` are what `pack_occupancy` made of `occupied` [levels,R,R,R], or None: packed anew. `grad_accumulator`: where
    the table's gradient is added instead of being returned. `overflow`: whether a backend whose buffer of samples is
    full waits and makes room ("grow"), or leaves the rest without gradients ("drop").
    """

    def why_missing(self) -> str:
        """Empty where the backend can be used, else the reason, with what to do."""

    def device(self) -> torch.device: ...

    def pack_occupancy(self, occupied: Tensor) -> OccupancyBits | None: ...

    def march(self, rays: Rays, occupied: Tensor, bits: OccupancyBits | None, settings: MarchSettings) -> Samples: ...

    def field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]: ...

    def differentiable_field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]: ...

    def render(
        self,
        rays: Rays,
        occupied: Tensor,
        bits: OccupancyBits | None,
        field: FieldView,
        settings: MarchSettings,
        grad_accumulator: GradAccumulator | None,
        overflow: Literal["grow", "drop"],
    ) -> RenderedRays: ...

    def hashgrid_encode(self, positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor: ...

    def ray_jitter(self, seed: int, step: int, n: int, step_at: Tensor | None) -> Tensor: ...

    @property
    def adam_step(self) -> Callable[..., None]: ...


class Reference:
    """Plain torch, slow and complete."""

    adam_step = staticmethod(reference.adam_step)

    def why_missing(self) -> str:
        return ""

    def device(self) -> torch.device:
        return torch.device("cpu")

    def pack_occupancy(self, occupied: Tensor) -> OccupancyBits | None:
        return None

    def march(self, rays: Rays, occupied: Tensor, bits: OccupancyBits | None, settings: MarchSettings) -> Samples:
        steps = (settings.step_size, settings.cone_angle, settings.max_step)
        return reference.march(rays.o, rays.d, rays.t_near, rays.t_far, rays.jitter, occupied, *steps)

    def field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return self.differentiable_field(x, d, field)

    def differentiable_field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
        if d is None:
            return reference.radiance_density(x, field.params, field.config, self.hashgrid_encode), None
        return reference.radiance_field(x, d, field.params, field.config, self.hashgrid_encode)

    def render(
        self,
        rays: Rays,
        occupied: Tensor,
        bits: OccupancyBits | None,
        field: FieldView,
        settings: MarchSettings,
        grad_accumulator: GradAccumulator | None,
        overflow: Literal["grow", "drop"],
    ) -> RenderedRays:
        if grad_accumulator is not None:
            table, *weights = field.leaves
            field = field.with_leaves([reference.IntoAccumulator.apply(table, grad_accumulator), *weights])
        return reference.render_rays(rays, occupied, field, settings)

    def hashgrid_encode(self, positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        return reference.hashgrid_encode(positions, table, layout)

    def ray_jitter(self, seed: int, step: int, n: int, step_at: Tensor | None) -> Tensor:
        return reference.ray_jitter(seed, step, torch.arange(n))


def _is_compiled(positions: Tensor, table: Tensor, layout: GridLayout) -> bool:
    """Whether the native hash grids take it."""
    sizes = layout.n_levels <= bindings.MAX_LEVELS and layout.n_features_per_level in (1, 2, 4, 8)
    return sizes and positions.dtype == table.dtype == torch.float32


class Cpu(Reference):
    """The native libraries of `build.py`."""

    adam_step = staticmethod(cpu.adam_step)

    def why_missing(self) -> str:
        reason = bindings.load().reason
        remedy = "reinstall with a C++ compiler (g++ or clang++) or use --backend reference"
        return f"{reason}; {remedy}" if bindings.load().handle is None else ""

    def pack_occupancy(self, occupied: Tensor) -> OccupancyBits | None:
        return cpu.pack_occupancy(occupied)

    def march(self, rays: Rays, occupied: Tensor, bits: OccupancyBits | None, settings: MarchSettings) -> Samples:
        return cpu.march(rays, bits or cpu.pack_occupancy(occupied), settings)

    def field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
        return cpu.field_forward(x, d, field)

    def render(
        self,
        rays: Rays,
        occupied: Tensor,
        bits: OccupancyBits | None,
        field: FieldView,
        settings: MarchSettings,
        grad_accumulator: GradAccumulator | None,
        overflow: Literal["grow", "drop"],
    ) -> RenderedRays:
        return cpu.render_rays(rays, bits or cpu.pack_occupancy(occupied), field, settings, grad_accumulator)

    def hashgrid_encode(self, positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        native = _is_compiled(positions, table, layout)
        return (cpu if native else reference).hashgrid_encode(positions, table, layout)

    def ray_jitter(self, seed: int, step: int, n: int, step_at: Tensor | None) -> Tensor:
        return cpu.ray_jitter(seed, step, n)


class Cuda(Reference):
    """Kernels that NVRTC compiles for the GPU at first use."""

    adam_step = staticmethod(cuda.adam_step)

    def why_missing(self) -> str:
        gpu, reason = nvrtc.find()
        if gpu is not None:
            reason = cuda.why_broken()
        return f"{reason}, or use --backend cpu" if reason or gpu is None else ""

    def device(self) -> torch.device:
        return cuda.gpu().device

    def pack_occupancy(self, occupied: Tensor) -> OccupancyBits | None:
        return cuda.pack_occupancy(occupied)

    def march(self, rays: Rays, occupied: Tensor, bits: OccupancyBits | None, settings: MarchSettings) -> Samples:
        return cuda.march(rays, bits or cuda.pack_occupancy(occupied), settings)

    def field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
        return cuda.field_forward(x, d, field)

    def render(
        self,
        rays: Rays,
        occupied: Tensor,
        bits: OccupancyBits | None,
        field: FieldView,
        settings: MarchSettings,
        grad_accumulator: GradAccumulator | None,
        overflow: Literal["grow", "drop"],
    ) -> RenderedRays:
        bits = bits or cuda.pack_occupancy(occupied)
        return cuda_render.render_rays(rays, bits, field, settings, grad_accumulator, overflow)

    def hashgrid_encode(self, positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        native = _is_compiled(positions, table, layout)
        return (cuda if native else reference).hashgrid_encode(positions, table, layout)

    def ray_jitter(self, seed: int, step: int, n: int, step_at: Tensor | None) -> Tensor:
        return cuda.ray_jitter(seed, step, n, step_at)


class TinyCudaNN(Cuda):
    """`cuda` with tinycudann's hash grid and networks as the field."""

    def why_missing(self) -> str:
        missing = super().why_missing()
        if not missing and (reason := tcnn.why_missing()):
            missing = f"{reason}, or use --backend cuda"
        return missing

    def field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
        return tcnn.field_forward(x, d, field)

    def differentiable_field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
        if d is None:
            return super().differentiable_field(x, d, field)
        return tcnn.radiance_field(x, d, field.params, field.config)

    def render(
        self,
        rays: Rays,
        occupied: Tensor,
        bits: OccupancyBits | None,
        field: FieldView,
        settings: MarchSettings,
        grad_accumulator: GradAccumulator | None,
        overflow: Literal["grow", "drop"],
    ) -> RenderedRays:
        return tcnn.render_rays(rays, bits or cuda.pack_occupancy(occupied), field, settings, grad_accumulator)


BACKENDS: dict[str, Backend] = {
    "cpu": Cpu(),
    "cuda": Cuda(),
    "tinycudann": TinyCudaNN(),
    "reference": Reference(),
}
