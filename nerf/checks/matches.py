"""Pairs of photos that show the same things: which to compare, and what of it one camera motion explains by itself."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.capture.matching import match, signatures
from nerf.capture.pairs import Pair, ordered
from nerf.checks.looks import Look
from nerf.geometry.cameras import Cameras
from nerf.geometry.epipolar import pixel_rays
from nerf.io.machine import usable_cores

OF_SIGNATURE = 150  # features of each photo that tell which photos look alike
FEW, N_OF_MANY = 60, 800  # of more photos than that, so many features of each are compared: pairs cost their square
PREEMPTIVE = 256  # features, those of the largest scale, compared before all are (Wu 2013)
ALL_UP_TO = 24  # photos, of which every pair is compared
SIMILAR, IN_NAMES, IN_SPACE = 8, 2, 3  # candidates for each photo: alike, next in order of names, next to its camera
KEPT = 500  # photos whose descriptors stay in memory as floats
ROWS = 512  # photos that are compared with all others at once
PARTNERS = 2  # for each photo, matched in full: those with most in common, and one more seen from elsewhere
FEWEST = 20  # matches that one camera motion explains, for a pair to say anything
SHARE = 0.3  # of its matches that have to agree on that motion
WEAK, WEAK_SHARE = 15, 0.5  # the same of pairs that count as half a one, where a photo has few (15: as for COLMAP)
ERROR = 0.006  # of the longer side: distance from the epipolar lines of a pair's own motion


@dataclass
class Matched:
    """Two photos and what was matched between them, in pixels of the reduced pictures."""

    a: int
    b: int
    uv_a: np.ndarray  # [m,2] float64
    uv_b: np.ndarray
    rows_a: np.ndarray  # [m] which feature
    rows_b: np.ndarray
    inliers: np.ndarray  # [m] bool, explained by one motion of a camera, whatever the given cameras say

    @property
    def is_strong(self) -> bool:
        n = int(self.inliers.sum())
        return n >= FEWEST and n >= SHARE * len(self.inliers)

    @property
    def is_weak(self) -> bool:
        n = int(self.inliers.sum())
        return not self.is_strong and n >= WEAK and n >= WEAK_SHARE * len(self.inliers)


@dataclass
class Memory:
    """What was matched already, of the same pictures."""

    pairs: dict[Pair, Matched] = field(default_factory=dict)
    quick: dict[Pair, int] = field(default_factory=dict)  # matches of the largest features
    signature: Tensor | None = None  # [n,k]

    def without(self, changed: set[int]) -> Memory:
        """What stays true once these pictures are others."""
        if not changed:
            return self
        pairs = {pair: found for pair, found in self.pairs.items() if not changed & set(pair)}
        return Memory(pairs, {pair: score for pair, score in self.quick.items() if not changed & set(pair)})


@dataclass
class Matcher:
    """Matches pairs on demand and remembers them."""

    looks: list[Look]
    cameras: Cameras  # in pixels of the reduced pictures
    until: float  # time.perf_counter() at which no more is begun
    memory: Memory = field(default_factory=Memory)
    _floats: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        used = [look.used if look.used.sum() >= 2 * FEWEST else np.ones(len(look.used), bool) for look in self.looks]
        most = None if len(used) <= FEW else N_OF_MANY
        self.rows = [np.flatnonzero(u)[:most] for u in used]

    def descriptors(self, i: int) -> Tensor:
        found = self._floats.get(i)
        if found is None:
            if len(self._floats) >= KEPT:
                self._floats.clear()
            found = self._floats[i] = torch.from_numpy(self.looks[i].descriptors[self.rows[i]]).float()
        return found

    def alike(self, photos: Sequence[int]) -> Tensor:
        """[k,n] how much k photos look like each: -2 for itself, and for photos without features."""
        memory = self.memory
        if memory.signature is None:
            some = [rows[:OF_SIGNATURE] for rows in self.rows]
            bytes_of = [look.descriptors[rows] for look, rows in zip(self.looks, some, strict=True)]
            memory.signature = signatures([torch.from_numpy(own) for own in bytes_of], 32)
        asked = torch.tensor(photos, dtype=torch.int64)
        similar = memory.signature[asked] @ memory.signature.T
        empty = torch.tensor([len(rows) < FEWEST for rows in self.rows])
        similar[empty[asked]] = similar[:, empty] = -2
        return similar.scatter_(1, asked[:, None], -2.0)

    def candidates(self) -> list[Pair]:
        """Pairs worth a quick look: alike, next to each other in order of names, or by the given cameras."""
        n = len(self.looks)
        if n <= ALL_UP_TO:
            return [(i, j) for i in range(n) for j in range(i + 1, n)]
        found = {(i, i + k) for k in range(1, IN_NAMES + 1) for i in range(n - k)}
        centres, forward = self.cameras.centres, self.cameras.forward
        some = centres[:: max(1, n // ROWS)]
        usual = torch.cdist(some, some).median().clamp_min(1e-12)
        for first in range(0, n, ROWS):  # never all pairs at once
            rows = range(first, min(first + ROWS, n))
            places = self.alike(rows).topk(SIMILAR, dim=1).indices.tolist()
            distance = torch.cdist(centres[first : rows.stop], centres) / usual
            distance += 2 * (forward[first : rows.stop] @ forward.T).clamp(-1, 1).acos()
            distance[torch.arange(len(rows)), torch.tensor(rows)] = torch.inf
            near = distance.topk(IN_SPACE, dim=1, largest=False).indices.tolist()
            found |= {ordered(i, j) for i, a, b in zip(rows, places, near, strict=True) for j in (*a, *b)}
        empty = {i for i in range(n) if len(self.rows[i]) < FEWEST}
        return sorted(pair for pair in found if not empty & set(pair))

    def choose(self) -> list[Pair]:
        """For each photo the partners with most in common, and one more that is seen from elsewhere."""
        candidates = self.candidates()
        with ThreadPoolExecutor(usable_cores()) as pool:
            scores = dict(zip(candidates, pool.map(self._quick, candidates), strict=True))
        of: dict[int, list[tuple[int, Pair]]] = {}
        for pair, score in scores.items():
            if score >= 5:
                for i in pair:
                    of.setdefault(i, []).append((-score, pair))
        forward = self.cameras.forward
        chosen: dict[Pair, int] = {}  # -> in which round, so that whatever there is time for is spread over all photos
        for found in of.values():
            found.sort()
            best = [pair for _, pair in found[:PARTNERS]]
            rest = [p for _, p in found[PARTNERS:12] if float(forward[p[0]] @ forward[p[1]]) < 0.985]
            best += rest[:1] or [pair for _, pair in found[PARTNERS : PARTNERS + 1]]
            for rank, pair in enumerate(best):
                chosen[pair] = min(rank, chosen.get(pair, rank))
        return sorted(chosen, key=lambda pair: (chosen[pair], pair))

    def _quick(self, pair: Pair) -> int:
        known = self.memory.quick
        if pair not in known and time.perf_counter() < self.until:
            known[pair] = len(match(self.descriptors(pair[0])[:PREEMPTIVE], self.descriptors(pair[1])[:PREEMPTIVE]))
        return known.get(pair, 0)

    def match(self, pairs: Iterable[Pair]) -> list[Matched]:
        """The pairs matched in full, as far as there is time; known ones again."""
        pairs = list(pairs)
        new = [pair for pair in pairs if pair not in self.memory.pairs]
        with ThreadPoolExecutor(usable_cores()) as pool:
            for pair, found in zip(new, pool.map(self._full, new), strict=True):
                if found is not None:
                    self.memory.pairs[pair] = found
        return [self.memory.pairs[pair] for pair in pairs if pair in self.memory.pairs]

    def _full(self, pair: Pair) -> Matched | None:
        if time.perf_counter() > self.until:
            return None
        a, b = pair
        rows = match(self.descriptors(a), self.descriptors(b)).numpy()
        rows_a, rows_b = self.rows[a][rows[:, 0]], self.rows[b][rows[:, 1]]
        uv_a, uv_b = self.looks[a].points[rows_a].astype(np.float64), self.looks[b].points[rows_b].astype(np.float64)
        # a feature with two orientations is one place
        _, once = np.unique(np.concatenate([uv_a, uv_b], axis=1).round(2), axis=0, return_index=True)
        once = np.sort(once)
        uv_a, uv_b, rows_a, rows_b = uv_a[once], uv_b[once], rows_a[once], rows_b[once]
        inliers = self.own_motion(a, b, uv_a, uv_b)
        return Matched(a, b, uv_a, uv_b, rows_a, rows_b, inliers)

    def own_motion(self, a: int, b: int, uv_a: np.ndarray, uv_b: np.ndarray) -> np.ndarray:
        """[m] bool: the matches that one epipolar geometry explains, found without the given poses and focal lengths
        (distortion alone is taken from the given lenses)."""
        import pycolmap

        nothing = np.zeros(len(uv_a), bool)
        if len(uv_a) < FEWEST:
            return nothing
        (ideal_a, ahead_a), (ideal_b, ahead_b) = self._ideal(a, uv_a), self._ideal(b, uv_b)
        rows = np.flatnonzero(ahead_a & ahead_b)
        if len(rows) < FEWEST:
            return nothing
        options = pycolmap.RANSACOptions()
        sizes = [max(int(self.cameras.widths[i]), int(self.cameras.heights[i])) for i in (a, b)]
        options.max_error, options.random_seed, options.max_num_trials = ERROR * max(sizes), 0, 2000
        options.confidence = 0.999
        found: Any = pycolmap.estimate_fundamental_matrix(ideal_a[rows], ideal_b[rows], options)
        if found is None:
            return nothing
        nothing[rows] = np.asarray(found["inlier_mask"], bool)
        return nothing

    def _ideal(self, i: int, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(pixels as a lens without distortion would show them, whether there are such)."""
        camera = self.cameras.subset([i])
        if not bool((camera.distortion != 0).any()) and int(camera.models[0]) <= 1:
            return uv, np.ones(len(uv), bool)
        d = pixel_rays(camera, 0, torch.from_numpy(uv)).directions
        ahead = -d[:, 2] > 0.2
        z = torch.where(ahead, -d[:, 2], torch.ones_like(d[:, 2]))
        ideal = torch.stack([camera.fx * d[:, 0] / z + camera.cx, -camera.fy * d[:, 1] / z + camera.cy], dim=1)
        return ideal.numpy(), ahead.numpy()
