"""Lens models: where a direction falls in the picture, and back; all that COLMAP writes, and whole spheres.

A lens takes a point (x, y, z) of the camera (OpenCV: x right, y down, z ahead) to normalised coordinates (xd, yd), of
which focal lengths, skew and principal point make pixels: u = fx (xd + skew yd) + cx, v = fy yd + cy. Every lens but
the sphere is a radial law, and some add a tangential part and that of a thin prism, T(u, v) = (2 p1 u v + p2 (r^2 + 2
u^2) + s1 r^2 + s2 r^4, p1 (r^2 + 2 v^2) + 2 p2 u v + s3 r^2 + s4 r^4). Names in capitals are those of COLMAP's
sensor/models.h, where its own formulas stand.

- PERSPECTIVE: xd = x / z. SIMPLE_PINHOLE, PINHOLE.
- OPENCV: (u, v) = (x, y) / z, xd = u (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8) + T. SIMPLE_RADIAL, RADIAL, OPENCV
  (Brown, "Close-range camera calibration", 1971).
- RATIONAL: xd = u (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6) + T. FULL_OPENCV.
- FISHEYE: xd = u (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8), with (u, v) the direction across the axis at the length of t,
  its angle from the axis. OPENCV_FISHEYE and its simple kinds (Kannala and Brandt, "A generic camera model and
  calibration method", 2006).
- THIN_PRISM_FISHEYE: the same, and T(u, v) is added.
- FISHEYE624: the polynomial of FISHEYE goes to k6 t^12, and T of what it gives is added. RAD_TAN_THIN_PRISM_FISHEYE of
  COLMAP, FISHEYE624 of nerfstudio and Project Aria, whose p0, p1 are p2, p1 here.
- FOV: rd = atan(2 r tan(w / 2)) / w, where k1 is w (Devernay and Faugeras, "Straight lines have to be straight", 2001).
- DIVISION: r = rd / (1 + k1 rd^2) (Fitzgibbon, "Simultaneous linear estimation of multiple view geometry and lens
  distortion", 2001). SIMPLE_DIVISION, DIVISION.
- EUCM: xd = x / (a sqrt(b (x^2 + y^2) + z^2) + (1 - a) z), where k1 is a and k2 is b (Khomutenko, Garcia and Martinet,
  "An enhanced unified camera model", 2016).
- EQUIRECTANGULAR: xd is the longitude atan2(x, z), yd the latitude downwards atan2(y, sqrt(x^2 + z^2)); fx is w / 2 pi
  and fy is h / pi for the whole sphere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PERSPECTIVE, OPENCV, FISHEYE, RATIONAL, THIN_PRISM_FISHEYE, FISHEYE624, FOV, DIVISION, EUCM, EQUIRECTANGULAR = range(10)
COEFFICIENTS = ("k1", "k2", "k3", "k4", "p1", "p2", "k5", "k6", "s1", "s2", "s3", "s4", "skew")  # columns of distortion
SKEW = COEFFICIENTS.index("skew")
AHEAD = (PERSPECTIVE, OPENCV, RATIONAL)  # models that see what is ahead only: their depths are along the axis
_POLYNOMIAL = (FISHEYE, THIN_PRISM_FISHEYE, FISHEYE624)  # in the angle from the axis
_SAMPLES = 2048  # angles at which the radial law is asked whether it still grows
_WIDEST = math.radians(89.9)  # angle from the axis that a model of AHEAD is asked about
_NEWTON_STEPS = 60  # at most; three to seven are usual, and halving the bracket needs no more than these
_EXACT = 1e-12  # of normalised coordinates: 1e-8 pixels and less


def padded(k: Tensor) -> Tensor:
    """Coefficients [..., 6 or more] with zeros for those that are left out: [..., len(COEFFICIENTS)]."""
    return torch.nn.functional.pad(k, (0, len(COEFFICIENTS) - k.shape[-1]))


def sees_ahead_only(models: Tensor) -> Tensor:
    """Which of models [n] see no more than half of everything: bool [n]."""
    return (models == PERSPECTIVE) | (models == OPENCV) | (models == RATIONAL)


def distort(p: Tensor, k: Tensor, model: int) -> tuple[Tensor, Tensor]:
    """(xd, yd) [n,m] of points p [n,m,3] in the OpenCV camera, through n lenses of one model, coefficients k [n,6..13].

    Differentiable in points and coefficients. Beyond `widest_angles` the numbers mean nothing.
    """
    x, y, z = p.unbind(-1)
    if model == EQUIRECTANGULAR:
        return torch.atan2(x, z), torch.atan2(y, torch.sqrt(x * x + z * z + 1e-24))
    c = [t[:, None] for t in padded(k).unbind(-1)]
    if model in AHEAD:
        u, v = x / _not_zero(z), y / _not_zero(z)
        if model == PERSPECTIVE:
            return u, v
    else:
        r = torch.sqrt(x * x + y * y + 1e-24)
        if model not in _POLYNOMIAL:
            scale = _radius(model, r, z, c) / r
            return x * scale, y * scale
        scale = torch.atan2(r, z) / r
        u, v = x * scale, y * scale
    radial, _ = _radial(model, u * u + v * v, c)
    ud, vd = u * radial, v * radial
    if model == FISHEYE:
        return ud, vd
    du, dv = _tangential(ud, vd, c) if model == FISHEYE624 else _tangential(u, v, c)
    return ud + du, vd + dv


def undistort(x: Tensor, y: Tensor, k: Tensor, models: Tensor, widest: Tensor | None = None) -> Tensor:
    """Directions [n,3] float64 in the OpenCV camera, z ahead, of normalised coordinates [n] (skew taken out) through
    lenses of coefficients k [n,6..13] and models [n]. By Newton's method within a bracket, to rounding.

    Where a lens has no inverse, beyond the rim of what it shows, the direction at the rim. widest [n]: the
    `widest_angles` of the lenses where they are known.
    """
    result = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    for model in models.unique().tolist():
        if model == PERSPECTIVE:
            continue
        some = (models == model).nonzero()[:, 0]
        limit = widest_angles(k[some], models[some]) if widest is None else widest[some]
        result[some] = _invert(model, x[some], y[some], list(padded(k[some]).unbind(-1)), limit)
    return result


def widest_angles(k: Tensor, models: Tensor) -> Tensor:
    """The angle from the axis [n] up to which each lens takes different angles to different radii, radians: pi where it
    shows the whole sphere. What lies farther out is in no picture, though the formula may fold it back into one."""
    lenses, which = torch.unique(torch.cat([models[:, None].double(), padded(k)], dim=1), dim=0, return_inverse=True)
    limits = torch.full((len(lenses),), math.pi, dtype=torch.float64, device=k.device)
    for model in lenses[:, 0].unique().long().tolist():
        if model == EQUIRECTANGULAR:
            continue
        for some in (lenses[:, 0] == model).nonzero()[:, 0].split(256):
            limits[some] = _where_it_falls(model, lenses[some, 1:])
    return limits[which]


def _where_it_falls(model: int, k: Tensor) -> Tensor:
    """The angle [n] at which the radial law of each lens of one model stops to grow; where it does not, the largest."""
    end = math.pi / 2 if model in AHEAD else math.pi
    if model == DIVISION:  # the end of the square root
        k1 = k[:, 0].clamp_min(1e-300)
        return torch.where(k[:, 0] > 0, torch.atan(0.5 * k1.rsqrt()), torch.full_like(k1, end))
    k = k.clone()
    k[:, [COEFFICIENTS.index(name) for name in ("p1", "p2", "s1", "s2", "s3", "s4")]] = 0.0
    t = torch.linspace(
        0, _WIDEST if model in AHEAD else end * (1 - 1e-9), _SAMPLES, dtype=torch.float64, device=k.device
    )
    points = torch.stack([t.sin(), torch.zeros_like(t), t.cos()], dim=-1)
    falls = ~(distort(points.expand(len(k), -1, -1), k, model)[0].diff(dim=1) > 0)  # NaN too
    return torch.where(falls.any(dim=1), t[falls.int().argmax(dim=1)], torch.full_like(k[:, 0], end))


def _radius(model: int, r: Tensor, z: Tensor, c: list[Tensor]) -> Tensor:
    """rd of points at r across and z along the axis, of the laws that are no polynomials."""
    if model == FOV:
        w = c[0].abs().clamp_min(1e-6)  # at less it is a perspective lens to rounding
        return torch.atan2(2 * r * torch.tan(w / 2), z) / w
    if model == DIVISION:
        return 2 * r / _not_zero(z + torch.sqrt((z * z - 4 * c[0] * r * r).clamp_min(1e-24)))
    return r / _not_zero(c[0] * torch.sqrt(c[1] * r * r + z * z) + (1 - c[0]) * z)


def _not_zero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-12, torch.full_like(x, 1e-12), x)


def _radial(model: int, r2: Tensor, c: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The factor of the radius, and its derivative to r^2, of the polynomial laws; r is t for the fisheyes."""
    k1, k2, k3, k4, _, _, k5, k6 = c[:8]
    if model == RATIONAL:
        over, under = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
        slope_over, slope_under = k1 + r2 * (2 * k2 + r2 * 3 * k3), k4 + r2 * (2 * k5 + r2 * 3 * k6)
        return over / under, (slope_over * under - over * slope_under) / (under * under)
    if model != FISHEYE624:
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
        return radial, k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4))
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * (k4 + r2 * (k5 + r2 * k6)))))
    return radial, k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * (4 * k4 + r2 * (5 * k5 + r2 * 6 * k6))))


def _tangential(u: Tensor, v: Tensor, c: list[Tensor]) -> tuple[Tensor, Tensor]:
    p1, p2, s1, s2, s3, s4 = *c[4:6], *c[8:12]
    r2 = u * u + v * v
    du = 2 * p1 * u * v + p2 * (r2 + 2 * u * u) + r2 * (s1 + r2 * s2)
    return du, p1 * (r2 + 2 * v * v) + 2 * p2 * u * v + r2 * (s3 + r2 * s4)


def _invert(model: int, xd: Tensor, yd: Tensor, c: list[Tensor], widest: Tensor) -> Tensor:
    """Directions [n,3] at distorted coordinates [n] of one model; coefficients c of [n]."""
    if model == EQUIRECTANGULAR:
        return torch.stack([xd.sin() * yd.cos(), yd.sin(), xd.cos() * yd.cos()], dim=-1)
    rd = torch.sqrt(xd * xd + yd * yd)
    if model == FOV:
        w = c[0].abs().clamp_min(1e-6)
        angle = (rd * w).clamp_max(math.pi)
        across, along = angle.sin(), 2 * torch.tan(w / 2) * angle.cos()
        return torch.stack([*_scaled(xd, yd, rd, across), along], dim=-1)
    if model == DIVISION:
        k1 = c[0]
        rim = torch.where(k1 > 0, k1.clamp_min(1e-300).rsqrt(), torch.full_like(k1, math.inf))  # r falls from there on
        rd_in = torch.minimum(rd, rim)
        return torch.stack([*_scaled(xd, yd, rd, rd_in), 1 + k1 * rd_in * rd_in], dim=-1)
    if model == EUCM:
        a, b = c[0], c[1]
        inside = (1 - (2 * a - 1) * b * rd * rd).clamp_min(0)
        rim = torch.where(inside > 0, rd, ((2 * a - 1) * b).clamp_min(1e-300).rsqrt())
        along = (1 - b * a * a * rim * rim) / (a * inside.sqrt() + 1 - a)
        return torch.stack([*_scaled(xd, yd, rd, rim), along], dim=-1)
    u, v = xd, yd
    mixed = any(bool(t.any()) for t in (*c[4:6], *c[8:12])) and model != FISHEYE
    if model == FISHEYE624 and mixed:  # the prism comes last: it is undone first
        u, v = _newton(None, xd, yd, xd, yd, c)
    limit = torch.tan(widest.clamp_max(_WIDEST)) if model in AHEAD else widest
    radius = torch.sqrt(u * u + v * v)
    u, v = _scaled(u, v, radius, _solve_radial(model, radius, c, limit))
    if model != FISHEYE624 and mixed:
        u, v = _newton(model, u, v, xd, yd, c)
    if model in AHEAD:
        return torch.stack([u, v, torch.ones_like(u)], dim=-1)
    angle = torch.sqrt(u * u + v * v)
    return torch.stack([*_scaled(u, v, angle, angle.sin()), angle.cos()], dim=-1)


def _scaled(x: Tensor, y: Tensor, length: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(x, y), of the given length, at the wanted one; what is at the middle stays there."""
    ratio = torch.where(length > 1e-12, wanted / length.clamp_min(1e-12), torch.ones_like(length))
    return x * ratio, y * ratio


def _solve_radial(model: int, rd: Tensor, c: list[Tensor], limit: Tensor) -> Tensor:
    """r [n] in [0, limit] with r radial(r^2) = rd; the limit where rd is not reached."""
    low, high = torch.zeros_like(rd), limit.expand_as(rd)
    r = torch.minimum(rd, high)
    for _ in range(_NEWTON_STEPS):
        radial, slope = _radial(model, r * r, c)
        error = r * radial - rd
        low, high = torch.where(error < 0, r, low), torch.where(error > 0, r, high)
        step = r - error / (radial + 2 * r * r * slope)
        inside = (step >= low) & (step <= high)  # false for NaN
        new = torch.where(inside, step, (low + high) / 2)
        moved, r = float((new - r).abs().max()) if len(r) else 0.0, new
        if moved < _EXACT:
            break
    return r


def _newton(model: int | None, u: Tensor, v: Tensor, xd: Tensor, yd: Tensor, c: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(u, v) with (u, v) radial + T(u, v) = (xd, yd), from a start that is near; radial is 1 for model None. Where the
    map folds over, what is there stays."""
    p1, p2, s1, s2, s3, s4 = *c[4:6], *c[8:12]
    one, none = torch.ones_like(u), torch.zeros_like(u)
    for _ in range(20):
        r2 = u * u + v * v
        radial, slope = (one, none) if model is None else _radial(model, r2, c)
        du, dv = _tangential(u, v, c)
        ex, ey = u * radial + du - xd, v * radial + dv - yd
        if not len(u) or float(torch.maximum(ex.abs(), ey.abs()).max()) < _EXACT:
            break
        jxx = radial + 2 * slope * u * u + 2 * p1 * v + 6 * p2 * u + 2 * u * (s1 + 2 * r2 * s2)
        jxy = 2 * slope * u * v + 2 * p1 * u + 2 * p2 * v + 2 * v * (s1 + 2 * r2 * s2)
        jyx = 2 * slope * u * v + 2 * p1 * u + 2 * p2 * v + 2 * u * (s3 + 2 * r2 * s4)
        jyy = radial + 2 * slope * v * v + 6 * p1 * v + 2 * p2 * u + 2 * v * (s3 + 2 * r2 * s4)
        det = jxx * jyy - jxy * jyx
        good = det > 1e-3
        det = torch.where(good, det, one)
        u = torch.where(good, u - (jyy * ex - jxy * ey) / det, u)
        v = torch.where(good, v - (jxx * ey - jyx * ex) / det, v)
    return u, v
