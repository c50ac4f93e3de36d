"""Cleaning of closed triangle meshes: connected components, which of them stay, normals, is it closed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 1 << 18  # faces at once


def component_labels(n_vertices: int, faces: Tensor) -> Tensor:
    """For each vertex the smallest vertex it is connected to: [n_vertices] int64; faces [f,3] int64.

    Rounds of: every root hooks onto its smallest neighbouring root, then all paths are cut short. Where numbers run
    along the surface, as marching cubes leaves them, the first round joins nearly everything and the rest see few
    edges.
    """
    a = torch.cat([faces[:, 0], faces[:, 1]])
    b = torch.cat([faces[:, 1], faces[:, 2]])
    parent = torch.arange(n_vertices)
    while len(a):
        parent.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")  # the larger of two roots hooks
        while True:
            shorter = parent[parent]
            if torch.equal(shorter, parent):
                break
            parent = shorter
        a, b = parent[a], parent[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return parent


def signed_volumes(vertices: Tensor, faces: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Components as (label [c], number of faces [c], enclosed volume [c]); a cavity's volume is negative."""
    corner = vertices - vertices.mean(dim=0)
    of_face = labels[faces[:, 0]]
    counts, volumes = torch.zeros(len(vertices), dtype=torch.int64), torch.zeros(len(vertices), dtype=torch.float64)
    for some, owner in zip(faces.split(_CHUNK), of_face.split(_CHUNK), strict=True):
        a, b, c = (corner[some[:, k]] for k in range(3))
        volumes.index_add_(0, owner, (a * torch.linalg.cross(b, c)).sum(dim=1).double() / 6)
        counts.index_add_(0, owner, torch.ones_like(owner))
    names = counts.nonzero()[:, 0]
    return names, counts[names], volumes[names]


def keep_faces(
    vertices: Tensor, faces: Tensor, min_fraction: float, max_count: int | None, cavities: bool
) -> tuple[Tensor, int]:
    """Which faces [f] bool stay, and in how many components.

    Those of at least min_fraction of the largest one's faces stay, at most max_count of them.

    cavities: whether to keep components that enclose emptiness (the inner skin of a hollow solid: nothing outside sees
    it).
    """
    labels = component_labels(len(vertices), faces)
    names, counts, volumes = signed_volumes(vertices, faces, labels)
    good = torch.ones_like(names, dtype=torch.bool) if cavities else volumes > 0
    if not bool(good.any()):
        return good.new_zeros(len(faces)), 0
    good &= counts >= min_fraction * counts[good].max()
    if max_count is not None:
        order = torch.argsort(torch.where(good, counts, 0), descending=True, stable=True)
        good[order[max_count:]] = False
    stays = torch.zeros(len(vertices), dtype=torch.bool)
    stays[names[good]] = True
    return stays[labels[faces[:, 0]]], int(good.sum())


def compact(faces: Tensor, n_vertices: int) -> tuple[Tensor, Tensor]:
    """Drop vertices that no face uses: (indices of those that stay [v], faces in their numbering [f,3])."""
    used = torch.zeros(n_vertices, dtype=torch.bool)
    used[faces.reshape(-1)] = True
    number = torch.cumsum(used, 0) - 1
    return used.nonzero()[:, 0], number[faces]


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [v,3] float32: the mean of the faces around, weighted by area; outward where faces are."""
    vertices = vertices.float()
    normals = torch.zeros(len(vertices), 3)
    for some in faces.split(_CHUNK):
        a, b, c = (vertices[some[:, k]] for k in range(3))
        cross = torch.linalg.cross(b - a, c - a)
        for k in range(3):
            normals.index_add_(0, some[:, k], cross)
    # triangles can be far below 1 in area, so that the default eps would shrink their normals
    return torch.nn.functional.normalize(normals, dim=1, eps=1e-30)


def is_closed(faces: NDArray[np.int32], n_vertices: int) -> bool:
    """Whether every directed edge occurs once, and once the other way round: closed, 2-manifold, consistently wound."""
    a = faces.astype(np.int64).ravel()
    b = np.roll(faces, -1, axis=1).astype(np.int64).ravel()
    up = a < b
    forward, backward = a[up] * n_vertices + b[up], b[~up] * n_vertices + a[~up]
    forward.sort()
    backward.sort()
    return bool(np.array_equal(forward, backward) and (np.diff(forward) > 0).all())
