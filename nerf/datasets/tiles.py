"""Sets that do not fit into memory: converted once into a file of tiles, which later runs on the same photos use again.

The file lies in nerf-pixels/ beside the poses, or in the user's cache folder where nothing can be written there. An
index beside it says what it was made from; it is written last, so that a file without one was interrupted and is
removed. Nothing is used again after a photo has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerf.datasets.store import PixelStore
from nerf.errors import UserError, note
from nerf.io.arrays import read_npz
from nerf.io.files import atomic_write
from nerf.io.folders import cache_folder, make_folder
from nerf.io.progress import Progress

TILE = 64  # pixels: of 3 bytes 12 KiB, three pages of the disk
FROM = 2 << 30  # bytes; smaller sets stay in memory
FOLDER = "nerf-pixels"
VERSION = 1

Size = tuple[int, int]


def tiled(
    place: Path,
    made_from: list[list[Path | None]],
    settings: dict[str, Any],
    sizes: list[Size],
    n_channels: int,
    dtype: np.dtype,
    decode: Callable[[int], np.ndarray],
    label: str,
    n_threads: int = 2,
) -> PixelStore:
    """The images of the given (height, width), each decoded once by decode(i) -> [h,w,c], as a store in tiles, in the
    data set's folder; made from the files of image i, and by settings (JSON-able), in threads. Of a failure nothing is
    left."""
    about = {
        "format": "nerf-pixels",
        "version": VERSION,
        "tile": TILE,
        "channels": n_channels,
        "type": dtype.name,
        "sizes": [list(size) for size in sizes],
        "settings": settings,
        "files": [[_state(path) for path in paths if path is not None] for paths in made_from],
    }
    name = f"pixels-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"
    for folder in _places(place):
        found = _opened(folder / name, about)
        if found is not None:
            note(f"{label}: those converted before are used again ({folder / name}.bin)")
            return found
    folder = _writable(place)
    with _alone(folder):
        _tidy(folder)
        found = _opened(folder / name, about)  # another process may have made it while this one waited
        return found or _converted(folder / name, about, decode, label, n_threads)


def _converted(
    base: Path, about: dict[str, Any], decode: Callable[[int], np.ndarray], label: str, n_threads: int
) -> PixelStore:
    starts = np.cumsum([0, *(-(-h // TILE) * -(-w // TILE) for h, w in about["sizes"])])
    tile_bytes = TILE * TILE * about["channels"] * np.dtype(about["type"]).itemsize
    n, n_bytes, data = len(about["sizes"]), int(starts[-1]) * tile_bytes, base.with_name(f"{base.name}.bin")
    free = shutil.disk_usage(base.parent).free
    if free < n_bytes + (64 << 20):
        raise _full(base.parent, n_bytes, f"which has {free / 1e9:.1f} GB left")
    note(f"{label}: converting {n} once, {n_bytes / 1e9:.1f} GB into {data}; later runs use it again")
    ranges = np.zeros((int(starts[-1]), 2), np.float32)
    try:
        with atomic_write(data) as temporary, open(temporary, "wb") as file:

            def one(i: int) -> None:
                tiles, ranges[starts[i] : starts[i + 1]] = cut(decode(i))
                _write_at(file.fileno(), tiles, int(starts[i]) * tile_bytes)

            with ThreadPoolExecutor(n_threads) as pool, Progress(label, n) as shown:
                for k, _ in enumerate(pool.map(one, range(n)), 1):  # raises the first error in file order
                    shown.update(k)
            os.fsync(file.fileno())  # the index below says that all of it is there
        with atomic_write(base.with_name(f"{base.name}.npz")) as temporary, open(temporary, "wb") as file:
            np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), ranges=ranges)
    except OSError as error:
        raise _full(base.parent, n_bytes, error.strerror or str(error)) from error
    made = _opened(base, about)
    assert made is not None
    return made


def cut(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[h,w,c] as tiles [k,TILE,TILE,c], filled up by repeating the edge, and of each the smallest and largest value of
    the last channel [k,2] (as PixelStore.ranges)."""
    h, w, c = image.shape
    down, across = -(-h // TILE), -(-w // TILE)
    filled = np.pad(image, ((0, down * TILE - h), (0, across * TILE - w), (0, 0)), mode="edge")
    tiles = filled.reshape(down, TILE, across, TILE, c).transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, c)
    last = tiles[..., -1].reshape(len(tiles), -1)
    top = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    span = np.stack([last.min(axis=1), last.max(axis=1)], axis=1).astype(np.float32) / top
    return np.ascontiguousarray(tiles), span


def _write_at(file: int, values: np.ndarray, place: int) -> None:
    """All of it: through the file, not a mapping, for a full disk is an error here and a crash there."""
    view = memoryview(values).cast("B")  # type: ignore[arg-type]
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written


def _opened(base: Path, about: dict[str, Any]) -> PixelStore | None:
    """The store of this name, if it is complete and made from the same."""
    data, index = (base.with_name(f"{base.name}.{suffix}") for suffix in ("bin", "npz"))
    read = _read_index(index)
    if read is None or read[0] != json.loads(json.dumps(about)) or not data.is_file():
        return None
    heights, widths = torch.tensor(about["sizes"]).T.contiguous()
    counts = (-(-heights // TILE)) * (-(-widths // TILE)) * TILE * TILE
    shape = int(counts.sum()), about["channels"]
    if data.stat().st_size != shape[0] * shape[1] * np.dtype(about["type"]).itemsize:
        return None
    memory = np.memmap(data, about["type"], "r", shape=shape)
    return PixelStore(memory, counts.cumsum(0) - counts, heights, widths, TILE, torch.from_numpy(read[1]))


def _read_index(path: Path) -> tuple[dict[str, Any], np.ndarray] | None:
    try:
        content = read_npz(path)
        return json.loads(content["about"].tobytes()), content["ranges"]
    except Exception:  # missing, cut off or another's: not to be used
        return None


def _tidy(folder: Path) -> None:
    """Remove what an interrupted conversion left, and stores whose photos have changed or are gone."""
    for data in [*folder.glob("pixels-*.bin"), *folder.glob(".pixels-*.tmp")]:
        index = data.with_suffix(".npz")
        read = _read_index(index) if data.suffix == ".bin" else None
        if read is not None and all(_unchanged(state) for states in read[0]["files"] for state in states):
            continue
        if read is not None:
            note(f"removed {data}: its photos have changed")
        data.unlink(missing_ok=True)
        index.unlink(missing_ok=True)


def _state(path: Path) -> list[Any]:
    """What tells a file from the one it was."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _unchanged(state: list[Any]) -> bool:
    try:
        return _state(Path(state[0])) == state
    except OSError:
        return False


def _places(place: Path) -> list[Path]:
    """nerf-pixels/ in the data set's folder and, if the user has one, in the cache folder."""
    places = [place / FOLDER]
    with suppress(UserError):
        places.append(cache_folder() / FOLDER)
    return places


def _writable(place: Path) -> Path:
    """The first of the places that can be written to."""
    for folder in _places(place):
        try:
            make_folder(folder)
            return folder
        except UserError as error:
            note(str(error).split(";")[0])
    raise UserError(
        "there is no place for the converted photos; set NERF_CACHE_DIR to a folder on a disk with room for them"
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One conversion in a folder at a time; the lock ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _full(folder: Path, n_bytes: int, why: str) -> UserError:
    return UserError(
        f"the converted photos need {n_bytes / 1e9:.1f} GB in {folder} ({why}): make room there, or take a smaller "
        "--longest or a larger --downscale"
    )
