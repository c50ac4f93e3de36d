"""What matches say about cameras: of each pair the share that fits, and how many pixels the middle one is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf.checks.matches import Matched
from nerf.geometry.cameras import Cameras
from nerf.geometry.epipolar import PixelRays, pixel_rays, sampson_pixels, triangulate

PER_PAIR = 48  # matches; the median of so many is known to a fifth of their spread
TOLERANCE = 0.005  # of the longer side: a match that is nearer to its epipolar line fits
NO_PARALLAX = 0.006  # radians between two rays, below which it does not show on which side of the cameras they meet
FITS, FAILS = 0.7, 0.35  # share of a pair's matches from which the pair fits, and up to which it contradicts


@dataclass
class Batch:
    """p pairs with m matches each, those that one motion explains, spread evenly over the features' sizes."""

    a: Tensor  # [p] int64, photo
    b: Tensor
    uv_a: Tensor  # [p,m,2] float64, pixels of the reduced picture
    uv_b: Tensor
    valid: Tensor  # [p,m] bool; the rest is filled up

    def __len__(self) -> int:
        return len(self.a)

    @staticmethod
    def of(pairs: Sequence[Matched], inliers: bool = True, n: int = PER_PAIR) -> Batch:
        a, b = (torch.tensor([getattr(p, k) for p in pairs], dtype=torch.int64) for k in "ab")
        uv = torch.ones(2, len(pairs), n, 2, dtype=torch.float64)
        valid = torch.zeros(len(pairs), n, dtype=torch.bool)
        for k, p in enumerate(pairs):
            rows = np.flatnonzero(p.inliers) if inliers else np.arange(len(p.inliers))
            rows = rows[Batch.spread(len(rows), n)]
            uv[0, k, : len(rows)] = torch.from_numpy(p.uv_a[rows])
            uv[1, k, : len(rows)] = torch.from_numpy(p.uv_b[rows])
            valid[k, : len(rows)] = True
        return Batch(a, b, uv[0], uv[1], valid)

    @staticmethod
    def spread(n: int, most: int) -> np.ndarray:
        """Indices of at most so many of n, spread evenly."""
        return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(int)

    def rows(self, keep: Tensor) -> Batch:
        return Batch(self.a[keep], self.b[keep], self.uv_a[keep], self.uv_b[keep], self.valid[keep])


@dataclass
class Rays:
    """The rays of a batch through some lenses."""

    a: PixelRays  # [p,m,...]
    b: PixelRays
    tolerance: Tensor  # [p] pixels

    @staticmethod
    def of(cameras: Cameras, batch: Batch) -> Rays:
        n = batch.uv_a.shape[1]
        a = pixel_rays(cameras, batch.a[:, None].expand(-1, n), batch.uv_a)
        b = pixel_rays(cameras, batch.b[:, None].expand(-1, n), batch.uv_b)
        longest = torch.maximum(cameras.widths, cameras.heights).double()
        return Rays(a, b, TOLERANCE * torch.maximum(longest[batch.a], longest[batch.b]))

    def rows(self, keep: Tensor) -> Rays:
        return Rays(self.a[keep], self.b[keep], self.tolerance[keep])


@dataclass
class Residuals:
    """Of each pair, for each of the poses that were tried."""

    shares: Tensor  # [...,p] of the matches near enough to their epipolar line and in front of both cameras
    medians: Tensor  # [...,p] pixels of the reduced pictures, of all its matches

    @property
    def mean(self) -> Tensor:
        """[...] the share of all pairs alike."""
        return self.shares.mean(dim=-1)


def fits_each(rays: Rays, c2w_a: Tensor, c2w_b: Tensor) -> tuple[Tensor, Tensor]:
    """Of each match, for poses [...,p,3,4] of the two photos of each pair: (whether it is near enough to its epipolar
    line and in front of both cameras, pixels off), [...,p,m] each."""
    off = sampson_pixels(rays.a, rays.b, c2w_a, c2w_b).nan_to_num(torch.inf)
    depth_a, depth_b, angle = triangulate(rays.a, rays.b, c2w_a, c2w_b)
    in_front = ((depth_a > 0) & (depth_b > 0)) | (angle < NO_PARALLAX)
    return (off < rays.tolerance[:, None]) & in_front, off


def residuals(rays: Rays, valid: Tensor, c2w_a: Tensor, c2w_b: Tensor) -> Residuals:
    """For poses [...,p,3,4] of the two photos of each pair."""
    good, off = fits_each(rays, c2w_a, c2w_b)
    off = torch.where(valid, off, torch.full_like(off, torch.nan))
    return Residuals((good & valid).sum(dim=-1) / valid.sum(dim=-1).clamp_min(1), off.nanmedian(dim=-1).values)


def of_cameras(cameras: Cameras, batch: Batch) -> Residuals:
    """For the cameras as they are."""
    return residuals(Rays.of(cameras, batch), batch.valid, cameras.c2w[batch.a], cameras.c2w[batch.b])
