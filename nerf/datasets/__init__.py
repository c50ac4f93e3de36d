"""Data sets: load(path) looks at what is on disk, says what it chose and why, and gives a Scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nerf.datasets.pixels import PixelStore
from nerf.datasets.scene import Capture, Scene, assemble
from nerf.errors import UserError, note

__all__ = ["PixelStore", "Scene", "load"]


KINDS = ("blender", "transforms", "colmap", "llff", "neus")
SPACES = ("box", "unbounded", "ndc")


def load(
    path: str | Path,
    downscale: int = 1,
    kind: str | None = None,
    holdout: int | None = None,
    space: str | None = None,
    quiet: bool = False,
) -> Scene:
    """Load posed images from a folder, or from a JSON file of poses.

    downscale: whole number, area average. kind: one of KINDS, for a folder that could be several (None: look and
    choose). holdout: None takes the files' own split, else every 8th image in order of names is for testing; 0 holds
    nothing out; k takes every k-th. space: one of SPACES (None: choose). What was chosen and why is in Scene.notes,
    and goes to standard error unless quiet. Raises UserError for everything that the user can put right.
    """
    folder = Path(path)
    if downscale < 1:
        raise UserError(f"downscale is {downscale}, expected a whole number from 1 up")
    if holdout is not None and holdout < 0:
        raise UserError(f"holdout is {holdout}, expected 0 (hold nothing out) or a whole number from 2 up")
    for name, value, known in (("kind", kind, KINDS), ("space", space, SPACES)):
        if value is not None and value not in known:
            raise UserError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    if not folder.exists():
        raise UserError(f"{folder}: there is no such folder")
    scene = assemble(_read(folder, kind), downscale, holdout, space)
    if not quiet:
        for line in scene.notes:
            note(line)
    return scene


def _read(folder: Path, kind: str | None) -> Capture:
    """Choose the reader by what is on disk, most telling file first."""
    from nerf.datasets import colmap, llff, neus, transforms

    if folder.is_file():
        if folder.suffix.lower() != ".json":
            raise UserError(f"{folder}: expected a folder, or a .json file of poses")
        return transforms.read_transforms(folder)
    readers: dict[str, Callable[[], Capture]] = {
        "blender": lambda: transforms.read_blender(folder),
        "transforms": lambda: transforms.read_transforms(folder / "transforms.json"),
        "neus": lambda: neus.read_neus(folder),
        "colmap": lambda: colmap.read_colmap(folder),
        "llff": lambda: llff.read_llff(folder),
    }
    there = {
        "blender": (folder / "transforms_train.json").is_file(),
        "transforms": (folder / "transforms.json").is_file(),
        "neus": neus.find_file(folder) is not None,
        "colmap": bool(colmap.find_models(folder)),
        "llff": (folder / "poses_bounds.npy").is_file(),
    }
    found = [k for k, is_there in there.items() if is_there]
    if kind is not None:
        if not there[kind]:
            raise UserError(
                f"{folder}: there is no data of the kind {kind!r} here (found: {', '.join(found) or 'nothing known'})"
            )
        return readers[kind]()
    if not found:
        raise UserError(
            f"{folder}: no posed images found; looked for transforms_train.json (Blender), transforms.json "
            f"(instant-ngp, nerfstudio), {' or '.join(neus.FILES)} (NeuS / IDR), a COLMAP model (cameras and images as "
            ".bin or .txt here, in sparse/0 and the like) and poses_bounds.npy (LLFF)"
        )
    capture = readers[found[0]]()
    others = f", preferred to {', '.join(found[1:])}, which is there too" if len(found) > 1 else ""
    capture.notes.insert(0, f"read as {found[0]}{others}")
    return capture
