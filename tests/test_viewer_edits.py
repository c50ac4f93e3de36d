"""Edits of the viewer: regions, the file, undoing, and what they do to pictures and meshes; clicks; key views."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fakes import AnalyticModel, FakeModel, ball

from nerf.errors import BadValue, UserError
from nerf.geometry.rotations import rotations_of
from nerf.geometry.space import Similarity
from nerf.meshing.extract import extract_mesh
from nerf.views.paths import load_path
from nerf.views.viewer.edited import cut_mesh, edited, mesh_box, scale_mesh
from nerf.views.viewer.edits import EDITS_FILE, Edits, History, read_edits, write_edits
from nerf.views.viewer.frame import PageFrame
from nerf.views.viewer.key_views import (
    KeyPath,
    KeyView,
    load_keys,
    moved,
    save_keys,
    save_nerfstudio,
    with_view,
)
from nerf.views.viewer.picking import plane_at, plane_through, surface_point
from nerf.views.viewer.regions import Region

TURNED = tuple(tuple(row) for row in rotations_of(torch.tensor([[0.0, 0.0, math.pi / 4]]).double())[0].tolist())
HALF = Region("box", (1.0, 0.0, 0.0), (2.0, 4.0, 4.0))  # where x > 0
CROP = Edits(crop=HALF)
EYE = torch.tensor([0.0, -4.0, 0.0], dtype=torch.float64)
AHEAD = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)


# ---- regions


def test_a_turned_box_holds_what_lies_along_its_axes() -> None:
    box = Region("box", (1, 0, 0), (4, 1, 1), TURNED)
    along = torch.tensor([[1 + 1.3, 1.3, 0], [1 + 1.5, 1.5, 0], [1, 0, 0.6], [1, 0, 0.4]])
    assert box.contains(along).tolist() == [True, False, False, True]
    low, high = torch.tensor(box.bounds()[:3]), torch.tensor(box.bounds()[3:])
    assert torch.allclose(high - low, torch.tensor([5 / math.sqrt(2), 5 / math.sqrt(2), 1.0]).float().double().float())


def test_a_region_moves_with_its_frame() -> None:
    to = Similarity(2.0, rotations_of(torch.tensor([[0.3, 0.2, -0.5]]).double())[0], torch.tensor([1.0, 2, 3]).double())
    points = torch.rand(200, 3, dtype=torch.float64) * 4 - 2
    for region in (Region("box", (0.2, 0, 0), (2, 1, 3), TURNED), Region("sphere", (0, 0.5, 0), (2, 2, 2))):
        assert torch.equal(region.contains(points), region.moved(to).contains(to.apply(points)))
        assert region.grown(0.5).contains(points).sum() > region.contains(points).sum()


def test_rays_enter_and_leave_a_turned_box() -> None:
    box = Region("box", (0, 0, 0), (2, 2, 2), TURNED)
    origins = torch.tensor([[-5.0, 0, 0], [-5.0, 3, 0]])
    near, far = box.clip_rays(origins, torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]))
    assert near[0].item() == pytest.approx(5 - math.sqrt(2), abs=1e-5)
    assert far[0].item() == pytest.approx(5 + math.sqrt(2), abs=1e-5)
    assert near[1] >= far[1]


@pytest.mark.parametrize(
    ("shape", "centre", "size", "rotation"),
    [
        ("cone", (0, 0, 0), (1, 1, 1), TURNED),
        ("box", (0, 0), (1, 1, 1), TURNED),
        ("box", (0, 0, math.nan), (1, 1, 1), TURNED),
        ("box", (0, 0, 0), (1, 0, 1), TURNED),
        ("box", (0, 0, 0), (1, 1, 1), ((1, 0, 0), (0, 1, 0), (0, 0, -1))),
        ("box", (0, 0, 0), (1, 1, 1), "none"),
    ],
)
def test_what_is_no_region_is_refused(shape: str, centre: tuple, size: tuple, rotation: tuple) -> None:
    with pytest.raises(BadValue):
        Region(shape, centre, size, rotation)


# ---- the file


def test_edits_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert read_edits(tmp_path) == Edits()
    edits = Edits(
        Region("box", (1, 2, 3), (1, 1, 2), TURNED),
        (Region("sphere", (0, 0, 0), (1, 1, 1)),),
        (0.0, 0.6, 0.8),
        (1.0, 2.0, 3.0),
        0.25,
        "m",
        ("a.png", "b.png"),
    )
    write_edits(tmp_path, edits)
    assert read_edits(tmp_path) == edits
    assert edits.in_words() == "cropped, 1 region hidden, 2 photos left out, up direction set, lengths times 0.25 (m)"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "other"},
        {"scale": -1},
        {"scale": "long"},
        {"up": [0, 0, 0]},
        {"up": [1, 2]},
        {"crop": {"shape": "sphere", "centre": [0, 0, 0], "size": [1, 1, 1]}},
        {"crop": 3},
        {"hidden": [{"shape": "box"}]},
        {"hidden": 7},
        {"unit": "m" * 99},
        {"left_out": "a.png"},
        {"left_out": [1]},
    ],
)
def test_a_damaged_file_is_one_sentence(change: dict, tmp_path: Path) -> None:
    (tmp_path / EDITS_FILE).write_text(json.dumps(Edits().to_dict() | change))
    with pytest.raises(UserError, match=r"edits.json: holds no edits of the viewer .*--no-edits"):
        read_edits(tmp_path)


def test_every_change_is_saved_and_can_be_undone() -> None:
    saved: list[Edits] = []
    told: list[int] = []
    history = History(save=saved.append)
    history.told.append(lambda: told.append(1))
    history.change(crop=HALF)
    history.change(scale=3.0)
    history.change(scale=3.0)  # no change
    assert history.undo() and history.now == CROP and history.undo() and history.now.empty and not history.undo()
    assert history.redo() and history.redo() and not history.redo() and history.now.scale == 3.0
    history.undo()
    history.change(unit="m")
    assert not history.redo()  # what was undone is gone once something else was done
    assert len(saved) == len(told) == 8


def test_what_cannot_be_saved_is_not_changed() -> None:
    def full(edits: Edits) -> None:
        raise UserError("no room")

    history = History(save=full)
    with pytest.raises(UserError, match="no room"):
        history.change(scale=2.0)
    assert history.now.empty and not history.undo()


# ---- what they do


def test_a_crop_is_all_that_is_seen() -> None:
    model = AnalyticModel(ball(0.8))
    assert edited(model, Edits(scale=2.0)) is model
    shown = edited(model, CROP)
    assert isinstance(shown.coarser(2.0).marching, type(shown.marching))  # the crop stays with coarser steps
    origins = torch.tensor([[-0.3, -3.0, 0.0], [0.3, -3.0, 0.0]])
    directions = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    before, after = model.render_rays(origins, directions), shown.render_rays(origins, directions)
    assert before.opacities.min() > 0.99
    assert after.opacities[0] == 0 and after.opacities[1] > 0.99
    across = shown.render_rays(torch.tensor([[-3.0, 0.1, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert across.median_depths[0].item() == pytest.approx(3.0, abs=0.02)  # the cut face, in the middle of the ball


def test_what_is_hidden_is_not_seen_and_the_model_stays_as_it_was() -> None:
    model = AnalyticModel(ball(0.3))
    cells = model.occupancy.occupied.clone()
    hidden = edited(model, Edits(hidden=(Region("sphere", (0, 0, 0), (0.9, 0.9, 0.9)),)))
    ray = torch.tensor([[0.0, -3.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert hidden.render_rays(*ray).opacities[0] == 0 and model.render_rays(*ray).opacities[0] > 0.99
    assert torch.equal(model.occupancy.occupied, cells)


def test_a_crop_in_the_world_is_one_in_the_mesh() -> None:
    model = AnalyticModel(ball(0.6), scene_from_world=Similarity.around([0.0, 0.0, 0.0], 1.5))
    edits = Edits(crop=Region("box", (0.5, 0.0, 0.0), (1.0, 3.0, 3.0), TURNED), scale=10.0)
    assert mesh_box(model, Edits()) is None
    with pytest.raises(UserError, match="the crop holds nothing"):
        mesh_box(model, Edits(crop=Region("box", (9, 9, 9), (1, 1, 1))))
    step = 2 / 40
    mesh = extract_mesh(edited(model, edits), resolution=40, box=mesh_box(model, edits), show_progress=False)
    cut = cut_mesh(mesh, edits, 1.5 * step)
    whole = extract_mesh(model, resolution=40, show_progress=False)
    inside = edits.crop.grown(3 * step)  # type: ignore[union-attr]
    assert not bool(inside.contains(torch.from_numpy(np.array(whole.vertices))).all())
    assert bool(inside.contains(torch.from_numpy(np.array(cut.vertices))).all())
    assert 0.2 * whole.area < cut.area < 0.9 * whole.area
    size = cut.extents.copy()
    scale_mesh(cut, edits)
    np.testing.assert_allclose(cut.extents, 10 * size)


def test_a_cut_mesh_keeps_its_colours() -> None:
    mesh = trimesh.creation.icosphere(3)
    mesh.visual.vertex_colors = np.tile(np.array([10, 20, 30, 255], np.uint8), (len(mesh.vertices), 1))
    mesh.metadata = {"closed": True}
    part = cut_mesh(mesh, CROP)
    assert 0.4 < part.area / mesh.area < 0.6 and part.triangles_center[:, 0].min() >= 0
    assert (part.visual.vertex_colors[:, :3] == (10, 20, 30)).all() and part.metadata == {"closed": False}
    assert cut_mesh(mesh, Edits(crop=HALF.grown(5))) is mesh
    gone = cut_mesh(mesh, Edits(hidden=(Region("sphere", (1, 0, 0), (1, 1, 1)),)))
    assert 0 < len(gone.faces) < len(mesh.faces)


# ---- the page's frame


def test_the_page_is_upright_and_poses_go_there_and_back() -> None:
    up = torch.nn.functional.normalize(torch.tensor([0.2, -0.9, 0.3], dtype=torch.float64), dim=0)
    frame = PageFrame.around(torch.tensor([5.0, 6.0, 7.0]), up, 0.25)
    z = frame.from_world.apply_directions(up)
    np.testing.assert_allclose(z, [0, 0, 1], atol=1e-12)
    pose = FakeModel().cameras.c2w[3]
    wxyz, position = frame.pose(pose)
    np.testing.assert_allclose(frame.pose_to_world(wxyz, position), pose, atol=1e-9)
    ahead = frame.from_world.apply_directions(-pose[:, 2])  # OpenGL looks along -z, the page's cameras along +z
    from nerf.geometry.rotations import quaternion_to_matrix

    np.testing.assert_allclose(quaternion_to_matrix(torch.from_numpy(wxyz)[None])[0][:, 2], ahead, atol=1e-9)
    axes = torch.tensor(TURNED, dtype=torch.float64)
    np.testing.assert_allclose(frame.axes_to_world(frame.wxyz(axes)), axes, atol=1e-9)
    for axis in ([0.0, 0.0, 1.0], [0.0, 0.0, -1.0]):
        turned = PageFrame.around(torch.zeros(3), torch.tensor(axis).double(), 1.0)
        assert torch.linalg.det(turned.from_world.rotation) == pytest.approx(1.0)


# ---- clicks


def test_a_click_finds_the_surface_and_its_plane() -> None:
    model = FakeModel()  # a ball of world radius 1.05
    point = surface_point(model, EYE, AHEAD)
    assert point is not None
    np.testing.assert_allclose(point, [0, -1.05, 0], atol=2e-3)
    assert surface_point(model, EYE, -AHEAD) is None and plane_at(model, EYE, -AHEAD) is None
    found = plane_at(model, EYE, AHEAD)
    assert found is not None
    np.testing.assert_allclose(found[1], [0, -1, 0], atol=0.02)  # towards the viewer


def test_a_plane_with_strays_and_none_at_all() -> None:
    points = torch.rand(100, 3, dtype=torch.float64)
    points[:, 2] = 0.3 * points[:, 0]
    points[::20, 2] += 5.0
    normal = plane_through(points, torch.tensor([0.0, 0.0, 9.0]))
    assert normal is not None
    expected = torch.tensor([-0.3, 0, 1]).double()
    np.testing.assert_allclose(normal, expected / expected.norm(), atol=1e-6)
    below = plane_through(points, torch.tensor([0.0, 0.0, -9.0]))
    assert below is not None and torch.allclose(below, -normal)
    assert plane_through(points[:2], EYE) is None
    assert plane_through(torch.zeros(5, 3).double() + torch.arange(5)[:, None], EYE) is None  # on one line


# ---- key views


POSES = FakeModel().cameras.c2w


def test_a_path_passes_its_key_views_at_their_times() -> None:
    views = tuple(KeyView(POSES[i], 40.0 + 5 * i, 1.0 + i) for i in range(4))
    path = KeyPath(views, fps=12.0, speed=2.0)
    assert path.times.tolist() == [0.0, 1.0, 2.5, 4.5] and path.duration == 4.5 and path.n_frames == 54
    poses, fovs = path.poses_at(path.times)
    np.testing.assert_allclose(poses, POSES[:4], atol=1e-9)
    np.testing.assert_allclose(fovs, [40, 45, 50, 55], atol=1e-9)
    film = path.cameras(64, 48)
    assert len(film.cameras) == 54 and film.fps == 12.0
    np.testing.assert_allclose(film.cameras.c2w[[0, -1]], POSES[[0, 3]], atol=1e-9)
    closed = KeyPath(views, closed=True)
    assert closed.duration == 1.0 + 2 + 3 + 4
    np.testing.assert_allclose(closed.poses_at(torch.tensor([10.0]))[0][0], POSES[0], atol=1e-9)
    assert [v.fov for v in moved(views, 0, 2)] == [45, 50, 40, 55] and moved(views, 0, -1) == views
    assert len(with_view(path, 1, None).views) == 3
    with pytest.raises(UserError, match="no key views"):
        KeyPath().cameras(8, 8)
    with pytest.raises(BadValue, match="speed"):
        KeyPath(speed=0.0)


def test_paths_are_saved_for_us_and_for_nerfstudio(tmp_path: Path) -> None:
    path = KeyPath(tuple(KeyView(POSES[i], 50.0, 1.5) for i in range(3)), fps=10.0, speed=0.5, closed=True)
    save_keys(tmp_path / "ours.json", path, 64, 48)
    again = load_keys(tmp_path / "ours.json")
    assert (again.fps, again.speed, again.closed, len(again.views)) == (10.0, 0.5, True, 3)
    np.testing.assert_allclose(again.views[2].c2w, POSES[2], atol=1e-9)
    assert len(load_path(tmp_path / "ours.json").cameras) == path.n_frames  # what `nerf render --path` reads
    save_nerfstudio(tmp_path / "theirs.json", path, 64, 48)
    theirs = load_path(tmp_path / "theirs.json")
    np.testing.assert_allclose(theirs.cameras.c2w, path.cameras(64, 48).cameras.c2w, atol=1e-9)
    taken_apart = load_keys(tmp_path / "theirs.json")
    assert 2 <= len(taken_apart.views) <= 24 and taken_apart.duration == pytest.approx(path.duration, rel=0.05)
    broken = json.loads((tmp_path / "ours.json").read_text())
    broken["key_views"][0]["seconds"] = -1
    (tmp_path / "bad.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match="its key views cannot be understood"):
        load_keys(tmp_path / "bad.json")
