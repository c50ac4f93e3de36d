"""The only door to native code: every op by name, on the fastest backend that is there, and a word on which one that
is.

`cpu` are the native libraries of `build.py`; `cuda` are kernels that NVRTC compiles for the GPU at first use;
`tinycudann` is `cuda` with that package's hash grid and networks as the field; `reference` is plain torch, slow and
complete. All mean the same. NERF_BACKEND or `use()` picks one by hand.

The backend decides where models live (`device()`); an op runs where its tensors are. With `cuda`, rays and points may
come from either side when the field is on the GPU: they travel there, and the results back. What has no CUDA kernel
(searches in meshes) runs on the CPU.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from nerf.errors import UserError, note
from nerf.geometry.space import ray_box
from nerf.kernels import (
    bindings,
    cpu,
    cuda,
    cuda_render,
    fusion,
    nearest,
    network,
    nvrtc,
    raster,
    reference,
    tcnn,
    winding,
)
from nerf.kernels.cuda_graph import RecordedSteps, StepNumbers
from nerf.kernels.fusion import DepthView, Fused
from nerf.kernels.nearest import Nearest
from nerf.kernels.network import MAX_NET_LAYERS, Layer
from nerf.kernels.records import (
    FieldConfig,
    FieldParams,
    GradAccumulator,
    GridLayout,
    MarchSettings,
    OccupancyBits,
    RenderedRays,
    Samples,
)

__all__ = [
    "DepthView",
    "FieldConfig",
    "FieldParams",
    "Fused",
    "GradAccumulator",
    "GridLayout",
    "Layer",
    "MarchSettings",
    "Nearest",
    "OccupancyBits",
    "RecordedSteps",
    "RenderedRays",
    "Samples",
    "StepNumbers",
    "adam_step",
    "backend",
    "be_deterministic",
    "cloud_winding_numbers",
    "describe",
    "device",
    "field_forward",
    "fuse_depths",
    "hashgrid_encode",
    "is_deterministic",
    "march",
    "native_networks",
    "nearest_faces",
    "nearest_points",
    "network_forward",
    "network_mse",
    "network_with_tangents",
    "on_gpu",
    "pack_occupancy",
    "ray_box",
    "ray_jitter",
    "render_rays",
    "use",
    "winding_numbers",
]

BACKENDS = ("auto", "cpu", "cuda", "tinycudann", "reference")
_chosen: str | None = None


def use(name: str) -> str:
    """Choose the backend for this process: "auto" (the fastest that is there), "cuda", "tinycudann", "cpu" or
    "reference". Returns the one in use.

    auto never takes tinycudann: where it runs, our kernels do, and no GPU has yet measured it to be the faster one (its
    staged path evaluates what surfaces hide); scripts/gpu_check.sh compares the two.
    """
    global _chosen
    if name not in BACKENDS:
        raise UserError(f"backend {name!r} is unknown, expected one of {', '.join(BACKENDS)}")
    lib = bindings.load()
    if name in ("auto", "cuda", "tinycudann"):
        gpu, reason = nvrtc.find()
        if gpu is not None and (broken := cuda.why_broken()):
            gpu, reason = None, broken
            if name == "auto":  # without a GPU nobody expects one; with one, silence would be slow silence
                note(f"not running on the GPU: {broken}")
        if gpu is not None and name == "tinycudann" and (missing := tcnn.why_missing()):
            raise UserError(f"backend tinycudann is not available: {missing}, or use --backend cuda")
        if gpu is not None:
            if name == "auto":
                note(f"running on the GPU ({gpu.name}); NERF_BACKEND=cpu for the processor")
            _chosen = "tinycudann" if name == "tinycudann" else "cuda"
            return _chosen
        if name != "auto":
            raise UserError(f"backend {name} is not available: {reason}, or use --backend cpu")
    if name == "cpu" and lib.handle is None:
        raise UserError(
            f"backend cpu is not available: {lib.reason}; "
            "reinstall with a C++ compiler (g++ or clang++) or use --backend reference"
        )
    if name == "auto" and lib.handle is None:
        note(
            f"running the slow reference kernels, because {lib.reason}; "
            "reinstall with a C++ compiler for about 20 times the speed"
        )
    _chosen = "reference" if name == "reference" or lib.handle is None else "cpu"
    return _chosen


def backend() -> str:
    """The backend in use; chosen by NERF_BACKEND or automatically at the first call."""
    return _chosen or use(os.environ.get("NERF_BACKEND", "auto"))


def on_gpu() -> bool:
    """Whether the backend in use is one of those that run on a GPU."""
    return backend() in ("cuda", "tinycudann")


def be_deterministic(wanted: bool) -> None:
    """Whether gradients on a GPU must be the same to the bit in every run, which costs time and memory. On the CPU they
    are in any case."""
    if wanted and backend() == "tinycudann":
        raise UserError(
            "backend tinycudann cannot be deterministic, because it adds gradients in the order in which threads come: "
            "use --backend cuda, or leave --deterministic out"
        )
    cuda.deterministic = wanted


def is_deterministic() -> bool:
    """Whether sums on the GPU in use must not depend on the order of their terms; false on the CPU, which has one."""
    return cuda.deterministic and on_gpu()


def device() -> torch.device:
    """Where models of this backend live: the GPU for "cuda" and "tinycudann", else the CPU."""
    return cuda.gpu().device if on_gpu() else torch.device("cpu")


def _runs_on(tensor: Tensor) -> str:
    """The kernels for an op on this tensor: "cuda" where the tensor is on the GPU in use, else "cpu" or "reference"."""
    if on_gpu():
        if tensor.device.type == cuda.gpu().device.type:
            return "cuda"
        return "reference" if bindings.load().handle is None else "cpu"
    return backend()


def _searches_natively() -> bool:
    """Whether what only the CPU library has (searches in meshes) is there and not ruled out."""
    return backend() == "cpu" or (on_gpu() and bindings.load().handle is not None)


def describe() -> dict[str, object]:
    """What is there, for `nerf doctor`: backend in use, native library variant or the reason it is missing, instruction
    sets."""
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
        "instruction_sets": [
            f for f in ("sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512bw", "asimd") if f in flags
        ],
        "threads": torch.get_num_threads(),
    }


# ---- the ops -------------------------------------------------------------------------------------------------------


def hashgrid_encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Features [n, L*F] of positions [n,d] in [0,1]; see `reference.hashgrid_encode`. Native code takes float32
    only."""
    runs_on = _runs_on(table)
    if runs_on == "cuda" and layout.n_levels <= bindings.MAX_LEVELS and layout.n_features_per_level in (1, 2, 4, 8):
        if positions.dtype == table.dtype == torch.float32:
            return cuda.hashgrid_encode(positions.to(table.device), table, layout).to(positions.device)
    is_native = (
        runs_on == "cpu"
        and positions.dtype == table.dtype == torch.float32
        and layout.n_features_per_level in (1, 2, 4, 8)
        and layout.n_levels <= bindings.MAX_LEVELS
    )
    return (cpu if is_native else reference).hashgrid_encode(positions, table, layout)


def field_forward(
    positions: Tensor,
    directions: Tensor | None,
    params: FieldParams,
    config: FieldConfig,
    table_half: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Densities [n] and, with directions, colours [n,3] at scene positions [n,3].

    Once differentiable in all float arguments where gradients are enabled and one of them asks for them: by the native
    hash grid and networks in torch, in single precision whatever `table_half` is. Fast, and with it in mixed precision,
    where no gradient is asked for.
    """
    runs_on = _runs_on(params.table)
    rgbs: Tensor | None
    moving = (positions, directions, params.table, *params.density_weights, *params.color_weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in moving):
        here, x = positions.device, positions.to(params.table.device)
        if directions is None:
            return reference.radiance_density(x, params, config, hashgrid_encode).to(here), None
        if backend() == "tinycudann" and runs_on == "cuda":
            sigmas, rgbs = tcnn.radiance_field(x, directions.to(x.device), params, config)
        else:
            sigmas, rgbs = reference.radiance_field(x, directions.to(x.device), params, config, hashgrid_encode)
        return sigmas.to(here), rgbs.to(here) if rgbs is not None else None
    if runs_on == "cuda":
        here, there = positions.device, params.table.device
        towards = None if directions is None else directions.to(there)
        if backend() == "tinycudann":
            sigmas, rgbs = tcnn.field_forward(positions.to(there), towards, params, config)
        else:
            sigmas, rgbs = cuda.field_forward(positions.to(there), towards, params, config, table_half)
        return sigmas.to(here), None if rgbs is None else rgbs.to(here)
    if runs_on == "cpu":
        return cpu.field_forward(positions, directions, params, config, table_half)
    with torch.no_grad():
        if directions is None:
            return reference.radiance_density(positions, params, config), None
        return reference.radiance_field(positions, directions, params, config)


def pack_occupancy(occupied: Tensor) -> OccupancyBits | None:
    """The bits that the native march reads, or None where the reference reads the bool tensor itself."""
    runs_on = _runs_on(occupied)
    if runs_on == "cuda":
        return cuda.pack_occupancy(occupied)
    return cpu.pack_occupancy(occupied) if runs_on == "cpu" else None


def ray_jitter(seed: int, step: int, n: int, step_at: Tensor | None = None) -> Tensor:
    """A float in [0,1) per ray from an integer hash of (seed, step, ray), the same on every backend; on `device()`.
    `step_at`: see `cuda.ray_jitter`."""
    if on_gpu():
        return cuda.ray_jitter(seed, step, n, step_at)
    return cpu.ray_jitter(seed, step, n) if backend() == "cpu" else reference.ray_jitter(seed, step, torch.arange(n))


def march(
    rays_o: Tensor,
    rays_d: Tensor,
    t_near: Tensor,
    t_far: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    settings: MarchSettings,
    bits: OccupancyBits | None = None,
) -> Samples:
    """Occupied intervals of every ray; see `reference.march`. The same to the bit on every backend."""
    runs_on = _runs_on(rays_o)
    if runs_on == "cuda":
        return cuda.march(rays_o, rays_d, t_near, t_far, jitter, bits or cuda.pack_occupancy(occupied), settings)
    if runs_on == "cpu":
        return cpu.march(rays_o, rays_d, t_near, t_far, jitter, bits or cpu.pack_occupancy(occupied), settings)
    return reference.march(
        rays_o, rays_d, t_near, t_far, jitter, occupied, settings.step_size, settings.cone_angle, settings.max_step
    )


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
    settings: MarchSettings,
    bits: OccupancyBits | None = None,
    table_half: Tensor | None = None,
    sink: GradAccumulator | None = None,
) -> dict:
    """March, field and composite in one op; see `reference.render_rays` for the meaning and `cpu.render_rays` for the
    rest."""
    runs_on = _runs_on(params.table)
    if not torch.is_grad_enabled():  # an autograd function is not told, and would remember all samples for later
        rays_o, rays_d, viewdirs = (t.detach() for t in (rays_o, rays_d, viewdirs))
        density, color = ([w.detach() for w in ws] for ws in (params.density_weights, params.color_weights))
        params = FieldParams(params.table.detach(), density, color)
    if runs_on == "cuda":
        here, there = rays_o.device, params.table.device
        o, d, views, near, far, shift = (t.to(there) for t in (rays_o, rays_d, viewdirs, t_near, t_far, jitter))
        bits = bits or cuda.pack_occupancy(occupied.to(there))
        if backend() == "tinycudann":
            out = tcnn.render_rays(o, d, views, near, far, shift, bits, params, config, settings, sink)
        else:
            out = cuda_render.render_rays(
                o, d, views, near, far, shift, bits, params, config, settings, table_half, sink
            )
        return {k: v.to(here) if k in cuda_render.OUTPUTS else v for k, v in out.items()}
    if runs_on == "cpu":
        bits = bits or cpu.pack_occupancy(occupied)
        return cpu.render_rays(
            rays_o, rays_d, viewdirs, t_near, t_far, jitter, bits, params, config, settings, table_half, sink
        )
    if sink is not None:
        params = FieldParams(reference.IntoSink.apply(params.table, sink), params.density_weights, params.color_weights)
    return reference.render_rays(
        rays_o,
        rays_d,
        viewdirs,
        t_near,
        t_far,
        jitter,
        occupied,
        params,
        config,
        step_size=settings.step_size,
        cone_angle=settings.cone_angle,
        max_step=settings.max_step,
        stop_threshold=settings.stop_threshold,
        alpha_threshold=settings.alpha_threshold,
        gradient_distance=settings.gradient_distance,
    )


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
    rates: Tensor | None = None,
) -> None:
    """One Adam step in place; see `reference.adam_step`. Refreshes the half-precision copy and clears the gradient when
    asked. `rates`: see `cuda.adam_step`."""
    runs_on = _runs_on(param)
    if runs_on == "cuda":
        cuda.adam_step(
            param, grad, m, v, lr, beta1, beta2, eps, step, skip_zero_rows, half_copy, zero_grad, weight_decay, rates
        )
        return
    if runs_on == "cpu":
        cpu.adam_step(
            param, grad, m, v, lr, beta1, beta2, eps, step, skip_zero_rows, half_copy, zero_grad, weight_decay
        )
        return
    decayed = grad
    if weight_decay:  # where a row is skipped, its decay is too
        decayed = grad + weight_decay * param
        if skip_zero_rows:
            decayed = decayed * (grad != 0).any(dim=-1, keepdim=True)
    reference.adam_step(param, decayed, m, v, lr, beta1, beta2, eps, step, skip_zero_rows)
    if half_copy is not None:
        half_copy.copy_(param)
    if zero_grad:
        grad.zero_()


def native_networks(x: Tensor, n_layers: int) -> bool:
    """Whether networks of that many layers run natively on inputs like x (float32 on the CPU), else in plain torch."""
    return _runs_on(x) == "cpu" and x.dtype == torch.float32 and n_layers <= MAX_NET_LAYERS


def network_forward(x: Tensor, layers: list[Layer], pairs: bool = False) -> Tensor:
    """Values of a network of sine and ReLU layers at x [n, in], differentiable once; see `network.forward`."""
    return network.forward(x, layers, pairs, native_networks(x, len(layers)))


def network_with_tangents(
    x: Tensor, layers: list[Layer], scales: tuple[float, ...], pairs: bool = False
) -> tuple[Tensor, Tensor]:
    """Its values and its derivatives along the inputs, to learn from both; see `network.with_tangents`."""
    return network.with_tangents(x, layers, scales, pairs, native_networks(x, len(layers)))


def network_mse(x: Tensor, targets: Tensor, layers: list[Layer], pairs: bool = False) -> Tensor:
    """Mean squared error of such a network, differentiable once in its weights and x; see `network.mse`."""
    return network.mse(x, targets, layers, pairs, native_networks(x, len(layers)))


def nearest_points(points: Tensor, vertices: Tensor, faces: Tensor) -> Nearest:
    """Distances, faces and points of a triangle mesh nearest to points [n,3]; see `nearest.nearest_points`."""
    return nearest.nearest_points(points, vertices, faces, native=_searches_natively())


def nearest_faces(uv: Tensor, z: Tensor, faces: Tensor, width: int, height: int) -> Tensor:
    """The face of a mesh that each pixel of a picture shows, -1 for none; see `raster.nearest_faces`."""
    return raster.nearest_faces(uv, z, faces, width, height, native=_searches_natively())


def fuse_depths(points: Tensor, views: list[DepthView], front: float, back: float) -> Fused:
    """What depth maps say of points [n,3]: signed distances, weights; see `fusion.fuse_depths`."""
    return fusion.fuse_depths(points, views, front, back, native=_searches_natively())


def winding_numbers(points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """How often a triangle mesh goes around each of points [n,3]; see `winding.of_mesh`."""
    return winding.of_mesh(points, vertices, faces, native=_searches_natively())


def cloud_winding_numbers(points: Tensor, cloud: Tensor, areas: Tensor) -> Tensor:
    """The same for a cloud of oriented points [m,3]; see `winding.of_cloud`."""
    return winding.of_cloud(points, cloud, areas, native=_searches_natively())
