"""Losses: values by hand, limits, derivatives, and the surface loss against its per-sample definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from nerf.kernels import reference
from nerf.kernels.records import Samples
from nerf.rendering import losses

# The same sum in another order, in float64.
F64 = {"rtol": 1e-12, "atol": 1e-12}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_by_hand() -> None:
    a = torch.tensor([[0.0, 0.05, 1.0]], dtype=torch.float64)
    b = torch.zeros(1, 3, dtype=torch.float64)
    assert losses.huber(a, b, delta=0.1).item() == pytest.approx((0.05**2 / 2 + 0.1 * (1 - 0.05)) / 3)
    assert losses.distortion(torch.tensor([1.0, 2.0, 6.0])).item() == 3.0
    assert losses.distortion(torch.zeros(0)).item() == 0.0


def test_huber_equals_torch() -> None:
    a, b = rand(50, 3), rand(50, 3, seed=1)
    expected = torch.nn.functional.huber_loss(a, b, delta=0.3)
    torch.testing.assert_close(losses.huber(a, b, delta=0.3), expected, **F64)


def test_gradients() -> None:
    a = rand(4, 3).requires_grad_()
    assert gradcheck(losses.huber, (a, rand(4, 3, seed=1)))
    (at_zero,) = torch.autograd.grad(losses.huber(a, a.detach()), a)
    assert (at_zero == 0).all()


def samples_of(counts: list[int]) -> tuple[Samples, Tensor, Tensor]:
    s = sum(counts)
    counted = torch.tensor(counts)
    ray = torch.arange(len(counts)).repeat_interleave(counted)
    starts = torch.arange(s, dtype=torch.float64) * 0.1
    samples = Samples(starts, starts + 0.1, ray, torch.stack([counted.cumsum(0) - counted, counted], 1))
    return samples, 8 * rand(s, seed=2), rand(s, 3, seed=3)


@pytest.mark.parametrize("background", ["none", "one", "per ray"])
def test_surface_equals_its_definition(background: str) -> None:
    counts = [4, 0, 7, 1]
    samples, sigmas, rgbs = samples_of(counts)
    targets = rand(4, 3, seed=4)
    backgrounds = {"none": None, "one": rand(3, seed=5), "per ray": rand(4, 3, seed=6)}[background]
    out = reference.composite(samples, sigmas, rgbs, 4)
    loss = losses.surface(out.second_moments, out.foregrounds, out.opacities, targets, backgrounds)
    errors = (rgbs - targets[samples.ray_indices]).square().sum(1)
    total = (out.weights * errors).sum()
    if backgrounds is not None:
        total = total + ((1 - out.opacities) * (backgrounds - targets).square().sum(1)).sum()
    torch.testing.assert_close(loss, total / 12, **F64)


def test_surface_of_an_opaque_sample_is_mse() -> None:
    samples, sigmas, rgbs = samples_of([1, 1, 1])
    out = reference.composite(samples, sigmas * 0 + 1e4, rgbs, 3)  # optical depth 1000
    targets = rand(3, 3, seed=4)
    loss = losses.surface(out.second_moments, out.foregrounds, out.opacities, targets, torch.ones(3).double())
    torch.testing.assert_close(loss, (rgbs - targets).square().mean(), **F64)


def test_surface_does_not_reward_a_blend() -> None:
    # Half black, half white before a grey pixel: the picture is right and mse is 0, the surface loss is 1/4.
    colors = torch.full((1, 3), 0.5, dtype=torch.float64)
    moments, opacities = torch.tensor([1.5], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert losses.surface(moments, colors, opacities, colors).item() == pytest.approx(0.25)


def test_surface_gradient_pulls_density_to_the_right_colour() -> None:
    # Two samples in a row, the first of a wrong colour: its density must fall and that of the second rise.
    samples, _, _ = samples_of([2])
    sigmas = torch.tensor([5.0, 5.0], dtype=torch.float64, requires_grad=True)
    rgbs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    out = reference.composite(samples, sigmas, rgbs, 1)
    loss = losses.surface(out.second_moments, out.foregrounds, out.opacities, target, torch.zeros(3).double())
    (grad,) = torch.autograd.grad(loss, sigmas)
    assert grad[0] > 0 > grad[1]


def test_surface_gradients() -> None:
    inputs = tuple(x.requires_grad_() for x in (rand(3), rand(3, 3, seed=1), rand(3, seed=2), rand(3, 3, seed=3)))
    assert gradcheck(losses.surface, (*inputs, rand(3, seed=4).requires_grad_()))


def test_wrong_arguments_raise() -> None:
    a = rand(4, 3)
    with pytest.raises(ValueError, match="targets: expected the shape of colors"):
        losses.huber(a, a[0])  # would broadcast to a plausible number
    with pytest.raises(TypeError, match="targets: expected a float dtype"):
        losses.huber(a, a.to(torch.uint8))
    with pytest.raises(ValueError, match="delta"):
        losses.huber(a, a, delta=0.0)
    with pytest.raises(ValueError, match="second_moments, opacities"):
        losses.surface(a[:, :1], a, a[:, 0], a)
