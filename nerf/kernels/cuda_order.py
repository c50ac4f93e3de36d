"""What makes the CUDA backend's gradients the same to the bit in every run (`--deterministic`).

Float sums depend on the order of threads. So kept samples are sorted by ray and t, and the networks' gradients summed
in one order; the table's are summed in 64-bit integers, which know no order; those of rays by one thread a ray. The
price is a wait for the number of samples in each step, a sort, and twice the memory of the table's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.kernels import nvrtc
from nerf.kernels.cuda import THREADS, blocks_of, fixed_scale
from nerf.kernels.cuda_args import Kept, ScatterArgs, SumArgs


@dataclass
class KeptSamples:
    """The buffers of one forward pass: named tensors, and the struct that points to them."""

    tensors: dict[str, Tensor]
    struct: Kept
    is_sorted: bool  # by ray and t, without room to spare

    @staticmethod
    def of(tensors: dict[str, Tensor], capacity: int, is_sorted: bool = False) -> KeptSamples:
        struct = Kept(capacity=capacity, **{k: t.data_ptr() for k, t in tensors.items()})
        return KeptSamples(tensors, struct, is_sorted)


def sorted_by_ray(kept: KeptSamples, n: int) -> KeptSamples:
    """The same n samples, sorted by ray and then by t; no room beyond them."""
    tensors = kept.tensors
    ray = tensors["links"][:n, 0].long()
    t_bits = tensors["intervals"][:n, 0].contiguous().view(torch.int32).long()  # of floats >= 0: ordered as they are
    order = ((ray << 32) + t_bits).argsort()
    moved_to = torch.empty_like(order)
    moved_to[order] = torch.arange(n, device=order.device)
    ray = ray[order]
    before = torch.arange(-1, n - 1, device=order.device)
    before[1:] = torch.where(ray[1:] == ray[:-1], before[1:], -1)
    last = tensors["last_samples"].long()
    last = torch.where(last < 0, last, moved_to[last.clamp_min(0)]) if n else last
    of_samples = ("intervals", "rgb_sigmas", "unit_positions", "features")
    moved = {name: tensors[name][:n].index_select(0, order) for name in of_samples}
    moved["links"] = torch.stack([ray, before], dim=1).int()
    moved["last_samples"] = last.int()
    return KeptSamples.of({"n": tensors["n"], "totals": tensors["totals"]} | moved, n, is_sorted=True)


def scatter_in_integers(
    program: nvrtc.Program, scatter: ScatterArgs, grad_features: Tensor, grad_table: Tensor, launch: tuple[int, int]
) -> None:
    """The launch (blocks, rows) of scatter_table, whose sums are integers; `grad_features`: all that it will read."""
    sums = torch.zeros(grad_table.shape, dtype=torch.int64, device=grad_table.device)
    scale = fixed_scale(grad_features, scatter.kept.capacity)
    scatter.sums, scatter.fixed_scale, scatter.n_numbers = sums.data_ptr(), scale.data_ptr(), sums.numel()
    program.launch("scatter_table", scatter, launch[0], THREADS, launch[1])
    program.launch("add_table_sums", scatter, blocks_of(sums.numel()), THREADS)


def sum_over_rays(program: nvrtc.Program, kept: KeptSamples, values: Tensor) -> Tensor:
    """Sums [n_rays, c] of what samples have [capacity, c] along their rays, in one order."""
    n_rays, columns = len(kept.tensors["last_samples"]), values.shape[1]
    out = torch.empty(n_rays, columns, device=values.device)
    args = SumArgs(kept.struct, values.data_ptr(), out.data_ptr(), columns, n_rays)
    program.launch("sum_samples", args, blocks_of(n_rays * columns), THREADS)
    return out
