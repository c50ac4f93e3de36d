"""Similarity, contraction and NDC: inverses, laws and closed forms."""

from __future__ import annotations

import json

import pytest
import torch

from nerf.geometry.space import Similarity, contract, ndc_points, ndc_points_inverse, ndc_rays, uncontract


def some_similarity(seed: int = 0) -> Similarity:
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=g))
    q = q * torch.sign(torch.det(q))
    return Similarity(0.37, q, torch.randn(3, dtype=torch.float64, generator=g))


def test_similarity_inverse_matrix_and_composition_agree():
    s, x = some_similarity(), torch.randn(50, 3, dtype=torch.float64)
    assert torch.allclose(s.inverse().apply(s.apply(x)), x, atol=1e-12)
    assert torch.allclose(s.apply(x), x @ s.matrix()[:3, :3].T + s.matrix()[:3, 3], atol=1e-12)
    other = some_similarity(1)
    assert torch.allclose(s.compose(other).apply(x), s.apply(other.apply(x)), atol=1e-12)
    assert torch.allclose(s.apply_directions(x).norm(dim=1), x.norm(dim=1))


def test_similarity_survives_json_exactly():
    s = some_similarity()
    back = Similarity.from_dict(json.loads(json.dumps(s.to_dict())))
    assert back.scale == s.scale and torch.equal(back.rotation, s.rotation)
    assert torch.equal(back.translation, s.translation)


def test_around_maps_its_cube_to_the_unit_cube():
    s = Similarity.around([1.0, 2.0, 3.0], 0.5)
    corners = torch.tensor([[0.5, 1.5, 2.5], [1.5, 2.5, 3.5]], dtype=torch.float64)
    assert torch.allclose(s.apply(corners), torch.tensor([[-1.0] * 3, [1.0] * 3], dtype=torch.float64))


@pytest.mark.parametrize("dtype,largest,tolerance", [(torch.float64, 1e6, 1e-9), (torch.float32, 1e3, 1e-4)])
def test_contraction_then_inverse_is_the_identity(dtype, largest, tolerance):
    # tolerance: 2 - |y| has an absolute rounding error of half an ulp at 2, 6e-8 in float32, and is as small as 1/|x|
    g = torch.Generator().manual_seed(0)
    direction = torch.randn(20000, 3, generator=g, dtype=dtype)
    direction = direction / direction.abs().amax(dim=1, keepdim=True)
    low = torch.log10(torch.tensor(1e-6))
    size = 10 ** (low + torch.rand(20000, 1, generator=g) * (torch.log10(torch.tensor(largest)) - low))
    x = direction * size.to(dtype)
    y = contract(x)
    assert float(y.abs().max()) < 2
    error = (uncontract(y) - x).abs().amax(dim=1) / x.abs().amax(dim=1)
    assert float(error.max()) < tolerance
    inside = x.abs().amax(dim=1) <= 1
    assert torch.equal(y[inside], x[inside])


def test_contraction_is_differentiable_and_continuous_at_the_cube():
    x = torch.tensor([[1.5, -0.3, 0.2], [-4.0, 6.0, 1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(contract, x)
    step = contract(torch.tensor([[1 + 1e-9, 0.5, 0.0]], dtype=torch.float64)) - torch.tensor([[1.0, 0.5, 0.0]])
    assert float(step.abs().max()) < 1e-8


def test_ndc_points_and_inverse():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1000, 3, generator=g, dtype=torch.float64) * 10 - 5
    x[:, 2] = -1 - torch.rand(1000, generator=g, dtype=torch.float64) * 1000
    y = ndc_points(x, (1.3, 0.8))
    assert torch.allclose(ndc_points_inverse(y, (1.3, 0.8)), x, rtol=1e-9)
    near = ndc_points(torch.tensor([[0.2, 0.1, -1.0]]), (2.0, 3.0))
    assert torch.allclose(near, torch.tensor([[0.4, 0.3, -1.0]]))


def test_ndc_rays_pass_through_the_warped_points():
    g = torch.Generator().manual_seed(0)
    n, ndc = 500, (1.2, 1.7)
    o = torch.randn(n, 3, generator=g, dtype=torch.float64) * 0.2
    d = torch.randn(n, 3, generator=g, dtype=torch.float64) * 0.3 + torch.tensor([0.0, 0.0, -1.0])
    d = d / d.norm(dim=1, keepdim=True)
    d[:, 2] = -d[:, 2].abs().clamp_min(0.1)
    no, nd, t_near, t_far = ndc_rays(o, d, ndc)
    assert torch.allclose(nd.norm(dim=1), torch.ones(n, dtype=torch.float64))
    assert torch.allclose(no[:, 2], torch.full((n,), -1.0, dtype=torch.float64))
    assert float(t_near.max()) == 0
    for depth in (1.0, 1.5, 4.0, 100.0):  # the scene point at z = -depth lies on the NDC ray, between near and far
        t_scene = (-depth - o[:, 2:]) / d[:, 2:]
        y = ndc_points(o + t_scene * d, ndc)
        t = ((y - no) * nd).sum(dim=1)
        assert torch.allclose(no + t[:, None] * nd, y, atol=1e-9)
        assert float(t.min()) > -1e-9 and bool((t < t_far).all())
    end = no + t_far[:, None] * nd
    assert torch.allclose(end[:, 2], torch.ones(n, dtype=torch.float64))


def test_ndc_rays_that_look_back_are_misses():
    o, d = torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    no, nd, t_near, t_far = ndc_rays(o, d, (1.0, 1.0))
    assert bool((t_near >= t_far).all()) and bool(torch.isfinite(no).all()) and bool(torch.isfinite(nd).all())
