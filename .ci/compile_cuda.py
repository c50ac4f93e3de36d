"""Compiles every CUDA source for every architecture with NVRTC, which needs no GPU: `python .ci/compile_cuda.py`.

Prints what the compiler reports of each kernel: registers a thread, stack and spilled bytes, and how many warps of it
fit on a multiprocessor. More than a few spilled bytes in the tensor-core (half) path fail, and fewer than eight warps;
the single-precision path, which is there to be exact, may spill. Where nvcc is installed, it compiles once more with
warnings as errors.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nerf.errors import UserError  # noqa: E402
from nerf.kernels import nvrtc  # noqa: E402

SPILLS = 64  # bytes stored and loaded: a few registers that the compiler was short of (the default field has none)
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Of a multiprocessor: warps at most, and KB of shared memory (CUDA's programming guide, compute capabilities). All have
# 65536 registers, handed out to a warp by 256.
MULTIPROCESSORS = {
    75: (32, 64),
    80: (64, 164),
    86: (48, 100),
    89: (48, 100),
    90: (64, 228),
    100: (64, 228),
    120: (48, 100),
}
LEAST_WARPS = 8
THREADS = re.compile(r"^KERNEL\((\w+), \w+, (\d+)( \* WARPS)?\)", re.M)
FIELD_FILES = ("cuda_field.cu", "cuda_render.cu", "cuda_backward.cu")
DEFAULT = {  # the default field (nerf/fields.py)
    "NERF_LEVELS": 8,
    "NERF_FEATURES": 4,
    "NERF_WIDTH": 64,
    "NERF_DENSITY_LAYERS": 2,
    "NERF_COLOR_LAYERS": 3,
    "NERF_SINGLE": 0,
}
REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.S,
)


def jobs() -> list[tuple[str, int, dict[str, int]]]:
    todo = []
    for path in sorted(nvrtc.SOURCES.glob("*.cu")):
        for architecture in ARCHITECTURES:
            staged = {"NERF_STAGE_WEIGHTS": int(architecture >= 80)}
            if path.name in FIELD_FILES:
                todo.append((path.name, architecture, DEFAULT | staged))
                if architecture == 90:
                    todo.append((path.name, architecture, DEFAULT | {"NERF_SINGLE": 1, "NERF_STAGE_WEIGHTS": 0}))
                    todo.append((path.name, architecture, DEFAULT | staged | {"NERF_LEVELS": 16, "NERF_FEATURES": 2}))
            else:
                todo.append((path.name, architecture, {}))
    return todo


def threads_of(name: str, single: bool) -> dict[str, int]:
    """Threads of a block of each kernel of a file."""
    found = THREADS.findall((nvrtc.SOURCES / name).read_text())
    return {kernel: int(n) * ((4 if single else 8) if warps else 1) for kernel, n, warps in found}


def shared_of(kernel: str, defines: dict[str, int]) -> int:
    """Bytes of shared memory that a block of the default field's kernels is started with (nerf/kernels/cuda.py)."""
    weights = 2 * (32 * 64 + 64 * 16 + 32 * 64 + 64 * 64 + 64 * 16) * defines.get("NERF_STAGE_WEIGHTS", 0)
    if kernel == "field_backward":
        rows = 2 * 16 * 72 * (4 * 4 if defines["NERF_SINGLE"] else 8 * 2)
        return rows + 2 * weights
    return weights if kernel in ("field_forward", "render_forward") else 0


def resident_warps(architecture: int, threads: int, registers: int, shared: int) -> int:
    most, kilobytes = MULTIPROCESSORS[architecture]
    warps = threads // 32
    by_registers = 65536 // (-(-registers * 32 // 256) * 256) // warps
    by_shared = (kilobytes << 10) // (shared + (1 << 10 if architecture >= 80 else 0)) if shared else 32
    return warps * min(most // warps, by_registers, by_shared, 32)


def one(job: tuple[str, int, dict[str, int]]) -> tuple[str, bool]:
    """What to print about one compilation, and whether it is good."""
    name, architecture, defines = job
    shape = ", single" if defines.get("NERF_SINGLE") else f", {defines['NERF_FEATURES']} features" if defines else ""
    title = f"{name} sm_{architecture}{shape}"
    try:
        _, words = nvrtc.compile_source(name, architecture, defines, ("--ptxas-options=-v",))
    except UserError as error:
        return f"{title}: FAILED\n  {error}", False
    lines, good = [title], True
    single = bool(defines.get("NERF_SINGLE"))
    threads = threads_of(name, single)
    for kernel, stack, stores, loads, registers in REPORT.findall(words):
        spills, shared = int(stores) + int(loads), shared_of(kernel, defines)
        warps = resident_warps(architecture, threads[kernel], int(registers), shared)
        lines.append(
            f"  {kernel:<22}{registers:>4} registers, {stack} bytes of stack, {spills} bytes spilled, "
            f"{shared >> 10} KB shared, {warps} warps of {MULTIPROCESSORS[architecture][0]}"
        )
        good = good and (single or (spills <= SPILLS and warps >= min(LEAST_WARPS, threads[kernel] // 32)))
    warnings = [line for line in words.splitlines() if "warning" in line]
    return "\n".join(lines + warnings), good and len(lines) > 1 and not warnings


def with_nvcc(path: Path, architecture: int) -> str | None:
    """nvcc's words where it refuses the source, with warnings as errors."""
    defines = [f"-D{k}={v}" for k, v in DEFAULT.items()]
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            "nvcc",
            "-cubin",
            f"-arch=sm_{architecture}",
            "-std=c++17",
            "--fmad=false",
            "-Werror",
            "all-warnings",
        ]
        command += ["-diag-suppress", "128", *defines, f"-I{nvrtc.SOURCES}", str(path), "-o", f"{scratch}/out.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr[:2000]


def main() -> int:
    if nvrtc.nvrtc_version() is None:
        sys.exit("NVRTC is not installed: pip install 'nvidia-cuda-nvrtc>=13,<14'")
    failures = 0
    with ThreadPoolExecutor(2) as pool:  # the compiler runs outside Python's lock
        for text, good in pool.map(one, jobs()):
            print(text if good else text + "\n  NOT GOOD", flush=True)
            failures += not good
    if shutil.which("nvcc"):
        for path in sorted(nvrtc.SOURCES.glob("*.cu")):
            words = with_nvcc(path, 90)
            print(f"{path.name} with nvcc for sm_90: {'compiled, no warnings' if words is None else words}", flush=True)
            failures += words is not None
    else:
        print("nvcc is not installed: NVRTC alone")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
