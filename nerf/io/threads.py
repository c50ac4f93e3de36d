"""Work in two threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def in_two_threads(job: Callable[[int], None], n: int) -> None:
    """job(0) to job(n - 1), each once; raises the first error in that order."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        for _ in pool.map(job, range(n)):
            pass
