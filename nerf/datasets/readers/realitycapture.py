"""Reader of RealityCapture (RealityScan): the CSV "Internal/External camera parameters", and a folder of photos.

Frame. x, y, alt are the camera's place in RealityCapture's world: z up, metres where the project is georeferenced, and
then often in a national grid, far from the origin. Heading, pitch and roll are degrees: with all of them zero a camera
looks straight down, its up to +y; heading turns clockwise seen from above, pitch lifts the view to the horizon at 90,
roll turns about +y before that. So R = Rz(-heading) Rx(pitch) Ry(roll) takes an OpenGL camera to the world.
Lens. f is millimetres on a 36 mm wide frame, px and py are from the picture's middle in parts of its larger side, k1 to
k4 multiply r^2 to r^8, t1 and t2 are OpenCV's p1 and p2. The file states no picture sizes: they come from the photos.
"""

from __future__ import annotations

import csv
import io
import math
from contextlib import suppress
from pathlib import Path

import numpy as np

from nerf.datasets.named import find_named, visible
from nerf.datasets.parsed import Frame, Lens, ParsedScene
from nerf.datasets.readers import reader
from nerf.errors import UserError
from nerf.geometry.cameras import OPENCV, PERSPECTIVE
from nerf.io.images import read_header
from nerf.io.text import lines_of

_NEEDED = ("name", "x", "y", "alt", "heading", "pitch", "roll", "f")
_LENS = ("px", "py", "k1", "k2", "k3", "k4", "t1", "t2")
_FRAME_WIDTH = 36.0  # millimetres


def find_file(folder: Path) -> Path | None:
    """The first CSV file in the folder whose header has the columns of camera parameters."""
    for file in visible(folder, "*.[cC][sS][vV]"):
        with suppress(OSError), open(file, "rb") as f:
            if any(map(_columns, lines_of(f.read(4096))[:3])):
                return file
    return None


def _columns(line: str) -> list[str] | None:
    """The columns' names of a header line, else None."""
    names = [c.strip().lstrip("#").strip().lower() for c in line.split(_separator(line))]
    return names if {"name", "heading", "pitch", "roll"} <= set(names) else None


def _separator(line: str) -> str:
    """What stands between the cells: where a comma is in numbers, as in much of Europe, a semicolon or tab."""
    return max(",;\t", key=line.count)


@reader("realitycapture", tells=find_file, help="a .csv of RealityCapture's cameras", file=".csv")
def read_realitycapture(file: Path) -> ParsedScene:
    """One camera for each row; rows whose photo is missing are skipped with a note."""
    try:
        lines = lines_of(file.read_bytes())
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror})") from e
    at, columns = next(((i, c) for i, line in enumerate(lines[:3]) if (c := _columns(line))), (0, []))
    missing = [c for c in _NEEDED if c not in columns]
    if missing:
        raise UserError(
            f"{file}: the column {', '.join(missing)} is missing: in RealityCapture choose Export > "
            'Registration, "Internal/External camera parameters" (CSV)'
        )
    try:
        rows = list(csv.reader(io.StringIO("\n".join(lines[at + 1 :])), delimiter=_separator(lines[at])))
    except csv.Error as e:
        raise UserError(f"{file}: is no CSV ({e}): export it again") from e
    tables = [
        _table(columns, cells, file, number)
        for number, cells in enumerate(rows, start=at + 2)
        if any(c.strip() for c in cells) and not cells[0].startswith("#")
    ]
    if not tables:
        raise UserError(f"{file}: holds no camera: register the photos and export again")
    images = find_named(file.parent, [name for _, name, _ in tables], str(file))
    frames = []
    for where, name, row in tables:
        lens = _lens(row, images[name], where) if images[name].is_file() else Lens()
        frames.append(Frame(name, images[name], _pose(row), lens, f"{where} ({name})"))
    notes = [f"RealityCapture cameras from {file.name}: world z up"]
    return ParsedScene("realitycapture", file.parent, frames, notes)


def _table(columns: list[str], cells: list[str], file: Path, line: int) -> tuple[str, str, dict[str, float]]:
    """(where, the photo's name, numbers by column) of one row."""
    if len(cells) < len(columns):
        raise UserError(f"{file}: line {line} has {len(cells)} cells, its header {len(columns)}: the file is cut off")
    row: dict[str, float] = {}
    if not (photo := cells[columns.index("name")].strip()):
        raise UserError(f"{file}: line {line} has no name")
    for name in (*_NEEDED[1:], *(c for c in _LENS if c in columns)):
        cell = cells[columns.index(name)].strip()
        try:
            row[name] = float(cell.replace(",", "."))
        except ValueError as e:
            raise UserError(f"{file}: line {line}: {name} is {cell!r}, expected a number") from e
        if not math.isfinite(row[name]):
            raise UserError(f"{file}: line {line}: {name} is {cell}, expected a finite number")
    return f"{file.name}, line {line}", photo, row


def _pose(row: dict[str, float]) -> np.ndarray:
    heading, pitch, roll = (math.radians(row[k]) for k in ("heading", "pitch", "roll"))
    ch, sh, cp, sp, cr, sr = (f(a) for a in (-heading, pitch, roll) for f in (math.cos, math.sin))
    rz = np.array([[ch, -sh, 0], [sh, ch, 0], [0, 0, 1]])
    rx = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    ry = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    return np.column_stack([rz @ rx @ ry, [row[k] for k in ("x", "y", "alt")]])


def _lens(row: dict[str, float], path: Path, where: str) -> Lens:
    picture = read_header(path)
    size = max(picture.width, picture.height)
    focal = row["f"] * size / _FRAME_WIDTH
    if not focal > 0:
        raise UserError(f"{where}: f is {row['f']}, expected millimetres above zero")
    u, v, k1, k2, k3, k4, t1, t2 = (row.get(name, 0.0) for name in _LENS)
    k = (k1, k2, k3, k4, t1, t2)
    cx, cy = u * size + 0.5 * picture.width, v * size + 0.5 * picture.height
    return Lens(OPENCV if any(k) else PERSPECTIVE, focal, focal, cx, cy, picture.width, picture.height, k)
