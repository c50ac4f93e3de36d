"""Meshing: the derived table, closed manifolds whatever the field; the right place, size, colour and frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fakes import AnalyticModel, ball
from torch import Tensor

from nerf.errors import UserError
from nerf.geometry.space import Ndc, Similarity, Unbounded
from nerf.meshing.clean import Limits, component_labels, is_closed, keep_faces, vertex_normals
from nerf.meshing.extract import extract_mesh as extract_any
from nerf.meshing.files import save_mesh
from nerf.meshing.level import DEFAULT_THRESHOLD, near_occupied
from nerf.meshing.marching import ASK, BLOCK, SKIP, Grid, Surface, marching_cubes
from nerf.meshing.table import CORNERS, derive_table

extract = partial(extract_any, method="density")  # that of the views has its tests in test_fusion.py


def torus(p: Tensor) -> Tensor:
    return torch.stack([p[:, :2].norm(dim=1) - 0.6, p[:, 2]], dim=1).norm(dim=1) - 0.22


def euler_number(surface: Surface) -> int:
    """V - E + F; a closed triangle mesh has 3 F / 2 edges."""
    return len(surface.edges) - len(surface.faces) // 2


# ---- the table


def test_every_case_is_a_surface_whose_border_lies_in_the_faces_of_the_cell() -> None:
    t = derive_table()
    ends = [
        {int(b @ [1, 2, 4]), int((b + np.eye(3, dtype=int)[a]) @ [1, 2, 4])}
        for a, b in zip(t.edge_axis, t.edge_base, strict=True)
    ]
    for case in range(256):
        rows = t.triangles[t.first_triangle[case] : t.first_triangle[case] + t.n_triangles[case]]
        crossed = {e for e in range(12) if len({case >> c & 1 for c in ends[e]}) == 2}
        assert set(rows.ravel().tolist()) == crossed, "every crossed edge is used, and no other"
        directed = [(int(r[k]), int(r[(k + 1) % 3])) for r in rows for k in range(3)]
        assert len(set(directed)) == len(directed)
        for a, b in directed:
            in_face = any(len({CORNERS[c][axis] for c in ends[a] | ends[b]}) == 1 for axis in range(3))
            assert ((b, a) not in directed) == in_face, "inside the cell edges pair up; in its faces none does"


def test_neighbouring_cells_agree_on_every_face() -> None:
    """What a case leaves in its upper face is what any case with those corners in its lower face does, reversed."""
    t = derive_table()
    ends = [
        [int(b @ [1, 2, 4]), int((b + np.eye(3, dtype=int)[a]) @ [1, 2, 4])]
        for a, b in zip(t.edge_axis, t.edge_base, strict=True)
    ]
    for axis in range(3):
        seen: dict[tuple[int, ...], set[frozenset[tuple[tuple[int, ...], tuple[int, ...]]]]] = {}
        for side in (0, 1):
            corners = [c for c in range(8) if (c >> axis & 1) == side]
            on_face = {e for e in range(12) if all(c in corners for c in ends[e])}
            name = {e: tuple(sorted(c & ~(1 << axis) for c in ends[e])) for e in on_face}
            for case in range(256):
                rows = t.triangles[t.first_triangle[case] : t.first_triangle[case] + t.n_triangles[case]]
                directed = {(int(r[k]), int(r[(k + 1) % 3])) for r in rows for k in range(3)}
                border = {(a, b) if side else (b, a) for a, b in directed if a in on_face and b in on_face}
                pattern = tuple(case >> c & 1 for c in corners)
                seen.setdefault(pattern, set()).add(frozenset((name[a], name[b]) for a, b in border))
        assert len(seen) == 16 and all(len(kinds) == 1 for kinds in seen.values())


# ---- the surface


@pytest.mark.parametrize("shape", [(7, 7, 7), (BLOCK, BLOCK + 1, BLOCK - 1), (BLOCK + 2, 5, 2 * BLOCK + 3)])
def test_noise_gives_a_closed_manifold(shape: tuple[int, int, int]) -> None:
    """White noise meets every case, every ambiguous face, every border of blocks, and the border of the grid."""
    values = torch.randn(shape[2], shape[1], shape[0], generator=torch.Generator().manual_seed(sum(shape)))
    asked = torch.zeros_like(values)

    def noise(points: Tensor) -> Tensor:
        i = points.long()
        asked[i[:, 2], i[:, 1], i[:, 0]] += 1
        return values[i[:, 2], i[:, 1], i[:, 0]]

    surface = marching_cubes(noise, Grid((0.0, 0.0, 0.0), 1.0, shape))
    assert (asked == 1).all(), "each point is evaluated once"
    assert len(surface.faces) > values.numel()
    assert is_closed(surface.faces, len(surface.edges))
    assert len(np.unique(surface.faces)) == len(surface.edges), "no vertex is left over"
    assert n_fans(surface.faces) == len(surface.edges), "the faces around a vertex form one fan: a vertex-manifold"


def n_fans(faces: np.ndarray) -> int:
    """Cycles of the walk from corner to corner around vertices: corner (v; a, b) is followed by corner (v; b, c)."""
    v, a, b = (np.roll(faces, -k, axis=1).astype(np.int64).ravel() for k in range(3))
    n = int(faces.max()) + 1
    starts, ends = v * n + a, v * n + b
    order = np.argsort(starts)
    follower = order[np.searchsorted(starts[order], ends)]
    assert (starts[follower] == ends).all()
    corners = torch.arange(len(v))
    labels = component_labels(len(v), torch.stack([corners, torch.from_numpy(follower), corners], dim=1))
    return len(labels.unique())


def test_blocks_leave_no_trace() -> None:
    """The surface does not depend on where the grid begins relative to the blocks: the same triangles, shifted."""
    step = 0.025

    def triangles(skip: int) -> np.ndarray:
        n = 2 * BLOCK - 20
        grid = Grid((-1.0 - skip * step,) * 3, step, (n + skip,) * 3)
        surface = marching_cubes(lambda p: -torus(p), grid)
        corners = surface.points(surface.fractions()).numpy()[surface.faces]
        return np.sort(np.concatenate([corners.mean(axis=1), np.ptp(corners, axis=1)], axis=1), axis=0)

    first, second = triangles(0), triangles(23)
    assert len(first) == len(second) > 10_000
    np.testing.assert_allclose(
        first, second, atol=1e-5
    )  # float32 positions differ by 1e-7, fractions by as much over a slope


@pytest.mark.parametrize(("distance", "euler"), [(ball(0.8), 2), (torus, 0)])
def test_topology(distance: Callable[[Tensor], Tensor], euler: int) -> None:
    surface = marching_cubes(lambda p: -distance(p), Grid((-1.0, -1.0, -1.0), 2 / 90, (91, 91, 91)))
    assert euler_number(surface) == euler


def test_skipped_points_leave_the_surface_open_there() -> None:
    n = 70  # more than a block
    grid, step = Grid((-1.0, -1.0, -1.0), 2 / n, (n + 1,) * 3), 2 / n

    def known(z: slice, y: slice, x: slice) -> np.ndarray:
        below = (np.arange(z.start, z.stop) * step - 1 < 0)[:, None, None]
        shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
        return np.broadcast_to(np.where(below, SKIP, ASK), shape).astype(np.uint8)

    whole, half = (marching_cubes(lambda p: 0.6 - p.norm(dim=1), grid, k) for k in (None, known))
    points, kept = whole.points(whole.fractions()).numpy(), half.points(half.fractions()).numpy()
    above = points[whole.faces][:, :, 2].min(axis=1) >= 0
    assert len(half.faces) == above.sum() > 1000
    np.testing.assert_array_equal(kept[half.faces], points[whole.faces[above]])


def test_the_border_of_the_grid_closes_the_surface() -> None:
    surface = marching_cubes(lambda p: torch.ones(len(p)), Grid((0.0, 0.0, 0.0), 1.0, (5, 4, 3)))
    assert is_closed(surface.faces, len(surface.edges)) and euler_number(surface) == 2
    assert len(marching_cubes(lambda p: -torch.ones(len(p)), Grid((0.0, 0.0, 0.0), 1.0, (5, 4, 3))).faces) == 0


def test_nan_counts_as_empty_border() -> None:
    surface = marching_cubes(lambda p: torch.where(p[:, 0] < 2, 1.0, math.nan), Grid((0.0, 0.0, 0.0), 1.0, (5, 4, 3)))
    assert is_closed(surface.faces, len(surface.edges)) and len(surface.faces)


# ---- extraction


def test_sphere_has_the_right_volume_place_and_topology() -> None:
    mesh = extract(AnalyticModel(ball(0.7, (0.1, -0.05, 0.2))), resolution=128, colours=False)
    assert mesh.metadata["closed"] and mesh.metadata["components"] == 1 and mesh.euler_number == 2
    assert mesh.is_watertight and mesh.is_winding_consistent
    distance = np.linalg.norm(mesh.vertices - [0.1, -0.05, 0.2], axis=1) - 0.7
    # log density is exactly the distance here, so what is left is its curvature along an edge: step^2 / (8 r) = 2.5e-5
    assert np.abs(distance).max() < 4e-5
    # flat triangles inside a sphere lose about (step / r)^2 / 4 of the volume = 1e-4; 3e-4 allows for the wide ones
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=3e-4)
    outward = (mesh.vertex_normals * (mesh.vertices - [0.1, -0.05, 0.2])).sum(axis=1) / 0.7
    assert outward.min() > 0.999


def test_logarithm_places_vertices_better_than_density_or_opacity() -> None:
    """Density exp(network): steep, its values at the two ends far apart. Errors are RMS in grid steps, unrefined."""
    model = AnalyticModel(ball(0.7), softness=0.005)
    step, level = 2 / 64, DEFAULT_THRESHOLD
    grid = Grid((-1.0, -1.0, -1.0), step, (65, 65, 65))
    transforms: dict[str, Callable[[Tensor], Tensor]] = {
        "density": lambda s: s - level,
        "opacity": lambda s: 0.5 - torch.exp(-s * math.log(2) / level),
        "log": lambda s: (s.clamp_min(1e-30).log() - math.log(level)).clamp(-3, 3),
    }
    errors = {}
    for name, transform in transforms.items():
        surface = marching_cubes(lambda p, f=transform: f(model.density(p)), grid)  # type: ignore[misc]
        error = surface.points(surface.fractions()).norm(dim=1) - 0.7
        errors[name] = float(error.square().mean().sqrt()) / step
    assert errors["log"] < 0.05 < errors["opacity"] < errors["density"], errors  # measured: 0.031, 0.097, 0.244


def test_refinement_slides_vertices_onto_the_surface() -> None:
    """A kink at the surface, the worst for interpolation: each evaluation takes about a third of the error."""

    def bent(p: Tensor) -> Tensor:
        d = ball(0.7)(p)
        return torch.where(d < 0, d * 5, d)

    model = AnalyticModel(bent, softness=0.02)
    errors = [
        np.abs(np.linalg.norm(extract(model, 64, colours=False, refine=n).vertices, axis=1) - 0.7).mean()
        for n in (0, 1, 3)
    ]
    assert errors[1] < 0.7 * errors[0] and errors[2] < 0.4 * errors[0], errors


def test_only_points_near_occupied_cells_are_evaluated() -> None:
    model = AnalyticModel(ball(0.3))
    mesh = extract(model, resolution=160, box=(-1, -1, -1, 1, 1, 1), colours=False)
    share = float(model.occupancy.occupied.float().mean())
    assert model.field.n_evaluated < 161**3 * share * 1.6 + 2 * len(mesh.vertices)
    assert mesh.euler_number == 2


@pytest.mark.parametrize("step", [0.01, 0.15])
def test_mask_is_one_step_around_occupied_cells(step: float) -> None:
    """Against the definition, point by point, over nested levels and with steps below and above a cell."""
    occupied = torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.03
    grid = Grid((-2.2, -2.1, -1.3), step, (30, 29, 20))
    got = near_occupied(occupied, grid)(slice(0, 20), slice(0, 29), slice(0, 30)) == ASK
    for k in range(0, 20, 3):
        for j in range(0, 29, 2):
            for i in range(30):
                p = np.array(grid.origin) + step * np.array([i, j, k])
                level = 0 if np.abs(p).max() <= 1 else 1
                extent, size = 2.0**level, 2.0**level / 4
                low = np.clip(np.floor((p - step + extent) / size), 0, 7).astype(int)
                high = np.clip(np.floor((p + step + extent) / size), 0, 7).astype(int)
                cells = occupied[level, low[2] : high[2] + 1, low[1] : high[1] + 1, low[0] : high[0] + 1]
                if np.abs(p).max() <= 2 - 1e-9:
                    assert got[k, j, i] == bool(cells.any()), (p, level)
                elif np.abs(p).max() > 2 + step + 1e-9:
                    assert not got[k, j, i]


def test_blobs_that_touch_and_a_slab_thinner_than_two_cells() -> None:
    step = 2 / 128
    touching = AnalyticModel(lambda p: torch.minimum(ball(0.3, (-0.3, 0, 0))(p), ball(0.3, (0.3, 0, 0))(p)))
    mesh = extract(touching, resolution=128, box=(-1, -1, -1, 1, 1, 1), colours=False)
    assert mesh.metadata["closed"] and mesh.metadata["components"] in (1, 2)
    assert mesh.volume == pytest.approx(2 * 4 / 3 * math.pi * 0.3**3, rel=3e-3)

    def slab(p: Tensor) -> Tensor:
        q = (p - torch.tensor([0.0, 0.0, 0.3 * step])).abs() - torch.tensor([0.6, 0.5, 0.9 * step])
        return q.amax(dim=1)

    mesh = extract(AnalyticModel(slab), resolution=128, box=(-1, -1, -1, 1, 1, 1), colours=False)
    assert mesh.metadata["closed"] and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(1.2 * 1.0 * 1.8 * step, rel=0.03)  # corners are cut by up to a step


def test_an_object_that_leaves_the_box_is_capped() -> None:
    mesh = extract(AnalyticModel(ball(0.7)), resolution=64, box=(-1, -1, 0.2, 1, 1, 1), colours=False)
    assert mesh.metadata["closed"]
    assert mesh.bounds[0, 2] == pytest.approx(0.2, abs=0.01 * mesh.metadata["step"])
    assert mesh.volume == pytest.approx(math.pi * 0.5**2 * (3 * 0.7 - 0.5) / 3, rel=0.01)


def test_pieces_and_cavities() -> None:
    def scene(p: Tensor) -> Tensor:
        shell = torch.maximum(ball(0.5)(p), -ball(0.35)(p))
        dust = torch.minimum(ball(0.12, (0.75, 0.75, 0.75))(p), ball(0.03, (-0.8, 0.8, 0.8))(p))
        return torch.minimum(shell, dust)

    model = AnalyticModel(scene)
    everything = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    whole = 4 / 3 * math.pi
    mesh = extract(model, 128, box=everything, colours=False)
    assert mesh.metadata["components"] == 2, "the speck is under 1 % and the cavity cannot be seen"
    assert mesh.volume == pytest.approx(whole * (0.5**3 + 0.12**3), rel=2e-3)
    assert extract(model, 128, box=everything, colours=False, min_fraction=0).metadata["components"] == 3
    one = extract(model, 128, box=everything, colours=False, max_components=1)
    assert one.metadata["components"] == 1 and one.volume == pytest.approx(whole * 0.5**3, rel=2e-3)
    model = AnalyticModel(scene, space=Unbounded(1))  # a room is a cavity, and the cameras are in it
    open_space = extract(model, 128, colours=False)
    assert open_space.metadata["components"] == 3
    assert open_space.volume == pytest.approx(whole * (0.5**3 - 0.35**3 + 0.12**3), rel=2e-3)


def test_world_scene_world() -> None:
    """A similarity with rotation, scale and shift: vertices return to the world, normals and colours with them."""
    a, b = 0.7, -0.4
    turn = torch.tensor([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]], dtype=torch.float64)
    tilt = torch.tensor([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]], dtype=torch.float64)
    similarity = Similarity(0.31, turn @ tilt, torch.tensor([0.2, -0.1, 0.15], dtype=torch.float64))
    here, there = AnalyticModel(torus), AnalyticModel(torus, scene_from_world=similarity)
    scene, world = extract(here, 96), extract(there, 96)
    np.testing.assert_array_equal(scene.faces, world.faces)
    np.testing.assert_array_equal(scene.visual.vertex_colors, world.visual.vertex_colors)
    back = similarity.apply(torch.from_numpy(np.asarray(world.vertices)))
    np.testing.assert_allclose(back.numpy(), scene.vertices, atol=1e-12)
    assert world.volume == pytest.approx(scene.volume / 0.31**3, rel=1e-9) and world.volume > 0
    np.testing.assert_allclose(world.vertex_normals, scene.vertex_normals @ similarity.rotation.numpy(), atol=1e-6)


def test_colours_are_what_a_camera_above_the_vertex_sees() -> None:
    model = AnalyticModel(ball(0.7))
    mesh = extract(model, 96)
    expected = 0.5 + 0.25 * mesh.vertices + 0.25 * mesh.vertices / 0.7
    error = np.abs(mesh.visual.vertex_colors[:, :3] - expected * 255)
    assert error.max() < 1.5 and (mesh.visual.vertex_colors[:, 3] == 255).all()
    model.linear = True
    encoded = extract(model, 96).visual.vertex_colors[:, :3]
    assert np.abs(encoded - 255 * (1.055 * expected ** (1 / 2.4) - 0.055)).max() < 2.5


def test_forward_facing_scenes_come_back_through_ndc() -> None:
    """A ball in front of the cameras, seen by the model in NDC, is a ball again in the world, right side out."""
    space, centre = Ndc(1.2, 1.5), torch.tensor([0.3, -0.2, -4.0])

    def distance(p: Tensor) -> Tensor:
        w = p[:, 2].clamp(-0.99, 0.97)
        z = 2 / (w - 1)
        scene = torch.stack([-p[:, 0] * z / space.a, -p[:, 1] * z / space.b, z], dim=1)
        # an NDC length is about z^2 / 2 = 8 times shorter in depth: occupancy and softness are in NDC
        return ((scene - centre).norm(dim=1) - 1.0) / 8

    similarity = Similarity.around([5.0, 6.0, 7.0], 2.0)
    model = AnalyticModel(distance, softness=0.002, space=space, scene_from_world=similarity)
    mesh = extract(model, 128)
    assert mesh.metadata["closed"] and mesh.euler_number == 2
    scene = similarity.apply(torch.from_numpy(np.asarray(mesh.vertices)))
    radius = (scene - centre.double()).norm(dim=1)
    assert float((radius - 1).abs().max()) < 0.01
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 2.0**3, rel=0.01)
    toward = ((scene - centre.double()) * torch.from_numpy(np.asarray(mesh.vertex_normals))).sum(dim=1)
    assert float(toward.min()) > 0.9
    inside = space.points_to_march(scene)
    assert float(inside.abs().max()) < 1


@pytest.mark.parametrize("kind", ["ply", "obj", "glb"])
def test_files_hold_the_same_mesh(kind: str, tmp_path: Path) -> None:
    mesh = extract(AnalyticModel(torus, scene_from_world=Similarity.around([3.0, 1.0, -2.0], 4.0)), 48)
    path = tmp_path / f"mesh.{kind}"
    save_mesh(mesh, path)
    again = trimesh.load(path, process=False, force="mesh", **({"maintain_order": True} if kind == "obj" else {}))
    np.testing.assert_allclose(again.vertices, mesh.vertices, atol=1e-6)  # float32 of values up to 7
    np.testing.assert_array_equal(again.faces, mesh.faces)
    if kind != "glb":  # whose colours are linear: see test_mesh_files
        np.testing.assert_allclose(again.visual.vertex_colors, mesh.visual.vertex_colors, atol=1)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing partial is left"


def test_same_bytes_with_one_thread_and_two() -> None:
    threads = torch.get_num_threads()
    try:
        meshes = []
        for n in (1, 2):
            torch.set_num_threads(n)
            meshes.append(extract(AnalyticModel(torus), 96))
    finally:
        torch.set_num_threads(threads)
    for get in (lambda m: m.vertices, lambda m: m.faces, lambda m: m.visual.vertex_colors):
        np.testing.assert_array_equal(get(meshes[0]), get(meshes[1]))


def test_mistakes_are_named(tmp_path: Path) -> None:
    model = AnalyticModel(ball(0.7))
    for arguments, word in (
        ({"resolution": 4}, "--resolution"),
        ({"threshold": -1.0}, "--threshold"),
        ({"threshold": 1e9}, "no surface"),
        ({"box": (0.0, 0.0, 0.0, 0.0, 1.0, 1.0)}, "--box"),
        ({"min_fraction": 2.0}, "--min-fraction"),
        ({"max_components": 0}, "--max-components"),
    ):
        with pytest.raises(UserError, match=word):
            extract(model, **({"resolution": 32} | arguments))  # type: ignore[arg-type]
    model.occupancy.occupied[:] = False
    with pytest.raises(UserError, match="occupancy"):
        extract(model, 32)
    mesh = trimesh.creation.box()
    for path, word in ((tmp_path / "mesh.fbx", ".ply"), (tmp_path / "no" / "mesh.ply", "no such folder")):
        with pytest.raises(UserError, match=word):
            save_mesh(mesh, path)


# ---- cleaning


def test_components_against_a_walk() -> None:
    generator = np.random.default_rng(3)
    faces = generator.permutation(400)[generator.integers(0, 400, (130, 3))]
    labels = component_labels(400, torch.from_numpy(faces)).numpy()
    expected = np.arange(400)
    for _ in range(400):
        for face in faces:
            expected[face] = expected[face].min()
    np.testing.assert_array_equal(labels, expected)


def test_components_of_a_long_chain() -> None:
    order = torch.randperm(30_001, generator=torch.Generator().manual_seed(0))
    faces = torch.stack([order[:-2], order[1:-1], order[2:]], dim=1)
    assert (component_labels(30_001, faces) == 0).all()


def test_a_million_pieces() -> None:
    """Noise around an object: one pass over it, and the few large pieces stay."""
    n = 1_000_000
    corners = torch.eye(4)[:, :3].double()  # a tetrahedron; the last vertex is the origin
    places = torch.cartesian_prod(*[torch.arange(100)] * 3)
    vertices = (corners + 2 * places[:, None]).reshape(-1, 3)
    one = torch.tensor([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]])
    faces = (one + 4 * torch.arange(n)[:, None, None]).reshape(-1, 3)
    ball = trimesh.creation.icosphere(2)
    faces = torch.cat([faces, torch.tensor(ball.faces) + len(vertices)])
    vertices = torch.cat([vertices, torch.tensor(ball.vertices)])
    kept, components = keep_faces(vertices, faces, Limits(0.1), cavities=False)
    assert components == 1 and kept[4 * n :].all() and not kept[: 4 * n].any()


def test_closed_means_closed() -> None:
    box = trimesh.creation.box()
    faces = np.asarray(box.faces, np.int32)
    assert is_closed(faces, 8)
    assert not is_closed(faces[1:], 8)
    turned = faces.copy()
    turned[3] = turned[3, ::-1]
    assert not is_closed(turned, 8)
    assert not is_closed(np.concatenate([faces, faces]), 8)


def test_normals_and_volume_of_a_tiny_mesh() -> None:
    """A scene measured in kilometres: areas of 1e-12 must not lose their normals."""
    sphere = trimesh.creation.icosphere(2, 1e-5)
    normals = vertex_normals(torch.tensor(sphere.vertices), torch.tensor(sphere.faces, dtype=torch.int64)).numpy()
    assert (normals * sphere.vertices / 1e-5).sum(axis=1).min() > 0.99
    kept, n = keep_faces(
        torch.tensor(sphere.vertices), torch.tensor(sphere.faces, dtype=torch.int64), Limits(0.01), False
    )
    assert n == 1 and kept.all()
