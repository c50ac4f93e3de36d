"""Reader of Record3D: an unzipped .r3d capture, or its export as EXR + RGB.

Frame. A pose is a unit quaternion (x, y, z, w) and a place in metres, of an OpenGL camera (ARKit's: x right, y up,
looking along -z) in the world of the capture. K is the intrinsic matrix, column by column, in pixels of w x h pictures;
where there are `perFrameIntrinsicCoeffs` (fx, fy, cx, cy), they count for their frame. EXR depths are metres along the
optical axis.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerf.datasets.depths import DepthMap
from nerf.datasets.named import pictures_in, visible
from nerf.datasets.parsed import Frame, Lens, ParsedScene
from nerf.datasets.readers import reader
from nerf.datasets.readers.transforms import numbers, read_json
from nerf.errors import UserError
from nerf.geometry.rotations import quaternion_to_matrix

_FILES = ("metadata", "metadata.json", "EXR_RGBD/metadata", "EXR_RGBD/metadata.json")


def find_file(folder: Path) -> Path | None:
    """The capture's metadata, recognised by its poses; or an .r3d archive, which the reader says to unzip."""
    for file in filter(Path.is_file, (folder / place for place in _FILES)):
        with suppress(UserError):
            data = read_json(file)
            if "poses" in data and ("K" in data or "perFrameIntrinsicCoeffs" in data):
                return file
    return next(iter(visible(folder, "*.r3d")), None)


@reader("record3d", tells=find_file, help="metadata with poses (Record3D)", file=".r3d")
def read_record3d(file: Path) -> ParsedScene:
    """One camera for each pose in the metadata; picture i of rgbd/ or rgb/ belongs to pose i."""
    if file.suffix.lower() == ".r3d":
        raise UserError(f"{file}: an .r3d is a ZIP archive: unzip it into a folder of its own, and give that folder")
    data, home = read_json(file), file.parent
    poses = _table(data.get("poses"), 7, f"{file}: poses")
    lenses = _lenses(data, len(poses), file)
    images: dict[int, Path] = {}
    for base in (home / "rgbd", home / "rgb", home / "images"):
        images = {int(p.stem): p for p in pictures_in(base) if p.stem.isdigit() and p.suffix.lower() != ".exr"}
        if images:
            break
    else:
        raise UserError(f"{home}: no pictures 0.jpg, 1.jpg ... in rgbd/ or rgb/")
    frames = []
    for i, pose in enumerate(poses):
        where = f"{file.name}, pose {i}"
        path = images.get(i, base / f"{i}.jpg")
        frame = Frame(path.name, path, _pose(pose, where), lenses[i], where)
        depth = next((d for d in (home / "depth" / f"{i}.exr", base / f"{i}.exr") if d.is_file()), None)
        frame.depth = None if depth is None else DepthMap(depth, 1.0)
        frames.append(frame)
    notes = [f"Record3D capture, {len(poses)} frames, in metres"]
    if any(base.glob("*.depth")) and not any(f.depth for f in frames):
        notes.append("its .depth files are compressed and were not read: export EXR + RGB for the depths")
    return ParsedScene("record3d", home, frames, notes)


def _table(value: Any, n_columns: int, where: str) -> np.ndarray:
    table = numbers(value, f"{where}: expected a list of {n_columns} numbers for each frame")
    if table.ndim != 2 or table.shape[1] != n_columns or len(table) == 0:
        raise UserError(f"{where}: expected {n_columns} numbers for each frame, got an array of shape {table.shape}")
    if not np.isfinite(table).all():
        bad = int((~np.isfinite(table).all(axis=1)).argmax())
        raise UserError(f"{where}: entry {bad} holds NaN or infinity: repair or remove this frame")
    return table


def _pose(values: np.ndarray, where: str) -> np.ndarray:
    length = float(np.linalg.norm(values[:4]))
    if not 0.9 < length < 1.1:
        raise UserError(f"{where}: its quaternion has length {length:.3g}, expected 1: repair or remove this frame")
    rotation = quaternion_to_matrix(torch.from_numpy(values[[3, 0, 1, 2]] / length)[None])[0]
    return np.column_stack([rotation, values[4:]])


def _lenses(data: dict[str, Any], n: int, file: Path) -> list[Lens]:
    w, h = data.get("w"), data.get("h")
    if not isinstance(w, int) or not isinstance(h, int) or w < 1 or h < 1:
        raise UserError(f"{file}: w and h are {w!r} and {h!r}, expected the pictures' size in pixels")
    coefficients = data.get("perFrameIntrinsicCoeffs")
    if coefficients:
        table = _table(coefficients, 4, f"{file}: perFrameIntrinsicCoeffs")
        if len(table) != n:
            raise UserError(f"{file}: {len(table)} perFrameIntrinsicCoeffs for {n} poses: they must agree")
    else:
        k = _table([data.get("K")], 9, f"{file}: K")[0]
        table = np.tile([k[0], k[4], k[6], k[7]], (n, 1))
    return [Lens(fx=fx, fy=fy, cx=cx, cy=cy, width=w, height=h) for fx, fy, cx, cy in table.tolist()]
