"""The backends: one object each, with the same ops. An entry in `BACKENDS` adds one, to the command line as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nerf.kernels import bindings, cpu, cpu_adam, cuda, cuda_render, nvrtc, reference, tcnn
from nerf.kernels.records import (
    AdamState,
    AdamStep,
    FieldView,
    GradAccumulator,
    GridLayout,
    MarchSettings,
    OccupancyBits,
    Rays,
    RenderedRays,
    Samples,
)

INSTRUCTION_SETS = ("sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512bw", "asimd")  # those worth telling
Occupancy = Any  # OccupancyBits: what `pack_occupancy` gave, or where that is None the bool grid [levels,R,R,R]


class Backend(Protocol):
    """The ops of scenes on one kind of machine; `reference` defines each. Tensors come on `device()`.

    >>> from nerf import kernels
    >>> kernels.BACKENDS["reference"].ray_jitter(0, 1, 2, None)
    tensor([0.1211, 0.3017])
    """

    def why_missing(self) -> str:
        """Empty where the backend can be used, else the reason, with what to do."""

    def device(self) -> torch.device:
        """Where its models live."""

    def pack_occupancy(self, occupied: Tensor, /) -> OccupancyBits | None:
        """Bits of a bool grid [levels,R,R,R], None where the grid itself is read."""

    def places_set(self, mask: Tensor, /) -> Tensor:
        """Indices [k] at which a mask [n] (bool) holds."""

    def threshold_cells(self, values: Tensor, candidates: Tensor, step_size: float, highest: float, /) -> Tensor:
        """Which cells [n] of an occupancy grid are occupied (bool)."""

    def march(self, rays: Rays, occupancy: Occupancy, settings: MarchSettings, /) -> Samples:
        """Occupied intervals; not differentiable."""

    def field(self, x: Tensor, d: Tensor | None, field: FieldView, /) -> tuple[Tensor, Tensor | None]:
        """Densities [n] and, with directions, colours [n,3]; not differentiable."""

    def differentiable_field(self, x: Tensor, d: Tensor | None, field: FieldView, /) -> tuple[Tensor, Tensor | None]:
        """The same, once differentiable in x, d and the field, in single precision."""

    def render(
        self,
        rays: Rays,
        occupancy: Occupancy,
        field: FieldView,
        settings: MarchSettings,
        grad_accumulator: GradAccumulator | None,
        overflow: Literal["grow", "drop"],
        /,
    ) -> RenderedRays:
        """`grad_accumulator`: where the table's gradient is added instead of being returned. `overflow`: whether a
        backend whose buffer of samples is full waits and makes room, or leaves the rest without gradients."""

    def hashgrid_encode(self, positions: Tensor, table: Tensor, layout: GridLayout, /) -> Tensor:
        """Features [n, L*F] of positions [n,d]; once differentiable in positions and table."""

    def ray_jitter(self, seed: int, step: int, n: int, step_at: Tensor | None, /) -> Tensor:
        """A float in [0,1) for each of n rays."""

    def adam(self, param: Tensor, grad: Tensor, state: AdamState, step: AdamStep, /) -> None:
        """One step in place."""


class Reference:
    """Plain torch, slow and complete."""

    adam = staticmethod(reference.adam_step)
    march: Callable[..., Samples] = staticmethod(reference.march)
    render: Callable[..., RenderedRays] = staticmethod(reference.render_rays)

    def why_missing(self) -> str:
        return ""

    def device(self) -> torch.device:
        return torch.device("cpu")

    def pack_occupancy(self, occupied: Tensor) -> OccupancyBits | None:
        return None

    def places_set(self, mask: Tensor) -> Tensor:
        return mask.nonzero()[:, 0]

    def threshold_cells(self, values: Tensor, candidates: Tensor, step_size: float, highest: float) -> Tensor:
        optical, n = values * step_size, int(candidates.sum())
        mean = float((optical.clamp_max(1.0) * candidates).sum()) / n if n else 0.0
        return (optical > min(highest, 0.5 * mean)) & candidates

    def field(self, x: Tensor, d: Tensor | None, field: FieldView, /) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return self.differentiable_field(x, d, field)

    def differentiable_field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
        if d is None:
            return reference.radiance_density(x, field.params, field.config, self.hashgrid_encode), None
        return reference.radiance_field(x, d, field.params, field.config, self.hashgrid_encode)

    def hashgrid_encode(self, positions: Tensor, table: Tensor, layout: GridLayout, /) -> Tensor:
        return reference.hashgrid_encode(positions, table, layout)

    def ray_jitter(self, seed: int, step: int, n: int, step_at: Tensor | None) -> Tensor:
        return reference.ray_jitter(seed, step, torch.arange(n))


def _hashgrid(native: Callable[[Tensor, Tensor, GridLayout], Tensor]) -> Callable[[Tensor, Tensor, GridLayout], Tensor]:
    """The native hash grid for what it is compiled for, else the reference's."""

    def encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        fits = layout.n_levels <= bindings.MAX_LEVELS and layout.n_features_per_level in (1, 2, 4, 8)
        is_native = fits and positions.dtype == table.dtype == torch.float32
        return (native if is_native else reference.hashgrid_encode)(positions, table, layout)

    return encode


class Cpu(Reference):
    """The native libraries of `build.py`."""

    adam = staticmethod(cpu_adam.adam_step)
    march = staticmethod(cpu.march)
    field = staticmethod(cpu.field_forward)
    render = staticmethod(cpu.render_rays)
    pack_occupancy = staticmethod(cpu.pack_occupancy)
    places_set = staticmethod(cpu.places_set)
    threshold_cells = staticmethod(cpu.threshold_cells)
    hashgrid_encode = staticmethod(_hashgrid(cpu.hashgrid_encode))
    ray_jitter = staticmethod(cpu.ray_jitter)

    def why_missing(self) -> str:
        reason = bindings.load().reason
        remedy = "reinstall with a C++ compiler (g++ or clang++) or use --backend reference"
        return f"{reason}; {remedy}" if bindings.load().handle is None else ""


class Cuda(Reference):
    """Kernels that NVRTC compiles for the GPU at first use."""

    adam = staticmethod(cuda.adam_step)
    march = staticmethod(cuda.march)
    field = staticmethod(cuda.field_forward)
    render = staticmethod(cuda_render.render_rays)
    pack_occupancy = staticmethod(cuda.pack_occupancy)
    hashgrid_encode = staticmethod(_hashgrid(cuda.hashgrid_encode))
    ray_jitter = staticmethod(cuda.ray_jitter)

    def why_missing(self) -> str:
        gpu, reason = nvrtc.find()
        if gpu is not None:
            reason = cuda.why_broken()
        return f"{reason}, or use --backend cpu" if reason or gpu is None else ""

    def device(self) -> torch.device:
        return cuda.gpu().device


class TinyCudaNN(Cuda):
    """`cuda` with tinycudann's hash grid and networks as the field."""

    field = staticmethod(tcnn.field_forward)
    render = staticmethod(tcnn.render_rays)

    def why_missing(self) -> str:
        missing = super().why_missing()
        if not missing and (reason := tcnn.why_missing()):
            missing = f"{reason}, or use --backend cuda"
        return missing

    def differentiable_field(self, x: Tensor, d: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
        if d is None:
            return super().differentiable_field(x, d, field)
        return tcnn.radiance_field(x, d, field.params, field.config)


BACKENDS: dict[str, Backend] = {
    "cpu": Cpu(),
    "cuda": Cuda(),
    "tinycudann": TinyCudaNN(),
    "reference": Reference(),
}


def describe() -> dict[str, object]:
    """What is there, for `nerf doctor`: the GPU or why there is none, the processor's backend, variant of the native
    library or why it is missing, instruction sets."""
    lib = bindings.load()
    flags = bindings.cpu_flags()
    gpu, no_gpu = nvrtc.find()
    return {
        "gpu": None if gpu is None else {"name": gpu.name, "architecture": f"sm_{gpu.architecture}"},
        "no_gpu": no_gpu,
        "driver_cuda": nvrtc.driver_version(),
        "nvrtc": nvrtc.nvrtc_version(),
        "backend": "reference" if lib.handle is None else "cpu",
        "variant": lib.variant,
        "reason": lib.reason,
        "openmp": bool(lib.handle and lib.handle.nerf_has_openmp()),
        "lanes": int(lib.handle.nerf_lanes()) if lib.handle else 0,
        "bf16": bool(lib.handle and lib.handle.nerf_has_bf16()),
        "instruction_sets": [f for f in INSTRUCTION_SETS if f in flags],
        "threads": torch.get_num_threads(),
    }
