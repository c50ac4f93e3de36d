"""Which features of two photos are the same: nearest neighbours among SIFT descriptors, and preemptive matching (Wu
2013) before that.

On a CPU this is the dearest part of structure from motion. A product of matrices in cache-sized pieces does it; most
pairs of photos that show nothing in common are recognised by their few largest features alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 256  # of the product at a time, so that it stays in the cache
PREEMPTIVE = 768  # features, those of the largest scale, compared before all are
MAX_ANGLE = 0.7  # radians between two descriptors that may be the same
_FOR_WORDS = 50_000  # descriptors that the words of signatures are made of
UNIT = 512.0  # length of a SIFT descriptor in bytes


def match(a: Tensor, b: Tensor, max_ratio: float = 0.8) -> Tensor:
    """Pairs of rows [m,2] int64 of descriptors a [n,128] and b [k,128] (float32, length UNIT) that belong together:
    each is the other's nearest, at an angle below max_ratio times that to the second nearest (Lowe 2004, 7.1)."""
    if len(a) < 2 or len(b) < 2:
        return torch.zeros(0, 2, dtype=torch.int64)
    nearest, second = torch.empty(len(a)), torch.empty(len(a))
    index = torch.empty(len(a), dtype=torch.int64)
    largest = torch.full((len(b),), -torch.inf)
    for start in range(0, len(a), ROWS):
        similar = a[start : start + ROWS] @ b.T
        values, indices = similar.topk(2, dim=1)
        stop = start + len(similar)
        nearest[start:stop], second[start:stop], index[start:stop] = values[:, 0], values[:, 1], indices[:, 0]
        torch.maximum(largest, similar.amax(dim=0), out=largest)
    angle, other = ((cosine / UNIT**2).clamp(-1, 1).acos() for cosine in (nearest, second))
    good = (angle <= MAX_ANGLE) & (angle < max_ratio * other) & (nearest == largest[index])
    rows = good.nonzero()[:, 0]
    return torch.stack([rows, index[rows]], dim=1)


def signatures(descriptors: list[Tensor], n_words: int = 64, seed: int = 0) -> Tensor:
    """One vector [n, n_words * 128] of unit length a photo, of some of its descriptors [*,128] (uint8 or floats), alike
    for photos that show the same (VLAD, Jegou 2010); the words are the centres of a k-means of some of them all."""
    g = torch.Generator().manual_seed(seed)
    ends = torch.tensor([len(own) for own in descriptors]).cumsum(0)
    taken = torch.randperm(int(ends[-1]), generator=g)[:_FOR_WORDS]
    owner = torch.searchsorted(ends, taken, right=True)
    rows = torch.empty(len(taken), descriptors[0].shape[1])
    for i in owner.unique().tolist():  # never all of them as floats at once
        mine = (owner == i).nonzero()[:, 0]
        rows[mine] = descriptors[i][taken[mine] - ends[i] + len(descriptors[i])].float()
    words = rows[torch.randperm(len(rows), generator=g)[: min(n_words, len(rows))]].clone()
    for _ in range(8):
        nearest = torch.cdist(rows, words).argmin(dim=1)
        counts = torch.zeros(len(words)).index_add_(0, nearest, torch.ones(len(rows)))
        sums = torch.zeros_like(words).index_add_(0, nearest, rows)
        words = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), words)
    vectors = torch.zeros(len(descriptors), len(words), rows.shape[1])
    for vector, own in zip(vectors, (some.float() for some in descriptors), strict=True):
        nearest = torch.cdist(own, words).argmin(dim=1)
        vector.index_add_(0, nearest, own - words[nearest])
        vector /= vector.norm(dim=1, keepdim=True).clamp_min(1e-12)  # no word may dominate
        vector /= vector.norm().clamp_min(1e-12)
    return vectors.flatten(1)
