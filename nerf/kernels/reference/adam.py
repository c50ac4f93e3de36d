"""The optimiser."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.kernels.checks import check
from nerf.kernels.records import AdamState, AdamStep


@torch.no_grad()
def adam_step(param: Tensor, grad: Tensor, state: AdamState, step: AdamStep) -> None:
    """One step of Adam in place: the state and `param` change, `grad` only where it is cleared (`zero_grad`).

    `m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2;
    param <- (1 - lr * weight_decay) param - lr * (m/(1-b1^step)) / (sqrt(v/(1-b2^step)) + eps)`
    with the gradient g; param, grad, m, v have one shape, two dimensions where rows are skipped, which do not decay,
    nor do rows before decay_from. The bias correction counts global steps, so a row that is seldom hit moves by less at
    first.
    Source: Kingma and Ba 2015, algorithm 1; decoupled weight decay: Loshchilov and Hutter 2019, algorithm 2; skipped
    rows: Mueller et al. 2022, section 4.
    """
    for name, tensor in (("param", param), ("grad", grad), ("m", state.m), ("v", state.v)):
        check(name, tensor, tuple(param.shape))
    if step.skip_zero_rows and param.dim() != 2:
        raise ValueError(f"param: expected a table [rows, F] with skip_zero_rows, got shape {list(param.shape)}")
    (beta1, beta2), (correction1, correction2) = state.betas, state.corrections(step.step)
    rows = (grad != 0).any(dim=1).nonzero().squeeze(1) if step.skip_zero_rows else ...
    g = grad[rows]
    # In place on what is a view without skipped rows; of a part of the rows these are copies, put back below.
    m_rows = state.m[rows].mul_(beta1).add_(g, alpha=1.0 - beta1)
    v_rows = state.v[rows].mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
    spread = (v_rows.sqrt() / math.sqrt(correction2)).add_(state.eps)
    kept = torch.ones_like(param[..., :1] if param.dim() > 1 else param)
    kept[state.decay_from :] -= step.lr * state.weight_decay
    stepped = param[rows].mul_(kept[rows]).addcdiv_(m_rows, spread, value=-(step.lr / correction1))
    if step.skip_zero_rows:
        state.m[rows], state.v[rows], param[rows] = m_rows, v_rows, stepped
    if step.half_copy is not None:
        step.half_copy.copy_(param)
    if step.zero_grad:
        grad.zero_()
