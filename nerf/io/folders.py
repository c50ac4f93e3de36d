"""Where results may go and where a trained model lies; asked before anything slow is imported or done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nerf.errors import UserError, note


def model_files(path: Path) -> tuple[Path, Path]:
    """(folder, checkpoint file) of a run, given either; UserError where there is none."""
    if path.is_file():
        return path.parent, path
    checkpoint = path / "checkpoint.safetensors"
    if not checkpoint.is_file():
        what = "holds no checkpoint.safetensors" if path.exists() else "there is no such folder"
        raise UserError(f"{path}: {what}; expected what `nerf train` or `nerf reconstruct` wrote")
    return path, checkpoint


def open_folder(out: Path, what: str, ours: Sequence[str], resume: bool, overwrite: bool) -> None:
    """Make sure that a `what` (run, fit) may write to `out`, changing nothing in it; UserError where files of `ours`
    are there without resume or overwrite, or files of others (which are never touched) without overwrite."""
    if resume and overwrite:
        raise UserError("--resume continues what is there and --overwrite discards it: give one of them")
    present = [name for name in ours if (out / name).exists()]
    if resume and not present:
        raise UserError(f"{out}: there is nothing to resume; start without --resume")
    if present and not resume and not overwrite:
        raise UserError(
            f"{out} holds another {what} ({', '.join(present[:3])}{', ...' if len(present) > 3 else ''}): "
            f"choose another -o, or give {'--resume to continue it or ' * resumable(out)}--overwrite to discard it"
        )
    if not present and out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise UserError(f"{out} is not empty: choose a new folder with -o, or give --overwrite to write into it")
        note(f"{out} holds no {what}: what is in it stays")
    make_folder(out)


def resumable(out: Path) -> bool:
    """Whether --resume finds something there to go on from: a checkpoint, or a run's poses."""
    return (out / "checkpoint.safetensors").is_file() or (out / "dataset").is_dir()


def make_folder(folder: Path) -> None:
    """Create it, and make sure that files can be written there; one sentence otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".nerf-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise UserError(f"{folder} is a file; expected a folder to write to") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another place with -o") from None


def cache_folder() -> Path:
    """Where compiled kernels are kept: $NERF_CACHE_DIR, else the user's cache folder."""
    if chosen := os.environ.get("NERF_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nerf"
