"""Making a mesh closed and manifold again: doubled faces, edges with too many faces, holes (of which trimesh fills
those of three and four edges alone)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Faces = NDArray[np.int64]
Points = NDArray[np.float64]

_ROUNDS = 8  # taking faces away opens holes, closing one can double a face


def repair(vertices: Points, faces: Faces, longest_hole: int) -> tuple[Points, Faces]:
    """A mesh [v,3], [f,3] without faces that fold onto each other or surround an edge that more than two share, and
    with holes of at most longest_hole edges closed by a fan around a new vertex; what is new stands at the end."""
    for _ in range(_ROUNDS):
        faces = _drop_duplicates(faces)
        faces = faces[~_on_nonmanifold_edges(faces)]
        holes = [hole for hole in find_holes(faces) if len(hole) <= longest_hole]
        if not holes:
            break
        vertices, faces = _fill_holes(vertices, faces, holes)
    return vertices, faces


def find_holes(faces: Faces) -> list[list[int]]:
    """The holes, each as the vertices around it in the order in which new faces have to run."""
    there, back = _edges(faces), _edges(faces)[:, ::-1]
    size = int(faces.max(initial=0)) + 1
    open_ = back[~np.isin(back @ [size, 1], there @ [size, 1])]  # an edge without its other side
    after: dict[int, list[int]] = {}
    for a, b in open_[::-1].tolist():
        after.setdefault(a, []).append(b)
    loops = []
    for start in list(after):
        path, place = [start], {start: 0}
        while after.get(path[-1]):
            vertex = after[path[-1]].pop()
            if vertex in place:  # a loop is closed; where holes touch, what came before goes on
                loops.append(path[place[vertex] :])
                for gone in path[place[vertex] + 1 :]:
                    del place[gone]
                path = path[: place[vertex] + 1]
            else:
                place[vertex] = len(path)
                path.append(vertex)
    return loops


def _edges(faces: Faces) -> Faces:
    """All directed edges [3 f, 2]: those from the first corner, from the second, from the third."""
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def _drop_duplicates(faces: Faces) -> Faces:
    """Without faces that lack an extent, say the same as another one, or are one's back."""
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    turns = ((faces[:, 0] < faces[:, 1]).astype(int) + (faces[:, 1] < faces[:, 2]) + (faces[:, 2] < faces[:, 0])) == 2
    _, first, which = np.unique(np.sort(faces, axis=1), axis=0, return_index=True, return_inverse=True)
    which = which.ravel()
    ways = np.stack([np.bincount(which, turns, len(first)), np.bincount(which, ~turns, len(first))], axis=1)
    front_and_back = (ways > 0).all(axis=1)
    return faces[np.sort(first[~front_and_back])]


def _on_nonmanifold_edges(faces: Faces) -> NDArray[np.bool_]:
    """Which faces [f] share an edge, the same way round, with another one."""
    edges = _edges(faces)
    size = int(faces.max(initial=0)) + 1
    _, which, count = np.unique(edges @ [size, 1], return_inverse=True, return_counts=True)
    crowded = (count > 1)[which.ravel()]
    return np.asarray(crowded.reshape(3, -1).any(axis=0))


def _fill_holes(vertices: Points, faces: Faces, holes: list[list[int]]) -> tuple[Points, Faces]:
    middles: list[Points] = []
    new: list[list[int]] = []
    for hole in holes:
        if len(hole) == 3:
            new.append(hole)
            continue
        middle = len(vertices) + len(middles)
        middles.append(vertices[hole].mean(axis=0))
        new += [[middle, a, b] for a, b in zip(hole, [*hole[1:], hole[0]], strict=True)]
    return np.concatenate([vertices, np.reshape(middles, (-1, 3))]), np.concatenate([faces, np.array(new)])
