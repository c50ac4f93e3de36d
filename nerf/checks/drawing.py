"""The pair that fits least, to look at: its matches, and for some of them the epipolar line that the cameras give."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nerf.checks.looks import Request, reduced
from nerf.checks.matches import Matched
from nerf.checks.residuals import Batch, Rays, fits_each
from nerf.geometry.cameras import Cameras
from nerf.geometry.epipolar import pixel_rays

GOOD, BAD = (40, 170, 80), (225, 60, 40)
N_LINES = 12  # matches whose epipolar line is drawn
GAP = 8  # pixels between the two pictures


def draw_pair(cameras: Cameras, pair: Matched, requests: tuple[Request, Request]) -> np.ndarray:
    """[h,w,3] uint8: both pictures, matches that fit in green and others in red, with the lines of some in the right
    one, on which they ought to lie."""
    left, right = (Image.fromarray(reduced(request)[0]) for request in requests)
    canvas = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width + GAP, 0))
    draw = ImageDraw.Draw(canvas)
    batch = Batch.of([pair])
    fits, _ = fits_each(Rays.of(cameras, batch), cameras.c2w[batch.a], cameras.c2w[batch.b])
    shift = left.width + GAP
    n = int(batch.valid[0].sum())
    lined = set(np.linspace(0, n - 1, min(n, N_LINES)).round().astype(int).tolist()) if n else set()
    for k in range(n):
        colour = GOOD if bool(fits[0, k]) else BAD
        (xa, ya), (xb, yb) = batch.uv_a[0, k].tolist(), batch.uv_b[0, k].tolist()
        if k in lined:
            for (x0, y0), (x1, y1) in _pieces(epipolar_line(cameras, pair.a, pair.b, batch.uv_a[0, k]), right.size):
                draw.line((x0 + shift, y0, x1 + shift, y1), fill=colour, width=1)
        for x, y in ((xa, ya), (xb + shift, yb)):
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=colour, width=2)
        if k in lined:
            draw.text((xa + 4, ya - 10), str(k), fill=colour)
            draw.text((xb + shift + 4, yb - 10), str(k), fill=colour)
    return np.asarray(canvas)


def epipolar_line(cameras: Cameras, a: int, b: int, uv: Tensor) -> Tensor:
    """[n,2] where the ray of pixel uv [2] of camera a falls in picture b, from near to far; NaN behind it."""
    rays = pixel_rays(cameras, a, uv[None])
    direction = cameras.c2w[a, :, :3] @ rays.directions[0]
    baseline = float((cameras.centres[a] - cameras.centres[b]).norm())
    depths = max(baseline, 1e-9) * torch.logspace(-1.5, 3, 160, dtype=torch.float64)
    found, z = cameras.subset([b]).project(cameras.centres[a] + depths[:, None] * direction)
    return torch.where((z[0] > 1e-9)[:, None], found[0], torch.nan)


def _pieces(line: Tensor, size: tuple[int, int]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Its parts near the picture."""
    w, h = size
    points = line.tolist()
    there = [x == x and -w < x < 2 * w and -h < y < 2 * h for x, y in points]
    return [
        ((points[k][0], points[k][1]), (points[k + 1][0], points[k + 1][1]))
        for k in range(len(points) - 1)
        if there[k] and there[k + 1] and 0 <= points[k][0] < w and 0 <= points[k][1] < h
    ]
