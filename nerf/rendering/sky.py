"""What is shown behind everything in an open scene: a colour by direction alone, from the photos' pixels."""

from __future__ import annotations

import torch
from torch import Tensor

TERMS = 9  # polynomials of a unit direction up to degree 2
_RIDGE = 1e-3  # of the mean of the squares: directions that no photo shows get what is near


def sky_colours(sky: Tensor, directions: Tensor) -> Tensor:
    """Colours [n,3] >= 0 of a sky [TERMS,3] in unit directions [n,3]."""
    return (_terms(directions) @ sky.to(directions.device)).clamp_min(0)


def fit_sky(colours: Tensor, directions: Tensor) -> Tensor:
    """The sky [TERMS,3] float32 that comes nearest to colours [n,3] in unit directions [n,3], by least squares.

    It only fills what stays empty, so it is not learnt beside the field, where it would take plain walls for itself.
    """
    terms = _terms(directions.double())
    square = terms.T @ terms + _RIDGE * len(terms) * torch.eye(TERMS, dtype=torch.float64, device=terms.device)
    return torch.linalg.solve(square, terms.T @ colours.double()).float()


def _terms(d: Tensor) -> Tensor:
    x, y, z = d.unbind(1)
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, z * x, x * x - y * y, 3 * z * z - 1], dim=1)
