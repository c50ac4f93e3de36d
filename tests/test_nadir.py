"""Flights that look straight down: where the scene is, when optical axes do not meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nerf.datasets.parsed import ParsedScene
from nerf.datasets.region import choose_region
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Unbounded


def flight(tilt: float, n: int = 5) -> Cameras:
    """n x n cameras 50 m up, 10 m apart, tilted towards the middle by so many radians for each metre from it."""
    x, y = (t.flatten() for t in torch.meshgrid(*[10.0 * (torch.arange(n).double() - n // 2)] * 2, indexing="ij"))
    centres = torch.stack([x, y, torch.full_like(x, 50.0)], dim=1)
    aim = torch.stack([-x * tilt, -y * tilt, torch.full_like(x, -1.0)], dim=1)
    back = -torch.nn.functional.normalize(aim, dim=1)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(torch.tensor([[0.0, 1, 0]]).double().expand_as(back), back)
    )
    poses = torch.stack([right, torch.linalg.cross(back, right), back, centres], dim=2)
    return Cameras.perspective(poses, 700.0, 1000, 700)


def ground(n: int = 400) -> np.ndarray:
    return np.random.default_rng(0).random((n, 3)) * [60, 60, 2] - [26, 33, 1]


@pytest.mark.parametrize("tilt", [0.0, 1 / 300])  # axes that never meet, and that meet 250 m below the ground
def test_the_scene_of_a_flight_is_around_the_ground(tilt: float) -> None:
    parsed = ParsedScene("test", __file__, [], [], points=ground())  # type: ignore[arg-type]
    region = choose_region(parsed, flight(tilt), None, False, None)  # type: ignore[arg-type]
    middle = region.scene_from_world.inverse().apply(torch.zeros(1, 3).double())[0]
    assert isinstance(region.space, Unbounded)
    assert (middle - torch.tensor([4.0, -3, 0])).abs().max() < 3
    assert 25 < 1 / region.scene_from_world.scale < 55


def test_axes_that_meet_on_the_ground_say_where_the_scene_is() -> None:
    parsed = ParsedScene("test", __file__, [], [], points=ground())  # type: ignore[arg-type]
    region = choose_region(parsed, flight(1 / 50), None, False, None)  # type: ignore[arg-type]
    middle = region.scene_from_world.inverse().apply(torch.zeros(1, 3).double())[0]
    assert middle.abs().max() < 2, "where they meet, and not the middle of the points"
