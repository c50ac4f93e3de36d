"""What surrounds a launch: the thread's context, addresses that wide accesses can use, recordings that break."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import emulation
import pytest
import torch

from nerf import kernels
from nerf.kernels import cuda_graph, nvrtc, nvrtc_library
from nerf.kernels.bindings import Pointers
from nerf.kernels.cuda_args import NumbersArgs

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from benchmarks import gpu_jobs

OURS, OTHER = 0x1000, 0x2000
CONTEXTS = {0: OURS, 1: OTHER}  # of the GPUs by number


class Driver:
    """The few functions of the driver's library that a launch needs; every thread has its own current context."""

    def __init__(self) -> None:
        self.local = threading.local()
        self.loaded: list[int | None] = []  # the context that was current
        self.launched: list[int | None] = []

    def cuCtxGetCurrent(self, out: Any) -> int:
        out._obj.value = getattr(self.local, "context", None)
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        self.local.context = getattr(context, "value", context)
        return 0

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = index
        return 0

    def cuDevicePrimaryCtxRetain(self, out: Any, device: Any) -> int:
        out._obj.value = CONTEXTS[device.value]
        return 0

    def cuModuleLoadData(self, *_: Any) -> int:
        self.loaded.append(getattr(self.local, "context", None))
        return 0

    def cuModuleGetFunction(self, *_: Any) -> int:
        return 0

    def cuLaunchKernel(self, *_: Any) -> int:
        self.launched.append(getattr(self.local, "context", None))
        return 0


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> nvrtc.Program:
    driver = Driver()
    stream = type("Stream", (), {"cuda_stream": 0})
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream())
    monkeypatch.setattr(nvrtc, "_driver", lambda: driver)
    return nvrtc.Program(b"", emulation.GPU)


def test_a_program_belongs_to_its_gpu_whichever_is_current(program: nvrtc.Program) -> None:
    assert program.driver.loaded == [OURS] and program.context.value == OURS
    second = nvrtc.Program(b"", replace(emulation.GPU, device=torch.device("cuda", 1)))
    second.launch("kernel", NumbersArgs(), 1, 32)
    assert program.driver.loaded[1:] == [OTHER] == program.driver.launched


def test_a_launch_enters_our_context_on_a_thread_that_has_none(program: nvrtc.Program) -> None:
    work = threading.Thread(target=lambda: program.launch("kernel", NumbersArgs(), 1, 32))
    work.start()
    work.join()
    assert program.driver.launched == [OURS]


def test_a_launch_leaves_another_context_as_it_was(program: nvrtc.Program) -> None:
    program.driver.cuCtxSetCurrent(OTHER)
    program.launch("kernel", NumbersArgs(), 1, 32)
    now = ctypes.c_void_p()
    program.driver.cuCtxGetCurrent(ctypes.byref(now))
    assert program.driver.launched == [OURS] and now.value == OTHER


def test_a_view_that_begins_anywhere_is_copied_to_where_wide_loads_can_read_it() -> None:
    numbers = torch.arange(9.0)
    p = Pointers("cpu", 16)
    at = p("numbers", numbers[1:], (8,))
    assert at % 16 == 0 and list((ctypes.c_float * 8).from_address(at)) == numbers[1:].tolist()
    assert p("numbers", numbers, (9,)) == numbers.data_ptr()  # what is aligned is not copied


@pytest.mark.parametrize("skip", [False, True])
def test_adam_steps_views_that_wide_accesses_cannot_take(skip: bool) -> None:
    if emulation.compiler() is None:
        pytest.skip("needs a C++ compiler")
    g = torch.Generator().manual_seed(0)
    numbers = [torch.rand(37, generator=g) for _ in range(4)]
    found = []
    with emulation.use():
        for begin in (0, 1):
            held = [torch.cat([torch.zeros(begin), n]) for n in numbers]
            views = [h[begin : begin + 36].view(9, 4) for h in held]
            half = torch.zeros(begin + 36, dtype=torch.float16)[begin:].view(9, 4)
            launch = mock.patch.object(emulation.Program, "launch", autospec=True, side_effect=emulation.Program.launch)
            with launch as spy:
                state = kernels.AdamState(*views[2:], (0.9, 0.99), 1e-15)
                kernels.adam_step(
                    *views[:2], state, kernels.AdamStep(1e-2, 3, skip_zero_rows=skip, half_copy=half, zero_grad=True)
                )
            found.append([*views, half, [call.args[1] for call in spy.call_args_list]])
    assert found[0].pop() == ["adam_rows_of_four"] and found[1].pop() == ["adam_rows"]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_recording_that_breaks_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending a recording that broke is itself an error on a GPU, which says less than the first."""

    class Graph:
        def register_generator_state(self, random: torch.Generator) -> None:
            pass

        def capture_begin(self, pool: object, capture_error_mode: str) -> None:
            pass

        def capture_end(self) -> None:
            raise RuntimeError("capture invalidated")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)

    def work() -> None:
        raise RuntimeError("the first error")

    with pytest.raises(kernels.NotRecorded, match=r"^the first error"):
        cuda_graph._Graph(work, torch.Generator(), None)
    with pytest.raises(kernels.NotRecorded, match=r"^capture invalidated"):
        cuda_graph._Graph(lambda: None, torch.Generator(), None)


@pytest.mark.parametrize(("cuda", "first"), [("12.4", 12), ("13.0", 13), (None, 13)])
def test_the_compiler_is_that_of_torchs_cuda(
    cuda: str | None, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pip put both, and a toolkit is there; what the system's loader knows comes behind."""
    for place in ("nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "kit/lib64/libnvrtc.so.12"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(b"")
    spec = Namespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(nvrtc_library, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "kit"))
    found = [path.removeprefix(f"{tmp_path}/") for path in nvrtc_library._candidates()]
    of_13 = ["nvidia/cu13/lib/libnvrtc.so.13", "libnvrtc.so.13"]
    of_12 = ["nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "kit/lib64/libnvrtc.so.12", "libnvrtc.so.12"]
    assert found == (of_12 + of_13 if first == 12 else of_13 + of_12)


@pytest.mark.parametrize(
    ("exits", "tools", "failed"),
    [((0, 77, 0, 0), 4, "initcheck"), ((0, 0, 0, 0), 4, ""), ((1, 0, 0, 0), 4, "memcheck"), ((255, 0, 0, 0), 1, "")],
)
def test_every_sanitizer_is_run_and_its_findings_count(
    exits: tuple[int, ...], tools: int, failed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, ran = iter(exits), []

    def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        assert 0 < settings["timeout"] <= 100 and settings["env"]["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        ran.append(command[command.index("--tool") + 1])
        return subprocess.CompletedProcess(command, next(left), "========= one line", "")

    monkeypatch.setattr(gpu_jobs.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu_jobs.subprocess, "run", run)
    found = gpu_jobs.sanitizer(Namespace(small=False, data=Path()), Path(), lambda: 400.0)
    assert (
        ran == list(gpu_jobs.SANITIZERS[:tools])
        and failed in found.get("failed", "")
        and bool(failed) == ("failed" in found)
    )
