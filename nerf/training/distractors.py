"""People and things that moved: places where one photo shows something else than all others see there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nerf.geometry.light import shown_as
from nerf.training.exposure import ExposureCorrections, apply_exposure_over
from nerf.training.pixel_sampler import BLOCK, PixelSampler
from nerf.training.some_pixels import some_pixels

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.rendering.model import Model

CELL = 32  # pixels along the side of the cells that are judged, by one ray each
RATIO = 6.0  # times the error of what other photos see in the same place, from which on a photo contradicts them
LEAST = 1e-2  # mean squared error below which nothing does: 20 dB
USUAL = 3.0  # times the median error of all, likewise: while a field is young, all of it is wrong
_DEPTH = 0.1  # share of the distance by which what another photo sees may lie apart to be the same
_FEWEST = 3  # other photos that see the place
_VOTE = 4 / 9  # of a cell and its neighbours: single cells are highlights and edges
_MOST = 0.5  # of a photo: where more contradicts, it is the photo's light or its pose, and nothing is left out
_TOLD = 0.05  # of a photo, from where on that is said
_CHUNK = 1 << 12


class Distractors:
    """Cells of CELL x CELL pixels of the photos trained on, and which of them to leave out.

    After the idea of RobustNeRF (Sabour et al. 2023), that a field learns first what photos agree on; but cells are
    held against what other photos see in the same place, where thin detail is as wrong, and not against a quantile.
    """

    def __init__(self, scene: Scene, ids: Tensor) -> None:
        self.scene, self.ids = scene, ids.cpu()
        down = -(-scene.pixels.heights.cpu()[self.ids] // CELL)
        across = -(-scene.pixels.widths.cpu()[self.ids] // CELL)
        self.shapes = list(zip(down.tolist(), across.tolist(), strict=True))
        counts = down * across
        self.first, self.across = counts.cumsum(0) - counts, across
        self.photo = torch.arange(len(ids)).repeat_interleave(counts)  # of each cell, as an index into ids
        inside = torch.arange(int(counts.sum())) - self.first[self.photo]
        self.row, self.column = inside // across[self.photo], inside % across[self.photo]

    @torch.no_grad()
    def find(self, model: Model, exposures: ExposureCorrections | None, seed: int = 0) -> Tensor:
        """Which cells contradict the other photos: bool [n]."""
        errors, points, distances = self._look(model, exposures, torch.Generator().manual_seed(seed))
        smooth = self._around(errors)
        least = max(LEAST, USUAL * float(smooth.median()))
        wrong = torch.zeros(len(errors), dtype=torch.bool)
        asked = ((smooth > least) & distances.isfinite()).nonzero()[:, 0]
        for some in asked.split(_CHUNK):
            wrong[some] = smooth[some] > RATIO * self._elsewhere(some, points, distances, smooth)
        wrong = (self._around(wrong.float()) >= _VOTE) & (smooth > least)  # a cell beyond what is wrong, by the means
        counts = torch.zeros(len(self.ids)).index_add_(0, self.photo, wrong.float())
        whole = counts > _MOST * torch.bincount(self.photo, minlength=len(self.ids))
        return wrong & ~whole[self.photo]

    def blocks(self, cells: Tensor, blocks: Tensor) -> Tensor:
        """Which of the sampler's blocks [m,3] (image, row, column) lie in these cells [n]: bool [m]."""
        index = torch.full((len(self.scene.names),), -1, dtype=torch.int64)
        index[self.ids] = torch.arange(len(self.ids))
        image, row, column = blocks.cpu().unbind(1)
        photo = index[image]
        return cells[self.first[photo] + row * BLOCK // CELL * self.across[photo] + column * BLOCK // CELL]

    def _look(
        self, model: Model, exposures: ExposureCorrections | None, random: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(squared errors [n], scene points [n,3], distances [n] from the camera, infinite where nothing is) of one
        random pixel of each cell."""
        scene = self.scene
        u = (torch.rand(2, len(self.photo), generator=random) * CELL).long()
        image_ids = self.ids[self.photo]
        rows = torch.minimum(self.row * CELL + u[0], scene.pixels.heights.cpu()[image_ids] - 1)
        cols = torch.minimum(self.column * CELL + u[1], scene.pixels.widths.cpu()[image_ids] - 1)
        pixels = some_pixels(scene, image_ids, rows, cols)
        rays_o, rays_d = pixels.rays_o, pixels.rays_d
        truth, seen = shown_as(model, pixels.rgb), model.render_rays(rays_o, rays_d)
        colours, behind = (shown_as(model, c) for c in (seen.over(model.behind(rays_d)), model.behind(rays_d)))
        if exposures is not None:
            logs = exposures.at(pixels.image_ids, pixels.rows, pixels.cols, seen.median_depths)
            colours = apply_exposure_over(colours, logs, seen.opacities[:, None], behind)
        errors = (colours.clamp(0, 1) - truth.clamp(0, 1)).square().mean(dim=1) * pixels.used
        t = model.space.t_to_depth(rays_o, rays_d, seen.median_depths)
        points = rays_o + t[:, None] * rays_d
        return errors.cpu(), points.cpu(), torch.where(t > 0, t, torch.inf).cpu()

    def _elsewhere(self, some: Tensor, points: Tensor, distances: Tensor, smooth: Tensor) -> Tensor:
        """The median error [m] of what other photos see where these cells [m] see something; infinite where few do."""
        scene = self.scene
        cameras = scene.cameras.to(torch.device("cpu")).subset(self.ids)
        world = scene.scene_from_world.inverse().apply(points[some].double().cpu())
        uv, _ = cameras.project(world)  # [photos,m,2]
        size = torch.stack([cameras.widths, cameras.heights], dim=1)[:, None]
        local = (world - cameras.centres[:, None]) @ cameras.forward[..., None]
        ahead = (local[..., 0] > 0) | cameras.spherical[:, None]
        inside = ahead & ((uv >= 0) & (uv < size)).all(dim=2)
        column, row = (torch.where(inside, uv[..., k], 0.0).long() // CELL for k in (0, 1))
        cell = self.first[:, None] + row * self.across[:, None] + column
        centres = scene.scene_from_world.apply(cameras.centres)
        away = (points[some][None].double() - centres[:, None]).norm(dim=2)
        same = inside & ((distances[cell] / away - 1).abs() < _DEPTH)
        same &= torch.arange(len(self.ids))[:, None] != self.photo[some][None]
        found = torch.where(same, smooth[cell], torch.nan)
        middle = found.nanmedian(dim=0).values
        return torch.where(same.sum(dim=0) >= _FEWEST, middle, torch.inf)

    def _around(self, values: Tensor) -> Tensor:
        """The mean of cells' values [n] over each and its neighbours within the photo."""
        parts = values.split([h * w for h, w in self.shapes])
        grids = (part.reshape(1, 1, *shape) for part, shape in zip(parts, self.shapes, strict=True))
        return torch.cat([avg_pool2d(grid, 3, 1, 1, count_include_pad=False).flatten() for grid in grids])


def left_out_in_words(names: list[str], sampler: PixelSampler) -> str:
    """Of which photos what share is not learnt from; empty where that is little."""
    image_ids = sampler.blocks[:, 0].cpu()
    counts = torch.zeros(len(names)).index_add_(0, image_ids, sampler.left_out.float().cpu())
    shares = counts / torch.bincount(image_ids, minlength=len(names)).clamp_min(1)
    worst = [i for i in shares.argsort(descending=True).tolist() if shares[i] >= _TOLD]
    if not worst:
        return ""
    listed = ", ".join(f"{names[i]} {100 * float(shares[i]):.0f} %" for i in worst[:4])
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return (
        f"parts of {len(worst)} photos show what others do not see there, as people and things that moved do, and were "
        f"not learnt from: {listed}{more}"
    )
