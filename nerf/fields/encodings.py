"""Encodings: coordinates in the unit frame to features, [n, n_in] to [n, n_out]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nerf import kernels
from nerf.kernels.records import GridLayout


class Identity(nn.Module):
    """The coordinates themselves, or `2u - 1` where `centred` (what a SIREN expects).

    u: [n, n_dims] to [n, n_dims]. Differentiable to any order.
    """

    def __init__(self, n_dims: int, centred: bool = False) -> None:
        super().__init__()
        self.n_in = self.n_out = n_dims
        self.centred = centred

    def forward(self, u: Tensor) -> Tensor:
        return 2.0 * u - 1.0 if self.centred else u


class Frequency(nn.Module):
    """Positional encoding: `sin(2^k pi u), cos(2^k pi u)` for k < n_frequencies, after u itself where `include_input`.

    u: [n, n_dims], to [n, n_out] with columns [u,] sin, cos; within each, all frequencies of the first coordinate come
    first. The lowest frequency has period 2, so that the unit interval is encoded without ambiguity. Differentiable to
    any order. Source: NeRF (Mildenhall et al. 2020), equation 4.
    """

    def __init__(self, n_dims: int, n_frequencies: int, include_input: bool = True) -> None:
        super().__init__()
        if n_frequencies < 1:
            raise ValueError(f"n_frequencies: expected 1 or more, got {n_frequencies!r}")
        self.n_in = n_dims
        self.n_frequencies, self.include_input = n_frequencies, include_input
        self.n_out = n_dims * (2 * n_frequencies + int(include_input))

    def forward(self, u: Tensor) -> Tensor:
        factors = math.pi * 2.0 ** torch.arange(self.n_frequencies, dtype=u.dtype, device=u.device)
        angles = (u.unsqueeze(-1) * factors).flatten(1)
        parts = [u] if self.include_input else []
        return torch.cat([*parts, angles.sin(), angles.cos()], dim=1)


class FourierFeatures(nn.Module):
    """Random Fourier features: `cos(2 pi B u), sin(2 pi B u)` with a fixed Gaussian B of standard deviation `sigma`.

    u: [n, n_dims], to [n, 2*n_features], cosines first. B [n_features, n_dims] is a buffer: saved, not learned, and the
    same for the same seed. Differentiable to any order. Source: Tancik et al. 2020, Fourier Features Let Networks Learn
    High Frequency Functions in Low Dimensional Domains, section 4.

    >>> nerf.FourierFeatures(n_dims=2, n_features=8, sigma=10.0)(torch.rand(5, 2)).shape
    torch.Size([5, 16])
    """

    matrix: Tensor

    def __init__(self, n_dims: int, n_features: int, sigma: float, seed: int = 0) -> None:
        super().__init__()
        self.n_in, self.n_out = n_dims, 2 * n_features
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("matrix", sigma * torch.randn(n_features, n_dims, generator=generator, device="cpu"))

    def forward(self, u: Tensor) -> Tensor:
        angles = 2.0 * math.pi * (u @ self.matrix.to(u.dtype).t())
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class HashGrid(nn.Module):
    """Multi-resolution hash grid with a learned table, see `nerf.kernels.reference.hashgrid_encode` for the equation.

    u: [n, n_dims] in [0,1], to [n, n_levels * n_features_per_level], level-major. Differentiable in the table and in u,
    once; the gradient in u jumps at cell walls. The table starts uniform in +-1e-4 (Mueller et al. 2022, section 4).

    >>> grid = nerf.HashGrid(n_dims=2, n_levels=4, n_features_per_level=2, log2_hashmap_size=10)
    >>> grid(torch.rand(5, 2)).shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        n_dims: int = 3,
        n_levels: int = 8,
        n_features_per_level: int = 4,
        log2_hashmap_size: int = 17,
        base_resolution: int = 16,
        per_level_scale: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = n_levels, n_features_per_level, log2_hashmap_size, base_resolution
        self.layout = GridLayout(n_dims, *sizes, per_level_scale)
        self.n_in, self.n_out = n_dims, self.layout.n_features
        table = torch.empty(self.layout.n_rows, n_features_per_level)
        self.table = nn.Parameter(table.uniform_(-1e-4, 1e-4, generator=generator))

    def forward(self, u: Tensor) -> Tensor:
        return kernels.hashgrid_encode(u, self.table, self.layout)
