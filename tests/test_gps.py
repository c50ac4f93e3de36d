"""Scale, north and up from GPS: right where it agrees with the poses, left alone where it does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import nerf
from nerf.capture.dataset import write_dataset
from nerf.capture.exif import read_exif
from nerf.capture.frame import world_from_model
from nerf.capture.gps import GpsFit, fit_gps
from nerf.geometry.geodesy import enu_of, geodetic_of
from nerf.geometry.space import Similarity

LAT, LON = 50.8, -0.14


def truth(n: int = 16, line: bool = False) -> torch.Tensor:
    """Where a drone was, metres east, north and up."""
    g = torch.Generator().manual_seed(1)
    places = torch.rand(n, 3, generator=g, dtype=torch.float64) * torch.tensor([80.0, 60, 6])
    if line:
        places[:, 1] = 0.01 * places[:, 1]
    return places - places.mean(dim=0)


def gps_of(places: torch.Tensor, heights: bool = True, noise: float = 0.0) -> list[Any]:
    g = torch.Generator().manual_seed(2)
    places = places + noise * torch.randn(places.shape, generator=g, dtype=torch.float64)
    lla = geodetic_of(enu_of((LAT, LON, 100.0)).inverse().apply(places)).tolist()
    return [(lat, lon, height if heights else None) for lat, lon, height in lla]


def model() -> Similarity:
    """From true metres to a model's own frame."""
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).Q
    rotation = rotation * torch.linalg.det(rotation)
    return Similarity(0.037, rotation, torch.tensor([1.0, -2, 5], dtype=torch.float64))


def fitted(places: torch.Tensor, said: list[Any], tilt: float = 0.0) -> GpsFit | None:
    up = model().rotation @ torch.tensor([math.sin(tilt), 0.0, math.cos(tilt)], dtype=torch.float64)
    return fit_gps(model().apply(places), said, up)


def test_scale_north_and_up() -> None:
    places = truth()
    fit = fitted(places, gps_of(places), tilt=0.3)  # heights say where up is, whatever the cameras do
    assert fit is not None and fit.convinces and fit.sets_up and fit.residual < 0.01
    assert fit.world.scale == pytest.approx(1 / 0.037, rel=1e-9)
    # the axes are those of the origin that was chosen, some metres away: as the earth bends
    assert torch.allclose(fit.world.rotation @ model().rotation, torch.eye(3, dtype=torch.float64), atol=1e-5)
    there = geodetic_of(fit.georeference.geocentric(model().apply(places)))  # type: ignore[arg-type]
    assert torch.allclose(there, torch.tensor(gps_of(places), dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("case", ["no heights", "a line"])
def test_heights_of_what_does_not_set_up(case: str) -> None:
    """Above the sea where EXIF says so, else counted from the cameras."""
    places = truth(line=case == "a line")
    fit = fitted(places, gps_of(places, heights=case == "a line"))
    assert fit is not None and fit.has_heights == (case == "a line") and ("cameras" in str(fit)) != fit.has_heights
    lla = geodetic_of(fit.georeference.geocentric(model().apply(places)))  # type: ignore[arg-type]
    assert float(lla[:, 2].median()) == pytest.approx(100.0 if fit.has_heights else 0.0, abs=1.5)


@pytest.mark.parametrize("case", ["no heights", "a line"])
def test_up_by_the_cameras(case: str) -> None:
    places = truth(line=case == "a line")
    fit = fitted(places, gps_of(places, heights=case == "a line"))
    assert fit is not None and fit.convinces and not fit.sets_up and "scale and north are set" in str(fit)
    assert fit.world.scale == pytest.approx(1 / 0.037, rel=1e-2)
    assert torch.allclose(fit.world.rotation @ model().rotation, torch.eye(3, dtype=torch.float64), atol=2e-2)


def test_outliers_and_noise() -> None:
    places = truth()
    said = gps_of(places, noise=0.5)
    said[3] = (LAT + 1, LON, 100.0)  # 111 km off
    said[5] = None
    fit = fitted(places, said)
    assert fit is not None and fit.convinces and fit.n == 15 and 0.1 < fit.residual < 2
    assert fit.world.scale == pytest.approx(1 / 0.037, rel=0.05)


def test_noise_about_one_spot_is_not_believed() -> None:
    places = truth()
    fit = fitted(places, gps_of(torch.zeros_like(places), noise=3.0))
    assert fit is not None and not fit.convinces and str(fit).endswith("not used")
    assert fitted(places, [*gps_of(places)[:4], *[None] * 12]) is None, "too few"
    same = fitted(places, gps_of(torch.zeros_like(places)))
    assert same is None or not same.convinces


def test_the_frame_keeps_east_north_and_metres() -> None:
    places = truth()
    there = model().apply(places)
    looking_down = torch.diag(torch.tensor([1.0, 1, 1], dtype=torch.float64))
    c2w = torch.cat([(model().rotation @ looking_down).expand(len(there), 3, 3), there[:, :, None]], dim=2)
    fit = fitted(places, gps_of(places))
    assert fit is not None
    world = world_from_model(c2w, there, enu=fit.world)
    moved = world.apply(there)
    assert torch.allclose(moved - moved[0], places - places[0], atol=1e-3)
    placed = fit.georeference.after(world.inverse())
    lla = geodetic_of(placed.geocentric(moved))  # type: ignore[arg-type]
    assert torch.allclose(lla, torch.tensor(gps_of(places), dtype=torch.float64), rtol=0, atol=1e-8)
    assert world_from_model(c2w, there, factor=2.0, enu=fit.world).scale == pytest.approx(2 * world.scale)


def test_heights_are_read(tmp_path: Any) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "S", 2: (50.0, 30.0, 0.0), 3: "W", 4: (0.0, 6.0, 0.0), 5: b"\x01", 6: 12.5})
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        read = read_exif(image)
    assert read.gps == (-50.5, -0.1) and read.altitude == -12.5


def test_the_data_set_says_where_on_earth_it_is(tmp_path: Path) -> None:
    """From a model of COLMAP and GPS to transforms.json, whatever lengths were asked for; exact places come back."""
    pycolmap = pytest.importorskip("pycolmap")
    places, to_model = truth(8), model()
    built = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 60.0, 64, 48)
    built.add_camera_with_trivial_rig(camera)
    down = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))  # OpenCV, looking down, in the true frame
    (tmp_path / "images").mkdir()
    for i, place in enumerate(places, 1):
        turn = (to_model.rotation @ down).T  # camera from model
        shift = -turn @ to_model.apply(place[None])[0]
        pose = pycolmap.Rigid3d(torch.cat([turn, shift[:, None]], dim=1).numpy())
        image = pycolmap.Image(name=f"{i}.png", keypoints=np.zeros((0, 2)), camera_id=1, image_id=i)
        built.add_image_with_trivial_frame(image, pose)
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "capture" / "model").mkdir(parents=True)
    built.write_binary(str(tmp_path / "capture" / "model"))
    said = dict(zip((f"{i}.png" for i in range(1, 9)), gps_of(places), strict=True))
    write_dataset(tmp_path, factor=3.0, places=said)
    scene = nerf.load(tmp_path, quiet=True)
    assert scene.georeference is not None and scene.georeference.metres == pytest.approx(1 / 3, rel=1e-6)
    xyz = scene.georeference.geocentric(scene.cameras.centres)
    assert xyz is not None
    wanted = torch.tensor([said[Path(name).name] for name in scene.names], dtype=torch.float64)
    assert torch.allclose(
        geodetic_of(xyz), wanted, rtol=0, atol=1e-6
    )  # 0.1 m: the fit is by medians, heights by metres
