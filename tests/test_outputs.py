"""nerf.io.outputs, locks, files: nothing that is not ours is replaced or removed, by any command."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nerf.errors import UserError
from nerf.io import files, locks
from nerf.io.files import atomic_write, fresh, is_temporary, remove_orphans, write_file, write_files
from nerf.io.outputs import RECORD, OutputFolder, check_output, read_record

ROOT = Path(__file__).resolve().parent.parent


def names_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} - {RECORD}


# ---- whose folder it is


def test_a_new_or_empty_folder_becomes_ours(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    for _ in range(2):  # the second time as after a kill before the first file
        with OutputFolder.open(out, "run", names=["model"]) as folder:
            assert read_record(out) == {"kind": "run", "files": []} and folder.files() == []
    assert list(tmp_path.iterdir()) == [], "nothing was written, so nothing stays"
    with OutputFolder.open(out, "run") as folder:
        folder.claim("model")
        (out / "model").touch()
    assert read_record(out) == {"kind": "run", "files": ["model"]}
    with OutputFolder.open(tmp_path / "c", "run", resume=True) as folder:  # nothing there yet: it begins
        assert folder.files() == []


def test_results_are_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with OutputFolder.open(tmp_path, "run") as folder:
        folder.claim("model", "views/a.png", "own/")
        for name in ("model", "views/a.png", "views/mine.png", "own/deep/x", "mine"):
            write_deep(tmp_path / name)
    with pytest.raises(UserError, match=r"another run \(model, views/a.png, own/\): choose .*, or give --overwrite"):
        OutputFolder.open(tmp_path, "run")
    with pytest.raises(UserError, match="holds a run and no fit"):
        OutputFolder.open(tmp_path, "fit", overwrite=True)
    with pytest.raises(UserError, match="one of them"):
        OutputFolder.open(tmp_path, "run", resume=True, overwrite=True)
    with OutputFolder.open(tmp_path, "run", resume=True) as folder:
        assert folder.files() == ["model", "views/a.png", "own/"]
    with OutputFolder.open(tmp_path, "run", overwrite=True) as folder:
        assert "model" in names_in(tmp_path)  # only removed when the command knows that it can go on
        folder.clear(keep=["model"])
        assert "removing what the run there has left (views/a.png, own/)" in capsys.readouterr().err
        assert names_in(tmp_path) == {"model", "views/mine.png", "mine", locks.LOCK}
        assert folder.files() == ["model"]
    assert not (tmp_path / "own").exists() and not (tmp_path / locks.LOCK).exists()


def write_deep(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("content")


def test_a_folder_of_others_is_refused_and_their_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_text("the user's")
    with pytest.raises(UserError, match="not empty"):
        OutputFolder.open(tmp_path, "run")
    with pytest.raises(UserError, match="to resume, but files of others"):
        OutputFolder.open(tmp_path, "run", resume=True)
    with pytest.raises(UserError, match=r"video.mp4 is in the way"):
        OutputFolder.open(tmp_path, "run", overwrite=True, names=["model", "video.mp4"])
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"], "a refusal leaves nothing behind"
    with OutputFolder.open(tmp_path, "run", overwrite=True, names=["model"]) as folder:
        with pytest.raises(UserError, match="in the way"):
            folder.claim("model", "video.mp4")
        assert folder.files() == []
        folder.clear()
    assert (tmp_path / "video.mp4").read_text() == "the user's"


def test_evaluations_go_with_the_run_that_they_lie_in(tmp_path: Path) -> None:
    with OutputFolder.open(tmp_path, "run") as folder:
        with OutputFolder.open(tmp_path / "eval", "evaluation") as inner:
            inner.claim("eval.json")
            (tmp_path / "eval" / "eval.json").touch()
        (tmp_path / "eval" / "mine").touch()
        with OutputFolder.open(tmp_path / "photos", "dataset") as other:
            other.claim("a.png")
            (tmp_path / "photos" / "a.png").touch()
        assert folder.files() == ["eval/"]
        folder.clear()
        assert names_in(tmp_path) == {"eval/mine", "photos/a.png", f"photos/{RECORD}", locks.LOCK}


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '"x"', '{"format": "nerf-folder"}', "[" * 5000),
        '{"format": "nerf-folder", "kind": "run", "files": ["../outside"]}',
        '{"format": "nerf-folder", "kind": "run", "files": ["/etc/passwd"]}',
        '{"format": "nerf-folder", "kind": "run", "files": ["./"]}',
        '{"format": "nerf-folder", "kind": "run", "files": [1]}',
    ],
)
def test_a_record_that_is_damaged_or_forged_touches_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "outside").touch()
    (tmp_path / "out" / RECORD).write_text(text)
    with pytest.raises(UserError, match=r"nerf.json: cannot be understood"):
        OutputFolder.open(tmp_path / "out", "run", overwrite=True)
    assert (tmp_path / "outside").exists()


# ---- single files


def test_a_file_is_asked_for_before_it_is_written(tmp_path: Path) -> None:
    mesh, there = tmp_path / "mesh.ply", tmp_path / "there.json"
    mesh.write_text("mesh")
    there.write_text("{}")
    check_output(tmp_path / "new.json", False)
    check_output(there, True, mesh)
    (tmp_path / "link.json").symlink_to(mesh)
    for path, overwrite, words in (
        (there, False, "exists"),
        (mesh, True, "is what is read"),
        (tmp_path / "link.json", True, "is what is read"),
        (tmp_path, True, "is a folder"),
        (tmp_path / "no" / "x.json", True, "no such folder"),
    ):
        with pytest.raises(UserError, match=words):
            check_output(path, overwrite, mesh)


def test_in_a_folder_of_ours_only_what_is_listed_is_replaced(tmp_path: Path) -> None:
    with OutputFolder.open(tmp_path, "run") as folder:
        folder.claim("checkpoint.safetensors", "mesh.glb")
        for name in ("checkpoint.safetensors", "mesh.glb", "mine.glb"):
            (tmp_path / name).touch()
        check_output(tmp_path / "mesh.glb", True)
        for name, words in (("checkpoint.safetensors", "belongs to"), ("mine.glb", "in the way"), (RECORD, "belongs")):
            with pytest.raises(UserError, match=words):
                check_output(tmp_path / name, True)
        check_output(tmp_path / "new.glb", False)
        assert "new.glb" not in folder.files()  # on the list, but not there yet
        (tmp_path / "new.glb").touch()
        assert "new.glb" in folder.files()


# ---- writing


def test_what_is_no_regular_file_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("target.txt")
    write_file(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "target.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_file(tmp_path / "pipe", "through it")
    reader.join(10)
    assert read == ["through it"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    write_file(Path(os.devnull), "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_temporary_names_are_fresh_and_follow_no_link(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        with atomic_write(tmp_path / "x.json") as temporary:
            assert is_temporary(temporary) and not temporary.is_symlink() and temporary.stat().st_size == 0
            seen.add(temporary.name)
    assert len(seen) == 3
    with atomic_write(tmp_path / ("n" * 250 + ".png"), suffix=".mp4") as temporary:  # as long as a name may be
        assert temporary.suffix == ".mp4" and is_temporary(temporary)
    umask = os.umask(0o027)
    try:
        write_file(tmp_path / "mode", "x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "mode").stat().st_mode) == 0o640


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_files(tmp_path / "a", {"a": "1", "b": "2"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="a cannot be written"):
        write_files(tmp_path / "a", {"a": "3", "folder": "4"})
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text(str(1 / 0))
    assert (tmp_path / "a").read_text() == "1" and names_in(tmp_path) == {"a", "b"}


def test_a_list_reaches_nothing_through_a_link(tmp_path: Path) -> None:
    """A record may come with a folder from elsewhere."""
    write_deep(tmp_path / "outside" / "precious")
    with OutputFolder.open(tmp_path / "out", "run") as folder:
        folder.claim("model", "sub/precious", "whole/")
        write_deep(tmp_path / "out" / "model")
        (tmp_path / "out" / "sub").symlink_to(tmp_path / "outside")
        (tmp_path / "out" / "whole").symlink_to(tmp_path / "outside")
        folder.clear()
    assert (tmp_path / "outside" / "precious").exists() and not (tmp_path / "out" / "whole").is_symlink()


def test_only_the_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = fresh(tmp_path / "x").name
    theirs = mine.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    elsewhere = theirs.replace(files._HOST, "01234567")  # where another machine writes to the same folder
    users = {".x.tmp", theirs[1:], f".x.{dead.pid}.20240131.jpg", f".x.nerf-{dead.pid}.tmp"}
    for name in (mine, theirs, elsewhere, *users):
        (tmp_path / name).touch()
    remove_orphans(tmp_path)
    assert names_in(tmp_path) == {mine, elsewhere, *users}


@pytest.mark.parametrize(
    ("kind", "words"), [("evaluation", "an evaluation"), ("pictures", "pictures"), ("fit", "a fit")]
)
def test_a_folder_of_another_kind_is_named(tmp_path: Path, kind: str, words: str) -> None:
    with OutputFolder.open(tmp_path, kind), pytest.raises(UserError, match=f"holds {words} and no run"):
        OutputFolder(tmp_path, "run").check(overwrite=True)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_took_the_place_of_a_file_is_in_the_way(tmp_path: Path, make: Callable[[Path], None]) -> None:
    with OutputFolder.open(tmp_path / "out", "run") as folder:
        folder.claim("run.json", "mesh.glb")
        (folder.path / "mesh.glb").write_text("a mesh")
    make(tmp_path / "out" / "run.json")
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"run\.json is in the way"):
            OutputFolder.open(tmp_path / "out", "run", **how)
    assert (tmp_path / "out" / "mesh.glb").read_text() == "a mesh" and os.path.lexists(tmp_path / "out" / "run.json")


def test_a_record_that_is_no_file_is_in_the_way(tmp_path: Path) -> None:
    """Of a pipe, writing would wait for ever."""
    os.mkfifo(tmp_path / RECORD)
    with pytest.raises(UserError, match=r"nerf.json is in the way"):
        OutputFolder.open(tmp_path, "run", overwrite=True)


# ---- who writes there now


def test_a_folder_is_written_to_by_one_process_at_a_time(tmp_path: Path) -> None:
    code = "import sys, pathlib; from nerf.io.outputs import OutputFolder as F\n"
    code += "with F.open(pathlib.Path(sys.argv[1]), 'run'): print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "open\n"
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=rf"in use by process {other.pid} \(.*\), since 2\d\d\d-.*choose another"):
            OutputFolder.open(tmp_path, "run", **options)
    other.kill()
    other.wait()
    assert (tmp_path / locks.LOCK).exists(), "a killed process leaves the file"
    with OutputFolder.open(tmp_path, "run"):  # which is no lock
        holder = json.loads((tmp_path / locks.LOCK).read_text())
        assert holder["pid"] == os.getpid()
    assert not (tmp_path / locks.LOCK).exists()


def test_without_locks_the_process_that_is_named_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "_flock", lambda file: False)
    holder = {"pid": os.getppid(), "host": locks.socket.gethostname(), "since": "2026-01-01", "command": "nerf train"}
    (tmp_path / locks.LOCK).write_text(json.dumps(holder))
    with pytest.raises(UserError, match=r"in use by process \d+ \(nerf train\), since 2026.*or remove .*nerf.lock"):
        locks.Lock(tmp_path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    for text in (json.dumps(holder | {"pid": ended.pid}), "", "[" * 3000, '{"pid": 99999999999999999999999}'):
        (tmp_path / locks.LOCK).write_text(text)
        locks.Lock(tmp_path).release()
        assert "has no locks" in capsys.readouterr().err


def test_several_commands_may_add_to_one_list(tmp_path: Path) -> None:
    with OutputFolder.open(tmp_path, "run") as folder:
        threads = [threading.Thread(target=folder.claim, args=(f"file{k}",)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        record = read_record(tmp_path)
        assert record is not None and set(record["files"]) == {f"file{k}" for k in range(8)}


def test_names_that_were_not_written_yet_stay_on_the_list(tmp_path: Path) -> None:
    with OutputFolder.open(tmp_path, "dataset") as folder:
        folder.claim("transforms.json", "images/a.png", "images/b.png")
        for name in ("images/a.png", "images/b.png"):
            write_deep(tmp_path / name)
        folder.clear([name for name in folder.listed() if name != "images/a.png"], say=False)
        assert folder.listed() == ["transforms.json", "images/b.png"] and names_in(tmp_path / "images") == {"b.png"}


def test_leftovers_in_folders_below_are_removed_too(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    end = f"nerf-{files._HOST}-{dead.pid}-0123abcd.tmp"
    with OutputFolder.open(tmp_path, "run") as folder:
        folder.claim("views/a.png")
        write_deep(tmp_path / "views" / "a.png")
        write_deep(tmp_path / "views" / f".b.png.{end}")
    write_deep(tmp_path / f".nerf.json.{end}")  # of a picture's folder, as it told the run of itself
    OutputFolder.open(tmp_path / "eval", "evaluation").close()
    assert {p.name for p in tmp_path.iterdir()} == {"views", RECORD}
    OutputFolder.open(tmp_path, "run", overwrite=True).close()
    assert names_in(tmp_path) == {"views/a.png"}
    with OutputFolder.open(tmp_path / "set", "dataset") as folder:  # of a folder that is wholly ours
        folder.claim("capture/")
        for name in ("capture/state.json", f"capture/.state.json.{end}", f"capture/model/.a.bin.{end}"):
            write_deep(tmp_path / "set" / name)
    OutputFolder.open(tmp_path / "set", "dataset", resume=True).close()
    assert names_in(tmp_path / "set") == {"capture/state.json"}


# ---- as the commands use it


def test_poses_never_takes_its_own_output_for_photos(tmp_path: Path) -> None:
    from PIL import Image

    from nerf.capture.photos import list_photos

    for name in ("day1/a.jpg", "day1/b.jpg", "day2/c.jpg", "out/images/a.jpg", "masks/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with OutputFolder.open(tmp_path / "run", "run", overwrite=True) as folder:
        folder.claim("model", "eval/")
        (tmp_path / "run" / "eval").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "run" / "eval" / "0000_a.png")
    found = [p.relative_to(tmp_path).as_posix() for p in list_photos(tmp_path, tmp_path / "out")]
    assert found == ["day1/a.jpg", "day1/b.jpg", "day2/c.jpg"]
    # written among photos, which stay photos
    with OutputFolder.open(tmp_path / "day1", "pictures", overwrite=True) as folder:
        folder.claim("00000.png")
        Image.new("RGB", (8, 8)).save(tmp_path / "day1" / "00000.png")
    assert [p.relative_to(tmp_path).as_posix() for p in list_photos(tmp_path, tmp_path / "out")] == found
    assert [p.name for p in list_photos(tmp_path / "day1")] == ["a.jpg", "b.jpg"]
    with OutputFolder.open(tmp_path / "set", "dataset") as folder:  # pictures of ours, asked for by name
        folder.claim("images/a.png")
        (tmp_path / "set" / "images").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / "images" / "a.png")
    assert [p.name for p in list_photos(tmp_path / "set")] == ["a.png"]
    assert [p.relative_to(tmp_path).as_posix() for p in list_photos(tmp_path, tmp_path / "out")] == found


def test_a_fit_leaves_the_users_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from nerf.cli import main as cli

    out = tmp_path / "out"
    out.mkdir()
    Image.effect_noise((24, 16), 60).save(out / "reconstruction.png")
    words = ["fit", "image", str(out / "reconstruction.png"), "-o", str(out), "--steps", "2", "--field", "mlp"]
    before = (out / "reconstruction.png").read_bytes()
    for more in ([], ["--overwrite"], ["--resume"]):
        assert cli.run([*words, *more]) == 2
        assert "nerf: " in capsys.readouterr().err
        assert names_in(out) == {"reconstruction.png"} and (out / "reconstruction.png").read_bytes() == before
    (out / "reconstruction.png").rename(out / "photo.png")
    words[2] = str(out / "photo.png")
    assert cli.run([*words, "--overwrite"]) == 0
    assert cli.run(words) == 2
    assert "another fit" in capsys.readouterr().err
    (out / "mesh.ply").write_text("the user's")
    assert cli.run([*words, "--overwrite"]) == 0
    assert "removing what the fit there has left" in capsys.readouterr().err
    assert (out / "photo.png").read_bytes() == before and (out / "mesh.ply").read_text() == "the user's"
    assert cli.run(["pack", str(out), "-o", str(out / "photo.png"), "--overwrite"]) == 2
    assert cli.run(["sample", str(out), "-o", str(out / "checkpoint.safetensors"), "--overwrite"]) == 2
    assert cli.run(["pack", str(out), "-o", os.devnull]) == 0 and stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert (out / "photo.png").read_bytes() == before


def test_exports_and_scores_replace_nothing_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import trimesh
    from small_scenes import write_colmap

    from nerf.cli import main as cli

    pytest.importorskip("pycolmap")
    scene = write_colmap(tmp_path / "scene")
    (tmp_path / "cameras.ply").write_text("the user's")
    assert cli.run(["export-cameras", str(scene), "-o", str(tmp_path / "cameras.json")]) == 2
    assert "cameras.ply exists" in capsys.readouterr().err and not (tmp_path / "cameras.json").exists()
    model = {p.name: p.read_bytes() for p in (scene / "sparse" / "0").iterdir()}
    assert cli.run(["export-cameras", str(scene), "-o", str(scene), "--overwrite"]) == 2
    assert "in the way" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (scene / "sparse" / "0").iterdir()} == model
    trimesh.creation.box().export(tmp_path / "mesh.ply")
    mesh = (tmp_path / "mesh.ply").read_bytes()
    words = ["evalmesh", str(tmp_path / "mesh.ply"), "--truth", str(tmp_path / "mesh.ply"), "--samples", "100"]
    assert cli.run([*words, "--out", str(tmp_path / "mesh.ply"), "--overwrite"]) == 2
    (tmp_path / "scores.json").write_text("the user's")
    assert cli.run([*words, "--out", str(tmp_path / "scores.json")]) == 2
    assert (tmp_path / "mesh.ply").read_bytes() == mesh and (tmp_path / "scores.json").read_text() == "the user's"
