"""Networks: what they compute, how they start, and that they can be differentiated twice."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from nerf.fields.networks import MLP, SineLayer, Siren
from nerf.kernels import reference


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights_of(network: MLP) -> list[Tensor]:
    return [layer.weight for layer in network.layers]  # type: ignore[union-attr, misc]


def test_mlp_is_the_kernels_network() -> None:
    network = MLP(5, 3, width=8, depth=2, bias=False, generator=rng()).double()
    x = torch.randn(7, 5, generator=rng(1), dtype=torch.float64)
    assert [tuple(w.shape) for w in weights_of(network)] == [(8, 5), (8, 8), (3, 8)]
    # The same sums, perhaps in another order.
    torch.testing.assert_close(network(x), reference.mlp(x, weights_of(network)), rtol=1e-13, atol=1e-13)
    assert network(x[:0]).shape == (0, 3)


def test_mlp_output_activations() -> None:
    x = torch.randn(7, 5, generator=rng(1))
    plain, sigmoid, exp = (
        MLP(5, 3, 8, 1, output_activation=name, generator=rng())(x) for name in (None, "sigmoid", "exp")
    )
    torch.testing.assert_close(sigmoid, 1 / (1 + (-plain).exp()))
    torch.testing.assert_close(exp, plain.exp())
    linear = MLP(5, 3, 8, 0, generator=rng())
    torch.testing.assert_close(linear(x), x @ weights_of(linear)[0].t())


def test_mlp_keeps_the_signal() -> None:
    # He's start: the mean square of what enters each layer stays near 1 through eight layers of 256 (within a factor of
    # 2 for a random draw), and the same seed gives the same network.
    network = MLP(64, 16, width=256, depth=8, generator=rng())
    x = torch.randn(2000, 64, generator=rng(1))
    assert network(x).square().mean().item() == pytest.approx(1.0, rel=1.0)
    assert network(x).square().mean().item() > 0.5
    twin = MLP(64, 16, width=256, depth=8, generator=rng())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu"}, "activation"),
        ({"output_activation": "relu"}, "output_activation"),
        ({"depth": -1}, "depth"),
    ],
)
def test_mlp_rejects(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(**{"n_in": 2, "n_out": 1, "width": 4, "depth": 1, **change})


def test_sine_layer_start() -> None:
    first = SineLayer(3, 5000, omega_0=30.0, is_first=True, generator=rng())
    later = SineLayer(256, 300, omega_0=30.0, generator=rng())
    # Uniform: the largest of many draws reaches the bound.
    for weight, bound in ((first.linear.weight, 1 / 3), (later.linear.weight, math.sqrt(6 / 256) / 30)):
        assert bound * 0.999 < weight.abs().max().item() <= bound
    assert first.linear.bias.abs().max().item() <= 1 / math.sqrt(3)
    x = torch.rand(4, 3, generator=rng(1)) * 2 - 1
    torch.testing.assert_close(first(x), torch.sin(30 * (x @ first.linear.weight.t() + first.linear.bias)))


def test_siren_activations_keep_their_distribution() -> None:
    # SIREN, theorem 1.8: every sine's argument is near N(0,1) from the second layer on, so outputs have variance
    # (1 - e^-2)/2 = 0.43, whatever the depth. The bias adds omega/sqrt(n) uniform: its variance 900/(3*256) = 1.2
    # pushes the phase further around the circle, towards the arcsine law's 1/2.
    network = Siren(2, 1, width=256, depth=8, generator=rng())
    x = torch.rand(2000, 2, generator=rng(1)) * 2 - 1
    for layer in list(network.layers)[:-1]:
        x = layer(x)
        assert 0.40 < x.var().item() < 0.54
    assert len(network.layers) == 9


@pytest.mark.parametrize("make", [
    lambda: MLP(2, 2, 6, 2, activation="softplus", generator=rng()),
    lambda: MLP(2, 2, 6, 2, activation="tanh", output_activation="sigmoid", generator=rng()),
    lambda: Siren(2, 1, width=6, depth=2, first_omega_0=3.0, omega_0=3.0, generator=rng()),
])  # fmt: skip
def test_twice_differentiable(make) -> None:  # type: ignore[no-untyped-def]
    network = make().double()
    x = (torch.rand(3, 2, generator=rng(1), dtype=torch.float64) * 2 - 1).requires_grad_()
    assert gradcheck(network, (x,))
    assert gradgradcheck(network, (x,))


def test_siren_laplacian() -> None:
    # One sine layer has a closed form: the Laplacian of sin(w(a.x + b)) is -w^2 |a|^2 sin(...).
    layer = SineLayer(2, 1, omega_0=30.0, is_first=True, generator=rng()).double()
    x = torch.rand(5, 2, generator=rng(1), dtype=torch.float64, requires_grad=True)
    y = layer(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    laplacian = sum(torch.autograd.grad(slope[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    expected = -(30**2) * layer.linear.weight.square().sum() * y.squeeze(1)
    torch.testing.assert_close(laplacian, expected, rtol=1e-12, atol=1e-12)


def test_siren_learns_a_wave() -> None:
    # 60 cheap steps on a sine of five periods: far below the signal's variance 0.5, which a dead network would leave.
    network = Siren(1, 1, width=32, depth=2, generator=rng())
    x = torch.linspace(-1, 1, 200).unsqueeze(1)
    y = torch.sin(5 * 2 * math.pi * x / 2)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = (network(x) - y).square().mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.01


def test_siren_rejects() -> None:
    with pytest.raises(ValueError, match="depth"):
        Siren(2, 1, depth=0)
