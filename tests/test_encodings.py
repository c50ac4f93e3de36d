"""Encodings: shapes, closed forms, repeatability, and derivatives by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from nerf.fields.encodings import FourierFeatures, Frequency, HashGrid, Identity
from nerf.kernels import reference


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


ENCODINGS = {
    "identity": lambda: Identity(3),
    "centred": lambda: Identity(3, centred=True),
    "frequency": lambda: Frequency(3, 4),
    "frequency alone": lambda: Frequency(3, 4, include_input=False),
    "fourier": lambda: FourierFeatures(3, 5, sigma=2.0),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_shapes_and_derivatives(name: str) -> None:
    encoding = ENCODINGS[name]()
    assert encoding.n_in == 3
    u = rand(4, 3).requires_grad_()
    assert encoding(u).shape == (4, encoding.n_out)
    assert encoding(u[:0]).shape == (0, encoding.n_out)
    assert encoding(u.float()).dtype == torch.float32
    assert gradcheck(encoding, (u,))
    assert gradgradcheck(encoding, (u,))
    strided = u.detach().t().contiguous().t()
    # The same numbers in another layout: matrix products may sum in another order.
    torch.testing.assert_close(encoding(strided), encoding(u.detach()), rtol=1e-13, atol=1e-13)


def test_identity() -> None:
    u = rand(5, 2)
    assert torch.equal(Identity(2)(u), u)
    assert torch.equal(Identity(2, centred=True)(u), 2 * u - 1)


def test_frequency_closed_form() -> None:
    u = torch.tensor([[0.25, 0.5]], dtype=torch.float64)
    half = math.sqrt(0.5)
    # Angles: pi/4, pi/2 for the first coordinate, pi/2, pi for the second.
    expected = [0.25, 0.5, half, 1.0, 1.0, 0.0, half, 0.0, 0.0, -1.0]
    assert Frequency(2, 2)(u)[0].tolist() == pytest.approx(expected, abs=1e-15)
    assert torch.equal(Frequency(2, 2, include_input=False)(u), Frequency(2, 2)(u)[:, 2:])
    with pytest.raises(ValueError, match="n_frequencies"):
        Frequency(2, 0)


def test_frequency_tells_the_ends_apart() -> None:
    # With a lowest period of 1 the two ends of the unit interval would look the same.
    ends = Frequency(1, 6, include_input=False)(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert (ends[0] - ends[1]).abs().max() > 1


def test_fourier_features() -> None:
    encoding = FourierFeatures(2, 4000, sigma=3.0, seed=7)
    assert torch.equal(encoding.matrix, FourierFeatures(2, 4000, sigma=3.0, seed=7).matrix)
    assert not torch.equal(encoding.matrix, FourierFeatures(2, 4000, sigma=3.0, seed=8).matrix)
    assert list(encoding.state_dict()) == ["matrix"] and not list(encoding.parameters())
    # The kernel of the features, mean of cos(2 pi B (u-v)), tends to exp(-2 pi^2 sigma^2 |u-v|^2), within 1/sqrt(4000).
    u, v = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.05, 0.02]], dtype=torch.float64)
    kernel = (encoding(u) * encoding(v)).sum() / 4000
    expected = math.exp(-2 * math.pi**2 * 9 * (0.05**2 + 0.02**2))
    assert kernel.item() == pytest.approx(expected, abs=4 / math.sqrt(4000))


def test_hash_grid_starts_small_and_repeatable() -> None:
    a, b, c = (HashGrid(2, 4, 2, 10, 4, 1.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.table, b.table) and not torch.equal(a.table, c.table)
    assert a.table.shape == (a.layout.n_rows, 2) and a.table.dtype == torch.float32
    assert a.table.abs().max() <= 1e-4
    # Uniform in +-1e-4: standard deviation 1e-4/sqrt(3); of about 1000 numbers it is known to 2 %.
    assert a.table.std().item() == pytest.approx(1e-4 / math.sqrt(3), rel=0.1)
    assert a.n_out == 8


@pytest.mark.parametrize("n_dims", [1, 2, 3])
def test_hash_grid_equals_reference(n_dims: int) -> None:
    # Through the door of the kernels: whichever backend there is.
    encoding = HashGrid(n_dims, 4, 2, 8, 4, 1.7, torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoding.table.mul_(1e4)  # to order 1, so that the tolerance means something
    u = rand(50, n_dims, dtype=torch.float32).requires_grad_()
    table = encoding.table.detach().clone().requires_grad_()
    out, expected = encoding(u), reference.hashgrid_encode(u, table, encoding.layout)
    # float32: position*scale carries 1e-7*20, times differences of rows of order 1.
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grad = rand(*out.shape, seed=1, dtype=torch.float32)
    grads = torch.autograd.grad(out, (encoding.table, u), grad)
    expected_grads = torch.autograd.grad(expected, (table, u), grad)
    torch.testing.assert_close(grads[0], expected_grads[0], rtol=1e-4, atol=1e-4)
    # Positions' gradients are sums of row differences times scale (20).
    torch.testing.assert_close(grads[1], expected_grads[1], rtol=1e-4, atol=1e-3)
