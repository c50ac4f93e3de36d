"""Keypoints: pixels whose depth is known because they show a sparse point of the poses' reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.datasets.parsed import Frame
from nerf.geometry.cameras import Cameras

FARTHEST = 0.002  # of the picture's longer side: a point that projects farther from its pixel was matched wrongly


@dataclass
class Keypoints:
    """k pixels: image_ids, rows, cols [k] int64, and the z-depth [k] float32 of what they show, world units (of
    panoramas the distance)."""

    image_ids: Tensor
    rows: Tensor
    cols: Tensor
    z_depths: Tensor

    def __len__(self) -> int:
        return len(self.image_ids)

    def select(self, chosen: Tensor) -> Keypoints:
        """Those of a mask or of indices."""
        return Keypoints(*(values[chosen] for values in vars(self).values()))

    def to(self, device: torch.device) -> Keypoints:
        return Keypoints(*(values.to(device) for values in vars(self).values()))


def of_model(model: Any) -> dict[str, np.ndarray]:
    """{image name: [k,5]} of a pycolmap.Reconstruction: place as shares of width and height, and world point."""
    points = {key: np.asarray(p.xyz) for key, p in model.points3D.items()}
    found = {}
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        size = np.array([camera.width, camera.height], dtype=np.float64)
        rows = [
            np.concatenate([np.asarray(p.xy) / size, points[p.point3D_id]])
            for p in image.points2D
            if p.has_point3D() and p.point3D_id in points
        ]
        found[str(image.name)] = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return found


def attach(frames: list[Frame], found: dict[str, np.ndarray], world_from_model: np.ndarray | None = None) -> int:
    """Give frames the keypoints of a model whose images have the same file names; returns how many frames got some.
    world_from_model [3,4]: where the frames' world is not the model's."""
    by_file = {Path(name).name: rows for name, rows in found.items()}
    if len(by_file) < len(found):  # folders tell files of one name apart; the frames' folders are not the model's
        by_file = {}
    n = 0
    for frame in frames:
        rows = found.get(frame.name, by_file.get(Path(frame.name).name))
        if rows is None or len(rows) == 0:
            continue
        if world_from_model is not None:
            moved = rows[:, 2:] @ world_from_model[:, :3].T + world_from_model[:, 3]
            rows = np.concatenate([rows[:, :2], moved], axis=1)
        frame.keypoints = rows
        n += 1
    return n


def gather(frames: list[Frame], photo_cameras: Cameras, cameras: Cameras, notes: list[str]) -> Keypoints | None:
    """The frames' keypoints as pixels of the images (seen by `cameras`, their files by `photo_cameras`), without those
    whose point projects elsewhere; None: there are none."""
    parts, n_found = [], 0
    for i, frame in enumerate(frames):
        if frame.keypoints is None:
            continue
        n_found += len(frame.keypoints)
        full, used = photo_cameras.subset([i]), cameras.subset([i])
        size = torch.tensor([int(full.widths[0]), int(full.heights[0])], dtype=torch.float64)
        seen = torch.from_numpy(frame.keypoints[:, :2]) * size
        points = torch.from_numpy(frame.keypoints[:, 2:])
        uv, seen_at = full.project(points)
        z = seen_at if bool(full.spherical[0]) else ((points - full.centres[0]) @ full.forward[0])[None]
        error = (uv[0] - seen).norm(dim=1)
        place = seen * torch.cat([used.fx / full.fx, used.fy / full.fy])
        cols, rows = place.floor().long().unbind(1)
        good = (seen_at[0] > 0) & (z[0] > 0) & (error < max(2.0, FARTHEST * float(size.max())))
        good &= (rows >= 0) & (cols >= 0) & (rows < int(used.heights[0])) & (cols < int(used.widths[0]))
        ids = torch.full((int(good.sum()),), i)
        parts.append(Keypoints(ids, rows[good], cols[good], z[0][good].float()))
    n = sum(len(p) for p in parts)
    if n_found == 0:
        return None
    if n < 0.5 * n_found:
        notes.append(
            f"depths of sparse points are not used: {n_found - n} of {n_found} project elsewhere than where the photos "
            "show them, so the model beside the poses is in another frame, or of other images"
        )
        return None
    notes.append(f"depths of sparse points: {n} pixels of {len(parts)} images show one")
    return Keypoints(*map(torch.cat, zip(*(vars(part).values() for part in parts), strict=True)))
