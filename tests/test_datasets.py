"""Loading: every format gives the right geometry and pixels, and every kind of bad input one clear sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.datasets import Scene, load
from nerf.errors import UserError
from nerf.geometry.cameras import FISHEYE, OPENCV, PERSPECTIVE
from nerf.geometry.space import Box, Ndc

REAL = Path(os.environ.get("NERF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
AXES = np.array([0.5, 0.3, 0.2])  # half axes and middle of the test object, an ellipsoid
MIDDLE = np.array([0.1, -0.2, 0.3])
SIZE, FOCAL = 48, 60.0
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"no real data: {REAL / name} is not there (set NERF_TEST_DATA)")
    return REAL / name


# ---- small scenes, made here


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
    return pose


def ring(n: int = 12, radius: float = 3.0) -> list[np.ndarray]:
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    heights = np.where(np.arange(n) % 2, 0.8, 2.0)
    return [
        look_at(np.array([radius * np.cos(a), radius * np.sin(a), h]), np.array([0.1, 0.0, 0.2]))
        for a, h in zip(angles, heights, strict=True)
    ]


def picture(pose: np.ndarray, size: int = SIZE, focal: float = FOCAL) -> np.ndarray:
    """RGBA [size,size,4] uint8 of the ellipsoid; colour is the row and column, so that each pixel can be recognised."""
    row, col = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    d = np.stack([(col + 0.5 - size / 2) / focal, -(row + 0.5 - size / 2) / focal, -np.ones_like(row, float)], -1)
    d = d @ pose[:3, :3].T / AXES
    o = (pose[:3, 3] - MIDDLE) / AXES
    hit = (d @ o) ** 2 >= (d * d).sum(-1) * (o @ o - 1)
    return np.stack([row * 3, col * 3, hit * 77, hit * 255], axis=-1).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_blender(folder: Path, n: int = 12, splits: tuple[str, ...] = ("train", "test")) -> Path:
    poses = ring(n)
    for k, split in enumerate(splits):
        mine = list(range(n))[k :: len(splits)]
        frames = [{"file_path": f"./{split}/r_{i}", "transform_matrix": poses[i].tolist()} for i in mine]
        for i in mine:
            save(folder / split / f"r_{i}.png", picture(poses[i]))
        angle = 2 * np.arctan(0.5 * SIZE / FOCAL)
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    return folder


def write_transforms(folder: Path, n: int = 10, channels: int = 3, **extra: object) -> Path:
    frames = []
    for i, pose in enumerate(ring(n)):
        save(folder / "images" / f"{i:03d}.png", picture(pose)[..., :channels])
        frames.append({"file_path": f"images/{i:03d}.png", "transform_matrix": pose.tolist()})
    head = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": SIZE / 2, "cy": SIZE / 2, "w": SIZE, "h": SIZE}
    (folder / "transforms.json").write_text(json.dumps({**head, **extra, "frames": frames}))
    return folder


def edit(file: Path, change) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def quaternion(r: np.ndarray) -> np.ndarray:
    w = np.sqrt(max(0.0, 1 + np.trace(r))) / 2
    v = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    if w > 1e-3:
        return np.array([w, *(v / (4 * w))])
    values, vectors = np.linalg.eigh((r + r.T) / 2)
    return np.array([0.0, *vectors[:, values.argmax()]])


def write_colmap(
    folder: Path, camera: str = f"PINHOLE {SIZE} {SIZE} {FOCAL} {FOCAL} {SIZE / 2} {SIZE / 2}", n: int = 10
) -> Path:
    model = folder / "sparse" / "0"
    model.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sphere = rng.normal(size=(150, 3))
    points = MIDDLE + AXES * sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    images = [f"# Number of images: {n}, mean observations per image: 1"]
    for i, pose in enumerate(ring(n)):
        w2c = np.linalg.inv(pose @ FLIP)
        q, t = quaternion(w2c[:3, :3]), w2c[:3, 3]
        images += [f"{i + 1} {' '.join(map(repr, map(float, [*q, *t])))} 1 im{i:02d}.png", "10.0 10.0 -1"]
        save(folder / "images" / f"im{i:02d}.png", picture(pose)[..., :3])
    (model / "cameras.txt").write_text(f"# Number of cameras: 1\n1 {camera}\n")
    (model / "images.txt").write_text("\n".join(images) + "\n")
    lines = [f"{k + 1} {p[0]} {p[1]} {p[2]} 9 9 9 0.5" for k, p in enumerate(points)]
    (model / "points3D.txt").write_text(f"# Number of points: {len(points)}\n" + "\n".join(lines) + "\n")
    return folder


def to_binary(folder: Path) -> Path:
    pycolmap = pytest.importorskip("pycolmap")
    model = folder / "sparse" / "0"
    reconstruction = pycolmap.Reconstruction()
    reconstruction.read_text(str(model))
    for file in model.iterdir():
        file.unlink()
    reconstruction.write_binary(str(model))
    return folder


def write_llff(folder: Path, n: int = 9) -> Path:
    rows = []
    for i in range(n):
        eye = np.array([(i % 3 - 1) * 0.3, -4.0, (i // 3 - 1) * 0.3])
        pose = look_at(eye, np.array([0.0, 0.0, 0.0]))
        m = np.stack([-pose[:3, 1], pose[:3, 0], pose[:3, 2], pose[:3, 3], [SIZE * 4, SIZE * 4, FOCAL * 4]], axis=1)
        rows.append([*m.ravel(), 2.0, 9.0])
        save(folder / "images_4" / f"im{i}.png", picture(pose)[..., :3])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def write_neus(folder: Path, n: int = 8) -> Path:
    cameras: dict[str, Any] = {}
    k = np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])
    for i, pose in enumerate(ring(n)):
        world = np.eye(4)
        world[:3] = -1.7 * k @ np.linalg.inv(pose @ FLIP)[:3]  # a projection matrix has no scale and no sign
        cameras[f"world_mat_{i}"] = world
        scale = np.diag([0.8, 0.8, 0.8, 1.0])
        scale[:3, 3] = MIDDLE
        cameras[f"scale_mat_{i}"] = scale
        rgba = picture(pose)
        save(folder / "image" / f"{i:06d}.png", rgba[..., :3])
        save(folder / "mask" / f"{i:03d}.png", rgba[..., 3])
    np.savez(folder / "cameras_sphere.npz", **cameras)
    return folder


def check_geometry(scene: Scene, poses: list[np.ndarray], tolerance: float = 1e-6) -> None:
    got = scene.cameras.c2w.numpy()
    assert np.abs(got - np.stack([p[:3] for p in poses])).max() < tolerance
    assert np.allclose(scene.cameras.fx, FOCAL, rtol=1e-6) and np.allclose(scene.cameras.cx, SIZE / 2)


def in_scene(scene: Scene, points: np.ndarray) -> np.ndarray:
    return scene.scene_from_world.apply(torch.from_numpy(points)).numpy()


ELLIPSOID = MIDDLE + AXES * np.concatenate([np.eye(3), -np.eye(3)])


# ---- formats


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


COLMAP_CAMERAS = {
    "SIMPLE_PINHOLE": [50, 24, 23],
    "PINHOLE": [50, 52, 24, 23],
    "SIMPLE_RADIAL": [50, 24, 23, 0.05],
    "RADIAL": [50, 24, 23, 0.05, -0.02],
    "OPENCV": [50, 52, 24, 23, 0.05, -0.02, 0.003, -0.002],
    "FULL_OPENCV": [50, 52, 24, 23, 0.05, -0.02, 0.003, -0.002, 0.01, 0, 0, 0],
    "OPENCV_FISHEYE": [50, 52, 24, 23, 0.05, -0.02, 0.003, -0.002],
    "SIMPLE_RADIAL_FISHEYE": [50, 24, 23, 0.05],
    "RADIAL_FISHEYE": [50, 24, 23, 0.05, -0.02],
}


@pytest.mark.parametrize("model", COLMAP_CAMERAS)
def test_colmap_camera_models_project_as_colmap_does(tmp_path, model):
    pycolmap = pytest.importorskip("pycolmap")
    params = COLMAP_CAMERAS[model]
    scene = load(write_colmap(tmp_path, f"{model} {SIZE} {SIZE} {' '.join(map(str, params))}", n=4), quiet=True)
    theirs = pycolmap.Camera(model=model, width=SIZE, height=SIZE, params=params)
    local = np.random.default_rng(0).uniform([-0.7, -0.7, 1.0], [0.7, 0.7, 2.0], size=(50, 3))
    c2w = scene.cameras.c2w[0].numpy()
    world = (local * [1, -1, -1]) @ c2w[:, :3].T + c2w[:, 3]
    uv, _ = scene.cameras.project(torch.from_numpy(world))
    wanted = np.stack([theirs.img_from_cam(p) for p in local]).reshape(-1, 2)
    assert np.abs(uv[0].numpy() - wanted).max() < 1e-6


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


# ---- pixels


def test_sixteen_bits_grey_jpeg_and_exr_keep_their_type(tmp_path):
    import struct
    import zlib

    def png16(path: Path, image: np.ndarray) -> None:  # no library of ours writes 16-bit colour
        h, w, c = image.shape
        rows = b"".join(b"\0" + image[i].astype(">u2").tobytes() for i in range(h))
        out = b"\x89PNG\r\n\x1a\n"
        header = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], 0, 0, 0)
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        path.write_bytes(out)

    def rewrite(write, suffix=".png"):
        for i in range(4):
            write(tmp_path / "images" / f"{i:03d}{suffix}", i)

    write_transforms(tmp_path, n=4)
    deep = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE, 4)).astype(np.uint16)
    for c in (1, 3, 4):
        rewrite(lambda path, i, c=c: png16(path, deep[..., :c]))
        scene = load(tmp_path, quiet=True)
        assert scene.pixels.memory.dtype == np.uint16 and scene.pixels.n_channels == c
        assert torch.allclose(scene.pixels.image(3), torch.from_numpy(deep[..., :c].astype(np.float32) / 65535))
        assert torch.equal(scene.pixels.gather(*torch.tensor([[3], [4], [5]]))[0], scene.pixels.image(3)[4, 5])

    rewrite(lambda path, i: Image.fromarray(picture(ring(4)[i])[..., 0]).save(path))
    assert load(tmp_path, quiet=True).pixels.memory.shape == (4 * SIZE * SIZE, 1)

    rewrite(lambda path, i: Image.fromarray(picture(ring(4)[i])[..., : 3 + i % 2]).save(path))
    assert load(tmp_path, quiet=True).pixels.n_channels == 4  # mixed: opaque alpha added

    rewrite(lambda path, i: path.unlink())
    rewrite(lambda path, i: Image.fromarray(picture(ring(4)[i])[..., :3]).save(path, quality=95), ".jpg")
    edit(tmp_path / "transforms.json", lambda d: [f.update(file_path=f["file_path"][:-4]) for f in d["frames"]])
    assert load(tmp_path, quiet=True).pixels.n_channels == 3  # found without its suffix

    OpenEXR = pytest.importorskip("OpenEXR")
    rewrite(lambda path, i: path.unlink(), ".jpg")
    values = np.random.default_rng(1).uniform(0, 4, (SIZE, SIZE, 3)).astype(np.float16)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    rewrite(lambda path, i: OpenEXR.File(header, {"RGB": values}).write(str(path)), ".exr")
    scene = load(tmp_path, quiet=True)
    assert scene.linear and scene.pixels.memory.dtype == np.float16
    assert torch.equal(scene.pixels.image(0), torch.from_numpy(values.astype(np.float32)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: np.rot90(a, 2),
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    frames = []
    for i, pose in enumerate(ring(4)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(undo(upright))).save(tmp_path / f"{i}.jpg", exif=exif, quality=100)
        frames.append({"file_path": f"{i}.jpg", "transform_matrix": pose.tolist()})
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 50, "w": 64, "h": 48, "frames": frames}))
    got = load(tmp_path, quiet=True).pixels.image(0)
    assert got.shape == (48, 64, 3)
    assert float((got * 255 - torch.from_numpy(upright.astype(np.float32))).abs().mean()) < 8  # JPEG's loss


def test_poses_made_from_unturned_images_keep_them_so(tmp_path):
    write_transforms(tmp_path, w=40, h=SIZE)
    for file in (tmp_path / "images").iterdir():
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.zeros((SIZE, 40, 3), np.uint8)).save(file, exif=exif)
    scene = load(tmp_path)
    assert (int(scene.pixels.heights[0]), int(scene.pixels.widths[0])) == (SIZE, 40)
    assert any("EXIF" in n for n in scene.notes)


def test_downscale_is_an_area_average_weighted_by_alpha(tmp_path):
    full, third = load(write_blender(tmp_path), quiet=True), load(tmp_path, downscale=3, quiet=True)
    assert float(third.cameras.fx[0]) == FOCAL / 3 and third.pixels.memory.shape[0] == 12 * 16 * 16
    blocks = full.pixels.image(0).reshape(16, 3, 16, 3, 4)
    alpha = blocks[..., 3:].sum(dim=(1, 3))
    got = third.pixels.image(0)
    assert torch.allclose(got[..., 3:], alpha / 9, atol=0.51 / 255)
    some = alpha[..., 0] > 0
    colour = ((blocks[..., :3] * blocks[..., 3:]).sum(dim=(1, 3)) / alpha.clamp_min(1e-9))[some]
    assert torch.allclose(got[..., :3][some], colour, atol=0.51 / 255)


def test_large_stores_are_memory_mapped_and_leave_no_file(tmp_path, monkeypatch):
    from nerf.io import memory

    monkeypatch.setattr(memory, "_MEMORY_LIMIT", 1000)
    monkeypatch.setattr(memory.tempfile, "tempdir", str(tmp_path))
    scene = load(write_blender(tmp_path / "data"), quiet=True)
    assert isinstance(scene.pixels.memory, np.memmap)
    assert torch.equal(scene.pixels.image(0)[..., 3], torch.from_numpy(picture(ring()[0])[..., 3] / np.float32(255)))
    assert os.name == "nt" or [p.name for p in tmp_path.iterdir()] == ["data"]
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(UserError, match="TMPDIR"):
        load(tmp_path / "data", quiet=True)


# ---- where the scene is


def test_the_box_survives_views_that_do_not_see_the_object_and_bad_masks(tmp_path):
    write_blender(tmp_path, 40, splits=("train",))
    save(tmp_path / "train" / "r_3.png", np.zeros((SIZE, SIZE, 4), np.uint8))  # nothing to be seen
    wrong = np.zeros((SIZE, SIZE, 4), np.uint8)
    wrong[2:5, 2:5] = 255  # a mask that is plainly wrong
    save(tmp_path / "train" / "r_7.png", wrong)
    scene = load(tmp_path)
    assert 0.7 < np.abs(in_scene(scene, ELLIPSOID)).max() < 1


def test_an_object_before_a_plain_background_gets_a_box_and_a_photo_does_not(tmp_path):
    for name, background in (("plain", 255), ("photo", None)):
        write_blender(tmp_path / name)
        for file in tmp_path.glob(f"{name}/*/*.png"):
            rgba = np.array(Image.open(file))
            if background is not None:
                rgba[rgba[..., 3] == 0] = background
            save(file, rgba[..., :3])
    assert load(tmp_path / "plain").space.name == "box"
    assert load(tmp_path / "photo").space.name == "unbounded"


def test_cameras_that_look_outwards_fill_the_unit_cube(tmp_path):
    write_transforms(tmp_path)

    def turn(data):
        for frame in data["frames"]:
            pose = np.array(frame["transform_matrix"])
            pose[:3, [0, 2]] *= -1
            frame["transform_matrix"] = pose.tolist()

    edit(tmp_path / "transforms.json", turn)
    scene = load(tmp_path)
    origins = scene.scene_from_world.apply(scene.cameras.centres)
    assert abs(float(origins.abs().max()) - 1) < 1e-6 and scene.space.name == "unbounded"


# ---- bad input: one sentence that names the place


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
        (lambda d: d.update(camera_model="EQUIRECTANGULAR"), ("EQUIRECTANGULAR", "OPENCV")),
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
    nan, singular, mirrored, sheared = (good.copy() for _ in range(4))
    nan[1, 3] = np.nan
    singular[:3, 0] = singular[:3, 1]
    mirrored[:3, 0] *= -1
    sheared[:3, 0] *= 2
    for pose, word in (
        (nan.tolist(), "NaN"),
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


def test_colmap_without_images_or_with_an_unknown_lens(tmp_path):
    pytest.importorskip("pycolmap")
    write_colmap(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    fails(tmp_path, "im00.png", "images/")
    write_colmap(tmp_path, f"FOV {SIZE} {SIZE} 50 50 24 24 0.5")
    fails(tmp_path, "FOV", "image_undistorter")
    write_colmap(tmp_path, f"FULL_OPENCV {SIZE} {SIZE} 50 50 24 24 0 0 0 0 0 0.1 0 0")
    fails(tmp_path, "FULL_OPENCV with k4, k5, k6 other than zero", "image_undistorter")


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


# ---- real captures


def test_real_lego_box_holds_all_silhouettes(tmp_path):
    source = real("lego")
    for split, step in (("train", 8), ("test", 6)):
        data = json.loads((source / f"transforms_{split}.json").read_text())
        data["frames"] = data["frames"][::step]
        for frame in data["frames"]:
            frame["file_path"] = str(source / frame["file_path"])
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps(data))
    scene = load(tmp_path, downscale=4)
    assert scene.space.name == "box" and len(scene.names) == 18
    n_hit = n_lit = 0
    for i in range(len(scene.names)):
        o, d = scene.cameras.image_rays(i, scene.scene_from_world)
        a, b = (-1 - o) / d, (1 - o) / d
        meets = torch.minimum(a, b).amax(dim=1) < torch.maximum(a, b).amin(dim=1)
        lit = scene.pixels.image(i)[..., 3].flatten() > 0.5
        n_lit, n_hit = n_lit + int(lit.sum()), n_hit + int((lit & meets).sum())
    assert n_hit == n_lit
    # the model is 2.3 units long (known from its published bounds), and the box no more than a tenth longer
    assert 2.28 < 2 / scene.scene_from_world.scale < 2.6


def test_real_fox_skips_its_missing_frames():
    scene = load(real("fox"), downscale=8)
    assert len(scene.names) == 50 and scene.splits["test"].numel() == 7 and scene.space.name == "unbounded"
    assert any("skipped 17 of 67" in n for n in scene.notes) and scene.cameras.models.tolist() == [OPENCV] * 50
    o, d = scene.cameras.image_rays(10)
    uv, _ = scene.cameras.project(o.double() + 5 * d.double())
    p = torch.arange(len(o))
    w = scene.cameras.widths[10]
    assert float((uv[10] - torch.stack([p % w, p // w], dim=1) - 0.5).abs().max()) < 1e-3


def test_real_fern_is_forward_facing():
    scene = load(real("fern"))
    assert scene.space.name == "ndc" and len(scene.names) == 20 and scene.splits["test"].tolist() == [0, 8, 16]
    assert abs(float(scene.cameras.fx[0]) - 3260.526 / 8) < 0.01
    z = scene.scene_from_world.apply(scene.cameras.centres)[:, 2]
    assert float(z.abs().max()) < 0.1  # cameras side by side, well before the near plane


def test_real_cup_points_fall_where_they_were_seen():
    pycolmap = pytest.importorskip("pycolmap")
    path = real("cup")
    scene = load(path)
    assert scene.source == "colmap" and scene.points is not None and len(scene.points) == 9262
    model = pycolmap.Reconstruction(str(path / "sparse" / "0"))
    errors = []
    for image in list(model.images.values())[::10]:
        i = scene.names.index(image.name)
        seen = [p for p in image.points2D if p.has_point3D()]
        points = torch.tensor(np.array([model.points3D[p.point3D_id].xyz for p in seen]))
        uv, z = scene.cameras.subset([i]).project(points)
        assert float(z.min()) > 0
        errors.append(np.linalg.norm(uv[0].numpy() - np.array([p.xy for p in seen]), axis=1))
    assert np.concatenate(errors).mean() < 0.7  # COLMAP's own mean reprojection error is 0.59 px


def test_a_colmap_scene_leaves_sigterm_alone(tmp_path: Path) -> None:
    """Importing pycolmap makes SIGTERM print a C++ stack; a process that read a model ends without a word."""
    pytest.importorskip("pycolmap")
    folder = write_colmap(tmp_path / "scene")
    read = f"import os, signal, nerf.datasets as d; d.load({str(folder)!r}, quiet=True)"
    code = f"{read}; os.kill(os.getpid(), signal.SIGTERM); os._exit(0)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGTERM, "")
