"""Where a photo shows what others do not: a shadow that moves, a reflection, somebody who walks through, a thing before
the surface that the mesh does not have. A texture takes its colours from elsewhere there.

Photos are compared small, at the surface that their pixels show: with the median of what others show at that place.
Where others differ among themselves (nothing matches: a mirror, a wrong surface), less is asked of a photo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nerf.meshing.fused import farthest_point_sample
from nerf.meshing.preview import bilinear, rasterise, seam

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.geometry.cameras import Cameras

_LONGER_SIDE = 128  # pixels of the small photos
_COMPARED = 60_000_000  # places asked in all, so many photos are asked less each
_OTHERS = (12, 48)  # photos that each is compared with, at least and at most
_FEWEST = 4  # others that must show a place before their median says anything
_TOLERANCE = 0.06  # of sRGB values (their norm): a difference that halves what a photo counts
_DEPTH = 0.03  # of a depth: what lies farther behind the mesh is hidden


class _Small(NamedTuple):
    """A photo at a fraction of its size, of camera [1]: colours [h,w,3], NaN where it shows nothing; z-depths of the
    mesh [h,w,1], infinite where there is none; its pixels [p] that show the mesh and their places [p,3], world."""

    camera: Cameras
    colors: Tensor
    depth: Tensor
    pixel: Tensor
    points: Tensor


def find_agreement(
    scene: Scene,
    vertices: Tensor,
    faces: Tensor,
    photos: Tensor,
    picture: Callable[[int], Tensor],
    lit_alike: Callable[[Cameras, Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """How much each photo [n] of the scene counts by place: [h,w] float32 of 0 to 1, smaller than the photo; 1 where
    it agrees with others, or too few show the same. vertices [v,3] and faces [f,3]: the mesh, world frame; picture: the
    colours [h,w,4] of the photo of a row, the last 0 where nothing is shown, in one exposure; lit_alike: colours [p,3]
    that a camera shows at points [p,3], as if no light came from the camera. Nothing passes before an object that is
    cut out, and what is shiny differs from the median by right: there each photo counts."""
    if scene.has_silhouettes:
        return [torch.ones(1, 1) for _ in photos]
    small = [_shrink(scene.cameras.subset([i]), vertices, faces, picture(row)) for row, i in enumerate(photos.tolist())]
    n_others = _COMPARED // max(1, sum(len(one.pixel) for one in small))
    n_others = min(max(n_others, _OTHERS[0]), _OTHERS[1])
    asked = farthest_point_sample(scene.cameras.centres[photos], n_others).tolist()
    found = []
    for row, one in enumerate(small):
        mine = lit_alike(one.camera, one.points, one.colors.reshape(-1, 3)[one.pixel])
        others = [lit_alike(small[k].camera, one.points, _shown(small[k], one.points)) for k in asked if k != row]
        counts = torch.ones(one.depth.numel())
        counts[one.pixel] = _counts(mine, others)
        found.append(counts.reshape(one.depth.shape[:2]))
    return found


def _counts(mine: Tensor, others: list[Tensor]) -> Tensor:
    """[p] of a photo's colours [p,3] and of others' [p,3], NaN where they show something else."""
    if len(others) < _FEWEST:
        return torch.ones(len(mine))
    theirs = torch.stack(others)
    median = theirs.nanmedian(dim=0).values
    spread = (theirs - median).norm(dim=2).nanmedian(dim=0).values
    apart = (mine - median).norm(dim=1) / (_TOLERANCE + spread)
    known = (~theirs[..., 0].isnan()).sum(dim=0) >= _FEWEST
    return torch.where(known & ~apart.isnan(), 1 / (1 + apart.square()), 1.0)


def _shrink(camera: Cameras, vertices: Tensor, faces: Tensor, picture: Tensor) -> _Small:
    h, w = picture.shape[:2]
    factor = min(max(1, round(max(h, w) / _LONGER_SIDE)), h, w)
    camera = camera.scaled(factor)
    h, w = h // factor, w // factor
    shown = torch.where(picture[..., 3:] > 0.5, picture[..., :3], torch.nan)
    colors = avg_pool2d(shown.permute(2, 0, 1)[None], factor)[0].permute(1, 2, 0)
    uv, z = (t[0] for t in camera.project(vertices))
    pixel, face, weights = rasterise(uv, z, faces, w, h, seam(camera))
    corners = faces[face]
    depth = torch.full((h * w, 1), torch.inf)
    depth[pixel, 0] = (weights * z[corners]).sum(dim=1).float()
    points = (weights[..., None] * vertices[corners]).sum(dim=1)
    return _Small(camera, colors, depth.reshape(h, w, 1), pixel, points)


def _shown(small: _Small, points: Tensor) -> Tensor:
    """Colours [p,3] that a photo shows at points [p,3], NaN where they are outside it or hidden in it."""
    uv, z = (t[0] for t in small.camera.project(points))
    h, w = small.depth.shape[:2]
    inside = (z > 0) & (uv >= 0).all(dim=1) & (uv[:, 0] < w) & (uv[:, 1] < h)
    at = torch.where(inside[:, None], uv, 0.0)
    nearest = small.depth[at[:, 1].long(), at[:, 0].long(), 0]
    visible = inside & ((z - nearest).abs() < _DEPTH * z)
    return torch.where(visible[:, None], bilinear(small.colors, at), torch.nan)
