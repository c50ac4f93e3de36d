"""Equations that a field solves by itself: Helmholtz and the wave equation (Sitzmann et al. 2020, 4.3).

`python examples/equations.py` solves the wave equation and prints its error against d'Alembert's solution.

A solution is a field whose second derivatives satisfy the equation at random points, and that is told its values on the
border or at the beginning. Only fields with second derivatives can: siren, fourier, mlp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import nerf


@dataclass
class Helmholtz:
    """`laplacian y + k^2 y = -source` on the unit square, zero on its border.

    sources: (x, y, strength) of points, each spread over a Gaussian of standard deviation `spread`.
    """

    wavenumber: float  # k, radians per side
    sources: tuple[tuple[float, float, float], ...] = ((0.5, 0.5, 1.0),)
    spread: float = 0.08
    border_weight: float = 30.0
    kind: str = "equation"
    n_dims: int = 2
    n_channels: int = 1
    peak: float | None = None

    def source(self, u: Tensor) -> Tensor:
        """[n,1] at u [n,2]."""
        total = torch.zeros(len(u), 1, dtype=u.dtype)
        for x, y, strength in self.sources:
            distance2 = (u - u.new_tensor([x, y])).square().sum(dim=1, keepdim=True)
            total += strength * torch.exp(-distance2 / (2 * self.spread**2)) / (2 * math.pi * self.spread**2)
        return total

    def loss(self, field: nerf.SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        u = torch.rand(batch, 2, generator=random)
        y, laplacian = nerf.laplacian(field, u.to(field.device), train=True)
        residual = (laplacian + self.wavenumber**2 * y + self.source(u).to(field.device)).square().mean()
        border = torch.rand(max(batch // 4, 8), 2, generator=random)
        sides = torch.arange(len(border))
        border[sides, sides % 2] = ((sides // 2) % 2).float()
        at_border = field(border.to(field.device)).square().mean()
        # derivatives are per side: about k^2 as large as the values
        return residual / self.wavenumber**4 + self.border_weight * at_border, residual.detach()

    def describe(self) -> dict[str, Any]:
        return {"equation": "helmholtz", "wavenumber": self.wavenumber, "sources": [list(s) for s in self.sources]}


@dataclass
class Wave:
    """`y_tt = c^2 y_xx` for u = (x, t) in the unit square: a bump at rest at t = 0, exp(-(x - 1/2)^2 / 2 w^2).

    It parts into two halves that run left and right with the speed c (sides per unit of t). Nothing is said of the ends
    x = 0 and 1, so they must not be reached: c < 1/2 - 3 w.
    """

    speed: float = 0.25
    width: float = 0.06
    start_weight: float = 100.0
    kind: str = "equation"
    n_dims: int = 2
    n_channels: int = 1
    peak: float | None = None

    def bump(self, x: Tensor) -> Tensor:
        return torch.exp(-(x - 0.5).square() / (2 * self.width**2))

    def exact(self, u: Tensor) -> Tensor:
        """d'Alembert's solution [n,1] at u [n,2]."""
        x, t = u[:, :1], u[:, 1:]
        return 0.5 * (self.bump(x - self.speed * t) + self.bump(x + self.speed * t))

    def loss(self, field: nerf.SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        u = torch.rand(batch, 2, generator=random)
        _, seconds = nerf.second_derivatives(field, u.to(field.device), train=True)
        # the size of y_tt is (c/w)^2
        residual = ((seconds[:, :, 1] / self.speed**2 - seconds[:, :, 0]) * self.width**2).square().mean()
        start = torch.rand(batch // 2, 2, generator=random)
        start[:, 1] = 0.0
        values, slopes = nerf.gradient(field, start.to(field.device), train=True)
        wrong = (values - self.bump(start[:, :1]).to(field.device)).square().mean()
        moving = (slopes[:, :, 1] * self.width / self.speed).square().mean()
        return residual + self.start_weight * wrong + moving, residual.detach()

    def describe(self) -> dict[str, Any]:
        return {"equation": "wave", "speed": self.speed, "width": self.width}


def main(steps: int = 500) -> float:
    """Relative error of the fitted wave (1 where nothing is learnt)."""
    problem = Wave(speed=0.25, width=0.08)
    choice = nerf.FieldChoice("siren", width=48, depth=2, first_omega_0=15.0, omega_0=15.0)
    fitted = nerf.fit(problem, choice, nerf.FitConfig(steps=steps, batch=256, learning_rate=3e-3))
    u = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
    exact = problem.exact(u)
    return float((fitted.field.evaluate(u) - exact).norm() / exact.norm())


if __name__ == "__main__":
    print(f"relative error of the wave: {main():.3f}")
