"""Ctrl-C, SIGTERM, SIGHUP, closed streams: every end is clean, and what was done is there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_scenes import write_blender

from nerf.cli import main as cli
from nerf.io import checkpoint
from nerf.io.interrupts import Stopped, stoppable, take_signals_back, whole

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_blender(tmp_path / "photos", 8)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_but_not_what_must_be_whole(number: signal.Signals) -> None:
    before, done = signal.getsignal(number), []
    with stoppable(), stoppable():
        with pytest.raises(Stopped) as stopped, whole(), whole():  # noqa: PT012  (what follows the signal is the point)
            signal.raise_signal(number)
            done.append("the rest of the block")
        assert done == ["the rest of the block"] and stopped.value.by == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_the_impatient_are_told_what_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    with stoppable(), pytest.raises(Stopped), whole("the save"):
        signal.raise_signal(signal.SIGINT)
    assert "the save is under way; it stops when that is done" in capfd.readouterr().err


def test_what_is_ignored_stays_ignored() -> None:
    """nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGHUP)
            take_signals_back()
    finally:
        signal.signal(signal.SIGHUP, before)


def start(photos: Path, out: Path, *more: str, steps: int = 40, **options: object) -> subprocess.Popen[str]:
    words = ["train", str(photos), "-o", str(out), "--steps", str(steps), *more]
    command = [sys.executable, "-P", "-m", "nerf", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, text=True, env=environment, cwd=out.parent, **streams)  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_training_that_is_told_to_end_saves(photos: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start(photos, tmp_path / "run", steps=1_000_000)
    assert process.stderr is not None
    said = ""
    while "training" not in said and process.poll() is None:  # its first line, after ten seconds of steps
        said += process.stderr.readline()
    process.send_signal(number)
    said += process.communicate(timeout=120)[1]
    assert process.returncode == 128 + number, said
    assert f"stopped by {number.name}; the same command with --resume continues" in said
    step = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors")[1]["training"]["step"]
    assert f"stopped at step {step}; saved" in said
    assert not (tmp_path / "run" / ".nerf.lock").exists()


def test_nobody_reading_ends_nothing(photos: Path, tmp_path: Path) -> None:
    """Both streams are pipes that are closed at once, as of `| head` and of a terminal that is gone."""
    process = start(photos, tmp_path / "run")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(120) == 0
    assert checkpoint.load(tmp_path / "run" / "checkpoint.safetensors")[1]["training"]["step"] == 40


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_the_streams_or_closed_descriptors_end_nothing(photos: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        assert start(photos, tmp_path / "run", stdout=full, stderr=full).wait(120) == 0
    command = f'"{sys.executable}" -P -m nerf "$@" <&- >&- 2>&-'
    words = ["train", str(photos), "-o", str(tmp_path / "other"), "--steps", "3"]
    done = subprocess.run(
        ["sh", "-c", command, "sh", *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=False
    )
    assert done.returncode == 0
    assert checkpoint.load(tmp_path / "other" / "checkpoint.safetensors")[1]["training"]["step"] == 3


def test_resume_goes_on_from_the_checkpoint_before_a_damaged_one(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(photos), "-o", str(tmp_path / "run"), "--steps", "6"]
    last, previous = tmp_path / "run" / "checkpoint.safetensors", tmp_path / "run" / "checkpoint.previous.safetensors"
    assert cli.run([*words, "--resume"]) == 0  # as a job script calls it every time
    assert "there is no checkpoint yet; training starts from the beginning" in capsys.readouterr().err
    whole_run = last.read_bytes()
    tensors, config = checkpoint.load(last)
    for damage in (lambda: last.unlink(), lambda: last.write_bytes(whole_run[:-9])):
        checkpoint.save(previous, tensors, config)
        checkpoint.previous_path(previous).unlink(missing_ok=True)
        damage()
        assert cli.run([*words, "--resume"]) == 0
        said = capsys.readouterr().err
        assert "going on from the one before it, checkpoint.previous.safetensors" in said
        assert "going on at step 6 of 6" in said
        assert last.read_bytes()[-1000:] == whole_run[-1000:]
    assert json.loads((tmp_path / "run" / "training.json").read_text())["steps"] == 6


def test_a_check_leaves_no_other_handler_of_signals() -> None:
    """pycolmap's own prints a C++ stack and ends the process at once."""
    pytest.importorskip("pycolmap")
    program = f"""
import signal, sys
from nerf.checks.run import check_posed
from nerf.datasets import load_posed
from nerf.io.interrupts import Stopped, stoppable
with stoppable():
    check_posed(load_posed({str(ROOT / "data" / "sample")!r}), seconds=20)
    assert "pycolmap" in sys.modules
    try:
        signal.raise_signal(signal.SIGTERM)
    except Stopped as stop:
        print("stopped by", stop)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout) == (0, "stopped by SIGTERM\n"), ended.stderr
