"""Micro-benchmarks of the kernels: ns a sample and core, on random points and on a ball seen from outside."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.jobs import peak, seconds_of
from nerf import kernels
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import FieldOptions, RadianceField
from nerf.geometry.space import Box
from nerf.kernels import GradAccumulator
from nerf.rendering.marching import Marching
from nerf.rendering.rays import render_rays

BALL = 0.7  # radius of the occupied ball, scene units


def micro(samples: int = 1 << 18, repeats: int = 7) -> dict[str, Any]:
    """Median ns a sample and core of each kernel; "adam" is of a table row, "render" of an evaluated and a kept sample.

    ns = seconds * threads / count. Table and points are random, so caches help less than in a scene.
    """
    options = FieldOptions(density_bias=3.0)  # a ray ends about a third of a unit inside the ball
    field, layout = RadianceField(options), options.layout()
    field.table_half = field.table.detach().half()
    random = torch.Generator().manual_seed(0)
    points = torch.rand(samples, 3, generator=random)
    directions = torch.nn.functional.normalize(torch.randn(samples, 3, generator=random), dim=1)
    threads, ns, counts = torch.get_num_threads(), {}, {"samples": samples, "table_rows": layout.n_rows}

    def measure(name: str, count: int, prepare: Callable[[], Callable[[], object]]) -> None:
        prepare()()  # warms caches, allocator and threads
        ns[name] = statistics.median(seconds_of(prepare()) for _ in range(repeats)) * threads / count * 1e9

    def encode() -> Tensor:
        return kernels.hashgrid_encode(points, field.table, layout)

    gradient = torch.randn(samples, layout.n_features, generator=random)
    with torch.no_grad():
        measure("hashgrid_forward", samples, lambda: encode)
        measure("field_forward", samples, lambda: lambda: field(points * 2 - 1, directions))
    measure("hashgrid_backward", samples, lambda: _backward(encode(), gradient, [field.table]))

    occupancy, marching = OccupancyGrid(), Marching(Box(), 0.0, 10.0)
    occupancy.restrict(lambda centres, _: centres.norm(dim=1) < BALL)
    rays = max(samples // 16, 1)
    aim = torch.randn(rays, 3, generator=random) * (BALL / 3)
    rays_o = torch.nn.functional.normalize(torch.randn(rays, 3, generator=random), dim=1) * 3
    rays_d = torch.nn.functional.normalize(aim - rays_o, dim=1)
    accumulator = GradAccumulator(torch.zeros_like(field.table.data))

    def render() -> kernels.RenderedRays:
        return render_rays(field, occupancy, marching, rays_o, rays_d, grad_accumulator=accumulator)

    out = render()
    counts |= {"evaluated": out.evaluated, "kept": out.kept}
    measure("render_forward", out.evaluated, lambda: render)
    measure(
        "render_backward",
        out.kept,
        lambda: _backward(render().over(torch.ones(3)), torch.ones(rays, 3), list(field.parameters())),
    )

    table = field.table.data
    state = kernels.AdamState.of(table, (0.9, 0.99), 1e-15)
    touched = torch.rand(len(table), 1, generator=random) < 0.25  # other rows are skipped, as most are in training
    gradient = torch.randn(table.shape, generator=random) * touched

    def adam() -> None:
        kernels.adam_step(
            table, gradient, state, kernels.AdamStep(1e-6, 1, skip_zero_rows=True, half_copy=field.table_half)
        )

    measure("adam", layout.n_rows, lambda: adam)
    return {"ns": ns, "counts": counts, "threads": threads, "table": layout.log2_hashmap_size, "peak_bytes": peak()}


def _backward(output: Tensor, gradient: Tensor, inputs: list[Tensor]) -> Callable[[], object]:
    return lambda: torch.autograd.grad(output, inputs, gradient, allow_unused=True)  # a sink's table has none
