"""The NEON kernels give what the x86-64 ones give: compiled across, run under qemu, compared number by number.

Slow, and skipped without the tools (Debian: apt install g++-aarch64-linux-gnu qemu-user). The march must agree to the
bit; sums may differ by rounding, since other lane counts add in another order.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from nerf.kernels import build

WALK = Path(__file__).with_name("native_walk.cpp")
TOLERANCE = 1e-4  # relative, on sums of up to 1e5 float32 terms whose order differs


def lines_of(compiler: list[str], flags: tuple[str, ...], program: Path, *emulator: str) -> list[list[str]]:
    common = [flag for flag in build.COMMON_FLAGS if flag not in ("-shared", "-fPIC")]
    command = [*compiler, *common, *flags, "-fopenmp", "-static", f"-I{build.SOURCES}", str(WALK), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_arm_agrees_with_x86(tmp_path: Path) -> None:
    native = build.find_compiler()
    across, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if native is None or across is None or emulator is None or platform.machine() != "x86_64":
        pytest.skip("needs x86-64, a C++ compiler, aarch64-linux-gnu-g++ and qemu-aarch64")
    x86 = lines_of(native, build.VARIANTS["x86_64"]["baseline"], tmp_path / "x86")
    arm = lines_of([across], build.VARIANTS["aarch64"]["neon"], tmp_path / "arm", emulator)
    assert [line[:2] for line in x86] == [line[:2] for line in arm] and len(x86) > 15
    for expected, found in zip(x86, arm, strict=True):
        if expected[0] == "bits":
            assert found == expected
        elif expected[0] == "sums":
            size = float(expected[3]) ** 0.5
            assert abs(float(found[2]) - float(expected[2])) <= TOLERANCE * max(size, 1.0), expected[1]
            assert abs(float(found[3]) - float(expected[3])) <= TOLERANCE * float(expected[3]), expected[1]
