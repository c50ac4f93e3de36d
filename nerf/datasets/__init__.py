"""Data sets: load(path) looks at what is on disk, says what it chose and why, and gives a Scene."""

from __future__ import annotations

from pathlib import Path

from nerf.datasets.pixels import PixelStore
from nerf.datasets.scene import Capture, Scene, assemble
from nerf.errors import UserError, note

__all__ = ["PixelStore", "Scene", "load"]


def load(
    path: str | Path, downscale: int = 1, kind: str | None = None, holdout: int | None = None, quiet: bool = False
) -> Scene:
    """Load posed images from a folder (or from a transforms.json itself).

    downscale: whole number, area average. kind: what to read it as when the folder could be several (None: look and choose).
    holdout: None takes the files' own split, else every 8th image in order of names is for testing; 0 holds nothing out; k takes
    every k-th. What was chosen is in Scene.notes, and goes to standard error unless quiet. Raises UserError.
    """
    folder = Path(path)
    if not folder.exists():
        raise UserError(f"{folder}: there is no such folder")
    scene = assemble(_read(folder, kind), downscale, holdout)
    if not quiet:
        for line in scene.notes:
            note(line)
    return scene


def _read(folder: Path, kind: str | None) -> Capture:
    from nerf.datasets.transforms import read_blender, read_transforms

    if (folder / "transforms_train.json").is_file():
        return read_blender(folder)
    if folder.is_file():
        return read_transforms(folder)
    if (folder / "transforms.json").is_file():
        return read_transforms(folder / "transforms.json")
    raise UserError(f"{folder}: looked for transforms_train.json, transforms.json and found none")
