"""Which pixels to learn from next: drawn by index, in small blocks, more often where the error is large."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf import kernels
from nerf.datasets import Scene
from nerf.errors import UserError
from nerf.training.schedule import Weights
from nerf.training.some_pixels import colour_and_alpha

BLOCK = 16  # pixels along the side of a block, the grain of the error map
KEYPOINTS = 8  # one pixel in so many shows a sparse point, where the scene has some
FIXED = 2.0**40  # units of 1 where sums are integers, so that their order does not matter


@dataclass
class PixelBatch:
    """n pixels: their camera, place, block, and colour (rgb [n,3], alpha [n,1]; straight, as the files hold them).

    >>> scene = nerf.load("data/sample", downscale=8)
    >>> batch = nerf.PixelSampler(scene, scene.splits["train"]).draw(64, torch.Generator())
    >>> batch.image_ids.shape, batch.targets.shape
    (torch.Size([64]), torch.Size([64, 3]))
    """

    image_ids: Tensor
    rows: Tensor
    cols: Tensor
    blocks: Tensor
    rgb: Tensor
    alpha: Tensor
    used: Tensor | None  # [n,1] 0 where a mask excludes the pixel
    depths: Tensor | None = None  # [n] z-depth in world units, 0 where unknown, transparent or masked
    # set by a training for its loss
    background: Tensor = field(default_factory=lambda: torch.ones(3))  # [n,3] what transparent pixels are shown over
    t_depths: Tensor | None = None  # [n] `depths` as places on the march, 0 where unknown
    weights: Weights = Weights()  # of the loss's terms
    surface: float | Tensor = 0.0  # that of the surface loss in this step

    def over_background(self, rgb: Tensor) -> Tensor:
        """Colours [n,3] with the pixels' alpha over the background."""
        return rgb * self.alpha + self.background * (1.0 - self.alpha)

    @property
    def targets(self) -> Tensor:
        """Colours [n,3] of the pixels over the background."""
        return self.over_background(self.rgb)


def valid_pixels(scene: Scene, i: int) -> Tensor:
    """Pixels [h,w] (bool) of image i that are not known to be empty, or excluded by a mask."""
    shown = torch.from_numpy(np.ascontiguousarray(scene.silhouette(i)))
    if scene.masks is not None:
        shown = shown | (scene.masks.image(i)[..., 0].cpu() <= 0.5)
    return shown


def depths_at(scene: Scene, image_ids: Tensor, rows: Tensor, cols: Tensor) -> Tensor | None:
    """z-depths [n] of pixels, world units, 0 where unknown; None where the scene has no depth maps.

    The nearest pixel of the map counts: between two surfaces there is none.
    """
    maps = scene.depths
    if maps is None:
        return None
    h, w = scene.pixels.heights[image_ids], scene.pixels.widths[image_ids]
    r = ((2 * rows + 1) * maps.heights[image_ids]) // (2 * h)
    c = ((2 * cols + 1) * maps.widths[image_ids]) // (2 * w)
    return maps.gather(image_ids, r, c)[:, 0]


def ray_lengths(scene: Scene, batch: PixelBatch, rays_d: Tensor) -> Tensor:
    """The batch's z-depths as lengths [n] along its scene rays (unit directions [n,3]), scene units; panoramas have
    distances in their place."""
    assert batch.depths is not None
    ahead = scene.scene_from_world.apply_directions(scene.cameras.forward[batch.image_ids]).float()
    cosine = torch.where(scene.cameras.spherical[batch.image_ids], 1.0, (ahead * rays_d).sum(dim=1))
    lengths = batch.depths * scene.scene_from_world.scale / cosine.clamp_min(1e-6)
    return torch.where(cosine > 0.05, lengths, torch.zeros_like(lengths))  # nearly sideways, z says nothing


def nothing_to_learn(scene: Scene) -> UserError:
    """What is said of training images without a pixel to learn from."""
    if scene.masks is not None:
        return UserError(
            f"{scene.path}: the masks leave nothing of the training images to learn from: "
            "expected masks that are white where the photos are to be used"
        )
    return UserError(
        f"{scene.path}: the training images are wholly transparent, so there is nothing to learn: "
        "expected photos whose alpha is above 0 where the object is"
    )


class Sampler:
    """What draws pixels, evenly spread over places in the photos (blocks, tiles): the part that all kinds share."""

    scene: Scene
    near: Tensor  # [k] the keypoints that may be drawn
    keypoint_places: Tensor  # [all keypoints] where each is
    images: Tensor  # [n_places] the photo that each place is in
    cumulative: Any  # Tensor [n_places] of the places' probabilities; None: all alike

    def start(self, n_places: int, place: Tensor | None) -> None:
        """An empty error map; place: that of each of the scene's keypoints, -1 where nothing is learnt from it."""
        device, found = self.scene.pixels.offsets.device, self.scene.keypoints
        self.errors, self.counts = (torch.zeros(n_places, device=device) for _ in range(2))
        self.keypoints = None if found is None else found.to(device)
        self.keypoint_places = torch.zeros(0, dtype=torch.int64, device=device) if place is None else place.to(device)
        self.photos_out = torch.zeros(0, dtype=torch.int64, device=device)  # ids: nothing is drawn from these photos
        self.find_near()

    @property
    def out(self) -> Tensor:
        """Which places [n_places] (bool) are in photos that nothing is drawn from."""
        return torch.isin(self.images, self.photos_out)

    def find_near(self) -> None:
        """Settle which keypoints may be drawn."""
        at = self.keypoint_places
        self.near = ((at >= 0) & ~self.out[at]).nonzero()[:, 0]

    def leave_out_photos(self, image_ids: Tensor) -> bool:
        """Draw nothing from these photos [k] from now on, and from all others again, first as often as the mean of the
        rest; whether that changes anything. UserError where nothing would be left to draw."""
        ids = image_ids.to(self.photos_out).unique()
        if torch.equal(ids, self.photos_out):
            return False
        before, after = self.out, torch.isin(self.images, ids)
        p = torch.ones(len(before), dtype=torch.float64, device=before.device)
        if self.cumulative is not None:
            sums = self.cumulative.to(p)
            p = sums.diff(prepend=sums.new_zeros(1))
        p = torch.where(before, p[(p > 0) & ~before].mean(), p) * ~after
        if not bool(p.sum() > 0):
            raise UserError("no photo to learn from would be left: keep some in training")
        self.photos_out = ids
        self._draw_by(p)
        self.find_near()
        return True

    def _draw_by(self, p: Tensor) -> None:
        """Draw from the places in proportion to p [n_places] from now on."""
        raise NotImplementedError

    def spread(self, u: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """(image_ids, rows, cols, places) [n] of pixels at shares u [n] of the total probability."""
        raise NotImplementedError

    def values(self, image_ids: Tensor, rows: Tensor, cols: Tensor, places: Tensor) -> list[Tensor]:
        """What the stores hold of pixels: [n,c], and [n,1] of the masks where there are some."""
        raise NotImplementedError

    def draw(self, n: int, generator: torch.Generator) -> PixelBatch:
        """n pixels, evenly spread over the places' probabilities (systematic sampling: one draw in each n-th of the
        total); the last of them show keypoints."""
        device, z_depths = self.errors.device, None
        n_known = n // KEYPOINTS if len(self.near) else 0
        n_drawn = n - n_known
        u = (torch.arange(n_drawn, device=device) + torch.rand(n_drawn, generator=generator, device=device)) / n_drawn
        where = self.spread(u, generator)
        if self.keypoints is not None and n_known:
            chosen = self.near[torch.randint(len(self.near), (n_known,), generator=generator, device=device)]
            known, z_depths = self.keypoints.select(chosen), self.keypoints.z_depths[chosen]
            more = known.image_ids, known.rows, known.cols, self.keypoint_places[chosen]
            where = tuple(torch.cat(pair) for pair in zip(where, more, strict=True))
        image_ids, rows, cols, places = where
        return self.look(image_ids, rows, cols, places, z_depths)

    def look(
        self, image_ids: Tensor, rows: Tensor, cols: Tensor, places: Tensor, z_depths: Tensor | None = None
    ) -> PixelBatch:
        """What pixels [n] in these places show; z_depths: those of the last of them, which show keypoints."""
        scene, n = self.scene, len(rows)
        values, *masked = self.values(image_ids, rows, cols, places)
        rgb, alpha = colour_and_alpha(scene, values)
        if scene.silhouettes is not None:
            alpha = scene.silhouettes.gather(image_ids, rows, cols)
        used = (masked[0] > 0.5).float() if masked else None
        depths = depths_at(scene, image_ids, rows, cols)
        if z_depths is not None:
            depths = torch.zeros(n, device=rows.device) if depths is None else depths
            depths[n - len(z_depths) :] = z_depths
        if depths is not None:
            depths = depths * (alpha[:, 0] > 0.99)
            depths = depths if used is None else depths * used[:, 0]
        return PixelBatch(image_ids, rows, cols, places, rgb, alpha, used, depths)

    def record(self, batch: PixelBatch, errors: Tensor) -> None:
        """Remember the errors [n] of a batch in its places."""
        if kernels.is_deterministic():  # integers do not mind the order in which a GPU adds them
            units = torch.zeros(len(self.errors), dtype=torch.int64, device=errors.device)
            units.index_add_(0, batch.blocks, (errors.double() * FIXED).long())
            self.errors += units.double() / FIXED
        else:
            self.errors.index_add_(0, batch.blocks, errors)
        self.counts.index_add_(0, batch.blocks, torch.ones_like(errors))

    def fade(self) -> Tensor:
        """The mean error of each place, that of all others where none was recorded; old errors fade."""
        seen, mean = self.counts > 0, self.errors / self.counts.clamp_min(1e-6)
        self.errors *= 0.7
        self.counts *= 0.7
        return torch.where(seen, mean, mean[seen].mean() if bool(seen.any()) else mean)


class PixelSampler(Sampler):
    """Draws pixels of the training images. Blocks that only show background far from any silhouette are left out, and
    those that masks exclude whole.

    The error map remembers the mean squared error of each block; `update_importance` has a share of the pixels drawn in
    proportion to it.

    >>> scene = nerf.load("data/sample", downscale=8)
    >>> sampler = PixelSampler(scene, scene.splits["train"])
    >>> sampler.record(sampler.draw(64, torch.Generator()), torch.rand(64))
    >>> sampler.update_importance(share=0.5)
    """

    def __init__(self, scene: Scene, image_ids: Tensor) -> None:
        self.scene = scene
        places = []
        for i in image_ids.tolist():
            h, w = int(scene.pixels.heights[i]), int(scene.pixels.widths[i])
            wanted = torch.ones(-(-h // BLOCK), -(-w // BLOCK), dtype=torch.bool)
            if scene.has_silhouettes:
                shown = valid_pixels(scene, i).float()[None, None]
                near = torch.nn.functional.max_pool2d(shown, BLOCK, ceil_mode=True)
                wanted = torch.nn.functional.max_pool2d(near, 3, 1, 1)[0, 0] > 0
            if scene.masks is not None:
                used = (scene.masks.image(i)[..., 0].cpu() > 0.5).float()[None, None]
                wanted &= torch.nn.functional.max_pool2d(used, BLOCK, ceil_mode=True)[0, 0] > 0
            at = wanted.nonzero()
            places.append(torch.cat([torch.full((len(at), 1), i), at], dim=1))
        if sum(len(at) for at in places) == 0:
            raise nothing_to_learn(scene)
        device = scene.pixels.offsets.device
        self.blocks = torch.cat(places).to(device)  # [n_blocks,3] image, block row, block column
        self.images, self.cumulative = self.blocks[:, 0].contiguous(), None
        self.left_out = torch.zeros(len(self.blocks), dtype=torch.bool, device=device)  # none of these is drawn
        self.start(len(self.blocks), self._keypoint_blocks())

    def _keypoint_blocks(self) -> Tensor | None:
        """The index of the block that each of the scene's keypoints is in, -1 where nothing is learnt from it."""
        if self.scene.keypoints is None:
            return None
        device, pixels = self.blocks.device, self.scene.pixels
        found, wide = self.scene.keypoints.to(device), -(-pixels.widths // BLOCK)
        first = torch.zeros(len(pixels) + 1, dtype=torch.int64, device=device)
        first[1:] = (wide * -(-pixels.heights // BLOCK)).cumsum(0)
        number = torch.full((int(first[-1]),), -1, dtype=torch.int64, device=device)
        image, row, col = self.blocks.unbind(1)
        number[first[image] + row * wide[image] + col] = torch.arange(len(self.blocks), device=device)
        row, col = found.rows // BLOCK, found.cols // BLOCK
        return number[first[found.image_ids] + row * wide[found.image_ids] + col]

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: errors and counts of the blocks of pixels; `restore` takes it back."""
        state = {"errors": self.errors, "counts": self.counts, "left_out": self.left_out}
        state |= {"photos_out": self.photos_out} if len(self.photos_out) else {}
        return state if self.cumulative is None else state | {"cumulative": self.cumulative}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave; UserError where it is of other pixels."""
        here = {name: t.to(self.blocks.device) for name, t in state.items()}
        if len(here["errors"]) != len(self.blocks):
            raise UserError(
                f"the checkpoint was learnt from {len(here['errors'])} blocks of pixels, now there are "
                f"{len(self.blocks)}: masks or photos have changed since; start again with --overwrite"
            )
        self.errors, self.counts, self.cumulative = here["errors"], here["counts"], here.get("cumulative")
        self.left_out = here.get("left_out", self.left_out)  # which checkpoints of before 0.2 do not have
        self.photos_out = here.get("photos_out", self.photos_out[:0])
        self.find_near()

    def spread(self, u: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        last, pixels = len(self.blocks) - 1, self.scene.pixels
        if self.cumulative is None:
            block = (u * (last + 1)).long().clamp_max(last)
        else:
            block = torch.searchsorted(self.cumulative, u).clamp_max(last)
        image_ids, block_rows, block_cols = self.blocks.index_select(0, block).unbind(1)
        inside = torch.randint(BLOCK * BLOCK, (len(u),), generator=generator, device=u.device)
        rows = torch.minimum(block_rows * BLOCK + inside // BLOCK, pixels.heights[image_ids] - 1)
        cols = torch.minimum(block_cols * BLOCK + inside % BLOCK, pixels.widths[image_ids] - 1)
        return image_ids, rows, cols, block

    def values(self, image_ids: Tensor, rows: Tensor, cols: Tensor, places: Tensor) -> list[Tensor]:
        stores = [self.scene.pixels] if self.scene.masks is None else [self.scene.pixels, self.scene.masks]
        return [store.gather(image_ids, rows, cols) for store in stores]

    def update_importance(self, share: float) -> None:
        """Draw from now on by what was recorded; old errors fade. Blocks never drawn count as average."""
        drawn = ~(self.left_out | self.out)
        mean = self.fade() * drawn
        self._draw_by((1 - share) * drawn / drawn.sum() + share * mean / mean.sum().clamp_min(1e-12))

    def _draw_by(self, p: Tensor) -> None:
        p = p.double() * ~self.left_out
        cumulative = (p * FIXED).long().cumsum(0).double() if kernels.is_deterministic() else p.cumsum(0)
        cumulative = (cumulative / cumulative[-1]).float()
        if self.cumulative is None:
            self.cumulative = cumulative
        else:  # in place: a recorded step reads it where it was
            self.cumulative.copy_(cumulative)
