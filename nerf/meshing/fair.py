"""Bilateral normal filtering: noise out of a triangle mesh, edges kept, which none of trimesh's filters does, and the
packages that do (pymeshlab, Open3D) are large and have wheels for few systems."""

from __future__ import annotations

import torch
from torch import Tensor

NORMAL_SIGMA = 0.4  # standard deviation of the difference of unit normals, 23 degrees: sharper edges are kept
DENOISE_ROUNDS = 12  # by default
MAX_DENOISED_FACES = 4_000_000  # filtered by default: noise of finer meshes spans more cells than the rounds reach
_VERTEX_STEPS = 20  # steps of the vertices towards what the normals ask for
_CHUNK = 1 << 19  # faces at once


def denoise_normals(vertices: Tensor, faces: Tensor, rounds: int) -> Tensor:
    """Vertices [v,3] float32 moved so that faces [f,3] lie along bilaterally filtered normals. Not differentiable.

    Each round, `n_i <- normalise(sum_j A_j exp(-|n_i - n_j|^2 / (2 NORMAL_SIGMA^2)) n_j)` over the face i and those
    across its edges, A their areas; then vertices step by `mean_f n_f (n_f . (c_f - x))` over the faces f around.
    Sources: Zheng et al., "Bilateral Normal Filtering for Mesh Denoising", 2011, local scheme (area in place of
    distance); for the vertices Sun et al., "Fast and Effective Feature-Preserving Mesh Denoising", 2007, equation 12.
    """
    if not rounds or not len(faces):
        return vertices
    across = faces_across(faces, len(vertices))
    normals, areas = _normals(vertices, faces)
    for _ in range(rounds):
        normals = torch.cat([_filter_normals(normals, areas, across, k) for k in range(0, len(faces), _CHUNK)])
    del across
    around = torch.zeros(len(vertices), 1)
    for k in range(3):
        around.index_add_(0, faces[:, k], torch.ones(len(faces), 1))
    for _ in range(_VERTEX_STEPS):
        moves = torch.zeros_like(vertices)
        for some, n in zip(faces.split(_CHUNK), normals.split(_CHUNK), strict=True):
            corners = [vertices.index_select(0, some[:, k]) for k in range(3)]
            centre = (corners[0] + corners[1] + corners[2]) / 3
            for k in range(3):
                moves.index_add_(0, some[:, k], n * ((centre - corners[k]) * n).sum(dim=1, keepdim=True))
        vertices = vertices + moves / around.clamp_min(1)
    return vertices


def faces_across(faces: Tensor, n_vertices: int) -> Tensor:
    """[f,3] int32: the face on the other side of the edges that leave corners 0, 1 and 2 (itself where there is none);
    where more than two share an edge, one of them."""
    one, other = twin_edges(faces, n_vertices)
    across = torch.arange(len(faces), dtype=torch.int32).repeat_interleave(3)
    across[one], across[other] = (other // 3).int(), (one // 3).int()
    return across.reshape(-1, 3)


def twin_edges(faces: Tensor, n_vertices: int) -> tuple[Tensor, Tensor]:
    """Pairs [e], [e] of edges of faces [f,3] that join the same vertices; edge 3 f + k leaves corner k of face f."""
    low = torch.minimum(faces, faces.roll(-1, 1)).long()
    key, order = (low * n_vertices + torch.maximum(faces, faces.roll(-1, 1))).reshape(-1).sort(stable=True)
    del low
    twin = (key[1:] == key[:-1]).nonzero()[:, 0]
    return order[twin], order[twin + 1]


def _normals(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals [f,3] and twice the areas [f,1]; a face without area has no normal (0)."""
    corners = ([vertices.index_select(0, some[:, k]) for k in range(3)] for some in faces.split(_CHUNK))
    crosses = torch.cat([torch.linalg.cross(b - a, c - a) for a, b, c in corners])
    areas = crosses.norm(dim=1, keepdim=True)
    return crosses / areas.clamp_min(1e-30), areas


def _filter_normals(normals: Tensor, areas: Tensor, across: Tensor, first: int) -> Tensor:
    """The normals of one round for a chunk of faces."""
    own, rows = normals[first : first + _CHUNK], across[first : first + _CHUNK]
    total = own * areas[first : first + _CHUNK]
    for k in range(3):
        theirs = normals.index_select(0, rows[:, k])
        apart = (theirs - own).square().sum(dim=1, keepdim=True)
        total += areas.index_select(0, rows[:, k]) * torch.exp(apart / (-2 * NORMAL_SIGMA**2)) * theirs
    return torch.nn.functional.normalize(total, dim=1, eps=1e-30)
