"""render_rays and its settings: closed forms, the background, chunks, spaces, and normals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny import FIELD, ray_batch, uniform, unit_vectors
from torch import Tensor

from nerf import kernels
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import RadianceField
from nerf.geometry.space import Box, Ndc, Unbounded
from nerf.rendering import rays as rendering
from nerf.rendering.marching import Marching
from nerf.rendering.rays import density_normals, render_many, render_rays

BOX = Marching(Box(), 0.0, 100.0, step_size=0.02, stop_threshold=0.0, alpha_threshold=0.0)
BLACK, WHITE = torch.zeros(3), torch.ones(3)


@pytest.fixture(params=["auto", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.backend()
    yield kernels.use(request.param)
    kernels.use(before)


def fog(sigma: float) -> RadianceField:
    """The same density everywhere."""
    field = RadianceField(replace(FIELD, density_bias=math.log(sigma)))
    with torch.no_grad():
        field.table.mul_(1e4)
        field.density_weights[-1][0] = 0.0
    return field


def lumpy() -> RadianceField:
    """Densities of all sizes; rays are half seen through."""
    field = RadianceField(replace(FIELD, density_bias=-1.0), seed=2)
    with torch.no_grad():
        field.table.mul_(2e4)
    return field


def rays(n: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    batch = ray_batch(n, seed)
    return batch.rays_o, batch.rays_d


def test_a_box_of_fog_obeys_beer_and_lambert(backend: str) -> None:
    # Through the middle along z: two units of density 1.3, seen over white; depths lie between 1 and 3.
    o, d = torch.tensor([[0.1, 0.2, -2.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    with torch.no_grad():
        out = render_rays(fog(1.3), OccupancyGrid(1, 32), BOX, o, d)
    assert float(out.opacities) == pytest.approx(1 - math.exp(-1.3 * 2), abs=2e-3)  # a step of 0.02 more or less
    # depth / opacity is the mean of an exponential cut at 2, from 1: a textbook integral.
    expected = 1 + 1 / 1.3 - 2 * math.exp(-2.6) / (1 - math.exp(-2.6))
    assert float(out.depths / out.opacities) == pytest.approx(expected, abs=0.02)
    assert float(out.median_depths) == pytest.approx(1 + math.log(2) / 1.3, abs=0.03)


def test_the_background_shines_through_what_is_left(backend: str) -> None:
    o, d = rays()
    field, grid = lumpy(), OccupancyGrid(1, 32)
    with torch.no_grad():
        out = render_rays(field, grid, BOX, o, d)
    each = uniform(len(o), 3, seed=3)
    on_black, on_white, on_each = (out.over(b) for b in (BLACK, WHITE, each))
    left = 1 - out.opacities[:, None]
    assert float(left.min()) < 0.8 and float(left.max()) == 1 and 0.1 < float(left.mean()) < 0.9
    torch.testing.assert_close(on_black, out.foregrounds, rtol=0, atol=0)
    torch.testing.assert_close(on_white, on_black + left, rtol=0, atol=1e-6)
    torch.testing.assert_close(on_each, on_black + left * each, rtol=0, atol=1e-6)


def test_rays_that_miss_show_the_background_alone(backend: str) -> None:
    o, d = rays()
    with torch.no_grad():
        out = render_rays(lumpy(), OccupancyGrid(1, 32), BOX, o, -d)
    missed = (out.opacities == 0).nonzero()[:, 0]
    assert len(missed) > 20
    assert torch.equal(
        out.over(torch.tensor([0.1, 0.2, 0.3]))[missed], torch.tensor([[0.1, 0.2, 0.3]]).repeat(len(missed), 1)
    )


def test_both_backends_give_the_same_picture() -> None:
    o, d = rays()
    field, grid = lumpy(), OccupancyGrid(1, 32)
    marching, before = replace(BOX, stop_threshold=1e-3, alpha_threshold=1e-3), kernels.backend()
    results = []
    try:
        for name in ("auto", "reference"):
            kernels.use(name)
            results.append(render_rays(field, grid, marching, o, d))
    finally:
        kernels.use(before)
    for name in ("foregrounds", "opacities", "depths", "second_moments", "distortions"):
        torch.testing.assert_close(getattr(results[0], name), getattr(results[1], name), rtol=1e-4, atol=5e-5)


def test_many_rays_are_the_same_rays_in_pieces(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    o, d = rays(150)
    field, grid = lumpy(), OccupancyGrid(1, 32)
    with torch.no_grad():
        whole = render_rays(field, grid, BOX, o, d)
    monkeypatch.setattr(rendering, "RENDER_CHUNK", 40)
    pieces = render_many(field, grid, BOX, o, d)
    for name in ("foregrounds", "opacities", "depths", "median_depths"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
        assert not getattr(pieces, name).requires_grad


def test_no_rays_give_an_empty_picture(backend: str) -> None:
    out = render_many(lumpy(), OccupancyGrid(1, 32), BOX, torch.zeros(0, 3), torch.zeros(0, 3))
    assert out.over(WHITE).shape == (0, 3) and out.opacities.shape == (0,)


def test_occupancy_decides_what_is_seen(backend: str) -> None:
    o, d = rays()
    grid = OccupancyGrid(1, 32)
    grid.restrict(lambda centres, sizes: torch.zeros(len(centres), dtype=torch.bool))
    with torch.no_grad():
        out = render_rays(lumpy(), grid, BOX, o, d)
    assert out.evaluated == 0 and bool((out.over(WHITE) == 1).all())


def test_jitter_shifts_samples_within_a_step(backend: str) -> None:
    o, d = torch.tensor([[0.0, 0.0, -2.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    field, grid = fog(500.0), OccupancyGrid(1, 32)  # all of it is in the first sample, whose middle is the depth
    with torch.no_grad():
        depths = [float(render_rays(field, grid, BOX, o, d, jitter=torch.tensor([j])).depths) for j in (0.0, 0.5, 0.9)]
        default = float(render_rays(field, grid, BOX, o, d).depths)
    assert depths == pytest.approx([1.01, 1.02, 1.028], abs=1e-4)
    assert default == depths[1]


def test_coarser_steps_are_longer() -> None:
    settings, coarse = BOX.settings(), BOX.settings(4.0)
    assert coarse.step_size == pytest.approx(4 * settings.step_size)
    growing = replace(BOX, space=Unbounded(4), cone_angle=1 / 256)
    assert growing.settings(2.0).cone_angle == pytest.approx(2 / 256)
    assert growing.settings().max_step >= growing.settings().step_size
    assert BOX.space.half_extent == 1 and growing.space.half_extent == 8


def test_rays_enter_a_box_where_it_begins() -> None:
    o, d = torch.tensor([[0.0, 0.0, -3.0], [0.0, 5.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]] * 2)
    _, _, viewdirs, t_near, t_far = BOX.enter(o, d)
    assert float(t_near[0]) == pytest.approx(2) and float(t_far[0]) == pytest.approx(4)
    assert float(t_near[1]) >= float(t_far[1])
    assert torch.equal(viewdirs, d)
    _, _, _, t_near, t_far = replace(BOX, near=2.5, far=3.0).enter(o, d)
    assert (float(t_near[0]), float(t_far[0])) == pytest.approx((2.5, 3.0))


def test_rays_enter_ndc_at_the_near_plane() -> None:
    marching = Marching(Ndc(1.2, 1.5), 0.0, 100.0, step_size=0.02)
    o = uniform(40, 3, seed=1, low=-0.2, high=0.2)
    d = torch.nn.functional.normalize(uniform(40, 3, seed=2, low=-0.3, high=0.3) - torch.tensor([0.0, 0.0, 1.0]), dim=1)
    ndc_o, ndc_d, viewdirs, t_near, t_far = marching.enter(o, d)
    assert torch.equal(viewdirs, d)  # colours depend on the true direction
    torch.testing.assert_close(ndc_d.norm(dim=1), torch.ones(40))
    start, end = ndc_o + t_near[:, None] * ndc_d, ndc_o + t_far[:, None] * ndc_d
    assert float(start.abs().max()) <= 1 + 1e-5 and float(end.abs().max()) <= 1 + 1e-5
    hits = t_near < t_far
    assert bool(hits.any())
    whole = hits & (ndc_o.abs().amax(dim=1) <= 1) & ((end[:, 2] - 1).abs() < 1e-4)
    torch.testing.assert_close(start[whole, 2], torch.full((int(whole.sum()),), -1.0))


def test_ndc_renders(backend: str) -> None:
    marching = Marching(Ndc(1.2, 1.5), 0.0, 100.0, step_size=0.02)
    o, d = (
        torch.zeros(20, 3),
        torch.nn.functional.normalize(uniform(20, 3, low=-0.3, high=0.3) - torch.tensor([0.0, 0, 1]), dim=1),
    )
    with torch.no_grad():
        out = render_rays(fog(3.0), OccupancyGrid(1, 32), marching, o, d)
    assert float(out.opacities.min()) > 0.9 and bool(torch.isfinite(out.depths).all())


def test_unbounded_scenes_are_marched_to_their_end(backend: str) -> None:
    marching = Marching(
        Unbounded(4), 0.0, 100.0, step_size=0.02, cone_angle=1 / 64, stop_threshold=0.0, alpha_threshold=0.0
    )
    field = RadianceField(replace(FIELD, density_bias=math.log(0.05)), contracted=True)
    with torch.no_grad():
        field.table.zero_()
        out = render_rays(
            field, OccupancyGrid(4, 32), marching, torch.zeros(6, 3), torch.cat([torch.eye(3), -torch.eye(3)])
        )
    expected = torch.full((6,), 1 - math.exp(-0.05 * 8))
    torch.testing.assert_close(out.opacities, expected, rtol=0.02, atol=0)  # the last step may be half a unit


def test_settings_survive_a_dict() -> None:
    for marching in (
        BOX,
        Marching(Ndc(1.0, 2.0), 0.0, 9.0),
        Marching(Unbounded(5), 0.1, 9.0, cone_angle=0.01),
    ):
        assert Marching.from_dict(marching.to_dict()) == marching


def test_gradients_reach_field_and_rays(backend: str) -> None:
    field, grid = lumpy(), OccupancyGrid(1, 32)
    o, d = (t.clone().requires_grad_() for t in rays(20))
    out = render_rays(field, grid, BOX, o, d)
    loss = (out.over(WHITE) - 0.3).square().sum() + out.distortions.sum()
    grads = torch.autograd.grad(loss, [o, d, *field.parameters()])
    assert all(bool(torch.isfinite(g).all()) and float(g.norm()) > 0 for g in grads)


@dataclass
class Ball:
    """A field whose density falls off from a point."""

    centre: Tensor

    def density(self, points: Tensor) -> Tensor:
        return 100.0 * torch.exp(-4.0 * (points - self.centre).square().sum(dim=1))


def test_normals_point_out_of_the_dense() -> None:
    centre, directions = torch.tensor([0.1, -0.2, 0.3]), unit_vectors(100)
    field: Any = Ball(centre)
    normals = density_normals(field, centre + 0.5 * directions, 1e-2)
    # Central differences of a smooth function: the error is of second order in the radius.
    assert float((normals * directions).sum(dim=1).min()) > 0.9999
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(100))
