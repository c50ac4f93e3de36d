"""Exposure and white balance of single photos: the formula, the fit, and a training that learns them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fakes import FakeModel
from tiny import FIELD, make_scene, sphere_scene, train_config
from torch import Tensor

from nerf.datasets import Scene
from nerf.rendering.view import View
from nerf.training.evaluation import _exposed, evaluate
from nerf.training.exposure import apply_exposure, apply_exposure_over, fitted, remove_exposure
from nerf.training.loop import train

CONFIG = train_config(steps=300, batch_samples=1 << 12, field=replace(FIELD, density_bias=3.0))

EVERY = torch.ones(500, dtype=torch.bool)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def with_gains(scene: Scene, logs: Tensor) -> Scene:
    """The scene with photos of other exposure and white balance, saturated where they are too bright."""
    images = []
    for i in range(len(scene.names)):
        image = scene.pixels.raw(i).copy()
        rgb = torch.from_numpy(image[..., :3].astype(np.float32) / 255)
        image[..., :3] = (apply_exposure(rgb, logs[i], False).clamp(0, 1) * 255 + 0.5).numpy().astype(np.uint8)
        images.append(image)
    return make_scene(images, scene.cameras)


def test_gains_are_of_light_and_fitted_ones_are_those_applied() -> None:
    colors, logs = random(500, 3) * 0.6 + 0.2, torch.tensor([0.3, -0.2, 0.1])
    light = ((colors + 0.055) / 1.055) ** 2.4
    shown = apply_exposure(colors, logs, False)
    torch.testing.assert_close(shown, 1.055 * (light * logs.exp()) ** (1 / 2.4) - 0.055, atol=1e-5, rtol=0)
    torch.testing.assert_close(apply_exposure(colors, logs, True), colors * logs.exp())
    for linear in (False, True):
        torch.testing.assert_close(remove_exposure(apply_exposure(colors, logs, linear), logs, linear), colors)
    torch.testing.assert_close(fitted(colors, shown, EVERY), logs, atol=1e-4, rtol=0)


def test_what_is_saturated_or_masked_does_not_vote() -> None:
    colors, logs = random(500, 3) * 0.6 + 0.2, torch.tensor([0.2, 0.2, 0.2])
    shown = apply_exposure(colors, logs, False)
    shown[:100] = 1.0
    torch.testing.assert_close(fitted(colors, shown, EVERY), logs, atol=1e-4, rtol=0)
    shown[:100] = 0.5
    assert float((fitted(colors, shown, EVERY) - logs).abs().max()) > 0.01
    torch.testing.assert_close(fitted(colors, shown, torch.arange(500) >= 100), logs, atol=1e-4, rtol=0)
    assert fitted(colors, torch.ones_like(colors), EVERY).eq(0).all(), "nothing can be told"


def test_no_pixel_is_scored_by_gains_that_have_seen_it_and_the_background_has_none() -> None:
    model, gain = FakeModel(), torch.tensor([0.4, 0.3, 0.2])
    model.background = torch.tensor([0.9, 0.9, 0.9])
    opacities = torch.ones(8, 8, 1)
    opacities[:2] = 0.0
    picture = torch.where(opacities > 0, random(8, 8, 3) * 0.5 + 0.2, model.background)
    other = apply_exposure_over(picture, gain, opacities, model.background)
    assert other[:2].equal(picture[:2]) and not other[2:].isclose(picture[2:]).any()
    view = View(picture.numpy(), opacities[..., 0].numpy(), opacities[..., 0].numpy())
    score = _exposed(model, view, other, None)  # type: ignore[arg-type]
    assert score > 60, "the same gain on both sides is no error"
    score = _exposed(model, view, torch.cat([picture[:, :4], other[:, 4:]], dim=1), None)  # type: ignore[arg-type]
    assert score < 30, "the right half's own gain is not seen"


def test_photos_that_differ_in_exposure_are_learnt_with_it(tmp_path: Path) -> None:
    logs = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) * 0.25
    scene = with_gains(sphere_scene(12, 48), logs)
    ids = scene.splits["train"]
    plain = evaluate(train(scene, CONFIG, tmp_path / "a", progress=False), scene, "test", show_progress=False)
    model = train(scene, replace(CONFIG, exposure=True), tmp_path / "b", progress=False)
    found = evaluate(model, scene, "test", show_progress=False)
    assert plain.psnr_exposed is None and "left half" in str(found.protocol.psnr_exposed)
    assert found.psnr_exposed is not None and found.psnr_exposed > max(found.psnr, plain.psnr) + 1
    assert model.log_gains is not None
    wanted = logs[ids] - logs[ids].mean(dim=0)
    agree = torch.nn.functional.cosine_similarity(model.log_gains.flatten(), wanted.flatten(), dim=0)
    assert float(model.log_gains.mean(dim=0).abs().max()) < 1e-5, "what is common stays with the field"
    assert float(agree) > 0.35, "part of it is taken for a colour that depends on the direction"
