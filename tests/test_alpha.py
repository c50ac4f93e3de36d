"""Alpha is the silhouette of an object, or only a mask; and one cut-out that failed decides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_scenes import FOCAL, MIDDLE, SIZE, picture, ring, save, write_blender, write_neus

from nerf import load
from nerf.datasets import Scene
from nerf.training.visibility import visible_cells


def write_photos(folder: Path, shown: np.ndarray, n: int = 8) -> Path:
    """Photos of a room in which only what is shown [h,w] is opaque."""
    frames = []
    for i, pose in enumerate(ring(n)):
        photo = picture(pose)
        photo[..., 3] = shown * 255
        save(folder / f"{i}.png", photo)
        frames.append({"file_path": f"{i}.png", "transform_matrix": pose.tolist()})
    (folder / "transforms.json").write_text(json.dumps({"fl_x": FOCAL, "w": SIZE, "h": SIZE, "frames": frames}))
    return folder


def left_out(what: str) -> np.ndarray:
    shown = np.ones((SIZE, SIZE), bool)
    if what == "the sky":
        shown[:16] = False
    else:
        shown[10:, 15:25] = False
    return shown


@pytest.mark.parametrize("what", ["the sky", "a person"])
def test_alpha_that_only_leaves_something_out_is_a_mask(tmp_path: Path, what: str) -> None:
    shown = left_out(what)
    scene = load(write_photos(tmp_path, shown))
    assert not scene.has_alpha and scene.space.name == "unbounded"
    assert any("alpha is taken for a mask" in n for n in scene.notes)
    assert scene.masks is not None and (scene.masks.image(3)[..., 0].numpy() == shown).all()
    asked = load(tmp_path, space="box", quiet=True)
    assert asked.has_alpha and asked.masks is None


def test_alpha_and_masks_together(tmp_path: Path) -> None:
    write_photos(tmp_path, left_out("the sky"))
    mask = np.full((SIZE, SIZE), 255, np.uint8)
    mask[:, :5] = 0
    for i in range(8):
        save(tmp_path / "masks" / f"{i}.png", mask)
    scene = load(tmp_path, quiet=True)
    assert scene.masks is not None
    assert (scene.masks.image(2)[..., 0].numpy() == (left_out("the sky") & (mask > 0))).all()


def test_an_object_that_the_edge_cuts_is_still_one(tmp_path: Path) -> None:
    write_blender(tmp_path)
    for file in tmp_path.glob("*/*.png"):
        close = Image.open(file).crop((0, 0, SIZE // 2 + 4, SIZE))  # the right part is outside
        Image.fromarray(np.asarray(close.resize((SIZE, SIZE)))).save(file)
    scene = load(tmp_path, quiet=True)
    assert scene.has_alpha and scene.space.name == "box" and scene.masks is None


def middle_stays(scene: Scene) -> bool:
    at = scene.scene_from_world.apply(torch.from_numpy(MIDDLE)[None])
    return bool(visible_cells(scene, scene.splits["train"])(at.float(), torch.tensor([0.05])))


@pytest.mark.parametrize("failed", ["one", "three"])
def test_an_empty_cut_out_decides_nothing(tmp_path: Path, failed: str) -> None:
    write_blender(tmp_path, n=12, splits=("train",))
    whole = load(tmp_path, quiet=True)
    names = [f"r_{i}.png" for i in ((5,) if failed == "one" else (1, 5, 7))]
    for name in names:
        save(tmp_path / "train" / name, np.asarray(Image.open(tmp_path / "train" / name)) * np.uint8([1, 1, 1, 0]))
    scene = load(tmp_path)
    assert middle_stays(scene) and scene.has_alpha
    told = next(n for n in scene.notes if "wholly transparent" in n)
    assert f"{len(names)} of 12 photos" in told and all(name.removesuffix(".png") in told for name in names)
    assert scene.masks is not None
    used = [float(scene.masks.image(i).mean()) for i in range(12)]
    assert used.count(0.0) == len(names) and used.count(1.0) == 12 - len(names)
    assert scene.scene_from_world.scale == pytest.approx(whole.scene_from_world.scale, rel=0.1)


def test_a_cut_out_that_lacks_a_part_is_outvoted(tmp_path: Path) -> None:
    write_blender(tmp_path, n=36, splits=("train",))
    photo = np.asarray(Image.open(tmp_path / "train" / "r_5.png")).copy()
    columns = np.flatnonzero((photo[..., 3] > 0).any(axis=0))
    photo[:, : columns[int(0.8 * len(columns))], 3] = 0  # most of it, the middle too
    save(tmp_path / "train" / "r_5.png", photo)
    scene = load(tmp_path, quiet=True)
    assert scene.masks is None and middle_stays(scene)


def test_photos_that_are_all_transparent_are_what_they_are(tmp_path: Path) -> None:
    write_blender(tmp_path, n=6, splits=("train",))
    for file in sorted((tmp_path / "train").iterdir())[:4]:
        save(file, np.asarray(Image.open(file)) * np.uint8([1, 1, 1, 0]))
    scene = load(tmp_path, quiet=True)
    assert scene.masks is None and scene.has_alpha


def test_silhouettes_that_the_edges_cut_do_not_say_where_the_box_ends(tmp_path: Path) -> None:
    """The files say where the object is; silhouettes that go on beyond the pictures would say: up to the cameras."""
    write_neus(tmp_path)
    stated = load(tmp_path, quiet=True, space="unbounded").scene_from_world
    whole = load(tmp_path, quiet=True).scene_from_world  # by the silhouettes, which are whole
    assert whole.scale > 1.1 * stated.scale
    for file in (tmp_path / "mask").iterdir():
        mask = np.asarray(Image.open(file)).copy()
        mask[SIZE // 2 :, SIZE // 3 : SIZE // 2] = 255  # what it stands on
        save(file, mask)
    scene = load(tmp_path)
    assert scene.scene_from_world.scale == pytest.approx(stated.scale) and any("edges cut" in n for n in scene.notes)
