"""Fixtures that every test may ask for. The marker `slow` (minutes, or much memory) is left out unless asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import nerf  # noqa: F401  # isort: skip  (first: what it says of waiting threads counts only before torch is loaded)
import emulation
import pytest
import torch

from nerf import kernels

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def sample() -> Path:
    """The bundled scene (Blender format, 60 training and 12 test views, true mesh)."""
    return ROOT / "data" / "sample"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scenes, beside the repository or at $NERF_SHARED_DATA; skips the test where there is none."""
    folder = Path(os.environ.get("NERF_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the real scenes at {folder}")
    return folder


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def backend() -> Iterator[Callable[[str], str]]:
    """Switches the backend, and back after the test."""
    before = kernels.backend()
    yield kernels.use
    kernels.use(before)


@pytest.fixture
def emulated() -> Iterator[None]:
    """The GPU's kernels, compiled for the CPU."""
    if emulation.compiler() is None:
        pytest.skip("needs a C++ compiler")
    with emulation.use():
        yield
