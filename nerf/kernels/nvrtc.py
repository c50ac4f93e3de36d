"""The GPU behind the CUDA backend: finding it, compiling our sources for it at first use, and launching kernels.

Compiled by NVRTC (from pip; no toolkit, no headers, no GPU needed), and kept on disk under a hash of sources, options,
architecture and compiler. Launched through the driver's library on torch's current stream.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from nerf.errors import UserError, note
from nerf.io.files import atomic_write
from nerf.io.folders import cache_folder
from nerf.kernels import nvrtc_library

SOURCES = Path(__file__).resolve().parent / "src"
OLDEST = (7, 5)  # compute capability: tensor cores with the products we use

# No contraction and no fast-math: the march must give the CPU's samples to the bit. What may fuse says so (f_fma).
OPTIONS = ("--std=c++17", "--fmad=false", "--device-as-default-execution-space", "--diag-suppress=128")


@dataclass(frozen=True)
class Gpu:
    """The device that kernels run on, as torch counts them."""

    name: str
    device: torch.device
    capability: tuple[int, int]
    n_multiprocessors: int
    shared_bytes: int  # the most that one block may ask for

    @property
    def architecture(self) -> int:
        return self.capability[0] * 10 + self.capability[1]


# ---- what is there -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def find() -> tuple[Gpu | None, str]:
    """The GPU in use, or None and the reason with what to do, in one sentence."""
    built = torch.version.cuda
    if built is None:
        return None, "this torch has no CUDA; install one that has (https://pytorch.org), and nerf-reconstruct[cuda13]"
    if not torch.cuda.is_available():
        driver = driver_version()
        if driver and int(built.split(".")[0]) > driver[0]:
            return None, (
                f"torch is built for CUDA {built}, newer than what the driver runs (CUDA {driver[0]}.{driver[1]}): "
                f"update the driver, or install a torch for CUDA {driver[0]} and nerf-reconstruct[cuda{driver[0]}]"
            )
        return None, f"torch is built for CUDA {built}, but no NVIDIA GPU and driver answer; see what nvidia-smi says"
    try:
        index = torch.cuda.current_device()
        p = torch.cuda.get_device_properties(index)
    except RuntimeError as error:  # it is there, and is broken, or taken by another process
        return None, f"the GPU does not answer ({' '.join(str(error).split())[:200]}); see what nvidia-smi says"
    if (p.major, p.minor) < OLDEST:
        needed = f"the kernels need {OLDEST[0]}.{OLDEST[1]} or newer"
        return None, f"{p.name} has compute capability {p.major}.{p.minor}; {needed}"
    version, driver = nvrtc_version(), driver_version()
    wanted = f"nerf-reconstruct[cuda{driver[0] if driver and driver[0] in (12, 13) else built.split('.')[0]}]"
    if version is None:
        return None, f"{p.name} is there, but NVRTC is not: pip install '{wanted}'"
    if driver and version[0] > driver[0]:
        return None, (
            f"NVRTC {version[0]}.{version[1]} is newer than what the driver runs (CUDA {driver[0]}.{driver[1]}): "
            f"pip uninstall nvidia-cuda-nvrtc, then pip install '{wanted}'"
        )
    shared = getattr(p, "shared_memory_per_block_optin", 64 << 10)
    return Gpu(p.name, torch.device("cuda", index), (p.major, p.minor), p.multi_processor_count, shared), ""


def nvrtc_version() -> tuple[int, int] | None:
    """NVRTC's CUDA version, None where it is missing."""
    return nvrtc_library.version()


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs, None without a driver."""
    try:
        driver, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return None
    if driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10


# ---- compiling -----------------------------------------------------------------------------------------------------


def options(architecture: int, defines: dict[str, int], virtual: bool = False) -> list[str]:
    kind = "compute" if virtual else "sm"
    return [
        f"--gpu-architecture={kind}_{architecture}",
        *OPTIONS,
        *(f"--define-macro={name}={value}" for name, value in sorted(defines.items())),
    ]


def compile_source(
    name: str, architecture: int, defines: dict[str, int], extra: tuple[str, ...] = (), ptx: bool = False
) -> tuple[bytes, str]:
    """(cubin, the compiler's words) of one .cu file; PTX, which the driver compiles, where it is asked for and for a
    newer card than the compiler knows. Raises UserError with the first of the compiler's errors."""
    try:
        supported = nvrtc_library.architectures()
        if architecture not in supported:
            ptx, architecture = True, max(a for a in supported if a <= architecture)
        arguments = [*options(architecture, defines, ptx), f"--include-path={SOURCES}", *extra]
        source = (SOURCES / name).read_bytes()
        return nvrtc_library.compiled(source, name, arguments, "PTX" if ptx else "CUBIN")
    except nvrtc_library.CompileError as error:
        words = str(error)
    first = next((line for line in words.splitlines() if "error" in line), words)
    raise UserError(
        f"the CUDA kernels do not compile for sm_{architecture} ({name}: {first}): "
        "run with --backend cpu, and report this line"
    )


def source_hash(name: str) -> str:
    """Over one .cu file and all headers that it might include."""
    digest = hashlib.sha256()
    for path in sorted([SOURCES / name, *SOURCES.glob("*.h")]):
        if not path.name.startswith("cpu_"):
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def cached(name: str, architecture: int, defines: dict[str, int]) -> bytes:
    """The compiled file from disk, or compiled now, with a line that says so, and stored."""
    key = repr((source_hash(name), options(architecture, defines), nvrtc_version()))
    file = f"{Path(name).stem}-sm{architecture}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.cubin"
    with suppress(UserError):  # there is no place for a cache
        kept, why = _kept(cache_folder() / file)
        if kept is not None:
            return kept
        if why:
            note(f"{cache_folder() / file} is not used: {why}")
    started = time.perf_counter()
    note(f"compiling {name} for this GPU (sm_{architecture}); only the first time")
    code, _ = compile_source(name, architecture, defines)
    statistics["compiled"] += 1
    statistics["compile_seconds"] += time.perf_counter() - started
    try:
        folder = cache_folder()
    except UserError as error:
        note(f"compiled kernels are not kept: {error}")
        return code
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (about := folder.stat()).st_mode & 0o022 and hasattr(os, "getuid") and about.st_uid == os.getuid():
            folder.chmod(about.st_mode & ~0o022)  # from here on what is in it can be believed
        if not (reason := strangers(folder)):
            with atomic_write(folder / file) as temporary:  # several processes may compile the same
                temporary.write_bytes(hashlib.sha256(code).digest() + code)
                temporary.chmod(0o600)
        else:
            note(f"compiled kernels are not kept: {reason}; set NERF_CACHE_DIR to a folder of your own")
    except OSError as error:
        reason = f"cannot be kept in {folder} ({error.strerror})"
        note(f"compiled kernels {reason}; set NERF_CACHE_DIR to another folder")
    return code


def _kept(path: Path) -> tuple[bytes | None, str]:
    """What `cached` stored there, or None and why it is not used ("": there is nothing): it would run on the GPU with
    all that this process may do."""
    try:
        data = path.read_bytes()
        why = strangers(path.parent) or strangers(path)
    except OSError:
        return None, ""
    if why:
        return None, why
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None, "it was altered or damaged after it was written"
    return data[32:], ""


def strangers(path: Path) -> str:
    """Who else could have written a file or folder, "" where nobody could but its user and the system's."""
    if not hasattr(os, "getuid"):  # Windows keeps a user's folders to that user
        return ""
    about = path.stat()
    if about.st_uid not in (os.getuid(), 0):
        return f"{path} belongs to another user"
    if about.st_mode & 0o022:
        return f"{path} can be written to by other users (chmod go-w makes it yours alone)"
    return ""


# Of this process: files compiled (0 after a warm start), seconds that took, kernels launched.
statistics: dict[str, float] = {"compiled": 0, "compile_seconds": 0.0, "launched": 0}


# ---- launching -----------------------------------------------------------------------------------------------------


class Program:
    """One compiled .cu file on the GPU; kernels by name, each taking one struct."""

    def __init__(self, code: bytes, gpu: Gpu) -> None:
        torch.cuda.init()
        self.gpu, self.driver = gpu, _driver()
        self.module, self.context, device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
        self.functions: dict[tuple[str, int], ctypes.c_void_p] = {}
        self.fitting: dict[tuple[str, int, int], int] = {}
        self._check(self.driver.cuInit(0), "starting")
        self._check(self.driver.cuDeviceGet(ctypes.byref(device), gpu.device.index or 0), "looking for the device")
        # The context that torch uses, whichever GPU is current and even while a graph is recorded; never released.
        status = self.driver.cuDevicePrimaryCtxRetain(ctypes.byref(self.context), device)
        self._check(status, "looking for its context")
        with self._entered():
            self._check(self.driver.cuModuleLoadData(ctypes.byref(self.module), code), "loading the kernels")

    def _check(self, status: int, doing: str) -> None:
        if status:
            words = ctypes.c_char_p()
            self.driver.cuGetErrorString(status, ctypes.byref(words))
            said = (words.value or b"unknown").decode()
            raise UserError(f"the GPU failed while {doing} ({said}, CUDA error {status}): run again with --backend cpu")

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Within it our context is the thread's current one: autograd's threads have none until torch launches
        something there, and another GPU may be current."""
        current = ctypes.c_void_p()
        self._check(self.driver.cuCtxGetCurrent(ctypes.byref(current)), "looking for its context")
        if current.value != self.context.value:
            self._check(self.driver.cuCtxSetCurrent(self.context), "entering its context")
        try:
            yield
        finally:
            if current.value not in (None, self.context.value):
                self._check(self.driver.cuCtxSetCurrent(current.value), "leaving its context")

    def _function(self, kernel: str, shared: int) -> ctypes.c_void_p:
        function = self.functions.get((kernel, shared))
        if function is None:
            function = ctypes.c_void_p()
            status = self.driver.cuModuleGetFunction(ctypes.byref(function), self.module, kernel.encode())
            self._check(status, f"looking for the kernel {kernel}")
            if shared > 48 << 10:  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._check(self.driver.cuFuncSetAttribute(function, 8, shared), f"giving {kernel} its shared memory")
            self.functions[kernel, shared] = function
        return function

    def launch(
        self, kernel: str, args: ctypes.Structure, blocks: int, threads: int, rows: int = 1, shared: int = 0
    ) -> None:
        """Run a kernel over blocks x rows on torch's current stream. `args` is copied; its tensors must live until
        then."""
        if blocks <= 0 or rows <= 0:
            return
        if shared > self.gpu.shared_bytes:
            raise UserError(
                f"{kernel} needs {shared >> 10} KB of shared memory, {self.gpu.name} has "
                f"{self.gpu.shared_bytes >> 10}: use a narrower field, or run with --backend cpu"
            )
        pointer = ctypes.c_void_p(ctypes.addressof(args))
        stream = torch.cuda.current_stream(self.gpu.device).cuda_stream
        with self._entered():
            function = self._function(kernel, shared)
            status = self.driver.cuLaunchKernel(
                function, blocks, rows, 1, threads, 1, 1, shared, stream, ctypes.byref(pointer), None
            )
            self._check(status, f"starting {kernel}")
        statistics["launched"] += 1

    def blocks_per_multiprocessor(self, kernel: str, threads: int, shared: int = 0) -> int:
        """How many blocks of a kernel fit on a multiprocessor at once, at least 1."""
        known = self.fitting.get((kernel, threads, shared))
        if known is not None:
            return known
        n = ctypes.c_int()
        with self._entered():
            function = self._function(kernel, shared)
            status = self.driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                ctypes.byref(n), function, threads, ctypes.c_size_t(shared)
            )
            self._check(status, f"asking how {kernel} fits")
        return self.fitting.setdefault((kernel, threads, shared), max(n.value, 1))


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
    driver.cuLaunchKernel.argtypes = [pointer, *[unsigned] * 7, pointer, pointer, pointer]
    driver.cuInit.argtypes = [unsigned]
    driver.cuDeviceGet.argtypes = [pointer, ctypes.c_int]
    driver.cuDevicePrimaryCtxRetain.argtypes = [pointer, ctypes.c_int]
    driver.cuModuleLoadData.argtypes = [pointer, ctypes.c_char_p]
    driver.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
    driver.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    driver.cuOccupancyMaxActiveBlocksPerMultiprocessor.argtypes = [pointer, pointer, ctypes.c_int, ctypes.c_size_t]
    driver.cuCtxGetCurrent.argtypes = driver.cuCtxSetCurrent.argtypes = [pointer]
    driver.cuGetErrorString.argtypes = [ctypes.c_int, pointer]
    return driver


@lru_cache(maxsize=64)
def program(name: str, defines: tuple[tuple[str, int], ...] = ()) -> Program:
    """A compiled source file for the GPU in use, its constants given as sorted (name, value) pairs."""
    gpu, reason = find()
    if gpu is None:
        raise UserError(f"backend cuda is not available: {reason}")
    return Program(cached(name, gpu.architecture, dict(defines)), gpu)
