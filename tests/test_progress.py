"""What is shown while something takes long: on standard error, and only where it is wanted."""

from __future__ import annotations

import builtins
import os
import pty
import re
import subprocess
import sys

import pytest

from nerf.io.progress import Progress, progress

# Two steps that each take longer than a line's time; the second line of the first step shows that nobody need call.
SLOW = """
import time
from nerf.io.progress import Progress
with Progress("training", 2, line_seconds=0.05) as shown:
    time.sleep(0.3)
    shown.update(1, words="PSNR 25.0 dB")
    time.sleep(0.3)
    shown.update(2, words="PSNR 26.0 dB")
print("result")
"""


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_training_and_a_fit_share_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    training = Progress("training")
    training.update(9, 100, "PSNR 25.0 dB  12 k rays/s")
    training.close()
    fitting = Progress("fitting")
    fitting.update(8, 20, "error 1.00e-03")
    fitting.close()
    fitting.update(9, 20, "never seen")  # closed: nothing more is written
    fitting.close()
    out, shown = capsys.readouterr()
    first, second = shown.splitlines()
    assert out == ""
    assert first.startswith("training ") and "9/100 PSNR 25.0 dB  12 k rays/s" in first and "left" in first
    assert second.startswith("fitting ") and "8/20 error 1.00e-03" in second


def test_a_line_tells_share_time_and_what_is_left() -> None:
    clock = Clock()
    shown = Progress("training", shown=False, start=50, clock=clock)
    clock.now += 5.4
    assert shown.line() == "training 50  0:00:05"  # of how many is not known yet
    clock.now += 84.6
    shown.update(150, 250, "PSNR 25.0 dB")  # 100 steps in 90 s, and 100 to go; those of an earlier run do not count
    assert shown.line() == "training 60 % 150/250 PSNR 25.0 dB  0:01:30, 0:01:30 left"
    clock.now += 45
    shown.update(250, words="PSNR 26.0 dB")
    assert shown.line() == "training 100 % 250/250 PSNR 26.0 dB  0:02:15, 0:00:00 left"


def test_a_log_gets_lines_without_any_update() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, text=True, check=True)
    assert done.stdout == "result\n"
    lines = done.stderr.splitlines()
    counts = [re.fullmatch(r"training +(\d+) % (\d)/2(?: PSNR 2\d.0 dB)?  0:00:0\d.*", line) for line in lines]
    assert all(counts), lines
    seen = [match[2] for match in counts if match]
    assert seen == sorted(seen) and seen.count("0") >= 2 and seen.count("1") >= 2 and seen.count("2") == 1
    assert "\r" not in done.stderr and "\x1b" not in done.stderr


def test_a_terminal_gets_a_bar() -> None:
    reads, writes = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=writes, env=environment)
    os.close(writes)
    shown = b""
    try:
        while piece := os.read(reads, 65536):
            shown += piece
    except OSError:  # how Linux says that nobody writes any more
        pass
    assert process.wait() == 0
    assert "━" in shown.decode() and "2/2 PSNR 26.0 dB" in shown.decode() and b"\x1b[" in shown


def test_a_notebook_gets_a_bar_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class ZMQInteractiveShell:  # by this name notebooks are told
        pass

    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    with Progress("training", 4) as shown:
        shown.update(2)
    out, text = capsys.readouterr()
    assert out == "" and text.startswith("\r" + "█" * 15 + "░" * 15 + " training 50 % 2/4 ") and text.count("\n") == 1


def test_nothing_is_shown_that_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training", shown=False, line_seconds=0.01) as shown:
        shown.update(1, 2, "PSNR 3.0 dB")
    assert list(progress([1, 2], "views", show=False)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_items_come_through_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "views")) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err


def test_the_last_state_is_printed_when_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), Progress("views", 3) as shown:  # noqa: PT012 (some work, then its failure)
        shown.update(1)
        raise RuntimeError
    assert "1/3" in capsys.readouterr().err
