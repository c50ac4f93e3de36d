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

    train: the gradients may be differentiated again, in the parameters; a hash grid's cannot (UserError).

    >>> field = nerf.SignalField(nerf.FieldChoice("siren", width=16), n_dims=2, n_channels=3)
    >>> values, slopes = nerf.gradient(field, torch.rand(5, 2))
    >>> values.shape, slopes.shape
    (torch.Size([5, 3]), torch.Size([5, 3, 2]))
    """
    if train:
        _check_second_order(field)
    u = u.detach().requires_grad_()
    values = field(u)
    return (values if train else values.detach()), _rows(values, u, create=train)


def laplacian(field: SignalField, u: Tensor, train: bool = False) -> tuple[Tensor, Tensor]:
    """(values [n, c], Laplacians [n, c]) at u [n, d]: the sum of the unmixed second derivatives.

    >>> field = nerf.SignalField(nerf.FieldChoice("siren", width=16), n_dims=2, n_channels=3)
    >>> nerf.laplacian(field, torch.rand(5, 2))[1].shape
    torch.Size([5, 3])
    """
    values, seconds = second_derivatives(field, u, train)
    return values, seconds.sum(dim=2)


def second_derivatives(field: SignalField, u: Tensor, train: bool = False) -> tuple[Tensor, Tensor]:
    """(values [n, c], unmixed second derivatives d^2 y / d u_k^2 [n, c, d]) at u [n, d]; not of hash grids, which are
    piecewise linear along each axis, so that those are zero (UserError).

    >>> field = nerf.SignalField(nerf.FieldChoice("siren", width=16), n_dims=2, n_channels=3)
    >>> nerf.second_derivatives(field, torch.rand(5, 2))[1].shape
    torch.Size([5, 3, 2])
    """
    _check_second_order(field)
    u = u.detach().requires_grad_()
    values = field(u)
    first = _rows(values, u, create=True)
    seconds = torch.stack([_rows(first[:, :, k], u, train)[:, :, k] for k in range(u.shape[1])], dim=2)
    return (values if train else values.detach()), (seconds if train else seconds.detach())


def _rows(values: Tensor, u: Tensor, create: bool) -> Tensor:
    """[n, c, d]: the gradient of each channel of values [n, c]."""
    sums = values.sum(dim=0)
    rows = [torch.autograd.grad(one, u, create_graph=create, retain_graph=True)[0] for one in sums]
    return torch.stack(rows, dim=1)


def _check_second_order(field: SignalField) -> None:
    if isinstance(field.encoding, HashGrid):
        raise UserError(
            "a hash grid has first derivatives only, and those cannot be trained on: "
            "use the field siren (or fourier, mlp) for equations with derivatives"
        )
