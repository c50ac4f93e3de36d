"""A place too large for one field, divided along its ground into cells, each with the photos that see it.

Only poses, lenses and sparse points are asked; no photo is read. Rays cross the cells one after another
(`nerf.rendering.blocks`), and each cell is trained on its own photos (`nerf.datasets.parts`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nerf.datasets.parts import Split
from nerf.datasets.posed import Posed
from nerf.errors import UserError, note
from nerf.geometry.aim import common_up
from nerf.geometry.cameras import Cameras
from nerf.geometry.cells import Cell, divide
from nerf.geometry.space import Similarity

PHOTOS_A_CELL = 150  # of `auto`
FEWEST = 8  # photos that a cell is learnt from
MARGIN = 0.1  # of a cell's longer side: how far its finest detail reaches beyond what it is asked for
_ACROSS, _DOWN = 8, 6  # rays of a picture that say what it shows
SHOWN, REACH = 0.1, 1.0  # share of them that must meet a cell; how far away, in lengths of its longer side
FEWEST_POINTS = 100
_ROBUST = 0.01  # share of the sparse points that may lie beyond either end of each axis


@dataclass(frozen=True)
class Plot:
    """One cell of a divided place, in the place's scene frame."""

    cell: Cell
    box: Cell  # what is in it, of finite sides
    photos: Split

    @property
    def n_train(self) -> int:
        """Of the photos, those that it learns from."""
        return sum(split == "train" for split in self.photos.values())

    def frame(self, place: Similarity) -> Similarity:
        """scene_from_world of the cell's field: [-1,1]^3 is a cube around its box and a margin; axes as the place's."""
        low, high = torch.tensor(self.box.low).double(), torch.tensor(self.box.high).double()
        half = 0.5 * float((high - low)[:2].max()) * (1 + 2 * MARGIN)
        scale = place.scale / half
        return Similarity(scale, place.rotation, (place.translation - (low + high) / 2) / half)


@dataclass(frozen=True)
class Division:
    """A place and its cells. Axes of its scene frame: x and y along the ground, z up; what is in it fills [-1,1]^3."""

    scene_from_world: Similarity
    plots: list[Plot]
    photos: Split

    @staticmethod
    def of(posed: Posed, n: int | None) -> Division:
        """Into n cells (None: as many as have PHOTOS_A_CELL photos each) by where the cameras stand, and by the sparse
        points, where there are any, what is in them. UserError where that is too many."""
        cameras, wanted = posed.cameras.subset(posed.splits["train"]), n
        if wanted is None:
            wanted = max(1, -(-len(cameras) // PHOTOS_A_CELL))
        place = _level_frame(cameras)
        content = _content(place.apply(cameras.centres), posed.points, place)
        low, high = content.amin(dim=0), content.amax(dim=0)
        half = max(float((high - low).max()) / 2, 1e-9)
        place = Similarity(1 / half, place.rotation, -(low + high) / 2 / half)
        centres, content = place.apply(cameras.centres), (content - (low + high) / 2) / half
        cells = divide(centres, wanted)
        made = Division(place, [Plot(cell, _box(content[cell.contains(content)]), {}) for cell in cells], {})
        made = made.assigned(posed)
        poor = [k for k, plot in enumerate(made.plots) if plot.n_train < FEWEST]
        if poor and n is None:
            return Division.of(posed, wanted - 1)
        if poor:
            raise UserError(
                f"{wanted} cells are too many: cell {poor[0]} of them is seen by {made.plots[poor[0]].n_train} photos, "
                f"and {FEWEST} are needed: choose fewer --blocks"
            )
        return made

    def assigned(self, posed: Posed) -> Division:
        """The same cells with the photos that see them now. A photo known before keeps its split."""
        splits = {i: split for split, ids in posed.splits.items() for i in ids.tolist()}
        names = [frame.name for frame in posed.frames]
        known = {name: self.photos.get(name) or splits[i] for i, name in enumerate(names)}
        if self.photos:  # which of all are held out changes with their number
            known |= {name: "train" for name in names if name not in self.photos and _by_rule(posed)}
        sees = _seen(posed.cameras, self.scene_from_world, [plot.box for plot in self.plots])
        mine = [[names[i] for i in column.nonzero()[:, 0].tolist()] for column in sees.T]
        plots = [
            replace(plot, photos={name: known[name] for name in some})
            for plot, some in zip(self.plots, mine, strict=True)
        ]
        return replace(self, plots=plots, photos=known)


def _by_rule(posed: Posed) -> bool:
    """Whether the files do not say themselves what is held out."""
    return not any(frame.split in ("val", "test") for frame in posed.frames)


def _level_frame(cameras: Cameras) -> Similarity:
    """From the world to axes along the ground, x where the cameras stand farthest apart, and up; lengths stay."""
    up = common_up(cameras)[0]
    level = cameras.centres - (cameras.centres @ up)[:, None] * up
    level = level - level.mean(dim=0)
    along = torch.linalg.eigh(level.T @ level + 1e-12 * torch.eye(3, dtype=torch.float64)).eigenvectors[:, -1]
    along = torch.nn.functional.normalize(along - (along @ up) * up, dim=0)
    rotation = torch.stack([along, torch.linalg.cross(up, along), up])
    return Similarity(1.0, rotation, torch.zeros(3, dtype=torch.float64))


def _content(centres: Tensor, points: Tensor | None, place: Similarity) -> Tensor:
    """Cameras and sparse points [m,3], without those far off. Where there are no points, cells are as high as wide."""
    if points is None or len(points) < FEWEST_POINTS:
        note("there are no sparse points: the ground is divided by where the cameras stand alone")
        half = (centres[:, :2].amax(dim=0) - centres[:, :2].amin(dim=0)).max() / 2
        return torch.cat([centres + half * around for around in torch.tensor([[0, 0, -0.5], [0, 0, 0], [0, 0, 0.5]])])
    points = place.apply(points)
    low, high = torch.from_numpy(np.quantile(points.numpy(), (_ROBUST, 1 - _ROBUST), axis=0))
    return torch.cat([centres, points[((points >= low) & (points <= high)).all(dim=1)]])


def _box(content: Tensor) -> Cell:
    """Around points [m,3]."""
    low, high = content.amin(dim=0), content.amax(dim=0)
    return Cell(tuple(low.tolist()), tuple((high + 1e-6).tolist()))


def _seen(cameras: Cameras, place: Similarity, boxes: list[Cell]) -> Tensor:
    """Which cameras see which boxes, bool [n,k]: those in whose pictures enough of it is, from near enough; each sees
    one at least."""
    n = _ACROSS * _DOWN
    ids = torch.arange(len(cameras)).repeat_interleave(n)
    across, down = (torch.arange(k) + 0.5 for k in (_ACROSS, _DOWN))
    rows = (down[:, None] / _DOWN).expand(_DOWN, _ACROSS).flatten().repeat(len(cameras)) * cameras.heights[ids] - 0.5
    cols = (across[None] / _ACROSS).expand(_DOWN, _ACROSS).flatten().repeat(len(cameras)) * cameras.widths[ids] - 0.5
    rays = cameras.rays(ids, rows, cols, place)
    shares, middles = [], place.apply(cameras.centres)
    for box in boxes:
        near, far = box.clip_rays(*rays)
        side = max(box.high[0] - box.low[0], box.high[1] - box.low[1])
        shares.append(((near < far) & (near <= REACH * side)).reshape(-1, n).double().mean(dim=1))
    share = torch.stack(shares, dim=1)
    away = torch.stack([(middles - (torch.tensor(b.low) + torch.tensor(b.high)) / 2).norm(dim=1) for b in boxes], dim=1)
    best = (share - 1e-6 * away).argmax(dim=1)  # the nearest, where it sees none
    return (share >= SHOWN).index_put((torch.arange(len(cameras)), best), torch.tensor(True))
