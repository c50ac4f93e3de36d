"""Reader of LLFF captures: poses_bounds.npy and a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerf.datasets.named import reduced_folders
from nerf.datasets.parsed import Frame, Lens, ParsedScene
from nerf.datasets.readers import reader
from nerf.errors import UserError
from nerf.io.images import IMAGE_SUFFIXES


@reader("llff", tells="poses_bounds.npy", help="poses_bounds.npy (LLFF)")
def read_llff(file: Path) -> ParsedScene:
    """poses_bounds.npy [n,17]: a 3x5 matrix and the nearest and farthest depth of each image.

    The matrix holds the camera's axes down, right and back, its position, and (height, width, focal) in pixels.
    """
    folder = file.parent
    try:
        table = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as e:
        raise UserError(f"{file}: cannot be read as a NumPy array ({e}): the file is damaged, write it again") from e
    if table.ndim != 2 or table.shape[1] != 17:
        raise UserError(f"{file}: holds an array of shape {table.shape}, expected [images, 17]")
    images, base = _images(folder)
    if len(images) != len(table):
        raise UserError(
            f"{folder}: poses_bounds.npy has {len(table)} poses, {base.name}/ has {len(images)} images: they must agree"
        )
    frames = []
    for i, (row, path) in enumerate(zip(table, images, strict=True)):
        m = row[:15].reshape(3, 5).astype(np.float64)
        where = f"poses_bounds.npy, row {i} ({path.name})"
        if not np.isfinite(row).all():
            raise UserError(f"{where}: holds NaN or infinity: repair or remove this row")
        c2w = np.stack([m[:, 1], -m[:, 0], m[:, 2], m[:, 3]], axis=1)
        height, width, focal = m[:, 4]
        frames.append(
            Frame(path.name, path, c2w, Lens(fx=focal, fy=focal, width=round(width), height=round(height)), where)
        )
    notes = [f"LLFF poses of {len(frames)} images from {base.name}/"]
    return ParsedScene("llff", folder, frames, notes, depth_bounds=table[:, 15:17].astype(np.float64))


def _images(folder: Path) -> tuple[list[Path], Path]:
    for base in [folder / "images", *reduced_folders(folder)]:
        found = sorted(p for p in base.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if found:
            return found, base
    raise UserError(f"{folder}: poses_bounds.npy is there, but no images in images/ or images_N/")
