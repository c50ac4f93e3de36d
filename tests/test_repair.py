"""Repairing meshes: holes, doubled faces, edges with too many faces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from nerf.meshing.clean import decimate, is_closed
from nerf.meshing.repair import find_holes, repair


def ball() -> tuple[np.ndarray, np.ndarray]:
    mesh = trimesh.creation.icosphere(subdivisions=3)
    return np.array(mesh.vertices), np.array(mesh.faces)


def closed(faces: np.ndarray, vertices: np.ndarray) -> bool:
    return is_closed(faces.astype(np.int32), len(vertices))


def test_what_is_whole_comes_back_as_it_is() -> None:
    vertices, faces = ball()
    same_vertices, same_faces = repair(vertices, faces, 100)
    assert np.array_equal(same_vertices, vertices) and np.array_equal(same_faces, faces)


@pytest.mark.parametrize("around", [1, 2, 3])
def test_a_hole_is_closed_the_right_way_round(around: int) -> None:
    vertices, faces = ball()
    near = vertices[:, 2] > np.sort(vertices[:, 2])[-around * 6]
    cut = faces[~near[faces].any(axis=1)]
    (loop,) = find_holes(cut)
    assert not closed(cut, vertices) and len(loop) == len(set(loop))
    kept_vertices, kept = repair(vertices, cut, len(loop) - 1)
    assert len(kept) == len(cut) and len(kept_vertices) == len(vertices), "too large to be closed"
    whole_vertices, whole = repair(vertices, cut, len(loop))
    mesh = trimesh.Trimesh(whole_vertices, whole, process=False)
    assert closed(whole, whole_vertices) and mesh.is_watertight and mesh.is_winding_consistent
    assert 0.9 * 4 / 3 * np.pi < mesh.volume < 4 / 3 * np.pi


def test_a_missing_triangle_needs_no_new_vertex() -> None:
    vertices, faces = ball()
    same, whole = repair(vertices, np.delete(faces, 17, axis=0), 3)
    assert len(same) == len(vertices) and sorted(map(sorted, whole.tolist())) == sorted(map(sorted, faces.tolist()))


def test_holes_that_touch_in_one_vertex_are_two() -> None:
    vertices, faces = ball()
    at = faces[(faces == 50).any(axis=1)]
    first = at[0]
    second = next(f for f in at if len(set(f) & set(first)) == 1)
    cut = np.array([f for f in faces if not (np.array_equal(f, first) or np.array_equal(f, second))])
    assert sorted(map(len, find_holes(cut))) == [3, 3]
    assert closed(repair(vertices, cut, 3)[1], vertices)


def test_folds_doubles_and_fins_go() -> None:
    vertices, faces = ball()
    spare = len(vertices)
    vertices = np.concatenate([vertices, [[0, 0, 2.0], [0, 0, 3.0]]])
    a, b, _ = faces[0]
    fold = [[a, b, spare], [b, a, spare]]  # front and back of one sheet that stands on an edge
    fin = [[a, b, spare + 1]]  # a third face on that edge
    bad = np.concatenate([faces, fold, fin, [faces[5]], [[a, a, b]]])
    fixed_vertices, fixed = repair(vertices, bad, 50)
    used, fixed = np.unique(fixed, return_inverse=True)
    assert closed(fixed.reshape(-1, 3), fixed_vertices[used])


def test_decimated_meshes_stay_closed() -> None:
    """A rough surface is where decimation leaves folds and doubled faces."""
    rough = trimesh.creation.icosphere(subdivisions=6)
    noise = np.random.default_rng(0).normal(size=len(rough.vertices))
    vertices = torch.from_numpy(rough.vertices * (1 + 0.03 * noise[:, None]))
    fewer_vertices, fewer = decimate(vertices, torch.from_numpy(np.array(rough.faces)), 3000)
    assert len(fewer) <= 3300 and closed(fewer.numpy(), fewer_vertices.numpy())
