"""The native kernels against the reference in float64: backends by name, hash grid, field.

Both read the same float32 numbers; the reference then computes in float64, so what differs is the native rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from native import (
    F32,
    close,
    in_a_process,
    native,
    render,
    render_reference,
    strided,
)
from tiny import SETTINGS, cast, ray_batch, small_field, uniform, unit_vectors
from torch import Tensor

from nerf import kernels
from nerf.cli import train
from nerf.errors import UserError
from nerf.kernels import (
    FieldParams,
    FieldView,
    GridLayout,
    bindings,
    build,
    cpu,
    reference,
)


def test_backends_by_name(backend: Callable[[str], str]) -> None:
    assert backend("reference") == kernels.backend() == "reference"
    assert backend("auto") == ("cpu" if bindings.load().handle else "reference")
    with pytest.raises(UserError, match="'gpu' is unknown, expected one of"):
        backend("gpu")


def test_describe_names_what_is_there() -> None:
    facts = kernels.describe()
    assert facts["backend"] in ("cpu", "reference")
    assert facts["threads"] == torch.get_num_threads()
    if facts["backend"] == "cpu":
        assert facts["variant"] in ("baseline", "avx2", "avx512", "neon") and facts["lanes"] in (4, 8, 16)
    else:
        assert facts["reason"]


@native
def test_a_stale_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "source_hash", lambda: "0" * 16)
    stale = bindings.load.__wrapped__()
    assert stale.handle is None and "was built from other sources" in stale.reason


@native
def test_a_library_with_other_structs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(ctypes.Structure):
        _fields_ = [("desc", bindings.AdamDesc), ("more", ctypes.c_int)]

    native = bindings.native()
    assert [native.nerf_sizeof(i) for i in range(len(bindings.STRUCTS))] == [ctypes.sizeof(s) for s in bindings.STRUCTS]
    assert native.nerf_sizeof(len(bindings.STRUCTS)) == native.nerf_sizeof(-1) == -1
    monkeypatch.setattr(bindings, "STRUCTS", (*bindings.STRUCTS[:4], Longer, *bindings.STRUCTS[5:]))
    found = bindings.load.__wrapped__()
    assert found.handle is None and "lays out Longer in another way than Python declares" in found.reason


def test_no_library_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backend: Callable[[str], str]
) -> None:
    monkeypatch.setattr(bindings, "load", lambda: bindings.Library(None, reason="nothing was built"))
    with pytest.raises(UserError, match=r"nothing was built.*reinstall with a C\+\+ compiler"):
        backend("cpu")
    assert backend("auto") == "reference"
    assert "slow reference kernels, because nothing was built" in capsys.readouterr().err
    monkeypatch.undo()


def grid(n_dims: int, features: int, n_levels: int = 4, log2_size: int = 9) -> GridLayout:
    return GridLayout(n_dims, n_levels, features, log2_size, 4, 1.7)


def off_walls(positions: Tensor, layout: GridLayout) -> Tensor:
    """Those positions that are not within 1e-3 of a cell wall on any level: there the gradient in x jumps."""
    keep = torch.ones(len(positions), dtype=torch.bool)
    for scale in layout.scales:
        place = positions.double() * scale + 0.5
        keep &= ((place - place.round()).abs() > 1e-3).all(dim=1)
    return positions[keep]


@native
@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("n_dims", [1, 2, 3, 4])
def test_hashgrid_values_and_gradients(n_dims: int, features: int) -> None:
    layout = grid(n_dims, features)
    assert n_dims < 3 or len(set(layout.dense)) == 2  # dense and hashed levels both
    x = off_walls(uniform(300, n_dims, seed=1), layout)
    table = uniform(layout.n_rows, features, seed=2, low=-1)
    out_grad = uniform(len(x), layout.n_features, seed=3, low=-1)
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for op, dtype, results in ((cpu, torch.float32, found), (reference, torch.float64, expected)):
        a, b = x.to(dtype).requires_grad_(), table.to(dtype).requires_grad_()
        out = op.hashgrid_encode(a, b, layout)
        results += [out.detach(), *torch.autograd.grad(out, (b, a), out_grad.to(dtype))]
    # Corners' weights carry the rounding of x*scale, up to 20 * 6e-8 here; position gradients are times the scale.
    close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    close(found[1], expected[1], rtol=1e-5, atol=1e-5)
    close(found[2], expected[2], rtol=1e-4, atol=1e-3)


@native
@pytest.mark.parametrize("n_dims", [1, 2, 3, 4])
def test_hashgrid_at_the_ends_of_the_unit_interval(n_dims: int) -> None:
    layout = grid(n_dims, 2)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * n_dims).reshape(-1, n_dims)
    table = uniform(layout.n_rows, 2, seed=2, low=-1)
    expected = reference.hashgrid_encode(corners.double(), table.double(), layout)
    close(cpu.hashgrid_encode(corners, table, layout), expected, **F32)


@native
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 100_000])
def test_hashgrid_of_any_number_of_positions(n: int) -> None:
    layout = grid(3, 4)
    x, table = uniform(n, 3, seed=4).requires_grad_(), uniform(layout.n_rows, 4, seed=5).requires_grad_()
    out = cpu.hashgrid_encode(x, table, layout)
    grad_table, grad_x = torch.autograd.grad(out.sum(), (table, x))
    assert out.shape == (n, 16) and grad_x.shape == (n, 3)
    expected = reference.hashgrid_encode(x.detach().double(), table.detach().double(), layout)
    close(out, expected, rtol=1e-5, atol=1e-5)
    # Every corner's weights sum to one on every level, so the gradient of the sum counts the positions. The sums of up
    # to 1e5 terms in one row are rounded at 6e-8 of their size each time: a drift of 1e-4 at most.
    assert float(grad_table.double().sum()) == pytest.approx(16 * n, rel=1e-4)


@native
def test_hashgrid_of_strided_tensors() -> None:
    layout = grid(3, 4)
    x, table, weights = uniform(50, 3, seed=4), uniform(layout.n_rows, 4, seed=5), uniform(50, 16, seed=6)
    results = []
    for make in (torch.clone, strided, lambda t: t.t().contiguous().t()):
        a, b = make(x).requires_grad_(), make(table).requires_grad_()
        out = cpu.hashgrid_encode(a, b, layout)
        results.append([out, *torch.autograd.grad(out, (a, b), make(weights))])
    for other in results[1:]:
        for mine, plain in zip(other, results[0], strict=True):
            assert torch.equal(mine, plain)


@native
def test_hashgrid_outside_the_unit_cube_does_not_crash() -> None:
    done = in_a_process(
        "import torch\n"
        "from nerf.kernels import GridLayout, cpu\n"
        "for d in (1, 2, 3, 4):\n"
        "    layout = GridLayout(d, 4, 4, 9, 4, 1.7)\n"
        "    table = torch.rand(layout.n_rows, 4).requires_grad_()\n"
        "    for value in (-1e-3, -0.1, -1.0, 1.001, 1.1, 2.0, -1e30, 1e30, float('inf'), float('nan')):\n"
        "        x = torch.full((20, d), value).requires_grad_()\n"
        "        print(d, value, flush=True)\n"
        "        cpu.hashgrid_encode(x, table, layout).sum().backward()\n"
    )
    assert done.returncode == 0, f"exit {done.returncode} after {done.stdout.splitlines()[-1]}: {done.stderr[-500:]}"


@native
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"positions": torch.zeros(5, 2)}, ValueError, r"positions: expected shape \[n, 3\], got \[5, 2\]"),
        ({"positions": torch.zeros(3)}, ValueError, "positions"),
        ({"positions": torch.zeros(5, 3, dtype=torch.float64)}, TypeError, "positions: expected .*float64"),
        ({"positions": torch.zeros(5, 3, dtype=torch.int64)}, TypeError, "positions"),
        ({"table": torch.zeros(7, 4)}, ValueError, "table: expected shape"),
        ({"table": torch.zeros(7, 4).half()}, TypeError, "table"),
        ({"positions": torch.zeros(5, 3, device="meta")}, TypeError, "positions.*meta"),
    ],
)
def test_hashgrid_names_the_argument_that_is_wrong(
    change: dict[str, Tensor], error: type[Exception], words: str
) -> None:
    layout = grid(3, 4)
    good = {"positions": torch.zeros(5, 3), "table": torch.zeros(layout.n_rows, 4)}
    cpu.hashgrid_encode(**good, layout=layout)
    with pytest.raises(error, match=words):
        cpu.hashgrid_encode(**{**good, **change}, layout=layout)


@native
def test_hashgrid_refuses_what_is_not_compiled() -> None:
    layout = grid(3, 3)
    with pytest.raises(ValueError, match="layout: 3 features per level are not compiled"):
        cpu.hashgrid_encode(torch.zeros(5, 3), torch.zeros(layout.n_rows, 3), layout)
    deep = GridLayout(3, 30, 2, 4, 4, 1.1)
    with pytest.raises(ValueError, match="level"):
        cpu.hashgrid_encode(torch.zeros(5, 3), torch.zeros(deep.n_rows, 2), deep)


def test_the_door_serves_every_layout_and_type() -> None:
    for layout in (grid(3, 3), grid(2, 2), GridLayout(3, 30, 2, 4, 4, 1.1)):
        x, table = uniform(10, layout.n_dims), uniform(layout.n_rows, layout.n_features_per_level)
        expected = reference.hashgrid_encode(x.double(), table.double(), layout)
        close(kernels.hashgrid_encode(x, table, layout), expected, **F32)
        close(kernels.hashgrid_encode(x.double(), table.double(), layout), expected, rtol=0, atol=0)


@native
def test_hashgrid_refuses_a_second_derivative() -> None:
    # A gradient that silently lacks terms would be worse than none.
    layout = grid(2, 2)
    x, table = uniform(10, 2).requires_grad_(), uniform(layout.n_rows, 2).requires_grad_()
    (grad,) = torch.autograd.grad(cpu.hashgrid_encode(x, table, layout).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


FIELDS: dict[str, dict[str, Any]] = {
    "4 features": {},
    "2 features, narrow": {"features": 2, "width": 16},
    "wide": {"width": 128},
    "one layer each": {"width": 16, "layers": (1, 1)},
    "four layers each": {"layers": (4, 4)},
}


@native
@pytest.mark.parametrize("contracted", [False, True])
@pytest.mark.parametrize("shape", FIELDS)
def test_field_values(shape: str, contracted: bool) -> None:
    params, config = small_field(3, contracted, **FIELDS[shape])
    positions = uniform(500, 3, seed=1, low=-1)
    if contracted:
        positions *= torch.logspace(-2, 6, 500)[:, None]
    directions = unit_vectors(500, seed=2)
    sigmas, rgbs = cpu.field_forward(positions, directions, FieldView(params, config))
    wide = cast(params, torch.float64)
    expected = reference.radiance_field(positions.double(), directions.double(), wide, config)
    assert rgbs is not None
    # sigma = exp(h): the rounding of h, about 1e-6 of its terms' size, is relative in sigma.
    close(sigmas, expected[0], rtol=2e-4, atol=0)
    close(rgbs, expected[1], rtol=0, atol=1e-5)
    alone, nothing = cpu.field_forward(positions, None, FieldView(params, config))
    assert nothing is None and torch.equal(alone, sigmas)


@native
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 100_000])
def test_field_of_any_number_of_points(n: int) -> None:
    params, config = small_field(3)
    positions, directions = uniform(n, 3, seed=1, low=-1), unit_vectors(max(n, 1), seed=2)[:n]
    sigmas, rgbs = cpu.field_forward(positions, directions, FieldView(params, config))
    assert rgbs is not None and sigmas.shape == (n,) and rgbs.shape == (n, 3)
    some = torch.arange(0, n, max(1, n // 500))
    wide = cast(params, torch.float64)
    expected = reference.radiance_field(positions[some].double(), directions[some].double(), wide, config)
    close(sigmas[some], expected[0], rtol=2e-4, atol=0)
    close(rgbs[some], expected[1], rtol=0, atol=1e-5)


@native
def test_field_of_strided_tensors() -> None:
    params, config = small_field(3)
    positions, directions = uniform(200, 3, seed=1, low=-1), unit_vectors(200, seed=2)
    plain = cpu.field_forward(positions, directions, FieldView(params, config))
    turned = [w.t().contiguous().t() for w in params.color_weights]
    other = FieldParams(strided(params.table), [strided(w) for w in params.density_weights], turned)
    found = cpu.field_forward(strided(positions), directions.t().contiguous().t(), FieldView(other, config))
    assert plain[1] is not None and found[1] is not None
    assert torch.equal(found[0], plain[0]) and torch.equal(found[1], plain[1])


@native
def test_field_beyond_its_box_and_at_no_number_does_not_crash() -> None:
    done = in_a_process(
        "import torch\n"
        "from nerf.kernels import FieldView, cpu\n"
        "from tiny import small_field\n"
        "for contracted in (False, True):\n"
        "    params, config = small_field(3, contracted)\n"
        "    for value in (-1.5, 1.0001, -1e30, 1e38, float('inf'), -float('inf'), float('nan')):\n"
        "        print(contracted, value, flush=True)\n"
        "        points = torch.full((100, 3), value)\n"
        "        cpu.field_forward(points, points, FieldView(params, config))\n"
    )
    assert done.returncode == 0, f"exit {done.returncode} after {done.stdout.splitlines()[-1]}: {done.stderr[-500:]}"


@native
def test_density_saturates_instead_of_overflowing() -> None:
    params, config = small_field(3, bias=1000.0)
    sigmas, _ = cpu.field_forward(uniform(10, 3), None, FieldView(params, config))
    close(sigmas, torch.full((10,), 15.0, dtype=torch.float64).exp(), rtol=1e-6, atol=0)
    sigmas, _ = cpu.field_forward(uniform(10, 3), None, FieldView(params, replace(config, density_bias=-1000.0)))
    assert bool((sigmas == 0).all())


@native
@pytest.mark.parametrize(
    "place", ["table", "density_weights 0", "density_weights 1", "color_weights 0", "color_weights 2"]
)
def test_no_number_in_the_field_is_no_number_in_its_results(place: str) -> None:
    # A field that broke must be seen to be broken: ReLU, clamps and exp pass NaN on, here as in the reference.
    params, config = small_field(3)
    name, _, layer = place.partition(" ")
    (params.table if name == "table" else getattr(params, name)[int(layer)]).fill_(float("nan"))
    positions, directions = uniform(100, 3, seed=1, low=-1), unit_vectors(100, seed=2)
    expected = reference.radiance_field(positions, directions, params, config)
    found = cpu.field_forward(positions, directions, FieldView(params, config))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine is not None and torch.equal(mine.isnan(), theirs.isnan())
    batch = ray_batch(50, 16)
    broken = render_reference(batch, params, config, SETTINGS)["foregrounds"].isnan()
    assert bool(broken.any())
    assert torch.equal(render(batch, params, config, SETTINGS)["foregrounds"].isnan(), broken)


@native
def test_mixed_precision_within_its_rounding() -> None:
    params, config = small_field(3)
    half = params.table.half()
    positions, directions = uniform(300, 3, seed=1, low=-1), unit_vectors(300, seed=2)
    found = cpu.field_forward(positions, directions, FieldView(params, config, half))
    # The table moves by 2^-12 of its size, what products read by 2^-9; the network passes on a few times that.
    plain = cpu.field_forward(positions, directions, FieldView(params, config))
    assert plain[1] is not None and found[1] is not None
    close(found[0], plain[0], rtol=2e-2, atol=0)
    close(found[1], plain[1], rtol=0, atol=5e-3)


@native
@pytest.mark.parametrize(
    ("argument", "value", "error", "words"),
    [
        ("positions", torch.zeros(5, 2), ValueError, "positions"),
        ("positions", torch.zeros(5, 3).double(), TypeError, "positions"),
        ("directions", torch.zeros(4, 3), ValueError, "directions"),
        ("directions", torch.zeros(5, 3).half(), TypeError, "directions"),
        ("table", torch.zeros(7, 4), ValueError, "table"),
        ("table_half", torch.zeros(7, 4).half(), ValueError, "table_half"),
        ("table_half", "float", TypeError, "table_half"),
        ("density_weights", 0, ValueError, r"density_weights\[0\]"),
        ("density_weights", 1, ValueError, r"density_weights\[1\]"),
        ("color_weights", 2, ValueError, r"color_weights\[2\]"),
        ("layers", 5, ValueError, "color_weights"),
        ("layout", GridLayout(3, 4, 8, 9, 4, 1.7), ValueError, "layout"),
        ("layout", GridLayout(2, 4, 4, 9, 4, 1.7), ValueError, "layout"),
        ("layout", GridLayout(3, 3, 4, 9, 4, 1.7), ValueError, "layout"),
        ("layout", GridLayout(3, 32, 4, 4, 4, 1.1), ValueError, "layout"),
    ],
)
def test_field_names_the_argument_that_is_wrong(
    argument: str, value: object, error: type[Exception], words: str
) -> None:
    params, config = small_field(3)
    positions, directions, half = torch.zeros(5, 3), torch.zeros(5, 3), params.table.half()
    cpu.field_forward(positions, directions, FieldView(params, config, half))
    if argument == "positions":
        assert isinstance(value, Tensor)
        positions = value
    elif argument == "directions":
        assert isinstance(value, Tensor)
        directions = value
    elif argument == "table":
        assert isinstance(value, Tensor)
        params = replace(params, table=value)
    elif argument == "table_half":
        half = params.table if value == "float" else value  # type: ignore[assignment]
    elif argument == "layers":
        params = small_field(3, layers=(2, 5))[0]
    elif argument == "layout":
        assert isinstance(value, GridLayout)
        config = replace(config, layout=value)
        params = replace(params, table=torch.zeros(value.n_rows, value.n_features_per_level))
        params.density_weights[0] = torch.zeros(32, value.n_features)
        half = params.table.half()
    else:
        assert isinstance(value, int)
        getattr(params, argument)[value] = torch.zeros(16, 48)
    with pytest.raises(error, match=words):
        cpu.field_forward(positions, directions, FieldView(params, config, half))


def test_the_command_line_offers_every_backend() -> None:
    assert set(get_args(train.Backend)) == {"auto", *kernels.BACKENDS}


@native
def test_a_backend_for_a_while(backend: Callable[[str], str]) -> None:
    backend("cpu")
    with kernels.using("reference", deterministic=True) as name:
        assert name == kernels.backend() == "reference" and kernels.cuda.deterministic
    assert kernels.backend() == "cpu" and not kernels.cuda.deterministic
    with pytest.raises(UserError, match="unknown"), kernels.using("abacus"):
        pass
    assert kernels.backend() == "cpu"
