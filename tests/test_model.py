"""Model: questions to the field, pictures, and a checkpoint that gives the same picture again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import ring_cameras
from tiny import FIELD, generator, uniform, unit_vectors

from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import RadianceField
from nerf.geometry.space import Box, Ndc, Similarity, Space, Unbounded
from nerf.io import checkpoint
from nerf.rendering import model
from nerf.rendering.marching import Marching
from nerf.rendering.model import Model

BOX = Box()


def some_model(space: Space = BOX, linear: bool = False, gain: float = 2e4) -> Model:
    field = RadianceField(replace(FIELD, density_bias=0.0), space.contracted, seed=1)
    with torch.no_grad():
        field.table.mul_(gain)
    field.table_half = field.table.detach().half()
    grid = OccupancyGrid(space.n_levels, 32)
    grid.restrict(lambda centres, sizes: centres.norm(dim=1) < 0.8)
    grid.update(field.density, 0.02, generator(0), everywhere=True)
    marching = Marching(space, 0.0, 100.0, 0.02, 0.01 if space.contracted else 0.0)
    pose = Similarity.around([0.1, 0.0, 0.0], 1.5)
    return Model(field, grid, marching, pose, ring_cameras(3, 24), torch.tensor([0.2, 0.4, 0.6]), linear, {"steps": 7})


def test_a_saved_model_renders_the_same_picture(tmp_path: Path) -> None:
    for space in (BOX, Unbounded(3)):
        saved = some_model(space)
        saved.save(tmp_path / "checkpoint.safetensors")
        for path in (tmp_path / "checkpoint.safetensors", tmp_path, str(tmp_path)):
            loaded = Model.load(path)
            before, after = saved.render_image(saved.cameras, 1), loaded.render_image(loaded.cameras, 1)
            for name in vars(before):
                assert getattr(before, name).tobytes() == getattr(after, name).tobytes(), name
        assert loaded.space == space and loaded.meta == {"steps": 7} and not loaded.linear
        assert loaded.marching == saved.marching
        assert torch.equal(loaded.background, saved.background)
        assert torch.equal(loaded.scene_from_world.matrix(), saved.scene_from_world.matrix())
        assert torch.equal(loaded.occupancy.values, saved.occupancy.values)


def test_a_picture_is_what_the_interface_says() -> None:
    m = some_model()
    cameras = replace(ring_cameras(1), widths=torch.tensor([20]), heights=torch.tensor([30]))
    out = m.render_image(cameras, 0)
    plain = m.render_image(cameras, 0, normals=False)
    assert plain.normal is None and np.array_equal(plain.color, out.color)
    parts = (out.color, out.opacity, out.depth, out.normal)
    assert [v.shape for v in parts] == [(30, 20, 3), (30, 20), (30, 20), (30, 20, 3)]
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in parts)
    assert out.color.min() >= 0 and out.color.max() <= 1
    assert out.opacity.min() >= -1e-6 and out.opacity.max() <= 1 + 1e-6
    hit = out.depth > 0
    assert 0.05 < hit.mean() < 0.95
    lengths = np.linalg.norm(out.normal, axis=2)
    assert np.allclose(lengths[hit], 1, atol=1e-4) and not lengths[~hit].any()
    nothing = out.opacity == 0
    assert nothing.any() and np.allclose(out.color[nothing], [0.2, 0.4, 0.6])


def test_rays_of_a_picture_are_the_cameras_rays() -> None:
    m = some_model()
    out = m.render_image(m.cameras, 2)
    o, d = m.cameras.image_rays(2, m.scene_from_world)
    rays = m.render_rays(o, d)
    assert np.array_equal(out.opacity.reshape(-1), rays.opacities.numpy())
    assert np.array_equal(out.color.reshape(-1, 3), rays.over(m.background).clamp(0, 1).numpy())
    left = (1 - rays.opacities)[:, None] * m.background
    torch.testing.assert_close(rays.foregrounds + left, rays.over(m.background), rtol=0, atol=1e-6)


def test_a_coarser_model_takes_longer_steps_and_leaves_the_first_as_it_was() -> None:
    m = some_model()
    fine, coarse = m.render_image(m.cameras, 0), m.coarser(2.0).render_image(m.cameras, 0)
    assert m.coarser(2.0).marching.step_size == 2 * m.marching.step_size and m.coarser(2.0).field is m.field
    assert 0 < np.abs(fine.color - coarse.color).mean() < 0.02
    assert np.array_equal(m.render_image(m.cameras, 0).color, fine.color)


def test_depths_lie_on_the_surface() -> None:
    # A ball of fog so thick that the median is its surface: 0.8 around the middle of the scene, to a cell and a step.
    m = some_model(gain=0.0)
    m.field.options = replace(m.field.options, density_bias=7.0)
    m.field.config = replace(m.field.config, density_bias=7.0)
    m.occupancy.update(m.field.density, 0.02, generator(1), everywhere=True)
    out = m.render_image(m.cameras, 0)
    o, d = m.cameras.image_rays(0, m.scene_from_world)
    points = o + torch.from_numpy(out.depth).reshape(-1, 1) * d
    hit = torch.from_numpy(out.depth).reshape(-1) > 0
    assert int(hit.sum()) > 50
    found, spread = m.median_depths(o, d)
    torch.testing.assert_close(found, m.render_rays(o, d).median_depths)
    assert float(spread[hit].max()) < 0.1 and float(spread[~hit].abs().max()) == 0
    assert float((points[hit].norm(dim=1) - 0.8).abs().max()) < 3**0.5 / 32 + 0.02 + 2 / 32


def test_questions_to_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    m = some_model()
    points, directions = uniform(100, 3, low=-1), unit_vectors(100)
    with torch.no_grad():
        sigmas, rgbs = m.field(points, directions)
    assert torch.equal(m.density(points), sigmas) and torch.equal(m.color(points, directions), rgbs)
    monkeypatch.setattr(model, "FIELD_CHUNK", 30)
    assert torch.equal(m.density(points), sigmas) and torch.equal(m.color(points, directions), rgbs)
    assert m.density(points[:0]).shape == (0,) and m.color(points[:0], directions[:0]).shape == (0, 3)
    assert not m.density(points).requires_grad


def test_linear_colours_are_not_cut(tmp_path: Path) -> None:
    bright = some_model(linear=True)
    bright.background = torch.tensor([4.0, 0.0, 0.0])
    assert bright.render_image(bright.cameras, 0).color.max() == 4
    bright.save(tmp_path / "checkpoint.safetensors")
    assert Model.load(tmp_path).linear
    bright.linear = False
    assert bright.render_image(bright.cameras, 0).color.max() == 1


def test_forward_facing_pictures_have_scene_depths() -> None:
    m = some_model(Ndc(1.0, 1.0))
    m.scene_from_world = Similarity.identity()
    m.occupancy = OccupancyGrid(1, 32)
    pose = torch.eye(4, dtype=torch.float64)[None, :3]
    cameras = replace(ring_cameras(1, 24), c2w=pose)  # looks along -z; the near plane is z = -1
    out = m.render_image(cameras, 0)
    hit = out.depth > 0
    assert hit.any() and np.isfinite(out.depth).all() and out.depth[hit].min() >= 1 - 1e-3
    assert np.isfinite(out.normal).all()


def test_what_is_no_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Model.load(tmp_path)
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, {"x": torch.zeros(3)}, {"hello": 1})
    with pytest.raises(
        UserError, match=r"other.safetensors does not hold a model this version understands.*train it again"
    ):
        Model.load(path)
    tensors, config = some_model().to_state()
    changes: tuple[dict[str, Any], ...] = (
        {"field": config["field"] | {"width": 32}},  # other shapes than the tensors
        {"field": config["field"] | {"unheard_of": 1}},
        {"field": config["field"] | {"n_levels": 0}},
        {"marching": {}},
        {"occupancy": {"n_levels": 1, "resolution": 64}},
    )
    for change in changes:
        checkpoint.save(path, tensors, config | change)
        with pytest.raises(UserError, match="does not hold a model"):
            Model.load(path)
    del tensors["field.table"]
    checkpoint.save(path, tensors, config)
    with pytest.raises(UserError, match=r"field.table"):
        Model.load(path)
