"""What a format's reader found on disk, not yet checked: frames with their poses, lenses and files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.datasets.depths import DepthMap
from nerf.geometry.cameras import PERSPECTIVE
from nerf.geometry.space import Similarity


@dataclass
class Lens:
    """Intrinsics as a file states them, in pixels of an image of width x height (None: as the image is)."""

    model: int = PERSPECTIVE
    fx: float = math.nan  # NaN: from angle_x
    fy: float = math.nan
    cx: float = math.nan  # NaN: the middle
    cy: float = math.nan
    width: int | None = None
    height: int | None = None
    distortion: tuple[float, float, float, float, float, float] = (0, 0, 0, 0, 0, 0)  # k1,k2,k3,k4,p1,p2
    angle_x: float = math.nan  # horizontal and vertical field of view, radians, where no focal length is stated
    angle_y: float = math.nan


@dataclass
class Frame:
    name: str
    path: Path  # of the image, which may be missing
    c2w: np.ndarray  # [3,4] or [4,4], OpenGL camera to world, as it stands in the file
    lens: Lens
    where: str  # for messages: file and frame
    split: str | None = None
    mask: Path | None = None  # 0 = ignore the pixel
    matte: Path | None = None  # silhouette of the object, becomes alpha
    depth: DepthMap | None = None
    keypoints: np.ndarray | None = None  # [k,5] place as shares of width and height, and the world point shown there


@dataclass
class Capture:
    """What a format's reader found on disk, not yet checked."""

    source: str
    path: Path
    frames: list[Frame]
    notes: list[str]
    points: np.ndarray | None = None  # [m,3] world
    region: Similarity | None = None  # scene_from_world as stated by the files
    extent: float = 0.0  # half size of the cube that the files declare relevant, world units
    objects: bool = False  # the kind of data set is made for single objects
    depth_bounds: np.ndarray | None = None  # [n frames,2] nearest and farthest z-depth seen, world units
