"""Where a world stands on the earth: geodetic, geocentric and local east-north-up coordinates on the WGS84 ellipsoid.

Latitudes and longitudes are degrees, heights and lengths metres, everything float64. Heights are what the source of the
poses calls so: above the ellipsoid for most receivers, above the sea for some cameras; nothing converts between them.
Formulas: Snyder 1987 (ellipsoid); Bowring 1976, iterated, for the way back from geocentric coordinates, whose error is
below a nanometre within 10 km of the ground.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nerf.errors import BadValue, UserError
from nerf.geometry.space import Similarity, checked_similarity

SEMI_MAJOR = 6_378_137.0  # metres
FLATTENING = 1 / 298.257223563
_E2 = FLATTENING * (2 - FLATTENING)  # squared eccentricity
GEOCENTRIC = 4978  # EPSG: x, y, z from the middle of the earth, WGS84
_HEIGHTS = (-12_000.0, 100_000.0)  # metres between which a place is believed

Lla = tuple[float, float, float]  # latitude, longitude, height


def geocentric_of(lla: Tensor) -> Tensor:
    """Geocentric x, y, z of latitudes, longitudes and heights, [n,3] to [n,3].

    >>> geocentric_of(torch.tensor([[0.0, 90.0, 10.0]], dtype=torch.float64)).round(decimals=6).tolist()
    [[0.0, 6378147.0, 0.0]]
    """
    lat, lon, height = (*lla[:, :2].double().deg2rad().unbind(dim=1), lla[:, 2].double())
    radius = SEMI_MAJOR / (1 - _E2 * lat.sin() ** 2).sqrt()  # of curvature in the prime vertical
    level = (radius + height) * lat.cos()
    return torch.stack([level * lon.cos(), level * lon.sin(), (radius * (1 - _E2) + height) * lat.sin()], dim=1)


def geodetic_of(xyz: Tensor) -> Tensor:
    """The inverse of `geocentric_of`, [n,3] to [n,3]; longitudes from -180 to 180."""
    x, y, z = xyz.double().unbind(dim=1)
    level = torch.hypot(x, y)
    reduced = torch.atan2(z, level * (1 - FLATTENING))
    lat = reduced
    for _ in range(4):
        up = z + _E2 / (1 - FLATTENING) * SEMI_MAJOR * reduced.sin() ** 3
        lat = torch.atan2(up, level - _E2 * SEMI_MAJOR * reduced.cos() ** 3)
        reduced = torch.atan2((1 - FLATTENING) * lat.sin(), lat.cos())
    flat = (1 - _E2 * lat.sin() ** 2).sqrt()
    height = level * lat.cos() + z * lat.sin() - SEMI_MAJOR * flat  # holds at the poles too
    return torch.stack([lat.rad2deg(), torch.atan2(y, x).rad2deg(), height], dim=1)


def enu_of(origin: Lla) -> Similarity:
    """The map from geocentric coordinates to metres east, north and up of a place (a tangent plane, no projection)."""
    lat, lon = math.radians(origin[0]), math.radians(origin[1])
    s, c, sl, cl = math.sin(lat), math.cos(lat), math.sin(lon), math.cos(lon)
    axes = torch.tensor([[-sl, cl, 0], [-s * cl, -s * sl, c], [c * cl, c * sl, s]], dtype=torch.float64)
    middle = geocentric_of(torch.tensor([origin], dtype=torch.float64))[0]
    return Similarity(1.0, axes, -(axes @ middle))


@dataclass(frozen=True)
class Georeference:
    """How the world of the poses stands on the earth: `to_ground` takes it to metres east, north and up of the place
    `origin` (latitude, longitude, height), or, where `epsg` is a number, to coordinates of that reference system.

    >>> Georeference.parse("52.5,13.4,35").origin, Georeference.parse("EPSG:25833").epsg
    ((52.5, 13.4, 35.0), 25833)
    """

    origin: Lla | None = None
    epsg: int | None = None
    to_ground: Similarity = field(default_factory=Similarity.identity)

    def __post_init__(self) -> None:
        if (self.origin is None) == (self.epsg is None):
            raise BadValue("a georeference has either an origin or an EPSG code")
        if self.epsg is not None and not (isinstance(self.epsg, int) and 1024 <= self.epsg <= 32767):
            raise BadValue(f"EPSG:{self.epsg}: expected a code from 1024 to 32767")
        if self.origin is not None:
            if len(self.origin) != 3 or not all(isinstance(v, float) and math.isfinite(v) for v in self.origin):
                raise BadValue(f"origin {self.origin}: expected latitude, longitude, height")
            lat, lon, height = self.origin
            if not (abs(lat) <= 90 and abs(lon) <= 360 and _HEIGHTS[0] <= height <= _HEIGHTS[1]):
                raise BadValue(
                    f"origin {lat:g}, {lon:g}, {height:g}: expected degrees of latitude and longitude, metres"
                )

    @staticmethod
    def parse(text: str, where: str = "georeference") -> Georeference:
        """EPSG:N, EPSG:N,X,Y,Z (the coordinates of the world's origin) or LATITUDE,LONGITUDE,HEIGHT; UserError."""
        match = re.fullmatch(r"\s*(?:epsg:(\d{1,6})\s*(?:,|$))?\s*(.*?)\s*", text, re.IGNORECASE)
        assert match is not None
        code, rest = match[1], match[2]
        try:
            numbers = [float(part) for part in rest.split(",")] if rest else []
            if len(numbers) not in ((0, 3) if code else (3,)) or not all(map(math.isfinite, numbers)):
                raise ValueError
            if code is None:
                return Georeference(origin=(numbers[0], numbers[1], numbers[2]))
            shift = torch.tensor(numbers or [0.0] * 3, dtype=torch.float64)
            return Georeference(epsg=int(code), to_ground=replace(Similarity.identity(), translation=shift))
        except ValueError as error:  # BadValue too
            why = f": {error}" if isinstance(error, BadValue) else ""
            raise UserError(
                f"{where}: {text!r} is no place on earth{why}; expected EPSG:25833, EPSG:25833,390000,5820000,0 (where "
                "the world's origin lies there) or 52.5,13.4,35 (latitude, longitude and height of a world in metres "
                "east, north, up)"
            ) from None

    @property
    def metres(self) -> float:
        """Metres a unit of the world, as far as it is known without asking what units an EPSG code has."""
        return self.to_ground.scale

    def scaled(self, factor: float) -> Georeference:
        """Of a world whose coordinates are so many times as large."""
        return self.after(Similarity(1 / factor, *_unmoved()))

    def after(self, from_other: Similarity) -> Georeference:
        """Of another world, which from_other takes to this one."""
        first, then = from_other, self.to_ground
        turned = then.rotation @ first.rotation
        return replace(
            self, to_ground=Similarity(first.scale * then.scale, turned, then.apply(first.translation[None])[0])
        )

    def geocentric(self, points: Tensor) -> Tensor | None:
        """World points [n,3] in geocentric coordinates; None where that takes a library of reference systems."""
        ground = self.to_ground.apply(points.double())
        if self.origin is not None:
            return enu_of(self.origin).inverse().apply(ground)
        return ground if self.epsg == GEOCENTRIC else None

    def world(self, geocentric: Tensor) -> Tensor | None:
        """The inverse of `geocentric`."""
        if self.origin is not None:
            geocentric = enu_of(self.origin).apply(geocentric.double())
        elif self.epsg != GEOCENTRIC:
            return None
        return self.to_ground.inverse().apply(geocentric.double())

    def __str__(self) -> str:
        if self.epsg == GEOCENTRIC:
            return "geocentric coordinates (EPSG:4978)"
        if self.origin is None:
            return f"EPSG:{self.epsg}"
        lat, lon, height = self.origin
        return f"east, north, up about latitude {lat:.7f}, longitude {lon:.7f}, height {height:.2f} m"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives the same numbers back exactly."""
        place = {"epsg": self.epsg} if self.origin is None else {"origin": list(self.origin)}
        return place | {"to_ground": self.to_ground.to_dict()}

    @staticmethod
    def from_dict(d: Any, where: str = "georeference") -> Georeference:
        """BadValue for what is none."""
        try:
            origin, epsg = d.get("origin"), d.get("epsg")
            place = None if origin is None else (float(origin[0]), float(origin[1]), float(origin[2]))
            to_ground = Similarity.from_dict(d["to_ground"])
            return Georeference(place, epsg, checked_similarity(to_ground, f"{where}: to_ground"))
        except BadValue:
            raise
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise BadValue(
                f"{where}: expected origin [latitude, longitude, height] or epsg, and to_ground (scale, rotation, "
                "translation)"
            ) from error


def _unmoved() -> tuple[Tensor, Tensor]:
    unit = Similarity.identity()
    return unit.rotation, unit.translation
