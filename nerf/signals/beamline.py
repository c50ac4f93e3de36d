"""Projections in HDF5, as beamlines write them (DXchange: data, data_white, data_dark, theta), to a sinogram."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nerf.errors import UserError, brief, note
from nerf.io.arrays import DEFLATE
from nerf.signals.record import check_finite

SUFFIXES = (".h5", ".hdf5", ".hdf", ".nxs")
_MAGIC = b"\x89HDF\r\n\x1a\n"
_SMALL = 1 << 26  # bytes that an array of any file may unfold to
_FAINT = 1e-4  # of the open beam: what is darker, noise below zero included, counts as this much


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, by its first bytes or else by its name."""
    with open(path, "rb") as file:
        return file.read(8) == _MAGIC or path.suffix.lower() in SUFFIXES


def read_hdf5(path: Path, row: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """(sinogram [detectors, angles], angles in degrees or None) of one row of detectors (None: the middle one)."""
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{path}: is HDF5, which needs the package h5py: pip install h5py, or save the sinogram as .npy"
        ) from None
    try:
        with h5py.File(path, "r") as file:
            _refuse_others(file, path)
            return sinogram_of(file, row, str(path))
    except (OSError, KeyError, RuntimeError) as error:  # of links that lead nowhere, or round in circles
        raise UserError(f"{path}: cannot be read as HDF5 ({brief(error)}): restore the file") from error


def _refuse_others(file: Any, path: Path) -> None:
    """UserError where a link, or a place that values are kept in, is another file, for whoever made this one may have
    meant any; and where an array is larger than the file can hold."""
    import h5py

    most = max(_SMALL, DEFLATE * path.stat().st_size)

    def fault(name: str, found: Any) -> str | None:
        is_array = isinstance(found, h5py.Dataset)
        if isinstance(found, h5py.ExternalLink) or (is_array and (found.external or found.is_virtual)):
            return f"{name} leads to another file, which is not opened: copy its values into this one"
        if is_array and found.size and found.nbytes > most:
            return f"{name} has the shape {list(found.shape)}, which the file cannot hold: it is damaged, restore it"
        return None

    if said := file.visititems_links(fault) or file.visititems(fault):  # the latter follows no links
        raise UserError(f"{path}: {said}")


def _values(file: Mapping[str, Any], key: str, name: str) -> Any:
    if not hasattr(values := file[key], "shape"):
        raise UserError(f"{name}: {key} is a group, expected an array of numbers")
    return values


def sinogram_of(
    file: Mapping[str, Any], row: int | None = None, name: str = "projections"
) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """The same of what behaves like an opened file: exchange/data [angles, rows, detectors] and, where they are there,
    data_white and data_dark [k, rows, detectors] and theta [angles]. By Beer and Lambert, the line integrals are
    -log((data - dark) / (white - dark)); without white fields, data are taken to be line integrals already."""
    group = "exchange/" if "exchange/data" in file else ""
    if f"{group}data" not in file:
        raise UserError(f"{name}: holds no exchange/data, as DXchange names projections (it has: {', '.join(file)})")
    data = _values(file, f"{group}data", name)
    if len(data.shape) != 3 or min(data.shape) < 1:
        raise UserError(f"{name}: exchange/data has the shape {list(data.shape)}, expected [angles, rows, detectors]")
    n_angles, n_rows, n = data.shape
    row = n_rows // 2 if row is None else row
    if not 0 <= row < n_rows:
        raise UserError(f"--row {row}: {name} has the rows 0 to {n_rows - 1}")
    if n_rows > 1:
        note(f"{name}: row {row} of {n_rows} (--row takes another)")

    def field(what: str, otherwise: float) -> NDArray[np.float64]:
        if (key := f"{group}{what}") not in file:
            return np.full(n, otherwise)
        values = _values(file, key, name)
        if len(values.shape) != 3 or values.shape[1:] != (n_rows, n):
            raise UserError(f"{name}: {key} has the shape {list(values.shape)}, expected [fields, {n_rows}, {n}]")
        return np.median(np.asarray(values[:, row, :], np.float64), axis=0)  # a mean would keep zingers

    measured = np.asarray(data[:, row, :], np.float64)
    if f"{group}data_white" in file:
        dark = field("data_dark", 0.0)
        beam = field("data_white", 1.0) - dark
        if not (beam > 0).any():
            raise UserError(f"{name}: data_white is nowhere brighter than data_dark: nothing was measured")
        share = (measured - dark) / np.where(beam > 0, beam, np.inf)
        measured = np.where(beam > 0, -np.log(share.clip(_FAINT)), 0.0)
    return np.ascontiguousarray(measured.T, np.float32), _angles(file, group, n_angles, name)


def _angles(file: Mapping[str, Any], group: str, count: int, name: str) -> NDArray[np.float64] | None:
    if f"{group}theta" not in file:
        return None
    theta = np.asarray(_values(file, f"{group}theta", name), np.float64).reshape(-1)
    check_finite(Path(name), theta, "angles")
    if len(theta) != count:
        raise UserError(f"{name}: {group}theta holds {len(theta)} angles for {count} projections: they must agree")
    return np.rad2deg(theta) if count > 8 and np.ptp(theta) < 6.5 else theta  # a scan of half a turn, at least
