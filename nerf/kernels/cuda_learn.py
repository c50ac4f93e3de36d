"""A training step without autograd, in few launches: `draw_rays` makes a batch, `learn_rays` its loss and gradients.

torch does the same with `reference.draw_rays`, `render_rays` and `losses`: many small launches, any loss.
"""

from __future__ import annotations

from nerf.kernels import cuda_args, nvrtc
from nerf.kernels.bindings import DrawArgs, Pointers
from nerf.kernels.cuda import THREADS, blocks_of, gpu, pointers
from nerf.kernels.cuda_render import OUTPUTS, Job, composite_args, field_gradients, forward, writable
from nerf.kernels.drawing import BatchPlan, DrawnRays, LearnPlan, Learnt, PhotoTable, TableStep, drawn_by, photo_rays


def draw_rays(table: PhotoTable, plan: BatchPlan) -> DrawnRays:
    """See `reference.draw_rays`: the same numbers, in one launch."""
    p = Pointers(str(gpu().device))  # nothing here is read by more than its own type

    def launch(args: DrawArgs) -> None:
        nvrtc.program("cuda_draw.cu").launch("draw_rays", args, blocks_of(args.n + args.n_before), THREADS)

    return drawn_by(launch, p, table, plan)


def learn_rays(drawn: DrawnRays, plan: LearnPlan) -> Learnt:
    """Renders the rays, and goes back from their loss to the field; see `LearnPlan`."""
    p, sink = pointers(), plan.sink
    if isinstance(sink, TableStep):
        raise ValueError("sink: expected a GradAccumulator, for on a GPU the table's step is another launch")
    done = forward(Job.of(drawn.rays, plan.bits, plan.field, plan.settings, sink, "drop"), keep=True)
    assert done.kept is not None
    samples, composite = composite_args(done, done.kept)
    photo, (errors, *of_light) = photo_rays(p, drawn, plan)
    args = cuda_args.PhotoArgs(composite=composite, photo=photo, loss=done.loss.data_ptr())
    for name, tensor in zip(OUTPUTS, done.outputs, strict=True):
        if hasattr(args, name):
            setattr(args, name, tensor.data_ptr())
    nvrtc.program("cuda_photo.cu").launch("photo_backward", args, blocks_of(len(drawn.rays.o), 128), 128)
    flat, _ = field_gradients(done, done.kept, samples, writable(sink, plan.field.params.table))
    counts = done.job.numbers
    return Learnt(done.loss, errors, flat, counts["evaluated"], counts["kept"], counts["capacity"], *of_light)
