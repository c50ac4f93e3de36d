"""The fused render op of the CUDA backend: autograd around the kernels of cuda_render.cu and cuda_backward.cu."""

from __future__ import annotations

from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any, Literal

import torch
from torch import Tensor

from nerf.kernels import cuda, cuda_args, nvrtc
from nerf.kernels.bindings import Pointers, check_in_place
from nerf.kernels.cpu import march_desc, occupancy_desc, ray_pointers
from nerf.kernels.cuda import THREADS, Net, blocks_of, fill_gpu, gpu, pointers
from nerf.kernels.cuda_order import KeptSamples, scatter_in_integers, sorted_by_ray, sum_over_rays
from nerf.kernels.records import (
    FieldView,
    GradAccumulator,
    MarchSettings,
    OccupancyBits,
    Rays,
    RenderedRays,
)

OUTPUTS = ("colors", "opacities", "depths", "median_depths", "second_moments", "distortions")
RAY_ROOM = 24  # kept samples a ray that the buffer of a training step has room for, at least in the mean over its rays
LEAST_ROOM = 1 << 18
# Threads of a block that renders. A lane owns a ray, and a batch of training has few: large blocks would leave
# multiprocessors empty. Pictures have many, and share the staged weights among more of them.
TRAINING_THREADS, PICTURE_THREADS = 128, 256


def _keep(n: Tensor, n_rays: int, capacity: int, net: Net, n_features: int) -> KeptSamples:
    device = n.device

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    tensors = {
        "n": n,
        "last_samples": empty(n_rays, dtype=torch.int32),
        "totals": empty(n_rays, 2),
        **{name: empty(capacity, 4) for name in ("intervals", "rgb_sigmas", "unit_positions")},
        "links": empty(capacity, 2, dtype=torch.int32),
        "features": empty(capacity, n_features * net.element_bytes, dtype=torch.uint8),
    }
    return KeptSamples.of(tensors, capacity)


@dataclass
class Job:
    """What autograd must not see of one fused pass."""

    rays: Rays
    bits: OccupancyBits
    field: FieldView
    settings: MarchSettings
    accumulator: GradAccumulator | None
    overflow: Literal["grow", "drop"]
    capacity: int
    numbers: dict[str, Any] = dataclass_field(default_factory=dict)

    @staticmethod
    def of(
        rays: Rays,
        bits: OccupancyBits,
        field: FieldView,
        settings: MarchSettings,
        accumulator: GradAccumulator | None,
        overflow: Literal["grow", "drop"],
    ) -> Job:
        room = max(LEAST_ROOM, RAY_ROOM * len(rays.o))
        return Job(rays, bits, field, settings, accumulator, overflow, room)


@dataclass
class Rendered:
    """What a forward pass leaves: per-ray outputs, and for a backward pass its samples and numbers that begin at 0."""

    job: Job
    net: Net
    sh: Tensor
    outputs: tuple[Tensor, ...]  # in the order of OUTPUTS
    kept: KeptSamples | None
    largest: Tensor  # [1] int32, bits of the samples' largest gradient
    loss: Tensor  # [1], for those who sum one up
    alive: Pointers


def forward(job: Job, keep: bool) -> Rendered:
    """The fused op; keep: a backward pass will want its samples."""
    rays, settings, numbers, capacity = job.rays, job.settings, job.numbers, job.capacity
    n, p, device = len(rays.o), pointers(), rays.o.device
    net = Net(job.field, p)
    if rays.viewdirs.shape != (n, 3):
        raise ValueError(f"viewdirs: expected shape [{n}, 3], got {list(rays.viewdirs.shape)}")
    sh = net.directions(rays.viewdirs, p)
    colors, scalars = torch.empty(n, 3, device=device), torch.empty(5, n, device=device)  # every ray writes its own
    args = cuda_args.RenderArgs(
        field=net.desc,
        grid=occupancy_desc(job.bits, p),
        march=march_desc(settings),
        stop_threshold=settings.stop_threshold,
        alpha_threshold=settings.alpha_threshold,
        n_rays=n,
        sh=sh.data_ptr(),
        weights=net.forward,
    )
    ray_pointers(args, rays, p)
    for name, tensor in zip(OUTPUTS, (colors, *scalars), strict=True):
        setattr(args, name, tensor.data_ptr())
    program = net.program("cuda_render.cu")
    threads = TRAINING_THREADS if keep else PICTURE_THREADS
    blocks = fill_gpu(program, "render_forward", threads, net.staged_bytes, blocks_of(n, threads))
    while True:
        counts = torch.zeros(5, dtype=torch.int64, device=device)  # the first is a long, of the others half is used
        numbers["evaluated"], halves = counts[:1], counts[1:].view(torch.int32)[::2]
        numbers["kept"], next_ray, largest, loss = halves.split(1)
        kept = _keep(numbers["kept"], n, capacity, net, job.field.config.layout.n_features) if keep else None
        args.n_evaluated, args.next_ray = numbers["evaluated"].data_ptr(), next_ray.data_ptr()
        args.kept = kept.struct if kept else cuda_args.Kept()
        if n:
            program.launch("render_forward", args, blocks, threads, shared=net.staged_bytes)
        if kept is None or (job.overflow == "drop" and not cuda.deterministic):
            break
        # Every sample is promised its gradient: look, and try again. Where the same samples have to find room in
        # every run, all must.
        found = int(kept.tensors["n"])
        if found <= capacity:
            break
        capacity = found
    if kept is not None:
        numbers["capacity"] = capacity
        if cuda.deterministic:
            kept = sorted_by_ray(kept, found)
    return Rendered(job, net, sh, (colors, *scalars.unbind(0)), kept, largest, loss.view(torch.float32), p)


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, job: Job, rays_o: Tensor, rays_d: Tensor, viewdirs: Tensor, *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # outputs without a gradient are null to the kernel, not a tensor of zeros
        done = forward(job, any(ctx.needs_input_grad))
        if done.kept is not None:
            ctx.state = replace(done, outputs=())  # which know ctx: neither would ever be freed
            ctx.save_for_backward(rays_o, rays_d, viewdirs, *leaves)  # notices changes made in between
        ctx.mark_non_differentiable(done.outputs[3])
        return done.outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,
        grad_colors: Tensor | None,
        grad_opacities: Tensor | None,
        grad_depths: Tensor | None,
        _median: Tensor | None,
        grad_moments: Tensor | None,
        grad_distortions: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        rays_o, rays_d, viewdirs, *_ = ctx.saved_tensors
        done: Rendered = ctx.state
        params, kept, p = done.job.field.params, done.kept, pointers()
        assert kept is not None
        grads = grad_colors, grad_opacities, grad_depths, grad_moments, grad_distortions
        samples, composite = composite_args(done, kept)
        for name, tensor in zip((*OUTPUTS[:3], *OUTPUTS[4:]), grads, strict=True):
            shape = (len(rays_o), 3) if name == "colors" else (len(rays_o),)
            setattr(composite, name, p(f"grad_{name}", tensor, shape))
        program = done.net.program("cuda_render.cu")
        program.launch("composite_backward", composite, blocks_of(len(rays_o), 128), 128)

        sink = done.job.accumulator
        grad_table = torch.zeros_like(params.table) if sink is None else writable(sink, params.table)
        rays = (rays_o, rays_d, viewdirs) if any(ctx.needs_input_grad[:3]) else None
        flat, grad_rays = field_gradients(done, kept, samples, grad_table, rays)
        shapes = [w.shape for w in params.density_weights + params.color_weights]
        parts = zip(flat.split([shape.numel() for shape in shapes]), shapes, strict=True)
        ctx.state = None
        weights = (part.view(shape) for part, shape in parts)
        return None, *grad_rays, None if sink is not None else grad_table, *weights


def writable(sink: GradAccumulator, table: Tensor) -> Tensor:
    """Where the table's gradient is added; torch is told of the change."""
    check_in_place("grad_accumulator.table", sink.table, tuple(table.shape), torch.float32, str(gpu().device))
    if sink.table.data_ptr() % 16:
        raise ValueError(
            "grad_accumulator.table: expected to begin at a multiple of 16 bytes: whole rows are added to it"
        )
    torch.autograd.graph.increment_version(sink.table)
    return sink.table


def composite_args(done: Rendered, kept: KeptSamples) -> tuple[Tensor, cuda_args.CompositeArgs]:
    """(gradients of the samples' logits [capacity,4], to be written; the struct, without those of the outputs)."""
    samples = torch.empty(kept.struct.capacity, 4, device=done.sh.device)
    return samples, cuda_args.CompositeArgs(
        kept=kept.struct,
        gradient_distance=done.job.settings.gradient_distance,
        n_rays=len(kept.tensors["last_samples"]),
        grads=samples.data_ptr(),
        largest_bits=done.largest.data_ptr(),
    )


def field_gradients(
    done: Rendered,
    kept: KeptSamples,
    samples: Tensor,
    grad_table: Tensor,
    rays: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """From the gradients of the samples' logits: adds to the table's; returns those of the weights, one after the
    other, and of the rays where asked."""
    net, sh, largest, layout = done.net, done.sh, done.largest, done.job.field.config.layout
    capacity, n, device = kept.struct.capacity, len(kept.tensors["last_samples"]), grad_table.device

    ordered = kept.is_sorted
    threads, shared = 32 * net.warps, net.backward_bytes
    program = net.program("cuda_backward.cu")
    blocks = fill_gpu(program, "field_backward", threads, shared, -(-capacity // (16 * net.warps)))
    n_gradients = net.n_gradients
    partials = torch.empty(blocks, n_gradients, device=device)
    grad_features = torch.empty(capacity * layout.n_features * net.element_bytes, dtype=torch.uint8, device=device)
    grad_sh = torch.zeros(capacity if ordered else n, 16, device=device) if rays is not None else None
    args = cuda_args.BackwardArgs(
        kept=kept.struct,
        sh=sh.data_ptr(),
        forward=net.forward,
        backward=net.backward,
        grads=samples.data_ptr(),
        largest_bits=largest.data_ptr(),
        grad_features=grad_features.data_ptr(),
        grad_sh=0 if grad_sh is None else grad_sh.data_ptr(),
        by_sample=int(ordered),
        partials=partials.data_ptr(),
    )
    program.launch("field_backward", args, blocks, threads, shared=shared)

    flat = torch.empty(n_gradients, device=device)
    reduce = cuda_args.ReduceArgs(partials.data_ptr(), largest.data_ptr(), flat.data_ptr(), blocks)
    program.launch("reduce_weights", reduce, blocks_of(n_gradients, 64), 64)
    looping = fill_gpu(program, "scatter_table", THREADS, 0, blocks_of(capacity))
    scatter = cuda_args.ScatterArgs(
        field=net.desc,
        kept=kept.struct,
        grad_features=grad_features.data_ptr(),
        largest_bits=largest.data_ptr(),
        grad_table=grad_table.data_ptr(),
    )
    if ordered and capacity:  # then all of the buffer is in use
        numbers = grad_features.view(torch.float32 if net.single else torch.float16)
        scatter_in_integers(program, scatter, numbers, grad_table, (looping, layout.n_levels))
    else:
        program.launch("scatter_table", scatter, looping, THREADS, layout.n_levels)
    if rays is None or grad_sh is None:
        return flat, (None, None, None)
    return flat, _ray_gradients(net, program, kept, grad_features, largest, grad_sh, rays, looping)


def _ray_gradients(
    net: Net,
    program: nvrtc.Program,
    kept: KeptSamples,
    grad_features: Tensor,
    largest: Tensor,
    grad_sh: Tensor,
    rays: tuple[Tensor, Tensor, Tensor],
    blocks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    p = pointers()
    n, ordered, device = len(rays[0]), kept.is_sorted, grad_sh.device
    if ordered:
        grad_sh = sum_over_rays(program, kept, grad_sh)
    grads = [torch.zeros(kept.struct.capacity if ordered else n, 3, device=device) for _ in range(2)]
    grads.append(torch.zeros(n, 3, device=device))
    args = cuda_args.RayGradientArgs(
        field=net.desc,
        kept=kept.struct,
        grad_features=grad_features.data_ptr(),
        largest_bits=largest.data_ptr(),
        grad_sh=grad_sh.data_ptr(),
        n_rays=n,
        by_sample=int(ordered),
    )
    for name, tensor in zip(("rays_o_in", "rays_d_in", "viewdirs"), rays, strict=True):
        setattr(args, name, p(name, tensor, (n, 3)))
    for name, tensor in zip(("rays_o", "rays_d", "grad_viewdirs"), grads, strict=True):
        setattr(args, name, tensor.data_ptr())
    program.launch("ray_gradients", args, blocks, THREADS)
    program.launch("direction_gradients", args, blocks_of(n), THREADS)
    if ordered:
        grads[:2] = [sum_over_rays(program, kept, g) for g in grads[:2]]
    return grads[0], grads[1], grads[2]


def render_rays(
    rays: Rays,
    bits: OccupancyBits,
    field: FieldView,
    settings: MarchSettings,
    grad_accumulator: GradAccumulator | None = None,
    overflow: Literal["grow", "drop"] = "grow",
) -> RenderedRays:
    """The fused op, see `cpu.render_rays`: same meaning.

    The numbers "evaluated" and "kept" are tensors [1] on the GPU, so that nobody waits for them who does not look.
    overflow: of the buffer of kept samples. "grow" waits for their number and makes room for all; "drop" never waits:
    what finds no room in "capacity" is in the picture and in "kept", but has no gradient.
    """
    rays = replace(rays, o=rays.o.contiguous(), d=rays.d.contiguous(), viewdirs=rays.viewdirs.contiguous())
    job = Job.of(rays, bits, field, settings, grad_accumulator, overflow)
    outputs = _Render.apply(job, rays.o, rays.d, rays.viewdirs, *field.leaves)
    return RenderedRays(*outputs, **job.numbers)
