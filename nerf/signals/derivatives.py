"""Derivatives of fields with respect to their coordinates, to second order; of what they are derivatives of themselves.

All are taken by automatic differentiation of the field in plain torch, so that a loss on them trains the field. Unit
coordinates: a derivative is per unit length of u, which is the whole side of a signal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.fields.encodings import HashGrid
from nerf.signals.fields import SignalField


def gradient(field: SignalField, u: Tensor, train: bool = False) -> tuple[Tensor, Tensor]:
    """(values [n, c], gradients [n, c, d]) at u [n, d].

    train: the gradients may be differentiated again, in the parameters; a hash grid's cannot.
    """
    if train:
        _check_second_order(field)
    u = u.detach().requires_grad_()
    values = field(u)
    return (values if train else values.detach()), _rows(values, u, create=train)


def laplacian(field: SignalField, u: Tensor, train: bool = False) -> tuple[Tensor, Tensor]:
    """(values [n, c], Laplacians [n, c]) at u [n, d]: the sum of the unmixed second derivatives."""
    values, seconds = second_derivatives(field, u, train)
    return values, seconds.sum(dim=2)


def second_derivatives(field: SignalField, u: Tensor, train: bool = False) -> tuple[Tensor, Tensor]:
    """(values [n, c], unmixed second derivatives d^2 y / d u_k^2 [n, c, d]) at u [n, d]; not of hash grids, which are
    piecewise linear along each axis, so that those are zero."""
    _check_second_order(field)
    u = u.detach().requires_grad_()
    values = field(u)
    first = _rows(values, u, create=True)
    channels = []
    for c in range(values.shape[1]):
        columns = [
            torch.autograd.grad(first[:, c, k].sum(), u, create_graph=train, retain_graph=True)[0][:, k]
            for k in range(u.shape[1])
        ]
        channels.append(torch.stack(columns, dim=1))
    seconds = torch.stack(channels, dim=1)
    return (values if train else values.detach()), (seconds if train else seconds.detach())


def _rows(values: Tensor, u: Tensor, create: bool) -> Tensor:
    """[n, c, d]: the gradient of each channel."""
    columns = []
    for c in range(values.shape[1]):
        last = c + 1 == values.shape[1] and not create
        (row,) = torch.autograd.grad(values[:, c].sum(), u, create_graph=create, retain_graph=not last)
        columns.append(row)
    return torch.stack(columns, dim=1)


def _check_second_order(field: SignalField) -> None:
    if isinstance(field.encoding, HashGrid):
        raise UserError(
            "a hash grid has first derivatives only, and those cannot be trained on: "
            "use the field siren (or fourier, mlp) for equations with derivatives"
        )
