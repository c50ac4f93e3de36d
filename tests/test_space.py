"""Similarity, contraction and NDC: inverses, laws and closed forms."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from nerf.geometry.space import (
    Box,
    Ndc,
    Similarity,
    Space,
    Unbounded,
    contract,
    space_from_dict,
    space_to_dict,
)


def some_similarity(seed: int = 0) -> Similarity:
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=g))
    q = q * torch.sign(torch.det(q))
    return Similarity(0.37, q, torch.randn(3, dtype=torch.float64, generator=g))


def test_similarity_inverse_matrix_and_poses_agree():
    s, x = some_similarity(), torch.randn(50, 3, dtype=torch.float64)
    assert torch.allclose(s.inverse().apply(s.apply(x)), x, atol=1e-12)
    assert torch.allclose(s.apply(x), x @ s.matrix()[:3, :3].T + s.matrix()[:3, 3], atol=1e-12)
    poses = torch.cat([some_similarity(1).rotation.expand(50, 3, 3), x[:, :, None]], dim=2)
    ahead = x - poses[:, :, 2]  # a point one unit before each camera stays on its axis, at the new unit
    moved = s.apply_poses(poses)
    assert torch.allclose(moved[:, :, 3] - s.scale * moved[:, :, 2], s.apply(ahead), atol=1e-12)
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


# ---- spaces

SPACES = [Box(), Unbounded(5), Ndc(1.2, 1.7)]


def some_rays(n: int = 500, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Rays from around the origin that look along -z, as forward-facing captures have them."""
    g = torch.Generator().manual_seed(0)
    o = torch.randn(n, 3, generator=g, dtype=torch.float64) * 0.2
    d = torch.randn(n, 3, generator=g, dtype=torch.float64) * 0.3
    d[:, 2] = -(1 + d[:, 2]).abs().clamp_min(0.1)
    return o.to(dtype), torch.nn.functional.normalize(d, dim=1).to(dtype)


@pytest.mark.parametrize("space", SPACES)
def test_depths_and_the_march_are_inverse(space: Space):
    """Between where a ray enters and leaves, t -> depth -> t is the identity, and both name one point."""
    o, d = some_rays()
    march_o, march_d, t_near, t_far = space.clip_rays(o, d, 0.1, 20.0)
    assert torch.allclose(march_d.norm(dim=1), torch.ones(len(d), dtype=torch.float64))
    hits = t_near < t_far
    assert float(hits.double().mean()) > 0.5
    for share in (0.01, 0.3, 0.9):
        t = torch.where(hits, t_near + share * (t_far - t_near), 0.0)
        depths = space.t_to_depth(o, d, t)
        assert torch.equal(depths[~hits], torch.zeros(int((~hits).sum()), dtype=torch.float64))
        assert torch.allclose(space.depth_to_t(o, d, depths), t, atol=1e-9)
        seen = space.points_to_scene(march_o + t[:, None] * march_d)
        assert torch.allclose(seen[hits], (o + depths[:, None] * d)[hits], rtol=1e-9)


@pytest.mark.parametrize("space", SPACES)
def test_rays_are_clipped_to_the_space(space: Space):
    o, d, t_near, t_far = space.clip_rays(*some_rays(dtype=torch.float32), 0.1, 1e3)
    hits = t_near < t_far
    for t in (t_near, t_far):
        assert float((o + t[:, None] * d)[hits].abs().max()) <= space.half_extent * (1 + 1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_points_go_from_the_world_to_the_march_and_back(space: Space):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1000, 3, generator=g, dtype=torch.float64) * 10 - 5
    x[:, 2] = -1 - torch.rand(1000, generator=g, dtype=torch.float64) * 1000
    to_scene = some_similarity()
    world = to_scene.inverse().apply(x)
    back = to_scene.inverse().apply(space.points_to_scene(space.points_to_march(to_scene.apply(world))))
    assert torch.allclose(back, world, rtol=1e-9)


@pytest.mark.parametrize("space", SPACES)
def test_directions_go_to_the_march_and_back(space: Space):
    o, d = some_rays()
    points = o + 3 * d
    there = space.directions_to_march(points, d)
    march_d = space.clip_rays(o, d, 0.0, 100.0)[1]  # straight lines stay straight
    assert torch.allclose(there, march_d, atol=1e-9)
    back = space.directions_to_scene(space.points_to_march(points), there)
    assert torch.allclose(back, d, atol=1e-9)


@pytest.mark.parametrize("space", SPACES)
def test_spaces_survive_the_dictionary_of_a_checkpoint(space: Space):
    d = space_to_dict(space)
    assert set(d) == {"space", "n_levels", "ndc"} and d["space"] == space.name
    assert space_from_dict(json.loads(json.dumps(d))) == space
    assert [space.bounded, space.contracted, space.warped].count(True) == 1


def test_unknown_spaces_are_refused():
    with pytest.raises(ValueError, match="sphere"):
        space_from_dict({"space": "sphere", "n_levels": 1, "ndc": None})


# ---- the contraction


def uncontract(y: Tensor) -> Tensor:
    """The inverse, from the definition: |y| = 2 - 1/|x| outside."""
    norm = y.abs().amax(dim=-1, keepdim=True).clamp_min(1.0)
    return y / (norm * (2.0 - norm))


# tolerance: three roundings give y an error of up to 1.5 ulp at 2, 2e-7 in float32; 2 - |y| is as small as 1/|x|
@pytest.mark.parametrize(("dtype", "largest", "tolerance"), [(torch.float64, 1e6, 1e-9), (torch.float32, 1e3, 3e-4)])
def test_contraction_then_inverse_is_the_identity(dtype, largest, tolerance):
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


# ---- normalised device coordinates


def test_ndc_is_what_it_says_on_the_near_plane_and_far_away():
    near = Ndc(2.0, 3.0).points_to_march(torch.tensor([[0.2, 0.1, -1.0], [0.0, 0.0, -1e9]]))
    assert torch.allclose(near, torch.tensor([[0.4, 0.3, -1.0], [0.0, 0.0, 1.0]]))


def test_ndc_rays_pass_through_the_warped_points():
    space, (o, d) = Ndc(1.2, 1.7), some_rays()
    no, nd, t_near, t_far = space.warp_rays(o, d)
    assert torch.allclose(nd.norm(dim=1), torch.ones(len(o), dtype=torch.float64))
    assert torch.allclose(no[:, 2], torch.full((len(o),), -1.0, dtype=torch.float64))
    assert float(t_near.max()) == 0
    for depth in (1.0, 1.5, 4.0, 100.0):  # the scene point at z = -depth lies on the NDC ray, between near and far
        y = space.points_to_march(o + (-depth - o[:, 2:]) / d[:, 2:] * d)
        t = ((y - no) * nd).sum(dim=1)
        assert torch.allclose(no + t[:, None] * nd, y, atol=1e-9)
        assert float(t.min()) > -1e-9 and bool((t < t_far).all())
    end = no + t_far[:, None] * nd
    assert torch.allclose(end[:, 2], torch.ones(len(o), dtype=torch.float64))


def test_ndc_rays_that_look_back_are_misses():
    o, d = torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    no, nd, t_near, t_far = Ndc(1.0, 1.0).warp_rays(o, d)
    assert bool((t_near >= t_far).all()) and bool(torch.isfinite(no).all()) and bool(torch.isfinite(nd).all())
