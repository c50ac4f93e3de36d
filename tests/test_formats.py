"""Every format gives the right geometry and pixels."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_scenes import (
    ELLIPSOID,
    FOCAL,
    MIDDLE,
    SIZE,
    check_geometry,
    edit,
    in_scene,
    picture,
    ring,
    save,
    to_binary,
    write_blender,
    write_colmap,
    write_llff,
    write_neus,
    write_transforms,
)

from nerf.datasets import load
from nerf.datasets.export import PosedFiles
from nerf.datasets.export import write_colmap as write_colmap_files
from nerf.datasets.loading import load_posed
from nerf.errors import UserError
from nerf.geometry.cameras import FISHEYE, OPENCV, PERSPECTIVE
from nerf.geometry.space import Box, Ndc


def test_blender(tmp_path):
    scene = load(write_blender(tmp_path))
    assert scene.source == "blender" and scene.has_alpha and not scene.linear
    assert scene.splits["train"].tolist() == list(range(6)) and scene.splits["test"].tolist() == list(range(6, 12))
    assert scene.names[0] == "train/r_0" and scene.pixels.memory.dtype == np.uint8
    check_geometry(scene, ring()[::2] + ring()[1::2])
    assert scene.space.name == "box" and scene.near == 0 and scene.space.n_levels == 1
    reach = np.abs(in_scene(scene, ELLIPSOID)).max()
    assert 0.7 < reach < 1  # inside the box, and the box is tight but for what 12 low views cannot see


def test_blender_keeps_val_out_of_train_and_works_with_train_alone(tmp_path):
    scene = load(write_blender(tmp_path / "a", splits=("train", "val", "test")))
    assert [len(scene.splits[k]) for k in ("train", "val", "test")] == [4, 4, 4]
    scene = load(write_blender(tmp_path / "b", splits=("train",)))
    assert scene.splits["test"].tolist() == sorted(sorted(range(12), key=lambda i: f"train/r_{i}")[::8])
    assert len(load(tmp_path / "b", holdout=0).splits["test"]) == 0
    assert len(load(tmp_path / "b", holdout=4).splits["test"]) == 3


def test_gather_and_image_give_the_files_pixels(tmp_path):
    scene = load(write_blender(tmp_path))
    ids, rows, cols = torch.tensor([3, 0, 11]), torch.tensor([7, 47, 0]), torch.tensor([9, 0, 47])
    values = scene.pixels.gather(ids, rows, cols)
    assert values.dtype == torch.float32 and torch.allclose(values[:, 0] * 255, rows * 3.0)
    assert torch.allclose(values[:, 1] * 255, cols * 3.0)
    assert torch.equal(scene.pixels.image(3)[7, 9], values[0])


def test_instant_ngp(tmp_path):
    scene = load(write_transforms(tmp_path, k1=0.01, k2=-0.02, p1=0.001, p2=0.002, aabb_scale=4))
    check_geometry(scene, ring(10))
    assert scene.cameras.models.tolist() == [OPENCV] * 10
    assert scene.cameras.distortion[0].tolist() == [0.01, -0.02, 0, 0, 0.001, 0.002]
    assert scene.splits["test"].tolist() == [0, 8] and scene.space.name == "unbounded" and scene.space.n_levels >= 4
    radius = torch.linalg.norm(scene.scene_from_world.apply(scene.cameras.centres), dim=1)
    assert 0.9 < float(radius.min()) and float(radius.max()) < 2.5 and 0 < scene.near < 0.5
    assert any("aabb_scale" in n for n in scene.notes)


def test_instant_ngp_scale_and_offset_are_honoured(tmp_path):
    scene = load(write_transforms(tmp_path, scale=0.5, offset=[0.5, 0.5, 0.25], aabb_scale=1))
    corners = (np.array([[0.0, 0, 0], [1, 1, 1]]) - [0.5, 0.5, 0.25]) / 0.5
    assert np.allclose(in_scene(scene, corners), [[-1] * 3, [1] * 3]) and scene.space.name == "box"


def test_nerfstudio(tmp_path):
    names = [f"images/{i:03d}.png" for i in range(10)]
    lists = {"train_filenames": names[:6], "val_filenames": names[6:7], "test_filenames": names[7:9]}
    write_transforms(
        tmp_path, camera_model="OPENCV_FISHEYE", k1=0.1, k4=0.01, applied_transform=np.eye(4).tolist()[:3], **lists
    )
    save(tmp_path / "m.png", np.repeat(np.arange(SIZE)[None] < 10, SIZE, 0).astype(np.uint8) * 255)

    def change(data):
        data["frames"][2] |= {"fl_x": 33.0, "fl_y": 34.0, "mask_path": "m.png"}
        data["frames"][3]["file_path"] = "images/003"  # without its suffix
        data["train_filenames"][3] = "images/003"

    edit(tmp_path / "transforms.json", change)
    scene = load(tmp_path)
    assert scene.cameras.models.tolist() == [FISHEYE] * 9 and scene.cameras.distortion[0, 3] == 0.01
    assert float(scene.cameras.fx[2]) == 33 and float(scene.cameras.fy[2]) == 34 and float(scene.cameras.fx[1]) == FOCAL
    assert scene.splits["val"].tolist() == [6] and scene.splits["test"].tolist() == [7, 8]
    assert any("none of the file's lists" in n for n in scene.notes)
    assert any("applied_transform" in n for n in scene.notes)
    assert scene.masks is not None and scene.masks.memory.dtype == torch.uint8
    assert (
        scene.masks.image(2)[5, 9] == 1 and scene.masks.image(2)[5, 10] == 0 and float(scene.masks.image(1).min()) == 1
    )


@pytest.mark.parametrize("binary", [False, True])
def test_colmap(tmp_path, binary):
    pytest.importorskip("pycolmap")
    write_colmap(tmp_path)
    scene = load(to_binary(tmp_path) if binary else tmp_path)
    assert scene.source == "colmap" and scene.points is not None and len(scene.points) == 150
    check_geometry(scene, ring(10))
    assert scene.cameras.models.tolist() == [PERSPECTIVE] * 10 and scene.space.name == "unbounded"
    assert np.abs(in_scene(scene, ELLIPSOID)).max() < 1.2
    radius = torch.linalg.norm(scene.scene_from_world.apply(scene.cameras.centres), dim=1)
    assert 0.9 < float(radius.median()) < 2.1
    box = load(tmp_path, space="box")
    assert box.space == Box() and np.abs(in_scene(box, ELLIPSOID)).max() < 1.05


def colmap_text(folder: Path, change: Callable[[str], str], encoding: str = "utf-8") -> Path:
    """A model of ten pictures whose images.txt is changed."""
    file = write_colmap(folder) / "sparse" / "0" / "images.txt"
    file.write_bytes(change(file.read_text()).encode(encoding))
    return folder


def test_colmap_text_without_empty_lines(tmp_path):
    """As written by hand for known poses: the second line of each image is often forgotten, and the points."""

    def forget(text: str) -> str:
        return "\n".join(line for line in text.splitlines() if line.endswith("png"))

    scene = load(colmap_text(tmp_path, forget))
    check_geometry(scene, ring(10))
    assert any("empty line after each image is missing" in n for n in scene.notes)
    (tmp_path / "sparse" / "0" / "points3D.txt").unlink()
    assert len(load(tmp_path).names) == 10
    some = colmap_text(tmp_path / "some", lambda text: text.replace("10.0 10.0 -1\n", "", 3))
    check_geometry(load(some), ring(10))
    colmap_text(tmp_path / "bad", lambda text: text.replace("10.0 10.0 -1\n", "10.0 10.0\n", 1))
    with pytest.raises(UserError, match=r"images.txt: line 3 is no list of 2-D points"):
        load(tmp_path / "bad")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_colmap_names_with_blanks_in_any_encoding(tmp_path, encoding, end):
    colmap_text(tmp_path, lambda text: text.replace("im0", "DJI 2024 (Flug ü) 0").replace("\n", end), encoding)
    for i in range(10):
        name = f"DJI 2024 (Flug ü) 0{i}.png"
        (tmp_path / "images" / f"im0{i}.png").rename(tmp_path / "images" / name)
    (tmp_path / "sparse" / "._0").mkdir()
    assert [Path(n).stem[-2:] for n in load(tmp_path).names] == [f"0{i}" for i in range(10)]
    pycolmap = pytest.importorskip("pycolmap")
    if (encoding, end) == ("utf-8", "\n"):  # binary, with the bytes of a code page
        model = write_colmap(tmp_path / "binary") / "sparse" / "0"
        found = pycolmap.Reconstruction()
        found.read_text(str(model))
        found.write_binary(str(model))
        for file in model.glob("*.txt"):
            file.unlink()
        data = (model / "images.bin").read_bytes()
        (model / "images.bin").write_bytes(data.replace(b"im0", "kü0".encode("cp1252")))
        for i in range(10):
            (tmp_path / "binary" / "images" / f"im0{i}.png").rename(tmp_path / "binary" / "images" / f"kü0{i}.png")
        check_geometry(load(tmp_path / "binary"), ring(10))


def test_what_we_write_as_text_is_read_again(tmp_path):
    folder = write_transforms(tmp_path / "a")
    for file in (folder / "images").iterdir():
        file.rename(file.with_name(f"a photo {file.name}"))
    edit(
        folder / "transforms.json",
        lambda data: [f.update(file_path=f["file_path"].replace("images/", "images/a photo ")) for f in data["frames"]],
    )
    posed = load_posed(folder)
    write_colmap_files(
        PosedFiles(posed.cameras, [f.path for f in posed.frames], {}), folder / "sparse", folder / "images", text=True
    )
    (folder / "transforms.json").unlink()
    check_geometry(load(folder), ring(10))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_json_in_any_encoding(tmp_path, encoding):
    write_transforms(tmp_path)
    for file in (tmp_path / "images").iterdir():
        file.rename(file.with_name(f"ö{file.name}"))
    text = (tmp_path / "transforms.json").read_text().replace("images/", "images/ö")
    (tmp_path / "transforms.json").write_bytes(text.encode(encoding))
    assert len(load(tmp_path).names) == 10


def test_the_largest_colmap_model_wins_over_others_and_over_llff(tmp_path):
    pytest.importorskip("pycolmap")
    write_colmap(tmp_path, n=10)
    small = write_colmap(tmp_path / "small", n=4) / "sparse" / "0"
    shutil.copytree(small, tmp_path / "sparse" / "1")
    np.save(tmp_path / "poses_bounds.npy", np.zeros((10, 17)))
    scene = load(tmp_path)
    assert len(scene.names) == 10 and scene.source == "colmap"
    assert any("2 COLMAP models" in n for n in scene.notes) and any("preferred to llff" in n for n in scene.notes)


def test_colmap_uses_reduced_images_when_there_are_no_others(tmp_path):
    pytest.importorskip("pycolmap")
    write_colmap(tmp_path)
    for file in (tmp_path / "images").iterdir():
        half = Image.open(file).resize((SIZE // 2, SIZE // 2))
        (tmp_path / "images_2").mkdir(exist_ok=True)
        half.save(tmp_path / "images_2" / (file.stem + ".jpg"))
    shutil.rmtree(tmp_path / "images")
    scene = load(tmp_path)
    assert float(scene.cameras.fx[0]) == FOCAL / 2 and int(scene.cameras.widths[0]) == SIZE // 2


def test_llff(tmp_path):
    scene = load(write_llff(tmp_path))
    assert scene.source == "llff" and isinstance(scene.space, Ndc)
    assert np.allclose(scene.cameras.fx, FOCAL) and scene.splits["test"].tolist() == [0, 8]
    assert np.allclose(scene.cameras.centres[4], [0, -4, 0]) and np.allclose(scene.cameras.c2w[4, :, 2], [0, -1, 0])
    # the average camera looks along -z; a point at 3/4 of the nearest depth lies on the near plane
    middle = in_scene(scene, np.array([[0.0, -4.0, 0.0], [0.0, -4.0 + 1.5, 0.0]]))
    assert np.abs(middle[0]).max() < 0.02 and np.allclose(middle[1], [0, 0, -1], atol=0.02)
    ids = torch.arange(9).repeat_interleave(4)
    rows, cols = torch.tensor([0, 0, SIZE - 1, SIZE - 1]).repeat(9), torch.tensor([0, SIZE - 1] * 18)
    o, d = scene.cameras.rays(ids, rows, cols, scene.scene_from_world)
    for depth in (1.0, 2.0, 1e4):
        x = scene.space.points_to_march(o + (-depth - o[:, 2:]) / d[:, 2:] * d)
        assert float(x.abs().max()) <= 1 + 1e-4


def test_neus(tmp_path):
    scene = load(write_neus(tmp_path))
    check_geometry(scene, ring(8))
    assert scene.has_alpha and scene.pixels.n_channels == 4 and scene.space.name == "box"
    assert torch.equal(scene.pixels.image(2), torch.from_numpy(picture(ring(8)[2]).astype(np.float32) / 255))
    assert 0.7 < np.abs(in_scene(scene, ELLIPSOID)).max() < 1
    shutil.rmtree(tmp_path / "mask")
    bare = load(tmp_path)
    assert not bare.has_alpha and np.allclose(in_scene(bare, MIDDLE[None] + [0.8, 0, 0]), [[1, 0, 0]])


def test_a_colmap_scene_leaves_sigterm_alone(tmp_path: Path) -> None:
    """Importing pycolmap makes SIGTERM print a C++ stack; a process that read a model ends without a word."""
    pytest.importorskip("pycolmap")
    folder = write_colmap(tmp_path / "scene")
    read = f"import os, signal, nerf.datasets as d; d.load({str(folder)!r}, quiet=True)"
    code = f"{read}; os.kill(os.getpid(), signal.SIGTERM); os._exit(0)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGTERM, "")


@pytest.mark.parametrize("text", [False, True])
def test_a_colmap_model_of_rigs(tmp_path: Path, text: bool) -> None:
    """Rigs and frames of COLMAP 4: where a frame's other cameras stand is what its rig says, whatever images say."""
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 2, 4, 60
    options.camera_width, options.camera_height, options.camera_params = 64, 48, [80.0, 32.0, 24.0, 0.05]
    model, place = pycolmap.synthesize_dataset(options), tmp_path / "sparse" / "0"
    place.mkdir(parents=True)
    (model.write_text if text else model.write_binary)(str(place))
    wanted = {}
    for image in model.images.values():
        frame, sensor = model.frames[image.frame_id], image.camera.sensor_id
        rig = model.rigs[frame.rig_id]
        w2c = np.eye(4)
        w2c[:3] = frame.rig_from_world.matrix()
        if not rig.is_ref_sensor(sensor):
            w2c[:3] = rig.sensor_from_rig(sensor).matrix() @ w2c
        wanted[image.name] = (np.linalg.inv(w2c) @ np.diag([1.0, -1, -1, 1]))[:3]
        save(tmp_path / "images" / image.name, np.full((48, 64, 3), 9, np.uint8))
    scene = load(tmp_path, quiet=True)
    assert len(scene.names) == 8 and {name.split("_")[0] for name in scene.names} == {"camera000001", "camera000002"}
    np.testing.assert_allclose(scene.cameras.c2w.numpy(), [wanted[name] for name in scene.names], atol=1e-9)
