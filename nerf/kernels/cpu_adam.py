"""Steps of Adam in native code."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from nerf.kernels.bindings import AdamDesc, check_in_place, native
from nerf.kernels.records import AdamState, AdamStep


def adam_desc(param: Tensor, grad: Tensor | None, state: AdamState, step: AdamStep, device: str = "cpu") -> AdamDesc:
    """One step as native code reads it, from tensors that it may write to; torch is told of the change. grad: None
    where native code has it."""
    shape = tuple(param.shape)
    given = {"param": param, "grad": grad, "m": state.m, "v": state.v, "half_copy": step.half_copy}
    written = {name: t for name, t in given.items() if t is not None}
    for name, t in written.items():
        check_in_place(name, t, shape, torch.float16 if name == "half_copy" else torch.float32, device)
    n_columns = shape[-1] if len(shape) > 1 else 1
    correction1, correction2 = state.corrections(step.step)
    torch.autograd.graph.increment_version(list(written.values()))
    return AdamDesc(
        n_rows=param.numel() // n_columns,
        decay_from=state.decay_from,
        n_columns=n_columns,
        skip_zero_rows=int(step.skip_zero_rows),
        zero_grad=int(step.zero_grad),
        n_threads=torch.get_num_threads(),
        lr=step.lr,
        beta1=state.betas[0],
        beta2=state.betas[1],
        eps=state.eps,
        correction1=correction1,
        correction2=correction2,
        weight_decay=state.weight_decay,
        **{name: t.data_ptr() for name, t in written.items()},
    )


def adam_step(param: Tensor, grad: Tensor, state: AdamState, step: AdamStep) -> None:
    """One Adam step in place over rows [n,c]; see `reference.adam_step`."""
    desc = adam_desc(param, grad, state, step)
    native().nerf_adam_step(ctypes.addressof(desc))
