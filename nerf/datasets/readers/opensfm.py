"""Reader of OpenSfM and OpenDroneMap: reconstruction.json and a folder of photos.

Frame. A shot's rotation (axis times angle, radians) and translation take the world to the camera, an OpenCV one (x
right, y down, z forward). The world is OpenSfM's: metres, and, where the photos have GPS, x east, y north, z up about
`reference_lla`. Intrinsics are in units of the larger side, with the origin in the middle of the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerf.datasets.named import find_named
from nerf.datasets.parsed import Frame, Lens, ParsedScene, panorama
from nerf.datasets.readers import reader
from nerf.datasets.readers.transforms import finite, is_list, numbers, parse_json
from nerf.errors import UserError
from nerf.geometry.cameras import OPENGL_FROM_OPENCV
from nerf.geometry.lenses import FISHEYE, OPENCV, PERSPECTIVE
from nerf.geometry.rotations import rotations_of

_PLACES = ("reconstruction.json", "opensfm/reconstruction.json")

# projection_type -> our model and the coefficients that it has; all others must be zero
_MODELS: dict[str, tuple[int, str]] = {
    "perspective": (OPENCV, "k1 k2"),
    "simple_radial": (OPENCV, "k1"),
    "radial": (OPENCV, "k1 k2"),
    "brown": (OPENCV, "k1 k2 k3 p1 p2"),
    "fisheye": (FISHEYE, "k1 k2"),
    "fisheye_opencv": (FISHEYE, "k1 k2 k3 k4"),
    "fisheye62": (FISHEYE, "k1 k2 k3 k4"),
    "fisheye624": (FISHEYE, "k1 k2 k3 k4"),
}
_SPHERES = ("spherical", "equirectangular")  # a panorama, ahead in its middle, that shows everything
_COEFFICIENTS = ("k1", "k2", "k3", "k4", "p1", "p2")
_UNKNOWN_TO_US = ("k5", "k6", "s0", "s1", "s2", "s3")


@reader(
    "opensfm",
    tells=_PLACES,
    help="reconstruction.json (OpenSfM, OpenDroneMap)",
    file=lambda path: path.suffix.lower() == ".json" and is_list(path),
)
def read_opensfm(file: Path) -> ParsedScene:
    """The reconstruction with the most shots in reconstruction.json, with its points."""
    data = parse_json(file)
    if not isinstance(data, list) or not all(isinstance(r, dict) for r in data):
        raise UserError(f"{file}: expected OpenSfM's list of reconstructions, got a {type(data).__name__}")
    if not any(isinstance(r.get("shots"), dict) and r["shots"] for r in data):
        raise UserError(f"{file}: holds no reconstruction with shots: OpenSfM placed no photo")
    best = max(data, key=lambda r: len(r.get("shots") or ()))
    shots, cameras = best["shots"], best.get("cameras")
    if not isinstance(cameras, dict):
        raise UserError(f"{file}: the key 'cameras' is missing")
    notes = [f"OpenSfM reconstruction {file.name}: {len(shots)} photos in metres, x east, y north, z up"]
    if "reference_lla" in best:
        lla = best["reference_lla"]
        notes[0] += f" about latitude {lla.get('latitude')}, longitude {lla.get('longitude')}"
    if len(data) > 1:
        sizes = ", ".join(str(len(r.get("shots") or ())) for r in data)
        notes.append(f"of {len(data)} reconstructions ({sizes} photos) the largest was taken")

    home = file.parent.parent if file.parent.name == "opensfm" else file.parent
    images = find_named(home, sorted(shots), str(file))
    lenses: dict[str, Lens] = {}
    frames = []
    for name in sorted(shots):
        where, shot = f"{file.name}, shot {name}", shots[name]
        if not isinstance(shot, dict):
            raise UserError(f"{where}: expected an object with rotation, translation and camera")
        camera = str(shot.get("camera"))
        if camera not in lenses:
            if not isinstance(cameras.get(camera), dict):
                raise UserError(f"{where}: its camera {camera!r} is not among the file's cameras")
            lenses[camera] = _lens(cameras[camera], f"{file.name}, camera {camera}")
        w2c = np.eye(4)
        w2c[:3, :3] = rotations_of(torch.from_numpy(_three(shot, "rotation", where))[None])[0]
        w2c[:3, 3] = _three(shot, "translation", where)
        frames.append(Frame(name, images[name], np.linalg.inv(w2c) @ OPENGL_FROM_OPENCV, lenses[camera], where))
    return ParsedScene("opensfm", home, frames, notes, points=_points(best, notes))


def _three(shot: dict[str, Any], key: str, where: str) -> np.ndarray:
    value = numbers(shot.get(key, "missing"), f"{where}: {key} is missing or no list of numbers")
    if value.shape != (3,) or not np.isfinite(value).all():
        raise UserError(f"{where}: {key} is {shot[key]}, expected three finite numbers")
    return value


def _lens(camera: dict[str, Any], where: str) -> Lens:
    kind = str(camera.get("projection_type"))
    if kind not in (*_MODELS, *_SPHERES):
        raise UserError(
            f"{where}: the projection {kind} is not supported (known: {', '.join((*_MODELS, *_SPHERES))}): load the "
            "undistorted photos and their reconstruction"
        )

    def number(key: str, default: float | None = None) -> float:
        return finite(camera.get(key, default), key, where)

    width, height = int(number("width")), int(number("height"))
    if width < 1 or height < 1:
        raise UserError(f"{where}: the picture's size is {width}x{height}, expected pixels above zero")
    if kind in _SPHERES:
        return panorama(width, height, where)
    model, known = _MODELS[kind]
    unused = [c for c in (*_COEFFICIENTS, *_UNKNOWN_TO_US) if c not in known.split() and abs(number(c, 0.0)) > 1e-9]
    if unused:
        raise UserError(
            f"{where}: {', '.join(unused)} of the projection {kind} are not supported: "
            "use fisheye_opencv or brown, or load the undistorted photos and their reconstruction"
        )
    size = max(width, height)
    fx = number("focal_x" if "focal_x" in camera else "focal") * size
    fy = number("focal_y") * size if "focal_y" in camera else fx
    cx, cy = number("c_x", 0.0) * size + 0.5 * width, number("c_y", 0.0) * size + 0.5 * height
    k = tuple(number(c, 0.0) if c in known.split() else 0.0 for c in _COEFFICIENTS)
    model = PERSPECTIVE if model == OPENCV and not any(k) else model
    return Lens(model, fx, fy, cx, cy, width, height, k)


def _points(reconstruction: dict[str, Any], notes: list[str]) -> np.ndarray | None:
    points = reconstruction.get("points")
    if not isinstance(points, dict) or not points:
        return None
    try:
        xyz = np.array([p["coordinates"] for p in points.values()], dtype=np.float64).reshape(-1, 3)
    except (KeyError, TypeError, ValueError):
        notes.append("its points were not read: some have no coordinates")
        return None
    notes.append(f"{len(xyz)} sparse points")
    return xyz[np.isfinite(xyz).all(axis=1)]
