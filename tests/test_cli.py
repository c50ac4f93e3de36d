"""The command as a user meets it: help without torch, exit codes, one sentence for a mistake."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from fakes import FakeModel

from nerf.cli import doctor
from nerf.cli import main as cli
from nerf.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def nerf(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "nerf", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
    )


def test_help_and_import_leave_torch_alone() -> None:
    code = (
        "import sys, nerf; from nerf.cli.main import run; run(['--help']); run(['--version']); run(['trian']);"
        "sys.exit(bool({'torch', 'numpy', 'tyro'} & set(sys.modules)))"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    spent = os.times()  # the processor's own seconds, which a busy machine does not change
    assert spent.children_user + spent.children_system - before.children_user - before.children_system < 1.0
    for verb in cli.VERBS:
        assert f"  {verb} ".encode() in done.stdout


def test_no_verb_shows_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2 and cli.run(["-h"]) == 0
    assert capsys.readouterr().out.count("usage: nerf") == 2


@pytest.mark.parametrize(
    ("typed", "words"),
    [("trian", "did you mean train?"), ("Render", "did you mean render?"), ("xyzzy", "the verbs are")],
)
def test_unknown_verbs_are_one_sentence(typed: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([typed]) == 2
    text = capsys.readouterr().err
    assert words in text and text.count("\n") == 1


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    from nerf import __version__

    assert cli.run(["--version"]) == 0 and capsys.readouterr().out == f"nerf {__version__}\n"


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run([verb, "--help"])
    assert caught.value.code == 0 and f"nerf {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [
        (UserError("the sky is green"), 2, "nerf: the sky is green\n"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (PermissionError(errno.EACCES, "Permission denied", "photos"), 2, "nerf: photos: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "nerf: a file: No space left on device\n"),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), 2, "pip install rich"),
    ],
)
def test_what_is_raised_becomes_an_exit_code(
    raised: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: object) -> None:
        raise raised

    monkeypatch.setattr("nerf.cli.doctor.main", main)
    assert cli.run(["doctor"]) == status
    text = capsys.readouterr().err
    assert words in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        (
            "OutOfMemoryError",
            "CUDA out of memory. Tried to allocate 2 GiB.",
            "the GPU's memory is full (CUDA out of memory)",
        ),
        (
            "AcceleratorError",
            "CUDA error: an illegal memory access\nhint",
            "the GPU failed (CUDA error: an illegal memory",
        ),
    ],
)
def test_what_a_gpu_or_a_full_memory_does_is_one_sentence(
    kind: str, words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    broken = type("Broken", (RuntimeError,), {})
    monkeypatch.setattr(torch, kind, broken, raising=False)

    def main(_: object) -> None:
        raise broken(words)

    monkeypatch.setattr("nerf.cli.doctor.main", main)
    assert cli.run(["doctor"]) == 2
    text = capsys.readouterr().err
    assert said in text and "--backend cpu" in text and text.count("\n") == 1
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes.")
    for other in (full, MemoryError(), MemoryError("Unable to allocate 80 GiB")):
        monkeypatch.setattr("nerf.cli.doctor.main", mock.Mock(side_effect=other))
        assert cli.run(["doctor"]) == 2
        text = capsys.readouterr().err
        assert "the memory is full" in text and text.count("\n") == 1
    for other in (RuntimeError("a bug"), ZeroDivisionError()):
        monkeypatch.setattr("nerf.cli.doctor.main", mock.Mock(side_effect=other))
        assert cli.run(["doctor"]) == 1


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (None, "; nothing was saved yet"),
        ("run.json", "; nothing was saved yet"),
        ("checkpoint.safetensors", "; the same command with --resume continues"),
        ("dataset/transforms.json", "; the same command with --resume continues"),
    ],
)
def test_resume_is_advised_where_there_is_something_to_resume(there: str | None, words: str, tmp_path: Path) -> None:
    if there is not None:
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).write_bytes(b"")
    for verb in ("train", "reconstruct", "fit"):
        assert cli.how_to_go_on(verb, SimpleNamespace(out=tmp_path, overwrite=False)) == words
    if "--resume" in words:
        said = cli.how_to_go_on("train", SimpleNamespace(out=tmp_path, overwrite=True))
        assert said == "; the same command with --resume instead of --overwrite continues"
    assert cli.how_to_go_on("eval", None) == "" and "again" in cli.how_to_go_on("poses", None)


@pytest.mark.parametrize("error", [ZeroDivisionError("by\nzero"), OSError(22, "Invalid"), ImportError(name="nerf.x")])
def test_a_bug_of_ours_is_one_sentence_and_keeps_its_traceback(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nerf.cli.doctor.main", mock.Mock(side_effect=error))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.run(["doctor"]) == 1
    said = capsys.readouterr().err
    (kept,) = tmp_path.glob("nerf-error-*.txt")
    assert said.startswith(f"nerf: this should not happen: {type(error).__name__}") and said.count("\n") == 1
    assert str(kept) in said and "Python" in kept.read_text()
    assert "Traceback (most recent call last)" in kept.read_text()


# ---- bad input, with the exit codes of the process


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reconstruct", "missing", "-o", "out"], "missing: there is no such folder"),
        (["train", "missing", "-o", "out"], "missing: there is no such folder"),
        (["train", ".", "-o", "out", "--steps", "3", "--minutes", "1"], "give one of them"),
        (["eval", "missing"], "there is no such folder"),
        (["eval", "."], "holds no checkpoint.safetensors"),
        (["render", "."], "holds no checkpoint.safetensors"),
        (["render", "missing", "--modes", "colour"], "expected one or more of color"),
        (["train"], "missing PATH: folder with the photos and their poses"),
        (["train", "."], "missing -o PATH: folder to write to (`nerf train --help`"),
        (["train", ".", "-o", "out", "--backend", "gpu"], "'gpu' for argument '--backend'"),
        (["train", ".", "-o", "out", "--stesp", "3"], "unrecognized options: --stesp, 3; did you mean --steps?"),
        (["train", ".", "-o", "out", "--steps", "abc"], "--steps: expected INT, got 'abc' (`nerf train --help`"),
        (["train", ".", "-o", "out", "--steps", "0"], "--steps is 0, expected a whole number from 1"),
        (["train", ".", "-o", "out", "--minutes", "nan"], "--minutes is nan, expected a number above 0"),
        (["train", ".", "-o", "out", "--seed", str(1 << 41)], "--seed is"),
        (["mesh", ".", "--box", "1", "2"], "--box: expected FLOAT FLOAT FLOAT FLOAT FLOAT FLOAT, got '1', '2'"),
        (["evalmesh", "a.ply", "--truth", "b.ply", "--samples", "0"], "--samples is 0, expected a whole number from 1"),
        (["check", ".", "--seconds", "nan"], "--seconds is nan, expected a number above 0"),
        (["fit", "imag", "a.png"], "available subcommands: image, audio"),
        (["doctor", "--verbose"], "unrecognized options: --verbose"),
    ],
)
def test_mistakes_exit_with_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and words in said and said.startswith("nerf: ") and said.count("\n") == 1, said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("utf8", [False, True])
def test_a_box_of_the_parser_is_read_framed_or_not(
    utf8: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fmt = pytest.importorskip("tyro._fmtlib")
    monkeypatch.setattr(fmt, "_should_use_utf8_drawing_chars", lambda: utf8)
    assert cli.run(["train", ".", "-o", "out", "--stesp", "3"]) == 2
    said = "unrecognized options: --stesp, 3; did you mean --steps? (`nerf train --help` lists all)"
    assert capsys.readouterr().err == f"nerf: {said}\n"


@pytest.mark.parametrize("arguments", [["reconstruct", "missing", "-o", "out"], ["render", "missing"], ["trian"]])
def test_the_process_exits_with_2_and_no_traceback(arguments: list[str], tmp_path: Path) -> None:
    done = nerf(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("nerf: ") and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "file").write_text("in the way")
    for out in ("file", "file/deeper", "/proc/nerf-out"):
        for verb in ("train", "reconstruct"):
            assert cli.run([verb, "data", "-o", out, "--steps", "1"]) == 2
            text = capsys.readouterr().err
            assert out in text and text.count("\n") == 1


def test_a_checkpoint_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"this is not a checkpoint")
    for verb in ("eval", "render", "mesh"):
        assert cli.run([verb, str(tmp_path)]) == 2
        text = capsys.readouterr().err
        assert "checkpoint.safetensors" in text and text.count("\n") == 1


# ---- verbs on the analytic model


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that "holds" the analytic model."""
    module = SimpleNamespace(Model=SimpleNamespace(load=lambda path: FakeModel()))
    monkeypatch.setitem(sys.modules, "nerf.rendering.model", module)  # type: ignore[misc]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(b"")
    return folder


def test_mesh_verb_refuses_before_the_work(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = (
        (["--texture", "5"], "--texture is 5, expected a whole number from 16 to 16384"),
        (["-o", str(tmp_path / "m.ply"), "--texture", "1024"], "carries no texture"),
        (["-o", str(tmp_path / "m.stl"), "--texture", "1024"], "carries no texture"),
        (["-o", str(tmp_path / "m.fbx")], ".glb"),
        (["--faces", "2"], "--faces is 2, expected a whole number from 4"),
        (["--points", "100", "-o", str(tmp_path / "p.glb")], "goes to a .ply file"),
        (["--points", "100", "--faces", "100"], "without --texture and --faces"),
        (["--points", "-1"], "--points must be above 0"),
    )
    for arguments, words in cases:
        assert cli.run(["mesh", str(trained), *arguments]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr("nerf.meshing.clean.find_spec", lambda name: None)
    assert cli.run(["mesh", str(trained), "--texture", "1024"]) == 2
    assert "pip install fast-simplification" in capsys.readouterr().err
    assert sorted(p.name for p in trained.iterdir()) == ["checkpoint.safetensors"]


def test_render_verb(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--width", "32", "--frames", "3"]
    assert (
        cli.run(["render", str(trained), "--path", "interpolate", *size, "--save-path", str(tmp_path / "p.json")]) == 0
    )
    assert (
        capsys.readouterr().out.strip() == str(trained / "render.mp4") and (trained / "render.mp4").stat().st_size > 0
    )
    out = ["-o", str(tmp_path / "pictures"), "--modes", "color", "normal"]
    assert cli.run(["render", str(trained), "--path", str(tmp_path / "p.json"), *out]) == 0
    assert len(list((tmp_path / "pictures" / "normal").glob("*.png"))) == 3
    capsys.readouterr()
    for arguments, words in (
        ([*size], "exists"),
        ([*size, "--path", "loop", "-o", str(tmp_path / "b.mp4")], "orbit, interpolate, spiral"),
        ([*size, "--path", "nothing.json", "-o", str(tmp_path / "b.mp4")], "no such camera-path file"),
        ([*size, "-o", str(tmp_path / "b.webm")], ".webm"),
        ([*size, "--fps", "0", "-o", str(tmp_path / "b.mp4")], "--fps"),
        ([*size, "--fps", "1e-300", "-o", str(tmp_path / "b.mp4")], "--fps is 1e-300, expected a number from 0.01"),
        (["--frames", "100000000", "-o", str(tmp_path / "b.mp4")], "--frames is 100000000, expected"),
    ):
        assert cli.run(["render", str(trained), *arguments]) == 2
        text = capsys.readouterr().err
        assert words in text and text.count("\n") == 1
    assert not (tmp_path / "b.mp4").exists()


def test_eval_verb(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fakes import fake_scene

    monkeypatch.setattr("nerf.datasets.load", lambda *a, **k: fake_scene(FakeModel()))
    assert (
        cli.run(["eval", str(trained)]) == 2 and "--data" in capsys.readouterr().err
    )  # it does not say of which scene
    assert cli.run(["eval", str(trained), "--data", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "PSNR" in printed and json.loads((trained / "eval" / "eval.json").read_text())["n_views"] == 2
    assert cli.run(["eval", str(trained), "--data", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.run(["eval", str(trained), "--data", str(tmp_path), "--overwrite", "--split", "val"]) == 2


# ---- doctor


def test_doctor_tells_and_exits_with_0() -> None:
    done = nerf("doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    text = doctor.as_text(found)
    for word in ("torch", "cpu", "reference", "cuda", "tinycudann", "pycolmap", "OpenEXR", "ffmpeg", "memory", "disk"):
        assert word in text
    for name in found["packages"]:
        assert any(line.split()[1:2] == [name] for line in text.splitlines()), f"{name} and its version run together"
    assert found["torch"]["threads"] >= 1 and found["cpu"]["cores"] >= 1
    for part in found["backends"].values():
        assert isinstance(part["ok"], bool) and part["says"] and "\n" not in part["says"]


def test_doctor_survives_missing_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch now raises ImportError
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(doctor, "_version_of", lambda name: None)
    found = doctor.examine()
    assert not found["torch"]["ok"] and not found["backends"]["cpu"]["ok"] and not found["extras"]["ffmpeg"]["ok"]
    assert "pip install" in doctor.as_text(found)


@pytest.mark.parametrize(
    ("torch_cuda", "available", "driver", "compiler", "said"),
    [
        ("13.0", True, (13, 0), (13, 0), "Card, sm_90, driver for CUDA 13.0, NVRTC 13.0; kernels compile at first use"),
        ("13.0", False, (12, 8), (13, 0), "torch is built for CUDA 13.0, newer than what the driver runs (CUDA 12.8)"),
        ("12.8", True, (12, 8), (13, 0), "NVRTC 13.0 is newer than what the driver runs (CUDA 12.8)"),
        ("12.8", True, (13, 0), None, "NVRTC is not: pip install 'nerf-reconstruct[cuda13]' (driver for CUDA 13.0"),
        (None, False, None, None, "this torch has no CUDA"),
    ],
)
def test_doctor_compares_torch_driver_and_nvrtc(
    torch_cuda: str | None,
    available: bool,
    driver: tuple[int, int] | None,
    compiler: tuple[int, int] | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from nerf.kernels import nvrtc

    card = type("P", (), {"name": "Card", "major": 9, "minor": 0, "multi_processor_count": 2})
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    for name, value in (("is_available", available), ("current_device", 0), ("get_device_properties", card)):
        monkeypatch.setattr(torch.cuda, name, lambda *ignored, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    monkeypatch.setattr(nvrtc, "driver_version", lambda: driver)
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: compiler)
    monkeypatch.setattr(nvrtc, "find", nvrtc.find.__wrapped__)  # without what this machine's answer was
    part = doctor.examine()["backends"]["cuda"]
    assert said in part["says"] and part["ok"] == (available and compiler == driver)


def test_doctor_says_why_there_is_no_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"backend": "reference", "variant": None, "reason": "no compiler was found when this was installed"}
    monkeypatch.setattr("nerf.kernels.describe", lambda: missing)
    part = doctor.examine()["backends"]["cpu"]
    assert not part["ok"] and "no compiler was found" in part["says"] and "reinstall" in part["says"]
