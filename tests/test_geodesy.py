"""Where a world stands on the earth: the formulas, what files say of it, and that it survives training and export."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from small_scenes import edit, write_transforms
from test_other_tools import metashape_xml, write_metashape, write_opensfm
from tiny import FIELD, train_config

import nerf
from nerf.errors import BadValue, UserError
from nerf.geometry.geodesy import Georeference, enu_of, geocentric_of, geodetic_of
from nerf.geometry.space import Similarity
from nerf.training.export import export_cameras

BERLIN = (52.5, 13.4, 35.0)


def table(*rows: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_geocentric_coordinates_of_known_places() -> None:
    """The axes of the ellipsoid (closed form), and a point of EPSG's guidance note 7-2, section 4.1.1."""
    polar = 6_378_137.0 * (1 - 1 / 298.257223563)
    lla = table((0, 0, 0), (0, 90, 10), (90, 17, -5), (53 + 48 / 60 + 33.820 / 3600, 2 + 7 / 60 + 46.380 / 3600, 73.0))
    xyz = table((6_378_137, 0, 0), (0, 6_378_147, 0), (0, 0, polar - 5), (3_771_793.968, 140_253.342, 5_124_304.349))
    assert torch.allclose(geocentric_of(lla), xyz, rtol=0, atol=1e-3)  # the note's digits


def test_there_and_back_everywhere() -> None:
    g = torch.Generator().manual_seed(0)
    share = torch.rand(20_000, 3, generator=g, dtype=torch.float64)
    lla = torch.cat([share * table((180, 360, 19_000)) - table((90, 180, 10_000)), table((90, 0, 1), (-90, 0, 1))])
    back = geodetic_of(geocentric_of(lla))
    assert torch.allclose(back[:-2], lla[:-2], rtol=0, atol=1e-8)  # a millimetre; double holds a nanometre of an axis
    assert torch.allclose(back[-2:, [0, 2]], lla[-2:, [0, 2]], rtol=0, atol=1e-8)  # at the poles longitude is anything


def test_east_north_up() -> None:
    """A step north is one of latitude: by the radius of curvature of the meridian, a(1 - e^2) / (1 - e^2 sin^2)^1.5."""
    e2 = 2 / 298.257223563 - 1 / 298.257223563**2
    sin = math.sin(math.radians(BERLIN[0]))
    meridian = 6_378_137.0 * (1 - e2) / (1 - e2 * sin**2) ** 1.5
    across = 6_378_137.0 / math.sqrt(1 - e2 * sin**2) * math.cos(math.radians(BERLIN[0]))
    steps = table((0, 0, 0), (10, 0, 0), (0, 10, 0), (0, 0, 10))
    moved = geodetic_of(enu_of(BERLIN).inverse().apply(steps)) - table(BERLIN)
    assert torch.allclose(moved[0], torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert float(moved[1, 1]) == pytest.approx(math.degrees(10 / across), rel=1e-5)  # heights count from 35 m up
    assert float(moved[2, 0]) == pytest.approx(math.degrees(10 / meridian), rel=1e-5)
    assert moved[3].tolist() == pytest.approx([0, 0, 10], abs=1e-8)


def test_a_georeference_moves_with_its_world() -> None:
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    place = Georeference(origin=BERLIN, to_ground=Similarity(2.0, turn, table((3, 4, 5))[0]))
    points = table((1, 2, 3), (-40, 7, 0.5))
    other = Similarity(0.25, turn.T.clone(), table((9, -9, 1))[0])
    wanted = place.geocentric(other.apply(points))
    assert wanted is not None
    found = place.after(other).geocentric(points)
    assert found is not None and torch.allclose(found, wanted, rtol=0, atol=1e-8)
    back = place.world(place.geocentric(points))  # type: ignore[arg-type]
    assert back is not None and torch.allclose(back, points, rtol=0, atol=1e-8)
    doubled = place.scaled(2.0).geocentric(2 * points)
    assert doubled is not None and torch.allclose(doubled, place.geocentric(points), rtol=0, atol=1e-8)  # type: ignore[arg-type]
    again = Georeference.from_dict(json.loads(json.dumps(place.to_dict())))
    assert again.to_dict() == place.to_dict()


def test_what_can_be_said_in_words() -> None:
    assert Georeference.parse("EPSG:25833").epsg == 25833
    shifted = Georeference.parse(" epsg:32633, 370000,5800000.5,-2 ")
    assert shifted.to_ground.apply(table((1, 2, 3))).tolist() == [[370_001, 5_800_002.5, 1]]
    assert Georeference.parse("-33.9,151.2,12.5").origin == (-33.9, 151.2, 12.5)
    for wrong in ("", "EPSG:", "EPSG:12", "EPSG:32633,1,2", "52,13", "91,0,0", "1,2,x", "nan,0,0", "utm 33"):
        with pytest.raises(UserError, match="place on earth") as caught:
            Georeference.parse(wrong, "--georeference")
        assert "\n" not in str(caught.value) and "--georeference" in str(caught.value)
    for broken in (None, {}, {"origin": [1, 2, 3]}, {"epsg": "x", "to_ground": Similarity.identity().to_dict()}):
        with pytest.raises(BadValue):
            Georeference.from_dict(broken)


def test_opensfm_says_where_it_is(tmp_path: Path) -> None:
    scene = nerf.load(write_opensfm(tmp_path), quiet=True)
    assert scene.georeference is not None and scene.georeference.origin == (47.1, 8.5, 400.0)
    assert any("about latitude 47.1" in line for line in scene.notes)
    file = tmp_path / "reconstruction.json"
    content = json.loads(file.read_text())
    for r in content:
        r.pop("reference_lla", None)
    file.write_text(json.dumps(content))
    assert nerf.load(tmp_path, quiet=True).georeference is None
    (tmp_path / "reference_lla.json").write_text('{"latitude": 1.5, "longitude": 2, "altitude": 3}')
    beside = nerf.load(tmp_path, quiet=True).georeference
    assert beside is not None and beside.origin == (1.5, 2.0, 3.0)
    (tmp_path / "reference_lla.json").write_text('{"latitude": 0, "longitude": 0, "altitude": 0}')
    assert nerf.load(tmp_path, quiet=True).georeference is None, "OpenSfM writes zeros where no photo has GPS"
    (tmp_path / "reference_lla.json").write_text('{"latitude": "north"}')
    with pytest.raises(UserError, match="latitude"):
        nerf.load(tmp_path, quiet=True)


@pytest.mark.parametrize("line", ["WGS84 UTM 33S", "EPSG:32733"])
def test_opendronemap_moves_its_reconstruction_to_utm(tmp_path: Path, line: str) -> None:
    write_opensfm(tmp_path, odm=True)
    (tmp_path / "opensfm" / "reconstruction.topocentric.json").write_text("[]")
    without = nerf.load(tmp_path, quiet=True)
    assert without.georeference is None and any("--georeference EPSG" in line for line in without.notes)
    (tmp_path / "odm_georeferencing").mkdir()
    (tmp_path / "odm_georeferencing" / "coords.txt").write_text(f"{line}\n576529 5188003\n1 2 3\n")
    place = nerf.load(tmp_path, quiet=True).georeference
    assert place is not None and place.epsg == 32733
    assert place.to_ground.apply(table((1, 2, 3))).tolist() == [[576_530, 5_188_005, 3]]
    (tmp_path / "odm_georeferencing" / "coords.txt").write_text("somewhere\n")
    with pytest.raises(UserError, match=r"coords\.txt: expected"):
        nerf.load(tmp_path, quiet=True)


def test_metashape_is_geocentric_where_it_is_georeferenced(tmp_path: Path) -> None:
    assert nerf.load(write_metashape(tmp_path), quiet=True).georeference is None
    assert "translation" in metashape_xml()
    file = tmp_path / "cameras.xml"
    far = geocentric_of(table(BERLIN))[0].tolist()
    head, rest = file.read_text().split("<translation>", 1)
    file.write_text(f"{head}<translation>{' '.join(map(str, far))}{rest[rest.index('</') :]}")
    place = nerf.load(tmp_path, quiet=True).georeference
    assert place is not None and place.epsg == 4978
    lla = geodetic_of(place.geocentric(table(tuple(far))))  # type: ignore[arg-type]
    assert torch.allclose(lla, table(BERLIN), rtol=0, atol=1e-8)


def test_it_survives_training_and_export(tmp_path: Path) -> None:
    """Of any format, by the option; in double precision, from the photos' file to the checkpoint and out again."""
    folder = write_transforms(tmp_path / "data")
    text = "52.51926834404209,13.400703631118825,14.946108041331172"
    scene = nerf.load(folder, quiet=True, georeference=text)
    model = nerf.train(
        scene, train_config(steps=3, batch_samples=1 << 9, field=FIELD), tmp_path / "run", progress=False
    )
    for held in (model.georeference, nerf.Model.load(tmp_path / "run").georeference):
        assert held is not None and held.origin == tuple(map(float, text.split(",")))
    export_cameras(scene, tmp_path / "again.json", scale=2.0)
    again = nerf.load(tmp_path / "again.json", quiet=True).georeference
    assert again is not None and again.origin == model.georeference.origin and again.to_ground.scale == 0.5  # type: ignore[union-attr]
    edit(tmp_path / "again.json", lambda d: d["georeference"].update(origin=[1, 2]))
    with pytest.raises(UserError, match=r"again\.json: georeference"):
        nerf.load(tmp_path / "again.json", quiet=True)
    with pytest.raises(UserError, match="place on earth"):
        nerf.load(folder, quiet=True, georeference="Berlin")
