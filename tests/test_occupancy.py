"""OccupancyGrid: places of cells, levels, decay, and that nothing solid is ever skipped."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import generator, uniform
from torch import Tensor

from nerf import kernels
from nerf.fields.occupancy import OccupancyGrid
from nerf.kernels import bindings, cpu

R = 32
STEP = 0.02


def ball(points: Tensor) -> Tensor:
    """Density of a ball of radius 0.5 around (0.2, 0, 0)."""
    return 50.0 * ((points - torch.tensor([0.2, 0.0, 0.0])).norm(dim=1) < 0.5).float()


def test_cells_lie_where_the_index_says() -> None:
    grid = OccupancyGrid(3, R)
    cells = torch.tensor([0, 1, R, R * R, R**3 - 1, R**3, 2 * R**3])
    centres, sizes = grid.cell_centres(cells)
    a = 1 / R  # half a cell of level 0; x is fastest, then y, then z, then the level, whose box is twice as large
    expected = [
        [a - 1, a - 1, a - 1], [3 * a - 1, a - 1, a - 1], [a - 1, 3 * a - 1, a - 1], [a - 1, a - 1, 3 * a - 1],
        [1 - a, 1 - a, 1 - a], [2 * a - 2] * 3, [4 * a - 4] * 3,
    ]  # fmt: skip
    torch.testing.assert_close(centres, torch.tensor(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(sizes, 2 / R * torch.tensor([1.0, 1, 1, 1, 1, 2, 4]))


def test_occupied_is_indexed_level_z_y_x() -> None:
    grid = OccupancyGrid(2, R)
    grid.restrict(lambda centres, sizes: (centres - torch.tensor([0.9, -0.3, 0.1])).abs().amax(dim=1) < sizes / 2)
    place = [int((v + 1) / 2 * R) for v in (0.1, -0.3, 0.9)]
    assert grid.occupied.nonzero().tolist() == [[0, *place]]


def test_a_coarse_level_leaves_out_what_a_finer_one_serves() -> None:
    grid = OccupancyGrid(3, R)
    centres, _ = grid.cell_centres(torch.arange(3 * R**3))
    level = torch.arange(3).repeat_interleave(R**3)
    inside_finer = centres.abs().amax(dim=1) < 2.0 ** (level - 1)
    assert torch.equal(grid.candidates, (level == 0) | ~inside_finer)
    assert torch.equal(grid.occupied.reshape(-1), grid.candidates)


def test_restricting_is_for_good() -> None:
    grid = OccupancyGrid(1, R)
    grid.restrict(lambda centres, sizes: centres[:, 0] < 0)
    assert int(grid.occupied.sum()) == R**3 // 2
    grid.restrict(lambda centres, sizes: centres[:, 1] < 0)
    assert int(grid.occupied.sum()) == R**3 // 4
    for step in range(5):
        grid.update(lambda p: torch.full((len(p),), 9.0), STEP, generator(step), everywhere=True)
    assert int(grid.occupied.sum()) == R**3 // 4  # dense everywhere, yet ruled out


def test_restricting_everything_leaves_an_empty_grid() -> None:
    grid = OccupancyGrid(1, R)
    grid.restrict(lambda centres, sizes: torch.zeros(len(centres), dtype=torch.bool))
    grid.update(ball, STEP, generator(0))
    assert not bool(grid.occupied.any())


def test_empty_space_is_forgotten_and_the_ball_stays() -> None:
    grid = OccupancyGrid(1, R)
    for step in range(20):
        grid.update(ball, STEP, generator(step), everywhere=True)
    centres, sizes = grid.cell_centres(torch.arange(R**3))
    distance = (centres - torch.tensor([0.2, 0.0, 0.0])).norm(dim=1)
    reach = sizes * 3**0.5 / 2  # of a cell from its centre
    occupied = grid.occupied.reshape(-1)
    assert bool(occupied[distance < 0.5 - reach].all())  # wholly inside: every point drawn was dense
    assert not bool(occupied[distance > 0.5 + reach].any())


def test_a_cell_cut_by_the_surface_is_remembered_for_a_while() -> None:
    # One update that hits the ball keeps the cell through misses until its value has decayed below the threshold.
    grid = OccupancyGrid(1, R)
    grid.update(lambda p: torch.full((len(p),), 50.0), STEP, generator(0), everywhere=True)
    n_kept = 0
    while bool(grid.occupied.any()):
        grid.update(lambda p: torch.zeros(len(p)), STEP, generator(n_kept), everywhere=True)
        n_kept += 1
        assert n_kept < 1000
    assert n_kept >= 10  # 50 * 0.02 = 1 per step, forgotten below 0.01 or half the mean


def test_a_small_thing_in_an_empty_scene_is_occupied() -> None:
    # Against the mean over all cells it is much, however faint: nothing is lost because the rest is emptier.
    grid = OccupancyGrid(1, R)

    def speck(points: Tensor) -> Tensor:
        return 0.05 * ((points - 0.5).abs().amax(dim=1) < 3 / R).float()

    for step in range(80):
        grid.update(speck, STEP, generator(step), everywhere=True)
    centres, sizes = grid.cell_centres(torch.arange(R**3))
    inside = (centres - 0.5).abs().amax(dim=1) < 3 / R - sizes / 2
    assert bool(inside.any()) and bool(grid.occupied.reshape(-1)[inside].all())


@pytest.mark.parametrize("budget", [64, 1 << 12])
def test_a_cell_not_yet_sampled_stays_as_the_field_starts(budget: int) -> None:
    density = math.exp(-1.0)
    grid = OccupancyGrid(2, R, initial_density=density)
    before = grid.occupied.clone()
    grid.update(lambda p: torch.full((len(p),), density), STEP, generator(0), budget)
    assert torch.equal(grid.occupied, before)


def test_a_small_budget_still_sees_every_cell_in_time() -> None:
    grid = OccupancyGrid(1, R)
    for step in range(300):  # 2048 of 32768 cells at a time: none is left out, but for once in 10^4 runs
        grid.update(ball, STEP, generator(step), budget=4096)
    centres, sizes = grid.cell_centres(torch.arange(R**3))
    distance = (centres - torch.tensor([0.2, 0.0, 0.0])).norm(dim=1)
    assert bool(grid.occupied.reshape(-1)[distance < 0.5 - sizes].all())
    assert not bool(grid.occupied.reshape(-1)[distance > 0.5 + sizes].any())


def test_points_are_drawn_inside_their_cells() -> None:
    grid = OccupancyGrid(3, R)
    drawn = []

    def density(points: Tensor) -> Tensor:
        drawn.append(points)
        return torch.ones(len(points))

    grid.update(density, STEP, generator(0), everywhere=True)
    points = torch.cat(drawn)
    centres, sizes = grid.cell_centres(grid.candidates.nonzero()[:, 0])
    assert points.shape == centres.shape
    offsets = (points - centres) / sizes[:, None]
    assert float(offsets.abs().max()) <= 0.5 + 1e-5
    torch.testing.assert_close(offsets.std(dim=0), torch.full((3,), 12**-0.5), rtol=0.02, atol=0)  # uniform


def test_the_same_generator_gives_the_same_grid() -> None:
    grids = [OccupancyGrid(1, R), OccupancyGrid(1, R)]
    for grid in grids:
        for step in range(3):
            grid.update(ball, STEP, generator(step), budget=5000)
    assert torch.equal(grids[0].values, grids[1].values) and torch.equal(grids[0].occupied, grids[1].occupied)


def test_broken_densities_do_not_empty_the_grid() -> None:
    # A field that has become NaN must not look like an empty scene, which trains on without an error.
    grid = OccupancyGrid(1, R, initial_density=10.0)
    grid.update(lambda p: torch.full((len(p),), math.nan), STEP, generator(0), everywhere=True)
    assert bool(grid.occupied.any())


def test_a_grid_comes_back_from_its_tensors() -> None:
    grid = OccupancyGrid(2, R)
    grid.restrict(lambda centres, sizes: centres[:, 2] < 0.5)
    grid.update(ball, STEP, generator(0))
    again = OccupancyGrid(2, R)
    again.restore({k: t.clone() for k, t in grid.tensors().items()})
    for g in (grid, again):
        g.update(ball, STEP, generator(1), budget=5000)
    assert torch.equal(grid.values, again.values) and torch.equal(grid.occupied, again.occupied)
    assert torch.equal(grid.candidates, again.candidates)


@pytest.mark.skipif(bindings.load().handle is None, reason="no native library")
def test_the_bits_follow_the_cells() -> None:
    grid = OccupancyGrid(2, R)
    for change in (
        lambda: grid.restrict(lambda centres, sizes: uniform(len(centres), seed=1) < 0.5),
        lambda: grid.update(ball, STEP, generator(0), budget=5000),
        lambda: grid.threshold(10 * STEP),
        lambda: grid.restore(OccupancyGrid(2, R).tensors()),
    ):
        change()
        bits, fresh = grid.bits, cpu.pack_occupancy(grid.occupied)
        assert bits is not None and torch.equal(bits.fine, fresh.fine) and torch.equal(bits.clearance, fresh.clearance)


@pytest.mark.parametrize("n", [1, 7, 4096, 3 * 32**3 + 5])
def test_native_cells_are_those_of_torch(n: int) -> None:
    """Which are occupied, by the fixed limit and by the mean, and where a mask holds; with one thread and with two."""
    random, threads = torch.Generator().manual_seed(n), torch.get_num_threads()
    values, candidates = torch.rand(n, generator=random) ** 8 * 90, torch.rand(n, generator=random) < 0.7
    values[:1] = math.inf
    slow = kernels.BACKENDS["reference"]
    for highest in (0.01, 1e3):
        wanted = slow.threshold_cells(values, candidates, 0.02, highest)
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            found = kernels.threshold_cells(values, candidates, 0.02, highest)
            torch.set_num_threads(threads)
            assert torch.equal(found, wanted)
        assert torch.equal(kernels.places_set(found), found.nonzero()[:, 0])
    assert not bool(kernels.threshold_cells(values, torch.zeros_like(candidates), 0.02, 0.01).any())
