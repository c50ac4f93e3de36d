"""The cases of marching cubes, derived from first principles when first asked for; no published table is used.

Bit k of a case says that corner k of the cell lies inside; it sits at x = k & 1, y = k >> 1 & 1, z = k >> 2 & 1. On
every face of the cell the surface is a set of segments between crossed edges. Where a face has four crossings, its two
inside corners are cut off from each other: the two cells that share it make the same choice, and the surface closes.
Segments are directed (inside on one fixed hand), so they chain into loops; each is cut into triangles without a
diagonal that lies in a face of the cell, which the neighbour might use too, so that an edge had four triangles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

CORNERS = np.array([[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(8)])  # [8,3] x, y, z


@dataclass(frozen=True, eq=False)
class Table:
    """Triangles of the 256 cases. Edge e runs along axis `edge_axis[e]` from corner `edge_base[e]` (x, y, z)."""

    edge_axis: NDArray[np.int64]  # [12]
    edge_base: NDArray[np.int64]  # [12,3]
    n_triangles: NDArray[np.int64]  # [256]
    first_triangle: NDArray[np.int64]  # [256] row in `triangles` where a case begins
    triangles: NDArray[np.int64]  # [t,3] edges; counter-clockwise seen from outside


def _edges() -> list[tuple[int, int]]:
    return [(a, a | 1 << axis) for axis in range(3) for a in range(8) if not a >> axis & 1]


def _faces() -> list[list[int]]:
    """The corners of each face in counter-clockwise order, seen from outside the cell."""
    faces = []
    for axis in range(3):
        u, v = 1 << (axis + 1) % 3, 1 << (axis + 2) % 3  # axis, u, v is right-handed
        for side in (0, 1):
            ring = [0, u, u | v, v]
            faces.append([corner | side << axis for corner in (ring if side else ring[::-1])])
    return faces


def _loops(case: int, edge_of: dict[frozenset[int], int]) -> list[list[int]]:
    """Closed chains of crossed edges; each runs counter-clockwise seen from outside the surface."""
    follows: dict[int, int] = {}
    for ring in _faces():
        inside = [bool(case >> corner & 1) for corner in ring]
        for k in range(4):
            if not inside[k] and inside[(k + 1) % 4]:  # the walk enters a run of inside corners; find where it leaves
                enter = edge_of[frozenset((ring[k], ring[(k + 1) % 4]))]
                j = (k + 1) % 4
                while inside[(j + 1) % 4]:
                    j = (j + 1) % 4
                follows[enter] = edge_of[frozenset((ring[j], ring[(j + 1) % 4]))]
    loops = []
    while follows:
        start = min(follows)
        loop, edge = [start], follows.pop(start)
        while edge != start:
            loop.append(edge)
            edge = follows.pop(edge)
        loops.append(loop)
    return loops


def _triangulations(polygon: list[int]) -> list[list[tuple[int, int, int]]]:
    """All ways to cut a convex polygon into triangles (Catalan numbers: 42 for a heptagon)."""
    if len(polygon) < 3:
        return [[]]
    return [
        [(polygon[0], polygon[k], polygon[-1]), *left, *right]
        for k in range(1, len(polygon) - 1)
        for left in _triangulations(polygon[: k + 1])
        for right in _triangulations(polygon[k:])
    ]


@cache
def derive_table() -> Table:
    """The table; see the top of this file."""
    edges = _edges()
    edge_of = {frozenset(edge): e for e, edge in enumerate(edges)}
    faces = [frozenset(ring) for ring in _faces()]
    middle = np.array([CORNERS[list(edge)].mean(0) for edge in edges])

    def in_one_face(a: int, b: int) -> bool:
        return any(set(edges[a]) | set(edges[b]) <= face for face in faces)

    def smallest_sine(triangle: tuple[int, int, int]) -> float:
        """Of its corners, with every vertex in the middle of its edge."""
        p = middle[list(triangle)]
        sides = [p[1] - p[0], p[2] - p[1], p[0] - p[2]]
        lengths = sorted(float(np.linalg.norm(s)) for s in sides)
        return float(np.linalg.norm(np.cross(sides[0], sides[1]))) / (lengths[1] * lengths[2])

    def quality(triangles: Iterable[tuple[int, int, int]]) -> float:
        return min([1.0, *map(smallest_sine, triangles)])

    cases: list[list[tuple[int, int, int]]] = []
    for case in range(256):
        triangles: list[tuple[int, int, int]] = []
        for loop in _loops(case, edge_of):
            borders = {frozenset((loop[k - 1], loop[k])) for k in range(len(loop))}
            allowed = []
            for option in _triangulations(loop):
                sides = {frozenset((t[k - 1], t[k])) for t in option for k in range(3)}
                if not any(in_one_face(*side) for side in sides - borders):
                    allowed.append(option)
            triangles += max(allowed, key=quality)
        cases.append(triangles)
    counts = np.array([len(triangles) for triangles in cases])
    return Table(
        edge_axis=np.array([int(a ^ b).bit_length() - 1 for a, b in edges]),
        edge_base=CORNERS[[a for a, _ in edges]],
        n_triangles=counts,
        first_triangle=np.cumsum(counts) - counts,
        triangles=np.array([t for triangles in cases for t in triangles]),
    )
