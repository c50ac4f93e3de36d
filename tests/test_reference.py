"""The torch reference against closed forms, naive loops in exact or float64 arithmetic, and finite differences."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from nerf.kernels import reference
from nerf.kernels.records import FieldConfig, FieldParams, FieldView, GridLayout, MarchSettings, Rays, Samples
from nerf.kernels.reference import arithmetic, march_vectorised

# Exact formulas evaluated twice in float64, in another order: a few dozen roundings of 1e-16 on values of order 1.
F64 = {"rtol": 1e-12, "atol": 1e-12}
# The same in float32, for sums of up to a few hundred terms of order 1.
F32 = {"rtol": 1e-4, "atol": 1e-5}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=rng(seed), dtype=dtype)


def unit_vectors(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=rng(seed), dtype=dtype), dim=1)


# --- layout ----------------------------------------------------------------------------------------------------------


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


# --- hash grid -------------------------------------------------------------------------------------------------------


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


# --- spherical harmonics ---------------------------------------------------------------------------------------------


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


# --- networks and the field ------------------------------------------------------------------------------------------


def small_field(
    contracted: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[FieldParams, FieldConfig]:
    layout = GridLayout(3, 3, 2, 6, 3, 1.8)
    g = rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    params = FieldParams(
        table=normal(layout.n_rows, 2),
        density_weights=[normal(8, 6) * 0.5, normal(16, 8) * 0.5],
        color_weights=[normal(8, 32) * 0.3, normal(8, 8) * 0.5, normal(3, 8) * 0.5],
    )
    return params, FieldConfig(layout, contracted, density_bias=-0.5)


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


# --- rays ------------------------------------------------------------------------------------------------------------


def test_ray_box_closed_forms() -> None:
    inf = math.inf
    cases = [  # origin, direction, entry, exit for the box of half extent 1, unlimited
        ((-3, 0, 0), (1, 0, 0), 2, 4),
        ((-3, 0.5, -0.5), (1, 0, 0), 2, 4),  # parallel to two axes, inside their slabs
        ((-3, 1, 0), (1, 0, 0), 2, 4),  # along a face
        ((-3, 1.5, 0), (1, 0, 0), inf, -inf),  # parallel and outside
        ((-3, 1.5, 0), (1, -0.0, 0), inf, -inf),
        ((0, 0, 0), (0, 0, 1), -1, 1),  # from inside: entry lies behind
        ((3, 0, 0), (1, 0, 0), -4, -2),  # box behind
        ((-2, -2, -2), (1, 1, 1), 1, 3),  # through two corners
        ((-2, 0, 0), (1, 2, 0), 1, 0.5),  # passes by
    ]
    origins, directions = (torch.tensor([c[i] for c in cases], dtype=torch.float32) for i in (0, 1))
    t_near, t_far = reference.ray_box(origins, directions, 1.0, -inf, inf)
    assert t_near.tolist() == [c[2] for c in cases]
    assert t_far.tolist() == [c[3] for c in cases]
    t_near, t_far = reference.ray_box(origins, directions, 1.0, 0.25, 2.5)
    assert t_near.tolist() == [max(c[2], 0.25) for c in cases]
    assert t_far.tolist() == [min(c[3], 2.5) for c in cases]
    assert (t_near < t_far).tolist() == [True, True, True, False, False, True, False, True, False]


def test_ray_box_random() -> None:
    origins, directions = (rand(500, 3) * 2 - 1) * 3, unit_vectors(500, seed=1)
    t_near, t_far = reference.ray_box(origins, directions, 1.5, -math.inf, math.inf)
    hit = t_near < t_far
    assert 50 < hit.sum() < 450
    for t, sign in ((t_near, 1), (t_far, -1)):
        just_inside = origins + (t + sign * 1e-9)[:, None] * directions
        just_outside = origins + (t - sign * 1e-9)[:, None] * directions
        assert (just_inside.abs().amax(1) < 1.5)[hit & (t_far - t_near > 1e-8)].all()
        assert (just_outside.abs().amax(1) > 1.5)[hit].all()
    ts = torch.linspace(-6, 6, 400, dtype=torch.float64)
    points = origins[~hit, None] + ts[:, None] * directions[~hit, None]
    assert (points.abs().amax(-1) > 1.5 - 1e-9).all()


def naive_jitter(seed: int, step: int, ray: int) -> float:
    mask = 2**32 - 1
    h = (seed * 0x9E3779B9 + step * 0x85EBCA6B + ray * 0xC2B2AE35) & mask
    h ^= h >> 16
    h = h * 0x7FEB352D & mask
    h ^= h >> 15
    h = h * 0x846CA68B & mask
    h ^= h >> 16
    return (h >> 8) * 2.0**-24


def test_ray_jitter() -> None:
    rays = torch.tensor([0, 1, 2, 12345, 2**31, 2**32 - 1, 2**33 + 5])
    for seed, step in ((0, 0), (1, 2), (42, 30000), (2**32 - 1, 2**31 + 7), (-1, 3)):
        expected = [naive_jitter(seed, step, ray) for ray in rays.tolist()]
        assert reference.ray_jitter(seed, step, rays).tolist() == expected
    assert reference.ray_jitter(0, 0, torch.tensor([0])).tolist() == [0.0]
    many = reference.ray_jitter(1, 2, torch.arange(100_000))
    assert many.dtype == torch.float32 and many.min() >= 0 and many.max() < 1
    # Uniform: each of 16 bins has 6250 +- 77 (one sigma) of 100 000 draws; 5 sigma, and the seed is fixed.
    counts = torch.bincount((many * 16).long(), minlength=16)
    assert (counts - 6250).abs().max() < 5 * 77


# --- march -----------------------------------------------------------------------------------------------------------


def nearest_float32(value: Fraction) -> np.float32:
    """Round to nearest, ties to even, by comparing the candidates exactly."""
    guess = np.float32(float(value))
    candidates = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.int32)) & 1))


def test_fma32_rounds_once() -> None:
    g = np.random.default_rng(0)
    a, b, c = (
        g.standard_normal(500).astype(np.float32) * np.float32(2.0) ** g.integers(-20, 20, 500) for _ in range(3)
    )
    a, b, c = (np.asarray(x, np.float32) for x in (a, b, c))
    # Halfway between two float32, and a last term that float64 loses: rounded twice, these come out wrong.
    # 24929*2^-14 * 673*2^-10 = 1 + 2^-24.
    tie = (np.float32(24929 * 2.0**-14), np.float32(673 * 2.0**-10))
    a = np.concatenate([a, np.full(4, tie[0]), [-tie[0], -tie[0]]]).astype(np.float32)
    b = np.concatenate([b, np.full(6, tie[1])]).astype(np.float32)
    c = np.concatenate([c, np.float32([2.0**-60, -(2.0**-60), 0, 2.0**-100, 2.0**-60, -(2.0**-60)])]).astype(np.float32)
    expected = [
        nearest_float32(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert arithmetic.fma32(a, b, c).tolist() == [float(value) for value in expected]
    assert arithmetic.fma32(*tie, np.float32(2.0**-60)) == np.float32(1 + 2.0**-23)


def random_rays(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Origins inside and outside; an eighth parallel to an axis, an eighth to a plane, some longer than unit."""
    g = rng(seed)
    origins = torch.randn(n, 3, generator=g)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    eighth = n // 8
    directions[:eighth] = torch.eye(3)[torch.randint(3, (eighth,), generator=g)]
    directions[eighth : 2 * eighth, 1] = 0.0
    directions[2 * eighth : 3 * eighth] *= 1.5
    origins[::3] *= 0.3
    origins[5] = 0.0
    return origins, directions


MARCHES = {
    # name: levels, resolution, step, cone angle, longest step, share of cells occupied
    "one level": (1, 8, 0.07, 0.0, math.inf, 0.3),
    "fine grid": (1, 32, 0.013, 0.0, math.inf, 0.02),
    "odd resolution": (1, 19, 0.05, 0.0, math.inf, 0.2),
    "three levels": (3, 8, 0.1, 0.0, math.inf, 0.3),
    "one level, cone": (1, 16, 0.02, 0.03, 0.2, 0.2),
    "three levels, cone": (3, 8, 0.03, 1 / 24, 0.3, 0.3),
    "cone without limit": (3, 4, 0.05, 0.1, math.inf, 0.5),
    "nothing occupied": (1, 16, 0.05, 0.0, math.inf, 0.0),
    "all occupied": (2, 16, 0.1, 0.0, math.inf, 1.0),
}


@pytest.mark.parametrize("name", MARCHES)
def test_march_equals_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n_levels, resolution, step, cone, longest, share = MARCHES[name]
    n = 64
    origins, directions = random_rays(n)
    occupied = torch.rand(n_levels, resolution, resolution, resolution, generator=rng(1)) < share
    t_near, t_far = reference.ray_box(origins, directions, 2.0 ** (n_levels - 1), 0.05, 8.0)
    # Some rays are cut short, some run past the box, some start before it, one is not a number.
    t_far[::7] = t_near[::7] + 0.4
    t_far[3::7] += 1.0
    t_near[4::11] -= 0.5
    origins[9] = math.nan
    jitter = reference.ray_jitter(1, 2, torch.arange(n))
    args = (origins, directions, t_near, t_far, jitter, occupied, step, cone, longest)
    expected = reference.march_loop(*args)
    assert (len(expected.t_starts) > 0) == (share > 0)
    # Small chunks bring in the coarse test of whole runs, and the seams between chunks.
    for chunk in (march_vectorised.MARCH_CHUNK, 512):
        monkeypatch.setattr(march_vectorised, "MARCH_CHUNK", chunk)
        samples = reference.march(*args)
        for field in ("t_starts", "t_ends", "ray_indices", "packed_info"):
            got, want = getattr(samples, field), getattr(expected, field)
            assert got.dtype == want.dtype and torch.equal(got, want), field  # bit for bit


def test_march_skips_runs_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # The test above means nothing for the coarse grid unless it is in use there.
    monkeypatch.setattr(march_vectorised, "MARCH_CHUNK", 512)
    seen = []
    plan = march_vectorised._MarchGrid.plan_runs
    monkeypatch.setattr(march_vectorised._MarchGrid, "plan_runs", lambda *a: seen.append(plan(*a)) or seen[-1])
    origins, directions = random_rays(64)
    t_near, t_far = reference.ray_box(origins, directions, 1.0)
    occupied = torch.zeros(1, 32, 32, 32, dtype=torch.bool)
    reference.march(origins, directions, t_near, t_far, torch.zeros(64), occupied, 0.013)
    assert seen and seen[0] >= 4


@pytest.mark.parametrize("march", [reference.march, reference.march_loop])
def test_march_closed_form(march) -> None:  # type: ignore[no-untyped-def]
    # Along x through [-1,1]^3 in steps of 1/8, all numbers exact: from t = 2 to 4, shifted by half a step.
    one = torch.ones(1)
    origins, directions = torch.tensor([[-3.0, 0.1, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]])
    occupied = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    samples = march(origins, directions, 2 * one, 4 * one, 0.5 * one, occupied, 0.125)
    # Middles are 2.125, 2.25 ... ; 4.0 is no longer below t_far.
    assert samples.t_starts.tolist() == [2.0625 + 0.125 * k for k in range(15)]
    assert samples.t_ends.tolist() == [2.0625 + 0.125 * (k + 1) for k in range(15)]
    assert samples.packed_info.tolist() == [[0, 15]]
    # Only the cells -0.5 <= x < 0 : middles from 2.5 to below 3. Indexed [level, z, y, x].
    occupied[:] = False
    occupied[0, 2, 2, 1] = True
    samples = march(origins, directions, 2 * one, 4 * one, 0.5 * one, occupied, 0.125)
    assert (samples.t_starts + 0.0625).tolist() == [2.5, 2.625, 2.75, 2.875]
    # Starting well before the box: what lies outside is passed over, and the lattice inside is the same.
    samples = march(origins, directions, 0 * one, 9 * one, 0.5 * one, occupied, 0.125)
    assert (samples.t_starts + 0.0625).tolist() == [2.5, 2.625, 2.75, 2.875]
    # A cone: dt = t/4 but at least 0.125 and at most 0.25. From t = 0.25: 0.125 until t = 0.5, then t/4, then 0.25.
    origins = torch.zeros(1, 3)
    samples = march(
        origins, directions, 0.25 * one, one, 0 * one, torch.ones(1, 4, 4, 4, dtype=torch.bool), 0.125, 0.25, 0.25
    )
    assert samples.t_starts.tolist() == [0.25, 0.375, 0.5, 0.625, 0.78125]
    assert samples.t_ends.tolist() == [0.375, 0.5, 0.625, 0.78125, 0.9765625]


@pytest.mark.parametrize("march", [reference.march, reference.march_loop])
def test_march_levels_nest(march) -> None:  # type: ignore[no-untyped-def]
    # One level at a time occupied: samples lie where that level is the finest, 2^(k-1) <= |p| < 2^k.
    origins, directions = torch.tensor([[0.01, 0.02, 0.03]]), torch.tensor([[1.0, 0.0, 0.0]])
    for level, (low, high) in enumerate([(0.0, 1.0), (1.0, 2.0), (2.0, 4.0)]):
        occupied = torch.zeros(3, 4, 4, 4, dtype=torch.bool)
        occupied[level] = True
        samples = march(origins, directions, torch.zeros(1), torch.full((1,), 9.0), torch.zeros(1), occupied, 0.0625)
        x = 0.01 + samples.t_starts + 0.03125
        assert x.min() >= low and x.max() < high
        assert len(x) == (high - low) / 0.0625


def test_march_emptying_cells_only_removes() -> None:
    origins, directions = random_rays(64)
    t_near, t_far = reference.ray_box(origins, directions, 1.0)
    full = torch.ones(1, 32, 32, 32, dtype=torch.bool)
    some = torch.rand(1, 32, 32, 32, generator=rng()) < 0.1
    args = (origins, directions, t_near, t_far, torch.zeros(64))

    def pairs(occupied: Tensor) -> set[tuple[int, float, float]]:
        s = reference.march(*args, occupied, 0.01)
        return set(zip(s.ray_indices.tolist(), s.t_starts.tolist(), s.t_ends.tolist(), strict=True))

    assert pairs(some) < pairs(full)
    assert pairs(some) | pairs(~some) == pairs(full)


@pytest.mark.parametrize("cone", [0.0, 0.02])
def test_march_without_rays_or_hits(cone: float) -> None:
    occupied = torch.ones(1, 16, 16, 16, dtype=torch.bool)
    for n in (0, 3):
        zeros = torch.zeros(n, 3)
        far = torch.full((n,), -1.0)
        for march in (reference.march, reference.march_loop):
            samples = march(zeros, zeros + 1, torch.zeros(n), far, torch.zeros(n), occupied, 0.01, cone)
            assert samples.t_starts.shape == samples.t_ends.shape == samples.ray_indices.shape == (0,)
            assert samples.t_starts.dtype == torch.float32 and samples.ray_indices.dtype == torch.int64
            assert samples.packed_info.tolist() == [[0, 0]] * n


def test_march_rejects() -> None:
    n = 2
    good = {
        "rays_o": torch.zeros(n, 3),
        "rays_d": torch.ones(n, 3),
        "t_near": torch.zeros(n),
        "t_far": torch.ones(n),
        "jitter": torch.zeros(n),
        "occupied": torch.ones(1, 4, 4, 4, dtype=torch.bool),
        "step_size": 0.1,
    }
    reference.march(**good)  # type: ignore[arg-type]
    for name, value, error in (
        ("rays_o", torch.zeros(n, 2), ValueError),
        ("rays_d", torch.zeros(n + 1, 3), ValueError),
        ("rays_d", torch.zeros(n, 3, dtype=torch.float64), TypeError),
        ("t_near", torch.zeros(n, 1), ValueError),
        ("t_far", torch.zeros(n, dtype=torch.int64), TypeError),
        ("jitter", [0.0, 0.0], TypeError),
        ("occupied", torch.ones(4, 4, 4, dtype=torch.bool), ValueError),
        ("occupied", torch.ones(1, 4, 4, 5, dtype=torch.bool), ValueError),
        ("occupied", torch.ones(1, 4, 4, 4), ValueError),
        ("step_size", 0.0, ValueError),
        ("cone_angle", -1.0, ValueError),
        ("max_step", 0.01, ValueError),
    ):
        for march in (reference.march, reference.march_loop):
            with pytest.raises(error, match=name):
                march(**{**good, name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ray 0 never ends"):
        reference.march(**{**good, "rays_d": torch.zeros(n, 3), "t_far": torch.full((n,), math.inf)})  # type: ignore[arg-type]


# --- composite -------------------------------------------------------------------------------------------------------


def pack(counts: list[int], dts: Tensor, gaps: Tensor | None = None, start: float = 1.0) -> Samples:
    """Samples with these counts and lengths, each ray starting at `start`, with gaps before the samples."""
    starts, ends, owners, packed, k = [], [], [], [], 0
    for ray, count in enumerate(counts):
        packed.append((k, count))
        t = start
        for _ in range(count):
            t += 0.0 if gaps is None else gaps[k].item()
            starts.append(t)
            t += dts[k].item()
            ends.append(t)
            owners.append(ray)
            k += 1
    as_float = {"dtype": dts.dtype}
    return Samples(
        torch.tensor(starts, **as_float),
        torch.tensor(ends, **as_float),
        torch.tensor(owners, dtype=torch.int64),
        torch.tensor(packed, dtype=torch.int64).reshape(-1, 2),
    )


def random_samples(counts: list[int], seed: int = 0) -> tuple[Samples, Tensor, Tensor]:
    s = sum(counts)
    samples = pack(counts, 0.05 + 0.2 * rand(s, seed=seed), 0.3 * rand(s, seed=seed + 1))
    return samples, 4 * rand(s, seed=seed + 2), rand(s, 3, seed=seed + 3)


def composite(*arguments, **named) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """What is found per ray and per sample, by name."""
    found = reference.composite(*arguments, **named)._asdict()
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def naive_composite(
    samples: Samples, sigmas: Tensor, rgbs: Tensor, stop_threshold: float = 0.0
) -> dict[str, list[float] | list[list[float]]]:
    """Front to back, sample by sample, in Python floats; the distortion as its double sum."""
    keys = ("foregrounds", "opacities", "depths", "second_moments", "distortions", "median_depths")
    out: dict[str, list] = {key: [] for key in keys} | {"weights": [], "trans": []}
    for first, count in samples.packed_info.tolist():
        ids = range(first, first + count)
        trans, median, ws, ms = 1.0, 0.0, [], []
        for i in ids:
            dt = (samples.t_ends[i] - samples.t_starts[i]).item()
            mid = (samples.t_ends[i] + samples.t_starts[i]).item() / 2
            alpha = 1 - math.exp(-sigmas[i].item() * dt)
            w = trans * alpha if trans >= stop_threshold else 0.0
            out["trans"].append(trans)
            out["weights"].append(w)
            if median == 0 and sum(ws) + w >= 0.5:
                median = samples.t_starts[i].item() + math.log(2 * trans) / sigmas[i].item()
            ws.append(w)
            ms.append(mid)
            trans *= 1 - alpha
        out["foregrounds"].append([sum(w * rgbs[i, c].item() for w, i in zip(ws, ids, strict=True)) for c in range(3)])
        out["opacities"].append(sum(ws))
        out["depths"].append(sum(w * m for w, m in zip(ws, ms, strict=True)))
        moments = (w * sum(rgbs[i, c].item() ** 2 for c in range(3)) for w, i in zip(ws, ids, strict=True))
        out["second_moments"].append(sum(moments))
        pairs = sum(a * b * abs(m - n) for a, m in zip(ws, ms, strict=True) for b, n in zip(ws, ms, strict=True))
        own = sum(w * w * (samples.t_ends[i] - samples.t_starts[i]).item() for w, i in zip(ws, ids, strict=True))
        out["distortions"].append(pairs + own / 3)
        out["median_depths"].append(median)
    return out


COUNTS = [3, 0, 1, 17, 0, 0, 8, 2]


@pytest.mark.parametrize("stop_threshold", [0.0, 0.3])
def test_composite_equals_naive(stop_threshold: float) -> None:
    samples, sigmas, rgbs = random_samples(COUNTS)
    out = composite(samples, sigmas, rgbs, len(COUNTS), stop_threshold)
    expected = naive_composite(samples, sigmas, rgbs, stop_threshold)
    assert out.keys() == expected.keys()
    for key, value in out.items():
        torch.testing.assert_close(value, torch.tensor(expected[key], dtype=torch.float64), **F64, msg=key)
    assert (out["median_depths"] > 0).any() and (out["median_depths"] == 0).any()
    assert stop_threshold == 0 or (out["weights"] == 0).any()


@pytest.mark.parametrize("stop_threshold", [0.0, 0.3])
def test_composite_gradients(stop_threshold: float) -> None:
    samples, sigmas, rgbs = random_samples([3, 0, 1, 6])
    leaves = (sigmas.requires_grad_(), rgbs.requires_grad_())
    keys = ("foregrounds", "opacities", "depths", "second_moments", "distortions", "weights")

    def outputs(sigmas: Tensor, rgbs: Tensor) -> tuple[Tensor, ...]:
        out = composite(samples, sigmas, rgbs, 4, stop_threshold)
        assert not out["median_depths"].requires_grad
        return tuple(out[key] for key in keys)

    assert gradcheck(outputs, leaves)
    assert gradgradcheck(outputs, leaves)


def test_slab_has_closed_form_opacity() -> None:
    # Density s over length L, cut into equal pieces: 1 - exp(-sL), mean depth of an exponential cut off at L.
    s, length, start, n = 1.7, 1.25, 1.0, 1000
    samples = pack([n], torch.full((n,), length / n, dtype=torch.float64), start=start)
    out = composite(samples, torch.full((n,), s, dtype=torch.float64), torch.ones(n, 3).double(), 1)
    opacity = 1 - math.exp(-s * length)
    assert out["opacities"].item() == pytest.approx(opacity, rel=1e-12)  # exact for any cut, but for rounding
    assert out["foregrounds"].tolist()[0] == pytest.approx([opacity] * 3, rel=1e-12)
    depth = start * opacity + (1 - (1 + s * length) * math.exp(-s * length)) / s
    # Each piece puts its weight in its middle: an error of order dt^2 relative, (1.25/1000)^2 = 1.6e-6.
    assert out["depths"].item() == pytest.approx(depth, rel=2e-6)
    # Half the light is gone where s*t = ln 2; known to one piece.
    assert out["median_depths"].item() == pytest.approx(start + math.log(2) / s, abs=length / n)
    # A wall of uniform weights (two surfaces far apart, half each) has distortion 2 * 1/2 * 1/2 * distance.
    wall = pack([2], torch.tensor([1e-9, 1e-9], dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64))
    sigmas = torch.tensor([math.log(2) * 1e9, 1e12], dtype=torch.float64)
    # t is near 4, so that dt = 1e-9 is known to 4*1e-16/1e-9 = 1e-6.
    assert composite(wall, sigmas, torch.ones(2, 3).double(), 1)["distortions"].item() == pytest.approx(1.5, rel=1e-5)


def test_splitting_an_interval_changes_nothing() -> None:
    samples, sigmas, rgbs = random_samples(COUNTS)
    # Cut each sample at a random place; both parts keep its density and colour.
    cut = samples.t_starts + rand(len(sigmas), seed=9) * (samples.t_ends - samples.t_starts)
    halves = Samples(
        torch.stack([samples.t_starts, cut], 1).flatten(),
        torch.stack([cut, samples.t_ends], 1).flatten(),
        samples.ray_indices.repeat_interleave(2),
        samples.packed_info * 2,
    )
    out = composite(samples, sigmas, rgbs, len(COUNTS))
    split = composite(halves, sigmas.repeat_interleave(2), rgbs.repeat_interleave(2, 0), len(COUNTS))
    for key in ("foregrounds", "opacities", "second_moments"):
        torch.testing.assert_close(split[key], out[key], **F64)
    torch.testing.assert_close(split["weights"].view(-1, 2).sum(1), out["weights"], **F64)


def test_occluded_samples_change_nothing() -> None:
    samples, sigmas, rgbs = random_samples([6, 6])
    sigmas[2] = 1e4  # optical depth > 500: exp of it is 0 even in float64's last digits
    sigmas.requires_grad_()
    keys = ("foregrounds", "opacities", "depths", "second_moments", "distortions", "median_depths")
    before = composite(samples, sigmas, rgbs, 2)
    grads = torch.autograd.grad(sum(before[key].sum() for key in keys), sigmas)[0]
    assert (grads[3:6].abs() < 1e-100).all()
    with torch.no_grad():
        sigmas[3:6] *= 7
    rgbs[3:6] = 0.5
    after = composite(samples, sigmas, rgbs, 2)
    for key in keys:
        torch.testing.assert_close(after[key], before[key], **F64)


def test_stopped_samples_have_no_gradient() -> None:
    samples, sigmas, rgbs = random_samples([8])
    leaves = (sigmas.requires_grad_(), rgbs.requires_grad_())
    out = composite(samples, sigmas, rgbs, 1, stop_threshold=0.5)
    hidden = out["trans"] < 0.5
    assert 0 < hidden.sum() < 8
    assert (out["weights"][hidden] == 0).all()
    total = sum(out[key].sum() for key in ("foregrounds", "opacities", "depths", "second_moments", "distortions"))
    for grad in torch.autograd.grad(total, leaves):
        assert (grad[hidden] == 0).all() and (grad[~hidden] != 0).any()


def test_composite_of_nothing() -> None:
    samples, sigmas, rgbs = random_samples([0, 0])
    out = composite(samples, sigmas, rgbs, 2)
    for key, value in out.items():
        assert value.shape[0] == (0 if key in ("weights", "trans") else 2)
        assert (value == 0).all()


def test_composite_of_many_in_float32() -> None:
    # 10^5 samples, one ray with 1000 of them and a few with none, huge densities among them: float32 follows float64.
    g = np.random.default_rng(0)
    counts = [1000, 0, *g.integers(0, 60, 3300).tolist()]
    s = sum(counts)
    assert s > 90_000
    ray = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    firsts = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
    place = torch.arange(s) - firsts[ray]
    starts = (2 + place * 0.005).float()
    samples = Samples(starts, starts + 0.005, ray, torch.stack([firsts, torch.tensor(counts)], 1))
    sigmas = (10 ** (6 * rand(s) - 3)).float()
    rgbs = rand(s, 3, seed=1).float()
    out = composite(samples, sigmas, rgbs, len(counts))
    exact = composite(samples, sigmas.double(), rgbs.double(), len(counts))
    for key in out:
        if key != "median_depths":
            torch.testing.assert_close(out[key].double(), exact[key], **F32)
    # Where the opacity passes 1/2 within rounding the median may be a neighbour's.
    assert ((out["median_depths"] - exact["median_depths"]).abs() > 1e-5).float().mean() < 1e-3


def test_a_bad_ray_spoils_no_other() -> None:
    samples, sigmas, rgbs = random_samples([4, 4, 4])
    good = composite(samples, sigmas, rgbs, 3)["foregrounds"]
    sigmas[5] = math.nan
    out = composite(samples, sigmas, rgbs, 3)["foregrounds"]
    assert out[1].isnan().all()
    assert torch.equal(out[[0, 2]], good[[0, 2]])


def test_non_contiguous_inputs() -> None:
    samples, sigmas, rgbs = random_samples([4, 4])
    wide = torch.stack([sigmas, sigmas], dim=1)[:, 0]
    turned = rgbs.t().contiguous().t()
    assert not wide.is_contiguous() and not turned.is_contiguous()
    expected = composite(samples, sigmas, rgbs, 2)
    for key, value in composite(samples, wide, turned, 2).items():
        assert torch.equal(value, expected[key])


def render_rays(o, d, v, near, far, jitter, occupied, params, config, **settings) -> dict:  # type: ignore[no-untyped-def]
    view = FieldView(params, config)
    return reference.render_rays(Rays(o, d, v, near, far, jitter), occupied, view, MarchSettings(**settings))._asdict()


# --- render_rays -----------------------------------------------------------------------------------------------------


def scene_rays(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    origins = unit_vectors(n) * 3
    directions = torch.nn.functional.normalize((rand(n, 3, seed=1) - 0.5) - origins, dim=1)
    t_near, t_far = reference.ray_box(origins, directions, 1.0)
    return origins, directions, t_near, t_far


def test_render_of_a_constant_density() -> None:
    # An all-zero table gives h = 0: density exp(bias) everywhere in the box, colour a function of direction alone.
    params, config = small_field()
    params.table.zero_()
    n, step = 5, 0.01
    origins, directions, t_near, t_far = scene_rays(n)
    occupied = torch.ones(1, 8, 8, 8, dtype=torch.bool)
    out = render_rays(
        origins, directions, directions, t_near, t_far, torch.zeros(n), occupied, params, config, step_size=step
    )
    counts = torch.ceil((t_far - t_near) / step - 0.5)  # middles before the exit
    opacity = 1 - torch.exp(-math.exp(-0.5) * step * counts)
    # t comes in float32: lengths of 0.01 at t = 4 are known to 2.4e-7/0.01.
    torch.testing.assert_close(out["opacities"], opacity, rtol=1e-4, atol=0)
    h = torch.zeros(n, 16, dtype=torch.float64)
    rgb = torch.sigmoid(reference.mlp(torch.cat([reference.sh_encode(directions, 4), h], 1), params.color_weights))
    torch.testing.assert_close(out["foregrounds"], opacity[:, None] * rgb, rtol=1e-4, atol=0)


@pytest.mark.parametrize("contracted", [False, True])
def test_render_gradients(contracted: bool) -> None:
    params, config = small_field(contracted)
    n = 3
    origins, directions, t_near, t_far = scene_rays(n)
    # Every cell is occupied and the ends lie inside the box, so that no finite step changes which samples there are.
    occupied = torch.ones(1, 8, 8, 8, dtype=torch.bool)
    leaves = [origins, directions, directions.clone(), params.table, *params.density_weights, *params.color_weights]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    keys = ("foregrounds", "opacities", "depths", "second_moments", "distortions")

    def render(o: Tensor, d: Tensor, v: Tensor, table: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        moving = FieldParams(table, list(weights[:2]), list(weights[2:]))
        out = render_rays(
            o, d, v, t_near + 0.1, t_far - 0.1, torch.full((n,), 0.3), occupied, moving, config, step_size=0.31
        )
        return tuple(out[key] for key in keys)

    assert all(value.requires_grad for value in render(*leaves))
    assert gradcheck(render, leaves, fast_mode=True)


def test_render_stops_as_composite_does() -> None:
    params, config = small_field()
    n, threshold = 20, 0.2
    origins, directions, t_near, t_far = scene_rays(n)
    occupied = torch.rand(1, 8, 8, 8, generator=rng()) < 0.7
    params.table.requires_grad_()
    config = FieldConfig(config.layout, False, density_bias=2.0)
    kwargs = {"step_size": 0.05}
    args = (origins, directions, directions, t_near, t_far, torch.zeros(n), occupied, params, config)
    out = render_rays(*args, **kwargs, stop_threshold=threshold)
    single = (x.float() for x in (origins, directions, t_near, t_far))
    samples = reference.march(*single, torch.zeros(n), occupied, 0.05)
    mids = (samples.t_starts.double() + samples.t_ends.double()) / 2
    positions = origins[samples.ray_indices] + mids[:, None] * directions[samples.ray_indices]
    fields = reference.radiance_field(positions, directions[samples.ray_indices], params, config)
    expected = composite(samples, *fields, n, threshold)
    assert 0 < (expected["weights"] == 0).sum() < len(mids)
    for key in expected:
        torch.testing.assert_close(out[key], expected[key], **F64)
    grads = [torch.autograd.grad(o["foregrounds"].square().sum(), params.table)[0] for o in (out, expected)]
    torch.testing.assert_close(grads[0], grads[1], **F64)
    assert out["evaluated"] == len(mids)
    assert out["kept"] == (expected["weights"] > 0).sum()

    # Thin samples taken out are as samples without density; half of them are thinner than the median.
    sigmas, rgbs = (value.detach() for value in fields)
    alphas = 1 - torch.exp(-sigmas * (samples.t_ends.double() - samples.t_starts.double()))
    thin = alphas.median().item() + 1e-9
    out = render_rays(*args, **kwargs, stop_threshold=threshold, alpha_threshold=thin)
    expected = composite(samples, torch.where(alphas < thin, 0.0, sigmas), rgbs, n, threshold)
    for key in expected:
        torch.testing.assert_close(out[key], expected[key], **F64)
    assert out["kept"] < len(mids) / 2


def test_render_without_samples() -> None:
    params, config = small_field(dtype=torch.float32)
    params.table.requires_grad_()
    empty = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    for n in (0, 4):
        origins, directions, t_near, t_far = (x.float() for x in scene_rays(n))
        out = render_rays(
            origins,
            directions,
            directions,
            t_near,
            t_far,
            torch.zeros(n),
            empty,
            params,
            config,
            step_size=0.01,
            stop_threshold=1e-4,
        )
        assert out["foregrounds"].shape == (n, 3) and (out["foregrounds"] == 0).all() and (out["opacities"] == 0).all()
        out["foregrounds"].sum().backward()  # no samples, no gradient, no error


# --- optimiser -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [False, True])
def test_adam_equals_torch(skip: bool) -> None:
    g = rng()
    start = torch.randn(6, 4, generator=g, dtype=torch.float64)
    param, m, v = start.clone(), torch.zeros(6, 4).double(), torch.zeros(6, 4).double()
    twin = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([twin], lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
    for step in range(1, 11):
        grad = torch.randn(6, 4, generator=g, dtype=torch.float64)  # no row is all zero: skipping changes nothing
        grad[2, 1:] = 0.0
        twin.grad = grad.clone()
        optimiser.step()
        reference.adam_step(param, grad, m, v, 1e-2, 0.9, 0.99, 1e-15, step, skip)
    torch.testing.assert_close(param, twin.detach(), **F64)


def test_adam_leaves_zero_rows_alone() -> None:
    param, m, v = (rand(5, 2, seed=s) for s in range(3))
    before = [x.clone() for x in (param, m, v)]
    grad = torch.zeros(5, 2, dtype=torch.float64)
    grad[1, 1] = 2.0
    reference.adam_step(param, grad, m, v, 0.1, 0.9, 0.99, 1e-15, 3, skip_zero_rows=True)
    for now, was in zip((param, m, v), before, strict=True):
        assert torch.equal(now[[0, 2, 3, 4]], was[[0, 2, 3, 4]])
        assert (now[1] != was[1]).all()
    # By hand for the touched row: step 3 corrects by 1 - 0.9^3 and 1 - 0.99^3, whatever the row has seen.
    m1 = 0.9 * before[1][1] + 0.1 * grad[1]
    v1 = 0.99 * before[2][1] + 0.01 * grad[1] ** 2
    expected = before[0][1] - 0.1 * (m1 / (1 - 0.9**3)) / ((v1 / (1 - 0.99**3)).sqrt() + 1e-15)
    torch.testing.assert_close(param[1], expected, **F64)


def test_adam_first_step_has_length_lr() -> None:
    param, m, v = (torch.zeros(3, 2) for _ in range(3))
    reference.adam_step(param, torch.tensor([[1e-6, -5.0]] * 3), m, v, 0.01, 0.9, 0.99, 1e-15, 1)
    torch.testing.assert_close(param, torch.tensor([[-0.01, 0.01]] * 3))


# --- errors name the argument ----------------------------------------------------------------------------------------


def test_wrong_shapes_raise() -> None:
    params, config = small_field()
    layout = config.layout
    samples, sigmas, rgbs = random_samples([2, 2])
    x = rand(4, 3)
    calls = {
        "positions": lambda: reference.hashgrid_encode(x[:, :2], params.table, layout),
        "table": lambda: reference.hashgrid_encode(x, params.table[1:], layout),
        "directions": lambda: reference.sh_encode(x[:, :2], 4),
        "degree": lambda: reference.sh_encode(x, 5),
        "weights": lambda: reference.mlp(x, []),
        r"weights\[1\]": lambda: reference.mlp(x, [torch.zeros(8, 3), torch.zeros(3, 7)]),
        r"directions: expected shape \[4, 3\]": lambda: reference.radiance_field(x, x[:2], params, config),
        "rays_d": lambda: reference.ray_box(x, x[:2], 1.0),
        "sigmas": lambda: composite(samples, sigmas[:2], rgbs, 2),
        "rgbs": lambda: composite(samples, sigmas, rgbs[:, :2], 2),
        "packed_info": lambda: composite(samples, sigmas, rgbs, 3),
        "grad": lambda: reference.adam_step(x, x[:2], x, x, 0.1, 0.9, 0.99, 1e-15, 1),
        "step": lambda: reference.adam_step(x, x, x, x, 0.1, 0.9, 0.99, 1e-15, 0),
        "param": lambda: reference.adam_step(x[0], x[0], x[0], x[0], 0.1, 0.9, 0.99, 1e-15, 1, True),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=name):
            call()
    with pytest.raises(TypeError, match="positions: expected a float dtype"):
        reference.hashgrid_encode(torch.zeros(4, 3, dtype=torch.int64), params.table, layout)
    with pytest.raises(TypeError, match="ray_index"):
        reference.ray_jitter(0, 0, torch.zeros(3))
