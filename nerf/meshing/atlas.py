"""The flat side of a textured mesh: where each face lies in the texture, its texels, what fills the rest."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.meshing.preview import rasterise

_PADDING = 2  # empty texels between charts in an atlas of about 1024, which is then scaled to the texture's size


class Atlas(NamedTuple):
    """A mesh cut into charts that lie flat: corners [u] say which vertex of the mesh each of the u corners is (seams
    have several), faces [f,3] use corners, uv [u,2] are pixels of the texture (x right, y down)."""

    corners: Tensor
    faces: Tensor
    uv: Tensor
    width: int
    height: int


def check_size(size: int) -> None:
    """UserError unless a texture of this size can be made here; asked before the work begins."""
    if not 16 <= size <= 16384:
        raise UserError(f"--texture must be from 16 to 16384 texels, got {size}")
    if find_spec("xatlas") is None:
        raise UserError("a texture needs the package xatlas: pip install xatlas (or nerf with its extra: nerf[mesh])")


def unwrap(vertices: Tensor, faces: Tensor, size: int) -> Atlas:
    """Cut a mesh (vertices [v,3], faces [f,3]) into charts and pack them into a texture whose longer side is `size`.

    Faces keep their order. Source: xatlas (Young), charts by planarity as in Thekla's Atlas.
    """
    check_size(size)
    import xatlas

    middle = (vertices.amin(dim=0) + vertices.amax(dim=0)) / 2
    extent = float((vertices - middle).abs().amax()) or 1.0
    unit = ((vertices - middle) / extent).float().numpy()  # its tolerances are lengths
    atlas = xatlas.Atlas()
    atlas.add_mesh(np.ascontiguousarray(unit), np.ascontiguousarray(faces.numpy().astype(np.uint32)))
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_iterations = 1
    packing.padding = _PADDING
    packing.bilinear = True
    atlas.generate(charts, packing)
    corners, flat, uv = atlas[0]
    width, height = int(atlas.width), int(atlas.height)
    scale = size / max(width, height)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    where = torch.from_numpy(uv.astype(np.float64)) * torch.tensor(shape, dtype=torch.float64)
    return Atlas(
        torch.from_numpy(corners.astype(np.int64)), torch.from_numpy(flat.astype(np.int64)), where, shape[0], shape[1]
    )


def texels(atlas: Atlas) -> tuple[Tensor, Tensor, Tensor]:
    """The texels whose centre lies in a face: (flat texels [t] ascending, faces [t], weights of its corners [t,3])."""
    depth = torch.ones(len(atlas.uv), dtype=torch.float64)
    return rasterise(atlas.uv, depth, atlas.faces, atlas.width, atlas.height)


def fill(texture: Tensor, known: Tensor) -> Tensor:
    """The texture [h,w,c] with every texel that is not known [h,w] (bool) filled in from the nearest known ones, in
    ever coarser means, so that filtering and smaller copies of the texture never see an edge of the atlas.

    Source: pull-push, Gortler et al., "The Lumigraph", 1996, section 3.3.
    """
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
