"""The torch reference of rays and march against closed forms and exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact import rand, rng, unit_vectors
from march_definition import march_at_once, march_loop
from torch import Tensor

from nerf.kernels import reference
from nerf.kernels.reference import arithmetic, march_vectorised


def test_ray_box_closed_forms() -> None:
    inf = math.inf
    cases = [  # origin, direction, entry, exit for the box of half extent 1, unlimited
        ((-3, 0, 0), (1, 0, 0), 2, 4),
        ((-3, 0.5, -0.5), (1, 0, 0), 2, 4),  # parallel to two axes, inside their slabs
        ((-3, 1, 0), (1, 0, 0), 2, 4),  # along a face
        ((-3, 1.5, 0), (1, 0, 0), inf, -inf),  # parallel and outside
        ((-3, 1.5, 0), (1, -0.0, 0), inf, -inf),
        ((0, 0, 0), (0, 0, 1), -1, 1),  # from inside: entry lies behind
        ((3, 0, 0), (1, 0, 0), -4, -2),  # box behind
        ((-2, -2, -2), (1, 1, 1), 1, 3),  # through two corners
        ((-2, 0, 0), (1, 2, 0), 1, 0.5),  # passes by
    ]
    origins, directions = (torch.tensor([c[i] for c in cases], dtype=torch.float32) for i in (0, 1))
    t_near, t_far = reference.ray_box(origins, directions, 1.0, -inf, inf)
    assert t_near.tolist() == [c[2] for c in cases]
    assert t_far.tolist() == [c[3] for c in cases]
    t_near, t_far = reference.ray_box(origins, directions, 1.0, 0.25, 2.5)
    assert t_near.tolist() == [max(c[2], 0.25) for c in cases]
    assert t_far.tolist() == [min(c[3], 2.5) for c in cases]
    assert (t_near < t_far).tolist() == [True, True, True, False, False, True, False, True, False]


def test_ray_box_random() -> None:
    origins, directions = (rand(500, 3) * 2 - 1) * 3, unit_vectors(500, seed=1)
    t_near, t_far = reference.ray_box(origins, directions, 1.5, -math.inf, math.inf)
    hit = t_near < t_far
    assert 50 < hit.sum() < 450
    for t, sign in ((t_near, 1), (t_far, -1)):
        just_inside = origins + (t + sign * 1e-9)[:, None] * directions
        just_outside = origins + (t - sign * 1e-9)[:, None] * directions
        assert (just_inside.abs().amax(1) < 1.5)[hit & (t_far - t_near > 1e-8)].all()
        assert (just_outside.abs().amax(1) > 1.5)[hit].all()
    ts = torch.linspace(-6, 6, 400, dtype=torch.float64)
    points = origins[~hit, None] + ts[:, None] * directions[~hit, None]
    assert (points.abs().amax(-1) > 1.5 - 1e-9).all()


def naive_jitter(seed: int, step: int, ray: int) -> float:
    mask = 2**32 - 1
    h = (seed * 0x9E3779B9 + step * 0x85EBCA6B + ray * 0xC2B2AE35) & mask
    h ^= h >> 16
    h = h * 0x7FEB352D & mask
    h ^= h >> 15
    h = h * 0x846CA68B & mask
    h ^= h >> 16
    return (h >> 8) * 2.0**-24


def test_ray_jitter() -> None:
    rays = torch.tensor([0, 1, 2, 12345, 2**31, 2**32 - 1, 2**33 + 5])
    for seed, step in ((0, 0), (1, 2), (42, 30000), (2**32 - 1, 2**31 + 7), (-1, 3)):
        expected = [naive_jitter(seed, step, ray) for ray in rays.tolist()]
        assert reference.ray_jitter(seed, step, rays).tolist() == expected
    assert reference.ray_jitter(0, 0, torch.tensor([0])).tolist() == [0.0]
    many = reference.ray_jitter(1, 2, torch.arange(100_000))
    assert many.dtype == torch.float32 and many.min() >= 0 and many.max() < 1
    # Uniform: each of 16 bins has 6250 +- 77 (one sigma) of 100 000 draws; 5 sigma, and the seed is fixed.
    counts = torch.bincount((many * 16).long(), minlength=16)
    assert (counts - 6250).abs().max() < 5 * 77


def nearest_float32(value: Fraction) -> np.float32:
    """Round to nearest, ties to even, by comparing the candidates exactly."""
    guess = np.float32(float(value))
    candidates = [guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.int32)) & 1))


def test_fma32_rounds_once() -> None:
    g = np.random.default_rng(0)
    a, b, c = (
        g.standard_normal(500).astype(np.float32) * np.float32(2.0) ** g.integers(-20, 20, 500) for _ in range(3)
    )
    a, b, c = (np.asarray(x, np.float32) for x in (a, b, c))
    # Halfway between two float32, and a last term that float64 loses: rounded twice, these come out wrong.
    # 24929*2^-14 * 673*2^-10 = 1 + 2^-24.
    tie = (np.float32(24929 * 2.0**-14), np.float32(673 * 2.0**-10))
    a = np.concatenate([a, np.full(4, tie[0]), [-tie[0], -tie[0]]]).astype(np.float32)
    b = np.concatenate([b, np.full(6, tie[1])]).astype(np.float32)
    c = np.concatenate([c, np.float32([2.0**-60, -(2.0**-60), 0, 2.0**-100, 2.0**-60, -(2.0**-60)])]).astype(np.float32)
    expected = [
        nearest_float32(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert arithmetic.fma32(a, b, c).tolist() == [float(value) for value in expected]
    assert arithmetic.fma32(*tie, np.float32(2.0**-60)) == np.float32(1 + 2.0**-23)


def random_rays(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Origins inside and outside; an eighth parallel to an axis, an eighth to a plane, some longer than unit."""
    g = rng(seed)
    origins = torch.randn(n, 3, generator=g)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
    eighth = n // 8
    directions[:eighth] = torch.eye(3)[torch.randint(3, (eighth,), generator=g)]
    directions[eighth : 2 * eighth, 1] = 0.0
    directions[2 * eighth : 3 * eighth] *= 1.5
    origins[::3] *= 0.3
    origins[5] = 0.0
    return origins, directions


MARCHES = {
    # name: levels, resolution, step, cone angle, longest step, share of cells occupied
    "one level": (1, 8, 0.07, 0.0, math.inf, 0.3),
    "fine grid": (1, 32, 0.013, 0.0, math.inf, 0.02),
    "odd resolution": (1, 19, 0.05, 0.0, math.inf, 0.2),
    "three levels": (3, 8, 0.1, 0.0, math.inf, 0.3),
    "one level, cone": (1, 16, 0.02, 0.03, 0.2, 0.2),
    "three levels, cone": (3, 8, 0.03, 1 / 24, 0.3, 0.3),
    "cone without limit": (3, 4, 0.05, 0.1, math.inf, 0.5),
    "nothing occupied": (1, 16, 0.05, 0.0, math.inf, 0.0),
    "all occupied": (2, 16, 0.1, 0.0, math.inf, 1.0),
}


@pytest.mark.parametrize("name", MARCHES)
def test_march_equals_definition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n_levels, resolution, step, cone, longest, share = MARCHES[name]
    n = 64
    origins, directions = random_rays(n)
    occupied = torch.rand(n_levels, resolution, resolution, resolution, generator=rng(1)) < share
    t_near, t_far = reference.ray_box(origins, directions, 2.0 ** (n_levels - 1), 0.05, 8.0)
    # Some rays are cut short, some run past the box, some start before it, one is not a number.
    t_far[::7] = t_near[::7] + 0.4
    t_far[3::7] += 1.0
    t_near[4::11] -= 0.5
    origins[9] = math.nan
    jitter = reference.ray_jitter(1, 2, torch.arange(n))
    args = (origins, directions, t_near, t_far, jitter, occupied, step, cone, longest)
    expected = march_loop(*args)
    assert (len(expected.t_starts) > 0) == (share > 0)
    # Small chunks bring in the coarse test of whole runs, and the seams between chunks.
    for chunk in (march_vectorised.MARCH_CHUNK, 512):
        monkeypatch.setattr(march_vectorised, "MARCH_CHUNK", chunk)
        samples = march_at_once(*args)
        for field in ("t_starts", "t_ends", "ray_indices", "packed_info"):
            got, want = getattr(samples, field), getattr(expected, field)
            assert got.dtype == want.dtype and torch.equal(got, want), field  # bit for bit


def test_march_skips_runs_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # The test above means nothing for the coarse grid unless it is in use there.
    monkeypatch.setattr(march_vectorised, "MARCH_CHUNK", 512)
    seen = []
    plan = march_vectorised._MarchGrid.plan_runs
    monkeypatch.setattr(march_vectorised._MarchGrid, "plan_runs", lambda *a: seen.append(plan(*a)) or seen[-1])
    origins, directions = random_rays(64)
    t_near, t_far = reference.ray_box(origins, directions, 1.0)
    occupied = torch.zeros(1, 32, 32, 32, dtype=torch.bool)
    march_at_once(origins, directions, t_near, t_far, torch.zeros(64), occupied, 0.013)
    assert seen and seen[0] >= 4


@pytest.mark.parametrize("march", [march_at_once, march_loop])
def test_march_closed_form(march) -> None:  # type: ignore[no-untyped-def]
    # Along x through [-1,1]^3 in steps of 1/8, all numbers exact: from t = 2 to 4, shifted by half a step.
    one = torch.ones(1)
    origins, directions = torch.tensor([[-3.0, 0.1, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]])
    occupied = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    samples = march(origins, directions, 2 * one, 4 * one, 0.5 * one, occupied, 0.125)
    # Middles are 2.125, 2.25 ... ; 4.0 is no longer below t_far.
    assert samples.t_starts.tolist() == [2.0625 + 0.125 * k for k in range(15)]
    assert samples.t_ends.tolist() == [2.0625 + 0.125 * (k + 1) for k in range(15)]
    assert samples.packed_info.tolist() == [[0, 15]]
    # Only the cells -0.5 <= x < 0 : middles from 2.5 to below 3. Indexed [level, z, y, x].
    occupied[:] = False
    occupied[0, 2, 2, 1] = True
    samples = march(origins, directions, 2 * one, 4 * one, 0.5 * one, occupied, 0.125)
    assert (samples.t_starts + 0.0625).tolist() == [2.5, 2.625, 2.75, 2.875]
    # Starting well before the box: what lies outside is passed over, and the lattice inside is the same.
    samples = march(origins, directions, 0 * one, 9 * one, 0.5 * one, occupied, 0.125)
    assert (samples.t_starts + 0.0625).tolist() == [2.5, 2.625, 2.75, 2.875]
    # A cone: dt = t/4 but at least 0.125 and at most 0.25. From t = 0.25: 0.125 until t = 0.5, then t/4, then 0.25.
    origins = torch.zeros(1, 3)
    samples = march(
        origins, directions, 0.25 * one, one, 0 * one, torch.ones(1, 4, 4, 4, dtype=torch.bool), 0.125, 0.25, 0.25
    )
    assert samples.t_starts.tolist() == [0.25, 0.375, 0.5, 0.625, 0.78125]
    assert samples.t_ends.tolist() == [0.375, 0.5, 0.625, 0.78125, 0.9765625]


@pytest.mark.parametrize("march", [march_at_once, march_loop])
def test_march_levels_nest(march) -> None:  # type: ignore[no-untyped-def]
    # One level at a time occupied: samples lie where that level is the finest, 2^(k-1) <= |p| < 2^k.
    origins, directions = torch.tensor([[0.01, 0.02, 0.03]]), torch.tensor([[1.0, 0.0, 0.0]])
    for level, (low, high) in enumerate([(0.0, 1.0), (1.0, 2.0), (2.0, 4.0)]):
        occupied = torch.zeros(3, 4, 4, 4, dtype=torch.bool)
        occupied[level] = True
        samples = march(origins, directions, torch.zeros(1), torch.full((1,), 9.0), torch.zeros(1), occupied, 0.0625)
        x = 0.01 + samples.t_starts + 0.03125
        assert x.min() >= low and x.max() < high
        assert len(x) == (high - low) / 0.0625


def test_march_emptying_cells_only_removes() -> None:
    origins, directions = random_rays(64)
    t_near, t_far = reference.ray_box(origins, directions, 1.0)
    full = torch.ones(1, 32, 32, 32, dtype=torch.bool)
    some = torch.rand(1, 32, 32, 32, generator=rng()) < 0.1
    args = (origins, directions, t_near, t_far, torch.zeros(64))

    def pairs(occupied: Tensor) -> set[tuple[int, float, float]]:
        s = march_at_once(*args, occupied, 0.01)
        return set(zip(s.ray_indices.tolist(), s.t_starts.tolist(), s.t_ends.tolist(), strict=True))

    assert pairs(some) < pairs(full)
    assert pairs(some) | pairs(~some) == pairs(full)


@pytest.mark.parametrize("cone", [0.0, 0.02])
def test_march_without_rays_or_hits(cone: float) -> None:
    occupied = torch.ones(1, 16, 16, 16, dtype=torch.bool)
    for n in (0, 3):
        zeros = torch.zeros(n, 3)
        far = torch.full((n,), -1.0)
        for march in (march_at_once, march_loop):
            samples = march(zeros, zeros + 1, torch.zeros(n), far, torch.zeros(n), occupied, 0.01, cone)
            assert samples.t_starts.shape == samples.t_ends.shape == samples.ray_indices.shape == (0,)
            assert samples.t_starts.dtype == torch.float32 and samples.ray_indices.dtype == torch.int64
            assert samples.packed_info.tolist() == [[0, 0]] * n


def test_march_rejects() -> None:
    n = 2
    good = {
        "rays_o": torch.zeros(n, 3),
        "rays_d": torch.ones(n, 3),
        "t_near": torch.zeros(n),
        "t_far": torch.ones(n),
        "jitter": torch.zeros(n),
        "occupied": torch.ones(1, 4, 4, 4, dtype=torch.bool),
        "step_size": 0.1,
    }
    march_at_once(**good)  # type: ignore[arg-type]
    for name, value, error in (
        ("rays_o", torch.zeros(n, 2), ValueError),
        ("rays_d", torch.zeros(n + 1, 3), ValueError),
        ("rays_d", torch.zeros(n, 3, dtype=torch.float64), TypeError),
        ("t_near", torch.zeros(n, 1), ValueError),
        ("t_far", torch.zeros(n, dtype=torch.int64), TypeError),
        ("jitter", [0.0, 0.0], TypeError),
        ("occupied", torch.ones(4, 4, 4, dtype=torch.bool), ValueError),
        ("occupied", torch.ones(1, 4, 4, 5, dtype=torch.bool), ValueError),
        ("occupied", torch.ones(1, 4, 4, 4), ValueError),
        ("step_size", 0.0, ValueError),
        ("cone_angle", -1.0, ValueError),
        ("max_step", 0.01, ValueError),
    ):
        for march in (march_at_once, march_loop):
            with pytest.raises(error, match=name):
                march(**{**good, name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ray 0 never ends"):
        march_at_once(**{**good, "rays_d": torch.zeros(n, 3), "t_far": torch.full((n,), math.inf)})  # type: ignore[arg-type]
