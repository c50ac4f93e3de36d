"""Every kind of bad input is one sentence that names the place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_scenes import (
    FOCAL,
    SIZE,
    edit,
    ring,
    to_binary,
    write_blender,
    write_colmap,
    write_llff,
    write_neus,
    write_transforms,
)

from nerf.datasets import load
from nerf.datasets.colmap_models import COLMAP_MODELS
from nerf.datasets.named import pictures_in
from nerf.errors import UserError


def fails(path: Path, *words: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load(path, quiet=True, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_missing_folder_and_folder_of_nothing_known(tmp_path):
    fails(tmp_path / "nowhere", "nowhere", "no such folder")
    fails(tmp_path, "transforms_train.json", "transforms.json", "COLMAP", "poses_bounds.npy", "cameras_sphere.npz")
    (tmp_path / "notes.txt").write_text("x")
    fails(tmp_path / "notes.txt", ".json")


def test_bad_options(tmp_path):
    write_blender(tmp_path, splits=("train",))
    fails(tmp_path, "downscale", downscale=0)
    fails(tmp_path, "downscale", downscale=100)
    fails(tmp_path, "holdout", holdout=-1)
    fails(tmp_path, "holdout 1", holdout=1)
    fails(tmp_path, "kind", "colmap", kind="colnap")
    fails(tmp_path, "'colmap'", "blender", kind="colmap")
    fails(tmp_path, "space", space="sphere")
    fails(tmp_path, "'ndc'", "'unbounded'", space="ndc")


def test_a_transform_that_is_none_and_frames_that_are_none(tmp_path):
    file = write_transforms(tmp_path) / "transforms.json"
    for value in (None, 0, float("inf"), [], [[1.0]], {}):
        edit(file, lambda data, value=value: data.update(applied_transform=value))
        assert len(load(tmp_path, quiet=True).names) == 10
    edit(file, lambda data: data.update(frames=[]))
    fails(tmp_path, "transforms.json", "names no frame")


def test_a_folder_that_goes_away_while_it_is_read(tmp_path, monkeypatch):
    def glob(self: Path, pattern: str):
        yield self / "a.png"
        raise FileNotFoundError(2, "No such file or directory", str(self / "below"))

    monkeypatch.setattr(Path, "glob", glob)
    with pytest.raises(UserError, match="below went away while the folder was read"):
        pictures_in(tmp_path)


def test_json_cut_off_or_lacking_a_key(tmp_path):
    file = write_transforms(tmp_path) / "transforms.json"
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    fails(tmp_path, "transforms.json", "cut off")
    file.write_text("[]")
    fails(tmp_path, "transforms.json", "frames")
    for change, words in (
        (lambda d: d.pop("frames"), ("'frames'",)),
        (lambda d: d["frames"][4].pop("transform_matrix"), ("frame 4", "'transform_matrix'")),
        (lambda d: d["frames"][5].pop("file_path"), ("frame 5", "'file_path'")),
        (lambda d: (d.pop("fl_x"), d.pop("fl_y")), ("focal length", "camera_angle_x")),
        (lambda d: d.update(fl_x="long"), ("fl_x", "'long'")),
        (lambda d: d.update(camera_model="VR180_L"), ("VR180_L", "OPENCV")),
        (lambda d: d.update(train_filenames=["images/zzz.png"]), ("images/zzz.png",)),
        (lambda d: d.update(offset=[1, 2]), ("offset",)),
    ):
        file.write_text(text)
        edit(file, change)
        fails(tmp_path, *words)


def test_missing_images_are_skipped_and_named_until_too_few_remain(tmp_path):
    write_transforms(tmp_path)
    for i in (2, 5):
        (tmp_path / "images" / f"{i:03d}.png").unlink()
    scene = load(tmp_path)
    assert len(scene.names) == 8
    skipped = next(n for n in scene.notes if "skipped" in n)
    assert "2 of 10" in skipped and "images/002.png" in skipped and "images/005.png" in skipped
    for i in (0, 1, 3, 4, 6, 7):
        (tmp_path / "images" / f"{i:03d}.png").unlink()
    fails(tmp_path, "2 of 10", "three", "000.png")


def test_paths_that_climb_out_or_are_no_image(tmp_path):
    write_transforms(tmp_path / "scene")
    (tmp_path / "secret.txt").write_text("x")
    (tmp_path / "scene" / "list.txt").write_text("x")
    file = tmp_path / "scene" / "transforms.json"
    for name, words in (
        ("../secret.txt", ("leads out", "frame 1")),
        ("../../../../etc/hostname", ("leads out", "frame 1")),
        ("list.txt", ("is no image", "frame 1")),
    ):
        edit(file, lambda d, name=name: d["frames"][1].update(file_path=name))
        fails(tmp_path / "scene", name, *words)
    edit(file, lambda d: d["frames"][1].update(file_path="images/001.png", mask_path="../secret.txt"))
    fails(tmp_path / "scene", "secret.txt")
    shutil.copytree(
        tmp_path / "scene" / "images", tmp_path / "images"
    )  # images beside the scene are images all the same
    edit(file, lambda d: d["frames"][1].update(file_path="../images/001.png", mask_path=None))
    assert len(load(tmp_path / "scene", quiet=True).names) == 10


def test_images_of_another_size_than_stated(tmp_path):
    write_transforms(tmp_path)
    for file in (tmp_path / "images").iterdir():
        Image.open(file).resize((24, 24)).save(file)
    scene = load(tmp_path)  # same shape: the intrinsics follow
    assert float(scene.cameras.fx[0]) == FOCAL / 2 and any("rescaled" in n for n in scene.notes)
    Image.new("RGB", (30, 24)).save(tmp_path / "images" / "004.png")
    fails(tmp_path, "frame 4", "30x24", "48x48", "aspect")
    edit(tmp_path / "transforms.json", lambda d: [d.pop(k) for k in ("w", "h")])
    fails(tmp_path, "frame 4", "30x24", "24x24", "state w and h")


def test_intrinsics_of_another_size(tmp_path):
    """A quarter of the size, and nothing states what the intrinsics belong to: the principal point tells."""
    file = write_transforms(tmp_path, fl_x=4 * FOCAL, fl_y=4 * FOCAL, cx=2 * SIZE, cy=2 * SIZE) / "transforms.json"
    fails(tmp_path, f"principal point ({2 * SIZE}, {2 * SIZE}) lies outside", "another size", "correct w and h")
    edit(file, lambda data: (data.pop("w"), data.pop("h")))
    fails(tmp_path, f"principal point ({2 * SIZE}, {2 * SIZE}) lies outside", "state w and h")
    edit(file, lambda data: data.update(w=4 * SIZE, h=4 * SIZE))
    assert load(tmp_path, quiet=True).cameras.fx.tolist() == [FOCAL] * 10
    edit(file, lambda data: data.update(w=SIZE, h=SIZE, cx=-3, cy=20))  # cut out of a larger picture, and said to be so
    assert any("lies outside" in n for n in load(tmp_path, quiet=True).notes)


def test_masks_of_another_size_say_what_lenses_belong_to(tmp_path):
    """As in scans that are published with photos of half the size of their masks and cameras."""
    write_neus(tmp_path)
    full = load(tmp_path, quiet=True)
    for file in (tmp_path / "image").iterdir():
        Image.open(file).convert("RGB").resize((SIZE // 2, SIZE // 2)).save(file)
    scene = load(tmp_path, quiet=True)
    assert scene.cameras.widths.tolist() == [SIZE // 2] * len(scene.names)
    torch.testing.assert_close(scene.cameras.fx, full.cameras.fx / 2)
    torch.testing.assert_close(scene.cameras.cx, full.cameras.cx / 2)


def test_images_of_differing_sizes_load_when_their_cameras_say_so(tmp_path):
    write_transforms(tmp_path)
    Image.new("RGB", (30, 24), (9, 9, 9)).save(tmp_path / "images" / "004.png")
    edit(tmp_path / "transforms.json", lambda d: d["frames"][4].update(w=30, h=24, cx=15, cy=12))
    scene = load(tmp_path)
    assert scene.pixels.image(4).shape == (24, 30, 3) and scene.pixels.image(5).shape == (SIZE, SIZE, 3)
    assert float(scene.pixels.image(5)[1, 2, 0] * 255) == 3


def test_bad_poses(tmp_path):
    file = write_transforms(tmp_path) / "transforms.json"
    text = file.read_text()
    good = ring(10)[6]
    nan, far, singular, mirrored, sheared = (good.copy() for _ in range(5))
    nan[1, 3] = np.nan
    far[1, 3] = 1e300
    singular[:3, 0] = singular[:3, 1]
    mirrored[:3, 0] *= -1
    sheared[:3, 0] *= 2
    for pose, word in (
        (nan.tolist(), "NaN"),
        (far.tolist(), "stands 1e+300 units away"),
        (singular.tolist(), "singular"),
        (mirrored.tolist(), "mirrored"),
        (sheared.tolist(), "no rotation"),
        ([[1, 2], [3, 4]], "shape"),
        ([[1, 2], [3]], "no matrix"),
    ):
        file.write_text(text)
        edit(file, lambda d, pose=pose: d["frames"][6].update(transform_matrix=pose))
        fails(tmp_path, "transforms.json", "frame 6", word)


def test_nearly_orthonormal_poses_are_made_exact(tmp_path):
    file = write_transforms(tmp_path) / "transforms.json"
    noise = np.random.default_rng(0).normal(size=(3, 3)) * 1e-3

    def change(data):
        pose = np.array(data["frames"][0]["transform_matrix"])
        pose[:3, :3] += noise
        data["frames"][0]["transform_matrix"] = pose.tolist()

    edit(file, change)
    r = load(tmp_path).cameras.c2w[0, :, :3]
    assert torch.allclose(r @ r.T, torch.eye(3, dtype=torch.float64), atol=1e-12) and float(torch.det(r)) > 0
    assert np.abs(r.numpy() - ring(10)[0][:3, :3]).max() < 5e-3


def test_bad_intrinsics(tmp_path):
    file = write_transforms(tmp_path) / "transforms.json"
    text = file.read_text()
    no_focal = {"fl_x": None, "fl_y": None}
    for change, words in (
        ({"fl_x": 0}, ("focal length is 0",)),
        ({"fl_y": -5}, ("focal length is -5",)),
        ({"fl_x": float("nan")}, ("fl_x", "finite")),
        ({**no_focal, "camera_angle_x": 3.2}, ("camera_angle_x", "3.2", "pi")),
        ({**no_focal, "camera_angle_x": 0}, ("camera_angle_x",)),
        ({"fl_x": 1e-3}, ("180 degrees",)),
        ({"k1": float("inf")}, ("k1",)),
        ({"cx": 1e300}, ("principal point",)),
        ({"fl_x": 1e300}, ("focal length is 1e+300",)),
    ):
        file.write_text(text)
        edit(file, lambda d, change=change: d.update(change))
        fails(tmp_path, "frame 0", *words)


def test_corrupt_images(tmp_path):
    write_transforms(tmp_path)
    victim = tmp_path / "images" / "003.png"
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2])
    fails(tmp_path, "003.png", "damaged")
    victim.write_bytes(b"not an image at all")
    fails(tmp_path, "003.png", "cannot be read")
    victim.write_bytes(b"")
    fails(tmp_path, "003.png", "cannot be read")


@pytest.mark.parametrize("name", ["cameras", "images", "points3D", "frames"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_truncated_binary_colmap_model(tmp_path, name, share):
    file = to_binary(write_colmap(tmp_path, n=4)) / "sparse" / "0" / f"{name}.bin"
    if not file.is_file():
        pytest.skip("this pycolmap writes no such file")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    fails(tmp_path, f"{name}.bin", "cut off")


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_truncated_text_colmap_model(tmp_path, name):
    pytest.importorskip("pycolmap")
    file = write_colmap(tmp_path) / "sparse" / "0" / f"{name}.txt"
    text = file.read_text()
    file.write_text(text[: int(len(text) * 0.6)])
    fails(tmp_path, "sparse")


def test_colmap_without_images_or_with_an_unknown_lens(tmp_path, monkeypatch):
    pytest.importorskip("pycolmap")
    write_colmap(tmp_path)
    shutil.rmtree(tmp_path / "images")
    fails(tmp_path, "im00.png", "images/")
    write_colmap(tmp_path)
    monkeypatch.delitem(COLMAP_MODELS, "PINHOLE")  # as one of a COLMAP that comes after this
    fails(tmp_path, "PINHOLE", "image_undistorter")


def test_damaged_llff_and_neus_files(tmp_path):
    write_llff(tmp_path / "llff")
    table = np.load(tmp_path / "llff" / "poses_bounds.npy")
    np.save(tmp_path / "llff" / "poses_bounds.npy", table[:-1])
    fails(tmp_path / "llff", "8 poses", "9 images")
    table[3, 4] = np.nan
    np.save(tmp_path / "llff" / "poses_bounds.npy", table)
    fails(tmp_path / "llff", "row 3", "NaN")
    np.save(tmp_path / "llff" / "poses_bounds.npy", table[:, :14])
    fails(tmp_path / "llff", "(9, 14)", "17")
    np.save(tmp_path / "llff" / "poses_bounds.npy", table.astype(str))
    fails(tmp_path / "llff", "expected numbers")
    (tmp_path / "llff" / "poses_bounds.npy").write_bytes(b"\x93NUMPY")
    fails(tmp_path / "llff", "poses_bounds.npy", "damaged")

    file = write_neus(tmp_path / "neus") / "cameras_sphere.npz"
    data = dict(np.load(file))
    np.savez(file, **{**data, "world_mat_2": np.zeros((4, 4))})
    fails(tmp_path / "neus", "world_mat_2", "singular")
    np.savez(file, **{k: v for k, v in data.items() if k.startswith("scale")})
    fails(tmp_path / "neus", "world_mat_0")
    file.write_bytes(file.read_bytes()[:100])
    fails(tmp_path / "neus", "cameras_sphere.npz", "damaged")
