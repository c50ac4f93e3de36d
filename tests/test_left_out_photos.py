"""Photos left out of training by somebody's choice: nothing is drawn from them, live and when a run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import AnalyticModel, ball, ring_cameras
from test_keypoints import sphere_keypoints
from test_large_sets import in_tiles
from tiny import FIELD, generator, make_scene, numbered_scene, open_scene, sphere_scene, train_config

from nerf.cli import main as cli
from nerf.datasets import Scene
from nerf.errors import UserError
from nerf.io import checkpoint
from nerf.meshing.photos import grey_pictures
from nerf.training.loop import Trainer, train
from nerf.training.pixel_cache import TileSampler
from nerf.training.pixel_sampler import PixelSampler, Sampler
from nerf.training.used_scene import without
from nerf.views.viewer.edits import Edits, write_edits

CONFIG = train_config(steps=60, batch_samples=1 << 11, field=FIELD).with_settings(
    importance_after=16, importance_every=16
)


def drawn(sampler: Sampler, n: int = 1000) -> set[int]:
    """The photos of a batch."""
    return set(sampler.draw(n, generator(0)).image_ids.tolist())


@pytest.mark.parametrize("tiles", [False, True])
def test_nothing_is_drawn_from_a_photo_that_is_left_out(tiles: bool, tmp_path: Path) -> None:
    scene = numbered_scene([(150, 200), (64, 64), (70, 130)], 3)
    if tiles:
        scene = replace(scene, pixels=in_tiles(scene.pixels, tmp_path, "pixels"))
    sampler: Any = (TileSampler if tiles else PixelSampler)(scene, torch.arange(3))
    assert drawn(sampler) == {0, 1, 2}
    assert sampler.leave_out_photos(torch.tensor([1])) and not sampler.leave_out_photos(torch.tensor([1]))
    assert drawn(sampler) == {0, 2}
    batch = sampler.draw(1000, generator(1))
    sampler.record(batch, torch.rand(1000))
    sampler.update_importance(0.5)
    assert drawn(sampler) == {0, 2}  # photos never drawn from count as average, but for these
    again: Any = (TileSampler if tiles else PixelSampler)(scene, torch.arange(3))
    again.restore(sampler.tensors())
    assert drawn(again) == {0, 2} and not again.leave_out_photos(torch.tensor([1]))
    assert torch.equal(again.draw(500, generator(3)).rows, sampler.draw(500, generator(3)).rows)
    sampler.leave_out_photos(torch.tensor([0]))
    assert drawn(sampler) == {1, 2}  # at once, before the next update
    with pytest.raises(UserError, match="no photo to learn from would be left"):
        sampler.leave_out_photos(torch.arange(3))
    assert drawn(sampler) == {1, 2}
    sampler.leave_out_photos(torch.zeros(0, dtype=torch.int64))
    assert drawn(sampler) == {0, 1, 2} and "photos_out" not in sampler.tensors()


def test_its_keypoints_and_parts_that_were_left_out_before_stay_away() -> None:
    scene = sphere_scene(4, 64)
    sampler = PixelSampler(replace(scene, keypoints=sphere_keypoints(scene)), torch.tensor([0, 1, 3]))
    sampler.left_out = (sampler.blocks[:, 0] == 3) & (sampler.blocks[:, 1] == 1)
    sampler.update_importance(0.0)
    sampler.leave_out_photos(torch.tensor([1]))
    batch = sampler.draw(800, generator(0))
    assert batch.depths is not None and int((batch.depths > 0).sum()) == 100
    assert set(batch.image_ids.tolist()) == {0, 3}
    sampler.leave_out_photos(torch.tensor([0]))
    evenly = sampler.blocks[sampler.draw(800, generator(0)).blocks[:700]]
    assert set(evenly[:, 0].tolist()) == {1, 3} and not bool(((evenly[:, 0] == 3) & (evenly[:, 1] == 1)).any())


def test_names_that_are_none_and_a_choice_of_all_are_one_sentence() -> None:
    scene = sphere_scene(4, 16)
    train_names = [scene.names[i] for i in scene.splits["train"].tolist()]
    kept = without(scene, [train_names[1], scene.names[3]])  # the last is kept to measure by, as before
    assert kept.splits["train"].tolist() == [0, 2] and kept.splits["val"].tolist() == [1]
    assert kept.splits["test"].tolist() == [3] and without(scene, ()).splits["train"].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"^run/edits.json: 'x.png' is to be left out of training, and is no photo of"):
        without(scene, ["x.png"], "run/edits.json")
    with pytest.raises(UserError, match="keep at least one"):
        without(scene, train_names)


@pytest.mark.parametrize("is_open", [False, True])
def test_a_training_leaves_photos_out_from_then_on_and_goes_on_to_the_bit(is_open: bool, tmp_path: Path) -> None:
    scene = open_scene(6, 32) if is_open else sphere_scene(6, 32)
    config = replace(CONFIG, exposure=is_open, vignetting=is_open)
    ids: list[set[int]] = []

    def watch(trainer: Trainer) -> bool:
        if trainer.step == 20:
            trainer.leave_out_photos(scene.names[:2])
        if trainer.step == 40 and stop:
            return False
        if trainer.step > 20:
            ids.append(drawn(trainer.sampler))
        return True

    for stop in (False, True):
        train(scene, config, tmp_path / str(stop), progress=False, between=watch)
        assert all(seen == {2, 3, 4} for seen in ids) and len(ids) >= 19
    train(scene, config, tmp_path / "True", resume=True, progress=False, left_out=scene.names[:2])
    (whole, _), (resumed, _) = (
        checkpoint.load(tmp_path / name / "checkpoint.safetensors") for name in ("False", "True")
    )
    assert all(torch.equal(whole[name], t) for name, t in resumed.items()) and "sampler.photos_out" in whole
    longer = train(scene, replace(config, steps=64), tmp_path / "True", resume=True, progress=False)  # all again
    assert longer.meta["steps"] == 64
    assert "sampler.photos_out" not in checkpoint.load(tmp_path / "True" / "checkpoint.safetensors")[0]


def test_the_verb_goes_on_as_the_edits_say(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = ["train", str(sample), "-o", str(run), "--downscale", "8", "--check", "off"]
    assert cli.run([*command, "--steps", "4"]) == 0
    names = json.loads(json.dumps(checkpoint.load(run / "checkpoint.safetensors")[1]["training"]["names"]))
    write_edits(run, Edits(left_out=(names[0], names[5])))
    capsys.readouterr()
    assert cli.run([*command, "--steps", "8", "--resume"]) == 0
    assert f"2 photos are left out of training by {run / 'edits.json'}" in capsys.readouterr().err
    tensors, _ = checkpoint.load(run / "checkpoint.safetensors")
    assert tensors["sampler.photos_out"].tolist() == [0, 5]
    write_edits(run, Edits(left_out=("nothing.png",)))
    before = (run / "checkpoint.safetensors").read_bytes()
    for verb in (
        [*command, "--steps", "9", "--resume"],
        ["mesh", str(run), "-o", str(tmp_path / "m.glb"), "--texture", "256"],
    ):
        assert cli.run(verb) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "edits.json: 'nothing.png' is to be left out of training, and is no photo of" in said
    assert (run / "checkpoint.safetensors").read_bytes() == before and not (tmp_path / "m.glb").exists()


def test_the_page_tells_the_training_between_its_steps() -> None:
    viewer_module = pytest.importorskip("nerf.views.viewer.server")
    told: list[tuple[str, ...]] = []

    def leave_out(names: tuple[str, ...], said_by: str) -> None:
        told.append(names)
        if len(names) > 1:
            raise UserError("no")

    subject = SimpleNamespace(edits=Edits())
    viewer: Any = SimpleNamespace(subject=subject, clients=[], _left_out=())
    for names in ((), ("a",), ("a",), ("a", "b"), ("a", "b"), ()):
        subject.edits = Edits(left_out=names)
        viewer_module.Viewer._leave_out(viewer, SimpleNamespace(leave_out_photos=leave_out))
    assert told == [("a",), ("a", "b"), ()]  # each change once, and what cannot be done ends nothing


def test_meshes_do_not_use_it_either() -> None:
    cameras = ring_cameras(4, 24)
    model = AnalyticModel(ball(0.7), cameras=cameras)
    scene: Scene = make_scene([np.full((24, 24, 3), 90, np.uint8)] * 4, cameras)
    model.names = scene.names
    for kept, expected in ((scene, [True, True]), (without(scene, scene.names[:1]), [False, True])):
        pictures = grey_pictures(model, kept, torch.tensor([0, 1]), cameras.subset([0, 1]))
        assert [bool(p.isfinite().any()) for p in pictures] == expected
