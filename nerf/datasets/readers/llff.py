"""Reader of LLFF captures: poses_bounds.npy and a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerf.datasets.named import first_with_pictures, reduced_folders
from nerf.datasets.parsed import Frame, Lens, ParsedScene
from nerf.datasets.readers import reader
from nerf.errors import UserError
from nerf.io.arrays import read_npy


@reader("llff", tells="poses_bounds.npy", help="poses_bounds.npy (LLFF)")
def read_llff(file: Path) -> ParsedScene:
    """poses_bounds.npy [n,17]: of each image a 3x5 matrix (the camera's axes down, right and back, its position, and
    height, width, focal in pixels) and the nearest and farthest depth."""
    folder, table = file.parent, read_npy(file)
    if table.ndim != 2 or table.shape[1] != 17 or table.dtype.kind not in "iuf":
        raise UserError(f"{file}: holds {table.dtype} of shape {table.shape}, expected numbers [images, 17]")
    found = first_with_pictures([folder / "images", *reduced_folders(folder)])
    if found is None:
        raise UserError(f"{folder}: poses_bounds.npy is there, but no images in images/ or images_N/")
    base, images = found
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
        lens = Lens(fx=focal, fy=focal, width=round(width), height=round(height))
        frames.append(Frame(path.name, path, c2w, lens, where))
    notes = [f"LLFF poses of {len(frames)} images from {base.name}/"]
    return ParsedScene("llff", folder, frames, notes, depth_bounds=table[:, 15:17].astype(np.float64))
