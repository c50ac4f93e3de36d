"""Every lens that COLMAP or nerfstudio writes: read from their files, and written to them again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_scenes import SIZE, write_colmap, write_transforms
from test_export import assert_same_cameras

from nerf.datasets import Scene, load
from nerf.datasets.colmap_models import COLMAP_MODELS
from nerf.errors import UserError
from nerf.geometry.lenses import EQUIRECTANGULAR, OPENCV, RATIONAL
from nerf.rendering.state import check_cameras
from nerf.training.export import export_cameras

NUMBERS = {"f": 50, "fx": 50, "fy": 52, "cx": 24, "cy": 23, "w": SIZE, "h": SIZE}
NUMBERS |= {"k1": 0.05, "k2": -0.02, "k3": 0.01, "k4": 0.004, "k5": -0.003, "k6": 0.002}
NUMBERS |= {"p1": 0.003, "p2": -0.002, "s1": 0.001, "s2": -0.004, "s3": 0.002, "s4": 0.003}
OWN = {"FOV": [50, 52, 24, 23, 0.8], "EUCM": [50, 52, 24, 23, 0.6, 1.1]}


def parameters(model: str) -> list[float]:
    return OWN.get(model, [NUMBERS[name] for name in COLMAP_MODELS[model][2].split()])


def through_pycolmap(model: str, scene: Scene) -> None:
    """The first camera projects as pycolmap's does."""
    pycolmap = pytest.importorskip("pycolmap")
    theirs = pycolmap.Camera(model=model, width=SIZE, height=SIZE, params=parameters(model))
    local = np.random.default_rng(0).uniform([-0.7, -0.7, 1.0], [0.7, 0.7, 2.0], size=(50, 3))
    c2w = scene.cameras.c2w[0].numpy()
    world = (local * [1, -1, -1]) @ c2w[:, :3].T + c2w[:, 3]
    uv, depths = scene.cameras.project(torch.from_numpy(world))
    wanted = np.stack([theirs.img_from_cam(p) for p in local]).reshape(-1, 2)
    assert np.abs(uv[0].numpy() - wanted).max() < 1e-6 and bool((depths[0] > 0).all())


@pytest.mark.parametrize("model", COLMAP_MODELS)
def test_colmap_models_of_every_lens_are_read_and_written(tmp_path: Path, model: str) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    if model not in pycolmap.CameraModelId.__members__:
        pytest.skip(f"this pycolmap has no {model}")
    assert int(pycolmap.CameraModelId.__members__[model].value) == COLMAP_MODELS[model][0]
    data = write_colmap(tmp_path / "data", f"{model} {SIZE} {SIZE} {' '.join(map(str, parameters(model)))}", n=4)
    scene = load(data, quiet=True)
    through_pycolmap(model, scene)
    check_cameras(scene.cameras)
    for text in (False, True):
        out = tmp_path / f"text {text}"
        export_cameras(scene, out, text=text)
        assert_same_cameras(scene, load(out, quiet=True))
    export_cameras(scene, tmp_path / "out.json")
    assert_same_cameras(scene, load(tmp_path / "out.json", quiet=True), atol=1e-14)


def test_a_transforms_json_names_coefficients_as_the_models_do(tmp_path: Path) -> None:
    for model, names in {"FOV": ["omega"], "EUCM": ["alpha", "beta"], "DIVISION": ["k"]}.items():
        values = parameters(model)
        lens = dict(zip(["fl_x", "fl_y", "cx", "cy", *names], values, strict=True))
        folder = write_transforms(tmp_path / model, n=4, camera_model=model, **lens)
        scene = load(folder, quiet=True)
        through_pycolmap(model, scene)
        export_cameras(scene, tmp_path / f"{model}.json")
        written = json.loads((tmp_path / f"{model}.json").read_text())
        assert written["camera_model"] == model and [written[n] for n in names] == values[4:]


def test_nerfstudios_list_of_coefficients(tmp_path: Path) -> None:
    model = "RAD_TAN_THIN_PRISM_FISHEYE"
    values = parameters(model)
    lens = dict(zip(["fl_x", "fl_y", "cx", "cy"], values[:4], strict=True))
    folder = write_transforms(
        tmp_path / "a", n=4, camera_model="FISHEYE624", distortion_params=list(values[4:]), **lens
    )
    through_pycolmap(model, load(folder, quiet=True))
    six = write_transforms(tmp_path / "b", n=4, camera_model="OPENCV", distortion_params=[0.1, 0.01, 0, 0, 1e-3, 2e-3])
    scene = load(six, quiet=True)
    assert scene.cameras.models.tolist() == [OPENCV] * 4
    assert scene.cameras.distortion[0].tolist() == [0.1, 0.01, 0, 0, 1e-3, 2e-3]
    short = write_transforms(tmp_path / "c", n=4, camera_model="FISHEYE624", distortion_params=[0.1, 0.2])
    with pytest.raises(UserError, match=r"frame 0 .*distortion_params must be a list of 12 numbers: k1, k2"):
        load(short, quiet=True)


def test_full_opencv_without_a_denominator_is_opencv(tmp_path: Path) -> None:
    lens = {"camera_model": "FULL_OPENCV", "k1": 0.1, "k3": 0.01}
    assert load(write_transforms(tmp_path / "a", n=4, **lens), quiet=True).cameras.models.tolist() == [OPENCV] * 4
    scene = load(write_transforms(tmp_path / "b", n=4, **lens, k4=0.1), quiet=True)
    assert scene.cameras.models.tolist() == [RATIONAL] * 4


def test_skew_goes_to_a_transforms_json_and_not_to_colmap(tmp_path: Path) -> None:
    scene = load(write_transforms(tmp_path / "data", n=4, skew=0.01), quiet=True)
    uv = scene.cameras.project(torch.zeros(1, 3, dtype=torch.float64))[0][0, 0]
    plain = load(write_transforms(tmp_path / "plain", n=4), quiet=True)
    expected = plain.cameras.project(torch.zeros(1, 3, dtype=torch.float64))[0][0, 0]
    assert float(uv[0] - expected[0]) == pytest.approx(0.01 * float(expected[1] - SIZE / 2), abs=1e-12)
    export_cameras(scene, tmp_path / "out.json")
    assert_same_cameras(scene, load(tmp_path / "out.json", quiet=True), atol=1e-14)
    with pytest.raises(UserError, match=r"has a skew, which no camera model of COLMAP has"):
        export_cameras(scene, tmp_path / "model")


def test_panoramas_in_a_transforms_json(tmp_path: Path) -> None:
    """nerfstudio's focal lengths are w / 2 and h; whatever is stated, the picture is a whole sphere."""
    stated = {"w": 2 * SIZE, "h": SIZE, "fl_x": float(SIZE), "fl_y": float(SIZE)}
    folder = write_transforms(tmp_path, n=4, camera_model="EQUIRECTANGULAR", **stated)
    scene = load(folder, quiet=True)
    assert scene.cameras.models.tolist() == [EQUIRECTANGULAR] * 4
    assert float(scene.cameras.fx[0]) == SIZE / (2 * math.pi) and float(scene.cameras.fy[0]) == SIZE / math.pi
    assert any("twice as wide as high" in note for note in scene.notes)  # these are square
    with pytest.raises(UserError, match=r"camera_model VR180_L is not supported .*EQUIRECTANGULAR"):
        load(write_transforms(tmp_path / "other", n=4, camera_model="VR180_L"), quiet=True)
