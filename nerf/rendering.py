"""Rendering: scene rays through occupancy and field to colours; one path for training, pictures and meshes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nerf import kernels
from nerf.fields import RadianceField
from nerf.kernels import GradientSink, MarchSettings
from nerf.occupancy import OccupancyGrid
from nerf.space import ndc_points, ndc_rays

RENDER_CHUNK = 1 << 16  # rays rendered at once where no gradient is wanted
GPU_CHUNK = 1 << 21  # the same on a GPU, which many launches of little work would leave idle: a picture of 1920x1080


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


def render_rays(
    field: RadianceField,
    occupancy: OccupancyGrid,
    marching: Marching,
    rays_o: Tensor,
    rays_d: Tensor,
    background: Tensor,
    jitter: Tensor | None = None,
    coarser: float = 1.0,
    sink: GradientSink | None = None,
    seen_from: Tensor | None = None,
) -> dict[str, Any]:
    """Colours of scene rays [n,3] over a background ([3] or [n,3]).

    Returns per ray: colors [n,3] with the background, foregrounds [n,3] without it, opacities, depths (sum w t),
    median_depths, second_moments, distortions [n]; and the numbers of samples "evaluated" and "kept". Differentiable
    once in rays and field. The background is added here and nowhere else. `jitter` [n] in [0,1) shifts each ray's steps
    (0.5 when None). `seen_from` [n,3]: unit directions that the colours are asked for instead of the rays' own.
    """
    o, d, viewdirs, t_near, t_far = marching.enter(rays_o, rays_d)
    if seen_from is not None:
        viewdirs = seen_from
    if jitter is None:
        jitter = torch.full_like(t_near, 0.5)
    out = kernels.render_rays(
        o,
        d,
        viewdirs,
        t_near,
        t_far,
        jitter,
        occupancy.occupied,
        field.params(),
        field.config,
        marching.settings(coarser),
        occupancy.bits,
        field.table_half,
        sink,
    )
    scale = field.options.color_scale
    if scale != 1.0:
        out["colors"], out["second_moments"] = out["colors"] * scale, out["second_moments"] * scale**2
    out["foregrounds"] = out["colors"]
    out["colors"] = out["foregrounds"] + (1.0 - out["opacities"])[:, None] * background.to(out["opacities"].device)
    return out


def render_chunk(device: torch.device) -> int:
    """Rays to render at once on this device; few where all their samples are in memory at once (tinycudann)."""
    return RENDER_CHUNK if device.type == "cpu" or kernels.backend() == "tinycudann" else GPU_CHUNK


@torch.no_grad()
def render_many(
    field: RadianceField,
    occupancy: OccupancyGrid,
    marching: Marching,
    rays_o: Tensor,
    rays_d: Tensor,
    background: Tensor,
) -> dict[str, Tensor]:
    """`render_rays` for any number of rays, without gradients, in bounded memory."""
    names = ("colors", "opacities", "depths", "median_depths", "distortions")
    chunk = render_chunk(field.table.device)
    parts = [
        render_rays(field, occupancy, marching, o, d, background)
        for o, d in zip(rays_o.split(chunk), rays_d.split(chunk), strict=True)
    ]
    return {name: torch.cat([p[name] for p in parts]) for name in names}


@torch.no_grad()
def density_normals(field: RadianceField, points: Tensor, radius: Tensor | float) -> Tensor:
    """Unit normals [n,3] at scene points [n,3]: against the density's gradient, by central differences over `radius`
    (scene length, one or [n,1])."""
    gradient = torch.empty_like(points)
    for axis in range(3):
        shift = torch.zeros(3, device=points.device)
        shift[axis] = 1.0
        shift = radius * shift
        gradient[:, axis] = field.density(points + shift).log1p() - field.density(points - shift).log1p()
    return -torch.nn.functional.normalize(gradient, dim=1)
