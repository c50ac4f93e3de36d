"""RadianceField: hash-encoded density and view-dependent colour, the one model of every backend (Mueller et al.
2022)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nerf import kernels
from nerf.kernels import FieldConfig, FieldParams, FieldView, GridLayout

SH_FEATURES, GEO_FEATURES = 16, 16


class Field(Protocol):
    """What is rendered, trained and meshed: a density and a colour everywhere. Ours is `RadianceField`."""

    def density(self, x: Tensor, /) -> Tensor:
        """sigmas [n] >= 0 (1/scene length) at scene positions [n,3] (in NDC where the scene is marched there)."""

    def __call__(self, x: Tensor, d: Tensor, /) -> tuple[Tensor, Tensor]:
        """sigmas [n], and rgbs [n,3] as seen along unit directions [n,3]."""


@dataclass(frozen=True)
class FieldOptions:
    """Size of a radiance field. The defaults are the one default model; the CPU and a GPU train the same."""

    n_levels: int = 8
    n_features_per_level: int = 4
    log2_hashmap_size: int = 19
    base_resolution: int = 16
    finest_resolution: int = 1024  # cells along the unit edge of the finest level
    width: int = 64
    n_density_layers: int = 2  # linear layers, the last one to 16 outputs
    n_color_layers: int = 3  # the last one to RGB
    density_bias: float = -1.0  # sigma = exp(h + bias): starts as thin fog that light still crosses
    color_scale: float = 1.0  # brightest colour there can be; above 1 for linear light brighter than white

    def layout(self) -> GridLayout:
        growth = (self.finest_resolution / self.base_resolution) ** (1.0 / max(self.n_levels - 1, 1))
        return GridLayout(
            3, self.n_levels, self.n_features_per_level, self.log2_hashmap_size, self.base_resolution, growth
        )


class RadianceField(nn.Module):
    """Scene position and direction -> density (1/scene length) and colour in [0, color_scale].

    features = hashgrid(unit(x));  h = MLP(features);  sigma = exp(h_0 + bias);
    rgb = color_scale * sigmoid(MLP([SH(d), h])).
    `contracted`: an unbounded scene, squeezed into the grid's unit cube by L-inf contraction; else the box [-1,1]^3.
    """

    def __init__(self, options: FieldOptions = FieldOptions(), contracted: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.options = options
        self.config = FieldConfig(options.layout(), contracted, options.density_bias, options.color_scale)
        generator = torch.Generator().manual_seed(seed)
        layout, width = self.config.layout, options.width

        def linear(n_in: int, n_out: int) -> nn.Parameter:
            bound = (6.0 / (n_in + n_out)) ** 0.5  # Glorot, as tiny-cuda-nn initialises its networks
            return nn.Parameter((torch.rand(n_out, n_in, generator=generator) * 2 - 1) * bound)

        def network(n_layers: int, n_in: int, n_out: int) -> nn.ParameterList:
            sizes = [n_in, *[width] * (n_layers - 1), n_out]
            return nn.ParameterList(linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))

        table = (torch.rand(layout.n_rows, layout.n_features_per_level, generator=generator) * 2 - 1) * 1e-4
        self.table = nn.Parameter(table)
        self.density_weights = network(options.n_density_layers, layout.n_features, GEO_FEATURES)
        self.color_weights = network(options.n_color_layers, SH_FEATURES + GEO_FEATURES, 3)
        self.table_half: Tensor | None = (
            None  # a half-precision copy: with it native passes run in mixed precision; kept by the optimiser
        )

    def params(self) -> FieldParams:
        return FieldParams(self.table, list(self.density_weights), list(self.color_weights))

    def view(self) -> FieldView:
        """What kernels read: in mixed precision where there is a `table_half`."""
        return FieldView(self.params(), self.config, self.table_half)

    def density(self, positions: Tensor) -> Tensor:
        """sigmas [n] (1/scene length) at scene positions [n,3]; differentiable as `forward` is."""
        return kernels.field_forward(positions, None, self.view())[0]

    def forward(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """sigmas [n] (1/scene length) and rgbs [n,3] at scene positions and unit directions [n,3].

        Once differentiable in the parameters, positions and directions; the fast path, in mixed precision where there
        is a `table_half`, is taken where no gradient is asked for (`torch.no_grad()`).
        """
        sigmas, rgbs = kernels.field_forward(positions, directions, self.view())
        assert rgbs is not None
        return sigmas, rgbs

    def to_dict(self) -> dict[str, Any]:
        return asdict(self.options) | {"contracted": self.config.contracted}
