"""A GPU made of the host's compiler, for tests: the .cu files compiled with cuda_shim.h, launched on CPU tensors.

`use()` puts it in the place of the real one (nerf.kernels.nvrtc), so that the whole Python side of the CUDA backend
runs as it would: `with emulation.use(): ...`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import ptx
import torch

from nerf import kernels
from nerf.kernels import build, nvrtc

SHIM = Path(__file__).with_name("cuda_shim.h")
RUNTIME = Path(__file__).with_name("ptx_runtime.h")
FIELD_FILES = ("cuda_field.cu", "cuda_render.cu", "cuda_backward.cu")
GPU = nvrtc.Gpu("emulated GPU", torch.device("cpu"), (9, 0), 2, 227 << 10)
# A 16-byte load of what is not 16-byte aligned must fail here, as it does on the chip.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wno-unused")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")


def compiler() -> list[str] | None:
    return build.find_compiler()


BACKWARDS = False  # blocks and warps from the last to the first, see the shim
EXTRA: tuple[str, ...] = ()  # more flags for everything that is compiled from now on


def library(name: str, constants: tuple[tuple[str, int], ...]) -> Path:
    """The shared library of one .cu file; the three that know the field's networks are compiled together."""
    names = FIELD_FILES if name in FIELD_FILES else (name,)
    return build_library(Path(names[0]).stem, "".join(f'#include "{n}"\n' for n in names), constants, EXTRA)


def build_library(stem: str, code: str, constants: tuple[tuple[str, int], ...], flags: tuple[str, ...]) -> Path:
    """Compiled code of an emulated GPU, kept in the temporary folder under a hash of all that went in."""
    compilers = compiler()
    assert compilers is not None
    native = ("-march=native",) if os.uname().machine == "x86_64" else ()  # fused multiply-adds in hardware
    command = [*compilers, *FLAGS, *native, *flags, "-DNERF_EMULATED", *(f"-D{k}={v}" for k, v in constants)]
    sources = [SHIM, *sorted(build.SOURCES.glob("*.h")), *sorted(build.SOURCES.glob("*.cu"))]
    key = hashlib.sha256(repr((command, code)).encode() + b"".join(p.read_bytes() for p in sources)).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"nerf-emulation-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    out = folder / f"{stem}-{key[:20]}.so"
    if out.exists():
        return out
    temporary = out.with_suffix(f".{os.getpid()}.so")
    command += [f"-I{build.SOURCES}", f"-I{SHIM.parent}", "-x", "c++", "-", "-o", str(temporary)]
    done = subprocess.run(command, input=code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    temporary.replace(out)
    return out


class Program:
    """`nvrtc.Program` over such a library."""

    def __init__(self, path: Path) -> None:
        self.emulated = ctypes.CDLL(str(path))

    def launch(
        self, kernel: str, args: ctypes.Structure, blocks: int, threads: int, rows: int = 1, shared: int = 0
    ) -> None:
        if blocks <= 0 or rows <= 0:
            return
        assert shared <= GPU.shared_bytes, f"{kernel} asks for {shared} bytes of shared memory"
        self.emulated.emulated_backwards(int(BACKWARDS))
        size = ctypes.c_longlong(ctypes.sizeof(args))
        getattr(self.emulated, kernel)(blocks, rows, threads, shared, ctypes.c_void_p(ctypes.addressof(args)), size)
        nvrtc.statistics["launched"] += 1

    def blocks_per_multiprocessor(self, kernel: str, threads: int, shared: int = 0) -> int:
        return 1


@lru_cache
def program(name: str, constants: tuple[tuple[str, int], ...] = ()) -> Program:
    return Program(library(name, constants))


@lru_cache
def ptx_program(name: str, constants: tuple[tuple[str, int], ...], architecture: int) -> Program:
    """The same from the code that NVRTC makes for a real GPU, translated (ptx.py)."""
    code = nvrtc.compile_source(name, architecture, dict(constants), ptx=True)[0].decode().strip("\0")
    text = RUNTIME.read_text() + ptx.translate(code)
    flags = ("-fwrapv", "-fno-strict-aliasing", "-w")
    return Program(build_library(f"{Path(name).stem}-sm{architecture}", text.replace("#pragma once", ""), (), flags))


@contextmanager
def use(architecture: int | None = None) -> Iterator[None]:
    """The CUDA backend is chosen, and its GPU is the emulated one. With an architecture (90) it is one of that kind,
    which runs NVRTC's own code instead of what the host's compiler makes of the same sources."""
    real, chosen = (nvrtc.find, nvrtc.program), kernels._chosen
    gpu = GPU
    if architecture is not None:
        shared = GPU.shared_bytes if architecture >= 80 else 64 << 10
        gpu = replace(GPU, capability=divmod(architecture, 10), shared_bytes=shared)

    def made(name: str, constants: tuple[tuple[str, int], ...] = ()) -> Program:
        return program(name, constants) if architecture is None else ptx_program(name, constants, architecture)

    nvrtc.find, nvrtc.program = (lambda: (gpu, "")), made  # type: ignore[assignment]
    try:
        kernels.use("cuda")
        yield
    finally:
        (nvrtc.find, nvrtc.program), kernels._chosen = real, chosen
        kernels.be_deterministic(False)
