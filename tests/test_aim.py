"""Which way is up, where the cameras look, and poses that look at a point."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import ring_cameras

from nerf.geometry.aim import common_up, look_at_point, nearest_point_to_axes
from nerf.geometry.space import Box, Similarity, Unbounded

IDENTITY = Similarity.identity()


def test_axes_meet_where_the_cameras_look() -> None:
    target = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)
    cameras = ring_cameras(9)
    cameras.c2w[:, :, 3] += target
    found = nearest_point_to_axes(cameras)
    assert found is not None
    torch.testing.assert_close(found, target)
    torch.testing.assert_close(look_at_point(cameras, IDENTITY, Unbounded(1)), target)
    cameras.c2w[:] = cameras.c2w[:1]  # all the same: the axes are parallel
    assert nearest_point_to_axes(cameras) is None
    pulled = nearest_point_to_axes(cameras, pull=1e-3)  # to the mean camera, which is any of them
    assert pulled is not None
    torch.testing.assert_close(pulled, cameras.centres[0])


def test_box_scenes_are_circled_around_the_box() -> None:
    box = Similarity.around([1.0, 2.0, 3.0], 0.5)
    torch.testing.assert_close(
        look_at_point(ring_cameras(), box, Box()), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    )


def test_up_is_found_where_the_mean_leans() -> None:
    up, sideways = common_up(ring_cameras(10, elevation=0.9, arc=math.radians(100)))
    torch.testing.assert_close(up, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    assert not sideways


@pytest.mark.parametrize("n", [1, 2, 5])
def test_up_of_few_level_cameras_is_not_sideways(n: int) -> None:
    for elevation in (0.0, 0.3, 1.5):
        up, sideways = common_up(ring_cameras(n, elevation=elevation))
        assert not sideways and up.isfinite().all() and float(up.norm()) == pytest.approx(1)
