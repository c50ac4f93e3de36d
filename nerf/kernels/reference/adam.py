"""The optimiser."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.kernels.reference.checks import check


@torch.no_grad()
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
    """One step of Adam in place: `m`, `v` and `param` change, `grad` only where it is cleared.

    `m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2; param <- param - lr * (m/(1-b1^step)) / (sqrt(v/(1-b2^step)) + eps)`.

    Args:
        param, grad, m, v: one shape. step: global, 1 for the first.
        skip_zero_rows: leave rows whose gradient is all zero untouched, their moments too (param must be 2-D). The bias
            correction still counts global steps, so a row that is seldom hit moves by less at first.
        weight_decay: g is `grad + weight_decay * param`; which rows are skipped is a matter of `grad` alone.
        half_copy: of param, in half precision: refreshed. zero_grad: clear the gradient.
    Source: Kingma and Ba 2015, algorithm 1; skipped rows: Mueller et al. 2022, section 4.
    """
    check("param", param, tuple(param.shape))
    for name, tensor in (("grad", grad), ("m", m), ("v", v)):
        check(name, tensor, tuple(param.shape))
    if step < 1:
        raise ValueError(f"step: expected 1 or more (it counts from 1), got {step!r}")
    if skip_zero_rows and param.dim() != 2:
        raise ValueError(f"param: expected a table [rows, F] with skip_zero_rows, got shape {list(param.shape)}")
    rate = lr / (1.0 - beta1**step)
    correction = math.sqrt(1.0 - beta2**step)
    rows = (grad != 0).any(dim=1).nonzero().squeeze(1) if skip_zero_rows else ...
    g = grad[rows]
    if weight_decay:
        g = g + weight_decay * param[rows]
    # In place on what is a view without skipped rows; of a part of the rows these are copies, put back below.
    m_rows = m[rows].mul_(beta1).add_(g, alpha=1.0 - beta1)
    v_rows = v[rows].mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
    stepped = param[rows].addcdiv_(m_rows, (v_rows.sqrt() / correction).add_(eps), value=-rate)
    if skip_zero_rows:
        m[rows], v[rows], param[rows] = m_rows, v_rows, stepped
    if half_copy is not None:
        half_copy.copy_(param)
    if zero_grad:
        grad.zero_()
