"""Which pixels to learn from next, of sets that do not fit into memory: drawn from tiles that are, which change.

A part of all tiles (see nerf.datasets.tiles), spread over all photos, is in memory: the working set. Batches are drawn
from it, and every so many of them some of its tiles make room for others, which a thread has read meanwhile. Where the
error is large, tiles are taken more often; so pixels are drawn as PixelSampler draws them, seen over many batches.
What is drawn depends on the random numbers alone, never on how fast the disk is.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from nerf.datasets import PixelStore, Scene
from nerf.datasets.store import as_tensor
from nerf.errors import UserError
from nerf.training.pixel_sampler import PixelBatch, PixelSampler, Sampler, nothing_to_learn

WORKING_SET = 256 << 20  # bytes of pixels in memory: more than a CPU learns from in minutes
CHANGE_EVERY = 64  # batches
SHARE = 16  # one in so many tiles of the working set is changed at a time


def sampler_of(scene: Scene, image_ids: Tensor) -> PixelSampler | TileSampler:
    """What draws pixels of the training images of this scene."""
    return TileSampler(scene, image_ids) if scene.pixels.tile else PixelSampler(scene, image_ids)


class TileSampler(Sampler):
    """PixelSampler for stores in tiles: the same use, bounded memory. The error map's grain is a tile."""

    def __init__(self, scene: Scene, image_ids: Tensor, working_set: int = WORKING_SET) -> None:
        self.scene = scene
        self.stores = [store for store in (scene.pixels, scene.masks) if isinstance(store, PixelStore)]
        self.files = [  # read for as long as the sampler lives
            open(store.memory.filename, "rb")  # type: ignore[attr-defined]  # noqa: SIM115
            for store in self.stores
        ]
        numbers, places = _places(scene, image_ids.cpu().sort().values)
        if len(numbers) == 0:
            raise nothing_to_learn(scene)
        device = scene.pixels.offsets.device
        self.numbers = numbers  # [n] of the training images' tiles in the file, on the CPU
        self.places = places.to(device)  # [n,5] image, first row, first column, rows and columns within the image
        self.images = self.places[:, 0].contiguous()
        self.areas = (places[:, 3] * places[:, 4]).double()
        self.start(len(numbers), self._keypoint_tiles())
        self.cumulative = _cumulative(self.areas)
        tile_bytes = sum(store.memory[: store.tile**2].nbytes for store in self.stores)
        n = min(len(numbers), max(SHARE, working_set // tile_bytes))
        self._hold(self._choose(n, torch.Generator().manual_seed(0)))
        self.reader = ThreadPoolExecutor(1)
        self.next: tuple[Tensor, Future[list[Tensor]]] | None = None  # tiles that come next
        self.n_drawn, self.oldest = 0, 0

    def _hold(self, tiles: Tensor) -> None:
        """Have these tiles [n slots] in memory."""
        self.held = tiles
        self.tiles = [t.to(self.places.device) for t in self._read(tiles)]  # of each store [n slots, tile^2, c]
        self._find_slots()

    def _find_slots(self) -> None:
        slot_of = torch.full((len(self.numbers),), -1, dtype=torch.int64)
        slot_of[self.held] = torch.arange(len(self.held))
        self.slot_of = slot_of.to(self.places.device)  # -1: the tile is not in memory
        at = self.keypoint_places
        self.near = ((at >= 0) & (self.slot_of[at] >= 0)).nonzero()[:, 0]

    def tensors(self) -> dict[str, Tensor]:
        state = {"errors": self.errors, "counts": self.counts, "cumulative": self.cumulative, "held": self.held}
        state["at"] = torch.tensor([self.n_drawn, self.oldest])
        state |= {"photos_out": self.photos_out} if len(self.photos_out) else {}
        return state if self.next is None else state | {"next": self.next[0]}

    def restore(self, state: dict[str, Tensor]) -> None:
        device = self.places.device
        self.errors, self.counts = state["errors"].to(device), state["counts"].to(device)
        self.cumulative = state["cumulative"].cpu()
        self.photos_out = state.get("photos_out", self.photos_out[:0]).to(device)
        self._hold(state["held"].cpu())
        self.n_drawn, self.oldest = state["at"].tolist()
        self.next = None
        if "next" in state:
            self._fetch(state["next"].cpu())

    def spread(self, u: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        tiles = self.held.to(u.device)[(u * len(self.held)).long().clamp_max(len(self.held) - 1)]
        image_ids, top, left, height, width = self.places.index_select(0, tiles).unbind(1)
        inside = torch.rand(2, len(u), generator=generator, device=u.device)
        down = torch.minimum((inside[0] * height).long(), height - 1)
        across = torch.minimum((inside[1] * width).long(), width - 1)
        return image_ids, top + down, left + across, tiles

    def values(self, image_ids: Tensor, rows: Tensor, cols: Tensor, places: Tensor) -> list[Tensor]:
        side = self.stores[0].tile
        flat = (self.slot_of[places] * side + rows % side) * side + cols % side
        pairs = zip(self.stores, self.tiles, strict=True)
        return [store.to_float(held.flatten(0, 1).index_select(0, flat)) for store, held in pairs]

    def draw(self, n: int, generator: torch.Generator) -> PixelBatch:
        """n pixels, evenly spread over the working set; the last of them show keypoints of it."""
        self.n_drawn += 1
        if self.n_drawn % CHANGE_EVERY == 0:
            self._change(generator)
        return super().draw(n, generator)

    def update_importance(self, share: float) -> None:
        """Take tiles from now on by what was recorded; old errors fade. Tiles never drawn from count as average."""
        areas = self.areas * ~self.out.cpu()
        mean = self.fade().cpu().double() * areas
        self._draw_by((1 - share) * areas / areas.sum() + share * mean / mean.sum().clamp_min(1e-12))

    def _draw_by(self, p: Tensor) -> None:
        self.cumulative = _cumulative(p.cpu())

    def leave_out_photos(self, image_ids: Tensor) -> bool:
        changed = super().leave_out_photos(image_ids)
        if changed:  # tiles of these photos are in memory, or are being read
            self.next = None
            self._hold(self._choose(len(self.held), torch.Generator().manual_seed(self.n_drawn)))
        return changed

    def _change(self, generator: torch.Generator) -> None:
        """Put the tiles that were read meanwhile in the place of the oldest, and have the next ones read."""
        if self.next is not None:
            chosen, read = self.next
            slots = (self.oldest + torch.arange(len(chosen))) % len(self.held)
            for held, new in zip(self.tiles, read.result(), strict=True):
                held[slots.to(held.device)] = new.to(held.device)
            self.held[slots] = chosen
            self.oldest = (self.oldest + len(chosen)) % len(self.held)
            self._find_slots()
        own = torch.Generator().manual_seed(
            int(torch.randint(1 << 40, (1,), generator=generator, device=generator.device))
        )
        self._fetch(self._choose(max(1, len(self.held) // SHARE), own))

    def _keypoint_tiles(self) -> Tensor | None:
        """The index of the tile that each of the scene's keypoints is in, -1 where nothing is learnt from it."""
        found, store = self.scene.keypoints, self.scene.pixels
        if found is None:
            return None
        side, first, widths = store.tile, store.offsets.cpu() // store.tile**2, store.widths.cpu()
        ids, rows, cols = found.image_ids.cpu(), found.rows.cpu(), found.cols.cpu()
        number = first[ids] + rows // side * (-(-widths[ids] // side)) + cols // side
        tile = torch.searchsorted(self.numbers, number).clamp_max(len(self.numbers) - 1)
        return torch.where(self.numbers[tile] == number, tile, -1)

    def _choose(self, n: int, generator: torch.Generator) -> Tensor:
        """n tiles [n] by their probability, one in each n-th of the total; in an order of no meaning."""
        u = (torch.arange(n) + torch.rand(n, generator=generator)).double() / n
        chosen = torch.searchsorted(self.cumulative, u).clamp_max(len(self.cumulative) - 1)
        return chosen[torch.randperm(n, generator=generator)]

    def _fetch(self, chosen: Tensor) -> None:
        self.next = chosen, self.reader.submit(self._read, chosen)

    def _read(self, chosen: Tensor) -> list[Tensor]:
        """The tiles [n,tile^2,c] of each store, in the order of their places on the disk."""
        order = self.numbers[chosen].argsort()
        found = []
        for store, file in zip(self.stores, self.files, strict=True):
            size = store.tile**2
            tiles = np.empty((len(chosen), size, store.n_channels), store.memory.dtype)
            for k in order.tolist():
                place = int(self.numbers[chosen[k]]) * tiles[k].nbytes
                if os.preadv(file.fileno(), [tiles[k].data], place) != tiles[k].nbytes:
                    raise UserError(
                        "the converted photos are shorter than they were: was their file changed? Start again"
                    )
            found.append(as_tensor(tiles))
        return found


def _cumulative(p: Tensor) -> Tensor:
    cumulative = p.double().cumsum(0)
    return cumulative / cumulative[-1]


def _places(scene: Scene, image_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(numbers [n] in the file of the images' tiles that may show something, their places [n,5] as TileSampler has
    them)."""
    store: PixelStore = scene.pixels
    side, found = store.tile, []
    for i in image_ids.tolist():
        h, w, first = (int(t[i]) for t in (store.heights, store.widths, store.offsets))
        down, across = -(-h // side), -(-w // side)
        number = torch.arange(down * across)
        top, left = number // across * side, number % across * side
        number = number + first // (side * side)
        kept = _may_show(scene, number)
        place = torch.stack(
            [torch.full_like(top, i), top, left, (h - top).clamp_max(side), (w - left).clamp_max(side)], 1
        )
        found.append(torch.cat([number[:, None], place], dim=1)[kept])
    table = torch.cat(found)
    return table[:, 0].contiguous(), table[:, 1:].contiguous()


def _may_show(scene: Scene, numbers: Tensor) -> Tensor:
    """Whether tiles hold a pixel that is not known to be empty (see `valid_pixels`), and one that is used."""
    shown = torch.ones(len(numbers), dtype=torch.bool)
    if scene.has_alpha:
        assert scene.pixels.ranges is not None
        shown = scene.pixels.ranges[numbers, 1] > 0
    if scene.masks is not None:
        assert scene.masks.ranges is not None
        least, most = scene.masks.ranges[numbers].unbind(1)
        shown = (shown | (least <= 0.5)) & (most > 0.5)
    return shown
