"""Processes that this package starts: none imports, or is given, what happens to lie in the user's current folder.

Python puts the current folder before its own library for `-m` and `-c`, so that a json.py among the photos would run.
Children get a safe path where Python has one (3.11), and work in the folder that holds this package, from which it is
imported anyway: that covers Python 3.10, the children's own children, and programs that look for libraries where they
are started. So every path that a child is given must be absolute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[2]


def python(*arguments: str) -> list[str]:
    """The command that runs this Python with `arguments`, as ("-m", "nerf.capture.worker").

    >>> python("-c", "print(1)")[-2:]
    ['-c', 'print(1)']
    """
    return [sys.executable, *(("-P",) if sys.version_info >= (3, 11) else ()), *arguments]


def start(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """`subprocess.Popen` of a command in `HOME`, with an environment from which only absolute folders are imported."""
    return subprocess.Popen(command, **_safe(options))


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, likewise."""
    return subprocess.run(command, **_safe(options))


def _safe(options: dict[str, Any]) -> dict[str, Any]:
    # an empty entry of PYTHONPATH, which a colon at its end makes, is the current folder
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(folder)]
    if HOME.name not in ("site-packages", "dist-packages"):  # a checkout, which may have been found by the folder
        folders.insert(0, str(HOME))
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(folders)}
    return {"cwd": HOME, "env": environment} | options
