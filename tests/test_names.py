"""Names and values out of files: printed without anything that a terminal obeys, and any path that a disk allows."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from small_scenes import edit, write_transforms

from nerf.capture.photos import read_photos
from nerf.capture.report import FoundPoses, verified_partners
from nerf.cli.main import run
from nerf.datasets import load
from nerf.errors import UserError, note, printable, say
from nerf.io.exr import write_exr
from nerf.io.files import write_file
from nerf.io.images import read_header, read_pixels, write_png_16
from nerf.io.progress import Progress
from nerf.io.video import mp4
from nerf.signals.audio import read_audio
from nerf.signals.video import read_video
from nerf.training.export import export_cameras
from nerf.training.runs import Run, write_run
from nerf.views.report import write_report

EVIL = "a\x1b[2J\x1b]0;owned\x07\r\u202egnp.\u2066\x9b31m\n.png"
RAW = "caf\udce9"  # a byte that is no UTF-8, as Python names it
ODD = ["a#b", "a?b", "a%41b", "a:b", "a b", "a'b", 'a"b', "a\nb", "[ab]", "*", "-dash", "%03d", "a.zip", "größe", RAW]


def plain(text: str) -> bool:
    return all(c in "\n\r" or c.isprintable() for c in text) and "\x1b" not in text


def test_what_a_terminal_would_obey_is_written_as_an_escape() -> None:
    assert plain(printable(EVIL)) and "\n" not in printable(EVIL) and "\\x1b[2J" in printable(EVIL)
    assert printable("Größe 日本 🙂 a\u200db") == "Größe 日本 🙂 a\u200db"
    assert printable(RAW) == "caf\\xe9" and printable("\ud800") == "\\ud800"
    assert str(UserError(f"{EVIL}: is wrong")) == f"{printable(EVIL)}: is wrong"


def test_every_way_of_printing(capsys: pytest.CaptureFixture[str]) -> None:
    note(f"left out {EVIL}")
    say("first\nsecond", Path(EVIL + RAW))
    with Progress(f"reading {EVIL}", total=2, line_seconds=0.01) as shown:
        shown.update(1, words=EVIL)
    out, err = capsys.readouterr()
    assert plain(out) and plain(err) and "owned" in out and err.count("owned") >= 3
    assert out.startswith("first\nsecond") and err.splitlines()[0].startswith("nerf: left out a\\x1b")
    assert str(FoundPoses(n_photos=3, n_placed=0, seconds=1.0, left_out={EVIL: "blank"})).count("\n") == 1


def test_a_stream_that_knows_no_umlauts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        note(f"größe {RAW}")
    assert (tmp_path / "log").read_text() == "nerf: gr\\xf6\\xdfe caf\\xe9\n"


def test_what_libraries_say_is_plain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    with warnings.catch_warnings():
        assert run(["mesh", EVIL]) == 2
        warnings.simplefilter("always")
        print(warnings.formatwarning(f"strange {EVIL}", UserWarning, __file__, 1), end="", file=sys.stderr)
    broken = ValueError("a file that a mesh names"), None
    record = logging.LogRecord(
        "trimesh", logging.WARNING, __file__, 1, f"cannot load {EVIL}", None, (ValueError, *broken)
    )
    assert logging.lastResort is not None and plain(text := logging.lastResort.format(record))
    assert "ValueError" not in text, "no traceback, escaped or not"
    assert plain(capsys.readouterr().err)


def test_names_of_frames_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_transforms(tmp_path)
    edit(tmp_path / "transforms.json", lambda d: d["frames"][1].update(file_path=f"images/{EVIL}"))
    load(tmp_path)
    assert plain(capsys.readouterr().err)
    edit(tmp_path / "transforms.json", lambda d: d["frames"][2].update(camera_model=EVIL))
    assert run(["export-cameras", str(tmp_path), "-o", str(tmp_path / "out.json")]) == 2
    assert plain(capsys.readouterr().err)


@pytest.mark.parametrize("name", ODD)
def test_data_sets_in_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given by a relative name; frames of the same kind of name; exported beside and read again."""
    monkeypatch.chdir(tmp_path)
    write_transforms(Path(name), n=4)
    os.rename(Path(name, "images", "001.png"), Path(name, "images", f"{name}.png"))
    edit(Path(name, "transforms.json"), lambda d: d["frames"][1].update(file_path=f"images/{name}.png"))
    assert len(load(Path(name), quiet=True).names) == 4
    assert len(load(export_cameras(Path(name), Path(name, f"{name}.json")), quiet=True).names) == 4


@pytest.mark.parametrize("name", ODD)
def test_files_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir(name)
    for folder in (Path(name), Path()):
        deep = folder / f"{name}.png"
        write_png_16(deep, np.arange(24, dtype=np.uint16).reshape(2, 4, 3) * 999)
        assert read_pixels(read_header(deep)).max() == 23 * 999
        with mp4(folder / f"{name}.mp4", 32, 16, 10.0) as write:
            for k in range(3):
                write(np.full((16, 32, 3), 60 * k, np.uint8))
        assert read_video(folder / f"{name}.mp4").shape == (3, 16, 32)
        write_exr(folder / f"{name}.exr", {c: np.zeros((4, 4), np.float32) for c in "RGB"})
        assert read_pixels(read_header(folder / f"{name}.exr")).shape == (4, 4, 3)


def test_sounds_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerf.io.video import ffmpeg

    monkeypatch.chdir(tmp_path)
    data = ffmpeg("-f", "lavfi", "-i", "sine=r=8000:d=0.1", "-f", "flac", "-")
    for name in ODD:
        Path(f"{name}.flac").write_bytes(data)
        assert read_audio(f"{name}.flac").shape[0] == 800


def test_a_playlist_is_no_sound(tmp_path: Path) -> None:
    """It would make ffmpeg read the files that it names."""
    (tmp_path / "a.wav").write_bytes(b"")
    for text in ("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile a.wav\n"):
        (tmp_path / "list.mp3").write_text(text)
        with pytest.raises(UserError, match=r"list.mp3: cannot be read as a sound"):
            read_audio(tmp_path / "list.mp3")


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%41b", "a b:c", RAW])
def test_colmaps_database_in_any_folder(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "features.db"
    file.parent.mkdir()
    with sqlite3.connect(tmp_path / "plain.db") as database:
        database.execute("CREATE TABLE images (image_id INTEGER, name TEXT)")
        database.execute("CREATE TABLE two_view_geometries (pair_id INTEGER, rows INTEGER)")
        database.executemany("INSERT INTO images VALUES (?, ?)", [(1, "a.png"), (2, "b.png")])
        database.execute("INSERT INTO two_view_geometries VALUES (?, 7)", (2147483647 + 2,))
    shutil.move(tmp_path / "plain.db", file)
    assert verified_partners(file) == {"a.png": {"b.png": 7}, "b.png": {"a.png": 7}}


def test_photos_get_names_that_every_program_reads(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in (f"{RAW}.png", "a\nb.png", "a\x1bb.png", "größe 1.png"):
        Image.fromarray(random.integers(0, 255, (240, 240, 3), np.uint8)).save(tmp_path / name)
    names = [p.name for p in read_photos(tmp_path).photos]
    assert sorted(names) == ["a_b.png", "a_b_2.png", "caf_.png", "größe 1.png"]


def test_names_that_are_no_utf8_end_nothing(tmp_path: Path) -> None:
    """run.json, evaluation and the page of a run whose folder, data and photos are called so."""
    out = tmp_path / RAW
    (out / "eval").mkdir(parents=True)
    write_run(out, Run(data=f"/data/{RAW}; rm -rf"))
    views = [{"name": f"{RAW}{EVIL}", "index": 0, "psnr": 20.0, "ssim": 0.5}]
    (out / "eval" / "eval.json").write_text(json.dumps({"psnr": 20.0, "ssim": 0.5, "n_views": 1, "views": views}))
    page = write_report(out, [f"left out {RAW}{EVIL}"]).read_text(encoding="utf-8")
    assert "caf\\xe9" in page and "\x1b" not in page and "\u202e" not in page
    assert "nerf mesh &#x27;" in page  # quoted for a shell
    write_file(tmp_path / "list.txt", f"{RAW} \ud800")
    assert (tmp_path / "list.txt").read_bytes() == b"caf\\udce9 \\ud800"
    write_file(tmp_path / "list.txt", RAW)
    assert (tmp_path / "list.txt").read_bytes() == b"caf\xe9"


def test_meshes_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerf.geometry.triangles import read_mesh
    from nerf.meshing.files import save_mesh

    monkeypatch.chdir(tmp_path)
    for name in ODD:
        for kind in ("ply", "obj", "glb", "stl"):
            if kind == "obj" and not name.isprintable():  # it names the files beside it in lines of UTF-8
                with pytest.raises(UserError, match="an OBJ names the files beside it"):
                    save_mesh(trimesh.creation.box(), f"{name}.{kind}")
                continue
            save_mesh(trimesh.creation.box(), f"{name}.{kind}")
            assert len(read_mesh(f"{name}.{kind}").faces) == 12
