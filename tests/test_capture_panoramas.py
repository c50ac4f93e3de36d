"""Folders of panoramas: they are recognised, placed as they are, and become a data set of panoramas."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from spheres import panorama, pose, sphere_directions, walls, write_panoramas

from nerf.capture import CaptureOptions, find_poses
from nerf.capture.folder import frames_of
from nerf.capture.panoramas import find_features, is_panorama, to_panorama, view, views_of
from nerf.capture.photos import Photo, Photos
from nerf.datasets import load
from nerf.geometry.cameras import EQUIRECTANGULAR
from nerf.io.outputs import OutputFolder
from nerf.training.alignment import similarity_between

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" {0}>{1}</rdf:Description>'
    "</rdf:RDF></x:xmpmeta>"
)


def saved(path: Path, pixels: np.ndarray, attributes: str = "", elements: str = "") -> Path:
    extra = {"xmp": XMP.format(attributes, elements).encode()} if attributes or elements else {}
    Image.fromarray(pixels).save(path, quality=95, **extra)
    return path


def asked(path: Path) -> bool | str:
    with Image.open(path) as image:
        return is_panorama(image)


def test_panoramas_are_recognised(tmp_path: Path) -> None:
    sphere = panorama(walls(), pose(0, 6), 512)
    flat = np.random.default_rng(0).integers(0, 255, (256, 512, 3)).astype(np.uint8)
    assert asked(saved(tmp_path / "stitched.jpg", sphere)) is True
    assert asked(saved(tmp_path / "photo.jpg", flat)) is False
    assert asked(saved(tmp_path / "part.jpg", sphere[:, :300])) is False
    middle = np.asarray(
        Image.fromarray(sphere[64:192, 128:384]).resize((512, 256))
    )  # twice as wide as high, and no more
    assert asked(saved(tmp_path / "crop.jpg", middle)) is False
    says = 'GPano:ProjectionType="equirectangular"'
    assert asked(saved(tmp_path / "by attribute.jpg", flat, says)) is True
    assert asked(saved(tmp_path / "by element.jpg", flat, "", f"<{says[:20]}>equirectangular</{says[:20]}>")) is True
    sizes = "".join(
        f' GPano:{kind}{side}Pixels="{n}"'
        for kind, both in {"FullPano": (2048, 1024), "CroppedAreaImage": (2048, 512)}.items()
        for side, n in zip(("Width", "Height"), both, strict=True)
    )
    assert "2048x512 of 2048x1024" in str(asked(saved(tmp_path / "sweep.jpg", flat, says + sizes)))


def test_views_show_what_a_panorama_shows() -> None:
    """Directions as colours: a view's pixel holds its own direction."""
    width = 400
    encoded = ((sphere_directions(width) + 1) * 100).round().astype(np.uint8)
    cameras = views_of(width)
    covered = np.zeros((width // 2, width), bool)
    for i in range(len(cameras)):
        side = int(cameras.heights[i])
        wanted = (cameras.image_rays(i)[1].reshape(side, side, 3).numpy() + 1) * 100
        got = np.stack([view(np.ascontiguousarray(encoded[..., k]), i) for k in range(3)], axis=-1).astype(float)
        assert np.abs(got - wanted).max() < 2.5  # rounded twice, and bent between pixels
        rows, cols = np.mgrid[:side, :side]
        points = np.stack([cols.ravel() + 0.5, rows.ravel() + 0.5, cols.ravel()], axis=1).astype(np.float32)
        moved, mine = to_panorama(points, cameras, i, width, width // 2)
        assert np.array_equal(moved[:, 2], points[:, 2])
        u, v = (moved[:, k].astype(int) for k in (0, 1))
        there = encoded[v.clip(0, width // 2 - 1), u % width].astype(float)
        assert np.abs(there - wanted.reshape(-1, 3)).max() < 4.0
        covered[v[mine].clip(0, width // 2 - 1), u[mine] % width] = True
    assert covered[50:150].mean() > 0.95  # every place is some view's own; nearer to the poles columns are finer


def test_features_lie_where_the_panorama_shows_them() -> None:
    grey = np.zeros((200, 400), np.uint8)
    spots = [(0.5, 100.5), (60.5, 30.5), (200.5, 100.5), (333.5, 170.5)]  # the first on the seam
    directions = sphere_directions(400)
    for x, y in spots:
        apart = np.arccos((directions @ directions[int(y), int(x)]).clip(-1, 1))
        grey[apart < 0.03] = 255

    def brightest(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.nonzero(picture > 60)
        points = np.stack([x + 0.5, y + 0.5, picture[y, x], 0 * x], axis=1).astype(np.float32)
        return points, np.zeros((len(points), 128), np.uint8)

    points, rows = find_features(grey, brightest)
    assert len(points) == len(rows)
    for spot in spots:
        apart = np.abs(points[:, :2] - spot)
        apart[:, 0] = np.minimum(apart[:, 0], 400 - apart[:, 0]) * math.sin(math.pi * spot[1] / 200)
        assert apart.max(axis=1).min() < 1.5


def test_frames_of_a_video_are_panoramas_where_they_show_a_sphere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {"sphere": panorama(walls(), pose(0, 6), 512), "flat": np.zeros((256, 512, 3), np.uint8)}
    pictures["flat"][:, 100:300] = 200
    for name, picture in pictures.items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(picture).save(path)
        frames = [Photo(path, path.name, 512, 256, 1, (512, 256), None, "", str(k)) for k in range(3)]
        monkeypatch.setattr("nerf.capture.folder.forget", lambda *rest, **more: None)
        monkeypatch.setattr("nerf.capture.folder.take_frames", lambda *rest, of=frames: Photos(of, is_video=True))
        found = frames_of(cast(OutputFolder, SimpleNamespace(path=tmp_path)), tmp_path / "walk.mp4", None, None)
        assert [photo.panorama for photo in found.photos] == [name == "sphere"] * 3


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    pytest.importorskip("pycolmap")
    folder = tmp_path_factory.mktemp("panoramas")
    poses = write_panoramas(folder / "photos", 5, 640)
    find_poses(CaptureOptions(folder / "photos", folder / "posed", longest=427), show=False)
    return folder / "posed", poses


def test_panoramas_are_placed_as_they_are(placed: tuple[Path, list[np.ndarray]]) -> None:
    folder, poses = placed
    scene = load(folder, quiet=True)
    assert scene.names == [f"images/sphere_{k:02d}.png" for k in range(5)]
    assert scene.cameras.models.tolist() == [EQUIRECTANGULAR] * 5
    assert (scene.cameras.widths.tolist(), scene.cameras.heights.tolist()) == ([640] * 5, [320] * 5)
    true = torch.from_numpy(np.stack(poses))
    found = similarity_between(scene.cameras.c2w, true).apply_poses(scene.cameras.c2w)
    assert float((found[:, :, 3] - true[:, :, 3]).norm(dim=1).max()) < 0.02  # of a room of 6 x 5 metres
    cosines = (torch.einsum("nij,nij->n", found[:, :, :3], true[:, :, :3]) - 1) / 2
    assert float(torch.rad2deg(cosines.clamp(-1, 1).acos()).max()) < 0.3
    up = scene.cameras.up.mean(dim=0)
    assert float(up[2] / up.norm()) > 0.99  # the data set's z
    assert any("around the cameras" in note for note in scene.notes)
    assert scene.keypoints is not None and len(scene.keypoints) > 500


def test_the_colmap_model_of_panoramas_is_the_same_scene(placed: tuple[Path, list[np.ndarray]]) -> None:
    folder, _ = placed
    a, b = load(folder, quiet=True), load(folder, quiet=True, kind="colmap")
    assert torch.equal(a.cameras.models, b.cameras.models)
    assert torch.allclose(a.cameras.c2w, b.cameras.c2w, atol=1e-9)


def test_panoramas_need_a_pycolmap_that_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    from nerf.capture.panoramas import need_spheres
    from nerf.errors import UserError

    class Older:
        pass

    monkeypatch.setattr(pycolmap, "CameraModelId", Older)
    with pytest.raises(UserError, match=r"panoramas, which need pycolmap 4\.1 or newer"):
        need_spheres()
