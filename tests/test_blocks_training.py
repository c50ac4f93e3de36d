"""`nerf train --blocks`: each cell a run of its own; what failed, is missing or has other photos is trained again."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_scenes import edit, look_at, save
from tiny import FIELD

from nerf.cli.main import run
from nerf.datasets import load_posed
from nerf.datasets.dividing import Division
from nerf.io.checkpoint import load
from nerf.training import config, resuming
from nerf.training.blocks import Manifest, common_light, load_blocks
from nerf.training.exposure import apply_exposure

SIDE = (16, 24, 3)


def add_photos(folder: Path, xs: list[float]) -> None:
    """Photos of nothing much from a row of places along x, all looking along y."""
    file = folder / "transforms.json"
    frames = json.loads(file.read_text())["frames"] if file.is_file() else []
    for x in xs:
        name = f"images/{len(frames):03d}.png"
        save(folder / name, np.random.default_rng(len(frames)).integers(0, 255, SIDE, np.uint8))
        pose = look_at(np.array([x, 0.0, 1.0]), np.array([x + 0.1, 5.0, 1.0]))
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    lens = {"fl_x": 30.0, "fl_y": 30.0, "cx": 12.0, "cy": 8.0, "w": 24, "h": 16}
    file.write_text(json.dumps(lens | {"frames": frames}))


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A row of 20 photos, and training that takes no time."""
    monkeypatch.chdir(tmp_path)
    small = partial(config.TrainConfig, occupancy_resolution=32, field=FIELD)
    assert resuming.TrainConfig is config.TrainConfig  # which has it from before
    monkeypatch.setattr(config, "TrainConfig", small)
    add_photos(Path("row"), [float(x) for x in range(20)])
    return Path("row")


def train(*more: str, data: str = "row", out: str = "out") -> int:
    return run(["train", data, "-o", out, "--steps", "2", "--check", "off", *more])


def states(out: str = "out") -> list[str]:
    return [state.state for state in Manifest.read(Path(out)).states]


def bytes_of(k: int) -> bytes:
    return Path(f"out/cells/{k}/checkpoint.safetensors").read_bytes()


def names_of(k: int) -> list[str]:
    return sorted(load(f"out/cells/{k}/checkpoint.safetensors")[1]["names"])


def test_each_cell_reads_and_learns_its_own_photos_alone(row: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerf.datasets import scene

    read: list[str] = []
    original = scene.read_pixels
    monkeypatch.setattr(scene, "read_pixels", lambda p, *a, **k: read.append(p.path.name) or original(p, *a, **k))
    assert train("--blocks", "2", "--cell", "1", "--holdout", "5") == 0
    assert states() == ["waiting", "trained"]
    mine = Manifest.read(Path("out")).division.plots[1].photos
    assert sorted(read) == sorted(Path(name).name for name in mine) and 8 < len(mine) < 12
    assert train("--blocks", "2", "--cell", "0", "--holdout", "5") == 0  # another job
    assert states() == ["trained", "trained"]
    learnt = [*names_of(0), *names_of(1)]
    assert learnt == [f"images/{i:03d}.png" for i in range(20) if i % 5]
    assert run(["eval", "out"]) == 0
    found = json.loads(Path("out/eval/eval.json").read_text())
    assert [view["name"] for view in found["views"]] == [f"images/{i:03d}.png" for i in range(0, 20, 5)]
    assert run(["eval", "out/cells/1"]) == 0  # an ordinary run
    assert run(["render", "out", "-o", "views", "--frames", "2", "--path", "interpolate"]) == 0
    assert len(list(Path("views").glob("*.png"))) == 2


def test_what_a_place_shows_at_a_point_is_its_cells_field(row: Path) -> None:
    assert train("--blocks", "2") == 0
    model, manifest = load_blocks(Path("out")), Manifest.read(Path("out"))
    points = torch.rand(200, 3) - 0.5
    world = model.scene_from_world.inverse().apply(points.double())
    found = model.density(points)
    for block, plot in zip(model.blocks, manifest.division.plots, strict=True):
        mine = plot.cell.contains(points)
        own = block.model.density(block.model.scene_from_world.apply(world[mine]).float())
        lengths = block.model.scene_from_world.scale / model.scene_from_world.scale
        assert 0 < int(mine.sum()) < 200
        torch.testing.assert_close(found[mine], own * lengths, rtol=1e-3, atol=1e-4)
    assert model.space.half_extent >= block.model.space.half_extent / block.scale


def test_only_what_failed_is_trained_again(row: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = row / "images" / "015.png"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:-40])
    assert train("--blocks", "2") == 2
    said = capsys.readouterr().err
    assert "cell 1 of 2 failed" in said and "1 of 2 cells failed (1), the others are kept" in said
    assert "Traceback" not in said
    assert states() == ["trained", "failed"] and "015.png" in (Manifest.read(Path("out")).states[1].why or "")
    assert run(["eval", "out"]) == 2
    assert "cell 1 of 2 is not trained yet (it failed" in capsys.readouterr().err
    photo.write_bytes(whole)
    before = bytes_of(0)
    assert train("--resume") == 0
    assert states() == ["trained", "trained"] and bytes_of(0) == before
    assert train("--resume") == 0  # nothing is left to do
    assert "cell 1 of 2: trained before" in capsys.readouterr().err


def test_a_cell_that_was_interrupted_goes_on(row: Path) -> None:
    assert train("--blocks", "2") == 0
    manifest = Manifest.read(Path("out"))
    manifest.set_state(1, manifest.states[1].__class__("training"))
    assert run(["train", "row", "-o", "out", "--check", "off", "--resume", "--steps", "4"]) == 0
    assert [load(f"out/cells/{k}/checkpoint.safetensors")[1]["meta"]["steps"] for k in (0, 1)] == [4, 4]
    assert [state.steps for state in Manifest.read(Path("out")).states] == [4, 4]


def test_photos_added_later_change_the_cells_that_see_them(row: Path) -> None:
    assert train("--blocks", "2", "--holdout", "5") == 0
    held_out = [name for name, split in Manifest.read(Path("out")).division.photos.items() if split == "test"]
    before = bytes_of(0), bytes_of(1)
    add_photos(row, [12.5, 14.5])
    assert train("--resume", "--holdout", "5") == 0
    assert states() == ["trained", "trained"]
    assert bytes_of(0) == before[0] and bytes_of(1) != before[1]
    assert {"images/020.png", "images/021.png"} <= set(names_of(1))
    photos = Manifest.read(Path("out")).division.photos
    assert [name for name, split in photos.items() if split == "test"] == held_out  # though every fifth is another now


def test_a_cell_without_photos_fails_by_itself(row: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--blocks", "2", "--cell", "0") == 0
    edit(row / "transforms.json", lambda data: data.update(frames=data["frames"][:10]))
    before = bytes_of(0)
    assert train("--resume") == 2
    assert "cell 1 of 2 failed: no photos of row show this cell, at least three are needed" in capsys.readouterr().err
    assert states() == ["trained", "failed"] and bytes_of(0) == before


def test_the_manifest_of_another_run_changes_nothing(row: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--blocks", "2") == 0
    add_photos(Path("other"), [2.0 * x for x in range(20)])
    assert train("--blocks", "2", data="other", out="out2") == 0
    mine, before = Path("out/blocks.json").read_bytes(), bytes_of(1)
    shutil.copy("out2/blocks.json", "out/blocks.json")
    for words in (["eval", "out"], ["mesh", "out"], ["train", "row", "-o", "out", "--resume", "--steps", "3"]):
        assert run(words) == 2
        assert "is no cell of out/blocks.json, which is the manifest of another run" in capsys.readouterr().err
    Path("out/blocks.json").write_text("{}")
    assert run(["eval", "out"]) == 2
    assert "out/blocks.json: cannot be understood" in capsys.readouterr().err
    Path("out/blocks.json").write_bytes(mine)
    assert run(["render", "out", "--frames", "1", "-o", "views"]) == 0 and bytes_of(1) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--blocks", "9"], "9 cells are too many: cell 0 of them is seen by"),
        (["--blocks", "0"], "--blocks is 0, expected a number from 1 up, or auto"),
        (["--blocks", "2", "--cell", "2"], "--cell 2: out/blocks.json has the cells 0 to 1"),
        (["--blocks", "2", "--view"], "--view shows one field"),
        (["--blocks", "2", "--refine-poses"], "not for --blocks"),
        (["--blocks", "2", "--space", "box"], "--blocks divides places, and --space box"),
    ],
)
def test_what_cannot_be_done_is_said(
    row: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*words) == 2
    assert said in capsys.readouterr().err
    assert not Path("out/cells").exists()


def test_a_division_is_not_replaced_unasked(row: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--blocks", "2") == 0
    before = bytes_of(0)
    for words, said in (
        (["--blocks", "2"], "give --resume to continue it or --overwrite"),
        (["--blocks", "1", "--resume"], "out is divided into 2 cells, not 1"),
        ([], "out holds blocks and no run"),
        (["--resume", "--longest", "20"], "out was made with longest None, not 20"),
    ):
        assert train(*words) == 2
        assert said in capsys.readouterr().err
    assert train("--resume", data="row/images") == 2
    assert bytes_of(0) == before
    assert run(["export-page", "out"]) == 2
    assert "out holds cells, of which this takes one at a time: give one such as out/cells/0" in capsys.readouterr().err
    assert train("--blocks", "2", "--overwrite") == 0 and states() == ["trained", "trained"]


def test_ranks_take_cells_of_their_own(row: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29599"}.items():
        monkeypatch.setenv(name, value)
    for rank, found in (("1", ["waiting", "trained"]), ("0", ["trained", "trained"])):
        monkeypatch.setenv("RANK", rank)
        assert train("--blocks", "2") == 0
        assert states() == found
    assert train("--blocks", "2", "--overwrite") == 2 and states() == ["trained", "trained"]


def test_few_photos_are_one_cell_of_auto(row: Path) -> None:
    assert len(Division.of(load_posed(row, quiet=True), None).plots) == 1


def learnt(offsets: list[torch.Tensor], seen: list[list[int]]) -> tuple[torch.Tensor, list[Any]]:
    """Log gains of 12 photos, 0 in the mean; and what cells have learnt of those that they see, off by so much."""
    random = torch.Generator().manual_seed(0)
    gains = torch.randn(12, 3, generator=random)
    gains -= gains.mean(dim=0)
    cells = [([f"{i}" for i in some], gains[some] + o) for some, o in zip(seen, offsets, strict=True)]
    return gains, cells


def test_the_light_of_cells_is_brought_together() -> None:
    """In closed form: what cells share says exactly how their light differs, whatever each took for common."""
    seen = [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8], [8, 9, 10, 11]]
    offsets = [torch.tensor([0.3, -0.1, 0.0]), torch.tensor([-0.5, 0.2, 0.1]), torch.tensor([0.1, 0.1, 0.7])]
    gains, cells = learnt(offsets, seen)
    found, light = common_light(cells)
    torch.testing.assert_close(torch.stack([found[f"{i}"] for i in range(12)]), gains, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack(light), torch.stack(offsets), rtol=0, atol=1e-5)
    # so that a photo looks the same by either cell: its field's colour, brighter by what its light lacks
    common = torch.tensor([[0.5, 0.4, 0.3]])
    own = [apply_exposure(common, -offset, linear=True) for offset in light]
    for k, (names, logs) in enumerate(cells):
        shown = apply_exposure(own[k], logs, linear=True)
        torch.testing.assert_close(shown, common * gains[[int(n) for n in names]].exp(), rtol=1e-4, atol=1e-4)
    assert common_light([(["a"], None), (["a"], torch.zeros(1, 3))])[0] == {}
