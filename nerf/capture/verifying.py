"""Pairs of photos into COLMAP's database: matches, and which of them one camera motion explains."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.capture import pairs as choose
from nerf.capture.matching import PREEMPTIVE, match, signatures
from nerf.capture.pairs import Pair
from nerf.capture.protocol import counted, in_order, say
from nerf.capture.report import verified_partners
from nerf.io.arrays import on_disk
from nerf.io.files import write_file

PairPoints = dict[Pair, np.ndarray]

KEPT = 100  # photos whose descriptors stay in memory as floats: those of two blocks
BLOCK = 40  # photos; pairs are taken block by block, so that descriptors are read seldom
TRIALS = 2000  # of RANSAC; 10 000 find no more true pairs, and most time goes to those that show nothing in common
UNSEEN = 40  # promising pairs that mapping does not get, to judge it by ...
UNSEEN_EACH = 2  # ... so many of each photo
BEST = 8  # partners of a photo whose own partners it is compared with, too
OF_SIGNATURE = 400  # features of each photo that its signature is made of


def match_pairs(job: dict[str, Any], statistics: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Match and verify all pairs that are worth it and that the database lacks; how many were compared at all, and how
    many of them in full."""
    photos = MatchDatabase(job, statistics)
    settings, threads = job["settings"], job["threads"]
    with ThreadPoolExecutor(threads) as pool:
        mode, sentence = choose.choose_mode(len(photos.names), job["is_video"], job["matching"], photos.gps)
        say(note=sentence)
        certain, candidates = _candidates(mode, photos)
        if settings["at_least"] == 0 and mode == "exhaustive":
            certain, candidates = candidates, []
        most = settings["partners"] // (3 if mode == "sequential" else 1)  # neighbours in time are certain already
        partners = choose.n_partners(len(photos.names), most) if settings["at_least"] else most
        scores = _preemptive_matches(photos, candidates, pool)
        chosen = choose.promising(scores, settings["at_least"], partners)
        _match(photos, {*certain, *chosen}, settings, pool, threads)
        if mode in ("retrieval", "spatial"):  # who shares partners may overlap too, whatever they look like
            known = {*scores, *certain}
            partners_of = photos.partners({*certain, *chosen})
            further = _preemptive_matches(photos, choose.transitive(partners_of, known), pool)
            _match(photos, choose.promising(further, settings["at_least"], partners), settings, pool, threads)
            scores |= further
    matched_now = set(photos.matched())
    left = [[*pair] for pair in choose.left_over(scores, matched_now, settings["at_least"], UNSEEN_EACH)[:UNSEEN]]
    write_file(unseen_file(job), json.dumps(left))
    n, compared, matched = len(photos.names), len({*certain, *scores}), int(photos.database.num_matched_image_pairs())
    say(note=f"compared {compared} of {n * (n - 1) // 2} pairs, {matched} of them in full")
    photos.database.close()
    return {"pairs_compared": compared, "pairs_matched": matched}


def unseen_file(job: dict[str, Any]) -> Path:
    return Path(job["database"]).with_suffix(".unseen.json")


def judged_pairs(job: dict[str, Any]) -> tuple[PairPoints, PairPoints]:
    """({(image id, image id): points [m,4] in both pictures} of the pairs in the database that one camera motion
    explains, the same of promising pairs that are not in it)."""
    statistics = json.loads(Path(job["folder"], "capture", "statistics.json").read_text(encoding="utf-8"))
    photos, settings = MatchDatabase(job, statistics), job["settings"]
    number = {image_id: i for i, image_id in enumerate(photos.ids)}
    seen: PairPoints = {}
    for pair_id, geometry in zip(*photos.database.read_two_view_geometries(), strict=True):
        a, b = (number.get(i, -1) for i in _image_ids(pair_id))
        if min(a, b) >= 0 and len(geometry.inlier_matches):
            seen[photos.ids[a], photos.ids[b]] = photos.points_of((a, b), geometry.inlier_matches)
    unseen: PairPoints = {}
    pairs = [(a, b) for a, b in json.loads(unseen_file(job).read_text(encoding="utf-8"))]
    with ThreadPoolExecutor(job["threads"]) as pool:
        results = in_order(pool, lambda p: (p, *_verified(photos, p, settings)), pairs, 4 * job["threads"])
        for (a, b), _, geometry in counted(results, "asking pairs not used", len(pairs)):
            if len(geometry.inlier_matches):
                unseen[photos.ids[a], photos.ids[b]] = photos.points_of((a, b), geometry.inlier_matches)
    photos.database.close()
    return seen, unseen


def _preemptive_matches(photos: MatchDatabase, candidates: list[Pair], pool: ThreadPoolExecutor) -> dict[Pair, int]:
    """{pair: matches among the features of the largest scale}."""
    if not candidates:
        return {}

    def score(pair: Pair) -> tuple[Pair, int]:  # Wu 2013
        return pair, len(match(photos.largest(pair[0]), photos.largest(pair[1])))

    return dict(counted(in_order(pool, score, candidates, 64), "looking for overlap", len(candidates)))


def _match(
    photos: MatchDatabase, pairs: Iterable[Pair], settings: dict[str, Any], pool: ThreadPoolExecutor, threads: int
) -> None:
    """Match the pairs in full, those that the database lacks."""
    in_blocks = sorted(pairs, key=lambda pair: (pair[0] // BLOCK, pair[1] // BLOCK, *pair))
    wanted = [pair for pair in in_blocks if not photos.has_matches(pair)]
    if not wanted:
        return
    results = in_order(pool, lambda p: (p, *_verified(photos, p, settings)), wanted, 4 * threads)
    for pair, matches, geometry in counted(results, "matching", len(wanted)):
        photos.write(pair, matches, geometry)


def _candidates(mode: str, photos: MatchDatabase) -> tuple[list[Pair], list[Pair]]:
    """(pairs to match in full, pairs for preemptive matching), by number of the photo in order of names."""
    n = len(photos.names)
    if mode == "sequential":
        return choose.neighbours_in_time(n), choose.loop_candidates(n)
    if mode in ("retrieval", "spatial"):
        alike = signatures([photos.of_signature(i) for i in range(n)])
        if mode == "retrieval":
            return [], choose.retrieve_similar(alike, choose.n_similar(n))
        near = choose.nearest_places(photos.gps)
        return [], sorted({*near, *choose.retrieve_similar(alike, choose.SIMILAR_TOO)})
    return [], choose.all_pairs(n)


class MatchDatabase:
    """The photos that have features, by number in order of names, and what the database holds of them."""

    def __init__(self, job: dict[str, Any], statistics: dict[str, dict[str, Any]]) -> None:
        import pycolmap

        self.database = pycolmap.Database.open(job["database"])
        entries = {image.name: image for image in self.database.read_all_images()}
        photos = [p for p in job["photos"] if statistics[p["name"]]["n_features"] >= 2]
        self.names, self.gps = [p["name"] for p in photos], [p.get("gps") for p in photos]
        self.file = Path(job["database"])
        self.ids = [int(entries[name].image_id) for name in self.names]
        self.cameras = [self.database.read_camera(entries[name].camera_id) for name in self.names]
        # everything is read by this thread (SQLite's handle is not shared); of thousands of photos it is gigabytes
        place, read = self.file.parent, self.database
        self._points = on_disk((np.asarray(read.read_keypoints(i), np.float32)[:, :2] for i in self.ids), place)
        self._bytes = on_disk((np.asarray(read.read_descriptors(i).data, np.uint8) for i in self.ids), place)
        self.descriptors = lru_cache(KEPT)(lambda i: torch.from_numpy(self._bytes[i].astype(np.float32)))

    def points(self, i: int) -> np.ndarray:
        """[n,2] float64: where its features are."""
        return np.asarray(self._points[i], np.float64, order="C")

    def largest(self, i: int) -> Tensor:
        """Descriptors [<= PREEMPTIVE,128] of the features of the largest scale."""
        return torch.from_numpy(self._bytes[i][:PREEMPTIVE].astype(np.float32))

    def of_signature(self, i: int) -> Tensor:
        """The same, uint8, of as many as its signature is made of."""
        return torch.from_numpy(np.array(self._bytes[i][:OF_SIGNATURE]))

    def partners(self, among: set[Pair]) -> dict[int, list[int]]:
        """Of each photo those that one camera motion explains features shared with, best first, at most BEST; of these
        pairs only, because the database holds more where an earlier, interrupted call got further."""
        number = {name: i for i, name in enumerate(self.names)}
        return {
            (i := number[name]): [j for j in (number[n] for n in of) if choose.ordered(i, j) in among][:BEST]
            for name, of in verified_partners(self.file).items()
        }

    def matched(self) -> list[Pair]:
        """The pairs that were matched in full, whatever came of it."""
        number = {image_id: i for i, image_id in enumerate(self.ids)}
        ids = (_image_ids(p) for p in self.database.read_two_view_geometries()[0])
        return [choose.ordered(number[a], number[b]) for a, b in ids if a in number and b in number]

    def points_of(self, pair: Pair, matches: np.ndarray) -> np.ndarray:
        """[m,4] float64: (x, y) in the first picture and in the second."""
        return np.concatenate([self.points(i)[matches[:, k]] for k, i in enumerate(pair)], axis=1)

    def has_matches(self, pair: Pair) -> bool:
        return bool(self.database.exists_two_view_geometry(self.ids[pair[0]], self.ids[pair[1]]))

    def write(self, pair: Pair, matches: np.ndarray, geometry: Any) -> None:
        import pycolmap

        a, b = (self.ids[i] for i in pair)
        with pycolmap.DatabaseTransaction(self.database):
            if not self.database.exists_matches(a, b):
                self.database.write_matches(a, b, matches)
            self.database.write_two_view_geometry(a, b, geometry)


def _verified(photos: MatchDatabase, pair: Pair, settings: dict[str, Any]) -> tuple[np.ndarray, Any]:
    """(matches [m,2] uint32, the two-view geometry that COLMAP's RANSAC finds among them)."""
    import pycolmap

    i, j = pair
    matches = match(photos.descriptors(i), photos.descriptors(j), settings["max_ratio"]).numpy().astype(np.uint32)
    if len(matches) < settings["min_inliers"]:
        return matches, pycolmap.TwoViewGeometry()
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = settings["min_inliers"]
    options.ransac.random_seed, options.ransac.max_num_trials = 0, TRIALS
    geometry = pycolmap.estimate_two_view_geometry(
        photos.cameras[i], photos.points(i), photos.cameras[j], photos.points(j), matches, options
    )
    return matches, geometry


def _image_ids(pair_id: int) -> tuple[int, int]:
    import pycolmap

    a, b = pycolmap.pair_id_to_image_pair(pair_id)
    return int(a), int(b)
