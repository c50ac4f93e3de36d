"""What moved while photos were taken is found by what other photos see in its place, and not learnt from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import ring_cameras
from tiny import make_scene, train_config
from torch import Tensor

from nerf.datasets import Scene
from nerf.geometry.space import Similarity, Unbounded
from nerf.training import distractors
from nerf.training.distractors import CELL, Distractors, left_out_in_words
from nerf.training.loop import Trainer
from nerf.training.pixel_sampler import BLOCK, PixelSampler

SIZE, N = 256, 8


class Wall:
    """A model of the inside of a cube of half size 2, painted by place; `wrong` adds noise wherever it is asked."""

    linear, exposure, background = False, 1.0, torch.ones(3)

    def __init__(self, wrong: float = 0.0) -> None:
        self.wrong, self.space = wrong, Unbounded(3)

    def behind(self, rays_d: Tensor) -> Tensor:
        return self.background

    def render_rays(self, o: Tensor, d: Tensor) -> Wall:
        self.median_depths = torch.where(d > 0, (2 - o) / d, (-2 - o) / d).amin(dim=1)
        place = o + self.median_depths[:, None] * d
        self.colours = 0.5 + 0.3 * (2 * place).sin()
        if self.wrong:
            near = (place[:, 2] > 0.3) & (place[:, 2] < 1.2)  # detail that the field cannot show, from any side
            self.colours = torch.where(near[:, None], 1 - self.colours, self.colours)
        self.opacities = torch.ones(len(o))
        return self

    def over(self, background: Tensor) -> Tensor:
        return self.colours


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unbounded, "t_to_depth", lambda self, o, d, t: t)


def photos(passers_by: dict[int, tuple[int, int, int, int]]) -> Scene:
    """Photos of the walls from within; in those named, noise within (top, bottom, left, right)."""
    cameras, model, images = ring_cameras(N, SIZE, distance=1.0, elevation=0.1, arc=1.5), Wall(), []
    cameras = replace(cameras, fx=cameras.fx * 0.6, fy=cameras.fy * 0.6)
    rows, cols = torch.arange(SIZE).repeat_interleave(SIZE), torch.arange(SIZE).repeat(SIZE)
    random = np.random.default_rng(0)
    for i in range(N):
        o, d = cameras.rays(torch.full_like(rows, i), rows, cols)
        image = (model.render_rays(o, d).colours * 255 + 0.5).numpy().astype(np.uint8).reshape(SIZE, SIZE, 3)
        if i in passers_by:
            top, bottom, left, right = passers_by[i]
            image[top:bottom, left:right] = random.integers(0, 255, (bottom - top, right - left, 3))
        images.append(image)
    fixed = {"scene_from_world": Similarity.identity(), "space": Unbounded(3), "has_alpha": False}
    return make_scene(images, cameras, 0, **fixed)


def found(scene: Scene, model: Wall) -> np.ndarray:
    """[photos, cells down, cells across] that are left out."""
    cells = Distractors(scene, torch.arange(N)).find(model, None)  # type: ignore[arg-type]
    return cells.reshape(N, SIZE // CELL, SIZE // CELL).numpy()


def test_who_passed_by_in_one_photo_is_left_out_and_nothing_else(space: None) -> None:
    where = {2: (64, 192, 96, 192), 5: (96, 224, 32, 160)}
    cells = found(photos(where), Wall())
    for i in range(N):
        if i not in where:
            assert not cells[i].any()
            continue
        top, bottom, left, right = (v // CELL for v in where[i])
        assert cells[i, top:bottom, left:right].all(), "all of the passer-by"
        assert cells[i].sum() <= (bottom - top + 2) * (right - left + 2), "and a cell around"


def test_detail_that_no_photo_shows_right_stays(space: None) -> None:
    scene = photos({2: (64, 192, 96, 192)})
    cells = found(scene, Wall(wrong=1.0))
    assert cells[[i for i in range(N) if i != 2]].mean() < 0.02, "as wrong from every side: the field is to learn it"


def test_a_photo_in_another_light_stays_whole(space: None) -> None:
    assert not found(photos({3: (0, SIZE, 0, SIZE)}), Wall()).any()


def test_cells_that_are_left_out_are_not_drawn_and_are_named() -> None:
    scene = photos({})
    sampler, judge = PixelSampler(scene, torch.arange(N)), Distractors(scene, torch.arange(N))
    cells = torch.zeros(N * (SIZE // CELL) ** 2, dtype=torch.bool)
    cells[3 * (SIZE // CELL) ** 2 + 9] = True  # the second of the second row
    sampler.left_out = judge.blocks(cells, sampler.blocks)
    assert int(sampler.left_out.sum()) == (CELL // BLOCK) ** 2
    assert left_out_in_words(scene.names, sampler) == "", "little is not worth a word"
    sampler.update_importance(0.5)
    batch = sampler.draw(40_000, torch.Generator().manual_seed(0))
    inside = (batch.image_ids == 3) & (batch.rows // CELL == 1) & (batch.cols // CELL == 1)
    assert not bool(inside.any()) and len(batch.image_ids.unique()) == N
    other = PixelSampler(scene, torch.arange(N))
    other.restore(sampler.tensors())
    assert other.left_out.equal(sampler.left_out)
    sampler.left_out[sampler.blocks[:, 0] == 3] = True
    assert "view_003.png 100 %" in left_out_in_words(scene.names, sampler)


def test_a_training_asks_early_and_then_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(self: Distractors, model: object, exposures: object, seed: int = 0) -> Tensor:
        asked.append(seed)
        return torch.zeros(len(self.photo), dtype=torch.bool)

    monkeypatch.setattr(distractors.Distractors, "find", find)
    config = train_config(steps=20, batch_samples=1 << 9).with_settings(importance_after=8, distractors_after=4)
    trainer = Trainer(photos({}), config)
    for _ in range(20):
        trainer.train_step()
    assert asked == [4, 8, 16]
    assert Trainer(photos({}), replace(config, distractors=False)).distractors is None
