"""Camera paths in JSON: our own format, and nerfstudio's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.errors import UserError, brief, check_numbers
from nerf.geometry.cameras import Cameras
from nerf.io.files import write_file
from nerf.io.json_text import parse_json
from nerf.io.video import FPS
from nerf.views.paths.lens import LARGEST, CameraPath, filled_in

PATH_FORMAT = "nerf-camera-path"


def save_path(path: Path, camera_path: CameraPath, more: dict[str, Any] | None = None) -> None:
    """Write our own camera-path JSON; poses are OpenGL camera-to-world in the world frame of the input photos' poses.
    more: further entries, which `load_path` passes over.

    {"format": "nerf-camera-path", "version": 1, "width": pixels, "height": pixels, "fps": number, "frames": [
     {"camera_to_world": 3 or 4 rows of 4 numbers, "vertical_fov": degrees}, ...]}
    """
    cameras = camera_path.cameras
    fovs = torch.rad2deg(2 * torch.atan(cameras.heights / (2 * cameras.fy)))
    frames = zip(cameras.c2w.tolist(), fovs.tolist(), strict=True)
    content = {"format": PATH_FORMAT, "version": 1}
    content |= {"width": int(cameras.widths[0]), "height": int(cameras.heights[0]), "fps": camera_path.fps}
    content["frames"] = [{"camera_to_world": pose, "vertical_fov": fov} for pose, fov in frames]
    content |= more or {}
    write_file(path, json.dumps(content, indent=1) + "\n")


def load_path(path: Path, width: int | None = None, height: int | None = None) -> CameraPath:
    """Read a camera path: our own format (see `save_path`) or nerfstudio's camera_path JSON.

    nerfstudio: {"render_width", "render_height", "fps", "camera_path": [{"camera_to_world": 16 numbers, row by row,
    "fov": vertical, degrees}, ...]}. Its viewer writes poses in nerfstudio's own normalised frame; we read them as
    they are, in the world frame. width and height override the file's; the vertical field of view stays.
    Raises UserError, one sentence with file, frame and key, for anything missing or impossible.
    """
    content = _read_json(path)
    if content.get("format") == PATH_FORMAT:
        if content.get("version") != 1:
            raise UserError(f"{path}: version {content.get('version')!r} of the camera-path format; expected 1")
        keys, fov_key, description = ("width", "height", "frames"), "vertical_fov", "camera path"
    elif "camera_path" in content:
        keys, fov_key = ("render_width", "render_height", "camera_path"), "fov"
        description = "nerfstudio camera path, its poses taken as world frame of the input"
        if content.get("camera_type", "perspective") != "perspective":
            raise UserError(f'{path}: camera_type {content["camera_type"]!r} is not supported, only "perspective"')
    else:
        raise UserError(
            f'{path}: no camera path; expected "format": "{PATH_FORMAT}" with "frames", or nerfstudio\'s "camera_path"'
        )
    frames = content.get(keys[2])
    if not isinstance(frames, list) or not frames:
        raise UserError(f'{path}: "{keys[2]}" must be a list of at least one frame')
    file_width, file_height = (_number(path, content, key, "") for key in keys[:2])
    width, height = filled_in(width, height, file_width, file_height)
    if not (1 <= width <= LARGEST and 1 <= height <= LARGEST):
        raise UserError(f"{path}: a picture of {width}x{height} pixels; expected 1 to {LARGEST} each way")
    poses, focals = [], []
    for i, frame in enumerate(frames):
        where = f"frame {i}: "
        if not isinstance(frame, dict):
            raise UserError(f"{path}: {where}expected an object with camera_to_world and {fov_key}")
        poses.append(_pose(path, frame.get("camera_to_world"), where))
        fov = _number(path, frame, fov_key, where)
        if not 0 < fov < 180:
            raise UserError(f'{path}: {where}"{fov_key}" must lie between 0 and 180 degrees, got {fov:g}')
        focals.append(height / (2 * math.tan(math.radians(fov) / 2)))
    fps = _number(path, content, "fps", "") if "fps" in content else 30.0
    check_numbers({f"{path}: fps": fps}, {f"{path}: fps": FPS})
    cameras = Cameras.perspective(torch.stack(poses), torch.tensor(focals, dtype=torch.float64), width, height)
    return CameraPath(cameras, fps, f"{description} from {path.name}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such camera-path file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; expected a camera path in JSON") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not valid JSON, line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON: {brief(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _number(path: Path, where_from: dict[str, Any], key: str, where: str) -> float:
    value = where_from.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        got = "nothing" if key not in where_from else repr(value)
        raise UserError(f'{path}: {where}"{key}" must be a number above 0, got {got}')
    return float(value)


def _pose(path: Path, value: Any, where: str) -> Tensor:
    """16 or 12 numbers, flat or in rows -> [3,4] float64 with an orthonormal rotation (uniform scale is taken out)."""
    try:
        numbers = torch.tensor(value, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = torch.zeros(0)
    if len(numbers) not in (12, 16):
        raise UserError(f'{path}: {where}"camera_to_world" must be 16 numbers (or 12), row by row')
    if not bool(numbers.isfinite().all()):
        raise UserError(f'{path}: {where}"camera_to_world" holds a number that is not finite')
    pose = numbers.reshape(-1, 4)[:3]
    size = torch.linalg.det(pose[:, :3])
    if float(size) <= 1e-12:
        reason = "is singular" if float(size.abs()) <= 1e-12 else "is mirrored"
        raise UserError(f'{path}: {where}"camera_to_world" {reason} (determinant {float(size):.3g}, expected 1)')
    u, stretch, v = torch.linalg.svd(pose[:, :3])
    if float(stretch[0] / stretch[2]) > 1.02:
        raise UserError(f'{path}: {where}"camera_to_world" is no rotation: its axes are skewed or of unequal length')
    return torch.cat([u @ v, pose[:, 3:]], dim=1)
