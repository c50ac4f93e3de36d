"""A training step of the CPU's own loops, without autograd: the ops of `cuda_learn`, which say what they mean."""

from __future__ import annotations

import ctypes

import torch

from nerf.kernels.bindings import DrawArgs, Pointers, RenderGrads, check_in_place, native
from nerf.kernels.cpu import field_desc, render_desc
from nerf.kernels.cpu_adam import adam_desc
from nerf.kernels.drawing import BatchPlan, DrawnRays, LearnPlan, Learnt, PhotoTable, TableStep, drawn_by, photo_rays


def draw_rays(table: PhotoTable, plan: BatchPlan) -> DrawnRays:
    """See `reference.draw_rays`: the same pixels and colours to the bit."""

    def draw(args: DrawArgs) -> None:
        native().nerf_draw_rays(ctypes.addressof(args), torch.get_num_threads())

    return drawn_by(draw, Pointers(), table, plan)


def learn_rays(drawn: DrawnRays, plan: LearnPlan) -> Learnt:
    """Renders the rays, and goes back from their loss to the field, in one pass over them: what the colour network
    computed for a chunk of samples is still at hand when their gradients come back. Where the table takes its step here
    (`TableStep`), each level does so with its gradient still in the caches."""
    p, params, sink = Pointers(), plan.field.params, plan.sink
    desc, render = field_desc(plan.field, p), render_desc(drawn.rays, plan.bits, plan.settings, p)
    grads, adam = RenderGrads(), None
    if isinstance(sink, TableStep):
        adam = adam_desc(params.table.detach(), None, sink.state, sink.step)
    else:
        check_in_place("grad_accumulator.table", sink.table, tuple(params.table.shape), torch.float32)
        torch.autograd.graph.increment_version(sink.table)
        grads.table = sink.table.data_ptr()
    photo, (errors, *of_light) = photo_rays(p, drawn, plan)
    layers = [*params.density_weights, *params.color_weights]
    flat = torch.empty(sum(w.numel() for w in layers))
    at, n_density = flat.data_ptr(), len(params.density_weights)
    for i, w in enumerate(layers):
        slots = grads.density_weights if i < n_density else grads.color_weights
        slots[i if i < n_density else i - n_density] = at
        at += 4 * w.numel()
    numbers = (ctypes.c_longlong * 2)()
    step_of_table = 0 if adam is None else ctypes.addressof(adam)
    args = (ctypes.addressof(s) for s in (desc, render, photo, grads))
    total = native().nerf_learn(*args, step_of_table, ctypes.addressof(numbers))
    return Learnt(torch.tensor([total]), errors, flat, int(numbers[0]), int(numbers[1]), None, *of_light)
