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
from nerf.errors import brief, say
from nerf.io.machine import _cpu_name, _memory, source_commit, usable_cores

# Optional parts: import name -> (what it is for, how to get it)
_EXTRAS = {
    "pycolmap": ("reading COLMAP models, photos to poses", "pip install pycolmap"),
    "av": ("reading videos", "pip install av"),
    "pillow_heif": ("reading HEIC photos", "pip install pillow-heif"),
    "OpenEXR": ("reading and writing EXR pictures", "pip install OpenEXR"),
    "h5py": ("reading HDF5 of beamlines", "pip install h5py"),
    "viser": ("the viewer: nerf view, --view", "pip install viser"),
    "rasterio": ("maps: nerf map, nerf mesh --frame map", "pip install rasterio"),
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
    say(json.dumps(found, indent=1) if args.json else as_text(found))


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
    nerf, cpu, memory, disk = found["nerf"], found["cpu"], found["memory"], found["disk"]
    free = memory["available_bytes"]
    about = {
        "nerf": nerf["version"] + (f", commit {nerf['commit']}" if nerf["commit"] else ""),
        "python": f"{found['python']['version']}, {found['python']['executable']}",
        "system": found["system"],
        "cpu": f"{cpu['name']}, {cpu['cores']} cores usable, {' '.join(cpu['instructions']) or 'no SIMD known'}",
        "memory": _gigabytes(memory["bytes"]) + ("" if free is None else f", {_gigabytes(free)} available"),
        "disk": f"{_gigabytes(disk['free_bytes'])} free in {disk['folder']}",
    }
    missing = "missing: pip install -U nerf-reconstruct installs all that is needed"
    packages = {name: {"ok": v is not None, "says": v or missing} for name, v in found["packages"].items()}
    machine = {name: {"ok": True, "says": says} for name, says in about.items()} | {"torch": found["torch"]}
    lists = {"backends": found["backends"], "needed packages": packages, "optional": found["extras"]}
    width = 3 + max(len(name) for parts in (machine, *lists.values()) for name in parts)
    lines = _lines(machine, "", width)
    for title, parts in lists.items():
        lines += ["", title, *_lines(parts, "  ", width)]
    return "\n".join(lines)


def _lines(parts: dict[str, dict[str, Any]], indent: str, width: int) -> list[str]:
    return [f"{'yes' if part['ok'] else ' - '} {indent + name:<{width}}{part['says']}" for name, part in parts.items()]


def _gigabytes(n: int | None) -> str:
    return "unknown" if n is None else f"{n / 1e9:.1f} GB"


def _version_of(name: str) -> str | None:
    """The version of an importable package, without importing it where its metadata tells."""
    distribution = {"PIL": "pillow"}.get(name, name.replace("_", "-"))
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _extra(name: str, use: str, how: str) -> dict[str, Any]:
    if version := _version_of(name):
        return {"ok": True, "says": f"{version}, for {use}", "version": version}
    return {"ok": False, "says": f"not installed; for {use}: {how}"}


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
    gpu = torch.cuda.get_device_name(0) if cuda else "no usable GPU"
    kind, threads = "CPU build" if build is None else f"CUDA {build} build, {gpu}", torch.get_num_threads()
    says = f"{torch.__version__}, {kind}, {threads} threads"
    about = {"version": torch.__version__, "cuda_build": build, "cuda_available": cuda, "threads": threads}
    return {"ok": True, "says": says, **about}


def _backends(torch_part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """cpu, reference, cuda, tinycudann: usable or the reason why not, each one line."""
    if not torch_part["ok"]:
        return {name: {"ok": False, "says": "needs torch"} for name in ("cpu", "reference", "cuda", "tinycudann")}
    try:
        described: dict[str, Any] = import_module("nerf.kernels").describe()
        cpu = _cpu(described)
    except Exception as error:
        described, cpu = {}, {"ok": False, "says": f"the kernels cannot tell ({brief(error)})"}
    reference = {"ok": True, "says": "plain torch, slow, always there"}
    return {"cpu": cpu, "reference": reference, "cuda": _cuda(described), "tinycudann": _tinycudann(torch_part)}


def _cpu(described: dict[str, Any]) -> dict[str, Any]:
    """What nerf.kernels.describe() says of the native library."""
    if described.get("backend") != "cpu":
        reason = described.get("reason") or "no native library was found"
        says = f"{reason}; reinstall with a C++ compiler (g++ or clang++) for about 20 times the speed"
        return {"ok": False, "says": says}
    openmp = f"{described.get('threads')} threads" if described.get("openmp") else "one thread: built without OpenMP"
    says = f"native library for {described.get('variant')}, {described.get('lanes')} floats at once, {openmp}"
    says += ", bfloat16 products" if described.get("bf16") else ""
    return {"ok": True, "says": says, "variant": described.get("variant")}


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
    present = next((line.split(":", 1)[1] for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return [name for name in wanted if name in present.split()]
