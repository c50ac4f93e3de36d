"""NVRTC, the compiler of CUDA sources that is a library: found where pip, torch or a toolkit put it, and called by its
C functions. Needs no GPU, no driver and no other package."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch

NEWEST, OLDEST = 13, 12  # of CUDA, by the number in the library's name


class CompileError(Exception):
    """What the compiler says of a source that it refuses, or why it failed."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The library that fits torch's CUDA, else the newest; None where there is none that loads."""
    for path in _candidates():
        try:
            found = ctypes.CDLL(path)
        except OSError:
            continue
        pointer = ctypes.c_void_p
        found.nvrtcGetErrorString.restype = ctypes.c_char_p
        found.nvrtcCreateProgram.argtypes = [pointer, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, pointer, pointer]
        found.nvrtcCompileProgram.argtypes = [pointer, ctypes.c_int, pointer]
        for of in ("ProgramLog", "CUBIN", "PTX"):
            getattr(found, f"nvrtcGet{of}Size").argtypes = [pointer, pointer]
            getattr(found, f"nvrtcGet{of}").argtypes = [pointer, pointer]
        return found
    return None


def _candidates() -> Iterator[str]:
    """Files to try, those of torch's own CUDA first; at last what the system's loader finds by name."""
    majors = list(range(NEWEST, OLDEST - 1, -1))
    if torch.version.cuda is not None:
        own = int(torch.version.cuda.split(".")[0])
        majors.sort(key=lambda major: major != own)
    spec = find_spec("nvidia")  # a folder that many packages share
    roots = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    toolkit = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    for major in majors:
        folders = [root / f"cu{major}" / "lib" for root in roots] + [root / "cuda_nvrtc" / "lib" for root in roots]
        for folder in (*folders, Path(torch.__file__).parent / "lib", toolkit / "lib64"):
            if (path := folder / f"libnvrtc.so.{major}").is_file():
                yield str(path)
        yield f"libnvrtc.so.{major}"


def version() -> tuple[int, int] | None:
    """Its CUDA version, None where it is missing."""
    found, major, minor = library(), ctypes.c_int(), ctypes.c_int()
    if found is None or found.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)):
        return None
    return major.value, minor.value


def architectures() -> list[int]:
    """What it compiles for: compute capabilities, as 90. Raises CompileError."""
    found, n = _needed(), ctypes.c_int()
    _check(found.nvrtcGetNumSupportedArchs(ctypes.byref(n)))
    numbers = (ctypes.c_int * n.value)()
    _check(found.nvrtcGetSupportedArchs(numbers))
    return list(numbers)


def compiled(source: bytes, name: str, options: list[str], kind: str) -> tuple[bytes, str]:
    """(code, the compiler's words) of a source; kind: "CUBIN" or "PTX". Raises CompileError."""
    found, program = _needed(), ctypes.c_void_p()
    _check(found.nvrtcCreateProgram(ctypes.byref(program), source, name.encode(), 0, None, None))
    try:
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = found.nvrtcCompileProgram(program, len(options), arguments)
        words = _text(program, "ProgramLog").decode(errors="replace").strip("\0 \n")
        if status:
            raise CompileError(words or _words(status))
        return _text(program, kind), words
    finally:
        found.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, of: str) -> bytes:
    found, size = _needed(), ctypes.c_size_t()
    _check(getattr(found, f"nvrtcGet{of}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(max(size.value, 1))
    _check(getattr(found, f"nvrtcGet{of}")(program, text))
    return text.raw[: size.value]


def _needed() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise CompileError("NVRTC is not installed")
    return found


def _check(status: int) -> None:
    if status:
        raise CompileError(_words(status))


def _words(status: int) -> str:
    return _needed().nvrtcGetErrorString(status).decode()
