"""Pictures of a mesh from six sides, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nerf.geometry.aim import look_at, look_at_point
from nerf.geometry.cameras import Cameras
from nerf.io.pictures import write_png
from nerf.meshing.preview import render_mesh

if TYPE_CHECKING:
    import trimesh

    from nerf.rendering.model import Model

SIDES = ("front", "right", "back", "left", "top", "bottom")
_DISTANCE_RADII = 40.0  # radii between the viewer and the mesh: next to no perspective
_BACKFACE_COLOR = np.array([0.85, 0.1, 0.75], np.float32)  # magenta: nobody's paint


def render_six_sides(mesh: trimesh.Trimesh, front: Tensor, up: Tensor, size: int = 420) -> dict[str, np.ndarray]:
    """Name -> [size,size,3] uint8: the mesh in its texture or vertex colours (else grey), lit by the viewer, on white.

    front [3]: towards the viewer of the view "front" (what of it lies along up is ignored); up [3]; world frame. The
    four views around look down by 15 degrees. Where the mesh's inside shows, it is magenta.
    """
    vertices = torch.from_numpy(np.array(mesh.vertices, np.float64))
    middle = (vertices.amin(dim=0) + vertices.amax(dim=0)) / 2
    radius = float((vertices - middle).norm(dim=1).max()) or 1.0
    up = up.double() / up.norm().double()
    level = front.double() - (front.double() @ up) * up
    if float(level.norm()) < 1e-6:
        level = torch.linalg.cross(up, torch.eye(3, dtype=torch.float64)[int(up.abs().argmin())])
    ahead = level / level.norm()
    right = torch.linalg.cross(up, ahead)
    c, s = float(np.cos(np.radians(15))), float(np.sin(np.radians(15)))
    backward = [*(c * side + s * up for side in (ahead, right, -ahead, -right)), up, -up]
    upward = [up] * 4 + [-ahead, ahead]
    origins = middle + _DISTANCE_RADII * radius * torch.stack(backward)
    focal = size / 2 * _DISTANCE_RADII / 1.02  # a ball of the radius about the middle fills the picture
    cameras = Cameras.perspective(look_at(origins, middle, torch.stack(upward)), focal, size, size)
    return {name: _draw(mesh, cameras, k) for k, name in enumerate(SIDES)}


def front_direction(model: Model) -> Tensor:
    """From what the photos look at towards the first camera [3] float64, world frame: the side to show first."""
    return model.cameras.centres[0].double() - look_at_point(model.cameras, model.scene_from_world, model.space)


def write_six_sides(mesh: trimesh.Trimesh, front: Tensor, up: Tensor, folder: Path) -> None:
    """The pictures of `render_six_sides` as folder/front.png ..."""
    folder.mkdir(exist_ok=True)
    for name, picture in render_six_sides(mesh, front, up).items():
        write_png(folder / f"{name}.png", picture)


def _draw(mesh: trimesh.Trimesh, cameras: Cameras, k: int) -> np.ndarray:
    """[size,size,3] uint8 of camera k."""
    seen = render_mesh(mesh, cameras, k, background=(0.0, 0.0, 0.0), supersample=3)
    assert seen.normal is not None
    facing = seen.normal @ -cameras.forward[k].numpy().astype(np.float32)
    opacity = seen.opacity[..., None]
    color = seen.color * (0.45 + 0.55 * facing.clip(0, 1))[..., None]
    color = np.where((facing < -0.2)[..., None], _BACKFACE_COLOR * opacity, color)
    return ((color + 1 - opacity).clip(0, 1) * 255 + 0.5).astype(np.uint8)
