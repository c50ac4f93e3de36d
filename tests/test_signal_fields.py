"""The networks that signals are fitted with: native against torch, derivatives to second order, and equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nerf import kernels
from nerf.errors import UserError
from nerf.kernels import Layer
from nerf.kernels.network import reference_forward
from nerf.rendering.metrics import psnr_of
from nerf.signals import derivatives
from nerf.signals.fields import KINDS, FieldChoice, SignalField
from nerf.signals.fitting import FitConfig, fit
from nerf.signals.image import image_of_field
from nerf.signals.poisson import PoissonProblem
from nerf.signals.record import Signal

native = pytest.mark.skipif(
    not kernels.native_networks(torch.zeros(1), 2), reason="there is no native library, or it is not used"
)


def network(sizes: list[int], acts: list[str], omega: float, dtype: torch.dtype = torch.float32) -> list[Layer]:
    torch.manual_seed(0)
    pairs = zip(sizes[:-1], sizes[1:], acts, strict=True)
    return [
        Layer((torch.randn(b, a) / math.sqrt(a)).requires_grad_(), torch.randn(b).requires_grad_(), act, omega)
        for a, b, act in pairs
    ]


def wide(layers: list[Layer]) -> list[Layer]:
    return [Layer(w.double(), None if b is None else b.double(), a, o) for w, b, a, o in layers]


@native
@pytest.mark.parametrize(
    ("sizes", "acts"),
    [
        ([2, 64, 64, 3], ["sine", "sine", "linear"]),
        ([1, 40, 1], ["relu", "sigmoid"]),
        ([18, 64, 48, 4], ["relu", "relu", "linear"]),
        ([5, 130, 17], ["sine", "linear"]),
    ],
)
def test_native_networks_agree_with_float64(sizes: list[int], acts: list[str]) -> None:
    layers = network(sizes, acts, 1.5)
    leaves = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
    for n in (1, 97, 2000):
        x, targets = torch.rand(n, sizes[0]).requires_grad_(), torch.rand(n, sizes[-1])
        truth = (reference_forward(x.double(), wide(layers)) - targets).square().mean()
        wanted = torch.autograd.grad(truth, [x, *leaves])
        out = kernels.network_forward(x, layers)
        for mse, tolerance in (
            (kernels.network_mse(x, targets, layers), 1e-4),
            ((out - targets).square().mean(), 1e-4),
            (kernels.network_mse(x, targets, layers, bf16=True), 0.15),
        ):
            assert float(mse.detach()) == pytest.approx(float(truth.detach()), rel=tolerance)
            for found, true in zip(torch.autograd.grad(mse, [x, *leaves]), wanted, strict=True):
                assert float((found - true).norm()) < tolerance * float(true.norm()) + 1e-9


@native
def test_threads_change_no_bit() -> None:
    layers = network([2, 64, 64, 3], ["sine", "sine", "linear"], 2.0)
    leaves = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
    x, targets, before = torch.rand(5000, 2), torch.rand(5000, 3), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.autograd.grad(kernels.network_mse(x, targets, layers, bf16=True), leaves))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_is_its_encoding_and_network(kind: str) -> None:
    field = SignalField(FieldChoice(kind, width=32, depth=2, log2_hashmap_size=10), 2, 3, (1.0, 0.5), -1.0, 2.0)
    u = torch.rand(300, 2)
    plain = field(u.clone().requires_grad_())  # in plain torch
    torch.testing.assert_close(field(u), plain, rtol=1e-4, atol=1e-4)
    targets = torch.rand(300, 3)
    torch.testing.assert_close(field.mse(u, targets), (plain - targets).square().mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["siren", "fourier", "mlp"])
def test_derivatives_are_those_of_differences(kind: str) -> None:
    field = SignalField(FieldChoice(kind, width=32, depth=2, sigma=1.0, n_frequencies=2), 2, 2, (1.0, 0.5)).double()
    u, step = torch.rand(200, 2, dtype=torch.float64), 1e-5

    def at(dx: float, dy: float) -> torch.Tensor:
        return field((u + torch.tensor([dx, dy], dtype=torch.float64)).requires_grad_()).detach()

    values, gradients = derivatives.gradient(field, u)
    differences = torch.stack([at(step, 0) - at(-step, 0), at(0, step) - at(0, -step)], dim=2) / (2 * step)
    near = (gradients - differences).abs().amax(dim=(1, 2)) < 1e-3 * float(differences.abs().max())
    assert float(near.double().mean()) > 0.9  # but for kinks of ReLU
    _, laplacian = derivatives.laplacian(field, u)
    if kind == "siren":
        second = (at(step, 0) + at(-step, 0) + at(0, step) + at(0, -step) - 4 * values) / step**2
        torch.testing.assert_close(laplacian, second, rtol=1e-3, atol=1e-3 * float(second.abs().max()))
    else:
        assert laplacian.isfinite().all()


@pytest.mark.parametrize("kind", ["siren", "fourier", "mlp"])
def test_gradients_beside_the_values_are_learnt_from_as_by_double_backward(kind: str) -> None:
    field = SignalField(FieldChoice(kind, width=48, depth=2, sigma=1.0), 2, 3, (1.0, 0.5))
    u, weights = torch.rand(130, 2), torch.randn(130, 3, 2)
    learnt = list(field.network.parameters())
    found = []
    for values, gradients in (derivatives.gradient(field, u, train=True), field.with_gradient(u)):
        loss = (gradients * weights).mean() + values.square().mean()
        found.append((gradients.detach(), torch.autograd.grad(loss, learnt, allow_unused=True)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3 * float(found[0][0].abs().max()))
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert a is None or float((a - b).norm()) < 1e-3 * float(a.norm()) + 1e-9


def test_a_hash_grid_says_that_it_has_no_second_derivatives() -> None:
    field = SignalField(FieldChoice("hash", log2_hashmap_size=8, n_levels=2), 2, 1)
    _, gradients = derivatives.gradient(field, torch.rand(5, 2))
    assert gradients.shape == (5, 1, 2) and gradients.abs().max() > 0
    for attempt in (derivatives.laplacian, lambda f, u: derivatives.gradient(f, u, train=True)):
        with pytest.raises(UserError, match="hash grid"):
            attempt(field, torch.rand(5, 2))


def waves(side: int) -> Signal:
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side
    values = 0.5 + 0.25 * np.cos(2 * np.pi * x) * np.cos(np.pi * y) + 0.2 * np.cos(3 * np.pi * y)
    return Signal("image", values.reshape(-1, 1).astype(np.float32), (side, side))


def test_derivatives_of_an_image_are_exact_where_it_is_band_limited() -> None:
    problem = PoissonProblem(waves(32), "gradient")
    y, x = (np.mgrid[0:32, 0:32] + 0.5) / 32
    along_x = -0.5 * np.pi * np.sin(2 * np.pi * x) * np.cos(np.pi * y)
    np.testing.assert_allclose(problem.targets[:, 0, 0].numpy(), along_x.ravel(), atol=1e-4)
    pi2 = np.pi**2
    laplacian = -5 * pi2 * 0.25 * np.cos(2 * np.pi * x) * np.cos(np.pi * y) - 9 * pi2 * 0.2 * np.cos(3 * np.pi * y)
    found = PoissonProblem(waves(32), "laplacian").targets[:, 0].numpy()
    np.testing.assert_allclose(found, laplacian.ravel(), atol=1e-2)


def test_gains_along_lines_are_the_image_without_the_mean_of_each_line() -> None:
    values = np.random.default_rng(0).random((24 * 17, 2)).astype(np.float32)  # noise: every wave the grid can hold
    problem = PoissonProblem(Signal("image", values, (24, 17)), "gradient")
    pixels = values.reshape(24, 17, 2)
    for gains, axis in zip(problem.gains, (1, 0), strict=True):
        np.testing.assert_allclose(gains.numpy(), pixels - pixels.mean(axis=axis, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("learn", "steps", "least"), [("gradient", 250, 30.0), ("gradient-points", 250, 30.0), ("laplacian", 200, 20.0)]
)
def test_an_image_is_found_from_its_derivatives(learn: str, steps: int, least: float) -> None:
    signal = waves(32)
    found, relative_error = found_from(signal, learn, FitConfig(steps=steps, batch=512, learning_rate=3e-3))
    assert psnr_of(float(np.square(found - signal.values[:, 0]).mean())) > least
    assert relative_error < 0.05


def test_lines_find_the_coarse_waves_that_points_hardly_see() -> None:
    texture = 0.1 * np.random.default_rng(0).standard_normal((48 * 48, 1))  # nearly all of the gradient
    signal = Signal("image", (waves(48).values + texture).astype(np.float32), (48, 48))
    errors = []
    for learn in ("gradient", "gradient-points"):
        found, _ = found_from(signal, learn, FitConfig(steps=100, batch=1536, learning_rate=1e-3))
        blocks = (found - signal.values[:, 0]).reshape(6, 8, 6, 8).mean(axis=(1, 3))
        errors.append(float(np.square(blocks).mean()))
    assert psnr_of(errors[0]) > 37.0 and errors[0] < errors[1] / 4


def found_from(signal: Signal, learn: str, config: FitConfig) -> tuple[np.ndarray, float]:
    """Pixels [n] of a small SIREN that learns an image's derivatives, and their relative error."""
    problem = PoissonProblem(signal, learn)
    fitted = fit(problem, FieldChoice("siren", width=48, depth=2, first_omega_0=10.0, omega_0=10.0), config)
    problem.settle(fitted.field)
    return image_of_field(fitted.field, *signal.shape).reshape(-1), problem.relative_error(fitted.field)
