"""Standard streams that end nothing: where nobody reads on (a pipe that was closed, a terminal that is gone, a full
disk behind `> log`), what is printed is lost and the work goes on."""

from __future__ import annotations

import os
import sys
from typing import Any


class _Patient:
    """A text stream whose writing never fails; all else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """From now on, and in the libraries that write to the descriptor itself, it leads nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_writable() -> None:
    """Make sure that printing cannot end this process. To be called first thing in a command: descriptors that were
    closed from the start are opened, or the next file would get their number, and a library's words with it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that is no text, a terminal that has no umlauts
        if not isinstance(stream, _Patient):
            setattr(sys, name, _Patient(stream))
