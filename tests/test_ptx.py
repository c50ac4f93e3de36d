"""NVRTC's own code for three kinds of GPU, run on the CPU (ptx.py): what a chip is given computes the right numbers.

It shows what the host's compiler cannot: the strings of inline assembly and the order of their operands, branches of
one architecture, the layout of structs, exp as NVIDIA's library has it, that nothing is contracted. It does not show
ptxas, speed, races, the driver.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import emulation
import ptx
import pytest
import torch

from nerf.kernels import nvrtc

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from benchmarks import cuda_checks as checks
from benchmarks import cuda_step_checks as step_checks

pytestmark = pytest.mark.skipif(
    emulation.compiler() is None or nvrtc.nvrtc_version() is None,
    reason="needs a C++ compiler and NVRTC: pip install nvidia-cuda-nvrtc",
)
ARCHITECTURES = (75, 80, 90)
SMALL = {"width": 32, "n_features": 16}
CASES: dict[str, Callable[[], Iterator[checks.Row]]] = {
    "march": lambda: checks.check_march(300),
    "Adam": lambda: checks.check_adam(200),
    "numbers": checks.check_numbers,
    "draw": lambda: step_checks.check_draw(100),
    "learn": lambda: step_checks.check_learn(True, 20, 0.1, **SMALL),
    "hash grid": lambda: checks.check_hashgrid(100, ((3, 4), (1, 1))),
    "field, half": lambda: checks.check_field(True, 50, **SMALL),
    "render, half": lambda: checks.check_render(True, 40, 0.06, **SMALL),
    "deterministic": lambda: checks.check_deterministic(40, **SMALL),
}
ONCE: dict[str, Callable[[], Iterator[checks.Row]]] = {  # for one architecture
    "stops": lambda: checks.check_stops(4, **SMALL),
    "field, half, default": lambda: checks.check_field(True, 64),
    "render, half, 2 features": lambda: checks.check_render(True, 20, 0.1, features=2, **SMALL),
    "render, half, other depths": lambda: checks.check_render(True, 20, 0.1, layers=(3, 1), **SMALL),
    "field, single": lambda: checks.check_field(False, 20, **SMALL),
    "render, single": lambda: checks.check_render(False, 16, 0.12, **SMALL),
}


def wrong(rows: list[checks.Row]) -> list[str]:
    assert rows
    return [f"{what}: {error:.2g}, allowed {limit:.2g}" for what, error, limit in rows if not error <= limit]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_compiled_kernels_give_what_the_reference_gives(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them: the march is the CPU library's to the bit."""
    launched: set[str] = set()
    real = emulation.Program.launch
    names = lambda self, kernel, *more, **named: (launched.add(kernel), real(self, kernel, *more, **named))  # noqa: E731
    monkeypatch.setattr(emulation.Program, "launch", names)
    found: dict[str, list[str]] = {}
    with emulation.use(architecture):
        for name, check in CASES.items():
            found |= {name: bad} if (bad := wrong(list(check()))) else {}
    assert not found
    sources = "".join(path.read_text() for path in nvrtc.SOURCES.glob("*.cu"))
    assert launched == set(re.findall(r"^KERNEL\((\w+),", sources, re.M))


@pytest.mark.parametrize("name", ONCE)
def test_other_compilations_give_what_the_reference_gives(name: str) -> None:
    with emulation.use(90):
        assert not wrong(list(ONCE[name]()))


KERNEL = """
.visible .entry kernel(
	.param .align 8 .b8 kernel_param_0[8]
)
.maxntid 32, 1, 1
{{
	.reg .b32 	%r<4>;
	.reg .f32 	%f<4>;
	.reg .b64 	%rd<2>;
	ld.param.u64 	%rd1, [kernel_param_0];
	ld.global.f32 	%f1, [%rd1];
	{instruction}
	st.global.f32 	[%rd1+4], %f2;
	ret;
}}
"""


def computed(instruction: str, x: float) -> float:
    """What one instruction makes of a number."""
    code = emulation.RUNTIME.read_text() + ptx.translate(KERNEL.format(instruction=instruction))
    program = emulation.Program(emulation.build_library("one", code.replace("#pragma once", ""), (), ("-w",)))
    numbers, args = torch.tensor([x, 0.0]), OnePointer()
    args.at = numbers.data_ptr()
    program.launch("kernel", args, 1, 32)
    return float(numbers[1])


class OnePointer(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p)]


def test_an_instruction_is_done_as_it_is_named() -> None:
    assert computed("neg.f32 %f2, %f1;", 3.0) == -3.0
    assert computed("{ cvt.rzi.s32.f32 %r1, %f1; shr.s32 %r1, %r1, 1; cvt.rn.f32.s32 %f2, %r1; }", -5.9) == -3.0
    assert computed("cvt.rn.f16x2.f32 %r1, %f1, 0f3F800000; mov.b32 %f2, %r1;", 0.0) == 0x3C00 * 2.0**-149
    for refused in ("add.f32 %f2, %f1, %f1;", "tanh.approx.f32 %f2, %f1;", "shfl.sync.up.b32 %r1, %r1, 1, 0, -1;"):
        with pytest.raises(ptx.NotTranslated, match=refused.split()[0]):
            computed(refused, 1.0)
