"""Marching: how rays cross the scene - its space, their range, their steps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nerf import kernels
from nerf.geometry.space import ndc_points, ndc_rays
from nerf.kernels import MarchSettings


@dataclass(frozen=True)
class Marching:
    """How rays cross the scene: its space, their range, and their steps. Lengths are scene units (NDC units in
    "ndc")."""

    space: str  # "box", "unbounded" or "ndc"
    near: float
    far: float
    n_levels: int = 1  # nested occupancy levels
    ndc: tuple[float, float] | None = None
    step_size: float = 2 * math.sqrt(3) / 1024  # 1024 steps along the diagonal of the box (Mueller et al. 2022)
    cone_angle: float = 0.0  # unbounded scenes: steps grow with distance
    stop_threshold: float = 1e-3  # a ray ends when less light than this is left: under a quarter of an 8-bit grey level
    alpha_threshold: float = 2e-3  # fainter samples count as empty: half of an 8-bit grey level
    gradient_distance: float = (
        0.0  # unbounded scenes: samples nearer to their camera than this learn less (no floaters)
    )

    @property
    def half_extent(self) -> float:
        return 2.0 ** (self.n_levels - 1)

    def settings(self, coarser: float = 1.0) -> MarchSettings:
        """For the kernels; `coarser` stretches every step (early training, where the field is smooth)."""
        step = self.step_size * coarser
        largest = step if self.cone_angle == 0 else max(step, self.half_extent / 64)
        return MarchSettings(
            step, self.cone_angle * coarser, largest, self.stop_threshold, self.alpha_threshold, self.gradient_distance
        )

    def enter(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Scene rays -> (rays_o, rays_d, viewdirs [n,3], t_near, t_far [n]) as the march wants them. Directions are
        unit."""
        viewdirs = rays_d
        if self.space == "ndc":
            assert self.ndc is not None
            rays_o, rays_d, t_near, t_far = ndc_rays(rays_o, rays_d, self.ndc)
            low, high = kernels.ray_box(rays_o.detach(), rays_d.detach(), 1.0, 0.0, self.far)
            return rays_o, rays_d, viewdirs, torch.maximum(low, t_near), torch.minimum(high, t_far)
        t_near, t_far = kernels.ray_box(rays_o.detach(), rays_d.detach(), self.half_extent, self.near, self.far)
        return rays_o, rays_d, viewdirs, t_near, t_far

    def places(self, rays_o: Tensor, rays_d: Tensor, lengths: Tensor) -> Tensor:
        """Where the march along scene rays is after so much of their length [n] (0: nowhere); the inverse of
        Model._lengths."""
        if self.space != "ndc":
            return lengths
        assert self.ndc is not None
        start, direction, *_ = ndc_rays(rays_o, rays_d, self.ndc)
        points = ndc_points(rays_o + lengths[:, None] * rays_d, self.ndc)
        t = ((points - start) * direction).sum(dim=1)
        return torch.where(lengths > 0, t, torch.zeros_like(t))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Marching:
        return Marching(**d | {"ndc": tuple(d["ndc"]) if d["ndc"] else None})
