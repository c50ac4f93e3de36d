"""Every op by name, on the fastest backend that is there, and which one that is.

`cpu` are the native libraries of `build.py`; `cuda` are kernels that NVRTC compiles for the GPU at first use;
`tinycudann` is `cuda` with that package's hash grid and networks as the field; `reference` is plain torch, slow and
complete. All mean the same. NERF_BACKEND or `use()` picks one by hand.

The backend decides where models live (`device()`); an op runs where its tensors are. With `cuda`, rays and points may
come from either side when the field is on the GPU: they travel there, and the results back. What has no CUDA kernel
(searches in meshes) runs on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from nerf.errors import UserError, note
from nerf.kernels import (
    bindings,
    cpu_learn,
    cuda,
    cuda_learn,
    fusion,
    matching,
    nearest,
    network,
    nvrtc,
    raster,
    skyline,
    winding,
)
from nerf.kernels.backends import BACKENDS, Backend, Cpu, Cuda, describe
from nerf.kernels.bindings import MAX_NET_LAYERS
from nerf.kernels.cuda_graph import NotRecorded, RecordedSteps
from nerf.kernels.drawing import (
    BatchPlan,
    BeforeCameras,
    DrawnRays,
    KnownPixels,
    LearnPlan,
    Learnt,
    Light,
    PhotoLoss,
    PhotoTable,
    TableStep,
)
from nerf.kernels.fusion import DepthView, Fused
from nerf.kernels.matching import MatchSource, MatchWindow
from nerf.kernels.nearest import Nearest
from nerf.kernels.network import Layer
from nerf.kernels.records import (
    AdamState,
    AdamStep,
    FieldConfig,
    FieldParams,
    FieldView,
    GradAccumulator,
    GridLayout,
    MarchSettings,
    OccupancyBits,
    Rays,
    RenderedRays,
    Samples,
)

__all__ = [
    "BACKENDS",
    "AdamState",
    "AdamStep",
    "Backend",
    "BatchPlan",
    "BeforeCameras",
    "DepthView",
    "DrawnRays",
    "FieldConfig",
    "FieldParams",
    "FieldView",
    "GradAccumulator",
    "GridLayout",
    "KnownPixels",
    "Layer",
    "LearnPlan",
    "Learnt",
    "Light",
    "MarchSettings",
    "MatchSource",
    "MatchWindow",
    "NotRecorded",
    "OccupancyBits",
    "PhotoLoss",
    "PhotoTable",
    "Rays",
    "RecordedSteps",
    "RenderedRays",
    "Samples",
    "TableStep",
    "adam_step",
    "backend",
    "be_deterministic",
    "cloud_winding_numbers",
    "describe",
    "device",
    "draw_rays",
    "drop_outlines",
    "field_forward",
    "fuse_depths",
    "hashgrid_encode",
    "is_deterministic",
    "learn_rays",
    "march",
    "match_planes",
    "native_networks",
    "nearest_faces",
    "nearest_points",
    "network_forward",
    "network_mse",
    "network_with_tangents",
    "on_gpu",
    "pack_occupancy",
    "places_set",
    "ray_jitter",
    "render_rays",
    "threshold_cells",
    "use",
    "using",
    "winding_numbers",
]

_chosen: str | None = None


def use(name: str) -> str:
    """Choose the backend for this process: "auto" (the fastest that is there) or one of `BACKENDS`. Returns the one in
    use.

    auto never takes tinycudann: where it runs, our kernels do, and no GPU has yet measured it to be the faster one (its
    staged path evaluates what surfaces hide); scripts/gpu_check.sh compares the two.
    """
    global _chosen
    if name not in ("auto", *BACKENDS):
        raise UserError(f"backend {name!r} is unknown, expected one of auto, {', '.join(BACKENDS)}")
    bindings.load()  # one that is broken says so now, whatever is used
    if name != "auto" and (missing := BACKENDS[name].why_missing()):
        raise UserError(f"backend {name} is not available: {missing}")
    _chosen = _fastest() if name == "auto" else name
    return _chosen


def _fastest() -> str:
    gpu, _ = nvrtc.find()
    if gpu is not None:
        if not (broken := cuda.why_broken()):
            note(f"running on the GPU ({gpu.name}); NERF_BACKEND=cpu for the processor")
            return "cuda"
        # without a GPU nobody expects one; with one, silence would be slow silence
        note(f"not running on the GPU: {broken}")
    lib = bindings.load()
    if lib.handle is not None:
        return "cpu"
    remedy = "reinstall with a C++ compiler for about 20 times the speed"
    note(f"running the slow reference kernels, because {lib.reason}; {remedy}")
    return "reference"


def backend() -> str:
    """The backend in use; chosen by NERF_BACKEND or automatically at the first call."""
    return _chosen or use(os.environ.get("NERF_BACKEND", "auto"))


@contextmanager
def using(name: str | None = None, *, deterministic: bool | None = None) -> Iterator[str]:
    """Within it another backend is in use (None: the same), or gradients are the same to the bit in every run.

    Exported as `nerf.backend`. Models live where they were made: see `Model.to`. Raises UserError where the backend is
    not available, or cannot be deterministic.

    >>> import nerf
    >>> from nerf import kernels
    >>> with nerf.backend("reference", deterministic=True) as name:
    ...     name, kernels.backend()
    ('reference', 'reference')
    """
    global _chosen
    before = backend(), cuda.deterministic
    try:
        if name is not None:
            use(name)
        if deterministic is not None:
            be_deterministic(deterministic)
        yield backend()
    finally:
        _chosen, cuda.deterministic = before


def on_gpu() -> bool:
    """Whether the backend in use is one of those that run on a GPU."""
    return isinstance(BACKENDS[backend()], Cuda)


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
    return BACKENDS[backend()].device()


def _backend_of(tensor: Tensor) -> Backend:
    """The kernels for an op on this tensor: those of the backend in use where the tensor is on its device, else of the
    processor."""
    chosen = BACKENDS[backend()]
    if tensor.device.type == chosen.device().type or tensor.device.type != "cpu":
        return chosen
    return BACKENDS["reference" if bindings.load().handle is None else "cpu"]


def _searches_natively() -> bool:
    """Whether what only the CPU library has (searches in meshes) is there and not ruled out."""
    return backend() != "reference" and bindings.load().handle is not None


# ---- the ops -------------------------------------------------------------------------------------------------------


def hashgrid_encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Features [n, L*F] of positions [n,d] in [0,1]; see `reference.hashgrid_encode`."""
    features = _backend_of(table).hashgrid_encode(positions.to(table.device), table, layout)
    return features.to(positions.device)


def field_forward(positions: Tensor, directions: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
    """Densities [n] and, with directions, colours [n,3] at scene positions [n,3].

    Once differentiable in all float arguments where gradients are enabled and one of them asks for them: by the native
    hash grid and networks in torch, in single precision whatever `field.precision` is. Where no gradient is asked for
    it is fast, and in that precision.
    """
    here, there = positions.device, field.params.table.device
    x, d = positions.to(there), None if directions is None else directions.to(there)
    found = _backend_of(field.params.table)
    moving = (positions, directions, *field.leaves)
    is_asked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in moving)
    sigmas, rgbs = (found.differentiable_field if is_asked else found.field)(x, d, field)
    scale = field.config.color_scale
    if rgbs is not None and scale != 1.0:
        rgbs = rgbs * scale
    return sigmas.to(here), None if rgbs is None else rgbs.to(here)


def places_set(mask: Tensor) -> Tensor:
    """The indices [k] int64 at which a mask [n] (bool) holds, in order."""
    return _backend_of(mask).places_set(mask)


def threshold_cells(values: Tensor, candidates: Tensor, step_size: float, highest: float) -> Tensor:
    """Which of the candidates [n] (bool) are occupied: those whose optical depth over one step, value * step_size,
    exceeds `highest` or half of its mean over the candidates (each counting 1 at most), whichever is smaller. values
    [n] float.

    >>> import torch
    >>> from nerf import kernels
    >>> kernels.threshold_cells(torch.tensor([0.0, 1.0, 9.0]), torch.ones(3, dtype=torch.bool), 0.1, 0.5)
    tensor([False, False,  True])
    """
    return _backend_of(values).threshold_cells(values, candidates, step_size, highest)


def pack_occupancy(occupied: Tensor) -> OccupancyBits | None:
    """The bits that the native march reads, or None where the reference reads the bool tensor itself."""
    return _backend_of(occupied).pack_occupancy(occupied)


def ray_jitter(seed: int, step: int, n: int, step_at: Tensor | None = None) -> Tensor:
    """A float in [0,1) per ray from an integer hash of (seed, step, ray), the same on every backend; on `device()`.
    `step_at`: see `cuda.ray_jitter`.

    >>> import nerf
    >>> nerf.ray_jitter(seed=0, step=1, n=2)
    tensor([0.1211, 0.3017])
    """
    return BACKENDS[backend()].ray_jitter(seed, step, n, step_at)


def march(rays: Rays, occupied: Tensor, settings: MarchSettings, bits: OccupancyBits | None = None) -> Samples:
    """Occupied intervals of every ray; see `reference.march`. The same to the bit on every backend."""
    found = _backend_of(rays.o)
    return found.march(rays, _packed(found, occupied, bits), settings)


def _packed(found: Backend, occupied: Tensor, bits: OccupancyBits | None) -> OccupancyBits | Tensor:
    """What this backend marches through: the bits of `pack_occupancy`, made now where they are not given."""
    if found is BACKENDS["reference"]:
        return occupied
    return found.pack_occupancy(occupied) or occupied if bits is None else bits


def render_rays(
    rays: Rays,
    occupied: Tensor,
    field: FieldView,
    settings: MarchSettings,
    bits: OccupancyBits | None = None,
    grad_accumulator: GradAccumulator | None = None,
    overflow: Literal["grow", "drop"] = "grow",
) -> RenderedRays:
    """March, field and composite in one op; see `reference.render_rays` for the meaning, `cpu.render_rays` for what is
    differentiable, and `Backend` for the rest."""
    if not torch.is_grad_enabled():  # an autograd function is not told, and would remember all samples for later
        rays, field = rays.each(torch.Tensor.detach), field.with_leaves([t.detach() for t in field.leaves])
    here, there = rays.o.device, field.params.table.device
    found = _backend_of(field.params.table)
    rays = rays.each(lambda t: t.to(there))
    occupancy = _packed(found, occupied if bits is not None else occupied.to(there), bits)
    out = found.render(rays, occupancy, field, settings, grad_accumulator, overflow)
    return out.scaled(field.config.color_scale).to(here)


def draw_rays(table: PhotoTable, plan: BatchPlan) -> DrawnRays:
    """A batch of training rays, on the backends cpu and cuda; see `reference.draw_rays`."""
    return (cuda_learn if on_gpu() else cpu_learn).draw_rays(table, plan)


def learn_rays(drawn: DrawnRays, plan: LearnPlan) -> Learnt:
    """The gradients of a drawn batch, on the backends cpu and cuda. A `TableStep` is taken on the CPU alone."""
    return (cuda_learn if on_gpu() else cpu_learn).learn_rays(drawn, plan)


def adam_step(param: Tensor, grad: Tensor, state: AdamState, step: AdamStep) -> None:
    """One step in place; see `reference.adam_step`."""
    _backend_of(param).adam(param, grad, state, step)


def native_networks(x: Tensor, n_layers: int) -> bool:
    """Whether networks of that many layers run natively on inputs like x (float32 on the CPU), else in plain torch."""
    return isinstance(_backend_of(x), Cpu) and x.dtype == torch.float32 and n_layers <= MAX_NET_LAYERS


def network_forward(x: Tensor, layers: list[Layer], bf16: bool = False) -> Tensor:
    """Values of a network of sine and ReLU layers at x [n, in], differentiable once; see `network.forward`."""
    return network.forward(x, layers, bf16, native_networks(x, len(layers)))


def network_with_tangents(
    x: Tensor, layers: list[Layer], scales: tuple[float, ...], bf16: bool = False
) -> tuple[Tensor, Tensor]:
    """Its values and its derivatives along the inputs, to learn from both; see `network.with_tangents`."""
    return network.with_tangents(x, layers, scales, bf16, native_networks(x, len(layers)))


def network_mse(x: Tensor, targets: Tensor, layers: list[Layer], bf16: bool = False) -> Tensor:
    """Mean squared error of such a network, differentiable once in its weights and x; see `network.mse`."""
    return network.mse(x, targets, layers, bf16, native_networks(x, len(layers)))


def nearest_points(points: Tensor, vertices: Tensor, faces: Tensor) -> Nearest:
    """Distances, faces and points of a triangle mesh nearest to points [n,3]; see `nearest.nearest_points`."""
    return nearest.nearest_points(points, vertices, faces, native=_searches_natively())


def nearest_faces(uv: Tensor, z: Tensor, faces: Tensor, width: int, height: int) -> Tensor:
    """The face of a mesh that each pixel of a picture shows, -1 for none; see `raster.nearest_faces`."""
    return raster.nearest_faces(uv, z, faces, width, height, native=_searches_natively())


def drop_outlines(bottoms: Tensor, tops: Tensor, widths: Tensor, order: Tensor, n_columns: int) -> Tensor | None:
    """Places [n,2] of outlines that fall onto a skyline one by one, None: no room; see `skyline.drop_outlines`."""
    return skyline.drop_outlines(bottoms, tops, widths, order, n_columns, native=_searches_natively())


def fuse_depths(
    points: Tensor, views: list[DepthView], front: float, back: float, scales: Tensor | None = None
) -> Fused:
    """What depth maps say of points [n,3]: signed distances, weights; see `fusion.fuse_depths`."""
    return fusion.fuse_depths(points, views, front, back, scales, native=_searches_natively())


def match_planes(picture: Tensor, sources: list[MatchSource], planes: Tensor, window: MatchWindow) -> Tensor:
    """How well planes [3,h,w] explain a picture by others: costs [h,w] from 0 to 1; see `matching.match_planes`."""
    return matching.match_planes(picture, sources, planes, window, native=_searches_natively())


def winding_numbers(points: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """How often a triangle mesh goes around each of points [n,3]; see `winding.of_mesh`."""
    return winding.of_mesh(points, vertices, faces, native=_searches_natively())


def cloud_winding_numbers(points: Tensor, cloud: Tensor, areas: Tensor) -> Tensor:
    """The same for a cloud of oriented points [m,3]; see `winding.of_cloud`."""
    return winding.of_cloud(points, cloud, areas, native=_searches_natively())
