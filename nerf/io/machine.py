"""What this machine is: processor, cores that may be used, memory, versions and the commit of the sources."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from nerf import __version__
from nerf.io import children


def machine() -> dict[str, Any]:
    """What a result needs beside it: processor, cores that this process may use, memory in bytes, system, versions."""
    facts: dict[str, Any] = {"cpu": _cpu_name(), "cores": usable_cores(), "memory_bytes": _memory()[0]}
    facts["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    facts |= {"python": platform.python_version(), "nerf": __version__}
    torch = sys.modules.get("torch")  # whoever measures has imported it
    if torch is not None:
        facts |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if commit := source_commit():
        facts["commit"] = commit
    return facts


def usable_cores() -> int:
    """Cores that this process may run on (a container or taskset may allow fewer than there are)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that are available, within a container's limit; None where the system does not say."""
    return _memory()[1]


def source_commit() -> str | None:
    """The git commit of a source checkout, with "+" when files differ from it; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not (root / "setup.py").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = children.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> tuple[int | None, int | None]:
    """(bytes in all, bytes available), the first cut to a container's limit."""
    try:
        lines = (line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        facts = {name: int(value.split()[0]) * 1024 for name, value in lines}
    except (OSError, ValueError):
        return None, None
    total, available = facts.get("MemTotal"), facts.get("MemAvailable")
    with suppress(OSError, ValueError):  # no cgroup, or the word "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        total = min(total or limit, limit)
        available = min(available or limit, max(0, limit - used))
    return total, available
