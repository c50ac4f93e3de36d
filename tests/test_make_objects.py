"""scripts/make_objects.py: a mesh file becomes a scene that loads, whose photos show its true surface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from nerf import datasets
from nerf.geometry.triangles import Triangles, read_mesh
from nerf.kernels import nearest_points
from nerf.meshing.evaluation import evaluate_mesh
from nerf.meshing.preview import render_mesh

pytest.importorskip("embreex", reason="photographs need embreex, which is no part of the development install")
SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "make_objects.py"


def test_a_torus_becomes_a_scene(tmp_path: Path) -> None:
    torus = trimesh.creation.torus(2.0, 0.7, 48, 24)
    torus.export(tmp_path / "ring.obj")
    options = ["--views", "6", "--test-views", "2", "--size", "64", "--samples", "2", "--up", "z"]
    command = [sys.executable, str(SCRIPT), str(tmp_path / "ring.obj"), "--out", str(tmp_path / "scenes"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scene = datasets.load(tmp_path / "scenes" / "ring", quiet=True)
    assert [len(scene.splits[s]) for s in ("train", "test")] == [6, 2] and scene.has_alpha and scene.space.bounded
    truth, original = read_mesh(tmp_path / "scenes" / "ring" / "mesh.ply"), read_mesh(tmp_path / "ring.obj")
    assert evaluate_mesh(truth, original, 2000).chamfer_percent < 0.2, "rounded and embossed, but the same shape"
    drawn = render_mesh(trimesh.load(tmp_path / "scenes" / "ring" / "mesh.ply"), scene.cameras, 6).opacity
    alpha = scene.pixels.image(6)[..., 3].numpy()
    assert np.abs(drawn - alpha).mean() < 0.02 and 0.1 < alpha.mean() < 0.6


def test_a_missing_mesh_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "gone.obj", "--out", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and done.stderr == "make_objects: gone.obj: there is no such file\n"


@pytest.mark.slow
def test_the_street_shows_its_true_surface(tmp_path: Path) -> None:
    """One view in a dozen, small: sparse points lie on truth.ply, and they load as a place."""
    script, size = SCRIPT.with_name("make_street.py"), ["--width", "40", "--height", "24", "--samples", "1"]
    command = [sys.executable, str(script), "--out", str(tmp_path), *size, "--every", "12"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scene = datasets.load(tmp_path, quiet=True)
    assert len(scene.splits["train"]) == 25 and len(scene.splits["test"]) == 4 and scene.space.contracted
    truth = Triangles.of(read_mesh(tmp_path / "truth.ply"))
    assert truth.diagonal() > 40 and len(scene.points) > 50
    off = nearest_points(scene.points, truth.vertices, truth.faces).distances
    assert 0.004 < float(off.mean()) < 0.012, "a centimetre in each direction, of which one counts"
