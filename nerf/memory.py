"""Memory that was freed, given back to the system; the C library keeps pieces of its heap for later otherwise."""

from __future__ import annotations

import ctypes
import sys

_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
_trim = getattr(_libc, "malloc_trim", None)  # glibc alone has it


def give_back() -> None:
    """Return free pages to the system (glibc; elsewhere nothing happens). Takes milliseconds: for the ends of stages
    that leave much behind, so that the next one's peak does not stand on it."""
    if _trim is not None:
        _trim(ctypes.c_size_t(0))
