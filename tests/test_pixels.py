"""PixelSampler: every pixel that can teach something is drawn, evenly at first, then where the error is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import cameras_of, generator, make_scene, numbered_scene, sphere_scene, store

from nerf.datasets.bits import packed
from nerf.errors import UserError
from nerf.training.pixel_sampler import BLOCK, PixelBatch, PixelSampler


def draw(sampler: PixelSampler, n: int, seed: int = 0) -> PixelBatch:
    return sampler.draw(n, generator(seed))


@pytest.mark.parametrize("channels", [3, 4])
def test_a_batch_holds_the_colours_of_its_pixels(channels: int) -> None:
    scene = numbered_scene([(40, 60), (33, 17)], channels)
    batch = draw(PixelSampler(scene, torch.arange(2)), 500)
    place = torch.stack([batch.image_ids, batch.rows, batch.cols], dim=1)
    torch.testing.assert_close(batch.rgb, place / 255)
    assert batch.rgb.shape == (500, 3) and batch.alpha.shape == (500, 1) and bool((batch.alpha == 1).all())
    assert batch.used is None
    for t in (batch.image_ids, batch.rows, batch.cols, batch.blocks):
        assert t.shape == (500,) and t.dtype == torch.int64


def test_every_pixel_can_be_drawn_and_none_beyond() -> None:
    sizes = [(20, 35), (16, 16), (1, 1)]
    scene = numbered_scene(sizes)
    sampler = PixelSampler(scene, torch.arange(3))
    seen: Counter[tuple[int, int, int]] = Counter()
    for seed in range(30):
        batch = draw(sampler, 2000, seed)
        seen.update(zip(batch.image_ids.tolist(), batch.rows.tolist(), batch.cols.tolist(), strict=True))
    assert set(seen) == {(i, r, c) for i, (h, w) in enumerate(sizes) for r in range(h) for c in range(w)}


def test_only_the_images_asked_for_are_drawn() -> None:
    scene = numbered_scene([(20, 20)] * 4)
    batch = draw(PixelSampler(scene, torch.tensor([1, 3])), 400)
    assert set(batch.image_ids.tolist()) == {1, 3}


def test_blocks_are_drawn_evenly_at_first() -> None:
    scene = numbered_scene([(64, 64)] * 2)
    sampler = PixelSampler(scene, torch.arange(2))
    assert len(sampler.blocks) == 2 * (64 // BLOCK) ** 2
    counts = torch.bincount(draw(sampler, 3200).blocks, minlength=len(sampler.blocks))
    # Systematic sampling: each block gets its share to within one draw.
    assert int(counts.min()) >= 99 and int(counts.max()) <= 101


def test_the_same_generator_draws_the_same_pixels() -> None:
    scene = sphere_scene(4)
    one, two = (draw(PixelSampler(scene, scene.splits["train"]), 300, 5) for _ in range(2))
    other = draw(PixelSampler(scene, scene.splits["train"]), 300, 6)
    assert torch.equal(one.rows, two.rows) and torch.equal(one.rgb, two.rgb)
    assert not torch.equal(one.rows, other.rows)


def test_background_far_from_silhouettes_is_left_out() -> None:
    image = np.zeros((160, 160, 4), np.uint8)
    image[70:90, 70:90] = 255
    scene = make_scene([image], cameras_of([(160, 160)]), n_test=0)
    sampler = PixelSampler(scene, torch.arange(1))
    rows, cols = sampler.blocks[:, 1] * BLOCK, sampler.blocks[:, 2] * BLOCK
    # All blocks that touch the object or its neighbourhood stay, so that its outline is learnt; corners go.
    for r in range(0, 160, BLOCK):
        for c in range(0, 160, BLOCK):
            listed = bool(((rows == r) & (cols == c)).any())
            near = r + 2 * BLOCK > 70 and r - BLOCK < 90 and c + 2 * BLOCK > 70 and c - BLOCK < 90
            assert listed == near, (r, c)


@pytest.mark.parametrize("speck", [(0, 0), (37, 49), (36, 0), (16, 48)])
def test_no_shown_pixel_is_ever_left_out(speck: tuple[int, int]) -> None:
    image = np.zeros((37, 50, 4), np.uint8)
    row, col = min(speck[0], 36), min(speck[1], 49)
    image[row, col] = [9, 9, 9, 1]  # barely there
    scene = make_scene([image], cameras_of([(37, 50)]), n_test=0)
    sampler = PixelSampler(scene, torch.arange(1))
    found = {(r, c) for r, c in sampler.blocks[:, 1:].tolist()}
    assert (row // BLOCK, col // BLOCK) in found


def test_grey_images_have_three_equal_colours() -> None:
    for channels in (1, 2):
        image = np.random.default_rng(0).integers(1, 255, (32, 32, channels)).astype(np.uint8)
        scene = make_scene([image], cameras_of([(32, 32)]), n_test=0)
        batch = draw(PixelSampler(scene, torch.arange(1)), 200)
        expected = torch.from_numpy(image[batch.rows, batch.cols]).float() / 255
        torch.testing.assert_close(batch.rgb, expected[:, :1].expand(-1, 3))
        torch.testing.assert_close(batch.alpha, expected[:, 1:] if channels == 2 else torch.ones(200, 1))


def test_masks_say_which_pixels_are_used() -> None:
    scene = numbered_scene([(32, 48)])
    mask = np.zeros((32, 48, 1), np.uint8)
    mask[:, 20:] = 255
    batch = draw(PixelSampler(replace(scene, masks=store([mask])), torch.arange(1)), 300)
    assert batch.used is not None and batch.used.shape == (300, 1)
    assert torch.equal(batch.used[:, 0] > 0, batch.cols >= 20)
    assert int(batch.cols.min()) == 16, "a block that is masked whole teaches nothing"


def test_what_was_learnt_from_other_pixels_is_not_gone_on_with() -> None:
    scene = numbered_scene([(32, 48)])
    mask = np.zeros((32, 48, 1), np.uint8)
    mask[:, 20:] = 255
    state = PixelSampler(scene, torch.arange(1)).tensors()
    with pytest.raises(UserError, match="from 6 blocks of pixels, now there are 4"):
        PixelSampler(replace(scene, masks=store([mask])), torch.arange(1)).restore(state)


def test_masks_in_bits_are_the_masks() -> None:
    random, sizes = np.random.default_rng(0), [(5, 7), (8, 8), (33, 20)]
    masks = [random.integers(0, 256, (h, w, 1)).astype(np.uint8) for h, w in sizes]
    bits, plain = packed(sizes, lambda i: masks[i]), store(masks)
    assert bits.memory.nbytes == 5 + 8 + 83, "a bit a pixel, and each image begins with a byte"
    for i in range(3):
        assert torch.equal(bits.image(i) > 0.5, plain.image(i) > 0.5)
    ids = torch.randint(3, (1000,))
    rows, cols = ((torch.rand(1000) * size[ids]).long() for size in (bits.heights, bits.widths))
    assert torch.equal(bits.gather(ids, rows, cols), (plain.gather(ids, rows, cols) > 0.5).float())


def test_errors_draw_attention() -> None:
    scene = numbered_scene([(64, 64)])
    sampler = PixelSampler(scene, torch.arange(1))
    batch = draw(sampler, 1600)
    errors = torch.where(batch.blocks == 5, 1.0, 0.01)
    sampler.record(batch, errors)
    sampler.update_importance(0.5)
    counts = torch.bincount(draw(sampler, 16_000).blocks, minlength=16).float() / 16_000
    # Half evenly, half in proportion to the block's mean error.
    expected = 0.5 / 16 + 0.5 * torch.where(torch.arange(16) == 5, 1.0, 0.01) / 1.15
    torch.testing.assert_close(counts, expected, rtol=0, atol=2e-4)


def test_a_block_never_drawn_counts_as_average() -> None:
    sampler = PixelSampler(numbered_scene([(64, 64)]), torch.arange(1))
    batch = draw(sampler, 1600)
    keep = batch.blocks < 8
    names = ("image_ids", "rows", "cols", "blocks", "rgb", "alpha")
    some = replace(batch, **{k: getattr(batch, k)[keep] for k in names})
    sampler.record(some, torch.full((int(keep.sum()),), 0.3))
    sampler.update_importance(0.9)
    counts = torch.bincount(draw(sampler, 16_000).blocks, minlength=16)
    assert int(counts.min()) >= 990 and int(counts.max()) <= 1010


def test_focus_on_no_errors_at_all_still_draws_everything() -> None:
    sampler = PixelSampler(numbered_scene([(64, 64)]), torch.arange(1))
    sampler.update_importance(0.5)  # nothing recorded
    assert len(draw(sampler, 1600).blocks.unique()) == 16
    batch = draw(sampler, 1600)
    sampler.record(batch, torch.zeros(1600))  # a perfect picture
    sampler.update_importance(0.5)
    assert len(draw(sampler, 1600).blocks.unique()) == 16


def test_the_error_map_comes_back_from_its_tensors() -> None:
    scene = sphere_scene(3)
    sampler, again = (PixelSampler(scene, scene.splits["train"]) for _ in range(2))
    assert "cumulative" not in sampler.tensors()
    for seed in range(3):
        batch = draw(sampler, 400, seed)
        sampler.record(batch, batch.rgb[:, 0])
        sampler.update_importance(0.5)
    again.restore({k: t.clone() for k, t in sampler.tensors().items()})
    assert torch.equal(draw(sampler, 400, 9).rows, draw(again, 400, 9).rows)


def test_a_scene_that_shows_nothing_is_refused_in_a_sentence() -> None:
    scene = make_scene([np.zeros((32, 32, 4), np.uint8)] * 2, cameras_of([(32, 32)] * 2), n_test=0)
    with pytest.raises(UserError, match="transparent"):
        PixelSampler(scene, torch.arange(2))
