"""Whether found poses are right, asked of what was not minimised: pairs of photos whose matches one camera motion
explains by itself, those that mapping never saw among them.

A mean reprojection error proves nothing: it is what was minimised, over what was kept. A folded or bent model, or one
with a wrong focal length, contradicts the pairs that it threw away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.capture.pairs import Pair
from nerf.capture.panoramas import is_sphere
from nerf.datasets.posed import cameras_of
from nerf.datasets.readers.colmap import lens_of, pose_of
from nerf.geometry.epipolar import pixel_rays, sampson_pixels, triangulate

STRONG = 30  # matches that one camera motion explains from which on a pair is evidence (COLMAP's strict two-view limit)
FITS = 2.0  # pixels: a pair fits if half its matches are nearer than this to their epipolar lines
AHEAD = 0.75  # of a pair's matches that must lie in front of both cameras ...
ANGLE = math.radians(1.0)  # ... of those whose rays meet at more than this
ONE_SPOT = 0.1  # degrees: below it the photos were taken from one place (of real sets 0.9 to 1.7, from one spot 0.02)
NARROW = 1.0  # degrees between the rays of matches, below which that is believed
NARROWEST, WIDEST = 8.0, 150.0  # degrees across the longer side that a lens is believed to see
EACH = 5  # the strongest pairs of each photo are asked
RIGHT, WRONG = 0.9, 0.7  # of these that must fit: from here on a model convinces, below it is refused
ENOUGH_UNSEEN, UNSEEN_RIGHT = 10, 0.6  # unseen pairs from which on they are asked, and of these that must fit


@dataclass
class Judgement:
    """What pairs of photos say of a model."""

    n_pairs: int = 0  # of the strongest of each photo, those of which both photos are placed
    n_fit: int = 0
    n_unseen: int = 0  # pairs that mapping did not see
    n_unseen_fit: int = 0
    pixels: float = math.nan  # median over the pairs of the median distance from the epipolar lines
    angle: float = math.nan  # degrees of parallax; a tenth of the pairs have more (median of each)
    one_spot: bool = False  # the photos were taken from one place
    doubt: str = ""  # what is wrong with it, whatever fits

    @property
    def share(self) -> float:
        """Of the pairs that fit; half where none could be asked, which neither convinces nor refutes."""
        return self.n_fit / self.n_pairs if self.n_pairs else 0.5

    @property
    def convinces(self) -> bool:
        unseen = self.n_unseen < ENOUGH_UNSEEN or self.n_unseen_fit >= UNSEEN_RIGHT * self.n_unseen
        return self.share >= RIGHT and unseen and not self.doubt

    @property
    def trust(self) -> float:
        """1 for what convinces, less the more pairs contradict, 0 for what cannot be."""
        return 1.0 if self.convinces else 0.0 if self.doubt else self.share

    @property
    def wrong(self) -> bool:
        return bool(self.doubt) or (self.n_pairs > 0 and self.share < WRONG)

    def __str__(self) -> str:
        text = (
            f"{self.n_fit} of {self.n_pairs} pairs of photos fit it"
            if self.n_pairs
            else "no pair of photos shares enough to ask"
        )
        text += f" (median {self.pixels:.2f} px)" if math.isfinite(self.pixels) else ""
        if self.n_unseen:
            text += f", and {self.n_unseen_fit} of {self.n_unseen} that it was not made from"
        return text + (f"; {self.doubt}" if self.doubt else "")


def judge(model: Any, seen: dict[Pair, np.ndarray], unseen: dict[Pair, np.ndarray], longest: int) -> Judgement:
    """Ask the verified pairs: {(image id, image id): points [m,4] of the matches in both pictures, pixels}. Distances
    are said, and limits hold, for pictures of 1600 pixels at most; longest: the longer side of the model's."""
    found = Judgement(doubt=doubtful_lens(model))
    unit, medians, angles, crossing = 1600 / max(longest, 1600), [], [], []
    for pairs, is_unseen in ((strongest(seen), False), (unseen, True)):
        for pixels, ahead, angle, cross in residuals(model, pairs):
            angles.append(angle)
            crossing.append(cross)
            fits = pixels * unit <= FITS and ahead >= AHEAD
            if is_unseen:
                found.n_unseen, found.n_unseen_fit = found.n_unseen + 1, found.n_unseen_fit + fits
            else:
                found.n_pairs, found.n_fit = found.n_pairs + 1, found.n_fit + fits
                medians.append(pixels * unit)
    if medians:
        found.pixels = float(np.median(medians))
        found.angle = float(np.quantile(angles, 0.9))
        # a plane through a long lens has as little parallax, but its rays cross
        found.one_spot = found.angle < ONE_SPOT and float(np.quantile(crossing, 0.9)) < NARROW
        if found.one_spot:
            found.doubt = (
                found.doubt or "all photos were taken from one spot, from where nothing says how far things are"
            )
    return found


def strongest(pairs: dict[Pair, np.ndarray]) -> dict[Pair, np.ndarray]:
    """Of each photo the few pairs with most matches: what repeats, a carpet or a row of windows, makes weaker pairs
    that no right model fits."""
    of: dict[int, list[tuple[int, Pair]]] = {}
    for pair, points in pairs.items():
        for i in pair:
            of.setdefault(i, []).append((-len(points), pair))
    return {pair: pairs[pair] for found in of.values() for _, pair in sorted(found)[:EACH]}


def doubtful_lens(model: Any) -> str:
    """What no lens is like, in words; empty where all is well."""
    for i in {int(model.images[i].camera_id) for i in model.reg_image_ids()}:
        camera = model.cameras[i]
        if is_sphere(camera):
            continue
        size, focal = max(camera.width, camera.height), float(camera.mean_focal_length())
        angle = 2 * math.degrees(math.atan2(size / 2, focal)) if math.isfinite(focal) and focal > 0 else 180.0
        if not NARROWEST <= angle <= WIDEST:
            return f"a lens that sees {angle:.0f} degrees is not believed"
    return ""


def residuals(model: Any, pairs: dict[Pair, np.ndarray]) -> list[tuple[float, float, float, float]]:
    """(median distance in pixels from the epipolar lines, share in front of both cameras, median parallax, and median
    angle between the rays, in degrees) of each strong pair whose photos are placed; infinity where the model says
    nothing of use."""
    placed = {int(i) for i in model.reg_image_ids()}
    strong = [pair for pair, points in pairs.items() if len(points) >= STRONG and placed.issuperset(pair)]
    if not strong:
        return []
    ids = sorted({i for pair in strong for i in pair})
    number, images = {i: k for k, i in enumerate(ids)}, [model.images[i] for i in ids]
    c2w = torch.from_numpy(np.stack([pose_of(image, str(image.name))[:3] for image in images]))
    cameras = cameras_of(c2w, [lens_of(model.cameras[image.camera_id], str(image.name)) for image in images])
    points = torch.from_numpy(np.concatenate([pairs[pair] for pair in strong]))
    counts = torch.tensor([len(pairs[pair]) for pair in strong])
    rays = [
        pixel_rays(cameras, torch.tensor([number[pair[k]] for pair in strong]).repeat_interleave(counts), points[:, at])
        for k, at in ((0, slice(0, 2)), (1, slice(2, 4)))
    ]
    found, start = [], 0
    for (a, b), count in zip(strong, counts.tolist(), strict=True):
        rows = torch.arange(start, start + count)
        first, second, poses = rays[0][rows], rays[1][rows], (c2w[number[a]], c2w[number[b]])
        pixels = sampson_pixels(first, second, *poses).nan_to_num(nan=math.inf, posinf=math.inf)
        depth_a, depth_b, angle = triangulate(first, second, *poses)
        wide = angle > ANGLE
        ahead = float(((depth_a > 0) & (depth_b > 0))[wide].double().mean()) if bool(wide.any()) else 1.0
        apart = parallax(first.directions, second.directions)
        found.append((float(pixels.median()), ahead, float(apart.median()), math.degrees(float(angle.median()))))
        start += count
    return found


def parallax(first: Tensor, second: Tensor) -> Tensor:
    """Degrees [n] that remain between the unit rays [n,3] of matches after the rotation that brings most of them
    together (Kabsch, reweighted): next to none from one spot, where any two places explain the matches as well."""
    weights, apart = torch.ones(len(first), 1, dtype=first.dtype), torch.full((len(first),), torch.inf)
    for _ in range(5):
        both = (weights * second).T @ first
        if not bool(both.isfinite().all()):  # of a lens that there is not
            break
        u, _, vh = torch.linalg.svd(both)
        u[:, -1] *= torch.det(u @ vh)  # no mirror
        apart = 2 * torch.asin(((first @ (u @ vh).T - second).norm(dim=1) / 2).clamp_max(1))
        weights = 1 / (1 + (apart / apart.median().clamp_min(1e-6)).square()[:, None])
    return torch.rad2deg(apart)
