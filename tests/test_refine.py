"""The surface is moved to where the photos' outlines and colours say it is."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import trimesh
from fakes import ring_cameras, scene_of
from torch import Tensor

from nerf.datasets import Scene
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Similarity
from nerf.meshing import refine
from nerf.meshing.preview import render_mesh
from nerf.meshing.refine import refine_vertices
from nerf.meshing.texture import photo_ratings

N, SIZE, FAR_AWAY = 24, 96, torch.tensor([4.2e5, 5.1e6, 200.0], dtype=torch.float64)


def ball(radius: float = 1.0) -> trimesh.Trimesh:
    """A sphere of waves of colour, whose normals are exact."""
    mesh = trimesh.creation.icosphere(subdivisions=5)
    p = np.array(mesh.vertices)
    waves = np.stack([np.sin(9 * p[:, k] + 5 * p[:, k - 1]) for k in range(3)], axis=1)
    colors = ((0.5 + 0.4 * waves) * 255).round().astype(np.uint8)
    return trimesh.Trimesh(radius * p, mesh.faces, vertex_colors=colors, vertex_normals=p, process=False)


def photographed(origin: Tensor, alpha: bool) -> Scene:
    rings = [ring_cameras(N // 3, SIZE, elevation=e) for e in (-0.9, 0.1, 0.9)]
    cameras = Cameras(**{name: torch.cat([r.tensors()[name] for r in rings]) for name in rings[0].tensors()})
    views = [render_mesh(ball(), cameras, i, supersample=4) for i in range(N)]
    images = [v.color for v in views]
    if alpha:
        opacity = [v.opacity[..., None] for v in views]
        images = [
            np.concatenate([(c - 1 + a) / np.maximum(a, 1e-6), a], 2) for c, a in zip(images, opacity, strict=True)
        ]
    cameras.c2w[:, :, 3] += origin
    images = [image.clip(0, 1).astype(np.float32) for image in images]
    return scene_of(images, cameras, Similarity.identity(), held_out=0)


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("radius", [0.99, 1.0, 1.01])  # a pixel is 0.032 wide
def test_a_ball_gets_its_true_size(alpha: bool, radius: float) -> None:
    origin = FAR_AWAY if alpha else torch.zeros(3, dtype=torch.float64)
    scene, mesh = photographed(origin, alpha), ball(radius)
    vertices, faces = torch.from_numpy(np.array(mesh.vertices)) + origin, torch.from_numpy(np.array(mesh.faces))
    normals, photos = torch.from_numpy(np.array(mesh.vertex_normals)), scene.splits["train"]
    ratings = photo_ratings(scene, vertices, faces, normals, photos)
    pictures = [partial(lambda i: scene.pixels.image(i)[..., :3], i) for i in photos.tolist()]
    found = refine_vertices(scene, vertices, faces, normals, photos, ratings, pictures) - origin
    size = found.norm(dim=1)
    assert torch.allclose(torch.nn.functional.normalize(found, dim=1), normals, atol=1e-6), "along the normals"
    assert abs(float(size.mean()) - 1) < 0.0025, "from a third of a pixel to a twelfth"
    assert float((size - 1).abs().mean()) < 0.004


def test_large_photos_are_asked_at_a_part_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "_MAX_PIXELS", SIZE * SIZE // 2)
    test_a_ball_gets_its_true_size(radius=1.01, alpha=True)
