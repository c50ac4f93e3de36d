"""Damaged files end in one sentence: a short, seeded part of scripts/fuzz.py, and what its campaigns have found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from small_scenes import edit, write_blender, write_colmap, write_llff, write_neus, write_transforms
from test_other_tools import write_csv, write_metashape, write_opensfm

from nerf.cli.main import run as run_command
from nerf.datasets import load
from nerf.errors import UserError
from nerf.io import checkpoint
from nerf.io.json_text import parse_json
from nerf.signals.ct import read_sinogram
from nerf.training.runs import read_run
from nerf.views.paths import load_path
from nerf.views.report import write_report

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

from fuzzing.mutations import mutate  # noqa: E402

KINDS = "blender,colmap,opensfm,metashape,realitycapture,arrays,paths,runs,records"


def test_a_short_campaign_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--kinds", KINDS, "--cases", "90", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["cases"] == 90 and found["ends"]["sentence"] > 30 and not found["failures"]


def test_the_same_seed_damages_alike() -> None:
    right = json.dumps({"frames": [{"file_path": "a.png", "x": [1, 2, 3]}]}).encode()
    damaged = [[mutate(right, ".json", Random(f"{seed}:{i}")) for i in range(50)] for seed in (1, 1, 2)]
    assert damaged[0] == damaged[1] != damaged[2]
    assert sum(d != right for d in damaged[0]) > 40


def test_a_checkpoint_keeps_a_right_checksum_when_its_contents_are_damaged(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, {"a": torch.arange(6.0).reshape(2, 3)}, {"steps": 7, "names": ["x", "y"]})
    right, ends = path.read_bytes(), set()
    for i in range(60):
        path.write_bytes(mutate(right, ".safetensors", Random(i)))
        try:
            _, config = checkpoint.load(path)
            ends.add("read" if config == {"steps": 7, "names": ["x", "y"]} else "other config")
        except UserError as error:
            ends.add("checksum" if "checksum" in str(error) else "sentence")
    assert ends >= {"read", "other config", "sentence"}


# ---- JSON


def test_json_that_is_none_is_a_value_error() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert parse_json("9" * 18) == 10**18 - 1
    assert parse_json("[" + "9" * 310 + ", -" + "9" * 5000 + "]") == [float("inf"), -float("inf")]
    for text in ("[" * 100_000, '{"a":' * 5000, '"a\\u0000b"', '{"\\ud800": 1}', '"caf', ""):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_json(text)
    assert parse_json(b'"\xe9"') == "é", "a code page"
    assert parse_json('"\\ud83d\\udcf7 \\\\u0000"') == "\U0001f4f7 \\u0000"


def one_sentence(read: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read()
    assert "\n" not in str(caught.value)


HUGE, DEEP = "9" * 5000, "[" * 5000 + "]" * 5000


@pytest.mark.parametrize("value", ["9" * 310, HUGE, DEEP, '"a\\u0000b"'])
def test_json_of_others(tmp_path: Path, value: str) -> None:
    def put(file: Path, key: str) -> None:
        edit(file, lambda data: (data[0] if isinstance(data, list) else data).__setitem__(key, "here"))
        file.write_text(file.read_text().replace('"here"', value))

    blender, opensfm = write_blender(tmp_path / "a"), write_opensfm(tmp_path / "b")
    put(blender / "transforms_train.json", "camera_angle_x")
    one_sentence(lambda: load(blender), "transforms_train.json")
    file = opensfm / "reconstruction.json"
    file.write_text(file.read_text().replace('"width": 64', f'"width": {value}'))
    one_sentence(lambda: load(opensfm), "reconstruction.json")
    path = tmp_path / "path.json"
    path.write_text(f'{{"format": "nerf-camera-path", "version": 1, "frames": [1], "width": {value}, "height": 2}}')
    one_sentence(lambda: load_path(path), "path.json")


@pytest.mark.parametrize(
    "value", [{"images": 1.5}, {"masks": [1]}, {"downscale": "x"}, {"data": 3}, {"kind": {}}, [], 7]
)
def test_a_run_of_other_types(tmp_path: Path, value: Any) -> None:
    about = {"format": "nerf-run", "version": 1, "data": "here", "images": 3}
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert read_run(tmp_path) is not None
    (tmp_path / "run.json").write_text(json.dumps(about | value if isinstance(value, dict) else value))
    one_sentence(lambda: read_run(tmp_path), "run.json: cannot be understood")


@pytest.mark.parametrize("config", ["[" * 5000, '"text"', HUGE])
def test_a_config_that_is_none_under_a_right_checksum(tmp_path: Path, config: str, monkeypatch: Any) -> None:
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda x, **how: config if x == {"it": 1} else dumps(x, **how))
    checkpoint.save(tmp_path / "checkpoint.safetensors", {}, {"it": 1})
    monkeypatch.undo()
    one_sentence(lambda: checkpoint.load(tmp_path / "checkpoint.safetensors"), "config")


def test_a_report_is_written_without_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "training.json").write_text(json.dumps({"curve": 3, "machine": "no object"}))
    (tmp_path / "eval" / "eval.json").write_text(
        json.dumps({"psnr": 20.0, "views": [{"psnr": 1.0, "name": 7, "index": 0}]})
    )
    page = write_report(tmp_path).read_text()
    said = capsys.readouterr().err
    assert all(f"the part {part} is left out" in said for part in ("views", "curve", "protocol"))
    assert "20.00" in page and "Files, and what next" in page
    (tmp_path / "training.json").write_text(DEEP)
    write_report(tmp_path)
    assert "training.json is left out" in capsys.readouterr().err


# ---- arrays, tables, XML, names


@pytest.mark.parametrize(
    "header", ["{'descr': '<f4', 'fortran_order': False, 'shape': (3,", "((((((", "{'shape': 9" + HUGE]
)
def test_npy_headers(tmp_path: Path, header: str) -> None:
    folder = write_llff(tmp_path / "a")
    text = header.encode() + b"\n"
    damaged = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64
    (folder / "poses_bounds.npy").write_bytes(damaged)
    one_sentence(lambda: load(folder), "poses_bounds.npy")
    (tmp_path / "sinogram.npy").write_bytes(damaged)
    one_sentence(lambda: read_sinogram(tmp_path / "sinogram.npy"), "sinogram.npy")
    neus = write_neus(tmp_path / "b")
    np.savez(neus / "cameras_sphere.npz", world_mat_0="text")
    one_sentence(lambda: load(neus), "cameras_sphere.npz")


@pytest.mark.parametrize("encoding", ["utf-7", "utf-16", "no-such", "cp037", "idna"])
def test_xml_in_odd_encodings(tmp_path: Path, encoding: str) -> None:
    file = write_metashape(tmp_path) / "cameras.xml"
    names = load(tmp_path, quiet=True).names
    file.write_text(file.read_text().replace("UTF-8", encoding))
    assert load(tmp_path, quiet=True).names == names, "what is stated is not believed where the bytes say otherwise"


def test_a_resolution_of_many_digits(tmp_path: Path) -> None:
    file = write_metashape(tmp_path) / "cameras.xml"
    file.write_text(file.read_text().replace('width="64"', f'width="{"9" * 310}"'))
    one_sentence(lambda: load(tmp_path), "states no resolution")


def test_chunks_longer_than_their_file_take_no_memory(tmp_path: Path) -> None:
    import resource

    import trimesh
    from PIL import Image

    from nerf.geometry.triangles import read_mesh
    from nerf.io.images import read_header, read_pixels

    png, glb = tmp_path / "a.png", tmp_path / "a.glb"
    Image.new("L", (64, 48), 7).save(png)
    data = png.read_bytes()
    png.write_bytes(data[:-12] + b"\xff\xff\xff\xf0tEXt" + data[-12:])
    glb.write_bytes(trimesh.creation.box().export(file_type="glb"))
    data = bytearray(glb.read_bytes())
    at = 20 + int.from_bytes(data[12:16], "little")
    data[at : at + 4] = b"\xf0\xff\xff\xff"
    glb.write_bytes(data)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), limits[1]))
    try:
        one_sentence(lambda: read_pixels(read_header(png)), "a.png: the image is damaged .Truncated")
        one_sentence(lambda: read_mesh(glb), "says that it holds 4,")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_cell_without_end(tmp_path: Path) -> None:
    file = write_csv(tmp_path) / "cameras.csv"
    file.write_text(file.read_text() + '"' + "1" * 200_000 + "\n")
    one_sentence(lambda: load(tmp_path), "cameras.csv: is no CSV")


def test_names_of_colmap_that_are_not_in_utf_8(tmp_path: Path) -> None:
    file = write_colmap(tmp_path) / "sparse" / "0" / "images.txt"
    file.write_bytes(file.read_bytes().replace(b"im03.png", b"im\xe903.png"))
    scene = load(tmp_path, quiet=True)
    assert len(scene.names) == 9 and any("imé03.png" in note for note in scene.notes), (
        "read as a code page, and missing"
    )
    file.write_bytes(b"# caf\xe9\n" + file.read_bytes().replace(b"\xe9", b""))
    load(tmp_path, quiet=True)  # a comment may be in any


@pytest.mark.parametrize("name", ["A" * 5000, "/", "", ".", "..", "b/" * 3000])
def test_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    folder = write_transforms(tmp_path / "a")
    edit(folder / "transforms.json", lambda data: data["frames"][0].update(file_path=name))
    with suppress(UserError):  # of names too long; all others are left out as missing
        assert len(load(folder, quiet=True).names) == 9
    colmap = write_colmap(tmp_path / "b")
    file = colmap / "sparse" / "0" / "images.txt"
    file.write_text(file.read_text().replace("im03.png", name))
    with suppress(UserError):  # nothing else
        load(colmap, quiet=True)


@pytest.mark.parametrize("verb", ["reconstruct", "train", "poses", "export-cameras", "fit image"])
def test_an_output_whose_name_is_too_long(tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_transforms(tmp_path / "data") / ("images/000.png" if verb == "fit image" else "")
    source = data / "images" if verb == "poses" else data
    assert run_command([*verb.split(), str(source), "-o", str(tmp_path / ("A" * 300))]) == 2
    said = capsys.readouterr().err
    assert "this should not happen" not in said and said.splitlines()[-1].startswith("nerf: ")


@pytest.mark.parametrize("kind", ["ply", "off", "obj", "stl", "glb"])
def test_faces_that_name_absent_vertices(tmp_path: Path, kind: str) -> None:
    import trimesh

    from nerf.geometry.triangles import read_mesh, read_textured_mesh

    mesh, path = trimesh.creation.box(), tmp_path / f"a.{kind}"
    if kind in ("ply", "glb"):
        mesh.faces[3, 1] = 5000
    data = mesh.export(file_type=kind)
    text = data if isinstance(data, bytes) else data.encode()
    if kind == "off":
        text = text.replace(b"3 1 3 0", b"3 1 5000 0")
    path.write_bytes(text.replace(b"f 2 4 1", b"f 2 5000 1"))
    if kind == "stl":  # has no names of vertices
        assert len(read_mesh(path).faces) == 12
        return
    for read in (read_mesh, read_textured_mesh):
        one_sentence(lambda read=read: read(path), f"a.{kind}")


def test_a_colmap_pose_without_rotation(tmp_path: Path) -> None:
    file = write_colmap(tmp_path) / "sparse" / "0" / "images.txt"
    lines = file.read_text().splitlines()
    lines[1] = " ".join(["1", "1e300", "1e300", "0", "0", *lines[1].split()[5:]])
    file.write_text("\n".join(lines) + "\n")
    one_sentence(lambda: load(tmp_path), "im00.png")


def test_a_film_that_is_cut_off(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from nerf.capture.video import check_video
    from nerf.io.video import ffmpeg, mp4

    with mp4(tmp_path / "a.mp4", 64, 48, 10.0) as write:
        for k in range(6):
            write(np.full((48, 64, 3), 40 * k, np.uint8))
    (tmp_path / "a.mts").write_bytes(ffmpeg("-i", str(tmp_path / "a.mp4"), "-c", "copy", "-f", "mpegts", "-"))
    for name in ("a.mp4", "a.mts"):
        whole = (tmp_path / name).read_bytes()
        for n in (0, 1, 8, 40, 200):
            (tmp_path / name).write_bytes(whole[:n])
            one_sentence(lambda name=name: check_video(tmp_path / name), name)
