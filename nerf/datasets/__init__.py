"""Data sets: load(path) looks at what is on disk, says what it chose and why, and gives a Scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nerf.datasets.keypoints import Keypoints
from nerf.datasets.named import add_masks
from nerf.datasets.parsed import Capture
from nerf.datasets.posed import Posed, check_frames
from nerf.datasets.scene import Scene, assemble
from nerf.datasets.store import PixelStore
from nerf.errors import UserError, note

__all__ = ["Keypoints", "PixelStore", "Scene", "load", "load_posed"]


KINDS = (
    "blender",
    "transforms",
    "colmap",
    "llff",
    "neus",
    "metashape",
    "realitycapture",
    "opensfm",
    "polycam",
    "record3d",
)
SPACES = ("box", "unbounded", "ndc")


def load(
    path: str | Path,
    downscale: int = 1,
    kind: str | None = None,
    holdout: int | None = None,
    space: str | None = None,
    quiet: bool = False,
    longest: int | None = None,
    masks: str | Path | None = None,
) -> Scene:
    """Load posed images from a folder, or from a JSON file of poses.

    downscale: whole number, area average. longest: pixels that photos have at most on the longer side, an area average
    too (None: as they are, but 1600 where the set would take more than 2 GB). kind: one of KINDS, for a folder that
    could be several (None: look and choose). holdout: None takes the files' own split, else every 8th image in order of
    names is for testing; 0 holds nothing out; k takes every k-th. space: one of SPACES (None: choose). masks: folder
    with NAME.png for each image, black where it is to be ignored (None: those that the files name). What was chosen and
    why is in Scene.notes, and goes to standard error unless quiet. Raises UserError for everything that the user can
    put right.
    """
    folder = Path(path)
    if downscale < 1:
        raise UserError(f"downscale is {downscale}, expected a whole number from 1 up")
    if holdout is not None and holdout < 0:
        raise UserError(f"holdout is {holdout}, expected 0 (hold nothing out) or a whole number from 2 up")
    if longest is not None and longest < 1:
        raise UserError(f"longest is {longest}, expected pixels from 1 up")
    for name, value, known in (("kind", kind, KINDS), ("space", space, SPACES)):
        if value is not None and value not in known:
            raise UserError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    if not folder.exists():
        raise UserError(f"{folder}: there is no such folder")
    capture = _read(folder, kind)
    if masks is not None:
        add_masks(capture, Path(masks))
    scene = assemble(capture, downscale, holdout, space, longest)
    if not quiet:
        for line in scene.notes:
            note(line)
    return scene


def load_posed(path: str | Path, kind: str | None = None) -> Posed:
    """The cameras, files and splits of what `load` reads, checked alike, without decoding any picture."""
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise UserError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if not path.exists():
        raise UserError(f"{path}: there is no such folder")
    capture = _read(path, kind)
    posed = check_frames(capture)
    for line in capture.notes:
        note(line)
    return posed


def kinds_in(folder: Path) -> list[str]:
    """The KINDS that a folder could be read as, the most telling first; empty where it holds no poses."""
    return [kind for kind, (file, _, _) in _readers(folder).items() if file is not None]


def _readers(folder: Path) -> dict[str, tuple[Path | None, Callable[[Path], Capture], str]]:
    """kind: (the file that tells of it or None, its reader, what to say it is), the most telling first."""
    from nerf.datasets.readers import (
        colmap,
        llff,
        metashape,
        neus,
        opensfm,
        polycam,
        realitycapture,
        record3d,
        transforms,
    )

    blender, transforms_json = folder / "transforms_train.json", folder / "transforms.json"
    poses_bounds = folder / "poses_bounds.npy"
    return {
        "blender": (_if_file(blender), lambda f: transforms.read_blender(f.parent), "transforms_train.json (Blender)"),
        "transforms": (
            _if_file(transforms_json),
            transforms.read_transforms,
            "transforms.json (instant-ngp, nerfstudio)",
        ),
        "neus": (
            neus.find_file(folder),
            lambda f: neus.read_neus(f.parent),
            f"{' or '.join(neus.FILES)} (NeuS / IDR)",
        ),
        "colmap": (
            next(iter(colmap.find_models(folder)), None),
            lambda f: colmap.read_colmap(folder),
            "a COLMAP model (cameras and images as .bin or .txt here, in sparse/0 and the like)",
        ),
        "llff": (_if_file(poses_bounds), lambda f: llff.read_llff(f.parent), "poses_bounds.npy (LLFF)"),
        "metashape": (metashape.find_file(folder), metashape.read_metashape, "an .xml of Metashape's cameras"),
        "realitycapture": (
            realitycapture.find_file(folder),
            realitycapture.read_realitycapture,
            "a .csv of RealityCapture's cameras",
        ),
        "opensfm": (opensfm.find_file(folder), opensfm.read_opensfm, "reconstruction.json (OpenSfM, OpenDroneMap)"),
        "polycam": (
            polycam.find_cameras(folder),
            lambda f: polycam.read_polycam(folder),
            "keyframes/cameras (Polycam's raw data)",
        ),
        "record3d": (record3d.find_file(folder), record3d.read_record3d, "metadata with poses (Record3D)"),
    }


def _read(folder: Path, kind: str | None) -> Capture:
    """Choose the reader by what is on disk, most telling file first."""
    if folder.is_file():
        return _read_file(folder)
    found = _readers(folder)
    there = [k for k, (file, _, _) in found.items() if file is not None]
    if kind is not None and kind not in there:
        raise UserError(
            f"{folder}: there is no data of the kind {kind!r} here (found: {', '.join(there) or 'nothing known'})"
        )
    if not there:
        raise UserError(
            f"{folder}: no posed images found; looked for {', '.join(what for _, _, what in found.values())}; "
            "`nerf poses` finds the poses of photos that have none"
        )
    chosen = kind or there[0]
    file, reader, _ = found[chosen]
    assert file is not None
    capture = reader(file)
    if kind is None:
        others = f", preferred to {', '.join(there[1:])}, which is there too" if len(there) > 1 else ""
        capture.notes.insert(0, f"read as {chosen}{others}")
    return capture


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _read_file(file: Path) -> Capture:
    """The poses in one file, by its suffix: the pictures lie where it says, or beside it."""
    from nerf.datasets.readers import metashape, opensfm, realitycapture, record3d, transforms

    suffix = file.suffix.lower()
    if suffix == ".json":
        with open(file, "rb") as f:
            is_list = f.read(64).lstrip().startswith(b"[")
        return opensfm.read_opensfm(file) if is_list else transforms.read_transforms(file)
    readers = {
        ".xml": metashape.read_metashape,
        ".csv": realitycapture.read_realitycapture,
        ".r3d": record3d.read_record3d,
    }
    if suffix not in readers:
        raise UserError(f"{file}: expected a folder, or a .json, .xml, .csv or .r3d file of poses")
    return readers[suffix](file)
