"""THE loop on a sphere rendered here: it learns, stops and goes on to the bit, survives kills, says what broke.

A step takes a few milliseconds: small pictures, a small field, and an occupancy grid of 32 cells along an edge.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FIELD, make_scene, sphere_scene, store, train_config

from nerf import kernels
from nerf.datasets import Scene
from nerf.errors import UserError
from nerf.geometry.space import Box, Space, Unbounded
from nerf.io import checkpoint
from nerf.kernels import bindings
from nerf.rendering.model import Model
from nerf.training import loop as training
from nerf.training.loop import Trainer, train
from nerf.training.watched import curve_in_words

ROOT = Path(__file__).resolve().parent.parent
STEPS = 90
SOLID = replace(FIELD, density_bias=3.0)  # objects start solid and are carved
CONFIG = train_config(steps=STEPS, batch_samples=1 << 11, field=SOLID)
CONFIG = CONFIG.with_settings(importance_after=32, importance_every=16)  # early enough for a short run
native = pytest.mark.skipif(bindings.load().handle is None, reason="the slow reference kernels")

Step = Callable[[Trainer], float]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return sphere_scene(8, 32)


@pytest.fixture(scope="module")
def whole(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of STEPS steps that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    train(scene, CONFIG, out, progress=False)
    return out


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Trainer], None]], None]:
    """Has a function called with the trainer before each of its steps; the last one given counts."""
    real: Step = Trainer.train_step
    hooks: list[Callable[[Trainer], None]] = []

    def step(trainer: Trainer) -> float:
        hooks[-1](trainer)
        return real(trainer)

    monkeypatch.setattr(Trainer, "train_step", step)

    def use(hook: Callable[[Trainer], None]) -> None:
        hooks.append(hook)

    use(lambda trainer: None)
    return use


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def same_run(one: Path, other: Path) -> None:
    """Both folders hold the same training, to the bit."""
    (a, config_a), (b, config_b) = (checkpoint.load(p / "checkpoint.safetensors") for p in (one, other))
    assert a.keys() == b.keys()
    different = [k for k in a if a[k].numpy().tobytes() != b[k].numpy().tobytes()]
    assert not different, different
    for key in ("step", "n_rays", "samples", "total_steps"):
        assert config_a["training"][key] == config_b["training"][key], key


def steps_of(out: Path) -> int:
    return int(checkpoint.load(out / "checkpoint.safetensors")[1]["training"]["step"])


def psnr_of(model: Model, scene: Scene, i: int) -> float:
    picture = model.render_image(scene.cameras, i).color
    truth = scene.pixels.image(i).numpy()
    truth = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
    return float(-10 * math.log10(np.square(picture - truth).mean()))


# --- it learns -------------------------------------------------------------------------------------------------------


@native
def test_a_sphere_is_learnt_in_200_steps(tmp_path: Path) -> None:
    scene = sphere_scene(24, 48)
    field = replace(SOLID, width=32, log2_hashmap_size=14, finest_resolution=128)
    model = train(scene, replace(CONFIG, steps=200, batch_samples=1 << 13, field=field), tmp_path, progress=False)
    assert psnr_of(model, scene, 23) > 20  # a view it has not seen; a white picture has some 9 dB
    assert psnr_of(model, scene, 0) > 22
    # Depths lie on the sphere, whose radius is 0.7 scene units.
    out = model.render_image(scene.cameras, 23)
    o, d = scene.cameras.image_rays(23, scene.scene_from_world)
    depth = torch.from_numpy(out.depth).reshape(-1)
    hit = (depth > 0) & (torch.from_numpy(out.opacity).reshape(-1) > 0.9)
    radii = (o + depth[:, None] * d)[hit].norm(dim=1)
    assert 0.6 < float(radii.median()) < 0.78


@native
def test_the_model_that_is_returned_is_the_one_on_disk(scene: Scene, whole: Path, tmp_path: Path) -> None:
    model = train(scene, CONFIG, tmp_path, progress=False)
    same_run(whole, tmp_path)  # the same seed gives the same bytes
    loaded = Model.load(tmp_path)
    again = loaded.render_image(scene.cameras, 7)
    for name, picture in vars(model.render_image(scene.cameras, 7)).items():
        assert picture.tobytes() == getattr(again, name).tobytes(), name
    assert loaded.meta["steps"] == STEPS and loaded.meta["seed"] == 0 and loaded.meta["seconds"] > 0
    assert len(loaded.cameras) == 7 and loaded.space == Box()
    log = json.loads((tmp_path / "training.json").read_text())
    assert log["steps"] == STEPS and [p["step"] for p in log["curve"]] == [50]
    assert 5 < log["curve"][0]["psnr"] < 60
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "nerf.json", "training.json"]


@native
def test_another_seed_is_another_run(scene: Scene, whole: Path, tmp_path: Path) -> None:
    train(scene, replace(CONFIG, seed=1), tmp_path, progress=False)
    tables = [checkpoint.load(p / "checkpoint.safetensors")[0]["field.table"] for p in (whole, tmp_path)]
    assert not torch.equal(*tables)


@native
def test_two_threads_train_to_the_bytes_of_one(scene: Scene, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            train(scene, replace(CONFIG, steps=40), tmp_path / str(n), progress=False)
    finally:
        torch.set_num_threads(before)
    same_run(tmp_path / "1", tmp_path / "2")


@native
def test_both_backends_train_alike(scene: Scene) -> None:
    losses: dict[str, list[float]] = {}
    moved: dict[str, float] = {}
    before = kernels.backend()
    try:
        for name in ("cpu", "reference"):
            kernels.use(name)
            trainer = Trainer(scene, CONFIG)
            trainer.fused = None  # whose batches are others
            table = trainer.model.field.table.detach().clone()
            losses[name] = [trainer.train_step() for _ in range(12)]
            moved[name] = float((trainer.model.field.table.detach() - table).abs().mean())
    finally:
        kernels.use(before)
    # The first loss differs by float32 rounding and the native half-precision table; then Adam, which turns gradients
    # of any size into steps of one size, lets rounding decide where a gradient is nearly zero.
    assert losses["reference"][0] == pytest.approx(losses["cpu"][0], rel=1e-4)
    assert losses["reference"][:4] == pytest.approx(losses["cpu"][:4], rel=0.02)
    assert losses["reference"] == pytest.approx(losses["cpu"], rel=0.1)
    assert losses["cpu"][-1] < losses["cpu"][0]
    assert moved["reference"] == pytest.approx(moved["cpu"], rel=0.1) and moved["cpu"] > 0


@pytest.mark.parametrize("space", [Box(), Unbounded(3)])
def test_a_scene_without_alpha_trains(space: Space, tmp_path: Path) -> None:
    full = sphere_scene(6, 24)
    images = [full.pixels.raw(i)[..., :3].copy() for i in range(6)]
    opaque = make_scene(images, full.cameras, scene_from_world=full.scene_from_world, space=space)
    model = train(opaque, replace(CONFIG, steps=12), tmp_path, progress=False)
    assert model.space == space and bool(torch.isfinite(model.field.table).all())


# --- what must not be learnt -----------------------------------------------------------------------------------------


def masked(scene: Scene, seed: int, used: slice) -> Scene:
    """The opaque scene with noise wherever its masks say that a pixel is not to be used."""
    noise = np.random.default_rng(seed)
    images, masks = [], []
    for i in range(len(scene.names)):
        image = scene.pixels.raw(i)[..., :3].copy()
        mask = np.zeros((*image.shape[:2], 1), np.uint8)
        mask[used] = 255
        image[mask[..., 0] == 0] = noise.integers(0, 256, (int((mask == 0).sum()), 3))
        images.append(image)
        masks.append(mask)
    return make_scene(images, scene.cameras, scene_from_world=scene.scene_from_world, masks=store(masks))


@native
def test_what_is_under_a_mask_does_not_matter(scene: Scene, tmp_path: Path) -> None:
    for seed in (1, 2):
        train(masked(scene, seed, slice(0, 16)), replace(CONFIG, steps=40), tmp_path / str(seed), progress=False)
    same_run(tmp_path / "1", tmp_path / "2")


@native
def test_masks_that_leave_nothing_are_refused_in_a_sentence(scene: Scene) -> None:
    with pytest.raises(UserError, match="the masks leave nothing of the training images"):
        Trainer(masked(scene, 1, slice(0, 0)), CONFIG)


@native
def test_who_passes_through_single_photos_is_at_most_a_blur_in_new_views(tmp_path: Path) -> None:
    """Somebody stands before the sphere in three of 21 photos, each time elsewhere."""
    still, spots = sphere_scene(24, n_test=3), {2: (18, 14), 7: (14, 20), 13: (20, 20)}
    passer, images = torch.tensor([1.0, 0.0, 1.0]), [still.pixels.raw(i).copy() for i in range(24)]
    for i, (row, col) in spots.items():
        images[i][row : row + 9, col : col + 9] = (255, 0, 255, 255)
    passed = make_scene(images, still.cameras, 3, scene_from_world=still.scene_from_world)
    config = replace(CONFIG, steps=400)
    models = {"still": train(still, config, tmp_path / "still", progress=False)}
    models["passed"] = train(passed, config, tmp_path / "passed", progress=False)
    for i in still.splits["test"].tolist():
        rays = still.cameras.image_rays(i, still.scene_from_world)
        truth = still.pixels.image(i).flatten(0, 1)
        truth = truth[:, :3] * truth[:, 3:]
        drawn = {name: model.render_rays(*rays).foregrounds for name, model in models.items()}
        score = {name: -10 * math.log10(float((colors - truth).square().mean())) for name, colors in drawn.items()}
        # of four seeds by 0.1 to 2.9 dB, whoever draws the batches
        assert score["passed"] > score["still"] - 3.0 and score["still"] > 20, f"view {i}: {score} dB"
        alike = (drawn["passed"] - passer).norm(dim=1) < 0.5
        assert int(alike.sum()) <= int(((truth - passer).norm(dim=1) < 0.5).sum()) + 4, f"view {i} shows somebody"


# --- stop and go on --------------------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize("stop", [1, 17, 70])
def test_ctrl_c_saves_and_resuming_equals_never_having_stopped(
    stop: int,
    scene: Scene,
    whole: Path,
    tmp_path: Path,
    before_step: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before_step(lambda trainer: press_ctrl_c() if trainer.step == stop else None)
    with pytest.raises(KeyboardInterrupt):
        train(scene, CONFIG, tmp_path, progress=False)
    assert stop <= steps_of(tmp_path) <= stop + 1
    assert f"stopped at step {steps_of(tmp_path)}; saved" in capsys.readouterr().err
    assert bool(torch.isfinite(Model.load(tmp_path).field.table).all())  # also a model
    before_step(lambda trainer: None)
    train(scene, CONFIG, tmp_path, resume=True, progress=False)
    same_run(whole, tmp_path)


@native
@pytest.mark.parametrize("place", ["after the occupancy's update", "within the optimiser"])
def test_ctrl_c_in_the_middle_of_a_step_loses_no_bit(
    place: str, scene: Scene, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A signal comes at any time; what is saved must be a whole number of steps.
    calls = [0]
    name = "draw_rays" if "occupancy" in place else "adam_step"
    real = getattr(kernels, name)
    n = 49  # step 48 updates the occupancy before it draws; the table's step of Adam is taken before that of the layers

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == n:
            press_ctrl_c()
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(kernels, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(scene, CONFIG, tmp_path, progress=False)
    train(scene, CONFIG, tmp_path, resume=True, progress=False)
    same_run(whole, tmp_path)


@native
def test_resuming_what_is_finished_changes_nothing(scene: Scene, whole: Path, tmp_path: Path) -> None:
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    train(scene, CONFIG, tmp_path, resume=True, progress=False)
    same_run(whole, tmp_path)


@native
def test_resuming_with_other_threads_changes_nothing(
    scene: Scene, whole: Path, tmp_path: Path, before_step: Callable[..., None]
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        before_step(lambda trainer: press_ctrl_c() if trainer.step == 30 else None)
        with pytest.raises(KeyboardInterrupt):
            train(scene, CONFIG, tmp_path, progress=False)
        torch.set_num_threads(1)
        before_step(lambda trainer: None)
        train(scene, CONFIG, tmp_path, resume=True, progress=False)
    finally:
        torch.set_num_threads(before)
    same_run(whole, tmp_path)


@native
def test_resume_without_a_checkpoint_starts(scene: Scene, tmp_path: Path) -> None:
    train(scene, replace(CONFIG, steps=3), tmp_path, resume=True, progress=False)
    assert steps_of(tmp_path) == 3


KILLED = """
import sys, time
import torch
from nerf.training import loop as training
from test_training import CONFIG
from tiny import sphere_scene
from dataclasses import replace
torch.set_num_threads(1)
log = open(sys.argv[1] + "/log", "w", buffering=1)
real_step, real_save = training.Trainer.train_step, training.save
def step(trainer):
    result = real_step(trainer)
    log.write(f"step {trainer.step} {time.perf_counter()}\\n")
    return result
def save(trainer, out):
    real_save(trainer, out)
    log.write(f"saved {trainer.step} {time.perf_counter()}\\n")
training.Trainer.train_step, training.save = step, save
training.train(sphere_scene(8, 32), replace(CONFIG, steps=10**6, checkpoint_seconds=float(sys.argv[2])), sys.argv[1],
               progress=False, overwrite=True)
"""


@native
def test_a_kill_loses_at_most_one_period(scene: Scene, tmp_path: Path, before_step: Callable[..., None]) -> None:
    period = 0.25
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(period)], env=env)
    try:
        log, patience = tmp_path / "log", time.monotonic() + 300
        while not (log.exists() and log.read_text().count("saved") >= 2):
            assert child.poll() is None and time.monotonic() < patience, "the training did not get to its second save"
            time.sleep(0.02)
        time.sleep(0.6 * period)  # somewhere between two saves, or within one
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    lines = [line.split() for line in log.read_text().splitlines() if len(line.split()) == 3]
    done = [(int(s), float(t)) for kind, s, t in lines if kind == "step"]
    saves = {int(s): float(t) for kind, s, t in lines if kind == "saved"}
    saved = steps_of(tmp_path)  # it loads: checksum and all
    assert saved >= max(saves)
    if saved in saves:  # or it was killed right after a save
        assert done[-2][1] - saves[saved] < period + 0.1
    assert bool(torch.isfinite(Model.load(tmp_path).field.table).all())

    # Going on from there is as if nobody had killed it.
    end = saved + 20
    before_step(lambda trainer: press_ctrl_c() if trainer.step == end else None)
    config = replace(CONFIG, steps=10**6)
    for out, resume in ((tmp_path, True), (tmp_path / "undisturbed", False)):
        with pytest.raises(KeyboardInterrupt):
            train(scene, config, out, resume=resume, progress=False)
    same_run(tmp_path, tmp_path / "undisturbed")


# --- how long --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [{"steps": None, "minutes": None}, {"steps": 5, "minutes": 1.0}])
def test_either_steps_or_minutes(both: dict[str, Any], scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="either steps or minutes"):
        train(scene, replace(CONFIG, **both), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


class Clock:
    """Stands for the module `time`: it goes on only when told, so that no busy machine decides a test."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = time = perf_counter


@native
def test_minutes_become_steps(
    scene: Scene, tmp_path: Path, before_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, clock = replace(CONFIG, steps=None, minutes=0.02), Clock()  # 1.2 seconds
    monkeypatch.setattr(training, "time", clock)
    totals: list[int | None] = []
    stop_at = [2]  # before the number of steps is known

    def watch(trainer: Trainer) -> None:
        clock.now += 0.01
        totals.append(trainer.total_steps)
        if trainer.step == stop_at[0]:
            press_ctrl_c()

    before_step(watch)
    with pytest.raises(KeyboardInterrupt):
        train(scene, config, tmp_path, progress=False)
    assert totals == [None] * len(totals)
    stop_at[0] = 40
    with pytest.raises(KeyboardInterrupt):
        train(scene, config, tmp_path, resume=True, progress=False)
    total = totals[-1]
    # 120 steps of 10 ms, or fewer while the batch is expected to grow
    assert total is not None and 60 < total <= 130 and totals.count(None) < 25
    stored = checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["training"]
    assert stored["total_steps"] == total and stored["step"] < total
    stop_at[0] = -1
    clock.now += 1000.0  # the night in between does not count
    model = train(scene, config, tmp_path, resume=True, progress=False)
    assert steps_of(tmp_path) == model.meta["total_steps"] and 110 <= steps_of(tmp_path) <= 123
    assert model.meta["seconds"] == pytest.approx(1.2, abs=0.03)


@native
def test_minutes_are_kept_though_steps_become_slower(
    scene: Scene, tmp_path: Path, before_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, clock = replace(CONFIG, steps=None, minutes=0.05), Clock()  # 3 seconds
    monkeypatch.setattr(training, "time", clock)
    progress: list[float] = []

    def watch(trainer: Trainer) -> None:
        clock.now += 0.01 if trainer.step < 120 else 0.02  # another job begins
        progress.append(trainer.progress())

    before_step(watch)
    model = train(scene, config, tmp_path, progress=False)
    assert model.meta["seconds"] == pytest.approx(3.0, rel=0.03)
    assert 190 < model.meta["steps"] < 225, "of 300 that were expected"
    assert all(a <= b for a, b in itertools.pairwise(progress)) and progress[-1] > 0.97
    steps = [b - a for a, b in itertools.pairwise(progress) if a > 0]
    assert max(steps) < 0.03, "schedules do not jump"


# --- what can break --------------------------------------------------------------------------------------------------


def is_one_sentence(error: pytest.ExceptionInfo[UserError]) -> bool:
    text = str(error.value)
    return "\n" not in text and 20 < len(text) < 700


@native
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kernels.draw_rays
    drawn = [0]

    def draw(*args: Any) -> kernels.DrawnRays:
        batch = real(*args)
        drawn[0] += 1
        return replace(batch, targets=batch.targets * math.nan) if drawn[0] == 21 else batch

    monkeypatch.setattr(kernels, "draw_rays", draw)
    with pytest.raises(
        UserError, match="broke down at step 20: the loss is nan; the checkpoint of step 20 is kept"
    ) as error:
        train(scene, replace(CONFIG, checkpoint_seconds=0.0), tmp_path, progress=False)
    assert is_one_sentence(error)
    assert steps_of(tmp_path) == 20
    tensors, _ = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())


@native
@pytest.mark.parametrize("step", [21, 32])
def test_a_field_that_is_no_number_stops_and_is_never_saved(
    step: int, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after a gradient that overflowed: the update itself writes NaN. At step 32 the occupancy looks at the field
    # before a ray does; an empty grid must not hide it.
    real: Step = Trainer.train_step

    def breaks(trainer: Trainer) -> float:
        result = real(trainer)
        if trainer.step == step:
            trainer.parameters[1].fill_(math.nan)
        return result

    monkeypatch.setattr(Trainer, "train_step", breaks)
    with pytest.raises(UserError, match="broke down at step"):
        train(scene, replace(CONFIG, checkpoint_seconds=0.0), tmp_path, progress=False)
    tensors, _ = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate": ({"learning_rate": 0.5}, "learning_rate 0.01, now 0.5|learning_rate .*, now 0.5"),
    "seed": ({"seed": 7}, "seed 0, now 7"),
    "field": ({"field": replace(FIELD, width=32)}, "field"),
}


@native
@pytest.mark.parametrize("what", REFUSALS)
def test_resuming_another_configuration_is_refused(what: str, scene: Scene, whole: Path) -> None:
    change, words = REFUSALS[what]
    before = (whole / "checkpoint.safetensors").read_bytes()
    with pytest.raises(UserError, match=f"another configuration .*({words}).*--overwrite") as error:
        train(scene, CONFIG.with_settings(**change), whole, resume=True, progress=False)
    assert is_one_sentence(error)
    assert (whole / "checkpoint.safetensors").read_bytes() == before


@native
def test_a_run_goes_on_to_a_longer_length(scene: Scene, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    config = replace(CONFIG, steps=None)  # as before: over
    assert train(scene, config, run, resume=True, progress=False).meta["steps"] == STEPS
    with pytest.raises(UserError, match=f"{STEPS} steps are done already"):
        train(scene, replace(CONFIG, steps=STEPS - 1), run, resume=True, progress=False)
    with pytest.raises(UserError, match="minutes are done already"):
        train(scene, replace(config, minutes=1e-9), run, resume=True, progress=False)
    assert steps_of(run) == STEPS
    longer = train(scene, replace(CONFIG, steps=STEPS + 5), run, resume=True, progress=False)
    assert longer.meta["steps"] == longer.meta["total_steps"] == steps_of(run) == STEPS + 5
    by_time = train(
        scene, replace(config, minutes=longer.meta["seconds"] / 60 + 0.01), run, resume=True, progress=False
    )
    assert by_time.meta["steps"] > STEPS + 5 and by_time.meta["minutes"] > 0.01


@native
def test_resuming_on_other_images_is_refused(scene: Scene, whole: Path) -> None:
    renamed = replace(scene, names=[f"other_{name}" for name in scene.names])
    fewer = replace(scene, splits=scene.splits | {"train": scene.splits["train"][:-1]})
    for other in (renamed, fewer):
        with pytest.raises(UserError, match="trained on other images") as error:
            train(other, CONFIG, whole, resume=True, progress=False)
        assert is_one_sentence(error)


@native
def test_resuming_a_model_without_its_training_is_refused(scene: Scene, whole: Path, tmp_path: Path) -> None:
    Model.load(whole).save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(UserError, match=r"without its training state.*--overwrite") as error:
        train(scene, CONFIG, tmp_path, resume=True, progress=False)
    assert is_one_sentence(error)


@native
def test_progress_goes_to_standard_error(scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(scene, replace(CONFIG, steps=55), tmp_path, progress=True)
    assert capsys.readouterr().out == ""


def test_what_is_told_of_a_training_is_of_photos_that_it_does_not_see(tmp_path: Path) -> None:
    scene = sphere_scene(10, 32)
    lie = scene.pixels.raw(9).copy()
    lie[..., :3] = 255 - lie[..., :3]  # a held-out photo that shows something else
    other = replace(scene, pixels=store([scene.pixels.raw(i) for i in range(9)] + [lie]))
    points = []
    for k, each in enumerate((scene, other)):
        out = tmp_path / str(k)
        train(each, replace(CONFIG, steps=100), out, progress=False)
        points.append(json.loads((out / "training.json").read_text())["curve"][-1])
    assert points[0]["psnr"] == points[1]["psnr"], "the photos learnt from are the same"
    assert points[1]["held_out"] < points[0]["held_out"] - 3
    assert curve_in_words(0.0, points[:1]).endswith("dB held out")
    masks = [np.zeros((32, 32, 1), np.uint8) for _ in range(10)]
    masks[0][:16, :16] = 255
    hidden = Trainer(
        replace(scene, masks=store(masks), splits={"train": torch.arange(1), "test": torch.arange(9, 10)}), CONFIG
    )
    assert hidden.point(20.0).keys() == {"step", "seconds", "psnr"}, "nothing of the held-out photo may be used"
    hidden.watched = {"psnr": hidden.watched["held_out"]}
    assert hidden.point(20.0)["psnr"] == 20.0, "where masks leave none of the watched pixels, that of the batches"
    none = replace(scene, splits={"train": scene.splits["train"]})
    assert [*Trainer(none, CONFIG).watched] == ["psnr"] and not Trainer(
        scene, replace(CONFIG, refine_poses=True)
    ).watched
