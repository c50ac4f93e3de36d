"""Black borders of pictures, as undistorting and fisheye lenses leave them: no part of what was photographed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

DARK = 12  # of 255: black, after the decoder's rounding
FEWEST = 3  # pictures that say something
BLOCK = 4  # pixels along the side of the blocks in which colours are followed from the edges inwards
_ALWAYS, _LIT = 0.97, 0.75  # shares of the pictures where a place is black, and of what is beside it that is not
_LEAST, _MOST = 0.004, 0.5  # of the picture
_ASKED = 16  # pictures of one size


def black_border(dark: np.ndarray) -> np.ndarray | None:
    """Where pictures have a black border: bool [h,w]; None where they have none. dark: bool [n,h,w], what of each is
    black.

    A dark background is none: beside what is always black, most pictures are black too.
    """
    if len(dark) < FEWEST:
        return None
    border = joined_to_edges(dark.mean(axis=0) >= _ALWAYS)
    beside = grown(grown(border)) & ~grown(border)  # the first ring is blended where pictures were reduced
    if not _LEAST <= border.mean() <= _MOST or beside.sum() < 4:
        return None
    return border if float(np.median(1 - dark[:, beside].mean(axis=1))) >= _LIT else None


def borders_by_size(
    image: Callable[[int], np.ndarray], sizes: Sequence[tuple[int, int]], darkest: float
) -> dict[tuple[int, int], np.ndarray]:
    """The black borders of pictures i of (height, width), bool [h,w], for each size that has one, to the pixel: two
    pixels wider than what is black in all, which blends with it. image: picture i [h,w,c], of which _ASKED of each size
    are asked for; darkest: the brightest value that counts as black."""
    ids_of: dict[tuple[int, int], list[int]] = {}
    for i, size in enumerate(sizes):
        ids_of.setdefault(size, []).append(i)
    borders = {}
    for size, ids in ids_of.items():
        some = np.unique(np.linspace(0, len(ids) - 1, min(_ASKED, len(ids))).round().astype(int))
        dark = np.stack([image(ids[k])[..., :3].max(axis=2) <= darkest for k in some])
        coarse = dark
        for axis in (1, 2):  # much less to look at where there is none, as nearly always
            coarse = np.logical_and.reduceat(coarse, np.arange(0, coarse.shape[axis], BLOCK), axis=axis)
        if black_border(coarse) is not None:
            borders[size] = grown(grown(joined_to_edges(dark.mean(axis=0) >= _ALWAYS)))
    return borders


def grown(there: np.ndarray) -> np.ndarray:
    """[h,w] bool, and the pixels beside those."""
    out = there.copy()
    out[1:] |= there[:-1]
    out[:-1] |= there[1:]
    out[:, 1:] |= there[:, :-1]
    out[:, :-1] |= there[:, 1:]
    return out


def joined_to_edges(there: np.ndarray) -> np.ndarray:
    """The part of [h,w] bool that hangs together with the picture's edges."""
    found = np.zeros_like(there)
    found[[0, -1]], found[:, [0, -1]] = there[[0, -1]], there[:, [0, -1]]
    before = -1
    while (n := int(found.sum())) != before:
        before = n
        for turned in (False, True):
            for ahead in (1, -1):
                view, open_ = (a.T[:, ::ahead] if turned else a[:, ::ahead] for a in (found, there))
                view |= _carried_on(view, open_)
    return found


def _carried_on(reached: np.ndarray, like: np.ndarray) -> np.ndarray:
    """What is reached [h,w] along rows, from left to right, without leaving what is like."""
    at = np.arange(reached.shape[1])
    last_reached = np.maximum.accumulate(np.where(reached, at, -1), axis=1)
    last_other = np.maximum.accumulate(np.where(like, -1, at), axis=1)
    return like & (last_reached > last_other)
