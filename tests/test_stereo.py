"""Depths refined by photos: a known room corner, drawn by tracing rays to its planes."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize

from nerf.datasets import Scene
from nerf.kernels import DepthView
from nerf.meshing import stereo
from nerf.meshing.completion import bounds_in_view, complete, planes_in_view, solid_points
from nerf.meshing.consistency import ask_views, unproject_pixels
from nerf.meshing.fused import _small_pinholes
from nerf.meshing.photos import grey_pictures
from nerf.meshing.planar import Planes, fit_planes
from nerf.meshing.stereo import (
    FILLED,
    KEPT,
    MEASURED,
    PLANAR,
    choose_sources,
    fill,
    keep_consistent,
    planes_of,
    refine_depths,
)
from nerf.meshing.walker import spread

SIZE, FOCAL = (60, 80), 70.0


class Drawn(NamedTuple):
    view: DepthView  # true depths
    picture: Tensor
    part: Tensor  # [h,w] 0: wall, 1: floor, 2: the box before them


def texture(x: Tensor, y: Tensor) -> Tensor:
    """Grey that repeats nowhere near; details of about 0.05."""
    return 0.5 + 0.11 * ((31 * x).sin() + (23 * y + 1).cos() + (17 * x + 29 * y).sin() * (11 * x - 7 * y).cos())


def look(centre: Tensor, at: Tensor) -> Tensor:
    forward = normalize(at - centre, dim=0)
    right = normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0]).double()), dim=0)
    axes = torch.stack([right, torch.linalg.cross(forward, right), forward])
    return torch.cat([axes, -(axes @ centre)[:, None]], dim=1)


def draw(centre: Tensor, plain: bool, box: bool) -> Drawn:
    """A wall y = 2 and a floor z = 0, with texture all over or (plain) only in stripes on the wall and on the floor;
    before them a square of its own texture at y = 1.2."""
    h, w = SIZE
    pose = look(centre, torch.tensor([0.0, 2.0, 0.6]).double())
    y, x = torch.meshgrid(torch.arange(h) + 0.5 - h / 2, torch.arange(w) + 0.5 - w / 2, indexing="ij")
    rays = torch.stack([x / FOCAL, y / FOCAL, torch.ones(h, w)], dim=2).double() @ pose[:, :3]
    wall, floor, front = (2 - centre[1]) / rays[..., 1], -centre[2] / rays[..., 2], (1.2 - centre[1]) / rays[..., 1]
    floor = torch.where(floor > 0, floor, torch.inf)
    z, part = torch.minimum(wall, floor), (floor < wall).long()
    spot = centre + front[..., None] * rays
    is_box = (spot[..., 0].abs() < 0.15) & ((spot[..., 2] - 0.55).abs() < 0.15) & (front < z) & box
    z, part = torch.where(is_box, front, z), torch.where(is_box, 2, part)
    point = centre + z[..., None] * rays
    a, b = point[..., 0], torch.where(part == 1, point[..., 1] + 5, point[..., 2])
    grey = texture(a + 3.0 * (part == 2), b)
    if plain:
        bare = (part == 0) & (a.abs() < 0.45) & ((b - 0.6).abs() < 0.35)
        grey = torch.where(bare, 0.5, grey)
        part = torch.where(bare, 3, part)
    depths = DepthView(pose, (FOCAL, FOCAL, w / 2, h / 2), z.float(), torch.ones(h, w))
    return Drawn(depths, grey.float(), part)


def scene(plain: bool = False, box: bool = False) -> list[Drawn]:
    """Seven views of it from an arc."""
    turns = torch.linspace(-0.45, 0.45, 7).double()
    centres = [torch.stack([1.9 * t.sin(), 2 - 1.9 * t.cos(), 0.8 + 0.25 * (7 * t).cos()]) for t in turns]
    return [draw(centre, plain, box) for centre in centres]


def disturbed(drawn: Drawn, seed: int) -> DepthView:
    """Depths 3 % off here and there, smoothly."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.nn.functional.interpolate(torch.randn(1, 1, 5, 6, generator=random), SIZE, mode="bilinear")[0, 0]
    return DepthView(
        drawn.view.camera_from_scene, drawn.view.intrinsics, drawn.view.depths * (1 + 0.03 * noise), drawn.view.weights
    )


def errors(views: list[DepthView], drawn: list[Drawn], *parts: int) -> Tensor:
    """Relative ones of all pixels of those parts, 6 off the border; 1 where there is no depth."""
    found = []
    for view, true in zip(views, drawn, strict=True):
        some = sum((true.part == part for part in parts), torch.zeros(SIZE, dtype=torch.bool))
        some[:6], some[-6:], some[:, :6], some[:, -6:] = False, False, False, False
        found.append((view.depths / true.view.depths - 1).abs()[some].nan_to_num(nan=1.0))
    return torch.cat(found)


def test_photos_correct_depths() -> None:
    drawn = scene()
    start = [disturbed(d, i) for i, d in enumerate(drawn)]
    refined = refine_depths(start, [d.picture for d in drawn])
    before, after = errors(start, drawn, 0, 1), errors(refined, drawn, 0, 1)
    assert float(before.median()) > 0.01 and float(after.median()) < 0.003, (before.median(), after.median())
    assert float((after < 0.01).float().mean()) > 0.85
    weights = torch.cat([view.weights.flatten() for view in refined])
    assert float((weights >= MEASURED[0]).float().mean()) > 0.5 and float(weights.max()) <= MEASURED[1]


def test_what_stands_before_others_stays_apart() -> None:
    """Of the square and of the wall that it hides in other views, each keeps its own depth."""
    drawn = scene(box=True)
    start = [disturbed(d, i) for i, d in enumerate(drawn)]
    refined = refine_depths(start, [d.picture for d in drawn])
    for part in (0, 2):
        after = errors(refined, drawn, part)
        assert float(after.median()) < 0.005, part


def test_a_plain_patch_takes_the_plane_around() -> None:
    """A veil hangs before a bare patch of the wall, elsewhere in each view; the wall goes on through it, with less
    weight than what was measured."""
    drawn = scene(plain=True)
    start = [disturbed(d, i) for i, d in enumerate(drawn)]
    for i, d in enumerate(drawn):
        start[i].depths[d.part == 3] *= 0.65 + 0.04 * i
    refined = refine_depths(start, [d.picture for d in drawn])
    before, after = errors(start, drawn, 3), errors(refined, drawn, 3)
    assert float(before.median()) > 0.1 and float(after.median()) < 0.01, (before.median(), after.median())
    bare = torch.cat([view.weights[d.part == 3] for view, d in zip(refined, drawn, strict=True)])
    assert float(bare.median()) == pytest.approx(PLANAR) and PLANAR < MEASURED[0]


def test_without_texture_and_planes_depths_stay() -> None:
    drawn = scene()
    start = [d.view for d in drawn]
    start[2].depths[3, 4], start[2].depths[5, 6] = torch.inf, torch.nan
    refined = refine_depths(start, [torch.full(SIZE, 0.5) for _ in drawn])
    for view, given in zip(refined, start, strict=True):
        missing = given.depths.isnan()
        assert torch.equal(view.depths[~missing], given.depths[~missing])
        assert torch.allclose(view.weights, torch.where(missing, FILLED, KEPT * given.weights))
    assert float(refined[2].depths[5, 6]) == pytest.approx(float(start[2].depths[4:7, 5:8].nanmean()), rel=0.02)


def test_where_there_is_one_shade_the_surroundings_tell_more_than_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """A veil before a plain wall, in all views alike, where no plane is known."""
    monkeypatch.setattr(stereo, "complete", lambda *of_a_view: torch.full(SIZE, torch.nan))
    drawn = scene(plain=True)
    start = [replace(d.view, depths=d.view.depths * torch.where(d.part == 3, 0.85, 1.0)) for d in drawn]
    refined = refine_depths(start, [d.picture for d in drawn])
    before, after = errors(start, drawn, 3), errors(refined, drawn, 3)
    assert float(before.median()) == pytest.approx(0.15, abs=1e-3) and float(after.median()) < 0.01


@pytest.mark.parametrize("behind", [1.0, 8.0])
def test_bounds_stand_for_a_veil_that_others_see_through_but_not_from_afar(
    behind: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A veil before a plain wall, elsewhere in each view; the bound is the wall, or a floor far below the horizon: then
    the surroundings tell more."""
    drawn = scene(plain=True)
    start = [d.view for d in drawn]
    start = [
        replace(v, depths=v.depths.where(d.part != 3, (0.7 + 0.04 * i) * v.depths))
        for i, (v, d) in enumerate(zip(start, drawn, strict=True))
    ]
    bounds = {id(s): behind * d.view.depths for s, d in zip(start, drawn, strict=True)}
    monkeypatch.setattr(stereo, "complete", lambda *of_a_view: torch.full(SIZE, torch.nan))
    monkeypatch.setattr(stereo, "bounds_in_view", lambda planes, view: bounds[id(view)])
    monkeypatch.setattr(stereo, "_PLAIN", 0.0)  # else what shows one shade is filled in any case
    refined = refine_depths(start, [d.picture for d in drawn])
    after = errors(refined, drawn, 3)
    assert float(errors(start, drawn, 3).median()) > 0.1 and float(after.median()) < 0.02
    assert float((after > 1).float().mean()) < 0.01, "nothing is carried off to where the bound is"


def test_a_wall_keeps_its_depth_beside_what_stands_before_it() -> None:
    """There a pixel of the wall has the other's edge in its window, and would match where that is."""
    drawn = scene(plain=True, box=True)
    refined = refine_depths([d.view for d in drawn], [d.picture for d in drawn])
    beside = []
    for view, true in zip(refined, drawn, strict=True):
        around = max_pool2d((true.part == 2).float()[None, None], 9, 1, 4)[0, 0] > 0
        wall = around & (true.part == 3)
        beside.append((view.depths / true.view.depths)[wall].nan_to_num(nan=0.0))
    assert float((torch.cat(beside) > 0.95).float().mean()) > 0.99


def test_missing_depths_go_on_as_far_as_the_picture_does() -> None:
    """Of two depths that meet at an edge of the picture, each fills its own part of a hole between."""
    h, w = 40, 60
    inverse = torch.full((h, w), 0.5)
    inverse[:, 30:] = 0.25
    picture = torch.full((h, w), 0.2)
    picture[:, 30:] = 0.8
    depths = 1 / inverse
    depths[10:30, 20:40] = torch.nan
    filled, which = fill(depths, torch.ones(h, w), picture)
    assert torch.equal(which, depths.isnan()) and torch.equal(filled[~which], depths[~which])
    assert float((filled * inverse - 1).abs().max()) < 0.05
    nothing = torch.where(which, depths, torch.inf)
    assert bool(fill(nothing, torch.ones(h, w), picture)[0].isinf().all()), "a hole in the sky is sky"
    blank = torch.full((h, w), torch.nan)
    assert bool(fill(blank, torch.ones(h, w), picture)[0].isnan().all()), "nothing is known"


def test_pixels_that_others_see_through_lose_their_say() -> None:
    drawn = [d.view for d in scene()]
    near = choose_sources(drawn, 6)
    false = drawn[3].depths.clone()
    false[20:30, 30:50] *= 0.7
    views = [
        *drawn[:3],
        DepthView(drawn[3].camera_from_scene, drawn[3].intrinsics, false, drawn[3].weights),
        *drawn[4:],
    ]
    kept = keep_consistent(views, near)
    assert not bool((kept[3].weights[20:30, 30:50] > 0).any()) and bool(kept[3].depths[20:30, 30:50].isnan().all())
    assert float((kept[3].weights > 0).float().mean()) > 0.7
    points = unproject_pixels(views[3], torch.tensor([25 * SIZE[1] + 40]), torch.tensor([false[25, 40]])).float()
    votes = ask_views(points, [views[2], views[4]])
    assert (float(votes.agreeing), float(votes.contradicting), float(votes.n_agreeing)) == (0.0, 2.0, 0.0)


def test_sources_look_from_another_side_at_the_same() -> None:
    drawn = [d.view for d in scene()]
    away = look(torch.tensor([0.0, 0.1, 0.8]).double(), torch.tensor([0.0, -9.0, 0.8]).double())
    views = [*drawn, DepthView(away, drawn[0].intrinsics, drawn[0].depths, drawn[0].weights)]
    near = choose_sources(views, 4)
    assert all(i not in chosen and len(chosen) == 4 for i, chosen in enumerate(near[:-1]))
    assert all(len(views) - 1 not in chosen for chosen in near[:-1]) and near[-1] == []
    assert near[0][0] in (1, 2), "the next ones on the arc"


def test_planes_are_found_and_seen() -> None:
    random = torch.Generator().manual_seed(0)
    flat = torch.rand(3000, 2, generator=random).double()
    floor = torch.stack([flat[:, 0], flat[:, 1], 0.002 * torch.randn(3000, generator=random).double()], dim=1)
    wall = torch.stack([flat[:, 0], torch.full((3000,), 2.0).double(), flat[:, 1]], dim=1)[:1500]
    clutter = torch.rand(500, 3, generator=random).double()
    normals = torch.cat(
        [
            torch.tensor([[0.0, 0.0, 1.0]]).expand(3000, 3),
            torch.tensor([[0.0, 1.0, 0.0]]).expand(1500, 3),
            normalize(torch.randn(500, 3, generator=random), dim=1),
        ]
    ).double()
    points = torch.cat([floor, wall, clutter])

    def nothing(points: Tensor) -> Tensor:
        return torch.ones(len(points), dtype=torch.bool)

    planes = fit_planes(points, normals, torch.full((len(points),), 0.01).double(), nothing)
    assert len(planes.normals) == 2
    assert planes.normals.abs()[0].tolist() == pytest.approx([0, 0, 1], abs=0.01)
    assert planes.normals.abs()[1].tolist() == pytest.approx([0, 1, 0], abs=0.01)
    inside = planes.contain(0, torch.tensor([[0.5, 0.5, 0.0], [1.05, 0.5, 0.0], [1.4, 0.5, 0.0]]).double())
    assert inside.tolist() == [True, True, False]
    drawn = scene()[0]
    seen = planes_in_view(planes, drawn.view)
    for k, part in ((0, 1), (1, 0)):
        error = (seen[k] * drawn.view.depths - 1)[drawn.part == part].abs()
        assert float(error.max()) < 0.03
    assert not bool(planes.is_bound.any())
    assert len(fit_planes(points[:0], normals[:0], points[:0, 0], nothing).normals) == 0
    assert len(fit_planes(clutter, normals[4500:], torch.full((500,), 1e-7).double(), nothing).normals) == 0


def test_a_wall_that_shows_only_its_borders_bounds_the_scene() -> None:
    """Its points lie on the floor and on the other walls, too; a plane through the room is seen through."""
    random = torch.Generator().manual_seed(0)
    flat = torch.rand(4000, 2, generator=random).double()
    zero, one = torch.zeros(4000).double(), torch.ones(4000).double()
    floor, left = torch.stack([flat[:, 0], flat[:, 1], zero], dim=1), torch.stack([zero, flat[:, 0], flat[:, 1]], dim=1)
    line = torch.linspace(0, 1, 4000).double()[::8]
    borders = [torch.stack([line, one[::8], zero[::8]], dim=1), torch.stack([zero[::8], one[::8], line], dim=1)]
    middle = torch.stack([flat[:, 0], 0.5 * one, 0.3 * flat[:, 1]], dim=1)[::8]
    up, side = torch.tensor([0.0, 0.0, 1.0]).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    back = torch.tensor([0.0, 1.0, 0.0]).double()
    parts = ((floor, up), (left, side), (borders[0], back), (borders[1], back), (middle, back))
    points = torch.cat([part for part, _ in parts])
    normals = torch.cat([normal.expand(len(part), 3) for part, normal in parts])

    def inside(points: Tensor) -> Tensor:
        return ((points > 0.02) & (points < 0.98)).all(dim=1)

    planes = fit_planes(points, normals, torch.full((len(points),), 0.01).double(), inside)
    wall = ((planes.normals @ back).abs() > 0.99) & ((planes.offsets.abs() - 1).abs() < 0.01)
    assert int(wall.sum()) == 1 and bool(planes.is_bound[wall]), planes
    assert int(planes.is_bound.sum()) == 3
    half = ((planes.normals @ back).abs() > 0.99) & ((planes.offsets.abs() - 0.5).abs() < 0.02)
    assert int(half.sum()) == 1 and not bool(planes.is_bound[half])


def test_a_wall_takes_the_direction_of_others_where_that_is_as_good() -> None:
    """Its points stand in two groups, one of them with a few of what is before it, so that the nearest plane leans."""
    random = torch.Generator().manual_seed(0)
    flat = torch.rand(4000, 2, generator=random).double()
    floor = torch.stack([flat[:, 0], flat[:, 1], torch.zeros(4000).double()], dim=1)
    left = torch.stack([torch.zeros(4000).double(), flat[:, 0], flat[:, 1]], dim=1)
    low = torch.stack([flat[:600, 0], torch.ones(600).double(), 0.1 + 0.1 * flat[:600, 1]], dim=1)
    high = torch.stack([flat[600:900, 0], 1 - 0.03 * flat[600:900, 1] ** 2, 0.9 + 0.1 * flat[900:1200, 1]], dim=1)
    side, back, up = torch.eye(3).double()
    points = torch.cat([floor, left, low, high])
    normals = torch.cat([up.expand(4000, 3), side.expand(4000, 3), back.expand(900, 3)])

    def nothing(points: Tensor) -> Tensor:
        return torch.zeros(len(points), dtype=torch.bool)

    planes = fit_planes(points, normals, torch.full((len(points),), 0.02).double(), nothing)
    assert float((planes.normals[2] @ back).abs()) > 0.999999 and abs(abs(float(planes.offsets[2])) - 1) < 0.005


def test_a_wall_stands_behind_the_pictures_on_it() -> None:
    """Most of its points are theirs, an inch before it and as imprecise as that; of the wall a strip is known. It is
    fitted a little aslant, and turned upright on the floor."""
    random = torch.Generator().manual_seed(0)

    def patch(x: tuple[float, float], y: tuple[float, float], n: int) -> Tensor:
        flat, noise = torch.rand(n, 2, generator=random), 0.008 * torch.randn(n, 1, generator=random)
        low = torch.tensor([x[0], y[0]])
        return torch.cat([low + flat * (torch.tensor([x[1], y[1]]) - low), noise], dim=1).double()

    floor = patch((0, 2), (0, 2), 20000)
    strip = patch((0, 2), (0, 0.5), 4000)[:, [0, 2, 1]]
    left, right = (patch(x, (0.9, 1.6), 6000)[:, [0, 2, 1]] for x in ((0.2, 0.9), (1.1, 1.9)))
    for picture in (left, right):
        picture[:, 1] += 0.025
    up, back, _ = torch.eye(3).double()[[2, 1, 0]]
    points = torch.cat([floor, strip, left, right])
    normals = torch.cat([up.expand(20000, 3), back.expand(16000, 3)])
    tolerances = torch.full((len(points),), 0.03).double()
    planes = fit_planes(points, normals, tolerances, lambda points: torch.zeros(len(points), dtype=torch.bool))
    walls = (planes.normals @ back).abs() > 0.9
    (wall,) = (walls & planes.is_bound).nonzero()[:, 0].tolist()
    assert abs(float(planes.offsets[wall])) < 0.005 and float((planes.normals[wall] @ up).abs()) < 1e-3
    before = (walls & ~planes.is_bound).nonzero()[:, 0].tolist()
    assert len(before) == 2
    for k in before:
        assert abs(abs(float(planes.offsets[k])) - 0.025) < 0.004
        inside = planes.contain(k, torch.tensor([[0.5, 0.025, 1.2], [1.5, 0.025, 1.2], [1.0, 0.0, 0.2]]).double())
        assert int(inside[:2].sum()) == 1 and not bool(inside[2])
    assert int(planes.is_bound.sum()) == 2


def facing_a_wall() -> tuple[DepthView, Tensor, DepthView, Planes]:
    """A view of a bright wall at 3 and of a dark square before it, where the photos measure 1.5; its field is right in
    the lower half of the wall only, and says 1.2 above. The picture, what is sure, and the wall."""
    h, w = SIZE
    pose = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1).double()
    depths, picture = torch.full(SIZE, 2.9), torch.full(SIZE, 0.8)
    depths[: h // 2] = 1.2
    depths[20:40, 20:40], picture[20:40, 20:40] = 1.5, 0.2
    view = DepthView(pose, (FOCAL, FOCAL, w / 2, h / 2), depths, torch.ones(SIZE))
    square = picture < 0.5
    sure = replace(view, depths=torch.where(square, 1.5, torch.nan), weights=square.float())
    axes = torch.eye(3).double()
    wall = Planes(
        axes[2:], torch.tensor([3.0]).double(), axes[None, :2], torch.full((1, 32), 9.0), torch.tensor([True])
    )
    return view, picture, sure, wall


def test_a_wall_goes_on_where_the_picture_does() -> None:
    """Far beyond where the field is about right, but not over the square before it."""
    view, picture, sure, wall = facing_a_wall()
    flat = complete(view, picture, sure, wall, [], torch.zeros(0, 3))
    assert torch.allclose(bounds_in_view(wall, view), torch.full(SIZE, 3.0))
    square = sure.weights > 0
    assert bool(flat[square].isnan().all()) and float((flat[~square] == 3).float().mean()) > 0.95


def test_a_facade_does_not_go_on_in_the_sky() -> None:
    """A plane that is no bound, above whose edge in the picture the sky is as smooth, and the field says nothing."""
    view, picture, sure, wall = facing_a_wall()
    facade = wall._replace(is_bound=torch.tensor([False]))
    roof = torch.zeros(SIZE, dtype=torch.bool)
    roof[30:] = True
    picture[:], view.depths[:] = torch.where(roof, 0.3, 0.9), 3.0
    sure.depths[40:], sure.weights[40:] = 3.0, 0.5
    sure.depths[:40], sure.weights[:40] = torch.nan, 0.0
    sky = torch.zeros(SIZE, dtype=torch.bool)
    sky[:10] = True
    flat = complete(view, picture, sure, facade, [], torch.zeros(0, 3), sky)
    assert float((flat[30:40] == 3).float().mean()) > 0.9 and bool(flat[:28].isnan().all())
    assert float((complete(view, picture, sure, facade, [], torch.zeros(0, 3))[:28] == 3).float().mean()) > 0.9


def test_what_several_fields_see_before_a_wall_stays() -> None:
    """A board of which the photos measure the outline only; the view's own field is wrong about it and others' agree.
    Fog that they agree on has no outline."""
    view, picture, sure, wall = facing_a_wall()
    board = torch.zeros(SIZE, dtype=torch.bool)
    board[5:27, 50:76] = True
    picture[board], view.depths[board] = 0.4, 2.95
    others = []
    for turn in range(5):
        pose = view.camera_from_scene.clone()
        pose[0, 3] = 0.05 * turn
        moved = torch.roll(board, round(0.05 * turn * FOCAL / 2), 1)
        others.append(replace(view, camera_from_scene=pose, depths=torch.where(moved, 2.0, torch.nan)))
    solid = solid_points(others[0], others[1:])
    assert len(solid) > 100 and float((solid[:, 2] - 2).abs().max()) < 1e-5
    assert len(solid_points(view, others)) < 20, "where they differ there is nothing"
    fog = solid - torch.tensor([0.0, 0.0, 0.4])
    fog[:, 1] += 0.8  # elsewhere, before the wall
    middle = board.clone()
    middle[:9], middle[23:], middle[:, :54], middle[:, 72:] = False, False, False, False
    outline = board & ~middle
    sure.depths[outline], sure.weights[outline] = 2.0, 0.02
    flat = complete(view, picture, sure, wall, [], torch.cat([solid, fog]))
    assert bool(flat[middle].isnan().all())
    assert float((flat[~board & (sure.weights == 0)] == 3).float().mean()) > 0.95
    without = complete(view, picture, sure, wall, [], fog)
    assert float((without[middle] == 3).float().mean()) > 0.5, "else it were the wall, as the view's own field says"


def test_labels_spread_to_the_edges_of_a_picture() -> None:
    """A dark square on bright ground, a few labelled pixels in each."""
    picture = torch.full((40, 50), 0.8)
    picture[10:30, 15:35] = 0.2
    labels, weights = torch.zeros(2, 40, 50), torch.zeros(40, 50)
    labels[0, 2:6, 3:7] = labels[1, 18:22, 20:24] = 1
    weights[2:6, 3:7] = weights[18:22, 20:24] = 1
    shares = spread(labels, weights, picture)
    assert torch.equal(shares.argmax(dim=0) == 1, picture < 0.5)
    assert float(shares.min()) > -1e-3 and float(shares.sum(dim=0).max()) < 1 + 1e-3


def test_planes_of_depths_are_tangent() -> None:
    drawn = scene()[3]
    planes = planes_of(drawn.view.depths)
    inverse = 1 / drawn.view.depths
    assert torch.allclose(planes[0], inverse)
    inner = (drawn.part == 1) & (torch.roll(drawn.part, 1, 0) == 1)
    inner[0] = False
    down = torch.diff(inverse, dim=0, prepend=inverse[:1])
    assert torch.allclose(planes[2][inner], down[inner], atol=2e-4)
    assert math.isclose(float(planes_of(torch.full(SIZE, torch.inf)).abs().max()), 0.0)


def test_photos_are_seen_without_distortion_and_masks_are_holes() -> None:
    """Of a far-away pattern, a bent photo of twice the size gives what a pinhole in its place sees."""
    size, lens = (96, 128), [-0.25, 0.05, 0.0, 0.0, 0.004, -0.003]
    lenses = Scene.from_arrays(
        torch.zeros(1, *size, 3), torch.eye(4)[None], [110.0, 110.0, 64.0, 48.0], distortion=lens, splits={"train": [0]}
    ).cameras

    def pattern(rays_d: Tensor) -> Tensor:
        return 0.5 + 0.3 * (9 * rays_d[:, 0]).sin() * (7 * rays_d[:, 1] + 1).cos()

    photo = pattern(lenses.image_rays(0)[1]).reshape(*size, 1).expand(-1, -1, 3)
    mask = torch.ones(size)
    mask[40:60, 50:70] = 0
    scene = Scene.from_arrays(
        photo[None].numpy(),
        torch.eye(4)[None],
        [110.0, 110.0, 64.0, 48.0],
        distortion=lens,
        masks=[mask.numpy()],
        names=["a"],
        splits={"train": [0]},
    )
    model = SimpleNamespace(
        names=["gone", "a"], given_poses=None, log_gains=None, vignetting=None, linear=False, exposure=1.0
    )
    pinholes = _small_pinholes(scene.cameras.subset([0, 0]), 64)
    absent, seen = grey_pictures(model, scene, torch.tensor([0, 1]), pinholes)  # type: ignore[arg-type]
    expected = pattern(pinholes.image_rays(0)[1]).reshape(48, 64)
    assert bool(absent.isnan().all())
    assert bool(seen[22:28, 27:33].isnan().all()) and float(seen.isnan().float().mean()) < 0.15
    assert float((seen - expected).abs().nan_to_num(nan=0.0).max()) < 0.015
    bent = torch.nn.functional.avg_pool2d(photo[None, ..., 0], 2)[0]
    assert float((bent - expected).abs().max()) > 0.05, "the lens bends"
