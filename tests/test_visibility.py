"""Carving: a cell that holds anything the photos show is never taken away, and what they rule out goes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import ring_cameras
from tiny import generator, join_cameras, make_scene, sphere_scene, store, uniform
from torch import Tensor

from nerf.datasets import Scene
from nerf.fields.occupancy import OccupancyGrid
from nerf.geometry.cameras import Cameras
from nerf.geometry.lenses import DIVISION, EQUIRECTANGULAR, EUCM, FISHEYE, FOV, OPENCV
from nerf.geometry.space import Similarity
from nerf.training.visibility import visible_cells


def possible(scene: Scene, points: Tensor, size: float) -> Tensor:
    """Whether the cells that hold these scene points may hold anything; cells of the grid with this edge length."""
    centres = (torch.floor(points / size) + 0.5) * size
    return visible_cells(scene, scene.splits["train"])(centres.float(), torch.full((len(points),), size))


def shown_at(cameras: Cameras, points_world: Tensor) -> list[np.ndarray]:
    """Transparent pictures but for the one pixel where each point falls, if it is in the picture."""
    uv, depths = cameras.project(points_world)
    images = []
    for i in range(len(cameras)):
        h, w = int(cameras.heights[i]), int(cameras.widths[i])
        image = np.zeros((h, w, 4), np.uint8)
        for (x, y), z in zip(uv[i].tolist(), depths[i].tolist(), strict=True):
            if z > 0 and 0 <= x < w and 0 <= y < h:
                image[int(y), int(x)] = 255
        images.append(image)
    return images


def with_lens(cameras: Cameras, model: int, focal: float, *k: float) -> Cameras:
    """The same cameras with another lens; focal length in picture widths, k as in Cameras.distortion."""
    n = len(cameras)
    distortion = torch.zeros(n, 6, dtype=torch.float64)
    distortion[:, : len(k)] = torch.tensor(k, dtype=torch.float64)
    f = cameras.widths.double() * focal
    return replace(cameras, fx=f, fy=f.clone(), models=torch.full((n,), model), distortion=distortion)


LENSES: dict[str, tuple[int, float, tuple[float, ...]]] = {
    "tele": (0, 2.0, ()),
    "normal": (0, 1.0, ()),
    "wide": (0, 0.4, ()),  # 103 degrees
    "very wide": (0, 0.2, ()),  # 136 degrees
    "barrel": (OPENCV, 0.5, (-0.25, 0.04)),
    "strong barrel": (OPENCV, 0.45, (-0.35, 0.1)),
    "pincushion": (OPENCV, 0.6, (0.3, 0.1)),
    "fisheye": (FISHEYE, 0.35, (0.05, -0.01)),
    "fisheye past 180 degrees": (FISHEYE, 0.25, ()),
    "folding over": (OPENCV, 0.6, (-0.45,)),
    "fov": (FOV, 0.4, (0.9,)),
    "division": (DIVISION, 0.35, (-0.2,)),
    "eucm": (EUCM, 0.3, (0.6, 1.1)),
    "sphere": (EQUIRECTANGULAR, 0.5 / math.pi, ()),
}


def close_up(lens: str, n: int = 6, size: int = 200, distance: float = 1.3) -> Cameras:
    """Cameras so near that the object fills their pictures to the corners, and beyond."""
    model, focal, k = LENSES[lens]
    return with_lens(ring_cameras(n, size, distance=distance), model, focal, *k)


@pytest.mark.parametrize("cell", [2 / 128, 2 / 32, 0.2])
@pytest.mark.parametrize("lens", LENSES)
def test_silhouettes_never_take_a_cell_with_something_in_it(lens: str, cell: float) -> None:
    # The hardest case: each picture shows nothing but the points themselves, one pixel each.
    cameras = close_up(lens)
    lost = 0
    for seed in range(15):
        point = uniform(4, 3, seed=seed, low=-1.0, high=1.0)
        scene = make_scene(shown_at(cameras, point.double()), cameras, 0, scene_from_world=Similarity.identity())
        if scene.pixels.memory.any():
            uv, depths = cameras.project(point.double())
            shown = ((uv >= 0) & (uv < 200)).all(dim=2) & (depths > 0)
            lost += int((~possible(scene, point, cell) & (shown.sum(dim=0) > 1)).sum())  # one alone cannot place it
    assert lost == 0, f"{lost} cells of 60 that hold something shown are carved away"


def test_silhouettes_of_a_sphere_leave_the_sphere_and_little_else() -> None:
    scene = sphere_scene(12, 48)
    grid = OccupancyGrid(1, 32)
    grid.restrict(visible_cells(scene, scene.splits["train"]))
    centres, sizes = grid.cell_centres(torch.arange(32**3))
    distance, kept = centres.norm(dim=1), grid.occupied.reshape(-1)
    assert bool(kept[distance < 0.7 + sizes / 2].all())
    # The hull exceeds the sphere by a cell, its bounding ball and a pixel; the box's corners lie in few pictures.
    assert float(kept[(distance > 0.85) & (distance < 1.0)].float().mean()) < 0.05
    assert 0.15 < float(kept.float().mean()) < 0.4


def test_a_hull_uses_only_the_images_asked_for() -> None:
    scene = sphere_scene(12, 48)
    empty = [np.zeros_like(scene.pixels.raw(i)) if i == 11 else scene.pixels.raw(i).copy() for i in range(12)]
    other = replace(scene, pixels=store(empty))  # the test view shows nothing: that must not matter
    centres, sizes = uniform(500, 3, low=-1), torch.full((500,), 1 / 16)
    ids = scene.splits["train"]
    assert torch.equal(visible_cells(scene, ids)(centres, sizes), visible_cells(other, ids)(centres, sizes))


def test_what_lies_outside_a_picture_may_be_anything() -> None:
    # One camera sees nothing, and looks at the middle only: what the two others see elsewhere must stay.
    narrow = with_lens(ring_cameras(1, 50, distance=3.0, elevation=0.0), 0, 10.0)
    cameras = join_cameras([narrow, ring_cameras(2, 50, distance=3.0, elevation=0.3)])
    images = [np.full((50, 50, 4), value, np.uint8) for value in (0, 255, 255)]
    images[0][0, 0] = 255  # a wholly transparent picture would be left out
    scene = make_scene(images, cameras, 0, scene_from_world=Similarity.identity())
    points = uniform(2000, 3, low=-1)
    uv, depths = cameras.project(points.double())
    inside, *others = (((p > 0) & (p < 50)).all(dim=1) & (z > 0) for p, z in zip(uv, depths, strict=True))
    kept = possible(scene, points, 1 / 64)
    rest = others[0] & others[1] & ~inside
    assert bool(rest.any()) and bool(kept[rest].all())
    well_inside = ((uv[0] > 8) & (uv[0] < 42)).all(dim=1)
    assert bool(well_inside.any()) and not bool(kept[well_inside].any())


def test_behind_a_camera_nothing_is_carved() -> None:
    near, far = ring_cameras(4, 40, distance=0.3), ring_cameras(2, 40, distance=4.0, elevation=0.2)
    cameras, images = join_cameras([near, far]), [np.zeros((40, 40, 4), np.uint8)] * 4
    images += [np.full((40, 40, 4), 255, np.uint8)] * 2  # which see it from afar
    scene = make_scene(images, cameras, 0, scene_from_world=Similarity.identity())
    points = uniform(3000, 3, low=-1)
    uv, depths = cameras.project(points.double())
    cell = 1 / 64
    behind = (depths[:4] < -2 * cell).all(dim=0) & ((uv[4:] > 0) & (uv[4:] < 40)).all(dim=2).all(dim=0)
    assert bool(behind.any()) and bool(possible(scene, points, cell)[behind].all())


def test_what_is_transparent_under_a_mask_is_not_carved() -> None:
    # A mask says that a pixel tells nothing: neither its colour nor its transparency.
    scene = sphere_scene(8, 48)
    images = [scene.pixels.raw(i).copy() for i in range(8)]
    masks = [np.full((48, 48, 1), 255, np.uint8) for _ in range(8)]
    for image, mask in zip(images, masks, strict=True):
        image[:, 20:28], mask[:, 20:28] = 0, 0
    masked = replace(scene, pixels=store(images), masks=store(masks))
    centres, sizes = uniform(2000, 3, low=-0.4, high=0.4), torch.full((2000,), 1 / 64)
    assert bool(visible_cells(scene, scene.splits["train"])(centres, sizes).all())
    assert bool(visible_cells(masked, scene.splits["train"])(centres, sizes).all())


@pytest.mark.parametrize("lens", LENSES)
def test_without_alpha_what_the_cameras_see_stays(lens: str) -> None:
    cameras = close_up(lens, n=8)
    images = [np.full((200, 200, 3), 9, np.uint8)] * 8
    scene = make_scene(images, cameras, 0, scene_from_world=Similarity.identity())
    points = uniform(4000, 3, low=-1.0, high=1.0)
    uv, depths = cameras.project(points.double())
    visible = ((uv >= 0) & (uv < 200)).all(dim=2) & (depths > 0)
    many = visible.sum(dim=0) >= 3  # what fewer see cannot be placed
    assert bool(many.any()) and bool(possible(scene, points, 1 / 64)[many].all())


def test_without_alpha_what_no_camera_sees_goes() -> None:
    cameras = ring_cameras(8, 50)
    scene = make_scene([np.full((50, 50, 3), 9, np.uint8)] * 8, cameras, 0, scene_from_world=Similarity.identity())
    points = uniform(2000, 3, low=-4, high=4)
    uv, depths = cameras.project(points.double())
    margin = 10.0  # pixels; a cell of 1/32 at distance 1 covers some
    near = ((uv > -margin) & (uv < 50 + margin)).all(dim=2) & (depths > -0.1)
    unseen = ~near.any(dim=0)
    assert bool(unseen.any()) and not bool(possible(scene, points, 1 / 32)[unseen].any())


def test_one_camera_is_enough_where_there_is_one() -> None:
    cameras = ring_cameras(1, 50)
    scene = make_scene([np.full((50, 50, 3), 9, np.uint8)], cameras, 0, scene_from_world=Similarity.identity())
    assert bool(possible(scene, uniform(500, 3, low=-0.3, high=0.3), 1 / 32).all())


def test_the_scene_frame_is_the_cells_frame() -> None:
    # The same photos in a world that is turned, moved and ten times as large keep the same cells.
    scene = sphere_scene(8, 48)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator(0), dtype=torch.float64))
    q = q * torch.sign(torch.linalg.det(q))
    move = Similarity(10.0, q, torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64))
    changes: dict[str, Any] = {"cameras": scene.cameras.with_poses(move.apply_poses(scene.cameras.c2w))}
    to_scene, back = scene.scene_from_world, move.inverse()
    changes["scene_from_world"] = Similarity(
        to_scene.scale * back.scale, to_scene.rotation @ back.rotation, to_scene.apply(back.translation)
    )
    moved = replace(scene, **changes)
    centres, sizes = uniform(3000, 3, low=-1), torch.full((3000,), 1 / 32)
    ids = scene.splits["train"]
    same = visible_cells(scene, ids)(centres, sizes) == visible_cells(moved, ids)(centres, sizes)
    assert float(same.float().mean()) > 0.999  # rounding may move a ball across a pixel's edge


# --- many views


def many_views(*k: float) -> Scene:
    """A scene without alpha, seen by 24 cameras at random places that look roughly inwards; k: lens distortion."""
    g = generator(0)
    eyes = torch.nn.functional.normalize(torch.randn(24, 3, generator=g), dim=1).double() * 1.5
    back = torch.nn.functional.normalize(eyes + 0.6 * torch.randn(24, 3, generator=g).double(), dim=1)
    up = torch.tensor([0.1, 0.2, 1.0], dtype=torch.float64).expand(24, 3)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=1)
    c2w = torch.stack([right, torch.linalg.cross(back, right), back, eyes], dim=2)
    scene = sphere_scene(24, 16)
    return replace(
        scene, cameras=with_lens(replace(scene.cameras, c2w=c2w), OPENCV if k else 0, 2.5, *k), has_alpha=False
    )


def test_of_many_views_a_cell_that_three_see_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against balls filled with points, each of which is projected into every picture."""
    scene, ids, axis = many_views(), torch.arange(24), (torch.arange(24) + 0.5) / 12 - 1
    cube = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    centres = torch.cat([cube, 4 * cube])
    sizes = torch.cat([torch.full((len(cube),), size) for size in (1 / 12, 1 / 3)])
    kept = visible_cells(scene, ids)(centres, sizes)
    counts = torch.zeros(24, len(centres), dtype=torch.bool)
    for offset in [torch.zeros(3), *torch.nn.functional.normalize(torch.randn(40, 3, generator=generator(1)), dim=1)]:
        points = centres + offset * sizes[:, None] * 0.5 * 3**0.5
        uv, depths = scene.cameras.project(scene.scene_from_world.inverse().apply(points.double()))
        size = torch.stack([scene.cameras.widths, scene.cameras.heights], dim=1)[:, None]
        counts |= ((uv >= 0) & (uv < size)).all(dim=2) & (depths > 0)
    seen = counts.sum(dim=0) >= 3
    assert 0.1 < float(seen.float().mean()) < 0.9
    assert not bool((seen & ~kept).any()) and float((kept & ~seen).float().mean()) < 0.02
    monkeypatch.setattr("nerf.training.visibility.BLOCKS", (1,))
    assert torch.equal(visible_cells(scene, ids)(centres, sizes), kept), "blocks change nothing"
    wider = visible_cells(many_views(-1.0), ids)(centres, sizes)  # a barrel lens sees more
    assert bool((wider | ~kept).all()) and int(wider.sum()) > int(kept.sum())
