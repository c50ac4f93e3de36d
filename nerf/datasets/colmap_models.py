"""COLMAP's camera models by name: what their parameters mean in ours."""

from __future__ import annotations

from collections.abc import Mapping

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
)

# name: COLMAP's number for it, our model, and the names of its parameters in order; "f" is both focal lengths, and the
# others but fx, fy, cx, cy are of COEFFICIENTS
COLMAP_MODELS: dict[str, tuple[int, int, str]] = {
    "SIMPLE_PINHOLE": (0, PERSPECTIVE, "f cx cy"),
    "PINHOLE": (1, PERSPECTIVE, "fx fy cx cy"),
    "SIMPLE_RADIAL": (2, OPENCV, "f cx cy k1"),
    "RADIAL": (3, OPENCV, "f cx cy k1 k2"),
    "OPENCV": (4, OPENCV, "fx fy cx cy k1 k2 p1 p2"),
    "OPENCV_FISHEYE": (5, FISHEYE, "fx fy cx cy k1 k2 k3 k4"),
    "FULL_OPENCV": (6, RATIONAL, "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
    "FOV": (7, FOV, "fx fy cx cy k1"),
    "SIMPLE_RADIAL_FISHEYE": (8, FISHEYE, "f cx cy k1"),
    "RADIAL_FISHEYE": (9, FISHEYE, "f cx cy k1 k2"),
    "THIN_PRISM_FISHEYE": (10, THIN_PRISM_FISHEYE, "fx fy cx cy k1 k2 p1 p2 k3 k4 s1 s3"),
    "RAD_TAN_THIN_PRISM_FISHEYE": (11, FISHEYE624, "fx fy cx cy k1 k2 k3 k4 k5 k6 p2 p1 s1 s2 s3 s4"),
    "SIMPLE_DIVISION": (12, DIVISION, "f cx cy k1"),
    "DIVISION": (13, DIVISION, "fx fy cx cy k1"),
    "SIMPLE_FISHEYE": (14, FISHEYE, "f cx cy"),
    "FISHEYE": (15, FISHEYE, "fx fy cx cy"),
    "EUCM": (16, EUCM, "fx fy cx cy k1 k2"),
    "EQUIRECTANGULAR": (17, EQUIRECTANGULAR, "w h"),
}

FISHEYE624_ORDER = tuple(COLMAP_MODELS["RAD_TAN_THIN_PRISM_FISHEYE"][2].split()[4:])
# what a transforms.json calls the coefficients of models whose own names are others
NATURAL_NAMES = {FOV: {"k1": "omega"}, DIVISION: {"k1": "k"}, EUCM: {"k1": "alpha", "k2": "beta"}}


def coefficients(values: Mapping[str, float]) -> tuple[float, ...]:
    """`Lens.distortion` of those coefficients that are given: six of them where the others are zero."""
    k = tuple(values.get(name, 0.0) for name in COEFFICIENTS)
    return k if any(k[6:]) else k[:6]
