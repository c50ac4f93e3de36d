"""What the input cameras say about the scene: which way is up, where to look, how far away it lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Similarity, Space


def common_up(cameras: Cameras) -> tuple[Tensor, bool]:
    """(up [3] float64 of unit length in the world frame, whether the photos lie on their side).

    Photos are seldom rolled, so up is most nearly perpendicular to their right axes, or to their up axes where phones
    saved them on their side. The mean of the up axes, which leans over where cameras look down from one side, decides
    the sign, and everything where the right axes do not span a plane.
    """
    rights, ups = cameras.c2w[:, :, 0].double(), cameras.up.double()
    level, axis = _normal_of(rights)
    level_sideways, axis_sideways = _normal_of(ups)
    if level_sideways < 0.3 * level and abs(float(axis_sideways @ rights.mean(dim=0))) > 0.3:
        # Turned to the left or to the right? More photos look down on things than up at them.
        return axis_sideways * math.copysign(1.0, -float(axis_sideways @ cameras.forward.double().mean(dim=0))), True
    mean = ups.mean(dim=0)
    along = float(axis @ mean)
    if math.isfinite(level) and abs(along) > 0.05:
        return axis * math.copysign(1.0, along), False
    if float(mean.norm()) < 0.05:  # cameras of every orientation: no common up to be found
        return torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), False
    return mean / mean.norm(), False


def _normal_of(axes: Tensor) -> tuple[float, Tensor]:
    """The direction most nearly perpendicular to axes [n,3]: (mean squared cosine to it, direction [3]); infinity
    where they do not span a plane."""
    spread, directions = torch.linalg.eigh(axes.T @ axes / len(axes))
    plane = float(spread[1]) > 0.1 and float(spread[0]) < 0.5 * float(spread[1])
    # Rounding may leave a tiny negative number; a floor of (half a degree) squared keeps ratios of nothing out.
    return max(float(spread[0]), 1e-4) if plane else math.inf, directions[:, 0]


def nearest_point_to_axes(cameras: Cameras, pull: float = 0.0) -> Tensor | None:
    """The world point [3] with the least squared distance to all optical axes; None where these are parallel or it
    lies behind the cameras. A weak `pull` towards the mean camera settles parallel axes: then there always is one.
    Panoramas have no axis."""
    looking = ~cameras.spherical
    if not bool(looking.any()):
        return cameras.centres.double().mean(dim=0) if pull else None
    origins, forward = cameras.centres.double()[looking], cameras.forward.double()[looking]
    eye = torch.eye(3, dtype=torch.float64)
    across = eye - forward[:, :, None] * forward[:, None, :]  # removes the part along the axis
    system = across.mean(dim=0) + pull * eye
    # The smallest eigenvalue is the mean squared sine of the angles to the most common direction.
    if not pull and float(torch.linalg.eigvalsh(system)[0]) < 1e-3:
        return None
    wanted = (across @ origins[:, :, None]).mean(dim=0)[:, 0] + pull * origins.mean(dim=0)
    point = torch.linalg.solve(system, wanted)
    in_front = torch.einsum("nj,nj->n", point - origins, forward)
    return point if pull or float(in_front.median()) > 0 else None


def look_at_point(cameras: Cameras, scene_from_world: Similarity, space: Space) -> Tensor:
    """The world point [3] float64 to circle: the middle of the object's box, else where the optical axes meet."""
    middle = scene_from_world.inverse().apply(torch.zeros(3, dtype=torch.float64))
    if space.bounded:
        return middle
    point = nearest_point_to_axes(cameras)
    if point is not None:
        return point
    if bool(cameras.spherical.all()):
        return cameras.centres.double().mean(dim=0)
    ahead = focus_distance(cameras, scene_from_world, space) * cameras.forward.double().mean(dim=0)
    return cameras.centres.double().mean(dim=0) + ahead


def focus_distance(cameras: Cameras, scene_from_world: Similarity, space: Space) -> float:
    """How far in front of the cameras the scene lies, in world units."""
    if space.warped:
        # The near plane is at 1 in the scene, the far one at infinity; NeRF's choice: 3/4 of the way in disparity.
        return 1.0 / ((0.25 + 0.75 / 5.0) * scene_from_world.scale)
    point = nearest_point_to_axes(cameras)
    if point is None:
        return 1.0 / scene_from_world.scale
    ahead = ((point - cameras.centres.double()) * cameras.forward.double()).sum(dim=1)
    return max(float(ahead.median()), 1e-6)


def look_at(origins: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Poses [n,3,4], OpenGL camera-to-world, at origins [n,3] towards target [3] or [n,3], `up` [3] upwards."""
    backward = torch.nn.functional.normalize(origins - target, dim=-1)
    up = up.expand_as(backward)
    right = torch.linalg.cross(up, backward)
    # Looking straight along `up` leaves the roll open: take any axis that is not parallel to it.
    other = torch.eye(3, dtype=origins.dtype)[int(up[0].abs().argmin())].expand_as(backward)
    right = torch.where(right.norm(dim=-1, keepdim=True) > 1e-6, right, torch.linalg.cross(other, backward))
    right = torch.nn.functional.normalize(right, dim=-1)
    return torch.stack([right, torch.linalg.cross(backward, right), backward, origins], dim=-1)
