"""Black borders of undistorted pictures: found to the pixel, left out, and told from dark places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from nerf.datasets import Scene
from nerf.datasets.borders import black_border, joined_to_edges
from nerf.training.pixel_sampler import PixelSampler

H, W = 120, 160
Y, X = np.mgrid[-1 : 1 : H * 1j, -1 : 1 : W * 1j]
PILLOW = np.abs(X) > 1 - 0.15 * (1 - Y**2)  # what undistorting a barrel leaves at two sides


def scene_of(paint: Callable[[int, np.ndarray], np.ndarray], n: int = 6, **given: object) -> Scene:
    """A noisy place that cameras on a line look at, each picture painted over."""
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, 0, 3] = np.linspace(-1, 1, n)
    poses[:, 2, 3] = 4
    pictures = [np.random.default_rng(i).integers(20, 256, (H, W, 3), np.uint8) for i in range(n)]
    painted = [paint(i, picture).astype(np.uint8) for i, picture in enumerate(pictures)]
    return Scene.from_arrays(painted, poses, [150.0, 150.0, W / 2, H / 2], space="unbounded", **given)


def test_black_borders_are_left_out_to_the_pixel() -> None:
    scene = scene_of(lambda i, p: np.where(PILLOW[..., None], i % 3, p))
    assert scene.masks is not None and "black borders" in " ".join(scene.notes)
    used = scene.masks.image(0)[..., 0].numpy() > 0.5
    assert not used[PILLOW].any()
    lost = (~used & ~PILLOW).sum() / (~PILLOW).sum()
    assert lost < 0.05, "two pixels beside it"
    batch = PixelSampler(scene, torch.arange(6)).draw(4096, torch.Generator().manual_seed(0))
    assert batch.used is not None
    black = torch.from_numpy(PILLOW)[batch.rows, batch.cols]
    assert 0 < black.float().mean() < 0.2 and not batch.used[black].any()


def test_pictures_of_other_sizes_and_masks_that_are_given_stay() -> None:
    whole = scene_of(lambda i, p: p)
    assert whole.masks is None
    given = [np.ones((H, W), np.uint8)] * 6
    asked = scene_of(lambda i, p: np.where(PILLOW[..., None], 0, p), masks=given)
    assert asked.masks is not None and bool((asked.masks.image(0) > 0.5).all())
    assert "black borders" not in " ".join(asked.notes)


def test_dark_places_are_no_border() -> None:
    def night(i: int, p: np.ndarray) -> np.ndarray:  # lamps here and there
        lit = (X - 0.3 * np.sin(i)) ** 2 + (Y - 0.2 * np.cos(2 * i)) ** 2 < 0.1
        return np.where(lit[..., None], p, 0)

    def shaded(i: int, p: np.ndarray) -> np.ndarray:  # a dark side in all photos but one
        return np.where((X < -0.8)[..., None] & (i != 3), 0, p)

    def dark_within(i: int, p: np.ndarray) -> np.ndarray:
        return np.where((X**2 + Y**2 < 0.2)[..., None], 0, p)

    for paint in (night, shaded, dark_within):
        assert scene_of(paint).masks is None, paint.__name__
    assert scene_of(lambda i, p: np.where(PILLOW[..., None], 0, p), n=2).masks is None, "two pictures say nothing"


def test_what_is_joined_to_the_edges_is_followed_around_corners() -> None:
    there = np.zeros((40, 40), bool)
    there[:, :4] = there[36:] = there[:36, 36:] = there[:4, 8:] = there[4:28, 8:12] = True  # a spiral
    island = there.copy()
    island[16:20, 20:24] = True
    assert (joined_to_edges(island) == there).all()
    assert black_border(np.zeros((5, 20, 20), bool)) is None and black_border(np.ones((5, 20, 20), bool)) is None
