"""What a page holds: packing and back, harmonics that are fitted, upright views, nothing from outside."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from fakes import FakeModel, ring_cameras
from torch import Tensor

import nerf
from nerf.cli import main as cli
from nerf.geometry.aim import look_at
from nerf.geometry.cameras import Cameras
from nerf.kernels import RenderedRays
from nerf.meshing.evaluation import evaluate_mesh_views
from nerf.meshing.files import save_mesh
from nerf.meshing.preview import render_mesh
from nerf.views.page import page_text, write_page
from nerf.views.page.harmonics import Seen, bake_harmonics, basis_of, colors_towards, fit_harmonics, observe, smooth
from nerf.views.page.pack import (
    BEND,
    octahedral,
    pack,
    quantised_harmonics,
    quantised_positions,
    quantised_texture_coordinates,
)
from nerf.views.page.stage import Stage, stage_of, view_numbers
from nerf.views.paths import CameraPath
from nerf.views.viewer.edits import Edits, write_edits
from nerf.views.viewer.regions import Region

UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def directions(n: int, seed: int = 0) -> np.ndarray:
    d = np.random.default_rng(seed).normal(size=(n, 3))
    return d / np.linalg.norm(d, axis=1, keepdims=True)


COLOR = (60, 120, 180)


def colored_ball() -> trimesh.Trimesh:
    """The surface of a FakeModel, in the world."""
    surface = trimesh.creation.icosphere(3, radius=0.7 * 1.5)
    surface.visual.vertex_colors = np.tile(np.array([*COLOR, 255], np.uint8), (len(surface.vertices), 1))
    return surface


# --- packing ---


def test_positions_come_back_finest_in_the_middle() -> None:
    points = directions(5000) * np.geomspace(1e-3, 250.0, 5000)[:, None]
    steps, half = quantised_positions(points)
    assert steps.dtype == np.uint16 and half == np.abs(points).max()
    back = half / math.sinh(BEND) * np.sinh(BEND * (steps / 32767.5 - 1))
    # half a step times the slope of the curve: half BEND cosh(BEND u) / sinh(BEND) / 65535, cosh = sqrt(1 + sinh^2)
    s = points / half * math.sinh(BEND)
    assert (np.abs(back - points) <= 1.02 * half * BEND / math.sinh(BEND) * np.sqrt(1 + s * s) / 65535).all()
    assert np.abs(back - points)[:2500].max() < 1e-5 * half and np.abs(back - points).max() < 1e-4 * half
    assert quantised_positions(np.zeros((3, 3)))[1] == 1.0  # a mesh of one point


def test_normals_come_back_from_the_octahedron() -> None:
    normals = np.concatenate([directions(5000), np.eye(3), -np.eye(3)])
    packed = octahedral(normals)
    assert packed.dtype == np.int16
    x, y = (packed / 32767).T
    z = 1 - np.abs(x) - np.abs(y)
    sign = lambda v: np.where(v < 0, -1.0, 1.0)  # noqa: E731
    below = z < 0
    bx, by = np.where(below, (1 - np.abs(y)) * sign(x), x), np.where(below, (1 - np.abs(x)) * sign(y), y)
    back = np.stack([bx, by, z], axis=1)
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    assert np.abs(back - normals).max() < 1e-4


def test_texture_coordinates_and_harmonics_are_within_half_a_step() -> None:
    generator = np.random.default_rng(0)
    uv = generator.random((1000, 2))
    assert np.abs(quantised_texture_coordinates(uv) / 65535 - uv).max() <= 0.5 / 65535 + 1e-9
    coefficients = generator.uniform(-1, 1, (4000, 9, 3)).astype(np.float32) * np.arange(9)[:, None].astype(np.float32)
    steps, scales = quantised_harmonics(coefficients)
    assert steps.dtype == np.int8 and scales[0] == 1.0 and (steps[:, 0] == 0).all()  # all nought: not divided by it
    back = steps / 127 * np.array(scales)[:, None]
    within = np.abs(coefficients) <= np.array(scales)[:, None]
    assert within.mean() > 0.998
    assert (
        np.abs(back - coefficients)[within] <= np.broadcast_to(np.array(scales)[:, None], within.shape)[within] / 253
    ).all()


def test_parts_lie_at_multiples_of_four_bytes() -> None:
    parts: dict[str, Any] = {
        "a": np.arange(3, dtype=np.uint8),
        "b": np.arange(5, dtype=np.uint16),
        "c": np.arange(2, dtype=np.uint32),
    }
    data, layout = pack(parts)
    assert len(data) % 4 == 0
    for name, values in parts.items():
        offset, count = layout[name]
        assert offset % 4 == 0
        assert (np.frombuffer(data, values.dtype, count, offset) == values).all()


# --- colours by direction ---


def test_the_harmonics_are_orthonormal() -> None:
    """By a quadrature of the sphere that is exact for the products, polynomials of degree 4."""
    heights, weights = np.polynomial.legendre.leggauss(4)
    azimuths = np.arange(8) * np.pi / 4
    z, a = (x.ravel() for x in np.meshgrid(heights, azimuths, indexing="ij"))
    r = np.sqrt(1 - z * z)
    basis = basis_of(torch.from_numpy(np.stack([r * np.cos(a), r * np.sin(a), z], axis=1))).numpy()
    gram = basis.T @ (basis * (np.repeat(weights, 8) * np.pi / 4)[:, None])
    np.testing.assert_allclose(gram, np.eye(9), atol=1e-7)


def seen_of(coefficients: Tensor, n: int = 30) -> Seen:
    """n directions a point, whose colours are those of the coefficients [m,9,3]."""
    m = len(coefficients)
    d = torch.from_numpy(directions(m * n)).reshape(m, n, 3)
    weights = torch.rand(m, n, dtype=torch.float64) + 0.1
    return Seen(d, torch.einsum("mnk,mkc->mnc", basis_of(d), coefficients), weights)


def test_a_function_of_the_harmonics_is_found_again() -> None:
    coefficients = torch.randn(20, 9, 3, dtype=torch.float64)
    seen = seen_of(coefficients)
    torch.testing.assert_close(fit_harmonics(seen, ridge=0.0), coefficients, atol=1e-6, rtol=0)
    held = fit_harmonics(seen)[:, 1:].norm() / coefficients[:, 1:].norm()
    assert 0.7 < float(held) < 1.0  # the ridge pulls in, a little, where there are many directions
    nothing = Seen(seen.directions, seen.colors, torch.zeros_like(seen.weights))
    assert float(fit_harmonics(nothing).abs().max()) == 0.0


def test_values_are_averaged_over_the_surface_and_across_its_seams() -> None:
    """A strip of vertices of which the two in the middle lie in one place."""
    x = torch.tensor([0.0, 1, 2, 2, 3, 4, 9])
    vertices = torch.stack([x, 0 * x, 0 * x], dim=1)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
    values, weights = torch.tensor([[1.0], [1], [1], [5], [5], [5], [7]]), torch.ones(7)
    found = smooth(values, weights, vertices, faces, 1)[:, 0]
    torch.testing.assert_close(found, torch.tensor([8 / 4, 8 / 4, 18 / 6, 18 / 6, 16 / 4, 16 / 4, 7.0]))
    weights[3] = 0  # nobody saw it
    assert smooth(values, weights, vertices, faces, 0)[3] == 1.0


LAMP = torch.nn.functional.normalize(torch.tensor([0.4, 0.3, 0.9]), dim=0)


class GlossyBall(FakeModel):
    """Brown, with a highlight of Phong where the lamp is mirrored: (cosine between the mirrored ray and the lamp)^4."""

    def render_rays(self, rays_o: Tensor, rays_d: Tensor) -> RenderedRays:
        rays = super().render_rays(rays_o, rays_d)
        normals = torch.nn.functional.normalize(rays_o + rays.median_depths[:, None] * rays_d, dim=1)
        mirrored = rays_d - 2 * (rays_d * normals).sum(dim=1, keepdim=True) * normals
        highlight = 0.5 * (mirrored @ LAMP).clamp_min(0) ** 4
        shown = torch.tensor([0.4, 0.3, 0.2]) + highlight[:, None]
        return rays._replace(foregrounds=shown * rays.opacities[:, None])


def cameras_over(n: int, seed: int) -> Cameras:
    eyes = torch.from_numpy(directions(n, seed)) * 4
    eyes[:, 2] = eyes[:, 2].abs()
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), UP)
    return Cameras.perspective(poses, 50.0, 40, 40)


def test_highlights_move_as_those_of_the_model() -> None:
    """From directions that no camera had, the baked colours are nearer to the model's than any fixed ones are."""
    model = GlossyBall(cameras=cameras_over(40, 1))
    mesh = colored_ball()
    coefficients = bake_harmonics(model, mesh, show_progress=False)
    vertices, normals = (torch.from_numpy(np.array(x)) for x in (mesh.vertices, mesh.vertex_normals))
    nobody = observe(model, model.cameras, vertices, normals).weights.sum(dim=1) == 0
    assert nobody.any() and float(coefficients[nobody].abs().max()) == 0
    others = cameras_over(12, 2)
    truth = observe(model, others, vertices, normals)
    some = (truth.weights > 0.2) & (vertices[:, 2] > -0.2)[:, None]
    mean = (some[..., None] * truth.colors).sum(dim=1) / some.sum(dim=1, keepdim=True).clamp_min(1)
    own = torch.tensor(COLOR) / 255
    shown = torch.stack([own + colors_towards(coefficients, vertices, eye) for eye in others.centres], dim=1)
    fixed, changing = ((x - truth.colors)[some].square().mean() for x in (mean[:, None], shown))
    assert 10 * math.log10(float(fixed / changing)) > 4  # dB


# --- where it is seen from ---


def pose_of(numbers: list[float]) -> Tensor:
    """[3,4] of a view, as page.js has it: right, up, back, eye."""
    *target, azimuth, elevation, distance = numbers
    ce, se, ca, sa = math.cos(elevation), math.sin(elevation), math.cos(azimuth), math.sin(azimuth)
    right, back = np.array([ca, 0, -sa]), np.array([ce * sa, se, ce * ca])
    return torch.from_numpy(np.stack([right, np.cross(back, right), back, np.array(target) + distance * back], axis=1))


def test_views_are_those_of_the_cameras() -> None:
    cameras = ring_cameras(9, elevation=0.7)
    rotation = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)  # z up to y up
    middle = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)
    for numbers, c2w in zip(view_numbers(cameras, rotation, middle), cameras.c2w, strict=True):
        want = torch.cat([rotation @ c2w[:, :3], (rotation @ (c2w[:, 3] - middle))[:, None]], dim=1)
        torch.testing.assert_close(pose_of(numbers), want, atol=1e-4, rtol=0)
        assert np.linalg.norm(numbers[:3]) < 0.3  # what is looked at lies near the middle


def test_a_camera_that_looks_straight_down_keeps_its_upper_side() -> None:
    right, up = torch.tensor([0.6, 0.8, 0.0]), torch.tensor([-0.8, 0.6, 0.0])
    c2w = torch.stack([right, up, torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, 5])], dim=1).double()[None]
    rotation = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    (numbers,) = view_numbers(Cameras.perspective(c2w, 50.0, 40, 40), rotation, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(pose_of(numbers)[:, :3], rotation @ c2w[0, :, :3], atol=1e-4, rtol=0)


def test_a_stage_is_upright_and_begins_on_the_path() -> None:
    model = FakeModel()
    model.names = ["a/one.png"]
    path = CameraPath(ring_cameras(40), 8.0, "")
    stage = stage_of(model, path, 3)
    torch.testing.assert_close(stage.rotation @ UP, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert next(iter(stage.views)) == "Start" and len(stage.views) == 4 and "a/one.png" in stage.views
    assert stage.views["Start"] == stage.path[0] and stage.closed and stage.seconds == 5.0
    level = stage_of(model, path, 0, torch.tensor([1.0, 0, 0])).rotation[:, 0]  # what was set to be up
    torch.testing.assert_close(level, torch.tensor([0.0, 1, 0], dtype=torch.float64))
    half = CameraPath(ring_cameras(40, arc=3.0), 8.0, "")
    assert not stage_of(model, half, 0).closed


# --- the page ---


def square_stage() -> Stage:
    eye = torch.eye(3, dtype=torch.float64)
    return Stage(
        eye, torch.zeros(3, dtype=torch.float64), 0.6, {"</script><b>": [0, 0, 0, 0, 0, 4]}, [[0, 0, 0, 0, 0, 4.0]]
    )


def test_nothing_on_a_page_comes_from_outside_or_is_obeyed() -> None:
    text = page_text(trimesh.creation.box(), square_stage(), "<i>@DATA@", ["<script>alert(1)</script>", "\u202eabc"])
    assert "default-src 'none'" in text
    assert not re.search(
        r"https?:|//[a-z]+\.|@import|url\(|<link|<iframe|\bimport\(|fetch\(|XMLHttp|WebSocket|@[A-Z]+@.*@",
        re.sub(r"<title>.*?</title>|<summary>.*?</summary>", "", text),
    )
    assert len(re.findall("<script", text)) == 3 and len(re.findall("</script>", text)) == 3
    assert "&lt;i&gt;@DATA@" in text and "&lt;script&gt;alert" in text and "\\u202eabc" in text
    settings = json.loads(re.search(r'<script id="settings"[^>]*>(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    assert settings["views"][0][0] == "</script><b>"


def test_a_large_texture_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=noise)
    box = trimesh.creation.box()
    box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
    whole = len(page_text(box, square_stage(), ""))
    monkeypatch.setattr("nerf.views.page._MOST_TEXTURE", 100_000)
    assert len(page_text(box, square_stage(), "")) < whole - 200_000


# --- the command ---


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint of a ball, whose photos are gone."""
    model = FakeModel()
    monkeypatch.setattr("nerf.rendering.model.Model.load", lambda path: model)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    return tmp_path


def settings_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(re.search(r'<script id="settings"[^>]*>(.*?)</script>', text).group(1))  # type: ignore[union-attr]
    return found


def test_the_mesh_of_the_run_is_shown_unless_the_model_is_newer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import os

    save_mesh(colored_ball(), run / "mesh.glb", UP)
    assert cli.run(["export-page", str(run), "--notes", "First note.", "Second one.", "--views", "2"]) == 0
    said = capsys.readouterr()
    assert "1,280 triangles" in said.out and str(run / "page.html") in said.out
    settings = settings_of(run / "page.html")
    assert (
        settings["layout"]["index"][1] == 3 * 1280 and len(settings["harmonics"]) == 9 and len(settings["views"]) == 3
    )
    assert "<p>First note.</p><p>Second one.</p>" in (run / "page.html").read_text(encoding="utf-8")
    assert cli.run(["export-page", str(run)]) == 2 and "page.html exists" in capsys.readouterr().err
    os.utime(run / "mesh.glb", (1e9, 1e9))
    few = ["--faces", "900", "--no-directional", "--overwrite"]
    assert cli.run(["export-page", str(run), *few]) == 0 and "the model is newer" in capsys.readouterr().err
    settings = settings_of(run / "page.html")
    assert "harmonics" not in settings and settings["layout"]["index"][1] <= 3 * 910 and "color" in settings["layout"]


def test_the_edits_of_the_viewer_are_used(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_mesh(colored_ball(), run / "mesh.glb", UP)
    crop = Region("box", (0, 0, 1.0), (4, 4, 2.0))  # the upper half
    write_edits(run, Edits(crop, up=(1.0, 0.0, 0.0)))
    common = ["export-page", str(run), "--no-directional", "--overwrite"]
    assert cli.run(common) == 0 and "cropped" in capsys.readouterr().err
    half, large = settings_of(run / "page.html")["layout"]["index"][1] / 3, run / "large.glb"
    assert 500 < half < 780 and settings_of(run / "page.html")["half"] == pytest.approx(0.7 * 1.5, rel=0.02)
    assert cli.run([*common, "--no-edits"]) == 0
    assert settings_of(run / "page.html")["layout"]["index"][1] == 3 * 1280
    scaled = colored_ball()
    scaled.apply_scale(3.0)
    save_mesh(scaled, large, UP)
    write_edits(run, Edits(scale=3.0))
    assert cli.run([*common, "--mesh", str(large)]) == 0
    assert settings_of(run / "page.html")["half"] == pytest.approx(0.7 * 1.5, rel=0.02)
    write_edits(run, Edits(Region("box", (0, 0, 9.0), (1, 1, 1))))
    capsys.readouterr()
    assert cli.run(common) == 2 and "leave nothing of the mesh" in capsys.readouterr().err


def test_mistakes_are_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*options: str) -> str:
        assert cli.run(["export-page", str(run), *options]) == 2
        assert not (run / "page.html").exists()
        return capsys.readouterr().err

    assert "a page's name ends in .html" in said("-o", str(run / "page.glb"))
    assert "--views is -1" in said("--views", "-1")
    assert "no such camera-path file" in said("--path", str(run / "none.json"))
    assert "there is no such file" in said("--mesh", str(run / "none.glb"))
    away = colored_ball()
    away.apply_translation([0, 0, 500])
    save_mesh(away, run / "away.glb")
    assert "away.glb lies where no photo looks" in said("--mesh", str(run / "away.glb"))


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    from nerf.errors import UserError

    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path / "none" / "page.html", FakeModel(), colored_ball(), "ball")


def test_what_is_added_to_vertices_is_drawn() -> None:
    mesh, brighter, cameras = colored_ball(), colored_ball(), ring_cameras(1)
    brighter.visual.vertex_colors = np.tile(np.array([80, 120, 160, 255], np.uint8), (len(mesh.vertices), 1))
    added = torch.tensor([20.0, 0.0, -20.0]).expand(len(mesh.vertices), 3) / 255
    drawn, want = render_mesh(mesh, cameras, 0, added=added), render_mesh(brighter, cameras, 0)
    np.testing.assert_allclose(drawn.color, want.color, atol=1e-6)
    assert render_mesh(mesh, cameras, 0, added=10 * added).color.max() == 1.0


@pytest.mark.slow
def test_held_out_views_of_the_bundled_scene_come_nearer(sample: Path, tmp_path: Path) -> None:
    scene = nerf.load(sample, downscale=4)
    model = nerf.train(scene, nerf.TrainConfig(steps=600), out=tmp_path, progress=False)
    surface = nerf.extract_mesh(model, resolution=96, show_progress=False)
    mesh = nerf.texture_mesh(model, scene, surface, 512, 20_000, show_progress=False)
    coefficients, vertices = bake_harmonics(model, mesh, show_progress=False), torch.from_numpy(np.array(mesh.vertices))
    fixed = evaluate_mesh_views(mesh, scene).psnr
    changing = evaluate_mesh_views(mesh, scene, lambda eye: colors_towards(coefficients, vertices, eye)).psnr
    assert changing > fixed + 0.2
