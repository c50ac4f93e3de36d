"""Lens models: rays and pixels of each agree with one another, and with pycolmap where it has the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nerf.geometry.cameras import Cameras
from nerf.geometry.lenses import (
    COEFFICIENTS,
    DIVISION,
    EQUIRECTANGULAR,
    EUCM,
    FISHEYE,
    FISHEYE624,
    FOV,
    OPENCV,
    PERSPECTIVE,
    RATIONAL,
    THIN_PRISM_FISHEYE,
    distort,
    undistort,
    widest_angles,
)

W, H = 80, 60
TANGENTIAL = {"p1": 0.001, "p2": -0.002}
PRISM = {"s1": 0.003, "s3": 0.004}

# name: model, focal length, coefficients, and COLMAP's name and parameters behind the principal point
LENSES: dict[str, tuple[int, float, dict[str, float], str, list[float]]] = {
    "perspective": (PERSPECTIVE, 60.0, {}, "PINHOLE", []),
    "simple radial": (OPENCV, 60.0, {"k1": -0.1}, "SIMPLE_RADIAL", [-0.1]),
    "radial": (OPENCV, 60.0, {"k1": -0.25, "k2": 0.08}, "RADIAL", [-0.25, 0.08]),
    "opencv": (OPENCV, 60.0, {"k1": -0.2, "k2": 0.05} | TANGENTIAL, "OPENCV", [-0.2, 0.05, 0.001, -0.002]),
    "opencv, pincushion": (OPENCV, 60.0, {"k1": 0.4, "k2": 0.2} | TANGENTIAL, "OPENCV", [0.4, 0.2, 0.001, -0.002]),
    "rational": (
        RATIONAL,
        60.0,
        {"k1": 0.3, "k2": -0.1, "k3": 0.02, "k4": 0.5, "k5": -0.05, "k6": 0.03} | TANGENTIAL,
        "FULL_OPENCV",
        [0.3, -0.1, 0.001, -0.002, 0.02, 0.5, -0.05, 0.03],
    ),
    "equidistant": (FISHEYE, 28.0, {}, "FISHEYE", []),
    "fisheye": (
        FISHEYE,
        30.0,
        {"k1": 0.05, "k2": -0.02, "k3": 0.003, "k4": -0.0002},
        "OPENCV_FISHEYE",
        [0.05, -0.02, 0.003, -0.0002],
    ),
    "radial fisheye": (FISHEYE, 30.0, {"k1": 0.05, "k2": -0.02}, "RADIAL_FISHEYE", [0.05, -0.02]),
    "thin prism": (
        THIN_PRISM_FISHEYE,
        32.0,
        {"k1": 0.05, "k2": -0.02, "k3": 0.003, "k4": -0.0002} | TANGENTIAL | PRISM,
        "THIN_PRISM_FISHEYE",
        [0.05, -0.02, 0.001, -0.002, 0.003, -0.0002, 0.003, 0.004],
    ),
    "fisheye624": (
        FISHEYE624,
        32.0,
        {"k1": 0.05, "k2": -0.02, "k3": 0.004, "k4": -0.002, "k5": 5e-4, "k6": -1e-4}
        | TANGENTIAL
        | PRISM
        | {"s2": -0.001, "s4": -0.003},
        "RAD_TAN_THIN_PRISM_FISHEYE",
        [0.05, -0.02, 0.004, -0.002, 5e-4, -1e-4, -0.002, 0.001, 0.003, -0.001, 0.004, -0.003],
    ),
    "fov": (FOV, 40.0, {"k1": 0.9}, "FOV", [0.9]),
    "fov without any": (FOV, 60.0, {"k1": 0.0}, "FOV", [0.0]),
    "division": (DIVISION, 40.0, {"k1": -0.2}, "DIVISION", [-0.2]),
    "division, pincushion": (DIVISION, 60.0, {"k1": 0.2}, "DIVISION", [0.2]),
    "eucm": (EUCM, 30.0, {"k1": 0.6, "k2": 1.1}, "EUCM", [0.6, 1.1]),
    "eucm, nearly perspective": (EUCM, 60.0, {"k1": 0.2, "k2": 0.9}, "EUCM", [0.2, 0.9]),
    "sphere": (EQUIRECTANGULAR, W / (2 * math.pi), {}, "EQUIRECTANGULAR", []),
}


def coefficients(values: dict[str, float]) -> torch.Tensor:
    return torch.tensor([[values.get(name, 0.0) for name in COEFFICIENTS]], dtype=torch.float64)


def camera_of(name: str, c2w: torch.Tensor | None = None, skew: float = 0.0) -> Cameras:
    model, f, values, _, _ = LENSES[name]
    fy, centre = (H / math.pi, (W / 2, H / 2)) if model == EQUIRECTANGULAR else (1.02 * f, (0.52 * W, 0.48 * H))
    cx, cy = centre
    one = torch.eye(4, dtype=torch.float64)[None, :3] if c2w is None else c2w
    floats = [torch.tensor([v], dtype=torch.float64) for v in (f, fy, cx, cy)]
    whole = [torch.tensor([v]) for v in (W, H, model)]
    return Cameras(one, *floats, *whole, coefficients(values | {"skew": skew}))


def all_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of every second pixel, and of the picture's outer corners."""
    rows, cols = torch.meshgrid(torch.arange(0, H, 2.0), torch.arange(0, W, 2.0), indexing="ij")
    corners = torch.tensor([[-0.5, -0.5], [-0.5, W - 0.5], [H - 0.5, -0.5], [H - 0.5, W - 0.5]])
    rows, cols = torch.cat([rows.flatten(), corners[:, 0]]), torch.cat([cols.flatten(), corners[:, 1]])
    return rows.double(), cols.double()


def directions(camera: Cameras, rows: torch.Tensor, cols: torch.Tensor) -> torch.Tensor:
    """In float64: `rays` itself gives float32."""
    return camera._camera_directions(torch.zeros(len(rows), dtype=torch.int64), rows, cols)


@pytest.mark.parametrize("name", LENSES)
@pytest.mark.parametrize("skew", [0.0, 0.01])
def test_what_a_pixel_sees_falls_on_the_pixel(name: str, skew: float):
    camera = camera_of(name, skew=0.0 if name == "sphere" else skew)
    rows, cols = all_pixels()
    d = directions(camera, rows, cols)
    uv, depths = camera.project(d * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    error = (uv[0] - torch.stack([cols, rows], dim=1) - 0.5).abs()
    if name == "sphere":  # left and right edge are one line
        error[:, 0] = torch.minimum(error[:, 0], W - error[:, 0])
    assert float(error.max()) < 1e-8
    assert bool((depths > 0).all())


@pytest.mark.parametrize("name", LENSES)
def test_rays_and_pixels_are_pycolmaps(name: str):
    pycolmap = pytest.importorskip("pycolmap")
    model, _, _, colmap, params = LENSES[name]
    camera = camera_of(name)
    intrinsics = [float(t) for t in (camera.fx, camera.fy, camera.cx, camera.cy)]
    if colmap.startswith(("SIMPLE_", "RADIAL")):
        camera.fy = camera.fx
        intrinsics = intrinsics[:1] + intrinsics[2:]
    if not hasattr(pycolmap.CameraModelId, colmap):
        pytest.skip(f"this pycolmap has no {colmap}")
    everything = [W, H] if model == EQUIRECTANGULAR else [*intrinsics, *params]
    theirs = pycolmap.Camera(model=colmap, width=W, height=H, params=everything)
    g = torch.Generator().manual_seed(0)
    points = torch.randn(500, 3, generator=g, dtype=torch.float64)
    if model != EQUIRECTANGULAR:
        points[:, 2] = points[:, 2].abs() + 0.6
    found = [theirs.img_from_cam(p) for p in points.numpy()]
    there = np.array([[np.nan] * 2 if p is None else p for p in found], dtype=np.float64)
    uv, depths = camera.project(points * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    shown = np.isfinite(there).all(axis=1) & (depths[0] > 0).numpy()
    assert shown.mean() > 0.5  # beyond the fold of a lens, or its end, points have no pixel
    np.testing.assert_allclose(uv[0].numpy()[shown], there[shown], atol=1e-8)

    rows, cols = all_pixels()
    d = torch.nn.functional.normalize(directions(camera, rows, cols), dim=1).numpy()
    pixels = np.stack([cols, rows], axis=1) + 0.5
    rays = [theirs.cam_ray_from_img(p) for p in pixels]
    compared = 0
    for mine, ray, pixel in zip(d, rays, pixels, strict=True):
        if ray is None or (model != EQUIRECTANGULAR and mine[2] < 0.1):  # theirs end before a right angle
            continue
        back = theirs.img_from_cam(ray)
        if back is None or np.abs(back - pixel).max() > 1e-6:  # theirs gives up where its Newton steps did not converge
            continue
        np.testing.assert_allclose(mine, ray, atol=1e-7)
        compared += 1
    assert compared > 0.6 * len(rows)


def test_every_camera_model_of_pycolmap_is_compared():
    pycolmap = pytest.importorskip("pycolmap")
    compared = {lens[3] for lens in LENSES.values()}
    simple = {
        "SIMPLE_PINHOLE",
        "SIMPLE_RADIAL_FISHEYE",
        "SIMPLE_DIVISION",
        "SIMPLE_FISHEYE",
    }  # one focal length for both
    assert set(pycolmap.CameraModelId.__members__) - {"INVALID"} <= compared | simple


@pytest.mark.parametrize("name", LENSES)
def test_projection_is_differentiable(name: str):
    camera = camera_of(name)
    g = torch.Generator().manual_seed(1)
    points = torch.randn(6, 3, generator=g, dtype=torch.float64)
    points[:, 2] = -points[:, 2].abs() - 1.0
    points.requires_grad_(True)
    k = camera.distortion[:, :12].clone().requires_grad_(True)

    def project(p: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return Cameras(**camera.tensors() | {"distortion": k}).project(p)[0]

    assert torch.autograd.gradcheck(project, (points, k) if float(k.detach().abs().max()) > 0 else (points, k.detach()))


def test_cameras_of_all_models_at_once_are_those_alone():
    poses = torch.eye(4, dtype=torch.float64)[None, :3]
    alone = [camera_of(name, poses) for name in LENSES]
    together = Cameras(**{name: torch.cat([camera.tensors()[name] for camera in alone]) for name in alone[0].tensors()})
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    uv, depths = together.project(points)
    rows, cols = torch.tensor([3, 30, 57]), torch.tensor([70, 44, 2])
    for i, camera in enumerate(alone):
        mine, there = camera.project(points)
        assert torch.equal(uv[i], mine[0]) and torch.equal(depths[i], there[0])
        ids, zero = torch.full((3,), i), torch.zeros(3, dtype=torch.int64)
        whole = together.rays(ids, rows, cols)[1]
        assert torch.allclose(whole, camera.rays(zero, rows, cols)[1], atol=1e-6)
        assert torch.allclose(whole, together.rays(ids, rows.double(), cols.double())[1], atol=1e-6)


@pytest.mark.parametrize("name", LENSES)
def test_smaller_pictures_show_the_same(name: str):
    camera = camera_of(name, skew=0.0 if name == "sphere" else 0.01)
    small, wide = camera.scaled(2), camera.resized(2 * W, H)
    rows, cols = all_pixels()
    d = directions(camera, rows, cols)
    assert torch.allclose(directions(small, (rows + 0.5) / 2 - 0.5, (cols + 0.5) / 2 - 0.5), d, atol=1e-9)
    assert torch.allclose(directions(wide, rows, 2 * (cols + 0.5) - 0.5), d, atol=1e-9)


def test_a_sphere_shows_all_sides():
    camera = camera_of("sphere")
    axes = torch.tensor([[0, 0, -1], [1, 0, 0], [0, 0, 1.001], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=torch.float64)
    uv, depths = camera.project(3 * axes)
    assert torch.allclose(depths, 3 * axes.norm(dim=1)[None])
    u, v = uv[0].unbind(1)
    assert torch.allclose(u[[0, 1, 3]], torch.tensor([W / 2, 0.75 * W, 0.25 * W], dtype=torch.float64))
    assert min(float(u[2]), W - float(u[2])) < 0.1  # behind: at either edge
    assert torch.allclose(v[:4], torch.full((4,), H / 2, dtype=torch.float64))
    assert float(v[4]) < 1e-6 and float(v[5]) > H - 1e-6  # up is the upper edge


def test_points_beyond_the_fold_of_a_lens_are_not_seen():
    """A polynomial that turns back takes points far outside the picture into it again."""
    lens = {"k1": -0.3}  # r (1 - 0.3 r^2) has its top at r = 1 / sqrt(0.9)
    top = 1 / math.sqrt(0.9)
    assert float(widest_angles(coefficients(lens), torch.tensor([OPENCV]))) == pytest.approx(math.atan(top), abs=2e-3)
    camera = camera_of("radial")
    camera.distortion = coefficients(lens)
    slopes = torch.tensor([0.5 * top, 0.98 * top, 1.05 * top, 1.8 * top], dtype=torch.float64)
    uv, depths = camera.project(torch.stack([slopes, 0 * slopes, -torch.ones_like(slopes)], dim=1))
    assert bool((uv[0, :, 0] < W + 8).all())  # by the formula alone all are in the picture or beside it
    assert (depths[0] > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("model", "values", "rim"),
    [
        (OPENCV, {"k1": -0.3}, math.atan(1 / math.sqrt(0.9))),
        (FISHEYE, {"k1": -0.2}, 1 / math.sqrt(0.6)),
        (EUCM, {"k1": 0.8, "k2": 1.0}, math.pi - math.acos(0.25)),
        (DIVISION, {"k1": 0.5}, math.atan(1 / math.sqrt(2))),
    ],
)
def test_beyond_the_rim_of_a_lens_rays_are_those_of_the_rim(model: int, values: dict[str, float], rim: float):
    k, models = coefficients(values), torch.tensor([model])
    assert float(widest_angles(k, models)) == pytest.approx(rim, abs=3e-3)
    x = torch.linspace(0, 5, 200, dtype=torch.float64)
    d = torch.nn.functional.normalize(undistort(x, 0.3 * x, k.expand(200, -1), models.expand(200)), dim=1)
    angles = d[:, 2].acos()
    assert bool(d.isfinite().all()) and float(angles[-1]) == pytest.approx(rim, abs=3e-3)
    assert bool((angles.diff() > -1e-9).all())  # the farther out in the picture, the farther from the axis


def test_wide_lenses_see_behind_the_camera():
    for name, angle in (
        ("equidistant", 170.0),
        ("eucm", 115.0),
        ("fov", 150.0),
        ("division", 120.0),
        ("sphere", 179.0),
    ):
        camera, t = camera_of(name), math.radians(angle)
        point = torch.tensor([[math.sin(t), 0.0, -math.cos(t)]], dtype=torch.float64)
        uv, depths = camera.project(2 * point)
        assert float(depths) == pytest.approx(2.0), name
        d = directions(camera, uv[0, :, 1] - 0.5, uv[0, :, 0] - 0.5)
        back = torch.nn.functional.normalize(d, dim=1) * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
        assert torch.allclose(back, point, atol=1e-9), name


def test_strong_lenses_are_inverted_to_rounding():
    """Random lenses, up to nine tenths of what they show."""
    g = torch.Generator().manual_seed(3)
    n = 150
    for model in (OPENCV, RATIONAL, FISHEYE, THIN_PRISM_FISHEYE, FISHEYE624):
        k = torch.randn(n, len(COEFFICIENTS), generator=g, dtype=torch.float64) * torch.tensor(
            [0.4, 0.2, 0.1, 0.05, 2e-3, 2e-3, 0.02, 0.01, 2e-3, 1e-3, 2e-3, 1e-3, 0.0], dtype=torch.float64
        )
        if model == FISHEYE:
            k[:, 4:] = 0
        models = torch.full((n,), model)
        angle = widest_angles(k, models).clamp_max(1.4) * 0.9 * torch.rand(n, generator=g, dtype=torch.float64)
        turn = 6.3 * torch.rand(n, generator=g, dtype=torch.float64)
        p = torch.stack([angle.sin() * turn.cos(), angle.sin() * turn.sin(), angle.cos()], dim=1)
        x, y = distort(p[:, None], k, model)
        d = undistort(x[:, 0], y[:, 0], k, models)
        assert float((torch.nn.functional.normalize(d, dim=1) - p).abs().max()) < 1e-8, model
