"""The bundled scene is what it claims: counts, sizes, alpha, true cameras, a solid mesh with holes, nothing to copy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image, ImageDraw

from nerf.meshing.clean import component_labels

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
SIZE = 320


def frames(split: str) -> tuple[float, list[dict]]:
    content = json.loads((SAMPLE / f"transforms_{split}.json").read_text())
    return content["camera_angle_x"], content["frames"]


def picture(frame: dict) -> np.ndarray:
    with Image.open(SAMPLE / (frame["file_path"] + ".png")) as image:
        assert image.mode == "RGBA" and image.size == (SIZE, SIZE)
        return np.asarray(image, np.float64) / 255


@pytest.fixture(scope="module")
def mesh() -> trimesh.Trimesh:
    return trimesh.load_mesh(SAMPLE / "mesh.ply", process=False)


@pytest.mark.parametrize(("split", "count"), [("train", 60), ("test", 12)])
def test_pictures_have_alpha_and_some_margin(split: str, count: int) -> None:
    _, listed = frames(split)
    assert len(listed) == count == len(list((SAMPLE / split).glob("*.png")))
    for frame in listed:
        pose = np.array(frame["transform_matrix"])
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        image = picture(frame)
        alpha = image[..., 3]
        assert 0.15 < alpha.mean() < 0.6
        assert ((alpha > 0) & (alpha < 1)).sum() > 500, "edges are anti-aliased"
        assert not alpha[[0, -1]].any() and not alpha[:, [0, -1]].any(), "the object is inside the picture"
        assert not image[alpha == 0].any(), "transparent pixels carry nothing"


def test_size_of_the_whole_scene() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 6e6


def test_mesh_is_one_closed_solid_with_holes(mesh: trimesh.Trimesh) -> None:
    assert len(mesh.faces) >= 20_000
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume > 0.5, "the right side is out"
    labels = component_labels(len(mesh.vertices), torch.tensor(mesh.faces, dtype=torch.int64))
    assert len(labels.unique()) == 1, "one piece"
    genus = 1 - mesh.euler_number // 2
    assert genus >= 40, f"the cage, the cog, the key, the wheels and the claw are open: genus {genus}"
    assert np.abs(mesh.bounds).max() < 1.5


def test_pictures_show_the_mesh_where_the_cameras_say(mesh: trimesh.Trimesh) -> None:
    """The silhouette of the projected mesh (painted by Pillow, triangle by triangle, at 4x) against alpha."""
    zoom = 4
    for split, chosen in (("train", (0, 17, 33, 59)), ("test", (3, 8))):
        angle, listed = frames(split)
        focal = SIZE / 2 / np.tan(angle / 2)
        for i in chosen:
            pose = np.array(listed[i]["transform_matrix"])
            camera = (mesh.vertices - pose[:3, 3]) @ pose[:3, :3]
            uv = SIZE / 2 + focal * camera[:, :2] * [1, -1] / -camera[:, 2:]
            canvas = Image.new("L", (SIZE * zoom, SIZE * zoom))
            draw = ImageDraw.Draw(canvas)
            for triangle in uv[mesh.faces] * zoom - 0.5:
                draw.polygon(triangle.ravel().tolist(), fill=255)
            covered = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), np.float64) / 255
            alpha = picture(listed[i])[..., 3]
            iou = np.minimum(covered, alpha).sum() / np.maximum(covered, alpha).sum()
            assert iou > 0.97, f"{split} {i}: {iou:.4f}"


def test_copying_the_nearest_training_view_scores_under_20_db() -> None:
    """What a method gets for nothing: the training picture whose camera looks most nearly the same way, on white."""
    _, train = frames("train")
    _, test = frames("test")
    backward = np.array([np.array(frame["transform_matrix"])[:3, 2] for frame in train])
    scores = []
    for frame in test:
        nearest = train[int(np.argmax(backward @ np.array(frame["transform_matrix"])[:3, 2]))]
        truth, copy = (image[..., :3] * image[..., 3:] + 1 - image[..., 3:] for image in map(picture, (frame, nearest)))
        scores.append(-10 * np.log10(((truth - copy) ** 2).mean()))
    assert np.mean(scores) < 20, scores
    assert max(scores) < 21, scores
