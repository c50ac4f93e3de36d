"""Evaluation on an analytic model: numbers, protocol, pictures, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeModel, fake_scene, ring_cameras, scene_of
from PIL import Image

from nerf.datasets import Scene
from nerf.errors import UserError
from nerf.training.evaluation import compare, evaluate, mask_of, picture_name, shrunk, truth_of


def _images(scene: Scene) -> list[np.ndarray]:
    return [scene.pixels.image(i).numpy().copy() for i in range(len(scene.names))]


@pytest.fixture
def scene() -> Scene:
    return fake_scene(FakeModel(), n=8, size=40, noise=0.02)


def test_numbers_are_means_over_the_split(scene: Scene) -> None:
    result = evaluate(FakeModel(), scene, "test", show_progress=False)
    assert [view.index for view in result.views] == [0, 4]
    # Noise of 0.02 on the sphere only, which fills about a quarter of the view; a little less where it was clipped.
    assert 34 < result.psnr < 45
    for name in ("psnr", "ssim", "psnr_colour_corrected"):
        assert getattr(result, name) == pytest.approx(np.mean([getattr(view, name) for view in result.views]))
    assert all(view.psnr_colour_corrected >= view.psnr for view in result.views)
    assert "held-out views (test)" in str(result)


def test_training_views_are_called_by_their_name(scene: Scene) -> None:
    result = evaluate(FakeModel(), scene, "train", max_views=3, show_progress=False)
    assert result.n_views == 3 and result.protocol.n_views_in_split == 6
    assert [view.index for view in result.views] == [1, 3, 7]  # first, middle, last of 1 2 3 5 6 7
    assert result.protocol.held_out is False and "TRAINED on" in str(result)


def test_the_file_holds_the_whole_protocol(scene: Scene, tmp_path: Path) -> None:
    scene.notes.append("images down-scaled by 2 (area average)")
    evaluate(FakeModel(), scene, "test", tmp_path, show_progress=False)
    written = json.loads((tmp_path / "eval.json").read_text())
    numbers, about = ["psnr", "ssim", "psnr_colour_corrected"], written["protocol"]
    assert list(written) == [*numbers, "n_views", "seconds", "render_seconds_per_view", "protocol", "views"]
    assert list(written["views"][0]) == ["name", "index", "width", "height", *numbers, "seconds"]
    measured = "data format split held_out n_views n_views_in_split n_train_views resolution down_scaling background"
    measured += " colour_space masks poses psnr ssim psnr_colour_corrected training backend machine date"
    assert set(about) == set(measured.split())
    assert about["background"] == "white" and about["split"] == "test" and about["resolution"] == ["40x40"]
    assert about["colour_space"].startswith("sRGB") and "by 2" in about["down_scaling"]
    assert about["n_views"] == 2 and about["n_train_views"] == 6 and about["training"]["steps"] == 10
    assert about["backend"] in ("cpu", "reference")
    assert about["machine"]["cores"] >= 1 and about["machine"]["cpu"] and about["machine"]["torch"]


def test_large_views_are_measured_smaller_and_said_to_be(scene: Scene) -> None:
    result = evaluate(FakeModel(), scene, "test", show_progress=False, most_pixels=40 * 40 / 2)
    about = result.protocol
    assert about.resolution == ["20x20"] and "rendered smaller" in about.down_scaling
    full = evaluate(FakeModel(), scene, "test", show_progress=False, most_pixels=40 * 40)
    assert full.protocol.resolution == ["40x40"] and "smaller" not in full.protocol.down_scaling
    assert result.psnr > 24, "a pixel off would be 19; the outline is sharp in one and averaged in the other"


def test_blocks_are_averaged_and_count_where_all_their_pixels_do() -> None:
    truth = torch.arange(5 * 4 * 3, dtype=torch.float32).reshape(5, 4, 3)
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[1, 0] = False
    smaller, counts = shrunk(truth, mask, 2)
    assert counts is not None and counts.tolist() == [[False, True], [True, True]]
    torch.testing.assert_close(smaller[1, 0], truth[2:4, 0:2].reshape(4, 3).mean(dim=0))
    assert shrunk(truth, None, 1) == (truth, None)


def test_pictures_are_written_and_right(scene: Scene, tmp_path: Path) -> None:
    model = FakeModel()
    evaluate(model, scene, "test", tmp_path, show_progress=False)
    render = np.asarray(Image.open(tmp_path / "renders" / picture_name(4, "view_004.png")))
    assert np.abs(render / 255 - model.render_image(scene.cameras, 4).color).max() < 0.51 / 255
    sheet = Image.open(tmp_path / picture_name(4, "view_004.png"))
    assert sheet.width > 3 * 40 and sheet.height > 40
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["0000_view_000.png", "0004_view_004.png", "eval.json", "nerf.json", "renders"]


def test_names_of_pictures_are_safe_and_unique() -> None:
    assert picture_name(3, "../../a b/ä:ö.jpg") == "0003__.png" or "/" not in picture_name(3, "../../a b/ä:ö.jpg")
    assert picture_name(1, "left/0001.jpg") != picture_name(2, "right/0001.jpg")


def test_alpha_and_grey_are_composited_over_the_background() -> None:
    red = torch.tensor([1.0, 0.0, 0.0])
    grey_alpha = np.array([[[0.5, 1.0], [0.5, 0.0], [0.5, 0.5]]], dtype=np.float32)
    cameras, frame = ring_cameras(1), FakeModel().scene_from_world
    with_alpha, grey = (scene_of([image], cameras, frame, held_out=0) for image in (grey_alpha, grey_alpha[..., :1]))
    want = [[0.5, 0.5, 0.5], [1.0, 0.0, 0.0], [0.75, 0.25, 0.25]]
    torch.testing.assert_close(truth_of(with_alpha, 0, red)[0], torch.tensor(want))
    assert (truth_of(grey, 0, red) == 0.5).all() and truth_of(grey, 0, red).shape == (1, 3, 3)


def test_masked_pixels_do_not_count(scene: Scene) -> None:
    used = np.ones((40, 40), dtype=np.uint8)
    used[:, 20:] = 0
    broken = _images(scene)
    for image in broken:
        image[:, 20:] = 0
    scene = scene_of(broken, scene.cameras, scene.scene_from_world, masks=[used] * 8)
    result = evaluate(FakeModel(), scene, "test", show_progress=False)
    assert result.psnr > 34 and "masks" in result.protocol.masks
    assert mask_of(scene, 0).sum() == 40 * 20


def test_numbers_that_do_not_exist_are_null_in_json() -> None:
    scores = compare(torch.zeros(5, 5, 3), torch.zeros(5, 5, 3))
    assert scores.psnr == scores.psnr_colour_corrected == math.inf and math.isnan(scores.ssim)  # equal; too small
    assert scores.to_dict() == {"psnr": None, "ssim": None, "psnr_colour_corrected": None}


@pytest.mark.parametrize(
    ("split", "words"), [("val", r"val is empty.*expected one of train \(\d+ images\)"), ("tset", "tset is no split")]
)
def test_splits_without_views_are_refused(scene: Scene, split: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(FakeModel(), scene, split, show_progress=False)


def test_linear_light_is_compared_and_shown_as_srgb(tmp_path: Path) -> None:
    model = FakeModel(linear=True)
    scene = fake_scene(model, n=4, noise=0.0)
    dim = [
        np.concatenate([image[..., :3] * np.float32(0.5), np.ones_like(image[..., :1])], 2) for image in _images(scene)
    ]
    scene = scene_of(dim, scene.cameras, scene.scene_from_world, linear=True)
    result = evaluate(model, scene, "test", tmp_path, show_progress=False)
    rendered = model.render_image(scene.cameras, 0).color
    truth = truth_of(scene, 0, model.background).numpy()
    a, b = (np.where(c <= 0.0031308, 12.92 * c, 1.055 * c ** (1 / 2.4) - 0.055) for c in (rendered, truth))
    assert result.views[0].psnr == pytest.approx(-10 * math.log10(float(np.mean((a - b) ** 2))), abs=1e-4)
    a, b = (np.log(1 + 5000 * c) / math.log(5001) for c in (rendered.astype(np.float64), truth.astype(np.float64)))
    assert result.views[0].psnr_hdr == pytest.approx(-10 * math.log10(float(np.mean((a - b) ** 2))), abs=1e-4)
    assert result.psnr_hdr == pytest.approx(np.mean([view.psnr_hdr for view in result.views]))
    shown = np.asarray(Image.open(tmp_path / "renders" / "0000_view_000.png"))
    middle = float(rendered[16, 16, 0])
    assert abs(shown[16, 16, 0] / 255 - (1.055 * middle ** (1 / 2.4) - 0.055)) < 0.01
    assert "of the linear light" in result.protocol.colour_space
    pytest.importorskip("OpenEXR")
    from nerf.io.exr import read_colours

    np.testing.assert_array_equal(read_colours(tmp_path / "renders" / "0000_view_000.exr"), rendered)
