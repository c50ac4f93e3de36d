"""From scene space to the unit cube that encodings eat."""

from __future__ import annotations

from torch import Tensor

from nerf.kernels.reference.checks import check


def contract(x: Tensor) -> Tensor:
    """L-inf contraction of space into [-2,2]^d: identity where `|x|_inf <= 1`, else `(2 - 1/|x|_inf) * x/|x|_inf`.

    x: [n, d], scene frame. Differentiable; where two coordinates tie for the maximum they share its gradient.
    Source: Mip-NeRF 360 (Barron et al. 2022), equation 10, with the maximum norm as nerfacto and NeRFacc use it.
    """
    check("x", x, ("n", "d"))
    # With the norm clamped at 1 the factor is exactly 1 inside, so one formula serves both sides.
    norm = x.abs().amax(dim=1, keepdim=True).clamp(min=1.0)
    return x * ((2.0 - 1.0 / norm) / norm)


def scene_to_unit(x: Tensor, contracted: bool) -> Tensor:
    """Scene frame to unit frame: `(x+1)/2` for the box [-1,1]^d, `(contract(x)+2)/4` for unbounded space. [n,d] to
    [n,d]."""
    return (contract(x) + 2.0) * 0.25 if contracted else (x + 1.0) * 0.5
