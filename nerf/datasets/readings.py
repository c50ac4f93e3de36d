"""How the cameras of a data set are meant, where that is not as they stand in its files: what `cameras_are` names.

`nerf check` tries these on the photos, and `load` applies the one that is asked for: both with `read_as`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.geometry.cameras import PERSPECTIVE, Cameras
from nerf.geometry.lenses import SKEW, padded

KNOWN = (
    "inverted, transposed, axes=x,-y,-z (where the camera's right, up and back point, in its given axes), flip=y (axes "
    "of the world, of the positions alone), turned=90, 180 or 270 (the photos, counter-clockwise), scale=0.5 (focal "
    "lengths and principal point), focal=1.2 (focal lengths alone), centred, undistorted; several joined by +"
)
_FACTORS = (1e-3, 1e3)


def axes_of(matrix: Tensor) -> str:
    """The term for camera axes that are the columns of a signed permutation [3,3] of the given ones."""
    row = matrix.abs().argmax(dim=0).tolist()
    return "axes=" + ",".join(("-" if matrix[r, k] < 0 else "") + "xyz"[r] for k, r in enumerate(row))


def check_reading(text: object, option: str) -> None:
    """UserError for what `read_as` does not know, and for axes that would make a mirror image."""
    terms = _terms(text, option)
    if any(name == "axes" and float(torch.linalg.det(_matrix(value))) < 0 for name, value in terms):
        raise UserError(f"{option} {text}: these axes are left-handed, which show the scene mirrored: reverse one")


def read_as(cameras: Cameras, text: str | None) -> Cameras:
    """The cameras as they are meant, if `text` says how: terms as in KNOWN, each applied to what those before it made.
    Pictures, and what lies in the world, stay what they are."""
    for name, value in () if text is None else _terms(text, "cameras_are"):
        cameras = _APPLY[name](cameras, value)
    return cameras


def can_be_turned(cameras: Cameras) -> bool:
    """Whether a turned picture of these lenses is one of such a lens again."""
    return not bool(cameras.spherical.any() | (padded(cameras.distortion)[:, SKEW] != 0).any())


def moves_principal_point(text: str | None) -> bool:
    """Whether principal points are not taken as they are stated."""
    return text is not None and any(name in ("scale", "centred") for name, _ in _terms(text, "cameras_are"))


def _terms(text: object, option: str) -> list[tuple[str, str]]:
    found = []
    for term in str(text).split("+"):
        name, _, value = term.strip().partition("=")
        if not isinstance(text, str) or not _is_term(name, value):
            raise UserError(f"{option} {text}: {term.strip()!r} is not known; known are {KNOWN}")
        found.append((name, value))
    return found


def _is_term(name: str, value: str) -> bool:
    form = {
        "axes": r"-?[xyz],-?[xyz],-?[xyz]",
        "flip": r"x?y?z?(?<=.)",
        "turned": "90|180|270",
        **dict.fromkeys(("scale", "focal"), r"\d{1,9}(\.\d{1,20})?"),
        **dict.fromkeys(("inverted", "transposed", "centred", "undistorted"), ""),
    }.get(name)
    if form is None or not re.fullmatch(form, value, re.ASCII):
        return False
    if name == "axes":
        return {*"xyz"} <= {*value}
    return name not in ("scale", "focal") or _FACTORS[0] <= float(value) <= _FACTORS[1]


def _matrix(value: str) -> Tensor:
    matrix = torch.zeros(3, 3, dtype=torch.float64)
    for k, axis in enumerate(value.split(",")):
        matrix["xyz".index(axis[-1]), k] = -1 if axis[0] == "-" else 1
    return matrix


def _changed(cameras: Cameras, **what: Tensor) -> Cameras:
    return Cameras(**cameras.tensors() | what)


def _posed(cameras: Cameras, rotation: Tensor, position: Tensor) -> Cameras:
    return _changed(cameras, c2w=torch.cat([rotation, position[:, :, None]], dim=2))


def _axes(cameras: Cameras, value: str) -> Cameras:
    return _posed(cameras, cameras.c2w[:, :, :3] @ _matrix(value), cameras.centres)


def _inverted(cameras: Cameras, _: str) -> Cameras:
    back = cameras.c2w[:, :, :3].transpose(1, 2)
    return _posed(cameras, back, -(back @ cameras.c2w[:, :, 3:])[:, :, 0])


def _transposed(cameras: Cameras, _: str) -> Cameras:
    return _posed(cameras, cameras.c2w[:, :, :3].transpose(1, 2), cameras.centres)


def _flipped(cameras: Cameras, value: str) -> Cameras:
    signs = torch.tensor([-1.0 if axis in value else 1.0 for axis in "xyz"], dtype=torch.float64)
    return _posed(cameras, cameras.c2w[:, :, :3], cameras.centres * signs)


def _turned(cameras: Cameras, value: str) -> Cameras:
    """As the pictures are turned about their middles, so are the camera and all that its lens does not do alike in
    every direction."""
    if not can_be_turned(cameras):
        raise UserError(f"cameras_are turned={value}: panoramas and lenses with skew cannot be turned; turn the photos")
    for _ in range(int(value) // 90):
        k = padded(cameras.distortion).clone()
        for u, v in ((5, 4), (8, 10), (9, 11)):  # p2 and p1, s1 and s3, s2 and s4: across and down
            k[:, u], k[:, v] = k[:, v].clone(), -k[:, u].clone()
        x, y = cameras.widths.double() / 2, cameras.heights.double() / 2
        cameras = _changed(
            _axes(cameras, "-y,x,z"),
            fx=cameras.fy,
            fy=cameras.fx,
            cx=x + (cameras.cy - y),
            cy=y - (cameras.cx - x),
            distortion=k[:, : cameras.distortion.shape[1]],
        )
    return cameras


def _scaled(cameras: Cameras, value: str, names: tuple[str, ...] = ("fx", "fy", "cx", "cy")) -> Cameras:
    given = {name: getattr(cameras, name) for name in names}
    # panoramas follow from their size
    return _changed(cameras, **{k: torch.where(cameras.spherical, v, v * float(value)) for k, v in given.items()})


def _centred(cameras: Cameras, _: str) -> Cameras:
    return _changed(cameras, cx=cameras.widths.double() / 2, cy=cameras.heights.double() / 2)


def _undistorted(cameras: Cameras, _: str) -> Cameras:
    models = torch.where(cameras.spherical, cameras.models, PERSPECTIVE)
    return _changed(cameras, models=models, distortion=torch.zeros_like(cameras.distortion))


_APPLY: dict[str, Callable[[Cameras, str], Cameras]] = {
    "axes": _axes,
    "inverted": _inverted,
    "transposed": _transposed,
    "flip": _flipped,
    "turned": _turned,
    "scale": _scaled,
    "focal": lambda cameras, value: _scaled(cameras, value, ("fx", "fy")),
    "centred": _centred,
    "undistorted": _undistorted,
}
