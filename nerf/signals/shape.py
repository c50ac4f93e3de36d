"""Shapes as signals: a field learns the signed distance to a surface, most of it near the surface.

The field holds y = sign(d) log(1 + |d| / soft) of the distance d, so that errors far away count relative to it (as
Mueller et al. 2022, section 5.2, have it). `distances_at` turns it back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.signals.fields import FieldChoice, SignalField
from nerf.signals.solid import Solid

SOFT = {"hash": 0.01, "siren": 0.1, "fourier": 0.1, "mlp": 0.1}  # unit lengths; smooth fields want no bend
WIDTHS = (0.001, 0.004, 0.016, 0.06)  # of the samples around the surface, unit lengths
UNIFORM = 0.15  # share of samples anywhere in the box
POOL = 1 << 20  # samples whose distances are worked out before the fit begins


@dataclass
class Shape:
    """A solid as something to fit (a `record.Problem`): distances at a pool of points, worked out once.

    eikonal: weight of (|grad d| - 1)^2 beside the error, for fields that can learn from their gradient.
    """

    solid: Solid
    name: str = "mesh"
    eikonal: float = 0.0
    pool: int = POOL
    seed: int = 0
    peak: float | None = field(default=None, init=False)
    kind, n_dims, n_channels = "shape", 3, 1

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        x = self.solid.samples(self.pool, WIDTHS, UNIFORM, random)
        distances = self.solid.distances(x)  # in the order of the surface: neighbours share what they look up
        order = torch.randperm(len(x), generator=random)
        self.u = (x / torch.tensor(self.solid.extents))[order].contiguous()
        self.distances = distances[order, None]

    def loss(self, field: SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = min(batch, len(self.u))
        start = int(torch.randint(len(self.u) - batch + 1, (), generator=random))
        part, soft = slice(start, start + batch), SOFT.get(field.choice.kind, 0.1)
        u, y = self.u[part].to(field.device), encode_distance(self.distances[part], soft).to(field.device)
        if not self.eikonal:
            mse = field.mse(u, y)
            return mse, mse.detach()
        values, gradients = field.with_gradient(u)
        mse = (values - y).square().mean()
        # |grad d| in unit lengths: d = soft (exp|y| - 1), and u counts whole sides
        slopes = (gradients[:, 0] / field.extents).norm(dim=1) * soft * y[:, 0].abs().exp()
        return mse + self.eikonal * (slopes - 1).square().mean(), mse.detach()

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "low": list(self.solid.low),
            "sides": list(self.solid.sides),
            "signed": self.solid.signed,
            "eikonal": self.eikonal,
            "pool": self.pool,
            **self.solid.about,
        }


def encode_distance(d: Tensor, soft: float) -> Tensor:
    """What the field holds of distances d in unit lengths."""
    return d.sign() * torch.log1p(d.abs() / soft)


def decode_distance(y: Tensor, soft: float) -> Tensor:
    """Distances in unit lengths of what the field holds."""
    return y.sign() * soft * torch.expm1(y.abs().clamp_max(math.log(2 / soft)))


def choose_shape(kind: str) -> FieldChoice:
    """The default field of a kind for a shape."""
    if kind == "hash":
        return FieldChoice(
            kind, width=32, n_levels=8, n_features_per_level=4, log2_hashmap_size=17, finest_resolution=512
        )
    return FieldChoice(kind, width=256, depth=4 if kind == "siren" else 3, sigma=10.0 if kind == "siren" else 4.0)


def shape_field(shape: Shape, choice: FieldChoice, seed: int = 0) -> SignalField:
    """A field in the proportions of the shape's box."""
    if shape.eikonal and choice.kind not in ("siren", "fourier"):
        raise UserError(f"--eikonal: the field {choice.kind} cannot learn from its gradient: use --field siren")
    return SignalField(choice, 3, 1, shape.solid.extents, -1.0, 1.0, seed)


def distances_at(field: SignalField, x: Tensor) -> Tensor:
    """Distances [n] in unit lengths at x [n,3] of a fitted shape, as its field knows them."""
    soft = SOFT.get(field.choice.kind, 0.1)
    return decode_distance(field.evaluate(x.float() / field.extents.cpu())[:, 0], soft)
