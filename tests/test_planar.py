"""Planes of rooms that are no boxes, and the main directions of a scene."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nerf.meshing.directions import main_directions
from nerf.meshing.planar import Planes, fit_planes

LENGTH, DEPTH, KNEE, HEIGHT, RUN = 5.0, 4.0, 1.0, 2.6, 1.7  # metres; where the slope ends, seen from the knee wall
RISE = math.atan2(HEIGHT - KNEE, RUN)


def turned(yaw: float) -> Tensor:
    """A rotation about the vertical and a little about another axis, as frames of captures have."""
    c, s = math.cos(yaw), math.sin(yaw)
    about_z = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).double()
    lean = torch.tensor([[1.0, 0.0, 0.0], [0.0, math.cos(0.3), -math.sin(0.3)], [0.0, math.sin(0.3), math.cos(0.3)]])
    return lean.double() @ about_z


def attic(random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [n,3] and normals of a room under a roof: a floor with texture, walls and a roof of which the borders and
    a window are known, and what leans before a wall: a ledge below, a frame above."""

    def patch(origin: tuple, along: tuple, up: tuple, n: int) -> tuple[Tensor, Tensor]:
        a, b = torch.tensor(along).double(), torch.tensor(up).double()
        normal = torch.nn.functional.normalize(torch.linalg.cross(a, b), dim=0)
        flat = torch.rand(n, 2, generator=random).double()
        noise = 0.006 * torch.randn(n, 1, generator=random).double()
        points = torch.tensor(origin).double() + flat[:, :1] * a + flat[:, 1:] * b + noise * normal
        return points, normal.expand(n, 3)

    y, z = RUN / 4, (HEIGHT - KNEE) / 4  # a quarter of the slope
    parts = [
        patch((0, 0, 0), (LENGTH, 0, 0), (0, DEPTH, 0), 12000),
        patch((0, 0, 0), (0, DEPTH, 0), (0, 0, 0.08), 1200),  # the wall at x = 0: a skirting and an edge
        patch((0, RUN, HEIGHT - 0.05), (0, DEPTH - RUN, 0), (0, 0, 0.05), 700),
        patch((0, 0, 0), (LENGTH, 0, 0), (0, 0, KNEE), 1500),
        patch((0, 0, KNEE), (LENGTH, 0, 0), (0, 0.1 * RUN, 0.1 * (HEIGHT - KNEE)), 500),  # the slope's lower border
        patch((2, y, KNEE + z), (0.7, 0, 0), (0, 2 * y, 2 * z), 1500),  # and its window
        patch((0, RUN, HEIGHT), (LENGTH, 0, 0), (0, 0.1, 0), 900),
        patch((0.1, 2.2, 0.15), (0, 1, 0), (0, 0, 0.5), 1500),  # a radiator
        patch((0.04, 2.2, 1.0), (0, 1.2, 0), (0, 0, 0.9), 1500),  # a window's frame above it
    ]
    points, normals = (torch.cat(part) for part in zip(*parts, strict=True))
    return points, normals


def plane_like(planes: Planes, rotation: Tensor, normal: tuple[float, ...], offset: float) -> tuple[float, float, bool]:
    """Of the planes with nearly that normal and offset the nearest: degrees and metres it is off, whether a bound."""
    n = rotation @ torch.tensor(normal).double()
    cosine = planes.normals @ n
    angle = torch.rad2deg(cosine.abs().clamp_max(1).acos())
    apart = (planes.offsets * cosine.sign() - offset).abs()
    k = int((angle / 5 + apart / 0.05 + 9.0 * (~planes.is_bound)).argmin())
    return float(angle[k]), float(apart[k]), bool(planes.is_bound[k])


@pytest.mark.parametrize("yaw", [0.0, 0.47, 1.1])
def test_a_room_under_a_roof(yaw: float) -> None:
    """The slope holds no other plane's direction; what stands before the wall at x = 0 leans by 5 degrees."""
    points, normals = attic(torch.Generator().manual_seed(3))
    rotation = turned(yaw)

    def inside(where: Tensor) -> Tensor:
        x, y, z = (where @ rotation).unbind(dim=1)
        return (
            (x > 0.05) & (y > 0.05) & (z > 0.05) & (z < KNEE + y * (HEIGHT - KNEE) / RUN - 0.07) & (z < HEIGHT - 0.05)
        )

    planes = fit_planes(points @ rotation.T, normals @ rotation.T, torch.full((len(points),), 0.02).double(), inside)
    up, side = (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)
    slope = (0.0, -math.sin(RISE), math.cos(RISE))
    for normal, offset in (
        (up, 0.0),
        (side, 0.0),
        ((0.0, 1.0, 0.0), 0.0),
        (slope, KNEE * math.cos(RISE)),
        (up, HEIGHT),
    ):
        degrees, apart, is_bound = plane_like(planes, rotation, normal, offset)
        assert degrees < 0.5 and apart < 0.02 and is_bound, (normal, degrees, apart, is_bound)
    assert int(planes.is_bound.sum()) == 5, "none at an angle along an edge"


def test_main_directions_are_those_of_the_layers() -> None:
    """Within half a degree, though most points lie in planes that are none of theirs, and some a hundred times as far
    away; the same for the same seed."""
    random = torch.Generator().manual_seed(0)
    points, _ = attic(random)
    leaning = torch.rand(8000, 3, generator=random).double() @ torch.tensor(
        [[2.0, 0.3, 0.2], [0.1, 2.0, -0.4], [0.0, 0.0, 0.0]]
    ).double() + torch.tensor([1.0, 1.0, 0.5])
    far = 500 * torch.randn(200, 3, generator=random).double()
    rotation = turned(0.6)
    points = torch.cat([points, leaning, far]) @ rotation.T
    trials = torch.nn.functional.normalize(torch.randn(1000, 3, generator=random), dim=1).double()
    found = main_directions(points, 0.02, trials, torch.Generator().manual_seed(1))
    assert torch.allclose(found @ found.T, torch.eye(3).double(), atol=1e-9)
    cosines = (found @ rotation).abs()
    assert float(torch.rad2deg(cosines.amax(dim=1).clamp_max(1).acos()).max()) < 0.5
    assert sorted(cosines.argmax(dim=1).tolist()) == [0, 1, 2]
    again = main_directions(points, 0.02, trials, torch.Generator().manual_seed(1))
    assert torch.equal(found, again)


def test_a_plain_wall_within_the_scene_has_few_points() -> None:
    """Of a block in a corner of a room one face is plain: some points of its edges have its normal, the others are on
    planes found before. It is no bound, for the room goes on beside it."""
    random = torch.Generator().manual_seed(0)

    def patch(low: tuple[float, float, float], high: tuple[float, float, float], axis: int, n: int) -> tuple:
        a, b = torch.tensor(low).double(), torch.tensor(high).double()
        points = a + torch.rand(n, 3, generator=random).double() * (b - a)
        points[:, axis] += 0.004 * torch.randn(n, generator=random).double()
        return points, torch.eye(3).double()[axis].expand(n, 3)

    parts = [
        patch((0, 0, 0), (4, 3, 0), 2, 9000),
        *(patch((x, 0, 0), (x, 3, 2), 0, 3000) for x in (0, 4)),
        *(patch((0, y, 0), (4, y, 2), 1, 3000) for y in (0, 3)),
        patch((3, 2.2, 0.0), (4, 2.2, 2), 1, 3000),  # the block's other face, with texture
        patch((3, 2.2, 0.3), (3, 2.3, 1.8), 0, 50),
        patch((3, 2.9, 0.3), (3, 3.0, 1.8), 0, 50),
    ]
    points, normals = (torch.cat(part) for part in zip(*parts, strict=True))

    def inside(where: Tensor) -> Tensor:
        in_room = ((where > 0.05) & (where < torch.tensor([3.95, 2.95, 1.95]))).all(dim=1)
        return in_room & ~((where[:, 0] > 2.95) & (where[:, 1] > 2.15))

    planes = fit_planes(points, normals, torch.full((len(points),), 0.02).double(), inside)
    faces = (planes.normals[:, 0].abs() > 0.999) & ((planes.offsets.abs() - 3).abs() < 0.01)
    assert int(faces.sum()) == 1 and not bool(planes.is_bound[faces]) and int(planes.is_bound.sum()) == 5
    k = int(faces.nonzero())
    assert planes.contain(k, torch.tensor([[3.0, 2.6, 1.0], [3.0, 1.5, 1.0]]).double()).tolist() == [True, False]
