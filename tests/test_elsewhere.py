"""Pictures, masks and depth maps that do not lie where the poses say: one resolver for all readers."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_scenes import (
    FOCAL,
    SIZE,
    edit,
    picture,
    ring,
    save,
    to_binary,
    write_blender,
    write_colmap,
    write_transforms,
)

from nerf import load
from nerf.capture import needs_poses
from nerf.datasets.named import find_named
from nerf.errors import UserError

RENAMED: dict[str, Callable[[str], str]] = {
    "another machine": lambda name: f"/scans/somebody/room/{name}",
    "Windows": lambda name: "C:\\Users\\somebody\\room\\" + name.replace("/", "\\"),
    "where the program ran": lambda name: f"room/{name}",
    "backslashes": lambda name: name.replace("/", "\\"),
    "another case": str.upper,
    "another suffix": lambda name: name.replace(".png", ".JPG"),
    "no suffix": lambda name: name.removesuffix(".png"),
    "another folder": lambda name: name.replace("images/", "rgb/"),
}


def renamed(folder: Path, rename: Callable[[str], str], which: slice = slice(None)) -> Path:
    def change(data: dict) -> None:
        for frame in data["frames"][which]:
            frame["file_path"] = rename(frame["file_path"])

    edit(folder / "transforms.json", change)
    return folder


@pytest.mark.parametrize("how", RENAMED)
def test_pictures_of_a_transforms_json(tmp_path: Path, how: str) -> None:
    write_transforms(tmp_path)
    before = load(tmp_path, quiet=True)
    scene = load(renamed(tmp_path, RENAMED[how]), quiet=True)
    assert [f.name for f in scene.files] == [f.name for f in before.files]
    assert (scene.pixels.memory == before.pixels.memory).all()


@pytest.mark.parametrize("how", ["another case", "another suffix", "another machine", "backslashes"])
def test_a_few_of_the_pictures_are_named_otherwise(tmp_path: Path, how: str) -> None:
    assert len(load(renamed(write_transforms(tmp_path), RENAMED[how], slice(2, 5)), quiet=True).names) == 10


def test_umlauts_composed_and_decomposed(tmp_path: Path) -> None:
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        folder = write_transforms(tmp_path / form)
        for file in (folder / "images").iterdir():
            file.rename(file.with_name(unicodedata.normalize(form, f"Küche_{file.name}")))
        renamed(folder, lambda n, to=other: n.replace("images/", unicodedata.normalize(to, "images/Küche_")))  # type: ignore[misc]
        assert len(load(folder, quiet=True).names) == 10


@pytest.mark.parametrize("stated", ["w and h", "a principal point", "nothing"])
def test_reduced_siblings_have_the_lens_of_the_full_pictures(tmp_path: Path, stated: str) -> None:
    write_transforms(tmp_path)
    for file in (tmp_path / "images").iterdir():
        save(tmp_path / "images_4" / file.name, np.asarray(Image.open(file).resize((SIZE // 4, SIZE // 4))))
    shutil.rmtree(tmp_path / "images")
    gone = {"w and h": (), "a principal point": ("w", "h"), "nothing": ("w", "h", "cx", "cy")}[stated]
    edit(tmp_path / "transforms.json", lambda data: [data.pop(key) for key in gone])
    scene = load(tmp_path, quiet=True)
    assert scene.cameras.fx.tolist() == [FOCAL / 4] * 10 and scene.cameras.cx.tolist() == [SIZE / 8] * 10


def nested(folder: Path, name: Callable[[int], str]) -> Path:
    """A COLMAP model of ten pictures called name(i), which lie in images/cam0 and images/cam1 as 00.png to 04.png."""
    write_colmap(folder)
    text = (folder / "sparse" / "0" / "images.txt").read_text()
    for i in range(10):
        place = folder / "images" / f"cam{i // 5}" / f"{i % 5:02d}.png"
        place.parent.mkdir(exist_ok=True)
        (folder / "images" / f"im{i:02d}.png").rename(place)
        text = text.replace(f"im{i:02d}.png", name(i))
    (folder / "sparse" / "0" / "images.txt").write_text(text)
    return folder


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    "form", ["cam{}/{:02d}.png", "CAM{}/{:02d}.PNG", "cam{}\\{:02d}.png", "D:\\scan\\cam{}\\{:02d}.jpg"]
)
def test_nested_names_of_a_colmap_model(tmp_path: Path, form: str, binary: bool) -> None:
    nested(tmp_path, lambda i: form.format(i // 5, i % 5))
    scene = load(to_binary(tmp_path) if binary else tmp_path, quiet=True)
    assert [f"{f.parent.name}/{f.name}" for f in scene.files] == [f"cam{i // 5}/{i % 5:02d}.png" for i in range(10)]


def test_a_picture_that_is_gone_is_not_replaced_by_that_of_another_folder(tmp_path: Path) -> None:
    nested(tmp_path, lambda i: f"cam{i // 5}/{i % 5:02d}.png")
    (tmp_path / "images" / "cam0" / "03.png").unlink()
    scene = load(tmp_path, quiet=True)
    assert len(scene.names) == 9 and "cam0/03.png" not in scene.names
    shutil.rmtree(tmp_path / "images" / "cam0")
    assert len(load(tmp_path, quiet=True).names) == 5
    shutil.move(tmp_path / "images" / "cam1" / "00.png", tmp_path / "00.png")
    with pytest.raises(UserError, match=r"'cam0/00.png' and 'cam1/00.png' would both be"):
        find_named(tmp_path / "flat", ["cam0/00.png", "cam1/00.png"], "x", [write_flat(tmp_path / "flat")])


def write_flat(folder: Path) -> Path:
    save(folder / "images" / "00.png", picture(ring(1)[0]))
    return folder


def test_mixed_suffixes(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    for i in range(1, 10):
        (tmp_path / "images" / f"im{i:02d}.png").rename(tmp_path / "images" / f"im{i:02d}.PNG")
        Image.open(tmp_path / "images" / f"im{i:02d}.PNG").save(tmp_path / "images" / f"im{i:02d}.jpg")
        (tmp_path / "images" / f"im{i:02d}.PNG").unlink()
    assert len(load(tmp_path, quiet=True).names) == 10


@pytest.mark.parametrize("place", ["dense/0/sparse", "dense/sparse", "dense/0/sparse/0", "dense"])
def test_colmaps_own_layouts(tmp_path: Path, place: str) -> None:
    """The undistorted photos and their model in dense/0, as the automatic reconstructor leaves them."""
    write_colmap(tmp_path / "made")
    home = tmp_path / "scene" / ("dense/0" if place.startswith("dense/0") else "dense")
    shutil.copytree(tmp_path / "made" / "images", home / "images")
    shutil.copytree(tmp_path / "made" / "sparse" / "0", tmp_path / "scene" / place, dirs_exist_ok=True)
    scene = load(tmp_path / "scene", quiet=True)
    assert len(scene.names) == 10 and scene.files[0].parent == home / "images"
    write_colmap(tmp_path / "scene", f"OPENCV {SIZE} {SIZE} {FOCAL} {FOCAL} {SIZE / 2} {SIZE / 2} 0.1 0 0 0")
    both = load(tmp_path / "scene", quiet=True)  # the model of the photos as taken, with these
    assert both.files[0].parent == tmp_path / "scene" / "images" and float(both.cameras.distortion[0, 0]) == 0.1
    shutil.rmtree(tmp_path / "scene" / "images")
    again = load(tmp_path / "scene", quiet=True)  # these are gone: the other photos, and their own model
    assert again.files[0].parent == home / "images" and float(again.cameras.distortion.abs().max()) == 0


def test_a_split_that_is_gone_is_not_replaced_by_another(tmp_path: Path) -> None:
    write_blender(tmp_path)
    for k, file in enumerate(sorted((tmp_path / "test").iterdir())):
        file.rename(file.with_name(f"r_{2 * k}.png"))  # as train/ has them
    (tmp_path / "train").rename(tmp_path.parent / "gone")
    with pytest.raises(UserError, match="0 of 12 frames have an image"):
        load(tmp_path, quiet=True)


# ---- one folder deeper


@pytest.mark.parametrize("depth", [1, 2])
def test_a_folder_of_its_own_as_from_unzipping(tmp_path: Path, depth: int) -> None:
    outer = tmp_path / "capture"
    inner = outer.joinpath(*["capture"] * depth)
    write_transforms(inner)
    (outer / "__MACOSX").mkdir()
    (outer / ".DS_Store").write_bytes(b"x")
    assert not needs_poses(outer)
    scene = load(outer, quiet=True)
    assert len(scene.names) == 10 and any(str(inner.relative_to(outer)) in n for n in scene.notes)


def test_of_several_folders_one_has_to_be_given(tmp_path: Path) -> None:
    write_transforms(tmp_path / "a")
    (tmp_path / "docs").mkdir()
    assert len(load(tmp_path, quiet=True).names) == 10
    write_blender(tmp_path / "b")
    with pytest.raises(UserError, match="a/ and b/ in it do: give one"):
        load(tmp_path, quiet=True)
    save(tmp_path / "photo.png", picture(ring(1)[0]))
    assert needs_poses(tmp_path)  # photos, whatever lies in folders beside them


# ---- masks and depth maps


def test_masks_and_depth_maps_of_another_machine(tmp_path: Path) -> None:
    write_transforms(tmp_path)
    mask = np.full((SIZE, SIZE), 255, np.uint8)
    mask[:, :9] = 0
    for i in range(10):
        save(tmp_path / "masks" / f"{i:03d}.png", mask)
        save(tmp_path / "depths" / f"{i:03d}.png", np.full((SIZE, SIZE), 1000 + i, np.uint16))

    def change(data: dict) -> None:
        for i, frame in enumerate(data["frames"]):
            frame["file_path"] = f"D:\\x\\images\\{i:03d}.png"
            frame["mask_path"] = f"D:\\x\\masks\\{i:03d}.png"
            frame["depth_file_path"] = f"/scans/x/depths/{i:03d}.png"

    edit(tmp_path / "transforms.json", change)
    scene = load(tmp_path, quiet=True)
    assert scene.masks is not None and scene.masks.image(3)[..., 0].mean().item() == pytest.approx((SIZE - 9) / SIZE)
    assert scene.depths is not None and scene.depths.image(4).max().item() == pytest.approx(1.004)


LAYOUTS: dict[str, Callable[[str, str], str]] = {
    "stem": lambda folder, stem: f"{stem}.png",
    "name": lambda folder, stem: f"{stem}.png.png",
    "JPEG": lambda folder, stem: f"{stem}.JPG",
    "suffix": lambda folder, stem: f"{stem}_mask.png",
    "prefix": lambda folder, stem: f"mask_{stem}.png",
    "nested": lambda folder, stem: f"{folder}/{stem}.png",
    "nested name": lambda folder, stem: f"{folder}/{stem}.png.jpg",
    "deeper": lambda folder, stem: f"all/{folder}/{stem}.tif",
}


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_of_any_layout(tmp_path: Path, layout: str, beside: bool) -> None:
    frames = []
    two = "nested" in layout or layout == "deeper"
    masks = tmp_path / "scene" / "masks" if beside else tmp_path / "elsewhere"
    for i, pose in enumerate(ring(8)):
        folder, stem = f"cam{i // 4}", f"{i % 4:02d}" if two else f"{i:02d}"
        save(tmp_path / "scene" / "images" / folder / f"{stem}.png", picture(pose)[..., :3])
        frames.append({"file_path": f"images/{folder}/{stem}.png", "transform_matrix": pose.tolist()})
        if i < 7:
            mask = np.full((SIZE // 2, SIZE // 2), 255, np.uint8)  # of half the size, which is fine
            mask[: i + 1] = 0
            save(masks / LAYOUTS[layout](folder, stem), mask)
    (tmp_path / "scene" / "transforms.json").write_text(json.dumps({"fl_x": FOCAL, "frames": frames}))
    scene = load(tmp_path / "scene", quiet=True, masks=None if beside else masks)
    assert any("masks of 7 of 8 images" in n for n in scene.notes)
    assert scene.masks is not None
    shares = [1 - float(scene.masks.image(i).mean()) for i in range(8)]
    assert shares == pytest.approx([*((i + 1) / (SIZE // 2) for i in range(7)), 0], abs=0.03)


@pytest.mark.parametrize("how", ["alpha", "alpha over white", "0 and 1", "16 bits", "floats", "grey and alpha"])
def test_masks_of_any_kind(tmp_path: Path, how: str) -> None:
    write_transforms(tmp_path)
    used = np.zeros((SIZE, SIZE), np.uint8)
    used[5:20] = 255
    of_kind = {
        "alpha": np.stack([used * 0, used * 0, used * 0, used], axis=2),
        "alpha over white": np.stack([used * 0 + 255, used * 0 + 255, used * 0 + 255, used], axis=2),
        "0 and 1": used // 255,
        "16 bits": used.astype(np.uint16) * 257,
        "floats": (used / 255).astype(np.float32),
        "grey and alpha": np.stack([used * 0, used], axis=2),
    }[how]
    for i in range(10):
        save(tmp_path / "masks" / f"{i:03d}.{'tif' if how == 'floats' else 'png'}", of_kind)
    scene = load(tmp_path, quiet=True)
    assert scene.masks is not None and (scene.masks.image(0)[..., 0].numpy() == used // 255).all()


def test_masks_that_belong_to_no_picture_are_told(tmp_path: Path) -> None:
    write_colmap(tmp_path)
    save(tmp_path / "masks" / "other.png", np.zeros((SIZE, SIZE), np.uint8))
    scene = load(tmp_path, quiet=True)
    assert scene.masks is None and any(
        "none of its files belongs" in n and "no masks are used" in n for n in scene.notes
    )
    with pytest.raises(UserError, match=r"none of its files belongs to an image; expected im00\.png\.png"):
        load(tmp_path, quiet=True, masks=tmp_path / "masks")
