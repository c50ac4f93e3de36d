"""Fit a small network of your own to a signal of your own: a vector field given by a function.

`python examples/own_signal.py` prints the error at points that were not learnt from. A problem draws its batches and
says how wrong the field is there; a field is any module from unit coordinates [n, n_dims] to values [n, n_channels].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import nerf


def vortices(u: Tensor) -> Tensor:
    """Velocities [n,2] at u [n,2] of a periodic flow without divergence (Taylor and Green 1937)."""
    x, y = (2 * torch.pi * u).unbind(dim=1)
    return torch.stack([x.sin() * y.cos(), -x.cos() * y.sin()], dim=1)


@dataclass
class Flow:
    """The vector field as something to fit: a `nerf.Problem`."""

    kind: str = "flow"
    n_dims: int = 2
    n_channels: int = 2
    peak: float | None = None  # show the error as it is, not as PSNR

    def loss(self, field: nerf.SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """(what is minimised, what is shown) at random points."""
        u = torch.rand(batch, 2, generator=random)
        mse = field.mse(u.to(field.device), vortices(u).to(field.device))
        return mse, mse.detach()

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the signal."""
        return {"flow": "Taylor-Green"}


class Products(nn.Module):
    """Sums of products of two functions, each of one coordinate: a separable network."""

    def __init__(self, rank: int = 8, width: int = 32) -> None:
        super().__init__()
        self.factors = nn.ModuleList(
            nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, rank))
            for _ in range(2)
        )
        self.mix = nn.Linear(rank, 2)

    def forward(self, u: Tensor) -> Tensor:
        """[n,2] to [n,2]."""
        x, y = (factor(u[:, k : k + 1]) for k, factor in enumerate(self.factors))
        return self.mix(x * y)


def main(steps: int = 1000) -> float:
    """Mean squared error at unseen points, relative to the mean square of the field."""
    torch.manual_seed(0)
    fitted = nerf.fit(Flow(), Products(), nerf.FitConfig(steps=steps, batch=1024, learning_rate=5e-3))
    u = torch.rand(4096, 2, generator=torch.Generator().manual_seed(1))
    truth = vortices(u)
    return float((fitted.field.evaluate(u) - truth).square().mean() / truth.square().mean())


if __name__ == "__main__":
    print(f"relative squared error: {main():.2e}")
