"""Cameras written for other programs come back through our own loaders as the same cameras; bad input, one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_scenes import ring
from test_other_tools import write_csv, write_metashape
from tiny import FIELD, train_config

from nerf.cli import main as cli
from nerf.datasets import Scene, load
from nerf.errors import UserError
from nerf.geometry.cameras import FISHEYE, OPENCV, PERSPECTIVE, Cameras
from nerf.training.export import export_cameras

LENSES = {
    "plain": (PERSPECTIVE, [0.0] * 6),
    "opencv": (OPENCV, [-0.1, 0.03, 0, 0, 1e-3, 2e-3]),
    "k3": (OPENCV, [-0.1, 0.03, -0.01, 0, 1e-3, 2e-3]),
    "fisheye": (FISHEYE, [-0.05, 0.01, -0.003, 1e-4, 0, 0]),
}


def write_data(folder: Path, kinds: list[str], n: int = 6, sizes: tuple[tuple[int, int], ...] = ((40, 30),)) -> Path:
    """A transforms.json of n cameras whose lenses take turns, with frames in two folders and a split."""
    frames = []
    for i, pose in enumerate(ring(n)):
        model, k = LENSES[kinds[i % len(kinds)]]
        w, h = sizes[i % len(sizes)]
        file = folder / "photos" / ("a" if i % 2 else "b") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((h, w, 3), 40 * i, np.uint8)).save(file)
        lens = dict(zip(("k1", "k2", "k3", "k4", "p1", "p2"), k, strict=True)) if model else {}
        lens |= {"camera_model": {0: "PINHOLE", 1: "OPENCV", 2: "OPENCV_FISHEYE"}[model], "w": w, "h": h}
        lens |= {"fl_x": 45.0 + 0.1 * (i % 2), "fl_y": 45.3, "cx": w / 2 + 0.7, "cy": h / 2 - 0.3}
        frames.append({"file_path": str(file.relative_to(folder)), "transform_matrix": pose.tolist(), **lens})
    names = [f["file_path"] for f in frames]
    lists = {"train_filenames": names[1:], "test_filenames": names[:1]}
    (folder / "transforms.json").write_text(json.dumps({**lists, "frames": frames}))
    return folder


def by_file(scene: Scene) -> dict[Path, int]:
    return {f.resolve(): i for i, f in enumerate(scene.files)}


def assert_same_cameras(a: Scene, b: Scene, atol: float = 1e-12) -> None:
    """The same photos have the same cameras, whatever the order and the names."""
    mine, theirs = by_file(a), by_file(b)
    assert mine.keys() == theirs.keys()
    ids = torch.tensor([theirs[f] for f in mine])
    other = b.cameras.subset(ids)
    first = a.cameras.subset(torch.tensor(list(mine.values())))
    for name, values in first.tensors().items():
        scale = max(1.0, float(values.double().abs().max()))
        torch.testing.assert_close(values.double(), other.tensors()[name].double(), atol=atol * scale, rtol=0, msg=name)


@pytest.mark.parametrize("kinds", [["plain"], ["opencv"], ["k3"], ["fisheye"], ["plain", "fisheye", "opencv"]])
def test_transforms_json_round_trip(tmp_path: Path, kinds: list[str]) -> None:
    scene = load(write_data(tmp_path / "data", kinds, sizes=((40, 30), (30, 40))), quiet=True)
    file = tmp_path / "elsewhere" / "cameras.json"
    assert export_cameras(scene, file) == file
    again = load(file, quiet=True)
    assert_same_cameras(scene, again, atol=1e-14)
    names = {f: scene.names[i] for f, i in by_file(scene).items()}
    held_out = {names[again.files[int(i)].resolve()] for i in again.splits["test"]}
    assert held_out == {scene.names[int(i)] for i in scene.splits["test"]}


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("kinds", [["plain"], ["opencv", "k3"], ["plain", "fisheye", "opencv"]])
def test_colmap_round_trip(tmp_path: Path, kinds: list[str], text: bool) -> None:
    pytest.importorskip("pycolmap")
    scene = load(write_data(tmp_path / "data", kinds), quiet=True)
    scene.points = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 3)))
    out = tmp_path / "model"
    place = export_cameras(scene, out, text=text)
    assert sorted(p.name for p in place.iterdir()) == [
        *(f"{name}.{'txt' if text else 'bin'}" for name in ("cameras", "images")),
        "nerf.json",
        f"points3D.{'txt' if text else 'bin'}",
    ]
    again = load(out, quiet=True)
    assert again.source == "colmap" and again.points is not None
    assert_same_cameras(scene, again)
    order = np.lexsort(again.points.numpy().T), np.lexsort(scene.points.numpy().T)
    np.testing.assert_array_equal(again.points.numpy()[order[0]], scene.points.numpy()[order[1]])
    assert sorted(again.names) == [f"a/{i}.png" for i in (1, 3, 5)] + [f"b/{i}.png" for i in (0, 2, 4)]


def test_a_colmap_model_beside_its_photos_needs_no_link(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    data = write_data(tmp_path, ["plain"])
    export_cameras(data, data)
    assert not (data / "images").exists()
    assert_same_cameras(load(data, quiet=True, kind="colmap"), load(data, quiet=True, kind="transforms"))


def test_down_scaled_scenes_export_the_photos_own_pixels(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ["opencv"], sizes=((41, 31),))
    export_cameras(load(data, downscale=4, quiet=True), tmp_path / "out.json")
    assert_same_cameras(load(data, quiet=True), load(tmp_path / "out.json", quiet=True), atol=1e-14)


def test_other_programs_cameras_go_through(tmp_path: Path) -> None:
    """Metashape's k4 has no place in a COLMAP model, and says so; a transforms.json holds it."""
    data = write_metashape(tmp_path / "data")
    export_cameras(data, tmp_path / "out.json")
    assert_same_cameras(load(data, quiet=True), load(tmp_path / "out.json", quiet=True), atol=1e-14)
    with pytest.raises(UserError, match=r"k4 .r.8., which no camera model of COLMAP has"):
        export_cameras(data, tmp_path / "model")
    assert not (tmp_path / "model" / "sparse" / "0").exists()


def test_a_trained_model_exports_its_own_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As training left them: here moved by hand, as pose refinement would."""
    from nerf.training import loop as training
    from nerf.training.runs import Run, load_for_training, write_run

    data, out = write_data(tmp_path / "data", ["opencv"], sizes=((41, 31),)), tmp_path / "run"
    out.mkdir()
    run = Run(str(data), downscale=2)
    scene = load_for_training(run)
    write_run(out, run)
    real = training.Trainer.train_step

    def moved(trainer: training.Trainer) -> float:
        if trainer.step == 0:
            trainer.model.cameras.c2w[:, :, 3] += torch.tensor([0.0, 0.0, 0.25])
        return real(trainer)

    monkeypatch.setattr(training.Trainer, "train_step", moved)
    config = train_config(steps=2, batch_samples=1 << 9, field=replace(FIELD, density_bias=3.0))
    training.train(scene, config, out, progress=False, resume=True)
    export_cameras(out, tmp_path / "refined.json")
    poses = (data / "transforms.json").read_bytes()
    with pytest.raises(UserError, match="is what is read"):  # the only copy of the poses that it was trained on
        export_cameras(out, data / "transforms.json", overwrite=True)
    assert (data / "transforms.json").read_bytes() == poses
    before, after = load(data, quiet=True), load(tmp_path / "refined.json", quiet=True)
    shift = torch.zeros(6, 3, dtype=torch.float64)
    shift[[int(i) for i in before.splits["train"]], 2] = 0.25
    index = [by_file(after)[f.resolve()] for f in before.files]
    torch.testing.assert_close(after.cameras.c2w[index][:, :, 3], before.cameras.centres + shift)
    torch.testing.assert_close(after.cameras.fx[index], before.cameras.fx, atol=1e-12, rtol=0)
    assert after.cameras.widths.tolist() == [41] * 6
    assert [after.files[int(i)].name for i in after.splits["test"]] == ["0.png"]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_csv(tmp_path / "data")
    out = tmp_path / "out" / "transforms.json"
    assert cli.run(["export-cameras", str(data), "-o", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    before = out.read_bytes()
    for arguments, words in (
        ([str(data), "-o", str(out)], "exists; choose another name or give --overwrite"),
        ([str(data), "-o", str(out), "--text", "--overwrite"], "--text is for COLMAP models"),
        ([str(tmp_path / "none"), "-o", str(tmp_path / "x.json")], "there is no such folder"),
        ([str(data), "-o", str(tmp_path / "x.json"), "--kind", "colmap"], "there is no data of the kind 'colmap'"),
        ([str(data), "-o", str(data / "cameras.csv" / "x.json")], "is a file"),
    ):
        assert cli.run(["export-cameras", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert out.read_bytes() == before
    assert cli.run(["export-cameras", str(data), "-o", str(out), "--overwrite"]) == 0


def test_scenes_without_files_say_so(tmp_path: Path) -> None:
    scene = load(write_data(tmp_path, ["plain"]), quiet=True)
    with pytest.raises(UserError, match="does not say where its photos lie"):
        export_cameras(replace(scene, files=[]), tmp_path / "x.json")
    assert isinstance(scene.photo_cameras, Cameras)
