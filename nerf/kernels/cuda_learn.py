"""A training step without autograd, in few launches: `draw_rays` makes a batch, `learn_rays` its loss and gradients.

torch does the same with `reference.draw_rays`, `render_rays` and `losses`: many small launches, any loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.kernels import cuda_args, nvrtc
from nerf.kernels.bindings import Pointers, check_in_place
from nerf.kernels.cuda import THREADS, blocks_of, gpu, pointers
from nerf.kernels.cuda_render import Job, composite_args, field_gradients, forward, writable
from nerf.kernels.drawing import DrawnRays, Learnt, PhotoLoss, PhotoTable
from nerf.kernels.records import FieldView, GradAccumulator, MarchSettings, OccupancyBits, Rays


def draw_rays(
    table: PhotoTable,
    cumulative: Tensor | None,
    seed: int,
    step: int,
    n: int,
    any_direction: bool = False,
    step_at: Tensor | None = None,
) -> DrawnRays:
    """See `reference.draw_rays`: the same numbers, in one launch. `step_at` [1] int32: see `cuda.ray_jitter`."""
    p, device = Pointers(str(gpu().device)), table.blocks.device  # nothing here is read by more than its own type
    parts = torch.empty(18 * n, device=device).split([3 * n] * 5 + [n] * 3)
    o, d, viewdirs, targets, backgrounds = (part.view(n, 3) for part in parts[:5])
    places = torch.empty(n, dtype=torch.int64, device=device)
    images, long = len(table.offsets), torch.int64
    args = cuda_args.DrawArgs(
        pixels=p("pixels", table.pixels, tuple(table.pixels.shape), table.pixels.dtype),
        **{name: p(name, getattr(table, name), (images,), long) for name in ("offsets", "widths", "heights")},
        blocks=p("blocks", table.blocks, (None, 3), long),
        cumulative=p("cumulative", cumulative, (len(table.blocks),)),
        cameras=p("cameras", table.cameras, (images, 16)),
        **dict(zip(("rays_o", "rays_d", "viewdirs", "targets", "backgrounds"), _places(parts[:5]), strict=True)),
        **dict(zip(("t_near", "t_far", "jitter"), _places(parts[5:]), strict=True)),
        places=places.data_ptr(),
        step_at=p("step_at", step_at, (1,), torch.int32),
        seed=seed & 0xFFFFFFFF,
        step=step & 0xFFFFFFFF,
        n=n,
        n_blocks=len(table.blocks),
        side=table.side,
        channels=table.pixels.shape[1],
        bytes=table.pixels.element_size(),
        has_alpha=int(table.has_alpha),
        has_background=int(table.background is not None),
        background=cuda_args.Three(*(table.background or (0.0, 0.0, 0.0))),
        exposure=table.exposure,
        half_extent=table.half_extent,
        near=table.near,
        far=table.far,
    )
    for name, offsets, held in (
        ("masks", "mask_offsets", table.masks),
        ("silhouettes", "silhouette_offsets", table.silhouettes),
    ):
        if held is not None:
            setattr(args, name, p(name, held[0], (None,), torch.uint8))
            setattr(args, offsets, p(offsets, held[1], (images,), long))
    used = torch.empty(n, device=device) if table.masks is not None else None
    args.used = 0 if used is None else used.data_ptr()
    if table.directions is not None:
        args.directions = p("directions", table.directions[0], (None, 3))
        args.starts = p("starts", table.directions[1], (images,), long)
    if not any_direction:
        args.viewdirs, viewdirs = 0, d
    nvrtc.program("cuda_draw.cu").launch("draw_rays", args, blocks_of(n), THREADS)
    return DrawnRays(Rays(o, d, viewdirs, *parts[5:]), targets, backgrounds, places, used)


def _places(tensors: tuple[Tensor, ...]) -> list[int]:
    return [t.data_ptr() for t in tensors]


def learn_rays(
    drawn: DrawnRays,
    bits: OccupancyBits,
    field: FieldView,
    settings: MarchSettings,
    accumulator: GradAccumulator,
    loss: PhotoLoss,
    error_map: tuple[Tensor, Tensor],
) -> Learnt:
    """Renders the rays, and goes back from their loss to the field: the table's gradient is added to the accumulator,
    each ray's squared error and its number 1 to the error map (sums, counts), at its place."""
    p, n = pointers(), len(drawn.targets)
    done = forward(Job.of(drawn.rays, bits, field, settings, accumulator, "drop"), keep=True)
    assert done.kept is not None
    samples, composite = composite_args(done, done.kept)
    errors = torch.empty(n, device=drawn.targets.device)
    for name, held in zip(("error_map sums", "error_map counts"), error_map, strict=True):
        check_in_place(name, held, tuple(error_map[0].shape), torch.float32, str(gpu().device))
    torch.autograd.graph.increment_version(list(error_map))
    colors, opacities, _, _, second_moments, _ = done.outputs
    args = cuda_args.PhotoArgs(
        composite=composite,
        colors=colors.data_ptr(),
        opacities=opacities.data_ptr(),
        second_moments=second_moments.data_ptr(),
        targets=p("targets", drawn.targets, (n, 3)),
        backgrounds=p("backgrounds", drawn.backgrounds, (n, 3)),
        used=p("used", drawn.used, (n,)),
        places=p("places", drawn.places, (n,), torch.int64),
        photo_weight=loss.photo,
        surface_weight=loss.surface,
        delta=loss.delta,
        rates=p("rates", loss.rates, (4,)),
        errors=errors.data_ptr(),
        loss=done.loss.data_ptr(),
        error_sums=error_map[0].data_ptr(),
        error_counts=error_map[1].data_ptr(),
    )
    nvrtc.program("cuda_photo.cu").launch("photo_backward", args, blocks_of(n, 128), 128)
    flat, _ = field_gradients(done, done.kept, samples, writable(accumulator, field.params.table))
    numbers = done.job.numbers
    return Learnt(done.loss, errors, flat, numbers["evaluated"], numbers["kept"], numbers["capacity"])
