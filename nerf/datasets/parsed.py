"""What a format's reader found on disk, not yet checked: frames with their poses, lenses and files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf.datasets.depths import DepthMap
from nerf.errors import UserError
from nerf.geometry.geodesy import Georeference
from nerf.geometry.lenses import EQUIRECTANGULAR, PERSPECTIVE
from nerf.geometry.space import Similarity


@dataclass
class Lens:
    """Intrinsics as a file states them, in pixels of an image of width x height (None: as the image is). An
    EQUIRECTANGULAR picture is a whole sphere, whatever else is stated.

    >>> Lens(fx=500.0, fy=500.0, cx=320.0, cy=240.0, width=640, height=480).model == PERSPECTIVE
    True
    """

    model: int = PERSPECTIVE
    fx: float = math.nan  # NaN: from angle_x
    fy: float = math.nan
    cx: float = math.nan  # NaN: the middle
    cy: float = math.nan
    width: int | None = None
    height: int | None = None
    distortion: tuple[float, ...] = (0, 0, 0, 0, 0, 0)  # k1,k2,k3,k4,p1,p2, and more: lenses.COEFFICIENTS
    angle_x: float = math.nan  # horizontal and vertical field of view, radians, where no focal length is stated
    angle_y: float = math.nan


def sphere(width: int, height: int) -> Lens:
    """Of a panorama that shows the whole sphere, equirectangular, in its own pixels."""
    fx, fy = width / (2 * math.pi), height / math.pi
    return Lens(EQUIRECTANGULAR, fx, fy, width / 2, height / 2, width, height)


def panorama(width: int, height: int, where: str) -> Lens:
    """`sphere`, of a camera that a file calls one; UserError where its picture does not show the whole sphere.

    >>> from nerf.datasets.parsed import panorama
    >>> panorama(2048, 1024, "camera 1").model == EQUIRECTANGULAR
    True
    """
    if abs(width - 2 * height) > max(2, 0.01 * width):
        raise UserError(
            f"{where}: panoramas are read where they show the whole sphere, twice as wide as high, and this one is "
            f"{width}x{height}: export perspective views of it and their cameras, or the whole panoramas"
        )
    return sphere(width, height)


@dataclass
class Frame:
    """One image with its pose and lens.

    >>> Frame("a.png", Path("images/a.png"), np.eye(4), Lens(fx=500.0), "poses.txt, line 1").name
    'a.png'
    """

    name: str
    path: Path  # of the image, which may be missing
    c2w: np.ndarray  # [3,4] or [4,4], OpenGL camera to world, as it stands in the file
    lens: Lens
    where: str  # for messages: file and frame
    split: str | None = None
    mask: Path | np.ndarray | None = None  # 0 = ignore the pixel; an array is [h,w] of bool or uint8
    matte: Path | None = None  # silhouette of the object, becomes alpha
    depth: DepthMap | np.ndarray | None = None  # an array is [h,w] of z-depths in world units, 0 where unknown
    keypoints: np.ndarray | None = None  # [k,5] place as shares of width and height, and the world point shown there
    pixels: np.ndarray | None = None  # [h,w,c] where the image is no file


@dataclass
class ParsedScene:
    """What a format's reader found on disk, not yet checked.

    >>> ParsedScene("mine", Path("data"), frames=[], notes=["read by mine"]).extent
    0.0
    """

    source: str
    path: Path
    frames: list[Frame]
    notes: list[str]
    points: np.ndarray | None = None  # [m,3] world
    region: Similarity | None = None  # scene_from_world as stated by the files
    region_is_given: bool = False  # region is what is asked for, whatever silhouettes say
    linear: bool = False  # pixels in memory hold linear light
    extent: float = 0.0  # half size of the cube that the files declare relevant, world units
    objects: bool = False  # the kind of data set is made for single objects
    depth_bounds: np.ndarray | None = None  # [n frames,2] nearest and farthest z-depth seen, world units
    georeference: Georeference | None = None  # where the world stands on the earth, as far as the files say
