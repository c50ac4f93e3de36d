"""A model's checkpoint, checked before anything is made by its settings: they agree with its tensors, and are numbers
that rendering ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nerf.fields.radiance import FieldOptions, RadianceField
from nerf.geometry.cameras import Cameras
from nerf.geometry.lenses import COEFFICIENTS, EQUIRECTANGULAR
from nerf.io.limits import number, same_shapes, whole
from nerf.rendering.sky import TERMS

MOST_PIXELS = 1 << 31  # of a camera's picture


def check_field(options: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """ValueError or TypeError where `RadianceField` would make another field of these options than that of the
    tensors."""
    sizes = {name: value for name, value in options.items() if name != "contracted"}
    if not isinstance(options["contracted"], bool):
        raise ValueError(f"contracted is {options['contracted']!r}, expected true or false")
    with torch.device("meta"):
        same_shapes(RadianceField(FieldOptions(**sizes), fill=False).state_dict(), tensors, "field")


def check_occupancy(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """ValueError where the occupancy grid's sizes are not those of its tensors."""
    levels, r = whole(config["n_levels"], "n_levels", 1, 16), whole(config["resolution"], "resolution", 1, 2048)
    flat = torch.empty(levels * r**3, device="meta")
    expected = {"values": flat, "candidates": flat, "occupied": flat.reshape(levels, r, r, r)}
    same_shapes(expected, tensors, "occupancy")
    kinds = [tensors[f"occupancy.{name}"].dtype for name in expected]
    if kinds != [torch.float32, torch.bool, torch.bool]:
        raise ValueError(f"the occupancy's tensors are {kinds}")


def check_shown(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """ValueError where what decides how colours are shown, or the names of the photos, are of other types."""
    number(config.get("exposure", 1.0), "exposure", 1e-9, 1e9)
    if not isinstance(config["linear"], bool) or not isinstance(config["meta"], dict):
        raise ValueError("linear is expected to be true or false, and meta an object")
    names, n = config.get("names", []), len(tensors["cameras.c2w"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) not in (0, n):
        raise ValueError(f"names are expected to be those of the {n} photos")
    shapes: dict[str, tuple[int, ...]] = {"background": (3,), "given_poses": (n, 3, 4), "log_gains": (n, 3)}
    for name, shape in (shapes | {"vignetting": (n, 2), "falloff": (n, 2), "sky": (TERMS, 3)}).items():
        if (t := tensors.get(name)) is None and name != "background":
            continue
        if t is None or t.shape != shape or not t.is_floating_point() or not bool(t.isfinite().all()):
            raise ValueError(f"{name} is expected to be finite numbers of the shape {list(shape)}")


def check_cameras(cameras: Cameras) -> None:
    """ValueError where a camera's numbers are none, or its picture larger than one can be."""
    n = len(cameras)
    shapes = {"c2w": (n, 3, 4), "distortion": (n, cameras.distortion.shape[-1])}
    if shapes["distortion"][1] not in (6, len(COEFFICIENTS)):
        raise ValueError(f"cameras.distortion has the shape {list(cameras.distortion.shape)}")
    for name, values in cameras.tensors().items():
        if values.shape != shapes.get(name, (n,)) or n == 0:
            raise ValueError(f"cameras.{name} has the shape {list(values.shape)}, expected {shapes.get(name, (n,))}")
        if values.is_floating_point() == (name in ("widths", "heights", "models")):
            raise ValueError(f"cameras.{name} is {values.dtype}")
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise ValueError(f"cameras.{name} holds NaN or infinity")
    rotations = cameras.c2w[:, :, :3].double()
    exact = (rotations @ rotations.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs() < 1e-3
    if not bool(exact.all()):
        raise ValueError("cameras.c2w holds a matrix that is no rotation")
    if not bool(((cameras.models >= 0) & (cameras.models <= EQUIRECTANGULAR)).all()):
        raise ValueError(f"cameras.models holds {cameras.models.tolist()[:8]}, expected 0 to {EQUIRECTANGULAR}")
    sizes = cameras.widths.double() * cameras.heights.double()
    if int(torch.minimum(cameras.widths, cameras.heights).min()) < 1 or float(sizes.max()) > MOST_PIXELS:
        raise ValueError(f"a camera has {sizes.max():.3g} pixels, expected 1 to {MOST_PIXELS}")
