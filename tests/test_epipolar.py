"""Sampson distance and triangulation through the rays of any lens, against the definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nerf.geometry.aim import look_at
from nerf.geometry.cameras import FISHEYE, OPENCV, PERSPECTIVE, Cameras
from nerf.geometry.epipolar import pixel_rays, sampson_pixels, triangulate


def two_cameras(model: int) -> Cameras:
    places = torch.tensor([[0.3, -4.0, 0.5], [1.9, -3.2, 1.1]], dtype=torch.float64)
    poses = look_at(places, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64))
    k = {PERSPECTIVE: [0.0] * 6, OPENCV: [-0.1, 0.02, 0, 0, 1e-3, -2e-3], FISHEYE: [0.05, -0.01, 0, 0, 0, 0]}[model]
    cameras = Cameras.perspective(poses, torch.tensor([[500.0, 510.0], [450.0, 440.0]]), 640, 480)
    whole = torch.full((2,), model)
    return Cameras(**cameras.tensors() | {"models": whole, "distortion": torch.tensor([k, k], dtype=torch.float64)})


def points() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-0.7, 0.7, (40, 3)))


@pytest.mark.parametrize("model", [PERSPECTIVE, OPENCV, FISHEYE])
def test_matches_of_true_points_fit_and_triangulate_to_them(model: int) -> None:
    cameras = two_cameras(model)
    uv, _ = cameras.project(points())
    a, b = (pixel_rays(cameras, i, uv[i]) for i in (0, 1))
    assert float(sampson_pixels(a, b, cameras.c2w[0], cameras.c2w[1]).max()) < 2e-3  # rays are float32
    depth_a, depth_b, angle = triangulate(a, b, cameras.c2w[0], cameras.c2w[1])
    for depth, centre in ((depth_a, cameras.centres[0]), (depth_b, cameras.centres[1])):
        torch.testing.assert_close(depth, (points() - centre).norm(dim=1), rtol=1e-4, atol=0)
    to_a, to_b = (torch.nn.functional.normalize(points() - c, dim=1) for c in cameras.centres)
    torch.testing.assert_close(angle, (to_a * to_b).sum(dim=1).acos(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", [PERSPECTIVE, OPENCV, FISHEYE])
def test_the_distance_is_how_far_pixels_have_to_move(model: int) -> None:
    """A match moved across its epipolar line by s pixels in one picture is s sin away from fitting; of the least
    motion of both pixels that makes the rays meet, found by search, the Sampson distance is the first order."""
    cameras = two_cameras(model)
    uv, _ = cameras.project(points()[:6])
    moved = uv[1] + torch.tensor([1.5, -2.0], dtype=torch.float64)
    a, b = pixel_rays(cameras, 0, uv[0]), pixel_rays(cameras, 1, moved)
    found = sampson_pixels(a, b, cameras.c2w[0], cameras.c2w[1])
    for k in range(6):
        world = points()[k].clone().requires_grad_()
        optimiser = torch.optim.LBFGS([world], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14)

        def moves(world: Tensor = world, k: int = k) -> Tensor:
            uv_of, _ = cameras.project(world[None])
            return (uv_of[0, 0] - uv[0, k]).square().sum() + (uv_of[1, 0] - moved[k]).square().sum()

        def closure(optimiser: torch.optim.LBFGS = optimiser, moves: Callable[[], Tensor] = moves) -> Tensor:
            optimiser.zero_grad()
            value = moves()
            value.backward()
            return value

        optimiser.step(closure)
        assert float(found[k]) == pytest.approx(float(moves().detach().sqrt()), rel=0.02, abs=0.01)


def test_many_poses_at_once_are_the_same_as_each() -> None:
    cameras = two_cameras(OPENCV)
    uv, _ = cameras.project(points())
    a, b = (pixel_rays(cameras, i, uv[i]) for i in (0, 1))
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    poses = torch.stack([cameras.c2w, cameras.c2w @ flip])  # [2 guesses, 2 cameras, 3, 4]
    together = sampson_pixels(a, b, poses[:, 0], poses[:, 1])
    for guess, row in zip(poses, together, strict=True):
        torch.testing.assert_close(sampson_pixels(a, b, guess[0], guess[1]), row)
    assert float(together[0].max()) < 2e-3 and float(together[1].median()) > 5  # the wrong axes are far off


def test_a_mirrored_pair_shows_behind_the_cameras_alone() -> None:
    """Centres mirrored through the origin give the same epipolar lines: only the side on which rays meet differs."""
    cameras = two_cameras(PERSPECTIVE)
    uv, _ = cameras.project(points())
    a, b = (pixel_rays(cameras, i, uv[i]) for i in (0, 1))
    poses = cameras.c2w.clone()
    poses[:, :, 3] *= -1
    assert float(sampson_pixels(a, b, poses[0], poses[1]).max()) < 2e-3
    assert float(triangulate(a, b, poses[0], poses[1])[0].max()) < 0


def test_cameras_at_one_point_have_no_epipolar_lines() -> None:
    cameras = two_cameras(PERSPECTIVE)
    rays = pixel_rays(cameras, 0, torch.tensor([[10.0, 20.0]]))
    assert bool(sampson_pixels(rays, rays, cameras.c2w[0], cameras.c2w[0]).isnan().all())
