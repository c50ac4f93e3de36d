"""nerf.capture with pycolmap: photos of a known scene to poses, what is said of the rest, how it ends and goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captures import FOCAL, draw, pose, write_photos
from PIL import Image, ImageFilter

import nerf
from nerf.capture import CaptureOptions, child, find_poses, matching, pairs, verifying
from nerf.capture.frame import world_from_model
from nerf.capture.report import FoundPoses, all_alike, coverage_picture, reasons
from nerf.capture.settings import Settings, attempts
from nerf.cli import main as cli
from nerf.datasets import load
from nerf.errors import UserError
from nerf.io.arrays import on_disk

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))
from benchmarks.captures import aligned  # noqa: E402

# ---- the parts


def descriptors(n: int, seed: int) -> torch.Tensor:
    rows = torch.rand(n, 128, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.normalize(rows, dim=1) * matching.UNIT).round()  # bytes, as SIFT's are


def test_matches_are_mutual_nearest_neighbours_that_stand_out() -> None:
    a = descriptors(700, 0)
    noise = 2 * torch.randn(400, 128, generator=torch.Generator().manual_seed(2))
    b = torch.cat([descriptors(300, 1), (a[:400] + noise).round()])
    found = matching.match(a, b)
    angles = (a @ b.T / matching.UNIT**2).clamp(-1, 1).double().acos()
    expected = []
    for i in range(len(a)):
        order = angles[i].argsort()
        j = int(order[0])
        if angles[i, j] < 0.7 and angles[i, j] <= 0.8 * angles[i, order[1]] and int(angles[:, j].argmin()) == i:
            expected.append([i, j])
    assert found.tolist() == expected and len(expected) == 400
    assert len(matching.match(a, b[:1])) == 0 and len(matching.match(a[:0], b)) == 0
    twice = torch.cat([a, a])
    assert len(matching.match(a, twice)) == 0, "what is there twice does not stand out"


def test_signatures_are_alike_for_photos_of_the_same() -> None:
    places = [descriptors(60, k) for k in range(4)]
    photos = [place[torch.randperm(60)[:40]] for place in places for _ in range(2)]
    vectors = matching.signatures(photos, n_words=16)
    assert pairs.retrieve_similar(vectors, 1) == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_signatures_of_many_photos_are_compared_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of all with all took 100 MB of 5000 photos, their descriptors as floats 2 GB."""
    bytes_ = [(descriptors(12, k) / 2).to(torch.uint8) for k in range(50)]
    vectors = matching.signatures(bytes_, n_words=8)
    assert torch.equal(vectors, matching.signatures([b.float() for b in bytes_], n_words=8))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(50))
    similar = vectors @ vectors.T
    similar.fill_diagonal_(-2)
    wanted = {pairs.ordered(i, int(j)) for i in range(50) for j in similar[i].topk(5).indices}
    monkeypatch.setattr(pairs, "ROWS", 7)
    assert pairs.retrieve_similar(vectors, 5) == sorted(wanted)


def test_arrays_on_disk_are_as_they_were(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    given = [random.integers(0, 255, (n, 128), dtype=np.uint8) for n in (3, 0, 5)]
    parts = on_disk(iter(given), tmp_path)
    assert not list(tmp_path.iterdir()), "the file has no name"
    assert on_disk([], tmp_path) == [] and [p.shape for p in on_disk([given[1]], tmp_path)] == [(0, 128)]
    for part, wanted in zip(parts, given, strict=True):
        np.testing.assert_array_equal(part, wanted)
        assert not part.flags.writeable or not part.size


def test_which_pairs_are_compared() -> None:
    assert [pairs.choose_mode(n, False)[0] for n in (3, 300, 301)] == ["exhaustive", "exhaustive", "retrieval"]
    assert (
        pairs.choose_mode(50, True)[0] == "sequential" and pairs.choose_mode(50, False, "retrieval")[0] == "retrieval"
    )
    near = pairs.neighbours_in_time(200)
    assert {j - i for i, j in near} == {*range(1, 11), 16, 32, 64} and max(j for _, j in near) == 199
    assert pairs.neighbours_in_time(3) == [(0, 1), (1, 2), (0, 2)]
    loops = pairs.loop_candidates(200)
    assert not set(loops) & set(near) and (0, 198) in loops and len(loops) < 5000
    scores = {(i, j): 10 + i + j for i, j in pairs.all_pairs(6)} | {(0, 5): 2}
    kept = pairs.promising(scores, at_least=6, partners=2)
    assert (0, 5) not in kept and (4, 5) in kept and all(any(i in pair for pair in kept) for i in range(6))


def test_many_photos_with_gps_are_compared_with_those_taken_near() -> None:
    """A grid of 20 x 20 photos 30 m apart, across the date line, two of them without a position."""
    step = np.rad2deg(30 / pairs.EARTH)
    cosine = np.cos(np.deg2rad(52))
    gps: list[tuple[float, float] | None] = [
        (52 + step * (k // 20), (179.999 + step / cosine * (k % 20) + 180) % 360 - 180) for k in range(400)
    ]
    gps[7] = gps[300] = None
    places = pairs.metres(gps)
    assert float((places[21] - places[0]).norm()) == pytest.approx(30 * 2**0.5, rel=1e-3)
    assert places[300].isnan().all() and pairs.spread(gps) == pytest.approx(30 * 16, rel=0.1)
    mode, sentence = pairs.choose_mode(400, False, gps=gps)
    assert mode == "spatial" and "398 hold GPS" in sentence
    assert pairs.choose_mode(400, False, gps=gps[:300] + [None] * 100)[0] == "retrieval"
    near = [(52 + 1e-5 * (k % 7), 7 + 1e-5 * (k % 5)) for k in range(400)]
    mode, sentence = pairs.choose_mode(400, False, gps=near)
    assert mode == "retrieval" and "too near" in sentence
    assert pairs.choose_mode(300, False, gps=gps[:300])[0] == "exhaustive"
    found = set(pairs.nearest_places(gps, 8))
    assert {(189, 210), (190, 210), (191, 210), (209, 210), (210, 211), (210, 231)} <= found
    assert not any({7, 300} & set(pair) for pair in found) and len(found) < 400 * 8


def test_pairs_of_a_flight_over_a_field_by_gps() -> None:
    """420 photos in 12 lines 25 m apart, one each 12 m, positions wrong by 3 m (sigma), every 20th without one: nearly
    all that lie within 30 m are compared, no photo is left alone, and the order of the names does not matter."""
    rng = np.random.default_rng(0)
    along, line = np.meshgrid(np.arange(35), np.arange(12))
    true = np.stack([12.0 * along.ravel(), 25.0 * line.ravel()], axis=1)
    stated = true + rng.normal(size=true.shape) * 3
    degrees = np.rad2deg(stated / pairs.EARTH) / (np.cos(np.deg2rad(47.0)), 1)
    known = np.arange(420) % 20 > 0
    gps = [(47.0 + y, 9.0 + x) if has else None for (x, y), has in zip(degrees, known, strict=True)]
    assert pairs.choose_mode(420, False, gps=gps)[0] == "spatial"
    by_gps = set(pairs.nearest_places(gps))
    apart = np.linalg.norm(true[:, None] - true[None], axis=-1)
    near = {(i, j) for i, j in pairs.all_pairs(420) if apart[i, j] < 30 and known[i] and known[j]}
    assert len(near) > 1500 and len(near & by_gps) > 0.999 * len(near)
    assert len(by_gps) < 420 * pairs.NEAREST and max(apart[i, j] for i, j in by_gps) < 250
    order = rng.permutation(420)
    shuffled = pairs.nearest_places([gps[k] for k in order])
    assert {tuple(sorted((order[i], order[j]))) for i, j in shuffled} == by_gps

    class Fake:  # descriptors that are alike for photos within sight of each other
        names = tuple(str(k) for k in range(420))

        def of_signature(self, i: int) -> torch.Tensor:
            return places[torch.from_numpy((true[i] // 30).astype(int)) @ torch.tensor([12, 1])]

    Fake.gps = gps  # type: ignore[attr-defined]
    places = torch.stack([descriptors(20, k) for k in range(200)])
    certain, candidates = verifying._candidates("spatial", Fake())  # type: ignore[arg-type]
    assert certain == [] and by_gps <= set(candidates) and len(candidates) < 420 * (pairs.NEAREST + 20)
    together = np.zeros((420, 420), bool)
    for i, j in candidates:
        together[i, j] = together[j, i] = True
    assert together.sum(axis=1).min() >= 20, "those without GPS by their looks"
    reached = np.eye(1, 420, dtype=bool)[0]
    for _ in range(420):
        reached = reached | together[reached].any(axis=0)
    assert reached.all()


def test_photos_that_share_partners_are_compared_too() -> None:
    partners = {0: [1, 2], 1: [0, 3], 2: [0, 3], 3: [1, 2, 4], 4: [3]}
    known = {(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)}
    assert pairs.transitive(partners, known) == [(0, 3), (1, 2), (1, 4), (2, 4)]
    assert (0, 3) in pairs.transitive(partners, known, 1) and pairs.transitive({}, known) == []


def test_pairs_by_gps_place_all_photos(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycolmap")
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(6):
        tags = Image.Exif()
        tags[0x8825] = {1: "N", 2: (52.0, 0.0, 3.0 * k), 3: "W", 4: (7.0, 30.0, 0.0)}
        Image.fromarray(draw(pose(k, 6))).save(folder / f"{k}.jpg", exif=tags, quality=97)
    report = find_poses(CaptureOptions(folder, tmp_path / "out", matching="spatial"))
    assert report.n_placed == 6
    assert "compared 15 of 15 pairs" in capfd.readouterr().err
    write_photos(tmp_path / "plain", 3)
    with pytest.raises(UserError, match="none of the photos"):
        find_poses(CaptureOptions(tmp_path / "plain", tmp_path / "other", matching="spatial"))


def test_other_settings_are_tried_as_long_as_photos_are_missing() -> None:
    assert attempts(0.95, Settings()) is None
    second = attempts(0.5, Settings())
    assert second is not None and second.relaxed and second.of_features() == Settings().of_features()
    third = attempts(0.5, second)
    assert third is not None and third.first_octave == -1 and third.n_features > second.n_features
    assert attempts(0.8, second) is None and attempts(0.1, third) is None


def test_the_frame_has_z_up_and_the_subject_at_its_origin() -> None:
    """Poses turned, moved and scaled at random come back upright, and true lengths are kept."""
    truth = torch.from_numpy(np.stack([pose(k, 9) for k in range(9)]))
    points = torch.rand(50, 3, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    rotation = rotation * torch.linalg.det(rotation)
    moved = torch.cat([rotation @ truth[:, :, :3], 0.2 * (rotation @ truth[:, :, 3:]) + 5], dim=2)
    world = world_from_model(moved, 0.2 * points @ rotation.T + 5, metric=5.0)
    up = world.rotation @ rotation @ torch.tensor([0.0, 0, 1], dtype=torch.float64)
    assert up.tolist() == pytest.approx([0, 0, 1], abs=1e-6)
    origin = world.inverse().apply(torch.zeros(1, 3, dtype=torch.float64))
    assert ((origin - 5) / 0.2 @ rotation)[0].tolist() == pytest.approx([0.35, 0.35, 0.5], abs=0.02)
    between = [world.apply(moved[:, :, 3])[i] for i in (0, 4)]
    assert float((between[0] - between[1]).norm()) == pytest.approx(float((truth[0, :, 3] - truth[4, :, 3]).norm()))
    ahead = -(world.rotation @ moved[:, :, 2].mean(dim=0))
    assert abs(float(ahead[0])) < 1e-6 and float(ahead[1]) > 0, "the photos look along +y"


def test_alignment_is_umeyama_s() -> None:
    points = torch.rand(12, 3, dtype=torch.float64)
    rotation = torch.linalg.matrix_exp(torch.tensor([[0, -1.0, 0.4], [1.0, 0, 0.2], [-0.4, -0.2, 0]])).double()
    moved = 3.0 * points @ rotation.T + torch.tensor([1.0, 2, 3])
    found = aligned(points, moved)
    assert found.scale == pytest.approx(3, rel=1e-6) and torch.allclose(found.rotation, rotation, atol=1e-6)
    assert torch.allclose(found.apply(points), moved, atol=1e-6)


def photo(name: str) -> Any:
    return nerf.capture.photos.Photo(Path(name), name, 10, 10, 1, (), None, "", name)


def test_reasons_for_what_was_left_out() -> None:
    usual = {"n_features": 2000, "sharpness": 100.0, "mean": 120.0, "spread": 50.0}
    changes: dict[str, dict[str, Any]] = {
        "dark": {"mean": 6.0},
        "bright": {"mean": 250.0},
        "blank": {"spread": 1.0, "n_features": 0},
        "blurred": {"sharpness": 4.0, "n_features": 200},
        "plain": {"n_features": 50},
        "cut": {"damaged": "truncated", "n_features": 0},
        "elsewhere": {},
        "weak": {},
        "group": {},
    }
    statistics = {f"ok{k}": usual for k in range(20)} | {name: usual | change for name, change in changes.items()}
    placed = {f"ok{k}" for k in range(20)}
    partners = {"weak": {"ok3": 17}, "group": {"other": 100}}
    found = reasons([photo(n) for n in statistics], placed, [["group", "other"]], statistics, partners)
    words = {
        "dark": "too dark",
        "bright": "overexposed",
        "blank": "blank",
        "blurred": "blurred (4 % of",
        "plain": "little texture (50",
        "cut": "damaged (truncated)",
        "elsewhere": "no overlap",
        "weak": "at most 17 features",
        "group": "group of 2 photos",
    }
    assert set(found) == set(words)
    for name, expected in words.items():
        assert expected in found[name], found[name]


def test_many_photos_left_out_for_one_reason_are_one_line() -> None:
    left = {f"t{k}.jpg": f"too small (80x{60 + k % 2}): a thumbnail?" for k in range(5000)} | {"a.jpg": "blurred (4 %)"}
    found = FoundPoses(n_photos=5009, n_placed=8, components=[8], seconds=9, n_points=7, left_out=left)
    found = replace(found, judgement="9 of 20 pairs of photos fit it", convinces=False)
    lines = str(found).splitlines()
    assert lines[0].endswith("7 points; 9 of 20 pairs of photos fit it") and "look at coverage.png" in lines[1]
    assert len(str(replace(found, convinces=True)).splitlines()) == 3
    assert lines[2:] == [
        "left out 5000 photos: too small (t0.jpg, t1.jpg, t2.jpg and others, see poses.json)",
        "left out a.jpg: blurred (4 %)",
    ]


def test_the_view_from_above_shows_cameras_and_points() -> None:
    c2w = np.stack([pose(k, 8) for k in range(8)])
    picture = coverage_picture(c2w, np.random.default_rng(0).random((500, 3)), np.full((500, 3), 80, np.uint8), 300)
    red = (picture[..., 0].astype(int) - picture[..., 2] > 100).sum()
    assert picture.shape == (300, 300, 3) and red > 8 * 30 and (picture == 80).all(axis=2).sum() > 100
    assert coverage_picture(c2w[:1], np.zeros((0, 3)), np.zeros((0, 3), np.uint8), 100).shape == (100, 100, 3)


# ---- photos to poses


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, FoundPoses, list[np.ndarray]]:
    """(photos, data set, report, true poses): eight photos that fit, a blank, a blurred and a damaged one, a mask."""
    pytest.importorskip("pycolmap")
    root = tmp_path_factory.mktemp("capture")
    photos = root / "photos"
    truth = write_photos(photos, 8)
    Image.fromarray(np.full((240, 320, 3), 128, np.uint8)).save(photos / "x_blank.png")
    Image.fromarray(draw(pose(3, 8))).filter(ImageFilter.GaussianBlur(8)).save(photos / "x_blurred.png")
    damaged = (photos / "photo_00.png").read_bytes()
    (photos / "x_damaged.png").write_bytes(damaged[: len(damaged) // 3])
    (photos / "masks").mkdir()
    mask = np.full((240, 320), 255, np.uint8)
    mask[:, 200:] = 0
    Image.fromarray(mask).save(photos / "masks" / "photo_02.png")
    report = find_poses(
        CaptureOptions(photos, root / "set", distance=("photo_00", "photo_07.png", distance(truth, 0, 7)))
    )
    return photos, root / "set", report, truth


def distance(poses: list[np.ndarray], i: int, j: int) -> float:
    return float(np.linalg.norm(poses[i][:, 3] - poses[j][:, 3]))


def errors(scene: Any, truth: list[np.ndarray]) -> tuple[float, float, float]:
    """(median rotation error in degrees, largest position error, scale) after similarity alignment."""
    true = torch.from_numpy(np.stack(truth))
    c2w = scene.cameras.c2w
    fit = aligned(c2w[:, :, 3], true[:, :, 3])
    turned = fit.rotation @ c2w[:, :, :3]
    cosines = ((turned * true[:, :, :3]).sum(dim=(1, 2)) - 1) / 2
    angles = cosines.clamp(-1, 1).acos().rad2deg()
    return float(angles.median()), float((fit.apply(c2w[:, :, 3]) - true[:, :, 3]).norm(dim=1).max()), fit.scale


def test_poses_are_those_the_photos_were_taken_from(done: Any) -> None:
    _, folder, report, truth = done
    assert report.n_placed == 8 and report.components == [8] and report.reprojection_error < 0.6
    scene = load(folder, holdout=0, quiet=True)
    assert scene.source == "transforms" and scene.names == [f"images/photo_{k:02d}.png" for k in range(8)]
    rotation, position, scale = errors(scene, truth)
    assert rotation < 0.3 and position < 0.02 * distance(truth, 0, 7)
    assert scale == pytest.approx(1, rel=0.01), "the distance between two photos was given"
    assert scene.cameras.fx.median() == pytest.approx(FOCAL, rel=0.02)
    assert scene.cameras.c2w[:, 2, 1].min() > 0.5, "z is up, as the photos were held"
    assert scene.points is not None and len(scene.points) == report.n_points and scene.masks is not None
    assert (scene.masks.image(2)[..., 0] < 0.5).float().mean() == pytest.approx(120 / 320, abs=0.01)
    assert float(scene.masks.image(3).min()) == 1


def test_the_colmap_model_is_the_same_scene(done: Any) -> None:
    _, folder, _, _ = done
    ours, theirs = load(folder, quiet=True, holdout=0), load(folder, quiet=True, holdout=0, kind="colmap")
    assert [f"images/{name}" for name in theirs.names] == ours.names
    assert torch.allclose(ours.cameras.c2w, theirs.cameras.c2w, atol=1e-9)
    for name in ("fx", "cx", "distortion"):
        assert torch.allclose(ours.cameras.tensors()[name], theirs.cameras.tensors()[name])
    assert ours.points is not None and theirs.points is not None
    assert ours.keypoints is not None and theirs.keypoints is not None
    assert len(ours.keypoints) == len(theirs.keypoints) > 500
    uv, depths = ours.cameras.project(ours.points.double())
    seen = (uv[0] > 0).all(dim=1) & (uv[0, :, 0] < 320) & (uv[0, :, 1] < 240)
    assert float(seen.float().mean()) > 0.3 and float((depths > 0).float().mean()) > 0.99


def test_sizes_cameras_portrait_and_landscape_may_be_mixed(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    folder, truth = tmp_path / "photos", [pose(k, 9) for k in range(9)]
    folder.mkdir()
    for k, c2w in enumerate(truth):
        size = ((320, 240, 300.0), (240, 320, 300.0), (400, 300, 420.0))[k % 3]
        Image.fromarray(draw(c2w, *size)).save(folder / f"{k}.png")
    report = find_poses(CaptureOptions(folder, tmp_path / "out"))
    assert report.n_placed == 9 and len(report.components) == 1
    scene = load(tmp_path / "out", holdout=0, quiet=True)
    rotation, position, _ = errors(scene, truth)
    assert rotation < 0.5 and position < 0.03 * distance(truth, 0, 8)
    assert scene.cameras.widths.tolist() == [320, 240, 400] * 3
    assert float(scene.cameras.fx[2]) == pytest.approx(420, rel=0.04)


def test_what_was_left_out_has_a_reason(done: Any) -> None:
    _, folder, report, _ = done
    left = report.left_out
    assert set(left) == {"x_blank.png", "x_blurred.png", "x_damaged.png"}
    assert "blank" in left["x_blank.png"] and "blurred" in left["x_blurred.png"] and "damaged" in left["x_damaged.png"]
    written = json.loads((folder / "poses.json").read_text())
    asked = "n_pairs n_fit n_unseen n_unseen_fit pixels groups reprojection_error track_length"
    found = f"n_photos n_placed components pairs_compared pairs_matched n_points way judgement convinces {asked}"
    assert list(written) == f"format version summary {found} seconds settings left_out photos".split()
    assert written["summary"] == str(report).splitlines()
    assert written["left_out"] == left and written["photos"]["photo_03.png"]["points_seen"] > 50
    assert Image.open(folder / "coverage.png").size == (900, 900)
    assert sorted(p.name for p in (folder / "sparse" / "0").iterdir())[:2] == ["cameras.bin", "frames.bin"]


def test_the_same_call_again_repeats_nothing(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, folder, report, truth = done

    def never(*_: Any) -> None:
        raise AssertionError("the worker was started again")

    monkeypatch.setattr(child, "run_worker", never)
    before = load(folder, quiet=True).cameras.c2w
    again = find_poses(
        CaptureOptions(photos, folder, distance=("photo_00", "photo_07", distance(truth, 0, 7)), scale=3.0)
    )
    assert again.n_placed == 8 and again.seconds >= report.seconds - 1
    assert torch.allclose(load(folder, quiet=True).cameras.centres, 3 * before[:, :, 3])
    fewer = folder.parent / "fewer"
    shutil.copytree(photos, fewer)
    (fewer / "photo_03.png").unlink()
    with pytest.raises(UserError, match="holds the poses of"):
        find_poses(CaptureOptions(fewer, folder))


def test_a_changed_photo_is_noticed(done: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    photos, folder, _, _ = done
    for name, source in (("photos", photos), ("set", folder)):
        shutil.copytree(source, tmp_path / name)
    state = tmp_path / "set" / "capture" / "state.json"
    state.write_text(state.read_text().replace(str(photos.resolve()), str((tmp_path / "photos").resolve())))
    Image.fromarray(draw(pose(2, 9))).save(tmp_path / "photos" / "photo_02.png")

    class StartedAgain(Exception):
        pass

    def started(job: dict[str, Any], show: bool) -> None:
        assert not Path(job["database"]).exists() and not (tmp_path / "set" / "transforms.json").exists()
        raise StartedAgain

    monkeypatch.setattr(child, "run_worker", started)
    with pytest.raises(StartedAgain):
        find_poses(CaptureOptions(tmp_path / "photos", tmp_path / "set"))
    now = np.asarray(Image.open(tmp_path / "set" / "images" / "photo_02.png"))
    assert (now == draw(pose(2, 9))).all()


# ---- how it ends


def worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(child, "WORKER", [sys.executable, "-c", f"import sys, os, json, time\n{code}"])


def job(folder: Path) -> dict[str, Any]:
    (folder / "capture").mkdir(exist_ok=True)
    return {"folder": str(folder)}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), 11)", "ended with signal 11 while starting"),
        ("print(json.dumps({'stage': 'matching', 'total': 9}), flush=True); os._exit(3)", "status 3 while matching"),
        ("print('{}'); print('noise'); print(json.dumps({'error': 'the disk is full'}))", "the disk is full"),
    ],
)
def test_a_crash_is_one_sentence(code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, code)
    with pytest.raises(UserError, match=words) as caught:
        child.run_worker(job(tmp_path))
    assert "\n" not in str(caught.value) and "continues" in str(caught.value)


def test_a_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = [sys.argv[2]]; from nerf.capture import worker; import threading, time;"
        "threading.Thread(target=worker._end_with_the_parent, daemon=True).start(); print('up', flush=True);"
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "", str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdin.close()
    assert process.wait(timeout=20) == 1


@pytest.mark.parametrize("stage", ["finding features", "looking for overlap", "matching", "placing photos", "refining"])
def test_ctrl_c_ends_it_at_once_in_every_stage(stage: str, tmp_path: Path) -> None:
    """A worker that never ends, in the given stage; Ctrl-C goes to the command, as from a terminal."""
    pytest.importorskip("pycolmap")
    write_photos(tmp_path / "photos", 3)
    endless = f"import json, time; print(json.dumps({{'stage': {stage!r}, 'total': 5}}), flush=True); time.sleep(60)"
    code = (
        f"import sys; from nerf.capture import child; child.WORKER = [sys.executable, '-c', {endless!r}];"
        "from nerf.cli import main as cli; print('up', flush=True); cli.main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "poses", str(tmp_path / "photos"), "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )
    log = tmp_path / "out" / "capture" / "job.json"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command again continues" in text and "Traceback" not in text
    assert time.monotonic() - started < 5


def test_too_few_photos_end_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photos that show nothing in common: the reasons and what would help."""
    pytest.importorskip("pycolmap")
    monkeypatch.setattr("nerf.capture.attempts", lambda share, last: None)  # what is tried next is tested above
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for k in range(4):
        noise = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((320, 240))
        noise.save(tmp_path / "photos" / f"{k}.png")
    assert cli.run(["poses", str(tmp_path / "photos"), "-o", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert "only 0 of 4 photos could be placed" in text and "4 no overlap" in text and "take more photos" in text
    assert "Traceback" not in text and not (tmp_path / "out" / "transforms.json").exists()
    assert json.loads((tmp_path / "out" / "poses.json").read_text())["n_placed"] == 0


def test_a_picture_saved_again_and_again_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap")
    monkeypatch.setattr("nerf.capture.attempts", lambda share, last: None)
    (tmp_path / "photos").mkdir()
    for k in range(4):
        Image.fromarray(draw(pose(2, 8))).save(tmp_path / "photos" / f"{k}.jpg", quality=75 + 5 * k)
    assert cli.run(["poses", str(tmp_path / "photos"), "-o", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert "only 0 of 4 photos could be placed, because they hardly differ" in text
    names = [f"{k}.jpg" for k in range(4)]
    assert all_alike(tmp_path / "photos", names) and not all_alike(tmp_path / "photos", [])
    Image.fromarray(draw(pose(3, 8))).save(tmp_path / "photos" / "2.jpg")
    assert not all_alike(tmp_path / "photos", names)
    for k in range(4):
        Image.fromarray(np.full((240, 320, 3), 99 + k, np.uint8)).save(tmp_path / "photos" / f"{k}.jpg")
    assert not all_alike(tmp_path / "photos", names), "blank ones are said to be blank"


# ---- nerf reconstruct of photos without poses


def test_reconstruct_finds_the_poses_first(
    done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, folder, _, _ = done
    asked: list[CaptureOptions] = []
    trained: list[Any] = []

    def interrupted(args: CaptureOptions) -> None:
        asked.append(args)
        args.out.mkdir()
        raise KeyboardInterrupt

    def found(args: CaptureOptions) -> None:
        asked.append(args)
        shutil.copytree(folder, args.out, dirs_exist_ok=True)

    def train(scene: Any, config: Any, out: Path, resume: bool = False, **options: Any) -> None:
        trained.append(scene)
        raise UserError("far enough")

    monkeypatch.setattr("nerf.training.loop.train", train)
    command = ["reconstruct", str(photos), "-o", str(tmp_path / "out"), "--frames", "9"]
    monkeypatch.setattr("nerf.capture.find_poses", interrupted)
    assert cli.run(command) == 130
    monkeypatch.setattr("nerf.capture.find_poses", found)
    assert cli.run(command) == 2 and "--resume" in capsys.readouterr().err
    assert cli.run([*command, "--resume"]) == 2 and "far enough" in capsys.readouterr().err
    assert [(a.data, a.out, a.frames) for a in asked] == 2 * [(photos, tmp_path / "out" / "dataset", 9)]
    assert trained[0].names[0] == "images/photo_00.png" and len(trained[0].names) == 8


def test_verbs_that_need_poses_say_where_they_come_from(
    done: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, folder, _, _ = done
    cases = (
        (["train", str(photos), "-o", str(tmp_path / "out")], "nerf poses"),
        (["reconstruct", str(folder), "-o", str(tmp_path / "out"), "--frames", "9"], "--frames is for photos"),
        (["train", str(tmp_path), "-o", str(tmp_path / "out")], "`nerf poses` finds the poses"),
    )
    for arguments, words in cases:
        assert cli.run(arguments) == 2
        assert words in capsys.readouterr().err
