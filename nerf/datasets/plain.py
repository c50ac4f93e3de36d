"""Photos of an object before a background of one colour: which colour it is, and what of a picture lies before it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nerf.datasets.borders import BLOCK, joined_to_edges
from nerf.datasets.store import PixelStore

_EVEN = 0.03  # how far a background's pixels are from its colour, and the colours of the photos from one another
_EDGE, _PHOTOS = 0.9, 0.8  # shares of an edge's pixels, and of the photos, that have to be so


def plain_background(store: PixelStore, some: list[int]) -> Tensor | None:
    """The colour [3] of nearly all pixels along the edges of nearly all of these pictures; None: there is none."""
    medians, plain = [], []
    for i in some:
        image = store.image(i)
        image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].expand(-1, -1, 3)
        edge = torch.cat([image[0], image[-1], image[:, 0], image[:, -1]])
        medians.append(edge.median(dim=0).values)
        plain.append(bool(((edge - medians[-1]).abs().amax(dim=1) < _EVEN).float().mean() > _EDGE))
    spread = float(torch.stack(medians).std(dim=0).max()) if len(medians) > 1 else 0.0
    found = sum(plain) >= _PHOTOS * len(plain) and spread < _EVEN
    return torch.stack(medians).median(dim=0).values if found else None


def before_background(image: Tensor, background: Tensor) -> np.ndarray:
    """Pixels [h,w] (bool) of a picture [h,w,c] that do not belong to the background: all but blocks of its colour [3]
    which are joined to the edges. What has its colour within the object stays."""
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].expand(-1, -1, 3)
    other = ((image - background).abs().amax(dim=2) > _EVEN).numpy()
    h, w = other.shape
    for axis in (0, 1):
        other = np.logical_or.reduceat(other, np.arange(0, other.shape[axis], BLOCK), axis=axis)
    reached = joined_to_edges(~other)
    return ~reached.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:h, :w]
