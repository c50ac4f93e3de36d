"""Maps of a trained model: an orthophoto and a height map, seen straight down, in a reference system of the earth.

Heights are those of the highest surface of the mesh above each pixel's centre. That mesh is of the field's depths
alone, for planes as they refine those of a room (see stereo.py) would flatten trees. Colours are the field's, seen
along the vertical from just above that surface, so that nothing that floats higher shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nerf import kernels
from nerf.errors import UserError
from nerf.io.geotiff import Grid, MapFrame
from nerf.io.pictures import to_display
from nerf.kernels.raster import weights_in
from nerf.rendering.rays import render_chunk

if TYPE_CHECKING:
    import trimesh

    from nerf.rendering.model import Model

NO_HEIGHT = -9999.0  # where nothing is known, as GDAL's tools write it
USUAL_PIXELS = 50e6  # of a map whose pixel nobody asked for
MOST_PIXELS = 4e9
_BAND = 1 << 21  # pixels drawn at once
_EVERY = 64  # pixels from one exact vertical to the next: over 64 m a straight line is 0.1 mm off
_ABOVE = 4.0  # cells of the mesh, by which colours are looked at from above the surface
_TRIM = 0.01  # of the vertices on each side: what few views see lies far away in large triangles
_MARGIN = 0.1  # of the rest's extent, that is drawn around it where there is anything


@dataclass
class MapRows:
    """Rows of both maps from `first` on."""

    first: int
    heights: np.ndarray  # [rows,w] float32, NO_HEIGHT where nothing is known
    colors: np.ndarray  # [rows,w,4] uint8 sRGB and alpha, which is 0 there


def usual_pixel(model: Model, frame: MapFrame) -> float:
    """Metres that a photo's pixel is wide on what it shows: the median over photos, to two digits."""
    cameras = model.cameras
    ids = torch.arange(len(cameras))[:: max(1, len(cameras) // 64)]
    middle = (cameras.heights[ids] / 2).long(), (cameras.widths[ids] / 2).long()
    depths, _ = model.median_depths(*cameras.rays(ids, *middle, model.scene_from_world))
    seen = depths > 0
    if not bool(seen.any()):
        raise UserError("the middle of no photo shows a surface: train longer, or give --pixel")
    widths = depths[seen] / cameras.fx[ids][seen] / model.scene_from_world.scale * frame.georeference.metres
    size = float(widths.median())
    digits = 1 - math.floor(math.log10(size))
    return round(size, digits)


def map_grid(corners: Tensor, frame: MapFrame, pixel: float, is_asked: bool) -> Grid:
    """The pixels that show vertices [v,3] in coordinates of the map; whole multiples of the pixel's size, which grows
    where nobody asked for one that makes a huge map."""
    plane = corners[:, :2].numpy()
    low, high = np.quantile(plane, _TRIM, axis=0), np.quantile(plane, 1 - _TRIM, axis=0)
    low = np.maximum(plane.min(axis=0), low - _MARGIN * (high - low))
    high = np.minimum(plane.max(axis=0), high + _MARGIN * (high - low))
    if not is_asked:
        pixel = max(pixel, float(f"{math.sqrt(np.prod(high - low) / USUAL_PIXELS):.2g}"))
    first, last = np.floor(low / pixel), np.maximum(np.ceil(high / pixel), np.floor(low / pixel) + 1)
    width, height = (int(v) for v in last - first)
    if width * height > MOST_PIXELS:
        raise UserError(f"--pixel {pixel:g} makes a map of {width} x {height} pixels: choose a larger one")
    return Grid(frame.epsg, pixel, float(first[0] * pixel), float(last[1] * pixel), width, height)


def draw_map(model: Model, mesh: trimesh.Trimesh, frame: MapFrame, grid: Grid, corners: Tensor) -> Iterator[MapRows]:
    """The map a band of rows at a time; mesh: the model's, in the world frame, corners [v,3]: its vertices in the
    map's."""
    uv = torch.stack([corners[:, 0] - grid.west, grid.north - corners[:, 1]], dim=1) / grid.pixel
    low, span = float(corners[:, 2].min()), max(float(corners[:, 2].max() - corners[:, 2].min()), 1e-6)
    nearness = 1 / (corners[:, 2] - low + span)  # its inverse is linear along a triangle, as the z-buffer wants it
    faces = torch.from_numpy(np.array(mesh.faces, np.int64))
    top = uv[:, 1][faces].amin(dim=1), uv[:, 1][faces].amax(dim=1)
    step = _ABOVE * float(mesh.metadata["step"])
    rows = max(1, min(grid.height, _BAND // grid.width))
    for first in range(0, grid.height, rows):
        n = min(rows, grid.height - first)
        near = faces[(top[0] <= first + n) & (top[1] >= first)]
        shift = torch.tensor([0.0, float(first)], dtype=torch.float64)
        face = kernels.nearest_faces(uv - shift, nearness, near, grid.width, n)
        pixel = (face >= 0).nonzero()[:, 0]
        at = torch.stack([pixel % grid.width, pixel // grid.width], dim=1) + 0.5
        heights, colors = _surface(corners, uv - shift, near[face[pixel].long()], at), np.zeros((0, 3), np.uint8)
        if len(pixel):
            colors = _colors(model, *_verticals(frame, grid, first, n, at, heights), step)
        band = MapRows(
            first,
            np.full((n, grid.width), NO_HEIGHT, np.float32),
            np.zeros((n, grid.width, 4), np.uint8),
        )
        band.heights.reshape(-1)[pixel.numpy()] = heights.numpy()
        band.colors.reshape(-1, 4)[pixel.numpy()] = np.concatenate([colors, np.full((len(pixel), 1), 255, np.uint8)], 1)
        yield band


def _surface(corners: Tensor, uv: Tensor, faces: Tensor, at: Tensor) -> Tensor:
    """Heights [p] of faces [p,3] at places [p,2] of the picture."""
    heights = torch.empty(len(faces), dtype=torch.float64)
    for k in range(0, len(faces), 1 << 18):
        some = faces[k : k + (1 << 18)]
        weights = weights_in(uv[some], at[k : k + (1 << 18)].double()).clamp_min(0)
        heights[k : k + (1 << 18)] = (weights * corners[some, 2]).sum(dim=1) / weights.sum(dim=1)
    return heights


def _verticals(frame: MapFrame, grid: Grid, first: int, n: int, at: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
    """World points [p,3] at places [p,2] of a band of the map at their heights [p], and up [p,3] (a metre) there: by
    exact verticals at every so-many-th pixel, and straight lines between."""
    x = torch.linspace(0, grid.width, math.ceil(grid.width / _EVERY) + 1, dtype=torch.float64)
    y = torch.linspace(0, n, math.ceil(n / _EVERY) + 1, dtype=torch.float64)
    level = float(heights.mean())
    nodes = torch.stack([*torch.meshgrid(y, x, indexing="ij")], dim=2).reshape(-1, 2)
    there = torch.stack([grid.west + grid.pixel * nodes[:, 1], grid.north - grid.pixel * (first + nodes[:, 0])], dim=1)
    ends = [torch.cat([there, torch.full((len(there), 1), h, dtype=torch.float64)], 1) for h in (level, level + 1)]
    feet, tops = (frame.to_world(end).reshape(len(y), len(x), 3) for end in ends)
    u, v = at[:, 0] / (x[1] - x[0]), at[:, 1] / (y[1] - y[0])
    i, j = v.long().clamp_max(len(y) - 2), u.long().clamp_max(len(x) - 2)
    v, u = (v - i)[:, None], (u - j)[:, None]

    def between(t: Tensor) -> Tensor:
        upper, lower = (t[i + k, j] * (1 - u) + t[i + k, j + 1] * u for k in (0, 1))
        return upper * (1 - v) + lower * v

    up = between(tops - feet)
    return between(feet) + (heights - level)[:, None] * up, up


@torch.no_grad()
def _colors(model: Model, points: Tensor, up: Tensor, step: float) -> np.ndarray:
    """8-bit sRGB [p,3] of what is seen from above world points [p,3] on a surface."""
    found, near = [], model.marching.near
    chunk = render_chunk(model.device)
    for some, above in zip(points.split(chunk), up.split(chunk), strict=True):
        there = model.scene_from_world.apply(some)
        upwards = torch.nn.functional.normalize(model.scene_from_world.apply_directions(above), dim=1)
        reach = near + step * there.abs().amax(dim=1, keepdim=True).clamp_min(1)  # cells grow with the distance
        rays_o, rays_d = (there + reach * upwards).float(), -upwards.float()
        seen = model.render_rays(rays_o, rays_d)
        thin = seen.opacities < 0.1
        rgb = seen.foregrounds / seen.opacities.clamp_min(0.1)[:, None]
        rgb[thin] = model.color(there.float()[thin], rays_d[thin])
        found.append(to_display(rgb.cpu().numpy() * model.exposure, model.linear))
    return np.concatenate(found)
