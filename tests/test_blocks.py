"""A place of several fields: cells that fill space, rays that cross them, and what is kept of their training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fakes import ring_cameras
from tiny import uniform, unit_vectors

from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.geometry.cameras import Cameras
from nerf.geometry.cells import divide
from nerf.geometry.space import Similarity, Unbounded
from nerf.meshing.extract import extract_mesh
from nerf.rendering.blocks import Block, BlockedModel
from nerf.rendering.marching import Marching
from nerf.rendering.model import Model
from nerf.views.viewer.edited import edited
from nerf.views.viewer.edits import Edits
from nerf.views.viewer.regions import Region


def places(n: int = 200) -> torch.Tensor:
    return uniform(n, 3, seed=5, low=-1.0, high=1.0) * torch.tensor([3.0, 1.0, 0.1])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_cells_fill_space_and_share_the_places_out(n: int) -> None:
    cells = divide(places(), n)
    points = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * 10
    owners = torch.stack([cell.contains(points) for cell in cells])
    assert len(cells) == n and bool((owners.sum(dim=0) == 1).all())
    counts = torch.stack([cell.contains(places().double()) for cell in cells]).sum(dim=1)
    assert int(counts.sum()) == 200 and counts.min() > 0.5 * 200 / n
    assert all(math.isinf(cell.low[2]) and math.isinf(cell.high[2]) for cell in cells)  # never across the height


def test_segments_of_a_ray_join_without_gap_or_overlap() -> None:
    cells = divide(places(), 5)
    rays_o, rays_d = uniform(1000, 3, seed=1, low=-4, high=4), unit_vectors(1000, seed=2)
    rays_d[:100, 0] = 0.0  # along sides
    rays_d = torch.nn.functional.normalize(rays_d, dim=1)
    near, far = (torch.stack(s) for s in zip(*(cell.clip_rays(rays_o, rays_d) for cell in cells), strict=True))
    hit = near < far
    order = torch.where(hit, near, math.inf).argsort(dim=0)
    near, far, hit = (t.gather(0, order) for t in (near, far, hit))
    assert bool((near[0] == 0).all()) and bool(hit[0].all())
    for k in range(1, 5):
        torch.testing.assert_close(near[k][hit[k]], far[k - 1][hit[k]], rtol=1e-5, atol=1e-5)
    last = hit.sum(dim=0) - 1
    assert bool(far.gather(0, last[None]).isinf().all())


def test_cameras_in_one_place_cannot_be_divided() -> None:
    with pytest.raises(UserError, match="4 cells are too many: cameras stand in too few places"):
        divide(torch.ones(50, 3), 4)


class Fog(torch.nn.Module):
    """Density and colour that change with place, in closed form, of the place's frame seen from a cell's own."""

    def __init__(self, scale: float = 1.0, shift: float | torch.Tensor = 0.0) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def density(self, x: torch.Tensor) -> torch.Tensor:
        p = (x - self.shift) / self.scale
        return (3 + torch.sin(3 * p[:, 0]) + p[:, 1].abs()) / self.scale

    def forward(self, x: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = (x - self.shift) / self.scale
        return self.density(x), 0.5 + 0.5 * torch.cos(2 * p)


def fog_model(place: Similarity, frame: Similarity, step: float, field: type[Fog] = Fog) -> Model:
    scale = frame.scale / place.scale
    shift = (frame.translation - scale * place.translation).float()
    marching = Marching(Unbounded(4), 0.0, 30.0, step_size=step * scale, stop_threshold=0.0, alpha_threshold=0.0)
    occupancy = OccupancyGrid(4, 32)
    none = Cameras.perspective(torch.eye(4)[None, :3].double(), 10.0, 8, 8)
    return Model(field(scale, shift), occupancy, marching, frame, none, torch.ones(3))


def blocked(n: int, step: float = 0.01) -> tuple[Model, BlockedModel]:
    """A fog in one model, and the same in n cells with frames of their own."""
    place = Similarity.around([1.0, 2.0, 0.5], 2.0)
    whole = fog_model(place, place, step)
    frames = [Similarity.around([1.0 + 0.3 * k, 2.0 - 0.2 * k, 0.5], 1.5 + 0.1 * k) for k in range(n)]
    blocks = [
        Block.of(cell, fog_model(place, frame, step), place)
        for cell, frame in zip(divide(places(), n), frames, strict=True)
    ]
    return whole, BlockedModel(blocks, place, whole.cameras, ["a"])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_one_field_cut_into_cells_looks_like_itself(n: int) -> None:
    """At each border the last sample before it reaches half a step too far or ends as much too early: of fog of
    density 5 at most, light is off by 2.5 steps there. Otherwise by what a step does to the sums."""
    step = 0.002
    whole, parts = blocked(n, step)
    rays_o, rays_d = uniform(300, 3, seed=3, low=-0.5, high=0.5), unit_vectors(300, seed=4)
    one, many = whole.render_rays(rays_o, rays_d), parts.render_rays(rays_o, rays_d)
    assert 0.5 < float(one.opacities.mean()) <= 1
    tolerance = 2.5 * step * (n - 1) + 1e-3
    for name in ("opacities", "foregrounds", "depths", "distortions"):
        assert float((getattr(many, name) - getattr(one, name)).abs().max()) < tolerance, name
    points = uniform(500, 3, seed=6, low=-2, high=2)
    torch.testing.assert_close(parts.density(points), whole.density(points), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.color(points, points), whole.color(points, points), rtol=1e-4, atol=1e-4)


class Ball(Fog):
    """A ball of radius 0.5 around a place on a border between cells."""

    def density(self, x: torch.Tensor) -> torch.Tensor:
        p = (x - self.shift) / self.scale
        return torch.where((p - torch.tensor([0.03, 0.0, 0.0])).norm(dim=1) < 0.5, 200.0, 0.0) / self.scale


def test_a_mesh_across_borders_is_one_closed_piece() -> None:
    """Of all cells one lattice is meshed, so nothing has to be joined: a closed ball of the right size, where five
    cells meet."""
    place = Similarity.identity()
    cameras = ring_cameras(8, 32)
    frames = [Similarity.around([0.3 * k, -0.2 * k, 0.0], 1.5 + 0.1 * k) for k in range(5)]
    models = [fog_model(place, frame, 0.03, Ball) for frame in frames]
    cells = divide(places() * torch.tensor([0.2, 0.5, 1.0]), 5)
    blocks = [Block.of(cell, model, place) for cell, model in zip(cells, models, strict=True)]
    mesh = extract_mesh(
        BlockedModel(blocks, place, cameras, ["a"]),
        resolution=32,
        box=(-0.7,) * 3 + (0.7,) * 3,
        watertight=True,
        show_progress=False,
    )
    assert mesh.metadata["closed"] and mesh.metadata["components"] == 1
    inside = [cell.contains(torch.from_numpy(mesh.vertices.copy())).sum() for cell in cells]
    assert sum(n > 20 for n in inside) >= 3
    distance = np.linalg.norm(mesh.vertices - [0.03, 0, 0], axis=1)
    assert abs(distance.mean() - 0.5) < 0.02 and distance.std() < 0.03


def test_edits_cut_all_cells() -> None:
    whole, parts = blocked(3, 0.01)
    crop = Region("box", (1.0, 2.0, 0.5), (2.0, 3.0, 2.0))
    hidden = Region("sphere", (1.5, 2.0, 0.5), (1.0, 1.0, 1.0))
    rays_o, rays_d = uniform(200, 3, seed=3, low=-0.2, high=0.2), unit_vectors(200, seed=4)
    for edits in (Edits(crop=crop), Edits(crop=crop, hidden=(hidden,))):
        one, many = (edited(model, edits).render_rays(rays_o, rays_d).opacities for model in (whole, parts))
        before = whole.render_rays(rays_o, rays_d).opacities
        assert float((one - before).abs().max()) > 0.05
        torch.testing.assert_close(many, one, rtol=0, atol=0.05 if not edits.hidden else 0.25)
    with pytest.raises(UserError, match="are of one field, and this place has a field for each of its 3 cells"):
        extract_mesh(parts, method="density")
