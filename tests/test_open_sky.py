"""Which pixels of a photo show the sky."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerf.kernels import DepthView
from nerf.meshing.open_sky import find_sky

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


def sky_pixels(view: DepthView, picture: Tensor, known: Tensor, bound: Tensor, up: Tensor) -> Tensor:
    return find_sky([view], [picture], [known], [bound], up)[0]


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


def test_a_little_of_it_or_what_is_dark_is_none() -> None:
    picture, measured = house()
    none = torch.full((H, W), torch.inf)
    dark = torch.where(measured, picture, picture - 0.6)
    assert not bool(sky_pixels(view_of(picture, 0), dark, measured, none, UP).any()), "a screen"
    views = [view_of(picture, 0) for _ in range(20)]
    known = [measured] + [torch.ones_like(measured)] * 19
    found = find_sky(views, [picture] * 20, known, [none] * 20, UP)
    assert not any(bool(f.any()) for f in found), "a wall above what was measured"
