"""Small scenes of an ellipsoid, written in the formats that `load` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.datasets import Scene

AXES = np.array([0.5, 0.3, 0.2])  # half axes and middle of the test object, an ellipsoid
MIDDLE = np.array([0.1, -0.2, 0.3])
SIZE, FOCAL = 48, 60.0
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


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
