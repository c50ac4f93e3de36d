"""A stand-in for the package tinycudann, which needs a GPU: its documented formulas in float64, and its two modules.

Written from its documentation alone (DOCUMENTATION.md, and the paper: Mueller et al. 2022, equations 2 to 4), point by
point and corner by corner, and without any of our own code: what agrees with it agrees with two derivations.
"""

from __future__ import annotations

import math
from itertools import pairwise, product
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

PRIMES = (1, 2654435761, 805459861)


def level_sizes(config: dict[str, Any], n_dims: int) -> list[tuple[float, int, int]]:
    """(scale, vertices an axis, rows) of each level."""
    levels = []
    for level in range(config["n_levels"]):
        scale = config["base_resolution"] * config["per_level_scale"] ** level - 1.0
        resolution = math.ceil(scale) + 1
        rows = math.ceil(resolution**n_dims / 8) * 8
        levels.append((scale, resolution, min(rows, 2 ** config["log2_hashmap_size"])))
    return levels


def row_of(corner: list[int], resolution: int, rows: int) -> int:
    if resolution ** len(corner) <= rows:
        place = sum(c * resolution**axis for axis, c in enumerate(corner))
    else:
        place = 0
        for c, prime in zip(corner, PRIMES, strict=False):
            place ^= c * prime % 2**32
    return place % 2**32 % rows


def encode(points: Tensor, parameters: Tensor, config: dict[str, Any]) -> Tensor:
    n_dims = points.shape[1]
    features, columns, begin = config["n_features_per_level"], [], 0
    for scale, resolution, rows in level_sizes(config, n_dims):
        table = parameters[begin : begin + rows * features].reshape(rows, features)
        begin += rows * features
        position = points * scale + 0.5
        cells = position.detach().floor()
        fraction = position - cells
        level: Any = 0.0
        for sides in product((0, 1), repeat=n_dims):
            corners = (cells.long() + torch.tensor(sides)).tolist()
            where = torch.tensor([row_of(c, resolution, rows) for c in corners])
            weight: Any = 1.0
            for axis, side in enumerate(sides):
                weight = weight * (fraction[:, axis] if side else 1.0 - fraction[:, axis])
            level = level + weight[:, None] * table[where]
        columns.append(level)
    return torch.cat(columns, dim=1)


class _Module(nn.Module):
    loss_scale = 128.0

    def __init__(self, n_params: int, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.dtype, self.params = dtype, nn.Parameter(torch.randn(n_params, generator=random))

    def _rounded(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).double()  # half precision rounds what goes in and out of a module


class Encoding(_Module):
    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: Any = None) -> None:
        assert encoding_config["otype"] == "Grid" and encoding_config["type"] == "Hash"
        assert encoding_config["interpolation"] == "Linear"
        self.__dict__["config"] = encoding_config
        sizes = level_sizes(encoding_config, n_input_dims)
        features = encoding_config["n_features_per_level"]
        super().__init__(sum(rows for *_, rows in sizes) * features, seed, dtype or PRECISION)

    def forward(self, x: Tensor) -> Tensor:
        return encode(x.double(), self._rounded(self.params), self.config).to(self.dtype)


class Network(_Module):
    """Fully fused: no biases, hidden layers with ReLU, inputs padded with ones and outputs cut, each to 16s."""

    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict[str, Any], seed: int = 1337) -> None:
        c = network_config
        assert c["otype"] == "FullyFusedMLP" and c["activation"] == "ReLU" and c["output_activation"] == "None"
        assert c["n_neurons"] in (16, 32, 64, 128) and c["n_hidden_layers"] >= 1
        n_in, n_out = (math.ceil(n / 16) * 16 for n in (n_input_dims, n_output_dims))
        widths = [n_in, *[c["n_neurons"]] * c["n_hidden_layers"], n_out]
        self.__dict__["shapes"] = [(b, a) for a, b in pairwise(widths)]
        self.__dict__["n_out"] = n_output_dims
        super().__init__(sum(a * b for a, b in self.shapes), seed, PRECISION)

    def forward(self, x: Tensor) -> Tensor:
        x = self._rounded(x)
        x = nn.functional.pad(x, (0, self.shapes[0][1] - x.shape[1]), value=1.0)
        begin = 0
        for layer, (n_out, n_in) in enumerate(self.shapes):
            matrix = self._rounded(self.params)[begin : begin + n_out * n_in].reshape(n_out, n_in)
            begin += n_out * n_in
            x = x @ matrix.T
            x = torch.relu(x) if layer + 1 < len(self.shapes) else x
        return x[:, : self.n_out].to(self.dtype)


PRECISION = torch.float64


def module() -> ModuleType:
    """What `import tinycudann` gives."""
    made = ModuleType("tinycudann")
    made.Encoding, made.Network = Encoding, Network  # type: ignore[attr-defined]
    return made
