"""Found poses judged by pairs of photos: what is right convinces, what is not is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pycolmap = pytest.importorskip("pycolmap")

from nerf.capture import CaptureOptions, _apart, _contradicted  # noqa: E402
from nerf.capture.judging import EACH, judge, parallax, strongest  # noqa: E402
from nerf.capture.mapping import _fuller, calibrated  # noqa: E402
from nerf.capture.pairs import left_over, n_partners  # noqa: E402
from nerf.capture.report import FoundPoses, groups_of  # noqa: E402
from nerf.io.outputs import OutputFolder  # noqa: E402

FOCAL, WIDTH, HEIGHT, N = 700.0, 800, 600, 12


def poses(n: int = N) -> list[np.ndarray]:
    """World to camera [3,4], OpenCV axes, around the origin and looking at it."""
    found = []
    for k in range(n):
        angle = 2 * math.pi * k / n
        centre = np.array([4 * math.cos(angle), 4 * math.sin(angle), 1.0 + 0.3 * math.sin(3 * angle)])
        ahead = -centre / np.linalg.norm(centre)
        right = np.cross(ahead, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(ahead, right), ahead])
        found.append(np.concatenate([rotation, (-rotation @ centre)[:, None]], axis=1))
    return found


def model_of(w2c: list[np.ndarray], focal: float = FOCAL) -> Any:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", focal, WIDTH, HEIGHT))
    for i, pose in enumerate(w2c, 1):
        image = pycolmap.Image(name=f"{i:02d}.png", keypoints=np.zeros((0, 2)), camera_id=1, image_id=i)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    return model


def matches(w2c: list[np.ndarray], n: int = 60) -> dict[tuple[int, int], np.ndarray]:
    """What the photos of true poses show: {(image id, image id): points [n,4]} of neighbours, at most two apart."""
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (n, 3))

    def seen(pose: np.ndarray) -> np.ndarray:
        local = points @ pose[:, :3].T + pose[:, 3]
        return local[:, :2] / local[:, 2:] * FOCAL + (WIDTH / 2, HEIGHT / 2)

    pairs = [(i, j) for i in range(len(w2c)) for j in range(i + 1, len(w2c)) if min(j - i, len(w2c) - j + i) <= 2]
    return {(i + 1, j + 1): np.concatenate([seen(w2c[i]), seen(w2c[j])], axis=1) for i, j in pairs}


def test_a_right_model_convinces() -> None:
    pairs = matches(poses())
    found = judge(model_of(poses()), pairs, {}, WIDTH)
    assert found.n_pairs == found.n_fit == len(strongest(pairs)) and found.pixels < 1e-3
    assert found.convinces and not found.wrong and found.trust == 1


@pytest.mark.parametrize("fault", ["focal", "mirrored", "shuffled", "outwards"])
def test_a_wrong_model_is_refused(fault: str) -> None:
    true, pairs = poses(), matches(poses())
    if fault == "focal":
        model = model_of(true, FOCAL / 2)
    elif fault == "mirrored":
        model = model_of([np.diag([1.0, 1, -1]) @ p @ np.diag([1.0, 1, -1, 1]) for p in true])
    elif fault == "shuffled":
        model = model_of([true[k] for k in np.random.default_rng(1).permutation(N)])
    else:  # what photos see lies behind the cameras; the epipolar lines are the same
        model = model_of([np.concatenate([p[:, :3], -p[:, 3:]], axis=1) for p in true])
    found = judge(model, pairs, {}, WIDTH)
    assert found.wrong and not found.convinces and found.trust < 0.7, str(found)


def test_one_wrong_photo_is_no_wrong_model() -> None:
    true = poses()
    turned = [*true[:-1], true[-1] @ np.diag([1.0, 1, 1, 1.3])]
    found = judge(model_of(turned), matches(true), {}, WIDTH)
    assert not found.wrong and found.n_fit < found.n_pairs


def test_pairs_that_mapping_did_not_see_have_a_say() -> None:
    true, pairs = poses(), matches(poses())
    others = {pair: np.roll(points, 1, axis=0) * (1, 1, 1, 1.2) for pair, points in pairs.items()}
    found = judge(model_of(true), pairs, others, WIDTH)
    assert found.share == 1 and found.n_unseen == len(others) and not found.convinces
    assert f"and {found.n_unseen_fit} of {len(others)} that it was not made from" in str(found)


@pytest.mark.parametrize(("focal", "angle"), [(20.0, 174), (9000.0, 5), (math.nan, 180)])
def test_a_lens_that_there_is_not(focal: float, angle: int) -> None:
    found = judge(model_of(poses(), focal), matches(poses()), {}, WIDTH)
    assert found.wrong and found.trust == 0 and f"a lens that sees {angle} degrees is not believed" in str(found)


def test_photos_from_one_spot_are_no_basis() -> None:
    """Whatever positions mapping makes up: matches lie on the epipolar lines of any."""
    true = poses()
    centre = -true[0][:, :3].T @ true[0][:, 3]
    turns = [true[0][:, :3] @ pycolmap.Rotation3d(np.array([0, 0.03 * k, 0.01 * k])).matrix() for k in range(N)]
    seen = matches([np.concatenate([r, (-r @ centre)[:, None]], axis=1) for r in turns])
    rng = np.random.default_rng(5)
    found = judge(model_of([np.concatenate([r, rng.normal(size=(3, 1))], axis=1) for r in turns]), seen, {}, WIDTH)
    assert found.n_fit == found.n_pairs > 0 and found.wrong and found.trust == 0 and "one spot" in str(found)
    off = [pycolmap.Rotation3d(rng.normal(0, 0.003, 3)).matrix() @ r for r in turns]  # as mapping makes them up, too
    found = judge(model_of([np.concatenate([r, rng.normal(size=(3, 1))], axis=1) for r in off]), seen, {}, WIDTH)
    assert found.angle < 1e-3 and found.wrong and "one spot" in str(found)


def test_parallax_is_what_no_rotation_explains() -> None:
    rng = np.random.default_rng(2)
    first = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(200, 3))), dim=1)
    turn = torch.from_numpy(pycolmap.Rotation3d(np.array([0.2, -0.4, 0.1])).matrix())
    second = first @ turn.T
    second[:40] = second[:40].roll(1, dims=1)  # wrong matches
    assert float(parallax(first, second)[40:].max()) < 0.2
    points, shift = 5 * first, torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)
    moved = torch.nn.functional.normalize((points - shift) @ turn.T, dim=1)
    assert float(parallax(first, moved).median()) > 2


def test_photos_that_are_not_placed_say_nothing() -> None:
    found = judge(model_of(poses()[:1]), matches(poses()), {}, WIDTH)
    assert found.n_pairs == 0 and not found.wrong and not found.convinces and "no pair of photos" in str(found)


def test_a_fuller_lens_keeps_its_terms_and_has_as_many_as_colmap_writes(tmp_path: Path) -> None:
    """One too many is read back of a single camera, and shifts all that stands after it."""
    model = model_of(poses(3))
    model.add_camera_with_trivial_rig(pycolmap.Camera.create_from_model_name(2, "PINHOLE", 500.0, WIDTH, HEIGHT))
    model.cameras[1].params = [FOCAL, 400.0, 300.0, 0.1]
    for name, k in (("RADIAL", [0.1, 0.0]), ("OPENCV", [0.1, 0.0, 0.0, 0.0])):
        _fuller(model, [1], name)
        assert list(model.cameras[1].params)[-len(k) :] == k and model.cameras[1].verify_params()
        model.write(str(tmp_path))
        again = pycolmap.Reconstruction(str(tmp_path))
        assert list(again.cameras[2].params) == list(model.cameras[2].params)


def test_only_the_strongest_pairs_of_each_photo_are_asked() -> None:
    pairs = {(0, k): np.zeros((100 - k, 4)) for k in range(1, 20)}
    assert set(strongest(pairs)) == set(pairs), "the only ones of the others"
    complete = {(i, j): np.zeros((10 + i + j, 4)) for i in range(12) for j in range(i + 1, 12)}
    assert len(strongest(complete)) <= 12 * EACH and (10, 11) in strongest(complete)


def test_pairs_kept_to_judge_by() -> None:
    scores = {(0, 1): 50, (0, 2): 40, (0, 3): 30, (1, 2): 20, (2, 3): 2}
    assert left_over(scores, {(0, 1)}, 6, 2) == [(0, 2), (0, 3), (1, 2)]
    assert left_over(scores, {(0, 1)}, 6, 1) == [(0, 2)]
    assert [n_partners(n, 24) for n in (20, 50, 100, 300)] == [24, 22, 11, 10]


def test_groups_that_hang_together(tmp_path: Path) -> None:
    partners = {
        "a": {"b": 90, "c": 20},
        "b": {"a": 90},
        "c": {"a": 20, "d": 40},
        "d": {"c": 40, "e": 35},
        "e": {"d": 35},
    }
    assert groups_of(partners, 30) == [["c", "d", "e"], ["a", "b"]]
    with OutputFolder.open(tmp_path / "out", "poses") as folder:
        (folder.path / "images").mkdir()
        found = FoundPoses(n_photos=5, n_placed=5, seconds=1.0, groups=groups_of(partners, 30))
        said = _contradicted(folder, replace(found, judgement="2 of 9 pairs of photos fit it"))
    assert "2 of 9 pairs of photos fit it. Groups" in said and "3, 2 photos" in said
    assert (tmp_path / "out" / "groups.png").is_file()


def test_photos_of_two_places_are_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where groups hold nearly all photos and no strong pair joins them, weaker features are not waited for."""
    chain = {k: {j: 50 for j in (k - 1, k + 1) if j // 4 == k // 4} for k in range(8)}  # 0 to 3, and 4 to 7

    def asked(extra: dict[int, dict[int, int]], n_usable: int = 8) -> int:
        partners = {str(k): {str(j): n for j, n in (of | extra.get(k, {})).items()} for k, of in chain.items()}
        monkeypatch.setattr("nerf.capture.report.verified_partners", lambda database: partners)
        return _apart(Path("any.db"), n_usable)

    assert asked({}) == 4 and asked({3: {4: 20}, 4: {3: 20}}) == 4  # a weak pair is chance
    assert asked({3: {4: 40}, 4: {3: 40}}) == 0  # one strong pair: a gap that more features may close
    assert asked({}, n_usable=12) == 0  # photos that hang together with none


def test_groups_are_shown_where_they_are_used_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_capture import write_photos

    from nerf import capture
    from nerf.views.report import write_report

    write_photos(tmp_path / "photos", 5)
    solved = capture._solve

    def parted(*args: Any) -> Any:
        result, settings = solved(*args)
        return result | {"components": [3, 2]}, settings

    monkeypatch.setattr(capture, "_solve", parted)
    capture.find_poses(CaptureOptions(tmp_path / "photos", tmp_path / "run" / "dataset"))
    assert (tmp_path / "run" / "dataset" / "groups.png").is_file()
    summary = json.loads((tmp_path / "run" / "dataset" / "poses.json").read_text())["summary"]
    assert any("2 groups that do not hang together (of 3, 2" in line for line in summary)
    page = write_report(tmp_path / "run").read_text()
    assert "the largest is used" in page and page.count('src="data:image') == 2  # coverage and groups


def test_the_focal_length_that_pairs_agree_on(tmp_path: Path) -> None:
    """Of cameras whose axes do not meet in one point: there it is not determined."""
    rng = np.random.default_rng(3)
    database = pycolmap.Database.open(str(tmp_path / "features_1.db"))
    camera = pycolmap.Camera.create_from_model_name(0, "SIMPLE_RADIAL", 0.85 * WIDTH, WIDTH, HEIGHT)
    camera.camera_id = database.write_camera(camera)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(camera.sensor_id)
    rig_id = database.write_rig(rig)
    w2c, points = [], rng.uniform(-1, 1, (400, 3)) * (2, 2, 2)
    for pose in poses(8):
        tilt = pycolmap.Rotation3d(rng.uniform(-0.3, 0.3, 3)).matrix()
        w2c.append(tilt @ pose)
    seen = []
    for k, pose in enumerate(w2c):
        local = points @ pose[:, :3].T + pose[:, 3]
        seen.append(local[:, :2] / local[:, 2:] * FOCAL + (WIDTH / 2, HEIGHT / 2) + rng.normal(0, 0.3, (400, 2)))
        image = pycolmap.Image(name=f"{k}.png", camera_id=camera.camera_id)
        image.image_id = database.write_image(image)
        frame = pycolmap.Frame(rig_id=rig_id)
        frame.add_data_id(image.data_id)
        database.write_frame(frame)
        database.write_keypoints(image.image_id, seen[-1].astype(np.float32))
    same = np.repeat(np.arange(400, dtype=np.uint32)[:, None], 2, axis=1)
    for i in range(8):
        for j in range(i + 1, 8):
            options = pycolmap.TwoViewGeometryOptions()
            options.ransac.random_seed = 0
            geometry = pycolmap.estimate_two_view_geometry(camera, seen[i], camera, seen[j], same, options)
            database.write_two_view_geometry(i + 1, j + 1, geometry)
    database.close()
    job = {"database": str(tmp_path / "features_1.db"), "photos": [{"focal": None}] * 8}
    copy, found = calibrated(job)
    assert found and copy != job["database"]
    for path, focal, rel in ((copy, FOCAL, 0.03), (job["database"], 0.85 * WIDTH, 1e-9)):
        reread = pycolmap.Database.open(path)
        assert reread.read_all_cameras()[0].mean_focal_length() == pytest.approx(focal, rel=rel)
        reread.close()
    assert calibrated(job | {"photos": [{"focal": 700.0}] * 8}) == (job["database"], False)


def test_a_model_that_photos_contradict_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever mapping says: no transforms.json, the reason in poses.json, and an error."""
    from test_capture import write_photos

    from nerf import capture
    from nerf.errors import UserError

    write_photos(tmp_path / "photos", 5)
    solved = capture._solve

    about = {"wrong": True, "convinces": False, "judgement": "3 of 40 pairs of photos fit it"}

    def wrong(*args: Any) -> Any:
        result, settings = solved(*args)
        return result | about, settings

    monkeypatch.setattr(capture, "_solve", wrong)
    with pytest.raises(UserError, match=r"no poses were found that the photos bear out: .*3 of 40 pairs"):
        capture.find_poses(CaptureOptions(tmp_path / "photos", tmp_path / "set"))
    assert not (tmp_path / "set" / "transforms.json").exists() and (tmp_path / "set" / "groups.png").is_file()
    report = json.loads((tmp_path / "set" / "poses.json").read_text())
    assert report["n_placed"] == 5 and report["judgement"].startswith("3 of 40") and len(report["groups"][0]) == 5
    about["one_spot"] = True
    with pytest.raises(UserError, match="all photos were taken from one spot, by turning the camera"):
        capture.find_poses(CaptureOptions(tmp_path / "photos", tmp_path / "spot"))
    assert not (tmp_path / "spot" / "transforms.json").exists() and (tmp_path / "spot" / "poses.json").is_file()
