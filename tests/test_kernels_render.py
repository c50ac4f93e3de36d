"""The fused render op against the reference in float64, and the laws of sameness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from native import (
    GRADIENT,
    MARCH_ERRORS,
    RENDER,
    RENDERS,
    SUMS,
    close,
    compare_gradients,
    compare_values,
    everything,
    in_a_process,
    native,
    native_march,
    reference_march,
    relative,
    render,
    render_reference,
    strided,
)
from tiny import SETTINGS, cast, flat, ray_batch, small_field, uniform
from torch import Tensor

from nerf import kernels
from nerf.kernels import (
    AdamState,
    AdamStep,
    FieldConfig,
    FieldParams,
    FieldView,
    GradAccumulator,
    MarchSettings,
    bindings,
    build,
    cpu,
    cpu_adam,
    reference,
)


@native
@pytest.mark.parametrize("name", RENDERS)
def test_render_values_and_gradients(name: str) -> None:
    shape, n_levels, settings = RENDERS[name]
    pairs = []
    for seed in (5, 6, 7):
        params, config = small_field(seed, **shape)
        batch = ray_batch(50, 10 * seed, n_levels)
        found = everything(render, batch, params, config, settings, torch.float32)
        expected = everything(render_reference, batch, params, config, settings, torch.float64)
        assert 0.1 < float(expected["opacities"].mean()) < 0.99  # neither empty nor a wall
        compare_values(found, expected)
        pairs.append((found, expected))
    compare_gradients(pairs)


@native
@pytest.mark.parametrize("output", SUMS)
def test_render_gradients_of_each_output(output: str) -> None:
    params, config = small_field(6)
    batch = ray_batch(60, 13)
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for run, dtype, results in ((render, torch.float32, found), (render_reference, torch.float64, expected)):
        weights = cast(params, dtype, requires_grad=True)
        rays_d = batch.rays_d.to(dtype)
        out = run(replace(batch, rays_o=batch.rays_o.to(dtype), rays_d=rays_d), weights, config, SETTINGS)
        # Colour weights have no part in opacity, depth and distortion: their gradient is then None or zero.
        grads = torch.autograd.grad(out[output].square().sum(), flat(weights), allow_unused=True)
        results += [torch.zeros_like(w) if g is None else g for g, w in zip(grads, flat(weights), strict=True)]
    for mine, theirs in zip(found, expected, strict=True):
        if float(theirs.norm()) == 0:
            assert float(mine.norm()) == 0
        else:
            assert relative(mine, theirs) < GRADIENT


@native
@pytest.mark.parametrize("case", ["no ray", "one ray", "all miss", "nothing occupied"])
def test_render_of_little(case: str) -> None:
    params, config = small_field(5)
    batch = ray_batch(3, 14)
    if case == "no ray":
        batch = batch.first(0)
    elif case == "one ray":
        batch = replace(batch, **{k: getattr(batch, k)[1:2] for k in ("rays_o", "rays_d", "t_near", "t_far", "jitter")})
    elif case == "all miss":
        batch.t_far[:] = batch.t_near
    else:
        batch.occupied[:] = False
    found = everything(render, batch, params, config, SETTINGS, torch.float32)
    if case == "one ray":
        assert float(found["opacities"]) > 0.1
        expected = everything(render_reference, batch, params, config, SETTINGS, torch.float64)
        compare_values(found, expected)
        compare_gradients([(found, expected)])
    else:
        assert all(float(t.double().norm()) == 0 for t in found.values())
        assert found["foregrounds"].shape == (len(batch.rays_o), 3)


@native
def test_render_of_1e5_samples() -> None:
    params, config = small_field(5, width=16, bias=-1.0)
    batch = ray_batch(3000, 15, filled=0.9)
    settings = MarchSettings(0.04)
    with torch.no_grad():
        out = render(batch, params, config, settings)
    assert out["evaluated"] == out["kept"] > 1e5
    some = replace(batch, **{k: getattr(batch, k)[::60] for k in ("rays_o", "rays_d", "t_near", "t_far", "jitter")})
    double = replace(some, rays_o=some.rays_o.double(), rays_d=some.rays_d.double())
    expected = render_reference(double, cast(params, torch.float64), config, settings)
    for name in SUMS:
        close(out[name][::60], expected[name], rtol=RENDER["rtol"], atol=5 * RENDER["atol"])


@native
def test_render_of_strided_tensors() -> None:
    params, config = small_field(5)
    batch = ray_batch(40, 16)
    names = ("rays_o", "rays_d", "t_near", "t_far", "jitter")
    results = []
    for make in (torch.clone, strided, lambda t: t.t().contiguous().t() if t.dim() == 2 else t):
        rays = replace(batch, **{k: make(getattr(batch, k)) for k in names})
        weights = [make(w).requires_grad_() for w in flat(params)]
        mine = FieldParams(weights[0], weights[1:3], weights[3:])
        out = render(rays, mine, config, SETTINGS, viewdirs=make(batch.rays_d))
        grads = torch.autograd.grad(
            (out["foregrounds"] * make(uniform(40, 3, seed=1))).sum() + out["depths"].sum(), weights
        )
        results.append([out["foregrounds"].detach(), *grads])
    for other in results[1:]:
        for k, (mine, plain) in enumerate(zip(other, results[0], strict=True)):
            assert torch.equal(mine, plain), f"result {k} depends on the strides"


@native
@pytest.mark.parametrize(("name", "value", "error"), [*MARCH_ERRORS, ("viewdirs", torch.zeros(5, 3), ValueError)])
def test_render_names_the_argument_that_is_wrong(name: str, value: Tensor, error: type[Exception]) -> None:
    params, config = small_field(5)
    batch = ray_batch(4, 11)
    views = value if name == "viewdirs" else batch.rays_d
    if name != "viewdirs":
        batch = replace(batch, **{name: value})
    with pytest.raises(error, match=f"{name}: expected"):
        render(batch, params, config, SETTINGS, viewdirs=views)


@native
def test_gradients_of_samples_near_the_camera_are_scaled_down() -> None:
    # By (t / distance)^2, and nothing else changes (Philip and Deschaintre 2023).
    params, config = small_field(5, contracted=True, bias=0.0)
    batch = ray_batch(60, 12, 3)
    settings = MarchSettings(0.05, 1 / 64, 1.0)
    distance = 8.0
    plain = render(batch, params, config, settings)
    weights = cast(params, torch.float32, requires_grad=True)
    out = render(batch, weights, config, replace(settings, gradient_distance=distance))
    assert torch.equal(out["foregrounds"], plain["foregrounds"]) and torch.equal(out["depths"], plain["depths"])
    found = torch.autograd.grad(out["foregrounds"].square().sum() + out["depths"].sum(), flat(weights))

    wide = cast(params, torch.float64, requires_grad=True)
    samples, ray = reference_march(batch, settings), reference_march(batch, settings).ray_indices
    mids = 0.5 * (samples.t_starts.double() + samples.t_ends.double())
    positions = batch.rays_o.double()[ray] + mids[:, None] * batch.rays_d.double()[ray]
    sigmas, rgbs = reference.radiance_field(positions, batch.rays_d.double()[ray], wide, config)
    share = (mids / distance).clamp_max(1.0).square()
    assert 0.2 < float(share.mean()) < 0.8
    sigmas = share * sigmas + (1 - share) * sigmas.detach()
    rgbs = share[:, None] * rgbs + (1 - share)[:, None] * rgbs.detach()
    want = reference.composite(samples, sigmas, rgbs, 60)._asdict()
    expected = torch.autograd.grad(want["foregrounds"].square().sum() + want["depths"].sum(), flat(wide))
    for mine, theirs in zip(found, expected, strict=True):
        assert relative(mine, theirs) < 5e-3  # with room for a kink, see compare_gradients


@native
def test_a_gradient_sink_gets_the_tables_gradient() -> None:
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    batch = ray_batch(40, 16)
    grads = torch.autograd.grad(render(batch, weights, config, SETTINGS)["foregrounds"].sum(), flat(weights))
    sink = GradAccumulator(torch.zeros_like(params.table))
    out = render(batch, weights, config, SETTINGS, sink=sink)
    out["foregrounds"].sum().backward()
    assert torch.equal(sink.table, grads[0]) and weights.table.grad is None
    for weight, grad in zip(flat(weights)[1:], grads[1:], strict=True):
        assert weight.grad is not None and torch.equal(weight.grad, grad)
    render(batch, weights, config, SETTINGS, sink=sink)["foregrounds"].sum().backward()  # adds
    close(sink.table, 2 * grads[0], rtol=1e-5, atol=1e-6)


@native
@pytest.mark.parametrize("wrong", [torch.zeros(10), torch.zeros(1, 4)])
def test_a_gradient_sink_of_another_shape_or_type_is_refused(wrong: Tensor) -> None:
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    # Larger than the table in bytes, so that a missing check fails this test and not the process.
    table = torch.zeros(*params.table.shape, *[2] * wrong.dim()).double()
    out = render(ray_batch(4, 11), weights, config, SETTINGS, sink=GradAccumulator(table))
    with pytest.raises((TypeError, ValueError), match="grad_accumulator"):
        out["foregrounds"].sum().backward()


@native
def test_the_reference_backend_fills_the_sink_too(backend: Callable[[str], str]) -> None:
    # One training loop serves every backend, so the sink must mean the same on each.
    params, config = small_field(5)
    batch = ray_batch(20, 16)
    sinks = []
    for name in ("cpu", "reference"):
        backend(name)
        weights = cast(params, torch.float32, requires_grad=True)
        sinks.append(GradAccumulator(torch.zeros_like(params.table)))
        view = FieldView(weights, config)
        out = kernels.render_rays(batch.rays(), batch.occupied, view, SETTINGS, grad_accumulator=sinks[-1])
        out.foregrounds.sum().backward()
    assert float(sinks[0].table.norm()) > 0
    assert relative(sinks[1].table, sinks[0].table) < GRADIENT


def rounded_products(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """A network whose products read what mixed precision reads: bfloat16 where the processor multiplies it."""
    bf16 = kernels.describe()["bf16"]
    for i, w in enumerate(weights):
        x, w = (v.bfloat16().float() if bf16 else v for v in (x, w))
        x = x @ w.T
        x = x.relu() if i + 1 < len(weights) else x
    return x


@native
@pytest.mark.parametrize("width", [16, 48, 64, 128])
def test_mixed_precision_rounds_what_products_read_and_nothing_else(width: int) -> None:
    params, config = small_field(5)
    weights = [
        uniform(width, params.table.shape[1] * config.layout.n_levels, seed=1, low=-1),
        uniform(16, width, seed=2, low=-1),
    ]
    params = replace(cast(params, torch.float32), density_weights=[w.float() for w in weights])
    params.color_weights[0] = uniform(width, 32, seed=3, low=-1)
    params.color_weights[1:] = [uniform(3, width, seed=4, low=-1)]
    positions = uniform(300, 3, seed=5, low=-1)
    half = params.table.half()
    unit = (positions + 1) / 2
    x = reference.hashgrid_encode(unit, half.float(), config.layout)
    expected = (rounded_products(x, params.density_weights)[:, 0] + config.density_bias).exp()
    sigmas, _ = cpu.field_forward(positions, None, FieldView(params, config, half))
    torch.testing.assert_close(sigmas, expected, rtol=2e-3, atol=1e-6)  # a sum's order decides the next rounding


@native
def test_render_in_mixed_precision() -> None:
    params, config = small_field(5)
    batch, half = ray_batch(60, 17), params.table.half()
    results = []
    for copy in (half, None):
        weights = cast(params, torch.float32, requires_grad=True)
        out = render(batch, weights, config, SETTINGS, table_half=copy)
        results.append(
            [out["foregrounds"].detach(), *torch.autograd.grad(out["foregrounds"].square().sum(), flat(weights))]
        )
    # 11 bits of the table and 8 of what the products read: a small fraction of a grey level of 1/255 = 4e-3.
    close(results[0][0], results[1][0], rtol=0, atol=4e-3)
    assert all(relative(a, b) < 5e-2 for a, b in zip(results[0], results[1], strict=True))
    assert relative(results[0][0], results[1][0]) > 0, "the half-precision table was not read"


@native
def test_what_changed_between_forward_and_backward_is_noticed() -> None:
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    out = render(ray_batch(10, 16), weights, config, SETTINGS)
    table = weights.table.detach()
    cpu_adam.adam_step(table, torch.ones_like(table), AdamState.of(table, (0.9, 0.99), 1e-8), AdamStep(0.1, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out["foregrounds"].sum().backward()


@native
def test_render_refuses_a_second_derivative_and_a_second_backward() -> None:
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    out = render(ray_batch(10, 16), weights, config, SETTINGS)
    (grad,) = torch.autograd.grad(out["foregrounds"].square().sum(), weights.table, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@native
def test_two_forward_passes_before_two_backward_passes() -> None:
    # Each forward pass owns the samples it keeps, also those of the pool.
    params, config = small_field(5)
    weights = cast(params, torch.float32, requires_grad=True)
    batches = [ray_batch(30, 16), ray_batch(50, 18)]
    alone = [
        torch.autograd.grad(render(b, weights, config, SETTINGS)["foregrounds"].sum(), flat(weights)) for b in batches
    ]
    both = [render(b, weights, config, SETTINGS)["foregrounds"].sum() for b in batches]
    for loss, expected in zip(both, alone, strict=True):
        for mine, grad in zip(torch.autograd.grad(loss, flat(weights)), expected, strict=True):
            assert torch.equal(mine, grad)


@native
@pytest.mark.parametrize("name", ["box, thresholds", "unbounded"])
def test_two_threads_give_the_bytes_of_one(name: str, threads: Callable[[int], None]) -> None:
    shape, n_levels, settings = RENDERS[name]
    params, config = small_field(5, **shape)
    batch = ray_batch(700, 12, n_levels)  # several tiles of rays
    results = []
    for n in (1, 2, 2):
        threads(n)
        x = uniform(40_000, 3, seed=1).requires_grad_()
        table = params.table.clone().requires_grad_()
        features = cpu.hashgrid_encode(x, table, config.layout)
        grads = torch.autograd.grad(features.square().sum(), (x, table))
        points = uniform(40_000, 3, seed=2, low=-1)
        sigmas, rgbs = cpu.field_forward(points, points, FieldView(params, config))
        assert rgbs is not None
        samples = native_march(batch, settings)
        results.append(
            [*everything(render, batch, params, config, settings, torch.float32).values(), features.detach(), *grads,
             sigmas, rgbs, samples.t_starts, samples.t_ends, samples.packed_info]
        )  # fmt: skip
    for other in results[1:]:
        for k, (mine, one) in enumerate(zip(other, results[0], strict=True)):
            assert mine.numpy().tobytes() == one.numpy().tobytes(), f"result {k}"


def constant_field(sigma: float) -> tuple[FieldParams, FieldConfig]:
    """Density `sigma` everywhere, colours that vary."""
    params, config = small_field(5)
    params.density_weights[-1][0] = 0.0
    return params, replace(config, density_bias=float(np.log(sigma)))


@native
def test_a_slab_has_the_opacity_of_beer_and_lambert() -> None:
    params, config = constant_field(1.7)
    batch = ray_batch(200, 19, filled=2.0)
    with torch.no_grad():
        out = render(batch, params, config, MarchSettings(0.01))
    samples = native_march(batch, MarchSettings(0.01))
    lengths = torch.zeros(200).index_add_(0, samples.ray_indices, samples.t_ends - samples.t_starts)
    # The marched length is the ray's chord, to a step at its start (the jitter) and half of one at its end; of what was
    # marched the law is exact to rounding.
    assert float((lengths - (batch.t_far - batch.t_near).clamp_min(0)).abs().max()) < 0.0151
    close(out["opacities"], 1 - torch.exp(-1.7 * lengths.double()), rtol=0, atol=1e-5)


@native
def test_splitting_intervals_changes_nothing_where_the_field_is_constant() -> None:
    params, config = constant_field(2.5)
    params.color_weights[0][:] = 0.0  # grey everywhere
    batch = ray_batch(100, 20, filled=2.0)
    batch.jitter[:] = 0.0
    batch.t_far = torch.where(batch.t_far > batch.t_near, batch.t_near + 0.8, batch.t_far)  # both lattices fill it
    batch.rays_o = -0.4 * batch.rays_d
    batch.t_near, batch.t_far = torch.zeros(100), torch.full((100,), 0.8)
    with torch.no_grad():
        whole, split = (render(batch, params, config, MarchSettings(s)) for s in (0.1, 0.05))
    assert split["kept"] == 2 * whole["kept"]
    for name in ("foregrounds", "opacities", "second_moments"):
        close(split[name], whole[name], rtol=1e-5, atol=1e-5)


@native
def test_what_is_hidden_changes_nothing() -> None:
    # A wall of opaque cells at z in [0, 1/4], seen from z = -2; what lies behind, at z > 1/4, is now there and now not.
    params, config = small_field(5, bias=14.0)
    batch = ray_batch(200, 21)
    batch.rays_o = torch.cat([uniform(200, 2, seed=1, low=-0.8, high=0.8), torch.full((200, 1), -2.0)], dim=1)
    batch.rays_d = torch.tensor([[0.0, 0.0, 1.0]]).repeat(200, 1)
    batch.t_near, batch.t_far = torch.ones(200), torch.full((200,), 3.0)
    settings = MarchSettings(0.02, 0.0, 0.02, 1e-4)
    results = []
    for behind in (False, True):
        batch.occupied[:] = False
        batch.occupied[:, 16:20] = True
        batch.occupied[:, 20:] = behind
        results.append(everything(render, batch, params, config, settings, torch.float32))
    assert float(results[0]["opacities"].min()) > 0.999
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name]), name


@native
def test_hidden_samples_are_not_evaluated() -> None:
    params, config = small_field(5, bias=14.0)
    batch = ray_batch(200, 21, filled=2.0)
    with torch.no_grad():
        out = render(batch, params, config, MarchSettings(0.01, 0.0, 0.01, 1e-3))
    assert out["kept"] <= out["evaluated"] < 0.2 * len(native_march(batch, MarchSettings(0.01)).t_starts)


VARIANT_RUN = """
import sys
import numpy as np
import torch
from nerf.kernels import AdamState, AdamStep, FieldView, MarchSettings, bindings, cpu, cpu_adam
from native import everything, native_march, render
from tiny import ray_batch, small_field
assert bindings.load().variant == sys.argv[1], bindings.load()
results = {}
for seed, (shape, n_levels, settings) in enumerate([
    ({"bias": 3.0}, 1, MarchSettings(0.05, 0.0, 0.05, 1e-2, 1e-2)),
    ({"contracted": True}, 3, MarchSettings(0.05, 1 / 64, 1.0)),
    ({"features": 2}, 1, MarchSettings(0.05)),
]):
    params, config = small_field(seed, **shape)
    batch = ray_batch(60, 12 + seed, n_levels)
    samples = native_march(batch, settings)
    out = {f"grad {k}" if "rays" in k or "weights" in k or k in ("viewdirs", "table") else f"value {k}": t
           for k, t in everything(render, batch, params, config, settings, torch.float32).items()}
    out |= {"bits starts": samples.t_starts, "bits ends": samples.t_ends, "bits packed": samples.packed_info}
    out |= {"bits kept": out.pop("value kept"), "bits jitter": cpu.ray_jitter(3, 4, 1000)}
    table, half = params.table.clone(), params.table.half()
    for name, copy in (("value", None), ("mixed", half)):
        found = cpu.field_forward(batch.rays_o / 5, batch.rays_d, FieldView(params, config, copy))
        out[f"{name} sigmas"], out[f"{name} rgbs"] = found
    state = AdamState.of(table, (0.9, 0.99), 1e-15)
    cpu_adam.adam_step(table, params.table.clone(), state, AdamStep(1e-2, 3, True, half, True))
    out |= {"value adam": table, "value adam half": half.float()}
    results |= {f"{k} {seed}": t.numpy() for k, t in out.items()}
np.savez(sys.argv[2], **results)
"""


@native
def test_every_variant_of_the_library_gives_the_same(tmp_path: Path) -> None:
    current = build.source_hash().encode()
    paths = {v: build.LIBRARIES / build.file_name_of(v) for v in bindings.suitable_variants()}
    variants = [v for v, path in paths.items() if path.exists() and current in path.read_bytes()]
    if len(variants) < 2:
        pytest.skip(f"needs two up-to-date variants to compare, found {variants}")
    results = {}
    for variant in variants:
        code = f"import sys\nsys.argv = ['-', {variant!r}, {str(tmp_path / variant)!r}]\n{VARIANT_RUN}"
        done = in_a_process(code, NERF_CPU_VARIANT=variant)
        assert done.returncode == 0, f"{variant}: exit {done.returncode}: {done.stderr[-800:]}"
        results[variant] = np.load(tmp_path / f"{variant}.npz")
    first = results[variants[0]]
    for variant in variants[1:]:
        gradients: dict[str, list[float]] = {}
        for key in first.files:
            a, b = first[key], results[variant][key]
            error = float(np.linalg.norm(a.astype(np.float64) - b) / max(np.linalg.norm(a.astype(np.float64)), 1e-9))
            if key.startswith("bits"):
                assert a.tobytes() == b.tobytes(), f"{key}: {variant} differs from {variants[0]}"
            elif key.startswith("value"):
                # Other lane counts add in another order, and without FMA each product is rounded.
                assert error < (1e-2 if "median" in key or "half" in key else 1e-4), f"{key}: {variant}"
            elif key.startswith("mixed"):  # products read bfloat16 where the processor has it
                assert error < 2e-2, f"{key}: {variant}"
            else:
                gradients.setdefault(key[:-2], []).append(error)
        for key, errors in gradients.items():  # with kinks, see compare_gradients
            assert min(errors) < GRADIENT and max(errors) < 0.05, f"{key}: {variant}: {errors}"
