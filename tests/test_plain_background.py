"""An object before a background of one colour: found, cut out, and learnt as what it is, without alpha."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import FIELD, sphere_scene, train_config

from nerf.datasets import Scene
from nerf.datasets.plain import before_background, plain_background
from nerf.training.evaluation import evaluate
from nerf.training.loop import train

CONFIG = train_config(steps=300, batch_samples=1 << 12, field=replace(FIELD, density_bias=3.0))


def opaque(colour: float, n: int = 12, side: int = 48) -> Scene:
    """The sphere's photos before a background of this grey, as files without alpha have them."""
    scene = sphere_scene(n, side)
    images = [scene.pixels.raw(i).astype(np.float32) / 255 for i in range(len(scene.names))]
    over = [image[..., :3] * image[..., 3:] + colour * (1 - image[..., 3:]) for image in images]
    c = scene.cameras
    lens = [float(c.fx[0]), float(c.fy[0]), float(c.cx[0]), float(c.cy[0])]
    return Scene.from_arrays([(v * 255 + 0.5).astype(np.uint8) for v in over], c.c2w, lens)


@pytest.mark.parametrize("colour", [1.0, 0.5, 0.0])
def test_an_object_before_one_colour_is_learnt_like_one_with_alpha(colour: float, tmp_path: Path) -> None:
    scene = opaque(colour)
    assert scene.space.name == "box" and not scene.has_alpha and scene.has_silhouettes
    assert scene.background is not None
    torch.testing.assert_close(scene.background, torch.full((3,), colour), atol=0.01, rtol=0)
    assert "before one colour" in " ".join(scene.notes)
    truth = sphere_scene(12, 48)
    for i in range(3):
        alpha, found = truth.pixels.raw(i)[..., 3] > 0, scene.silhouette(i)
        assert not (alpha & ~found)[truth.pixels.raw(i)[..., 3] > 64].any(), "nothing of the object is left out"
        assert found.mean() < alpha.mean() + 0.25, "blocks of 4 pixels of a picture of 48"
    model = train(scene, CONFIG, tmp_path / "run", progress=False)
    torch.testing.assert_close(model.background, scene.background)
    with_alpha = evaluate(train(truth, CONFIG, tmp_path / "a", progress=False), truth, "test", show_progress=False)
    found = evaluate(model, scene, "test", show_progress=False)
    assert found.psnr > with_alpha.psnr - 3, "seeds differ by 3 dB; fog: 12 dB less"


def test_what_has_the_background_s_colour_within_the_object_stays() -> None:
    image = torch.ones(40, 60, 3)
    image[8:32, 8:52] = 0.2
    image[16:24, 20:40] = 1.0  # a white patch, or a hole: which of them does not show
    found = before_background(image, torch.ones(3))
    assert found[8:32, 8:52].all() and not found[:4].any() and not found[:, :4].any() and not found[-4:].any()
    spiral = torch.zeros(40, 40, 1)  # a path of background that turns inwards
    spiral[:, :4] = spiral[36:, :] = spiral[:36, 36:] = spiral[:4, 8:] = spiral[4:28, 8:12] = 1.0
    assert not before_background(spiral, torch.ones(3))[12:20, 8:12].any()


def test_photos_of_a_place_have_no_plain_background() -> None:
    random = np.random.default_rng(0)
    scene = opaque(0.5)
    noisy = [scene.pixels.raw(i) + random.integers(0, 60, (48, 48, 1), np.uint8) for i in range(len(scene.names))]
    c = scene.cameras
    lens = [float(c.fx[0]), float(c.fy[0]), float(c.cx[0]), float(c.cy[0])]
    assert Scene.from_arrays(noisy, c.c2w, lens).background is None
    thin = [np.pad(image[1:-1, 1:-1], ((1, 1), (1, 1), (0, 0))) for image in noisy]
    assert Scene.from_arrays(thin, c.c2w, lens).background is None, "the black that undistortion leaves"
    asked = Scene.from_arrays([scene.pixels.raw(i) for i in range(len(noisy))], c.c2w, lens, space="unbounded")
    assert asked.background is None and asked.space.name == "unbounded"
    assert plain_background(scene.pixels, [0, 1, 2]) is not None
