"""What a batch of rays is held to, beside the losses themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import generator, make_scene, sphere_scene, train_config, unit_vectors

from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import FieldOptions, RadianceField
from nerf.geometry.space import Box, Unbounded
from nerf.kernels import GradAccumulator
from nerf.rendering.marching import Marching
from nerf.rendering.rays import render_many
from nerf.training.loop import Trainer
from nerf.training.objective import BEYOND, NEAR, near_camera_opacity_loss
from nerf.training.viewpoints import NEIGHBOURS, SPREAD, Viewpoints

OPEN = Marching(Unbounded(3), 0.2, 50.0, step_size=0.01, cone_angle=1 / 256, gradient_distance=2.0)
HERE = Viewpoints(torch.zeros(1, 3))
AIR = OPEN.near, NEAR * OPEN.gradient_distance


def foggy(density: float) -> tuple[RadianceField, OccupancyGrid]:
    """A young field is an even fog of its starting density."""
    options = FieldOptions(log2_hashmap_size=12, finest_resolution=64, density_bias=math.log(density))
    return RadianceField(options, contracted=True), OccupancyGrid(3, 32)


def rays(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(n, 3), unit_vectors(n)


@pytest.mark.parametrize("density", [0.5, 1.0, 10.0])
def test_fog_before_a_camera_counts_by_what_it_hides(density: float) -> None:
    space, sink = foggy(density), GradAccumulator(torch.zeros(0))
    sink.table = torch.zeros_like(space[0].table)
    found = near_camera_opacity_loss(*space, OPEN, *rays(800), 1.0, sink, generator(0), HERE)
    assert float(found.detach()) == pytest.approx(1 - math.exp(-density * (AIR[1] - AIR[0])), rel=0.03)


def test_fog_counts_where_the_near_plane_lies_far_out() -> None:
    space, sink = foggy(1.0), GradAccumulator(torch.zeros(0))
    sink.table = torch.zeros_like(space[0].table)
    found = near_camera_opacity_loss(*space, replace(OPEN, near=0.6), *rays(800), 1.0, sink, generator(0), HERE)
    assert float(found.detach()) == pytest.approx(1 - math.exp(-BEYOND * OPEN.gradient_distance), rel=0.03)


def test_fog_clears_before_cameras_and_stays_where_they_look() -> None:
    field, occupancy = foggy(1.0)
    sink = GradAccumulator(torch.zeros_like(field.table))
    optimiser = torch.optim.Adam([field.table], lr=3e-2, eps=1e-15)

    def opacities(near: float, far: float) -> float:
        marching = replace(OPEN, near=near, far=far)
        return float(render_many(field, occupancy, marching, *rays(800)).opacities.mean())

    before = opacities(*AIR), opacities(AIR[1] + 0.2, 3.0)
    for step in range(30):
        sink.table.zero_()
        near_camera_opacity_loss(field, occupancy, OPEN, *rays(800), 1.0, sink, generator(step), HERE).backward()
        field.table.grad = sink.table.clone()
        optimiser.step()
    after = opacities(*AIR), opacities(AIR[1] + 0.2, 3.0)
    assert after[0] < 0.2 * before[0], "it leaves what must be air"
    assert after[1] > 0.7 * before[1], "and hardly touches what lies behind"


def test_fog_clears_between_cameras() -> None:
    """Where nobody took a photo, and somebody will stand."""
    origins, directions = torch.tensor([[-0.9, 0, 0], [0.9, 0, 0]]).repeat(400, 1), rays(800)[1]
    between = replace(OPEN, near=AIR[0], far=AIR[1])

    def opacity_after(viewpoints: Viewpoints) -> float:
        field, occupancy = foggy(1.0)
        sink = GradAccumulator(torch.zeros_like(field.table))
        optimiser = torch.optim.Adam([field.table], lr=3e-2, eps=1e-15)
        for step in range(20):
            sink.table.zero_()
            args = field, occupancy, OPEN, origins, directions, 1.0, sink, generator(step), viewpoints
            near_camera_opacity_loss(*args).backward()
            field.table.grad = sink.table.clone()
            optimiser.step()
        return float(render_many(field, occupancy, between, *rays(800)).opacities.mean())

    assert opacity_after(Viewpoints(origins[:2])) < 0.5 * opacity_after(Viewpoints(origins[:1]))


def test_viewpoints_lie_between_cameras_that_are_near_one_another() -> None:
    """Two rows of cameras, far apart."""
    row = torch.arange(10.0)[:, None] * torch.tensor([[1.0, 0, 0]])
    far = torch.tensor([0.0, 50, 0])
    viewpoints = Viewpoints(torch.cat([row, row + far]).double())
    drawn = viewpoints.draw(4000, generator(0))
    assert drawn.shape == (4000, 3) and drawn.dtype == torch.float32
    apart = torch.minimum(drawn[:, 1].abs(), (drawn[:, 1] - 50).abs())
    assert float(apart.max()) < 5 * SPREAD * NEIGHBOURS / 3**0.5, "none between the rows"
    halves = torch.histc((drawn[:, 0] % 1).float(), 10, 0, 1)
    assert float(halves.min()) > 150, "and everywhere along them"
    assert float(apart.mean()) > 0.02, "around the lines"
    one = Viewpoints(torch.tensor([[1.0, 2, 3]])).draw(5, generator(0))
    assert torch.equal(one, torch.tensor([[1.0, 2, 3]]).expand(5, 3))


def test_only_open_scenes_have_fog_before_cameras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full, asked = sphere_scene(6, 24), []
    monkeypatch.setattr("nerf.training.loop.near_camera_opacity_loss", lambda *a: asked.append(a) or torch.zeros(()))
    images = [full.pixels.raw(i)[..., :3].copy() for i in range(6)]
    for space, weight, expected in ((Box(), 0.02, 0), (Unbounded(3), 0.0, 0), (Unbounded(3), 0.02, 1)):
        scene = make_scene(images, full.cameras, scene_from_world=full.scene_from_world, space=space)
        asked.clear()
        trainer = Trainer(scene, train_config(steps=10, near_camera=weight))
        trainer.fused = None  # whose rays before cameras are those of a batch: see test_fused_step.py
        trainer.train_step()
        assert len(asked) == expected, f"{space}, weight {weight}"
