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
from nerf.training.objective import NEAR, near_camera_opacity_loss

OPEN = Marching(Unbounded(3), 0.2, 50.0, step_size=0.01, cone_angle=1 / 256, gradient_distance=2.0)
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
    found = near_camera_opacity_loss(*space, OPEN, *rays(800), 1.0, sink, generator(0))
    assert float(found.detach()) == pytest.approx(1 - math.exp(-density * (AIR[1] - AIR[0])), rel=0.03)


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
        near_camera_opacity_loss(field, occupancy, OPEN, *rays(800), 1.0, sink, generator(step)).backward()
        field.table.grad = sink.table.clone()
        optimiser.step()
    after = opacities(*AIR), opacities(AIR[1] + 0.2, 3.0)
    assert after[0] < 0.2 * before[0], "it leaves what must be air"
    assert after[1] > 0.7 * before[1], "and hardly touches what lies behind"


def test_only_open_scenes_have_fog_before_cameras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full, asked = sphere_scene(6, 24), []
    monkeypatch.setattr("nerf.training.loop.near_camera_opacity_loss", lambda *a: asked.append(a) or torch.zeros(()))
    images = [full.pixels.raw(i)[..., :3].copy() for i in range(6)]
    for space, weight, expected in ((Box(), 0.02, 0), (Unbounded(3), 0.0, 0), (Unbounded(3), 0.02, 1)):
        scene = make_scene(images, full.cameras, scene_from_world=full.scene_from_world, space=space)
        asked.clear()
        Trainer(scene, train_config(steps=10, near_camera=weight)).train_step()
        assert len(asked) == expected, f"{space}, weight {weight}"
