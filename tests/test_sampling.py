"""The staged path: equal to the fused op on our own field, and right for a field of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny import FIELD, generator, ray_batch, uniform, unit_vectors
from torch import Tensor, nn
from torch.autograd import gradcheck

from nerf import kernels
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import RadianceField
from nerf.geometry.space import Box, Ndc, Unbounded
from nerf.kernels import GradAccumulator, RenderedRays, reference
from nerf.rendering.marching import Marching
from nerf.rendering.rays import render_many, render_rays
from nerf.rendering.sampling import composite, render_with, sample_rays

BOX = Marching(Box(), 0.0, 100.0, step_size=0.04)
MARCHES = {
    "box": BOX,
    "all samples": replace(BOX, stop_threshold=0.0, alpha_threshold=0.0),
    "unbounded": replace(BOX, space=Unbounded(3), cone_angle=1 / 64, gradient_distance=1.5),
    "ndc": replace(BOX, space=Ndc(1.2, 1.5)),
}
# Both evaluate the same samples (asserted) in float32, the fused op with fused multiply-adds and its own exp: 1e-6 of
# each factor, of which a ray multiplies some dozens. Gradients sum thousands of such terms of both signs.
VALUES, GRADIENT = {"rtol": 1e-4, "atol": 2e-5}, 2e-4
SUMS = ("foregrounds", "opacities", "depths", "second_moments", "distortions")


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cpu" and kernels.bindings.load().handle is None:
        pytest.skip("there is no native library")
    before = kernels.backend()
    yield kernels.use(request.param)
    kernels.use(before)


def lumpy(contracted: bool = False, color_scale: float = 1.0) -> RadianceField:
    """Densities of all sizes; rays are half seen through."""
    field = RadianceField(replace(FIELD, density_bias=-1.0, color_scale=color_scale), contracted, seed=2)
    with torch.no_grad():
        field.table.mul_(2e4)
    return field


def scene(name: str, n: int = 40) -> tuple[Tensor, Tensor, OccupancyGrid]:
    """Rays, and cells of which a part is occupied."""
    marching = MARCHES[name]
    if name == "ndc":
        o = uniform(n, 3, seed=1, low=-0.2, high=0.2)
        d = torch.nn.functional.normalize(
            uniform(n, 3, seed=2, low=-0.3, high=0.3) - torch.tensor([0.0, 0.0, 1.0]), dim=1
        )
    else:
        batch = ray_batch(n, n_levels=marching.space.n_levels)
        o, d = batch.rays_o, batch.rays_d
    grid = OccupancyGrid(marching.space.n_levels, 32)
    grid.restrict(lambda centres, _: torch.rand(len(centres), generator=generator(3)) < 0.4)
    return o, d, grid


def loss_of(rays: RenderedRays) -> Tensor:
    """One number that all outputs change, with another weight for each ray."""
    weights = uniform(len(rays.opacities), 5, seed=9, low=-1.0)
    own = rays.foregrounds @ torch.tensor([1.0, -0.5, 0.7])
    return (torch.stack([own, *(getattr(rays, name) for name in SUMS[1:])], dim=1) * weights).sum()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", MARCHES)
def test_the_staged_path_on_our_field_is_the_fused_op(name: str, backend: str) -> None:
    field, (o, d, grid) = lumpy(name == "unbounded", 1.25), scene(name)
    jitter, viewdirs = uniform(len(o), seed=4), unit_vectors(len(o), seed=5)
    leaves = [o.requires_grad_(), d.requires_grad_(), *field.parameters()]
    with_others = {"jitter": jitter, "step_scale": 1.5, "viewdirs": viewdirs}
    fused = render_rays(field, grid, MARCHES[name], o, d, **with_others)
    staged = render_with(field, o, d, grid, MARCHES[name], **with_others)
    assert staged.kept == fused.kept > 100, "they took other samples"
    for key in (*SUMS, "median_depths"):
        torch.testing.assert_close(getattr(staged, key), getattr(fused, key), **VALUES)
    found, expected = (torch.autograd.grad(loss_of(rays), leaves) for rays in (staged, fused))
    names = ("rays_o", "rays_d", *(n for n, _ in field.named_parameters()))
    for leaf, a, b in zip(names, found, expected, strict=True):
        assert float(b.norm()) > 0 and relative(a, b) < GRADIENT, leaf


def test_nothing_and_one_ray(backend: str) -> None:
    field, (o, d, grid) = lumpy(), scene("box")
    one = render_with(field, o[3:4], d[3:4], grid, BOX)
    torch.testing.assert_close(one.foregrounds, render_rays(field, grid, BOX, o[3:4], d[3:4]).foregrounds, **VALUES)
    grid.restrict(lambda centres, _: torch.zeros(len(centres), dtype=torch.bool))
    for n in (0, 1, 40):
        nothing = render_with(field, o[:n], d[:n], grid, BOX)
        assert nothing.evaluated == nothing.kept == 0 and nothing.foregrounds.shape == (n, 3)
        assert torch.equal(nothing.over(torch.ones(3)), torch.ones(n, 3))
        nothing.foregrounds.sum().backward()  # no samples, no gradient, no error


class Blob(nn.Module):
    """A soft ball whose colour depends on where and along which direction it is seen: nothing of ours."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.tensor([0.1, -0.2, 0.05], dtype=dtype))
        self.amount = nn.Parameter(torch.tensor(6.0, dtype=dtype))
        self.paint = nn.Linear(6, 3).to(dtype)
        with torch.no_grad():
            self.paint.weight.copy_(uniform(3, 6, seed=1, low=-1.0))
            self.paint.bias.copy_(uniform(3, seed=2))

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        sigmas = self.amount.exp() * torch.exp(-12.0 * (x - self.centre).square().sum(dim=1)) * 0.05
        return sigmas, torch.sigmoid(self.paint(torch.cat([x, d], dim=1)))


class QuickBlob(Blob):
    """The same, which also tells its density alone."""

    asked = 0

    def density(self, x: Tensor) -> Tensor:
        return super().forward(x, torch.zeros_like(x))[0]

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        self.asked = len(x)
        return super().forward(x, d)


def test_gradients_of_a_field_of_ones_own_by_finite_differences(backend: str) -> None:
    field, (o, d, grid) = Blob(torch.float64), scene("all samples", 4)
    grid = OccupancyGrid(1, 32)  # all occupied: no finite step changes which samples there are inside
    marching = replace(MARCHES["all samples"], step_size=0.11)
    names, numbers = zip(*field.named_parameters(), strict=True)
    o, d = o.double(), d.double()

    def render(*leaves: Tensor) -> tuple[Tensor, ...]:
        def moved(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.functional_call(field, dict(zip(names, leaves, strict=True)), (x, v))

        out = render_with(moved, o, d, grid, marching)
        assert out.foregrounds.dtype == torch.float64 and out.evaluated > 30
        return tuple(getattr(out, key) for key in SUMS)

    leaves = [p.detach().clone().requires_grad_() for p in numbers]
    assert gradcheck(render, leaves, fast_mode=True)


def test_a_density_spares_hidden_samples_and_changes_nothing(backend: str) -> None:
    slow, quick, (o, d, grid) = Blob(), QuickBlob(), scene("box")
    a, b = (render_with(f, o, d, grid, BOX) for f in (slow, quick))
    assert a.evaluated == b.evaluated > b.kept == quick.asked
    for key in (*SUMS, "median_depths"):
        torch.testing.assert_close(getattr(a, key), getattr(b, key), rtol=1e-6, atol=1e-7)
    grads = [torch.autograd.grad(loss_of(out), list(f.parameters())) for out, f in ((a, slow), (b, quick))]
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_render_rays_takes_a_field_of_ones_own(backend: str) -> None:
    field, (o, d, grid) = Blob(), scene("box")
    with torch.no_grad():
        found, expected = render_rays(field, grid, BOX, o, d), render_with(field, o, d, grid, BOX)
    assert torch.equal(found.foregrounds, expected.foregrounds)
    assert torch.equal(render_many(field, grid, BOX, o, d).foregrounds, expected.foregrounds)
    with pytest.raises(ValueError, match="grad_accumulator"):
        render_rays(field, grid, BOX, o, d, grad_accumulator=GradAccumulator(torch.zeros(1)))


def test_the_stages_one_by_one_are_the_staged_path(backend: str) -> None:
    field, (o, d, grid) = Blob(), scene("all samples")
    marching = MARCHES["all samples"]
    samples = sample_rays(o, d, grid, marching)
    x = reference.sample_positions(samples, o, d)
    out = composite(samples, *field(x, d[samples.ray_indices]))
    expected = render_with(field, o, d, grid, marching)
    for key in SUMS:
        assert torch.equal(getattr(out, key), getattr(expected, key))
    assert out.evaluated == out.kept == expected.kept == len(samples.t_starts)


def test_our_field_is_differentiable_where_it_is_asked(backend: str) -> None:
    field, x, d = lumpy(color_scale=1.25), uniform(50, 3, low=-0.9, high=0.9), unit_vectors(50)
    with torch.no_grad():
        plain, alone = field(x, d), field.density(x)
    assert not plain[0].requires_grad
    for value, expected in zip((*field(x, d), field.density(x)), (*plain, alone), strict=True):
        assert value.requires_grad
        torch.testing.assert_close(value.detach(), expected, **VALUES)
    leaves = [x.requires_grad_(), *field.parameters()]
    sigmas, rgbs = field(x, d)
    grads = torch.autograd.grad(sigmas.sum() + rgbs.square().sum(), leaves)
    double = [p.detach().double().requires_grad_() for p in leaves]
    n = len(field.density_weights)
    params = kernels.FieldParams(double[1], double[2 : 2 + n], double[2 + n :])
    sigmas, rgbs = reference.radiance_field(double[0], d.double(), params, field.config)
    wanted = torch.autograd.grad(sigmas.sum() + (1.25 * rgbs).square().sum(), double)
    assert all(relative(a.double(), b) < GRADIENT for a, b in zip(grads, wanted, strict=True))
