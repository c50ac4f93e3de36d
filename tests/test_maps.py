"""`nerf map` and meshes in the frame of a map: a known place lands on its coordinates, a plane has its height."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from fakes import AnalyticModel
from tiny import FIELD, sphere_scene, train_config

import nerf
from nerf.cli import main as command
from nerf.errors import UserError
from nerf.geometry.cameras import Cameras
from nerf.geometry.geodesy import Georeference, enu_of, geocentric_of, geodetic_of
from nerf.geometry.space import Similarity
from nerf.geometry.triangles import read_mesh
from nerf.meshing.maps import NO_HEIGHT, draw_map, map_grid, usual_pixel

rasterio = pytest.importorskip("rasterio", reason="the extra maps is not installed")
from nerf.io.geotiff import Band, Grid, MapFrame, between, geotiff, utm_of  # noqa: E402

PLACE = (46.84, -91.99, 190.0)
UTM = 32615
NOWHERE = torch.zeros(3, dtype=torch.float64)


def table(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def turned(degrees: float) -> torch.Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return table((c, -s, 0), (s, c, 0), (0, 0, 1))


def georeferences() -> list[Georeference]:
    """One world, described in three ways: about a place, geocentric, and (to the metre) in UTM."""
    shift = Similarity(0.5, turned(30), table((7, -3, 2))[0])
    local = Georeference(origin=PLACE, to_ground=shift)
    to_earth = enu_of(PLACE).inverse()
    whole = Georeference(epsg=4978, to_ground=to_earth).after(shift)
    grid = Georeference(epsg=UTM, to_ground=Similarity(0.5, turned(30), table((577_000, 5_188_000, 190))[0]))
    return [local, whole, grid]


@pytest.mark.parametrize("which", range(3))
def test_world_to_map_and_back(which: int) -> None:
    """Through PROJ by way of latitude and longitude, against PROJ's own way from geocentric coordinates."""
    frame = MapFrame(georeferences()[which], NOWHERE)
    assert frame.epsg == UTM
    points = table((0, 0, 0), (120, -80, 15), (-300, 250, -4))
    there = frame.from_world(points)
    assert torch.allclose(frame.to_world(there), points, rtol=0, atol=1e-6)
    xyz = frame.georeference.geocentric(points)
    if xyz is not None:
        assert torch.allclose(between(xyz, 4978, UTM), there, rtol=0, atol=1e-5)
    along = frame.from_world(points[1:2] + table((1, 0, 0))) - there[1]
    assert torch.allclose(2 * along[0], frame.rotation(points[1])[:, 0], rtol=0, atol=5e-4)  # UTM shrinks by 0.0004


def test_the_three_agree() -> None:
    points = table((0, 0, 0), (50, 60, 7))
    local, whole, _ = (MapFrame(g, NOWHERE, UTM).from_world(points) for g in georeferences())
    assert torch.allclose(local, whole, rtol=0, atol=1e-6)


def test_reference_systems_that_are_none() -> None:
    assert (utm_of(46.84, -91.99), utm_of(-10, 179.9), utm_of(0, -180)) == (UTM, 32760, 32601)
    for epsg, why in ((4326, "degrees"), (2263, "foot"), (9999, "no reference system")):
        with pytest.raises(UserError, match=why):
            MapFrame(georeferences()[0], NOWHERE, epsg)
    with pytest.raises(UserError, match="does not reach"):
        between(table((0, 91, 0)), 4326, UTM)


def nadir(height: float = 60.0) -> Cameras:
    places = table(*((x, y, height) for x in (-20, 0, 20) for y in (-20, 0, 20)))
    looking_down = torch.eye(3, dtype=torch.float64).expand(len(places), 3, 3)
    return Cameras.perspective(torch.cat([looking_down, places[:, :, None]], dim=2), 60.0, 80, 80)


SIDE, HOUSE = 100.0, 8.0  # metres across a flat ground, and how high the house on it is


def on_ground() -> tuple[AnalyticModel, MapFrame, trimesh.Trimesh]:
    """Flat ground at 3 m with a hole 10 m wide, and a house 8 m high; the scene is a fiftieth of that in size."""

    def solid(p: torch.Tensor) -> torch.Tensor:
        return p[:, 2] - 3 / 50

    model = AnalyticModel(solid, scene_from_world=Similarity.around([0.0, 0, 0], 50.0), cameras=nadir())
    model.georeference = Georeference(origin=PLACE, to_ground=Similarity.identity())
    n = 101
    x, y = np.meshgrid(np.linspace(-SIDE / 2, SIDE / 2, n), np.linspace(-SIDE / 2, SIDE / 2, n))
    vertices = np.stack([x, y, np.full_like(x, 3.0)], axis=-1).reshape(-1, 3)
    k = np.arange(n * n).reshape(n, n)
    a, b, c, d = k[:-1, :-1], k[:-1, 1:], k[1:, 1:], k[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    middle = vertices[faces].mean(axis=1)
    hole = (np.abs(middle[:, 0] - 20) < 5) & (np.abs(middle[:, 1] - 20) < 5)
    ground = trimesh.Trimesh(vertices, faces[~hole], process=False)
    house = trimesh.creation.box((10, 6, HOUSE), transform=trimesh.transformations.translation_matrix((-20, 10, 7)))
    mesh = trimesh.util.concatenate([ground, house])
    mesh.metadata = {"step": 0.02, "closed": False}
    return model, MapFrame(model.georeference, NOWHERE), mesh


def drawn(folder: Path, pixel: float = 0.5, part: slice = slice(None)) -> tuple[Path, Path, Grid]:
    model, frame, mesh = on_ground()
    mesh.update_faces(np.arange(len(mesh.faces))[part])
    mesh.remove_unreferenced_vertices()
    corners = frame.from_world(torch.from_numpy(mesh.vertices.copy()))
    grid = map_grid(corners, frame, pixel, True)
    photo, heights = folder / "photo.tif", folder / "height.tif"
    with geotiff(photo, grid, "uint8", 4) as colors, geotiff(heights, grid, "float32", 1, NO_HEIGHT) as h:
        for rows in draw_map(model, mesh, frame, grid, corners):
            colors(Band(rows.first, rows.colors))
            h(Band(rows.first, rows.heights))
    return photo, heights, grid


def test_a_map_has_its_heights_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerf.meshing.maps._BAND", 5_000)  # many bands
    photo, heights, grid = drawn(tmp_path)
    with rasterio.open(heights) as file:
        assert file.crs.to_epsg() == UTM and file.nodata == NO_HEIGHT and file.res == (0.5, 0.5)
        table_of = file.read(1)
        places = {"ground": (0.0, -30.0), "house": (-20.0, 10.0), "hole": (20.0, 20.0), "far": (49.0, 49.0)}
        found = {}
        for name, (east, north) in places.items():
            lat, lon, _ = geodetic_of(enu_of(PLACE).inverse().apply(table((east, north, 3))))[0].tolist()
            (x,), (y,) = rasterio.warp.transform("EPSG:4326", file.crs, [lon], [lat])
            row, col = file.index(x, y)
            found[name] = float(table_of[row, col])
    # 3 m above the plane that touches the ellipsoid 190 m up, which within 100 m bends away by under a millimetre
    assert found["ground"] == pytest.approx(193.0, abs=2e-3) and found["far"] == pytest.approx(193.0, abs=2e-3)
    assert found["house"] == pytest.approx(190 + 3 + HOUSE, abs=2e-3) and found["hole"] == NO_HEIGHT
    known = table_of != NO_HEIGHT
    assert known.mean() == pytest.approx((SIDE**2 - 100) / (grid.width * grid.height * 0.5**2), rel=0.02)
    with rasterio.open(photo) as file:
        picture = file.read()
        assert [c.name for c in file.colorinterp] == ["red", "green", "blue", "alpha"]
        assert ((picture[3] == 255) == known).all()


def test_colours_are_those_of_the_place(tmp_path: Path) -> None:
    """The field is red by x, green by y, and looked at straight down: 0.5 + x / 4, y / 4 in the scene's frame."""
    photo, _, grid = drawn(tmp_path)
    with rasterio.open(photo) as file:
        picture = file.read()
        rows, cols = np.nonzero(picture[3])
        x, y = rasterio.transform.xy(file.transform, rows, cols)
    lla = between(torch.tensor(np.stack([x, y, np.full(len(x), 193.0)], axis=1)), UTM, 4326)[:, [1, 0, 2]]
    world = enu_of(PLACE).apply(geocentric_of(lla)).numpy()
    flat = np.abs(world[:, :2] - [-20, 10]).max(axis=1) > 6
    seen = picture[:2, rows, cols].T[flat] / 255
    assert np.abs(seen - (0.5 + 0.25 * world[flat, :2] / 50)).max() < 0.01  # softness of the surface and 8 bits
    assert grid.epsg == UTM


def test_a_known_place_is_right_to_a_millionth_of_a_degree(tmp_path: Path) -> None:
    """A tenth of a metre; the edges of the house, read back as latitude and longitude."""
    _, heights, grid = drawn(tmp_path, pixel=0.05, part=slice(-12, None))  # the house alone
    with rasterio.open(heights) as file:
        roof = file.read(1) > 195
        rows, cols = np.nonzero(roof)
        x, y = (np.mean(v) for v in rasterio.transform.xy(file.transform, rows, cols))
        (lon,), (lat,) = rasterio.warp.transform(file.crs, "EPSG:4326", [x], [y])
    wanted = geodetic_of(enu_of(PLACE).inverse().apply(table((-20, 10, 11))))[0]
    assert abs(lat - float(wanted[0])) < 1e-6 and abs(lon - float(wanted[1])) < 1e-6
    assert roof.sum() * grid.pixel**2 == pytest.approx(60.0, rel=0.01)


def test_the_usual_pixel_is_that_of_the_photos() -> None:
    model, frame, _ = on_ground()
    assert usual_pixel(model, frame) == pytest.approx(57 / 60, rel=0.03)  # 57 m above the ground, 60 pixels of focus


def test_grids_are_whole_pixels_and_not_endless() -> None:
    _, frame, mesh = on_ground()
    corners = frame.from_world(torch.from_numpy(mesh.vertices.copy()))
    grid = map_grid(corners, frame, 0.3, True)
    assert grid.west / 0.3 == pytest.approx(round(grid.west / 0.3), abs=1e-6)
    assert grid.width * 0.3 >= SIDE - 1 and grid.height * 0.3 >= SIDE - 1
    assert map_grid(corners, frame, 1e-4, False).pixel > 0.01, "nobody asked for that many"
    with pytest.raises(UserError, match="--pixel"):
        map_grid(corners, frame, 1e-4, True)


# ---- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps on an object that says where on earth it is."""
    folder = tmp_path_factory.mktemp("maps") / "run"
    scene = sphere_scene(12, 48)
    scene.georeference = Georeference(origin=PLACE, to_ground=Similarity.identity())
    nerf.train(scene, train_config(steps=250, batch_samples=1 << 12, field=FIELD), folder, progress=False)
    return folder


def did(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = command.run([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_nerf_map(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "maps"
    status, said, _ = did(capsys, "map", run, "-o", out, "--resolution", 32, "--pixel", 0.05)
    assert status == 0 and f"EPSG:{UTM}" in said and "heights" in said
    with rasterio.open(out / "orthophoto.tif") as photo, rasterio.open(out / "height.tif") as heights:
        assert photo.bounds == heights.bounds and photo.crs.to_epsg() == UTM
        (lon,), (lat,) = rasterio.warp.transform(
            photo.crs, "EPSG:4326", *([np.mean(v)] for v in (photo.bounds[::2], photo.bounds[1::2]))
        )
    assert abs(lat - PLACE[0]) < 2e-5 and abs(lon - PLACE[1]) < 2e-5  # an object a metre wide
    before = (out / "height.tif").read_bytes()
    status, _, err = did(capsys, "map", run, "-o", out)
    assert status == 2 and "orthophoto.tif" in err and (out / "height.tif").read_bytes() == before


def test_meshes_and_clouds_say_where_they_stand(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--resolution", 32
    world, placed, stl = (tmp_path / name for name in ("world.ply", "map.ply", "shape.stl"))
    for words in ((world, *small), (placed, "--frame", "map", *small), (stl, "--frame", "map", *small)):
        status, _, err = did(capsys, "mesh", run, "-o", *words)
        assert status == 0, err
    there = read_mesh(world).vertices.double()
    beside = json.loads(world.with_suffix(".geo.json").read_text())
    assert beside["file"] == "world.ply" and beside["origin"] == list(PLACE)
    frame = MapFrame(Georeference.from_dict(beside), NOWHERE)
    in_map = read_mesh(placed).vertices.double()
    assert torch.allclose(frame.from_world(there), in_map, rtol=0, atol=1e-3)
    assert float(in_map[:, 1].min()) > 5e6, "no float32 holds that to the millimetre"
    about = Georeference.from_dict(json.loads(stl.with_suffix(".geo.json").read_text()))
    assert about.epsg == UTM
    low, high = (read_mesh(stl).vertices.double().amin(0), read_mesh(stl).vertices.double().amax(0))
    ends = about.to_ground.apply(torch.stack([low, high]))
    assert torch.allclose(ends, torch.stack([in_map.amin(0), in_map.amax(0)]), rtol=0, atol=2e-3)
    cloud = tmp_path / "cloud.ply"
    assert did(capsys, "mesh", run, "-o", cloud, "--points", 500, "--frame", "map")[0] == 0
    points = trimesh.load(cloud).vertices
    assert (np.abs(points - in_map.numpy().mean(axis=0)).max(axis=0) < 3).all()
    assert Georeference.from_dict(json.loads(cloud.with_suffix(".geo.json").read_text())).epsg == UTM


def test_mistakes_are_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain"
    nerf.train(sphere_scene(4, 24), train_config(steps=2, batch_samples=1 << 9, field=FIELD), plain, progress=False)
    import sys

    cases = [
        (("map", plain), "does not say where on earth"),
        (("mesh", plain, "--frame", "map"), "does not say where on earth"),
        (("map", run, "--epsg", 4326), "no projected reference system"),
        (("map", run, "--epsg", 9999), "no reference system"),
        (("map", run, "--pixel", -1), "--pixel"),
        (("mesh", run, "--epsg", UTM), "--frame map"),
    ]
    for words, why in cases:
        status, _, err = did(capsys, *words)
        assert status == 2 and why in err and len(err.strip().splitlines()) == 1, (words, err)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    status, _, err = did(capsys, "map", run)
    assert status == 2 and "nerf-reconstruct[maps]" in err and len(err.strip().splitlines()) == 1
