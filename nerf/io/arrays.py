"""NumPy's files: no pickles, and no more memory than the file holds, whatever shape its header says. And arrays that
lie in an unnamed file."""

from __future__ import annotations

import itertools
import math
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nerf.errors import UserError, brief

DEFLATE = 1032  # bytes that one byte can stand for at most
_DAMAGED = "the file is damaged, write it again or remove it"


def read_npy(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array of a .npy file, in memory or mapped; UserError where it is none."""
    try:
        # mapped first: numpy compares the length of the file, and takes memory for what the header says otherwise
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(mapped, np.ndarray):
            raise ValueError("it holds several arrays")
        return mapped if mmap_mode else np.array(mapped)
    except Exception as e:  # numpy raises whatever its parser of headers comes upon
        raise UserError(f"{path}: cannot be read as a NumPy array ({brief(e)}): {_DAMAGED}") from e


def read_npz(path: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, those whose names begin so; UserError where it is none, or says that it holds
    more than its length allows."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            for name in filter(lambda name: name.startswith(prefixes), archive.namelist()):
                with archive.open(name) as member:
                    if _bytes_of(member) > DEFLATE * size:
                        raise ValueError(f"{name} says that it is larger than the file can hold")
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files if name.startswith(prefixes)}
    except Exception as e:  # as above
        raise UserError(f"{path}: cannot be read as a .npz of NumPy arrays ({brief(e)}): {_DAMAGED}") from e


def on_disk(arrays: Iterable[np.ndarray], folder: Path) -> list[np.ndarray]:
    """Arrays of one type as parts, not to be written to, of an unnamed file in the folder, which is gone with them: the
    system takes its memory back when others need it. One array at a time is in memory while they are made.

    >>> [part.tolist() for part in on_disk([np.zeros((0, 2)), np.ones((1, 2))], Path("."))]
    [[], [[1.0, 1.0]]]
    """
    shapes, dtype = [], np.dtype(np.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        for array in arrays:
            shapes.append(array.shape)
            dtype = array.dtype
            file.write(np.ascontiguousarray(array).data)
        file.flush()
        sizes = [math.prod(shape) for shape in shapes]
        whole = np.memmap(file, dtype, "r") if sum(sizes) else np.zeros(0, dtype)
        starts = itertools.accumulate(sizes, initial=0)
        return [
            whole[start : start + math.prod(shape)].reshape(shape) for start, shape in zip(starts, shapes, strict=False)
        ]


def _bytes_of(member: Any) -> int:
    """That the header of a .npy file says its array takes."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read[np.lib.format.read_magic(member)](member)
    return math.prod(shape) * dtype.itemsize
