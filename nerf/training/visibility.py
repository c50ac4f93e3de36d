"""Cells of the scene that cannot hold anything the photos show: seen by no camera, or outside a silhouette."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from nerf.datasets import Scene
from nerf.geometry.cameras import EQUIRECTANGULAR, PERSPECTIVE, Cameras, picture_border
from nerf.geometry.lenses import distort, sees_ahead_only
from nerf.training.pixel_sampler import valid_pixels

CHUNK = 1 << 17
COARSE = 24  # cells along a side of the grid on which cut-outs are held against each other
CONTRADICTS = 0.25  # of the cells that all others leave: a cut-out that takes away more has failed
_BALLS_AND_VIEWS = 1 << 21  # pairs of a ball and a view that are asked at once
BLOCKS = (16, 8, 4, 2, 1)  # cells along the sides of the blocks that are asked about as a whole, one after the other


def visible_cells(scene: Scene, image_ids: Tensor, slack: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """A test for `OccupancyGrid.restrict`: (centres [n,3] scene, sizes [n]) -> bool [n].

    A cell stays if two cameras see it (three from 20 photos up); what fewer see cannot be placed, and fills with
    pictures of itself. Where photos have silhouettes, it goes if some cameras see nothing in its place: one in each 30
    may, or a single failed cut-out would decide for all. This is the visual hull
    (Laurentini 1994) of cells grown to their bounding spheres, so thin parts stay; `slack`, a scene length, grows them
    further, for cameras that are not quite where they are said to be.

    >>> scene = nerf.load("data/sample", downscale=8)
    >>> possible = visible_cells(scene, scene.splits["train"])
    >>> possible(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), sizes=torch.full((2,), 0.1))
    tensor([ True, False])
    """
    world_from_scene = scene.scene_from_world.inverse()
    ids = image_ids.tolist()
    views = [scene.cameras.subset([i]) for i in ids]
    middle = scene.cameras.centres[image_ids.cpu()].mean(dim=0)
    planes = torch.stack([_frustum(view, middle) for view in views], dim=2).transpose(0, 1).contiguous()
    enough = 3 if len(views) >= 20 else min(2, len(views))

    def possible(centres: Tensor, sizes: Tensor) -> Tensor:
        points = world_from_scene.apply(centres.double())
        radii = (sizes.double() * (0.5 * 3**0.5) + slack) / scene.scene_from_world.scale
        seen = _seen_by(planes, (points - middle).float(), radii.float(), enough)
        if scene.has_silhouettes:
            asked = seen.nonzero()[:, 0]
            seen[asked] = _inside_silhouettes(points[asked], radii[asked])
        return seen

    def _shown(view: int, points: Tensor, radii: Tensor) -> Tensor:
        """Whether more than transparency is in the place of balls [n]; outside a picture may be anything."""
        table, (w, h) = _alpha_sums(scene, ids[view]), (int(views[view].widths[0]), int(views[view].heights[0]))
        found = []
        for part, radius in zip(points.split(CHUNK), radii.split(CHUNK), strict=True):
            box, whole, in_front = _footprint(views[view], part, radius)
            x0, y0 = box[:, 0].floor().clamp(0, w).long(), box[:, 1].floor().clamp(0, h).long()
            x1, y1 = box[:, 2].ceil().clamp(0, w).long(), box[:, 3].ceil().clamp(0, h).long()
            found.append((table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0] > 0) | ~whole | ~in_front)
        return torch.cat(found)

    @functools.cache
    def _trusted() -> list[int]:
        """The views whose cut-outs do not contradict the others', asked on a coarse grid."""
        if len(views) < 20:
            return list(range(len(views)))
        axis = (torch.arange(COARSE, dtype=torch.float64) + 0.5) * 2 / COARSE - 1
        points = world_from_scene.apply(torch.cartesian_prod(axis, axis, axis))
        radii = torch.full((len(points),), 3**0.5 / COARSE / scene.scene_from_world.scale, dtype=torch.float64)
        misses = torch.stack([~_shown(k, points, radii) for k in range(len(views))])
        asked = list(range(len(views)))
        while len(asked) > len(views) * 2 // 3:
            total = misses[asked].sum(dim=0)
            few = total <= 1 + len(views) // 30
            takes = (misses[asked] & few).sum(dim=1)
            worst = int(takes.argmax())
            if int(takes[worst]) <= CONTRADICTS * int(few.sum()):
                break
            asked.pop(worst)
        return asked

    def _inside_silhouettes(points: Tensor, radii: Tensor) -> Tensor:
        keep = torch.arange(len(points))
        for k in _trusted():
            keep = keep[_shown(k, points[keep], radii[keep])]
        return torch.zeros(len(points), dtype=torch.bool).index_fill(0, keep, True)

    return possible


def _seen_by(planes: Tensor, near: Tensor, radii: Tensor, enough: int) -> Tensor:
    """Whether `enough` views see each ball [n] about `near`, float32 about the cameras' middle, put to
    the planes [5,4,v] that bound what each view sees (`_frustum`), and to blocks of cells first.

    A ball around a block that too few views see holds no cell that enough of them do, and where enough see it whole,
    they see every cell in it; only the others are asked about in smaller blocks, and at last cell by cell.
    """
    result, left = torch.zeros(len(near), dtype=torch.bool), torch.arange(len(near))
    for side in BLOCKS:
        if len(left) == 0:
            break
        place = near[left]
        block_of = _blocks(place, radii[left], side)
        counts = torch.bincount(block_of)
        centres = torch.zeros(len(counts), 3).index_add_(0, block_of, place) / counts[:, None]
        reach = (place - centres[block_of]).norm(dim=1) + radii[left]
        reach = torch.zeros(len(counts)).scatter_reduce_(0, block_of, reach, "amax")
        some, whole = _count(planes, centres, reach if side == 1 else 1.0001 * reach)
        seen = some >= enough if side == 1 else whole >= enough
        result[left[seen[block_of]]] = True
        left = left[((some >= enough) & ~seen)[block_of]]
    return result


def _count(planes: Tensor, centres: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """How many views see some of each ball [m], and how many the whole; planes [5,4,v]."""
    some, whole = [], []
    rows = max(64, _BALLS_AND_VIEWS // max(1, planes.shape[2]))  # however many views there are
    room = torch.empty(
        2, min(rows, len(centres)), planes.shape[2]
    )  # new tensors each time would tear the heap to pieces
    for c, r in zip(centres.split(rows), reach.split(rows), strict=True):
        inside, other = room[:, : len(c)]
        inside.fill_(torch.inf)
        for plane in planes:
            torch.minimum(inside, torch.addmm(plane[3], c, plane[:3], out=other), out=inside)
        some.append(torch.gt(inside, -r[:, None], out=other).sum(dim=1).long())
        whole.append(torch.gt(inside, r[:, None], out=other).sum(dim=1).long())
    return torch.cat(some), torch.cat(whole)


def _blocks(near: Tensor, radii: Tensor, side: int) -> Tensor:
    """The number [n] of the block that each cell is in: cells of one size, near each other."""
    if side == 1:
        return torch.arange(len(near))
    level = (radii / radii.min()).log2().round().long()
    place = (near / (radii * (2 / 3**0.5) * side)[:, None]).floor().long()
    place -= place.amin(dim=0)
    sides = place.amax(dim=0) + 1
    key = ((level * sides[0] + place[:, 0]) * sides[1] + place[:, 1]) * sides[2] + place[:, 2]
    return torch.unique(key, return_inverse=True)[1]


def _frustum(view: Cameras, middle: Tensor) -> Tensor:
    """[4,5] float32: of each plane (sides, and through the camera) the inward unit normal and its offset, so that
    (x, y, z, 1) about `middle` times it is how far inside a point lies. Lenses count by the slopes at the edge."""
    h, w = int(view.heights[0]), int(view.widths[0])
    rows, cols = picture_border(h, w, 33)
    axes = view.opencv_axes[0]
    at_origin = view.with_poses(view.c2w * torch.tensor([1.0, 1, 1, 0], dtype=torch.float64))
    d = at_origin.rays(torch.zeros(len(rows), dtype=torch.int64), rows, cols)[1].double() @ axes
    planes = torch.zeros(3, 5, dtype=torch.float64)
    planes[2, 4] = 1.0
    if float(d[:, 2].min()) < -0.05 or int(view.models[0]) == EQUIRECTANGULAR:  # no plane bounds what it sees
        return torch.cat([planes * 0, torch.full((1, 5), 1e30, dtype=torch.float64)]).float()
    if float(d[:, 2].min()) > 0.05:  # wider lenses see half of everything
        slopes = d[:, :2] / d[:, 2:]
        for k in (0, 1):
            low, high = float(slopes[:, k].min()), float(slopes[:, k].max())
            planes[k, 2 * k], planes[2, 2 * k] = 1.0, -low
            planes[k, 2 * k + 1], planes[2, 2 * k + 1] = -1.0, high
    else:
        planes[2] = 1.0
    planes = axes @ (planes / planes.norm(dim=0))
    offsets = -(view.centres[0] - middle) @ planes
    return torch.cat([planes, offsets[None]]).float()


def _footprint(view: Cameras, points: Tensor, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel box [n,4] (x0, y0, x1, y1) around the images of balls, whether it lies within the picture, and whether some
    of the ball is where the lens sees.

    A ball at (x, z) with radius r < z spans the slopes (x z -+ r sqrt(x^2 + z^2 - r^2)) / (z^2 - r^2) in that plane:
    its tangents through the camera. A lens bends them; there the box of an ideal camera is moved and grown by half.
    Lenses that see more than half of everything: see `_reach`.
    """
    uv, local = view.project(points)[0][0], (points - view.centres[0]) @ view.opencv_axes[0]
    z, r = local[:, 2], radii[:, None]
    focal, centre = torch.cat([view.fx, view.fy]), torch.cat([view.cx, view.cy])
    w, h = int(view.widths[0]), int(view.heights[0])
    distance = local.norm(dim=1)
    half_angle = torch.asin((radii / distance.clamp_min(1e-300)).clamp_max(1))
    angle, widest = torch.acos((z / distance.clamp_min(1e-300)).clamp(-1, 1)), view.widest_angles[0]
    there = (angle - half_angle < widest) | (distance <= radii)
    plain = int(view.models[0]) == PERSPECTIVE and not bool(view.distortion.any())
    if not bool(sees_ahead_only(view.models)[0]):
        reach = _reach(view, local, angle, half_angle)
        low, high, ahead = uv - reach, uv + reach, distance > radii
    else:
        z1 = torch.maximum(z, radii * 1.000001)[:, None]  # a ball around the camera: all of the picture
        across = local[:, :2]
        half = r * (across.square() + z1.square() - r.square()).clamp_min(0).sqrt() / (z1.square() - r.square())
        middle = across * z1 / (z1.square() - r.square())
        if plain:
            low, high = centre + focal * (middle - half), centre + focal * (middle + half)
        else:
            reach = 1.5 * focal * (half + (middle - across / z1).abs())
            low, high = uv - reach, uv + reach
        there, ahead = there & (z > -radii), z > radii
    box = torch.cat([low, high], dim=1)
    if not plain:  # past the fold of a lens, uv means nothing
        everything = torch.tensor([-1.0, -1.0, w + 1.0, h + 1.0], dtype=box.dtype)
        box = torch.where((angle + half_angle >= widest)[:, None] & there[:, None], everything, box)
    whole = (box[:, 0] >= 0) & (box[:, 1] >= 0) & (box[:, 2] <= w) & (box[:, 3] <= h) & ahead
    return box, whole, there


def _reach(view: Cameras, local: Tensor, angle: Tensor, half_angle: Tensor) -> Tensor:
    """Pixels [n,2] to either side of the middle that the image of a ball at `local` [n,3] spans, at most.

    angle [n] from the axis, half_angle [n] of the ball. On a sphere the ball spans asin(sin a / cos latitude) of
    longitude, all of it where it holds a pole. A fisheye stretches by no more than the largest of dr / dt and
    r / sin t up to the ball's far side; half is added.
    """
    focal = torch.cat([view.fx, view.fy])
    if int(view.models[0]) == EQUIRECTANGULAR:
        latitude = torch.atan2(local[:, 1], local[:, [0, 2]].norm(dim=1)).abs()
        longitude = torch.asin((half_angle.sin() / latitude.cos().clamp_min(1e-12)).clamp_max(1))
        longitude = torch.where(latitude + half_angle < 0.5 * torch.pi, longitude, torch.full_like(longitude, torch.pi))
        return torch.stack([longitude, half_angle], dim=1) * focal
    t = torch.linspace(0, min(float(view.widest_angles[0]), 3.1), 512, dtype=torch.float64)[1:]
    ring = torch.stack([t.sin(), 0 * t, t.cos()], dim=1)
    radius = distort(ring[None], view.distortion, int(view.models[0]))[0][0].abs()
    slope = torch.diff(radius, prepend=radius[:1] * 0) / t[0]
    stretch = torch.maximum(slope, radius / t.sin()).cummax(dim=0).values
    at = torch.searchsorted(t, angle + half_angle).clamp_max(len(t) - 1)
    return 1.5 * half_angle[:, None] * stretch[at, None] * focal


def _alpha_sums(scene: Scene, i: int) -> Tensor:
    """Summed-area table [h+1,w+1] of the pixels that are not known to be empty."""
    shown = valid_pixels(scene, i)
    table = torch.zeros(shown.shape[0] + 1, shown.shape[1] + 1, dtype=torch.int32)
    table[1:, 1:] = shown.to(torch.int32).cumsum(0).cumsum(1)
    return table
