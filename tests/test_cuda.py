"""The CUDA backend without a GPU: its kernels run on an emulated one (cuda_shim.h), its sources compile for every card.

On a machine with a GPU, scripts/gpu_check.sh runs the same checks there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import emulation
import numpy as np
import pytest
import tiny
import torch

from nerf import kernels
from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.io import checkpoint
from nerf.kernels import FieldView, GradAccumulator, cuda, cuda_render, nvrtc
from nerf.rendering.model import Model
from nerf.training.loop import Trainer
from nerf.training.pixel_sampler import PixelSampler

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))
from benchmarks import cuda_checks as checks  # noqa: E402

needs_compiler = pytest.mark.skipif(emulation.compiler() is None, reason="needs a C++ compiler")
SMALL = {"width": 32, "n_features": 16}
CASES: dict[str, Callable[[], Iterator[checks.Row]]] = {
    "march": lambda: checks.check_march(300),
    "hash grid": lambda: checks.check_hashgrid(100, ((3, 4), (1, 1))),
    "field, single": lambda: checks.check_field(False, 50, **SMALL),
    "field, half": lambda: checks.check_field(True, 50, **SMALL),
    "render, single": lambda: checks.check_render(False, 40, 0.06, **SMALL),
    "render, half": lambda: checks.check_render(True, 40, 0.06, **SMALL),
    "render, half, 2 features": lambda: checks.check_render(True, 20, 0.1, features=2, **SMALL),
    "render, half, other depths": lambda: checks.check_render(True, 20, 0.1, layers=(3, 1), **SMALL),
    "stops": lambda: checks.check_stops(40, **SMALL),
    "Adam": lambda: checks.check_adam(200),
    "numbers": checks.check_numbers,
}


@pytest.mark.parametrize("name", CASES)
def test_an_op_gives_what_the_reference_gives(name: str, emulated: None) -> None:
    rows = list(CASES[name]())
    assert rows
    wrong = [f"{what}: {error:.2g}, allowed {limit:.2g}" for what, error, limit in rows if not error <= limit]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow  # half a minute; .ci/run asks for it
@pytest.mark.parametrize("name", ["march", "hash grid", "field, single", "field, half", "render, single"])
def test_a_check_at_a_gpus_size_calls_no_right_number_wrong(name: str, emulated: None) -> None:
    wrong = [row for row in checks.ALL[name]() if not row[1] <= row[2]]
    assert not wrong


def test_the_checks_notice_a_wrong_number(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernels.field_forward
    monkeypatch.setattr(kernels, "field_forward", lambda *a: tuple(x if x is None else x * 1.01 for x in real(*a)))
    rows = list(checks.check_field(True, 50, **SMALL))
    assert any(error > limit for _, error, limit in rows)


def render(rays: tiny.RayBatch, params, config, sink=None, half=True):
    view = FieldView(params, config, params.table.detach().half() if half else None)
    views, overflow = tiny.unit_vectors(len(rays.rays_o), 5), "grow" if sink is None else "drop"
    return kernels.render_rays(rays.rays(views), rays.occupied, view, tiny.SETTINGS, None, sink, overflow)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("n", [0, 1])
def test_no_ray_and_one_ray(n: int, ordered: bool, emulated: None) -> None:
    kernels.be_deterministic(ordered)
    params, config = checks.make_field(**SMALL)
    params = tiny.cast(params, torch.float32, requires_grad=True)
    out = render(tiny.ray_batch(8).first(n), params, config)
    assert out.foregrounds.shape == (n, 3)
    out.foregrounds.sum().backward()
    assert params.table.grad is not None and bool(params.table.grad.isfinite().all())


@pytest.mark.parametrize(
    ("capability", "kilobytes", "width", "staged"),
    [((9, 0), 227, 64, 1), ((8, 6), 99, 64, 1), ((7, 5), 64, 64, 0), ((9, 0), 227, 128, 1), ((8, 6), 99, 128, 0)],
)
def test_a_block_never_asks_for_more_shared_memory_than_the_card_has(
    capability: tuple[int, int], kilobytes: int, width: int, staged: int, emulated: None, monkeypatch
) -> None:
    card = replace(emulation.GPU, capability=capability, shared_bytes=kilobytes << 10)
    monkeypatch.setattr(nvrtc, "find", lambda: (card, ""))
    monkeypatch.setattr(cuda.Net, "program", lambda self, name: mock.Mock())
    params, config = checks.make_field(width=width)
    net = cuda.Net(FieldView(params, config, params.table.half()), cuda.pointers())
    assert net.backward_bytes <= card.shared_bytes
    assert dict(net.constants)["NERF_STAGE_WEIGHTS"] == staged == (net.staged_bytes > 0)


def test_samples_without_room_are_in_the_picture_and_counted(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    params, config = checks.make_field(**SMALL)
    params = tiny.cast(params, torch.float32, requires_grad=True)
    rays = tiny.ray_batch(40)
    with torch.no_grad():
        whole = render(rays, params, config)
    monkeypatch.setattr(cuda_render, "LEAST_ROOM", 64)
    monkeypatch.setattr(cuda_render, "RAY_ROOM", 0)
    sink = GradAccumulator(torch.zeros_like(params.table.detach()))
    cramped = render(rays, params, config, sink)
    assert int(cramped.kept) > cramped.capacity == 64
    assert torch.equal(cramped.foregrounds, whole.foregrounds)
    cramped.foregrounds.sum().backward()
    assert bool(sink.table.isfinite().all()) and float(sink.table.abs().sum()) > 0

    grown = render(rays, params, config)  # without a sink every sample is promised its gradient
    assert int(grown.kept) == int(cramped.kept) <= grown.capacity


def test_rows_are_not_added_where_they_cannot_be(emulated: None) -> None:
    params, config = checks.make_field(**SMALL)
    params = tiny.cast(params, torch.float32, requires_grad=True)
    n = params.table.numel()
    sink = GradAccumulator(torch.zeros(n + 1)[1:].view(params.table.shape))  # begins 4 bytes behind where it should
    with pytest.raises(ValueError, match=r"grad_accumulator\.table: expected to begin at a multiple of 16 bytes"):
        render(tiny.ray_batch(8), params, config, sink).foregrounds.sum().backward()


@pytest.fixture
def deterministic(emulated: None) -> None:
    kernels.be_deterministic(True)  # until the emulated GPU goes


@pytest.mark.parametrize("name", ["hash grid", "render, single", "render, half"])
def test_deterministic_sums_are_right(name: str, emulated: None, deterministic: None) -> None:
    wrong = [row for row in CASES[name]() if not row[1] <= row[2]]
    assert not wrong


def all_gradients(half: bool, monkeypatch: pytest.MonkeyPatch, backwards: bool) -> list[torch.Tensor]:
    """Of a render op and of the hash grid alone, with threads in one order or the other."""
    monkeypatch.setattr(emulation, "BACKWARDS", backwards)
    params, config = checks.make_field(**SMALL)
    params = tiny.cast(params, torch.float32, requires_grad=True)
    rays, views = tiny.ray_batch(100), tiny.unit_vectors(100, 5).requires_grad_()
    moving = [rays.rays_o.requires_grad_(), rays.rays_d.requires_grad_(), views]
    table_half = params.table.detach().half() if half else None
    settings = replace(tiny.SETTINGS, stop_threshold=1e-3, alpha_threshold=1e-2)
    view = FieldView(params, config, table_half)
    out = kernels.render_rays(rays.rays(views), rays.occupied, view, settings)
    found = list(torch.autograd.grad(out.foregrounds.square().sum(), [*moving, *tiny.flat(params)]))
    points = tiny.uniform(300, 3, seed=3)
    features = kernels.hashgrid_encode(points, params.table, config.layout)
    return [*found, *torch.autograd.grad(features.sin().sum(), params.table), out.foregrounds.detach()]


@pytest.mark.parametrize("half", [False, True])
def test_deterministic_gradients_do_not_depend_on_the_order_of_threads(
    half: bool, emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [all_gradients(half, monkeypatch, backwards) for backwards in (False, True)]
    differing = [not torch.equal(a, b) for a, b in zip(*free, strict=True)]
    assert differing[3] and any(differing[4:9]) and differing[-2] and not differing[-1]  # else nothing was tried
    kernels.be_deterministic(True)
    fixed = [all_gradients(half, monkeypatch, backwards) for backwards in (False, True)]
    assert all(torch.equal(a, b) for a, b in zip(*fixed, strict=True))


def test_a_deterministic_training_does_not_depend_on_the_order_of_threads(
    emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OccupancyGrid, "update", tiny.flicker)
    scene, found = tiny.sphere_scene(4, 16), []
    field = replace(tiny.FIELD, log2_hashmap_size=7)
    for backwards in (False, True):
        monkeypatch.setattr(emulation, "BACKWARDS", backwards)
        trainer = Trainer(scene, tiny.train_config(steps=2, batch_samples=1024, field=field, deterministic=True))
        for _ in range(2):
            trainer.n_rays = 64
            trainer.train_step()
        found.append([*trainer.parameters, trainer.sampler.errors])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_deterministic_error_maps_do_not_depend_on_the_order_of_pixels(emulated: None, deterministic: None) -> None:
    scene, maps = tiny.sphere_scene(3, 32), []
    for order in (torch.arange(500), torch.arange(500).flip(0)):
        sampler = PixelSampler(scene, scene.splits["train"])
        batch = sampler.draw(500, tiny.generator(0))
        batch.blocks = batch.blocks[order]
        sampler.record(batch, tiny.uniform(500, seed=1)[order])
        sampler.update_importance(0.5)
        maps.append([sampler.errors, sampler.cumulative])
    for a, b in zip(*maps, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


def test_deterministic_sums_show_what_is_no_number(emulated: None, deterministic: None) -> None:
    params, config = checks.make_field(**SMALL)
    table = params.table.clone().requires_grad_()
    features = kernels.hashgrid_encode(tiny.uniform(10, 3), table, config.layout)
    weights = torch.ones_like(features)
    weights[3, 2] = float("nan")
    (grad,) = torch.autograd.grad((features * weights).sum(), table)
    assert bool(grad.isnan().any()) and bool(grad.isfinite().any())


def test_deterministic_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_chosen", "tinycudann")
    with pytest.raises(UserError, match=r"tinycudann cannot be deterministic.*use --backend cuda"):
        kernels.be_deterministic(True)
    monkeypatch.setattr(kernels, "_chosen", "cpu")
    kernels.be_deterministic(True)
    assert not kernels.is_deterministic()  # of the CPU nothing has to be asked
    kernels.be_deterministic(False)


def test_nothing_is_kept_for_a_backward_pass_that_cannot_come(emulated: None) -> None:
    params, config = checks.make_field(**SMALL)
    params = tiny.cast(params, torch.float32, requires_grad=True)
    with torch.no_grad():
        seen = render(tiny.ray_batch(20), params, config)
    learnt = render(tiny.ray_batch(20), params, config)
    assert seen.capacity is None and learnt.capacity is not None
    assert torch.equal(seen.foregrounds, learnt.foregrounds)


def test_gradients_of_any_size_survive_half_precision(emulated: None) -> None:
    params, config = checks.make_field(**SMALL)
    rays, found = tiny.ray_batch(20), []
    for scale in (2.0**-40, 1.0, 2.0**27):  # powers of two: the same digits, wherever the point is
        p = tiny.cast(params, torch.float32, requires_grad=True)
        (render(rays, p, config).foregrounds.sum() * scale).backward()
        assert p.table.grad is not None
        found.append(p.table.grad / scale)
    assert checks.relative(found[0], found[1]) < 1e-6 and checks.relative(found[2], found[1]) < 1e-6


def test_a_number_that_is_none_shows(emulated: None) -> None:
    params, config = checks.make_field(**SMALL)
    params.density_weights[1][0, 0] = float("nan")
    sigmas, _ = kernels.field_forward(tiny.uniform(5, 3), None, FieldView(params, config, params.table.half()))
    assert bool(sigmas.isnan().all())


def test_training_and_its_checkpoint_move_between_backends(emulated: None, tmp_path: Path) -> None:
    scene = tiny.sphere_scene(4, 16)
    config = tiny.train_config(steps=2, batch_samples=1024, field=tiny.FIELD, occupancy_every=2)
    trainer = Trainer(scene, config)
    losses = [trainer.train_step() for _ in range(2)]
    assert all(np.isfinite(losses)) and trainer.samples["trained"] > 0
    checkpoint.save(tmp_path / "checkpoint.safetensors", *trainer.state())
    on_gpu = Model.load(tmp_path).render_image(scene.cameras, 0).color
    kernels.use("reference")
    on_cpu = Model.load(tmp_path).render_image(scene.cameras, 0).color
    psnr = -10 * np.log10(np.square(on_gpu - on_cpu).mean())
    assert psnr > 50, f"{psnr:.1f} dB apart"  # half precision on one side, float32 on the other


MMA = """
#include "cuda_pairs.h"
struct MmaArgs { const float* a; const float* b; float* c; };
KERNEL(both_products, MmaArgs, 32) {
  const int lane = lane_index();
  FloatPair a[4], b[2];
  for (int i = 0; i < 4; ++i) set_pair(a[i], args.a[lane * 8 + 2 * i], args.a[lane * 8 + 2 * i + 1]);
  for (int i = 0; i < 2; ++i) set_pair(b[i], args.b[lane * 4 + 2 * i], args.b[lane * 4 + 2 * i + 1]);
  float one[4] = {}, two[4] = {};
  mma_all(one, a, b);
  mma_by_shuffles_all(two, a, b);
  for (int i = 0; i < 4; ++i) args.c[lane * 8 + i] = one[i], args.c[lane * 8 + 4 + i] = two[i];
}
"""


@needs_compiler
def test_the_product_by_shuffles_is_that_of_the_tensor_cores() -> None:
    import ctypes

    class Args(ctypes.Structure):
        _fields_ = [(name, ctypes.c_void_p) for name in "abc"]

    a, b, c = torch.randn(32, 8), torch.randn(32, 4), torch.zeros(32, 8)
    program = emulation.Program(emulation.build_library("both_products", MMA, (), ()))
    program.launch("both_products", Args(*(t.data_ptr() for t in (a, b, c))), 1, 32)
    assert float(c.abs().sum()) > 0 and torch.allclose(c[:, :4], c[:, 4:], atol=1e-5)


SANITIZED = """
import sys
sys.path[:0] = [{tests!r}, {scripts!r}]
import emulation
from benchmarks import cuda_checks as checks
emulation.EXTRA = emulation.SANITIZERS
with emulation.use():
    small = {{"width": 32, "n_features": 16}}
    render, ordered = checks.check_render(True, 4, 0.2, **small), checks.check_deterministic(4, **small)
    for rows in (checks.check_march(20), render, ordered):
        assert all(error <= limit for _, error, limit in rows)
print("clean")
"""


@pytest.mark.slow  # AddressSanitizer compiles and runs slowly; .ci/run asks for it
@needs_compiler
def test_the_kernels_run_clean_under_sanitizers() -> None:
    where = subprocess.run([*emulation.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    library = Path(where.stdout.strip())
    if where.returncode or not library.is_absolute():
        pytest.skip("needs a compiler with AddressSanitizer as a shared library")
    code = SANITIZED.format(tests=str(ROOT / "tests"), scripts=str(ROOT / "scripts"))
    options = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0", "LD_PRELOAD": str(library)}
    environment = {**os.environ, **options, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-4000:]


# ---- compiling and finding ----------------------------------------------------------------------------


@pytest.mark.skipif(nvrtc.nvrtc_version() is None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
def test_a_source_compiles_for_old_and_new_cards() -> None:
    for architecture in (75, 90):
        code, _ = nvrtc.compile_source("cuda_adam.cu", architecture, {})
        assert code[:4] == b"\x7fELF"
        assert b" ".hex() == "20", "the compiler wrote into a byte that all of Python shares"
    with pytest.raises(UserError, match=r"do not compile for sm_90 .*cuda_field.cu.*error.*--backend cpu"):
        nvrtc.compile_source("cuda_field.cu", 90, {"NERF_WIDTH": 3})


@pytest.mark.skipif(nvrtc.nvrtc_version() is None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
def test_kernels_use_what_the_chip_is_fast_at() -> None:
    """Wide accesses, tensor cores, a whole row in one atomic; and no array that ended up in memory."""
    newest = 91  # no such card: NVRTC then gives readable code for the newest one below

    def operations(name: str, kernel: str, defines: dict[str, int]) -> Counter[str]:
        code = nvrtc.compile_source(name, newest, defines)[0].decode()
        body = re.search(rf"\.entry {kernel}\(.*?\n\{{(.*?)\n\}}", code, re.S)
        assert body is not None and "__local_depot" not in body[1], kernel
        return Counter(re.findall(r"^\s*(?:@%p\d+ )?((?:ld|st|red|mma|ldmatrix)\.[\w.:]*)", body[1], re.M))

    field = {"NERF_STAGE_WEIGHTS": 1}
    adam = operations("cuda_adam.cu", "adam_rows_of_four", {})
    assert adam["ld.global.v4.f32"] == 4 == adam["st.global.v4.f32"]
    encode = operations("cuda_hashgrid.cu", "encode", {})
    assert encode["ld.global.v4.f32"] == 8 and encode["st.global.v4.f32"] == 1
    assert operations("cuda_hashgrid.cu", "scatter", {})["red.global.add.v4.f32"] == 8
    assert operations("cuda_backward.cu", "scatter_table", field)["red.global.add.v4.f32"] == 8
    product = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    forward = operations("cuda_render.cu", "render_forward", field)
    assert forward[product] == 76 == forward["ld.shared.v2.u32"]  # of 16 samples through five layers, 64 wide
    assert forward["ld.global.v2.u32"] >= 32 and forward["st.global.v4.f32"] == 2  # 8 corners x 2 levels x 2 samples
    backward = operations("cuda_backward.cu", "field_backward", field)
    assert backward[product] > 200 and backward["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] > 50


def test_compiled_kernels_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    calls: list[str] = []

    def compiles(name: str, architecture: int, defines: dict[str, int]) -> tuple[bytes, str]:
        calls.append(name)
        return f"{name} {architecture} {defines}".encode(), ""

    monkeypatch.setattr(nvrtc, "compile_source", compiles)
    monkeypatch.setenv("NERF_CACHE_DIR", str(tmp_path / "cache"))
    first = nvrtc.cached("cuda_adam.cu", 90, {})
    assert "compiling cuda_adam.cu for this GPU (sm_90)" in capsys.readouterr().err
    assert nvrtc.cached("cuda_adam.cu", 90, {}) == first and len(calls) == 1
    nvrtc.cached("cuda_adam.cu", 90, {"A": 1})
    nvrtc.cached("cuda_adam.cu", 80, {})
    assert len(calls) == 3  # other constants and other cards are other files
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NERF_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert nvrtc.cached("cuda_adam.cu", 90, {}) == first
    assert "set NERF_CACHE_DIR to another folder" in capsys.readouterr().err


def test_what_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = type("P", (), {"name": "Card", "major": 9, "minor": 0, "multi_processor_count": 2})
    find = nvrtc.find.__wrapped__  # without the cache

    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this torch has no CUDA" in find()[1]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvrtc, "driver_version", lambda: (12, 8))
    assert "torch is built for CUDA 13.0, newer than what the driver runs (CUDA 12.8)" in find()[1]
    assert "nerf-reconstruct[cuda12]" in find()[1]
    monkeypatch.setattr(nvrtc, "driver_version", lambda: None)
    assert "no NVIDIA GPU and driver answer" in find()[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", mock.Mock(side_effect=RuntimeError("CUDA error:\n busy")))
    assert "the GPU does not answer (CUDA error: busy); see what nvidia-smi says" in find()[1]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties)
    monkeypatch.setattr(nvrtc, "driver_version", lambda: (12, 8))
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: None)
    assert "NVRTC is not: pip install 'nerf-reconstruct[cuda12]'" in find()[1]
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: (13, 0))
    assert "NVRTC 13.0 is newer than what the driver runs (CUDA 12.8)" in find()[1]
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: (12, 6))
    gpu, reason = find()
    assert gpu is not None and gpu.architecture == 90 and reason == ""
    properties.major = 6
    assert "compute capability 6.0; the kernels need 7.5" in find()[1]


def test_a_gpu_that_computes_wrongly_is_left_alone(emulated: None, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(cuda, "ray_jitter", lambda seed, step, n: torch.zeros(n))
    with pytest.raises(UserError, match="backend cuda is not available: emulated GPU computes wrong numbers"):
        kernels.use("cuda")
    assert kernels.use("auto") != "cuda"
    assert "not running on the GPU: emulated GPU computes wrong numbers" in capsys.readouterr().err


def test_asking_for_cuda_without_a_gpu_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "find", lambda: (None, "the reason"))
    before = kernels._chosen
    with pytest.raises(UserError, match="backend cuda is not available: the reason, or use --backend cpu"):
        kernels.use("cuda")
    assert kernels._chosen == before
