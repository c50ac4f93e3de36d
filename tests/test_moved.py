"""Data and runs that move between one command and the next."""

from __future__ import annotations

from pathlib import Path

import captures
import pytest
from small_scenes import edit, write_transforms
from tiny import FIELD, train_config

from nerf.capture.folder import open_folder, state_of, write_photos, write_state
from nerf.capture.photos import read_photos
from nerf.capture.video import video_fingerprint
from nerf.cli import main as cli
from nerf.datasets import load
from nerf.errors import UserError
from nerf.io import checkpoint
from nerf.training import same_scene
from nerf.training.config import new_model
from nerf.training.runs import Run, located, open_run, read_run, write_run

N = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_transforms(tmp_path / "data", N)


def write_untrained(out: Path, data: Path, **options: object) -> Path:
    """The folder of a run that has not learnt anything."""
    run = Run(str(data), **options)  # type: ignore[arg-type]
    with open_run(out, run, resume=False, overwrite=False) as folder:
        folder.claim("run.json", "checkpoint.safetensors")
        write_run(out, run)
        model = new_model(load(data, quiet=True, holdout_from=30), train_config(steps=1, field=FIELD))
        tensors, config = model.to_state()
        checkpoint.save(out / "checkpoint.safetensors", tensors, config | {"training": {"names": model.names}})
    return out


def test_a_run_goes_on_where_the_same_scene_lies_now(data: Path, tmp_path: Path) -> None:
    """Masks that lie in it are looked for there, too; run.json is written when the scene was compared."""
    (data / "own").mkdir()
    out = write_untrained(tmp_path / "run", data, masks=data / "own")
    moved = data.rename(tmp_path / "elsewhere")
    run = Run(str(moved), masks=moved / "own")
    open_run(out, run, resume=True, overwrite=False).close()
    same_scene.check_moved(out, run, load(moved, quiet=True, holdout_from=30))
    with pytest.raises(UserError, match="made with masks"):
        open_run(out, Run(str(moved)), resume=True, overwrite=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["frames"].pop(), "other images than the 5 of"),
        (lambda c: c["frames"][2]["transform_matrix"][0].__setitem__(3, 0.5), "other cameras than those of"),
        (lambda c: c.update(fl_x=77.0), "other cameras than those of"),
    ],
    ids=["images", "poses", "lens"],
)
def test_another_scene_is_refused_and_nothing_changes(data: Path, tmp_path: Path, change, words, capsys) -> None:
    out = write_untrained(tmp_path / "run", data)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    moved = data.rename(tmp_path / "elsewhere")
    edit(moved / "transforms.json", change)
    assert cli.run(["train", str(moved), "-o", str(out), "--resume", "--steps", "2"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert words in said and "resume with the same data, or start again with --overwrite" in said
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_run_that_moved_together_with_its_data_finds_it(data: Path, tmp_path: Path) -> None:
    write_untrained(tmp_path / "run", data, masks=data / "own")
    (data / "own").mkdir()
    there = tmp_path / "deep" / "er"
    there.mkdir(parents=True)
    data.rename(there / "data")
    out = (tmp_path / "run").rename(there / "run")
    run = read_run(out)
    assert run is not None and located(out, run).data == str(there / "data") and run.masks == there / "data" / "own"
    (there / "data").rename(there / "gone")
    run = read_run(out)
    assert run is not None and run.data == str(data)
    with pytest.raises(UserError, match=r"no longer there; give its folder with --data"):
        located(out, run)
    assert located(out, run, there / "gone").data == str(there / "gone")


def test_cameras_are_exported_of_data_that_moved(data: Path, tmp_path: Path, capsys) -> None:
    out, file = write_untrained(tmp_path / "run", data), tmp_path / "c.json"
    moved = data.rename(tmp_path / "elsewhere")
    assert cli.run(["export-cameras", str(out), "-o", str(file)]) == 2
    assert "give its folder with --data" in capsys.readouterr().err
    assert cli.run(["export-cameras", str(moved), "-o", str(file), "--data", str(moved)]) == 2
    assert "--data is for the photos of a trained model" in capsys.readouterr().err
    assert cli.run(["export-cameras", str(out), "-o", str(file), "--data", str(moved)]) == 0
    assert len(load(file, quiet=True).names) == N


# ---- photos without poses


def opened_with(out: Path, source: Path) -> dict | None:
    """The state of before with which `nerf poses` would go on; written as after an interruption."""
    photos = read_photos(source, None, out)
    folder, before = open_folder(out, source, overwrite=False, photos=photos)
    with folder:
        write_photos(photos, folder, before)
        write_state(out, state_of(photos, source, None, "auto", 1600))
    return before


def test_poses_go_on_where_the_same_photos_lie_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    captures.write_photos(tmp_path / "photos", 4)
    assert opened_with(out, tmp_path / "photos") is None
    moved = (tmp_path / "photos").rename(tmp_path / "elsewhere")
    before = opened_with(out, moved)
    assert before is not None and before["source"] == str(moved) and len(before["photos"]) == 4
    assert f"{moved} holds what was in {tmp_path / 'photos'}" in capsys.readouterr().err
    one = sorted(moved.iterdir())[1]
    one.write_bytes(one.read_bytes() + b"\0")
    kept = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    other = moved.rename(tmp_path / "changed")
    with pytest.raises(UserError, match=r"out holds the poses of .*elsewhere: choose another -o"):
        opened_with(out, other)
    assert {file: file.read_bytes() for file in kept} == kept


def test_frames_of_a_film_that_has_moved(tmp_path: Path) -> None:
    film, out = tmp_path / "a.mp4", tmp_path / "out"
    film.write_bytes(b"a film")
    with open_folder(out, film, overwrite=False)[0]:
        pass
    about = {"frames": None, "video": video_fingerprint(film), "photos": {}, "size": [4, 3]}
    write_state(out, {"format": "nerf-capture", "version": 1, "source": str(film), **about})
    folder, before = open_folder(out, film.rename(tmp_path / "b.mp4"), overwrite=False)
    folder.close()
    assert before is not None and before["source"] == str(tmp_path / "b.mp4")
    (tmp_path / "c.mp4").write_bytes(b"another")
    with pytest.raises(UserError, match=r"holds the poses of"):
        open_folder(out, tmp_path / "c.mp4", overwrite=False)
