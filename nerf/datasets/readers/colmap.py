"""Reader of COLMAP models, binary and text, through pycolmap."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from nerf.datasets.colmap_models import COLMAP_MODELS, coefficients
from nerf.datasets.keypoints import attach, of_model
from nerf.datasets.named import find_mask, pictures_in, reduced_folders
from nerf.datasets.parsed import Frame, Lens, ParsedScene, sphere
from nerf.datasets.readers import reader
from nerf.errors import UserError, brief
from nerf.geometry.cameras import OPENGL_FROM_OPENCV
from nerf.geometry.lenses import EQUIRECTANGULAR, OPENCV, PERSPECTIVE, RATIONAL
from nerf.io.interrupts import take_signals_back

_PLACES = (".", "sparse", "colmap/sparse", "colmap", "dense/sparse", "distorted/sparse")


def find_models(folder: Path) -> list[Path]:
    """Folders at or below the usual places that hold cameras and images of a COLMAP model."""
    found: list[Path] = []
    for place in _PLACES:
        base = folder / place
        for candidate in [base, *sorted(p for p in base.glob("*") if p.is_dir())] if base.is_dir() else []:
            if _suffix(candidate) and candidate.resolve() not in [f.resolve() for f in found]:
                found.append(candidate)
    return found


def _suffix(model: Path) -> str | None:
    both = (s for s in (".bin", ".txt") if all((model / f"{name}{s}").is_file() for name in ("images", "cameras")))
    return next(both, None)


@reader(
    "colmap",
    tells=lambda folder: folder if find_models(folder) else None,
    help="a COLMAP model (cameras and images as .bin or .txt here, in sparse/0 and the like)",
)
def read_colmap(folder: Path) -> ParsedScene:
    """The largest COLMAP model (most posed images) at or below the folder, with its sparse points."""
    notes, path, model, posed = largest_model(folder)
    images, where_note = find_images(folder, sorted(str(im.name) for im in posed))
    notes.append(where_note)
    frames = []
    for image in sorted(posed, key=lambda im: str(im.name)):
        where = f"{path}, image {image.name}"
        lens = lens_of(model.cameras[image.camera_id], where)
        frame = Frame(str(image.name), images[image.name], pose_of(image, where), lens, where)
        frame.mask = find_mask(folder / "masks", str(image.name))
        frames.append(frame)
    attach(frames, of_model(model))
    points = np.array([p.xyz for p in model.points3D.values()], dtype=np.float64).reshape(-1, 3)
    notes.append(f"COLMAP model {path.relative_to(folder)}: {len(frames)} posed images, {len(points)} sparse points")
    return ParsedScene("colmap", folder, frames, notes, points=points if len(points) else None)


def largest_model(folder: Path) -> tuple[list[str], Path, Any, list[Any]]:
    """Notes, place, pycolmap.Reconstruction and posed images of the COLMAP model with the most posed images."""
    try:
        import pycolmap
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
        suffix = _suffix(path)
        if suffix == ".bin":
            _check_binary(path)
        try:
            model = pycolmap.Reconstruction()
            model.read_binary(str(path)) if suffix == ".bin" else model.read_text(str(path))
            posed = [im for im in model.images.values() if im.has_pose]
            _ = [im.name for im in posed]
        except UnicodeDecodeError as e:
            raise UserError(
                f"{path}: names of its images are not in UTF-8 ({brief(e)}): save images.txt in UTF-8, or give the "
                "photos plain names"
            ) from e
        except Exception as e:
            raise UserError(
                f"{path}: the COLMAP model cannot be read ({' '.join(str(e).split())[:150]}): write it again"
            ) from e
        if suffix == ".txt":
            _check_text(path, model)
        loaded.append((len(posed), path, model, posed))
    _, path, model, posed = max(loaded, key=lambda m: m[0])
    if len(loaded) > 1:
        others = ", ".join(f"{p.relative_to(folder)} ({n} images)" for n, p, _, _ in loaded)
        notes.append(
            f"of {len(loaded)} COLMAP models the largest was taken: {path.relative_to(folder)} (all: {others})"
        )
    return notes, path, model, posed


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


def find_images(folder: Path, names: list[str]) -> tuple[dict[str, Path], str]:
    """({name: path}, a note) in images/, else the least reduced images_N/, input/ and other usual places."""
    others = (folder / place for place in ("input", "dense/images", "rgb", "."))
    for base in filter(Path.is_dir, [folder / "images", *reduced_folders(folder), *others]):
        found = {name: base / name for name in names}
        if not any(p.is_file() for p in found.values()):  # a reduced copy may have another suffix
            by_stem = {p.stem: p for p in pictures_in(base)}
            found = {name: by_stem.get(Path(name).stem, base / name) for name in names}
        if any(p.is_file() for p in found.values()):
            return found, f"images from {base.name if base != folder else folder}/"
    raise UserError(
        f"{folder}: the images of the model (the first is {names[0] if names else 'none'}) are not in images/, "
        "images_N/ or input/"
    )


def _check_binary(model: Path) -> None:
    """Walk the records and compare with the files' lengths: COLMAP's own reader hangs on a file that was cut off."""
    import pycolmap

    n_params = {
        int(model_id.value): len(pycolmap.Camera.create_from_model_name(1, name, 1.0, 1, 1).params)
        for name, model_id in pycolmap.CameraModelId.__members__.items()
        if name != "INVALID"
    }
    if not (model / "points3D.bin").is_file():
        raise UserError(f"{model}: points3D.bin is missing: copy the whole COLMAP model")
    for name in ("cameras", "images", "points3D", "rigs", "frames"):
        file = model / f"{name}.bin"
        if not file.is_file():
            continue
        data = file.read_bytes()
        try:
            end = _walk(name, data, n_params)
        except (struct.error, ValueError, KeyError, IndexError):
            end = len(data) + 1
        if end != len(data):
            raise UserError(
                f"{file}: the file is cut off or damaged ({len(data)} bytes do not hold what it announces): "
                "write it again"
            )


def _walk(name: str, data: bytes, n_params: dict[int, int]) -> int:
    """Where the last record ends; raises where a record does not fit."""
    (count,) = struct.unpack_from("<Q", data, 0)
    at = 8
    if count * 8 > len(data):
        raise ValueError
    for _ in range(count):
        if name == "cameras":
            at += 24 + 8 * n_params[struct.unpack_from("<i", data, at + 4)[0]]
        elif name == "images":
            at = data.index(b"\0", at + 64) + 1
            at += 8 + 24 * struct.unpack_from("<Q", data, at)[0]
        elif name == "points3D":
            at += 51 + 8 * struct.unpack_from("<Q", data, at + 43)[0]
        elif name == "rigs":  # id, number of sensors, the first's type and id; of others also whether a pose follows
            n_sensors = struct.unpack_from("<I", data, at + 4)[0]
            at += 16 if n_sensors else 8
            for _ in range(1, n_sensors):
                at += 9 + 56 * (data[at + 8] != 0)
        else:  # frames: id, rig id, pose, then sensor and data ids
            at += 68 + 16 * struct.unpack_from("<I", data, at + 64)[0]
        if at > len(data):
            raise ValueError
    return at


def _check_text(path: Path, model: Any) -> None:
    """Compare with the counts that COLMAP writes into the comments of its text files."""
    counts = {"cameras": model.num_cameras(), "images": len(model.images), "points3D": model.num_points3D()}
    for name, got in counts.items():
        file = path / f"{name}.txt"
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[:6] if file.is_file() else []:
            words = line.replace(",", " ").replace(":", " ").split()
            if line.startswith("#") and "Number" in words and "of" in words:
                stated = next((int(w) for w in words[words.index("of") + 2 :] if w.isdigit() and len(w) < 19), got)
                if stated != got:
                    raise UserError(
                        f"{file}: announces {stated} {name} and holds {got}: the file is cut off, write it again"
                    )


def beside(folder: Path, frames: list[Frame], world_from_model: np.ndarray | None, notes: list[str]) -> None:
    """Keypoints for poses that came from a COLMAP model which still lies beside them."""
    if not find_models(folder):
        return
    try:
        _, path, model, _ = largest_model(folder)
    except UserError as error:
        notes.append(f"depths of sparse points are not used: {error}")
        return
    n = attach(frames, of_model(model), world_from_model)
    if n == 0:
        notes.append(f"depths of sparse points are not used: {path.relative_to(folder)} names other images")
