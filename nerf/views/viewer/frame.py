"""The frame of the page: upright, about as large as the scene frame, with its origin where the scene is looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.geometry.cameras import OPENGL_FROM_OPENCV
from nerf.geometry.rotations import matrix_to_quaternion, quaternion_to_matrix
from nerf.geometry.space import Similarity

_FLIP = torch.from_numpy(OPENGL_FROM_OPENCV[:3, :3].copy())
Array = NDArray[np.float64]


def turn_upright(up: Tensor) -> Tensor:
    """The smallest rotation [3,3] that takes a unit vector [3] to z."""
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    axis = torch.linalg.cross(up.double(), z)
    sine, cosine = float(axis.norm()), float(up.double() @ z)
    if sine < 1e-9:
        return torch.diag(torch.tensor([1.0, 1.0, 1.0] if cosine > 0 else [1.0, -1.0, -1.0], dtype=torch.float64))
    x, y, w = (axis / sine).tolist()
    cross = torch.tensor([[0, -w, y], [w, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + sine * cross + (1 - cosine) * (cross @ cross)


@dataclass(frozen=True, eq=False)
class PageFrame:
    """z is up; poses on the page are OpenCV cameras (x right, y down, z forward) as quaternion (w, x, y, z) and place.

    >>> frame = PageFrame.around(torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]), 2.0)
    >>> frame.points(torch.tensor([[0.0, 1.0, 0.0]])).round(decimals=6).tolist()
    [[0.0, 0.0, 2.0]]
    """

    from_world: Similarity

    @staticmethod
    def around(centre: Tensor, up: Tensor, scale: float) -> PageFrame:
        """The frame with its origin at a world point, `scale` page lengths per world length."""
        rotation = turn_upright(up / up.norm())
        return PageFrame(Similarity(scale, rotation, -scale * (rotation @ centre.double())))

    @property
    def scale(self) -> float:
        """Page lengths per world length."""
        return self.from_world.scale

    def points(self, world: Tensor) -> Tensor:
        """World points [n,3] on the page."""
        return self.from_world.apply(world)

    def to_world(self, points: Tensor) -> Tensor:
        """Points [n,3] of the page in the world."""
        return self.from_world.inverse().apply(points)

    def directions_to_world(self, directions: Tensor) -> Tensor:
        return self.from_world.inverse().apply_directions(directions)

    def pose(self, c2w: Tensor) -> tuple[Array, Array]:
        """(wxyz [4], position [3]) of a world pose [3,4], OpenGL camera-to-world."""
        there = self.from_world.apply_poses(c2w[None].double())[0]
        return matrix_to_quaternion((there[:, :3] @ _FLIP)[None])[0].numpy(), there[:, 3].numpy()

    def pose_to_world(self, wxyz: Array, position: Array) -> Tensor:
        """The world pose [3,4], OpenGL camera-to-world, of a camera on the page."""
        quaternion = torch.nn.functional.normalize(torch.tensor(np.asarray(wxyz, np.float64)), dim=0)
        rotation = quaternion_to_matrix(quaternion[None])[0] @ _FLIP
        here = torch.cat([rotation, torch.tensor(np.asarray(position, np.float64))[:, None]], dim=1)
        return self.from_world.inverse().apply_poses(here[None])[0]

    def wxyz(self, axes: Tensor) -> Array:
        """The quaternion on the page of world axes [3,3] (columns)."""
        return matrix_to_quaternion((self.from_world.rotation @ axes.double())[None])[0].numpy()

    def axes_to_world(self, wxyz: Array) -> Tensor:
        """World axes [3,3] (columns) of a quaternion on the page."""
        quaternion = torch.nn.functional.normalize(torch.tensor(np.asarray(wxyz, np.float64)), dim=0)
        return self.from_world.rotation.T @ quaternion_to_matrix(quaternion[None])[0]
