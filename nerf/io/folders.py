"""Where a trained model lies, folders that can be written to, and the cache; asked before anything slow is done."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nerf.errors import UserError, brief

BLOCKS_FILE = "blocks.json"  # of a place that is trained in cells, each a run of its own in a folder below


def model_files(path: Path, blocks: bool = False) -> tuple[Path, Path]:
    """(folder, checkpoint file) of a run, given either; UserError where there is none. blocks: the manifest will do in
    the place of a checkpoint, where the folder is that of cells."""
    if path.name == BLOCKS_FILE:
        path = path.parent
    if path.is_file():
        return path.parent, path
    checkpoint = path / "checkpoint.safetensors"
    manifest = path / BLOCKS_FILE
    if manifest.is_file() and not checkpoint.is_file():
        if blocks:
            return path, manifest
        raise UserError(f"{path} holds cells, of which this takes one at a time: give one such as {path / 'cells/0'}")
    if not checkpoint.is_file():
        what = "holds no checkpoint.safetensors" if path.exists() else "there is no such folder"
        previous = path / "checkpoint.previous.safetensors"
        instead = f"; the one before it is still there: give {previous}" if previous.is_file() else ""
        raise UserError(f"{path}: {what}; expected what `nerf train` or `nerf reconstruct` wrote{instead}")
    return path, checkpoint


_PROBE = ".nerf-"  # and the number of the process


def is_probe(path: Path) -> bool:
    """Whether `make_folder` made this file and was killed before it could remove it."""
    return path.name.startswith(_PROBE) and path.name[len(_PROBE) :].isdecimal()


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as `nerf.io.checkpoint` writes it; it may still be damaged."""
    try:
        with open(path, "rb") as file:
            return b'"format":"nerf-checkpoint"' in file.read(200)
    except OSError:
        return False


def resumable(out: Path) -> bool:
    """Whether --resume finds something there to go on from: a checkpoint, a run's poses, or cells."""
    return has_checkpoint(out) or (out / "dataset").is_dir() or (out / BLOCKS_FILE).is_file()


def has_checkpoint(out: Path) -> bool:
    """Whether a training or a fit in that folder was saved."""
    return any((out / name).is_file() for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"))


def make_folder(folder: Path) -> None:
    """Create it, and make sure that files can be written there; one sentence otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{_PROBE}{os.getpid()}"
        probe.unlink(missing_ok=True)
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        probe.unlink()
    except FileExistsError:
        raise UserError(f"{folder} is a file; expected a folder to write to") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another place with -o") from None


def cache_folder() -> Path:
    """Where compiled kernels are kept: $NERF_CACHE_DIR, else the user's cache folder; UserError where there is none.
    Never a folder that others may write to: what is in it is run on the GPU."""
    if chosen := os.environ.get("NERF_CACHE_DIR"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nerf"
    except RuntimeError:  # $HOME is not set, and the system does not know the user
        raise UserError("there is no home folder to keep a cache in; set NERF_CACHE_DIR to a folder") from None


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for temporary files, removed at the end of the block; UserError where there is no place for one."""
    try:
        folder = tempfile.mkdtemp(prefix="nerf-")
    except OSError as error:
        reason = f"no temporary files can be written ({brief(error)})"
        raise UserError(f"{reason}; set TMPDIR to a folder with room for them") from None
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
