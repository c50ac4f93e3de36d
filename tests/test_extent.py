"""What is meshed of open scenes: as far as several views see, in cells that grow with distance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fakes import FakeModel
from test_fusion import BallModel, cameras_around, look_at
from torch import Tensor

from nerf.errors import UserError
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Unbounded
from nerf.kernels import DepthView
from nerf.meshing.extent import open_grid
from nerf.meshing.extract import extract_mesh
from nerf.meshing.fused import FusedSurface, depth_views
from nerf.meshing.marching import SKIP, Grid
from nerf.meshing.warp import Warp

HALF = torch.tensor([5.0, 4.0, 3.0])  # of a room around the ball


class Room(BallModel):
    """A ball in a box-shaped room whose walls the cameras see from within; `specks`: one pixel a view, far behind."""

    specks = False

    def __init__(self, cameras: Cameras | None = None) -> None:
        super().__init__(cameras=cameras_around(40, 2.0) if cameras is None else cameras, space=Unbounded(6))

    def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
        t, spread = FakeModel.median_depths(self, rays_o, rays_d)
        walls = ((rays_d.sign() * HALF - rays_o) / torch.where(rays_d == 0, 1e-9, rays_d)).amin(dim=1)
        t = torch.where(t > 0, torch.minimum(t, walls), walls)
        if self.specks:
            t[7] = 30.0
        return t, spread


def off_surface(points: np.ndarray) -> np.ndarray:
    """Distances [n] from the ball or the walls, whichever are nearer."""
    walls = np.abs(np.abs(points) - HALF.numpy()).min(axis=1)
    return np.minimum(walls, np.abs(np.linalg.norm(points, axis=1) - 0.6))


def test_the_warp_is_even_within_grows_beyond_and_comes_back() -> None:
    warp, g = Warp(1.5), torch.Generator().manual_seed(0)
    x = torch.randn(2000, 3, generator=g, dtype=torch.float64) * torch.tensor([1.0, 20.0]).repeat(1000)[:, None]
    u, r = warp.to_grid(x), x.abs().amax(dim=1)
    assert torch.allclose(warp.to_scene(u), x) and torch.equal(u[r <= 1.5], x[r <= 1.5])
    assert torch.allclose(u.abs().amax(dim=1)[r > 1.5], 1.5 * (1 + (r[r > 1.5] / 1.5).log()))
    scales, step = warp.scales(x), 1e-4
    assert scales is not None and float(scales.min()) == 1
    outwards = warp.to_scene(u + step * u / u.abs().amax(dim=1, keepdim=True)).abs().amax(dim=1) - r
    assert torch.allclose(outwards / step, scales, rtol=1e-3), "a step of the grid is so long"
    assert Warp().to_grid(x) is x and Warp().to_scene(x) is x and Warp().scales(x) is None


def test_a_room_is_meshed_up_to_its_walls() -> None:
    mesh = extract_mesh(Room(), resolution=96)
    low, high = mesh.bounds
    np.testing.assert_allclose(high, HALF, atol=0.05)
    np.testing.assert_allclose(low, -HALF.numpy(), atol=0.05)
    assert np.quantile(off_surface(mesh.vertices), 0.9) < 0.08, "a step is 0.08 in the middle and 0.3 at the walls"
    ball = np.linalg.norm(mesh.vertices, axis=1) < 1
    assert ball.sum() > 250 and off_surface(mesh.vertices[ball]).max() < 0.03
    edges = mesh.edges_unique_length
    at_wall = np.abs(mesh.vertices[mesh.edges_unique[:, 0]])[:, 0] > 4.9
    assert 1.5 < np.median(edges[at_wall]) / np.median(edges[ball[mesh.edges_unique[:, 0]]]) < 4
    shared = np.unique(mesh.faces_unique_edges, return_counts=True)[1]
    assert shared.max() == 2, "no edge has a third face"


def test_a_box_is_an_even_grid() -> None:
    mesh = extract_mesh(Room(), resolution=64, box=(-1.0, -1.0, -1.0, 1.0, 1.0, 1.0))
    assert mesh.metadata["step"] == 2 / 64 and np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.6).max() < 0.02


def test_specks_far_off_do_not_widen_what_is_meshed() -> None:
    model = Room()
    clean, warp = open_grid(model, depth_views(model, 64, 100), 64)
    model.specks = True
    specked, same = open_grid(model, depth_views(model, 64, 100), 64)
    assert warp.radius == pytest.approx(same.radius, rel=1e-3) and specked.step == pytest.approx(clean.step, rel=0.05)
    ends = warp.to_scene(torch.tensor([specked.origin]))[0]
    assert float(ends.abs().max()) < 6


def small_parallax(apart: float) -> Cameras:
    """Twelve cameras within so much of one another, 4 before a ball and a wall behind it."""
    eyes = torch.tensor([4.0, 0.0, 0.0]).double() + apart * torch.rand(
        12, 3, generator=torch.Generator().manual_seed(1)
    )
    poses = torch.stack([look_at(eye.double(), torch.zeros(3).double()) for eye in eyes])
    return Cameras.perspective(poses, 60.0, 80, 80)


def test_what_only_tiny_parallax_places_goes() -> None:
    model = Room(small_parallax(0.5))
    mesh = extract_mesh(model, resolution=64)
    assert mesh.vertices[:, 0].min() < -4.9
    views, grid = depth_views(model, 64, 80), Grid((-1.0, -1.0, -1.0), 2 / 64, (65, 65, 65))
    front = torch.tensor([[0.59, 0.1, -0.1], [0.59, -0.1, -0.1], [0.59, 0.0, 0.1]])
    outward = torch.tensor([[1.0, 0.0, 0.0]]).expand(3, 3)

    def sees(views: list[DepthView], points: Tensor, normals: Tensor) -> bool:
        return bool(FusedSurface(views, grid).seen(points, torch.tensor([[0, 1, 2]]), normals)[0].all())

    assert sees(views, front, outward) and not sees(views, front, -outward), "from behind"
    assert not sees(views, front * torch.tensor([0.0, 1.0, 1.0]), outward), "what is measured lies far before"
    views = depth_views(Room(small_parallax(0.02)), 64, 80)
    assert not sees(views, front, outward), "all from within 0.6 degrees"
    with pytest.raises(UserError, match="seen by several photos from places apart"):
        extract_mesh(Room(small_parallax(0.02)), resolution=64)


def wall_seen_from(x: float, depth: float) -> DepthView:
    pose = torch.cat([torch.eye(3), torch.tensor([[-x], [0.0], [0.0]])], dim=1).double()
    return DepthView(pose, (60.0, 60.0, 40.0, 40.0), torch.full((80, 80), depth), torch.ones(80, 80))


@pytest.mark.parametrize(("measured", "behind"), [(2.0, False), (3.0, False), (2.0, True), (math.nan, False)])
def test_what_one_view_alone_shows_closes_a_hole(measured: float, behind: bool) -> None:
    """Eight cameras before a wall at depth 2, and one farther along, before what no other shows; NaN: that one is asked
    about holes alone."""
    views, last = [wall_seen_from(0.05 * k, 2.0) for k in range(8)], wall_seen_from(2.5, measured)
    grid = Grid((-4.0, -4.0, -4.0), 8 / 64, (65, 65, 65))
    if math.isnan(measured):
        surface = FusedSurface(views, grid, is_open=True, others=[last])
    else:
        surface = FusedSurface([*views, last], grid, is_open=True)
    x, y = torch.meshgrid(torch.arange(-1.0, 3.5, 0.05), torch.arange(-1.0, 1.0, 0.05), indexing="ij")
    points = torch.stack([x, y, torch.full_like(x, 2.0)], dim=2).reshape(-1, 3)
    corner = torch.arange(len(points)).view(x.shape)
    a, b, c, d = (part.reshape(-1) for part in (corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:], corner[:-1, 1:]))
    faces = torch.cat([torch.stack([a, c, b], dim=1), torch.stack([a, d, c], dim=1)]).int()
    outward = torch.tensor([0.0, 0.0, 1.0] if behind else [0.0, 0.0, -1.0]).expand(len(points), 3)
    seen, towards = surface.seen(points, faces, outward)
    alone = points[:, 0] > 2.4
    if not behind:
        assert bool(seen[points[:, 0] < 1.2].all()) and bool((towards[points[:, 0] < 1.2] != 0).any(dim=1).all())
    assert bool(seen[alone].all() if measured != 3.0 and not behind else not seen[alone].any())


def test_what_others_look_through_is_no_surface() -> None:
    """Two of forty cameras see a speck half-way to the ball; the others see past it."""

    class Floater(Room):
        def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
            t, spread = super().median_depths(rays_o, rays_d)
            to = torch.tensor([0.0, 0.0, 1.2]) - rays_o
            t_speck = (to * rays_d).sum(dim=1)
            near = ((to - t_speck[:, None] * rays_d).norm(dim=1) < 0.15) & (t_speck > 0) & (t_speck < t)
            first = torch.stack([(rays_o - c.float()).norm(dim=1) < 1e-3 for c in self.cameras.centres[10:12]]).any(
                dim=0
            )
            return torch.where(near & first, t_speck, t), spread

    vertices = extract_mesh(Floater(), resolution=32, box=(-1.0, -1.0, -0.3, 1.0, 1.0, 1.7)).vertices
    assert np.linalg.norm(vertices - [0, 0, 1.2], axis=1).min() > 0.4


def test_what_is_far_from_all_that_is_seen_is_skipped() -> None:
    model = Room(small_parallax(0.5))  # sides and backs are hidden
    views = depth_views(model, 64, 100)
    grid, warp = open_grid(model, views, 96)
    ranges = [slice(0, n) for n in reversed(grid.shape)]
    codes = FusedSurface(views, grid, warp, skip=True, is_open=True).known(*ranges)
    assert (codes == SKIP).mean() > 0.1 and not (FusedSurface(views, grid, warp).known(*ranges) == SKIP).any()
    kept, skipped = (extract_mesh(model, 80, holes=holes) for holes in (101, 100))
    assert kept.metadata["unseen_faces"] > skipped.metadata["unseen_faces"] > 0
    assert abs(len(kept.faces) / len(skipped.faces) - 1) < 0.01 and math.isclose(kept.area, skipped.area, rel_tol=0.01)
