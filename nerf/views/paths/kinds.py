"""The kinds of paths: poses [n,3,4] float64 in the world frame, and a sentence on each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.geometry.aim import common_up, look_at
from nerf.geometry.cameras import Cameras
from nerf.geometry.rotations import aligned, matrix_to_quaternion
from nerf.views.paths.splines import poses_through
from nerf.views.paths.tour import walking_order


def orbit(cameras: Cameras, centre: Tensor, n_frames: int, up: Tensor | None = None) -> tuple[Tensor, str]:
    """A turntable around `centre` [3] and the axis `up` [3] (None: as the cameras say) at the cameras' mean elevation
    and distance; the last frame leads into the first. Where the photos leave a gap of more than 70 degrees, the
    camera swings to and fro within the part that they saw."""
    up = common_up(cameras)[0] if up is None else up
    offsets = cameras.centres.double() - centre
    distances = offsets.norm(dim=1).clamp_min(1e-9)
    distance = float(distances.mean())
    elevations = torch.asin((offsets @ up / distances).clamp(-1, 1))
    # Straight above, a turntable spins on the spot; 75 degrees is steep enough.
    elevation = float(elevations.mean().clamp(-math.radians(75), math.radians(75)))
    # Azimuth is measured from the first camera, so that the path begins near a photo.
    level = offsets - (offsets @ up)[:, None] * up
    first = level[int(level.norm(dim=1).argmax())] if float(level[0].norm()) < 1e-3 * distance else level[0]
    if float(first.norm()) < 1e-6 * distance:  # all cameras on the axis: any direction will do
        first = torch.linalg.cross(up, torch.eye(3, dtype=torch.float64)[int(up.abs().argmin())])
    ahead = first / first.norm()
    left = torch.linalg.cross(up, ahead)
    seen = level.norm(dim=1) > 0.05 * distance  # cameras near the axis say nothing about azimuth
    azimuths = torch.atan2(level @ left, level @ ahead)[seen]
    start, covered = covered_arc(azimuths)
    steps = torch.arange(n_frames, dtype=torch.float64) / n_frames
    if covered > math.radians(290):
        angles = 2 * math.pi * steps
        description = "orbit: a full turn"
    else:
        angles = start + covered * (0.5 - 0.5 * torch.cos(2 * math.pi * steps))
        description = f"orbit: to and fro over the {math.degrees(covered):.0f} degrees that the photos cover"
    level_distance, height = distance * math.cos(elevation), distance * math.sin(elevation)
    circle = angles.cos()[:, None] * ahead + angles.sin()[:, None] * left
    description += f" at elevation {math.degrees(elevation):.0f} degrees, distance {distance:.4g}"
    return look_at(centre + level_distance * circle + height * up, centre, up), description


def covered_arc(azimuths: Tensor) -> tuple[float, float]:
    """(start, length) in radians of the shortest arc that holds all azimuths [n]; (0, 0) for none."""
    if len(azimuths) == 0:
        return 0.0, 0.0
    ordered = azimuths.double().sort().values
    gaps = torch.cat([ordered[1:], ordered[:1] + 2 * math.pi]) - ordered
    widest = int(gaps.argmax())
    return float(ordered[(widest + 1) % len(ordered)]), 2 * math.pi - float(gaps[widest])


def interpolate(cameras: Cameras, n_frames: int, n_keys: int = 24) -> tuple[Tensor, str]:
    """A smooth flight through at most `n_keys` of the input cameras, spread evenly over their `walking_order`;
    positions and (sign-aligned, normalised) quaternions run along Catmull-Rom splines, timed by distance."""
    order = walking_order(cameras)
    keys = order[torch.linspace(0, len(order) - 1, min(n_keys, len(order))).round().long()]
    origins = cameras.centres[keys].double()
    quaternions = aligned(matrix_to_quaternion(cameras.c2w[keys, :, :3].double()))
    description = f"interpolate: through {len(keys)} of {len(cameras)} input cameras"
    if len(keys) == 1:
        return cameras.c2w[keys].double().expand(n_frames, 3, 4).clone(), description
    # Time between keys: distance, plus turning weighted so that one radian counts as the mean step.
    steps = (origins[1:] - origins[:-1]).norm(dim=1)
    turns = 2 * torch.acos((quaternions[1:] * quaternions[:-1]).sum(dim=1).clamp(-1, 1))
    lengths = steps + turns * max(float(steps.mean()), 1e-9)
    lengths = lengths.clamp_min(1e-3 * max(float(lengths.mean()), 1e-9))
    times = torch.cat([torch.zeros(1, dtype=torch.float64), lengths.cumsum(0)])
    at = torch.linspace(0, float(times[-1]), n_frames, dtype=torch.float64)
    return poses_through(times, cameras.c2w[keys], at), description


def spiral(
    cameras: Cameras, focus: float, n_frames: int, up: Tensor | None = None, turns: int = 2
) -> tuple[Tensor, str]:
    """The spiral of LLFF and NeRF: loops around the mean camera, towards a point `focus` world units ahead of it; radii
    are the 80th percentile of the input cameras' offsets along its axes, and the last frame leads into the first."""
    origins = cameras.centres.double()
    centre = origins.mean(dim=0)
    backward = -torch.nn.functional.normalize(cameras.forward.double().mean(dim=0), dim=0)
    mean = look_at(centre[None], (centre - backward)[None], common_up(cameras)[0] if up is None else up)[0]
    offsets = (origins - centre) @ mean[:, :3]
    radii = torch.quantile(offsets.abs(), 0.8, dim=0)
    steps = 2 * math.pi * turns * torch.arange(n_frames, dtype=torch.float64) / n_frames
    # In depth it goes to and fro at half the rate: a spiral and not a circle.
    local = torch.stack([steps.cos(), -steps.sin(), -(0.5 * steps).sin()], dim=1) * radii
    poses = look_at(centre + local @ mean[:, :3].T, centre - focus * mean[:, 2], mean[:, 1])
    return poses, f"spiral: {turns} loops around the mean camera, towards a point {focus:.4g} ahead"
