"""Scale, north and up from where photos say by GPS that they were taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.capture.pairs import metres
from nerf.geometry.space import Similarity

FEWEST = 5  # photos with GPS
ACROSS = 6.0  # the photos' spread must be so many times the residual: of one spot, GPS says nothing but its noise
FLAT = 0.1  # of the spread along a path that it must have across, and heights known, to say where up is
ROUNDS = 20  # of least squares, each with weights by the residuals of the one before (Cauchy)

Place = tuple[float, float, float | None]  # latitude and longitude in degrees, height in metres


@dataclass
class GpsFit:
    """The similarity from a model's frame to metres east, north and up of the photos' middle, and how well it fits."""

    world: Similarity
    n: int  # photos with GPS that are placed
    residual: float  # metres, median
    across: float  # metres, twice the median distance from the middle
    sets_up: bool  # or the vertical is that of the cameras

    @property
    def convinces(self) -> bool:
        return self.n >= FEWEST and self.across >= ACROSS * self.residual and self.across > 0

    def __str__(self) -> str:
        what = "scale, north and up" if self.sets_up else "scale and north"
        text = f"GPS of {self.n} photos, {self.across:.0f} m across, fits to {self.residual:.2g} m (median)"
        return f"{text}: {what} are set from it" if self.convinces else f"{text}: not used"


def fit_gps(centres: Tensor, places: Sequence[Place | None], up: Tensor) -> GpsFit | None:
    """Robustly, from camera centres [n,3] float64 of a model and where the photos were taken; None where too few say.
    up [3]: the vertical by the cameras, which stays where the places lie along a line or hold no heights."""
    known = [i for i, place in enumerate(places) if place is not None]
    if len(known) < FEWEST:
        return None
    some = [place for place in places if place is not None]
    x = centres[known].double()
    y = torch.zeros(len(some), 3, dtype=torch.float64)
    y[:, :2] = metres([place[:2] for place in some])
    heights = [place[2] for place in some]
    sets_up = all(h is not None for h in heights)
    if sets_up:
        y[:, 2] = torch.tensor([float(h or 0) for h in heights], dtype=torch.float64)
        y[:, 2] -= y[:, 2].median()
        spread = torch.linalg.svdvals(y - y.mean(dim=0))
        sets_up = bool(spread[1] > FLAT * spread[0])
    upright = _upright(up)
    if not sets_up:  # seen from above
        x, y = x @ upright.T * torch.tensor([1.0, 1, 0], dtype=torch.float64), y * torch.tensor([1.0, 1, 0])
    weights, fit, errors = torch.ones(len(x), dtype=torch.float64), Similarity.identity(), torch.zeros(len(x))
    for _ in range(ROUNDS):
        fit = _weighted(x, y, weights)
        errors = (fit.apply(x) - y).norm(dim=1)
        weights = 1 / (1 + (errors / errors.median().clamp_min(1e-9)) ** 2)
    if not sets_up:
        fit = Similarity(fit.scale, fit.rotation @ upright, fit.translation)
    middle = y.median(dim=0).values
    across = 2 * float((y - middle).norm(dim=1).median())
    return GpsFit(fit, len(known), float(errors.median()), across, sets_up)


def _upright(up: Tensor) -> Tensor:
    """A rotation [3,3] that takes up to z."""
    up = up.double() / up.double().norm()
    other = torch.eye(3, dtype=torch.float64)[int(up.abs().argmin())]
    right = torch.nn.functional.normalize(torch.linalg.cross(other, up), dim=0)
    return torch.stack([right, torch.linalg.cross(up, right), up])


def _weighted(x: Tensor, y: Tensor, weights: Tensor) -> Similarity:
    """The similarity of least squares from x to y [n,3] (Umeyama 1991)."""
    w = weights / weights.sum()
    mean_x, mean_y = (w[:, None] * x).sum(dim=0), (w[:, None] * y).sum(dim=0)
    u, s, vt = torch.linalg.svd((w[:, None] * (y - mean_y)).T @ (x - mean_x))
    signs = torch.ones(3, dtype=torch.float64)
    signs[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = u @ torch.diag(signs) @ vt
    variance = float((w[:, None] * (x - mean_x) ** 2).sum())
    scale = float((s * signs).sum()) / variance if variance > 0 else math.nan
    return Similarity(scale, rotation, mean_y - scale * rotation @ mean_x)
