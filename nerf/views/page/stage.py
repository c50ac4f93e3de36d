"""Where a page shows a scene from: an upright frame, named views, a path that plays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.errors import printable
from nerf.geometry.aim import common_up, look_at_point
from nerf.geometry.cameras import Cameras
from nerf.geometry.rotations import quaternion_to_matrix
from nerf.meshing.fused import farthest_point_sample
from nerf.meshing.glb import upright
from nerf.rendering.model import Model
from nerf.views.paths import CameraPath

_FIELDS_OF_VIEW = (math.radians(20), math.radians(75))  # of a page, along the window's shorter side


@dataclass
class Stage:
    """The frame of a page, upright and about what the cameras look at: x_page = rotation (x_world - middle); y is up.

    views: name -> [6] target, azimuth, elevation, distance, the first one where the page begins; path [n,6]."""

    rotation: Tensor  # [3,3] float64
    middle: Tensor  # [3] float64, world
    fov: float  # radians, along the window's shorter side
    views: dict[str, list[float]]
    path: list[list[float]]
    seconds: float = 1.0  # that it takes to play it
    closed: bool = False  # whether the path's last frame leads into its first

    def settings(self) -> dict[str, Any]:
        """For the page, JSON-able."""
        views = [[printable(name), *numbers] for name, numbers in self.views.items()]
        path = {"frames": self.path, "seconds": self.seconds, "closed": self.closed}
        return {"fov": self.fov, "views": views, "path": path}


def stage_of(model: Model, path: CameraPath, n_views: int, up: Tensor | None = None) -> Stage:
    """The stage of a trained scene: it begins where the path does, and n_views of the training cameras that stand far
    apart can be jumped to. up [3]: of the world (None: as the cameras say)."""
    cameras = model.cameras
    x, y, z, w = upright((common_up(cameras)[0] if up is None else up).numpy())
    rotation = quaternion_to_matrix(torch.tensor([w, x, y, z], dtype=torch.float64))
    middle = look_at_point(cameras, model.scene_from_world, model.space)
    frames = view_numbers(path.cameras, rotation, middle)
    chosen = farthest_point_sample(cameras.centres, n_views).tolist() if n_views else []
    names = [model.names[i] if i < len(model.names) else f"photo {i}" for i in chosen]
    numbers = view_numbers(cameras.subset(chosen), rotation, middle)
    views = {"Start": frames[0]} | dict(zip(names, numbers, strict=True))
    lens = path.cameras.subset([0])
    shorter, focal = min(int(lens.widths[0]), int(lens.heights[0])), float(lens.fy[0])
    fov = min(max(2 * math.atan(shorter / (2 * focal)), _FIELDS_OF_VIEW[0]), _FIELDS_OF_VIEW[1])
    return Stage(rotation, middle, fov, views, frames, len(frames) / path.fps, _closed(path.cameras))


def view_numbers(cameras: Cameras, rotation: Tensor, middle: Tensor) -> list[list[float]]:
    """What cameras (world frame) look at as target (x, y, z), azimuth, elevation (radians, of the way back to the
    viewer) and distance, page frame; upright, so what they are rolled by is lost. The target lies on the optical axis
    where it is nearest to the middle; at the median distance where that is behind the camera."""
    axes = rotation @ cameras.c2w[:, :, :3].double()
    eyes, ups, backs = (cameras.centres.double() - middle) @ rotation.T, axes[:, :, 1], axes[:, :, 2]
    distances, ahead = eyes.norm(dim=1), (eyes * backs).sum(dim=1)
    usual = distances.median() if len(distances) else 1.0
    distances = torch.where(ahead > 0.1 * distances, ahead, usual).clamp_min(1e-9)
    elevations = torch.asin(backs[:, 1].clamp(-1, 1))
    # of a camera that looks straight down, the picture's upper side says where it looks
    level = elevations.cos()[:, None] * backs - elevations.sin()[:, None] * ups
    azimuths = torch.from_numpy(np.unwrap(torch.atan2(level[:, 0], level[:, 2]).numpy()))
    numbers = torch.cat([eyes - distances[:, None] * backs, torch.stack([azimuths, elevations, distances], 1)], dim=1)
    return [[float(f"{number:.6g}") for number in row] for row in numbers.tolist()]


def _closed(cameras: Cameras) -> bool:
    centres = cameras.centres
    if len(centres) < 3:
        return False
    return float((centres[0] - centres[-1]).norm()) < 2 * float((centres[1:] - centres[:-1]).norm(dim=1).max())
