"""How far a rendered picture [h,w,c] is from the true one, both clipped to [0,1]: PSNR, SSIM, a fit of the colours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BAND = 128  # rows of a picture that are looked at together


def psnr(rendered: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio of one view in decibels: -10 log10(mean squared error) over all pixels and channels,
    of the mask [h,w] where given. Equal pictures give infinity, an empty mask NaN."""
    _same_shape(rendered, truth)
    squared = (rendered.clamp(0, 1) - truth.clamp(0, 1)).square_()
    if mask is not None:
        squared = squared[mask.bool()]
    if squared.numel() == 0:
        return math.nan
    error = float(squared.sum(dtype=torch.float64)) / squared.numel()
    return math.inf if error == 0 else -10 * math.log10(error)


def psnr_of(mse: float, peak: float = 1.0) -> float:
    """PSNR in dB of a mean squared error; 100 dB at most, where there is no error to speak of."""
    return 10.0 * math.log10(peak * peak / max(mse, 1e-10 * peak * peak))


def hdr_psnr(rendered: Tensor, truth: Tensor, brightest: float, mask: Tensor | None = None) -> float:
    """PSNR in decibels of linear light, dark and bright alike: after log(1 + 5000 c / brightest) / log(5001).

    Source: the mu-law of Kalantari and Ramamoorthi, "Deep High Dynamic Range Imaging of Dynamic Scenes", 2017, eq. 2.
    """

    def curve(colors: Tensor) -> Tensor:
        return (1 + 5000 * colors.double().clamp_min(0) / brightest).log() / math.log(5001)

    return psnr(curve(rendered), curve(truth), mask)


def ssim(rendered: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Structural similarity, mean over windows (with centres in the mask [h,w]) and channels; 1 for equal pictures.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity", 2004,
    equation 13: Gaussian window of 11x11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, data range 1, only
    windows that lie inside the picture. Raises ValueError for pictures that are smaller.
    """
    _same_shape(rendered, truth)
    if rendered.dim() != 3 or min(rendered.shape[:2]) < 11:
        raise ValueError(f"ssim: expected pictures [h, w, c] of at least 11x11 pixels, got {tuple(rendered.shape)}")
    total, count = 0.0, 0
    for top in range(0, rendered.shape[0] - 10, BAND):  # a band at a time: large views cost little
        rows = slice(top, top + BAND + 10)
        counts = None if mask is None else mask[rows][5:-5, 5:-5].bool()
        for c in range(rendered.shape[2]):
            x, y = (picture[rows, :, c].clamp(0, 1).double() for picture in (rendered, truth))
            similarity = _ssim_map(x, y)
            if counts is not None:
                similarity = similarity[counts]
            total, count = total + float(similarity.sum()), count + similarity.numel()
    return total / count if count else math.nan


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """[h, w] pictures -> [h-10, w-10] similarity of each window; the moments are Gaussian-weighted and biased."""
    offsets = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    window = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    window = window / window.sum()
    moments = torch.stack([x, y, x * x, y * y, x * y])
    # The window is a product of two one-dimensional ones; shifted sums beat conv2d for a single channel in float64.
    height, width = x.shape
    blurred = torch.zeros(5, height - 10, width, dtype=x.dtype, device=x.device)
    for k in range(11):
        blurred.add_(moments[:, k : k + height - 10], alpha=float(window[k]))
    sums = torch.zeros(5, height - 10, width - 10, dtype=x.dtype, device=x.device)
    for k in range(11):
        sums.add_(blurred[:, :, k : k + width - 10], alpha=float(window[k]))
    mean_x, mean_y, square_x, square_y, product = sums
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )


def colour_correct(rendered: Tensor, truth: Tensor, degree: int = 2, mask: Tensor | None = None) -> Tensor:
    """The rendered picture [h,w,3] with its colours fitted to the truth: one global colour curve per view.

    For photographs that differ in exposure and white balance, which a field cannot know for a view it has not seen.
    Each output channel is a polynomial of the rendered r, g, b (degree 1: affine; 2: with squares and products), fitted
    by least squares over all pixels (of the mask [h,w]). After Mildenhall et al., "NeRF in the Dark" (RawNeRF), 2022,
    and the evaluation of Mip-NeRF 360; theirs repeats the fit without clipped pixels, ours is one solve, and so its
    mean squared error is never above that of the uncorrected picture.
    """
    _same_shape(rendered, truth)
    if degree not in (1, 2):
        raise ValueError(f"colour_correct: degree must be 1 (affine) or 2 (quadratic), got {degree}")
    x = rendered.clamp(0, 1).reshape(-1, rendered.shape[-1])
    y = truth.clamp(0, 1).reshape(-1, truth.shape[-1])
    rows = torch.arange(len(x)) if mask is None else mask.reshape(-1).nonzero()[:, 0]
    n_terms = _colour_terms(x[:1], degree).shape[1]
    gram = torch.zeros(n_terms, n_terms, dtype=torch.float64, device=x.device)
    target = torch.zeros(n_terms, x.shape[1], dtype=torch.float64, device=x.device)
    for some in rows.split(1 << 16):
        before = x[some].double()
        terms = _colour_terms(before, degree)
        gram += terms.T @ terms
        target += terms.T @ (y[some].double() - before)
    # Solving for the change, with a little ridge: a flat picture then keeps its colours instead of failing, and "no
    # change" is among the candidates, so the fit cannot do worse.
    ridge = 1e-9 * max(len(rows), 1)
    change = torch.linalg.solve(gram + ridge * torch.eye(n_terms, dtype=torch.float64, device=x.device), target)
    corrected = torch.empty_like(x)
    for some, into in zip(x.split(1 << 16), corrected.split(1 << 16), strict=True):
        before = some.double()
        into.copy_((before + _colour_terms(before, degree) @ change).clamp(0, 1))
    return corrected.reshape(rendered.shape)


def _colour_terms(colors: Tensor, degree: int) -> Tensor:
    """[n, c] -> [n, terms]: 1, each channel, and for degree 2 every product of two channels."""
    columns = [torch.ones_like(colors[:, :1]), colors]
    if degree == 2:
        n_channels = colors.shape[1]
        columns += [colors[:, i : i + 1] * colors[:, i:] for i in range(n_channels)]
    return torch.cat(columns, dim=1)


def _same_shape(rendered: Tensor, truth: Tensor) -> None:
    if rendered.shape != truth.shape:
        raise ValueError(f"rendered is {tuple(rendered.shape)}, truth is {tuple(truth.shape)}: they must agree")
