"""Real captures, where they are there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nerf.datasets import load
from nerf.geometry.cameras import OPENCV

REAL = Path(os.environ.get("NERF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"no real data: {REAL / name} is not there (set NERF_TEST_DATA)")
    return REAL / name


def test_real_lego_box_holds_all_silhouettes(tmp_path):
    source = real("lego")
    (tmp_path / "photos").symlink_to(source, target_is_directory=True)
    for split, step in (("train", 8), ("test", 6)):
        data = json.loads((source / f"transforms_{split}.json").read_text())
        data["frames"] = data["frames"][::step]
        for frame in data["frames"]:
            frame["file_path"] = f"photos/{frame['file_path']}"
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps(data))
    scene = load(tmp_path, downscale=4)
    assert scene.space.name == "box" and len(scene.names) == 18
    n_hit = n_lit = 0
    for i in range(len(scene.names)):
        o, d = scene.cameras.image_rays(i, scene.scene_from_world)
        a, b = (-1 - o) / d, (1 - o) / d
        meets = torch.minimum(a, b).amax(dim=1) < torch.maximum(a, b).amin(dim=1)
        lit = scene.pixels.image(i)[..., 3].flatten() > 0.5
        n_lit, n_hit = n_lit + int(lit.sum()), n_hit + int((lit & meets).sum())
    assert n_hit == n_lit
    # the model is 2.3 units long (known from its published bounds), and the box no more than a tenth longer
    assert 2.28 < 2 / scene.scene_from_world.scale < 2.6


def test_real_fox_skips_its_missing_frames():
    scene = load(real("fox"), downscale=8)
    assert len(scene.names) == 50 and scene.splits["test"].numel() == 7 and scene.space.name == "unbounded"
    assert any("skipped 17 of 67" in n for n in scene.notes) and scene.cameras.models.tolist() == [OPENCV] * 50
    o, d = scene.cameras.image_rays(10)
    uv, _ = scene.cameras.project(o.double() + 5 * d.double())
    p = torch.arange(len(o))
    w = scene.cameras.widths[10]
    assert float((uv[10] - torch.stack([p % w, p // w], dim=1) - 0.5).abs().max()) < 1e-3


def test_real_fern_is_forward_facing():
    scene = load(real("fern"))
    assert scene.space.name == "ndc" and len(scene.names) == 20 and scene.splits["test"].tolist() == [0, 8, 16]
    assert abs(float(scene.cameras.fx[0]) - 3260.526 / 8) < 0.01
    z = scene.scene_from_world.apply(scene.cameras.centres)[:, 2]
    assert float(z.abs().max()) < 0.1  # cameras side by side, well before the near plane


def test_real_cup_points_fall_where_they_were_seen():
    pycolmap = pytest.importorskip("pycolmap")
    path = real("cup")
    scene = load(path)
    assert scene.source == "colmap" and scene.points is not None and len(scene.points) == 9262
    model = pycolmap.Reconstruction(str(path / "sparse" / "0"))
    errors = []
    for image in list(model.images.values())[::10]:
        i = scene.names.index(image.name)
        seen = [p for p in image.points2D if p.has_point3D()]
        points = torch.tensor(np.array([model.points3D[p.point3D_id].xyz for p in seen]))
        uv, z = scene.cameras.subset([i]).project(points)
        assert float(z.min()) > 0
        errors.append(np.linalg.norm(uv[0].numpy() - np.array([p.xy for p in seen]), axis=1))
    assert np.concatenate(errors).mean() < 0.7  # COLMAP's own mean reprojection error is 0.59 px
