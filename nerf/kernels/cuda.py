"""The CUDA backend: tensors of the GPU to kernels and back; no arithmetic of its own. The fused render op has a file
beside this one.

Same meaning as `cpu.py`, op for op. Without a half-precision table everything is computed in single precision (slow,
and exact to float32); with one, the networks run on the tensor cores in half precision with float32 sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.kernels import cuda_args, nvrtc, reference
from nerf.kernels.bindings import FieldDesc, Pointers, grid_levels
from nerf.kernels.checks import check_occupied
from nerf.kernels.cpu import field_desc, grid_function, march_desc, occupancy_desc, ray_pointers
from nerf.kernels.cpu_adam import adam_desc
from nerf.kernels.records import AdamState, AdamStep, FieldView, GridLayout, MarchSettings, OccupancyBits, Rays, Samples

THREADS = 256
deterministic = False  # sums that do not depend on the order of threads; set by kernels.be_deterministic()


def gpu() -> nvrtc.Gpu:
    """The GPU in use; only asked for once there is one."""
    found, reason = nvrtc.find()
    assert found is not None, reason
    return found


def why_broken() -> str:
    """Empty where the GPU compiles and runs our smallest kernel and gives the right numbers, else what went wrong."""
    try:
        found = ray_jitter(1, 2, 64).cpu()
    except (UserError, RuntimeError, OSError) as error:  # the last where the driver's library does not load
        return " ".join(str(error).split())[:300]
    if not torch.equal(found, reference.ray_jitter(1, 2, torch.arange(64))):
        return f"{gpu().name} computes wrong numbers in the first kernel that was tried"
    return ""


def pointers() -> Pointers:
    return Pointers(str(gpu().device), 16)  # the widest access of a kernel


def blocks_of(n: int, threads: int = THREADS) -> int:
    return -(-n // threads)


def fixed_scale(addends: Tensor, n: int) -> Tensor:
    """[1] float: the power of two that, times any sum of n of these numbers (each times at most 1), fits 62 bits.

    The largest number keeps all digits of its float and the others lose what lies below 2^-61 n of it: more than half
    precision gave them, for every n that occurs.
    """
    largest = torch.where(addends.isfinite(), addends.abs(), torch.zeros_like(addends)).amax().float()
    exponent = 62 - n.bit_length() - torch.frexp(largest).exponent  # |largest| < 2^exponent of frexp
    return ((exponent.clamp(-126, 126) + 127).to(torch.int32) << 23).view(torch.float32)


# ---- hash grid -----------------------------------------------------------------------------------------------------


def _grid_program(layout: GridLayout) -> nvrtc.Program:
    return nvrtc.program(
        "cuda_hashgrid.cu", (("NERF_DIMS", layout.n_dims), ("NERF_FEATURES", layout.n_features_per_level))
    )


def _grid_args(positions: Tensor, table: Tensor, layout: GridLayout, p: Pointers) -> cuda_args.GridArgs:
    return cuda_args.GridArgs(
        positions=p("positions", positions, (len(positions), layout.n_dims)),
        table=p("table", table, (layout.n_rows, layout.n_features_per_level)),
        n=len(positions),
        n_levels=layout.n_levels,
        levels=grid_levels(layout),
    )


def _encode(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    n, p = len(positions), pointers()
    out = torch.empty(n, layout.n_features, device=positions.device)
    args = _grid_args(positions, table, layout, p)
    args.out = out.data_ptr()
    _grid_program(layout).launch("encode", args, blocks_of(n), THREADS, layout.n_levels)
    return out


def _encode_backward(
    grad_out: Tensor,
    positions: Tensor,
    table: Tensor,
    layout: GridLayout,
    grad_positions: Tensor | None,
    grad_table: Tensor | None,
) -> None:
    n, p, program = len(positions), pointers(), _grid_program(layout)
    args = _grid_args(positions, table, layout, p)
    args.grad_out = p("grad_out", grad_out, (n, layout.n_features))
    if grad_table is not None:
        args.grad_table = grad_table.data_ptr()
        if deterministic and n:
            sums = torch.zeros(table.shape, dtype=torch.int64, device=table.device)
            scale = fixed_scale(grad_out, n)
            args.sums, args.fixed_scale, args.n_numbers = sums.data_ptr(), scale.data_ptr(), sums.numel()
        program.launch("scatter", args, blocks_of(n), THREADS, layout.n_levels)
        if args.sums:
            program.launch("add_table_sums", args, blocks_of(args.n_numbers), THREADS)
    if grad_positions is not None:
        args.grad_positions = grad_positions.data_ptr()
        program.launch("position_gradients", args, blocks_of(n), THREADS)


hashgrid_encode = grid_function(_encode, _encode_backward)


# ---- field ---------------------------------------------------------------------------------------------------------


class Net:
    """A field as the kernels of one compilation see it: its struct, and its weights packed for the tensor cores."""

    def __init__(self, field: FieldView, p: Pointers) -> None:
        params, layout = field.params, field.config.layout
        self.desc: FieldDesc = field_desc(field, p)
        self.single = field.precision == "single"
        self.element_bytes, self.warps = (4, 4) if self.single else (2, 8)  # warps of a block of the backward pass
        shapes = [w.shape for w in params.density_weights + params.color_weights]
        self.n_gradients = sum(shape.numel() for shape in shapes)
        self.n_weights = sum(-(-n_out // 16) * 16 * n_in for n_out, n_in in shapes)  # padded as the kernels do
        weight_bytes = self.n_weights * self.element_bytes
        # The backward pass keeps two matrices of its samples in shared memory, and both directions' weights where there
        # is room for them: not on small cards and for wide networks, which read them through the cache.
        row_bytes = (max(self.desc.width, layout.n_features, 32) + 8) * self.element_bytes
        self.backward_bytes = 2 * 16 * self.warps * row_bytes
        staged = not self.single and gpu().capability >= (8, 0)
        staged = staged and self.backward_bytes + 2 * weight_bytes <= gpu().shared_bytes
        self.staged_bytes = weight_bytes if staged else 0
        self.backward_bytes += 2 * self.staged_bytes
        self.constants = (
            ("NERF_COLOR_LAYERS", len(params.color_weights)),
            ("NERF_DENSITY_LAYERS", len(params.density_weights)),
            ("NERF_FEATURES", layout.n_features_per_level),
            ("NERF_LEVELS", layout.n_levels),
            ("NERF_SINGLE", int(self.single)),
            ("NERF_STAGE_WEIGHTS", int(staged)),
            ("NERF_WIDTH", self.desc.width),
        )
        # One tensor for both directions, and never freed before the launches that read it are in the stream.
        self.operands = torch.empty(2 * weight_bytes, dtype=torch.uint8, device=params.table.device)
        self.forward, self.backward = self.operands.data_ptr(), self.operands.data_ptr() + weight_bytes
        args = cuda_args.PackArgs(field=self.desc, forward=self.forward, backward=self.backward)
        self.program("cuda_field.cu").launch("pack_weights", args, blocks_of(self.n_weights // 4), THREADS)

    def program(self, name: str) -> nvrtc.Program:
        return nvrtc.program(name, self.constants)

    def directions(self, directions: Tensor, p: Pointers) -> Tensor:
        """Spherical harmonics of unit directions [n,3] in the networks' precision, as bytes."""
        n = len(directions)
        sh = torch.empty(n * 16 * self.element_bytes, dtype=torch.uint8, device=directions.device)
        args = cuda_args.DirectionArgs(p("directions", directions, (n, 3)), sh.data_ptr(), n)
        self.program("cuda_field.cu").launch("encode_directions", args, blocks_of(n), THREADS)
        return sh


def fill_gpu(program: nvrtc.Program, kernel: str, threads: int, shared: int, most: int) -> int:
    """Blocks of a kernel whose blocks loop: as many as run at once, or as there is work for."""
    return max(1, min(most, gpu().n_multiprocessors * program.blocks_per_multiprocessor(kernel, threads, shared)))


def field_forward(positions: Tensor, directions: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
    """See `cpu.field_forward`."""
    p, n, device = pointers(), len(positions), positions.device
    net = Net(field, p)
    sigmas = torch.empty(n, device=device)
    rgbs = torch.empty(n, 3, device=device) if directions is not None else None
    if directions is not None and directions.shape != (n, 3):
        raise ValueError(f"directions: expected shape [{n}, 3], got {list(directions.shape)}")
    sh = net.directions(directions, p) if directions is not None else None
    args = cuda_args.FieldArgs(
        field=net.desc,
        weights=net.forward,
        positions=p("positions", positions, (n, 3)),
        sh=0 if sh is None else sh.data_ptr(),
        sigmas=sigmas.data_ptr(),
        rgbs=0 if rgbs is None else rgbs.data_ptr(),
        n=n,
    )
    program = net.program("cuda_field.cu")
    most = blocks_of(n, THREADS // 32 * 16)
    if n:
        blocks = fill_gpu(program, "field_forward", THREADS, net.staged_bytes, most)
        program.launch("field_forward", args, blocks, THREADS, shared=net.staged_bytes)
    return sigmas, rgbs


# ---- march ---------------------------------------------------------------------------------------------------------


def pack_occupancy(occupied: Tensor) -> OccupancyBits:
    """See `cpu.pack_occupancy`."""
    levels, r = check_occupied(occupied, 32)
    occupied = occupied.contiguous()
    n_blocks, device = levels * (r // 4) ** 3, occupied.device
    fine = torch.empty(levels * r**3 // 32, dtype=torch.int32, device=device)
    near, far = (torch.empty(n_blocks, dtype=torch.uint8, device=device) for _ in range(2))
    program = nvrtc.program("cuda_march.cu")
    args = cuda_args.OccupancyArgs(occupied.data_ptr(), fine.data_ptr(), 0, near.data_ptr(), levels, r, 0)
    program.launch("pack_bits", args, blocks_of(fine.numel()), THREADS)
    program.launch("mark_blocks", args, blocks_of(n_blocks), THREADS)
    for axis in range(3):
        args = cuda_args.OccupancyArgs(0, 0, near.data_ptr(), far.data_ptr(), levels, r, axis)
        program.launch("spread_blocks", args, blocks_of(n_blocks), THREADS)
        near, far = far, near
    return OccupancyBits(fine, near, r, levels)


def march(rays: Rays, bits: OccupancyBits, settings: MarchSettings) -> Samples:
    """See `reference.march`: the same samples to the bit. float32. Not differentiable."""
    p, n, device = pointers(), len(rays.o), rays.o.device
    counts = torch.zeros(n, dtype=torch.int64, device=device)
    args = cuda_args.MarchArgs(
        grid=occupancy_desc(bits, p), march=march_desc(settings), n_rays=n, counts=counts.data_ptr()
    )
    ray_pointers(args, rays, p)
    program = nvrtc.program("cuda_march.cu")
    program.launch("march_rays", args, blocks_of(n, 128), 128)
    starts = counts.cumsum(0) - counts
    total = int(counts.sum())
    t_starts, t_ends = torch.empty(total, device=device), torch.empty(total, device=device)
    ray_indices = torch.empty(total, dtype=torch.int64, device=device)
    if total:
        args.starts, args.counts = starts.data_ptr(), 0
        args.t_starts, args.t_ends, args.ray_indices = (t.data_ptr() for t in (t_starts, t_ends, ray_indices))
        program.launch("march_rays", args, blocks_of(n, 128), 128)
    return Samples(t_starts, t_ends, ray_indices, torch.stack([starts, counts], dim=1))


def ray_jitter(seed: int, step: int, n: int, step_at: Tensor | None = None) -> Tensor:
    """See `reference.ray_jitter`: the same numbers, on the GPU. `step_at` [1] int32 there is read instead of the step,
    so that a recorded launch can be replayed for another one."""
    out = torch.empty(n, device=gpu().device)
    at = pointers()("step_at", step_at, (1,), torch.int32)
    args = cuda_args.JitterArgs(out.data_ptr(), seed & 0xFFFFFFFF, step & 0xFFFFFFFF, n, at)
    nvrtc.program("cuda_march.cu").launch("ray_jitter", args, blocks_of(n), THREADS)
    return out


# ---- optimiser -----------------------------------------------------------------------------------------------------


def adam_step(param: Tensor, grad: Tensor, state: AdamState, step: AdamStep) -> None:
    """One Adam step in place over rows [n,c]; see `reference.adam_step`."""
    args = adam_desc(param, grad, state, step, str(gpu().device))
    args.rates = pointers()("rates", step.rates, (4,))
    if not step.skip_zero_rows and args.n_columns != 4:  # rows do not matter then: one thread per number
        n = param.numel()
        args.n_rows, args.n_columns = (n // 4, 4) if n % 4 == 0 else (n, 1)
    # a view of something larger may not be aligned
    aligned = not any(t.data_ptr() % 16 for t in (param, grad, state.m, state.v))
    aligned &= step.half_copy is None or step.half_copy.data_ptr() % 8 == 0
    kernel = "adam_rows_of_four" if args.n_columns == 4 and aligned else "adam_rows"
    nvrtc.program("cuda_adam.cu").launch(kernel, args, blocks_of(args.n_rows), THREADS)
