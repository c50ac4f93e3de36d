"""Judging meshes: nearest points against brute force, known distances, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

from nerf import kernels
from nerf.cli import main as cli
from nerf.datasets import LoadOptions, Scene, load
from nerf.errors import UserError
from nerf.geometry.triangles import Triangles, read_mesh, sample_surface
from nerf.kernels import nearest
from nerf.meshing.evaluation import check_frames, evaluate_mesh, evaluate_mesh_views
from nerf.meshing.preview import render_mesh
from nerf.training.exposure import apply_exposure, darkened_by_lens

native = pytest.mark.skipif(kernels.bindings.load().handle is None, reason="no native library here")
SAMPLE = Path(__file__).parent.parent / "data" / "sample" / "mesh.ply"


def triangles(mesh: trimesh.Trimesh) -> Triangles:
    return Triangles(torch.from_numpy(np.array(mesh.vertices)), torch.from_numpy(np.array(mesh.faces)))


def soup(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n triangles of all sizes and shapes, some without area."""
    g = torch.Generator().manual_seed(seed)
    size = 10 ** (torch.rand(n, 1, 1, generator=g) * 3 - 3)
    corners = torch.rand(n, 1, 3, generator=g) + size * (torch.rand(n, 3, 3, generator=g) - 0.5)
    corners[:5, 2] = corners[:5, 1]  # a line
    corners[5:8, 1:] = corners[5:8, :1]  # a point
    corners[8:12, 2] = 0.5 * (corners[8:12, 0] + corners[8:12, 1])
    return corners.reshape(-1, 3), torch.arange(3 * n).reshape(n, 3)


@native
@pytest.mark.parametrize("n", [1, 3, 4, 5, 300])
def test_the_hierarchy_finds_what_brute_force_finds(n: int) -> None:
    vertices, faces = soup(max(n, 12), 1)
    faces = faces[:n] if n < 12 else faces
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(2)) * 3 - 1
    slow = nearest.nearest_points(points.double(), vertices.double(), faces, native=False)
    fast = nearest.nearest_points(points, vertices, faces, native=True)
    torch.testing.assert_close(fast.distances, slow.distances, rtol=1e-5, atol=2e-6)
    # The point is where the distance says, and on the face that is named.
    torch.testing.assert_close((fast.points - points).norm(dim=1), fast.distances, rtol=1e-5, atol=2e-6)
    for i in range(0, 500, 50):
        own = nearest.nearest_points(fast.points[i : i + 1], vertices, faces[fast.faces[i]][None], native=False)
        assert float(own.distances) < 3e-6


def test_known_nearest_points_on_one_triangle() -> None:
    vertices, faces = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2]])
    points = torch.tensor([[0.2, 0.2, 3.0], [-1, -1, 0], [2, -1, 0], [-1, 2, 0], [0.5, -1, 1], [1, 1, 0], [-2, 0.5, 0]])
    expected = torch.tensor([[0.2, 0.2, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0]])
    for is_native in [False] + [True] * (kernels.bindings.load().handle is not None):
        found = nearest.nearest_points(points, vertices, faces, native=is_native)
        torch.testing.assert_close(found.points, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.distances, (points - expected).norm(dim=1), rtol=1e-6, atol=1e-6)


@native
def test_nearest_points_do_not_depend_on_threads_or_on_where_the_frame_lies() -> None:
    vertices, faces = soup(2000, 3)
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(4))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(nearest.nearest_points(points, vertices, faces, native=True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    offset = torch.tensor([4.5e6, -5e5, 100.0], dtype=torch.float64)  # metres of a map projection
    far = nearest.nearest_points(points.double() + offset, vertices.double() + offset, faces, native=True)
    torch.testing.assert_close(far.distances, results[0].distances, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("points", "vertices", "faces", "words"),
    [
        (torch.zeros(2, 2), torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), "points"),
        (torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int64), "faces"),
        (torch.zeros(2, 3), torch.zeros(3, 3), torch.tensor([[0, 1, 3]]), "faces"),
        (torch.zeros(2, 3), torch.zeros(3, 3), torch.tensor([[0.0, 1, 2]]), "faces"),
        (torch.full((2, 3), math.nan), torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), "points"),
        (torch.zeros(2, 3), torch.full((3, 3), math.inf), torch.tensor([[0, 1, 2]]), "vertices"),
    ],
)
def test_nearest_points_name_the_argument_that_is_wrong(points, vertices, faces, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        kernels.nearest_points(points, vertices, faces)


def test_points_are_spread_evenly_by_area() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 1, 0], [3, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [1, 3, 2]])
    s = sample_surface(vertices, faces, 30_000)
    points = (s.weights[..., None] * vertices[faces[s.faces]].double()).sum(dim=1)
    assert torch.allclose(s.weights.sum(dim=1), torch.ones(30_000).double()) and float(s.weights.min()) >= 0
    counts = torch.histc(points[:, 0].float(), 30, 0, 3)
    assert float((counts - 1000).abs().max()) < 60
    assert float((points[:, 1] < 0.5).double().mean()) == pytest.approx(0.5, abs=0.005)


def test_a_mesh_against_itself_scores_nothing() -> None:
    mesh = read_mesh(SAMPLE)
    result = evaluate_mesh(mesh, mesh, 20_000)
    assert result.chamfer_percent < 0.01 and result.f_scores["0.25"].f_score == 1
    assert result.normal_consistency > 0.999


def test_distances_of_two_balls() -> None:
    one, other = (triangles(trimesh.creation.icosphere(subdivisions=5, radius=r)) for r in (1.0, 1.02))
    result = evaluate_mesh(one, other, 20_000)
    assert result.accuracy == pytest.approx(0.02, rel=0.05)
    assert result.completeness == pytest.approx(0.02, rel=0.05)
    assert result.chamfer_percent == pytest.approx(100 * 0.02 / (2.04 * math.sqrt(3)), rel=0.05)
    scores = result.f_scores  # 0.02 is 0.57 % of the diagonal
    assert scores["0.5"].f_score == 0 and scores["1"].f_score == 1
    assert result.normal_consistency > 0.999


def test_accuracy_and_completeness_are_told_apart() -> None:
    whole, half = trimesh.creation.box((2, 2, 2)), trimesh.creation.box((2, 2, 1))
    half.apply_translation((0, 0, 0.5))  # the upper half
    half.update_faces(half.triangles_center[:, 2] > 0.01)  # without its floor, which is no part of the truth
    result = evaluate_mesh(triangles(half), triangles(whole), 20_000)
    assert result.accuracy < 1e-6 and result.completeness > 0.2
    assert result.f_scores["1"].precision == 1 and result.f_scores["1"].recall < 0.6


def test_a_mesh_is_drawn_in_the_light_of_the_photos() -> None:
    """Photos of a grey ball whose lens darkens their corners and that no flash lights."""
    scene = load(SAMPLE.parent, LoadOptions(downscale=4), quiet=True)
    ids = scene.splits["test"]
    cameras = scene.cameras.subset(ids)
    ball = trimesh.creation.icosphere(4, 0.5 / float(scene.scene_from_world.scale))
    ball.visual.vertex_colors = [120, 120, 120, 255]
    lens = torch.tensor([-0.8, -0.4]).expand(len(ids), 2)
    model = SimpleNamespace(
        vignetting=lens, falloff=None, cameras=cameras, scene_from_world=scene.scene_from_world, linear=False
    )
    pictures = []
    for k in range(len(ids)):
        drawn = render_mesh(ball, cameras, k, supersample=4)
        opacity = torch.from_numpy(drawn.opacity)[..., None]
        logs = darkened_by_lens(cameras.subset([k]), cameras, lens)
        front = torch.from_numpy(drawn.color) - (1 - opacity)
        pictures.append((apply_exposure(front, logs, False, opacity) + 1 - opacity).clamp(0, 1))
    splits = {"train": [0], "test": list(range(1, len(ids)))}
    lenses = torch.stack([cameras.fx, cameras.fy, cameras.cx, cameras.cy], dim=1)
    photos = Scene.from_arrays(pictures, cameras.c2w, lenses, splits=splits)
    plain = evaluate_mesh_views(ball, photos)
    assert evaluate_mesh_views(ball, photos, model=model).psnr > 55 > plain.psnr + 15  # type: ignore[arg-type]
    model.vignetting = torch.zeros_like(lens)
    assert evaluate_mesh_views(ball, photos, model=model).psnr == pytest.approx(plain.psnr)  # type: ignore[arg-type]
    reference = 0.8 * float(cameras.centres.norm(dim=1).mean() * scene.scene_from_world.scale)
    model.falloff = torch.tensor([2.0, reference]).expand(len(ids), 2)
    assert evaluate_mesh_views(ball, photos, model=model).psnr < plain.psnr  # type: ignore[arg-type]


def test_evalmesh_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, radius in (("a.ply", 1.0), ("b.obj", 1.01)):
        trimesh.creation.icosphere(subdivisions=3, radius=radius).export(tmp_path / name)
    out = tmp_path / "r.json"
    command = ["evalmesh", str(tmp_path / "a.ply"), "--truth", str(tmp_path / "b.obj"), "--samples", "5000"]
    assert cli.run([*command, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "chamfer" in printed and "F-score" in printed
    saved = json.loads(out.read_text())
    assert cli.run(["evalmesh", str(tmp_path / "a.ply"), "--truth", str(tmp_path / "b.obj"), "--run", "x"]) == 2
    assert "--views" in capsys.readouterr().err
    assert saved["samples"] == 5000 and 0.1 < saved["chamfer_percent"] < 0.5


def test_the_run_that_a_mesh_is_of_must_be_of_its_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nerf.rendering.model.Model.load", lambda path: SimpleNamespace(names=["another.jpg"]))
    trimesh.creation.icosphere(subdivisions=1).export(tmp_path / "a.ply")
    assert cli.run(["evalmesh", str(tmp_path / "a.ply"), "--views", str(SAMPLE.parent), "--run", "elsewhere"]) == 2
    assert "elsewhere was trained on none of the photos" in capsys.readouterr().err


def test_bad_meshes_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.ply"
    trimesh.creation.icosphere(subdivisions=2).export(good)
    (tmp_path / "broken.ply").write_bytes(good.read_bytes()[:300])
    (tmp_path / "text.obj").write_text("hello\n")
    trimesh.PointCloud(np.zeros((4, 3))).export(tmp_path / "points.ply")
    nan = trimesh.creation.icosphere(subdivisions=1)
    nan.vertices[3] = np.nan
    nan.export(tmp_path / "nan.ply")
    far = trimesh.creation.icosphere(subdivisions=1)
    far.apply_translation((50, 0, 0))
    far.export(tmp_path / "far.ply")
    large = trimesh.creation.icosphere(subdivisions=1, radius=1000)
    large.export(tmp_path / "large.ply")
    (tmp_path / "mesh.txt").write_text("x")
    for name, words in {
        "missing.ply": "no such file",
        "broken.ply": "broken.ply",
        "text.obj": "text.obj",
        "points.ply": "no triangles",
        "nan.ply": "NaN",
        "far.ply": "same frame",
        "large.ply": "same frame",
        "mesh.txt": ".glb",
    }.items():
        for pair in ([name, "good.ply"], ["good.ply", name]):
            command = ["evalmesh", str(tmp_path / pair[0]), "--truth", str(tmp_path / pair[1]), "--samples", "10"]
            assert cli.run(command) == 2, pair
            said = capsys.readouterr().err
            assert words in said and said.startswith("nerf: ") and "Traceback" not in said, said
    command = ["evalmesh", str(good), "--truth", str(good), "--samples", "10", "--out", str(tmp_path)]
    assert cli.run(command) == 2 and "is a folder" in capsys.readouterr().err
    assert cli.run(["evalmesh", str(good), "--truth", str(good), "--samples", "0"]) == 2
    assert "--samples" in capsys.readouterr().err
    point = Triangles(torch.zeros(3, 3).double(), torch.tensor([[0, 1, 2]]))
    with pytest.raises(UserError, match="no extent"):
        check_frames(read_mesh(good), point, "good", "point")
