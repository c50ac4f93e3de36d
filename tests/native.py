"""What tests of the native kernels share: the ops with their reference, and how both are compared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from march_definition import march_at_once
from tiny import RayBatch, cast, flat, uniform, unit_vectors
from torch import Tensor

from nerf.kernels import (
    FieldConfig,
    FieldParams,
    FieldView,
    GradAccumulator,
    MarchSettings,
    Samples,
    bindings,
    cpu,
    reference,
)

ROOT = Path(__file__).resolve().parent.parent


native = pytest.mark.skipif(bindings.load().handle is None, reason=f"no native library: {bindings.load().reason}")


# Sums of at most a few hundred float32 products of order 1, each rounded to 6e-8 of itself.
F32 = {"rtol": 2e-5, "atol": 2e-6}


# Per-ray sums behind exponentials of float32 logits: the logit's rounding of some 1e-6 comes back multiplied.
RENDER = {"rtol": 1e-4, "atol": 2e-5}


# Gradients are judged by norm: single entries are differences of large terms.
GRADIENT = 2e-4


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, of the whole tensors, in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12))


def close(found: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


def strided(t: Tensor) -> Tensor:
    """The same numbers, laid out with gaps between rows and columns."""
    wide = t.new_zeros(*(2 * s + 1 for s in t.shape))
    view = wide[tuple(slice(0, 2 * s, 2) for s in t.shape)]
    view.copy_(t)
    assert not view.is_contiguous() or t.numel() <= 1
    return view


def in_a_process(code: str, seconds: float = 120.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python that may crash or hang; a hang ends as TimeoutExpired."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=seconds)


def lines_before_the_end(code: str, seconds: float) -> list[str]:
    """What Python printed until it ended, or hung for so long."""
    try:
        return in_a_process(code, seconds).stdout.splitlines()
    except subprocess.TimeoutExpired as error:
        out = error.stdout or b""
        return (out.decode() if isinstance(out, bytes) else out).splitlines()


def reference_march(batch: RayBatch, settings: MarchSettings, march: Callable[..., Samples] = march_at_once) -> Samples:
    return march(*batch.all(), settings.step_size, settings.cone_angle, settings.max_step)


def same_samples(found: Samples, expected: Samples) -> None:
    for name in ("packed_info", "ray_indices", "t_starts", "t_ends"):
        mine, other = getattr(found, name), getattr(expected, name)
        assert mine.dtype == other.dtype and torch.equal(mine, other), name


def native_march(batch: RayBatch, settings: MarchSettings) -> Samples:
    return cpu.march(batch.rays(), cpu.pack_occupancy(batch.occupied), settings)


MARCH_ERRORS = [
    ("rays_o", torch.zeros(4, 2), ValueError),
    ("rays_o", torch.zeros(4, 3).double(), TypeError),
    ("rays_d", torch.zeros(5, 3), ValueError),
    ("rays_d", torch.zeros(4, 3).half(), TypeError),
    ("t_near", torch.zeros(4, 1), ValueError),
    ("t_near", torch.zeros(4).double(), TypeError),
    ("t_far", torch.zeros(3), ValueError),
    ("t_far", torch.zeros(4, dtype=torch.int32), TypeError),
    ("jitter", torch.zeros(5), ValueError),
    ("jitter", torch.zeros(4).double(), TypeError),
]


OUTPUTS = ("foregrounds", "opacities", "depths", "median_depths", "second_moments", "distortions")


SUMS = ("foregrounds", "opacities", "depths", "second_moments", "distortions")  # the differentiable ones


def render(
    batch: RayBatch,
    params: FieldParams,
    config: FieldConfig,
    settings: MarchSettings,
    viewdirs: Tensor | None = None,
    table_half: Tensor | None = None,
    sink: GradAccumulator | None = None,
) -> dict[str, Any]:
    """The native op."""
    view, bits = FieldView(params, config, table_half), cpu.pack_occupancy(batch.occupied)
    return cpu.render_rays(batch.rays(viewdirs), bits, view, settings, sink)._asdict()


def render_reference(
    batch: RayBatch, params: FieldParams, config: FieldConfig, settings: MarchSettings, viewdirs: Tensor | None = None
) -> dict[str, Any]:
    """The staged path, in the type of the rays."""
    view = FieldView(params, config)
    return reference.render_rays(batch.rays(viewdirs), batch.occupied, view, settings)._asdict()


def everything(
    run: Callable[..., dict[str, Any]],
    batch: RayBatch,
    params: FieldParams,
    config: FieldConfig,
    settings: MarchSettings,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """All outputs, and the gradients of a random combination of them to everything that has one."""
    weights = cast(params, dtype, requires_grad=True)
    rays = [t.to(dtype).clone().requires_grad_() for t in (batch.rays_o, batch.rays_d)]
    views = unit_vectors(len(batch.rays_o) + 1, 77)[1:].to(dtype).requires_grad_()
    out = run(replace(batch, rays_o=rays[0], rays_d=rays[1]), weights, config, settings, views)
    loss = sum((out[k] * uniform(*out[k].shape, seed=i, low=-1).to(dtype)).sum() for i, k in enumerate(SUMS))
    names = ["rays_o", "rays_d", "viewdirs", "table"]
    names += [f"density_weights[{i}]" for i in range(len(params.density_weights))]
    names += [f"color_weights[{i}]" for i in range(len(params.color_weights))]
    grads = torch.autograd.grad(loss, [*rays, views, *flat(weights)])
    values = {k: out[k].detach() for k in OUTPUTS} | {"kept": torch.tensor(out["kept"])}
    return values | dict(zip(names, grads, strict=True))


RENDERS: dict[str, tuple[dict[str, Any], int, MarchSettings]] = {
    "box": ({}, 1, MarchSettings(0.05)),
    "box, 2 features, narrow": ({"features": 2, "width": 16}, 1, MarchSettings(0.05)),
    "box, wide": ({"width": 128}, 1, MarchSettings(0.1)),
    "box, other depths": ({"layers": (3, 2)}, 1, MarchSettings(0.05)),
    "box, opaque": ({"bias": 5.0}, 1, MarchSettings(0.05)),
    "box, thresholds": ({"bias": 3.0}, 1, MarchSettings(0.05, 0.0, 0.05, 1e-2, 1e-2)),
    "box, growing steps": ({}, 1, MarchSettings(0.03, 1 / 64, 0.2)),
    "unbounded": ({"contracted": True, "bias": 0.0}, 3, MarchSettings(0.05, 1 / 64, 1.0)),
    "unbounded, thresholds": ({"contracted": True, "bias": 2.0}, 4, MarchSettings(0.05, 1 / 32, 1.0, 1e-3, 1e-3)),
}


def compare_values(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert int(found["kept"]) == int(expected["kept"])
    for name in SUMS:
        # depths and distortions have the scene's length as their scale
        scale = max(1.0, float(expected[name].abs().max())) if expected[name].numel() else 1.0
        close(found[name], expected[name], rtol=RENDER["rtol"], atol=RENDER["atol"] * scale)
    # Where the opacity creeps up to 1/2, or stays within rounding of it, rounding moves the median.
    same = torch.isclose(found["median_depths"].double(), expected["median_depths"].double(), rtol=1e-4, atol=1e-4)
    assert float(same.double().mean() if len(same) else 1.0) > 0.98


def compare_gradients(pairs: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> None:
    """Gradients of several random problems. One that is wrong is wrong in all of them; but ReLUs and cell walls are
    kinks, and where rounding moves one of the million inputs across one, that sample's gradient is another."""
    for name in pairs[0][0].keys() - set(OUTPUTS) - {"kept"}:
        errors = [relative(found[name], expected[name]) for found, expected in pairs]
        assert min(errors) < GRADIENT and max(errors) < 0.05, f"{name}: {errors}"
