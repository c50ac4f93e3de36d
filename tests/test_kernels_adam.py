"""The optimiser on every backend against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from native import (
    close,
    native,
    strided,
)
from tiny import uniform
from torch import Tensor

from nerf import kernels
from nerf.kernels import (
    AdamState,
    AdamStep,
    cpu_adam,
    reference,
)


def adam_state(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """param, grad with rows of zeros, m, v >= 0."""
    param, grad, m = (uniform(*shape, seed=seed + k, low=-1) for k in range(3))
    if len(shape) > 1:
        grad[::3] = 0.0
        if shape[0] > 1:
            grad[1, 1:] = 0.0  # partly zero is not zero
    return param, grad, m, uniform(*shape, seed=seed + 3)


@pytest.mark.parametrize("weight_decay", [0.0, 2.0])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shape", [(50, 4), (50, 2), (50, 1), (37, 3), (20, 8), (1, 4), (0, 4), (40_000, 4)])
@pytest.mark.parametrize("name", ["auto", "reference"])
def test_adam_is_the_reference_in_float64(
    name: str, shape: tuple[int, ...], skip: bool, weight_decay: float, backend: Callable[[str], str]
) -> None:
    backend(name)
    param, grad, m, v = adam_state(shape)
    half = param.half()
    wide = param.double(), grad.double(), m.double(), v.double()
    untouched = (grad == 0).all(dim=1) if skip else torch.zeros(shape[0], dtype=torch.bool)
    # With decay a touched row is first a little smaller; which rows are touched is a matter of the gradient alone.
    decays = ~untouched & (torch.arange(shape[0]) >= 5)
    wide[0].mul_(torch.where(decays[:, None], 1.0 - 0.01 * weight_decay, 1.0))
    reference.adam_step(
        wide[0], wide[1], AdamState(*wide[2:], (0.9, 0.99), 1e-8), AdamStep(0.01, 3, skip_zero_rows=skip)
    )
    before = [t.clone() for t in (param, m, v, half)]
    state = AdamState(m, v, (0.9, 0.99), 1e-8, weight_decay, decay_from=5)
    kernels.adam_step(param, grad, state, AdamStep(0.01, 3, skip_zero_rows=skip, half_copy=half, zero_grad=True))
    for found, expected in zip((param, m, v), (wide[0], wide[2], wide[3]), strict=True):
        close(found, expected, rtol=1e-5, atol=1e-6)
    for now, then in zip((param, m, v, half), before, strict=True):
        assert torch.equal(now[untouched], then[untouched])
    assert torch.equal(half[~untouched], param[~untouched].half())
    assert bool((grad == 0).all())


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_adam_leaves_the_gradient_when_not_told_to_clear_it(name: str, backend: Callable[[str], str]) -> None:
    backend(name)
    for shape in ((30,), (30, 3), (30, 4)):
        param, grad, m, v = adam_state(shape)
        kept = grad.clone()
        wide = param.double(), grad.double(), m.double(), v.double()
        reference.adam_step(*wide[:2], AdamState(*wide[2:], (0.9, 0.99), 1e-8), AdamStep(0.01, 1))
        kernels.adam_step(param, grad, AdamState(m, v, (0.9, 0.99), 1e-8), AdamStep(0.01, 1))
        assert torch.equal(grad, kept)
        close(param, wide[0], rtol=1e-5, atol=1e-6)


@native
def test_adam_is_the_same_with_two_threads(threads: Callable[[int], None]) -> None:
    results = []
    for n in (1, 2):
        threads(n)
        state = adam_state((50_000, 4))
        cpu_adam.adam_step(*state[:2], AdamState(*state[2:], (0.9, 0.99), 1e-15), AdamStep(0.01, 5, True))
        results.append(torch.cat(state).numpy().tobytes())
    assert results[0] == results[1]


@native
def test_half_copies_round_like_torch() -> None:
    # To nearest even, subnormals included; only beyond 65504 is a table held finite.
    spread = torch.logspace(-9, 4.8, 4000)
    special = torch.tensor([0.0, 1 + 2**-11, 1 + 3 * 2**-11, 65504.0, 1e6, -1e6, 3e-8, 1e-8])
    values = torch.cat([special, spread, -spread, special])  # first and last: in whole vectors, and in what is left
    for columns in (4, 1):
        param = values.reshape(-1, columns).clone()
        half = torch.zeros_like(param).half()
        cpu_adam.adam_step(
            param, torch.zeros_like(param), AdamState.of(param, (0.9, 0.99), 1e-8), AdamStep(0.0, 1, False, half)
        )
        expected = param.clamp(-65504, 65504).half()
        big = param.abs() > 65504
        assert torch.equal(half[~big], expected[~big])
        assert bool(torch.isfinite(half).all()), "a half table must never hold infinity"


@native
@pytest.mark.parametrize("name", ["param", "grad", "m", "v", "half_copy"])
@pytest.mark.parametrize("wrong", ["shape", "type", "strides"])
def test_adam_names_the_argument_that_is_wrong(name: str, wrong: str) -> None:
    arguments = dict(zip(("param", "grad", "m", "v"), adam_state((10, 4)), strict=True))
    arguments["half_copy"] = arguments["param"].half()
    good = arguments[name]
    arguments[name] = {"shape": good[:9], "type": good.double(), "strides": strided(good)}[wrong]
    param, grad, m, v, half = arguments.values()
    blamed = "grad" if wrong == "shape" and name == "param" else name  # the parameter's shape is the measure
    with pytest.raises((ValueError, TypeError), match=f"{blamed}: expected"):
        cpu_adam.adam_step(param, grad, AdamState(m, v, (0.9, 0.99), 1e-8), AdamStep(0.01, 1, half_copy=half))


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_adam_counts_steps_from_one(name: str, backend: Callable[[str], str]) -> None:
    backend(name)
    param, grad, m, v = adam_state((10, 4))
    with pytest.raises(ValueError, match="step: expected 1 or more"):
        kernels.adam_step(param, grad, AdamState(m, v, (0.9, 0.99), 1e-8), AdamStep(0.01, 0))
