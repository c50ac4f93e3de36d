"""The z-buffer against closed forms: a sphere, a plane in perspective, two triangles that cut each other."""

from __future__ import annotations

import math

import numpy as np
import torch
import trimesh

from nerf.geometry.cameras import Cameras
from nerf.meshing.preview import rasterise, render_mesh


def camera(size: int = 64, distance: float = 4.0) -> Cameras:
    """One camera on the +z axis that looks at the origin with x to the right and y up."""
    c2w = torch.eye(4, dtype=torch.float64)[None, :3].clone()
    c2w[0, 2, 3] = distance
    return Cameras.perspective(c2w, size * 1.5, size, size)


def test_sphere_has_its_outline_depth_normals_and_colours() -> None:
    size, distance, radius = 64, 4.0, 1.0
    mesh = trimesh.creation.icosphere(5, radius)
    mesh.visual.vertex_colors = np.round((mesh.vertices * 0.5 + 0.5) * 255).astype(np.uint8)
    got = render_mesh(mesh, camera(size), 0, background=(0, 0, 0), supersample=1)
    x = (np.arange(size) + 0.5 - size / 2) / (size * 1.5)
    d = np.stack(np.broadcast_arrays(x[None], -x[:, None], -1.0), axis=-1)
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    b = distance * d[..., 2]
    inside = b * b - distance**2 + radius**2
    t = -b - np.sqrt(np.maximum(inside, 0))
    hit = inside > 0
    assert (got.opacity != hit).mean() < 0.005, "only pixels that the outline just touches may differ"
    normal = (t[..., None] * d + [0, 0, distance]) / radius
    steep = hit & (inside > 0.05)  # away from the outline, where depth changes fast; facets lie 6e-4 inside the sphere
    np.testing.assert_allclose(got.depth[steep], t[steep], atol=3e-3)
    np.testing.assert_allclose(got.normal[steep], normal[steep], atol=5e-3)
    np.testing.assert_allclose(got.color[steep], normal[steep] * 0.5 + 0.5, atol=6e-3)
    assert not got.color[~hit & (got.opacity == 0)].any() and not got.depth[got.opacity == 0].any()


def test_interpolation_is_right_in_perspective() -> None:
    """A floor that runs away from the camera: colour is linear on the floor, not in the picture."""
    corners = np.array([[-3, -0.5, 3.0], [3, -0.5, 3.0], [3, -0.5, -40.0], [-3, -0.5, -40.0]])
    colors = np.zeros((4, 4), np.uint8)
    colors[2:, 0], colors[:, 3] = 255, 255
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], vertex_colors=colors, process=False)
    got = render_mesh(mesh, camera(), 0, background=(0, 0, 0), supersample=1)
    for row in (36, 40, 50):
        z = -0.5 / (-(row + 0.5 - 32) / 96)  # depth at which this row meets the floor
        assert abs(got.color[row, 32, 0] - (3 - (4 - z)) / 43) < 1e-4
        assert abs(got.depth[row, 32] - z * math.hypot(1, 0.5 / 96, (row + 0.5 - 32) / 96)) < 1e-4


def test_the_nearer_face_wins_pixel_by_pixel() -> None:
    """Two squares that cut each other along x = 0; which comes first in the list does not matter."""
    slope = [[-1, -1, -0.5], [1, -1, 0.5], [1, 1, 0.5], [-1, 1, -0.5]]
    flat = [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]
    red, blue = [255, 0, 0, 255], [0, 0, 255, 255]
    for order in (1, -1):
        squares = [(slope, red), (flat, blue)][::order]
        vertices = np.array([p for square, _ in squares for p in square], float)
        colors = np.array([color for _, color in squares for _ in range(4)], np.uint8)
        faces = [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]
        mesh = trimesh.Trimesh(vertices, faces, vertex_colors=colors, process=False)
        row = render_mesh(mesh, camera(), 0, supersample=1).color[32]
        np.testing.assert_allclose(row[12:32], [[0, 0, 1]] * 20, atol=1e-6)
        np.testing.assert_allclose(row[32:52], [[1, 0, 0]] * 20, atol=1e-6)


def test_no_holes_between_neighbours_and_nothing_twice() -> None:
    """A square of 2 * 40^2 random triangles covers each of its pixels exactly once, whatever their shape."""
    generator = np.random.default_rng(0)
    n = 41
    grid = np.stack(np.meshgrid(np.linspace(3, 97, n), np.linspace(3, 97, n)), axis=-1)
    grid[1:-1, 1:-1] += generator.uniform(-0.8, 0.8, (n - 2, n - 2, 2))
    k = np.arange(n * n).reshape(n, n)
    a, b, c, d = k[:-1, :-1].ravel(), k[:-1, 1:].ravel(), k[1:, 1:].ravel(), k[1:, :-1].ravel()
    faces = torch.from_numpy(np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]))
    uv = torch.from_numpy(grid.reshape(-1, 2))
    pixel, _, weights = rasterise(uv, torch.full((n * n,), 2.0, dtype=torch.float64), faces, 100, 100)
    assert len(pixel) == 94 * 94 and len(pixel.unique()) == len(pixel)
    np.testing.assert_allclose(weights.sum(dim=1).numpy(), 1, atol=1e-12)


def test_opacity_is_the_covered_share() -> None:
    """A square whose edge runs through the middle of pixels."""
    edge = 4 / 96 * 10.5  # 10.5 pixels from the middle
    corners = np.array([[-edge, -edge, 0], [edge, -edge, 0], [edge, edge, 0], [-edge, edge, 0]])
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    opacity = render_mesh(mesh, camera(), 0, supersample=2).opacity
    assert opacity[32, 32] == 1 and opacity[32, 21] == 0.5 and opacity[21, 21] == 0.25 and opacity[32, 20] == 0


def test_nothing_to_see() -> None:
    mesh = trimesh.creation.box()
    mesh.apply_translation([0, 0, 9])  # behind the camera
    got = render_mesh(mesh, camera(), 0, background=(0.2, 0.4, 0.6))
    np.testing.assert_allclose(got.color, np.broadcast_to([0.2, 0.4, 0.6], (64, 64, 3)), atol=1e-6)
    assert not got.opacity.any() and not got.normal.any()
