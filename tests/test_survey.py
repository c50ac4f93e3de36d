"""What the report shows of views and photos beside numbers, and what it says of those that stand out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fakes import FakeModel, ring_cameras
from PIL import Image
from tiny import make_scene

from nerf.geometry.cameras import Cameras
from nerf.views import survey
from nerf.views.report import write_report
from nerf.views.survey import ABOVE, EXPOSURE, INSIDE, write_survey


def measured(psnr: dict[int, float]) -> Any:
    """An evaluation of these views of a scene."""
    return SimpleNamespace(
        views=[SimpleNamespace(name=f"view_{i:03d}.png", index=i, width=32, height=32, psnr=p) for i, p in psnr.items()]
    )


def scene_and_model(trained: Cameras) -> tuple[Any, Any]:
    cameras = ring_cameras(8, 32)
    scene = make_scene([np.full((32, 32, 3), 90, np.uint8)] * 8, cameras)
    model = FakeModel()
    model.cameras = trained
    return scene, model


def test_pictures_are_there_and_what_stands_out_is_said(tmp_path: Path) -> None:
    scene, model = scene_and_model(ring_cameras(8, 32).subset([0, 1, 2, 3, 4]))
    model.log_gains = torch.tensor([[0.7] * 3, [-0.7] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3])
    said = write_survey(model, scene.cameras, measured({1: 30.0, 2: 31.0, 3: 18.0, 6: 20.0, 4: 30.5}), tmp_path)
    for name in (INSIDE, ABOVE, EXPOSURE):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("RGB")).std() > 5, "a picture of something"
    away = [line for line in said if line.startswith("view_006.png")]
    beside = [line for line in said if line.startswith("view_003.png")]
    assert "no photo was taken within 12 degrees" in away[0] and "10.0 dB worse" in away[0]
    assert "photos were taken beside it" in beside[0]
    assert "exposure differs by 2.0 stops" in said[-1] and len(said) == 3
    page = write_report(tmp_path, seen=said).read_text()
    assert "What stands out" in page and page.count("data:image/jpeg") == 3 and "view_006.png is" in page


def test_nothing_stands_out_where_all_is_well(tmp_path: Path) -> None:
    scene, model = scene_and_model(ring_cameras(8, 32))
    assert write_survey(model, scene.cameras, measured({1: 30.0, 2: 31.0}), tmp_path) == []
    assert not (tmp_path / EXPOSURE).exists()
    assert write_survey(model, scene.cameras, measured({1: float("nan")}), tmp_path / "none") == []


def test_where_a_camera_looks_counts_as_well_as_where_it_stands() -> None:
    _, model = scene_and_model(ring_cameras(8, 32))
    here = ring_cameras(8, 32).subset([0])
    assert survey._from_nearest(here, model) < 1e-3
    back = replace(here, c2w=here.c2w * torch.tensor([1.0, 1.0, -1.0, 1.0]).double())  # looks the other way
    assert survey._from_nearest(back, model) > 0.5
