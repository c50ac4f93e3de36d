"""The fields that signals are fitted with: an encoding of unit coordinates, a network, and the range of its values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nerf import kernels
from nerf.errors import Range, UserError, check_record
from nerf.fields.encodings import FourierFeatures, Frequency, HashGrid, Identity
from nerf.fields.networks import MLP, Siren
from nerf.kernels import Layer

KINDS = ("hash", "siren", "fourier", "mlp")
OWN = "own"  # the kind of a module of somebody else's


CHOICE = {
    "width": Range(1, 1 << 14, whole=True),
    "depth": Range(0, 256, whole=True),
    "n_levels": Range(1, 64, whole=True),
    "n_features_per_level": Range(1, 64, whole=True),
    "log2_hashmap_size": Range(1, 30, whole=True),
    "base_resolution": Range(1, 1 << 20, whole=True),
    "finest_resolution": Range(1, 1 << 40, whole=True),
    "first_omega_0": Range(0, 1e9, above=True),
    "omega_0": Range(0, 1e9, above=True),
    "n_features": Range(1, 1 << 16, whole=True),
    "sigma": Range(0, 1e9, above=True),
    "n_frequencies": Range(0, 64, whole=True),
}


@dataclass(frozen=True)
class FieldChoice:
    """Which field, and its size. A number that the kind has no use for is ignored.

    >>> FieldChoice("siren", width=128, depth=3).first_omega_0
    30.0
    """

    kind: str = "hash"  # hash: grid of features; siren: sine layers; fourier: Gaussian features; mlp: plain or NeRF's
    width: int = 64
    depth: int = 2  # hidden layers
    output: str | None = None  # None: linear; "sigmoid": within (0, 1)
    # hash
    n_levels: int = 16
    n_features_per_level: int = 2
    log2_hashmap_size: int = 19
    base_resolution: int = 16
    finest_resolution: int = 2048  # cells along the longest side
    # siren
    first_omega_0: float = 30.0
    omega_0: float = 30.0
    # fourier
    n_features: int = 256
    sigma: float = 10.0  # standard deviation of the frequencies, cycles along the longest side
    # mlp
    n_frequencies: int = 0  # of NeRF's positional encoding; 0: the coordinates themselves

    def __post_init__(self) -> None:
        check_record(self, CHOICE)


class SignalField(nn.Module):
    """Unit coordinates u [n, n_dims] in [0,1] to values [n, n_channels]: `offset + scale * network(encoding(x))`,
    x = 1/2 + (u - 1/2) e.

    e are the side lengths of the signal, the longest 1, so that one cell of a grid and one cycle of a frequency are as
    long along every side.

    extents: e [n_dims]. low, high: the range of the values; a network starts and learns best around -1 to 1. seed: of
    the start. network: a module of your own, [n, n_dims] to [n, n_channels], instead of ours (`SignalField.of`).

    >>> field = SignalField(FieldChoice("siren", width=32), n_dims=2, n_channels=3)
    >>> field(torch.rand(5, 2)).shape
    torch.Size([5, 3])
    """

    extents: Tensor

    def __init__(
        self,
        choice: FieldChoice,
        n_dims: int,
        n_channels: int,
        extents: tuple[float, ...] | None = None,
        low: float = 0.0,
        high: float = 1.0,
        seed: int = 0,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if choice.kind not in KINDS and network is None:
            raise UserError(f"--field {choice.kind}: there is no such field, expected one of {', '.join(KINDS)}")
        self.choice, self.n_dims, self.n_channels, self.seed = choice, n_dims, n_channels, seed
        sides = tuple(extents or (1.0,) * n_dims)
        if len(sides) != n_dims:
            raise ValueError(f"extents: expected {n_dims} lengths, got {len(sides)}")
        self.register_buffer("extents", torch.tensor(sides), persistent=False)
        self.low, self.high = low, high
        linear = choice.output is None
        self.offset, self.scale = ((low + high) / 2, (high - low) / 2) if linear else (low, high - low)
        random = torch.Generator().manual_seed(seed)
        self.encoding = _encoding(choice, n_dims, random, seed)
        self.bf16 = False  # whether training multiplies in bfloat16, where the processor has it
        self.network: Any = network
        size = (n_channels, choice.width, choice.depth)
        if network is None and choice.kind == "siren":
            self.network = Siren(n_dims, *size, choice.first_omega_0, choice.omega_0, random)
        elif network is None:
            self.network = MLP(self.encoding.n_out, *size, output_activation=choice.output, generator=random)

    @classmethod
    def of(cls, network: nn.Module, n_dims: int, n_channels: int) -> SignalField:
        """A field that is a module of your own: unit coordinates [n, n_dims] to values [n, n_channels], in torch."""
        return cls(FieldChoice(OWN), n_dims, n_channels, None, -1.0, 1.0, network=network)

    @property
    def device(self) -> torch.device:
        return self.extents.device

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, u: Tensor) -> Tensor:
        """Natively, and so differentiable once in the parameters; where u has a gradient, in plain torch, to any order
        that the encoding has."""
        if self.choice.kind != OWN and not (u.requires_grad and torch.is_grad_enabled()):
            return self.offset + self.scale * kernels.network_forward(*self._as_layers(u), self.bf16)
        return self.offset + self.scale * self.network(self.encoding(self.positions(u)))

    def positions(self, u: Tensor) -> Tensor:
        """What the encoding eats: x [n, n_dims] in [0,1], sides in proportion."""
        return 0.5 + (u - 0.5) * self.extents.to(u.dtype)

    def mse(self, u: Tensor, values: Tensor) -> Tensor:
        """Mean squared error over all elements at u [n, n_dims] against values [n, n_channels], differentiable once:
        natively where there is a library, value and gradients in one pass."""
        if self.choice.kind == OWN:
            return (self(u) - values).square().mean()
        x, layers = self._as_layers(u)
        targets = (values - self.offset) * (1.0 / self.scale)
        return kernels.network_mse(x, targets, layers, self.bf16) * self.scale**2

    def evaluate(self, u: Tensor, chunk: int = 1 << 17) -> Tensor:
        """Values without gradients, a part at a time: memory stays small however many coordinates there are."""
        with torch.no_grad():
            parts = [self(part.to(self.device)).cpu() for part in u.split(chunk)]
        return torch.cat(parts) if parts else torch.zeros(0, self.n_channels)

    def with_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(values [n, c], their gradients [n, c, d] in u) to learn from both, natively; not of hash grids, nor of
        octaves of frequencies, which `derivatives.gradient` takes."""
        if self.choice.kind == OWN:
            raise ValueError("with_gradient: takes the kinds siren, fourier and mlp, not a module of your own")
        x, layers = self._as_layers(u)
        if self.encoding.n_out != self.n_dims and not isinstance(self.encoding, FourierFeatures):
            raise ValueError(f"with_gradient: the field {self.choice.kind} has an encoding that it cannot go through")
        inner = 2.0 if isinstance(self.encoding, Identity) else 1.0
        y, tangents = kernels.network_with_tangents(x, layers, tuple(inner * float(e) for e in self.extents), self.bf16)
        return self.offset + self.scale * y, self.scale * tangents.transpose(1, 2)

    def _as_layers(self, u: Tensor) -> tuple[Tensor, list[Layer]]:
        """What the network eats, and its layers. Gaussian Fourier features are a fixed sine layer in front of it:
        cos(a) = sin(a + pi/2)."""
        layers, x = [], self.positions(u)
        if isinstance(self.encoding, FourierFeatures):
            matrix = self.encoding.matrix
            phase = torch.zeros(2 * len(matrix), device=matrix.device)
            phase[: len(matrix)] = 0.25  # of a turn
            layers.append(Layer(torch.cat([matrix, matrix]), phase, "sine", 2.0 * math.pi))
        else:
            x = self.encoding(x)
        return x, layers + self.network.as_layers()

    def to_dict(self) -> dict[str, Any]:
        sizes = {"n_dims": self.n_dims, "n_channels": self.n_channels, "extents": self.extents.tolist()}
        return {"choice": asdict(self.choice), **sizes, "low": self.low, "high": self.high, "seed": self.seed}

    @classmethod
    def from_dict(cls, config: dict[str, Any], network: nn.Module | None = None) -> SignalField:
        """The untrained field of these sizes; a subclass takes what it adds to `to_dict` as keyword arguments."""
        choice = FieldChoice(**config["choice"])
        if choice.kind == OWN:
            if network is None:
                raise UserError("the field is a module of somebody's own: Fitted.load(path, network=...) takes it")
            return cls.of(network, config["n_dims"], config["n_channels"])
        sizes = {name: value for name, value in config.items() if name != "choice"}
        return cls(choice, **sizes | {"extents": tuple(sizes["extents"])})


def _encoding(choice: FieldChoice, n_dims: int, random: torch.Generator, seed: int) -> Any:
    if choice.kind == "fourier":
        return FourierFeatures(n_dims, choice.n_features, choice.sigma, seed)
    if choice.kind == "mlp" and choice.n_frequencies:
        return Frequency(n_dims, choice.n_frequencies)
    if choice.kind != "hash":
        return Identity(n_dims, centred=choice.kind != OWN)
    growth = (choice.finest_resolution / choice.base_resolution) ** (1.0 / max(choice.n_levels - 1, 1))
    sizes = (choice.n_levels, choice.n_features_per_level, choice.log2_hashmap_size, choice.base_resolution)
    return HashGrid(n_dims, *sizes, max(growth, 1.0), random)


def choose(kind: str, shape: tuple[int, ...]) -> FieldChoice:
    """The default field of a kind for a signal on a grid of `shape`."""
    longest, sound = max(shape), len(shape) == 1
    # a hash grid as fine as the samples, and a table of about one number per value, like the file itself
    levels = max(2, math.ceil(math.log2(max(longest / 16, 2)) * (1.0 if sound else 1.5)) + 1)
    rows = min(max(math.ceil(math.log2(max(math.prod(shape) / 8, 2))), 10), 21)
    sizes: dict[str, dict[str, Any]] = {
        "hash": {"n_levels": min(levels, 16), "log2_hashmap_size": rows, "finest_resolution": max(longest, 16)},
        "siren": {"width": 256, "depth": 4, "first_omega_0": 3000.0 if sound else 30.0},
        "fourier": {"width": 256, "depth": 3, "sigma": 1000.0 if sound else 10.0},
        "mlp": {"width": 256, "depth": 3},
    }
    return FieldChoice(kind, **sizes.get(kind, {}))  # SignalField says what is wrong with another kind
