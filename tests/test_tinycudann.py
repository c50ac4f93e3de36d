"""The tinycudann backend without the package: a stand-in made of its documented formulas takes its place."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import emulation
import pytest
import tiny
import tinycudann_formulas as formulas
import torch

from nerf import kernels
from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.io import checkpoint
from nerf.kernels import FieldConfig, FieldParams, FieldView, GradAccumulator, GridLayout, nvrtc, reference, tcnn
from nerf.training.loop import Trainer

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from benchmarks import cuda_checks as checks

LAYOUT = GridLayout(3, 4, 4, 10, 4, 1.7)  # two dense levels, two hashed ones
POINTS = [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5], [0.93, 0.02, 0.71]]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """tinycudann is installed, in float64, and there is a GPU (the march and the optimiser run emulated)."""
    if emulation.compiler() is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setitem(sys.modules, "tinycudann", formulas.module())
    tcnn._modules.cache_clear()
    with emulation.use():
        kernels.use("tinycudann")
        yield
    tcnn._modules.cache_clear()


def field(contracted: bool = False, width: int = 16, layers: tuple[int, int] = (2, 3)):
    params, _ = tiny.small_field(width=width, layers=layers)
    table = tiny.uniform(LAYOUT.n_rows, 4, seed=3, low=-1)
    params = FieldParams(table, params.density_weights, params.color_weights)
    return tiny.cast(params, torch.float64, requires_grad=True), FieldConfig(LAYOUT, contracted, 0.5)


def test_networks_go_over_and_come_back_unchanged() -> None:
    weights = [torch.randn(32, 20), torch.randn(32, 32), torch.randn(3, 32)]
    vector = tcnn.pack_network(weights)
    assert len(vector) == 32 * 32 + 32 * 32 + 16 * 32  # 20 inputs and 3 outputs are padded
    back = tcnn.unpack_network(vector, [tuple(w.shape) for w in weights])  # type: ignore[misc]
    assert all(torch.equal(a, b) for a, b in zip(back, weights, strict=True))
    assert float(vector.abs().sum()) == pytest.approx(sum(float(w.abs().sum()) for w in weights))


# ---- the golden vector ---------------------------------------------------------------------------------------------


def golden(points: list[list[float]], layout: GridLayout) -> list[list[float]]:
    """The documented formulas once more, in plain Python numbers: no torch, no loops over tensors."""
    found = []
    for point in points:
        features, begin = [], 0
        for level in range(layout.n_levels):
            scale = layout.base_resolution * layout.per_level_scale**level - 1
            resolution = int(-(-scale // 1)) + 1
            rows = min(-(-(resolution**3) // 8) * 8, 2**layout.log2_hashmap_size)
            sums = [0.0] * layout.n_features_per_level
            for corner in range(8):
                weight, cell = 1.0, []
                for axis in range(3):
                    place = point[axis] * scale + 0.5
                    low = int(place)
                    upper = corner >> axis & 1
                    weight *= place - low if upper else 1 - (place - low)
                    cell.append(low + upper)
                if resolution**3 <= rows:
                    row = cell[0] + cell[1] * resolution + cell[2] * resolution**2
                else:
                    row = cell[0] ^ cell[1] * 2654435761 ^ cell[2] * 805459861
                row = (row & 0xFFFFFFFF) % rows
                for f in range(layout.n_features_per_level):
                    sums[f] += weight * golden_table(begin + row, f, layout)
            begin += rows
            features += sums
        found.append(features)
    return found


def golden_table(row: int, feature: int, layout: GridLayout) -> float:
    return ((row * layout.n_features_per_level + feature) * 37 % 101) / 50.0 - 1.0


def test_our_hash_grid_is_that_of_the_documented_formulas() -> None:
    table = torch.tensor(
        [[golden_table(r, f, LAYOUT) for f in range(4)] for r in range(LAYOUT.n_rows)], dtype=torch.float64
    )
    wanted = torch.tensor(golden(POINTS, LAYOUT), dtype=torch.float64)
    points = torch.tensor(POINTS, dtype=torch.float64)
    # our scales are rounded to float32: 2e-6 of a cell at the finest level here
    assert torch.allclose(reference.hashgrid_encode(points, table, LAYOUT), wanted, atol=1e-5)
    assert torch.allclose(formulas.encode(points, table.reshape(-1), tcnn.grid_config(LAYOUT)), wanted, atol=1e-12)
    assert float(wanted.abs().min()) > 1e-4  # no level is empty


# ---- our field through it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contracted", [False, True])
def test_it_gives_our_values_and_gradients(contracted: bool, package: None) -> None:
    params, config = field(contracted)
    reach = 3.0 if contracted else 0.99
    positions = tiny.uniform(40, 3, seed=1, low=-reach, high=reach).double().requires_grad_()
    directions = tiny.unit_vectors(40, 2).double().requires_grad_()
    weights = [tiny.uniform(40, seed=5).double(), tiny.uniform(40, 3, seed=6).double()]
    results = []
    for function in (tcnn.radiance_field, reference.radiance_field):
        out = function(positions, directions, params, config)
        total = sum((o * w).sum() for o, w in zip(out, weights, strict=True)) * 1e-9  # small: half would lose it
        results.append((out, torch.autograd.grad(total, [positions, directions, *tiny.flat(params)])))
    (values, grads), (wanted, wanted_grads) = results
    for a, b in zip((*values, *grads), (*wanted, *wanted_grads), strict=True):
        assert a.shape == b.shape and checks.relative(a, b) < 1e-5  # scales are float32 on our side
    alone = tcnn.density(positions.detach(), params, config)
    assert torch.allclose(alone, values[0].detach(), rtol=1e-12)


def test_half_precision_keeps_small_gradients(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formulas, "PRECISION", torch.float16)
    tcnn._modules.cache_clear()
    params, config = field()
    positions, directions = tiny.uniform(60, 3, seed=1, low=-1).double(), tiny.unit_vectors(60, 2).double()
    grads = []
    for scale in (1.0, 2.0**-50):
        sigmas, rgbs = tcnn.radiance_field(positions, directions, params, config)
        found = torch.autograd.grad((rgbs.sum() + sigmas.log().sum()) * scale, tiny.flat(params))
        grads.append([g / scale for g in found])
    sigmas, rgbs = reference.radiance_field(positions, directions, params, config)
    wanted = torch.autograd.grad(rgbs.sum() + sigmas.log().sum(), tiny.flat(params))
    for a, b, c in zip(*grads, wanted, strict=True):
        assert torch.equal(a, b) and checks.relative(a, c) < checks.HALF_GRADIENT


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (1e-3, 2e-3)])
def test_its_render_op_is_the_staged_one(thresholds: tuple[float, float], package: None) -> None:
    params, config = field()
    params = tiny.cast(params, torch.float32, requires_grad=True)
    rays, views = tiny.ray_batch(30), tiny.unit_vectors(30, 5)
    settings = kernels.MarchSettings(0.08, 0.0, 0.08, *thresholds, 2.0)
    sink = GradAccumulator(torch.zeros_like(params.table.detach()))
    view = FieldView(params, config)
    found = kernels.render_rays(rays.rays(views), rays.occupied, view, settings, None, sink)
    wanted = reference.render_rays(rays.rays(views), rays.occupied, view, settings)
    assert found.evaluated == wanted.evaluated > found.kept - 1 and found.kept == wanted.kept
    for name in ("foregrounds", "opacities", "depths", "second_moments", "distortions", "median_depths"):
        assert torch.allclose(getattr(found, name), getattr(wanted, name), atol=1e-4), name
    leaves = [*params.density_weights, *params.color_weights]
    grads = torch.autograd.grad(found.foregrounds.sum(), [*leaves, params.table], allow_unused=True)
    assert grads[-1] is None or not grads[-1].any()  # it went to the sink
    wanted_grads = torch.autograd.grad(wanted.foregrounds.sum(), [*leaves, params.table])
    for a, b in zip((*grads[:-1], sink.table), wanted_grads, strict=True):
        assert a is not None and checks.relative(a, b) < 1e-4


@pytest.mark.parametrize("n", [0, 1])
def test_no_ray_and_one_ray(n: int, package: None) -> None:
    params, config = field()
    rays = tiny.ray_batch(8).first(n)
    params = tiny.cast(params, torch.float32, requires_grad=True)
    out = kernels.render_rays(rays.rays(), rays.occupied, FieldView(params, config), tiny.SETTINGS)
    out.foregrounds.sum().backward()
    assert out.foregrounds.shape == (n, 3) and params.table.grad is not None


def test_a_checkpoint_moves_to_it_and_back(package: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny.sphere_scene(4, 16), tiny.train_config(steps=2, batch_samples=512, field=tiny.FIELD))
    before = [p.clone() for p in trainer.parameters]
    assert trainer.train_step() > 0 and trainer.samples["trained"] >= 0
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
    checkpoint.save(tmp_path / "checkpoint.safetensors", *trainer.state())
    assert trainer.model.meta["backend"] == "tinycudann"
    points = tiny.uniform(20, 3, seed=4, low=-1)
    there = trainer.model.density(points)
    kernels.use("reference")
    from nerf.rendering.model import Model

    here = Model.load(tmp_path).density(points)
    assert torch.allclose(there, here, rtol=1e-4)


def test_gpu_check_compares_it_with_our_kernels(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_modes

    monkeypatch.setattr(OccupancyGrid, "update", tiny.flicker)
    monkeypatch.setattr(gpu_modes, "load", lambda *ignored: tiny.sphere_scene(4, 16))
    for module, name in ((checks, "HALF_VALUE"), (gpu_modes, "TINYCUDANN_VALUE")):
        monkeypatch.setattr(module, name, 1e-6)  # which tinycudann keeps here, being float64, and half does not
    found = gpu_modes.tinycudann(Namespace(dry_run=True), Path(), lambda: 100.0)
    assert found["tinycudann"]["errors"]["densities"] < 1e-6 and found["faster_in_training"] in ("cuda", "tinycudann")
    assert found["failed"] == "numbers that are not the reference's: cuda: densities, cuda: colours"


# ---- what it says --------------------------------------------------------------------------------------------------


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "find", lambda: (None, "no GPU answers"))
    with pytest.raises(UserError, match="backend tinycudann is not available: no GPU answers, or use --backend cpu"):
        kernels.use("tinycudann")
    with emulation.use():
        monkeypatch.setattr(tcnn, "import_module", raises(ModuleNotFoundError("none", name="tinycudann")))
        with pytest.raises(UserError, match=r"the package tinycudann is not installed.*or use --backend cuda"):
            kernels.use("tinycudann")
        monkeypatch.setattr(tcnn, "import_module", raises(OSError("Unknown compute capability.\nNo CUDA")))
        with pytest.raises(
            UserError, match=r"cannot be imported .Unknown compute capability. No CUDA.; build it again"
        ):
            kernels.use("tinycudann")
        assert kernels.backend() == "cuda"


def raises(error: Exception):
    def importing(name: str) -> ModuleType:
        raise error

    return importing


def test_auto_leaves_it_alone(package: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.use("auto") == "cuda"
    assert "running on the GPU (emulated GPU)" in capsys.readouterr().err


def test_a_field_it_cannot_express_is_refused(package: None) -> None:
    for width, layers in ((48, (2, 3)), (16, (1, 3))):
        params, config = field(width=width, layers=layers)
        with pytest.raises(UserError, match=r"tinycudann cannot express this field.*use --backend cuda"):
            tcnn.density(torch.zeros(1, 3), params, config)


def test_a_grid_of_another_layout_is_refused(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    params, config = field()
    real = formulas.level_sizes
    monkeypatch.setattr(formulas, "level_sizes", lambda c, d: [(s, r, n + 8) for s, r, n in real(c, d)])
    with pytest.raises(UserError, match="lays this hash grid out in another way"):
        tcnn.density(torch.zeros(1, 3), params, config)
    monkeypatch.setattr(
        formulas, "level_sizes", lambda c, d: [(s * (1 + 0.1 * (r > 9)), r, n) for s, r, n in real(c, d)]
    )
    with pytest.raises(UserError, match="computes level 2 of this hash grid in another way"):
        tcnn.density(torch.zeros(1, 3), params, config)
