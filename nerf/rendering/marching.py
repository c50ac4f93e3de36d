"""Marching: how rays cross the scene - its space, their range, their steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from nerf.errors import Range, check_record
from nerf.geometry.space import Space, space_from_dict, space_to_dict
from nerf.io.limits import whole
from nerf.kernels import MarchSettings

MARCHING = {
    "near": Range(0, 1e9),
    "far": Range(0, math.inf),
    "step_size": Range(1e-6, 1e9),
    "cone_angle": Range(0, 1e3),
    "stop_threshold": Range(0, 1),
    "alpha_threshold": Range(0, 1),
    "gradient_distance": Range(0, 1e9),
}
MOST_STEPS = 1 << 20  # of a ray through the whole scene; a thousand times what is usual


@dataclass(frozen=True)
class Marching:
    """How rays cross the scene: its space, their range, and their steps. Lengths are those of the march: scene units,
    NDC units in the space Ndc.

    >>> from nerf import Marching
    >>> from nerf.geometry.space import Box
    >>> Marching(Box(), near=0.0, far=10.0, step_size=0.5).settings(coarser=2).step_size
    1.0
    """

    space: Space
    near: float
    far: float
    step_size: float = 2 * math.sqrt(3) / 1024  # 1024 steps along the diagonal of the box (Mueller et al. 2022)
    cone_angle: float = 0.0  # unbounded scenes: steps grow with distance
    stop_threshold: float = 1e-3  # a ray ends when less light than this is left: under a quarter of an 8-bit grey level
    alpha_threshold: float = 2e-3  # fainter samples count as empty: half of an 8-bit grey level
    gradient_distance: float = 0.0  # unbounded scenes: samples nearer to their camera learn less (no floaters)

    def __post_init__(self) -> None:
        check_record(self, MARCHING)

    def settings(self, coarser: float = 1.0) -> MarchSettings:
        """For the kernels; `coarser` stretches every step (early training, where the field is smooth)."""
        step = self.step_size * coarser
        largest = step if self.cone_angle == 0 else max(step, self.space.half_extent / 64)
        return MarchSettings(
            step, self.cone_angle * coarser, largest, self.stop_threshold, self.alpha_threshold, self.gradient_distance
        )

    def enter(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Scene rays -> (rays_o, rays_d, viewdirs [n,3], t_near, t_far [n]) as the march wants them. Directions are
        unit."""
        o, d, t_near, t_far = self.space.clip_rays(rays_o, rays_d, self.near, self.far)
        return o, d, rays_d, t_near, t_far

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as checkpoints keep it."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: mine.pop(name) for name in ("space", "near", "far")} | space_to_dict(self.space) | mine

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Marching:
        """The inverse of `to_dict`. ValueError, KeyError or TypeError for what it did not write, and for rays of more
        than `MOST_STEPS`."""
        rest = {name: value for name, value in d.items() if name not in ("n_levels", "ndc", "space")}
        if d["space"] == "unbounded":
            whole(d["n_levels"], "n_levels", 1, 16)
        marching = Marching(space_from_dict(d), **rest)
        if not marching.far > marching.near:
            raise ValueError(f"far is {marching.far:g} and near is {marching.near:g}, expected far beyond near")
        length, step, growth = 4 * marching.space.half_extent, marching.step_size, marching.cone_angle
        n_steps = (
            length / step if growth == 0 else min(length / step, math.log1p(growth * length / step) / growth + 256)
        )
        if n_steps > MOST_STEPS:
            raise ValueError(f"step_size {step:g} means {n_steps:.2g} steps a ray, expected at most {MOST_STEPS}")
        return marching


class Crop(Protocol):
    """What rays are marched inside."""

    def clip_rays(self, rays_o: Tensor, rays_d: Tensor, /) -> tuple[Tensor, Tensor]:
        """Where scene rays [n,3] enter and leave: (t_near, t_far) [n], scene length; t_near >= t_far is a miss."""
        ...


@dataclass(frozen=True)
class CroppedMarching(Marching):
    """Rays are marched inside a crop of the scene frame alone."""

    crop: Crop | None = None

    def enter(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        o, d, viewdirs, t_near, t_far = super().enter(rays_o, rays_d)
        if self.crop is None:
            return o, d, viewdirs, t_near, t_far
        near, far = self.crop.clip_rays(rays_o, rays_d)
        missed = near >= far
        near, far = (self.space.depth_to_t(rays_o, rays_d, t.clamp(0, 1e6)) for t in (near, far))
        return o, d, viewdirs, torch.maximum(t_near, near), torch.where(missed, 0.0, torch.minimum(t_far, far))


def cropped(marching: Marching, crop: Crop) -> CroppedMarching:
    """The same march, inside the crop alone."""
    return CroppedMarching(**{f.name: getattr(marching, f.name) for f in fields(Marching)}, crop=crop)
