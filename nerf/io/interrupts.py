"""Ctrl-C, kept until a step of training is whole; SIGTERM, kept from libraries that print their stack on it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def whole_steps() -> Iterator[None]:
    """Ctrl-C waits for the end of the step: half a step could not be continued bit for bit."""
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread only
        yield
        return
    pressed: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def end_quietly_when_told() -> None:
    """SIGTERM ends this process without a word again: importing pycolmap installs a handler that prints a C++ stack."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python does not know of the library's handler
