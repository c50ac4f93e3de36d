"""`nerf doctor`: what this machine has, which parts of the package it can use, and what to do about the rest.

Nothing here fails: whatever is missing is a line with its reason. torch is imported only where it is asked about.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from nerf import __version__
from nerf.errors import brief
from nerf.io.machine import _cpu_name, _memory, source_commit, usable_cores

# Optional parts: import name -> (what it is for, how to get it)
_EXTRAS = {
    "pycolmap": ("reading COLMAP models, photos to poses", "pip install pycolmap"),
    "av": ("reading videos", "pip install av"),
    "pillow_heif": ("reading HEIC photos", "pip install pillow-heif"),
    "OpenEXR": ("reading and writing EXR pictures", "pip install OpenEXR"),
    "skimage": ("comparing SSIM in the tests", "pip install scikit-image"),
}
_NEEDED = (
    *("torch", "numpy", "PIL", "imageio", "imageio_ffmpeg", "trimesh", "fast_simplification", "safetensors"),
    *("tyro", "rich"),
)


@dataclass
class DoctorArgs:
    """Say what is there: torch, threads, instruction sets, backends, optional parts, disk and memory."""

    json: bool = False
    """print JSON instead of lines"""


def main(args: DoctorArgs) -> None:
    """`nerf doctor`: prints to standard output, returns normally whatever it finds."""
    found = examine()
    print(json.dumps(found, indent=1) if args.json else as_text(found))


def examine() -> dict[str, Any]:
    """Everything `nerf doctor` says, as a JSON-able dict; each part has "ok" and a sentence "says"."""
    torch_part = _torch()
    memory, available = _memory()
    disk = shutil.disk_usage(Path.cwd())
    return {
        "nerf": {"version": __version__, "commit": source_commit(), "where": str(Path(__file__).resolve().parents[1])},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "cpu": {"name": _cpu_name(), "cores": usable_cores(), "instructions": cpu_instructions()},
        "memory": {"bytes": memory, "available_bytes": available},
        "disk": {"folder": str(Path.cwd()), "free_bytes": disk.free},
        "torch": torch_part,
        "backends": _backends(torch_part),
        "packages": {name: _version_of(name) for name in _NEEDED if name != "torch"},
        "extras": {name: _extra(name, use, how) for name, (use, how) in _EXTRAS.items()} | {"ffmpeg": _ffmpeg()},
    }


def as_text(found: dict[str, Any]) -> str:
    """The dict of `examine` as lines to read: a mark, a name, a sentence."""
    nerf, cpu = found["nerf"], found["cpu"]
    lines = [
        _line(True, "nerf", nerf["version"] + (f", commit {nerf['commit']}" if nerf["commit"] else "")),
        _line(True, "python", f"{found['python']['version']}, {found['python']['executable']}"),
        _line(True, "system", found["system"]),
        _line(
            True,
            "cpu",
            f"{cpu['name']}, {cpu['cores']} cores usable, {' '.join(cpu['instructions']) or 'no SIMD known'}",
        ),
        _line(True, "memory", _of(found["memory"]["bytes"], found["memory"]["available_bytes"], "available")),
        _line(True, "disk", f"{_gigabytes(found['disk']['free_bytes'])} free in {found['disk']['folder']}"),
        _line(found["torch"]["ok"], "torch", found["torch"]["says"]),
        "",
        "backends",
    ]
    lines += [_line(part["ok"], "  " + name, part["says"]) for name, part in found["backends"].items()]
    lines += ["", "needed packages"]
    for name, version in found["packages"].items():
        missing = "missing: pip install -U nerf-reconstruct installs all that is needed"
        lines.append(_line(version is not None, "  " + name, version or missing))
    lines += ["", "optional"]
    lines += [_line(part["ok"], "  " + name, part["says"]) for name, part in found["extras"].items()]
    return "\n".join(lines)


def _line(ok: bool, name: str, says: str) -> str:
    return f"{'yes' if ok else ' - '} {name:<18}{says}"


def _gigabytes(n: int | None) -> str:
    return "unknown" if n is None else f"{n / 1e9:.1f} GB"


def _of(total: int | None, part: int | None, word: str) -> str:
    return _gigabytes(total) + (f", {_gigabytes(part)} {word}" if part is not None else "")


def _version_of(name: str) -> str | None:
    """The version of an importable package, without importing it where its metadata tells."""
    distribution = {
        "PIL": "pillow",
        "imageio_ffmpeg": "imageio-ffmpeg",
        "skimage": "scikit-image",
        "pillow_heif": "pillow-heif",
    }.get(name, name)
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _extra(name: str, use: str, how: str) -> dict[str, Any]:
    version = _version_of(name)
    if version is None:
        return {"ok": False, "says": f"not installed; for {use}: {how}"}
    return {"ok": True, "says": f"{version}, for {use}", "version": version}


def _ffmpeg() -> dict[str, Any]:
    try:
        import imageio_ffmpeg

        return {"ok": True, "says": f"{imageio_ffmpeg.get_ffmpeg_version()}, for videos and 16-bit PNG"}
    except ImportError:
        return {"ok": False, "says": "not installed; for videos: pip install imageio-ffmpeg"}
    except RuntimeError as error:
        return {"ok": False, "says": f"imageio-ffmpeg brings no ffmpeg for this system ({error}); install ffmpeg"}


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken torch fails in many ways; all of them are to be told
        says = (
            f"cannot be imported ({brief(error)}); pip install torch --index-url https://download.pytorch.org/whl/cpu"
        )
        return {"ok": False, "says": says}
    cuda, build = torch.cuda.is_available(), torch.version.cuda
    if build is None:
        kind = "CPU build"
    else:
        kind = f"CUDA {build} build, " + (torch.cuda.get_device_name(0) if cuda else "no usable GPU")
    return {
        "ok": True,
        "says": f"{torch.__version__}, {kind}, {torch.get_num_threads()} threads",
        "version": torch.__version__,
        "cuda_build": build,
        "cuda_available": cuda,
        "threads": torch.get_num_threads(),
    }


def _backends(torch_part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """cpu, reference, cuda, tinycudann: usable or the reason why not, each one line."""
    parts: dict[str, dict[str, Any]] = {}
    if not torch_part["ok"]:
        return {name: {"ok": False, "says": "needs torch"} for name in ("cpu", "reference", "cuda", "tinycudann")}
    try:
        described: dict[str, Any] = import_module("nerf.kernels").describe()
    except Exception as error:
        described = {}
        parts["cpu"] = {"ok": False, "says": f"the kernels cannot tell ({brief(error)})"}
    parts.update(_kernel_parts(described))
    parts.setdefault("reference", {"ok": True, "says": "plain torch, slow, always there"})
    parts.setdefault("cuda", _cuda(described))
    parts.setdefault("tinycudann", _tinycudann(torch_part))
    return parts


def _kernel_parts(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What nerf.kernels.describe() says of the native library, brought to {"ok", "says"}."""
    if not described:
        return {}
    if described.get("backend") != "cpu":
        reason = described.get("reason") or "no native library was found"
        says = f"{reason}; reinstall with a C++ compiler (g++ or clang++) for about 20 times the speed"
        return {"cpu": {"ok": False, "says": says}}
    openmp = f"{described.get('threads')} threads" if described.get("openmp") else "one thread: built without OpenMP"
    says = f"native library for {described.get('variant')}, {described.get('lanes')} floats at once, {openmp}"
    if described.get("bf16"):
        says += ", bfloat16 products"
    return {"cpu": {"ok": True, "says": says, "variant": described.get("variant")}}


def _cuda(described: dict[str, Any]) -> dict[str, Any]:
    """The GPU and the three that must fit each other: torch's CUDA, the driver's, NVRTC's."""

    def dotted(version: tuple[int, int] | None) -> str:
        return "none" if version is None else f"{version[0]}.{version[1]}"

    if "gpu" not in described:
        return {"ok": False, "says": "the kernels cannot tell"}
    versions = f"driver for CUDA {dotted(described['driver_cuda'])}, NVRTC {dotted(described['nvrtc'])}"
    gpu = described["gpu"]
    if gpu is None:
        return {"ok": False, "says": f"{described['no_gpu']} ({versions})"}
    return {"ok": True, "says": f"{gpu['name']}, {gpu['architecture']}, {versions}; kernels compile at first use"}


def _tinycudann(torch_part: dict[str, Any]) -> dict[str, Any]:
    if _version_of("tinycudann") is None:
        return {"ok": False, "says": "not installed; optional, needs an NVIDIA GPU"}
    if not torch_part.get("cuda_available"):
        return {"ok": False, "says": "installed, but it needs a GPU that torch can use"}
    return {"ok": True, "says": "installed; --backend tinycudann uses its hash grid and networks"}


def cpu_instructions() -> list[str]:
    """The instruction sets that matter here, as the processor names them; empty where the system does not tell."""
    wanted = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_bf16", "amx_tile", "asimd", "sve")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            present = set(line.split(":", 1)[1].split())
            return [name for name in wanted if name in present]
    return []
