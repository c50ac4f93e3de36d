"""Cameras taken as they are meant: `cameras_are` does what it says, is kept with a run, and says what it knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nerf
from nerf.cli.main import run
from nerf.datasets.readings import read_as
from nerf.errors import UserError
from nerf.geometry.aim import look_at
from nerf.geometry.cameras import OPENCV, Cameras

N, SIZE = 8, 32


def truth() -> Cameras:
    angle = torch.arange(N, dtype=torch.float64) / N * 2 * torch.pi
    places = torch.stack([3 * angle.cos(), 3 * angle.sin(), 1 + 0 * angle], dim=1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return Cameras.perspective(look_at(places, torch.zeros(3, dtype=torch.float64), up), 40.0, SIZE, SIZE)


def write(folder: Path, poses: np.ndarray, **lens: float) -> Path:
    """A data set whose transforms.json states these poses [n,3,4]."""
    folder.mkdir()
    frames = []
    for i, pose in enumerate(poses):
        picture = np.random.default_rng(i).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        frames.append({"file_path": f"{i}.png", "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]})
    said = {"fl_x": 40.0, "fl_y": 40.0, "cx": 16.0, "cy": 16.0, **lens, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def inverted(tmp_path: Path) -> Path:
    return write(tmp_path / "inverted", read_as(truth(), "inverted").c2w.numpy())


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_pictures_are_seen_by_the_turned_camera_and_lens(quarters: int) -> None:
    one = truth().subset([0])
    lens = {"fx": 40.0, "fy": 44.0, "cx": 14.0, "cy": 19.0}
    k = torch.tensor([[0.1, 0.02, 0, 0, 0.03, -0.02, 0, 0, 0.01, 0.004, -0.03, 0.002, 0]], dtype=torch.float64)
    tensors = one.tensors() | {name: torch.tensor([x], dtype=torch.float64) for name, x in lens.items()}
    one = Cameras(**tensors | {"distortion": k, "models": torch.tensor([OPENCV])})
    points = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    before, after = one.project(points)[0][0], read_as(one, f"turned={90 * quarters}").project(points)[0][0]
    for _ in range(quarters):  # counter-clockwise: what was on the right is above
        before = torch.stack([before[:, 1], SIZE - before[:, 0]], dim=1)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


def test_a_load_takes_cameras_so_and_leaves_the_rest(inverted: Path) -> None:
    scene = nerf.load(inverted, cameras_are="inverted", quiet=True)
    torch.testing.assert_close(scene.cameras.c2w, truth().c2w, rtol=0, atol=1e-9)
    assert any("as inverted" in line for line in scene.notes)
    given = nerf.load(inverted, quiet=True)
    assert not torch.allclose(given.cameras.c2w, truth().c2w)
    scene = nerf.load(inverted, cameras_are="inverted+focal=1.5+axes=x,-y,-z", quiet=True)
    assert scene.cameras.fx.tolist() == [60.0] * N and scene.cameras.cx.tolist() == [16.0] * N
    torch.testing.assert_close(scene.cameras.forward, -truth().forward, rtol=0, atol=1e-9)


def test_lenses_for_larger_pictures_are_refused_with_the_option_that_takes_them(tmp_path: Path) -> None:
    lens = {"fl_x": 80.0, "fl_y": 80.0, "cx": 32.4, "cy": 31.7}
    place = write(tmp_path / "large", truth().c2w.numpy(), **lens)
    with pytest.raises(UserError, match=r"cameras_are='scale=0\.5' \(--cameras-are\)"):
        nerf.load(place, quiet=True)
    cameras = nerf.load(place, cameras_are="scale=0.5", quiet=True).cameras
    assert (float(cameras.fx[0]), float(cameras.cx[0]), float(cameras.cy[0])) == (40.0, 16.2, 15.85)
    assert nerf.load(place, cameras_are="centred", quiet=True).cameras.cx.tolist() == [16.0] * N


@pytest.mark.parametrize(
    "text", ["", "upside", "inverted=1", "axes=x,y", "axes=x,x,z", "flip=", "turned=45", "focal=0", "focal=1e9", "a+b"]
)
def test_a_value_that_is_not_known_gets_a_list_of_those_that_are(text: str) -> None:
    with pytest.raises(UserError, match=r"^cameras_are .*is not known; known are inverted, transposed, axes="):
        nerf.load("data/sample", cameras_are=text, quiet=True)


def test_axes_that_mirror_are_refused() -> None:
    with pytest.raises(UserError, match="left-handed"):
        nerf.LoadOptions(cameras_are="axes=-x,y,z").check()


def test_a_run_keeps_how_its_cameras_are_meant(
    inverted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, flag = tmp_path / "out", ["--cameras-are", "inverted"]
    common = ["train", str(inverted), "-o", str(out), "--holdout", "4", "--check", "off", "--space", "box"]
    assert run([*common, *flag, "--steps", "1"]) == 0
    assert json.loads((out / "run.json").read_text())["cameras_are"] == "inverted"
    capsys.readouterr()
    assert run([*common, "--steps", "2", "--resume"]) == 2
    assert "was made with cameras_are inverted, not None" in capsys.readouterr().err
    moved = inverted.rename(tmp_path / "moved")
    assert run(["export-cameras", str(out), "--data", str(moved), "-o", str(tmp_path / "of_run.json")]) == 0
    assert run(["export-cameras", str(moved), *flag, "-o", str(tmp_path / "of_data.json")]) == 0
    for name in ("of_run", "of_data"):  # held-out photos, which the model does not hold, too
        cameras = nerf.load(tmp_path / f"{name}.json", quiet=True).cameras
        torch.testing.assert_close(cameras.c2w, truth().c2w, rtol=0, atol=1e-5)
    assert run(["eval", str(out), "--data", str(moved)]) == 0


def test_photos_without_poses_have_no_cameras_to_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(np.full((SIZE, SIZE, 3), 60 * i, np.uint8)).save(tmp_path / "photos" / f"{i}.jpg")
    given = ["reconstruct", str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "--cameras-are", "inverted"]
    assert run(given) == 2
    assert "--cameras-are is for photos with poses" in capsys.readouterr().err
