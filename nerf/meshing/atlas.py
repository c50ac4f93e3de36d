"""The flat side of a textured mesh: where each face lies in the texture, its texels, what fills the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nerf.errors import Range, UserError, check_numbers
from nerf.meshing.clean import component_labels
from nerf.meshing.fair import twin_edges
from nerf.meshing.packing import pack
from nerf.meshing.preview import rasterise

_PADDING = 4  # empty texels between charts
_LAYERS = 6  # rounds in which hidden faces move to charts of their own
_SLANTED = 0.35  # cosine to a side: a face that is as much aslant or more joins no chart seen from there
_VOTES, _JOINS = 6, 4  # rounds in which faces, then patches, join their neighbours
_SMALL = 200  # faces of a patch that joins a larger one


class Atlas(NamedTuple):
    """A mesh cut into charts that lie flat: corners [u] say which vertex of the mesh each of the u corners is (seams
    have several), faces [f,3] use corners, uv [u,2] are pixels of the texture (x right, y down)."""

    corners: Tensor
    faces: Tensor
    uv: Tensor
    size: int  # pixels on each side of the texture


def check_size(size: int) -> None:
    """UserError unless a texture can have this size; asked before the work begins."""
    check_numbers({"texture": size}, {"texture": Range(16, 16384, whole=True)}, "--")


def unwrap(vertices: Tensor, faces: Tensor, size: int) -> Atlas:
    """Cut a mesh (vertices [v,3], faces [f,3]) into charts and pack them into a texture of size x size texels.

    A chart is a connected patch seen along one of the six axis directions, and time grows with the number of faces
    alone, which it does not for xatlas (a noisy mesh of 200 000 faces did not end in ten minutes). Where a patch lies
    above itself, its hidden faces make charts of their own. Faces keep their order. Raises UserError where the charts
    are too many for the texture.
    """
    check_size(size)
    middle = (vertices.amin(dim=0) + vertices.amax(dim=0)) / 2
    points = vertices.double() - middle
    a, b, c = (points[faces[:, k]] for k in range(3))
    normals = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-300)
    flat = torch.stack([points[:, [1, 2]], points[:, [2, 0]], points[:, [0, 1]]])  # [axis, v, 2]
    neighbours = torch.stack(twin_edges(faces, len(vertices)), dim=1) // 3  # pairs of faces [e,2] that share an edge
    side = _choose_sides(torch.stack([normals, -normals], dim=2).flatten(1), neighbours)
    axis = torch.div(side, 2, rounding_mode="floor")
    layer = torch.zeros(len(faces), dtype=torch.int64)
    for _ in range(_LAYERS):
        chart = _label_patches(side + 6 * layer, neighbours)
        hidden = _find_hidden(_pack_charts(flat, axis, chart, faces, size, exact=False))
        if not len(hidden):
            break
        layer[hidden] += 1
    return _pack_charts(flat, axis, _label_patches(side + 6 * layer, neighbours), faces, size, exact=True)


def _choose_sides(facing: Tensor, neighbours: Tensor) -> Tensor:
    """Which of the six sides (x, -x, y, ...) each face is seen from [f]: that which it faces (cosines [f,6]), or most
    of its neighbours where it is not too slanted; then small patches join a larger one beside them, likewise."""
    side, one = facing.argmax(dim=1), torch.ones(1)
    both = torch.cat([neighbours, neighbours.flip(1)])
    for _ in range(_VOTES):
        votes = torch.zeros(facing.shape).index_put_((both[:, 0], side[both[:, 1]]), one, accumulate=True)
        most, best = torch.where(facing > _SLANTED, votes, -1.0).max(dim=1)
        side = torch.where(most > votes.gather(1, side[:, None])[:, 0], best, side)
    for _ in range(_JOINS):
        patch = _label_patches(side, neighbours)
        count = torch.bincount(patch)
        here, there = patch[both].unbind(dim=1)
        larger = (count[here] < _SMALL) & (count[there] > count[here])
        places = here[larger], side[both[larger, 1]]
        shared = torch.zeros(len(count), 6).index_put_(places, one, accumulate=True)
        lowest = torch.ones(len(count), 6, dtype=facing.dtype)
        lowest.scatter_reduce_(0, patch[:, None].expand(-1, 6), facing, "amin")
        most, best = torch.where(lowest > _SLANTED, shared, 0.0).max(dim=1)
        side = torch.where((most > 0)[patch], best[patch], side)
    return side


def _label_patches(label: Tensor, neighbours: Tensor) -> Tensor:
    """Number of the connected patch of one label [f] that each face belongs to: [f], from 0 without gaps."""
    joined = neighbours[label[neighbours[:, 0]] == label[neighbours[:, 1]]]
    return component_labels(len(label), joined[:, [0, 1, 1]]).unique(return_inverse=True)[1]


def _pack_charts(flat: Tensor, axis: Tensor, chart: Tensor, faces: Tensor, size: int, exact: bool) -> Atlas:
    """Charts side by side as large as they fit, with a gap of _PADDING texels between them."""
    corner_chart = chart[:, None].expand(-1, 3).reshape(-1)
    key, number = (corner_chart * flat.shape[1] + faces.reshape(-1)).unique(return_inverse=True)
    corners, of_chart = key % flat.shape[1], torch.div(key, flat.shape[1], rounding_mode="floor")
    n_charts = int(chart.max()) + 1
    axis_of = torch.zeros(n_charts, dtype=torch.int64).scatter_(0, chart, axis)
    cut = number.reshape(-1, 3)
    uv = pack(flat[axis_of[of_chart], corners], cut, chart, size, _PADDING, exact)
    if uv is None:
        raise UserError(f"--texture {size} does not hold the mesh's {n_charts:,} charts: give a larger size")
    return Atlas(corners, cut, uv, size)


def _find_hidden(atlas: Atlas) -> Tensor:
    """Faces that own less than half of the texels under them: others of their chart lie on the same place."""
    a, b, c = atlas.uv[atlas.faces].unbind(dim=1)
    areas = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs() / 2
    owned = torch.bincount(texels(atlas)[1], minlength=len(areas))
    outline = ((b - a).norm(dim=1) + (c - b).norm(dim=1) + (a - c).norm(dim=1)) / 2  # texels that an edge may cost it
    return (owned < 0.5 * areas - outline).nonzero()[:, 0]


def texels(atlas: Atlas) -> tuple[Tensor, Tensor, Tensor]:
    """The texels whose centre lies in a face: (flat texels [t] ascending, faces [t], weights of its corners [t,3])."""
    depth = torch.ones(len(atlas.uv), dtype=torch.float64)
    return rasterise(atlas.uv, depth, atlas.faces, atlas.size, atlas.size)


def fill(texture: Tensor, known: Tensor) -> Tensor:
    """The texture [h,w,c] with every texel that is not known [h,w] (bool) filled in from the nearest known ones, in
    ever coarser means. Source: pull-push, Gortler et al., "The Lumigraph", 1996, section 3.3."""
    filled = torch.empty_like(texture)
    for channel in range(texture.shape[2]):  # one at a time: a third of the memory
        filled[..., channel] = _filled(texture[..., [channel]], known)[..., 0]
    return filled


def _filled(texture: Tensor, known: Tensor) -> Tensor:
    pictures, weights = [texture.permute(2, 0, 1)[None] * known], [known.to(texture.dtype)[None, None]]
    while max(pictures[-1].shape[2:]) > 1:
        h, w = pictures[-1].shape[2:]
        even = [torch.nn.functional.pad(x[-1], (0, w % 2, 0, h % 2)) for x in (pictures, weights)]
        picture, weight = (torch.nn.functional.avg_pool2d(x, 2) for x in even)
        weights.append((weight > 0).to(texture.dtype))
        pictures.append(torch.where(weight > 0, picture / weight.clamp_min(1e-12), picture) * weights[-1])
    picture = pictures[-1]
    for finer, weight in zip(reversed(pictures[:-1]), reversed(weights[:-1]), strict=True):
        h, w = finer.shape[2:]
        spread = torch.nn.functional.interpolate(picture, scale_factor=2, mode="bilinear")[:, :, :h, :w]
        picture = torch.where(weight > 0, finer, spread)
    return picture[0].permute(1, 2, 0)
