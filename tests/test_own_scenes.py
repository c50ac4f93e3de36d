"""Scenes that come from elsewhere: arrays in memory, and formats registered from outside."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_scenes import FOCAL, SIZE, picture, ring, save, write_transforms

from nerf.datasets import ParsedScene, Scene, load, readers
from nerf.datasets.readers import BUILT_IN, reader
from nerf.errors import UserError
from nerf.geometry.space import Similarity
from nerf.rendering.marching import Marching

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "own_reader.py"
LENS = [FOCAL, FOCAL, SIZE / 2, SIZE / 2]


# ---- arrays


def arrays(n: int = 10, channels: int = 4) -> dict[str, Any]:
    poses = ring(n)
    return {"images": [picture(p)[..., :channels] for p in poses], "c2w": np.stack(poses), "intrinsics": LENS}


@pytest.mark.parametrize("channels", [3, 4])
def test_arrays_make_the_scene_that_a_folder_makes(tmp_path: Path, channels: int) -> None:
    names = [f"images/{i:03d}.png" for i in range(10)]
    folder = load(write_transforms(tmp_path, n=10, channels=channels), quiet=True)
    scene = Scene.from_arrays(**arrays(channels=channels), names=names)
    for name, values in folder.cameras.tensors().items():
        assert torch.equal(values, scene.cameras.tensors()[name]), name
    assert np.array_equal(folder.pixels.memory, scene.pixels.memory) and folder.names == scene.names
    assert folder.space == scene.space and (folder.near, folder.far) == (scene.near, scene.far)
    assert folder.scene_from_world.to_dict() == scene.scene_from_world.to_dict()
    assert {k: v.tolist() for k, v in folder.splits.items()} == {k: v.tolist() for k, v in scene.splits.items()}
    assert folder.notes[1:] == scene.notes and scene.files == []  # the first says which file was read


def test_an_object_is_seen_from_farther_away_than_any_photo() -> None:
    scene = Scene.from_arrays(**arrays())
    towards = torch.tensor([[0.0, 0.0, -1.0]])
    marching = Marching(scene.space, scene.near, scene.far)
    *_, t_near, t_far = marching.enter(torch.tensor([[0.0, 0.0, 50.0]]), towards)
    assert scene.space.bounded and (t_near.tolist(), t_far.tolist()) == ([49.0], [51.0])


def test_arrays_of_all_kinds(tmp_path: Path) -> None:
    given = arrays()
    k = np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])
    as_tensors = Scene.from_arrays(torch.from_numpy(np.stack(given["images"])), torch.from_numpy(given["c2w"]), k)
    as_floats = Scene.from_arrays(
        [im.astype(np.float64) / 255 for im in given["images"]], given["c2w"][:, :3], np.tile(k, (10, 1, 1))
    )
    as_words = Scene.from_arrays([im.astype(np.uint16) * 257 for im in given["images"]], given["c2w"], [LENS] * 10)
    for scene in (as_tensors, as_floats, as_words):
        assert torch.equal(scene.cameras.fx, torch.full((10,), FOCAL, dtype=torch.float64))
        assert torch.allclose(scene.pixels.image(3), as_tensors.pixels.image(3), atol=1e-6)
    assert as_floats.pixels.memory.dtype == np.float32 and as_words.pixels.memory.dtype == np.uint16
    grey = Scene.from_arrays(
        [im[..., 0] for im in given["images"]], given["c2w"], LENS, distortion=[0.1, 0, 0, 0, 0, 0]
    )
    assert grey.pixels.n_channels == 1 and grey.cameras.distortion[4].tolist() == [0.1, 0, 0, 0, 0, 0]
    bright = Scene.from_arrays([im.astype(np.float32) for im in given["images"]], given["c2w"], LENS, linear=True)
    assert bright.linear and bright.brightest == 3 * (SIZE - 1)


def test_masks_depths_points_and_a_frame_of_ones_own() -> None:
    given, frame = arrays(6), Similarity.around([0.5, 0.0, 0.0], 2.0)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[:, 5:] = True
    scene = Scene.from_arrays(
        **given,
        masks=[mask, None, *[mask] * 4],
        depths=[np.full((SIZE // 2, SIZE // 2), 2.5), *[None] * 5],
        points=np.zeros((4, 3)),
        splits={"train": [5, 1, 0], "val": [2], "test": torch.tensor([3, 4])},
        scene_from_world=frame,
    )
    assert scene.masks is not None and scene.depths is not None and scene.points is not None
    assert float(scene.masks.image(0)[7, 4]) == 0 and float(scene.masks.image(0)[7, 5]) == 1
    assert float(scene.masks.image(1).min()) == 1
    assert scene.depths.image(0).shape == (24, 24, 1) and float(scene.depths.image(0)[3, 3]) == 2.5
    assert scene.depths.image(1).shape == (1, 1, 1) and len(scene.points) == 4
    assert [scene.splits[k].tolist() for k in ("train", "val", "test")] == [[0, 1, 5], [2], [3, 4]]
    assert scene.scene_from_world.to_dict() == frame.to_dict() and scene.space.name == "box" and scene.has_alpha
    assert Scene.from_arrays(**given, space="unbounded").space.name == "unbounded"
    assert len(Scene.from_arrays(**given, splits={"train": range(6)}).splits["test"]) == 0


def poses_with(place: tuple[int, ...], value: float) -> np.ndarray:
    poses = arrays()["c2w"].copy()
    poses[place] = value
    return poses


def bad_frame(**changes: Any) -> Similarity:
    exact = {"scale": 1.0, "rotation": torch.eye(3, dtype=torch.float64), "translation": torch.zeros(3)}
    return Similarity(**exact | changes)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"images": []}, "images: there are none"),
    ({"images": [np.zeros((4, 4, 5), np.uint8)] * 10}, r"images\[0\]: has shape \(4, 4, 5\)"),
    ({"images": [np.zeros((4, 4, 3), np.int64)] * 10}, r"images\[0\]: is of type int64"),
    ({"images": [np.full((4, 4, 3), np.nan)] * 10}, r"images\[0\]: holds NaN"),
    ({"images": [np.full((4, 4, 3), 200.0)] * 10}, r"images\[0\]: holds floats from 200 to 200, expected 0 to 1"),
    ({"c2w": np.zeros((10, 3, 3))}, r"c2w: has shape \(10, 3, 3\)"),
    ({"c2w": arrays()["c2w"][:9]}, "c2w: there are 9 for 10 images"),
    ({"images": None}, "images: is None, expected a list, one for each image"),
    ({"images": 5}, "images: is of the type int"),
    ({"images": [None] * 10}, r"images\[0\]: is None, expected an array of numbers"),
    ({"images": [np.full((4, 4, 3), np.nan)] * 10, "linear": True}, r"images\[0\]: holds NaN"),
    ({"c2w": None}, "c2w: is None"),
    ({"c2w": [[1, 2], [3]]}, "c2w: is no array of numbers .*inhomogeneous"),
    ({"c2w": arrays()["c2w"].astype(complex)}, "c2w: is of the type ndarray, expected an array of numbers"),
    ({"c2w": poses_with((2, 0, 3), np.nan)}, r"c2w\[2\]: holds NaN or infinity"),
    ({"c2w": arrays()["c2w"].transpose(0, 2, 1)}, r"c2w\[0\]: its last row is .*is it transposed"),
    ({"c2w": np.tile(np.eye(4), (10, 1, 1)), "space": "box", "images": [np.zeros((4, 4, 3))] * 10}, "in one place"),
    ({"c2w": arrays()["c2w"] * np.array([[[-1, 1, 1, 1]]])}, "the pose is mirrored"),
    ({"c2w": arrays()["c2w"] * np.array([[[2, 1, 1, 1]]])}, "the pose is no rotation"),
    ({"intrinsics": [50, 50, 24]}, "intrinsics: has shape"),
    ({"intrinsics": [LENS] * 9}, "intrinsics: there are 9"),
    ({"intrinsics": {"fx": 50}}, "intrinsics: is of the type dict, expected an array of numbers"),
    ({"intrinsics": ["50", "50", "24", "24"]}, "intrinsics: is of the type list, expected an array of numbers"),
    ({"intrinsics": [np.inf, 50, 24, 24]}, "intrinsics: holds NaN or infinity"),
    ({"intrinsics": [LENS] * 9 + [[50, np.nan, 24, 24]]}, r"intrinsics\[9\]: holds NaN"),
    ({"intrinsics": [-50, 50, 24, 24]}, "horizontal focal length is -50"),
    ({"intrinsics": [[50, 3, 24], [0, 50, 24], [0, 0, 1]]}, "skew is not supported"),
    ({"distortion": [0.1, 0.2]}, "distortion: has shape"),
    ({"masks": [np.ones((SIZE, SIZE))] * 9}, "masks: there are 9"),
    ({"masks": [np.ones((SIZE, 3))] * 10}, "the mask is 3x48, its image 48x48"),
    ({"depths": [np.ones((4, 48))] * 10}, r"depths\[0\]: the depth map is 48x4, its photo 48x48"),
    ({"masks": [np.full((SIZE, SIZE), np.nan)] * 10}, r"masks\[0\]: holds NaN"),
    ({"depths": 5}, "depths: is of the type int, expected a list"),
    ({"points": np.zeros((6, 2))}, r"points: has shape \(6, 2\), expected \[points, 3\]"),
    ({"points": [[0, 0, 0], [0, np.inf, 0]]}, r"points\[1\]: holds NaN or infinity"),
    ({"splits": {"train": [0], "hold": [1]}}, "there is no split 'hold'; images are in train, val or test"),
    ({"splits": {"train": [0, 1], "test": [1]}}, "image 1 is in train and in test, expected each image once"),
    ({"splits": {"train": [0, 1, 0]}}, "image 0 is twice in train"),
    ({"splits": {"train": [10]}}, r"splits\['train'\]: there is no image 10, they are counted from 0 to 9"),
    ({"splits": {"train": np.ones(10, bool)}}, r"splits\['train'\]: expected indices of images"),
    ({"splits": {"train": 3}}, r"splits\['train'\]: is of the type int, expected a list, indices"),
    ({"splits": ["train"] * 10}, "splits: is of the type list, expected"),
    ({"splits": {"train": range(9)}}, "image 9 is in none"),
    ({"splits": {"test": range(10)}}, 'no image is in "train"'),
    ({"names": ["a"] * 10}, "names: expected 10 that differ"),
    ({"names": "abcdefghij"}, "names: is 'abcdefghij', expected a list"),
    ({"scene_from_world": np.eye(4)}, "scene_from_world: is of the type ndarray, expected a nerf.Similarity"),
    ({"scene_from_world": bad_frame(scale=float("nan"))}, "its scale is nan"),
    ({"scene_from_world": bad_frame(rotation=2 * torch.eye(3))}, "its rotation is no rotation"),
    ({"scene_from_world": bad_frame(translation=torch.zeros(2))}, "its translation is not three"),
    ({"space": "ball"}, "space is 'ball'"),
]


@pytest.mark.parametrize(("change", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_mistake_in_arrays_is_one_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Scene.from_arrays(**arrays() | change)


def test_a_frame_in_single_precision_is_taken() -> None:
    scene = Scene.from_arrays(**arrays(), scene_from_world=bad_frame(rotation=torch.eye(3)))
    assert scene.scene_from_world.to_dict() == Similarity.identity().to_dict()


def test_the_example_of_own_data_learns_its_ball() -> None:
    main = runpy.run_path(str(ROOT / "examples" / "own_data.py"))["main"]
    assert main(["--steps", "40"]) > 15


# ---- readers


def write_poses_txt(folder: Path, n: int = 8) -> Path:
    lines = []
    for i, pose in enumerate(ring(n)):
        save(folder / f"{i}.png", picture(pose))
        lines.append(f"{i}.png {FOCAL} {' '.join(map(repr, map(float, pose[:3].ravel())))}")
    (folder / "poses.txt").write_text("\n".join(lines))
    return folder


def nerf(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NERF_READERS": str(EXAMPLE)}
    return subprocess.run([sys.executable, "-m", "nerf", *arguments], env=environment, capture_output=True, text=True)


def test_the_command_line_knows_a_format_from_outside(tmp_path: Path) -> None:
    data, out = write_poses_txt(tmp_path / "data"), tmp_path / "out"
    assert "poses_txt" in nerf("train", "--help").stdout
    done = nerf("train", str(data), "-o", str(out), "--kind", "poses_txt", "--steps", "2", "--backend", "cpu")
    assert done.returncode == 0, done.stderr
    assert (out / "checkpoint.safetensors").is_file() and "8 poses from poses.txt" in done.stderr
    (data / "poses.txt").write_text("0.png 60 1 2 3")
    done = nerf("export-cameras", str(data), "-o", str(tmp_path / "cameras.json"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "poses.txt, line 1: expected a name" in done.stderr


def test_a_reader_can_be_given_to_load_or_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = runpy.run_path(str(EXAMPLE))["read_poses_txt"]
    monkeypatch.delitem(readers._registered, "poses_txt")
    data = write_poses_txt(tmp_path)
    with pytest.raises(UserError, match=r"kind is 'poses_txt', expected one of blender.*NERF_READERS"):
        load(data, kind="poses_txt")
    scene = load(data / "poses.txt", reader=read, quiet=True)
    assert scene.source == "poses_txt" and np.allclose(scene.cameras.c2w, np.stack(ring(8))[:, :3])
    monkeypatch.setenv("NERF_READERS", str(EXAMPLE))
    monkeypatch.setattr(readers, "_imported", set())
    assert (
        load(data, quiet=True).notes[0] == "read as poses_txt"
        and load(data / "poses.txt", quiet=True).names[0] == "0.png"
    )


def test_mistakes_in_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> ParsedScene:
        return ParsedScene("mine", path, [], [])

    with pytest.raises(UserError, match="two readers have the name 'colmap'"):
        reader("colmap", tells="mine.txt")(read)
    for name, words in (("no.such.module", "ModuleNotFoundError"), ("/no/such/file.py", "FileNotFoundError")):
        monkeypatch.setenv("NERF_READERS", name)
        with pytest.raises(UserError, match=f"NERF_READERS: {name} cannot be imported .{words}"):
            readers.kinds()


def test_what_a_reader_from_outside_does_wrong_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> ParsedScene:
        words = path.read_text().split()
        return ParsedScene("mine", path.parent, [], []) if not words else ParsedScene("mine", float(words[0]), [], [])

    monkeypatch.setattr(readers, "_registered", {**readers._registered})
    reader("mine", tells="mine.txt")(read)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match="read as mine, it holds no frames"):
        load(tmp_path, kind="mine", quiet=True)
    (tmp_path / "mine.txt").write_text("one")
    with pytest.raises(UserError, match=r"mine.txt: the reader of mine.* failed \(ValueError: could not convert"):
        load(tmp_path, kind="mine", quiet=True)


def test_every_format_is_described() -> None:
    """What the command line says comes from the registry; the page of formats has a row for each."""
    page = (ROOT / "data" / "README.md").read_text()
    for kind, found in readers.readers().items():
        assert kind == found.kind and found.help
    rows = [kind for kind in BUILT_IN if f"| `{kind}` |" in page]
    assert rows == list(BUILT_IN)
