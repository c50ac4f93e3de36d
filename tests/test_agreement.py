"""Which parts of photos a texture takes: not those that show what others do not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.geometry.cameras import Cameras
from nerf.meshing.agreement import find_agreement


class Floor:
    """A stand-in for a scene: cameras that look down on a square."""

    def __init__(self, n: int, has_silhouettes: bool = False) -> None:
        self.has_silhouettes = has_silhouettes
        poses = torch.eye(4, dtype=torch.float64)[:3].repeat(n, 1, 1)
        poses[:, 0, 3] = torch.linspace(-0.2, 0.2, n)
        poses[:, 2, 3] = 2.0
        self.cameras = Cameras.perspective(poses, 128.0, 128, 128)


CORNERS = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]).double()
FACES = torch.tensor([[0, 1, 2], [0, 2, 3]])


def shown(floor: Floor, i: int) -> Tensor:
    """A striped floor as camera i sees it: [h,w,4]; the whole is 128 pixels wide."""
    rays_o, rays_d = floor.cameras.image_rays(i)
    x = (rays_o - rays_d * (rays_o[:, 2:] / rays_d[:, 2:]))[:, 0].reshape(128, 128).float()
    grey = 0.5 + 0.2 * torch.sin(6 * math.pi * x)
    return torch.stack([grey, grey, grey, torch.ones_like(grey)], dim=2)


def agreement(floor: Floor, pictures: list[Tensor]) -> list[Tensor]:
    photos = torch.arange(len(pictures))
    return find_agreement(floor, CORNERS, FACES, photos, lambda row: pictures[row], lambda *given: given[2])  # type: ignore[arg-type]


def test_a_shadow_in_one_photo_does_not_count() -> None:
    floor = Floor(7)
    pictures = [shown(floor, i) for i in range(7)]
    pictures[2][40:80, 50:90, :3] *= 0.5
    found = agreement(floor, pictures)
    assert float(found[2][45:75, 55:85].max()) < 0.2, "the shadow"
    assert float(found[2][:36].min()) > 0.8, "beside it"
    for i in (0, 1, 3, 4, 5, 6):
        assert float(found[i].min()) > 0.8, "others are as they would be without it"


def test_of_an_object_that_is_cut_out_each_photo_counts() -> None:
    floor = Floor(7, has_silhouettes=True)
    pictures = [shown(floor, i) for i in range(7)]
    pictures[2][40:80, 50:90, :3] *= 0.5
    assert all(bool((found == 1).all()) for found in agreement(floor, pictures))


def test_what_few_others_show_counts() -> None:
    floor = Floor(4)
    pictures = [shown(floor, i) for i in range(4)]
    pictures[2][40:80, 50:90, :3] *= 0.5
    assert all(bool((found == 1).all()) for found in agreement(floor, pictures))


def test_where_a_mask_shows_nothing_nothing_is_compared() -> None:
    floor = Floor(7)
    pictures = [shown(floor, i) for i in range(7)]
    for i in (0, 1, 3, 4):
        pictures[i][40:80, :, 3] = 0
        pictures[i][40:80, :, :3] = 0
    pictures[5][44:76, 50:90, :3] *= 0.5
    found = agreement(floor, pictures)
    assert bool((found[5][48:72, 55:85] == 1).all()), "two others are too few"
    assert all(bool(one.isfinite().all()) for one in found)


def test_where_all_differ_each_counts() -> None:
    floor, random = Floor(9), torch.Generator().manual_seed(0)
    pictures = []
    for i in range(9):
        picture = shown(floor, i)
        picture[..., :3] = torch.rand(3, generator=random)
        pictures.append(picture)
    found = agreement(floor, pictures)
    assert sum(float(one.mean()) for one in found) / 9 > 0.3
