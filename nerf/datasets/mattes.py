"""What the photos' alpha is: silhouettes of an object, or only a mask; and cut-outs that came back empty."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from nerf.datasets.named import listed
from nerf.datasets.region import some_of, visual_hull_box
from nerf.datasets.store import PixelStore
from nerf.geometry.cameras import Cameras

_SHOWN = 0.1  # of full alpha: less everywhere is an empty cut-out
_USED = 0.95  # from where on a pixel counts where alpha is a mask
# Of the pixels along the pictures' edges that are opaque, the median over the photos: an object that is cut off by one
# edge has a quarter, photos that leave out a sky or a person most of them.
_CUT, _NO_OBJECT = 0.15, 0.5


@dataclass
class Alpha:
    """What the photos' alpha says."""

    silhouettes: bool = False  # of an object; else it is none, or a mask
    is_mask: bool = False
    empty: set[int] = field(default_factory=set)  # photos that show nothing though the others do: not used

    def used(self, store: PixelStore, i: int) -> np.ndarray | None:
        """[h,w] bool of the pixels of photo i to learn from; None: all."""
        if i in self.empty:
            return np.zeros((int(store.heights[i]), int(store.widths[i])), bool)
        return _alpha(store, i) >= _USED if self.is_mask else None


def judge_alpha(store: PixelStore, cameras: Cameras, names: list[str], asked: bool, notes: list[str]) -> Alpha:
    """Look at the alpha of all photos. asked: somebody said that there is an object, so silhouettes they are."""
    if store.n_channels not in (2, 4) or not _matters(store):
        return Alpha()
    empty = {i for i in range(len(store)) if not bool((_alpha(store, i) > _SHOWN).any())}
    if 2 * len(empty) >= len(store):  # not the exception
        empty = set()
    if empty:
        notes.append(
            f"{len(empty)} of {len(store)} photos are wholly transparent and not used, for that says that there is "
            f"nothing at all: {listed([names[i] for i in sorted(empty)])}; was the object not found when they were cut "
            "out?"
        )
    if not asked and _leaves_out(store, cameras, empty):
        notes.append(
            "alpha is taken for a mask, and not for the silhouette of an object: it reaches the edges of nearly every "
            "photo (--space box makes it silhouettes)"
        )
        return Alpha(False, True, empty)
    return Alpha(True, False, empty)


def _leaves_out(store: PixelStore, cameras: Cameras, empty: set[int]) -> bool:
    """Whether what is opaque is no object: it goes on beyond the edges nearly everywhere, or is around the cameras."""
    shares = []
    for i in some_of(store, 64):
        if i not in empty:
            on = _alpha(store, i) > 0.5
            shares.append(np.concatenate([on[0], on[-1], on[:, 0], on[:, -1]]).mean())
    at_edge = float(np.median(shares)) if shares else 0.0
    if at_edge <= _CUT or at_edge > _NO_OBJECT:
        return at_edge > _NO_OBJECT
    box = visual_hull_box(cameras, store)
    return box is not None and float(_inside(cameras.centres, *box).double().mean()) > 0.5


def _inside(points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ((points > low) & (points < high)).all(dim=1)


def _alpha(store: PixelStore, i: int) -> np.ndarray:
    """[h,w] float32, 1 where opaque."""
    alpha = store.raw(i)[..., -1]
    top = np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 1
    return alpha.astype(np.float32) / np.float32(top)


def _matters(store: PixelStore) -> bool:
    """Whether some image has pixels that are not opaque."""
    if store.ranges is not None:
        return bool((store.ranges[:, 0] < 0.99).any())
    return any(bool((_alpha(store, i) < 0.99).any()) for i in range(len(store)))
