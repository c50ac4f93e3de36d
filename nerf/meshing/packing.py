"""Charts of a texture side by side: turned to their smallest boxes, then let fall, the tallest first, to where each
lies lowest, by its own outline, on the skyline of those before it, at the largest scale at which all of them fit.

Source: the horizon of Levy, Petitjean, Ray and Maillot, "Least Squares Conformal Maps", 2002, section 5.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nerf import kernels

_COLUMNS = 1024  # of the skyline, at most: a texture of 4096 texels is packed in steps of 4, of 16 if not exact
_ANGLES = 24  # tried in a quarter turn
_HALVINGS = 6  # of the range in which the scale is searched for
_NONE = 1 << 20


def pack(flat: Tensor, faces: Tensor, charts: Tensor, size: int, gap: int, exact: bool = True) -> Tensor | None:
    """Places [u,2], texels, of charts in a square of size x size with at least `gap` between them, at the largest scale
    at which they fit (not exact: at about half of that, sooner); None where they are too many.

    flat [u,2]: where the corners lie in their chart, lengths; faces [f,3] of corners; charts [f]: each face's, from 0.
    """
    of_corner = torch.zeros(len(flat), dtype=torch.int64)
    of_corner[faces] = charts[:, None]
    n_charts = int(charts.max()) + 1
    flat, extent = _rotate_charts(flat, of_corner, n_charts)
    step = max(1, size // (_COLUMNS if exact else _COLUMNS // 4))
    area = float(extent.prod(dim=1).sum()) or 1.0
    high = min(size / math.sqrt(area) * 1.5, (size - 2 * gap) / (float(extent.max()) or 1.0))
    low, best = high, None
    while best is None:
        high, low = low, (0.7 if exact else 0.5) * low
        if low * math.sqrt(area) < 1e-2 * size:
            return None
        best = _drop_charts(flat * low, faces, charts, n_charts, size, step, gap)
    for _ in range(_HALVINGS if exact else 0):
        middle = math.sqrt(low * high)
        places = _drop_charts(flat * middle, faces, charts, n_charts, size, step, gap)
        if places is None:
            high = middle
        else:
            low, best = middle, places
    return flat * low + best[of_corner]


def _rotate_charts(flat: Tensor, of_corner: Tensor, n_charts: int) -> tuple[Tensor, Tensor]:
    """Corners [u,2] turned so that the box around each chart is smallest and upright, from 0; boxes [n,2]."""
    best = torch.full((n_charts,), torch.inf, dtype=flat.dtype)
    turned, extent = flat.clone(), torch.zeros(n_charts, 2, dtype=flat.dtype)
    for k in range(2 * _ANGLES):
        angle = math.pi / 2 * k / _ANGLES
        c, s = (0.0, 1.0) if k == _ANGLES else (math.cos(angle), math.sin(angle))  # exactly upright again
        place = flat @ torch.tensor([[c, s], [-s, c]], dtype=flat.dtype)
        low, high = torch.full_like(extent, torch.inf), torch.full_like(extent, -torch.inf)
        index = of_corner[:, None].expand(-1, 2)
        low, high = low.scatter_reduce(0, index, place, "amin"), high.scatter_reduce(0, index, place, "amax")
        box = high - low
        better = (box.prod(dim=1) < best * (1 - 1e-9)) & (box[:, 1] >= box[:, 0])
        best = torch.where(better, box.prod(dim=1), best)
        extent = torch.where(better[:, None], box, extent)
        mine = better[of_corner]
        turned[mine] = (place - low[of_corner])[mine]
    return turned, extent


def _drop_charts(
    flat: Tensor, faces: Tensor, charts: Tensor, n_charts: int, size: int, step: int, gap: int
) -> Tensor | None:
    """Lower left corner [n,2] of each chart, texels; None where they do not fit. flat [u,2] texels, from 0."""
    corner = flat[faces]
    low = torch.div(corner.amin(dim=1), step, rounding_mode="floor").long()
    high = torch.div(corner.amax(dim=1) + gap, step, rounding_mode="floor").long() + 1
    widths = torch.zeros(n_charts, dtype=torch.int64).scatter_reduce(0, charts, high[:, 0], "amax")
    heights = torch.zeros(n_charts, dtype=torch.int64).scatter_reduce(0, charts, high[:, 1], "amax")
    starts = widths.cumsum(0) - widths
    n_columns = size // step
    if int(widths.max()) > n_columns or int(heights.max()) > n_columns:
        return None
    spans = high[:, 0] - low[:, 0]  # each face stands in so many columns
    owner = torch.repeat_interleave(torch.arange(len(faces)), spans)
    column = torch.arange(len(owner)) - torch.repeat_interleave(spans.cumsum(0) - spans, spans)
    column += (starts[charts] + low[:, 0])[owner]
    bottoms = torch.full((int(widths.sum()),), _NONE).scatter_reduce(0, column, low[owner, 1], "amin")
    tops = torch.full_like(bottoms, -_NONE).scatter_reduce(0, column, high[owner, 1], "amax")
    if int((tops - bottoms).clamp_min(0).sum()) > n_columns**2:
        return None
    order = np.lexsort((-widths.numpy(), -heights.numpy()))
    places = kernels.drop_outlines(bottoms, tops, widths, torch.from_numpy(order), n_columns)
    return None if places is None else places.double() * step + gap / 2
