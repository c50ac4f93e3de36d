"""Compiles every CUDA source for every architecture with NVRTC, which needs no GPU: `python .ci/compile_cuda.py`.

NVRTC comes from the package nvidia-cuda-nvrtc; it is called through ctypes, so that nothing else is needed.
"""

import ctypes
import importlib.metadata
import sys
from pathlib import Path

ARCHITECTURES = (75, 80, 86, 89, 90)
SOURCES = Path(__file__).resolve().parent.parent / "nerf" / "kernels" / "src"


def load_nvrtc() -> ctypes.CDLL:
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name.startswith("libnvrtc.so"):
                return ctypes.CDLL(str(file.locate()))
    sys.exit("NVRTC is not installed: pip install 'nvidia-cuda-nvrtc>=13,<14'")


def compile_one(nvrtc: ctypes.CDLL, path: Path, architecture: int) -> str | None:
    """The compiler's words if it failed, else None."""
    options = [f"--gpu-architecture=sm_{architecture}", "--std=c++17", f"--include-path={path.parent}"]
    program = ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), path.read_bytes(), path.name.encode(), 0, None, None)
    assert created == 0, f"nvrtcCreateProgram returned {created}"
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    result = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    cubin = ctypes.c_size_t()
    if result == 0 and (nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(cubin)) != 0 or cubin.value == 0):
        result = -1
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return None if result == 0 else log.value.decode(errors="replace") or f"error {result}"


def main() -> int:
    sources = sorted(SOURCES.glob("*.cu"))
    if not sources:
        print("no CUDA sources yet (nerf/kernels/src/*.cu): nothing was compiled")
        return 0
    nvrtc = load_nvrtc()
    failures = 0
    for path in sources:
        for architecture in ARCHITECTURES:
            error = compile_one(nvrtc, path, architecture)
            print(f"{path.name} sm_{architecture}: {'compiled' if error is None else 'FAILED'}", flush=True)
            if error is not None:
                print(error)
                failures += 1
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
