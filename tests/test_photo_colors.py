"""Vertices take the colours of the photos that show them, and simplified meshes those of the vertices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from nerf.datasets import Scene
from nerf.geometry.space import Box, Similarity
from nerf.kernels import DepthView
from nerf.meshing.finish import decimate_mesh
from nerf.meshing.photo_colors import photo_colors

SIZE, FOCAL, FAR = 40, 40.0, 3.0
FIRST, SECOND, FIELD = (0.2, 0.4, 0.6), (0.6, 0.4, 0.2), 0.75


class Field:
    """Stands in for a model of two photos, the first of which the scene may not have."""

    def __init__(self, names: list[str]) -> None:
        self.scene_from_world, self.space, self.names = Similarity.identity(), Box(), names
        self.linear, self.exposure = False, 1.0
        self.given_poses = self.log_gains = self.vignetting = self.falloff = None

    def color(self, points: Tensor, directions: Tensor) -> Tensor:
        return torch.full((len(points), 3), FIELD)


def wall() -> tuple[Tensor, Tensor]:
    """Points [n,3] and faces of a wall at z = -FAR, wider than what the cameras at the origin see."""
    x, y = torch.meshgrid(torch.linspace(-2, 2, 33), torch.linspace(-2, 2, 33), indexing="ij")
    k = (torch.arange(32)[:, None] * 33 + torch.arange(32)).flatten()
    faces = torch.cat([torch.stack([k, k + 33, k + 1], 1), torch.stack([k + 1, k + 33, k + 34], 1)]).int()
    return torch.stack([x, y, torch.full_like(x, -FAR)], dim=2).reshape(-1, 3), faces


def shown(names: list[str], weights: tuple[float, float] = (1.0, 1.0), hidden: Tensor | None = None) -> Any:
    """Colours and whether shown, of the wall that two photos from one place show; before what is hidden [h,w] of the
    second something stands at half the distance."""
    photos = np.stack([np.full((SIZE, SIZE, 3), color, np.float32) for color in (FIRST, SECOND)])
    lens = [FOCAL, FOCAL, SIZE / 2, SIZE / 2]
    poses = torch.eye(4).expand(2, 4, 4)
    scene = Scene.from_arrays(photos, poses, lens, names=["a", "b"], splits={"train": [0, 1]})
    pose = torch.cat([torch.diag(torch.tensor([1.0, -1.0, -1.0])), torch.zeros(3, 1)], dim=1).double()
    depths = [torch.full((SIZE, SIZE), FAR), torch.full((SIZE, SIZE), FAR)]
    if hidden is not None:
        depths[1] = torch.where(hidden, FAR / 2, depths[1])
    intrinsics = (FOCAL, FOCAL, SIZE / 2, SIZE / 2)
    views = [DepthView(pose, intrinsics, d, torch.full((SIZE, SIZE), w)) for d, w in zip(depths, weights, strict=True)]
    points, faces = wall()
    normals = torch.tensor([[0.0, 0.0, 1.0]]).expand(len(points), 3)
    model: Any = Field(names)
    return photo_colors(model, scene, torch.tensor([0, 1]), views, points, faces, normals)


def test_colours_are_means_of_the_photos_by_what_their_depths_weigh() -> None:
    colors, seen = shown(["a", "b"], (1.0, 3.0))
    points, _ = wall()
    away, edge = points[:, :2].abs().amax(dim=1), FAR * SIZE / 2 / FOCAL
    assert bool(seen[away < edge - 1e-3].all()) and not bool(seen[away > edge + 1e-3].any())
    expected = 0.25 * torch.tensor(FIRST) + 0.75 * torch.tensor(SECOND)
    torch.testing.assert_close(colors[seen], expected.expand(int(seen.sum()), 3), atol=2e-3, rtol=0)
    assert bool((colors[~seen] == 0).all())


def test_what_stands_before_the_surface_gives_it_no_colour() -> None:
    hidden = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    hidden[:, : SIZE // 2] = True
    colors, seen = shown(["a", "b"], hidden=hidden)
    points, _ = wall()
    left, right = seen & (points[:, 0] < -0.1), seen & (points[:, 0] > 0.1)
    torch.testing.assert_close(colors[left], torch.tensor(FIRST).expand(int(left.sum()), 3), atol=2e-3, rtol=0)
    torch.testing.assert_close(colors[right], torch.full((int(right.sum()), 3), 0.4), atol=2e-3, rtol=0)


def test_photos_that_the_scene_does_not_have_say_nothing() -> None:
    colors, seen = shown(["left out", "b"])
    torch.testing.assert_close(colors[seen], torch.tensor(SECOND).expand(int(seen.sum()), 3), atol=2e-3, rtol=0)
    assert not bool(shown(["left out", "another"])[1].any())


def test_a_simplified_mesh_keeps_its_colours() -> None:
    """Those of its vertices where it has any, or else the field's; none where none are wanted."""
    pytest.importorskip("fast_simplification")
    ball = trimesh.creation.icosphere(subdivisions=4)
    model: Any = Field(["a"])
    plain = decimate_mesh(model, trimesh.Trimesh(ball.vertices, ball.faces, process=False), 600)
    assert np.array(plain.visual.vertex_colors)[:, :3].tolist() == [[191] * 3] * len(plain.vertices)
    colors = np.full((len(ball.vertices), 4), 255, np.uint8)
    colors[:, 0] = np.where(ball.vertices[:, 2] > 0, 250, 10)
    painted = trimesh.Trimesh(ball.vertices, ball.faces, vertex_colors=colors, process=False)
    few = decimate_mesh(model, painted, 600)
    away = np.abs(few.vertices[:, 2]) > 0.1
    red = np.array(few.visual.vertex_colors)[away, 0]
    assert len(few.faces) <= 600 and (red == np.where(few.vertices[away, 2] > 0, 250, 10)).all()
    assert few.visual.kind == "vertex" and decimate_mesh(model, painted, 600, colours=False).visual.kind != "vertex"
