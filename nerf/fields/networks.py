"""Networks: features to outputs, [n, n_in] to [n, n_out]; plain torch, differentiable to any order."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from nerf.kernels.network import Layer

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "softplus": nn.functional.softplus}
OUTPUT_ACTIVATIONS = {None: lambda x: x, "sigmoid": torch.sigmoid, "exp": torch.exp}


def _fill_uniform(tensor: Tensor, bound: float, generator: torch.Generator | None) -> None:
    with torch.no_grad():
        tensor.uniform_(-bound, bound, generator=generator)


class MLP(nn.Module):
    """Fully connected network: `depth` hidden layers of `width`, each with `activation`, then a linear layer.

    Weights start uniform with the variance that keeps a ReLU network's signal (He et al. 2015: bound sqrt(6/n_in)), and
    the last layer's with sqrt(3/n_in), as no ReLU follows; biases start at zero. Without biases and with ReLU it is the
    network that the fused kernels compute.

    activation: "relu", "tanh" or "softplus". output_activation: None (linear), "sigmoid" or "exp". depth: 0 for one
    linear map. generator: for a repeatable start.

    >>> nerf.MLP(n_in=3, n_out=1, width=16, depth=2)(torch.rand(5, 3)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int,
        depth: int,
        activation: str = "relu",
        output_activation: str | None = None,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if output_activation not in OUTPUT_ACTIVATIONS:
            raise ValueError(f"output_activation: expected None, 'sigmoid' or 'exp', got {output_activation!r}")
        if depth < 0:
            raise ValueError(f"depth: expected 0 or more hidden layers, got {depth!r}")
        self.n_in, self.n_out = n_in, n_out
        self.activation, self.output_activation = activation, output_activation
        sizes = [n_in, *[width] * depth, n_out]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes))
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            gain = 6.0 if i < depth else 3.0
            _fill_uniform(layer.weight, math.sqrt(gain / layer.in_features), generator)
            if bias:
                nn.init.zeros_(layer.bias)

    def weights(self) -> list[Tensor]:
        """The matrices [out, in] of all layers, in order."""
        return [layer.weight for layer in self.layers if isinstance(layer, nn.Linear)]

    def as_layers(self) -> list[Layer]:
        """The same network for `kernels.network_mse`; of activations, it takes ReLU and sigmoid alone."""
        if self.activation != "relu" or self.output_activation not in (None, "sigmoid"):
            raise ValueError(f"{self.activation} and {self.output_activation} have no native layer")
        acts = ["relu"] * (len(self.layers) - 1) + [self.output_activation or "linear"]
        pairs = zip(self.layers, acts, strict=True)
        return [Layer(linear.weight, linear.bias, act) for linear, act in pairs if isinstance(linear, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        for layer in self.layers[:-1]:
            x = activate(layer(x))
        return OUTPUT_ACTIVATIONS[self.output_activation](self.layers[-1](x))


class SineLayer(nn.Module):
    """`sin(omega_0 * (W x + b))`, with the published start.

    W is uniform within `1/n_in` in the first layer and `sqrt(6/n_in)/omega_0` in the others, so that every layer's
    argument has unit variance and its output the same distribution, whatever the depth; b is uniform within
    `1/sqrt(n_in)`, as in the authors' code. Source: SIREN (Sitzmann et al. 2020), section 3.2 and supplement 1.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        omega_0: float = 30.0,
        is_first: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.omega_0 = omega_0
        self.linear = nn.Linear(n_in, n_out)
        bound = 1.0 / n_in if is_first else math.sqrt(6.0 / n_in) / omega_0
        _fill_uniform(self.linear.weight, bound, generator)
        _fill_uniform(self.linear.bias, 1.0 / math.sqrt(n_in), generator)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * self.linear(x))


class Siren(nn.Module):
    """Sinusoidal network: `depth` sine layers of `width`, the first one included, then a linear layer.

    It expects coordinates in [-1,1] (`Identity(centred=True)`). `first_omega_0` sets the highest frequency it starts
    with: 30 for pictures, 3000 for a few seconds of sound. Source: SIREN (Sitzmann et al. 2020).

    >>> nerf.Siren(n_in=2, n_out=3, width=16, depth=2)(torch.rand(5, 2) * 2 - 1).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int = 256,
        depth: int = 4,
        first_omega_0: float = 30.0,
        omega_0: float = 30.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth: expected 1 or more sine layers, got {depth!r}")
        self.n_in, self.n_out = n_in, n_out
        layers: list[nn.Module] = [SineLayer(n_in, width, first_omega_0, is_first=True, generator=generator)]
        layers += [SineLayer(width, width, omega_0, generator=generator) for _ in range(depth - 1)]
        last = nn.Linear(width, n_out)
        _fill_uniform(last.weight, math.sqrt(6.0 / width) / omega_0, generator)
        _fill_uniform(last.bias, 1.0 / math.sqrt(width), generator)
        self.layers = nn.Sequential(*layers, last)

    def as_layers(self) -> list[Layer]:
        """The same network for `kernels.network_mse`."""
        found = []
        for layer in self.layers:
            if isinstance(layer, SineLayer):
                found.append(Layer(layer.linear.weight, layer.linear.bias, "sine", layer.omega_0))
            elif isinstance(layer, nn.Linear):
                found.append(Layer(layer.weight, layer.bias, "linear"))
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
