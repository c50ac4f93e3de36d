"""Which pixels of a photo show the sky."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerf.kernels import DepthView
from nerf.meshing.open_sky import sky_pixels

H, W, HORIZON = 60, 80, 30
UP = torch.tensor([0.0, 0.0, 1.0]).double()
# pictures upright, upside down, and turned either way: the camera's right and down axes in the scene
TURNS = {"upright": 0, "left": 1, "upside down": 2, "right": 3}


def view_of(picture: Tensor, turn: int) -> DepthView:
    """A level camera that looks along y, turned by so many quarters about its axis."""
    right, down = torch.tensor([1.0, 0, 0]).double(), torch.tensor([0.0, 0, -1.0]).double()
    for _ in range(turn):
        right, down = -down, right
    pose = torch.cat([torch.stack([right, down, torch.tensor([0.0, 1, 0]).double()]), torch.zeros(3, 1)], dim=1)
    h, w = picture.shape
    return DepthView(pose, (60.0, 60.0, w / 2, h / 2), torch.ones(h, w), torch.ones(h, w))


def house() -> tuple[Tensor, Tensor]:
    """A picture [h,w] of a textured house and ground before a smooth sky; which of its pixels are measured [h,w]."""
    picture = 0.8 - torch.linspace(0, 0.1, H)[:, None].expand(H, W).clone()
    rough = torch.zeros(H, W, dtype=torch.bool)
    rough[15:, 30:50], rough[HORIZON:] = True, True
    noise = torch.rand(H, W, generator=torch.Generator().manual_seed(0))
    return torch.where(rough, noise, picture), rough


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_what_is_smooth_and_above_all_that_is_measured_is_sky(turn: int) -> None:
    picture, measured = (t.rot90(-turn) for t in house())
    none = torch.full(picture.shape, torch.inf)
    found = sky_pixels(view_of(picture, turn), picture, measured, none, UP).rot90(turn)
    assert bool(found[:10].all()), "above"
    assert bool(found[: HORIZON - 8, :26].all()), "beside the house, down to near the horizon"
    assert not bool(found[HORIZON:].any()) and not bool(found[15:, 30:50].any())


def test_under_a_ceiling_there_is_no_sky() -> None:
    picture, measured = house()
    view, none = view_of(picture, 0), torch.full((H, W), torch.inf)
    assert not bool(sky_pixels(view, picture, measured, torch.full((H, W), 3.0), UP).any()), "a bound of the scene"
    measured = measured.clone()
    measured[:2] = True
    assert not bool(sky_pixels(view, picture, measured, none, UP).any()), "measured above it"
    assert not bool(sky_pixels(view, picture, house()[1], none, -UP)[: HORIZON + 3].any()), "below the horizon"
