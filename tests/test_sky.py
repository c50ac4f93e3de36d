"""What is behind everything in an open scene: the photos' colours by direction, nowhere the field's business."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from fakes import FakeModel
from tiny import numbered_scene, sphere_scene, train_config

from nerf.geometry.space import Unbounded
from nerf.rendering.model import Model
from nerf.rendering.sky import TERMS, fit_sky, sky_colours
from nerf.training.loop import train

CONFIG = train_config(steps=2, batch_samples=1 << 10)


def directions(n: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), dim=1)


def test_colours_that_change_slowly_with_the_direction_come_back() -> None:
    d = directions(4000)
    truth = torch.stack([0.5 + 0.2 * d[:, 2], 0.4 + 0.1 * d[:, 0] * d[:, 1], 0.3 + 0.2 * d[:, 1].square()], dim=1)
    sky = fit_sky(truth, d)
    assert sky.shape == (TERMS, 3) and sky.dtype == torch.float32
    torch.testing.assert_close(sky_colours(sky, d[:50]), truth[:50], atol=3e-3, rtol=0)
    ahead = d[d[:, 2] > 0.8]  # photos of one side only: what lies behind them is not made up beyond all bounds
    behind = sky_colours(fit_sky(torch.full_like(ahead, 0.6), ahead), torch.tensor([[0.0, 0.0, -1.0]]))
    assert 0 <= float(behind.min()) and float(behind.max()) < 1.5


def test_an_open_scene_shows_its_photos_mean_where_it_holds_nothing(tmp_path: Path) -> None:
    scene = numbered_scene([(8, 8)] * 4)
    scene = replace(scene, space=Unbounded(2), near=0.1, has_alpha=False, masks=None)
    model = train(scene, CONFIG, tmp_path, progress=False)
    assert model.sky is not None
    again = Model.load(tmp_path)
    assert again.sky is not None and again.sky.equal(model.sky)
    again.occupancy.restrict(lambda centres, sizes: torch.zeros(len(centres), dtype=torch.bool))
    d = directions(10)
    seen = again.trace(torch.zeros(10, 3), d, normals=False)
    torch.testing.assert_close(seen.color, sky_colours(model.sky, d).clamp(0, 1))


def test_objects_keep_the_one_colour_behind_them(tmp_path: Path) -> None:
    model = train(sphere_scene(6, 12), CONFIG, tmp_path, progress=False)
    assert model.sky is None and model.behind(directions(3)).equal(model.background)
    assert FakeModel().behind(directions(3)).shape == (3,)
