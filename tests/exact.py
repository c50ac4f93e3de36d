"""What tests of the torch reference share: tolerances, random numbers, small fields."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.kernels import reference
from nerf.kernels.records import FieldConfig, FieldParams, GridLayout, Samples

# Exact formulas evaluated twice in float64, in another order: a few dozen roundings of 1e-16 on values of order 1.
F64 = {"rtol": 1e-12, "atol": 1e-12}


# The same in float32, for sums of up to a few hundred terms of order 1.
F32 = {"rtol": 1e-4, "atol": 1e-5}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=rng(seed), dtype=dtype)


def unit_vectors(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=rng(seed), dtype=dtype), dim=1)


def small_field(
    contracted: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[FieldParams, FieldConfig]:
    layout = GridLayout(3, 3, 2, 6, 3, 1.8)
    g = rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    params = FieldParams(
        table=normal(layout.n_rows, 2),
        density_weights=[normal(8, 6) * 0.5, normal(16, 8) * 0.5],
        color_weights=[normal(8, 32) * 0.3, normal(8, 8) * 0.5, normal(3, 8) * 0.5],
    )
    return params, FieldConfig(layout, contracted, density_bias=-0.5)


def pack(counts: list[int], dts: Tensor, gaps: Tensor | None = None, start: float = 1.0) -> Samples:
    """Samples with these counts and lengths, each ray starting at `start`, with gaps before the samples."""
    starts, ends, owners, packed, k = [], [], [], [], 0
    for ray, count in enumerate(counts):
        packed.append((k, count))
        t = start
        for _ in range(count):
            t += 0.0 if gaps is None else gaps[k].item()
            starts.append(t)
            t += dts[k].item()
            ends.append(t)
            owners.append(ray)
            k += 1
    as_float = {"dtype": dts.dtype}
    return Samples(
        torch.tensor(starts, **as_float),
        torch.tensor(ends, **as_float),
        torch.tensor(owners, dtype=torch.int64),
        torch.tensor(packed, dtype=torch.int64).reshape(-1, 2),
    )


def random_samples(counts: list[int], seed: int = 0) -> tuple[Samples, Tensor, Tensor]:
    s = sum(counts)
    samples = pack(counts, 0.05 + 0.2 * rand(s, seed=seed), 0.3 * rand(s, seed=seed + 1))
    return samples, 4 * rand(s, seed=seed + 2), rand(s, 3, seed=seed + 3)


def composite(*arguments, **named) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """What is found per ray and per sample, by name."""
    found = reference.composite(*arguments, **named)._asdict()
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
