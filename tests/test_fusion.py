"""Depth maps fused into a signed distance: the op, native against reference, and the surface made of it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from fakes import FakeModel
from torch import Tensor

from nerf import kernels
from nerf.cli import main as cli
from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Ndc, Similarity, Space, Unbounded
from nerf.geometry.triangles import read_mesh
from nerf.kernels import DepthView, fusion
from nerf.meshing.clean import find_hole_faces, taubin_smooth
from nerf.meshing.cloud import point_cloud, save_cloud
from nerf.meshing.extent import CELL_PIXELS, default_resolution
from nerf.meshing.extract import box_in_scene, extract_mesh
from nerf.meshing.fair import denoise_normals, faces_across
from nerf.meshing.fused import (
    HALF_WEIGHT_SPREAD_STEPS,
    MEDIAN_DEPTH_BIAS,
    FusedSurface,
    depth_views,
    farthest_point_sample,
    unproject_depths,
)
from nerf.meshing.marching import ASK, INSIDE, OUTSIDE, Grid

needs_native = pytest.mark.skipif(kernels.backend() != "cpu", reason="needs the native library")


def look_at(eye: Tensor, target: Tensor) -> Tensor:
    """[3,4] camera to world (OpenGL)."""
    back = torch.nn.functional.normalize(eye - target, dim=0)
    helper = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    if abs(float(back @ helper)) > 0.95:
        helper = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    right = torch.nn.functional.normalize(torch.linalg.cross(helper, back), dim=0)
    return torch.cat([torch.stack([right, torch.linalg.cross(back, right), back], dim=1), eye[:, None]], dim=1)


def cameras_around(n: int, distance: float, size: int = 120, half: bool = False) -> Cameras:
    """n cameras on a sphere (its upper half), all looking at the origin."""
    k = torch.arange(n, dtype=torch.float64) + 0.5
    z = 0.1 + 0.85 * k / n if half else 1 - 2 * k / n
    a = k * math.pi * (3 - math.sqrt(5))
    r = (1 - z * z).sqrt()
    eyes = distance * torch.stack([r * a.cos(), r * a.sin(), z], dim=1)
    c2w = torch.stack([look_at(eye, torch.zeros(3, dtype=torch.float64)) for eye in eyes])
    return Cameras.perspective(c2w, size * 1.1, size, size)


def moved() -> Similarity:
    turn = torch.eye(3, dtype=torch.float64)[[1, 2, 0]]
    return Similarity(0.5, turn, torch.tensor([0.1, 0.0, -0.2], dtype=torch.float64))


def in_world(cameras: Cameras, scene_from_world: Similarity) -> Cameras:
    """Cameras given in the scene frame, as they stand in the world."""
    back = scene_from_world.inverse()
    tensors = cameras.tensors()
    eyes = back.apply(cameras.centres)
    tensors["c2w"] = torch.cat([back.rotation @ cameras.c2w[:, :, :3], eyes[:, :, None]], dim=2)
    return Cameras(**tensors)


class BallModel(FakeModel):
    """A solid ball that cameras see; nobody may ask for its density, which is nonsense inside of real fields."""

    def __init__(
        self,
        radius: float = 0.6,
        cameras: Cameras | None = None,
        scene_from_world: Similarity | None = None,
        space: Space | None = None,
    ) -> None:
        cameras = cameras_around(40, 3.0) if cameras is None else cameras
        super().__init__(radius, scene_from_world or Similarity.identity(), space=space, cameras=cameras)
        self.occupancy = OccupancyGrid(1, 32)

    def density(self, points: Tensor) -> Tensor:
        raise AssertionError("the fused surface asks views, not densities")


def random_views(seed: int = 0) -> list[DepthView]:
    g = torch.Generator().manual_seed(seed)
    views = []
    for k in range(5):
        c2w = look_at(
            2 * torch.nn.functional.normalize(torch.randn(3, generator=g, dtype=torch.float64), dim=0),
            torch.zeros(3, dtype=torch.float64),
        )
        axes = c2w[:, :3] * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
        pose = torch.cat([axes.T, -(axes.T @ c2w[:, 3])[:, None]], dim=1)
        h, w = 17 + k, 23 - k
        rows, cols = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        depths = 1.7 + 0.02 * torch.sin(rows / 3.0) + 0.03 * torch.cos(cols / 4.0)
        depths[torch.rand(h, w, generator=g) < 0.1] = torch.inf
        depths[torch.rand(h, w, generator=g) < 0.1] += 0.4
        depths[torch.rand(h, w, generator=g) < 0.05] = torch.nan
        weights = 0.2 + 0.8 * torch.rand(h, w, generator=g)
        views.append(DepthView(pose, (30.0, 31.0, w / 2 + 0.3, h / 2 - 0.2), depths, weights))
    return views


@needs_native
def test_native_is_the_reference() -> None:
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(3)) * 2.4 - 1.2
    one, other = (fusion.fuse_depths(points, random_views(), 0.1, 0.15, None, native) for native in (True, False))
    assert {-1.0, 0.0} <= set(one.weights.unique().tolist()), "points in no picture, and behind everything"
    for a, b in zip(one, other, strict=True):
        # where a coordinate lies within rounding of a border between pixels, one may take the neighbour's depth
        assert torch.isclose(a, b, rtol=1e-4, atol=1e-4).float().mean() > 0.998
    assert ((one.weights > 0) & (one.weights % 1 > 0)).any() and (one.supports > 0).any()


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
def test_lengths_are_scaled_at_each_point(native: bool) -> None:
    g = torch.Generator().manual_seed(4)
    points = torch.rand(1500, 3, generator=g) * 2.4 - 1.2
    scales = torch.tensor([1.0, 2.0, 0.5])[torch.arange(1500) % 3]
    mixed = fusion.fuse_depths(points, random_views(), 0.1, 0.15, scales, native)
    for scale in (1.0, 2.0, 0.5):
        here = scales == scale
        alone = fusion.fuse_depths(points[here], random_views(), 0.1 * scale, 0.15 * scale, None, native)
        for a, b in zip(mixed, alone, strict=True):
            assert torch.isclose(a[here], b, atol=1e-5).float().mean() > 0.998
    with pytest.raises(ValueError, match="scales"):
        fusion.fuse_depths(points, random_views(), 0.1, 0.15, scales[:5], native)


@needs_native
def test_native_is_the_reference_with_scales() -> None:
    g = torch.Generator().manual_seed(5)
    points, scales = torch.rand(5000, 3, generator=g) * 2.4 - 1.2, 0.5 + 2 * torch.rand(5000, generator=g)
    one, other = (fusion.fuse_depths(points, random_views(), 0.1, 0.15, scales, native) for native in (True, False))
    for a, b in zip(one, other, strict=True):
        assert torch.isclose(a, b, rtol=1e-4, atol=1e-4).float().mean() > 0.998


def test_one_view_says_how_far_along_its_ray() -> None:
    """A wall at depth 2 before a camera at the origin that looks along z."""
    pose = torch.eye(4, dtype=torch.float64)[:3]
    view = DepthView(pose, (10.0, 10.0, 8.0, 8.0), torch.full((16, 16), 2.0), torch.ones(16, 16))
    points = torch.tensor([[0, 0, 1.0], [0, 0, 1.9], [0, 0, 2.0], [0, 0, 2.1], [0, 0, 2.3], [0, 0, -1], [9, 0, 1]])
    fused = kernels.fuse_depths(points, [view], 0.2, 0.2)
    assert fused.distances[:4].tolist() == pytest.approx([1, 0.5, 0, -0.5], abs=1e-5)
    assert fused.weights.tolist() == pytest.approx([1, 1, 1, 0.5, 0, -1, -1], abs=1e-5)
    assert fused.supports.tolist() == pytest.approx([0, 1, 1, 0.5, 0, 0, 0], abs=1e-5)
    aslant = kernels.fuse_depths(torch.tensor([[0.9, 0.0, 1.9]]), [view], 1.0, 0.2)
    assert float(aslant.distances) == pytest.approx(0.1 * math.sqrt(1 + (0.9 / 1.9) ** 2), rel=1e-4)


def test_pixels_count_as_they_weigh() -> None:
    """Two walls at depth 2 and 2.1 before cameras at the origin; the views of the nearer one weigh a third."""
    pose = torch.eye(4, dtype=torch.float64)[:3]
    near, far = (
        DepthView(pose, (10.0, 10.0, 8.0, 8.0), torch.full((16, 16), depth), torch.full((16, 16), weight))
        for depth, weight in ((2.0, 1 / 3), (2.1, 1.0))
    )
    fused = kernels.fuse_depths(torch.tensor([[0.0, 0.0, 1.9]]), [near, far], 0.4, 0.4)
    assert float(fused.distances) == pytest.approx((0.1 / 3 + 0.2) / (4 / 3) / 0.4, rel=1e-4)
    assert float(fused.weights) == pytest.approx(4 / 3, rel=1e-5)
    assert float(fused.supports) == pytest.approx(2.0), "two views see a surface there"


def test_half_pixels_and_edges() -> None:
    """Depth grows by 0.1 a pixel to the right; a jump is not smoothed over."""
    depths = (1 + 0.1 * torch.arange(8.0)).expand(8, 8).clone()
    view = DepthView(torch.eye(4, dtype=torch.float64)[:3], (8.0, 8.0, 0.0, 0.0), depths, torch.ones(8, 8))

    def depth_at(u: float) -> float:
        near = torch.tensor([[u / 8, 0.5, 1.0]]) * 0.5  # seen through pixel coordinates (u, 4)
        stretch = float(near.norm() / near[0, 2])
        return float(kernels.fuse_depths(near, [view], 10.0, 1.0).distances) * 10 / stretch + 0.5

    assert [depth_at(u) for u in (0.5, 1.5, 2.0, 0.1)] == pytest.approx([1.0, 1.1, 1.15, 1.0], abs=1e-4)
    depths[:, 4:] = torch.inf
    assert depth_at(3.9) == pytest.approx(1.3, abs=1e-4)
    assert math.isinf(depth_at(4.1)) or depth_at(4.1) > 5


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="points"):
        kernels.fuse_depths(torch.zeros(3), [], 1.0, 1.0)
    with pytest.raises(ValueError, match="front, back"):
        kernels.fuse_depths(torch.zeros(1, 3), [], 0.0, 1.0)
    bad = DepthView(torch.zeros(4, 4), (1, 1, 0, 0), torch.zeros(2, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="views"):
        kernels.fuse_depths(torch.zeros(1, 3), [bad], 1.0, 1.0)
    bad = DepthView(torch.zeros(3, 4), (1, 1, 0, 0), torch.zeros(2, 2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="depths and weights"):
        kernels.fuse_depths(torch.zeros(1, 3), [bad], 1.0, 1.0)


class FieldBall(BallModel):
    """As fields see it: the median-transmittance depth lies a little behind the surface."""

    def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
        t, _ = super().median_depths(rays_o, rays_d)
        spread = 0.7 * self.marching.step_size
        behind = MEDIAN_DEPTH_BIAS[0] * self.marching.step_size + MEDIAN_DEPTH_BIAS[1] * spread
        return torch.where(t > 0, t + behind, t), torch.full_like(t, spread)


def test_depth_views_are_where_the_surface_is() -> None:
    model = FieldBall(scene_from_world=moved())
    model.cameras = in_world(model.cameras, model.scene_from_world)
    views = depth_views(model, 7, 50)
    assert len(views) == 7 and all(view.depths.shape == (50, 50) for view in views)
    for view in views:
        points = unproject_depths(view)
        assert len(points) > 200 and torch.allclose(points.norm(dim=1), torch.tensor(0.6), atol=1e-5)
        seen = view.depths.isfinite()  # light that spreads over 0.7 steps of the march counts less than what is empty
        least = torch.tensor(1 / (1 + (0.7 / HALF_WEIGHT_SPREAD_STEPS) ** 2))
        assert torch.allclose(view.weights[seen], least) and bool((view.weights[~seen] == 1).all())
    assert len(set(farthest_point_sample(torch.rand(30, 3, dtype=torch.float64), 11).tolist())) == 11


def test_a_ball_is_closed_in_place_and_solid() -> None:
    mesh = extract_mesh(BallModel(), resolution=96)
    radii = np.linalg.norm(mesh.vertices, axis=1)
    assert mesh.metadata["closed"] and mesh.metadata["method"] == "tsdf" and mesh.metadata["components"] == 1
    assert mesh.euler_number == 2 and mesh.volume > 0
    assert abs(radii.mean() - 0.6) < 0.002 and radii.std() < 0.003, (radii.mean(), radii.std())
    assert (np.einsum("ij,ij->i", mesh.vertex_normals, mesh.vertices) > 0.97 * radii).mean() > 0.99


def test_smoothing_takes_noise_and_keeps_the_size() -> None:
    class Noisy(BallModel):
        def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
            t, spread = super().median_depths(rays_o, rays_d)
            noise = torch.rand(len(t), generator=torch.Generator().manual_seed(len(t))) - 0.5
            return torch.where(t > 0, t + 0.06 * noise, t), spread

    def measured(rounds: int) -> tuple[float, float]:
        mesh = extract_mesh(Noisy(), resolution=96, smooth=rounds, denoise=0)
        radii = np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
        return float((mesh.vertex_normals * mesh.vertices / radii).sum(axis=1).mean()), float(radii.mean())

    (rough, size), (fair, same_size) = measured(0), measured(3)
    assert 1 - fair < 0.6 * (1 - rough) and abs(size - same_size) < 0.002, (rough, fair, size, same_size)
    with pytest.raises(UserError, match=r"--smooth is .*expected a whole number from 0 to 100"):
        extract_mesh(BallModel(), smooth=-1)


def test_denoising_flattens_sides_and_keeps_edges() -> None:
    """A cube of noisy vertices: its sides get flat, its edges stay where they were."""
    import trimesh

    cube = trimesh.creation.box((1, 1, 1)).subdivide().subdivide().subdivide().subdivide()
    true, faces = torch.tensor(cube.vertices.copy()).float(), torch.tensor(cube.faces.copy()).int()
    noisy = true + 0.008 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    across = faces_across(faces, len(true)).long()
    assert torch.equal(
        across[across[:, 0]].eq(torch.arange(len(faces))[:, None]).sum(dim=1), torch.ones(len(faces)).long()
    )

    def angles_and_sizes(vertices: Tensor) -> tuple[float, float]:
        a, b, c = vertices[faces.long()].unbind(dim=1)
        normals = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)
        wrong = 1 - (normals * torch.tensor(cube.face_normals.copy()).float()).sum(dim=1)
        at_edges = (true.abs() > 0.499).sum(dim=1) >= 2
        return float(wrong.mean()), float((vertices - true)[at_edges].norm(dim=1).mean())

    (rough, off), (fair, still_off) = angles_and_sizes(noisy), angles_and_sizes(denoise_normals(noisy, faces, 12))
    rounded = angles_and_sizes(taubin_smooth(noisy, faces, 12))
    assert fair < 0.25 * rough and still_off < 1.1 * off, (rough, fair, off, still_off)
    assert fair < 0.5 * rounded[0], (fair, rounded)
    assert torch.equal(denoise_normals(noisy, faces, 0), noisy)
    with pytest.raises(UserError, match=r"--denoise is .*expected a whole number from 0 to 100"):
        extract_mesh(BallModel(), denoise=101)


def test_what_no_view_sees_stays_or_goes() -> None:
    """Cameras above see the upper side; what they cannot see is solid, and is cut off where that is asked for."""
    model = BallModel(cameras=cameras_around(30, 3.0, half=True))
    whole = extract_mesh(model, resolution=64)
    cut = extract_mesh(model, resolution=64, watertight=False)
    assert whole.metadata["closed"] and not whole.metadata["unseen_faces"]
    assert not cut.metadata["closed"] and cut.metadata["unseen_faces"] == len(whole.faces) - len(cut.faces) > 0
    radii = np.linalg.norm(cut.vertices, axis=1)
    assert np.abs(radii - 0.6).max() < 0.05 and cut.vertices[:, 2].min() < -0.1


def test_few_views_that_are_unsure_still_say_what_is_empty() -> None:
    class Unsure(BallModel):
        def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
            t, spread = super().median_depths(rays_o, rays_d)
            return t, torch.where(t > 0, 4 * self.marching.step_size, spread)

    model = Unsure(cameras=cameras_around(30, 3.0, half=True).subset(range(21, 30)))  # all from above
    surface = FusedSurface(depth_views(model, 64, 400), Grid((-1.0, -1.0, -1.0), 2 / 64, (65, 65, 65)))
    above = torch.nn.functional.normalize(torch.rand(1000, 3) - torch.tensor([0.5, 0.5, -0.5]), dim=1)
    assert float((surface.values(above * 0.55) > 0).float().mean()) > 0.99
    assert float((surface.values(above * 0.68) < 0).float().mean()) > 0.99


def test_crumbs_of_what_was_one_piece_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a ball whose waist nobody sees, the small cap goes as any small component does."""
    monkeypatch.setattr(FusedSurface, "seen", lambda _, p, *rest: ((p[:, 2] > 0.1) | (p[:, 2] < -0.5), p))
    model = BallModel(space=Unbounded(1))

    def lowest(**limits: Any) -> tuple[float, int]:
        mesh = extract_mesh(model, 64, box=(-1.0, -1.0, -1.0, 1.0, 1.0, 1.0), **limits)  # type: ignore[arg-type]
        return mesh.vertices[:, 2].min(), mesh.metadata["components"]

    assert lowest(min_fraction=0.01) == (pytest.approx(-0.6, abs=0.01), 2)
    for limits in ({"min_fraction": 0.4}, {"max_components": 1}):
        assert lowest(**limits) == (pytest.approx(0.1, abs=0.05), 1)
    monkeypatch.setattr(FusedSurface, "seen", lambda _, p, *rest: (torch.zeros(len(p), dtype=torch.bool), p))
    with pytest.raises(UserError, match="no two photos see a surface there"):
        lowest()


def test_what_one_view_alone_sees_is_no_surface_where_the_unseen_goes() -> None:
    model = BallModel(cameras=cameras_around(9, 1.5, half=True))
    surface = FusedSurface(depth_views(model, 64, 400), Grid((-1.0, -1.0, -1.0), 2 / 64, (65, 65, 65)))
    to_cameras = torch.nn.functional.normalize(model.cameras.centres.float(), dim=1)
    ball = trimesh.creation.icosphere(subdivisions=5)
    anywhere, faces = torch.from_numpy(np.array(ball.vertices)).float(), torch.from_numpy(np.array(ball.faces))
    least, most = ((anywhere @ to_cameras.T > 0.4 + unclear).sum(dim=1) for unclear in (0.1, -0.1))
    seen, towards = surface.seen(anywhere * 0.6, faces, anywhere)  # near a camera's horizon it may be or not
    assert bool((towards[most == 0] == 0).all()) and bool(((towards * anywhere).sum(dim=1)[least > 0] > 0).all())
    assert torch.allclose(towards[least > 0].norm(dim=1), torch.ones(1), atol=1e-5)
    assert int((most == 1).sum()) > 10 and not bool(seen[most == 1].any())
    assert int((least >= 2).sum()) > 10 and float(seen[least >= 2].float().mean()) > 0.98


def test_small_holes_close_and_what_is_apart_goes() -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    faces = torch.from_numpy(np.array(ball.faces))
    middles = torch.from_numpy(np.array(ball.triangles_center))
    gone = (middles[:, 2] > 0.95) | (middles[:, 0] < 0.2)
    faces = torch.cat([faces, faces[:4] + len(ball.vertices)])  # an unseen piece of its own
    gone = torch.cat([gone, torch.ones(4, dtype=torch.bool)])
    stays = find_hole_faces(faces, gone, 2 * len(ball.vertices), 100)
    assert not bool(stays.any()), "both holes are one"
    gone[: len(middles)] = (middles[:, 2] > 0.95) | (middles[:, 2] < 0.2)
    stays = find_hole_faces(faces, gone, 2 * len(ball.vertices), 100)
    assert torch.equal(stays[: len(middles)], middles[:, 2] > 0.95) and not bool(stays[len(middles) :].any())
    assert not bool(find_hole_faces(faces, gone, 2 * len(ball.vertices), 10).any())


def test_cells_away_from_the_surface_are_not_evaluated() -> None:
    model = BallModel()
    grid = Grid((-1.0, -1.0, -1.0), 2 / 96, (97, 97, 97))
    surface = FusedSurface(depth_views(model, 64, 400), grid)
    codes = surface.known(slice(0, 97), slice(0, 97), slice(0, 97))
    assert codes[48, 48, 48] == INSIDE and codes[0, 0, 0] == OUTSIDE and 0.05 < (codes == ASK).mean() < 0.3
    z, y, x = np.nonzero(codes != ASK)
    points = torch.from_numpy(np.stack([x, y, z], axis=1) * grid.step - 1).float()
    inside = surface.values(points) > 0
    assert torch.equal(inside, torch.from_numpy(codes[z, y, x] == INSIDE))


def test_nothing_seen_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no surface: .*nothing solid"):
        extract_mesh(BallModel(radius=0.0), resolution=32)


def test_points_lie_on_the_surface_and_look_outwards(tmp_path: Path) -> None:
    model = BallModel(scene_from_world=moved())
    model.cameras = in_world(model.cameras, model.scene_from_world)
    cloud = point_cloud(model, 3000)
    assert cloud.points.shape == (3000, 3) and cloud.points.dtype == torch.float64 and cloud.colors.dtype == np.uint8
    scene = model.scene_from_world.apply(cloud.points)
    assert torch.allclose(scene.norm(dim=1), torch.tensor(0.6, dtype=torch.float64), atol=1e-5)
    outward = model.scene_from_world.inverse().apply_directions(scene / 0.6)
    assert torch.allclose(cloud.normals, outward, atol=1e-4)
    assert len({tuple(sign) for sign in scene.sign().tolist()}) == 8, "from all sides"
    save_cloud(cloud, tmp_path / "points.ply")
    again = trimesh.load(tmp_path / "points.ply")
    assert np.allclose(again.vertices, cloud.points) and np.array_equal(again.colors[:, :3], cloud.colors)
    header = (tmp_path / "points.ply").read_bytes()[:400]
    assert b"element vertex 3000" in header and b"property float nx" in header


def test_what_one_view_alone_sees_is_no_point() -> None:
    class Floater(BallModel):
        """Before the first camera hangs a speck that nothing else shows."""

        def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
            t, spread = super().median_depths(rays_o, rays_d)
            first = self.cameras.centres[0].float()
            beside = (rays_o - first).norm(dim=1) < 1e-4
            ahead = rays_d @ torch.nn.functional.normalize(-first, dim=0) > 0.999
            return torch.where(beside & ahead, 0.5, t), spread

    cloud = point_cloud(Floater(), 20000)
    assert float((cloud.points.norm(dim=1) - 0.6).abs().max()) < 1e-4


def test_specular_highlights_do_not_hollow_out() -> None:
    """From above, a spot of the ball looks like a pit with a thin skin; those rays have no say."""

    class Shiny(BallModel):
        spread = 1.0

        def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
            t, spread = super().median_depths(rays_o, rays_d)
            there = rays_o + t[:, None] * rays_d
            spot = (t > 0) & (there[:, :2].norm(dim=1) < 0.3) & (there[:, 2] > 0)
            return torch.where(spot, t + 0.3, t), torch.where(spot, self.spread, spread)

    def lowest(model: Shiny) -> float:
        mesh = extract_mesh(model, resolution=64)
        return float(np.linalg.norm(mesh.vertices, axis=1).min())

    naive = Shiny()
    naive.spread = 0.0
    assert lowest(naive) < 0.45 and lowest(Shiny()) > 0.55


def test_no_points_is_one_sentence() -> None:
    with pytest.raises(UserError, match="see no surface"):
        point_cloud(BallModel(radius=0.0), 10)


@pytest.mark.parametrize("frame", ["world", "scene"])
def test_mesh_verb_in_either_frame(
    frame: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = BallModel(scene_from_world=moved())
    model.cameras = in_world(model.cameras, model.scene_from_world)
    monkeypatch.setattr("nerf.rendering.model.Model.load", lambda path: model)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    common = ["mesh", str(tmp_path), "--frame", frame]
    assert cli.run([*common, "--resolution", "48"]) == 0
    said = re.search(
        r"([\d,]+) triangles, one piece, closed; ([\d.]+) x ([\d.]+) x ([\d.]+) in (.*), volume ([\d.]+); [\d.]+ s",
        capsys.readouterr().out,
    )
    assert cli.run([*common, "--points", "500"]) == 0
    centre = np.zeros(3) if frame == "scene" else model.scene_from_world.inverse().translation.numpy()
    radius = 0.6 if frame == "scene" else 1.2
    assert said and said[5] == ("scene units" if frame == "scene" else "the photos' units")
    assert int(said[1].replace(",", "")) == len(read_mesh(tmp_path / "mesh.glb").faces)
    assert [float(said[k]) for k in (2, 3, 4)] == pytest.approx([2 * radius] * 3, rel=0.03)
    assert float(said[6]) == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.05)
    vertices = read_mesh(tmp_path / "mesh.glb").vertices.numpy()
    for points in (vertices, np.asarray(trimesh.load(tmp_path / "points.ply").vertices)):
        assert np.allclose(np.linalg.norm(points - centre, axis=1), radius, atol=0.05)


@pytest.mark.parametrize("to_scene", [Similarity.identity(), moved()])
def test_cells_are_as_large_as_pixels(to_scene: Similarity) -> None:
    model = BallModel(scene_from_world=to_scene)
    model.cameras = in_world(model.cameras, to_scene)
    low, high = -np.ones(3), np.ones(3)
    assert default_resolution(model, low, high) == math.ceil(2 / (CELL_PIXELS * 3 / 132))
    assert default_resolution(model, low / 50, high / 50) == 64
    mesh = extract_mesh(model)
    assert mesh.metadata["step"] == pytest.approx(2 / 118)


def test_a_box_in_the_frame_of_the_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unturned = Similarity(0.5, torch.eye(3, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    model = BallModel(scene_from_world=unturned)
    model.cameras = in_world(model.cameras, model.scene_from_world)
    monkeypatch.setattr("nerf.rendering.model.Model.load", lambda path: model)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    centre = model.scene_from_world.inverse().translation.numpy()
    low, high = centre - 2, centre + 2
    low[0] = centre[0]
    common = ["mesh", str(tmp_path), "--resolution", "48", "--box"]
    assert cli.run([*common, *(str(v) for v in (*low, *high))]) == 0
    vertices = read_mesh(tmp_path / "mesh.glb").vertices.numpy()
    assert vertices.min(axis=0)[0] > centre[0] - 0.1 and abs(vertices.max(axis=0)[0] - centre[0] - 1.2) < 0.05
    assert cli.run([*common, *(str(v) for v in (*(low + 50), *(high + 50))), "--overwrite"]) == 2
    with pytest.raises(UserError, match="outside the scene, which reaches from"):
        box_in_scene(model, (*(low + 50), *(high + 50)), "world")
    with pytest.raises(UserError, match="outside the scene, which reaches from -1 to 1 in scene units"):
        box_in_scene(model, (2.0, 0.0, 0.0, 3.0, 1.0, 1.0), "scene")
    model.marching = replace(model.marching, space=Ndc(1.0, 1.0))
    with pytest.raises(UserError, match="--frame scene"):
        box_in_scene(model, (*low, *high), "world")


def test_the_page_comes_with_a_glb_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = BallModel()
    monkeypatch.setattr("nerf.rendering.model.Model.load", lambda path: model)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    common = ["mesh", str(tmp_path), "--resolution", "32", "--page"]
    assert cli.run([*common, "-o", str(tmp_path / "a.ply")]) == 2 and "NAME.glb" in capsys.readouterr().err
    assert cli.run([*common, "-o", str(tmp_path / "a.glb")]) == 0
    assert '"harmonics":[' in (tmp_path / "a.html").read_text(encoding="utf-8")  # colours by direction
    (tmp_path / "a.glb").unlink()
    assert cli.run([*common, "-o", str(tmp_path / "a.glb")]) == 2 and "a.html exists" in capsys.readouterr().err


def test_photos_refine_the_depths_of_open_scenes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, object]] = []

    def refined(views: list[DepthView], pictures: list[object], up: Tensor) -> list[DepthView]:
        assert up.shape == (3,)
        asked.append((len(views), pictures[0]))
        return views

    monkeypatch.setattr("nerf.meshing.extract.grey_pictures", lambda model, scene, photos, views: [scene] * len(views))
    monkeypatch.setattr("nerf.meshing.extract.refine_depths", refined)
    room, object_ = BallModel(space=Unbounded(1)), BallModel()
    box = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    scene: Any = "photos"
    for model in (room, object_):
        extract_mesh(model, 24, box=box, colours=False, scene=scene)
        if model is room:
            shown = [re.sub(r" 100 %.*|  .*", "", line) for line in capsys.readouterr().err.splitlines()]
            assert shown == ["depth maps", "matching photos", "fusing", "meshing"]
        extract_mesh(model, 24, box=box, show_progress=False)
    assert "matching" not in (shown_of_object := capsys.readouterr().err) and "fusing" in shown_of_object
    assert asked == [(40, "photos")]
    # the command says where the photos are gone
    monkeypatch.setattr("nerf.rendering.model.Model.load", lambda path: room)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    sides = [str(side) for side in box]
    assert cli.run(["mesh", str(tmp_path), "--resolution", "24", "--frame", "scene", "--box", *sides]) == 0
    assert "made without the photos" in capsys.readouterr().err and len(asked) == 1
    assert cli.run(["mesh", str(tmp_path), "--data", str(tmp_path / "gone"), "--overwrite", "--box", *sides]) == 2
    assert "there is no such folder" in capsys.readouterr().err
