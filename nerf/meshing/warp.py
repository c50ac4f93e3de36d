"""Grids whose cells grow with the distance from the middle of a scene."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Warp:
    """Where points of the scene lie in the coordinates u of a uniform grid, and back.

    Within the radius R, in the maximum norm r = max |x|, the two are the same; beyond, u = R (1 + ln(r / R)) x / r: a
    step of u is r / R times as long in the scene along the way from the middle, and shorter across it. Continuous, and
    each cube about the origin stays one, so that walls stay flat where they are square to the axes. An infinite radius,
    the default, changes nothing.

    >>> import torch
    >>> warp = Warp(2.0)
    >>> u = warp.to_grid(torch.tensor([[1.0, 0.5, 0.0], [2.0 * math.e, 0.0, 0.0]]))
    >>> u.tolist(), warp.to_scene(u)[0].tolist()
    ([[1.0, 0.5, 0.0], [4.0, 0.0, 0.0]], [1.0, 0.5, 0.0])
    """

    radius: float = math.inf

    def to_grid(self, points: Tensor) -> Tensor:
        """Scene points [n,3] in grid coordinates."""
        if self.radius == math.inf:
            return points
        r = points.abs().amax(dim=1, keepdim=True).clamp_min(self.radius)
        return points * (self.radius * (1 + (r / self.radius).log()) / r)

    def to_scene(self, points: Tensor) -> Tensor:
        """Points [n,3] in grid coordinates as scene points."""
        if self.radius == math.inf:
            return points
        s = points.abs().amax(dim=1, keepdim=True).clamp_min(self.radius)
        return points * (self.radius * (s / self.radius - 1).exp() / s)

    def scales(self, points: Tensor) -> Tensor | None:
        """How many times as long a step of the grid is at scene points [n,3], at most; None: the same everywhere."""
        if self.radius == math.inf:
            return None
        return (points.abs().amax(dim=1) / self.radius).clamp_min(1)
