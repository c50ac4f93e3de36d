"""Which pixels show the sky: there is nothing, whatever depth a field gave to its colour."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from nerf.kernels import DepthView

_AROUND = 3  # pixels around one, over which a picture's deviation is taken
_SMOOTH = 0.015  # grey: standard deviation around a pixel of the sky, at most; haze, thin clouds and JPEG's noise
_ABOVE = 0.05  # sine of the angle above the horizon from which on there may be sky
_AWAY = 15  # pixels from what is known, beyond which the sky is safe to say
_LEAST = 0.03  # of all pixels, below which it is rather a plain wall that nothing was measured on


def find_sky(
    views: list[DepthView], pictures: list[Tensor], known: list[Tensor], bounds: list[Tensor], up: Tensor
) -> list[Tensor]:
    """Which pixels show it, bool [h,w] of each view with a grey picture [h,w] (NaN: shows nothing): those that are
    smooth, above the horizon, with no bound of the scene behind (z-depths [h,w], infinite where there is none) and
    nothing known [h,w] farther up in the picture, if there are many, and they are brighter than what is known. up: of
    the scene, [3] float64."""
    found = [_may_be_sky(*of, up) for of in zip(views, pictures, known, bounds, strict=True)]
    above, below = (
        torch.cat([p[some] for p, some in zip(pictures, which, strict=True)]).nanmean() for which in (found, known)
    )
    many = sum(int(f.sum()) for f in found) >= _LEAST * sum(f.numel() for f in found)
    return found if many and not bool(above < below) else [torch.zeros_like(f) for f in found]


def _may_be_sky(view: DepthView, picture: Tensor, known: Tensor, bound: Tensor, up: Tensor) -> Tensor:
    h, w = picture.shape
    fx, fy, cx, cy = view.intrinsics
    x, y, z = (view.camera_from_scene[:, :3] @ up).tolist()
    right, down = (torch.arange(w) + 0.5 - cx) / fx, ((torch.arange(h) + 0.5 - cy) / fy)[:, None]
    sine = (x * right + y * down + z) / (1 + right.square() + down.square()).sqrt()
    may = ~textured(picture, _SMOOTH) & (sine > _ABOVE) & bound.isinf() & ~known
    # up in the picture: towards that of its four sides
    dim, flipped = (0, y > 0) if abs(y) > abs(x) else (1, x > 0)
    below = known.flip(dim) if flipped else known
    below = below.int().cumsum(dim) > 0
    return may & ~(below.flip(dim) if flipped else below)


def textured(picture: Tensor, least: float) -> Tensor:
    """Where a picture [h,w] (NaN: shows nothing) deviates by more than the least around a pixel: bool [h,w]."""
    known = torch.where(picture.isnan(), 0.0, torch.stack([torch.ones_like(picture), picture, picture.square()]))
    share, mean, square = avg_pool2d(known[:, None], 2 * _AROUND + 1, 1, _AROUND)[:, 0]
    return square / share - (mean / share).square() > least**2


def far_around(known: Tensor) -> Tensor:
    """What is known [h,w], and all pixels not far from it: bool [h,w]."""
    return max_pool2d(known.float()[None, None], 2 * _AWAY + 1, 1, _AWAY)[0, 0] > 0
