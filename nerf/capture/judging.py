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

from nerf.capture.pairs import Pair

STRONG = 30  # matches that one camera motion explains from which on a pair is evidence (COLMAP's strict two-view limit)
FITS = 2.0  # pixels: a pair fits if half its matches are nearer than this to their epipolar lines
AHEAD = 0.75  # of a pair's matches that must lie in front of both cameras ...
ANGLE = math.radians(1.0)  # ... of those whose rays meet at more than this
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
    lens: str = ""  # what is wrong with it

    @property
    def share(self) -> float:
        """Of the pairs that fit; half where none could be asked, which neither convinces nor refutes."""
        return self.n_fit / self.n_pairs if self.n_pairs else 0.5

    @property
    def convinces(self) -> bool:
        unseen = self.n_unseen < ENOUGH_UNSEEN or self.n_unseen_fit >= UNSEEN_RIGHT * self.n_unseen
        return self.share >= RIGHT and unseen and not self.lens

    @property
    def trust(self) -> float:
        """1 for what convinces, less the more pairs contradict, 0 for a lens that there is not."""
        return 1.0 if self.convinces else 0.0 if self.lens else self.share

    @property
    def wrong(self) -> bool:
        return bool(self.lens) or (self.n_pairs > 0 and self.share < WRONG)

    def __str__(self) -> str:
        text = (
            f"{self.n_fit} of {self.n_pairs} pairs of photos fit it"
            if self.n_pairs
            else "no pair of photos shares enough to ask"
        )
        text += f" (median {self.pixels:.2f} px)" if math.isfinite(self.pixels) else ""
        if self.n_unseen:
            text += f", and {self.n_unseen_fit} of {self.n_unseen} that it was not made from"
        return text + (f"; {self.lens}" if self.lens else "")


def judge(model: Any, seen: dict[Pair, np.ndarray], unseen: dict[Pair, np.ndarray], longest: int) -> Judgement:
    """Ask the verified pairs: {(image id, image id): points [m,4] of the matches in both pictures, pixels}. Distances
    are said, and limits hold, for pictures of 1600 pixels at most; longest: the longer side of the model's."""
    found = Judgement(lens=doubtful_lens(model))
    unit, medians = 1600 / max(longest, 1600), []
    for pairs, is_unseen in ((strongest(seen), False), (unseen, True)):
        for (a, b), points in pairs.items():
            if len(points) < STRONG or not (_placed(model, a) and _placed(model, b)):
                continue
            pixels, ahead = _pair_residuals(model.images[a], model.images[b], points)
            median = float(np.median(pixels)) * unit
            fits = median <= FITS and ahead >= AHEAD
            if is_unseen:
                found.n_unseen, found.n_unseen_fit = found.n_unseen + 1, found.n_unseen_fit + fits
            else:
                found.n_pairs, found.n_fit = found.n_pairs + 1, found.n_fit + fits
                medians.append(median)
    if medians:
        found.pixels = float(np.median(medians))
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
        size, focal = max(camera.width, camera.height), float(camera.mean_focal_length())
        angle = 2 * math.degrees(math.atan2(size / 2, focal)) if math.isfinite(focal) and focal > 0 else 180.0
        if not NARROWEST <= angle <= WIDEST:
            return f"a lens that sees {angle:.0f} degrees is not believed"
    return ""


def _placed(model: Any, image_id: int) -> bool:
    return image_id in model.images and bool(model.images[image_id].has_pose)


def _pair_residuals(a: Any, b: Any, points: np.ndarray) -> tuple[np.ndarray, float]:
    """(Sampson distances [m] in pixels, inf where there is none; the share of the matches in front of both cameras)."""
    x, y = (_rays(image, points[:, k : k + 2]) for image, k in ((a, 0), (b, 2)))
    motion = (b.cam_from_world() * a.cam_from_world().inverse()).matrix()
    rotation, t = motion[:, :3], motion[:, 3]
    length = float(np.linalg.norm(t))
    if not (np.isfinite(motion).all() and np.isfinite(x).all() and np.isfinite(y).all() and length > 0):
        return np.full(len(points), np.inf), 0.0
    cross = np.cross(np.eye(3), t / length)  # rows e_i x t: the transpose of [t]x, whose sign does not matter here
    essential = cross.T @ rotation
    in_b, in_a = x @ essential.T, y @ essential
    slope = (in_b[:, :2] ** 2).sum(axis=1) / b.camera.mean_focal_length() ** 2
    slope += (in_a[:, :2] ** 2).sum(axis=1) / a.camera.mean_focal_length() ** 2
    pixels = np.abs((in_b * y).sum(axis=1)) / np.sqrt(np.maximum(slope, 1e-30))
    return pixels, _share_ahead(x, y, rotation, t)


def _rays(image: Any, points: np.ndarray) -> np.ndarray:
    """[m,3] of homogeneous normalised coordinates."""
    found = np.asarray(image.camera.cam_from_img(np.ascontiguousarray(points)), np.float64)
    return np.concatenate([found, np.ones((len(found), 1))], axis=1) if found.shape[1] == 2 else found


def _share_ahead(x: np.ndarray, y: np.ndarray, rotation: np.ndarray, t: np.ndarray) -> float:
    """Of the matches whose rays meet at an angle, those that meet in front of both cameras; 1 where none does."""
    d, e = x @ rotation.T, y  # both in the second camera's frame; d starts at t, e at 0
    d, e = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (d, e))
    cosine = np.clip((d * e).sum(axis=1), -1, 1)
    sine2 = 1 - cosine**2
    wide = sine2 > math.sin(ANGLE) ** 2
    if not wide.any():
        return 1.0
    d, e, cosine, sine2 = d[wide], e[wide], cosine[wide], sine2[wide]
    along_d, along_e = d @ -t, e @ -t
    ahead = (along_d - cosine * along_e > 0) & (cosine * along_d - along_e > 0)
    return float(ahead.mean())
