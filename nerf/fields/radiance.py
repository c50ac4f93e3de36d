"""RadianceField: hash-encoded density and view-dependent colour (Mueller et al. 2022), and what any field must do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nerf import kernels
from nerf.errors import BadValue, Range, check_record
from nerf.fields.encodings import HashGrid
from nerf.fields.networks import MLP
from nerf.kernels import FieldConfig, FieldParams, FieldView, GridLayout

GEO_FEATURES = 16  # outputs of the density network: the density's logarithm, and what the colour network is told
SH_FEATURES = 16  # spherical harmonics of the direction, bands 0 to 3
_LAYERS = Range(1, 64, whole=True)
OPTIONS = {
    "n_levels": Range(1, 64, whole=True),
    "n_features_per_level": Range(1, 64, whole=True),
    "log2_hashmap_size": Range(1, 30, whole=True),
    "base_resolution": Range(1, 1 << 20, whole=True),
    "finest_resolution": Range(1, 1 << 24, whole=True),
    "width": Range(1, 4096, whole=True),
    "n_density_layers": _LAYERS,
    "n_color_layers": _LAYERS,
    "density_bias": Range(-80, 80),
    "color_scale": Range(0, 1e9, above=True),
}


class Field(Protocol):
    """What is rendered, trained and meshed: a density and a colour everywhere. Ours is `RadianceField`.

    An `nn.Module` that is one trains with `nerf.train(scene, config, field=mine)`: its outputs must then be
    differentiable in its parameters.

    >>> mine: nerf.Field = RadianceField(FieldOptions(log2_hashmap_size=12))
    >>> mine.density(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def density(self, x: Tensor, /) -> Tensor:
        """sigmas [n] >= 0 (1/scene length) at scene positions [n,3] (in NDC where the scene is marched there)."""

    def __call__(self, x: Tensor, d: Tensor, /) -> tuple[Tensor, Tensor]:
        """sigmas [n], and rgbs [n,3] as seen along unit directions [n,3]."""


@dataclass(frozen=True)
class FieldOptions:
    """Size of a radiance field. The defaults are the one default model; the CPU and a GPU train the same.

    >>> FieldOptions(n_levels=4, log2_hashmap_size=14).layout().n_features
    16
    """

    n_levels: int = 8
    n_features_per_level: int = 4
    log2_hashmap_size: int = 19
    base_resolution: int = 16
    finest_resolution: int = 1024  # cells along the unit edge of the finest level
    width: int = 64
    n_density_layers: int = 2  # linear layers, the last one to 16 outputs
    n_color_layers: int = 3  # the last one to RGB
    density_bias: float = -1.0  # sigma = exp(h + bias): starts thin, so that every ray crosses the scene
    color_scale: float = 1.0  # brightest colour there can be; above 1 for linear light brighter than white

    def __post_init__(self) -> None:
        check_record(self, OPTIONS)
        try:
            self.layout()
        except ValueError as error:
            raise BadValue(f"FieldOptions: the sizes do not go together ({error})") from error

    def layout(self) -> GridLayout:
        growth = (self.finest_resolution / self.base_resolution) ** (1.0 / max(self.n_levels - 1, 1))
        sizes = self.n_levels, self.n_features_per_level, self.log2_hashmap_size, self.base_resolution
        return GridLayout(3, *sizes, growth)


class RadianceField(nn.Module):
    """Scene position and direction -> density (1/scene length) and colour in [0, color_scale].

    `h = density_network(encoding(unit(x)))`, `sigma = exp(h_0 + bias)`, `rgb = color_scale * color_network(SH(d), h)`,
    whose last activation is the sigmoid. The parts are those that a `SignalField` has; kernels read their parameters
    through `params`. Source: Mueller et al. 2022, section 5.4.

    contracted: an unbounded scene, whose space L-inf contraction maps into the grid's unit cube; else the box [-1,1]^3.
    seed: of the start; fill: False leaves the parameters on the device meta, shapes without memory.

    >>> field = RadianceField(FieldOptions(log2_hashmap_size=12, width=32), seed=0)
    >>> sigmas, rgbs = field(torch.zeros(5, 3), torch.tensor([[0.0, 0.0, 1.0]]).expand(5, 3))
    >>> sigmas.shape, rgbs.shape, sigmas.requires_grad
    (torch.Size([5]), torch.Size([5, 3]), True)
    """

    def __init__(
        self, options: FieldOptions = FieldOptions(), contracted: bool = False, seed: int = 0, fill: bool = True
    ) -> None:
        super().__init__()
        self.options = options
        self.config = FieldConfig(options.layout(), contracted, options.density_bias, options.color_scale)
        layout, width = self.config.layout, options.width
        with torch.device("meta"):  # sizes alone: the numbers come below
            self.encoding = HashGrid(**asdict(layout))
            self.density_network = MLP(layout.n_features, GEO_FEATURES, width, options.n_density_layers - 1, bias=False)
            self.color_network = MLP(
                SH_FEATURES + GEO_FEATURES, 3, width, options.n_color_layers - 1, "relu", "sigmoid", bias=False
            )
        if fill:
            self._fill(seed)
        # a half-precision copy: with it native passes run in mixed precision; kept by the optimiser
        self.table_half: Tensor | None = None
        self.register_state_dict_post_hook(partial(_rename, to_files=True))
        self.register_load_state_dict_pre_hook(partial(_rename, to_files=False))

    def _fill(self, seed: int) -> None:
        """Give the parameters memory and the numbers of their start."""
        self.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():  # Glorot, as tiny-cuda-nn initialises its networks
            bound = 1e-4 if p is self.table else (6.0 / sum(p.shape)) ** 0.5
            p.data = (torch.rand(p.shape, generator=generator) * 2 - 1) * bound

    @property
    def table(self) -> nn.Parameter:
        return self.encoding.table

    @property
    def density_weights(self) -> list[Tensor]:
        return self.density_network.weights()

    @property
    def color_weights(self) -> list[Tensor]:
        return self.color_network.weights()

    def params(self) -> FieldParams:
        """What kernels read: the parameters themselves."""
        return FieldParams(self.table, self.density_weights, self.color_weights)

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


def check_sizes(field: RadianceField) -> None:
    """BadValue where the kernels in use take no field of these sizes; those of "reference" take any."""
    with torch.no_grad():
        field.density(torch.zeros(1, 3))


def _rename(field: nn.Module, state: dict[str, Any], prefix: str, *rest: Any, to_files: bool) -> None:
    """Checkpoints name the parameters table, density_weights.0, ..., color_weights.0, ...: their format is older than
    the modules."""
    for name, _ in field.named_parameters():
        in_file = name.replace("encoding.table", "table").removesuffix(".weight")
        for part in ("density", "color"):
            in_file = in_file.replace(f"{part}_network.layers", f"{part}_weights")
        source, target = (name, in_file) if to_files else (in_file, name)
        if prefix + source in state:
            state[prefix + target] = state.pop(prefix + source)
