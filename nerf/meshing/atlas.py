"""The flat side of a textured mesh: where each face lies in the texture, its texels, what fills the rest."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.errors import UserError
from nerf.meshing.clean import component_labels
from nerf.meshing.preview import rasterise

_PADDING = 4  # empty texels between charts
_LAYERS = 6  # rounds in which hidden faces move to charts of their own


class Atlas(NamedTuple):
    """A mesh cut into charts that lie flat: corners [u] say which vertex of the mesh each of the u corners is (seams
    have several), faces [f,3] use corners, uv [u,2] are pixels of the texture (x right, y down)."""

    corners: Tensor
    faces: Tensor
    uv: Tensor
    size: int  # pixels on each side of the texture


def check_size(size: int) -> None:
    """UserError unless a texture can have this size; asked before the work begins."""
    if not 16 <= size <= 16384:
        raise UserError(f"--texture must be from 16 to 16384 texels, got {size}")


def unwrap(vertices: Tensor, faces: Tensor, size: int) -> Atlas:
    """Cut a mesh (vertices [v,3], faces [f,3]) into charts and pack them into a texture of size x size texels.

    A chart is a connected patch that faces one of the six axis directions, seen along it: no face is shrunk by more
    than the square root of 3, and time grows with the number of faces alone, which it does not for xatlas (a noisy mesh
    of 50 000 faces took it a minute, one of 200 000 did not end in ten). Where a patch lies above itself, its hidden
    faces make charts of their own. Faces keep their order.
    Raises UserError where the charts are too many for the texture.
    """
    check_size(size)
    middle = (vertices.amin(dim=0) + vertices.amax(dim=0)) / 2
    points = vertices.double() - middle
    a, b, c = (points[faces[:, k]] for k in range(3))
    normals = torch.linalg.cross(b - a, c - a)
    axis = normals.abs().argmax(dim=1)
    side = axis * 2 + (normals.gather(1, axis[:, None])[:, 0] < 0)
    flat = torch.stack([points[:, [1, 2]], points[:, [2, 0]], points[:, [0, 1]]])  # [axis, v, 2]
    neighbours = _neighbours(faces, len(vertices))
    layer = torch.zeros(len(faces), dtype=torch.int64)
    for _ in range(_LAYERS):
        chart = _patches(side + 6 * layer, neighbours)
        atlas = _packed(flat, axis, chart, faces, size)
        hidden = _hidden(atlas)
        if not len(hidden):
            break
        layer[hidden] += 1
    return atlas


def _neighbours(faces: Tensor, n_vertices: int) -> Tensor:
    """Pairs of faces [e,2] that share an edge."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(dim=1).values
    key, order = (edges[:, 0] * n_vertices + edges[:, 1]).sort(stable=True)
    owner = order % len(faces)
    same = (key[1:] == key[:-1]).nonzero()[:, 0]
    return torch.stack([owner[same], owner[same + 1]], dim=1)


def _patches(label: Tensor, neighbours: Tensor) -> Tensor:
    """Number of the connected patch of one label [f] that each face belongs to: [f], from 0 without gaps."""
    joined = neighbours[label[neighbours[:, 0]] == label[neighbours[:, 1]]]
    roots = component_labels(len(label), joined[:, [0, 1, 1]])
    return roots.unique(return_inverse=True)[1]


def _packed(flat: Tensor, axis: Tensor, chart: Tensor, faces: Tensor, size: int) -> Atlas:
    """Charts side by side at the largest scale at which they fit, with a gap of _PADDING texels between them."""
    corner_chart = chart[:, None].expand(-1, 3).reshape(-1)
    key, number = (corner_chart * flat.shape[1] + faces.reshape(-1)).unique(return_inverse=True)
    corners, of_chart = key % flat.shape[1], torch.div(key, flat.shape[1], rounding_mode="floor")
    n_charts = int(chart.max()) + 1
    axis_of = torch.zeros(n_charts, dtype=torch.int64).scatter_(0, chart, axis)
    uv = flat[axis_of[of_chart], corners]
    index = of_chart[:, None].expand(-1, 2)
    low = torch.full((n_charts, 2), torch.inf, dtype=torch.float64).scatter_reduce(0, index, uv, "amin")
    high = torch.full((n_charts, 2), -torch.inf, dtype=torch.float64).scatter_reduce(0, index, uv, "amax")
    extent = high - low
    largest = float(extent.amax()) or 1.0
    scale, places = (size - 2 * _PADDING) / largest, None
    smallest = scale * 1e-4
    while places is None:
        places = _shelves(((extent * scale).ceil().long() + _PADDING).numpy(), size)
        if places is None:
            scale *= 0.95
            if scale < smallest:
                raise UserError(f"--texture {size} does not hold the mesh's {n_charts:,} charts: give a larger size")
    where = (uv - low[of_chart]) * scale + torch.from_numpy(places)[of_chart] + _PADDING / 2
    return Atlas(corners, number.reshape(-1, 3), where, size)


def _shelves(boxes: NDArray[np.int64], size: int) -> NDArray[np.float64] | None:
    """Upper left corners [n,2] of boxes [n,2] (width, height) on shelves in a square, tallest first; None if they do
    not fit."""
    if int(boxes.prod(axis=1).sum()) > size * size:
        return None
    places = np.empty((len(boxes), 2))
    x = y = height = 0
    for i in np.lexsort((-boxes[:, 0], -boxes[:, 1])).tolist():
        w, h = boxes[i]
        if x + w > size:
            x, y, height = 0, y + height, 0
        height = height or int(h)
        if w > size or y + h > size:
            return None
        places[i] = x, y
        x += int(w)
    return places


def _hidden(atlas: Atlas) -> Tensor:
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
    ever coarser means, so that filtering and smaller copies of the texture never see an edge of the atlas.

    Source: pull-push, Gortler et al., "The Lumigraph", 1996, section 3.3.
    """
    filled = torch.empty_like(texture)
    for channel in range(texture.shape[2]):  # one at a time: a third of the memory
        filled[..., channel] = _filled(texture[..., [channel]], known)[..., 0]
    return filled


def _filled(texture: Tensor, known: Tensor) -> Tensor:
    pictures, weights = [texture.permute(2, 0, 1)[None] * known], [known.to(texture.dtype)[None, None]]
    while max(pictures[-1].shape[2:]) > 1:
        picture, weight = (torch.nn.functional.avg_pool2d(_even(x), 2) for x in (pictures[-1], weights[-1]))
        filled = weight > 0
        pictures.append(torch.where(filled, picture / weight.clamp_min(1e-12), picture))
        weights.append(filled.to(texture.dtype))
        pictures[-1] = pictures[-1] * weights[-1]
    picture = pictures[-1]
    for finer, weight in zip(reversed(pictures[:-1]), reversed(weights[:-1]), strict=True):
        h, w = finer.shape[2:]
        spread = torch.nn.functional.interpolate(picture, scale_factor=2, mode="bilinear")[:, :, :h, :w]
        picture = torch.where(weight > 0, finer, spread)
    return picture[0].permute(1, 2, 0)


def _even(x: Tensor) -> Tensor:
    """Zeros added below and to the right until both sides are even."""
    return torch.nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
