"""Looking at all photos: in several processes where that pays, until the time is over."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

import numpy as np

from nerf.checks.looks import NAMES, Look, Request, look_at_photo
from nerf.errors import brief
from nerf.io import children
from nerf.io.machine import usable_cores

PROCESSES_FROM = 12  # photos; starting processes takes as long as looking at a few
WORKER = children.python("-m", "nerf.checks.worker")


def look_at_all(requests: Sequence[Request], until: float) -> list[Look | str | None]:
    """What is seen in each photo, or why it cannot be read; None where `until` (time.perf_counter) came first. They are
    taken in such an order that those left out lie evenly among the others."""
    found: list[Look | str | None] = [None] * len(requests)
    order: SimpleQueue[int] = SimpleQueue()
    for i in spread_order(len(requests)):
        order.put(i)
    n_files = sum(request.is_of_files for request in requests)
    if n_files < PROCESSES_FROM or not all(r.is_of_files for r in requests) or not any(r.features for r in requests):
        _look_here(requests, found, order, until)
        return found
    processes = [
        children.start(
            WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for _ in range(max(1, min(8, usable_cores(), n_files // 4)))
    ]
    threads = [threading.Thread(target=_ask, args=(p, requests, found, order, until), daemon=True) for p in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    if stream is not None:
                        stream.close()
    return found


def spread_order(n: int) -> list[int]:
    """0 to n - 1 so that any first part of it lies evenly: every 8th, those between, ..."""
    order = dict.fromkeys(i for step in (8, 4, 2, 1) for i in range(0, n, step))
    return list(order)


def _look_here(
    requests: Sequence[Request], found: list[Look | str | None], order: SimpleQueue[int], until: float
) -> None:
    while time.perf_counter() < until:
        try:
            i = order.get_nowait()
        except Empty:
            return
        try:
            found[i] = look_at_photo(requests[i])
        except Exception as error:  # whatever a damaged picture makes Pillow or ffmpeg raise
            found[i] = brief(error)


def _ask(
    process: subprocess.Popen[bytes],
    requests: Sequence[Request],
    found: list[Look | str | None],
    order: SimpleQueue[int],
    until: float,
) -> None:
    """One process's share."""
    assert process.stdin is not None and process.stdout is not None
    while time.perf_counter() < until:
        try:
            i = order.get_nowait()
        except Empty:
            return
        try:
            process.stdin.write(json.dumps(requests[i].to_json()).encode() + b"\n")
            process.stdin.flush()
            header = json.loads(process.stdout.readline())
            if "error" in header:
                found[i] = str(header["error"])
                continue
            arrays = []
            for kind, shape in header["arrays"]:
                dtype = np.dtype(kind)
                data = process.stdout.read(dtype.itemsize * int(np.prod(shape)))
                arrays.append(np.frombuffer(data, dtype).reshape(shape))
            found[i] = Look(**dict(zip(NAMES, arrays, strict=True)))
        except (OSError, ValueError):  # the process has died: what it was at is not looked at
            return
