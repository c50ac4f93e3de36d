"""Reader of COLMAP models, binary and text, through pycolmap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nerf.datasets.colmap_models import COLMAP_MODELS, coefficients
from nerf.datasets.keypoints import attach, of_model
from nerf.datasets.named import find_named, reduced_folders, visible
from nerf.datasets.parsed import Frame, Lens, ParsedScene, sphere
from nerf.datasets.readers import reader
from nerf.datasets.readers.colmap_files import read_model, suffix_of
from nerf.errors import UserError
from nerf.geometry.cameras import OPENGL_FROM_OPENCV
from nerf.geometry.lenses import EQUIRECTANGULAR, OPENCV, PERSPECTIVE, RATIONAL
from nerf.io.interrupts import take_signals_back

_PLACES: tuple[str, ...] = (
    *(".", "sparse", "colmap/sparse", "colmap", "dense/sparse", "distorted/sparse"),
    *("dense/0", "dense/0/sparse"),
)


def find_models(folder: Path) -> list[Path]:
    """Folders at or below the usual places that hold cameras and images of a COLMAP model."""
    found: list[Path] = []
    for place in _PLACES:
        base = folder / place
        for candidate in [base, *filter(Path.is_dir, visible(base))] if base.is_dir() else []:
            if suffix_of(candidate) and candidate.resolve() not in [f.resolve() for f in found]:
                found.append(candidate)
    return found


@reader(
    "colmap",
    tells=lambda folder: folder if find_models(folder) else None,
    help="a COLMAP model (cameras and images as .bin or .txt here, in sparse/0 and the like)",
)
def read_colmap(folder: Path) -> ParsedScene:
    """The largest COLMAP model (most posed images) at or below the folder, with its sparse points."""
    notes, path, model, posed = largest_model(folder)
    names = sorted(str(im.name) for im in posed)
    images = find_named(folder, names, str(folder), _homes(path, folder))
    base = next(p for p in images.values() if p.is_file())
    base = next((p for p in base.parents if p.name.startswith("images") and p.is_relative_to(folder)), base.parent)
    notes.append(f"images from {base.relative_to(folder) if base != folder else folder}/")
    frames = []
    for image in sorted(posed, key=lambda im: str(im.name)):
        where = f"{path}, image {image.name}"
        lens = lens_of(model.cameras[image.camera_id], where)
        frame = Frame(str(image.name), images[image.name], pose_of(image, where), lens, where)
        frames.append(frame)
    attach(frames, of_model(model))
    points = np.array([p.xyz for p in model.points3D.values()], dtype=np.float64).reshape(-1, 3)
    notes.append(f"COLMAP model {path.relative_to(folder)}: {len(frames)} posed images, {len(points)} sparse points")
    return ParsedScene("colmap", folder, frames, notes, points=points if len(points) else None)


def largest_model(folder: Path) -> tuple[list[str], Path, Any, list[Any]]:
    """Notes, place, pycolmap.Reconstruction and posed images of the COLMAP model with the most posed images."""
    try:
        import pycolmap  # noqa: F401  (that it is there)
    except ImportError as e:
        raise UserError(f"{folder}: reading COLMAP models needs the package pycolmap: pip install pycolmap") from e
    take_signals_back()
    notes: list[str] = []
    if not (models := find_models(folder)):
        raise UserError(
            f"{folder}: no COLMAP model (cameras and images as .bin or .txt) in it or in sparse/0 and the like"
        )
    loaded = []
    for path in models:
        try:
            model = read_model(path, notes)
            posed = [im for im in model.images.values() if im.has_pose]
        except UserError:
            raise
        except Exception as e:
            raise UserError(
                f"{path}: the COLMAP model cannot be read ({' '.join(str(e).split())[:150]}): write it again"
            ) from e
        loaded.append((len(posed), path, model, posed))
    # that of undistorted photos, where these alone are there, is not to be mistaken for that of the photos as taken
    _, path, model, posed = max(loaded, key=lambda m: (_has_pictures(m[1], folder), m[0], "dense" not in m[1].parts))
    if len(loaded) > 1:
        others = ", ".join(f"{p.relative_to(folder)} ({n} images)" for n, p, _, _ in loaded)
        notes.append(
            f"of {len(loaded)} COLMAP models the largest was taken: {path.relative_to(folder)} (all: {others})"
        )
    return notes, path, model, posed


def _homes(model: Path, folder: Path) -> list[Path]:
    """The folders between a model and the one that was given, in which its photos may lie, the nearest first."""
    return [p for p in (model, *model.parents) if p.is_relative_to(folder) and p != folder]


def _has_pictures(model: Path, folder: Path) -> bool:
    homes = (*_homes(model, folder), folder)
    return any((home / "images").is_dir() or reduced_folders(home) for home in homes)


def pose_of(image: Any, where: str) -> np.ndarray:
    """[4,4] float64 OpenGL camera to world of a pycolmap image."""
    pose = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
    w2c = np.concatenate([np.asarray(pose.matrix(), dtype=np.float64), [[0, 0, 0, 1]]])
    if not np.isfinite(w2c).all():
        raise UserError(f"{where}: the pose holds NaN or infinity: repair or remove this image")
    if abs(np.linalg.det(w2c)) < 1e-6:  # a quaternion of zeros, as none that is written
        raise UserError(f"{where}: the pose is singular: repair or remove this image")
    return np.linalg.inv(w2c) @ OPENGL_FROM_OPENCV


def lens_of(camera: Any, where: str) -> Lens:
    """Of a pycolmap camera."""
    name = str(camera.model_name)
    if name not in COLMAP_MODELS:
        known = ", ".join(COLMAP_MODELS)
        raise UserError(
            f"{where}: the camera model {name} is not supported (known: {known}): undistort the images with `colmap "
            "image_undistorter` and load its output"
        )
    _, model, names = COLMAP_MODELS[name]
    width, height = int(camera.width), int(camera.height)
    if model == EQUIRECTANGULAR:
        return sphere(width, height)
    p = dict(zip(names.split(), map(float, camera.params), strict=True))
    k = coefficients(p)
    if model == RATIONAL and not any(p[name] for name in ("k4", "k5", "k6")):
        model = OPENCV
    if model == OPENCV and not any(k):
        model = PERSPECTIVE
    fx, fy = p.get("f", p.get("fx", 0.0)), p.get("f", p.get("fy", 0.0))
    return Lens(model, fx, fy, p["cx"], p["cy"], width, height, k)


def beside(folder: Path, frames: list[Frame], world_from_model: np.ndarray | None, notes: list[str]) -> None:
    """Keypoints for poses that came from a COLMAP model which still lies beside them."""
    if not find_models(folder):
        return
    try:
        _, path, model, _ = largest_model(folder)
    except UserError as error:
        notes.append(f"depths of sparse points are not used: {error}")
        return
    found = of_model(model)
    if attach(frames, found, world_from_model) == 0 and any(map(len, found.values())):
        notes.append(f"depths of sparse points are not used: {path.relative_to(folder)} names other images")
