"""Pictures of a mesh from six sides: silhouettes of a box, its texture, and a mesh that is inside out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nerf.meshing.sides import SIDES, render_six_sides

FRONT, UP = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])


def box_mesh(inside_out: bool = False) -> Any:
    box = trimesh.creation.box(extents=(2.0, 1.0, 0.5))
    if inside_out:
        box = trimesh.Trimesh(box.vertices, box.faces[:, ::-1], process=False)
    colors = np.tile(np.array([200, 30, 30, 255], np.uint8), (len(box.vertices), 1))
    box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=colors)
    return box


def test_a_box_has_its_silhouettes() -> None:
    views = render_six_sides(box_mesh(), FRONT, UP, size=100)
    assert tuple(views) == SIDES
    red = {name: (picture[..., 1].astype(int) < 128) for name, picture in views.items()}
    # Half extents 1, 0.5, 0.25 in a frame of half size 1.02 times the radius 1.146: pixels of each silhouette.
    scale = 100 / 2 / (1.02 * math.sqrt(1 + 0.25 + 0.0625))
    tilt = math.radians(15)
    side = 0.5 * math.cos(tilt) + 1.0 * math.sin(tilt)  # height of the front view: a bit of the top shows
    want = {"top": 2 * 1 * scale**2, "bottom": 2 * 1 * scale**2, "front": 2 * side * scale**2}
    for name, pixels in want.items():
        assert red[name].sum() == pytest.approx(pixels, rel=0.04), name  # a row of edge pixels either way
    assert (views["front"] == views["back"]).mean() > 0.99  # the box looks the same from behind
    assert (views["front"][0, 0] == 255).all()


def test_a_mesh_that_is_inside_out_is_magenta() -> None:
    middle = render_six_sides(box_mesh(inside_out=True), FRONT, UP, size=60)["front"][30, 30].astype(int)
    assert middle[0] > 150 and middle[2] > 150 and middle[1] < 60


def test_a_texture_shows_the_right_way_up() -> None:
    """A square that faces the viewer, its texture green above and blue below."""
    corners = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]], np.float64)
    texture = np.zeros((8, 8, 3), np.uint8)
    texture[:4, :, 1], texture[4:, :, 2] = 220, 220
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texture))
    visual = trimesh.visual.TextureVisuals(uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), material=material)
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
    picture = render_six_sides(mesh, FRONT, UP, size=60)["front"].astype(int)
    upper, lower = picture[20, 30], picture[40, 30]
    assert upper[1] > 150 and upper[2] < 40 and lower[2] > 150 and lower[1] < 40
