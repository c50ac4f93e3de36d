"""Meshes of worlds far from their origin, such as national grids: no millimetre is lost between field and file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from test_meshing import AnalyticModel, ball

from nerf.geometry.space import Similarity
from nerf.geometry.triangles import read_mesh
from nerf.meshing.extract import extract_mesh
from nerf.meshing.files import save_mesh
from nerf.meshing.glb import far_origin, glb

GRID = np.array([465_000.25, 5_247_000.5, 431.125])  # metres east, north, up
UP = torch.tensor([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def mesh() -> trimesh.Trimesh:
    """A ball of 7 m about GRID, extracted from a field that fills [-1,1]^3 of its own frame."""
    model = AnalyticModel(ball(0.7), scene_from_world=Similarity.around(torch.from_numpy(GRID), 10.0))
    return extract_mesh(model, 64, method="density")  # type: ignore[arg-type]


def test_a_mesh_is_where_the_world_is(mesh: trimesh.Trimesh) -> None:
    radii = np.linalg.norm(np.asarray(mesh.vertices) - GRID, axis=1)
    np.testing.assert_allclose(radii, 7.0, atol=0.02)


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".obj"])
def test_files_keep_every_millimetre(mesh: trimesh.Trimesh, tmp_path: Path, suffix: str) -> None:
    save_mesh(mesh, tmp_path / f"far{suffix}", UP)
    vertices = read_mesh(tmp_path / f"far{suffix}").vertices.numpy()
    np.testing.assert_allclose(np.sort(vertices, axis=0), np.sort(np.asarray(mesh.vertices), axis=0), atol=1e-5)


def test_colours_and_normals_travel_with_a_far_ply(mesh: trimesh.Trimesh, tmp_path: Path) -> None:
    save_mesh(mesh, tmp_path / "far.ply")
    again = trimesh.load(tmp_path / "far.ply", process=False)
    np.testing.assert_array_equal(again.faces, mesh.faces)
    np.testing.assert_array_equal(again.visual.vertex_colors[:, :3], mesh.visual.vertex_colors[:, :3])


def test_an_stl_says_what_it_rounds(mesh: trimesh.Trimesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_mesh(mesh, tmp_path / "far.stl")
    assert "STL rounds coordinates as large as these" in capsys.readouterr().err


def test_a_far_glb_stands_upright_about_whole_metres(mesh: trimesh.Trimesh) -> None:
    """Where a viewer puts it: the first node's turn of (its own place + the second node's shift)."""
    data = glb(mesh, UP.numpy())
    document = json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])
    first, second = document["nodes"]
    assert first["children"] == [1] and "mesh" not in first and second["mesh"] == 0
    assert second["translation"] == [465000.0, 5247000.0, 431.0]
    span = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert max(map(abs, span["min"] + span["max"])) < 8
    whole = trimesh.load(trimesh.util.wrap_as_stream(data), file_type="glb").to_geometry()
    middle = whole.vertices.mean(axis=0)
    np.testing.assert_allclose(middle, [GRID[0], GRID[2], -GRID[1]], atol=0.1)  # z of the world is y here


def test_near_meshes_are_stored_as_before() -> None:
    near = trimesh.creation.icosphere(radius=1.0)
    assert far_origin(near.vertices) is None and far_origin(near.vertices + 100.0) is None
    assert far_origin(np.zeros((0, 3))) is None
    data = glb(near)
    assert len(json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])["nodes"]) == 1
