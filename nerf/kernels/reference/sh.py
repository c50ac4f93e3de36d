"""Spherical harmonics of directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.kernels.checks import check


def sh_encode(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics of unit directions, all bands below `degree`.

    Order and signs are instant-ngp's: band l holds m = -l..l in columns l^2..l^2+2l, with the Condon-Shortley sign, so
    band 1 is `sqrt(3/(4 pi)) * (-y, z, -x)`.
    Directions [n,3] (their length is not checked) to [n, degree^2], degree 1 to 4. Differentiable.
    """
    check("directions", directions, ("n", 3))
    if degree not in (1, 2, 3, 4):
        raise ValueError(f"degree: expected 1, 2, 3 or 4, got {degree!r}")
    x, y, z = directions.unbind(1)
    root, pi = math.sqrt, math.pi
    bands = [torch.full_like(x, 0.5 * root(1 / pi))]
    if degree > 1:
        c = root(3 / (4 * pi))
        bands += [-c * y, c * z, -c * x]
    if degree > 2:
        c = root(15 / (4 * pi))
        bands += [c * (x * y), -c * (y * z), root(5 / (16 * pi)) * (3 * z * z - 1), -c * (x * z)]
        bands += [0.5 * c * (x * x - y * y)]
    if degree > 3:
        c1, c2, c3 = root(21 / (32 * pi)), root(105 / (16 * pi)), root(35 / (32 * pi))
        bands += [
            c3 * y * (y * y - 3 * x * x),
            2 * c2 * (x * y * z),
            c1 * y * (1 - 5 * z * z),
            root(7 / (16 * pi)) * z * (5 * z * z - 3),
            c1 * x * (1 - 5 * z * z),
            c2 * z * (x * x - y * y),
            c3 * x * (3 * y * y - x * x),
        ]
    return torch.stack(bands, dim=1)
