"""TSDF fusion: depth maps rendered from the model, fused into one truncated signed distance (Curless and Levoy, "A
Volumetric Method for Building Complex Models from Range Images", 1996), asked for where marching cubes needs it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf import kernels
from nerf.geometry.cameras import PERSPECTIVE, Cameras
from nerf.io.progress import progress
from nerf.kernels import DepthView
from nerf.meshing.consistency import unproject
from nerf.meshing.fair import DENOISE_ROUNDS
from nerf.meshing.marching import ASK, INSIDE, OUTSIDE, SKIP, Grid
from nerf.meshing.warp import Warp

if TYPE_CHECKING:
    from nerf.rendering.model import Model

MAX_VIEWS, MAX_SIDE = 64, 400  # depth maps, and pixels along their longer side
FRONT_TRUNCATION_STEPS = 4.0  # truncation before the surface, in steps of the grid
# Behind it, where views that see the surface add to what is solid: _BACK_TRUNCATION in scene length, so that coarse
# grids keep their thin parts, but from so many to so many steps of the grid.
BACK_TRUNCATION_STEPS, _BACK_TRUNCATION = (8.0, 16.0), 1 / 25
MIN_WEIGHT = 2.0  # sum of weights below which a point is unseen: one view may look through a hole in the others' solid
# A pixel's weight is 1 / (1 + (spread / HALF_WEIGHT_SPREAD_STEPS)^2), with the spread of the weights along its ray in
# steps of the march. From MAX_SPREAD_STEPS on it says nothing: specular highlights make fields hollow behind a thin
# skin, and a depth within would hollow out the mesh. (1 instead of 1.25 fills gaps of briefly trained fields.)
HALF_WEIGHT_SPREAD_STEPS, MAX_SPREAD_STEPS = 1.25, 8.0
# The median-transmittance depth lies a little behind the surface: by so many steps of the march and this part of its
# spread (measured on four objects whose surface is known: 0.4 to 1.0 steps, of which 0.0 to 0.6 remain).
MEDIAN_DEPTH_BIAS = (0.3, 0.5)
# What fewer directions than these show, radians, is placed by its colours alone: its distance is anything.
MIN_PARALLAX = math.radians(1.5)
MIN_COSINE = 0.1  # between a surface's normal and the direction from which it is seen: 84 degrees
MANY_VIEWS = 8  # from which on a surface must be seen by several, and from places apart
FEWEST_VIEWS = 1.5  # that is two: a view that sees a surface a little before counts a little less
_CELL_STEPS = 4  # steps of the grid: what is known of points is known by such cells


class FusedSurface:
    """Positive inside. What lies behind everything that is seen counts as inside, so that nothing is hollow; what is in
    no picture as outside. The grid's coordinates are those of a warp, and truncation grows as its cells do. skip:
    whether what lies away from all that is seen is left out, so that the surface ends there."""

    method, level, outside = "tsdf", None, -1.0
    smooth, denoise = 6, DENOISE_ROUNDS  # rounds by default

    def __init__(self, views: list[DepthView], grid: Grid, warp: Warp | None = None, skip: bool = False) -> None:
        self.grid, self.views, self.warp, self.skip = grid, views, warp or Warp(), skip
        self.min_weight = min(MIN_WEIGHT, sum(map(_mean_weight, self.views)) / 4)  # few photos, or little trained
        self._codes = self._classify()

    def values(self, points: Tensor) -> Tensor:
        """[n] in [-1,1] at grid points or between them [n,3]: minus the distance in truncation lengths."""
        points = self.warp.to_scene(points)
        step, (low, high) = self.grid.step, BACK_TRUNCATION_STEPS
        back = min(max(_BACK_TRUNCATION, low * step), high * step)
        fused = kernels.fuse_depths(points, self.views, FRONT_TRUNCATION_STEPS * step, back, self.warp.scales(points))
        unseen = torch.where(fused.weights < 0, -1.0, 1.0)
        return torch.where(fused.weights < self.min_weight, unseen, -fused.distances)

    def seen(self, points: Tensor, normals: Tensor) -> Tensor:
        """Which scene points [n,3] of the surface, with normals [n,3], two views that stand apart have seen as surface,
        or one of fewer than MANY_VIEWS: bool [n]."""
        tolerance, scales = FRONT_TRUNCATION_STEPS * self.grid.step, self.warp.scales(points)
        if len(self.views) < MANY_VIEWS:
            return find_supported(points, self.views, tolerance, 0.5, scales, normals)
        return find_supported(points, self.views, tolerance, FEWEST_VIEWS, scales, normals, MIN_PARALLAX)

    def known(self, *ranges: slice) -> NDArray[np.uint8]:
        """Of the grid points in z, y, x ranges: away from all surfaces, on which side they are."""
        cells = [np.arange(r.start, r.stop) // _CELL_STEPS for r in ranges]
        return self._codes[np.ix_(*cells)]

    def explain_empty(self) -> str:
        return "the photos' cameras see nothing solid there; train longer, or choose another --box"

    def _classify(self) -> NDArray[np.uint8]:
        """A code for each cell: ASK within a cell of a seen surface or of a change between inside and outside."""
        shape = [(n + _CELL_STEPS - 1) // _CELL_STEPS for n in reversed(self.grid.shape)]  # z, y, x
        size, origin = self.grid.step * _CELL_STEPS, torch.tensor(self.grid.origin)
        z, y, x = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
        middles = (torch.stack([x, y, z], dim=-1).reshape(-1, 3) + 0.5) * size + origin
        inside = (self.values(middles.float()) > 0).reshape(shape)
        surface = torch.zeros(shape, dtype=torch.bool)
        limit = torch.tensor(list(reversed(shape)))
        for view in self.views:
            cell = torch.div(self.warp.to_grid(unproject_depths(view)) - origin, size, rounding_mode="floor").long()
            cell = cell[((cell >= 0) & (cell < limit)).all(dim=1)]
            surface[cell[:, 2], cell[:, 1], cell[:, 0]] = True
        as_floats = torch.stack([surface, inside, ~inside]).float()[:, None]
        near_surface, near_inside, near_outside = torch.nn.functional.max_pool3d(as_floats, 3, 1, 1)[:, 0] > 0
        ask = near_surface | (near_inside & near_outside)
        codes = torch.where(ask, ASK, torch.where(inside, INSIDE, OUTSIDE))
        if self.skip:  # so far on that smoothing up to what is removed as unseen has all its neighbours
            near = torch.nn.functional.max_pool3d(surface.float()[None, None], 5, 1, 2)[0, 0] > 0
            codes = torch.where(near, codes, SKIP)
        return codes.to(torch.uint8).numpy()


def depth_views(model: Model, most: int, longest: int, show_progress: bool = False) -> list[DepthView]:
    """Maps of the median depth from the cameras of `view_cameras`."""
    _, cameras = view_cameras(model, most, longest)
    views = []
    for i in progress(range(len(cameras)), "depth maps", show_progress):
        h, w = int(cameras.heights[i]), int(cameras.widths[i])
        rays_o, rays_d = cameras.image_rays(i, model.scene_from_world)
        t, spread = model.median_depths(rays_o, rays_d)
        axes = model.scene_from_world.rotation @ cameras.opencv_axes[i]
        steps = (t * model.marching.cone_angle).clamp_min(model.marching.step_size)
        surface = t - MEDIAN_DEPTH_BIAS[0] * steps - MEDIAN_DEPTH_BIAS[1] * spread
        along_z = torch.where(t > 0, surface * (rays_d @ axes[:, 2].float()), torch.inf)
        along_z[(t > 0) & (spread > MAX_SPREAD_STEPS * steps)] = torch.nan
        weights = torch.where(t > 0, 1 / (1 + (spread / (HALF_WEIGHT_SPREAD_STEPS * steps)).square()), 1.0)
        origin = model.scene_from_world.apply(cameras.centres[i])
        pose = torch.cat([axes.T, -(axes.T @ origin)[:, None]], dim=1)
        fx, fy, cx, cy = (float(x[i]) for x in (cameras.fx, cameras.fy, cameras.cx, cameras.cy))
        views.append(DepthView(pose, (fx, fy, cx, cy), along_z.reshape(h, w), weights.reshape(h, w)))
    return views


def view_cameras(model: Model, most: int, longest: int) -> tuple[Tensor, Cameras]:
    """Pinholes of `most` of the training cameras, those far apart, at most `longest` pixels wide, six of each panorama;
    and which training camera each is of: int64 [n]."""
    share = 6 if bool(model.cameras.spherical.any()) else 1
    chosen = farthest_point_sample(model.cameras.centres, max(1, most // share))
    cameras = _small_pinholes(model.cameras.subset(chosen), longest)
    return chosen.repeat_interleave(torch.where(model.cameras.spherical[chosen], 6, 1)), cameras


def _mean_weight(view: DepthView) -> float:
    """Of the pixels that see something, 0 to 1."""
    sees = view.depths.isfinite()
    return float(view.weights[sees].sum()) / max(1, int(sees.sum()))


def unproject_depths(view: DepthView) -> Tensor:
    """Scene points [n,3] float32 of the pixels that see something."""
    row, col = view.depths.isfinite().nonzero().unbind(dim=1)
    return unproject(view, row + 0.5, col + 0.5, view.depths[row, col]).float()


def find_supported(
    points: Tensor,
    views: list[DepthView],
    tolerance: float,
    fewest: float,
    scales: Tensor | None = None,
    normals: Tensor | None = None,
    parallax: float = 0.0,
) -> Tensor:
    """Where `fewest` views see a surface within the tolerance (scene length, times scales [n]) of points [n,3], from
    directions that differ by the parallax (radians) and not from behind or aslant of their normals [n,3]: bool [n]."""
    if normals is None and not parallax:
        return kernels.fuse_depths(points, views, tolerance, tolerance, scales).supports >= fewest
    supports = torch.zeros(len(points))
    low, high = torch.full((len(points), 3), 2.0), torch.full((len(points), 3), -2.0)  # of the directions to cameras
    for view in views:
        support = kernels.fuse_depths(points, [view], tolerance, tolerance, scales).supports
        sees = (support > 0).nonzero()[:, 0]
        origin = -(view.camera_from_scene[:, :3].T @ view.camera_from_scene[:, 3]).float()
        towards = torch.nn.functional.normalize(origin - points[sees], dim=1)
        if normals is not None:
            facing = (towards * normals[sees]).sum(dim=1) > MIN_COSINE
            sees, towards = sees[facing], towards[facing]
        supports[sees] += support[sees]
        low[sees] = torch.minimum(low[sees], towards)
        high[sees] = torch.maximum(high[sees], towards)
    return (supports >= fewest) & ((high - low).norm(dim=1) >= parallax)


def farthest_point_sample(points: Tensor, most: int) -> Tensor:
    """Indices of `most` of the points [m,3] that lie far apart: the first, then always the one farthest from those."""
    if len(points) <= most:
        return torch.arange(len(points))
    chosen, distance = [0], (points - points[0]).norm(dim=1)
    while len(chosen) < most:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).norm(dim=1))
    return torch.tensor(sorted(chosen))


def _small_pinholes(cameras: Cameras, longest: int) -> Cameras:
    """The same views without distortion and with at most `longest` pixels on a side; six of each panorama, a cube's."""
    views = [_faces(cameras.subset([i])) for i in range(len(cameras))] if bool(cameras.spherical.any()) else [cameras]
    cameras = Cameras(**{k: torch.cat([view.tensors()[k] for view in views]) for k in cameras.tensors()})
    scale = (longest / torch.maximum(cameras.widths, cameras.heights)).clamp_max(1)
    cameras = cameras.resized(*((n * scale).round().clamp_min(1).long() for n in (cameras.widths, cameras.heights)))
    cameras.models = torch.full_like(cameras.models, PERSPECTIVE)
    cameras.distortion = torch.zeros_like(cameras.distortion)
    return cameras


def _faces(camera: Cameras) -> Cameras:
    """The camera itself, or six perspective ones of 90 degrees in the place of a panorama, as fine as it in the
    middle."""
    if not bool(camera.spherical[0]):
        return camera
    right, up, back = torch.eye(3, dtype=torch.float64).unbind(1)
    turns = [(right, up, back), (back, up, -right), (-right, up, -back), (-back, up, right), (right, back, -up)]
    turns.append((right, -back, up))
    side = max(1, round(2 * float(camera.fx[0])))
    turned = camera.c2w[:, :, :3] @ torch.stack([torch.stack(turn, dim=1) for turn in turns])
    poses = torch.cat([turned, camera.c2w[:, :, 3:].expand(6, -1, -1)], dim=2)
    faces = Cameras.perspective(poses, side / 2, side, side)
    faces.distortion = camera.distortion.expand(6, -1)
    return faces
