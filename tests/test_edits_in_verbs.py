"""Edits of the viewer in other verbs: each uses them, in one frame with the others, or says that it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fakes import AnalyticModel, ball, ring_cameras
from PIL import Image

from nerf.cli import main as cli
from nerf.datasets import load
from nerf.errors import UserError
from nerf.geometry.space import Similarity
from nerf.io.outputs import OutputFolder
from nerf.rendering.model import Model
from nerf.training.export import export_cameras
from nerf.views.page import make_path
from nerf.views.viewer.edits import EDITS_FILE, Edits, write_edits
from nerf.views.viewer.regions import Region

HALF = Region("box", (1.0, 0.0, 0.0), (2.0, 4.0, 4.0))  # where x > 0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose model is a ball."""
    with OutputFolder.open(tmp_path / "run", "run") as folder:
        folder.claim("checkpoint.safetensors")
        model = AnalyticModel(ball(0.7), scene_from_world=Similarity.around([0.0, 0.0, 0.0], 1.5))
        model.save(folder.path / "checkpoint.safetensors")
    monkeypatch.setattr(Model, "load", lambda path: model)
    return folder.path


def test_mesh_uses_the_edits_and_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_edits(run, Edits(crop=HALF, scale=2.0, unit="m"))
    assert EDITS_FILE in (run / "nerf.json").read_text()  # --overwrite of the run takes it along
    assert cli.run(["mesh", str(run), "-o", str(tmp_path / "half.ply"), "--resolution", "40"]) == 0
    said = capsys.readouterr()
    assert "cropped, lengths times 2 (m)" in said.err and " in m" in said.out
    assert cli.run(["mesh", str(run), "-o", str(tmp_path / "whole.ply"), "--resolution", "40", "--no-edits"]) == 0
    assert "edits" not in capsys.readouterr().err
    half, whole = (trimesh.load(tmp_path / f"{name}.ply", force="mesh") for name in ("half", "whole"))
    assert half.extents[0] == pytest.approx(whole.extents[0], rel=0.1)  # half of it, twice as long
    assert half.extents[1] == pytest.approx(2 * whole.extents[1], rel=0.05)
    assert half.bounds[0, 0] > -0.15


def test_render_uses_the_edits(run: Path, tmp_path: Path) -> None:
    write_edits(run, Edits(hidden=(Region("sphere", (0, 0, 0), (6, 6, 6)),)))
    options = ["--width", "24", "--height", "24", "--frames", "1"]
    assert cli.run(["render", str(run), "-o", str(tmp_path / "hidden"), *options]) == 0
    assert cli.run(["render", str(run), "-o", str(tmp_path / "all"), *options, "--no-edits"]) == 0
    hidden, seen = (np.asarray(Image.open(tmp_path / name / "00000.png")) for name in ("hidden", "all"))
    assert (hidden == 255).all() and seen.min() < 200
    (run / EDITS_FILE).write_text("{}")
    assert cli.run(["render", str(run), "-o", str(tmp_path / "more"), *options]) == 2


# ---- cameras and points


@pytest.fixture(scope="module")
def trained(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the bundled scene, hardly trained."""
    out = tmp_path_factory.mktemp("trained") / "run"
    command = ["train", str(sample), "-o", str(out), "--downscale", "8", "--check", "off", "--steps", "2"]
    assert cli.run(command) == 0
    return out


def test_cameras_stand_where_the_mesh_is(
    trained: Path, run: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, scene = Model.load(run), load(sample, quiet=True)
    names = [scene.names[i] for i in (3, 7)]
    edits = Edits(crop=HALF, up=(0.0, 1.0, 0.0), scale=2.5, unit="m", left_out=tuple(names))
    for folder in (run, trained):
        write_edits(folder, edits if folder == trained else Edits(scale=2.5))
    try:
        for name, options in (("edited", []), ("plain", ["--no-edits"])):
            capsys.readouterr()
            assert cli.run(["export-cameras", str(trained), "-o", str(tmp_path / f"{name}.json"), *options]) == 0
            said = capsys.readouterr().err
            assert ("(2 photos left out, lengths times 2.5 (m))" in said) == (name == "edited")
            assert ("change nothing here (cropped, up direction set)" in said) == (name == "edited")
            command = ["mesh", str(run), "-o", str(tmp_path / f"{name}.ply"), "--resolution", "24", *options]
            assert cli.run(command) == 0
            points = ["mesh", str(run), "-o", str(tmp_path / f"{name}-points.ply"), "--points", "50", *options]
            assert cli.run(points) == 0
        plain, edited = (load(tmp_path / f"{name}.json", quiet=True) for name in ("plain", "edited"))
        ours, theirs = (
            [name.split("/", 1)[1].removesuffix(".png") for name in found.names] for found in (plain, edited)
        )
        assert [name for name in ours if name not in names] == theirs and len(ours) - len(theirs) == 2
        assert [theirs[i] for i in edited.splits["test"]] == [ours[i] for i in plain.splits["test"]]
        for name in ("", "-points"):
            mesh, scaled = (trimesh.load(tmp_path / f"{kind}{name}.ply") for kind in ("plain", "edited"))
            np.testing.assert_allclose(scaled.vertices, 2.5 * mesh.vertices, rtol=1e-5, atol=1e-5)
            for k in (0, len(edited.names) - 1):  # in pictures from the written cameras nothing has moved
                i = ours.index(theirs[k])
                uv, _ = edited.cameras.subset([k]).project(torch.tensor(np.asarray(scaled.vertices)))
                before, _ = plain.cameras.subset([i]).project(torch.tensor(np.asarray(mesh.vertices)))
                torch.testing.assert_close(uv, before, atol=1e-2, rtol=0)
        assert cli.run(["export-cameras", str(trained), "-o", str(tmp_path / "colmap")]) == 0
        assert len(load(tmp_path / "colmap", quiet=True).names) == len(theirs)
        with pytest.raises(UserError, match=r"edits.json of the run: 'x.png' is to be left out"):
            export_cameras(trained, tmp_path / "more.json", left_out=["x.png"])
        with pytest.raises(UserError, match="left_out is of a trained model"):
            export_cameras(sample, tmp_path / "more.json", left_out=["x.png"])
        assert not (tmp_path / "more.json").exists() and isinstance(model, AnalyticModel)
    finally:
        (trained / EDITS_FILE).unlink()


def test_a_box_is_in_the_units_of_the_mesh(run: Path, tmp_path: Path) -> None:
    write_edits(run, Edits(scale=10.0))
    box = ["--box", "0", "-12", "-12", "12", "12", "12"]
    assert cli.run(["mesh", str(run), "-o", str(tmp_path / "half.ply"), "--resolution", "24", *box]) == 0
    mesh = trimesh.load(tmp_path / "half.ply", force="mesh")
    assert mesh.bounds[0][0] > -1 and mesh.bounds[1].max() < 13 and mesh.extents[1] > 20


def test_paths_turn_about_the_up_that_was_set(run: Path, tmp_path: Path) -> None:
    model = AnalyticModel(ball(0.7), cameras=ring_cameras(6, 24))
    leaning = torch.nn.functional.normalize(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64), dim=0)
    usual, turned = make_path(model, "orbit").cameras.centres, make_path(model, "orbit", leaning).cameras.centres
    assert float((usual @ leaning).std()) > 0.5 and float((turned.double() @ leaning).std()) < 1e-6


def test_what_does_not_use_them_says_so(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_edits(trained, Edits(crop=HALF, scale=2.0))
    try:
        assert cli.run(["eval", str(trained), "-o", str(tmp_path / "eval")]) == 0
        said = capsys.readouterr().err
        assert (
            f"without the edits of {trained / EDITS_FILE} that change nothing here (cropped, lengths times 2)" in said
        )
        assert cli.run(["render", str(trained), "-o", str(tmp_path / "views"), "--frames", "1", "--width", "16"]) == 0
        said = capsys.readouterr().err
        assert "(cropped); --no-edits" in said and "change nothing here (lengths times 2)" in said
    finally:
        (trained / EDITS_FILE).unlink()
