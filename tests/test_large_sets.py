"""Sets that do not fit into memory: sizes, area averages, the file of tiles, the working set, training from it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captures import draw, pose
from PIL import Image
from tiny import FIELD, generator, numbered_scene, sphere_scene

import nerf
from nerf.datasets import load, resize, tiles
from nerf.datasets import scene as assembling
from nerf.datasets import scene as scene_module
from nerf.datasets.store import PixelStore
from nerf.datasets.tiles import TILE, tiled
from nerf.errors import UserError
from nerf.io import images, threads
from nerf.io.images import Picture, read_header, read_pixels
from nerf.io.threads import threads_within
from nerf.training.config import TrainConfig
from nerf.training.loop import Trainer
from nerf.training.pixel_cache import TileSampler, sampler_of
from nerf.training.pixel_sampler import PixelSampler

# ---- smaller pictures


def exact_area(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The same mean by repeating every pixel until the new ones cover whole numbers of them."""
    h, w, c = image.shape
    rows = image.astype(np.float64).repeat(size[0], axis=0).reshape(size[0], h, w, c).mean(axis=1)
    return rows.repeat(size[1], axis=1).reshape(size[0], size[1], w, c).mean(axis=2)


@pytest.mark.parametrize("size", [(8, 12), (16, 30), (7, 11), (5, 30), (13, 12), (1, 1)])
def test_the_area_average_is_that_of_finer_pixels(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 30, 3), dtype=np.uint8)
    got = resize.area_average(image, size)
    assert got.shape == (*size, 3) and got.dtype == np.uint8
    assert np.abs(got - exact_area(image, size)).max() <= 0.5 + 1e-3
    deep = image.astype(np.uint16) * 257
    assert np.abs(resize.area_average(deep, size) - exact_area(deep, size)).max() <= 0.5 + 0.05
    half = (image / 255).astype(np.float16)
    assert np.abs(resize.area_average(half, size) - exact_area(half, size)).max() < 1e-3


def test_colours_are_weighted_by_alpha_and_kept_where_there_is_none() -> None:
    image = np.random.default_rng(1).integers(0, 256, (10, 15, 4), dtype=np.uint8)
    image[:4, :6, 3] = 0
    got = resize.area_average(image, (4, 5))
    alpha = exact_area(image[..., 3:], (4, 5))
    weighted = exact_area(image[..., :3].astype(float) * image[..., 3:], (4, 5)) / np.maximum(alpha, 1e-9)
    seen = alpha[..., 0] > 0
    assert np.abs(got[..., :3] - weighted)[seen].max() <= 0.51 and np.abs(got[..., 3:] - alpha).max() <= 0.51
    plain = exact_area(image[..., :3], (4, 5))[~seen]
    assert len(plain) and np.abs(got[~seen][:, :3] - plain).max() <= 0.51
    whole = image[:, :14]
    assert np.abs(resize.area_average(whole, (5, 7)).astype(int) - resize.shrink(whole, 2)).max() <= 1


def test_a_jpeg_is_reduced_while_it_is_decoded_where_nothing_is_left_over(tmp_path: Path) -> None:
    Image.fromarray(draw(pose(1, 8), 400, 296)).save(tmp_path / "a.jpg", quality=95)
    picture = read_header(tmp_path / "a.jpg")
    assert [resize.jpeg_reduction(picture, (round(0.74 * n), n)) for n in (400, 201, 200, 160, 100, 50)] == [
        1, 1, 2, 2, 4, 8,
    ]  # fmt: skip
    assert resize.jpeg_reduction(replace(picture, width=402), (74, 100)) == 2
    whole, reduced = read_pixels(picture), read_pixels(picture, 2)
    assert reduced.shape == (148, 200, 3)
    a, b = (resize.area_average(p, (118, 160)).astype(float) for p in (whole, reduced))
    assert -10 * np.log10(((a - b) ** 2).mean() / 255**2) > 38, "the decoder's reduction is close to the area average"
    shift = [np.abs(np.roll(b, k, axis=1) - a)[:, 4:-4].mean() for k in (-1, 0, 1)]
    assert shift[1] < 0.3 * min(shift[0], shift[2])


def test_only_large_sets_are_reduced_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def pictures(n: int, w: int, h: int) -> list[Picture]:
        return [Picture(Path(f"{k}.jpg"), w, h, 3, np.dtype(np.uint8)) for k in range(n)]

    few, many = pictures(50, 4000, 3000), pictures(1000, 4000, 3000)
    assert resize.choose_sizes(few, 1, None, 3) == resize.Sizes([(3000, 4000)] * 50, None)
    chosen = resize.choose_sizes(many, 1, None, 3)
    assert chosen.sizes == [(1200, 1600)] * 1000 and "36.0 GB" in chosen.note and "--longest" in chosen.note
    assert resize.choose_sizes(many, 1, 4000, 3).longest is None, "asked for as they are"
    assert resize.choose_sizes(many, 4, None, 3).longest is None, "750x1000 of each fits"
    assert resize.choose_sizes(pictures(2, 300, 401), 2, 100, 3).sizes == [(100, 75)] * 2
    assert resize.choose_sizes(pictures(3000, 900, 900), 1, None, 3).longest is None, "small ones are never enlarged"


# ---- a data set of two sizes


def write_set(folder: Path, n: int = 6, suffix: str = "png", masks: bool = False) -> Path:
    frames = []
    (folder / "images").mkdir(parents=True)
    for k in range(n):
        w, h = (320, 240) if k % 2 else (240, 320)
        Image.fromarray(draw(pose(k, n), w, h)).save(folder / "images" / f"{k}.{suffix}")
        matrix = [*pose(k, n).tolist(), [0.0, 0.0, 0.0, 1.0]]
        frame: dict[str, Any] = {"file_path": f"images/{k}.{suffix}", "transform_matrix": matrix}
        frame |= {"w": w, "h": h, "fl_x": 300.0, "cx": w / 2 + 3, "cy": h / 2 - 2}
        if masks:
            mask = np.full((h, w), 255, np.uint8)
            mask[:, : w // 2] = 0
            Image.fromarray(mask).save(folder / f"mask_{k}.png")
            frame["mask_path"] = f"mask_{k}.png"
        frames.append(frame)
    (folder / "transforms.json").write_text(json.dumps({"frames": frames}))
    return folder


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resize, "LARGE", 400_000)
    monkeypatch.setattr(resize, "LONGEST", 200)
    monkeypatch.setattr(assembling, "FROM", 100_000)
    monkeypatch.setenv("NERF_CACHE_DIR", str(tmp_path / "cache"))


def test_reduced_photos_and_their_cameras_fit_each_other(tmp_path: Path) -> None:
    """A point falls on the same place of the picture, measured from its corner, at every size."""
    folder = write_set(tmp_path / "set")
    full, small = load(folder, quiet=True), load(folder, quiet=True, longest=130)
    assert not small.pixels.tile and sorted(set(small.cameras.widths.tolist())) == [98, 130]
    for i in range(6):
        image = read_pixels(read_header(folder / "images" / f"{i}.png"))
        size = int(small.cameras.heights[i]), int(small.cameras.widths[i])
        assert np.abs(small.pixels.raw(i) - exact_area(image, size)).max() <= 0.51
    points = torch.rand(20, 3, dtype=torch.float64)
    a, b = full.cameras.project(points)[0], small.cameras.project(points)[0]
    size_a, size_b = (torch.stack([s.cameras.widths, s.cameras.heights], dim=1)[:, None] for s in (full, small))
    assert torch.allclose(a / size_a, b / size_b, atol=1e-12)
    assert full.photo_cameras is not None and torch.equal(small.photo_cameras.fx, full.cameras.fx)
    assert any("130 pixels on the longer side" in line for line in small.notes)


def test_a_large_set_is_converted_once_and_used_again(
    tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_set(tmp_path / "set", masks=True)
    first = load(folder, quiet=True)
    said = capsys.readouterr().err
    assert "converting 6 once" in said and str(folder / "nerf-pixels") in said
    assert first.pixels.tile == TILE and first.masks is not None and first.masks.tile == TILE
    wanted = load(folder, quiet=True, longest=200)
    monkeypatch.setattr(assembling, "FROM", 1 << 40)
    plain = load(folder, quiet=True)
    monkeypatch.setattr(assembling, "FROM", 100_000)
    assert not plain.pixels.tile
    for i in range(6):
        assert np.array_equal(first.pixels.raw(i), plain.pixels.raw(i))
        assert torch.equal(first.pixels.image(i), plain.pixels.image(i))
        assert torch.equal(wanted.pixels.image(i), plain.pixels.image(i))
        assert torch.equal(first.masks.image(i) > 0.5, plain.masks.image(i) > 0.5)  # type: ignore[union-attr]
    ids = torch.randint(6, (500,))
    rows, cols = ((torch.rand(500) * size[ids]).long() for size in (first.pixels.heights, first.pixels.widths))
    assert torch.equal(first.pixels.gather(ids, rows, cols), plain.pixels.gather(ids, rows, cols))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a photo was decoded again")

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(scene_module, "read_pixels", never)
        again = load(folder, quiet=True)
    assert "used again" in capsys.readouterr().err and np.array_equal(again.pixels.memory, first.pixels.memory)
    assert (again.pixels.ranges == first.pixels.ranges).all()

    before = {p.name for p in (folder / "nerf-pixels").glob("*.bin")}
    Image.fromarray(255 - draw(pose(3, 6))).save(folder / "images" / "3.png")
    changed = load(folder, quiet=True)
    assert not np.array_equal(changed.pixels.raw(3), first.pixels.raw(3))
    after = {p.name for p in (folder / "nerf-pixels").glob("*.bin")}
    assert "its photos have changed" in capsys.readouterr().err
    assert len(after) == len(before) == 2 and not after & before


def test_what_is_interrupted_leaves_nothing_and_is_never_used(
    tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "set")
    place = folder / "nerf-pixels"
    real, count = read_pixels, []

    def stopped(*a: Any) -> np.ndarray:
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return real(*a)

    with monkeypatch.context() as patch:
        patch.setattr(scene_module, "read_pixels", stopped)
        with pytest.raises(KeyboardInterrupt):
            load(folder, quiet=True)
    assert [p.name for p in place.iterdir()] == [".lock"]
    good = load(folder, quiet=True).pixels.memory.copy()
    (data,) = place.glob("*.bin")
    (index,) = place.glob("*.npz")
    index.unlink()  # killed between the two files
    (place / ".pixels-0123.bin.tmp").write_bytes(b"killed while it was written")
    assert np.array_equal(load(folder, quiet=True).pixels.memory, good)
    assert sorted(p.name for p in place.iterdir()) == sorted([".lock", data.name, index.name])
    os.truncate(data, 5000)
    assert np.array_equal(load(folder, quiet=True).pixels.memory, good)


def test_a_full_disk_and_a_damaged_photo_are_one_sentence(
    tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "set")
    place = folder / "nerf-pixels"
    with monkeypatch.context() as patch:
        patch.setattr(tiles.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
        with pytest.raises(UserError, match="make room there, or take a smaller --longest") as caught:
            load(folder, quiet=True)
        assert str(place) in str(caught.value)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)  # the disk filled up meanwhile
        with pytest.raises(UserError, match="No space left on device"):
            load(folder, quiet=True)
    (folder / "images" / "4.png").write_bytes((folder / "images" / "4.png").read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"4.png: the image is damaged"):
        load(folder, quiet=True)
    assert [p.name for p in place.iterdir()] == [".lock"]


def test_a_data_set_that_cannot_be_written_to(
    tmp_path: Path, small_limits: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "nerf-pixels").write_text("in the way")  # root may write anywhere else
    assert load(folder, quiet=True).pixels.tile == TILE
    assert f"{tmp_path / 'cache' / 'nerf-pixels'}" in capsys.readouterr().err
    load(folder, quiet=True)
    assert "used again" in capsys.readouterr().err
    (tmp_path / "other").write_text("in the way")
    monkeypatch.setenv("NERF_CACHE_DIR", str(tmp_path / "other"))
    with pytest.raises(UserError, match="set NERF_CACHE_DIR"):
        load(folder, quiet=True)


# ---- the working set


def in_tiles(store: PixelStore, folder: Path, name: str) -> PixelStore:
    sizes = list(zip(store.heights.tolist(), store.widths.tolist(), strict=True))
    return tiled(folder, [], {"what": name}, sizes, store.n_channels, store.memory.dtype, store.raw, name)


@pytest.fixture
def wide(tmp_path: Path) -> nerf.datasets.Scene:
    """Opaque images whose colours are (image, row, column) / 255, as a store in tiles."""
    scene = numbered_scene([(150, 200), (64, 64), (70, 130)], 3)
    return replace(scene, pixels=in_tiles(scene.pixels, tmp_path, "pixels"))


def test_every_pixel_is_drawn_evenly_and_holds_its_colour(wide: nerf.datasets.Scene) -> None:
    sampler = sampler_of(wide, torch.arange(3))
    assert isinstance(sampler, TileSampler)
    assert isinstance(sampler_of(numbered_scene([(9, 9)]), torch.arange(1)), PixelSampler)
    taken = torch.bincount(sampler._choose(100_000, generator(1)), minlength=len(sampler.numbers))
    areas = sampler.places[:, 3] * sampler.places[:, 4]
    assert (taken - 100_000 * areas / areas.sum()).abs().max() <= 2, "tiles are taken by their areas"
    sampler._hold(torch.arange(len(sampler.numbers)))
    counts = torch.zeros(3, 150, 200)
    for seed in range(50):  # fewer than CHANGE_EVERY
        batch = sampler.draw(20_000, generator(seed))
        place = torch.stack([batch.image_ids, batch.rows, batch.cols], dim=1)
        torch.testing.assert_close(batch.rgb, place / 255)
        counts.index_put_((batch.image_ids, batch.rows, batch.cols), torch.ones(20_000), accumulate=True)
    sizes = [(150, 200), (64, 64), (70, 130)]
    inside = [counts[i, :h, :w] for i, (h, w) in enumerate(sizes)]
    assert sum(float(c.sum()) for c in inside) == counts.sum() and min(float(c.min()) for c in inside) > 0
    corner = counts[0, 128:150, 192:200]  # a tile at the edge, of which less lies inside
    assert float(corner[-1].mean()) == pytest.approx(float(corner[:-1].mean()), rel=0.2)
    assert float(corner.sum()) == pytest.approx(float(counts[0, :64, :64].sum()), rel=0.1)


def test_the_working_set_changes_and_stays_small(wide: nerf.datasets.Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerf.training.pixel_cache.CHANGE_EVERY", 2)
    sampler = TileSampler(wide, torch.arange(3), working_set=0)
    assert len(sampler.numbers) == 12 + 1 + 6 and len(sampler.held) == 16
    seen: set[int] = set()
    for step in range(3000):
        before = sampler.held.clone()
        batch = sampler.draw(64, generator(step))
        seen.update(batch.blocks.tolist())
        assert int((before != sampler.held).sum()) <= step % 2, "one of 16 at a time"
        torch.testing.assert_close(batch.rgb[:, 1:], torch.stack([batch.rows, batch.cols], dim=1) / 255)
    assert len(seen) >= 18 and sampler.tiles[0].shape == (16, TILE * TILE, 3)


def test_tiles_with_large_errors_are_taken_more_often(wide: nerf.datasets.Scene) -> None:
    sampler = TileSampler(wide, torch.arange(3), working_set=0)
    batch = sampler.draw(5000, generator(0))
    sampler.record(batch, (batch.image_ids == 1).float())
    sampler.update_importance(0.5)
    p = torch.cat([sampler.cumulative[:1], sampler.cumulative.diff()])
    only = sampler.places[:, 0] == 1
    areas = sampler.areas / sampler.areas.sum()
    assert float(p.sum()) == pytest.approx(1) and float(p[only].sum()) > 3 * float(areas[only].sum())
    assert float((p / areas).min()) == pytest.approx(0.5), "half of the tiles are still taken by their areas"


def test_silhouettes_and_masks_come_along(tmp_path: Path) -> None:
    scene = sphere_scene(4, 200)
    masks = PixelStore(
        np.where(scene.pixels.memory[:, :1] > 100, 255, 0).astype(np.uint8),
        *(scene.pixels.offsets, scene.pixels.heights, scene.pixels.widths),
    )
    scene = replace(scene, masks=masks)
    there = replace(scene, pixels=in_tiles(scene.pixels, tmp_path, "p"), masks=in_tiles(masks, tmp_path, "m"))
    sampler = TileSampler(there, scene.splits["train"])
    batch = sampler.draw(4000, generator(0))
    place = batch.image_ids, batch.rows, batch.cols
    assert torch.equal(batch.alpha, scene.pixels.gather(*place)[:, 3:]) and batch.used is not None
    assert torch.equal(batch.used, (masks.gather(*place) > 0.5).float())
    unmasked = TileSampler(replace(there, masks=None), scene.splits["train"])
    assert len(unmasked.numbers) < 3 * 16, "tiles that are wholly transparent are left out"
    rows, cols = (scene.pixels.raw(0)[..., 3] > 0).nonzero()
    assert {(r // TILE, c // TILE) for r, c in zip(rows, cols, strict=True)} == {
        (int(p[1]) // TILE, int(p[2]) // TILE) for p in unmasked.places if int(p[0]) == 0
    }


def test_keypoints_of_the_working_set_are_drawn_too(wide: nerf.datasets.Scene) -> None:
    ids = torch.arange(300) % 3
    rows, cols = torch.arange(300) % 64, torch.arange(300) * 7 % 64
    rows, cols = torch.where(ids == 0, rows + 80, rows), torch.where(ids == 0, cols + 100, cols)
    z = torch.arange(300) + 1.0
    known = nerf.datasets.Keypoints(ids, rows, cols, z)
    sampler = TileSampler(replace(wide, keypoints=known), torch.tensor([0, 2]), working_set=0)
    seen: set[float] = set()
    for step in range(400):
        batch = sampler.draw(64, generator(step))
        place = torch.stack([batch.image_ids, batch.rows, batch.cols], dim=1)
        torch.testing.assert_close(batch.rgb, place / 255)
        assert batch.depths is not None and bool((batch.depths[:56] == 0).all())
        for k, depth in zip(range(56, 64), batch.depths[56:].tolist(), strict=True):
            i = int(depth) - 1
            assert place[k].tolist() == [int(ids[i]), int(rows[i]), int(cols[i])]
            assert sampler.places[batch.blocks[k], 0] == ids[i]
            seen.add(depth)
    assert len(seen) > 150 and not any(int(ids[int(depth) - 1]) == 1 for depth in seen), "image 1 is not trained on"


def test_training_from_tiles_learns_and_continues_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerf.training.pixel_cache.CHANGE_EVERY", 4)
    scene = sphere_scene(8, 160)
    scene = replace(scene, pixels=in_tiles(scene.pixels, tmp_path, "p"))
    config = TrainConfig(steps=40, batch_samples=1 << 11, field=FIELD)
    config = config.with_settings(importance_after=8, importance_every=8)

    def trainer() -> Trainer:
        made = Trainer(scene, config)
        made.sampler = TileSampler(made.scene, scene.splits["train"], working_set=0)
        return made

    whole = trainer()
    errors = [whole.train_step() for _ in range(40)]
    assert sum(errors[-5:]) < 0.7 * sum(errors[:5])
    first, path = trainer(), tmp_path / "checkpoint.safetensors"
    for _ in range(17):
        first.train_step()
    nerf.io.checkpoint.save(path, *first.state())
    second = trainer()
    second.restore(path)
    for _ in range(23):
        second.train_step()
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16", "float32"])
def test_a_reduced_photo_takes_little_more_memory_than_its_pixels(kind: str) -> None:
    """A photo of 200 megapixels made floats as a whole took 2.4 GB, in each thread."""
    import tracemalloc

    from nerf.datasets.resize import area_average

    photo = (np.random.default_rng(0).random((600, 800, 3)) * 250).astype(kind)
    tracemalloc.start()
    try:
        small = area_average(photo, (70, 93))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert small.dtype == photo.dtype and peak < 2 * 600 * 800 * 3


def test_a_large_picture_is_read_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole it took 14 bytes a pixel, 2.8 GB of a photo of 200 megapixels."""
    colours = np.random.default_rng(0).integers(0, 256, (70, 50, 4), dtype=np.uint8)
    rgb = Image.fromarray(colours[..., :3])
    for name, image in (("rgba", Image.fromarray(colours)), ("rgb", rgb), ("p", rgb.convert("P"))):
        image.save(tmp_path / f"{name}.png")
    Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for file in sorted(tmp_path.iterdir()):
        whole = read_pixels(read_header(file))
        monkeypatch.setattr(images, "_BAND", 300)
        assert np.array_equal(read_pixels(read_header(file)), whole) and whole.shape[:2] == (70, 50)
        monkeypatch.undo()


def test_no_more_decoders_than_memory_holds(
    tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many cores there are."""
    assert threads_within(1 << 30, 16) <= 16 and threads_within(1 << 60, 16) == 1 == threads_within(0, 1)
    monkeypatch.setattr(threads, "free_memory", lambda: 4 << 30)
    assert threads_within(1 << 28, 16) == 5 and threads_within(1 << 20, 16) == 16
    monkeypatch.setattr(threads, "free_memory", lambda: None)
    assert threads_within(1 << 28, 16) == 4
    folder = write_set(tmp_path / "set", n=12)
    picture = read_header(next((folder / "images").iterdir()))
    monkeypatch.setattr(threads, "free_memory", lambda: 3 * 2 * picture.width * picture.height * 16 + 10)
    monkeypatch.setattr(assembling, "usable_cores", lambda: 16)
    running, most, lock = 0, 0, threading.Lock()
    decode = assembling._Pictures._decode

    def counted(*given: Any) -> np.ndarray:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        pixels = decode(*given)
        with lock:
            running -= 1
        return pixels

    monkeypatch.setattr(assembling._Pictures, "_decode", counted)
    assert load(folder, quiet=True).pixels.tile == TILE
    assert most == 2
