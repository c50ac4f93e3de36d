"""Scenes of panoramas, all the way: what is behind a camera is in its picture, and counts like everything else."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import trimesh
from fakes import AnalyticModel
from spheres import HALF, room, sphere_directions, walls, write_panoramas
from tiny import FIELD, make_scene, train_config, uniform

from nerf.datasets import Scene, keypoints, load
from nerf.datasets.parsed import Frame, Lens, sphere
from nerf.datasets.posed import cameras_of
from nerf.geometry.aim import look_at_point, nearest_point_to_axes
from nerf.geometry.cameras import Cameras
from nerf.geometry.lenses import FISHEYE
from nerf.geometry.rotations import rotations_of
from nerf.geometry.space import Similarity
from nerf.io import checkpoint
from nerf.meshing.fused import depth_views, unproject_depths
from nerf.meshing.preview import render_mesh
from nerf.meshing.texture import photo_ratings
from nerf.rendering.model import Model
from nerf.rendering.state import check_cameras
from nerf.training.evaluation import evaluate
from nerf.training.loop import Trainer, train
from nerf.training.pixel_sampler import PixelBatch, ray_lengths
from nerf.training.pose_refinement import _on_the_sphere
from nerf.training.visibility import visible_cells
from nerf.views.paths.lens import picture_size, with_lens_of

WIDTH = 96


def panoramas(folder: Path, n: int = 12, width: int = WIDTH) -> Path:
    """A data set of panoramas of the room, with some points of its walls."""
    poses = write_panoramas(folder / "images", n, width, smooth=True)
    frames = [
        {"file_path": f"images/sphere_{k:02d}.png", "transform_matrix": [*c2w.tolist(), [0, 0, 0, 1]]}
        for k, c2w in enumerate(poses)
    ]
    g = np.random.default_rng(0)
    points = g.uniform(-1, 1, (400, 3))
    points[np.arange(400), g.integers(0, 3, 400)] = g.choice([-1.0, 1.0], 400)
    trimesh.PointCloud(points * HALF).export(folder / "cloud.ply")
    head = {"camera_model": "EQUIRECTANGULAR", "ply_file_path": "cloud.ply", "w": width, "h": width // 2}
    (folder / "transforms.json").write_text(json.dumps({**head, "frames": frames}))
    return folder


def looking(n: int = 3) -> Cameras:
    """n panoramas at random places within the room, turned at random."""
    turns = rotations_of(3 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    centres = uniform(n, 3, seed=1, low=-1.0).double()
    return cameras_of(torch.cat([turns, centres[:, :, None]], dim=2), [sphere(WIDTH, WIDTH // 2)] * n)


def room_mesh() -> trimesh.Trimesh:
    """The room's walls, seen from within, of small triangles: their edges are drawn straight."""
    box = trimesh.creation.box(2 * HALF)
    for _ in range(4):
        box = box.subdivide()
    box.invert()
    return box


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return load(panoramas(tmp_path_factory.mktemp("room")), quiet=True)


def test_rays_of_the_pictures_are_those_of_the_room(scene: Scene) -> None:
    """Independent of `Cameras`: the test draws its panoramas by its own formula."""
    pictures = walls(smooth=True)
    for i in (0, 5):
        rays_o, rays_d = scene.cameras.image_rays(i)
        seen = room(pictures, rays_o[0].numpy().astype(np.float64), rays_d.numpy().astype(np.float64))
        shown = scene.pixels.image(i)[..., :3].reshape(-1, 3).numpy() * 255
        assert np.abs(seen - shown).max() < 1.0


def test_the_region_is_the_room_around_the_panoramas(scene: Scene) -> None:
    assert any("unbounded scene around the cameras" in note for note in scene.notes)
    half = 1 / scene.scene_from_world.scale
    assert 1.2 < half <= 3.0 and scene.near * half < 0.8
    assert nearest_point_to_axes(scene.cameras) is None  # the pictures' middles mean nothing
    centre = scene.cameras.centres.mean(dim=0)
    assert torch.allclose(look_at_point(scene.cameras, scene.scene_from_world, scene.space), centre)


def test_a_room_is_learnt_from_panoramas(scene: Scene, tmp_path: Path) -> None:
    field = replace(FIELD, density_bias=3.0)
    config = train_config(steps=300, batch_samples=1 << 13, field=field)
    model = train(scene, config, tmp_path, progress=False)
    assert evaluate(model, scene, show_progress=False).psnr > 21.0
    again = Model.load(tmp_path / "checkpoint.safetensors")
    for name, values in model.cameras.tensors().items():
        assert torch.equal(again.cameras.tensors()[name], values), name


def test_poses_of_panoramas_are_refined(scene: Scene) -> None:
    config = train_config(steps=4, batch_samples=1 << 11, field=FIELD).with_settings(refine_poses=True, pose_after=0)
    trainer = Trainer(scene, config)
    for _ in range(3):
        trainer.train_step()
    assert trainer.poses is not None
    moved = trainer.poses.shifts[trainer.poses.ids]
    assert bool(moved.isfinite().all()) and float(moved.abs().max()) > 0


@pytest.mark.parametrize("spherical", [True, False])
def test_what_a_move_does_to_directions(spherical: bool) -> None:
    """(w, s) turn and shift a camera: by finite differences in longitude and latitude."""
    x, y = (uniform(2, 5, seed=k, low=-1.2, high=1.2).double() for k in (0, 1))
    q = uniform(2, 5, seed=2, low=0.3, high=2.0).double()
    rows = _on_the_sphere(x, y, q, torch.full((2,), spherical))
    n = x.numel()
    if spherical:
        camera = cameras_of(torch.eye(4, dtype=torch.float64)[None, :3], [sphere(200, 100)])
    else:
        lens = Lens(FISHEYE, 50.0, 50.0, 100.0, 50.0, 200, 100)
        camera = cameras_of(torch.eye(4, dtype=torch.float64)[None, :3], [lens])
    u, v = x.reshape(-1) * camera.fx + camera.cx, camera.cy - y.reshape(-1) * camera.fy
    d = camera._camera_directions(torch.zeros(n, dtype=torch.int64), v - 0.5, u - 0.5)
    d = torch.nn.functional.normalize(d, dim=1) * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    p = d / q.reshape(-1, 1)
    step = 1e-6
    for k in range(6):
        move = torch.zeros(6, dtype=torch.float64)
        move[k] = step
        new = torch.nn.functional.normalize(p - torch.linalg.cross(move[None, :3].expand_as(p), p) - move[3:], dim=1)
        change = (new - d) / step
        longitude, latitude = torch.atan2(d[:, 0], -d[:, 2]), d[:, 1].asin()
        across = torch.stack([longitude.cos(), 0 * longitude, longitude.sin()], dim=1)
        upwards = torch.linalg.cross(across, d)
        got = rows[:, :, k].reshape(2, 2, 5)
        torch.testing.assert_close(got[:, 0].reshape(-1), (change * across).sum(dim=1), atol=1e-5, rtol=0)
        assert torch.allclose(upwards[:, 1], latitude.cos())
        torch.testing.assert_close(got[:, 1].reshape(-1), (change * upwards).sum(dim=1), atol=1e-5, rtol=0)


def test_sparse_points_all_around_become_distances() -> None:
    cameras = looking()
    points = uniform(200, 3, seed=3, low=-3.0, high=3.0).double()
    uv = cameras.project(points)[0]
    size = torch.tensor([WIDTH, WIDTH // 2], dtype=torch.float64)
    frames = [
        Frame(f"{i}.png", Path(), np.eye(4), Lens(), "", keypoints=torch.cat([uv[i] / size, points], dim=1).numpy())
        for i in range(3)
    ]
    found = keypoints.gather(frames, cameras, cameras, [])
    assert found is not None and len(found) == 600
    distance = (points - cameras.centres[1]).norm(dim=1)
    torch.testing.assert_close(found.z_depths[found.image_ids == 1].double(), distance, atol=1e-5, rtol=1e-6)
    scene = cast(Scene, SimpleNamespace(cameras=cameras, scene_from_world=Similarity.identity()))
    zero = torch.zeros(0)
    batch = PixelBatch(found.image_ids, found.rows, found.cols, zero, zero, zero, None, found.z_depths)
    _, rays_d = cameras.rays(found.image_ids, found.rows, found.cols)
    torch.testing.assert_close(ray_lengths(scene, batch, rays_d), found.z_depths)


def test_panoramas_see_every_cell() -> None:
    images = [np.full((WIDTH // 2, WIDTH, 3), 9, np.uint8)] * 3
    scene = make_scene(images, looking(), 0, scene_from_world=Similarity.identity())
    centres, sizes = uniform(500, 3, low=-4.0, high=4.0), torch.full((500,), 0.1)
    assert bool(visible_cells(scene, torch.arange(3))(centres, sizes).all())


def test_a_mesh_is_drawn_all_around_and_over_the_seam() -> None:
    mesh, cameras = room_mesh(), looking()
    for i in range(3):
        seen = render_mesh(mesh, cameras, i, supersample=1)
        c2w = cameras.c2w[i].numpy()
        d = sphere_directions(WIDTH) @ c2w[:, :3].T
        with np.errstate(divide="ignore"):
            distance = ((np.sign(d) * HALF - c2w[:, 3]) / d).min(axis=-1)
        inner = slice(3, -3)  # triangles that hold a pole are no triangles in the picture
        assert seen.opacity[inner].min() == 1.0
        assert np.abs(seen.depth / distance - 1)[inner].max() < 0.05
        assert np.abs(seen.depth / distance - 1)[inner][:, [0, -1]].max() < 0.05  # the seam


def test_panoramas_colour_what_is_behind_them() -> None:
    mesh, cameras = room_mesh(), looking()
    images = [np.full((WIDTH // 2, WIDTH, 3), 99, np.uint8)] * 3
    scene = make_scene(images, cameras, 0, scene_from_world=Similarity.identity())
    vertices, faces = torch.from_numpy(np.array(mesh.vertices)), torch.from_numpy(np.array(mesh.faces))
    normals = torch.from_numpy(np.array(mesh.vertex_normals))
    ratings = photo_ratings(scene, vertices, faces, normals, torch.arange(3))
    behind = (vertices - cameras.centres[0]) @ cameras.forward[0] < -0.5
    assert bool(ratings.isfinite().all()) and float((ratings[0, behind] > 0).double().mean()) > 0.7


def test_depth_maps_of_panoramas_look_to_six_sides() -> None:
    cameras = looking(2)
    quarter = Similarity(0.25, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    model = AnalyticModel(lambda p: 0.8 - p.norm(dim=1), scene_from_world=quarter, cameras=cameras)
    views = depth_views(model, 64, 24)
    assert len(views) == 12
    points = torch.cat([unproject_depths(view) for view in views])
    assert float((points.norm(dim=1) - 0.8).abs().max()) < 0.1
    assert len(points) > 0.9 * 12 * views[0].depths.numel()
    assert bool((points.amax(dim=0) > 0.7).all()) and bool((points.amin(dim=0) < -0.7).all())


def test_paths_have_a_lens_like_others() -> None:
    cameras = looking()
    assert picture_size(cameras, False, None, None, None) == (WIDTH // 2, WIDTH // 4)
    path = with_lens_of(cameras.c2w, cameras, WIDTH // 2, WIDTH // 4)
    assert torch.allclose(path.fx, cameras.fx) and not bool(path.spherical.any())


def test_checkpoints_of_before_still_load(scene: Scene, tmp_path: Path) -> None:
    """Six coefficients a camera, as ever; models and widths that are none are refused."""
    model = Trainer(scene, train_config(steps=1, field=FIELD)).model
    assert model.cameras.distortion.shape == (len(model.cameras), 6)
    model.save(tmp_path / "model.safetensors")
    tensors, _ = checkpoint.load(tmp_path / "model.safetensors")
    assert tensors["cameras.distortion"].shape[1] == 6
    assert math.isfinite(float(Model.load(tmp_path / "model.safetensors").cameras.fx[0]))
    for name, wrong in {"models": torch.full((12,), 99), "distortion": torch.zeros(12, 7, dtype=torch.float64)}.items():
        with pytest.raises(ValueError, match=f"cameras.{name}"):
            check_cameras(Cameras(**scene.cameras.tensors() | {name: wrong}))
