"""What is loaded: pixels in the type of their files, and where the scene is."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_scenes import ELLIPSOID, FOCAL, SIZE, edit, in_scene, picture, ring, save, write_blender, write_transforms

from nerf.datasets import load
from nerf.errors import UserError

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
    """Turned where the stated size is that of the turned picture; what keeps the size is told by the others' sizes."""
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
        exif[0x0112] = orientation if i < 3 else 6
        stored = undo(upright) if i < 3 else np.rot90(upright, 1)
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"{i}.jpg", exif=exif, quality=100)
        frames.append({"file_path": f"{i}.jpg", "transform_matrix": pose.tolist()})
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 50, "w": 64, "h": 48, "frames": frames}))
    got = load(tmp_path, quiet=True).pixels.image(0)
    assert got.shape == (48, 64, 3)
    assert float((got * 255 - torch.from_numpy(upright.astype(np.float32))).abs().mean()) < 8  # JPEG's loss


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("stated", [True, False])
def test_pictures_whose_size_says_nothing_are_as_they_are_stored(tmp_path, orientation, stated):
    """Square ones, or turned by 180 degrees: poses are of the stored pixels in nearly all programs."""
    write_transforms(tmp_path)
    pixels = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "images").iterdir())]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i, stored in enumerate(pixels):
        Image.fromarray(stored).save(tmp_path / "images" / f"{i:03d}.png", exif=exif)
    if not stated:
        edit(tmp_path / "transforms.json", lambda data: [data.pop(key) for key in ("w", "h", "cx", "cy")])
    scene = load(tmp_path)
    assert (scene.pixels.raw(0) == pixels[0]).all()
    assert any("EXIF orientation of 10 of 10 photos ignored" in n for n in scene.notes)


def test_a_principal_point_says_how_pictures_were_turned(tmp_path):
    for cx, cy, size in ((20, 24, (48, 40)), (24, 20, (40, 48))):  # as stored 40 wide and 48 high, or turned
        write_transforms(tmp_path)
        exif = Image.Exif()
        exif[0x0112] = 6
        for file in (tmp_path / "images").iterdir():
            Image.fromarray(np.zeros((48, 40, 3), np.uint8)).save(file, exif=exif)
        edit(
            tmp_path / "transforms.json",
            lambda data, c=(cx, cy): (data.pop("w"), data.pop("h"), data.update(cx=c[0], cy=c[1])),
        )
        scene = load(tmp_path, quiet=True)
        assert (int(scene.pixels.heights[0]), int(scene.pixels.widths[0])) == size


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


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is reserved on POSIX systems alone")
def test_room_for_a_large_store_is_taken_at_once(tmp_path, monkeypatch):
    """Where a disk runs full under a mapped file, the process is killed; so nothing may be left to be taken later."""
    from nerf.io import memory

    monkeypatch.setattr(memory, "_MEMORY_LIMIT", 1000)
    monkeypatch.setattr(memory.tempfile, "tempdir", str(tmp_path))
    taken = []
    monkeypatch.setattr(memory.os, "posix_fallocate", lambda file, start, n: taken.append(n) or os.ftruncate(file, n))
    memory.allocate(1000, 3, np.dtype(np.uint8))
    assert taken == [3000]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(memory.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"temporary files \(No space left on device\): set TMPDIR"):
        memory.allocate(1000, 3, np.dtype(np.uint8))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(memory.tempfile, "mkstemp", full)  # no folder to write to at all
    with pytest.raises(UserError, match="set TMPDIR"):
        memory.allocate(1000, 3, np.dtype(np.uint8))


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
