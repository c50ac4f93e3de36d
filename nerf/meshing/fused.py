"""TSDF fusion: depth maps rendered from the model, fused into one truncated signed distance (Curless and Levoy, "A
Volumetric Method for Building Complex Models from Range Images", 1996), asked for where marching cubes needs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf import kernels
from nerf.geometry.cameras import PERSPECTIVE, Cameras
from nerf.io.progress import progress
from nerf.kernels import DepthView
from nerf.meshing.consistency import project, unproject
from nerf.meshing.fair import DENOISE_ROUNDS
from nerf.meshing.marching import ASK, INSIDE, OUTSIDE, SKIP, Grid, marching_cubes
from nerf.meshing.warp import Warp

if TYPE_CHECKING:
    from nerf.rendering.model import Model

MAX_VIEWS, MAX_SIDE = 64, 400  # depth maps, and pixels along their longer side
MAX_OTHERS, OTHERS_SIDE = 64, 400  # views that are only asked where they would see holes
FRONT_TRUNCATION_STEPS = 4.0  # truncation before the surface, in steps of the grid
# Behind it, where views that see the surface add to what is solid: _BACK_TRUNCATION in scene length, so that coarse
# grids keep their thin parts, but from so many to so many steps of the grid.
BACK_TRUNCATION_STEPS, _BACK_TRUNCATION = (8.0, 16.0), 1 / 25
MIN_WEIGHT = 2.0  # sum of weights below which a point is unseen: one view may look through a hole in the others' solid
# The same in open scenes, where most of the space around the cameras is seen by few, and what lies hidden there is left
# out: any pixel that measures something carves.
LEAST_SAY = 0.02
# A pixel's weight is 1 / (1 + (spread / HALF_WEIGHT_SPREAD_STEPS)^2), with the spread of the weights along its ray in
# steps of the march. From MAX_SPREAD_STEPS on it says nothing: specular highlights make fields hollow behind a thin
# skin, and a depth within would hollow out the mesh. (1 instead of 1.25 fills gaps of briefly trained fields.)
HALF_WEIGHT_SPREAD_STEPS, MAX_SPREAD_STEPS = 1.25, 8.0
# The median-transmittance depth lies a little behind the surface: by so many steps of the march and this part of its
# spread (measured on four objects whose surface is known: 0.4 to 1.0 steps, of which 0.0 to 0.6 remain).
MEDIAN_DEPTH_BIAS = (0.3, 0.5)
# What fewer directions than these show, radians, is placed by its colours alone: its distance is anything.
MIN_PARALLAX = math.radians(1.5)
MANY_VIEWS = 8  # from which on a surface must be seen by several, and from places apart
FEWEST_VIEWS = 1.5  # that is two: a view that sees a surface a little before counts a little less
# Steps of the grid by which a point may lie behind the faces that a view sees; share of its depth by which it may miss
# what the view measures. (Of a room 3 to 20 % keep 93.4 to 90.8 % of the area within 5 cm; of a real scene 93.5 to 95 %
# of what views show.)
_SEEN_STEPS, _ALIKE = 2.0, 0.1
_ABOUT = 0.25  # the same of what closes a hole
_ASLANT = 0.02  # least cosine between its normal and the view
_CELL_STEPS = 4  # steps of the grid: what is known of points is known by such cells


class FusedSurface:
    """Positive inside. What lies behind everything that is seen counts as inside, so that nothing is hollow; what is in
    no picture as outside. The grid's coordinates are those of a warp, and truncation grows as its cells do. skip:
    whether what lies away from all that is seen is left out, so that the surface ends there. is_open: whether the
    photos show more than an object, see LEAST_SAY and `seen`; others: more of their views then, whose depths are not
    known (all NaN)."""

    method, level, outside = "tsdf", None, -1.0
    smooth, denoise = 6, DENOISE_ROUNDS  # rounds by default

    def __init__(
        self,
        views: list[DepthView],
        grid: Grid,
        warp: Warp | None = None,
        skip: bool = False,
        is_open: bool = False,
        others: Sequence[DepthView] = (),
    ) -> None:
        self.grid, self.views, self.warp, self.skip, self.is_open = grid, views, warp or Warp(), skip, is_open
        self.others = others
        least = LEAST_SAY if is_open else MIN_WEIGHT
        self.min_weight = min(least, sum(map(_mean_weight, self.views)) / 4)  # few photos, or little trained
        self._codes = self._classify()

    def values(self, points: Tensor) -> Tensor:
        """[n] in [-1,1] at grid points or between them [n,3]: minus the distance in truncation lengths."""
        points = self.warp.to_scene(points)
        step, (low, high) = self.grid.step, BACK_TRUNCATION_STEPS
        back = min(max(_BACK_TRUNCATION, low * step), high * step)
        fused = kernels.fuse_depths(points, self.views, FRONT_TRUNCATION_STEPS * step, back, self.warp.scales(points))
        unseen = torch.where(fused.weights < 0, -1.0, 1.0)
        return torch.where(fused.weights < self.min_weight, unseen, -fused.distances)

    def seen(self, points: Tensor, faces: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
        """Which scene points [n,3] of the surface with faces [f,3] and normals [n,3] views show: bool [n]; and the mean
        direction [n,3] to the views that do, zero where none does.

        That is what two views that stand apart have before them, or one of fewer than MANY_VIEWS: what they measure
        there lies about where the surface does, and nothing is in front. Where that leaves a view of an open scene with
        nothing, what one view shows is kept too: a wall roughly in its place, and no hole.
        """
        tolerance, scales = _SEEN_STEPS * self.grid.step, self.warp.scales(points)
        votes, nearest = Sightings(len(points)), []
        for view in self.views:
            uv, z, face = draw_surface(view, points, faces)
            height, width = view.depths.shape
            inside = ((z > 0) & (uv >= 0).all(dim=1) & (uv[:, 0] < width) & (uv[:, 1] < height)).nonzero()[:, 0]
            column, row = uv[inside].long().unbind(dim=1)
            reach = tolerance if scales is None else tolerance * scales[inside]
            visible = z[inside] < nearest_depths(z, face, faces)[row * width + column] + reach
            visible &= (z[inside] / view.depths[row, column] - 1).abs() < _ALIKE
            visible &= (normals[inside] * (view_origin(view) - points[inside])).sum(dim=1) > 0
            votes.add(view, points, inside[visible], torch.ones(1))
            nearest.append(face.int())
        enough = votes.enough(1, 0.0) if len(self.views) < MANY_VIEWS else votes.enough(2, MIN_PARALLAX)
        if self.is_open and bool(enough.any()):
            enough[self._closing(points, faces, normals, enough[faces.long()].any(dim=1), nearest)] = True
            if self.others:
                enough[self._closing(points, faces, normals, enough[faces.long()].any(dim=1))] = True
        return enough, torch.nn.functional.normalize(votes.towards, dim=1)

    def _closing(
        self, points: Tensor, faces: Tensor, normals: Tensor, kept: Tensor, nearest: list[Tensor] | None = None
    ) -> Tensor:
        """Corners [m] of the faces that views see (nearest [h*w] of each), not too aslant and about where they measure
        something, though the kept ones [f] leave them nothing there; nearest None: of those that the others see, and
        nothing measures."""
        used, corners = faces[kept].unique(return_inverse=True)
        some, corners = points[used], corners.to(faces.dtype)
        closing = [used[:0].long()]
        for k, view in enumerate(self.views if nearest is not None else self.others):
            left = draw_surface(view, some, corners)[2] < 0
            if not bool(left.any()):
                continue
            face = draw_surface(view, points, faces)[2] if nearest is None else nearest[k]
            left &= face >= 0
            corner = faces[face[left].long()].long()
            middle = points[corner].mean(dim=1)
            towards = torch.nn.functional.normalize(view_origin(view) - middle, dim=1)
            faced = (torch.nn.functional.normalize(normals[corner].mean(dim=1), dim=1) * towards).sum(dim=1)
            stays = faced > _ASLANT
            if nearest is not None:
                stays &= (project(view, middle)[1] / view.depths.flatten()[left] - 1).abs() < _ABOUT
            closing.append(corner[stays].flatten())
        return torch.cat(closing).unique()

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
        if self.skip:
            surface |= self._looked_at(inside, size)
        as_floats = torch.stack([surface, inside, ~inside]).float()[:, None]
        near_surface, near_inside, near_outside = torch.nn.functional.max_pool3d(as_floats, 3, 1, 1)[:, 0] > 0
        ask = near_surface | (near_inside & near_outside)
        codes = torch.where(ask, ASK, torch.where(inside, INSIDE, OUTSIDE))
        if self.skip:  # so far on that smoothing up to what is removed as unseen has all its neighbours
            near = torch.nn.functional.max_pool3d(surface.float()[None, None], 5, 1, 2)[0, 0] > 0
            codes = torch.where(near, codes, SKIP)
        return codes.to(torch.uint8).numpy()

    def _looked_at(self, inside: Tensor, size: float) -> Tensor:
        """Which cells [z,y,x] of what is inside views see from outside."""
        x, y, z = (o + size / 2 for o in self.grid.origin)
        grid = Grid((x, y, z), size, (inside.shape[2], inside.shape[1], inside.shape[0]))
        codes = torch.where(inside, INSIDE, OUTSIDE).to(torch.uint8).numpy()
        surface = marching_cubes(lambda points: points[:, 0], grid, lambda *ranges: codes[ranges])
        u = surface.points(surface.fractions())
        points, faces = self.warp.to_scene(u), torch.from_numpy(surface.faces)
        looked = torch.zeros_like(inside)
        for view in self.views:
            _, _, nearest = draw_surface(view, points, faces)
            seen = faces[nearest[nearest >= 0]].reshape(-1).unique().long()
            cell = torch.div(u[seen] - torch.tensor(self.grid.origin), size, rounding_mode="floor").long()
            cell = torch.minimum(cell.clamp_min(0), torch.tensor(grid.shape) - 1)
            looked[cell[:, 2], cell[:, 1], cell[:, 0]] = True
        return looked


def nearest_depths(z: Tensor, nearest: Tensor, faces: Tensor) -> Tensor:
    """z-depths [h*w] of the nearest faces at the pixels, infinite where there is none."""
    return torch.where(nearest < 0, torch.inf, z[faces[nearest.clamp_min(0)].long()].mean(dim=1))


def view_origin(view: DepthView) -> Tensor:
    """Where its camera stands, scene [3] float32."""
    return -(view.camera_from_scene[:, :3].T @ view.camera_from_scene[:, 3]).float()


def draw_surface(view: DepthView, points: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (u, v) [n,2] and z-depths [n] of scene points [n,3], and which of their faces [f,3] is nearest at each
    pixel of a view: int64 [h*w], -1 where none is."""
    uv, z = project(view, points)
    height, width = view.depths.shape
    return uv, z, kernels.nearest_faces(uv, z, faces, width, height).long()


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
        views.append(_depth_view(model, cameras, i, along_z.reshape(h, w), weights.reshape(h, w)))
    return views


def other_views(model: Model, but: int) -> list[DepthView]:
    """Training views beside those that `view_cameras` chooses of so many, without depths: at most as many, small."""
    chosen, _ = view_cameras(model, but, 1)
    left = torch.ones(len(model.cameras), dtype=torch.bool)
    left[chosen] = False
    rest = left.nonzero()[:, 0]
    if not len(rest):
        return []
    some = rest[farthest_point_sample(model.cameras.centres[rest], MAX_OTHERS)]
    cameras = _small_pinholes(model.cameras.subset(some), OTHERS_SIDE)
    sizes = [(int(h), int(w)) for h, w in zip(cameras.heights, cameras.widths, strict=True)]
    nothing = [torch.full(size, torch.nan) for size in sizes]
    return [_depth_view(model, cameras, i, none, none) for i, none in enumerate(nothing)]


def _depth_view(model: Model, cameras: Cameras, i: int, depths: Tensor, weights: Tensor) -> DepthView:
    """z-depths and weights [h,w] as camera i (world frame) measured them."""
    axes = model.scene_from_world.rotation @ cameras.opencv_axes[i]
    origin = model.scene_from_world.apply(cameras.centres[i])
    pose = torch.cat([axes.T, -(axes.T @ origin)[:, None]], dim=1)
    fx, fy, cx, cy = (float(x[i]) for x in (cameras.fx, cameras.fy, cameras.cx, cameras.cy))
    return DepthView(pose, (fx, fy, cx, cy), depths, weights)


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
    parallax: float = 0.0,
) -> Tensor:
    """Where `fewest` views see a surface within the tolerance (scene length, times scales [n]) of points [n,3], from
    directions that differ by the parallax (radians): bool [n]."""
    if not parallax:
        return kernels.fuse_depths(points, views, tolerance, tolerance, scales).supports >= fewest
    votes = Sightings(len(points))
    for view in views:
        support = kernels.fuse_depths(points, [view], tolerance, tolerance, scales).supports
        sees = (support > 0).nonzero()[:, 0]
        votes.add(view, points, sees, support[sees])
    return votes.enough(fewest, parallax)


class Sightings:
    """Of n points: how many views see them, and from directions how different."""

    def __init__(self, n: int) -> None:
        self.supports = torch.zeros(n)
        self.towards = torch.zeros(n, 3)  # sum of the directions to cameras, and their least and largest parts
        self.low, self.high = torch.full((n, 3), 2.0), torch.full((n, 3), -2.0)

    def add(self, view: DepthView, points: Tensor, sees: Tensor, support: Tensor) -> None:
        """A view that sees some of the points [n,3], those of indices [m], with supports [m] or [1]."""
        towards = torch.nn.functional.normalize(view_origin(view) - points[sees], dim=1)
        self.supports[sees] += support
        self.towards[sees] += towards
        self.low[sees] = torch.minimum(self.low[sees], towards)
        self.high[sees] = torch.maximum(self.high[sees], towards)

    def enough(self, fewest: float, parallax: float) -> Tensor:
        """Which are seen by so many, from directions that differ by the parallax (radians): bool [n]."""
        return (self.supports >= fewest) & ((self.high - self.low).norm(dim=1) >= parallax)


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
