"""nerf.io.memory: what is freed leaves the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nerf.io import memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists() or memory._trim is None, reason="needs Linux and glibc")
def test_freed_pages_go_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    pieces = [bytes([k % 251]) * 50_000 for k in range(2000)]  # 100 MB on the heap: too small to be mapped one by one
    last = pieces[-1]
    before = resident()
    del pieces
    memory.trim_heap()
    assert resident() < before - 50e6 and sys.getsizeof(last) > 50_000
