"""Boxes and spheres of the world: what a crop keeps and what is hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nerf.errors import BadValue, Range, check_numbers
from nerf.geometry.space import Similarity, ray_box

LENGTH = Range(0, 1e12, above=True)
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
Vector = tuple[float, ...]


def vector(numbers: Any, name: str = "vector") -> Vector:
    """Three finite numbers as a tuple; BadValue for everything else."""
    try:
        x, y, z = (float(v) for v in numbers)
    except (TypeError, ValueError):
        raise BadValue(f"{name} is {numbers!r}, expected three numbers") from None
    if not all(map(math.isfinite, (x, y, z))):
        raise BadValue(f"{name} is {numbers!r}, expected three finite numbers")
    return x, y, z


@dataclass(frozen=True)
class Region:
    """A box or a sphere in the world frame. size: edge lengths of a box along its own axes, which are the columns of
    `rotation`; three times the diameter of a sphere.

    >>> import torch
    >>> Region("sphere", (0, 0, 0), (2, 2, 2)).contains(torch.tensor([[0.0, 0.0, 0.9], [0.0, 0.0, 1.1]])).tolist()
    [True, False]
    """

    shape: str  # "box" or "sphere"
    centre: Vector
    size: Vector
    rotation: tuple[Vector, ...] = _IDENTITY  # rows

    def __post_init__(self) -> None:
        if self.shape not in ("box", "sphere"):
            raise BadValue(f"shape is {self.shape!r}, expected box or sphere")
        object.__setattr__(self, "centre", vector(self.centre, "centre"))
        object.__setattr__(self, "size", vector(self.size, "size"))
        check_numbers({"size": list(self.size)}, {"size": LENGTH._replace(many=True)})
        if not isinstance(self.rotation, list | tuple) or len(self.rotation) != 3:
            raise BadValue("rotation: expected three rows of three numbers")
        object.__setattr__(self, "rotation", tuple(vector(row, "rotation") for row in self.rotation))
        axes = self.axes
        exact = torch.allclose(axes @ axes.T, torch.eye(3, dtype=torch.float64), atol=1e-4)
        if not exact or torch.linalg.det(axes) < 0:
            raise BadValue("rotation is no rotation (orthonormal, with the determinant 1)")

    @property
    def axes(self) -> Tensor:
        """[3,3] float64, the region's axes as columns."""
        return torch.tensor(self.rotation, dtype=torch.float64)

    def local(self, points: Tensor) -> Tensor:
        """World points [n,3] in the frame in which the region is [-1,1]^3, or the unit ball."""
        shifted = points.double() - torch.tensor(self.centre, dtype=torch.float64, device=points.device)
        half = torch.tensor(self.size, dtype=torch.float64, device=points.device) / 2
        return shifted @ self.axes.to(points.device) / half

    def contains(self, points: Tensor) -> Tensor:
        """Which world points [n,3] lie inside: bool [n]."""
        local = self.local(points)
        return local.norm(dim=1) <= 1 if self.shape == "sphere" else local.abs().amax(dim=1) <= 1

    def grown(self, by: float) -> Region:
        """The region with a margin so wide (world length) on all sides."""
        return replace(self, size=tuple(max(s + 2 * by, 1e-12) for s in self.size))

    def moved(self, to: Similarity) -> Region:
        """The same region in another frame."""
        centre = to.apply(torch.tensor([self.centre], dtype=torch.float64))[0]
        size = tuple(s * to.scale for s in self.size)
        return Region(self.shape, tuple(centre.tolist()), size, tuple((to.rotation @ self.axes).tolist()))

    def corners(self) -> Tensor:
        """The eight corners [8,3] of a box, float64."""
        unit = torch.tensor([-0.5, 0.5], dtype=torch.float64)
        local = torch.cartesian_prod(unit, unit, unit) * torch.tensor(self.size, dtype=torch.float64)
        return local @ self.axes.T + torch.tensor(self.centre, dtype=torch.float64)

    def bounds(self) -> tuple[float, ...]:
        """(x0, y0, z0, x1, y1, z1) around a box."""
        corners = self.corners()
        return (*corners.amin(dim=0).tolist(), *corners.amax(dim=0).tolist())

    def clip_rays(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
        """Where rays [n,3] of the region's own frame enter and leave a box: (t_near, t_far) [n], a miss where the first
        is not the smaller one."""
        half = torch.tensor(self.size, dtype=torch.float64, device=rays_o.device) / 2
        o = self.local(rays_o)
        d = rays_d.double() @ self.axes.to(rays_d.device) / half
        t_near, t_far = ray_box(o, d, 1.0)
        return t_near.to(rays_o.dtype), t_far.to(rays_o.dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is the way back."""
        return {
            "shape": self.shape,
            "centre": list(self.centre),
            "size": list(self.size),
            "rotation": [list(row) for row in self.rotation],
        }

    @staticmethod
    def from_dict(d: Any) -> Region:
        """BadValue for what is no region."""
        if not isinstance(d, dict) or "centre" not in d or "size" not in d:
            raise BadValue(f"expected an object with shape, centre and size, got {d!r}")
        return Region(d.get("shape", "box"), d["centre"], d["size"], d.get("rotation", _IDENTITY))
