"""Shapes: winding numbers, signed distances, `nerf fit shape` and what it says of bad meshes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nerf import kernels
from nerf.cli import main as cli
from nerf.errors import UserError
from nerf.geometry.triangles import Triangles
from nerf.kernels import winding
from nerf.signals import shape, solid, surface
from nerf.signals.fields import FieldChoice
from nerf.signals.fitting import FitConfig, Fitted, fit

native = pytest.mark.skipif(kernels.bindings.load().handle is None, reason="no native library here")
SMALL = FieldChoice("hash", 16, 1, n_levels=4, log2_hashmap_size=13, base_resolution=8, finest_resolution=64)


def triangles(mesh: trimesh.Trimesh) -> Triangles:
    return Triangles(torch.from_numpy(np.array(mesh.vertices)), torch.from_numpy(np.array(mesh.faces)))


def ball(radius: float = 1.0, at: tuple[float, float, float] = (0, 0, 0), fine: int = 3) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(fine, radius)
    mesh.apply_translation(at)
    return mesh


def without_a_cap(mesh: trimesh.Trimesh, height: float) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces[mesh.triangles_center[:, 2] < height], process=False)


def run(*words: object) -> int:
    return cli.run([str(word) for word in words])


@native
def test_winding_numbers_are_those_of_the_sum_over_all_triangles() -> None:
    # Overlapping balls and a hole: twice inside, once inside, outside, and in between.
    mesh = trimesh.util.concatenate([ball(), ball(0.8, (0.9, 0, 0)), without_a_cap(ball(0.5, (-2, 0, 0)), 0.3)])
    points = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)).double() * 5 - torch.tensor([3, 2.5, 2.5])
    for shift in (0.0, 5e6):  # metres of a map projection
        m = Triangles(torch.from_numpy(np.array(mesh.vertices)) + shift, torch.from_numpy(np.array(mesh.faces)))
        slow = winding.of_mesh(points + shift, *m, native=False)
        fast = winding.of_mesh(points + shift, *m, native=True)
        assert float((slow - fast).abs().max()) < 0.1
        assert {0.0, 1.0, 2.0} <= set(slow.round().tolist())


@native
def test_winding_numbers_of_a_cloud_are_those_of_the_ball_it_lies_on() -> None:
    mesh = ball()
    cloud = torch.from_numpy(np.array(mesh.triangles_center))
    areas = torch.from_numpy(mesh.face_normals * mesh.area_faces[:, None])
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)).double() * 3 - 1.5
    off = (points.norm(dim=1) - 1).abs() > 0.2  # nearer, the sum over single points means nothing
    slow = winding.of_cloud(points[off], cloud, areas, native=False)
    fast = winding.of_cloud(points[off], cloud, areas, native=True)
    inside = (points[off].norm(dim=1) < 1).float()
    assert 0.05 < float(inside.mean()) < 0.5
    assert float((slow - inside).abs().max()) < 0.02
    assert float((fast - slow).abs().max()) < 0.1 and float((fast - slow).abs().median()) < 0.02


def test_distances_to_a_ball_are_known() -> None:
    truth = solid.solid_of_mesh(triangles(ball(2.0, (10, 20, 30), fine=4)))
    assert truth.signed and truth.about["open_edges"] == 0
    x = torch.rand(500, 3, generator=torch.Generator().manual_seed(1))
    expected = (truth.to_own(x) - torch.tensor([10.0, 20, 30])).norm(dim=1) - 2
    assert float((truth.distances(x) * truth.side - expected).abs().max()) < 0.01
    assert bool((truth.inside(x) == (truth.distances(x) < 0)).all())


def test_holes_and_overlaps_keep_their_inside_and_sheets_have_none(capsys) -> None:
    hole = solid.solid_of_mesh(triangles(without_a_cap(ball(), 0.9)), "hole")
    assert hole.signed and hole.about["open_edges"] > 0 and "has holes" in capsys.readouterr().err
    middle = torch.tensor(hole.extents)[None] / 2
    assert float(hole.distances(middle * torch.tensor([1.0, 1.0, 0.9]))) < 0
    twice = solid.solid_of_mesh(triangles(trimesh.util.concatenate([ball(), ball(1.0, (0.5, 0, 0))])))
    assert twice.signed and float(twice.distances(torch.tensor(twice.extents)[None] / 2)) < 0
    inverted = ball()
    inverted.invert()
    assert float(solid.solid_of_mesh(triangles(inverted)).distances(middle)) < 0
    capsys.readouterr()
    sheet = triangles(trimesh.creation.box((1, 1, 0.5)))
    flat = solid.solid_of_mesh(Triangles(sheet.vertices, sheet.faces[:2]), "sheet")
    assert not flat.signed and "encloses nothing" in capsys.readouterr().err
    x = torch.rand(100, 3) * torch.tensor(flat.extents)
    assert float(flat.distances(x).min()) >= 0


def test_points_with_normals_have_an_inside(tmp_path: Path) -> None:
    mesh = ball(3.0, fine=4)
    points, faces = trimesh.sample.sample_surface(mesh, 4000, seed=1)
    normals = torch.from_numpy(mesh.face_normals[faces])
    truth = solid.solid_of_cloud(torch.from_numpy(np.array(points)), normals * 5)
    x = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1))
    exact = (truth.to_own(x)).norm(dim=1) - 3
    wrong = (truth.distances(x) * truth.side - exact).abs()
    assert float(wrong.max()) < 0.2 and float(wrong.median()) < 0.01
    assert float(((truth.distances(x) < 0) == (exact < 0)).double().mean()) > 0.99
    scattered = torch.randn(4000, 3, generator=torch.Generator().manual_seed(2)).double()
    with pytest.raises(UserError, match="do not agree on what is outside"):
        solid.solid_of_cloud(torch.from_numpy(np.array(points)), scattered)
    header = "ply\nformat ascii 1.0\nelement vertex 12\nproperty float x\nproperty float y\nproperty float z\n"
    bare = tmp_path / "bare.ply"
    bare.write_text(header + "end_header\n" + "0 0 0\n" * 12)
    with pytest.raises(UserError, match="points without normals"):
        solid.read_solid(bare)
    oriented = tmp_path / "oriented.ply"
    rows = [" ".join(map(str, [*p, *n])) for p, n in zip(mesh.vertices, mesh.vertex_normals, strict=True)]
    header = header.replace("12", str(len(rows))) + "property float nx\nproperty float ny\nproperty float nz\n"
    oriented.write_text(header + "end_header\n" + "\n".join(rows) + "\n")
    read = solid.read_solid(oriented)
    assert read.about["points"] == len(rows) and read.signed


def test_what_the_field_holds_turns_back_into_distances() -> None:
    d = torch.linspace(-1.5, 1.5, 101)
    for soft in shape.SOFT.values():
        torch.testing.assert_close(shape.decode_distance(shape.encode_distance(d, soft), soft), d, rtol=1e-5, atol=1e-6)


@native
def test_a_shape_is_fitted_and_leaves_in_its_own_frame(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(surface, "CELLS", 32)
    at = (100.0, -40.0, 7.0)
    ball(2.0, at).export(tmp_path / "ball.ply")
    out = tmp_path / "out"
    sizes = ("--steps", 250, "--batch", 8192, "--width", 32, "--depth", 1, "--table", 14, "--samples", 100000)
    assert run("fit", "shape", tmp_path / "ball.ply", "-o", out, *sizes, "--grid", 48) == 0
    result = json.loads((out / "fit.json").read_text())
    assert result["iou"] > 0.98 and result["chamfer_percent"] < 1
    mesh = trimesh.load(out / "mesh.ply")
    assert mesh.is_watertight
    radii = np.linalg.norm(mesh.vertices - at, axis=1)
    assert abs(np.median(radii) - 2.0) < 0.03
    picture = np.asarray(Image.open(out / "preview.png"))
    drawn = (picture[:, :384] < 250).any(axis=2).mean()
    assert 0.1 < drawn < 0.6  # a ball, neither nothing nor everything
    assert run("sample", out, "-o", tmp_path / "coarse.obj", "--grid", 24) == 0
    assert len(trimesh.load(tmp_path / "coarse.obj").faces) < len(mesh.faces)
    assert run("sample", out, "-o", tmp_path / "x.ply", "--scale", 2) == 2
    assert run("sample", out, "-o", tmp_path / "x.ply", "--grid", 4) == 2
    assert "8 to 2048" in capsys.readouterr().err


@native
def test_skipped_blocks_change_nothing_of_the_mesh() -> None:
    problem = shape.Shape(solid.solid_of_mesh(triangles(ball())), pool=1 << 14)
    field = fit(problem, shape.shape_field(problem, SMALL), FitConfig(steps=60, batch=4096)).field
    sparse = surface.mesh_of_field(field, problem.describe(), 64)
    before, surface._SAFE = surface._SAFE, 1e9
    try:
        dense = surface.mesh_of_field(field, problem.describe(), 64)
    finally:
        surface._SAFE = before
    assert np.array_equal(sparse.faces, dense.faces) and np.allclose(sparse.vertices, dense.vertices)


@native
def test_eikonal_makes_slopes_of_one_for_fields_that_have_derivatives(tmp_path: Path) -> None:
    truth = solid.solid_of_mesh(triangles(ball()))
    slopes = []
    for weight in (0.0, 0.1):
        problem = shape.Shape(truth, eikonal=weight, pool=1 << 13)
        field = shape.shape_field(problem, FieldChoice("siren", 32, 3))
        fit(problem, field, FitConfig(steps=300, batch=1024))
        x, h = problem.u[:1000] * torch.tensor(truth.extents), 1e-3
        steps = [shape.distances_at(field, x + h * e) - shape.distances_at(field, x - h * e) for e in torch.eye(3)]
        slopes.append(float(((torch.stack(steps).norm(dim=0) / (2 * h)) - 1).abs().mean()))
    assert slopes[1] < 0.8 * slopes[0]
    with pytest.raises(UserError, match="--field siren"):
        shape.shape_field(shape.Shape(truth, eikonal=0.1, pool=1024), SMALL)


def test_a_sheet_becomes_a_thin_shell(tmp_path: Path) -> None:
    box = triangles(trimesh.creation.box((1, 1, 0.5)))
    problem = shape.Shape(solid.solid_of_mesh(Triangles(box.vertices, box.faces[:2])), pool=1 << 14)
    field = shape.shape_field(problem, SMALL)
    fitted = fit(problem, field, FitConfig(steps=60, batch=4096))
    fitted.save(tmp_path / "sheet.safetensors")
    again = Fitted.load(tmp_path / "sheet.safetensors")
    mesh = surface.mesh_of_field(again.field, again.signal, 32)
    assert len(mesh.faces) > 100
    assert "iou" not in surface.measure_shape(again.field, problem.solid)


def test_vertices_that_no_face_uses_may_be_anything(tmp_path: Path) -> None:
    vertices = "v nan nan nan\nv 0 0 0\nv inf 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
    (tmp_path / "tetra.obj").write_text(vertices + "f 2 5 4\nf 2 4 6\nf 2 6 5\nf 4 5 6\n")
    shape = solid.read_solid(tmp_path / "tetra.obj")
    assert len(shape.vertices) == 4 and bool(shape.vertices.isfinite().all()) and shape.signed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as a mesh"),
        (b"not a mesh at all", "cannot be read as a mesh"),
        (b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "no triangles"),
        (b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "lines or points"),
        (b"v 0 0 0\nv 1 0 0\nv 0 nan 0\nf 1 2 3\n", "NaN"),
    ],
)
def test_a_bad_mesh_is_one_sentence(tmp_path: Path, capsys, content: bytes, words: str) -> None:
    suffix = ".ply" if content == b"" or content.startswith(b"not") else ".obj"
    (tmp_path / f"bad{suffix}").write_bytes(content)
    assert run("fit", "shape", tmp_path / f"bad{suffix}", "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and not (tmp_path / "out").exists()
