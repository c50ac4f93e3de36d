"""A batch of training rays by integer hashes, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.kernels.drawing import BatchPlan, BeforeCameras, DrawnRays, PhotoTable
from nerf.kernels.records import Rays
from nerf.kernels.reference.rays import ray_jitter

STREAM = 0x3C6EF372  # between the seeds of two streams of random numbers
JITTER, PLACE, INSIDE, BEHIND, ANYWHERE = 0, 1, 2, 3, 6  # BEHIND takes 3 streams, ANYWHERE 12
KNOWN, AMONG, CAMERA, NEIGHBOUR, BETWEEN, ASIDE = range(18, 24)  # ASIDE takes 12


class _Random:
    """The random numbers of rays: of stream after stream in [0,1)."""

    def __init__(self, plan: BatchPlan, ray: Tensor) -> None:
        self.plan, self.ray = plan, ray

    def __call__(self, stream: int) -> Tensor:
        return ray_jitter(self.plan.seed + stream * STREAM, self.plan.step, self.ray)

    def below(self, n: int, stream: int) -> Tensor:
        return (self(stream) * n).long().clamp_max(n - 1)

    def nearly_normal(self, stream: int) -> Tensor:
        """Three numbers [n,3] of mean 0 and variance 1/3, each a sum of four."""
        uniform = torch.stack([self(stream + k) for k in range(12)], dim=1)
        return uniform.view(-1, 3, 4).sum(dim=2) - 2.0


def draw_rays(table: PhotoTable, plan: BatchPlan) -> DrawnRays:
    """n pixels and their rays for a step of training, the same for the same seed and step, and rays before cameras.

    One pixel in each part of the total probability (systematic sampling) of the table's blocks; the last ones are known
    pixels, where there are some. What is transparent shows a random colour, and so does the target. The directions of
    `any_direction` are nearly uniform, instead of the rays' own. Rays before cameras go in the directions of pixels of
    the batch, one in each `every` of them.
    """
    n, device = plan.n, table.blocks.device
    random = _Random(plan, torch.arange(n, device=device))
    place, image, row, column, t_depths = _pixels(table, plan, random)
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

    rays_o, viewdirs = _rays(table, image, row, column)
    o, d, near, far = table.space.clip_rays(rays_o, viewdirs, table.near, table.far)
    if plan.any_direction:
        viewdirs = torch.nn.functional.normalize(random.nearly_normal(ANYWHERE), dim=1)
    rays = Rays(o, d, viewdirs, near, far, random(JITTER))
    if table.before is not None:
        more = _before_cameras(table, plan, table.before)
        rays = Rays(*(torch.cat([getattr(rays, name), getattr(more, name)]) for name in vars(rays)))
    light = (torch.stack([image, row, column], dim=1), alpha[:, 0]) if table.lit else (None, None)
    return DrawnRays(rays, targets, backgrounds, place, used, t_depths, *light)


def _pixels(
    table: PhotoTable, plan: BatchPlan, random: _Random
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(block, image, row, column, t_depth or None) [n] of a batch's pixels."""
    ray, last, n_known = random.ray, len(table.blocks) - 1, plan.n_known(table)
    u = (ray.float() + random(PLACE)) / (plan.n - n_known)
    place = (u * (last + 1)).long() if plan.cumulative is None else torch.searchsorted(plan.cumulative, u)
    place = place.clamp_max(last)
    image, block_row, block_column = table.blocks[place].unbind(1)
    inside = (random(INSIDE) * (table.side * table.side)).long()
    row = torch.minimum(block_row * table.side + inside // table.side, table.heights[image] - 1)
    column = torch.minimum(block_column * table.side + inside % table.side, table.widths[image] - 1)
    if table.known is None or plan.near is None or n_known == 0:
        return place, image, row, column, None
    shows, which = ray >= plan.n - n_known, plan.near[random.below(len(plan.near), KNOWN)]
    spread, known = torch.stack([image, row, column, place], dim=1), table.known.pixels[which]
    image, row, column, place = torch.where(shows[:, None], known, spread).unbind(1)
    return place, image, row, column, torch.where(shows, table.known.t_depths[which], 0.0)


def _rays(table: PhotoTable, image: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [n,3] of pixels."""
    p = table.cameras[image]
    if table.directions is None:
        x, y = (column.float() - p[:, 14]) * p[:, 12], (row.float() - p[:, 15]) * p[:, 13]
        local = torch.stack([x, y, torch.ones_like(x)], dim=1)
    else:
        local = table.directions[0][table.directions[1][image] + row * table.widths[image] + column]
    d = (p[:, :9].view(-1, 3, 3) * local[:, :, None]).sum(dim=1)
    return p[:, 9:12].contiguous(), d / d.norm(dim=1, keepdim=True)


def _before_cameras(table: PhotoTable, plan: BatchPlan, before: BeforeCameras) -> Rays:
    """The rays of odd numbers begin at viewpoints, the others at the cameras of their pixels."""
    j = torch.arange(plan.n_before(table), device=table.blocks.device)
    random, of_pixel = _Random(plan, plan.n + j), torch.arange(plan.n, device=j.device)
    _, image, row, column, _ = _pixels(table, plan, _Random(plan, of_pixel))
    among = (j * before.every + random.below(before.every, AMONG)).clamp_max(plan.n - 1)
    o, d = _rays(table, image[among], row[among], column[among])
    camera = random.below(len(before.centres), CAMERA)
    other = before.nearest[camera, random.below(before.nearest.shape[1], NEIGHBOUR)]
    gap = before.centres[other] - before.centres[camera]
    aside = before.spread * random.nearly_normal(ASIDE) * gap.norm(dim=1, keepdim=True)
    between = before.centres[camera] + random(BETWEEN)[:, None] * gap + aside
    o = torch.where((j % 2 == 1)[:, None], between, o)
    viewdirs = d
    o, d, near, far = table.space.clip_rays(o, d, table.near, before.far)
    return Rays(o, d, viewdirs, near, far, random(JITTER))


def _bits(memory: Tensor, offsets: Tensor, image: Tensor, pixel: Tensor) -> Tensor:
    """Of pixels [n] of images [n]: 0 or 1, float."""
    byte = memory[offsets[image] + (pixel >> 3)].int()
    return ((byte >> (7 - (pixel & 7)).int()) & 1).float()
