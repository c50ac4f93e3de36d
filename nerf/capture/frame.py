"""The frame that poses are written in: z is up, the origin lies where the photos look, one unit is what was asked for.

Structure from motion leaves the frame open. Photos are seldom rolled, so that their right axes tell the vertical.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.geometry.aim import common_up, nearest_point_to_axes
from nerf.geometry.cameras import EQUIRECTANGULAR, Cameras
from nerf.geometry.space import Similarity

CAMERA_DISTANCE = 4.0  # units from the origin to the cameras (median) where no true length is known


def world_from_model(
    c2w: Tensor,
    points: Tensor,
    factor: float = 1.0,
    metric: float | None = None,
    spherical: Tensor | None = None,
    enu: Similarity | None = None,
) -> Similarity:
    """The similarity from the model's frame, of poses c2w [n,3,4] and points [m,3] in float64, to the data set's.
    metric: length of a model's unit in the unit wanted; the mean viewing direction becomes +y as seen from above.
    spherical [n]: which are panoramas. enu: the map to metres east, north and up, whose axes are kept."""
    cameras = Cameras.perspective(c2w, 1.0, 1, 1)  # what the lenses are otherwise does not matter here
    if spherical is not None:
        cameras.models = torch.where(spherical, EQUIRECTANGULAR, cameras.models)
    up = common_up(cameras)[0]
    centre = _centre(cameras, points)
    if enu is not None:
        scale = factor * (metric if metric is not None else enu.scale)
        return Similarity(scale, enu.rotation, -scale * (enu.rotation @ centre))
    forward = cameras.forward.mean(dim=0)
    ahead = forward - (forward @ up) * up
    if float(ahead.norm()) < 1e-3:  # all around: the first photo decides
        first = centre - cameras.centres[0]
        ahead = first - (first @ up) * up
    if float(ahead.norm()) < 1e-9:
        ahead = torch.linalg.cross(up, torch.eye(3, dtype=torch.float64)[int(up.abs().argmin())])
    ahead = ahead / ahead.norm()
    rotation = torch.stack([torch.linalg.cross(ahead, up), ahead, up])
    distance = float((cameras.centres - centre).norm(dim=1).median())
    scale = factor * (metric if metric is not None else CAMERA_DISTANCE / max(distance, 1e-12))
    return Similarity(scale, rotation, -scale * (rotation @ centre))


def _centre(cameras: Cameras, points: Tensor) -> Tensor:
    """Where the optical axes meet, as far as they do among the points; else the middle of what is seen."""
    meeting = nearest_point_to_axes(cameras)
    middle = points.median(dim=0).values if len(points) else cameras.centres.mean(dim=0)
    if meeting is None or not len(points):
        return middle if meeting is None else meeting
    spread = (points - middle).norm(dim=1).median()
    return meeting if float((meeting - middle).norm()) < 3 * float(spread) else middle
