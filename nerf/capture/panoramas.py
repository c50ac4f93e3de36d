"""Panoramas of the whole sphere among photos: which they are, and their features, found in views that are not bent.

COLMAP maps them as they are, by its camera model EQUIRECTANGULAR. Features are found in perspective views to six sides:
near the poles an equirectangular picture is stretched beyond what SIFT bears, and what two panoramas show at other
latitudes looks different in both. Each feature is kept by the view whose axis it is nearest to, in pixels of the
panorama, so that there is one picture and one pose for each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.datasets.parsed import sphere
from nerf.datasets.posed import cameras_of
from nerf.errors import UserError
from nerf.geometry.cameras import Cameras

FINER = 1.5  # times the usual longest side: a whole sphere has fewer pixels for each degree than a photo
FIELD_OF_VIEW = math.radians(100)  # of the views; 90 would do, but features need some room about them
N_FEATURES = 8192  # of a panorama, those of the largest scale
SEAM = 4.0  # how many times the usual step between columns the one from the last to the first may be
_WORDS = re.compile(rb"GPano:(\w+)[^\"'>\d\w]*[=>]\s*[\"']?(\w+)")


def is_panorama(image: Any) -> bool | str:
    """Whether an opened picture shows a whole sphere, equirectangular; a sentence where it is a part of one only.

    By the XMP that cameras and stitching programs write (GPano). Where they say nothing, pictures exactly twice as wide
    as high are looked at: the upper and lower row of a sphere are one point each, and its sides continue each other.
    """
    width, height = image.size
    said: dict[str, str] = {}
    for key in ("xmp", "XML:com.adobe.xmp", "Raw profile type xmp"):
        text = image.info.get(key)
        found = _WORDS.findall(text.encode() if isinstance(text, str) else bytes(text)) if text else []
        said |= {name.decode(): value.decode() for name, value in found}
    if said.get("ProjectionType", "").lower() == "equirectangular":
        full = [_whole(said.get(f"FullPano{side}Pixels")) for side in ("Width", "Height")]
        part = [_whole(said.get(f"CroppedAreaImage{side}Pixels")) for side in ("Width", "Height")]
        if all(full) and all(part) and any(p < 0.98 * f for p, f in zip(part, full, strict=True)):
            return f"a part of a panorama ({part[0]}x{part[1]} of {full[0]}x{full[1]}), expected the whole sphere"
        return True
    return width == 2 * height and width >= 512 and _goes_round(image)


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


def _goes_round(image: Any) -> bool:
    """Whether the sides of a picture continue each other, and its upper and lower row are one point each."""
    small = np.asarray(image.convert("RGB").resize((512, 256)), dtype=np.float32)
    steps = np.abs(np.diff(small, axis=1)).mean(axis=(0, 2))
    closes = np.abs(small[:, 0] - small[:, -1]).mean() < SEAM * np.median(steps) + 1
    inner = small[64:-64].std(axis=1).mean()
    return bool(closes and small[[0, -1]].std(axis=1).mean() < 0.35 * inner)


def need_spheres() -> None:
    """UserError where pycolmap has no camera model for panoramas."""
    import pycolmap

    if not hasattr(pycolmap.CameraModelId, "EQUIRECTANGULAR"):
        raise UserError(
            f"these are panoramas, which need pycolmap 4.1 or newer (here is {pycolmap.__version__}): "
            "pip install -U pycolmap"
        )


def is_sphere(camera: Any) -> bool:
    """Whether a pycolmap camera is that of panoramas, of whose lens nothing is open."""
    return str(camera.model_name) == "EQUIRECTANGULAR"


def views_of(width: int) -> Cameras:
    """Perspective cameras that look out of a panorama so many pixels wide to six sides, and together see all, as finely
    as it does at its equator; world: the panorama's own camera (OpenGL)."""
    yaw = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 0.0], dtype=torch.float64) * math.pi / 2
    pitch = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, -1.0], dtype=torch.float64) * math.pi / 2
    zero = torch.zeros_like(yaw)
    right = torch.stack([yaw.cos(), zero, yaw.sin()], dim=1)
    forward = torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), -yaw.cos() * pitch.cos()], dim=1)
    up, focal = torch.linalg.cross(right, forward), width / (2 * math.pi)
    side = round(2 * focal * math.tan(FIELD_OF_VIEW / 2))
    return Cameras.perspective(torch.stack([right, up, -forward, torch.zeros(6, 3).double()], dim=2), focal, side, side)


Features = tuple[np.ndarray, np.ndarray]  # keypoints [n,4] (x, y, scale, angle) and descriptors [n,128]


def find_features(grey: np.ndarray, find: Callable[[np.ndarray], Features]) -> Features:
    """Features of a panorama [h,w] uint8: what `find` finds in its views, in pixels of the panorama."""
    height, width = grey.shape
    cameras, found = views_of(width), []
    for i in range(len(cameras)):
        points, rows = find(view(grey, i))
        points, mine = to_panorama(points, cameras, i, width, height)
        found.append((points[mine], rows[mine]))
    points, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
    largest = np.argsort(-points[:, 2], kind="stable")[:N_FEATURES]
    return points[largest], rows[largest]


@lru_cache(1)
def _places(width: int, height: int) -> Tensor:
    """Where the views' pixels lie in a panorama with a column more on either side: [6,side,side,2] in [-1,1]."""
    cameras, own = views_of(width), _own_camera(width, height)
    side, places = int(cameras.heights[0]), []
    for i in range(len(cameras)):
        uv = own.project(cameras.image_rays(i)[1].double())[0][0].float()
        places.append(torch.stack([2 * (uv[:, 0] + 1) / (width + 2) - 1, 2 * uv[:, 1] / height - 1], dim=1))
    return torch.stack(places).reshape(-1, side, side, 2)


def view(picture: np.ndarray, i: int) -> np.ndarray:
    """What camera i of `views_of` sees of a panorama [h,w] uint8."""
    height, width = picture.shape
    padded = torch.from_numpy(np.pad(picture, ((0, 0), (1, 1)), mode="wrap")).float()[None, None]
    seen = torch.nn.functional.grid_sample(
        padded, _places(width, height)[i][None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return seen[0, 0].round().clamp(0, 255).byte().numpy()


def to_panorama(points: np.ndarray, cameras: Cameras, i: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints [n,2+] of view i (x, y and whatever else) as the panorama has them, and which of them no other view is
    nearer to."""
    at = torch.from_numpy(points[:, :2].astype(np.float64))
    directions = cameras.rays(torch.full((len(at),), i), at[:, 1] - 0.5, at[:, 0] - 0.5)[1].double()
    mine = (directions @ cameras.forward.T).argmax(dim=1) == i
    moved = points.copy()
    moved[:, :2] = _own_camera(width, height).project(directions)[0][0].numpy()
    return moved, mine.numpy()


def _own_camera(width: int, height: int) -> Cameras:
    origin: Tensor = torch.eye(4, dtype=torch.float64)[None, :3]
    return cameras_of(origin, [sphere(width, height)])
