"""Cameras of other programs: every format is written here from known cameras by its documentation's own equations, and
read back; points must fall where those equations put them. And every kind of bad input gets one clear sentence."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from small_scenes import FLIP, look_at

from nerf.datasets import load
from nerf.errors import UserError
from nerf.geometry.lenses import EQUIRECTANGULAR, FISHEYE, OPENCV, PERSPECTIVE, THIN_PRISM_FISHEYE

W, H, N = 64, 48, 5
FOCAL = 70.0


def poses() -> list[np.ndarray]:
    """OpenGL camera to world [4,4]; each rolled about its own axis by another angle, so no axis may be mixed up."""
    out = []
    for i in range(N):
        a = 2 * math.pi * i / N
        pose = look_at(np.array([3 * math.cos(a), 3 * math.sin(a), 0.5 + 0.4 * i]), np.array([0.1, 0.0, 0.2]))
        c, s = math.cos(0.3 * i), math.sin(0.3 * i)
        roll = np.eye(4)
        roll[:2, :2] = [[c, -s], [s, c]]
        out.append(pose @ roll)
    return out


POINTS = np.random.default_rng(3).uniform(-0.5, 0.5, (40, 3))


def photo(i: int) -> np.ndarray:
    """[H,W,3] uint8 that says which camera it is of."""
    return np.full((H, W, 3), 10 * i + 5, np.uint8) + np.arange(W, dtype=np.uint8)[None, :, None]


def write_photos(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(photo(i)).save(folder / name)


def local(pose: np.ndarray, points: np.ndarray = POINTS) -> np.ndarray:
    """World points [m,3] in the OpenCV camera frame."""
    w2c = np.linalg.inv(pose @ FLIP)
    return points @ w2c[:3, :3].T + w2c[:3, 3]


def distorted(x: np.ndarray, y: np.ndarray, k: tuple[float, ...], p: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Brown's model with OpenCV's p1, p2, written independently of the one in nerf.geometry.cameras."""
    r = np.hypot(x, y)
    radial = 1 + sum(c * r ** (2 * n + 2) for n, c in enumerate(k))
    return (
        x * radial + 2 * p[0] * x * y + p[1] * (r**2 + 2 * x**2),
        y * radial + p[0] * (r**2 + 2 * y**2) + 2 * p[1] * x * y,
    )


def check(scene: Any, expected: list[np.ndarray], points: np.ndarray = POINTS, atol: float = 1e-6) -> None:
    """Points [m,3] of the world fall on the pixels [m,2] of each camera, in order of names."""
    uv, z = scene.cameras.project(torch.from_numpy(points))
    assert bool((z > 0).all())
    for i, want in enumerate(expected):
        np.testing.assert_allclose(uv[i].numpy(), want, atol=atol, err_msg=scene.names[i])
        np.testing.assert_array_equal(scene.pixels.raw(i), photo(i))


def pinhole(pose: np.ndarray, points: np.ndarray = POINTS, cx: float = W / 2, cy: float = H / 2) -> np.ndarray:
    x, y, z = local(pose, points).T
    return np.stack([FOCAL * x / z + cx, FOCAL * y / z + cy], axis=1)


# ---- Metashape

WORLD = np.diag([2.0, 2.0, 2.0, 1.0]) @ look_at(
    np.array([0.3, 0.4, 0.5]), np.zeros(3)
)  # of the component: a similarity
WORLD[:3, 3] = [1.0, -2.0, 0.5]
LENS = {
    "f": 70,
    "b1": 0.4,
    "b2": 0.9,
    "cx": 1.5,
    "cy": -0.7,
    "k1": -0.1,
    "k2": 0.03,
    "k3": -0.01,
    "k4": 0.002,
    "p1": 1e-3,
    "p2": 2e-3,
}


def metashape_xml(
    world: np.ndarray | None = WORLD, kind: str = "frame", lens: dict[str, float] = LENS, cameras: str = ""
) -> str:
    """An export with two sensors (the second plain), a disabled and an unaligned camera, one in a group."""

    def sensor(number: int, values: dict[str, float]) -> str:
        numbers = "".join(f"<{k}>{v}</{k}>" for k, v in values.items())
        size = f'<resolution width="{W}" height="{H}"/>'
        return (
            f'<sensor id="{number}" label="x" type="{kind}">{size}'
            f'<calibration type="{kind}" class="initial">{size}<f>1</f></calibration>'
            f'<calibration type="{kind}" class="adjusted">{size}{numbers}</calibration></sensor>'
        )

    chunk = np.linalg.inv(np.eye(4) if world is None else world)
    listed = []
    for i, pose in enumerate(poses()):
        m = chunk @ pose @ FLIP
        m[:3, :3] /= np.cbrt(np.linalg.det(m[:3, :3]))  # Metashape's are rotations, whatever the chunk's scale
        text = " ".join(map(repr, map(float, m.ravel())))
        component = "" if world is None else ' component_id="0"'
        listed.append(
            f'<camera id="{i}" sensor_id="{i % 2}"{component} label="shot{i}"><transform>{text}</transform></camera>'
        )
    listed[3] = f'<group id="0" label="g">{listed[3]}</group>'
    transform = ""
    if world is not None:
        s = float(np.cbrt(np.linalg.det(world[:3, :3])))
        rotation, translation = (" ".join(map(repr, map(float, a.ravel()))) for a in (world[:3, :3] / s, world[:3, 3]))
        transform = (
            f'<components><component id="0"><transform><rotation locked="1">{rotation}</rotation><translation>'
            f"{translation}</translation><scale>{s!r}</scale></transform></component></components>"
        )
    off = f'<camera id="90" sensor_id="0" label="off" enabled="0"><transform>{"1 " * 16}</transform></camera>'
    lost = '<camera id="91" sensor_id="0" label="lost"></camera>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?><document version="2.0.0"><chunk label="Chunk 1" enabled="1">'
        f"<sensors>{sensor(0, lens)}{sensor(1, {'f': 70})}</sensors>{transform}"
        f"<cameras>{''.join(listed)}{off}{lost}{cameras}</cameras></chunk></document>"
    )


def write_metashape(folder: Path, **how: Any) -> Path:
    write_photos(folder / "images", [f"shot{i}.png" for i in range(N)])
    (folder / "cameras.xml").write_text(metashape_xml(**how))
    return folder


def metashape_pixels(pose: np.ndarray, first: bool, fisheye: bool = False, points: np.ndarray = POINTS) -> np.ndarray:
    """Appendix C of its manual."""
    q = LENS if first else {"f": 70}
    v = {k: q.get(k, 0.0) for k in LENS}
    x, y = (local(pose, points)[:, :2] / local(pose, points)[:, 2:]).T
    if fisheye:
        r0 = np.hypot(x, y)
        x, y = x * np.arctan(r0) / r0, y * np.arctan(r0) / r0
    r = np.hypot(x, y)
    radial = 1 + v["k1"] * r**2 + v["k2"] * r**4 + v["k3"] * r**6 + v["k4"] * r**8
    xd = x * radial + v["p1"] * (r**2 + 2 * x**2) + 2 * v["p2"] * x * y
    yd = y * radial + v["p2"] * (r**2 + 2 * y**2) + 2 * v["p1"] * x * y
    u = 0.5 * W + v["cx"] + xd * (v["f"] + v["b1"]) + yd * v["b2"]
    return np.stack([u, 0.5 * H + v["cy"] + yd * v["f"]], axis=1)


def test_metashape(tmp_path: Path) -> None:
    scene = load(write_metashape(tmp_path), quiet=True)
    assert scene.source == "metashape" and scene.names == [f"shot{i}.png" for i in range(N)]
    assert scene.cameras.models.tolist() == [OPENCV, PERSPECTIVE] * 2 + [OPENCV]
    check(scene, [metashape_pixels(p, i % 2 == 0) for i, p in enumerate(poses())])
    text = "\n".join(scene.notes)
    assert "left out 1 of 7 cameras that are disabled: off" in text
    assert "left out 1 of 7 cameras that are not aligned: lost" in text
    assert load(tmp_path / "cameras.xml", quiet=True).source == "metashape"


def test_metashape_without_a_transform_and_with_fisheye_lenses(tmp_path: Path) -> None:
    scene = load(write_metashape(tmp_path / "plain", world=None), quiet=True)
    check(scene, [metashape_pixels(p, i % 2 == 0) for i, p in enumerate(poses())])
    assert any("arbitrary scale" in line for line in scene.notes)
    fisheye = load(write_metashape(tmp_path / "fisheye", kind="fisheye"), quiet=True)
    assert fisheye.cameras.models.tolist() == [THIN_PRISM_FISHEYE, FISHEYE] * 2 + [THIN_PRISM_FISHEYE]
    check(fisheye, [metashape_pixels(p, i % 2 == 0, fisheye=True) for i, p in enumerate(poses())])


def test_metashape_rigs(tmp_path: Path) -> None:
    """Slaves have no transform: theirs is that of their master, then their sensor's place on the rig."""
    write_metashape(tmp_path)
    file = tmp_path / "cameras.xml"
    angle = 0.3
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    rotation = " ".join(map(repr, map(float, turn.ravel())))
    text = file.read_text().replace(
        '<sensor id="1"',
        f'<sensor id="7" master_id="1" type="frame"><resolution width="{W}" height="{H}"/><calibration type="frame">'
        f'<resolution width="{W}" height="{H}"/><f>70</f></calibration><rotation locked="true">{rotation}</rotation>'
        '<location>0.2 -0.1 0.05</location></sensor><sensor id="1"',
    )
    slaves = "".join(f'<camera id="{50 + i}" sensor_id="7" label="right{i}" master_id="{i}"/>' for i in (1, 3))
    file.write_text(
        text.replace("</cameras>", f'{slaves}<camera id="60" sensor_id="7" master_id="91" label="no"/></cameras>')
    )
    write_photos(tmp_path / "images", ["right1.png", "right3.png"])
    scene = load(tmp_path, quiet=True)
    assert len(scene.names) == N + 2
    chunk, offset = np.linalg.inv(WORLD), np.eye(4)
    offset[:3, :3], offset[:3, 3] = turn, (0.2, -0.1, 0.05)
    for i in (1, 3):
        m = chunk @ poses()[i] @ FLIP
        m[:3, :3] /= np.cbrt(np.linalg.det(m[:3, :3]))
        expected = WORLD @ m @ offset @ FLIP
        got = scene.cameras.c2w[scene.names.index(f"right{i}.png")].numpy()
        np.testing.assert_allclose(got[:, 3], expected[:3, 3], rtol=1e-9)
        np.testing.assert_allclose(got[:, :3], expected[:3, :3] / np.cbrt(np.linalg.det(expected[:3, :3])), atol=1e-9)
    said = "\n".join(scene.notes)
    assert "the poses of 2 slave cameras" in said and "left out 2 of 10 cameras that are not aligned: lost, no" in said


def sphere_pixels(pose: np.ndarray) -> np.ndarray:
    """A panorama of 64 x 32: longitude to the right, latitude upwards, what is ahead in the middle."""
    x, y, z = local(pose).T
    return np.stack([32 + np.arctan2(x, z) * 32 / math.pi, 16 + np.arctan2(y, np.hypot(x, z)) * 32 / math.pi], axis=1)


def panoramas(folder: Path) -> None:
    """The photos of the set cut to the shape of panoramas."""
    for file in (folder / "images").iterdir():
        Image.fromarray(photo(int(re.sub(r"\D", "", file.name)))[:32]).save(file)


def test_panoramas_of_metashape_and_opensfm(tmp_path: Path) -> None:
    """Read as whole spheres; what a file calls spherical and is not twice as wide as high is none."""
    metashape = write_metashape(tmp_path / "a")
    text = (metashape / "cameras.xml").read_text()
    sensors = "".join(
        f'<sensor id="{k}" type="spherical"><resolution width="64" height="32"/></sensor>' for k in range(2)
    )
    (metashape / "cameras.xml").write_text(re.sub(r"<sensor .*</sensor>", sensors, text))
    opensfm = write_opensfm(tmp_path / "b", "spherical", height=32)
    for folder, file, size in ((metashape, "cameras.xml", 'height="32"'), (opensfm, "reconstruction.json", '": 32')):
        panoramas(folder)
        scene = load(folder, quiet=True)
        assert scene.cameras.models.tolist() == [EQUIRECTANGULAR] * N
        uv, _ = scene.cameras.project(torch.from_numpy(POINTS))
        np.testing.assert_allclose(uv.numpy(), [sphere_pixels(p) for p in poses()], atol=1e-6)
        (folder / file).write_text((folder / file).read_text().replace(size, size.replace("32", "48")))
        with pytest.raises(UserError, match=f"{file}.*panoramas are read where they show the whole sphere.*64x48"):
            load(folder, quiet=True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_text_in_any_encoding_and_hidden_files(tmp_path: Path, encoding: str) -> None:
    """Notepad, PowerShell and programs with a code page; and what macOS leaves in ZIPs."""
    for make, names in (
        (write_metashape, [f"shot{i}" for i in range(N)]),
        (write_csv, [f"IMG_{i}" for i in range(N)]),
        (write_opensfm, [f"DJI_{i}" for i in range(N)]),
    ):
        folder = make(tmp_path / make.__name__)  # type: ignore[operator]
        file = next(p for p in folder.iterdir() if p.is_file())
        text = file.read_text()
        for name in names:
            text = text.replace(name, f"Größe {name}")
        for picture in (folder / "images").iterdir():
            picture.rename(picture.with_name(unicodedata.normalize("NFD", f"Größe {picture.name}")))
        file.write_bytes(text.encode(encoding))
        (folder / f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(64))
        (folder / "images" / f"._{next((folder / 'images').iterdir()).name}").write_bytes(b"\0\5\x16\7")
        assert len(load(folder, quiet=True).names) == N, make.__name__


def test_reality_capture_with_semicolons(tmp_path: Path) -> None:
    plain = load(write_csv(tmp_path / "plain"), quiet=True)
    rows = [r.replace(",", ";").replace(".", ",").replace(",png", ".png") for r in csv_rows()]
    write_csv(tmp_path / "german")
    scene = load(write_csv_text(tmp_path / "german", rows), quiet=True)
    torch.testing.assert_close(scene.cameras.c2w, plain.cameras.c2w)


def test_polycam_without_sizes(tmp_path: Path) -> None:
    """Since autumn 2025 corrected cameras state none: that of the picture is meant."""
    full = load(write_polycam(tmp_path), quiet=True)
    for file in (tmp_path / "keyframes" / "corrected_cameras").glob("*.json"):
        data = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in data.items() if k not in ("width", "height")}))
    scene = load(tmp_path, quiet=True)
    torch.testing.assert_close(scene.cameras.fx, full.cameras.fx)
    assert scene.cameras.widths.tolist() == full.cameras.widths.tolist()


def test_metashape_takes_the_largest_component(tmp_path: Path) -> None:
    pose = " ".join(map(str, np.eye(4).ravel()))
    other = f'<camera id="50" sensor_id="0" component_id="7" label="alone"><transform>{pose}</transform></camera>'
    scene = load(write_metashape(tmp_path, cameras=other), quiet=True)
    assert len(scene.names) == N and any("of 2 components" in line for line in scene.notes)


# ---- RealityCapture

CSV_HEADER = "#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"
CSV_LENS = (18.0, 0.01, -0.02, -0.1, 0.03, -0.01, 0.002, 1e-3, 2e-3)


def angles(r: np.ndarray) -> tuple[float, float, float]:
    """Heading, pitch, roll in degrees of R = Rz(-heading) Rx(pitch) Ry(roll)."""
    pitch = math.asin(r[2, 1])
    return (
        math.degrees(math.atan2(r[0, 1], r[1, 1])),
        math.degrees(pitch),
        math.degrees(math.atan2(-r[2, 0], r[2, 2])),
    )


def csv_rows(offset: np.ndarray | None = None) -> list[str]:
    rows = [CSV_HEADER]
    for i, pose in enumerate(poses()):
        place = pose[:3, 3] + (np.zeros(3) if offset is None else offset)
        rows.append(",".join([f"IMG_{i}.png", *(repr(float(v)) for v in (*place, *angles(pose[:3, :3]), *CSV_LENS))]))
    return rows


def write_csv(folder: Path, rows: list[str] | None = None) -> Path:
    write_photos(folder / "images", [f"IMG_{i}.png" for i in range(N)])
    (folder / "cameras.csv").write_text("\n".join(csv_rows() if rows is None else rows) + "\n")
    return folder


def csv_pixels(pose: np.ndarray, points: np.ndarray = POINTS) -> np.ndarray:
    x, y, z = local(pose, points).T
    f, u, v, k1, k2, k3, k4, t1, t2 = CSV_LENS
    xd, yd = distorted(x / z, y / z, (k1, k2, k3, k4), (t1, t2))
    return np.stack([(f / 36 * xd + u) * W + W / 2, (f / 36 * yd + v) * W + H / 2], axis=1)


def test_reality_capture(tmp_path: Path) -> None:
    scene = load(write_csv(tmp_path), quiet=True)
    assert scene.source == "realitycapture" and scene.cameras.models.tolist() == [OPENCV] * N
    check(scene, [csv_pixels(p) for p in poses()])


def test_reality_capture_angles_mean_what_its_words_say(tmp_path: Path) -> None:
    """Straight down with +y up in the picture; heading 90 turns the top of the picture east; pitch 90 looks north."""
    lens = "18,0,0"
    rows = ["#name,x,y,alt,heading,pitch,roll,f,px,py"]
    rows += [f"IMG_0.png,0,0,9,0,0,0,{lens}", f"IMG_1.png,0,0,9,90,0,0,{lens}", f"IMG_2.png,0,0,9,0,90,0,{lens}"]
    scene = load(write_csv(tmp_path, rows), quiet=True)
    up, ahead = scene.cameras.up, scene.cameras.forward
    expected_up = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]]).double()
    expected_ahead = torch.tensor([[0, 0, -1], [0, 0, -1], [0, 1, 0]]).double()
    torch.testing.assert_close(up, expected_up, atol=1e-12, rtol=0)
    torch.testing.assert_close(ahead, expected_ahead, atol=1e-12, rtol=0)


# ---- OpenSfM, OpenDroneMap

CAMERAS: dict[str, dict[str, Any]] = {
    "perspective": {"focal": 1.1, "k1": -0.1, "k2": 0.03},
    "brown": {"focal_x": 1.1, "focal_y": 1.12, "c_x": 0.02, "c_y": -0.01}
    | {"k1": -0.1, "k2": 0.03, "k3": -0.01, "p1": 1e-3, "p2": 2e-3},
    "fisheye": {"focal": 0.9, "k1": -0.1, "k2": 0.03},
    "fisheye_opencv": {"focal_x": 0.9, "focal_y": 0.91, "c_x": 0.02, "c_y": -0.01}
    | {"k1": -0.1, "k2": 0.03, "k3": -0.01, "k4": 0.002},
    "radial": {"focal_x": 1.1, "focal_y": 1.12, "c_x": 0.02, "c_y": -0.01, "k1": -0.1, "k2": 0.03},
}


def reconstruction(camera: dict[str, Any]) -> dict[str, Any]:
    shots = {}
    for i, pose in enumerate(poses()):
        w2c = np.linalg.inv(pose @ FLIP)
        angle = math.acos((np.trace(w2c[:3, :3]) - 1) / 2)
        skew = (w2c[:3, :3] - w2c[:3, :3].T) / (2 * math.sin(angle))
        axis = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
        shots[f"DJI_{i}.JPG"] = {
            "rotation": (axis * angle).tolist(),
            "translation": w2c[:3, 3].tolist(),
            "camera": "v2 cam",
        }
    points = {str(k): {"coordinates": p.tolist(), "color": [1, 2, 3]} for k, p in enumerate(POINTS)}
    lla = {"latitude": 47.1, "longitude": 8.5, "altitude": 400.0}
    return {"cameras": {"v2 cam": camera}, "shots": shots, "points": points, "reference_lla": lla}


def write_opensfm(folder: Path, kind: str = "perspective", odm: bool = False, **extra: Any) -> Path:
    camera = {"projection_type": kind, "width": W, "height": H, **CAMERAS.get(kind, {"focal": 1.0}), **extra}
    small = {"cameras": {}, "shots": {}, "points": {}}
    place = folder / "opensfm" if odm else folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "reconstruction.json").write_text(json.dumps([small, reconstruction(camera)]))
    write_photos(folder / "images", [f"DJI_{i}.png" for i in range(N)])  # another suffix than the shots say
    return folder


def opensfm_pixels(kind: str, pose: np.ndarray) -> np.ndarray:
    c = CAMERAS[kind]
    x, y, z = local(pose).T
    k = tuple(c.get(f"k{n}", 0.0) for n in (1, 2, 3, 4))
    if kind.startswith("fisheye"):
        r = np.hypot(x, y)
        theta = np.arctan2(r, z)
        d = theta * (1 + sum(v * theta ** (2 * n + 2) for n, v in enumerate(k)))
        xd, yd = x / r * d, y / r * d
    else:
        xd, yd = distorted(x / z, y / z, k, (c.get("p1", 0.0), c.get("p2", 0.0)))
    fx, fy = (c.get(f"focal_{a}", c.get("focal")) for a in "xy")
    return np.stack([(fx * xd + c.get("c_x", 0)) * W + W / 2, (fy * yd + c.get("c_y", 0)) * W + H / 2], axis=1)


@pytest.mark.parametrize("kind", CAMERAS)
def test_opensfm(tmp_path: Path, kind: str) -> None:
    scene = load(write_opensfm(tmp_path, kind, odm=kind == "brown"), quiet=True)
    assert scene.source == "opensfm"
    assert scene.cameras.models.tolist() == [FISHEYE if kind.startswith("fisheye") else OPENCV] * N
    check(scene, [opensfm_pixels(kind, p) for p in poses()])
    assert scene.points is not None
    np.testing.assert_allclose(scene.points.numpy(), POINTS, atol=1e-6)
    assert any("of 2 reconstructions" in line for line in scene.notes)


# ---- phones


def write_polycam(folder: Path, corrected: bool = True, depth: bool = True) -> Path:
    keyframes, kind = folder / "keyframes", "corrected_" if corrected else ""
    write_photos(keyframes / f"{kind}images", [f"{100 + i}.png" for i in range(N)])
    for name in (f"{kind}cameras", "depth", "confidence"):
        (keyframes / name).mkdir()
    for i, pose in enumerate(poses()):
        data = {f"t_{r}{c}": float(pose[r, c]) for r in range(3) for c in range(4)}
        data |= {"fx": FOCAL, "fy": FOCAL, "cx": 30.0, "cy": 25.0, "width": W, "height": H, "blur_score": 90.0}
        (keyframes / f"{kind}cameras" / f"{100 + i}.json").write_text(json.dumps(data))
        if depth:
            mm = np.full((H // 4, W // 4), 2000 + i, np.uint16)
            mm[0, 0] = 0
            Image.fromarray(mm).save(keyframes / "depth" / f"{100 + i}.png")
            sure = np.full((H // 4, W // 4), 255, np.uint8)
            sure[1] = 0
            Image.fromarray(sure).save(keyframes / "confidence" / f"{100 + i}.png")
    return folder


@pytest.mark.parametrize("corrected", [True, False])
def test_polycam(tmp_path: Path, corrected: bool) -> None:
    scene = load(write_polycam(tmp_path, corrected), quiet=True)
    assert scene.source == "polycam" and ("did not correct" in "\n".join(scene.notes)) is not corrected
    check(scene, [pinhole(p, cx=30.0, cy=25.0) for p in poses()])
    assert scene.depths is not None
    z = scene.depths.image(3)[..., 0]
    assert z.shape == (H // 4, W // 4) and z[0, 0] == 0 and bool((z[1] == 0).all())
    assert torch.allclose(z[2:], torch.tensor(2.003))


def quaternion_xyzw(r: np.ndarray) -> list[float]:
    values, vectors = np.linalg.eigh(  # of the symmetric form whose largest eigenvector is the quaternion
        np.array(
            [
                [r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
                [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]],
                [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
                [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)],
            ]
        )
    )
    return vectors[:, values.argmax()].tolist()


def write_record3d(folder: Path, per_frame: bool = False, name: str = "metadata") -> Path:
    write_photos(folder / "rgbd", [f"{i}.jpg" for i in range(N)])
    for i in range(N):  # JPEG would change the pixels that check() compares
        (folder / "rgbd" / f"{i}.jpg").unlink()
        Image.fromarray(photo(i)).save(folder / "rgbd" / f"{i}.png")
    data: dict[str, Any] = {"w": W, "h": H, "fps": 30, "dw": 16, "dh": 12}
    data["poses"] = [[*quaternion_xyzw(p[:3, :3]), *p[:3, 3].tolist()] for p in poses()]
    data["K"] = [FOCAL, 0, 0, 0, FOCAL, 0, 30.0, 25.0, 1]
    if per_frame:
        data["perFrameIntrinsicCoeffs"] = [[FOCAL, FOCAL, 30.0 + i, 25.0] for i in range(N)]
    (folder / name).write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("per_frame", [False, True])
def test_record3d(tmp_path: Path, per_frame: bool) -> None:
    write_record3d(tmp_path, per_frame, "metadata.json" if per_frame else "metadata")
    scene = load(tmp_path, quiet=True)
    assert scene.source == "record3d"
    check(scene, [pinhole(p, cx=30.0 + i * per_frame, cy=25.0) for i, p in enumerate(poses())])


def test_record3d_depths_in_exr(tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR")
    from nerf.io.exr import write_exr

    write_record3d(tmp_path)
    (tmp_path / "depth").mkdir()
    for i in range(N - 1):  # one is missing
        z = np.full((12, 16), 1.5 + i, np.float32)
        z[0] = np.nan
        write_exr(tmp_path / "depth" / f"{i}.exr", {"R": z})
    scene = load(tmp_path, quiet=True)
    assert scene.depths is not None
    assert torch.equal(scene.depths.image(2)[0], torch.zeros(16, 1))
    assert torch.equal(scene.depths.image(2)[1:], torch.full((11, 16, 1), 3.5))
    assert scene.depths.image(N - 1).tolist() == [[[0.0]]]
    assert any(f"depth maps for {N - 1} of {N} photos" in line for line in scene.notes)


# ---- coordinates far from the origin

UTM = np.array([465_000.0, 5_247_000.0, 431.5])  # a national grid


def test_a_world_in_a_national_grid_loses_no_millimetre(tmp_path: Path) -> None:
    near = load(write_csv(tmp_path / "near"), quiet=True)
    far = load(write_csv(tmp_path / "far", csv_rows(UTM)), quiet=True)
    check(far, [csv_pixels(p) for p in poses()], POINTS + UTM, atol=1e-4)
    assert not any("no inverse" in line for line in far.notes)
    assert far.scene_from_world.scale == pytest.approx(near.scene_from_world.scale, rel=1e-6)
    ids = torch.arange(N)
    rows, cols = torch.full((N,), 7), torch.full((N,), 11)
    for a, b in zip(
        near.cameras.rays(ids, rows, cols, near.scene_from_world),
        far.cameras.rays(ids, rows, cols, far.scene_from_world),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


# ---- what is missing or wrong


def test_photos_that_are_missing_are_skipped_and_named(tmp_path: Path) -> None:
    for make, name in (
        (write_metashape, "images/shot1.png"),
        (write_csv, "images/IMG_1.png"),
        (write_opensfm, "images/DJI_1.png"),
        (write_polycam, "keyframes/corrected_images/101.png"),
        (write_record3d, "rgbd/1.png"),
    ):
        folder = make(tmp_path / make.__name__)  # type: ignore[operator]
        (folder / name).unlink()
        scene = load(folder, quiet=True)
        assert len(scene.names) == N - 1
        assert any(line.startswith("skipped 1 of 5 frames without image") for line in scene.notes), make.__name__


def test_photos_of_one_name_in_two_folders(tmp_path: Path) -> None:
    write_csv(tmp_path)
    for flight in ("a", "b"):
        write_photos(tmp_path / "images" / flight, [f"IMG_{i}.png" for i in range(N)])
    for i in range(N):
        (tmp_path / "images" / f"IMG_{i}.png").unlink()
    with pytest.raises(UserError, match=r"may be .*IMG_0.png or .*IMG_0.png: keep one"):
        load(tmp_path, quiet=True)
    rows = csv_rows()
    told = [rows[0], *(f"C:\\flights\\b\\{r}" for r in rows[1:])]
    scene = load(write_csv_text(tmp_path, told), quiet=True)
    assert len(scene.names) == N


def write_csv_text(folder: Path, rows: list[str]) -> Path:
    (folder / "cameras.csv").write_text("\n".join(rows) + "\n")
    return folder


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new)

    return change


def edited(change: Callable[[Any], Any]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return apply


BAD: list[tuple[Any, str, Callable[[str], str], str]] = [
    (write_metashape, "cameras.xml", lambda t: t[: len(t) // 2], "not valid XML"),
    (write_metashape, "cameras.xml", replaced("<cameras>", "<x>"), "not valid XML"),
    (write_metashape, "cameras.xml", lambda t: t.replace("cameras>", "photos>"), "no <chunk> with <cameras>"),
    (write_metashape, "cameras.xml", replaced('type="frame"', 'type="spherical"'), "panoramas are read where"),
    (write_metashape, "cameras.xml", replaced("<f>70</f>", "<f>seventy</f>"), "is no number"),
    (write_metashape, "cameras.xml", replaced("<f>70</f>", "<f>-70</f>"), "focal length is"),
    (write_metashape, "cameras.xml", replaced("<p2>", "<p3>50</p3><p2>"), "p3, p4 move pixels by up to"),
    (write_metashape, "cameras.xml", replaced('sensor_id="1"', 'sensor_id="9"'), "its sensor 9 is not in the file"),
    (write_metashape, "cameras.xml", replaced("<transform>", "<moved>"), "not valid XML"),
    (
        write_metashape,
        "cameras.xml",
        lambda t: t.replace("transform>", "moved>"),
        "none of its 7 cameras is aligned: align the photos",
    ),
    (write_csv, "cameras.csv", lambda t: t.replace("alt", "z"), "the column alt is missing"),
    (write_csv, "cameras.csv", lambda t: t.replace("18.0", "wide"), "line 2: f is 'wide', expected a number"),
    (write_csv, "cameras.csv", lambda t: t.replace("18.0", "-1"), "f is -1.0, expected millimetres"),
    (write_csv, "cameras.csv", lambda t: t[: t.rindex(",")], "line 6 has 15 cells, its header 16"),
    (write_csv, "cameras.csv", lambda t: t.splitlines()[0] + "\n", "holds no camera"),
    (write_csv, "cameras.csv", replaced("IMG_", "DSC_"), "none of its 5 pictures"),
    (write_opensfm, "reconstruction.json", lambda t: t[:100], "not valid JSON"),
    (write_opensfm, "reconstruction.json", lambda t: "[]", "no reconstruction with shots"),
    (write_opensfm, "reconstruction.json", edited(lambda d: d[1].pop("cameras")), "'cameras' is missing"),
    (
        write_opensfm,
        "reconstruction.json",
        edited(lambda d: d[1]["shots"]["DJI_0.JPG"].update(rotation=[1, 2])),
        "shot DJI_0.JPG: rotation is .1, 2., expected three finite numbers",
    ),
    (
        write_opensfm,
        "reconstruction.json",
        edited(lambda d: d[1]["cameras"]["v2 cam"].update(projection_type="dual")),
        "the projection dual is not supported",
    ),
    (
        write_opensfm,
        "reconstruction.json",
        edited(lambda d: d[1]["cameras"]["v2 cam"].update(p1=0.1)),
        "p1 of the projection perspective are not supported",
    ),
    (
        write_polycam,
        "keyframes/corrected_cameras/101.json",
        edited(lambda d: d.pop("t_12")),
        "101.json: t_12 is None, expected a finite number",
    ),
    (write_record3d, "metadata", edited(lambda d: d.update(poses=[[0] * 7] * N)), "quaternion has length 0"),
    (write_record3d, "metadata", edited(lambda d: d.update(w=None)), "w and h are None and 48"),
    (write_record3d, "metadata", edited(lambda d: d.update(K=[1, 2])), "K: expected 9 numbers"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_files_are_one_sentence(tmp_path: Path, case: int) -> None:
    make, name, change, words = BAD[case]
    folder = make(tmp_path)
    file = folder / name
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=words) as caught:
        load(folder, quiet=True)
    assert "\n" not in str(caught.value)


def test_an_r3d_archive_says_to_unzip_it(tmp_path: Path) -> None:
    (tmp_path / "room.r3d").write_bytes(b"PK")
    with pytest.raises(UserError, match="unzip it"):
        load(tmp_path, quiet=True)


def test_files_of_other_kinds_are_not_taken_for_cameras(tmp_path: Path) -> None:
    write_csv(tmp_path, ["name,size", "IMG_0.png,3"])
    (tmp_path / "cameras").mkdir()
    (tmp_path / "cameras" / "0.json").write_text("{}")
    (tmp_path / "metadata").write_text('{"poses": []}')
    (tmp_path / "metadata.json").write_text("no JSON")
    (tmp_path / "layout.xml").write_text("<layout/>")
    with pytest.raises(UserError, match=r"no posed images found; looked for .*Metashape.*RealityCapture.*Polycam"):
        load(tmp_path, quiet=True)
    ElementTree.fromstring(metashape_xml())  # what the tests above write is XML
