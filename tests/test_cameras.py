"""Cameras: rays and projection are inverse to each other for every lens, in the conventions of the module."""

from __future__ import annotations

import math

import pytest
import torch

from nerf.geometry.cameras import FISHEYE, OPENCV, PERSPECTIVE, Cameras, undistort
from nerf.geometry.space import Similarity

LENSES = {
    "perspective": (PERSPECTIVE, [0.0] * 6),
    "phone": (OPENCV, [0.0578, -0.0805, 0.0, 0.0, -0.00098, 0.000156]),
    "wide": (OPENCV, [-0.22, 0.06, -0.008, 0.0005, 0.001, -0.002]),
    "fisheye": (FISHEYE, [0.02, -0.01, 0.003, -0.0005, 0.0, 0.0]),
}


def some_cameras(lens: str = "perspective", n: int = 3, size: tuple[int, int] = (60, 80), f: float = 70.0) -> Cameras:
    g = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(n, 3, 3, dtype=torch.float64, generator=g))
    q = q * torch.sign(torch.det(q))[:, None, None]
    c2w = torch.cat([q, torch.randn(n, 3, 1, dtype=torch.float64, generator=g)], dim=2)
    model, k = LENSES[lens]
    full = torch.full((n,), 1.0, dtype=torch.float64)
    return Cameras(
        c2w=c2w,
        fx=full * f,
        fy=full * f * 1.1,
        cx=full * (size[1] / 2 + 1.5),
        cy=full * (size[0] / 2 - 2),
        widths=torch.full((n,), size[1]),
        heights=torch.full((n,), size[0]),
        models=torch.full((n,), model),
        distortion=torch.tensor([k] * n, dtype=torch.float64),
    )


def all_pixels(cameras: Cameras, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    h, w = int(cameras.heights[i]), int(cameras.widths[i])
    p = torch.arange(h * w)
    return torch.full((h * w,), i), p // w, p % w


def test_the_middle_pixel_looks_along_minus_z():
    one = torch.ones(1, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)[None, :3]
    size = torch.tensor([5])
    cameras = Cameras(eye, one * 5, one * 5, one * 2.5, one * 2.5, size, size, size * 0, torch.zeros(1, 6).double())
    o, d = cameras.rays(torch.tensor([0, 0, 0]), torch.tensor([2, 2, 0]), torch.tensor([2, 4, 2]))
    slope = torch.tensor([[0.0, 0.0, -1.0], [0.4, 0.0, -1.0], [0.0, 0.4, -1.0]])  # right is +x, up (row 0) is +y
    assert torch.allclose(d, slope / slope.norm(dim=1, keepdim=True), atol=1e-6)
    assert float(o.abs().max()) == 0


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("fractional", [False, True])
def test_rays_project_back_to_their_pixels(lens, fractional):
    cameras = some_cameras(lens)
    for i in range(len(cameras)):
        ids, rows, cols = all_pixels(cameras, i)
        if fractional:
            rows, cols = rows + 0.25, cols - 0.4
        o, d = cameras.rays(ids, rows, cols)
        assert o.dtype == d.dtype == torch.float32
        assert torch.allclose(d.norm(dim=1), torch.ones(len(d)), atol=1e-6)
        uv, z = cameras.project(o.double() + 3 * d.double())
        wanted = torch.stack([cols, rows], dim=1).double() + 0.5
        # 5e-4 px: directions are float32, a relative 6e-8 of coordinates up to 3 at 70 px focal length
        assert float((uv[i] - wanted).abs().max()) < 5e-4
        assert float(z[i].min()) > 0


def test_fisheye_sees_beyond_a_right_angle():
    cameras = some_cameras("fisheye", f=28.0)
    ids, rows, cols = all_pixels(cameras, 0)
    o, d = cameras.rays(ids, rows, cols)
    forward = cameras.forward[0].float()
    assert float((d @ forward).min()) < math.cos(math.radians(100))
    uv, _ = cameras.project(o.double() + d.double())
    assert float((uv[0] - torch.stack([cols, rows], dim=1) - 0.5).abs().max()) < 1e-3


def test_rays_in_the_scene_frame_are_the_same_rays():
    cameras = some_cameras("phone")
    s = Similarity(0.25, some_cameras().c2w[1, :, :3], torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    ids, rows, cols = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 10, 20, 59]), torch.tensor([79, 5, 40, 0])
    o, d = cameras.rays(ids, rows, cols)
    so, sd = cameras.rays(ids, rows, cols, s)
    assert torch.allclose(so, s.apply(o), atol=1e-6) and torch.allclose(sd, s.apply_directions(d), atol=1e-6)
    again = cameras.rays(ids, rows, cols)  # another frame in between leaves no trace
    assert torch.equal(again[0], o) and torch.equal(again[1], d)


def test_mixed_lenses_and_sizes_in_one_set():
    parts = [
        some_cameras(lens, 1, size) for lens, size in zip(LENSES, [(20, 30), (33, 21), (8, 9), (40, 40)], strict=True)
    ]
    stacked = {name: torch.cat([p.tensors()[name] for p in parts]) for name in parts[0].tensors()}
    cameras = Cameras(**stacked)
    for i, part in enumerate(parts):
        ids, rows, cols = all_pixels(cameras, i)
        o, d = cameras.rays(ids, rows, cols)
        po, pd = part.image_rays(0)
        assert torch.allclose(o, po, atol=1e-6) and torch.allclose(d, pd, atol=1e-6)
        sub = cameras.subset([i]).image_rays(0)
        assert torch.allclose(sub[1], pd, atol=1e-6)


def test_scaling_down_averages_rays():
    cameras = some_cameras()
    o, d = cameras.rays(torch.tensor([0]), torch.tensor([5.5]), torch.tensor([9.5]))  # corner shared by four pixels
    so, sd = cameras.scaled(4).rays(torch.tensor([0]), torch.tensor([1.0]), torch.tensor([2.0]))  # rows 4-7, cols 8-11
    assert torch.allclose(d, sd, atol=1e-6) and torch.equal(o, so)
    assert int(cameras.scaled(7).widths[0]) == 80 // 7
    assert torch.allclose(cameras.resized(40, 30).fx, cameras.fx / 2)


def test_projection_is_differentiable():
    cameras = some_cameras("wide", 2)
    points = (cameras.centres - 4 * cameras.c2w[:, :, 2]).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: cameras.project(p)[0].diagonal(), points, atol=1e-4)


def test_undistort_stays_finite_where_the_lens_folds_over():
    x = torch.linspace(0, 5, 100, dtype=torch.float64)
    k = torch.tensor([[-0.3, 0.02, 0, 0, 0, 0]], dtype=torch.float64).expand(100, 6)
    for model in (OPENCV, FISHEYE):
        d = undistort(x, 0.1 * x, k, torch.full((100,), model))
        assert bool(torch.isfinite(d).all())


def test_distortion_is_what_opencv_defines():
    # by hand from the OpenCV manual's formula at x = 0.3, y = -0.2 (r2 = 0.13)
    k1, k2, k3, k4, p1, p2 = 0.1, -0.05, 0.02, -0.01, 0.003, -0.004
    x, y, r2 = 0.3, -0.2, 0.13
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    cameras = some_cameras("perspective", 1)
    cameras = Cameras(
        **{
            **cameras.tensors(),
            "c2w": torch.eye(4, dtype=torch.float64)[None, :3],
            "models": torch.tensor([OPENCV]),
            "distortion": torch.tensor([[k1, k2, k3, k4, p1, p2]], dtype=torch.float64),
        }
    )
    uv, z = cameras.project(torch.tensor([[2 * x, -2 * y, -2.0]]))  # OpenGL: y up, z back
    wanted = torch.tensor([cameras.fx[0] * xd + cameras.cx[0], cameras.fy[0] * yd + cameras.cy[0]])
    assert torch.allclose(uv[0, 0].float(), wanted.float(), atol=1e-5) and float(z[0, 0]) == 2
