"""Nothing is computed from tensors of two devices: training, pictures and meshes on a GPU that is a device of its own.

On a GPU each of these would stop with "expected all tensors to be on the same device"; the emulated GPU of the other
tests works on the CPU's tensors, where nothing can be mixed up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import emulation
import pytest
import second_device
import test_cuda_graph
import tiny
import torch

from nerf import kernels
from nerf.fields.occupancy import OccupancyGrid
from nerf.geometry.space import Ndc, Similarity, Unbounded
from nerf.meshing.extract import extract_mesh
from nerf.rendering.model import Model
from nerf.training.evaluation import evaluate
from nerf.training.loop import Trainer, train

pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="needs a C++ compiler")


@pytest.fixture
def far() -> Iterator[None]:
    with second_device.use():
        yield


def trained(scene: Any, steps: int = 3, **changes: Any) -> Trainer:
    settings = {"steps": steps, "batch_samples": 256, "field": tiny.FIELD, "occupancy_every": 2, "diffuse_steps": 1}
    settings |= {"importance_after": 1, "importance_every": 1}
    trainer = Trainer(scene, tiny.train_config(**(settings | changes)))
    for _ in range(steps):
        trainer.n_rays = 64
        trainer.train_step()
    return trainer


def test_an_op_that_mixes_devices_fails(far: None) -> None:
    here, there = torch.arange(3.0), torch.arange(3.0, device=kernels.device())
    assert there.device != here.device and (there * 2.0).tolist() == [0.0, 2.0, 4.0]
    for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here.index_select(0, there.long())):
        with pytest.raises(AssertionError, match="takes tensors of two devices"):
            mixed()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    assert torch.equal(here.to(kernels.device()).cpu(), here) and torch.equal(there[torch.tensor([2])].cpu(), here[2:])


def test_a_frame_is_placed_on_a_device_once(far: None) -> None:
    frame, points = Similarity.around([1.0, 2.0, 3.0], 0.7), torch.randn(5, 3)
    placed, there = frame.to(kernels.device()), points.to(kernels.device())
    assert placed.to(kernels.device()) is placed and frame.to(points.device) is frame
    for here in (placed, frame):  # what is not placed is copied at each call
        assert torch.equal(here.apply(there).cpu(), frame.apply(points))
        assert torch.equal(here.apply_directions(there).cpu(), frame.apply_directions(points))


SCENES: dict[str, dict[str, Any]] = {
    "box": {},
    "unbounded": {"space": Unbounded(2)},
    "ndc": {"space": Ndc(1.0, 1.0), "far": 2.0},
}


@pytest.mark.parametrize("space", SCENES)
def test_a_training_never_mixes_devices(space: str, far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With masks, depth maps, keypoints and an error map, so that every branch of a step is taken."""
    monkeypatch.setattr(OccupancyGrid, "update", tiny.flicker)
    trainer = trained(replace(test_cuda_graph.scene_with_everything(), **SCENES[space]))
    assert trainer.samples["rays"] > 0 and all(p.device == kernels.device() for p in trainer.parameters)


def test_what_is_learnt_of_photos_never_mixes_devices(far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OccupancyGrid, "update", tiny.flicker)
    trainer = trained(tiny.sphere_scene(3, 16), refine_poses=True, pose_after=1, exposure=True)
    trainer.state()
    assert not torch.equal(trainer.model.cameras.c2w, trainer.model.given_poses)
    trained(tiny.sphere_scene(3, 16), deterministic=True)


def test_cells_are_asked_where_the_field_is(far: None) -> None:
    for n_levels, everywhere in ((1, False), (2, True)):
        grid = OccupancyGrid(n_levels, 32).to(kernels.device())
        random = torch.Generator(kernels.device()).manual_seed(0)
        grid.update(lambda points: 100.0 * (points[:, 0] > 0), 0.01, random, 1 << 12, everywhere)
        assert grid.values.device == grid.occupied.device == kernels.device() and bool(grid.occupied.any())


def test_a_second_device_learns_the_same_and_its_model_is_seen_from_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OccupancyGrid, "update", tiny.flicker)
    scene, found = tiny.sphere_scene(3, 8), []
    for world in (emulation, second_device):
        with world.use():
            solid = replace(tiny.FIELD, density_bias=5.0)  # so that there is a surface after two steps
            config = tiny.train_config(steps=2, batch_samples=256, field=solid)
            train(scene, config, tmp_path / "run", progress=False, overwrite=True)
            model = Model.load(tmp_path / "run")
            found.append([p.detach().cpu() for p in model.field.parameters()])
            found[-1].append(torch.from_numpy(model.render_image(scene.cameras, 0).color))
            (tmp_path / "run" / "checkpoint.safetensors").rename(tmp_path / f"{len(found)}.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with second_device.use():
        model = Model.load(tmp_path / "2.safetensors")
        assert model.device == kernels.device()
        assert evaluate(model, scene, show_progress=False).psnr > 0
        assert len(extract_mesh(model, resolution=12, box=(-0.5, -0.5, -0.5, 0.5, 0.5, 0.5)).faces) > 0
        points = tiny.uniform(20, 3, seed=1)
        answers = [model.density(points), model.color(points, points), *model.median_depths(points, points)]
    assert all(a.device.type == "cpu" for a in answers)
