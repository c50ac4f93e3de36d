"""A path's cameras: perspective, without distortion, of the inputs' focal length, and the size of their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.errors import Range, UserError, check_numbers
from nerf.geometry.cameras import Cameras

LARGEST = 16384  # pixels along a side of a picture


@dataclass
class CameraPath:
    """A path ready to be rendered: cameras in the world frame, frames per second, a sentence on how it was made."""

    cameras: Cameras
    fps: float
    description: str


def picture_size(
    cameras: Cameras, turned: bool, width: int | None, height: int | None, longest: int | None
) -> tuple[int, int]:
    """(width, height) of the pictures of a path, from what was asked for and the inputs' median size."""
    half = cameras.spherical.long() + 1  # of a panorama's sides: 115 x 76 degrees at its own pixels per radian
    w0, h0 = int((cameras.widths // half).median()), int((cameras.heights // half).median())
    if turned:
        w0, h0 = h0, w0
    if width is None and height is None:
        scale = 1.0 if longest is None else min(1.0, longest / max(w0, h0))
        w0, h0 = max(1, round(w0 * scale)), max(1, round(h0 * scale))
    asked = {"width": width, "height": height}
    check_numbers(asked, {name: Range(1, LARGEST, whole=True, optional=True) for name in asked}, "--")
    width, height = filled_in(width, height, w0, h0)
    if max(width, height) > LARGEST:
        raise UserError(f"the pictures would have {width}x{height} pixels, and {LARGEST} is the most: ask for less")
    return width, height


def filled_in(width: int | None, height: int | None, w0: float, h0: float) -> tuple[int, int]:
    """(width, height) in pixels: what is not asked for comes from w0 x h0, or keeps their aspect ratio."""
    if width is None:
        return (int(w0), int(h0)) if height is None else (max(1, round(w0 * height / h0)), height)
    return width, max(1, round(h0 * width / w0)) if height is None else height


def with_lens_of(poses: Tensor, cameras: Cameras, width: int, height: int) -> Cameras:
    """Perspective cameras at poses [n,3,4] with pictures of width x height, their focal length that of the inputs."""
    shorter = torch.minimum(cameras.widths, cameras.heights).double() / (1 + cameras.spherical)
    focals = torch.stack([(f / shorter).median().double() * min(width, height) for f in (cameras.fx, cameras.fy)])
    return Cameras.perspective(poses, focals.expand(len(poses), 2), width, height)
