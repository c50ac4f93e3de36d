"""Ctrl-C, SIGTERM and SIGHUP: the first one stops, and what must be whole (a step, a save) is finished before.

Inside `stoppable()` each of the three raises `Stopped`, wherever the program is; inside `whole()` it waits for the end
of the block.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_SIGNALS = [s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None]


class Stopped(KeyboardInterrupt):
    """The user or the system asks the program to stop; `by` is the signal."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(by)
        self.by = by

    def __str__(self) -> str:
        return "Ctrl-C" if self.by == signal.SIGINT else self.by.name


_depth = 0  # of blocks that must be whole
_pending: list[signal.Signals] = []
_under_way = ""  # what is waited for, said to whoever is impatient


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn the three signals into `Stopped`; one that the caller has ignored (nohup) stays ignored. Nothing is changed
    outside the main thread, to which signals go, and where it is done already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is _handle:
        yield
        return
    before: dict[signal.Signals, Any] = {}
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _handle) or signal.SIG_DFL
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _pending.clear()


@contextmanager
def whole(what: str = "") -> Iterator[None]:
    """What is inside is not stopped half-way. what: say that it is waited for, where that can take a while."""
    global _depth, _under_way
    outer, _depth, _under_way = _under_way, _depth + 1, what or _under_way
    try:
        yield
    finally:
        _depth, _under_way = _depth - 1, outer
    if _depth == 0 and _pending and threading.current_thread() is threading.main_thread():
        by = _pending[0]
        _pending.clear()
        raise Stopped(by)


def pending() -> int:
    """The signal that waits for the end of what is whole; 0 where there is none."""
    return int(_pending[0]) if _pending else 0


def _handle(number: int, frame: object) -> None:
    if _depth == 0:
        raise Stopped(signal.Signals(number))
    if _under_way:  # not through sys.stderr, which may be in the middle of printing
        with suppress(OSError):
            os.write(2, f"\nnerf: {_under_way} is under way; it stops when that is done\n".encode())
    _pending.append(signal.Signals(number))


def take_signals_back() -> None:
    """Importing pycolmap puts a handler in the place of SIGTERM's that prints a C++ stack, and Python does not know of
    it: put back what Python thinks is there."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
