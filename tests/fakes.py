"""Stand-ins for tests: a model that is an analytic coloured sphere, cameras on a ring, a scene of its renders."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nerf.datasets import Scene
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import RadianceField
from nerf.geometry.aim import look_at
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Box, Similarity, Space
from nerf.kernels import RenderedRays
from nerf.meshing.level import DEFAULT_THRESHOLD
from nerf.rendering.marching import Marching
from nerf.rendering.model import Model
from nerf.rendering.view import View

CELLS = 32  # per side of the occupancy grid of analytic models


def ball(radius: float, centre: tuple[float, float, float] = (0, 0, 0)) -> Callable[[Tensor], Tensor]:
    """The signed distance of a ball."""
    return lambda p: (p - torch.tensor(centre, dtype=p.dtype)).norm(dim=1) - radius


def ring_cameras(
    n: int = 8, size: int = 32, distance: float = 4.0, elevation: float = 0.5, arc: float = 2 * math.pi
) -> Cameras:
    """n perspective cameras at equal azimuths around the world origin, z up, looking at it."""
    angles = torch.arange(n, dtype=torch.float64) * arc / n
    level, height = distance * math.cos(elevation), distance * math.sin(elevation)
    origins = torch.stack([level * angles.cos(), level * angles.sin(), torch.full_like(angles, height)], dim=1)
    poses = look_at(origins, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    return Cameras.perspective(poses, size * 1.3, size, size)


class AnalyticField:
    """Density DENSITY * exp(-distance / softness) of a signed distance; colour from position and direction."""

    def __init__(self, distance: Callable[[Tensor], Tensor], softness: float) -> None:
        self.distance, self.softness, self.n_evaluated = distance, softness, 0

    def density(self, x: Tensor) -> Tensor:
        self.n_evaluated += len(x)
        return DEFAULT_THRESHOLD * torch.exp((-self.distance(x) / self.softness).clamp(-60, 8))

    def __call__(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(x), 0.5 + 0.25 * x - 0.25 * d


class AnalyticModel(Model):
    """A Model around an analytic field: of points [n,3] -> signed distance [n], scene length, below 0 inside."""

    def __init__(
        self,
        distance: Callable[[Tensor], Tensor],
        softness: float = 0.01,
        scene_from_world: Similarity | None = None,
        space: Space | None = None,
        linear: bool = False,
        exposure: float = 1.0,
        cameras: Cameras | None = None,
    ) -> None:
        occupancy = OccupancyGrid(1, CELLS)
        occupancy.restrict(lambda centres, sizes: distance(centres) < math.sqrt(3) * sizes)
        super().__init__(
            cast(RadianceField, AnalyticField(distance, softness)),
            occupancy,
            Marching(Box() if space is None else space, 0.0, 10.0),
            Similarity.identity() if scene_from_world is None else scene_from_world,
            ring_cameras() if cameras is None else cameras,
            torch.ones(3),
            linear,
            {"steps": 10, "seconds": 1.0},
            exposure,
        )

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(b"a fake checkpoint")


class FakeModel(AnalyticModel):
    """A solid sphere around the scene origin whose colour is its normal; rays meet it in closed form."""

    def __init__(self, radius: float = 0.7, scene_from_world: Similarity | None = None, **options: Any) -> None:
        around = Similarity.around([0.0, 0.0, 0.0], 1.5) if scene_from_world is None else scene_from_world
        super().__init__(ball(radius), scene_from_world=around, **options)
        self.radius = radius

    def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
        o, d = rays_o.double(), rays_d.double()
        middle = -(o * d).sum(dim=1)
        inside = middle**2 - (o * o).sum(dim=1) + self.radius**2
        t = torch.where(inside > 0, middle - inside.clamp_min(0).sqrt(), 0.0).float()
        return t, torch.zeros_like(t)

    def render_rays(self, rays_o: Tensor, rays_d: Tensor) -> RenderedRays:
        t, _ = self.median_depths(rays_o, rays_d)
        hit = t > 0
        normals = torch.nn.functional.normalize(rays_o + t[:, None] * rays_d, dim=1)
        shown = torch.where(hit[:, None], 0.5 + 0.5 * normals, torch.zeros_like(normals))
        return RenderedRays(shown, hit.float(), t, t, shown.square().sum(dim=1), torch.zeros_like(t))

    def trace(self, rays_o: Tensor, rays_d: Tensor, normals: bool = True) -> View[Tensor]:
        out = self.render_rays(rays_o, rays_d)
        outward = torch.nn.functional.normalize(rays_o + out.depths[:, None] * rays_d, dim=1) * out.opacities[:, None]
        normal = self.scene_from_world.inverse().apply_directions(outward) if normals else None
        return View(out.over(self.background), out.opacities, out.depths, normal)


def fake_scene(
    model: FakeModel, n: int = 8, size: int = 32, noise: float = 0.02, masks: Any = None, linear: bool = False
) -> Scene:
    """RGBA renders of the model with a little noise; every 4th view is held out."""
    cameras = ring_cameras(n, size)
    generator = np.random.default_rng(0)
    images = []
    for i in range(n):
        out = model.render_image(cameras, i)
        color = np.clip(out.color + noise * generator.standard_normal(out.color.shape), 0, 1).astype(np.float32)
        images.append(np.concatenate([color, out.opacity[..., None]], axis=2))
    return scene_of(images, cameras, model.scene_from_world, masks, linear)


def scene_of(
    images: list[np.ndarray],
    cameras: Cameras,
    scene_from_world: Similarity,
    masks: Any = None,
    linear: bool = False,
    held_out: int = 4,
) -> Scene:
    """A scene of images that cameras see; one in `held_out` is, none where that is 0."""
    ids = range(len(images))
    test = [i for i in ids if held_out and i % held_out == 0]
    splits = {"train": [i for i in ids if i not in test]} | ({"test": test} if test else {})
    lenses = torch.stack([cameras.fx, cameras.fy, cameras.cx, cameras.cy], dim=1)
    names = [f"view_{i:03d}.png" for i in ids]
    return Scene.from_arrays(
        images,
        cameras.c2w,
        lenses,
        masks,
        names=names,
        splits=splits,
        space="box",
        linear=linear,
        scene_from_world=scene_from_world,
    )
