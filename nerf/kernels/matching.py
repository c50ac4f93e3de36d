"""How alike the patches of a picture are in other pictures, warped there by planes: normalised cross-correlation."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nerf.kernels import bindings

MAX_BEST, MAX_TAPS = 8, 144  # as cpu_matching.h has them


@dataclass(frozen=True)
class MatchSource:
    """A picture to compare with. A reference pixel (u, v) of inverse depth q shows what is here at homography (u, v, 1)
    + q epipole, in homogeneous pixels."""

    homography: Tensor  # [3,3] float64, of what is infinitely far
    epipole: Tensor  # [3] float64
    picture: Tensor  # [h,w] float32 grey, NaN where it shows nothing; at least 2 pixels wide and high


class MatchWindow(NamedTuple):
    """The patch and what is made of its views."""

    radius: int = 4  # pixels; taps are every `step`
    step: int = 2
    best: int = 3  # so many views, those most alike, are averaged: the others may be occluded
    color: float = 0.1  # standard deviation of a tap's weight: of the grey's difference from the middle's
    space: float = 3.0  # and of the distance, pixels
    noise: float = 0.004  # standard deviation of grey that is no texture


def match_planes(
    picture: Tensor, sources: list[MatchSource], planes: Tensor, window: MatchWindow, native: bool
) -> Tensor:
    """Cost [h,w], from 0 (alike) to 1, of planes [3,h,w] at the pixels of a picture [h,w] (grey, NaN: shows nothing).

    A plane is the inverse depth at a pixel's centre and its change by a pixel to the right and down, which is the same
    everywhere on it. The cost is the mean of the `best` lowest of the views': 1 - NCC, at most 1. Taps are weighted
    bilaterally; `noise` is added to the deviations, and a patch of a smaller one has cost 1, as a view has that shows
    less than half of it. Sources are read in 254 steps of grey from 0 to 1. Not differentiable. Source: Bleyer et al.,
    "PatchMatch Stereo", 2011; weights as Schoenberger et al., "Pixelwise View Selection for Unstructured Multi-View
    Stereo", 2016, section 3.
    """
    if picture.dim() != 2 or picture.dtype != torch.float32:
        raise ValueError(f"picture: expected [h,w] float32, got {picture.dtype} {list(picture.shape)}")
    if planes.shape != (3, *picture.shape) or planes.dtype != torch.float32:
        raise ValueError(f"planes: expected {[3, *picture.shape]} float32, got {planes.dtype} {list(planes.shape)}")
    for source in sources:
        there = source.picture
        if there.dim() != 2 or there.dtype != torch.float32 or min(there.shape) < 2:
            raise ValueError(
                f"sources: expected pictures [h,w] float32 from 2x2, got {there.dtype} {list(there.shape)}"
            )
        if source.homography.shape != (3, 3) or source.epipole.shape != (3,):
            raise ValueError("sources: expected homographies [3,3] and epipoles [3]")
    taps = len(range(-window.radius, window.radius + 1, max(window.step, 1))) ** 2
    if window.radius < 0 or window.step < 1 or taps > MAX_TAPS or not 1 <= window.best <= MAX_BEST:
        raise ValueError(f"window: expected at most {MAX_TAPS} taps and {MAX_BEST} views, got {window}")
    return (_native if native else _reference)(picture, sources, planes, window)


def _native(picture: Tensor, sources: list[MatchSource], planes: Tensor, window: MatchWindow) -> Tensor:
    p = bindings.Pointers()
    table = (bindings.MatchSourceDesc * len(sources))()
    for entry, source in zip(table, sources, strict=True):
        entry.homography[:] = source.homography.flatten().tolist()
        entry.epipole[:] = source.epipole.tolist()
        entry.height, entry.width = source.picture.shape
        entry.picture = p("picture", source.picture, (None, None))
    costs = torch.empty_like(picture)
    bindings.native().nerf_match_planes(
        *(p("picture", picture, (None, None)), *picture.shape, table, len(sources)),
        *(p("planes", planes, (3, None, None)), ctypes.byref(bindings.MatchWindowDesc(*window)), costs.data_ptr()),
        torch.get_num_threads(),
    )
    return costs


def _reference(picture: Tensor, sources: list[MatchSource], planes: Tensor, window: MatchWindow) -> Tensor:
    h, w = picture.shape
    reach = window.radius
    padded = torch.full((h + 2 * reach, w + 2 * reach), torch.nan)
    padded[reach : reach + h, reach : reach + w] = picture
    offsets = range(-reach, reach + 1, window.step)
    dy, dx = (t.flatten() for t in torch.meshgrid(torch.tensor(offsets), torch.tensor(offsets), indexing="ij"))
    here = torch.stack([padded[reach + j : reach + j + h, reach + i : reach + i + w] for j in offsets for i in offsets])
    here = here - picture  # [taps,h,w]
    apart = (dx.square() + dy.square())[:, None, None] / window.space**2
    weights = torch.where(here.isnan(), 0.0, torch.exp(-0.5 * (here.square() / window.color**2 + apart)))
    here = here.nan_to_num(nan=0.0)
    dx, dy = dx[:, None, None].float(), dy[:, None, None].float()
    u, v = torch.arange(w) + 0.5 + dx, (torch.arange(h) + 0.5)[:, None] + dy
    q = planes[0] + planes[1] * dx + planes[2] * dy
    total = weights.sum(dim=0)
    spread = (weights * (here - (weights * here).sum(dim=0) / total).square()).sum(dim=0)
    costs = []
    for source in sources:
        to, shift = source.homography.float(), source.epipole.float()
        x, y, ahead = (to[c, 0] * u + to[c, 1] * v + to[c, 2] + shift[c] * q for c in range(3))
        there, inside = _bilinear(source.picture, x / ahead - 0.5, y / ahead - 0.5)
        there = there - picture
        shown = inside & (ahead > 0) & ~there.isnan()
        share, there = torch.where(shown, weights, 0.0), torch.where(shown, there, 0.0)
        n = share.sum(dim=0)
        mean_a, mean_b, aa, bb, ab = (
            (share * t).sum(dim=0) / n for t in (here, there, here.square(), there.square(), here * there)
        )
        var_a, var_b = (aa - mean_a.square()).clamp_min(0), (bb - mean_b.square()).clamp_min(0)
        ncc = (ab - mean_a * mean_b) / ((var_a + window.noise**2) * (var_b + window.noise**2)).sqrt()
        costs.append(torch.where(n > 0.5 * total, (1 - ncc).clamp_max(1), 1.0))
    if not costs:
        return torch.ones(h, w)
    mean = torch.stack(costs).sort(dim=0).values[: window.best].mean(dim=0)
    return torch.where(spread > total * window.noise**2, mean, 1.0)


def _bilinear(picture: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Values at pixel indices, of any shape, and which lie between the centres of the picture's pixels."""
    h, w = picture.shape
    picture = (picture.clamp(0, 1) * 254 + 0.5).floor() / 254
    inside = (x >= 0) & (y >= 0) & (x <= w - 1) & (y <= h - 1)
    x, y = torch.where(inside, x, 0.0), torch.where(inside, y, 0.0)
    x0, y0 = x.clamp_max(w - 2).long(), y.clamp_max(h - 2).long()
    fx, fy = x - x0, y - y0
    upper = picture[y0, x0] * (1 - fx) + picture[y0, x0 + 1] * fx
    lower = picture[y0 + 1, x0] * (1 - fx) + picture[y0 + 1, x0 + 1] * fx
    return upper * (1 - fy) + lower * fy, inside
