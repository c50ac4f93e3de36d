"""The order in which a flight visits the input cameras."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from nerf.geometry.cameras import Cameras


def walking_order(cameras: Cameras) -> Tensor:
    """Indices [n]: as given, unless a tour from neighbour to neighbour is much shorter."""
    origins = cameras.centres.double()
    n = len(origins)
    as_given = list(range(n))
    if n < 4:
        return torch.tensor(as_given)
    apart = torch.cdist(origins, origins).tolist()
    # Begin at the camera farthest from the middle, go to the nearest unvisited one, then undo crossings (2-opt).
    tour = [int((origins - origins.mean(dim=0)).norm(dim=1).argmax())]
    left = set(as_given) - set(tour)
    while left:
        tour.append(min(left, key=apart[tour[-1]].__getitem__))
        left.remove(tour[-1])
    for _ in range(10 if n <= 300 else 0):
        improved = False
        for i in range(n - 2):
            for j in range(i + 2, n):
                a, b, c = tour[i], tour[i + 1], tour[j]
                change = apart[a][c] - apart[a][b]
                if j + 1 < n:
                    change += apart[b][tour[j + 1]] - apart[c][tour[j + 1]]
                if change < -1e-12:
                    tour[i + 1 : j + 1] = tour[i + 1 : j + 1][::-1]
                    improved = True
        if not improved:
            break

    def length(order: list[int]) -> float:
        return sum(apart[a][b] for a, b in itertools.pairwise(order))

    return torch.tensor(as_given if length(as_given) < 1.7 * length(tour) else tour)
