"""Outlines side by side on a skyline: each falls to where it lies lowest on those before it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from nerf.kernels import bindings


def drop_outlines(
    bottoms: Tensor, tops: Tensor, widths: Tensor, order: Tensor, n_columns: int, native: bool
) -> Tensor | None:
    """Places [n,2] int32, first column and height, of outlines that fall in this order [n] onto n_columns columns, each
    to the first of the columns where it lies lowest; None where one rises above n_columns.

    widths [n]: how many columns each outline covers, one after the other in bottoms and tops [sum of widths], its lower
    and upper ends there (bottoms are 0 or more). All are whole numbers.
    """
    if int(widths.sum()) != len(bottoms) or bottoms.shape != tops.shape or len(order) != len(widths):
        raise ValueError(
            f"outlines: {int(widths.sum())} columns of {len(widths)} outlines, "
            f"got {len(bottoms)} bottoms, {len(tops)} tops and {len(order)} places in the order"
        )
    if len(widths) and int(widths.min()) < 1:
        raise ValueError("widths: expected at least one column each")
    starts = widths.long().cumsum(0) - widths.long()
    bottoms, tops, widths, order = (t.to(torch.int32).contiguous() for t in (bottoms, tops, widths, order))
    return (_native if native else _reference)(bottoms, tops, widths, order, starts, n_columns)


def _native(
    bottoms: Tensor, tops: Tensor, widths: Tensor, order: Tensor, starts: Tensor, n_columns: int
) -> Tensor | None:
    places = torch.empty((len(widths), 2), dtype=torch.int32)
    held = bottoms.data_ptr(), tops.data_ptr(), starts.data_ptr(), widths.data_ptr(), order.data_ptr()
    fits = bindings.native().nerf_drop_outlines(*held, len(widths), n_columns, places.data_ptr())
    return places if fits else None


def _reference(
    bottoms: Tensor, tops: Tensor, widths: Tensor, order: Tensor, starts: Tensor, n_columns: int
) -> Tensor | None:
    low, high, skyline = bottoms.numpy(), tops.numpy(), np.zeros(n_columns, np.int32)
    places = torch.empty((len(widths), 2), dtype=torch.int32)
    for i in order.tolist():
        width, mine = int(widths[i]), slice(int(starts[i]), int(starts[i] + widths[i]))
        if width > n_columns:
            return None
        rests = (sliding_window_view(skyline, width) - low[mine]).max(axis=1)
        np.maximum(rests, 0, out=rests)
        x = int(rests.argmin())
        top = rests[x] + high[mine]
        if int(top.max()) > n_columns:
            return None
        skyline[x : x + width] = np.maximum(skyline[x : x + width], top)
        places[i, 0], places[i, 1] = x, int(rests[x])
    return places
