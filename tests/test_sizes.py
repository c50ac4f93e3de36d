"""No file takes more memory than it can hold, whatever its header says; large photos of phones open without a word."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from nerf.datasets.readers.colmap_files import _check_binary
from nerf.errors import UserError
from nerf.geometry.triangles import read_mesh
from nerf.io.arrays import read_npy, read_npz
from nerf.io.exr import write_exr
from nerf.io.images import read_header, read_pixels
from nerf.io.opening import HUGE, opened

SIDE = 25000


def _saved(kind: str, mode: str = "RGB", **options: object) -> bytearray:
    file = io.BytesIO()
    Image.new(mode, (17, 19)).save(file, kind, **options)
    return bytearray(file.getvalue())


def _png(side: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _jpeg() -> bytes:
    data = _saved("JPEG")
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", SIDE, SIDE)
    return bytes(data)


def _bmp() -> bytes:
    data = _saved("BMP")
    data[18:26] = struct.pack("<ii", SIDE, SIDE)
    return bytes(data)


def _tiff() -> bytes:
    data = _saved("TIFF")
    (start,) = struct.unpack_from("<I", data, 4)
    for k in range(struct.unpack_from("<H", data, start)[0]):
        at = start + 2 + 12 * k
        if struct.unpack_from("<H", data, at)[0] in (256, 257):
            struct.pack_into("<HII", data, at + 2, 4, 1, SIDE)
    return bytes(data)


def _webp() -> bytes:
    data = _saved("WEBP", lossless=True)
    bits = int.from_bytes(data[21:25], "little") & ~0xFFFFFFF
    data[21:25] = (bits | 16000 | 16000 << 14).to_bytes(4, "little")
    return bytes(data)


def _exr(tmp_path: Path) -> bytes:
    file = tmp_path / "small.exr"
    write_exr(file, {c: np.zeros((4, 4), np.float32) for c in "RGB"})
    return file.read_bytes().replace(struct.pack("<4i", 0, 0, 3, 3), struct.pack("<4i", 0, 0, SIDE - 1, SIDE - 1))


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "webp", "exr"])
def test_a_header_that_claims_more_pixels_than_the_file_can_hold(kind: str, tmp_path: Path) -> None:
    data = {"png": lambda: _png(SIDE, b"\0" * 999), "jpg": _jpeg, "bmp": _bmp, "tif": _tiff, "webp": _webp}
    file = tmp_path / f"bomb.{kind}"
    file.write_bytes(_exr(tmp_path) if kind == "exr" else data[kind]())
    with pytest.raises(UserError, match=rf"bomb.{kind}: says that it is \d+x\d+ pixels, which its [\d,]+ bytes cannot"):
        read_pixels(read_header(file))


def test_a_png_is_held_to_what_deflate_can_do(tmp_path: Path) -> None:
    """16 bits of four channels, 8 bytes a pixel: 1032 bytes of one is the most that deflate makes."""
    side = int((HUGE * 1.2) ** 0.5)
    file = tmp_path / "padded.png"
    file.write_bytes(_png(side, np.random.default_rng(0).bytes(200_000), 16, 6))
    with pytest.raises(UserError, match="cannot hold"):
        read_header(file)
    file.write_bytes(_png(side, np.random.default_rng(0).bytes(400_000), 16, 6))
    assert read_header(file).width == side


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_photos_of_108_and_200_megapixels_open_without_a_word(kind: str, tmp_path: Path) -> None:
    """Also black ones, which compress to next to nothing."""
    file = tmp_path / f"phone.{kind}"
    Image.new("L", (16320, 12240)).save(file)
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_header(file).width, read_header(file).height) == (16320, 12240)
        with opened(file) as image:
            assert image.size == (16320, 12240)
    assert before == Image.MAX_IMAGE_PIXELS is not None


def test_only_formats_of_photos_are_opened(tmp_path: Path) -> None:
    for kind in ("EPS", "PDF", "ICO", "PPM", "TGA"):
        file = tmp_path / f"{kind}.png"
        Image.new("RGB", (16, 16)).save(file, kind)
        with pytest.raises(UserError, match=r"cannot be read as an image .it is none of the kinds"):
            read_header(file)


def test_exr_attributes_longer_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.exr"
    write_exr(file, {"Y": np.zeros((4, 4), np.float32)})
    data = bytearray(file.read_bytes())
    struct.pack_into("<i", data, data.index(b"chlist\0") + 7, 2**31 - 1)
    file.write_bytes(data)
    with pytest.raises(UserError, match="header is cut off"):
        read_header(file)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_arrays_larger_than_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(_npy_header((1 << 17, 1 << 16)) + b"\0" * 80)
    for mode in (None, "r"):
        with pytest.raises(UserError, match=r"a.npy: cannot be read as a NumPy array"):
            read_npy(tmp_path / "a.npy", mode)  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("world_mat_0.npy", _npy_header((1 << 17, 1 << 16)) + b"\0" * 80)
    with pytest.raises(UserError, match=r"world_mat_0.npy says that it is larger than the file can hold"):
        read_npz(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "zeros.npz", a=np.zeros((1000, 1000)), b=np.arange(3))
    assert read_npz(tmp_path / "zeros.npz")["a"].shape == (1000, 1000)
    assert list(read_npz(tmp_path / "zeros.npz", ("b",))) == ["b"]


PLY = """ply
format {} 1.0
element vertex 400000000
property float x
property float y
property float z
element face 400000000
property list uchar int vertex_indices
end_header
0 0 0
"""


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_a_ply_of_more_than_its_length(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_text(PLY.format(form))
    with pytest.raises(UserError, match=r"a.ply: says that it holds [\d,]+ bytes .* is \d+ bytes long"):
        read_mesh(tmp_path / "a.ply")


def edited_glb(file: Path, edit: Callable[[dict], object]) -> Path:
    """A GLB of a box whose JSON was changed."""
    data = trimesh.creation.box().export(file_type="glb")
    n = int.from_bytes(data[12:16], "little")
    content = json.loads(data[20 : 20 + n])
    edit(content)
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    body = data[20 + n :]
    head = b"glTF" + struct.pack("<III", 2, 20 + len(text) + len(body), len(text)) + b"JSON"
    file.write_bytes(head + text + body)
    return file


def test_a_glb_whose_accessors_hold_more_than_the_file(tmp_path: Path) -> None:
    def edit(content: dict) -> None:
        for accessor in content["accessors"]:
            del accessor["bufferView"]  # then it is zeros, as many as it says
            accessor["count"] = 300_000_000

    with pytest.raises(UserError, match=r"a.glb: says that it holds [\d,]+ bytes"):
        read_mesh(edited_glb(tmp_path / "a.glb", edit))
    assert len(read_mesh(edited_glb(tmp_path / "b.glb", lambda content: None)).faces) == 12


@pytest.mark.parametrize("name", ["rigs", "frames", "images", "points3D", "cameras"])
def test_colmap_counts_are_held_to_the_file(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    for each in ("rigs", "frames", "images", "points3D", "cameras"):
        (tmp_path / f"{each}.bin").write_bytes(struct.pack("<Q", 0))
    _check_binary(tmp_path)
    (tmp_path / f"{name}.bin").write_bytes(struct.pack("<Q", 1 << 60) + b"\0" * 100)
    with pytest.raises(UserError, match=f"{name}.bin: the file is cut off or damaged"):
        _check_binary(tmp_path)


PEAK = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from nerf.errors import UserError
from nerf.io.images import read_header, read_pixels
for name in sys.argv[1:]:
    try:
        read_pixels(read_header(Path(name)))
    except UserError as error:
        print(error)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) >> 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
def test_refusing_takes_no_memory(tmp_path: Path) -> None:
    files = []
    for kind, data in (("jpg", _jpeg()), ("tif", _tiff()), ("webp", _webp()), ("exr", _exr(tmp_path))):
        files.append(tmp_path / f"bomb.{kind}")
        files[-1].write_bytes(data)
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", PEAK, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    *sentences, peak = done.stdout.splitlines()
    assert len(sentences) == 4 and all("cannot hold" in line for line in sentences), done.stderr
    assert int(peak) < 200  # MB; decoding any of them takes 0.7 GB and more
