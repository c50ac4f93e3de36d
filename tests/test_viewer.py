"""The page that shows a mesh: in a headless browser, textured and with vertex colours, from the side that was asked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nerf.meshing.files import save_mesh
from nerf.meshing.viewer import write_page

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
FLAGS = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
QUIET = ["--disable-background-networking", "--force-color-profile=srgb", "--no-first-run"]
UP, FRONT = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), np.array([0.0, -1.0, 0.0])


def shown(page: Path, tmp_path: Path, fragment: str = "") -> np.ndarray:
    """The page as Chromium draws it with WebGL in software: [400,600,3] int."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    picture = tmp_path / "shot.png"
    command = [BROWSER, *FLAGS, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=600,400"]
    command += [f"--screenshot={picture}", page.as_uri() + fragment]
    subprocess.run(command, capture_output=True, timeout=120)
    return np.asarray(Image.open(picture).convert("RGB")).astype(int)


def test_a_textured_mesh_stands_upright_before_the_viewer(tmp_path: Path) -> None:
    """A square in the xz plane whose up is z: its texture is red above and blue below."""
    corners = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]], np.float64) + 100.0
    texture = np.zeros((16, 16, 3), np.uint8)
    texture[:8], texture[8:] = (200, 60, 40), (40, 60, 200)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texture))
    visual = trimesh.visual.TextureVisuals(uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), material=material)
    glb = tmp_path / "square.glb"
    save_mesh(trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False), glb, UP)
    page = write_page(glb, FRONT)
    assert page == tmp_path / "square.html"
    picture = shown(page, tmp_path)
    np.testing.assert_allclose(picture[160, 300], (200, 60, 40), atol=3)  # sRGB as it was written
    np.testing.assert_allclose(picture[250, 300], (40, 60, 200), atol=3)
    bare = shown(page, tmp_path, "#shape")[160, 300]
    assert np.ptp(bare) <= 3 and bare.min() > 100  # grey and lit


def test_vertex_colours_are_those_of_the_mesh(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(3)
    ball.visual.vertex_colors = np.tile(np.array([60, 120, 180, 255], np.uint8), (len(ball.vertices), 1))
    save_mesh(ball, tmp_path / "ball.glb", UP)
    picture = shown(write_page(tmp_path / "ball.glb"), tmp_path)
    np.testing.assert_allclose(picture[200, 300], (60, 120, 180), atol=3)
    wide = np.abs(picture[200] - (60, 120, 180)).max(axis=1) < 6
    tall = np.abs(picture[:, 300] - (60, 120, 180)).max(axis=1) < 6
    assert abs(int(wide.sum()) - int(tall.sum())) <= 2 and 200 < tall.sum() < 400  # round, and fills the window
