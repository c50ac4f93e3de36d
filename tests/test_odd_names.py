"""Names that are not UTF-8, or hold line breaks: what is written about them can be read by everything."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fakes import FakeModel
from small_scenes import edit, write_transforms

from nerf.errors import UserError
from nerf.io import checkpoint, pictures
from nerf.meshing.files import check_path, save_mesh
from nerf.training.export import export_cameras
from nerf.training.runs import Run, read_run, write_run
from nerf.views.page import write_page
from nerf.views.report import write_report

ODD = os.fsdecode(b"a\xff\nu\xcc\x88 \xf0\x9f\x98\x80 .")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / ODD
    folder.mkdir()
    return folder


def test_a_checkpoint_there_is_read(out: Path) -> None:
    file, saved = out / "c.safetensors", {"t": torch.arange(5.0)}
    checkpoint.save(file, saved, {"names": [ODD]})
    tensors, config = checkpoint.load(file)
    assert torch.equal(tensors["t"], saved["t"]) and config == {"names": [ODD]}
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        checkpoint.load(file)


def test_a_run_and_its_report_name_it(out: Path) -> None:
    write_run(out, Run(str(out / "photos"), images=2))
    run = read_run(out)
    assert run is not None and run.data == str(out / "photos")
    write_run(out, Run(str(out), images=2))
    page = write_report(out, [f"{ODD} was chosen"]).read_text(encoding="utf-8")
    assert "a\\xff" in page and "\U0001f600" in page
    assert write_report(out, ["from a JSON file: \ud800"]).read_text(encoding="utf-8")


def test_a_mesh_and_its_page_lie_there(out: Path) -> None:
    box = trimesh.creation.box()
    for kind in ("glb", "ply", "stl"):
        save_mesh(box, out / f"{ODD}.{kind}")
        assert (out / f"{ODD}.{kind}").stat().st_size > 0
    page = write_page(out / f"{ODD}.html", FakeModel(), box, ODD, [ODD], directional=False)
    assert page.read_text(encoding="utf-8").count("a\\xff") == 3  # the title twice, the note
    save_mesh(box, out / "plain.obj")
    for name in ("a\nb.obj", "a\udcff.obj"):
        with pytest.raises(UserError, match="in UTF-8 and without line breaks: choose another name"):
            check_path(out / name)


def test_cameras_of_such_photos_are_exported(out: Path) -> None:
    data = write_transforms(out / "data", 3)
    (data / "images" / "000.png").rename(data / "images" / f"{ODD}.png")
    edit(data / "transforms.json", lambda c: c["frames"][0].update(file_path=f"images/{ODD}.png"))
    export_cameras(data, out / "cameras.json")
    assert f"{ODD}.png" in [
        frame["file_path"].rpartition("/")[2] for frame in json.loads((out / "cameras.json").read_text())["frames"]
    ]
    export_cameras(data, out / "model")
    assert os.fsencode(f"{ODD}.png") + b"\0" in (out / "model" / "sparse" / "0" / "images.bin").read_bytes()
    with pytest.raises(UserError, match=r"cannot name .* for its line break: leave out --text"):
        export_cameras(data, out / "text", text=True)


def test_names_are_drawn_on_pictures() -> None:
    grey = np.full((40, 200, 3), 128, np.uint8)
    assert np.array_equal(pictures.panels([grey], ["a\udcff\nb"]), pictures.panels([grey], ["a??b"]))
