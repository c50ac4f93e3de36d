"""Files that data sets and meshes name: those of the scene's own folder and the one above, and no others."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from small_scenes import edit, write_colmap, write_transforms
from test_sizes import edited_glb

from nerf.datasets import load
from nerf.errors import UserError
from nerf.geometry.triangles import read_mesh, read_textured_mesh
from nerf.training.export import export_cameras


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """home/scene, and home/../private.png that it should not reach."""
    folder = write_transforms(tmp_path / "home" / "scene")
    shutil.copy(folder / "images" / "001.png", tmp_path / "private.png")
    return folder


def first(folder: Path, **values: object) -> None:
    edit(folder / "transforms.json", lambda d: d["frames"][1].update(values))


@pytest.mark.parametrize("key", ["file_path", "mask_path"])
@pytest.mark.parametrize("absolute", [False, True])
def test_files_outside_are_refused(scene: Path, key: str, absolute: bool) -> None:
    private = scene.parent.parent / "private.png"
    first(scene, **{key: str(private) if absolute else "../../private.png"})
    with pytest.raises(UserError, match=r"frame 1 .*private.png leads out of .*home and is not opened"):
        load(scene, quiet=True)


def test_depths_and_points_outside_are_refused(scene: Path) -> None:
    np.save(scene.parent.parent / "depth.npy", np.ones((48, 48), np.float32))
    first(scene, depth_file_path="../../depth.npy")
    with pytest.raises(UserError, match="leads out of"):
        load(scene, quiet=True)
    first(scene, depth_file_path=None)
    edit(scene / "transforms.json", lambda d: d.update(ply_file_path="../../points.ply"))
    with pytest.raises(UserError, match=r"ply_file_path ../../points.ply leads out of its folder"):
        load(scene, quiet=True)


def test_the_folder_above_links_and_absolute_paths_within_are_fine(scene: Path) -> None:
    home = scene.parent
    shutil.move(scene / "images", home / "images")
    edit(scene / "transforms.json", lambda d: [f.update(file_path=f"../{f['file_path']}") for f in d["frames"]])
    assert len(load(scene, quiet=True).names) == 10
    link = home.parent / "link"
    link.symlink_to(scene, target_is_directory=True)  # opened by another name than the file states
    edit(
        scene / "transforms.json",
        lambda d: [f.update(file_path=str(home / f["file_path"].removeprefix("../"))) for f in d["frames"]],
    )
    assert len(load(scene, quiet=True).names) == len(load(link, quiet=True).names) == 10
    shutil.move(home / "images", home.parent / "photos")  # far away, and linked
    (scene / "images").symlink_to(home.parent / "photos", target_is_directory=True)
    assert len(load(scene, quiet=True).names) == 10


@pytest.mark.parametrize("elsewhere", ["/data/you/shoot/images/{}", "C:\\Users\\you\\shoot\\{}", "../../you/images/{}"])
def test_paths_of_another_machine_are_found_by_name(scene: Path, elsewhere: str) -> None:
    edit(
        scene / "transforms.json",
        lambda d: [f.update(file_path=elsewhere.format(Path(f["file_path"]).name)) for f in d["frames"]],
    )
    loaded = load(scene, quiet=True)
    assert sorted(f.resolve() for f in loaded.files) == sorted((scene / "images").iterdir())
    assert any("names 10 pictures as they lay elsewhere" in note for note in loaded.notes)


def test_a_missing_frame_is_no_other_frame_of_its_name(tmp_path: Path) -> None:
    """train/r_0 and test/r_0 have one file name; what is missing stays missing."""
    folder = write_transforms(tmp_path)
    shutil.copytree(folder / "images", folder / "photos")
    (folder / "photos" / "001.png").unlink()
    edit(
        folder / "transforms.json",
        lambda d: [f.update(file_path=f["file_path"].replace("images", "photos")) for f in d["frames"]],
    )
    assert len(load(folder, quiet=True).names) == 9


def test_colmap_names_that_climb_out(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    folder = tmp_path / "home" / "scene"
    write_colmap(folder)
    pictures = sorted((folder / "images").iterdir())
    shutil.move(pictures[0], tmp_path / pictures[0].name)
    import pycolmap

    model_at = next(p.parent for p in folder.rglob("images.*") if p.is_file())
    model = pycolmap.Reconstruction(str(model_at))
    image = next(im for im in model.images.values() if im.name == pictures[0].name)
    image.name = f"../../../{pictures[0].name}"
    model.write_text(str(model_at))
    for file in model_at.glob("*.bin"):
        file.unlink()
    scene = load(folder, quiet=True)
    assert len(scene.names) == len(pictures) - 1 and all(f.is_relative_to(folder) for f in scene.files)


def test_an_export_far_from_the_photos_is_read_again(scene: Path, tmp_path: Path) -> None:
    """By a link beside it, as its folder is not above them."""
    out = tmp_path / "a" / "b" / "cameras.json"
    assert len(load(export_cameras(scene, out), quiet=True).names) == 10
    assert json.loads(out.read_text())["frames"][0]["file_path"] == "cameras_images/000.png"
    assert (out.parent / "cameras_images").resolve() == (scene / "images").resolve()
    assert len(load(export_cameras(scene, out, overwrite=True), quiet=True).names) == 10
    (out.parent / "cameras_images").unlink()
    (out.parent / "cameras_images").mkdir()  # somebody's own
    export_cameras(scene, out, overwrite=True)
    assert list((out.parent / "cameras_images").iterdir()) == []


def _textured(folder: Path, texture: str) -> Path:
    folder.mkdir(parents=True)
    box = trimesh.creation.box()
    lines = ["mtllib a.mtl", "usemtl a", *(f"v {x} {y} {z}" for x, y, z in box.vertices), "vt 0 0"]
    lines += ["f " + " ".join(f"{i + 1}/1" for i in face) for face in box.faces]
    (folder / "a.obj").write_text("\n".join(lines))
    (folder / "a.mtl").write_text(f"newmtl a\nmap_Kd {texture}\n")
    return folder / "a.obj"


def test_textures_of_meshes(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "private.png")
    for name in ("../private.png", str(tmp_path / "private.png")):
        file = _textured(tmp_path / str(len(name)), name)
        with pytest.raises(UserError, match=r"a.obj: names .*private.png, which lies outside its folder"):
            read_mesh(file)
        shutil.copy(tmp_path / "private.png", file.parent)  # as if it came from another machine, with its texture
        assert read_textured_mesh(file).visual.material.image.size == (4, 4)


def test_a_texture_that_is_no_picture_is_not_run(tmp_path: Path) -> None:
    """EPS is a program, which Pillow hands to Ghostscript."""
    file = _textured(tmp_path / "a", "b.png")
    Image.new("RGB", (4, 4)).save(file.parent / "b.png", "EPS")
    before = list(Image.ID)
    with contextlib.suppress(UserError):
        assert getattr(read_textured_mesh(file).visual.material, "image", None) is None
    assert before == Image.ID or set(before) <= set(Image.ID)


def test_buffers_of_a_glb(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 10000)

    def edit_buffers(content: dict) -> None:
        content["buffers"].append({"uri": "../secret.bin", "byteLength": 100})

    (tmp_path / "meshes").mkdir()
    with pytest.raises(UserError, match=r"names ../secret.bin, which lies outside its folder"):
        read_mesh(edited_glb(tmp_path / "meshes" / "a.glb", edit_buffers))
