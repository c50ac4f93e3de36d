"""Which pairs of photos are worth comparing: all of a small set, neighbours in time of a video, look-alikes of many."""

from __future__ import annotations

from torch import Tensor

EXHAUSTIVE_UP_TO = 300  # photos; beyond that the quick look at every pair takes longer than all the rest
NEIGHBOURS = 10  # of a video: so many following frames, and beyond them those 2^k away
LOOP_FRAMES = 100  # of a video: so many frames are compared with each other to find where it came back
LOOK_ALIKES = 60  # of a large set: so many photos for each

Pair = tuple[int, int]


def choose_mode(n: int, is_video: bool, asked: str = "auto") -> tuple[str, str]:
    """("exhaustive", "sequential" or "retrieval", a sentence that says why)."""
    if asked != "auto":
        return asked, f"matching: {asked}, as asked for"
    if is_video:
        return "sequential", f"matching: sequential with loop closure ({n} frames of a video)"
    if n <= EXHAUSTIVE_UP_TO:
        return "exhaustive", f"matching: exhaustive, every photo with every other ({n * (n - 1) // 2} pairs)"
    return "retrieval", f"matching: retrieval, each of {n} photos with the {LOOK_ALIKES} most like it"


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


def look_alikes(signatures: Tensor, count: int = LOOK_ALIKES) -> list[Pair]:
    """Each photo with the `count` whose signature [n,k] (unit length) is most like its own, in order of numbers."""
    similar = signatures @ signatures.T
    similar.fill_diagonal_(-2)
    nearest = similar.topk(min(count, len(similar) - 1), dim=1).indices.tolist()
    return sorted({(min(i, j), max(i, j)) for i, others in enumerate(nearest) for j in others})


def promising(scores: dict[Pair, int], at_least: int, partners: int) -> list[Pair]:
    """The pairs whose quick look found enough, for each photo the best `partners`; in order of numbers."""
    of: dict[int, list[tuple[int, Pair]]] = {}
    for pair, score in scores.items():
        if score >= at_least:
            for i in pair:
                of.setdefault(i, []).append((-score, pair))
    return sorted({pair for found in of.values() for _, pair in sorted(found)[:partners]})
