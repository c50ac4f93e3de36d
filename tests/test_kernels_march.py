"""Occupancy bits, march and jitter of the native kernels: the reference to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from march_definition import march_loop
from native import (
    MARCH_ERRORS,
    lines_before_the_end,
    native,
    native_march,
    reference_march,
    same_samples,
    strided,
)
from tiny import SETTINGS, ray_batch, uniform, unit_vectors
from torch import Tensor

from nerf import kernels
from nerf.kernels import (
    MarchSettings,
    cpu,
    reference,
)


@native
@pytest.mark.parametrize(("n_levels", "resolution"), [(1, 32), (3, 32), (2, 64)])
def test_packed_bits_say_what_the_cells_say(n_levels: int, resolution: int) -> None:
    shape = (n_levels, resolution, resolution, resolution)
    occupied = uniform(*shape, seed=1) < 0.02
    bits = cpu.pack_occupancy(occupied)
    fine = np.unpackbits(bits.fine.numpy().view(np.uint8), bitorder="little").reshape(shape)
    assert np.array_equal(fine.astype(bool), occupied.numpy())
    blocks = occupied.reshape(n_levels, *[resolution // 4, 4] * 3).numpy().any(axis=(2, 4, 6))
    clearance = bits.clearance.numpy().reshape(blocks.shape)
    side = resolution // 4
    inner = np.zeros((side,) * 3, bool)
    inner[(slice(side // 4, -(side // 4)),) * 3] = True
    for level in range(n_levels):
        outside = np.full((side + 2,) * 3, level + 1 < n_levels)  # another level's, but nobody's past the outermost
        outside[1:-1, 1:-1, 1:-1] = blocks[level] | (inner if level > 0 else False)
        taken = np.argwhere(outside) - 1
        places = np.argwhere(np.ones_like(inner))
        nearest = np.abs(places[:, None] - taken[None]).max(axis=2).min(axis=1)
        assert np.array_equal(clearance[level].reshape(-1), nearest)
    other = cpu.pack_occupancy(occupied.transpose(1, 3).contiguous().transpose(1, 3))
    assert torch.equal(other.fine, bits.fine) and torch.equal(other.clearance, bits.clearance)


@native
@pytest.mark.parametrize(
    "occupied",
    [
        torch.zeros(1, 32, 32, 32),
        torch.zeros(1, 32, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 32, 32, 64, dtype=torch.bool),
        torch.zeros(1, 48, 48, 48, dtype=torch.bool),
        torch.zeros(32, 32, 32, dtype=torch.bool),
        torch.zeros(32, dtype=torch.bool),
    ],
)
def test_packing_names_what_is_wrong(occupied: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match="occupied: expected a bool tensor"):
        cpu.pack_occupancy(occupied)


MARCHES = {
    "box": (1, MarchSettings(0.03, 0.0, 0.03)),
    "box, fine steps": (1, MarchSettings(2 * 3**0.5 / 1024, 0.0, 1.0)),
    "box, odd steps": (1, MarchSettings(0.1234567, 0.0, 1.0)),
    "box, growing steps": (1, MarchSettings(0.01, 1 / 256, 0.05)),
    "nested, growing steps": (4, MarchSettings(2 * 3**0.5 / 1024, 1 / 256, 8 / 64)),
    "nested, wide cone": (3, MarchSettings(0.02, 1 / 16, 1e10)),
    "nested, constant steps": (3, MarchSettings(0.04, 0.0, 0.04)),
    "five levels": (5, MarchSettings(0.01, 1 / 128, 16 / 64)),
}


@native
@pytest.mark.parametrize("filled", [0.0, 0.002, 0.3, 1.0])
@pytest.mark.parametrize("name", MARCHES)
def test_march_gives_the_same_samples_to_the_bit(name: str, filled: float) -> None:
    n_levels, settings = MARCHES[name]
    batch = ray_batch(300, 7, n_levels, filled=filled)
    found = native_march(batch, settings)
    same_samples(found, reference_march(batch, settings))
    assert bool(len(found.t_starts)) == (filled > 0)
    few = batch.first(6)
    same_samples(native_march(few, settings), reference_march(few, settings, march_loop))


@native
@pytest.mark.parametrize("n", [0, 1])
def test_march_of_no_ray_and_of_one(n: int) -> None:
    batch = ray_batch(20, 8).first(n + 1)
    batch = replace(batch, **{k: getattr(batch, k)[1:] for k in ("rays_o", "rays_d", "t_near", "t_far", "jitter")})
    found = native_march(batch, SETTINGS)
    same_samples(found, reference_march(batch, SETTINGS))
    assert found.packed_info.shape == (n, 2) and (len(found.t_starts) > 0) == (n > 0)


@native
def test_march_of_1e5_samples() -> None:
    batch = ray_batch(3000, 9, filled=0.9)
    found = native_march(batch, MarchSettings(0.04))
    assert len(found.t_starts) > 1e5
    same_samples(found, reference_march(batch, MarchSettings(0.04)))


@native
@pytest.mark.parametrize("name", ["box", "nested, growing steps"])
def test_march_from_special_places(name: str) -> None:
    n_levels, settings = MARCHES[name]
    half = 2.0 ** (n_levels - 1)
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    diagonal = torch.nn.functional.normalize(torch.tensor([[1.0, 1, 1], [1, -1, 0], [0, 1, -1]]), dim=1)
    directions = torch.cat([axes, diagonal, axes, unit_vectors(40, 3), unit_vectors(40, 4)])
    origins = torch.cat(
        [
            torch.zeros(9, 3),  # along the axes and diagonals, on the walls between cells
            -2.0 * half * axes + 0.01,
            uniform(40, 3, seed=5, low=-0.9, high=0.9),  # from inside
            uniform(40, 3, seed=6, low=-3.0 * half, high=3.0 * half),  # from anywhere, most miss
        ]
    )
    n = len(origins)
    batch = replace(ray_batch(n, 3, n_levels), rays_o=origins, rays_d=directions)
    batch.t_near, batch.t_far = torch.zeros(n), torch.full((n,), 9.0 * half)
    batch.jitter[:9] = 0.0
    batch.t_far[20:25] = 0.0  # nothing to do
    same_samples(native_march(batch, settings), reference_march(batch, settings))


@native
@pytest.mark.parametrize("n_levels", [1, 2])
def test_march_along_the_wall_of_the_outermost_box(n_levels: int) -> None:
    half = 2.0 ** (n_levels - 1)
    batch = ray_batch(3, 3, n_levels, filled=1.0)
    batch.rays_o[:] = torch.tensor([[half, -3 * half, 0.1], [0.3, half, -3 * half], [-half, 0.2, 3 * half]])
    batch.rays_d[:] = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 0, -1]])
    batch.t_near[:], batch.t_far[:] = 0.0, 6 * half
    same_samples(native_march(batch, SETTINGS), reference_march(batch, SETTINGS))


@native
def test_march_of_strided_tensors() -> None:
    batch = ray_batch(50, 10)
    names = ("rays_o", "rays_d", "t_near", "t_far", "jitter")
    other = replace(batch, **{k: strided(getattr(batch, k)) for k in names})
    same_samples(native_march(other, SETTINGS), native_march(batch, SETTINGS))


@native
@pytest.mark.parametrize(("name", "value", "error"), MARCH_ERRORS)
def test_march_names_the_argument_that_is_wrong(name: str, value: Tensor, error: type[Exception]) -> None:
    batch = replace(ray_batch(4, 11), **{name: value})
    with pytest.raises(error, match=f"{name}: expected"):
        native_march(batch, SETTINGS)


@native
def test_march_refuses_settings_that_never_end() -> None:
    settings = {
        "MarchSettings(0.1, 0.1, 0.01)": "max_step",
        "MarchSettings(0.1, -0.5)": "cone_angle",
        "MarchSettings(0.0)": "step_size",
        "MarchSettings(-0.1)": "step_size",
        "MarchSettings(float('nan'))": "step_size",
    }
    code = "from nerf.kernels import MarchSettings, cpu\nfrom tiny import ray_batch\nbatch = ray_batch(4, 11)\n"
    for text in settings:
        code += (
            f"try:\n    cpu.march(batch.rays(), cpu.pack_occupancy(batch.occupied), {text})\n"
            "    print('accepted', flush=True)\n"
            "except ValueError as error:\n    print(error, flush=True)\n"
        )
    said = lines_before_the_end(code, seconds=15)
    for k, (text, name) in enumerate(settings.items()):
        assert len(said) > k, f"{text} hangs instead of raising"
        assert name in said[k], f"{text}: {said[k]}"


@native
def test_march_ends_for_rays_without_end() -> None:
    # A pixel's ray is unlimited until it is cut; the reference ends it where it leaves the grid.
    code = (
        "import torch\n"
        "from nerf.kernels import MarchSettings, cpu, reference\n"
        "from tiny import ray_batch\n"
        "batch = ray_batch(8, 11)\n"
        "batch.t_far[:] = float('inf')\n"
        "for cone in (0.0, 1 / 64):\n"
        "    found = cpu.march(batch.rays(), cpu.pack_occupancy(batch.occupied), MarchSettings(0.05, cone, 1.0))\n"
        "    expected = reference.march(batch.rays(), batch.occupied, MarchSettings(0.05, cone, 1.0))\n"
        "    print(torch.equal(found.t_starts, expected.t_starts), flush=True)\n"
    )
    assert lines_before_the_end(code, seconds=15) == ["True", "True"], "a ray with t_far = inf never ends"


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (1, 2), (2**32 - 1, 2**31), (-5, 10**12)])
def test_jitter_is_the_same_integer_hash(seed: int, step: int, backend: Callable[[str], str]) -> None:
    expected = reference.ray_jitter(seed, step, torch.arange(5000))
    assert bool(((expected >= 0) & (expected < 1)).all())
    for name in ("reference", "auto"):
        backend(name)
        found = kernels.ray_jitter(seed, step, 5000)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert kernels.ray_jitter(seed, step, 0).shape == (0,)
