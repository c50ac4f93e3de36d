"""Pixels of photos that are asked for one by one: what the photos show there, and the rays that see it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nerf.datasets import Scene


class SomePixels(NamedTuple):
    """Pixels [n] of a scene's photos."""

    image_ids: Tensor
    rows: Tensor
    cols: Tensor
    rgb: Tensor  # [n,3] as the scene holds colours
    alpha: Tensor  # [n,1], 1 where photos have none
    used: Tensor  # bool [n]: not outside of masks
    rays_o: Tensor  # [n,3] in the scene's coordinates
    rays_d: Tensor


def some_pixels(scene: Scene, image_ids: Tensor, rows: Tensor, cols: Tensor) -> SomePixels:
    """These pixels [n] (integers, any device), where the scene's pixels are."""
    device = scene.pixels.offsets.device
    image_ids, rows, cols = image_ids.to(device), rows.to(device), cols.to(device)
    values = scene.pixels.gather(image_ids, rows, cols)
    rgb, alpha = colour_and_alpha(scene, values)
    used = torch.ones_like(image_ids, dtype=torch.bool)
    if scene.masks is not None:
        used = scene.masks.gather(image_ids, rows, cols)[:, 0] > 0.5
    rays = scene.cameras.rays(image_ids, rows, cols, scene.scene_from_world)
    return SomePixels(image_ids, rows, cols, rgb, alpha, used, *rays)


def random_pixels(scene: Scene, image_ids: Tensor, random: torch.Generator) -> SomePixels:
    """One pixel anywhere in each of these photos [n], the same on every device for a generator of the CPU."""
    image_ids = image_ids.cpu()
    sizes = torch.stack([scene.pixels.heights, scene.pixels.widths]).cpu()[:, image_ids]
    rows, cols = (torch.rand(2, len(image_ids), generator=random) * sizes).long()
    return some_pixels(scene, image_ids, rows, cols)


def colour_and_alpha(scene: Scene, values: Tensor) -> tuple[Tensor, Tensor]:
    """(colours [n,3], alphas [n,1]) of a store's values [n,c]: grey, grey and alpha, RGB or RGB and alpha."""
    c = values.shape[1]
    rgb = values[:, :3] if c >= 3 else values[:, :1].expand(-1, 3)
    has_alpha = c in (2, 4) and scene.has_alpha
    return rgb, values[:, -1:] if has_alpha else torch.ones_like(values[:, :1])
