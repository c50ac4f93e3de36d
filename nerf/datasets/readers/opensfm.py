"""Reader of OpenSfM and OpenDroneMap: reconstruction.json and a folder of photos.

Frame. A shot's rotation (axis times angle, radians) and translation take the world to the camera, an OpenCV one (x
right, y down, z forward). The world is OpenSfM's: metres, and, where the photos have GPS, x east, y north, z up about
`reference_lla`. OpenDroneMap, once it is done, has moved that to reconstruction.topocentric.json, and its
reconstruction.json is in UTM coordinates less an offset, which the second line of odm_georeferencing/coords.txt states
("WGS84 UTM 32N" or "EPSG:..." is in the first). Intrinsics are in units of the larger side, with the origin in the
middle of the picture.
"""

from __future__ import annotations

import re
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
from nerf.geometry.geodesy import Georeference
from nerf.geometry.lenses import FISHEYE, OPENCV, PERSPECTIVE
from nerf.geometry.rotations import rotations_of
from nerf.io.text import lines_of

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
    parsed = ParsedScene("opensfm", home, frames, notes, points=_points(best, notes))
    parsed.georeference = _place(file, best, home, notes)
    return parsed


def _place(file: Path, reconstruction: dict[str, Any], home: Path, notes: list[str]) -> Georeference | None:
    """Where the world stands on the earth: by `reference_lla`, in the file or in reference_lla.json beside it, or by
    OpenDroneMap's coords.txt; None where nothing says, or what does says nothing (latitude and longitude 0)."""
    if file.name == "reconstruction.json" and file.with_name("reconstruction.topocentric.json").is_file():
        return _odm_place(home, notes)
    beside, lla = file.with_name("reference_lla.json"), reconstruction.get("reference_lla")
    if lla is None and beside.is_file():
        lla = parse_json(beside)
    if lla is None:
        return None
    if not isinstance(lla, dict):
        raise UserError(f"{file}: reference_lla is no object with latitude, longitude and altitude")
    where = f"{file.name}, reference_lla"
    lat, lon, alt = (finite(lla.get(key, 0.0), key, where) for key in ("latitude", "longitude", "altitude"))
    return None if lat == lon == 0 else Georeference(origin=(lat, lon, alt))


def _odm_place(home: Path, notes: list[str]) -> Georeference | None:
    places = [home / "odm_georeferencing" / name for name in ("coords.txt", "odm_georeferencing_model_geo.txt")]
    file = next(filter(Path.is_file, places), None)
    if file is None:
        notes.append(
            "OpenDroneMap has moved this reconstruction to UTM, and odm_georeferencing/coords.txt, which says where, "
            "is gone: --georeference EPSG:CODE,X,Y,0 states it"
        )
        return None
    lines = lines_of(file.read_bytes())[:2]
    utm = re.fullmatch(r"WGS84\s+UTM\s+(\d{1,2})([NS])", lines[0].strip(), re.IGNORECASE) if lines else None
    epsg = re.fullmatch(r"EPSG:(\d+)", lines[0].strip(), re.IGNORECASE) if lines else None
    shift = lines[1].split()[:2] if len(lines) > 1 else []
    if (utm is None and epsg is None) or len(shift) != 2:
        raise UserError(f"{file}: expected a line 'WGS84 UTM 32N' or 'EPSG:25832', and one with two offsets")
    code = int(epsg[1]) if epsg else int(utm[1]) + (32600 if utm[2].upper() == "N" else 32700)  # type: ignore[index]
    return Georeference.parse(f"EPSG:{code},{shift[0]},{shift[1]},0", str(file))


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
