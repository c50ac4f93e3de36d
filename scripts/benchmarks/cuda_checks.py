"""Every op of the CUDA backend against the float64 reference on the CPU: values, gradients, and the march to the bit.

Each check yields rows (what, error, limit): relative errors of whole tensors, |a - b| / |b|. The same functions run on
a GPU (scripts/gpu_check.py) and on the emulated one (tests/test_cuda.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerf import kernels
from nerf.geometry.space import ray_box
from nerf.kernels import (
    FieldConfig,
    FieldParams,
    FieldView,
    GradAccumulator,
    GridLayout,
    MarchSettings,
    Rays,
    RenderedRays,
    bindings,
    cpu,
    reference,
)

Row = tuple[str, float, float]

EXACT = 0.0
# float32 throughout, sums of up to a few thousand terms in another order
SINGLE_VALUE, SINGLE_GRADIENT = 2e-5, 2e-4
# contracted: where a point lies in its cell loses as many digits as the finest grid has cells
SINGLE_CONTRACTED = 1e-4
# In float32 a sample lies 1e-4 of the finest cell beside where it does in float64: among thousands of samples some fall
# on the other side of a cell's wall or of a ReLU, where gradients jump. The CPU's kernels place them to the bit alike.
KINKED_GRADIENT = 1e-2
# 11 bits of mantissa in every product's factors and every gradient between layers
HALF_VALUE, HALF_GRADIENT = 4e-3, 3e-2


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| over the whole tensor; a NaN is an error of infinity."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    error = float((a - b).norm() / b.norm().clamp_min(1e-30))
    return error if error == error else float("inf")


def differs(a: Tensor, b: Tensor) -> float:
    """How many numbers are not the same to the bit."""
    a, b = a.detach().cpu(), b.detach().cpu()
    return float(a.numel() + b.numel()) if a.shape != b.shape else float((a != b).sum())


def _uniform(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def _directions(n: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)), dim=1)


def make_rays(n: int, n_levels: int = 1, resolution: int = 64, filled: float = 0.2, seed: int = 0) -> list[Tensor]:
    """rays_o, rays_d, t_near, t_far, jitter, occupied: from around the outermost box inwards, some missing it."""
    half = 2.0 ** (n_levels - 1)
    origins = _directions(n, seed) * half * 2.2
    targets = _uniform(n, 3, seed=seed + 1, low=-0.8, high=0.8) * min(half, 1.5)
    rays_d = torch.nn.functional.normalize(targets - origins, dim=1)
    rays_d[::17] *= -1
    occupied = _uniform(n_levels, resolution, resolution, resolution, seed=seed + 2) < filled
    return [origins, rays_d, *ray_box(origins, rays_d, half, 0.0, 1e3), _uniform(n, seed=seed + 3), occupied]


def make_field(
    features: int = 4, width: int = 64, layers: tuple[int, int] = (2, 3), contracted: bool = False, n_features: int = 32
) -> tuple[FieldParams, FieldConfig]:
    """Random numbers that half precision holds exactly; dense and hashed levels."""
    layout = GridLayout(3, n_features // features, features, 12, 8, 2.0 if features == 4 else 1.4)
    g = torch.Generator().manual_seed(3)

    def network(n_layers: int, n_in: int, n_out: int, gain: float) -> list[Tensor]:
        sizes = [n_in, *[width] * (n_layers - 1), n_out]
        pairs = itertools.pairwise(sizes)
        return [(torch.randn(b, a, generator=g) * (gain / a) ** 0.5).half().float() for a, b in pairs]

    table = (torch.rand(layout.n_rows, features, generator=g) * 2 - 1).half().float()
    density, color = network(layers[0], n_features, 16, 3.0), network(layers[1], 32, 3, 2.0)
    return FieldParams(table, density, color), FieldConfig(layout, contracted, 1.0)


def _flat(p: FieldParams) -> list[Tensor]:
    return [p.table, *p.density_weights, *p.color_weights]


def cast(p: FieldParams, device: torch.device | str, dtype: torch.dtype) -> FieldParams:
    density, color = (
        [w.detach().to(device, dtype).requires_grad_() for w in ws] for ws in (p.density_weights, p.color_weights)
    )
    return FieldParams(p.table.detach().to(device, dtype).requires_grad_(), density, color)


# ---- the checks ----------------------------------------------------------------------------------------------------


def _rays(tensors: list[Tensor], viewdirs: Tensor | None = None) -> Rays:
    o, d, t_near, t_far, jitter = tensors[:5]
    return Rays(o, d, d if viewdirs is None else viewdirs, t_near, t_far, jitter)


def check_march(n: int = 4096) -> Iterator[Row]:
    """Jitter, occupancy bits and samples: the CPU's to the bit."""
    device = kernels.device()
    yield (
        "jitter, numbers that differ",
        differs(kernels.ray_jitter(5, 9, n), reference.ray_jitter(5, 9, torch.arange(n))),
        EXACT,
    )
    for n_levels, settings in ((1, MarchSettings(0.0034)), (4, MarchSettings(0.0034, 1 / 256, 0.125))):
        rays = make_rays(n, n_levels)
        on_device = [t.to(device) for t in rays]
        bits = kernels.pack_occupancy(on_device[-1])
        found = kernels.march(_rays(on_device), on_device[-1], settings, bits)
        name = f"march, {n_levels} levels"
        try:
            packed = cpu.pack_occupancy(rays[-1])
            wanted = cpu.march(_rays(rays), packed, settings)
        except RuntimeError:  # no compiler here: the reference gives the same samples
            wanted = reference.march(_rays(rays), rays[-1], settings)
        else:
            if bits is not None:  # the reference, in a rehearsal, has none
                yield f"{name}: bits that differ", differs(bits.fine, packed.fine), EXACT
                yield f"{name}: clearances that differ", differs(bits.clearance, packed.clearance), EXACT
        for part in ("t_starts", "t_ends", "ray_indices", "packed_info"):
            yield f"{name}: {part} that differ", differs(getattr(found, part), getattr(wanted, part)), EXACT


def check_hashgrid(
    n: int = 4096, kinds: tuple[tuple[int, int], ...] = ((3, 4), (2, 2), (1, 8), (4, 1))
) -> Iterator[Row]:
    for n_dims, features in kinds:
        layout = GridLayout(n_dims, 5, features, 10, 6, 1.7)
        positions = _uniform(n, n_dims, seed=1, low=-0.05, high=1.05)
        table = _uniform(layout.n_rows, features, seed=2, low=-1)
        weights = torch.randn(n, layout.n_features, generator=torch.Generator().manual_seed(4))
        results = []
        for where, dtype in (("cpu", torch.float64), (kernels.device(), torch.float32)):
            x, t = (v.to(where, dtype).requires_grad_() for v in (positions, table))
            encode = reference.hashgrid_encode if dtype == torch.float64 else kernels.hashgrid_encode
            out = encode(x, t, layout)
            results.append((out, *torch.autograd.grad((out * weights.to(where, dtype)).sum(), (x, t))))
        for what, a, b in zip(("values", "position gradients", "table gradients"), results[1], results[0], strict=True):
            limit = SINGLE_VALUE if what == "values" else SINGLE_GRADIENT
            yield f"hash grid {n_dims}D x {features}: {what}", relative(a, b), limit


def check_field(half: bool, n: int = 4096, **size: Any) -> Iterator[Row]:
    device, kind = kernels.device(), "half" if half else "single"
    for contracted in (False, True):
        params, config = make_field(contracted=contracted, **size)
        reach = 4.0 if contracted else 1.1
        positions, directions = _uniform(n, 3, seed=6, low=-reach, high=reach), _directions(n, 7)
        wanted = reference.radiance_field(
            positions.double(), directions.double(), cast(params, "cpu", torch.float64), config
        )
        placed = cast(params, device, torch.float32)
        view = FieldView(placed, config, placed.table.detach().half() if half else None)
        with torch.no_grad():  # else it is another path, by the hash grid and torch
            sigmas, rgbs = kernels.field_forward(positions.to(device), directions.to(device), view)
            alone, _ = kernels.field_forward(positions.to(device), None, view)
        limit = HALF_VALUE if half else SINGLE_CONTRACTED if contracted else SINGLE_VALUE
        name = f"field, {kind}{', contracted' if contracted else ''}"
        assert rgbs is not None
        yield f"{name}: log densities", relative(sigmas.log(), wanted[0].log()), limit
        yield f"{name}: colours", relative(rgbs, wanted[1]), limit
        yield f"{name}: densities alone that differ", differs(sigmas, alone), EXACT


def check_render(half: bool, n: int = 512, step_size: float = 0.02, **size: Any) -> Iterator[Row]:
    """The fused op and its backward pass, for rays in a box, and in nested levels with growing steps and scaled
    gradients.

    Thresholds are off here: a sample on either side of one, by rounding, is a difference and no error.
    """
    for n_levels in (1, 2):
        yield from _check_render(half, n_levels, n, step_size, **size)


def _check_render(half: bool, n_levels: int, n: int, step_size: float, **size: Any) -> Iterator[Row]:
    outputs = ("foregrounds", "opacities", "depths", "second_moments", "distortions")
    device, kind = kernels.device(), "half" if half else "single"
    params, config = make_field(contracted=n_levels > 1, **size)
    rays = make_rays(n, n_levels, 32)
    viewdirs = _directions(n, 8)
    settings = MarchSettings(step_size, 0.01 if n_levels > 1 else 0.0, 0.5, 0.0, 0.0, 1.5 if n_levels > 1 else 0.0)

    def cpu_render(rays: Rays, occupied: Tensor, view: FieldView, settings: MarchSettings) -> RenderedRays:
        return cpu.render_rays(rays, cpu.pack_occupancy(occupied), view, settings)

    def found_by(rays: Rays, occupied: Tensor, view: FieldView, settings: MarchSettings) -> RenderedRays:
        table_half = view.params.table.detach().half() if half else None
        return kernels.render_rays(rays, occupied, replace(view, half=table_half), settings)

    def gradients(
        render: Callable[..., RenderedRays], where: Any, dtype: torch.dtype
    ) -> tuple[dict, tuple[Tensor, ...]]:
        p = cast(params, where, dtype)
        moving = [t.to(where, dtype).requires_grad_() for t in (*rays[:2], viewdirs)]
        fixed = [t.to(where) for t in rays[2:]]
        tensors = _rays([*moving[:2], *fixed], moving[2])
        out = render(tensors, fixed[-1], FieldView(p, config), settings)._asdict()
        loss = torch.zeros((), dtype=dtype, device=where)
        for i, name in enumerate(outputs):
            weights = torch.randn(out[name].shape, generator=torch.Generator().manual_seed(i)) / n
            loss = loss + (out[name] * weights.to(where, dtype)).sum()
        return out, torch.autograd.grad(loss, [*moving, *_flat(p)])

    wanted, wanted_grads = gradients(reference.render_rays, "cpu", torch.float64)
    found, grads = gradients(found_by, device, torch.float32)
    name = f"render, {kind}, {n_levels} level{'s' * (n_levels > 1)}"
    yield f"{name}: samples that differ", abs(int(found["evaluated"]) - int(wanted["evaluated"])), EXACT
    # A median depth jumps where the opacity passes 1/2 at a gap, or ends there: nine in ten rays must agree.
    apart = (found["median_depths"].cpu().double() - wanted["median_depths"]).abs()
    yield (
        f"{name}: median_depths of nine in ten rays",
        float(apart.quantile(0.9)),
        HALF_VALUE if half else SINGLE_VALUE,
    )
    for part in outputs:
        yield f"{name}: {part}", relative(found[part], wanted[part]), HALF_VALUE if half else SINGLE_VALUE
    parts = ["rays_o", "rays_d", "viewdirs", "table"]
    parts += [f"density layer {i}" for i in range(len(params.density_weights))]
    parts += [f"colour layer {i}" for i in range(len(params.color_weights))]
    for part, a, b in zip(parts, grads, wanted_grads, strict=True):
        yield f"{name}: gradient of {part}", relative(a, b), HALF_GRADIENT if half else KINKED_GRADIENT
    if not half and bindings.load().handle is not None:
        for part, a, b in zip(parts, grads, gradients(cpu_render, "cpu", torch.float32)[1], strict=True):
            yield f"{name}: gradient of {part}, beside the CPU's", relative(a, b), SINGLE_GRADIENT


def check_stops(n: int = 512, **size: Any) -> Iterator[Row]:
    """Early stop and faint samples (pictures agree within the light that is cut off), and a gradient into a sink."""
    device = kernels.device()
    params, config = make_field(**size)
    rays, viewdirs = make_rays(n, 1, 32), _directions(n, 8)
    settings = MarchSettings(0.02, 0.0, 0.02, 1e-3, 2e-3)
    steps = replace(settings, max_step=1e10)
    wanted = reference.render_rays(_rays(rays, viewdirs), rays[-1], FieldView(params, config), steps)
    placed = cast(params, device, torch.float32)
    there, occupied = _rays([t.to(device) for t in rays], viewdirs.to(device)), rays[-1].to(device)
    accumulator = GradAccumulator(torch.zeros_like(placed.table.detach()))
    out = kernels.render_rays(there, occupied, FieldView(placed, config), settings, None, accumulator, "drop")
    yield "render, stops: colours", relative(out.foregrounds, wanted.foregrounds), 3e-3
    yield "render, stops: samples learnt from", abs(int(out.kept) / max(int(wanted.kept), 1) - 1), 1e-2
    out.foregrounds.square().mean().backward()
    p = cast(params, device, torch.float32)
    again = kernels.render_rays(there, occupied, FieldView(p, config), settings)
    again.foregrounds.square().mean().backward()
    assert p.table.grad is not None
    yield "render: gradient in the accumulator", relative(accumulator.table, p.table.grad), SINGLE_GRADIENT
    still = kernels.render_rays(there, occupied, FieldView(replace(p, table=p.table.detach()), config), settings)
    yield "render: pictures of the same rays that differ", differs(still.foregrounds, again.foregrounds), EXACT


def check_deterministic(n: int = 4096, **size: Any) -> Iterator[Row]:
    """Gradients of the render op and of the hash grid alone: the same bits again, and the reference's numbers."""
    device = kernels.device()
    params, config = make_field(**size)
    rays, viewdirs = make_rays(n, 1, 32), _directions(n, 8)
    settings = MarchSettings(0.02 if n > 100 else 0.1, 0.0, 1.0, 1e-3, 2e-3)
    points = _uniform(8 * n, 3, seed=9).to(device)
    runs: dict[bool, list[list[Tensor]]] = {False: [], True: []}
    for ordered in (False, True, True, True):
        kernels.be_deterministic(ordered)
        try:
            p = cast(params, device, torch.float32)
            moving = [t.to(device).requires_grad_() for t in (*rays[:2], viewdirs)]
            fixed = [t.to(device) for t in rays[2:]]
            view = FieldView(p, config, p.table.detach().half())
            out = kernels.render_rays(_rays([*moving[:2], *fixed], moving[2]), fixed[-1], view, settings)
            grads = torch.autograd.grad(out.foregrounds.square().sum(), [*moving, *_flat(p)])
            features = kernels.hashgrid_encode(points, p.table, config.layout)
            runs[ordered].append([*grads, *torch.autograd.grad(features.sin().sum(), p.table)])
        finally:
            kernels.be_deterministic(False)
    for again in runs[True][1:]:
        bits = sum(differs(a, b) for a, b in zip(runs[True][0], again, strict=True))
        yield "deterministic: numbers that differ between runs", bits, EXACT
    apart = max(relative(a, b) for a, b in zip(runs[True][0], runs[False][0], strict=True))
    yield "deterministic: gradients, beside those of atomics", apart, SINGLE_GRADIENT


def check_numbers() -> Iterator[Row]:
    """What a recorded step reads instead of being told: rates and the step, and the jitter of that step."""
    steps = kernels.RecordedSteps(kernels.device(), torch.Generator(kernels.device()), 0.9, 0.99)
    rates, step_at = steps.place(6, 1e-2, 0.25)
    wanted = torch.tensor([1e-2, 1 - 0.9**7, 1 - 0.99**7, 0.25], dtype=torch.float64)
    yield "numbers of a step", relative(rates, wanted), 1e-6
    jitter = kernels.ray_jitter(5, 0, 300, step_at)
    yield "jitter of a step that is read, numbers that differ", differs(jitter, kernels.ray_jitter(5, 6, 300)), EXACT


def check_adam(n: int = 4096) -> Iterator[Row]:
    device = kernels.device()
    for columns, skip, decay in ((4, True, 0.0), (2, True, 0.0), (4, False, 1.0), (3, False, 0.0)):
        g = torch.Generator().manual_seed(columns)
        param, m, v = (torch.rand(n, columns, generator=g) for _ in range(3))
        grad = torch.randn(n, columns, generator=g) * (torch.rand(n, 1, generator=g) < 0.5)
        placed = [t.clone().to(device) for t in (param, grad, m, v)]
        half = placed[0].half()
        state = kernels.AdamState(*placed[2:], (0.9, 0.99), 1e-15, decay, decay_from=n // 3)
        kernels.adam_step(
            *placed[:2], state, kernels.AdamStep(1e-2, 7, skip_zero_rows=skip, half_copy=half, zero_grad=True)
        )
        numbers = [t.double() for t in (param, grad, m, v)]
        numbers[0][n // 3 :] *= 1.0 - 1e-2 * decay
        reference.adam_step(
            *numbers[:2], kernels.AdamState(*numbers[2:], (0.9, 0.99), 1e-15), kernels.AdamStep(1e-2, 7, skip)
        )
        name = f"Adam, {columns} columns{', rows skipped' if skip else ''}{', decay' if decay else ''}"
        for what, a, b in zip(
            ("parameters", "m", "v"), (placed[0], *placed[2:]), (numbers[0], *numbers[2:]), strict=True
        ):
            yield f"{name}: {what}", relative(a, b), 1e-6
        yield f"{name}: half copy", relative(half, numbers[0]), 1e-3
        yield f"{name}: gradient left", float(placed[1].abs().sum()), EXACT


ALL: dict[str, Callable[[], Iterator[Row]]] = {
    "march": check_march,
    "hash grid": check_hashgrid,
    "field, single": lambda: check_field(False),
    "field, half": lambda: check_field(True),
    "render, single": lambda: check_render(False),
    "render, half": lambda: check_render(True),
    "render, half, 2 features": lambda: check_render(True, features=2),
    "render, half, 32 wide": lambda: check_render(True, width=32),
    "stops": check_stops,
    "Adam": check_adam,
    "numbers": check_numbers,
    "deterministic": check_deterministic,
}
