"""A point cloud of what the photos show, with normals and colours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.io.files import write_file
from nerf.io.pictures import to_display
from nerf.io.ply import Columns, ply
from nerf.meshing.fused import MAX_VIEWS, MIN_WEIGHT, depth_views, find_supported
from nerf.rendering.rays import RENDER_CHUNK

if TYPE_CHECKING:
    from nerf.rendering.model import Model

_MAX_SIDE = 200  # pixels of the depth maps that points must agree with
_TOLERANCE = 1 / 100  # scene length by which depths may differ


class Cloud(NamedTuple):
    """n points of a surface, all in one frame."""

    points: Tensor  # [n,3] float64
    normals: Tensor  # [n,3] float64, unit, outward
    colors: np.ndarray  # [n,3] uint8 sRGB


def point_cloud(model: Model, n: int, seed: int = 0) -> Cloud:
    """At most n points in the world frame, of pixels of the training views that stop most of their light and on whose
    depth at least two views agree. Raises UserError where nothing is seen. Not differentiable."""
    cameras, random = model.cameras, torch.Generator().manual_seed(seed)
    views = depth_views(model, MAX_VIEWS, _MAX_SIDE)
    fewest = min(MIN_WEIGHT, len(views) / 2)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    found = 0
    for _ in range(64):  # until there are enough, or pixels keep on showing nothing
        ids = torch.randint(len(cameras), (min(RENDER_CHUNK, 2 * n),), generator=random)
        place = torch.rand(2, len(ids), generator=random)
        rows, cols = (place[0] * cameras.heights[ids]).long(), (place[1] * cameras.widths[ids]).long()
        rays_o, rays_d = cameras.rays(ids, rows, cols, model.scene_from_world)
        seen = model.trace(rays_o, rays_d)
        assert seen.normal is not None
        solid = (seen.opacity > 0.9) & (seen.depth > 0)
        points = rays_o[solid] + seen.depth[solid, None] * rays_d[solid]
        alike = find_supported(points, views, _TOLERANCE, fewest)
        kept.append((points[alike], seen.normal[solid][alike], seen.color[solid][alike]))
        found += int(alike.sum())
        if found >= n:
            break
    if not found:
        raise UserError("the training views see no surface, so there are no points; train longer")
    points, normals, colors = (torch.cat(parts)[:n] for parts in zip(*kept, strict=True))
    rgb = to_display(colors.numpy() * model.exposure, model.linear)
    return Cloud(model.scene_from_world.inverse().apply(points.double()), normals.double(), rgb)


def save_cloud(cloud: Cloud, path: Path) -> None:
    """Binary PLY: float64 positions (world coordinates may be large), float32 normals, 8-bit colours."""
    columns = [Columns("double", "x y z", cloud.points.numpy()), Columns("float", "nx ny nz", cloud.normals.numpy())]
    write_file(path, ply([*columns, Columns("uchar", "red green blue", cloud.colors)]))
