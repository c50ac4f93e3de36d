"""Settings are held against their ranges where they enter: made in Python, or read from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_scenes import write_transforms

import nerf
from nerf.errors import Range, UserError
from nerf.fields.radiance import OPTIONS
from nerf.io import checkpoint
from nerf.io.clock import LENGTH, Length
from nerf.meshing.extract import MESHING
from nerf.rendering.marching import MARCHING, Marching
from nerf.signals.fields import CHOICE
from nerf.signals.fitting import FITTING, Fitter, field_for
from nerf.training.config import TRAINING
from nerf.training.loop import Trainer
from nerf.training.schedule import SCHEDULE, WEIGHTS

RECORDS: list[tuple[type, Mapping[str, Range], set[str]]] = [
    (
        nerf.TrainConfig,
        TRAINING,
        {
            "weights",
            "schedule",
            "field",
            "refine_poses",
            "exposure",
            "vignetting",
            "flash",
            "distractors",
            "deterministic",
            "graph",
        },
    ),
    (nerf.Weights, WEIGHTS, set()),
    (nerf.Schedule, SCHEDULE, set()),
    (nerf.FieldOptions, OPTIONS, set()),
    (nerf.FitConfig, FITTING, set()),
    (nerf.FieldChoice, CHOICE, {"kind", "output"}),
    (Length, LENGTH, set()),
    (Marching, MARCHING, {"space"}),
]
SMALL = nerf.TrainConfig(
    steps=2, batch_samples=512, occupancy_resolution=32, field=nerf.FieldOptions(n_levels=4, log2_hashmap_size=10)
)


@pytest.mark.parametrize(("record", "ranges", "others"), RECORDS, ids=[r.__name__ for r, *_ in RECORDS])
def test_every_number_of_a_record_has_a_range(record: type, ranges: Mapping[str, Range], others: set[str]) -> None:
    assert {f.name for f in fields(record)} == set(ranges) | others


@pytest.mark.parametrize(("record", "ranges", "others"), RECORDS[:-2], ids=[r.__name__ for r, *_ in RECORDS[:-2]])
def test_what_is_no_such_number_is_one_sentence(record: type, ranges: Mapping[str, Range], others: set[str]) -> None:
    for name, allowed in ranges.items():
        wrong: list[Any] = [math.nan, "3", True, allowed.low - 1, *([] if allowed.optional else [None])]
        wrong += [allowed.low] * allowed.above + [2.5] * allowed.whole
        wrong += [allowed.high * 2, math.inf] * (allowed.high < math.inf)
        for value in wrong:
            with pytest.raises(UserError, match=rf"^{record.__name__}.{name} is .*, expected a (whole )?number"):
                record(**{name: value})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nerf.TrainConfig(steps=5, batch_samples=0), "TrainConfig.batch_samples is 0, expected a whole number"),
        (
            lambda: nerf.TrainConfig(steps=-5),
            "TrainConfig.steps is -5, expected a whole number from 1 to 1000000000, or",
        ),
        (lambda: nerf.TrainConfig(steps=5).with_settings(occupancy_every=0), "Schedule.occupancy_every is 0"),
        (lambda: nerf.Schedule(occupancy_everywhere=(64, -1)), "Schedule.occupancy_everywhere is -1"),
        (lambda: nerf.Schedule(exposure_after=0.9), "exposure_until is 0.85, expected more than exposure_after, 0.9"),
        (
            lambda: nerf.TrainConfig(field=nerf.RadianceField),
            "TrainConfig.field is of the type type, expected FieldOpt",
        ),
        (lambda: nerf.FieldOptions(base_resolution=64, finest_resolution=32), "FieldOptions: the sizes do not go"),
        (lambda: Length(minutes=math.nan), "Length.minutes is nan, expected a number above 0, at most 1000000"),
        (lambda: nerf.Marching(nerf.Box(), near=0.0, far=1.0, step_size=0.0), "Marching.step_size is 0.0"),
        (lambda: nerf.OccupancyGrid(resolution=0), "OccupancyGrid: resolution is 0"),
        (lambda: nerf.load("data", downscale=math.nan), "downscale is nan, expected a whole number from 1"),
        (lambda: nerf.load("data", holdout=2.5), "holdout is 2.5, expected a whole number"),
        (lambda: nerf.extract_mesh(FAKE, resolution=math.nan), "--resolution is nan, expected a whole number from 8"),
        (lambda: nerf.extract_mesh(FAKE, smooth=-1), "--smooth is -1, expected a whole number from 0 to 100"),
        (lambda: nerf.extract_mesh(FAKE, refine=2.5), "--refine is 2.5"),
        (lambda: nerf.extract_mesh(FAKE, threshold=0), "--threshold is 0"),
    ],
)
def test_settings_that_steer_loops_are_refused(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


class FAKE:
    """All that extract_mesh looks at before the settings."""

    space = nerf.Box()


def test_the_options_of_a_mesh_have_ranges() -> None:
    with pytest.raises(UserError, match="--max-components is 0"):
        nerf.extract_mesh(FAKE, max_components=0)  # type: ignore[arg-type]
    assert all(isinstance(allowed, Range) for allowed in MESHING.values())


def test_numbers_of_numpy_become_those_of_python() -> None:
    config = nerf.TrainConfig(steps=np.int64(3), minutes=None).with_settings(learning_rate=np.float32(0.5))
    assert type(config.steps) is int and type(config.schedule.learning_rate) is float
    assert asdict(config)["steps"] == 3


# ---- read from a checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nerf.Scene, dict[str, Any], dict[str, Any]]:
    scene = nerf.load(write_transforms(tmp_path_factory.mktemp("scene"), n=6), quiet=True)
    return scene, *Trainer(scene, SMALL).state()


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("field", "width"), -1, "FieldOptions.width is -1"),
        (("field", "n_levels"), 1e9, "FieldOptions.n_levels is 1000000000.0"),
        (("field", "log2_hashmap_size"), 30, "settings and its tensors do not agree"),
        (("occupancy", "resolution"), 1 << 20, "resolution is 1048576"),
        (("occupancy", "n_levels"), 0, "n_levels is 0"),
        (("marching", "step_size"), 1e-30, "Marching.step_size is 1e-30"),
        (("marching", "step_size"), [0.1], r"Marching.step_size is \[0.1\]"),
        (("marching", "near"), math.nan, "Marching.near is nan"),
        (("marching", "n_levels"), 1000, "n_levels is 1000"),
        (("scene_from_world", "scale"), 0.0, "scene_from_world: its scale is 0"),
        (("scene_from_world", "rotation"), [[2, 0, 0], [0, 2, 0], [0, 0, 2]], "its rotation is no rotation"),
    ],
)
def test_a_checkpoint_s_settings_are_checked(
    saved: Any, tmp_path: Path, place: tuple[str, str], value: Any, words: str
) -> None:
    _, tensors, config = saved
    part, name = place
    known = {part: config[part] | {"space": "unbounded"} if name == "n_levels" and part == "marching" else config[part]}
    checkpoint.save(tmp_path / "c.safetensors", tensors, config | {part: known[part] | {name: value}})
    with pytest.raises(UserError, match=f"c.safetensors does not hold a model this version understands .*{words}"):
        nerf.Model.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize("factor", [1e200, 2.0, 0.0])
def test_the_cameras_of_a_checkpoint_are_turned_and_nothing_else(saved: Any, tmp_path: Path, factor: float) -> None:
    _, tensors, config = saved
    bent = tensors["cameras.c2w"].clone()
    bent[1, :, :3] *= factor
    checkpoint.save(tmp_path / "c.safetensors", tensors | {"cameras.c2w": bent}, config)
    with pytest.raises(UserError, match=r"cameras.c2w holds a matrix that is no rotation"):
        nerf.Model.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_rays": -64}, "n_rays is -64"),
        ({"n_rays": 1 << 40}, "n_rays is"),
        ({"step": math.nan}, "step is nan"),
        ({"step": "1"}, "step is '1'"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"names": None}, "trained on other images"),
        ({"config": None}, "damaged"),
        ({"curve": 3}, "its curve is no list"),
        ({"curve": [{"step": 1, "held_out": "20"}]}, "values that are no numbers"),
        ({"samples": {"rays": "x", "evaluated": 0, "trained": 0}}, "rays is 'x'"),
    ],
)
def test_a_training_state_is_checked_before_it_goes_on(
    saved: Any, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    scene, tensors, config = saved
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, tensors, config | {"training": config["training"] | change})
    with pytest.raises(UserError, match=f"{words}.*start again with --overwrite"):
        nerf.train(scene, SMALL, tmp_path, resume=True, progress=False)


def test_a_training_state_without_its_tensors_is_said(saved: Any, tmp_path: Path) -> None:
    scene, tensors, config = saved
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, {k: t for k, t in tensors.items() if k != "adam.0.m"}, config)
    with pytest.raises(UserError, match=r"its training state is damaged .*0.m"):
        nerf.train(scene, SMALL, tmp_path, resume=True, progress=False)
    errors = tensors["sampler.errors"]
    for other in ({"adam.0.m": torch.zeros(3)}, {"sampler.errors": errors.long()}, {"sampler.errors": errors[:, None]}):
        checkpoint.save(path, tensors | other, config)
        with pytest.raises(UserError, match="its training state is damaged"):
            nerf.train(scene, SMALL, tmp_path, resume=True, progress=False)


@pytest.mark.parametrize(
    "change", [{"config": 3}, {"curve": 3}, {"step": "1"}, {"seconds": None}, {"config": {}}, {"adam.0.v": None}]
)
def test_the_state_of_a_fit_is_checked_before_it_goes_on(tmp_path: Path, change: dict[str, Any]) -> None:
    signal = nerf.Signal("image", np.linspace(0, 1, 64, dtype=np.float32)[:, None], (8, 8))
    config = nerf.FitConfig(steps=3)
    fitter = Fitter(signal, field_for(signal, "mlp"), config)
    tensors, state = fitter.state()
    state["fitting"] |= {name: value for name, value in change.items() if name in state["fitting"]}
    kept = {name: t for name, t in tensors.items() if name not in change}
    checkpoint.save(tmp_path / "checkpoint.safetensors", kept, state)
    with pytest.raises(UserError, match=r"checkpoint.safetensors.*start again with --overwrite"):
        nerf.fit(signal, "mlp", config, tmp_path, resume=True)
