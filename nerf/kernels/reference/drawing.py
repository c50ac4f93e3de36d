"""A batch of training rays by integer hashes, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.geometry.space import ray_box
from nerf.kernels.drawing import DrawnRays, PhotoTable
from nerf.kernels.records import Rays
from nerf.kernels.reference.rays import ray_jitter

STREAM = 0x3C6EF372  # between the seeds of two streams of random numbers
JITTER, PLACE, INSIDE, BEHIND, ANYWHERE = 0, 1, 2, 3, 6  # the last two take 3 and 12 streams


def draw_rays(
    table: PhotoTable, cumulative: Tensor | None, seed: int, step: int, n: int, any_direction: bool = False
) -> DrawnRays:
    """n pixels and their rays for a step of training, the same for the same seed and step.

    One pixel in each n-th of the total probability (systematic sampling) of the table's blocks, whose growing shares of
    it `cumulative` [b] are, None: all alike. What is transparent shows a random colour, and so does the target.
    any_direction: colours are asked for from directions that are nearly uniform, instead of the rays' own.
    """
    ray, last = torch.arange(n, device=table.blocks.device), len(table.blocks) - 1

    def random(stream: int) -> Tensor:
        return ray_jitter(seed + stream * STREAM, step, ray)

    u = (ray.float() + random(PLACE)) / n
    place = (u * (last + 1)).long() if cumulative is None else torch.searchsorted(cumulative, u)
    place = place.clamp_max(last)
    image, block_row, block_column = table.blocks[place].unbind(1)
    inside = (random(INSIDE) * (table.side * table.side)).long()
    row = torch.minimum(block_row * table.side + inside // table.side, table.heights[image] - 1)
    column = torch.minimum(block_column * table.side + inside % table.side, table.widths[image] - 1)
    pixel = row * table.widths[image] + column

    values = table.pixels[table.offsets[image] + pixel]
    wide = values.dtype == torch.int16  # which holds what are unsigned numbers
    values = (values.int() & 0xFFFF).float() / 65535 if wide else values.float() / 255
    rgb = values[:, :3] if values.shape[1] >= 3 else values[:, :1].expand(-1, 3)
    alpha = values[:, -1:] if table.has_alpha else torch.ones_like(values[:, :1])
    if table.silhouettes is not None:
        alpha = _bits(*table.silhouettes, image, pixel)[:, None]
    used = None if table.masks is None else _bits(*table.masks, image, pixel)
    backgrounds = torch.stack([random(BEHIND + c) for c in range(3)], dim=1) / table.exposure
    if table.background is not None:
        known = torch.tensor(table.background, device=values.device)
        backgrounds = torch.where(alpha > 0.5, known, backgrounds)
    targets = rgb * alpha + backgrounds * (1.0 - alpha)

    p = table.cameras[image]
    if table.directions is None:
        x, y = (column.float() - p[:, 14]) * p[:, 12], (row.float() - p[:, 15]) * p[:, 13]
        local = torch.stack([x, y, torch.ones_like(x)], dim=1)
    else:
        local = table.directions[0][table.directions[1][image] + pixel]
    d = (p[:, :9].view(n, 3, 3) * local[:, :, None]).sum(dim=1)
    o, d = p[:, 9:12].contiguous(), d / d.norm(dim=1, keepdim=True)
    near, far = ray_box(o, d, table.half_extent, table.near, table.far)
    viewdirs = d
    if any_direction:  # three nearly normal numbers, each a sum of four
        uniform = torch.stack([random(ANYWHERE + k) for k in range(12)], dim=1)
        viewdirs = torch.nn.functional.normalize(uniform.view(n, 3, 4).sum(dim=2) - 2.0, dim=1)
    return DrawnRays(Rays(o, d, viewdirs, near, far, random(JITTER)), targets, backgrounds, place, used)


def _bits(memory: Tensor, offsets: Tensor, image: Tensor, pixel: Tensor) -> Tensor:
    """Of pixels [n] of images [n]: 0 or 1, float."""
    byte = memory[offsets[image] + (pixel >> 3)].int()
    return ((byte >> (7 - (pixel & 7)).int()) & 1).float()
