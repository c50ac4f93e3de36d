"""Photos as phones, cameras and converters write them: any format, by content; colour profiles; 16-bit TIFF."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from captures import draw, pose
from PIL import Image, ImageCms
from small_scenes import FOCAL, SIZE, ring

from nerf import load
from nerf.capture.features import read_grey
from nerf.capture.photos import read_photos
from nerf.capture.prepare import write_photo
from nerf.errors import UserError
from nerf.io.images import read_header, read_pixels


def gradient(height: int = 24, width: int = 32) -> np.ndarray:
    row, col = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([row * 9, col * 7, 255 - row * 5 - col * 3], axis=-1).astype(np.uint8)


def decoded(path: Path) -> np.ndarray:
    return read_pixels(read_header(path))


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("jfif", "JPEG"), ("JPE", "JPEG"), ("mpo", "MPO"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("hif", "HEIF")],
)
def test_every_photo_format_is_read_in_every_place(tmp_path: Path, suffix: str, kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    (tmp_path / "images").mkdir()
    frames = []
    for i, c2w in enumerate(ring(4)):
        Image.fromarray(draw(pose(i, 4))).save(tmp_path / "images" / f"{i}.{suffix}", format=kind)
        frames.append({"file_path": f"images/{i}" + (f".{suffix}" if i % 2 else ""), "transform_matrix": c2w.tolist()})
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 300, "w": 320, "h": 240, "frames": frames}))
    scene = load(tmp_path, quiet=True)
    assert len(scene.names) == 4
    assert np.abs(scene.pixels.image(1).numpy() * 255 - draw(pose(1, 4))).mean() < 12
    assert len(read_photos(tmp_path).photos) == 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "HEIF"])
def test_the_content_says_what_a_photo_is_and_not_its_name(tmp_path: Path, kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    (tmp_path / "set").mkdir()
    name = "IMG_{}.JPG" if kind == "HEIF" else "IMG_{}.HEIC"
    for k in range(3):
        Image.fromarray(draw(pose(k, 8))).save(tmp_path / "set" / name.format(k), format=kind)
    assert decoded(tmp_path / "set" / name.format(0)).shape == (240, 320, 3)
    photos = read_photos(tmp_path / "set").photos
    (tmp_path / "out" / "images").mkdir(parents=True)
    for photo in photos:
        write_photo(photo, tmp_path / "out")
    expected = ".png" if kind == "PNG" else ".jpg"
    for path in (tmp_path / "out" / "images").iterdir():
        assert path.suffix.lower() == expected
        with Image.open(path) as image:
            assert image.format == ("PNG" if kind == "PNG" else "JPEG")


def test_a_heic_photo_without_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.jpg").write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(40))
    with pytest.raises(UserError, match=r"a\.jpg: is a HEIC photo, which needs the package pillow-heif"):
        read_header(tmp_path / "a.jpg")


# ---- colour profiles


def display_p3() -> bytes:
    """A profile of Display P3's primaries (SMPTE EG 432-1) about D50 and sRGB's curve, as phones embed it."""
    curve = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = bytearray(curve)
    primaries = {
        b"rXYZ": (0.51512, 0.2412, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.1571, 0.06657, 0.78407),
    }
    for k in range(struct.unpack_from(">I", data, 128)[0]):
        name, at, _ = struct.unpack_from(">4sII", data, 132 + 12 * k)
        if name in primaries:
            struct.pack_into(">3i", data, at + 8, *(round(v * 65536) for v in primaries[name]))
    return bytes(data)


def p3_of_srgb(colour: np.ndarray) -> np.ndarray:
    """sRGB bytes in Display P3: the matrix of CSS Color 4 in linear light."""
    v = colour / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    m = np.array([[0.8224621, 0.177538, 0], [0.0331941, 0.9668058, 0], [0.0170827, 0.0723974, 0.9105199]])
    linear = linear @ m.T
    v = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(v * 255).astype(np.uint8)


@pytest.mark.parametrize("alpha", [False, True])
def test_a_colour_profile_is_brought_to_srgb(tmp_path: Path, alpha: bool) -> None:
    true = gradient()
    stored = p3_of_srgb(true)
    assert np.abs(stored.astype(int) - true).max() > 20  # what is lost where the profile is ignored
    opaque = np.full((*true.shape[:2], 1), 200, np.uint8)
    image = Image.fromarray(np.concatenate([stored, opaque], axis=2) if alpha else stored)
    image.save(tmp_path / "p3.png", icc_profile=display_p3())
    got = decoded(tmp_path / "p3.png")
    off = np.abs(got[..., :3].astype(int) - true)
    assert off.mean() < 1 and off.max() <= 6  # of bytes rounded twice, the most where it is dark
    assert not alpha or (got[..., 3] == 200).all()


def test_pictures_that_are_srgb_keep_every_bit(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("srgb", srgb), ("damaged", b"no profile at all"), ("none", None)):
        Image.fromarray(gradient()).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert (decoded(tmp_path / f"{name}.png") == gradient()).all(), name


# ---- TIFF


def deep(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65535, (24, 32, channels), dtype=np.uint16)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("how", ["plain", "big-endian", "deflate", "tiles"])
def test_tiff_keeps_its_16_bits(tmp_path: Path, channels: int, how: str) -> None:
    pixels, options = deep(channels), {"deflate": {"compression": "zlib"}, "tiles": {"tile": (16, 16)}}.get(how, {})
    kind = {"photometric": "minisblack" if channels == 1 else "rgb", "extrasamples": ["unassalpha"] * (channels == 4)}
    order = ">" if how == "big-endian" else "<"
    tifffile.imwrite(tmp_path / "a.tif", pixels.squeeze(), byteorder=order, **kind, **options)
    got = decoded(tmp_path / "a.tif")
    if how == "tiles" and channels > 1:  # rare, and more than ffmpeg can do: at least the upper bits
        assert got.dtype == np.uint8 and np.abs(got - pixels / 257).max() <= 1
    else:
        assert got.dtype == np.uint16 and (got == pixels).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_is_turned_once(tmp_path: Path, orientation: int, bits: int) -> None:
    stored = gradient().astype(np.uint16) * 257 if bits == 16 else gradient()
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extratags=tag)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(gradient()).save(buffer, format="PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    tiff, png = read_header(tmp_path / "a.tif"), read_header(tmp_path / "a.png")
    assert (tiff.width, tiff.height, tiff.orientation) == (png.width, png.height, png.orientation)
    assert (read_pixels(tiff) // (257 if bits == 16 else 1) == read_pixels(png)).all()
    tiff.orientation = 1
    assert (read_pixels(tiff) == stored).all()  # where poses are of the pixels as stored


def test_16_bit_photos_show_their_features(tmp_path: Path) -> None:
    picture = draw(pose(0, 4))
    tifffile.imwrite(tmp_path / "a.tif", picture.astype(np.uint16) * 257, photometric="rgb")
    grey = np.asarray(Image.fromarray(picture).convert("L"), int)
    got, _ = read_grey(tmp_path / "a.tif", (320, 240))
    assert np.abs(got.astype(int) - grey).max() <= 1


def test_sizes_are_of_posed_photos_too(tmp_path: Path) -> None:
    frames = []
    for i, c2w in enumerate(ring(4)):
        tifffile.imwrite(tmp_path / f"{i}.tif", deep(3)[:SIZE, :SIZE], photometric="rgb")
        frames.append({"file_path": f"{i}.tif", "transform_matrix": c2w.tolist()})
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": FOCAL, "frames": frames}))
    scene = load(tmp_path, quiet=True)
    assert scene.pixels.memory.dtype == np.uint16
