"""Work in threads, no more of them than memory holds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from nerf.io.machine import free_memory

_LEAST = 1 << 30  # bytes that may be taken where the machine does not say what is free


def threads_within(n_bytes: int, most: int) -> int:
    """So many threads whose jobs take n_bytes each as fit into a third of the memory that is free; 1 to `most`."""
    return max(1, min(most, (free_memory() or 3 * _LEAST) // 3 // max(1, n_bytes)))


def in_threads(job: Callable[[int], None], n: int, n_threads: int = 2) -> None:
    """job(0) to job(n - 1), each once; raises the first error in that order."""
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(job, range(n)):
            pass
