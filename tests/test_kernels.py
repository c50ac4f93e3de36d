"""The native kernels against the reference in float64: values, gradients, edges, errors, and the laws of sameness.

Both read the same float32 numbers; the reference then computes in float64, so what differs is the native rounding.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SETTINGS, RayBatch, cast, flat, ray_batch, small_field, uniform, unit_vectors
from torch import Tensor

from nerf import kernels
from nerf.errors import UserError
from nerf.kernels import (
    FieldConfig,
    FieldParams,
    FieldView,
    GradAccumulator,
    GridLayout,
    MarchSettings,
    Samples,
    bindings,
    build,
    cpu,
    reference,
)

ROOT = Path(__file__).resolve().parent.parent
native = pytest.mark.skipif(bindings.load().handle is None, reason=f"no native library: {bindings.load().reason}")

# Sums of at most a few hundred float32 products of order 1, each rounded to 6e-8 of itself.
F32 = {"rtol": 2e-5, "atol": 2e-6}
# Per-ray sums behind exponentials of float32 logits: the logit's rounding of some 1e-6 comes back multiplied.
RENDER = {"rtol": 1e-4, "atol": 2e-5}
# Gradients are judged by norm: single entries are differences of large terms.
GRADIENT = 2e-4


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, of the whole tensors, in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12))


def close(found: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


def strided(t: Tensor) -> Tensor:
    """The same numbers, laid out with gaps between rows and columns."""
    wide = t.new_zeros(*(2 * s + 1 for s in t.shape))
    view = wide[tuple(slice(0, 2 * s, 2) for s in t.shape)]
    view.copy_(t)
    assert not view.is_contiguous() or t.numel() <= 1
    return view


@pytest.fixture()
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture()
def backend() -> Iterator[Callable[[str], str]]:
    """Switches the backend, and back after the test."""
    before = kernels.backend()
    yield kernels.use
    kernels.use(before)


def in_a_process(code: str, seconds: float = 120.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python that may crash or hang; a hang ends as TimeoutExpired."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=seconds)


def lines_before_the_end(code: str, seconds: float) -> list[str]:
    """What Python printed until it ended, or hung for so long."""
    try:
        return in_a_process(code, seconds).stdout.splitlines()
    except subprocess.TimeoutExpired as error:
        out = error.stdout or b""
        return (out.decode() if isinstance(out, bytes) else out).splitlines()


# --- the door --------------------------------------------------------------------------------------------------------


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


def test_no_library_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], backend: Callable[[str], str]
) -> None:
    monkeypatch.setattr(bindings, "load", lambda: bindings.Library(None, reason="nothing was built"))
    with pytest.raises(UserError, match="nothing was built.*reinstall with a C\\+\\+ compiler"):
        backend("cpu")
    assert backend("auto") == "reference"
    assert "slow reference kernels, because nothing was built" in capsys.readouterr().err
    monkeypatch.undo()


# --- hash grid -------------------------------------------------------------------------------------------------------


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


# --- field -----------------------------------------------------------------------------------------------------------

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


# --- occupancy and march ---------------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize(("n_levels", "resolution"), [(1, 32), (3, 32), (2, 64)])
def test_packed_bits_say_what_the_cells_say(n_levels: int, resolution: int) -> None:
    shape = (n_levels, resolution, resolution, resolution)
    occupied = uniform(*shape, seed=1) < 0.02
    bits = cpu.pack_occupancy(occupied)
    fine = np.unpackbits(bits.fine.numpy().view(np.uint8), bitorder="little").reshape(shape)
    assert np.array_equal(fine.astype(bool), occupied.numpy())
    blocks = occupied.reshape(n_levels, *[resolution // 4, 4] * 3).numpy().any(axis=(2, 4, 6))
    clearance = bits.clearance.numpy().reshape(blocks.shape)
    side = resolution // 4
    inner = np.zeros((side,) * 3, bool)
    inner[(slice(side // 4, -(side // 4)),) * 3] = True
    for level in range(n_levels):
        outside = np.full((side + 2,) * 3, level + 1 < n_levels)  # another level's, but nobody's past the outermost
        outside[1:-1, 1:-1, 1:-1] = blocks[level] | (inner if level > 0 else False)
        taken = np.argwhere(outside) - 1
        places = np.argwhere(np.ones_like(inner))
        nearest = np.abs(places[:, None] - taken[None]).max(axis=2).min(axis=1)
        assert np.array_equal(clearance[level].reshape(-1), nearest)
    other = cpu.pack_occupancy(occupied.transpose(1, 3).contiguous().transpose(1, 3))
    assert torch.equal(other.fine, bits.fine) and torch.equal(other.clearance, bits.clearance)


@native
@pytest.mark.parametrize(
    "occupied",
    [
        torch.zeros(1, 32, 32, 32),
        torch.zeros(1, 32, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 32, 32, 64, dtype=torch.bool),
        torch.zeros(1, 48, 48, 48, dtype=torch.bool),
        torch.zeros(32, 32, 32, dtype=torch.bool),
        torch.zeros(32, dtype=torch.bool),
    ],
)
def test_packing_names_what_is_wrong(occupied: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match="occupied: expected a bool tensor"):
        cpu.pack_occupancy(occupied)


MARCHES = {
    "box": (1, MarchSettings(0.03, 0.0, 0.03)),
    "box, fine steps": (1, MarchSettings(2 * 3**0.5 / 1024, 0.0, 1.0)),
    "box, odd steps": (1, MarchSettings(0.1234567, 0.0, 1.0)),
    "box, growing steps": (1, MarchSettings(0.01, 1 / 256, 0.05)),
    "nested, growing steps": (4, MarchSettings(2 * 3**0.5 / 1024, 1 / 256, 8 / 64)),
    "nested, wide cone": (3, MarchSettings(0.02, 1 / 16, 1e10)),
    "nested, constant steps": (3, MarchSettings(0.04, 0.0, 0.04)),
    "five levels": (5, MarchSettings(0.01, 1 / 128, 16 / 64)),
}


def reference_march(
    batch: RayBatch, settings: MarchSettings, march: Callable[..., Samples] = reference.march
) -> Samples:
    return march(*batch.all(), settings.step_size, settings.cone_angle, settings.max_step)


def same_samples(found: Samples, expected: Samples) -> None:
    for name in ("packed_info", "ray_indices", "t_starts", "t_ends"):
        mine, other = getattr(found, name), getattr(expected, name)
        assert mine.dtype == other.dtype and torch.equal(mine, other), name


def native_march(batch: RayBatch, settings: MarchSettings) -> Samples:
    return cpu.march(batch.rays(), cpu.pack_occupancy(batch.occupied), settings)


@native
@pytest.mark.parametrize("filled", [0.0, 0.002, 0.3, 1.0])
@pytest.mark.parametrize("name", MARCHES)
def test_march_gives_the_same_samples_to_the_bit(name: str, filled: float) -> None:
    n_levels, settings = MARCHES[name]
    batch = ray_batch(300, 7, n_levels, filled=filled)
    found = native_march(batch, settings)
    same_samples(found, reference_march(batch, settings))
    assert bool(len(found.t_starts)) == (filled > 0)
    few = batch.first(6)
    same_samples(native_march(few, settings), reference_march(few, settings, reference.march_loop))


@native
@pytest.mark.parametrize("n", [0, 1])
def test_march_of_no_ray_and_of_one(n: int) -> None:
    batch = ray_batch(20, 8).first(n + 1)
    batch = replace(batch, **{k: getattr(batch, k)[1:] for k in ("rays_o", "rays_d", "t_near", "t_far", "jitter")})
    found = native_march(batch, SETTINGS)
    same_samples(found, reference_march(batch, SETTINGS))
    assert found.packed_info.shape == (n, 2) and (len(found.t_starts) > 0) == (n > 0)


@native
def test_march_of_1e5_samples() -> None:
    batch = ray_batch(3000, 9, filled=0.9)
    found = native_march(batch, MarchSettings(0.04))
    assert len(found.t_starts) > 1e5
    same_samples(found, reference_march(batch, MarchSettings(0.04)))


@native
@pytest.mark.parametrize("name", ["box", "nested, growing steps"])
def test_march_from_special_places(name: str) -> None:
    n_levels, settings = MARCHES[name]
    half = 2.0 ** (n_levels - 1)
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    diagonal = torch.nn.functional.normalize(torch.tensor([[1.0, 1, 1], [1, -1, 0], [0, 1, -1]]), dim=1)
    directions = torch.cat([axes, diagonal, axes, unit_vectors(40, 3), unit_vectors(40, 4)])
    origins = torch.cat(
        [
            torch.zeros(9, 3),  # along the axes and diagonals, on the walls between cells
            -2.0 * half * axes + 0.01,
            uniform(40, 3, seed=5, low=-0.9, high=0.9),  # from inside
            uniform(40, 3, seed=6, low=-3.0 * half, high=3.0 * half),  # from anywhere, most miss
        ]
    )
    n = len(origins)
    batch = replace(ray_batch(n, 3, n_levels), rays_o=origins, rays_d=directions)
    batch.t_near, batch.t_far = torch.zeros(n), torch.full((n,), 9.0 * half)
    batch.jitter[:9] = 0.0
    batch.t_far[20:25] = 0.0  # nothing to do
    same_samples(native_march(batch, settings), reference_march(batch, settings))


@native
@pytest.mark.parametrize("n_levels", [1, 2])
def test_march_along_the_wall_of_the_outermost_box(n_levels: int) -> None:
    half = 2.0 ** (n_levels - 1)
    batch = ray_batch(3, 3, n_levels, filled=1.0)
    batch.rays_o[:] = torch.tensor([[half, -3 * half, 0.1], [0.3, half, -3 * half], [-half, 0.2, 3 * half]])
    batch.rays_d[:] = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, -1]])
    batch.t_near[:], batch.t_far[:] = 0.0, 6 * half
    same_samples(native_march(batch, SETTINGS), reference_march(batch, SETTINGS))


@native
def test_march_of_strided_tensors() -> None:
    batch = ray_batch(50, 10)
    names = ("rays_o", "rays_d", "t_near", "t_far", "jitter")
    other = replace(batch, **{k: strided(getattr(batch, k)) for k in names})
    same_samples(native_march(other, SETTINGS), native_march(batch, SETTINGS))


MARCH_ERRORS = [
    ("rays_o", torch.zeros(4, 2), ValueError),
    ("rays_o", torch.zeros(4, 3).double(), TypeError),
    ("rays_d", torch.zeros(5, 3), ValueError),
    ("rays_d", torch.zeros(4, 3).half(), TypeError),
    ("t_near", torch.zeros(4, 1), ValueError),
    ("t_near", torch.zeros(4).double(), TypeError),
    ("t_far", torch.zeros(3), ValueError),
    ("t_far", torch.zeros(4, dtype=torch.int32), TypeError),
    ("jitter", torch.zeros(5), ValueError),
    ("jitter", torch.zeros(4).double(), TypeError),
]


@native
@pytest.mark.parametrize(("name", "value", "error"), MARCH_ERRORS)
def test_march_names_the_argument_that_is_wrong(name: str, value: Tensor, error: type[Exception]) -> None:
    batch = replace(ray_batch(4, 11), **{name: value})
    with pytest.raises(error, match=f"{name}: expected"):
        native_march(batch, SETTINGS)


@native
def test_march_refuses_settings_that_never_end() -> None:
    settings = {
        "MarchSettings(0.1, 0.1, 0.01)": "max_step",
        "MarchSettings(0.1, -0.5)": "cone_angle",
        "MarchSettings(0.0)": "step_size",
        "MarchSettings(-0.1)": "step_size",
        "MarchSettings(float('nan'))": "step_size",
    }
    code = "from nerf.kernels import MarchSettings, cpu\nfrom tiny import ray_batch\nbatch = ray_batch(4, 11)\n"
    for text in settings:
        code += (
            f"try:\n    cpu.march(batch.rays(), cpu.pack_occupancy(batch.occupied), {text})\n"
            "    print('accepted', flush=True)\n"
            "except ValueError as error:\n    print(error, flush=True)\n"
        )
    said = lines_before_the_end(code, seconds=15)
    for k, (text, name) in enumerate(settings.items()):
        assert len(said) > k, f"{text} hangs instead of raising"
        assert name in said[k], f"{text}: {said[k]}"


@native
def test_march_ends_for_rays_without_end() -> None:
    # A pixel's ray is unlimited until it is cut; the reference ends it where it leaves the grid.
    code = (
        "import torch\n"
        "from nerf.kernels import MarchSettings, cpu, reference\n"
        "from tiny import ray_batch\n"
        "batch = ray_batch(8, 11)\n"
        "batch.t_far[:] = float('inf')\n"
        "for cone in (0.0, 1 / 64):\n"
        "    found = cpu.march(batch.rays(), cpu.pack_occupancy(batch.occupied), MarchSettings(0.05, cone, 1.0))\n"
        "    expected = reference.march(*batch.all(), 0.05, cone, 1.0)\n"
        "    print(torch.equal(found.t_starts, expected.t_starts), flush=True)\n"
    )
    assert lines_before_the_end(code, seconds=15) == ["True", "True"], "a ray with t_far = inf never ends"


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (1, 2), (2**32 - 1, 2**31), (-5, 10**12)])
def test_jitter_is_the_same_integer_hash(seed: int, step: int, backend: Callable[[str], str]) -> None:
    expected = reference.ray_jitter(seed, step, torch.arange(5000))
    assert bool(((expected >= 0) & (expected < 1)).all())
    for name in ("reference", "auto"):
        backend(name)
        found = kernels.ray_jitter(seed, step, 5000)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert kernels.ray_jitter(seed, step, 0).shape == (0,)


# --- fused render ----------------------------------------------------------------------------------------------------

OUTPUTS = ("foregrounds", "opacities", "depths", "median_depths", "second_moments", "distortions")
SUMS = ("foregrounds", "opacities", "depths", "second_moments", "distortions")  # the differentiable ones


def render(
    batch: RayBatch,
    params: FieldParams,
    config: FieldConfig,
    settings: MarchSettings,
    viewdirs: Tensor | None = None,
    table_half: Tensor | None = None,
    sink: GradAccumulator | None = None,
) -> dict[str, Any]:
    """The native op."""
    view, bits = FieldView(params, config, table_half), cpu.pack_occupancy(batch.occupied)
    return cpu.render_rays(batch.rays(viewdirs), bits, view, settings, sink)._asdict()


def render_reference(
    batch: RayBatch, params: FieldParams, config: FieldConfig, settings: MarchSettings, viewdirs: Tensor | None = None
) -> dict[str, Any]:
    """The staged path, in the type of the rays."""
    view = FieldView(params, config)
    return reference.render_rays(batch.rays(viewdirs), batch.occupied, view, settings)._asdict()


def everything(
    run: Callable[..., dict[str, Any]],
    batch: RayBatch,
    params: FieldParams,
    config: FieldConfig,
    settings: MarchSettings,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """All outputs, and the gradients of a random combination of them to everything that has one."""
    weights = cast(params, dtype, requires_grad=True)
    rays = [t.to(dtype).clone().requires_grad_() for t in (batch.rays_o, batch.rays_d)]
    views = unit_vectors(len(batch.rays_o) + 1, 77)[1:].to(dtype).requires_grad_()
    out = run(replace(batch, rays_o=rays[0], rays_d=rays[1]), weights, config, settings, views)
    loss = sum((out[k] * uniform(*out[k].shape, seed=i, low=-1).to(dtype)).sum() for i, k in enumerate(SUMS))
    names = ["rays_o", "rays_d", "viewdirs", "table"]
    names += [f"density_weights[{i}]" for i in range(len(params.density_weights))]
    names += [f"color_weights[{i}]" for i in range(len(params.color_weights))]
    grads = torch.autograd.grad(loss, [*rays, views, *flat(weights)])
    values = {k: out[k].detach() for k in OUTPUTS} | {"kept": torch.tensor(out["kept"])}
    return values | dict(zip(names, grads, strict=True))


RENDERS: dict[str, tuple[dict[str, Any], int, MarchSettings]] = {
    "box": ({}, 1, MarchSettings(0.05)),
    "box, 2 features, narrow": ({"features": 2, "width": 16}, 1, MarchSettings(0.05)),
    "box, wide": ({"width": 128}, 1, MarchSettings(0.1)),
    "box, other depths": ({"layers": (3, 2)}, 1, MarchSettings(0.05)),
    "box, opaque": ({"bias": 5.0}, 1, MarchSettings(0.05)),
    "box, thresholds": ({"bias": 3.0}, 1, MarchSettings(0.05, 0.0, 0.05, 1e-2, 1e-2)),
    "box, growing steps": ({}, 1, MarchSettings(0.03, 1 / 64, 0.2)),
    "unbounded": ({"contracted": True, "bias": 0.0}, 3, MarchSettings(0.05, 1 / 64, 1.0)),
    "unbounded, thresholds": ({"contracted": True, "bias": 2.0}, 4, MarchSettings(0.05, 1 / 32, 1.0, 1e-3, 1e-3)),
}


def compare_values(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert int(found["kept"]) == int(expected["kept"])
    for name in SUMS:
        # depths and distortions have the scene's length as their scale
        scale = max(1.0, float(expected[name].abs().max())) if expected[name].numel() else 1.0
        close(found[name], expected[name], rtol=RENDER["rtol"], atol=RENDER["atol"] * scale)
    # Where the opacity creeps up to 1/2, or stays within rounding of it, rounding moves the median.
    same = torch.isclose(found["median_depths"].double(), expected["median_depths"].double(), rtol=1e-4, atol=1e-4)
    assert float(same.double().mean() if len(same) else 1.0) > 0.98


def compare_gradients(pairs: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> None:
    """Gradients of several random problems. One that is wrong is wrong in all of them; but ReLUs and cell walls are
    kinks, and where rounding moves one of the million inputs across one, that sample's gradient is another."""
    for name in pairs[0][0].keys() - set(OUTPUTS) - {"kept"}:
        errors = [relative(found[name], expected[name]) for found, expected in pairs]
        assert min(errors) < GRADIENT and max(errors) < 0.05, f"{name}: {errors}"


@native
@pytest.mark.parametrize("name", RENDERS)
def test_render_values_and_gradients(name: str) -> None:
    shape, n_levels, settings = RENDERS[name]
    pairs = []
    for seed in (5, 6, 7):
        params, config = small_field(seed, **shape)
        batch = ray_batch(50, 10 * seed, n_levels)
        found = everything(render, batch, params, config, settings, torch.float32)
        expected = everything(render_reference, batch, params, config, settings, torch.float64)
        assert 0.1 < float(expected["opacities"].mean()) < 0.99  # neither empty nor a wall
        compare_values(found, expected)
        pairs.append((found, expected))
    compare_gradients(pairs)


@native
@pytest.mark.parametrize("output", SUMS)
def test_render_gradients_of_each_output(output: str) -> None:
    params, config = small_field(6)
    batch = ray_batch(60, 13)
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for run, dtype, results in ((render, torch.float32, found), (render_reference, torch.float64, expected)):
        weights = cast(params, dtype, requires_grad=True)
        rays_d = batch.rays_d.to(dtype)
        out = run(replace(batch, rays_o=batch.rays_o.to(dtype), rays_d=rays_d), weights, config, SETTINGS)
        # Colour weights have no part in opacity, depth and distortion: their gradient is then None or zero.
        grads = torch.autograd.grad(out[output].square().sum(), flat(weights), allow_unused=True)
        results += [torch.zeros_like(w) if g is None else g for g, w in zip(grads, flat(weights), strict=True)]
    for mine, theirs in zip(found, expected, strict=True):
        if float(theirs.norm()) == 0:
            assert float(mine.norm()) == 0
        else:
            assert relative(mine, theirs) < GRADIENT


@native
@pytest.mark.parametrize("case", ["no ray", "one ray", "all miss", "nothing occupied"])
def test_render_of_little(case: str) -> None:
    params, config = small_field(5)
    batch = ray_batch(3, 14)
    if case == "no ray":
        batch = batch.first(0)
    elif case == "one ray":
        batch = replace(batch, **{k: getattr(batch, k)[1:2] for k in ("rays_o", "rays_d", "t_near", "t_far", "jitter")})
    elif case == "all miss":
        batch.t_far[:] = batch.t_near
    else:
        batch.occupied[:] = False
    found = everything(render, batch, params, config, SETTINGS, torch.float32)
    if case == "one ray":
        assert float(found["opacities"]) > 0.1
        expected = everything(render_reference, batch, params, config, SETTINGS, torch.float64)
        compare_values(found, expected)
        compare_gradients([(found, expected)])
    else:
        assert all(float(t.double().norm()) == 0 for t in found.values())
        assert found["foregrounds"].shape == (len(batch.rays_o), 3)


@native
def test_render_of_1e5_samples() -> None:
    params, config = small_field(5, width=16, bias=-1.0)
    batch = ray_batch(3000, 15, filled=0.9)
    settings = MarchSettings(0.04)
    with torch.no_grad():
        out = render(batch, params, config, settings)
    assert out["evaluated"] == out["kept"] > 1e5
    some = replace(batch, **{k: getattr(batch, k)[::60] for k in ("rays_o", "rays_d", "t_near", "t_far", "jitter")})
    double = replace(some, rays_o=some.rays_o.double(), rays_d=some.rays_d.double())
    expected = render_reference(double, cast(params, torch.float64), config, settings)
    for name in SUMS:
        close(out[name][::60], expected[name], rtol=RENDER["rtol"], atol=5 * RENDER["atol"])


@native
def test_render_of_strided_tensors() -> None:
    params, config = small_field(5)
    batch = ray_batch(40, 16)
    names = ("rays_o", "rays_d", "t_near", "t_far", "jitter")
    results = []
    for make in (torch.clone, strided, lambda t: t.t().contiguous().t() if t.dim() == 2 else t):
        rays = replace(batch, **{k: make(getattr(batch, k)) for k in names})
        weights = [make(w).requires_grad_() for w in flat(params)]
        mine = FieldParams(weights[0], weights[1:3], weights[3:])
        out = render(rays, mine, config, SETTINGS, viewdirs=make(batch.rays_d))
        grads = torch.autograd.grad(
            (out["foregrounds"] * make(uniform(40, 3, seed=1))).sum() + out["depths"].sum(), weights
        )
        results.append([out["foregrounds"].detach(), *grads])
    for other in results[1:]:
        for k, (mine, plain) in enumerate(zip(other, results[0], strict=True)):
            assert torch.equal(mine, plain), f"result {k} depends on the strides"


@native
@pytest.mark.parametrize(("name", "value", "error"), [*MARCH_ERRORS, ("viewdirs", torch.zeros(5, 3), ValueError)])
def test_render_names_the_argument_that_is_wrong(name: str, value: Tensor, error: type[Exception]) -> None:
    params, config = small_field(5)
    batch = ray_batch(4, 11)
    views = value if name == "viewdirs" else batch.rays_d
    if name != "viewdirs":
        batch = replace(batch, **{name: value})
    with pytest.raises(error, match=f"{name}: expected"):
        render(batch, params, config, SETTINGS, viewdirs=views)


@native
def test_gradients_of_samples_near_the_camera_are_scaled_down() -> None:
    # By (t / distance)^2, and nothing else changes (Philip and Deschaintre 2023).
    params, config = small_field(5, contracted=True, bias=0.0)
    batch = ray_batch(60, 12, 3)
    settings = MarchSettings(0.05, 1 / 64, 1.0)
    distance = 8.0
    plain = render(batch, params, config, settings)
    weights = cast(params, torch.float32, requires_grad=True)
    out = render(batch, weights, config, replace(settings, gradient_distance=distance))
    assert torch.equal(out["foregrounds"], plain["foregrounds"]) and torch.equal(out["depths"], plain["depths"])
    found = torch.autograd.grad(out["foregrounds"].square().sum() + out["depths"].sum(), flat(weights))

    wide = cast(params, torch.float64, requires_grad=True)
    samples, ray = reference_march(batch, settings), reference_march(batch, settings).ray_indices
    mids = 0.5 * (samples.t_starts.double() + samples.t_ends.double())
    positions = batch.rays_o.double()[ray] + mids[:, None] * batch.rays_d.double()[ray]
    sigmas, rgbs = reference.radiance_field(positions, batch.rays_d.double()[ray], wide, config)
    share = (mids / distance).clamp_max(1.0).square()
    assert 0.2 < float(share.mean()) < 0.8
    sigmas = share * sigmas + (1 - share) * sigmas.detach()
    rgbs = share[:, None] * rgbs + (1 - share)[:, None] * rgbs.detach()
    want = reference.composite(samples, sigmas, rgbs, 60)._asdict()
    expected = torch.autograd.grad(want["foregrounds"].square().sum() + want["depths"].sum(), flat(wide))
    for mine, theirs in zip(found, expected, strict=True):
        assert relative(mine, theirs) < 5e-3  # with room for a kink, see compare_gradients


@native
def test_a_gradient_sink_gets_the_tables_gradient() -> None:
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    batch = ray_batch(40, 16)
    grads = torch.autograd.grad(render(batch, weights, config, SETTINGS)["foregrounds"].sum(), flat(weights))
    sink = GradAccumulator(torch.zeros_like(params.table))
    out = render(batch, weights, config, SETTINGS, sink=sink)
    out["foregrounds"].sum().backward()
    assert torch.equal(sink.table, grads[0]) and weights.table.grad is None
    for weight, grad in zip(flat(weights)[1:], grads[1:], strict=True):
        assert weight.grad is not None and torch.equal(weight.grad, grad)
    render(batch, weights, config, SETTINGS, sink=sink)["foregrounds"].sum().backward()  # adds
    close(sink.table, 2 * grads[0], rtol=1e-5, atol=1e-6)


@native
@pytest.mark.parametrize("wrong", [torch.zeros(10), torch.zeros(1, 4)])
def test_a_gradient_sink_of_another_shape_or_type_is_refused(wrong: Tensor) -> None:
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    # Larger than the table in bytes, so that a missing check fails this test and not the process.
    table = torch.zeros(*params.table.shape, *[2] * wrong.dim()).double()
    out = render(ray_batch(4, 11), weights, config, SETTINGS, sink=GradAccumulator(table))
    with pytest.raises((TypeError, ValueError), match="grad_accumulator"):
        out["foregrounds"].sum().backward()


@native
def test_the_reference_backend_fills_the_sink_too(backend: Callable[[str], str]) -> None:
    # One training loop serves every backend, so the sink must mean the same on each.
    params, config = small_field(5)
    batch = ray_batch(20, 16)
    sinks = []
    for name in ("cpu", "reference"):
        backend(name)
        weights = cast(params, torch.float32, requires_grad=True)
        sinks.append(GradAccumulator(torch.zeros_like(params.table)))
        view = FieldView(weights, config)
        out = kernels.render_rays(batch.rays(), batch.occupied, view, SETTINGS, grad_accumulator=sinks[-1])
        out.foregrounds.sum().backward()
    assert float(sinks[0].table.norm()) > 0
    assert relative(sinks[1].table, sinks[0].table) < GRADIENT


def rounded_products(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """A network whose products read what mixed precision reads: bfloat16 where the processor multiplies it."""
    bf16 = kernels.describe()["bf16"]
    for i, w in enumerate(weights):
        x, w = (v.bfloat16().float() if bf16 else v for v in (x, w))
        x = x @ w.T
        x = x.relu() if i + 1 < len(weights) else x
    return x


@native
@pytest.mark.parametrize("width", [16, 48, 64, 128])
def test_mixed_precision_rounds_what_products_read_and_nothing_else(width: int) -> None:
    params, config = small_field(5)
    weights = [
        uniform(width, params.table.shape[1] * config.layout.n_levels, seed=1, low=-1),
        uniform(16, width, seed=2, low=-1),
    ]
    params = replace(cast(params, torch.float32), density_weights=[w.float() for w in weights])
    params.color_weights[0] = uniform(width, 32, seed=3, low=-1)
    params.color_weights[1:] = [uniform(3, width, seed=4, low=-1)]
    positions = uniform(300, 3, seed=5, low=-1)
    half = params.table.half()
    unit = (positions + 1) / 2
    x = reference.hashgrid_encode(unit, half.float(), config.layout)
    expected = (rounded_products(x, params.density_weights)[:, 0] + config.density_bias).exp()
    sigmas, _ = cpu.field_forward(positions, None, FieldView(params, config, half))
    torch.testing.assert_close(sigmas, expected, rtol=2e-3, atol=1e-6)  # a sum's order decides the next rounding


@native
def test_render_in_mixed_precision() -> None:
    params, config = small_field(5)
    batch, half = ray_batch(60, 17), params.table.half()
    results = []
    for copy in (half, None):
        weights = cast(params, torch.float32, requires_grad=True)
        out = render(batch, weights, config, SETTINGS, table_half=copy)
        results.append(
            [out["foregrounds"].detach(), *torch.autograd.grad(out["foregrounds"].square().sum(), flat(weights))]
        )
    # 11 bits of the table and 8 of what the products read: a small fraction of a grey level of 1/255 = 4e-3.
    close(results[0][0], results[1][0], rtol=0, atol=4e-3)
    assert all(relative(a, b) < 5e-2 for a, b in zip(results[0], results[1], strict=True))
    assert relative(results[0][0], results[1][0]) > 0, "the half-precision table was not read"


@native
def test_what_changed_between_forward_and_backward_is_noticed() -> None:
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    out = render(ray_batch(10, 16), weights, config, SETTINGS)
    m, v = torch.zeros_like(params.table), torch.zeros_like(params.table)
    cpu.adam_step(weights.table.detach(), torch.ones_like(m), m, v, 0.1, 0.9, 0.99, 1e-8, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out["foregrounds"].sum().backward()


@native
def test_render_refuses_a_second_derivative_and_a_second_backward() -> None:
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    out = render(ray_batch(10, 16), weights, config, SETTINGS)
    (grad,) = torch.autograd.grad(out["foregrounds"].square().sum(), weights.table, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@native
def test_two_forward_passes_before_two_backward_passes() -> None:
    # Each forward pass owns the samples it keeps, also those of the pool.
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    batches = [ray_batch(30, 16), ray_batch(50, 18)]
    alone = [
        torch.autograd.grad(render(b, weights, config, SETTINGS)["foregrounds"].sum(), flat(weights)) for b in batches
    ]
    both = [render(b, weights, config, SETTINGS)["foregrounds"].sum() for b in batches]
    for loss, expected in zip(both, alone, strict=True):
        for mine, grad in zip(torch.autograd.grad(loss, flat(weights)), expected, strict=True):
            assert torch.equal(mine, grad)


# --- laws ------------------------------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize("name", ["box, thresholds", "unbounded"])
def test_two_threads_give_the_bytes_of_one(name: str, threads: Callable[[int], None]) -> None:
    shape, n_levels, settings = RENDERS[name]
    params, config = small_field(5, **shape)
    batch = ray_batch(700, 12, n_levels)  # several tiles of rays
    results = []
    for n in (1, 2, 2):
        threads(n)
        x = uniform(40_000, 3, seed=1).requires_grad_()
        table = params.table.clone().requires_grad_()
        features = cpu.hashgrid_encode(x, table, config.layout)
        grads = torch.autograd.grad(features.square().sum(), (x, table))
        points = uniform(40_000, 3, seed=2, low=-1)
        sigmas, rgbs = cpu.field_forward(points, points, FieldView(params, config))
        assert rgbs is not None
        samples = native_march(batch, settings)
        results.append(
            [*everything(render, batch, params, config, settings, torch.float32).values(), features.detach(), *grads,
             sigmas, rgbs, samples.t_starts, samples.t_ends, samples.packed_info]
        )  # fmt: skip
    for other in results[1:]:
        for k, (mine, one) in enumerate(zip(other, results[0], strict=True)):
            assert mine.numpy().tobytes() == one.numpy().tobytes(), f"result {k}"


def constant_field(sigma: float) -> tuple[FieldParams, FieldConfig]:
    """Density `sigma` everywhere, colours that vary."""
    params, config = small_field(5)
    params.density_weights[-1][0] = 0.0
    return params, replace(config, density_bias=float(np.log(sigma)))


@native
def test_a_slab_has_the_opacity_of_beer_and_lambert() -> None:
    params, config = constant_field(1.7)
    batch = ray_batch(200, 19, filled=2.0)
    with torch.no_grad():
        out = render(batch, params, config, MarchSettings(0.01))
    samples = native_march(batch, MarchSettings(0.01))
    lengths = torch.zeros(200).index_add_(0, samples.ray_indices, samples.t_ends - samples.t_starts)
    # The marched length is the ray's chord, to a step at its start (the jitter) and half of one at its end; of what was
    # marched the law is exact to rounding.
    assert float((lengths - (batch.t_far - batch.t_near).clamp_min(0)).abs().max()) < 0.0151
    close(out["opacities"], 1 - torch.exp(-1.7 * lengths.double()), rtol=0, atol=1e-5)


@native
def test_splitting_intervals_changes_nothing_where_the_field_is_constant() -> None:
    params, config = constant_field(2.5)
    params.color_weights[0][:] = 0.0  # grey everywhere
    batch = ray_batch(100, 20, filled=2.0)
    batch.jitter[:] = 0.0
    batch.t_far = torch.where(batch.t_far > batch.t_near, batch.t_near + 0.8, batch.t_far)  # both lattices fill it
    batch.rays_o = -0.4 * batch.rays_d
    batch.t_near, batch.t_far = torch.zeros(100), torch.full((100,), 0.8)
    with torch.no_grad():
        whole, split = (render(batch, params, config, MarchSettings(s)) for s in (0.1, 0.05))
    assert split["kept"] == 2 * whole["kept"]
    for name in ("foregrounds", "opacities", "second_moments"):
        close(split[name], whole[name], rtol=1e-5, atol=1e-5)


@native
def test_what_is_hidden_changes_nothing() -> None:
    # A wall of opaque cells at z in [0, 1/4], seen from z = -2; what lies behind, at z > 1/4, is now there and now not.
    params, config = small_field(5, bias=14.0)
    batch = ray_batch(200, 21)
    batch.rays_o = torch.cat([uniform(200, 2, seed=1, low=-0.8, high=0.8), torch.full((200, 1), -2.0)], dim=1)
    batch.rays_d = torch.tensor([[0.0, 0.0, 1.0]]).repeat(200, 1)
    batch.t_near, batch.t_far = torch.ones(200), torch.full((200,), 3.0)
    settings = MarchSettings(0.02, 0.0, 0.02, 1e-4)
    results = []
    for behind in (False, True):
        batch.occupied[:] = False
        batch.occupied[:, 16:20] = True
        batch.occupied[:, 20:] = behind
        results.append(everything(render, batch, params, config, settings, torch.float32))
    assert float(results[0]["opacities"].min()) > 0.999
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name


@native
def test_hidden_samples_are_not_evaluated() -> None:
    params, config = small_field(5, bias=14.0)
    batch = ray_batch(200, 21, filled=2.0)
    with torch.no_grad():
        out = render(batch, params, config, MarchSettings(0.01, 0.0, 0.01, 1e-3))
    assert out["kept"] <= out["evaluated"] < 0.2 * len(native_march(batch, MarchSettings(0.01)).t_starts)


VARIANT_RUN = """
import sys
import numpy as np
import torch
from nerf.kernels import FieldView, MarchSettings, bindings, cpu
from test_kernels import everything, native_march, render
from tiny import ray_batch, small_field
assert bindings.load().variant == sys.argv[1], bindings.load()
results = {}
for seed, (shape, n_levels, settings) in enumerate([
    ({"bias": 3.0}, 1, MarchSettings(0.05, 0.0, 0.05, 1e-2, 1e-2)),
    ({"contracted": True}, 3, MarchSettings(0.05, 1 / 64, 1.0)),
    ({"features": 2}, 1, MarchSettings(0.05)),
]):
    params, config = small_field(seed, **shape)
    batch = ray_batch(60, 12 + seed, n_levels)
    samples = native_march(batch, settings)
    out = {f"grad {k}" if "rays" in k or "weights" in k or k in ("viewdirs", "table") else f"value {k}": t
           for k, t in everything(render, batch, params, config, settings, torch.float32).items()}
    out |= {"bits starts": samples.t_starts, "bits ends": samples.t_ends, "bits packed": samples.packed_info}
    out |= {"bits kept": out.pop("value kept"), "bits jitter": cpu.ray_jitter(3, 4, 1000)}
    table, half = params.table.clone(), params.table.half()
    for name, copy in (("value", None), ("mixed", half)):
        found = cpu.field_forward(batch.rays_o / 5, batch.rays_d, FieldView(params, config, copy))
        out[f"{name} sigmas"], out[f"{name} rgbs"] = found
    m, v = torch.zeros_like(table), torch.zeros_like(table)
    cpu.adam_step(table, params.table.clone(), m, v, 1e-2, 0.9, 0.99, 1e-15, 3, True, half, True)
    out |= {"value adam": table, "value adam half": half.float()}
    results |= {f"{k} {seed}": t.numpy() for k, t in out.items()}
np.savez(sys.argv[2], **results)
"""


@native
def test_every_variant_of_the_library_gives_the_same(tmp_path: Path) -> None:
    current = build.source_hash().encode()
    paths = {v: build.LIBRARIES / build.file_name_of(v) for v in bindings.suitable_variants()}
    variants = [v for v, path in paths.items() if path.exists() and current in path.read_bytes()]
    if len(variants) < 2:
        pytest.skip(f"needs two up-to-date variants to compare, found {variants}")
    results = {}
    for variant in variants:
        code = f"import sys\nsys.argv = ['-', {variant!r}, {str(tmp_path / variant)!r}]\n{VARIANT_RUN}"
        done = in_a_process(code, NERF_CPU_VARIANT=variant)
        assert done.returncode == 0, f"{variant}: exit {done.returncode}: {done.stderr[-800:]}"
        results[variant] = np.load(tmp_path / f"{variant}.npz")
    first = results[variants[0]]
    for variant in variants[1:]:
        gradients: dict[str, list[float]] = {}
        for key in first.files:
            a, b = first[key], results[variant][key]
            error = float(np.linalg.norm(a.astype(np.float64) - b) / max(np.linalg.norm(a.astype(np.float64)), 1e-9))
            if key.startswith("bits"):
                assert a.tobytes() == b.tobytes(), f"{key}: {variant} differs from {variants[0]}"
            elif key.startswith("value"):
                # Other lane counts add in another order, and without FMA each product is rounded.
                assert error < (1e-2 if "median" in key or "half" in key else 1e-4), f"{key}: {variant}"
            elif key.startswith("mixed"):  # products read bfloat16 where the processor has it
                assert error < 2e-2, f"{key}: {variant}"
            else:
                gradients.setdefault(key[:-2], []).append(error)
        for key, errors in gradients.items():  # with kinks, see compare_gradients
            assert min(errors) < GRADIENT and max(errors) < 0.05, f"{key}: {variant}: {errors}"


# --- Adam ------------------------------------------------------------------------------------------------------------


def adam_state(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """param, grad with rows of zeros, m, v >= 0."""
    param, grad, m = (uniform(*shape, seed=seed + k, low=-1) for k in range(3))
    if len(shape) > 1:
        grad[::3] = 0.0
        if shape[0] > 1:
            grad[1, 1:] = 0.0  # partly zero is not zero
    return param, grad, m, uniform(*shape, seed=seed + 3)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shape", [(50, 4), (50, 2), (50, 1), (37, 3), (20, 8), (1, 4), (0, 4), (40_000, 4)])
@pytest.mark.parametrize("name", ["auto", "reference"])
def test_adam_is_the_reference_in_float64(
    name: str, shape: tuple[int, ...], skip: bool, weight_decay: float, backend: Callable[[str], str]
) -> None:
    backend(name)
    param, grad, m, v = adam_state(shape)
    half = param.half()
    wide = param.double(), grad.double(), m.double(), v.double()
    untouched = (grad == 0).all(dim=1) if skip else torch.zeros(shape[0], dtype=torch.bool)
    # With decay the gradient of a touched row is g + decay*p; which rows are touched is a matter of g alone.
    decayed = torch.where(untouched[:, None], wide[1], wide[1] + weight_decay * wide[0])
    reference.adam_step(
        wide[0], decayed, wide[2], wide[3], lr=0.01, beta1=0.9, beta2=0.99, eps=1e-8, step=3, skip_zero_rows=skip
    )
    before = [t.clone() for t in (param, m, v, half)]
    kernels.adam_step(param, grad, m, v, 0.01, 0.9, 0.99, 1e-8, 3, skip, half, True, weight_decay)
    for found, expected in zip((param, m, v), (wide[0], wide[2], wide[3]), strict=True):
        close(found, expected, rtol=1e-5, atol=1e-6)
    for now, then in zip((param, m, v, half), before, strict=True):
        assert torch.equal(now[untouched], then[untouched])
    assert torch.equal(half[~untouched], param[~untouched].half())
    assert bool((grad == 0).all())


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_adam_leaves_the_gradient_when_not_told_to_clear_it(name: str, backend: Callable[[str], str]) -> None:
    backend(name)
    for shape in ((30,), (30, 3), (30, 4)):
        param, grad, m, v = adam_state(shape)
        kept = grad.clone()
        wide = param.double(), grad.double(), m.double(), v.double()
        reference.adam_step(*wide, lr=0.01, beta1=0.9, beta2=0.99, eps=1e-8, step=1)
        kernels.adam_step(param, grad, m, v, 0.01, 0.9, 0.99, 1e-8, 1)
        assert torch.equal(grad, kept)
        close(param, wide[0], rtol=1e-5, atol=1e-6)


@native
def test_adam_is_the_same_with_two_threads(threads: Callable[[int], None]) -> None:
    results = []
    for n in (1, 2):
        threads(n)
        state = adam_state((50_000, 4))
        cpu.adam_step(*state, 0.01, 0.9, 0.99, 1e-15, 5, True)
        results.append(torch.cat(state).numpy().tobytes())
    assert results[0] == results[1]


@native
def test_half_copies_round_like_torch() -> None:
    # To nearest even, subnormals included; only beyond 65504 is a table held finite.
    spread = torch.logspace(-9, 4.8, 4000)
    special = torch.tensor([0.0, 1 + 2**-11, 1 + 3 * 2**-11, 65504.0, 1e6, -1e6, 3e-8, 1e-8])
    values = torch.cat([special, spread, -spread, special])  # first and last: in whole vectors, and in what is left
    for columns in (4, 1):
        param = values.reshape(-1, columns).clone()
        zeros, half = torch.zeros_like(param), torch.zeros_like(param).half()
        cpu.adam_step(param, torch.zeros_like(param), zeros, zeros.clone(), 0.0, 0.9, 0.99, 1e-8, 1, False, half)
        expected = param.clamp(-65504, 65504).half()
        big = param.abs() > 65504
        assert torch.equal(half[~big], expected[~big])
        assert bool(torch.isfinite(half).all()), "a half table must never hold infinity"


@native
@pytest.mark.parametrize("name", ["param", "grad", "m", "v", "half_copy"])
@pytest.mark.parametrize("wrong", ["shape", "type", "strides"])
def test_adam_names_the_argument_that_is_wrong(name: str, wrong: str) -> None:
    arguments = dict(zip(("param", "grad", "m", "v"), adam_state((10, 4)), strict=True))
    arguments["half_copy"] = arguments["param"].half()
    good = arguments[name]
    arguments[name] = {"shape": good[:9], "type": good.double(), "strides": strided(good)}[wrong]
    param, grad, m, v, half = arguments.values()
    blamed = "grad" if wrong == "shape" and name == "param" else name  # the parameter's shape is the measure
    with pytest.raises((ValueError, TypeError), match=f"{blamed}: expected"):
        cpu.adam_step(param, grad, m, v, 0.01, 0.9, 0.99, 1e-8, 1, half_copy=half)


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_adam_counts_steps_from_one(name: str, backend: Callable[[str], str]) -> None:
    backend(name)
    with pytest.raises(ValueError, match="step: expected 1 or more"):
        kernels.adam_step(*adam_state((10, 4)), 0.01, 0.9, 0.99, 1e-8, 0)
