"""Which pairs of photos are worth comparing: all of a small set, neighbours in time of a video; of many, those taken
near each other, where EXIF says so, and similar ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

EXHAUSTIVE_UP_TO = 300  # photos; beyond that preemptive matching of every pair takes longer than all the rest
NEIGHBOURS = 10  # of a video: so many following frames, and beyond them those 2^k away
LOOP_FRAMES = 100  # of a video: so many frames are compared with each other to find where it came back
SIMILAR = 60  # of a large set: so many photos for each, of smaller ones at most a quarter of all
NEAREST = 40  # of a large set with GPS: so many photos taken nearest to each ...
SIMILAR_TOO = 20  # ... and so many similar ones: where the satellites were hidden, positions are wrong
GPS_SHARE = 0.9  # of the photos that must say where they were taken
GPS_SPREAD = 50.0  # metres across, at least: a phone's position is wrong by several
EARTH = 6_371_000.0  # metres
FEWEST_PARTNERS = 10  # matched in full of a large set ...
IN_FULL = 1100  # ... and of a smaller one so many that this is the number of partners of all its photos
ROWS = 512  # photos that are compared with all others at once
TRANSITIVE = 10  # photos that are compared with each because they share a partner with it

Gps = Sequence["tuple[float, float] | None"]  # latitude and longitude of each photo, degrees

Pair = tuple[int, int]


def ordered(i: int, j: int) -> Pair:
    return min(i, j), max(i, j)


def choose_mode(n: int, is_video: bool, asked: str = "auto", gps: Gps = ()) -> tuple[str, str]:
    """("exhaustive", "sequential", "spatial" or "retrieval", a sentence that says why)."""
    if asked != "auto":
        return asked, f"matching: {asked}, as asked for"
    if is_video:
        return "sequential", f"matching: sequential with loop closure ({n} frames of a video)"
    if n <= EXHAUSTIVE_UP_TO:
        return "exhaustive", f"matching: exhaustive, every photo with every other ({n * (n - 1) // 2} pairs)"
    known = sum(g is not None for g in gps)
    across = spread(gps)
    if known >= GPS_SHARE * n and across >= GPS_SPREAD:
        return "spatial", (
            f"matching: spatial, each of {n} photos with the {NEAREST} taken nearest to it ({known} hold GPS, "
            f"{across:.0f} m across) and the {SIMILAR_TOO} most like it"
        )
    why = f"GPS in {known}" if known < GPS_SHARE * n else f"all within {across:.0f} m, too near for GPS to tell"
    return "retrieval", f"matching: retrieval, each of {n} photos with the {n_similar(n)} most like it ({why})"


def n_similar(n: int) -> int:
    return min(SIMILAR, max(10, n // 4))


def metres(gps: Gps) -> Tensor:
    """[n,2] east and north of the photos' mean; NaN where nothing is stated. Heights are left out: EXIF's are poor."""
    degrees = torch.tensor([g or (math.nan, math.nan) for g in gps], dtype=torch.float64).reshape(-1, 2)
    middle = degrees.nanmean(dim=0)
    east = (degrees[:, 1] - middle[1] + 180) % 360 - 180  # across the date line
    north = degrees[:, 0] - middle[0]
    return torch.stack([east * math.cos(math.radians(float(middle[0]))), north], dim=1) * math.radians(1) * EARTH


def spread(gps: Gps) -> float:
    """Metres across: twice the median distance of the photos from their middle; 0 where none is known."""
    if not any(gps):
        return 0.0
    places = metres(gps)
    places = places[~places[:, 0].isnan()]
    return 2 * float((places - places.median(dim=0).values).norm(dim=1).median())


def nearest_places(gps: Gps, count: int = NEAREST) -> list[Pair]:
    """Each photo with the `count` taken nearest to it, in order of numbers."""
    places = metres(gps)
    found: set[Pair] = set()
    for i in (~places[:, 0].isnan()).nonzero()[:, 0].tolist():
        distances = (places - places[i]).norm(dim=1).nan_to_num(math.inf)
        distances[i] = math.inf
        near = distances.topk(min(count, len(places) - 1), largest=False)
        found |= {ordered(i, j) for j in near.indices[near.values < math.inf].tolist()}
    return sorted(found)


def transitive(partners: dict[int, list[int]], known: set[Pair], count: int = TRANSITIVE) -> list[Pair]:
    """For each photo the `count` that share the most partners with it, of those it was not compared with (known)."""
    found: set[Pair] = set()
    for i, mine in partners.items():
        theirs = (k for j in mine for k in partners.get(j, []))
        shared = Counter(k for k in theirs if k != i and ordered(i, k) not in known)
        found |= {ordered(i, k) for k in sorted(shared, key=lambda k: (-shared[k], k))[:count]}
    return sorted(found)


def neighbours_in_time(n: int, overlap: int = NEIGHBOURS) -> list[Pair]:
    """Each frame with the next `overlap`, and with those 2^k later as long as that adds something."""
    steps = list(range(1, overlap + 1))
    while steps[-1] * 2 <= 8 * overlap:
        steps.append(1 << steps[-1].bit_length())
    return [(i, i + step) for step in sorted(set(steps)) for i in range(n - step)]


def all_pairs(n: int, every: int = 1) -> list[Pair]:
    return [(i, j) for i in range(0, n, every) for j in range(i + every, n, every)]


def loop_candidates(n: int) -> list[Pair]:
    """Pairs of frames far apart in time: every so-many-th with each other."""
    every = max(1, n // LOOP_FRAMES)
    near = set(neighbours_in_time(n))
    return [pair for pair in all_pairs(n, every) if pair not in near]


def retrieve_similar(signatures: Tensor, count: int = SIMILAR) -> list[Pair]:
    """Each photo with the `count` whose signature [n,k] (unit length) is most like its own, in order of numbers."""
    n, found = len(signatures), set()
    for first in range(0, n, ROWS):
        similar = signatures[first : first + ROWS] @ signatures.T
        similar[torch.arange(len(similar)), torch.arange(first, first + len(similar))] = -2
        nearest = similar.topk(min(count, n - 1), dim=1).indices.tolist()
        found |= {ordered(first + i, j) for i, others in enumerate(nearest) for j in others}
    return sorted(found)


def promising(scores: dict[Pair, int], at_least: int, partners: int) -> list[Pair]:
    """The pairs of which preemptive matching found enough, for each photo the best `partners`; in order of numbers."""
    of: dict[int, list[tuple[int, Pair]]] = {}
    for pair, score in scores.items():
        if score >= at_least:
            for i in pair:
                of.setdefault(i, []).append((-score, pair))
    return sorted({pair for found in of.values() for _, pair in sorted(found)[:partners]})


def n_partners(n: int, most: int) -> int:
    """How many partners each of n photos is matched with in full: many photos hold each other with fewer each."""
    return min(most, max(FEWEST_PARTNERS, IN_FULL // max(1, n)))


def left_over(scores: dict[Pair, int], matched: set[Pair], at_least: int, each: int) -> list[Pair]:
    """Of the pairs that were not matched those of which preemptive matching found most, at most `each` of a photo."""
    counts: Counter[int] = Counter()
    found = []
    for pair in sorted(scores, key=lambda p: (-scores[p], p)):
        if scores[pair] >= max(1, at_least) and pair not in matched and all(counts[i] < each for i in pair):
            counts.update(pair)
            found.append(pair)
    return found
