"""Cleaning of closed triangle meshes: connected components, small ones removed, normals, smoothing. Ours, because
trimesh's need scipy, which is no dependency, and sparse matrices of the whole mesh."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.errors import Range, UserError, check_numbers
from nerf.io import children
from nerf.io.folders import scratch_folder
from nerf.io.memory import trim_heap
from nerf.meshing.repair import repair

_CHUNK = 1 << 18  # faces at once
_SMALL_HOLE = 8  # edges
_BLOCK = 1 << 19  # vertices whose neighbours are sorted at once


def component_labels(n_vertices: int, faces: Tensor) -> Tensor:
    """For each vertex the smallest vertex it is connected to: [n_vertices] int64; faces [f,3] int32 or int64. Rounds:
    every root hooks onto its smallest neighbouring root, then all paths are cut short."""
    joins = [(some[:, k], some[:, k + 1]) for some in faces.split(_CHUNK) for k in range(2)]  # views
    parent = torch.arange(n_vertices)
    while joins:
        for a, b in joins:  # the larger of two roots hooks
            parent.scatter_reduce_(0, torch.maximum(a, b).long(), torch.minimum(a, b).long(), "amin")
        while not torch.equal(shorter := parent[parent], parent):
            parent = shorter
        roots = ((_rows(parent, a), _rows(parent, b)) for a, b in joins)
        joins = [(a[apart], b[apart]) for a, b in roots if len(apart := (a != b).nonzero()[:, 0])]
    return parent


def _rows(values: Tensor, faces: Tensor) -> Tensor:
    """values[faces], faster, and without a copy of int32 faces as int64."""
    return values.index_select(0, faces.reshape(-1)).reshape(*faces.shape, *values.shape[1:])


def signed_volumes(vertices: Tensor, faces: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Components as (label [c], number of faces [c], enclosed volume [c]); a cavity's volume is negative."""
    corner = vertices - vertices.mean(dim=0)
    counts, volumes = (torch.zeros(len(vertices), dtype=kind) for kind in (torch.int64, torch.float64))
    for some in faces.split(_CHUNK):
        owner = _rows(labels, some[:, 0])
        a, b, c = _rows(corner, some).unbind(dim=1)
        volumes.index_add_(0, owner, (a * torch.linalg.cross(b, c)).sum(dim=1).double() / 6)
        counts.index_add_(0, owner, torch.ones_like(owner))
    names = counts.nonzero()[:, 0]
    return names, counts[names], volumes[names]


class Limits(NamedTuple):
    """Which components are large enough: those of a share of the largest one's faces, and at most so many."""

    min_fraction: float = 0.0
    max_count: int | None = None


def keep_faces(vertices: Tensor, faces: Tensor, limits: Limits, cavities: bool) -> tuple[Tensor, int]:
    """Which faces [f] bool to keep within the limits, and in how many components; cavities: whether to keep those
    that enclose emptiness (the inner skin of a hollow solid)."""
    labels = component_labels(len(vertices), faces)
    names, counts, volumes = signed_volumes(vertices, faces, labels)
    good = torch.ones_like(names, dtype=torch.bool) if cavities else volumes > 0
    if not bool(good.any()):
        return good.new_zeros(len(faces)), 0
    good &= counts >= limits.min_fraction * counts[good].max()
    if limits.max_count is not None:
        order = torch.argsort(torch.where(good, counts, 0), descending=True, stable=True)
        good[order[limits.max_count :]] = False
    keep = torch.zeros(len(vertices), dtype=torch.bool)
    keep[names[good]] = True
    return _rows(keep[labels], faces[:, 0]), int(good.sum())


def find_hole_faces(faces: Tensor, removed: Tensor, n_vertices: int, most: int) -> Tensor:
    """Which of the faces [f] to be removed (bool) would leave a hole of at most so many faces in the others."""
    chosen = removed.nonzero()[:, 0]
    if not most or not len(chosen):
        return torch.zeros_like(removed)
    labels = component_labels(n_vertices, faces[chosen])
    owner = _rows(labels, faces[chosen, 0])
    small = torch.bincount(owner, minlength=n_vertices) <= most
    border, held = torch.zeros(2, n_vertices, dtype=torch.bool)
    border[faces[~removed].reshape(-1).long()] = True
    held[labels[border]] = True  # a piece of its own is no hole
    filling = torch.zeros_like(removed)
    filling[chosen] = (small & held)[owner]
    return filling


def compact(faces: Tensor, n_vertices: int) -> tuple[Tensor, Tensor]:
    """Drop vertices that no face uses: (indices of those that are kept [v], faces in their numbering [f,3])."""
    used = torch.zeros(n_vertices, dtype=torch.bool)
    for some in faces.split(_CHUNK):
        used[some.reshape(-1).long()] = True
    number = torch.cumsum(used, 0, dtype=faces.dtype) - 1
    return used.nonzero()[:, 0], _rows(number, faces)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [v,3] float32: the mean of the faces around, weighted by area; outward where faces are."""
    vertices = vertices.float()
    normals = torch.zeros(len(vertices), 3)
    for some in faces.split(_CHUNK):
        a, b, c = _rows(vertices, some).unbind(dim=1)
        cross = torch.linalg.cross(b - a, c - a)
        for k in range(3):
            normals.index_add_(0, some[:, k], cross)
    # triangles can be far below 1 in area, so that the default eps would shrink their normals
    return torch.nn.functional.normalize(normals, dim=1, eps=1e-30)


def taubin_smooth(vertices: Tensor, faces: Tensor, rounds: int) -> Tensor:
    """Vertices [v,3] float32 after rounds of moving towards the mean of their neighbours and a little farther back.
    Source: Taubin, "A Signal Processing Approach to Fair Surface Design", 1995, section 3."""
    if not rounds:
        return vertices
    blocks = [_neighbours(faces, k, min(k + _BLOCK, len(vertices))) for k in range(0, len(vertices), _BLOCK)]
    for part in (0.5, -0.52) * rounds:
        means = [torch.nn.functional.embedding_bag(ends, vertices, first, mode="mean") for ends, first in blocks]
        alone = torch.cat([first.diff(append=first.new_tensor([len(ends)])) == 0 for ends, first in blocks])
        vertices = vertices + part * torch.where(alone[:, None], 0.0, torch.cat(means) - vertices)
    return vertices


def _neighbours(faces: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The ends of the edges that leave the vertices from low to high (in a closed mesh all neighbours), and where each
    vertex's own begin; both int32."""
    starts, ends = [], []
    for k in range(3):
        here = ((faces[:, k] >= low) & (faces[:, k] < high)).nonzero()[:, 0]
        starts.append(faces[:, k][here].int())
        ends.append(faces[:, (k + 1) % 3][here].int())
    start, order = torch.cat(starts).sort(stable=True)
    first = torch.searchsorted(start, torch.arange(low, high, dtype=torch.int32), out_int32=True)
    return torch.cat(ends)[order], first


def is_closed(faces: NDArray[np.int32], n_vertices: int) -> bool:
    """Whether every directed edge occurs once, and once the other way round: closed, 2-manifold, consistently wound."""

    def keys(first: int, second: int) -> NDArray[np.int64]:
        """Of the edges that begin (or end) at the smaller vertex, sorted."""
        pairs = ((faces[:, (k + first) % 3], faces[:, (k + second) % 3]) for k in range(3))
        found = np.concatenate([a[a < b].astype(np.int64) * n_vertices + b[a < b] for a, b in pairs])
        found.sort()
        return found

    there, back = keys(0, 1), keys(1, 0)
    return bool(np.array_equal(there, back) and (there[1:] > there[:-1]).all())


def enclosed_volume(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> float:
    """The volume that a closed mesh encloses; its vertices may be doubled along seams."""
    a, b, c = (vertices[faces[:, k]] - vertices[0] for k in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def check_count(n_faces: int | None) -> None:
    """UserError unless a mesh can be made with so many faces here; asked before the work begins."""
    check_numbers({"faces": n_faces}, {"faces": Range(4, 1e9, whole=True, optional=True)}, "--")
    if find_spec("fast_simplification") is None:
        package = "fast-simplification"
        raise UserError(f"fewer faces and textures need the package {package}: pip install {package}")


def decimate(vertices: Tensor, faces: Tensor, n_faces: int, closed: bool = True) -> tuple[Tensor, Tensor]:
    """At most about n_faces faces that keep the shape: (vertices [v,3] float64, faces [f,3] int64). A mesh that is
    `closed` stays so; of an open one only small holes are closed, as decimation tears them. Source: quadric error
    metrics, Garland and Heckbert 1997."""
    if len(faces) <= n_faces:
        return vertices.double(), faces.long()
    check_count(n_faces)
    low, high = vertices.amin(dim=0), vertices.amax(dim=0)
    middle, extent = (low + high) / 2, float((high - low).max()) or 1.0
    unit = ((vertices - middle) / extent).float()  # it computes in float32
    points, kept = _simplify(unit.numpy(), faces.int().numpy(), n_faces)
    points, kept = repair(points, kept, len(kept) if closed else _SMALL_HOLE)
    used, kept_faces = compact(torch.from_numpy(kept), len(points))
    trim_heap()
    return torch.from_numpy(points)[used] * extent + middle, kept_faces


def _simplify(
    points: NDArray[np.float32], faces: NDArray[np.int32], n_faces: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What fast-simplification makes of a mesh, in a process of its own: it keeps its buffers for good, 0.8 GB for
    three million faces, and the texture that comes next needs the memory."""
    with scratch_folder() as folder:
        mesh = folder / "mesh.npz"
        try:
            np.savez(mesh, points=points, faces=faces)
        except OSError as error:
            no_room = f"{folder}: no room for a mesh of {len(faces):,} faces ({error.strerror}); set TMPDIR"
            raise UserError(no_room) from None
        command = children.python("-c", _SIMPLIFY_SCRIPT, str(mesh.resolve()), str(n_faces))
        done = children.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or [f"its process ended with status {done.returncode}"]
            raise UserError(f"the mesh of {len(faces):,} faces could not be simplified: {last[0]}")
        with np.load(mesh) as fewer:
            return fewer["points"].astype(np.float64), fewer["faces"].astype(np.int64)


_SIMPLIFY_SCRIPT = """
import sys
import fast_simplification, numpy
path, count = sys.argv[1:]
with numpy.load(path) as mesh:
    points, faces = fast_simplification.simplify(mesh["points"], mesh["faces"], target_count=int(count))
numpy.savez(path, points=points, faces=faces)
"""
