"""Exposure and white balance of single photos: the formula, the fit, and a training that learns them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeModel, ring_cameras
from tiny import FIELD, join_cameras, make_scene, sphere_scene, train_config
from torch import Tensor

from nerf.checks.verdict import LIGHT
from nerf.datasets import Scene
from nerf.io import checkpoint
from nerf.rendering.model import Model
from nerf.rendering.view import View
from nerf.training.evaluation import _exposed, evaluate
from nerf.training.exposure import (
    ExposureCorrections,
    apply_exposure,
    apply_exposure_over,
    darkened_by_lens,
    falloff,
    fitted,
    from_middle,
    lenses,
    remove_exposure,
)
from nerf.training.loop import train
from nerf.training.pose_refinement import scene_scale

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
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


def test_vignetting_is_none_over_a_picture_and_of_each_lens() -> None:
    wide, long = ring_cameras(4, 48), ring_cameras(3, 48)
    long = replace(long, fx=3 * long.fx, fy=3 * long.fy)
    cameras = join_cameras([wide, long])
    assert lenses(cameras).unique().tolist() == [0, 1] and lenses(cameras)[:4].unique().numel() == 1
    corner = from_middle(
        cameras, torch.zeros(2, dtype=torch.int64), torch.tensor([-0.5, 23.5]), torch.tensor([-0.5, 23.5])
    )
    powers = corner[0] - corner[1]
    torch.testing.assert_close(powers, torch.ones(2), msg="r^2 and r^4 are 1 in the corners and 0 in the middle")
    corrections = ExposureCorrections(cameras, torch.arange(7), gains=False)
    assert corrections.gains() is None
    corrections.values["lens"].data.copy_(torch.tensor([[-0.5, -0.2], [0.0, 0.0]]))
    learnt = corrections.vignetting()
    assert learnt is not None
    darker = darkened_by_lens(cameras.subset([0]), cameras, learnt)
    assert darker.shape == (48, 48, 1) and abs(float(darker.mean())) < 1e-3, "light in the mean of all pictures"
    assert float(darker[0, 0] - darker[24, 24]) == pytest.approx(-0.66, abs=0.02)
    flat = replace(cameras, heights=cameras.heights // 3)
    assert abs(float(darkened_by_lens(flat.subset([0]), flat, learnt).mean())) < 1e-3, "whatever their shape"
    pixels = torch.arange(48 * 48)
    at = corrections.at(torch.zeros_like(pixels), pixels // 48, pixels % 48, torch.zeros(48 * 48))
    torch.testing.assert_close(at.reshape(48, 48, 3), darker.expand(-1, -1, 3))
    assert darkened_by_lens(cameras.subset([5]), cameras, learnt).eq(0).all()
    half = darkened_by_lens(cameras.subset([0]).scaled(2), cameras, learnt)
    torch.testing.assert_close(
        half[..., 0], torch.nn.functional.avg_pool2d(darker[None, ..., 0], 2)[0], atol=0.01, rtol=0
    )


def test_a_lens_that_darkens_corners_is_learnt_and_views_are_without_it(tmp_path: Path) -> None:
    cameras = sphere_scene(16, 48).cameras
    aside = torch.tensor([-13.0, 13.0, 0.0, 13.0], dtype=torch.float64).repeat(4)  # the object is in a corner
    cameras = replace(cameras, cx=cameras.cx + aside, cy=cameras.cy + aside.roll(1))
    images = [FakeModel().render_image(cameras, i) for i in range(16)]
    rgba = [np.concatenate([v.color, v.opacity[..., None]], axis=2) for v in images]
    pixels = torch.arange(48 * 48)
    squares = from_middle(cameras, torch.zeros_like(pixels), pixels // 48, pixels % 48)[:, 0].reshape(48, 48, 1)
    dark = []
    for picture in rgba:
        shown = apply_exposure(torch.from_numpy(picture[..., :3]), -1.4 * squares, False).clamp(0, 1)
        dark.append((np.concatenate([shown.numpy(), picture[..., 3:]], axis=2) * 255 + 0.5).astype(np.uint8))
    scene = make_scene(dark, cameras)
    model = train(scene, replace(CONFIG, vignetting=True), tmp_path / "run", progress=False)
    assert model.vignetting is not None and model.log_gains is None
    assert float(model.vignetting[0].sum()) == pytest.approx(-1.4, abs=0.5)
    found = evaluate(model, scene, "test", show_progress=False)
    assert "as their camera takes them" in str(found.protocol.vignetting) and found.psnr_exposed is None
    model.vignetting = None
    before = evaluate(model, scene, "test", show_progress=False)
    assert before.psnr < found.psnr and before.protocol.vignetting is None


def test_light_from_the_camera_falls_off_with_distance() -> None:
    exponents, distances = torch.tensor([2.0, 2.0, 1.0, 2.0, 0.0]), torch.tensor([3.0, 6.0, 6.0, 0.0, 9.0])
    logs = falloff(exponents, distances, 3.0)
    torch.testing.assert_close(logs[:, 0].exp(), torch.tensor([1.0, 0.25, 0.5, 1.0, 1.0]))
    assert falloff(exponents[:1], torch.tensor([1e9]), 3.0).isfinite().all(), "no farther than what was seen"
    cameras = sphere_scene(4, 16).cameras
    corrections = ExposureCorrections(cameras, torch.arange(4), False, False, True, 3.0)
    corrections.values["flash"].data.fill_(2.0)
    at = corrections.at(torch.zeros(2).long(), torch.zeros(2), torch.zeros(2), torch.tensor([6.0, 0.0]))
    torch.testing.assert_close(at, torch.tensor([[0.25], [1.0]]).log().expand(2, 3))
    torch.testing.assert_close(corrections.falloff(), torch.tensor([[2.0, 3.0]]).expand(4, 2))
    again = ExposureCorrections(cameras, torch.arange(4), False, False, True, 3.0)
    again.restore(corrections.tensors())
    torch.testing.assert_close(again.falloff(), corrections.falloff())


def test_a_flash_is_learnt_and_views_are_without_it(tmp_path: Path) -> None:
    cameras = sphere_scene(16, 48).cameras
    factors = torch.tensor([0.8, 1.3, 1.0, 1.6], dtype=torch.float64).repeat(4)  # times as far away
    poses = cameras.c2w.clone()
    poses[:, :, 3] *= factors[:, None]
    cameras = cameras.with_poses(poses)
    reference = scene_scale(cameras, make_scene([np.zeros((48, 48, 4), np.uint8)] * 16, cameras).scene_from_world)
    lit = []
    for view in (FakeModel().render_image(cameras, i) for i in range(16)):
        logs = falloff(torch.tensor(2.0), torch.from_numpy(view.depth).flatten().float(), reference) - 0.7  # none white
        shown = apply_exposure(torch.from_numpy(view.color), logs.reshape(48, 48, 1), False).clamp(0, 1).numpy()
        lit.append((np.concatenate([shown, view.opacity[..., None]], axis=2) * 255 + 0.5).astype(np.uint8))
    scene = make_scene(lit, cameras)
    model = train(scene, CONFIG.with_settings(flash=True, flash_after=0), tmp_path / "run", progress=False)
    assert model.falloff is not None and model.vignetting is None
    assert 1.2 < float(model.falloff[0, 0]) < 2.2, "some of it is colour by direction"
    again = Model.load(tmp_path / "run" / "checkpoint.safetensors")
    assert again.falloff is not None and torch.equal(again.falloff, model.falloff)
    found = evaluate(model, scene, "test", show_progress=False)
    assert "as their camera takes them" in str(found.protocol.vignetting)
    without = train(scene, CONFIG, tmp_path / "without", progress=False)
    assert evaluate(without, scene, "test", show_progress=False).psnr < found.psnr - 3


def test_what_the_check_finds_is_learnt_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerf.checks.verdict import Finding, Verdict
    from nerf.cli import train as cli

    verdict = Verdict("fits", findings=[Finding("vignetting", "corners are darker")])
    monkeypatch.setattr(cli, "before_training", lambda how, run: verdict)

    def learnt(out: str, **options: Any) -> dict[str, bool]:
        args = cli.TrainArgs(data=SAMPLE, out=tmp_path / out, downscale=16, **options)
        cli.main(args)
        config = checkpoint.load(tmp_path / out / "checkpoint.safetensors")[1]["training"]["config"]
        return {name: config[name] for name in LIGHT}

    found = dict.fromkeys(LIGHT, False) | {"vignetting": True}
    assert learnt("auto", steps=2) == found
    assert learnt("auto", steps=4, resume=True) == found, "as it was begun"
    assert learnt("off", steps=2, exposure="off") == dict.fromkeys(LIGHT, False)
    assert learnt("on", steps=2, exposure="on") == dict.fromkeys(LIGHT, True)
