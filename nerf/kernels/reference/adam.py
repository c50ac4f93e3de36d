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
) -> None:
    """One step of Adam in place: `m`, `v` and `param` change, `grad` does not.

    `m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2; param <- param - lr * (m/(1-b1^step)) / (sqrt(v/(1-b2^step)) + eps)`.

    Args:
        param, grad, m, v: one shape. step: global, 1 for the first.
        skip_zero_rows: leave rows whose gradient is all zero untouched, their moments too (param must be 2-D). The bias
            correction still counts global steps, so a row that is seldom hit moves by less at first.
    Source: Kingma and Ba 2015, algorithm 1; skipped rows: Mueller et al. 2022, section 4.
    """
    check("param", param, tuple(param.shape))
    for name, tensor in (("grad", grad), ("m", m), ("v", v)):
        check(name, tensor, tuple(param.shape))
    if step < 1:
        raise ValueError(f"step: expected 1 or more (it counts from 1), got {step!r}")
    rate = lr / (1.0 - beta1**step)
    correction = math.sqrt(1.0 - beta2**step)
    if not skip_zero_rows:
        m.mul_(beta1).add_(grad, alpha=1.0 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        param.addcdiv_(m, (v.sqrt() / correction).add_(eps), value=-rate)
        return
    if param.dim() != 2:
        raise ValueError(f"param: expected a table [rows, F] with skip_zero_rows, got shape {list(param.shape)}")
    rows = (grad != 0).any(dim=1).nonzero().squeeze(1)
    g = grad[rows]
    m_rows = m[rows].mul_(beta1).add_(g, alpha=1.0 - beta1)
    v_rows = v[rows].mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
    m[rows], v[rows] = m_rows, v_rows
    param[rows] = param[rows].addcdiv_(m_rows, (v_rows.sqrt() / correction).add_(eps), value=-rate)
