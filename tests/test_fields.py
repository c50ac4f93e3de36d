"""RadianceField: its numbers at the start, its shapes, and that it means what the reference says on every backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny import FIELD, cast, uniform, unit_vectors

from nerf import kernels
from nerf.fields.radiance import FieldOptions, RadianceField
from nerf.kernels import reference


@pytest.fixture(params=["auto", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.backend()
    yield kernels.use(request.param)
    kernels.use(before)


@pytest.mark.parametrize("contracted", [False, True])
def test_field_is_the_reference_equation(backend: str, contracted: bool) -> None:
    field = RadianceField(FIELD, contracted, seed=1)
    with torch.no_grad():
        field.table.mul_(1e4)  # as if trained: features of order 1
    positions, directions = uniform(300, 3, low=-1), unit_vectors(300)
    if contracted:
        positions *= 10
    with torch.no_grad():
        sigmas, rgbs = field(positions, directions)
        assert torch.equal(field.density(positions), sigmas)
    params = cast(field.params(), torch.float64)
    expected = reference.radiance_field(positions.double(), directions.double(), params, field.config)
    # float32 logits of order 10 carry errors of some 1e-6, which exp makes relative.
    torch.testing.assert_close(sigmas.double(), expected[0].detach(), rtol=1e-4, atol=0)
    torch.testing.assert_close(rgbs.double(), expected[1].detach(), rtol=0, atol=1e-5)
    assert not sigmas.requires_grad and not rgbs.requires_grad


def test_field_of_no_points(backend: str) -> None:
    field = RadianceField(FIELD)
    sigmas, rgbs = field(torch.zeros(0, 3), torch.zeros(0, 3))
    assert sigmas.shape == (0,) and rgbs.shape == (0, 3) and field.density(torch.zeros(0, 3)).shape == (0,)


def test_a_new_field_is_fog_of_the_bias(backend: str) -> None:
    # The table starts at +-1e-4, so the density starts at exp(bias) everywhere and colours near grey.
    for bias in (-1.0, 3.0):
        field = RadianceField(replace(FIELD, density_bias=bias))
        with torch.no_grad():
            sigmas, rgbs = field(uniform(200, 3, low=-1), unit_vectors(200))
        torch.testing.assert_close(sigmas, torch.full((200,), bias).exp(), rtol=5e-3, atol=0)
        assert 0.2 < float(rgbs.min()) and float(rgbs.max()) < 0.8


def test_the_same_seed_is_the_same_field() -> None:
    one, same, other = RadianceField(FIELD, seed=3), RadianceField(FIELD, seed=3), RadianceField(FIELD, seed=4)
    for a, b in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_sizes_follow_the_options() -> None:
    options = FieldOptions(n_levels=8, n_features_per_level=2, width=32, n_density_layers=3, n_color_layers=2)
    field = RadianceField(options)
    layout = field.config.layout
    assert field.table.shape == (layout.n_rows, 2)
    assert [tuple(w.shape) for w in field.density_weights] == [(32, 16), (32, 32), (16, 32)]
    assert [tuple(w.shape) for w in field.color_weights] == [(32, 32), (3, 32)]
    assert float(field.table.detach().abs().max()) <= 1e-4
    assert all(p.requires_grad for p in field.parameters())


@pytest.mark.parametrize(("n_levels", "base", "finest"), [(8, 16, 1024), (8, 16, 2048), (4, 8, 64), (1, 16, 16)])
def test_levels_grow_from_the_base_to_the_finest(n_levels: int, base: int, finest: int) -> None:
    layout = FieldOptions(n_levels=n_levels, base_resolution=base, finest_resolution=finest).layout()
    assert layout.resolutions[0] == base
    assert abs(layout.resolutions[-1] - finest) <= 1  # a growth factor cannot be more exact than that
    assert list(layout.resolutions) == sorted(layout.resolutions)


def test_options_go_into_a_dict_and_back() -> None:
    field = RadianceField(replace(FIELD, width=48), contracted=True)
    saved = field.to_dict()
    contracted = saved.pop("contracted")
    again = RadianceField(FieldOptions(**saved), contracted)
    assert again.options == field.options and again.config == field.config


def test_a_half_precision_table_is_read_where_there_is_one() -> None:
    field = RadianceField(FIELD)
    with torch.no_grad():
        field.table.mul_(1e4)
    points = uniform(200, 3, low=-1)
    with torch.no_grad():
        exact = field.density(points)
    field.table_half = field.table.detach().half()
    # 2^-11 of features of order 1, through a network and an exponential.
    with torch.no_grad():
        torch.testing.assert_close(field.density(points), exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize("contracted", [False, True])
def test_field_is_differentiable_as_the_reference_is(backend: str, contracted: bool) -> None:
    field = RadianceField(FIELD, contracted, seed=2)
    with torch.no_grad():
        field.table.mul_(1e4)
    where = [uniform(200, 3, low=-1).requires_grad_(), unit_vectors(200).requires_grad_()]
    to_all = [*where, *field.parameters()]
    weights = uniform(200, 4, seed=5)

    def gradients(sigmas: torch.Tensor, rgbs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((torch.cat([sigmas[:, None], rgbs], dim=1) * weights).sum(), to_all)

    found = gradients(*field(*where))
    expected = gradients(*reference.radiance_field(*where, field.params(), field.config))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_checkpoints_name_the_parameters_as_ever(backend: str) -> None:
    field, other = RadianceField(FIELD, seed=1), RadianceField(FIELD, seed=2)
    state = field.state_dict()
    n_density, n_color = FIELD.n_density_layers, FIELD.n_color_layers
    names = [f"density_weights.{i}" for i in range(n_density)] + [f"color_weights.{i}" for i in range(n_color)]
    assert list(state) == ["table", *names]
    other.load_state_dict(state)
    for a, b in zip(field.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
