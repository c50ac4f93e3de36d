"""The torch reference against closed forms, naive loops and finite differences: encodings, networks, the field."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import F64, rand, rng, small_field, unit_vectors
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from nerf.kernels import reference
from nerf.kernels.records import FieldParams, GridLayout


def test_layout_follows_tiny_cuda_nn() -> None:
    # By hand: scales 16*2^l - 1 = 15, 31, 63; resolutions 16, 32, 64; 16^3 and 32^3 = 2^15 fit in 2^15, 64^3 does not.
    layout = GridLayout(3, 3, 2, 15, 16, 2.0)
    assert layout.scales == (15.0, 31.0, 63.0)
    assert layout.resolutions == (16, 32, 64)
    assert layout.dense == (True, True, False)
    assert layout.level_sizes == (4096, 32768, 32768)
    assert layout.offsets == (0, 4096, 36864, 69632)
    assert layout.n_rows == 69632
    assert layout.n_features == 6
    # 5^3 = 125 rows are rounded up to a multiple of 8.
    assert GridLayout(3, 1, 2, 15, 5, 1.0).level_sizes == (128,)


def test_layout_scales_are_float32_numbers() -> None:
    scale = math.exp(math.log(2048 / 16) / 7)
    layout = GridLayout(3, 8, 4, 17, 16, scale)
    assert all(value == float(np.float32(value)) for value in layout.scales)
    # float64 gives 2047.9999999999998 - 1 or so; rounded to float32 first, the resolution is what was asked for.
    assert layout.resolutions[-1] == 2048


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"n_dims": 5}, "n_dims"),
        ({"n_levels": 0}, "n_levels"),
        ({"per_level_scale": 0.5}, "per_level_scale"),
        ({"per_level_scale": 16.0}, "resolution"),
    ],
)
def test_layout_rejects(change: dict[str, int], name: str) -> None:
    good = {
        "n_dims": 3,
        "n_levels": 8,
        "n_features_per_level": 2,
        "log2_hashmap_size": 15,
        "base_resolution": 16,
        "per_level_scale": 1.5,
    }
    GridLayout(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name):
        GridLayout(**{**good, **change})  # type: ignore[arg-type]


def row_numbers(layout: GridLayout) -> Tensor:
    """A one-feature table of row numbers within the level: the encoding then tells which row it read."""
    return torch.cat([torch.arange(size, dtype=torch.float64) for size in layout.level_sizes]).unsqueeze(1)


def at_corner(corner: tuple[int, ...], scale: float) -> Tensor:
    """The position that sits exactly on a corner: x*scale + 0.5 = i."""
    return torch.tensor([[(i - 0.5) / scale for i in corner]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("corner", "row"),
    [
        # Low bytes of the primes: 0x01, 0xB1, 0x95, 0xF5. By hand, modulo 256:
        ((1,), 0x01),
        ((1, 2), 0x01 ^ 0x62),  # 2*0xB1 = 0x162
        ((1, 2, 3), 0xDC),  # 0x63 ^ 0xBF, from 3*0x95 = 0x1BF
        ((1, 2, 3, 4), 0x08),  # 0xDC ^ 0xD4, from 4*0xF5 = 0x3D4
    ],
)
def test_hash_golden(corner: tuple[int, ...], row: int) -> None:
    # The resolution 257 exceeds 2^8 even in one dimension, so the level is hashed; scale 256 keeps positions exact.
    layout = GridLayout(len(corner), 1, 1, 8, 257, 1.0)
    assert layout.dense == (False,)
    assert reference.hashgrid_encode(at_corner(corner, 256.0), row_numbers(layout), layout).item() == row


def test_dense_golden() -> None:
    layout = GridLayout(3, 1, 1, 8, 5, 1.0)  # scale 4, resolution 5, 125 rows rounded up to 128
    encode = reference.hashgrid_encode
    assert encode(at_corner((1, 2, 3), 4.0), row_numbers(layout), layout).item() == 1 + 2 * 5 + 3 * 25
    # At x = (1,1,1) the cell is 4 and the corner 5 lies beyond the grid: 5 + 25 + 125 = 155 becomes row 27. All weights
    # are 1/8. By hand: 124, 125, 129 % 128, 130 % 128, 149 % 128, 150 % 128, 154 % 128, 155 % 128.
    expected = (124 + 125 + 1 + 2 + 21 + 22 + 26 + 27) / 8
    assert encode(torch.ones(1, 3, dtype=torch.float64), row_numbers(layout), layout).item() == expected


def naive_hashgrid(positions: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Python integers and floats, one corner at a time."""
    primes = (1, 2654435761, 805459861, 3674653429)
    out = torch.zeros(len(positions), layout.n_features, dtype=torch.float64)
    for n, x in enumerate(positions.tolist()):
        for level in range(layout.n_levels):
            pos = [value * layout.scales[level] + 0.5 for value in x]
            for bits in range(2**layout.n_dims):
                index, weight = 0, 1.0
                for axis, p in enumerate(pos):
                    side = bits >> axis & 1
                    i = math.floor(p) + side
                    weight *= p - math.floor(p) if side else 1 - (p - math.floor(p))
                    if layout.dense[level]:
                        index += i * layout.resolutions[level] ** axis
                    else:
                        index ^= i * primes[axis] % 2**32
                row = layout.offsets[level] + index % 2**32 % layout.level_sizes[level]
                for f in range(layout.n_features_per_level):
                    out[n, level * layout.n_features_per_level + f] += weight * table[row, f].item()
    return out


@pytest.mark.parametrize("n_dims", [1, 2, 3, 4])
def test_hashgrid_equals_naive(n_dims: int) -> None:
    layout = GridLayout(n_dims, 5, 3, 7, 4, 1.9)
    table = torch.randn(layout.n_rows, 3, generator=rng(), dtype=torch.float64)
    positions = rand(20, n_dims)
    positions[0], positions[1] = 0.0, 1.0
    positions[2], positions[3] = -0.3, 1.7  # outside is clamped to the cube
    out = reference.hashgrid_encode(positions, table, layout)
    torch.testing.assert_close(out, naive_hashgrid(positions.clamp(0, 1), table, layout), **F64)
    # Float32 positions decide the dtype; position*scale is off by 1e-7*50 there, times the difference of two rows.
    single = reference.hashgrid_encode(positions.float(), table, layout)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), out, rtol=0, atol=1e-4)
    torch.testing.assert_close(reference.hashgrid_encode(positions.t().contiguous().t(), table, layout), out)


def off_the_walls(positions: Tensor, layout: GridLayout) -> Tensor:
    """Only positions so far from every cell wall that finite differences stay on one side."""
    keep = torch.ones(len(positions), dtype=torch.bool)
    for scale in layout.scales:
        fraction = (positions * scale + 0.5) % 1
        keep &= ((fraction > 1e-3) & (fraction < 1 - 1e-3)).all(dim=1)
    return positions[keep]


@pytest.mark.parametrize("n_dims", [1, 3])
def test_hashgrid_gradients(n_dims: int) -> None:
    layout = GridLayout(n_dims, 3, 2, 4, 2, 1.9)
    positions = off_the_walls(rand(5, n_dims), layout).requires_grad_()
    table = torch.randn(layout.n_rows, 2, generator=rng(), dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, t: reference.hashgrid_encode(x, t, layout), (positions, table))
    assert gradgradcheck(lambda x, t: reference.hashgrid_encode(x, t, layout), (positions, table))


def test_hashgrid_of_linear_function_is_linear() -> None:
    # Rows that hold a linear function of their corner are interpolated exactly: corner i is at x = (i - 0.5)/scale.
    layout = GridLayout(2, 1, 1, 10, 9, 1.0)
    i = torch.arange(layout.n_rows)
    corners = torch.stack([i % 9, i // 9], dim=1)
    table = ((corners.double() - 0.5) / 8.0) @ torch.tensor([[2.0], [-3.0]], dtype=torch.float64)
    positions = rand(100, 2) * 0.9  # the far side of x = 1 wraps
    expected = positions @ torch.tensor([[2.0], [-3.0]], dtype=torch.float64)
    torch.testing.assert_close(reference.hashgrid_encode(positions, table, layout), expected, **F64)


def test_sh_is_orthonormal() -> None:
    # Products are polynomials of degree 6 at most: 8 Gauss-Legendre nodes and 16 azimuths integrate them exactly.
    nodes, node_weights = np.polynomial.legendre.leggauss(8)
    azimuths = 2 * np.pi * np.arange(16) / 16
    z, phi = np.meshgrid(nodes, azimuths, indexing="ij")
    radius = np.sqrt(1 - z**2)
    directions = torch.tensor(np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=-1).reshape(-1, 3))
    area = torch.tensor(np.repeat(node_weights, 16) * 2 * np.pi / 16)
    basis = reference.sh_encode(directions, 4)
    torch.testing.assert_close(basis.t() @ (area[:, None] * basis), torch.eye(16, dtype=torch.float64), **F64)


def test_sh_order_and_signs() -> None:
    # Textbook definition: sqrt(2) N P_l^|m|(z) cos or sin(|m| phi), with the Condon-Shortley sign inside P.
    directions = unit_vectors(50)
    x, y, z = directions.numpy().T
    phi = np.arctan2(y, x)
    columns = []
    for band in range(4):
        polynomial = np.polynomial.legendre.Legendre.basis(band)
        for m in range(-band, band + 1):
            a = abs(m)
            derivative = polynomial.deriv(a) if a else polynomial
            associated = (-1) ** a * (1 - z**2) ** (a / 2) * derivative(z)
            norm = math.sqrt((2 * band + 1) / (4 * math.pi) * math.factorial(band - a) / math.factorial(band + a))
            angular = np.sqrt(2) * (np.cos(a * phi) if m > 0 else np.sin(a * phi)) if m else 1.0
            columns.append(norm * associated * angular)
    torch.testing.assert_close(reference.sh_encode(directions, 4), torch.tensor(np.stack(columns, axis=1)), **F64)
    # Band 1 in the words of instant-ngp.
    c = 0.48860251190291987
    first = torch.stack([-c * directions[:, 1], c * directions[:, 2], -c * directions[:, 0]], dim=1)
    torch.testing.assert_close(reference.sh_encode(directions, 2)[:, 1:], first, **F64)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_sh_gradients_and_prefix(degree: int) -> None:
    directions = unit_vectors(4).requires_grad_()
    assert gradcheck(lambda d: reference.sh_encode(d, degree), (directions,))
    full = reference.sh_encode(directions, 4)
    assert torch.equal(reference.sh_encode(directions, degree), full[:, : degree**2])


def test_mlp_closed_form() -> None:
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)  # 1, -2, -1: two are cut off
    second = torch.tensor([[-3.0, 5.0, 7.0]], dtype=torch.float64)
    assert reference.mlp(x, [first, second]).item() == -3.0  # and the output layer is linear
    assert reference.mlp(x, [first]).tolist() == [[1.0, -2.0, -1.0]]


def test_mlp_gradients() -> None:
    params, _ = small_field()
    weights = [w.requires_grad_() for w in params.density_weights]
    x = torch.randn(4, 6, generator=rng(), dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *w: reference.mlp(x, w), (x, *weights))


def test_contract() -> None:
    x = (
        torch.randn(200, 3, generator=rng(), dtype=torch.float64)
        * torch.logspace(-6, 6, 200, dtype=torch.float64)[:, None]
    )
    norm = x.abs().amax(dim=1)
    y = reference.contract(x)
    assert torch.equal(y[norm <= 1], x[norm <= 1])
    outside = norm > 1
    torch.testing.assert_close(y.abs().amax(dim=1)[outside], 2 - 1 / norm[outside], **F64)
    torch.testing.assert_close((y / y.abs().amax(1, True))[outside], (x / norm[:, None])[outside], **F64)
    assert gradcheck(reference.contract, (torch.randn(8, 3, generator=rng(), dtype=torch.float64, requires_grad=True),))
    unit = reference.scene_to_unit(x, True)
    assert 0 <= unit.min() and unit.max() <= 1
    assert reference.scene_to_unit(torch.tensor([[-1.0, 0.0, 1.0]]), False).tolist() == [[0.0, 0.5, 1.0]]
    # The box of level 0 takes the middle half of the unit cube.
    assert reference.scene_to_unit(torch.tensor([[-1.0, 0.0, 1.0]]), True).tolist() == [[0.25, 0.5, 0.75]]


def test_density_activation() -> None:
    h = torch.tensor([-100.0, -15.0, 0.0, 3.0, 15.0, 100.0], dtype=torch.float64, requires_grad=True)
    sigma = reference.density_activation(h)
    (grad,) = torch.autograd.grad(sigma.sum(), h)
    torch.testing.assert_close(sigma.detach(), h.detach().clamp(max=15).exp(), **F64)
    torch.testing.assert_close(grad, h.detach().clamp(-15, 15).exp(), **F64)
    inner = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(reference.density_activation, (inner,))
    assert gradgradcheck(reference.density_activation, (inner,))


@pytest.mark.parametrize("contracted", [False, True])
def test_radiance_field(contracted: bool) -> None:
    params, config = small_field(contracted)
    positions = (rand(6, 3, seed=1) * 2 - 1) * (3 if contracted else 1)
    unit = reference.scene_to_unit(positions, contracted)
    positions = positions[[len(off_the_walls(u[None], config.layout)) == 1 for u in unit]]
    assert len(positions) >= 3
    directions = unit_vectors(len(positions), seed=2)
    sigmas, rgbs = reference.radiance_field(positions, directions, params, config)
    assert torch.equal(sigmas, reference.radiance_density(positions, params, config))
    # Step by step, from operations tested above.
    h = reference.mlp(
        reference.hashgrid_encode(reference.scene_to_unit(positions, contracted), params.table, config.layout),
        params.density_weights,
    )
    torch.testing.assert_close(sigmas, (h[:, 0] - 0.5).exp(), **F64)
    colour_in = torch.cat([reference.sh_encode(directions, 4), h], dim=1)
    torch.testing.assert_close(rgbs, 1 / (1 + (-reference.mlp(colour_in, params.color_weights)).exp()), **F64)

    leaves = [positions, directions, params.table, *params.density_weights, *params.color_weights]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]

    def field(x: Tensor, d: Tensor, table: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return reference.radiance_field(x, d, FieldParams(table, list(weights[:2]), list(weights[2:])), config)

    # fast_mode compares one random projection of the Jacobian: 1000 parameters would take a minute column by column.
    assert gradcheck(field, leaves, fast_mode=True)
