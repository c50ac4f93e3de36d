"""Depth maps: what files mean, where a pixel's depth lies on its ray, the loss, and that it moves the geometry."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeModel
from PIL import Image
from small_scenes import SIZE, ring, write_transforms
from tiny import FIELD, make_scene, sphere_scene, store, train_config

from nerf.datasets import Scene, load
from nerf.errors import UserError
from nerf.kernels import bindings
from nerf.rendering import losses
from nerf.training.loop import train
from nerf.training.pixel_sampler import PixelSampler, ray_lengths

native = pytest.mark.skipif(bindings.load().handle is None, reason="the slow reference kernels")


# ---- files


def with_depths(folder: Path, name: str, write: Any, **extra: Any) -> Path:
    """A transforms.json whose frames name depth/NAME, each written by write(path, i)."""
    write_transforms(folder, n=4)
    (folder / "depth").mkdir(exist_ok=True)
    file = folder / "transforms.json"
    data = {**json.loads(file.read_text()), **extra}
    for i, frame in enumerate(data["frames"]):
        frame["depth_file_path"] = f"depth/{i}{name}"
        write(folder / "depth" / f"{i}{name}", i)
    file.write_text(json.dumps(data))
    return folder


def millimetres(path: Path, i: int) -> None:
    Image.fromarray(np.arange(24 * 24, dtype=np.uint16).reshape(24, 24) + 1000 * i).save(path)


def test_integers_are_millimetres_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    expected = (torch.arange(24 * 24).reshape(24, 24, 1) + 3000) * 1e-3
    scene = load(with_depths(tmp_path / "mm", ".png", millimetres), quiet=True)
    assert scene.depths is not None
    torch.testing.assert_close(scene.depths.image(3), expected)
    assert any("depth maps for 4 of 4 photos" in line for line in scene.notes)
    scene = load(with_depths(tmp_path / "u", ".png", millimetres, depth_unit_scale_factor=0.5), quiet=True)
    assert scene.depths is not None
    torch.testing.assert_close(scene.depths.image(3), expected * 500)


def test_floats_are_world_units_and_what_is_no_depth_is_unknown(tmp_path: Path) -> None:
    def write(path: Path, i: int) -> None:
        z = np.full((SIZE, SIZE), 2.5 + i)
        z[0, :4] = [np.nan, np.inf, -1.0, 0.0]
        np.save(path, z[..., None] if i % 2 else z)

    scene = load(with_depths(tmp_path, ".npy", write), quiet=True)
    assert scene.depths is not None
    for i in range(4):
        assert scene.depths.image(i)[0, :5, 0].tolist() == [0, 0, 0, 0, 2.5 + i]


def test_depth_maps_that_are_missing_are_noted(tmp_path: Path) -> None:
    folder = with_depths(tmp_path, ".png", millimetres)
    (folder / "depth" / "2.png").unlink()
    scene = load(folder, quiet=True)
    assert scene.depths is not None and scene.depths.image(2).tolist() == [[[0.0]]]
    assert any("1 depth maps are named but missing, the first 2.png" in line for line in scene.notes)
    for i in (0, 1, 3):
        (folder / "depth" / f"{i}.png").unlink()
    assert load(folder, quiet=True).depths is None


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        (".png", lambda p, i: Image.new("L", (24, 24)).save(p), "1 channels of 8 bits, expected one of 16"),
        (".png", lambda p, i: Image.new("RGB", (24, 24)).save(p), "3 channels of 8 bits"),
        (".png", lambda p, i: Image.fromarray(np.ones((24, 40), np.uint16)).save(p), "is 40x24, its photo 48x48"),
        (".npy", lambda p, i: np.save(p, np.ones((3, 24, 24))), r"holds shape \(3, 24, 24\)"),
        (".npy", lambda p, i: p.write_bytes(b"nothing"), "cannot be read as a NumPy array"),
        (".jpg", lambda p, i: Image.new("L", (24, 24)).save(p), "expected a depth map as .png or .tif"),
        (".exr", lambda p, i: p.write_bytes(b"nothing"), "cannot be read as an EXR image"),
    ],
)
def test_what_can_be_no_depth_map_is_one_sentence(tmp_path: Path, name: str, write: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(with_depths(tmp_path, name, write), quiet=True)


def test_a_unit_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the unit of the depth maps is -1"):
        load(with_depths(tmp_path, ".png", millimetres, depth_unit_scale_factor=-1), quiet=True)


# ---- where a depth lies


def plane_scene(tmp_path: Path, **extra: Any) -> Scene:
    """Photos whose depth maps, of another resolution than the photos, show the plane z = 0.2 of the world."""

    def write(path: Path, i: int) -> None:
        pose, n = ring(4)[i], 24
        row, col = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
        x, y = (col + 0.5 - n / 2) / 30.0, -(row + 0.5 - n / 2) / 30.0  # focal length 60 for 48 pixels
        d = np.stack([x, y, -np.ones_like(x)], axis=-1) @ pose[:3, :3].T  # z-depth 1
        z = (0.2 - pose[2, 3]) / d[..., 2]
        np.save(path, np.where(z > 0, z, 0).astype(np.float32))

    return load(with_depths(tmp_path, ".npy", write, **extra), quiet=True, holdout=0)


@pytest.mark.parametrize("downscale", [1, 2])
def test_points_at_their_depth_lie_on_the_plane(tmp_path: Path, downscale: int) -> None:
    plane_scene(tmp_path)
    scene = load(tmp_path, downscale=downscale, quiet=True, holdout=0)
    batch = PixelSampler(scene, torch.arange(4)).draw(500, torch.Generator().manual_seed(0))
    assert batch.depths is not None
    rays_o, rays_d = scene.cameras.rays(batch.image_ids, batch.rows, batch.cols, scene.scene_from_world)
    t = ray_lengths(scene, batch, rays_d)
    known = t > 0
    assert 0.5 < float(known.float().mean()) < 1.01
    world = scene.scene_from_world.inverse().apply((rays_o + t[:, None] * rays_d)[known])
    # The map's pixels are twice as large as the photo's: half a pixel off along a slanted plane, more near the horizon.
    error = (world[:, 2] - 0.2).abs()
    assert float(error.quantile(0.9)) < 0.09 if downscale == 1 else float(error.max()) < 1e-4


def test_pixels_that_are_transparent_or_masked_have_no_depth() -> None:
    scene = sphere_scene(4, 32)
    depths = store([np.full((8, 8, 1), 2.0, np.float32)] * 4)
    masks = store([np.tile(np.array([[[255]], [[0]]], np.uint8), (16, 32, 1))] * 4)
    batch = PixelSampler(replace(scene, depths=depths, masks=masks), torch.arange(4)).draw(
        400, torch.Generator().manual_seed(0)
    )
    assert batch.depths is not None and batch.used is not None
    expected = (batch.alpha[:, 0] > 0.99) & (batch.used[:, 0] > 0)
    assert torch.equal(batch.depths, 2.0 * expected.float()) and 0 < int(expected.sum()) < 400


# ---- the loss


def test_the_loss_by_hand() -> None:
    """One ray all at 1.1 where 1 is true; one that stops nothing; one without a target."""
    depths, opacities, targets = torch.tensor([1.1, 0.0, 5.0]), torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 2, 0])
    expected = (math.sqrt(0.1**2 + 0.01**2) - 0.01 + 1.0) / 3
    assert losses.depth(depths, opacities, targets).item() == pytest.approx(expected, rel=1e-5)
    assert losses.depth(depths[2:], opacities[2:], targets[2:]).item() == 0
    assert losses.depth(*torch.zeros(3, 0)).item() == 0


def test_the_loss_does_not_know_units_and_bounds_what_one_ray_pulls() -> None:
    depths, opacities, targets = (torch.rand(9, generator=torch.Generator().manual_seed(i)) + 0.1 for i in range(3))
    one = losses.depth(depths, opacities, targets)
    torch.testing.assert_close(losses.depth(depths * 7, opacities, targets * 7), one)
    far = torch.tensor([1e6], requires_grad=True)
    losses.depth(far, torch.ones(1), torch.ones(1)).backward()
    assert far.grad is not None and far.grad.item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="targets"):
        losses.depth(depths, opacities, targets[:3])


def test_the_gradient_of_the_loss() -> None:
    g = torch.Generator().manual_seed(0)
    depths, opacities, targets = (torch.rand(6, generator=g, dtype=torch.float64) + 0.5 for _ in range(3))
    targets[3] = 0
    assert torch.autograd.gradcheck(
        lambda d, o: losses.depth(d, o, targets), (depths.requires_grad_(), opacities.requires_grad_())
    )


# ---- training


def plain_sphere(n: int = 6, size: int = 32) -> Scene:
    """A sphere of one colour: photos say where its outline is, and only depth maps how far it bulges."""
    model, scene, images, depths = FakeModel(), sphere_scene(n, size), [], []
    for i in range(n):
        image = scene.pixels.raw(i).copy()
        image[..., :3] = 128
        along = scene.cameras.image_rays(i)[1].double() @ scene.cameras.forward[i]
        z = model.render_image(scene.cameras, i).depth * along.reshape(size, size).numpy()
        images.append(image)
        depths.append((z / scene.scene_from_world.scale).astype(np.float32)[..., None])
    return make_scene(images, scene.cameras, depths=store(depths))


@native
def test_depth_maps_move_the_surface_to_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, sphere = plain_sphere(), FakeModel()

    def error(weight: float) -> float:
        config = train_config(steps=150, batch_samples=1 << 11, field=replace(FIELD, density_bias=3.0), depth=weight)
        model = train(scene, config, tmp_path / str(weight), progress=False)
        true, found = (m.render_image(scene.cameras, 5) for m in (sphere, model))  # a view that was held out
        both = (true.opacity > 0.5) & (found.opacity > 0.5)
        return float(np.abs(true.depth - found.depth)[both].mean())

    without, with_depths = error(0.0), error(1.0)
    assert with_depths < 0.65 * without, (without, with_depths)


@native
def test_scenes_without_depth_maps_train_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, field = sphere_scene(4, 24), replace(FIELD, density_bias=3.0)
    a, b = (
        train(scene, train_config(steps=8, batch_samples=1 << 9, field=field, depth=w), tmp_path / str(w), False)
        for w in (0.0, 1.0)
    )
    assert torch.equal(a.field.table, b.field.table)
