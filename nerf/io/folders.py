"""Where results may go and where a trained model lies; asked before anything slow is imported or done."""

from __future__ import annotations

import os
from pathlib import Path

from nerf.errors import UserError


def model_files(path: Path) -> tuple[Path, Path]:
    """(folder, checkpoint file) of a run, given either; UserError where there is none."""
    if path.is_file():
        return path.parent, path
    if not path.exists():
        raise UserError(f"{path}: there is no such folder; expected what `nerf train` or `nerf reconstruct` wrote")
    checkpoint = path / "checkpoint.safetensors"
    if not checkpoint.is_file():
        raise UserError(
            f"{path}: holds no checkpoint.safetensors; expected what `nerf train` or `nerf reconstruct` wrote"
        )
    return path, checkpoint


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
    chosen = os.environ.get("NERF_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nerf"
