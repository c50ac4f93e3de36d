"""The surface moved, by a pixel at most, to where the photos say it is: by their outlines and by their colours.

A field's median-transmittance depth is off by a part of a pixel. A surface in its place covers, of each pixel at its
outline, what the photo's alpha says, and the photos in which a point of it is seen show one colour there. Both are
linear in how far the surface moves along its normal, so the best move is one least-squares step, r + g x = 0 summed
over photos and pixels: at an outline r is the alpha less the cover and g its change across the outline; at a vertex r
is a photo's colour less the mean of all, and g how that changes as the vertex moves. The move is as smooth as what is
known of it, from the whole mesh down to cells of 1/128 of its size.
The colours' part is variational multi-view stereo's (Vu et al., "High Accuracy and Visibility-Consistent Dense
Multiview Stereo", 2012, section 5), linearised once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d, grid_sample, interpolate, max_pool2d, pad

from nerf import kernels
from nerf.meshing.preview import across_seam, bilinear, facing, seam

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.geometry.cameras import Cameras

MAX_VIEWS = 64  # photos that are asked, at most, those far apart
_MAX_PIXELS = 3_000_000  # of a photo: larger ones are asked at a part of their size, for their pixels are soft
_MAX_MOVE_PIXELS = 1.0  # move, in pixels: what is linear ends about there
_CELLS = 128  # along the longest side: how finely the move changes, a power of 2
# What a cell must know, in (alphas or colours a pixel)^2 summed over what it saw, to count as much as the coarser one
# that it lies in (measured on four objects whose surface is known: 0.01 to 0.1 are the same).
_PRIOR = 0.03
_OUTLINE_PIXELS = 3  # pixels on either side of an outline
_SUPERSAMPLE = 2  # a side of a pixel, for the cover of an outline's pixels
_WINDOW_PIXELS = 2  # pixels around a vertex that its colour and its slopes are made of


class Evidence(NamedTuple):
    """Sums over photos of g r and of g^2 (per length, per length^2) [n], at the vertices [n] of the mesh."""

    vertices: Tensor
    push: Tensor
    weight: Tensor


def refine_vertices(
    scene: Scene,
    vertices: Tensor,
    faces: Tensor,
    normals: Tensor,
    photos: Tensor,
    ratings: Tensor,
    pictures: Sequence[Callable[[], Tensor]],
) -> Tensor:
    """Vertices [v,3] moved along their normals [v,3] to where the photos [n] agree, given their ratings [n,v] (see
    texture.photo_ratings) and what makes their pictures [h,w,3]; world frame. Not differentiable."""
    middle = (vertices.amin(dim=0) + vertices.amax(dim=0)) / 2
    asked = _reduced(scene.cameras.subset(photos))
    pixel = float(((asked.centres - middle).norm(dim=1) / asked.fx).median())  # what one spans at the mesh
    found, colours = [], _Colours(vertices, normals)
    for row, i in enumerate(photos.tolist()):
        camera = asked.subset([row])
        drawn = _rasterise(camera, vertices, faces)
        if scene.has_alpha:
            found.append(_outline_evidence(scene, i, camera, drawn, faces, pixel))
        colours.add(camera, _sized(pictures[row](), camera), ratings[row], drawn)
    known = Evidence(*(torch.cat(parts) for parts in zip(*found, colours.evidence(), strict=True)))
    limit = _MAX_MOVE_PIXELS * pixel
    move = _solve_coarse_to_fine(vertices, known, _PRIOR / pixel**2).clamp(-limit, limit)
    return vertices + move[:, None].double() * normals


def _reduced(cameras: Cameras) -> Cameras:
    """The same views with at most _MAX_PIXELS pixels."""
    factor = torch.ceil((cameras.widths * cameras.heights / _MAX_PIXELS).sqrt()).long()
    return cameras.resized(cameras.widths // factor, cameras.heights // factor)


def _sized(picture: Tensor, camera: Cameras) -> Tensor:
    """A picture [h,w,c] as large as the camera's, of the means of its pixels."""
    size = int(camera.heights[0]), int(camera.widths[0])
    if picture.shape[:2] == size:
        return picture
    return interpolate(picture.permute(2, 0, 1)[None], size=size, mode="area")[0].permute(1, 2, 0)


class Drawn(NamedTuple):
    """The mesh in a photo: the nearest face at _SUPERSAMPLE^2 points a pixel [points*h, points*w] (-1: none); of each
    vertex its pixel uv [v,2], its z-depth [v], and how far it is from all that is seen within _WINDOW_PIXELS [v]."""

    face: Tensor
    uv: Tensor
    z: Tensor
    apart: Tensor


def _rasterise(camera: Cameras, vertices: Tensor, faces: Tensor) -> Drawn:
    h, w = int(camera.heights[0]), int(camera.widths[0])
    uv, z = (t[0] for t in camera.project(vertices))
    height, width = h * _SUPERSAMPLE, w * _SUPERSAMPLE
    drawn_uv, drawn_z, drawn, owner = across_seam(uv * _SUPERSAMPLE, z, faces, seam(camera) * _SUPERSAMPLE)
    face = kernels.nearest_faces(drawn_uv, drawn_z, drawn, width, height).reshape(height, width)
    face = torch.where(face >= 0, owner.int()[face.clamp_min(0).long()], face) if len(drawn) else face
    depth = torch.where(face >= 0, z.float()[faces[face.clamp_min(0).long(), 0]], torch.inf)[None]
    window = _SUPERSAMPLE * (2 * _WINDOW_PIXELS + 1)
    far, near = (s * max_pool2d(s * depth, window, _SUPERSAMPLE, _SUPERSAMPLE * _WINDOW_PIXELS)[0] for s in (1, -1))
    inside = (z > 0) & (uv >= 0).all(dim=1) & (uv < torch.tensor([w, h])).all(dim=1)
    x, y = torch.where(inside[:, None], uv, 0.0).long().unbind(dim=1)
    apart = torch.maximum(far[y, x] - z, z - near[y, x])
    return Drawn(face, uv, z, torch.where(inside, apart, torch.inf))


class _Colours:
    """Sums over photos i of w_i (d_i - d)(c - c_i) and w_i |d_i - d|^2, where c is the mean of the colours c_i that
    the photos show at a vertex, d_i how c_i changes as the vertex moves along its normal, and d the mean of that."""

    def __init__(self, vertices: Tensor, normals: Tensor) -> None:
        self.vertices, self.normals = vertices, normals
        self.step = 1e-4 * float((vertices.amax(dim=0) - vertices.amin(dim=0)).max())
        self.sums = torch.zeros(len(vertices), 9)  # of w, w c, w d, w c.d, w |d|^2

    def add(self, camera: Cameras, picture: Tensor, rating: Tensor, drawn: Drawn) -> None:
        slope = facing(camera, self.vertices, self.normals)[1]
        # Beside what lies before or behind it, colours are mixed; a slanted surface gets nearer and farther by itself.
        alone = drawn.apart * camera.fx[0] / drawn.z.clamp_min(1e-300) <= 1.5 + 1.5 * _WINDOW_PIXELS * slope
        seen = ((rating > 0) & alone).nonzero()[:, 0]
        if not len(seen):
            return
        picture, uv = _blur(picture), drawn.uv[seen]
        along = camera.project(self.vertices[seen] + self.step * self.normals[seen])[0][0]
        along = ((along - uv) / self.step).float()
        half = torch.eye(2, dtype=torch.float64) / 2
        right, down = (bilinear(picture, uv + step) - bilinear(picture, uv - step) for step in half)
        c, d = bilinear(picture, uv), right * along[:, :1] + down * along[:, 1:]
        w = (rating[seen] / rating.max()).sqrt()[:, None]
        products = [x.sum(dim=1, keepdim=True) for x in (c * d, d.square())]
        self.sums[seen] += w * torch.cat([torch.ones_like(w), c, d, *products], dim=1)

    def evidence(self) -> Evidence:
        weight, color, change, product, square = self.sums.split([1, 3, 3, 1, 1], dim=1)
        weight = weight.clamp_min(1e-9)
        push = (color * change).sum(dim=1, keepdim=True) / weight - product
        square = square - change.square().sum(dim=1, keepdim=True) / weight
        return Evidence(torch.arange(len(self.sums)), push[:, 0], square[:, 0].clamp_min(0))


def _blur(picture: Tensor) -> Tensor:
    """A picture [h,w,c] without its finest grain, so that its slopes hold for half a pixel."""
    x = pad(picture.permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")[0].permute(1, 2, 0)
    x = 0.58 * x[1:-1] + 0.21 * (x[:-2] + x[2:])  # a Gaussian of 0.7 pixels
    return 0.58 * x[:, 1:-1] + 0.21 * (x[:, :-2] + x[:, 2:])


def _outline_evidence(scene: Scene, i: int, camera: Cameras, drawn: Drawn, faces: Tensor, pixel: float) -> Evidence:
    """At the pixels beside the mesh's outline in photo i, for the vertices that are its outline there."""
    face = drawn.face
    h, w = face.shape[0] // _SUPERSAMPLE, face.shape[1] // _SUPERSAMPLE
    covered = (face >= 0).float()[None, None]
    edge = (face >= 0) & (max_pool2d(1 - covered, 3, 1, 1)[0, 0] > 0)
    owner = torch.full(edge.shape, -1)
    owner[edge] = faces[face[edge].long(), 0]
    owner = owner.reshape(h, _SUPERSAMPLE, w, _SUPERSAMPLE).amax(dim=(1, 3))
    for _ in range(_OUTLINE_PIXELS):
        owner = _dilate(owner)
    cover = pad(avg_pool2d(covered, _SUPERSAMPLE), (1, 1, 1, 1), mode="replicate")[0, 0]
    slope = torch.hypot(cover[1:-1, 2:] - cover[1:-1, :-2], cover[2:, 1:-1] - cover[:-2, 1:-1]) / 2
    there = owner >= 0
    if scene.masks is not None:
        there &= _sized(torch.as_tensor(scene.masks.image(i)).float(), camera)[..., 0] > 0.5
    alpha = _sized(scene.pixels.image(i)[..., -1:].float(), camera)[..., 0][there]
    # Across an outline the slopes add up to 1 and the residuals to how far it is off: unbiased, as slopes of so few
    # pixels are not when they are squared. By half, as much as their squares would count.
    missing = alpha - cover[1:-1, 1:-1][there]
    return Evidence(owner[there], 0.5 * missing / pixel, 0.5 * slope[there] / pixel**2)


def _dilate(owner: Tensor) -> Tensor:
    """[h,w] numbers, -1 where there is none: each of these takes a neighbour's."""
    around = pad(owner, (1, 1, 1, 1), value=-1)
    h, w = owner.shape
    for dy, dx in ((0, 1), (1, 0), (1, 2), (2, 1), (0, 0), (0, 2), (2, 0), (2, 2)):
        owner = torch.where(owner < 0, around[dy : dy + h, dx : dx + w], owner)
    return owner


def _solve_coarse_to_fine(vertices: Tensor, known: Evidence, prior: float) -> Tensor:
    """The move [v] float32, in lengths: (push + prior * coarser move) / (weight + prior) in cells that halve from level
    to level."""
    low, high = vertices.amin(dim=0), vertices.amax(dim=0)
    at = (vertices - (low + high) / 2) / (float((high - low).max()) or 1.0)
    cell = ((at[known.vertices] + 0.5) * _CELLS).long().clamp(0, _CELLS - 1)
    flat = (cell[:, 2] * _CELLS + cell[:, 1]) * _CELLS + cell[:, 0]
    sums = [torch.zeros(_CELLS**3).index_add_(0, flat, x.float()) for x in (known.push, known.weight)]
    levels = [torch.stack(sums).reshape(1, 2, _CELLS, _CELLS, _CELLS)]
    while levels[-1].shape[-1] > 1:
        levels.append(8 * avg_pool3d(levels[-1], 2))
    move = torch.zeros(1, 1, 1, 1, 1)
    for level in reversed(levels):
        if level.shape[-1] > 1:
            move = interpolate(move, scale_factor=2, mode="trilinear")
        move = (level[:, :1] + prior * move) / (level[:, 1:] + prior)
    return grid_sample(move, 2 * at.float()[None, None, None], padding_mode="border", align_corners=False).flatten()
