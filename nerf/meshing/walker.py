"""Labels of a few pixels spread to all others, as far as a picture has no edges: the random walker.

The share of a label at a pixel is the probability that a walker who sets out there first meets a labelled pixel of that
label, where he crosses edges of the picture rarely. Source: Grady, "Random Walks for Image Segmentation", 2006; solved
by conjugate gradients from the solution at half the size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

_CONTRAST = 0.01  # grey levels, of 1: the standard deviation of differences that are no edges
_LEAST = 1e-3  # conductance of the strongest edges
_FAINT = 3e-5  # weight of pixels without a label: where all else is cut off they have a share of none
_MOST_ROUNDS, _TOLERANCE, _SMALLEST = 400, 1e-7, 12  # of the solver at each size; pixels


def spread(labels: Tensor, weights: Tensor, picture: Tensor) -> Tensor:
    """Shares [k,h,w] float32 of k labels at each pixel, of labels [k,h,w] (0 to 1) that count where weights [h,w]
    do, in a grey picture [h,w] (NaN: shows nothing). They add up to 1 at most. Not differentiable."""
    grey = picture.nan_to_num(nan=-1.0)
    right, below = (
        torch.exp(-0.5 * (grey.diff(dim=dim) / _CONTRAST).square()).clamp_min(_LEAST).float() for dim in (1, 0)
    )
    return _solve(torch.where(weights > 0, labels, 0.0), weights.clamp_min(_FAINT), right, below)


def _solve(values: Tensor, weights: Tensor, right: Tensor, below: Tensor) -> Tensor:
    """The minimum [k,h,w] of weights (x - values)^2 and of the squares of differences between neighbours times the
    conductances to the right [h,w-1] and below [h-1,w]."""
    h, w = weights.shape
    if min(h, w) > _SMALLEST:
        total = halved(weights)
        mean = halved(values * weights) / total
        coarse = _solve(mean, 4 * total, halved(right[:, 1::2], (2, 1)), halved(below[1::2], (1, 2)))
        x = coarse.repeat_interleave(2, dim=1)[:, :h].repeat_interleave(2, dim=2)[:, :, :w]
    else:
        x = values
    diagonal = weights + _sums_around(torch.ones(1, h, w), right, below)[0]
    residual = weights * values - diagonal * x + _sums_around(x, right, below)
    step = residual / diagonal
    old = (residual * step).sum(dim=(1, 2), keepdim=True)
    small = _TOLERANCE * (weights * values.square()).sum(dim=(1, 2), keepdim=True)
    for _ in range(_MOST_ROUNDS):
        if bool((old <= small).all()):
            break
        moved = diagonal * step - _sums_around(step, right, below)
        length = old / (step * moved).sum(dim=(1, 2), keepdim=True).clamp_min(1e-30)
        x, residual = x + length * step, residual - length * moved
        better = residual / diagonal
        new = (residual * better).sum(dim=(1, 2), keepdim=True)
        step, old = better + new / old.clamp_min(1e-30) * step, new
    return x


def _sums_around(x: Tensor, right: Tensor, below: Tensor) -> Tensor:
    """Of the four neighbours of each pixel of x [k,h,w], times the conductances to them."""
    sums = torch.zeros_like(x)
    sums[:, :, :-1] += right * x[:, :, 1:]
    sums[:, :, 1:] += right * x[:, :, :-1]
    sums[:, :-1] += below * x[:, 1:]
    sums[:, 1:] += below * x[:, :-1]
    return sums


def halved(values: Tensor, size: tuple[int, int] = (2, 2)) -> Tensor:
    """Means [...,h/2,w/2] of blocks of pixels, cut at the border."""
    lead = values.shape[:-2]
    pooled = avg_pool2d(values.reshape(1, -1, *values.shape[-2:]), size, ceil_mode=True, count_include_pad=False)
    return pooled.reshape(*lead, *pooled.shape[-2:])
