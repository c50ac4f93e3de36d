"""Reference systems by their EPSG codes, and GeoTIFF files: both through the package rasterio (GDAL and PROJ)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.errors import MissingPackage, UserError, brief
from nerf.geometry.geodesy import GEOCENTRIC, Georeference, geocentric_of, geodetic_of
from nerf.io.files import atomic_write

_DEGREES = 4326  # EPSG: latitude and longitude, WGS84
_AT_ONCE = 1 << 18  # points; PROJ is given lists


def need_rasterio() -> None:
    """MissingPackage where it is not installed; asked before work begins."""
    try:
        import rasterio  # noqa: F401  (that it is there)
    except ImportError as error:
        raise MissingPackage(
            'maps and reference systems need the package rasterio: pip install "nerf-reconstruct[maps]", or pip '
            f"install rasterio ({brief(error)})"
        ) from None


def utm_of(lat: float, lon: float) -> int:
    """The EPSG code of the UTM zone (WGS84) of a place, without the exceptions of Norway and Svalbard.

    >>> utm_of(52.5, 13.4), utm_of(-33.9, 151.2)
    (32633, 32756)
    """
    zone = int((lon + 180) % 360 // 6) + 1
    return (32600 if lat >= 0 else 32700) + zone


def _system(epsg: int) -> Any:
    import rasterio
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        with rasterio.Env():  # which takes what GDAL would print
            return CRS.from_epsg(epsg)
    except CRSError:
        raise UserError(f"EPSG:{epsg} is no reference system that PROJ knows: correct the number") from None


def check_map_system(epsg: int) -> None:
    """UserError unless this is a projected reference system in metres, in which a map can be drawn."""
    system = _system(epsg)
    if not system.is_projected or abs(system.linear_units_factor[1] - 1) > 1e-9:
        units = system.linear_units_factor[0] if system.is_projected else "degrees or geocentric"
        raise UserError(
            f"EPSG:{epsg} ({units}) is no projected reference system in metres: give --epsg one that is, such as a UTM "
            "zone (326xx in the north, 327xx in the south)"
        )


def between(points: Tensor, source: int, target: int) -> Tensor:
    """Coordinates [n,3] of one EPSG code in another, float64; x is east or longitude, whatever the codes say."""
    import rasterio
    from rasterio._err import CPLE_BaseError  # what PROJ raises passes through as it is
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    if source == target:
        return points.double()
    systems, parts = (_system(source), _system(target)), []
    try:
        with rasterio.Env():
            for some in points.double().split(_AT_ONCE):
                x, y, z = some.numpy().T
                parts.append(torch.tensor(transform(*systems, x, y, z), dtype=torch.float64).T)
        moved = torch.cat(parts) if parts else points.double()
    except (RasterioError, CPLE_BaseError) as error:
        raise _not_there(target, error) from error
    if not bool(moved.isfinite().all()):
        raise _not_there(target)
    return moved


def _not_there(epsg: int, error: Exception | None = None) -> UserError:
    why = "" if error is None else f" ({brief(error)})"
    return UserError(f"EPSG:{epsg} does not reach where this is{why}: give --epsg a reference system that does")


class MapFrame:
    """World points as coordinates of an EPSG code, and back.

    epsg: None takes the georeference's own where that is projected, else the UTM zone of a world point [3] amid the
    scene. Raises UserError where a code is unknown or no map can be drawn in it.
    """

    def __init__(self, georeference: Georeference, middle: Tensor, epsg: int | None = None) -> None:
        need_rasterio()
        self.georeference = georeference
        if epsg is None:
            own = georeference.epsg
            if own is None or not _system(own).is_projected:
                lat, lon, _ = self._geodetic(middle[None])[0].tolist()
                own = utm_of(lat, lon)
            epsg = own
        check_map_system(epsg)
        self.epsg = epsg

    def _geodetic(self, points: Tensor) -> Tensor:
        xyz = self.georeference.geocentric(points)
        if xyz is not None:
            return geodetic_of(xyz)
        assert self.georeference.epsg is not None
        return _turned(between(self.georeference.to_ground.apply(points.double()), self.georeference.epsg, _DEGREES))

    def from_world(self, points: Tensor) -> Tensor:
        """[n,3] to [n,3] east, north, height, float64."""
        if self.georeference.epsg not in (None, GEOCENTRIC):
            return between(self.georeference.to_ground.apply(points.double()), self.georeference.epsg, self.epsg)
        return between(_turned(self._geodetic(points)), _DEGREES, self.epsg)

    def to_world(self, points: Tensor) -> Tensor:
        """The inverse of `from_world`."""
        own = self.georeference.epsg
        if own not in (None, GEOCENTRIC):
            return self.georeference.to_ground.inverse().apply(between(points, self.epsg, own))
        world = self.georeference.world(geocentric_of(_turned(between(points, self.epsg, _DEGREES))))
        assert world is not None
        return world

    def rotation(self, middle: Tensor) -> Tensor:
        """The rotation [3,3] nearest to what `from_world` does to directions at a world point [3]."""
        step = 1.0 / self.georeference.metres
        around = middle.double() + torch.cat([torch.zeros(1, 3), step * torch.eye(3)]).double()
        there = self.from_world(around)
        u, _, vt = torch.linalg.svd((there[1:] - there[0]).T)
        return u @ vt


def _turned(points: Tensor) -> Tensor:
    """Latitude, longitude, height as PROJ has them in programs (longitude first), and back."""
    return points[:, [1, 0, 2]]


class Band(NamedTuple):
    """Rows of a map from `first` on, [rows,w] or [rows,w,c]."""

    first: int
    pixels: np.ndarray


class Grid(NamedTuple):
    """Where the pixels of a map lie: square ones, of `pixel` metres; the corner is that of the first pixel."""

    epsg: int
    pixel: float
    west: float
    north: float
    width: int
    height: int


@contextmanager
def geotiff(path: Path, grid: Grid, dtype: str, n_bands: int, nodata: float | None = None) -> Iterator[Any]:
    """What takes the bands, `write(Band)`; four are RGB and alpha. The file is there once the block ends."""
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.errors import RasterioError
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    about: dict[str, Any] = {"driver": "GTiff", "width": grid.width, "height": grid.height, "count": n_bands}
    about |= {"dtype": dtype, "nodata": nodata, "crs": _system(grid.epsg), "tiled": True, "BIGTIFF": "IF_SAFER"}
    about |= {"transform": from_origin(grid.west, grid.north, grid.pixel, grid.pixel)}
    about |= {"compress": "deflate", "predictor": 3 if dtype.startswith("float") else 2}
    try:
        with atomic_write(path, ".tif") as temporary, rasterio.open(temporary, "w", **about) as sink:
            if n_bands == 4:
                sink.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]

            def write(band: Band) -> None:
                rows, width = band.pixels.shape[:2]
                planes = np.moveaxis(band.pixels.reshape(rows, width, n_bands), 2, 0)
                sink.write(planes, window=Window(0, band.first, width, rows))

            yield write
    except RasterioError as error:
        raise UserError(f"{path}: cannot be written ({brief(error)})") from error
