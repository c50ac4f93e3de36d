"""Scale, north and up from where photos say by GPS that they were taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.geometry.geodesy import Georeference, Lla, enu_of, geocentric_of, geodetic_of
from nerf.geometry.space import Similarity

FEWEST = 5  # photos with GPS
ACROSS = 6.0  # the photos' spread must be so many times the residual: of one spot, GPS says nothing but its noise
FLAT = 0.1  # of the spread along a path that it must have across, and heights known, to say where up is
ROUNDS = 20  # of least squares, each with weights by the residuals of the one before (Cauchy)

Place = tuple[float, float, float | None]  # latitude and longitude in degrees, height in metres


@dataclass
class GpsFit:
    """The similarity from a model's frame to metres east, north and up of a place amid the photos, and how well it
    fits."""

    world: Similarity
    origin: Lla  # that place; its height is 0 where the photos state none
    n: int  # photos with GPS that are placed
    residual: float  # metres, median
    across: float  # metres, twice the median distance from the middle
    sets_up: bool  # or the vertical is that of the cameras
    has_heights: bool  # or the photos' own height (median) counts as 0

    @property
    def georeference(self) -> Georeference:
        """Of the model's frame."""
        return Georeference(self.origin, to_ground=self.world)

    @property
    def convinces(self) -> bool:
        return self.n >= FEWEST and self.across >= ACROSS * self.residual and self.across > 0

    def __str__(self) -> str:
        what = "scale, north and up" if self.sets_up else "scale and north"
        text = f"GPS of {self.n} photos, {self.across:.0f} m across, fits to {self.residual:.2g} m (median)"
        if not self.convinces:
            return f"{text}: not used"
        level = "" if self.has_heights else "; heights are counted from the cameras, for EXIF states none"
        return f"{text}: {what} are set from it{level}"


def fit_gps(centres: Tensor, places: Sequence[Place | None], up: Tensor) -> GpsFit | None:
    """Robustly, from camera centres [n,3] float64 of a model and where the photos were taken; None where too few say.
    up [3]: the vertical by the cameras, which stays where the places lie along a line or hold no heights."""
    known = [i for i, place in enumerate(places) if place is not None]
    if len(known) < FEWEST:
        return None
    some = [place for place in places if place is not None]
    has_heights = all(place[2] is not None for place in some)
    x = centres[known].double()
    there = torch.tensor([(*p[:2], p[2] if has_heights else 0.0) for p in some], dtype=torch.float64)
    lat, lon, _ = geodetic_of(geocentric_of(there).median(dim=0).values[None])[0].tolist()
    origin = (lat, lon, float(there[:, 2].median()))
    y = enu_of(origin).apply(geocentric_of(there))
    spread = torch.linalg.svdvals(y - y.mean(dim=0))
    sets_up = has_heights and bool(spread[1] > FLAT * spread[0])
    upright = _upright(up)
    level = torch.tensor([1.0, 1, 1 if sets_up else 0], dtype=torch.float64)
    if not sets_up:  # seen from above
        x = x @ upright.T
    x, y, raised = x * level, y * level, float(y[:, 2].median())
    weights, fit, errors = torch.ones(len(x), dtype=torch.float64), Similarity.identity(), torch.zeros(len(x))
    for _ in range(ROUNDS):
        fit = _weighted(x, y, weights)
        errors = (fit.apply(x) - y).norm(dim=1)
        weights = 1 / (1 + (errors / errors.median().clamp_min(1e-9)) ** 2)
    if not sets_up:
        fit = Similarity(fit.scale, fit.rotation @ upright, fit.translation)
        up_there = fit.apply(centres[known].double())[:, 2]
        fit.translation[2] += raised - up_there.median()  # of all that is known, it fits the heights best
    middle = y.median(dim=0).values
    across = 2 * float((y - middle).norm(dim=1).median())
    return GpsFit(fit, origin, len(known), float(errors.median()), across, sets_up, has_heights)


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
