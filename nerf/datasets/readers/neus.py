"""Reader of NeuS / IDR captures: cameras_sphere.npz (or cameras.npz), image/ and mask/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nerf.datasets.named import first_with_pictures
from nerf.datasets.parsed import Frame, Lens, ParsedScene
from nerf.datasets.readers import reader
from nerf.errors import UserError, brief
from nerf.geometry.cameras import OPENGL_FROM_OPENCV
from nerf.geometry.space import Similarity

FILES = ("cameras_sphere.npz", "cameras.npz", "cameras_large.npz")


@reader("neus", tells=FILES, help=f"{' or '.join(FILES)} (NeuS / IDR)")
def read_neus(file: Path) -> ParsedScene:
    """world_mat_i = K [R|t] (world to OpenCV pixels) and scale_mat_i (unit ball to world); masks become alpha."""
    folder = file.parent
    try:
        with np.load(file, allow_pickle=False) as f:
            names = [k for k in f.files if k.startswith(("world_mat_", "scale_mat_"))]
            data = {k: np.asarray(f[k], dtype=np.float64) for k in names}
    except Exception as e:
        raise UserError(
            f"{file}: cannot be read as an NPZ archive ({brief(e)}): the file is damaged, write it again"
        ) from e
    numbers = sorted(int(k[10:]) for k in data if k.startswith("world_mat_") and k[10:].isdigit())
    if not numbers:
        raise UserError(f"{file}: the key 'world_mat_0' is missing")
    places = ("image", "images", "rgb"), ("mask", "masks")
    found = [first_with_pictures(folder / name for name in names) for names in places]
    images, masks = ([] if f is None else f[1] for f in found)
    frames = []
    for rank, number in enumerate(numbers):
        where = f"{file.name}, world_mat_{number}"
        k, c2w = decompose(data[f"world_mat_{number}"], where)
        path = _pick(images, rank, number, len(numbers)) or folder / "image" / f"{number:03d}.png"
        lens = Lens(fx=k[0, 0], fy=k[1, 1], cx=k[0, 2], cy=k[1, 2])
        frames.append(Frame(path.name, path, c2w, lens, where, matte=_pick(masks, rank, number, len(numbers))))
    notes = [f"NeuS / IDR cameras from {file.name}"]
    if masks:
        notes.append("masks taken as alpha")
    parsed = ParsedScene("neus", folder, frames, notes)
    scale = data.get(f"scale_mat_{numbers[0]}")
    if scale is not None and np.isfinite(scale).all() and scale.shape == (4, 4) and scale[0, 0] > 0:
        parsed.region = Similarity.around(torch.from_numpy(scale[:3, 3].copy()), float(scale[0, 0]))
        notes.append("scale_mat says where the object is")
    return parsed


def decompose(projection: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(K [3,3] with K[2,2] = 1, OpenGL c2w [4,4]) of a projection matrix K [R|t] (up to a factor), by RQ."""
    p = projection[:3]
    if p.shape != (3, 4) or not np.isfinite(p).all():
        raise UserError(f"{where}: holds NaN, infinity or the wrong shape {projection.shape}, expected 4x4")
    det = np.linalg.det(p[:, :3])
    if abs(det) <= 1e-12 * np.abs(p[:, :3]).max() ** 3:
        raise UserError(f"{where}: the matrix is singular: repair or remove this camera")
    p = p * np.sign(det)  # a projection matrix has no sign of its own; a rotation has
    flip = np.eye(3)[::-1]
    q, r = np.linalg.qr((flip @ p[:, :3]).T)  # RQ from QR of the rows in reverse order
    k, rotation = flip @ r.T @ flip, flip @ q.T
    signs = np.diag(np.sign(np.diag(k)))
    k, rotation = k @ signs, signs @ rotation
    translation = np.linalg.solve(k, p[:, 3])
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = rotation.T, -rotation.T @ translation
    return k / k[2, 2], c2w @ OPENGL_FROM_OPENCV


def _pick(files: list[Path], rank: int, number: int, count: int) -> Path | None:
    """The file of camera `number`: by order where the counts agree, else by the number that is its name."""
    if len(files) == count:
        return files[rank]
    return next((p for p in files if p.stem.isdigit() and int(p.stem) == number), None)
