"""Memory that was freed, given back to the system; the C library keeps pieces of its heap for later otherwise."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from contextlib import suppress

import numpy as np

from nerf.errors import UserError, brief

_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
_trim = getattr(_libc, "malloc_trim", None)  # glibc alone has it


def trim_heap() -> None:
    """Return free pages to the system (glibc alone), in milliseconds, so that the next stage's peak is lower."""
    if _trim is not None:
        _trim(ctypes.c_size_t(0))


_MEMORY_LIMIT = 1 << 30  # larger stores live in a temporary file


def allocate(n_pixels: int, n_channels: int, dtype: np.dtype) -> np.ndarray:
    """Room for [n_pixels, n_channels]: in memory, or in an unlinked file on disk where it is large."""
    n_bytes = n_pixels * n_channels * dtype.itemsize
    if n_bytes <= _MEMORY_LIMIT:
        return np.empty((n_pixels, n_channels), dtype)
    try:
        handle, name = tempfile.mkstemp(prefix="nerf-pixels-")
        try:
            with os.fdopen(handle, "r+b") as f:
                _reserve(f.fileno(), n_bytes)
                return np.memmap(f, dtype, "r+", shape=(n_pixels, n_channels))
        finally:
            with suppress(OSError):  # Windows: stays in the temporary folder
                os.unlink(name)  # the mapping keeps it alive, and the disk is freed whatever happens to us
    except OSError as error:
        raise UserError(
            f"the images need {n_bytes / 1e9:.1f} GB of disk for temporary files ({brief(error)}): "
            "set TMPDIR to a folder on a larger disk, or load with a larger downscale"
        ) from None


def _reserve(file: int, n_bytes: int) -> None:
    """Make a file so long, its room on the disk taken now: where that ran out later, on writing to the mapping, the
    process would be killed."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, n_bytes)
    else:
        os.ftruncate(file, n_bytes)
