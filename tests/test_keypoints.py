"""Keypoints: which pixels show a sparse point and how far away, what is left out, and that they move the geometry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeModel
from small_scenes import write_colmap, write_transforms
from test_depth_maps import native, plain_sphere
from tiny import FIELD, sphere_scene, train_config

from nerf.datasets import Keypoints, Scene, keypoints, load
from nerf.datasets.parsed import Frame, Lens
from nerf.training.loop import train
from nerf.training.pixel_sampler import BLOCK, KEYPOINTS, PixelSampler


def frames_that_show(scene: Scene, points: np.ndarray) -> list[Frame]:
    """A frame for each photo of a scene, with the keypoints of world points [k,3] that project into it."""
    frames = []
    for i, name in enumerate(scene.names):
        camera = scene.cameras.subset([i])
        uv, _ = camera.project(torch.from_numpy(points))
        places = uv[0].numpy() / [int(camera.widths[0]), int(camera.heights[0])]
        inside = ((places >= 0) & (places < 1)).all(axis=1)
        rows = np.concatenate([places, points], axis=1)[inside]
        frames.append(Frame(name, Path(name), np.eye(4), Lens(), name, keypoints=rows))
    return frames


def some_points(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3)) * 0.3


@pytest.mark.parametrize("downscale", [1, 2])
def test_a_keypoint_is_the_pixel_that_shows_the_point_and_its_depth(tmp_path: Path, downscale: int) -> None:
    full = load(write_transforms(tmp_path, n=4), quiet=True)
    used = load(tmp_path, quiet=True, downscale=downscale)
    notes: list[str] = []
    found = keypoints.gather(frames_that_show(full, some_points()), full.cameras, used.cameras, notes)
    assert (
        found is not None
        and len(found) > 100
        and notes == [f"depths of sparse points: {len(found)} pixels of 4 images show one"]
    )
    uv, z = used.cameras.project(torch.from_numpy(some_points()))
    for k in range(0, len(found), 7):
        i, here = int(found.image_ids[k]), torch.tensor([int(found.cols[k]) + 0.5, int(found.rows[k]) + 0.5])
        inside = (uv[i] - here).abs().amax(dim=1) <= 0.5 + 1e-6  # several points may lie in one pixel
        depths = z[i][inside]
        assert float((depths - float(found.z_depths[k])).abs().min()) < 1e-5


def test_wrong_matches_are_left_out_and_another_frame_is_noticed(tmp_path: Path) -> None:
    scene = load(write_transforms(tmp_path, n=4), quiet=True)
    frames = frames_that_show(scene, some_points())
    assert frames[1].keypoints is not None
    right = sum(len(f.keypoints) for f in frames if f.keypoints is not None)
    frames[1].keypoints[:10, :2] = (frames[1].keypoints[:10, :2] + 0.3) % 1.0
    found = keypoints.gather(frames, scene.cameras, scene.cameras, [])
    assert found is not None and len(found) == right - 10
    for frame in frames:
        assert frame.keypoints is not None
        frame.keypoints[:, 2:] = frame.keypoints[:, [3, 4, 2]]  # the axes of another program
    notes: list[str] = []
    assert keypoints.gather(frames, scene.cameras, scene.cameras, notes) is None
    assert len(notes) == 1 and "in another frame" in notes[0]
    assert keypoints.gather([replace(f, keypoints=None) for f in frames], scene.cameras, scene.cameras, []) is None


def test_a_model_beside_the_poses_is_found_by_file_names_and_moved_as_the_poses_were(tmp_path: Path) -> None:
    frames = [Frame(f"images/{c}.jpg", Path(), np.eye(4), Lens(), "") for c in "abc"]
    row = np.array([[0.25, 0.5, 1.0, 2.0, 3.0]])
    moved = np.array([[0.0, 1, 0, 10], [1, 0, 0, 0], [0, 0, -1, 0]])
    assert keypoints.attach(frames, {"a.jpg": row, "b.jpg": row[:0]}, moved) == 1
    assert frames[0].keypoints is not None and frames[0].keypoints.tolist() == [[0.25, 0.5, 12.0, 1.0, -3.0]]
    assert frames[1].keypoints is None and frames[2].keypoints is None
    assert keypoints.attach(frames[2:], {"left/c.jpg": row, "right/c.jpg": row}) == 0  # which of the two is unknown


def test_colmap_models_bring_them_with_either_kind_of_poses(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    write_colmap(tmp_path, n=4)
    plain = load(tmp_path, quiet=True)
    assert plain.keypoints is None and plain.points is not None
    file, points = tmp_path / "sparse" / "0" / "images.txt", tmp_path / "sparse" / "0" / "points3D.txt"
    lines, tracks = file.read_text().splitlines(), points.read_text().splitlines()
    shown = torch.tensor([[float(x) for x in tracks[4 + i].split()[1:4]] for i in range(4)], dtype=torch.float64)
    uv, z = plain.cameras.project(shown)
    for i in range(4):  # photo i shows point 4 + i as its only keypoint
        u, v = uv[i, i].tolist()
        lines[2 + 2 * i] = f"{u} {v} {4 + i}"
        tracks[4 + i] += f" {i + 1} 0"
    file.write_text("\n".join(lines) + "\n")
    points.write_text("\n".join(tracks) + "\n")
    scene = load(tmp_path, quiet=True)
    assert scene.keypoints is not None, scene.notes
    assert scene.keypoints.image_ids.tolist() == [0, 1, 2, 3]
    assert scene.keypoints.z_depths.tolist() == pytest.approx(z.diagonal().tolist(), rel=1e-5)

    write_transforms(tmp_path, n=4)  # poses in the same world; the file names have to be those of the model
    text = (tmp_path / "transforms.json").read_text()
    (tmp_path / "transforms.json").write_text(text.replace("images/00", "images/im0"))
    again = load(tmp_path, quiet=True)
    assert again.source == "transforms" and again.keypoints is not None
    assert torch.equal(again.keypoints.rows, scene.keypoints.rows)
    (tmp_path / "sparse" / "0" / "cameras.txt").write_text("no model\n")
    broken = load(tmp_path, quiet=True)
    assert broken.keypoints is None and any("sparse points are not used" in line for line in broken.notes)


def sphere_keypoints(scene: Scene, n: int = 300) -> Keypoints:
    """Pixels within the sphere of `sphere_scene`, and how deep they are."""
    model, generator = FakeModel(), np.random.default_rng(0)
    parts = []
    for i in range(len(scene.names)):
        out = model.render_image(scene.cameras, i)
        rows, cols = np.nonzero(out.opacity > 0.99)
        chosen = generator.choice(len(rows), n // len(scene.names))
        r, c = torch.from_numpy(rows[chosen]), torch.from_numpy(cols[chosen])
        along = scene.cameras.image_rays(i)[1].double() @ scene.cameras.forward[i]
        lengths = torch.from_numpy(out.depth[rows[chosen], cols[chosen]])
        z = lengths * along.reshape(out.depth.shape)[r, c] / scene.scene_from_world.scale
        parts.append(Keypoints(torch.full((len(r),), i), r, c, z.float()))
    columns = ([getattr(p, name) for p in parts] for name in ("image_ids", "rows", "cols", "z_depths"))
    return Keypoints(*(torch.cat(c) for c in columns))


def test_every_eighth_pixel_drawn_shows_one() -> None:
    scene = sphere_scene(4, 64)
    scene = replace(scene, keypoints=sphere_keypoints(scene))
    sampler = PixelSampler(scene, torch.tensor([0, 1, 3]))  # photo 2 is held out, and what it shows with it
    batch = sampler.draw(800, torch.Generator().manual_seed(0))
    assert batch.depths is not None and len(batch.rows) == 800 and len(batch.rgb) == len(batch.alpha) == 800
    known = batch.depths > 0
    assert int(known.sum()) == 800 // KEYPOINTS and bool(known[-800 // KEYPOINTS :].all())
    assert scene.keypoints is not None and 2 not in batch.image_ids.tolist()
    table = {(int(i), int(r), int(c)): float(z) for i, r, c, z in zip(*vars(scene.keypoints).values(), strict=True)}
    for k in known.nonzero()[:, 0].tolist():
        at = int(batch.image_ids[k]), int(batch.rows[k]), int(batch.cols[k])
        assert table[at] == float(batch.depths[k])
        image, row, col = sampler.blocks[batch.blocks[k]].tolist()
        assert (image, row, col) == (at[0], at[1] // BLOCK, at[2] // BLOCK)


@native
def test_keypoints_move_the_surface_to_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, sphere = plain_sphere(), FakeModel()
    scene = replace(scene, depths=None, keypoints=sphere_keypoints(scene))

    def error(weight: float) -> float:
        config = train_config(steps=150, batch_samples=1 << 11, field=replace(FIELD, density_bias=3.0), depth=weight)
        model = train(scene, config, tmp_path / str(weight), progress=False)
        true, found = (m.render_image(scene.cameras, 5) for m in (sphere, model))  # a view that was held out
        both = (true.opacity > 0.5) & (found.opacity > 0.5)
        return float(np.abs(true.depth - found.depth)[both].mean())

    without, with_keypoints = error(0.0), error(0.2)
    assert with_keypoints < 0.8 * without, (without, with_keypoints)
