"""Rays a pixel: as many as make them no wider than the photos' pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fakes import FakeModel, ring_cameras

from nerf.geometry.cameras import Cameras
from nerf.rendering.footprint import averaged, rays_a_side
from nerf.rendering.view import View
from nerf.views.paths import CameraPath
from nerf.views.video import render_video

SIZE = 32


def pooled(values: np.ndarray, n: int) -> np.ndarray:
    h, w = values.shape[:2]
    mean: np.ndarray = values.reshape(h // n, n, w // n, n, -1).mean(axis=(1, 3))
    return mean


def test_a_small_picture_is_the_mean_of_a_large_one() -> None:
    model = FakeModel(cameras=ring_cameras(size=SIZE))
    large = model.render_image(model.cameras, 0)
    for n in (2, 4):
        camera = model.cameras.subset([0]).scaled(n)
        assert rays_a_side(model, camera) == n
        small = model.render_image(camera, 0)
        assert np.abs(small.color - pooled(large.color, n)).max() < 1e-5
        assert np.abs(small.opacity - pooled(large.opacity, n)[..., 0]).max() < 1e-5
        thin = model.render_image(camera, 0, samples=1)
        assert np.abs(thin.color - pooled(large.color, n)).max() > 0.1, "one ray a pixel: jagged edges"
        assert small.normal is not None and large.normal is not None
        inside = pooled((large.opacity > 0.999).astype(float), n)[..., 0] == 1
        assert (small.normal[inside] * pooled(large.normal, n)[inside]).sum(axis=-1).min() > 0.9
        assert np.abs(small.depth - pooled(large.depth, n)[..., 0])[inside].max() < 1e-5
    same = model.render_image(model.cameras, 0, samples=1)
    assert same.color.tobytes() == large.color.tobytes(), "photos' pixels take one ray"


def test_pixels_are_wider_from_farther_away() -> None:
    model = FakeModel(cameras=ring_cameras(size=SIZE))
    counts = [rays_a_side(model, ring_cameras(1, SIZE, distance)) for distance in (2.0, 4.0, 8.0, 12.5, 100.0)]
    assert counts[:3] == [1, 1, 2] and counts[3] in (3, 4) and counts[4] == 8
    finer = Cameras.perspective(ring_cameras(1, SIZE, 8.0).c2w, 2 * 1.3 * SIZE, SIZE, SIZE)
    assert rays_a_side(model, finer) == 1, "a longer lens makes up for it"


def test_views_of_nothing_take_one_ray_a_pixel() -> None:
    model = FakeModel(cameras=ring_cameras(size=SIZE))
    away = ring_cameras(1, SIZE)
    away.c2w[:, :, [0, 2]] *= -1  # turned about
    assert rays_a_side(model, away.scaled(4)) == 1
    unseen = FakeModel(cameras=replace(away))  # photos of something else
    assert rays_a_side(unseen, ring_cameras(1, SIZE).scaled(4)) == 1


def test_depths_are_those_of_what_is_met() -> None:
    view = View(torch.ones(4, 3), torch.tensor([1.0, 0, 1, 1]), torch.tensor([2.0, 0, 4, 6]), torch.zeros(4, 3))
    mean = averaged(view, 2)
    assert mean.depth.tolist() == [2.0, 5.0] and mean.opacity.tolist() == [0.5, 1.0] and mean.color.shape == (2, 3)


def test_films_take_as_many_rays_as_they_are_told(tmp_path: Path) -> None:
    model = FakeModel(cameras=ring_cameras(size=SIZE))
    path = CameraPath(model.cameras.subset([0, 1]).scaled(2), 24.0, "a ring at half size")
    pictures = []
    for samples in (None, 1, 2):
        (folder,) = render_video(model, path, tmp_path / f"of{samples}", show_progress=False, samples=samples)
        pictures.append((folder / "00000.png").read_bytes())
    assert pictures[0] == pictures[2] != pictures[1]
