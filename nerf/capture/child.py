"""The parent's side of nerf.capture.worker: starts it, shows how far it is, and says in one sentence how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from nerf.errors import UserError, note
from nerf.io.files import write_file
from nerf.io.progress import Progress

# like `python -m nerf.capture.worker`, but no module is looked for in the current folder: what lies there is data
_START = """
import sys
sys.path[:] = [place for place in sys.path if place]
import runpy
runpy.run_module("nerf.capture.worker", run_name="__main__")
"""
WORKER = [sys.executable, "-c", _START]


def run_worker(job: dict[str, Any], show: bool = True) -> dict[str, Any]:
    """Do a job in a process of its own and return its result; Ctrl-C kills it at once. UserError where it fails."""
    folder = Path(job["folder"], "capture")
    file, log = folder / "job.json", folder / "log.txt"
    write_file(file, json.dumps(job))
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with open(log, "a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*WORKER, str(file)],
            stdin=subprocess.PIPE,  # never written to; closed when this process ends, however that is
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C is for this process, which kills that one
        )
    try:
        result, stage, error = _follow(process, show)
        status = process.wait()
    finally:
        with suppress(ProcessLookupError, PermissionError):  # the group: with all that the process has started
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
    if error is not None:
        raise UserError(f"{error} (while {stage or 'starting'}; more in {log}); the same command again continues")
    if result is None:
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        raise UserError(
            f"pycolmap's process ended with {ended} while {stage or 'starting'} (more in {log}); the same command "
            "again continues from there, and a smaller --longest needs less memory"
        )
    return result


def _follow(process: subprocess.Popen[str], show: bool) -> tuple[dict[str, Any] | None, str, str | None]:
    """Read the worker's lines until it ends: (its result, the last stage it was in, what it says went wrong)."""
    result, stage, error = None, "", None
    assert process.stdout is not None
    with ExitStack() as stack:
        shown = None
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:  # something else that was printed
                continue
            if "stage" in event:
                stage = event["stage"]
                stack.close()
                shown = stack.enter_context(Progress(stage, event["total"], show))
            elif "done" in event and shown is not None:
                shown.update(event["done"])
            elif "note" in event:
                stack.close()
                note(event["note"])
            elif "error" in event:
                error = event["error"]
            elif "result" in event:
                result = event["result"]
    return result, stage, error
