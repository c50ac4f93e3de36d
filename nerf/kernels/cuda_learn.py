"""A training step without autograd, in few launches: `draw_rays` makes a batch, `learn_rays` its loss and gradients.

torch does the same with `reference.draw_rays`, `render_rays` and `losses`: many small launches, any loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.kernels import cuda_args, nvrtc
from nerf.kernels.bindings import DrawArgs, Pointers
from nerf.kernels.cuda import THREADS, blocks_of, gpu, pointers
from nerf.kernels.cuda_render import Job, composite_args, field_gradients, forward, writable
from nerf.kernels.drawing import DrawnRays, Learnt, PhotoLoss, PhotoTable, check_error_map, drawn_by
from nerf.kernels.records import FieldView, GradAccumulator, MarchSettings, OccupancyBits


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
    p = Pointers(str(gpu().device))  # nothing here is read by more than its own type

    def launch(args: DrawArgs) -> None:
        nvrtc.program("cuda_draw.cu").launch("draw_rays", args, blocks_of(n), THREADS)

    return drawn_by(launch, p, table, cumulative, seed, step, n, any_direction, step_at)


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
    check_error_map(error_map, str(gpu().device))
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
