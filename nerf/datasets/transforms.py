"""Readers of JSON poses: Blender / NeRF-synthetic (transforms_train.json, ...) and transforms.json of instant-ngp and nerfstudio."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from nerf.cameras import FISHEYE, OPENCV, PERSPECTIVE
from nerf.datasets.pixels import IMAGE_SUFFIXES
from nerf.datasets.scene import Capture, Frame, Lens
from nerf.errors import UserError
from nerf.space import Similarity

_SPLITS = ("train", "val", "test")


def read_blender(folder: Path) -> Capture:
    """transforms_train.json with, where they are there, transforms_val.json and transforms_test.json."""
    frames: list[Frame] = []
    notes: list[str] = []
    for split in _SPLITS:
        file = folder / f"transforms_{split}.json"
        if file.is_file():
            frames += _frames(file, read_json(file), split, notes)
    if not any(f.split == "train" for f in frames):
        raise UserError(f"{folder}: transforms_train.json is missing or empty, so there is nothing to train on")
    return Capture("blender", folder, frames, notes, space="box")


def read_transforms(file: Path) -> Capture:
    """transforms.json as instant-ngp or nerfstudio write it."""
    data = read_json(file)
    notes: list[str] = []
    frames = _frames(file, data, None, notes)
    return Capture("transforms.json", file.parent, frames, notes)


def read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise UserError(f"{file}: not valid JSON ({e}): the file is cut off or damaged, write it again") from e
    if not isinstance(data, dict):
        raise UserError(f"{file}: holds a {type(data).__name__}, expected an object with the key 'frames'")
    return data


def _frames(file: Path, data: dict[str, Any], split: str | None, notes: list[str]) -> list[Frame]:
    if "frames" not in data:
        raise UserError(f"{file}: the key 'frames' is missing")
    if not isinstance(data["frames"], list) or not all(isinstance(f, dict) for f in data["frames"]):
        raise UserError(f"{file}: 'frames' must be a list of objects")
    frames = []
    for number, entry in enumerate(data["frames"]):
        where = f"{file.name}, frame {number}"
        for key in ("file_path", "transform_matrix"):
            if key not in entry:
                raise UserError(f"{file}: frame {number} lacks the key '{key}'")
        name = str(entry["file_path"])
        where += f" ({name})"
        path = _image_path(file, name, where)
        frames.append(Frame(_tidy(name), path, _matrix(entry["transform_matrix"], where), _lens(data, entry, file, where), where, split))
        if entry.get("mask_path"):
            frames[-1].mask = _image_path(file, str(entry["mask_path"]), where)
    return frames


def _tidy(name: str) -> str:
    return name[2:] if name.startswith("./") else name


def _matrix(value: Any, where: str) -> np.ndarray:
    try:
        return np.array(value, dtype=np.float64)
    except (ValueError, TypeError) as e:
        raise UserError(f"{where}: transform_matrix is no matrix of numbers") from e


def _image_path(file: Path, name: str, where: str) -> Path:
    """The image a file_path means: as written, or with a suffix added; must look like an image before it is opened."""
    path = file.parent / name.replace("\\", "/")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path
    for suffix in IMAGE_SUFFIXES:
        candidate = path.with_name(path.name + suffix)
        if candidate.is_file():
            return candidate
    if path.is_file():
        raise UserError(f"{where}: this is no image (expected a name ending in {', '.join(IMAGE_SUFFIXES)})")
    return path.with_name(path.name + ".png")


def _lens(data: dict[str, Any], entry: dict[str, Any], file: Path, where: str) -> Lens:
    """Intrinsics of one frame; a frame's own values come before the file's."""

    def number(key: str, default: float = math.nan) -> float:
        value = entry.get(key, data.get(key, default))
        try:
            return default if value is None else float(value)
        except (ValueError, TypeError) as e:
            raise UserError(f"{where}: {key} is {value!r}, expected a number") from e

    if all(math.isnan(number(k)) for k in ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")):
        raise UserError(f"{file}: no focal length: expected fl_x or camera_angle_x in the file or in frame {where}")
    k = tuple(number(name, 0.0) for name in ("k1", "k2", "k3", "k4", "p1", "p2"))
    kind = str(entry.get("camera_model", data.get("camera_model", "")))
    fisheye = "FISHEYE" in kind.upper() or bool(entry.get("is_fisheye", data.get("is_fisheye", False)))
    model = FISHEYE if fisheye else OPENCV if any(k) else PERSPECTIVE
    w, h = number("w", 0), number("h", 0)
    fx, fy = number("fl_x"), number("fl_y")
    angles = number("camera_angle_x"), number("camera_angle_y")
    return Lens(model, fx, fy, number("cx"), number("cy"), int(w) or None, int(h) or None, k, *angles)  # type: ignore[arg-type]
