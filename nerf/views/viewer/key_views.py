"""Camera paths made of key views: where the camera is, when, and how wide it sees."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.errors import MISFITS, BadValue, Range, UserError, brief, check_numbers
from nerf.geometry.cameras import Cameras
from nerf.io.files import write_file
from nerf.io.json_text import parse_json
from nerf.views.paths import CameraPath, load_path, save_path
from nerf.views.paths.splines import catmull_rom, poses_through

KEY = {"seconds": Range(0.05, 3600), "fov": Range(1, 170)}
FILM = {"fps": Range(1, 120), "speed": Range(0.05, 20)}
MOST_KEYS = 24  # that a path without key views is taken apart into
MOST_FRAMES = 100_000


@dataclass(frozen=True, eq=False)
class KeyView:
    """c2w: [3,4] float64, OpenGL, world; fov: vertical, degrees; seconds: from the key view before it."""

    c2w: Tensor
    fov: float
    seconds: float = 2.0

    def __post_init__(self) -> None:
        check_numbers(vars(self), KEY, "key view: ")


@dataclass(frozen=True, eq=False)
class KeyPath:
    """Key views in their order, and how they become a film; speed: times as fast as they say.

    >>> pose = torch.eye(4, dtype=torch.float64)[:3]
    >>> path = KeyPath((KeyView(pose, 50.0), KeyView(pose, 60.0, seconds=3.0)), fps=10.0, speed=2.0)
    >>> path.duration, path.n_frames, round(path.fov_at(0.75), 1)
    (1.5, 15, 55.0)
    """

    views: tuple[KeyView, ...] = ()
    fps: float = 30.0
    speed: float = 1.0
    closed: bool = False  # the last view leads into the first

    def __post_init__(self) -> None:
        check_numbers(vars(self), FILM)

    @property
    def times(self) -> Tensor:
        """[k] float64: when each key view is reached; of a closed path the first one again at the end."""
        seconds = [0.0, *(view.seconds for view in self.views[1:])]
        if self.closed and len(self.views) > 1:
            seconds.append(self.views[0].seconds)
        return torch.tensor(seconds, dtype=torch.float64).cumsum(0) / self.speed

    @property
    def duration(self) -> float:
        """Seconds of the film."""
        return float(self.times[-1]) if self.views else 0.0

    @property
    def n_frames(self) -> int:
        return min(max(1, round(self.duration * self.fps)), MOST_FRAMES) if self.views else 0

    def _keys(self) -> tuple[Tensor, Tensor]:
        views = [*self.views, *self.views[:1]] if self.closed and len(self.views) > 1 else list(self.views)
        return torch.stack([v.c2w.double() for v in views]), torch.tensor([v.fov for v in views], dtype=torch.float64)

    def poses_at(self, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """(poses [n,3,4], vertical fields of view [n] in degrees) at times [n] of the film."""
        poses, fovs = self._keys()
        at = seconds.double().clamp(0, self.duration)
        if len(poses) == 1:
            return poses_through(self.times, poses, at), fovs.expand(len(at))
        return poses_through(self.times, poses, at), catmull_rom(self.times, fovs[:, None], at)[:, 0].clamp(1, 170)

    def fov_at(self, seconds: float) -> float:
        return float(self.poses_at(torch.tensor([seconds]))[1][0])

    def cameras(self, width: int, height: int) -> CameraPath:
        """The path as a film of so many pixels. UserError without key views."""
        if not self.views:
            raise UserError("the camera path has no key views yet: add some first")
        n = self.n_frames
        if n == 1 or not self.closed:
            seconds = torch.linspace(0, self.duration, n, dtype=torch.float64)
        else:  # the first frame is not shown twice
            seconds = torch.arange(n, dtype=torch.float64) / n * self.duration
        poses, fovs = self.poses_at(seconds)
        focals = height / (2 * torch.tan(torch.deg2rad(fovs) / 2))
        return CameraPath(
            Cameras.perspective(poses, focals, width, height), self.fps, f"camera path of {len(self.views)} key views"
        )


def save_keys(file: Path, path: KeyPath, width: int, height: int) -> None:
    """Write the path as our own JSON: its frames for `nerf render --path`, and its key views to go on with."""
    keys = [{"camera_to_world": v.c2w.tolist(), "vertical_fov": v.fov, "seconds": v.seconds} for v in path.views]
    more = {"key_views": keys, "speed": path.speed, "closed": path.closed}
    save_path(file, path.cameras(width, height), more)


def save_nerfstudio(file: Path, path: KeyPath, width: int, height: int) -> None:
    """Write the path as nerfstudio's camera path JSON, its poses in our world frame."""
    cameras = path.cameras(width, height).cameras
    fovs = torch.rad2deg(2 * torch.atan(height / (2 * cameras.fy))).tolist()
    last = [[0.0, 0.0, 0.0, 1.0]]
    frames = [
        {"camera_to_world": [x for row in (*pose, *last) for x in row], "fov": fov, "aspect": width / height}
        for pose, fov in zip(cameras.c2w.tolist(), fovs, strict=True)
    ]
    content: dict[str, Any] = {"camera_type": "perspective", "render_width": width, "render_height": height}
    content |= {"fps": path.fps, "seconds": path.duration, "is_cycle": path.closed, "smoothness_value": 0.0}
    content |= {"keyframes": [], "camera_path": frames}
    write_file(file, json.dumps(content, indent=1) + "\n")


def load_keys(file: Path) -> KeyPath:
    """The key views of a camera path file, ours or nerfstudio's; one without any becomes at most MOST_KEYS of its
    frames. UserError for what is none."""
    frames = load_path(file)
    content = parse_json(file.read_bytes())
    try:
        if content.get("key_views"):
            views = tuple(
                KeyView(_pose(key["camera_to_world"]), float(key["vertical_fov"]), float(key["seconds"]))
                for key in content["key_views"]
            )
            return KeyPath(views, frames.fps, float(content.get("speed", 1.0)), bool(content.get("closed")))
    except MISFITS as error:
        raise UserError(f"{file}: its key views cannot be understood ({brief(error)})") from None
    cameras, n = frames.cameras, len(frames.cameras)
    some = sorted({round(k * (n - 1) / max(1, MOST_KEYS - 1)) for k in range(MOST_KEYS)})
    fovs = torch.rad2deg(2 * torch.atan(cameras.heights / (2 * cameras.fy))).clamp(1, 170).tolist()
    steps = [max((i - before) / frames.fps, 0.05) for before, i in zip([some[0], *some], some, strict=False)]
    steps[0] = 2.0
    views = tuple(KeyView(cameras.c2w[i], fovs[i], step) for i, step in zip(some, steps, strict=True))
    return KeyPath(views, min(max(frames.fps, 1.0), 120.0))


def _pose(rows: Any) -> Tensor:
    pose = torch.tensor(rows, dtype=torch.float64)
    if pose.shape != (3, 4) or not bool(pose.isfinite().all()):
        raise BadValue("camera_to_world: expected 3 rows of 4 finite numbers")
    return pose


def moved(views: tuple[KeyView, ...], i: int, by: int) -> tuple[KeyView, ...]:
    """The key views with view i so many places later, as far as there are places."""
    order = list(views)
    there = min(max(i + by, 0), len(order) - 1)
    order.insert(there, order.pop(i))
    return tuple(order)


def fov_of(cameras: Cameras, i: int) -> float:
    """Vertical field of view of a camera in degrees, between 1 and 170."""
    angle = 2 * math.degrees(math.atan(float(cameras.heights[i]) / (2 * float(cameras.fy[i]))))
    return min(max(angle, 1.0), 170.0)


def with_view(path: KeyPath, i: int, view: KeyView | None) -> KeyPath:
    """The path with view i replaced, or taken out."""
    views = list(path.views)
    views[i : i + 1] = [] if view is None else [view]
    return replace(path, views=tuple(views))
