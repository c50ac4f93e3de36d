"""Stand-ins for tests: a model that is an analytic coloured sphere, cameras on a ring, a scene of its renders."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.geometry.aim import look_at
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Box, Similarity, Space
from nerf.kernels import RenderedRays


def ring_cameras(
    n: int = 8, size: int = 32, distance: float = 4.0, elevation: float = 0.5, arc: float = 2 * math.pi
) -> Cameras:
    """n perspective cameras at equal azimuths around the world origin, z up, looking at it."""
    angles = torch.arange(n, dtype=torch.float64) * arc / n
    level, height = distance * math.cos(elevation), distance * math.sin(elevation)
    origins = torch.stack([level * angles.cos(), level * angles.sin(), torch.full_like(angles, height)], dim=1)
    poses = look_at(origins, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    return Cameras.perspective(poses, size * 1.3, size, size)


@dataclass
class FakeModel:
    """A solid sphere around the scene origin whose colour is its normal; the interface of Model."""

    radius: float = 0.7
    scene_from_world: Similarity = field(default_factory=lambda: Similarity.around([0.0, 0.0, 0.0], 1.5))
    space: Space = Box()
    background: Tensor = field(default_factory=lambda: torch.ones(3))
    linear: bool = False
    exposure: float = 1.0
    meta: dict[str, Any] = field(default_factory=lambda: {"steps": 10, "seconds": 1.0})
    cameras: Cameras = field(default_factory=ring_cameras)
    names: list[str] = field(default_factory=list)
    given_poses: Tensor | None = None
    log_gains: Tensor | None = None

    def render_rays(self, rays_o: Tensor, rays_d: Tensor) -> RenderedRays:
        b = (rays_o * rays_d).sum(dim=1)
        inside = b * b - (rays_o * rays_o).sum(dim=1) + self.radius**2
        hit = inside > 0
        t = torch.where(hit, -b - inside.clamp_min(0).sqrt(), torch.zeros_like(b))
        normals = torch.nn.functional.normalize(rays_o + t[:, None] * rays_d, dim=1)
        shown = torch.where(hit[:, None], 0.5 + 0.5 * normals, torch.zeros_like(normals))
        return RenderedRays(shown, hit.float(), t, t, shown.square().sum(dim=1), torch.zeros_like(t))

    def render_image(self, cameras: Cameras, i: int, normals: bool = True) -> dict[str, np.ndarray]:
        h, w = int(cameras.heights[i]), int(cameras.widths[i])
        rays_o, rays_d = cameras.image_rays(i, self.scene_from_world)
        out = self.render_rays(rays_o, rays_d)
        normal = torch.nn.functional.normalize(rays_o + out.depths[:, None] * rays_d, dim=1) * out.opacities[:, None]
        return {
            "color": out.over(self.background).reshape(h, w, 3).numpy(),
            "opacity": out.opacities.reshape(h, w).numpy(),
            "depth": out.median_depths.reshape(h, w).numpy(),
            "normal": normal.reshape(h, w, 3).numpy(),
        }

    def coarser(self, stretch: float) -> FakeModel:
        return self

    def save(self, path: Path) -> None:
        Path(path).write_bytes(b"a fake checkpoint")


class FakePixels:
    """Images held one by one; `image(i)` as in nerf.datasets' PixelStore."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images = images
        self.heights, self.widths = torch.tensor([x.shape[:2] for x in images]).reshape(-1, 2).unbind(dim=1)

    def image(self, i: int) -> Tensor:
        return torch.from_numpy(self.images[i])


@dataclass
class FakeScene:
    """What evaluation and reports need of nerf.datasets.Scene."""

    pixels: Any
    cameras: Cameras
    names: list[str]
    splits: dict[str, Tensor]
    scene_from_world: Similarity
    space: Space = Box()
    near: float = 0.0
    far: float = 10.0
    points: Tensor | None = None
    has_alpha: bool = True
    linear: bool = False
    brightest: float = 1.0
    exposure: float = 1.0
    depths: Any = None
    masks: Any = None
    source: str = "fake"
    path: Path = Path("somewhere")
    notes: list[str] = field(default_factory=lambda: ["a fake scene: an analytic sphere"])
    downscale: int = 1


def fake_scene(model: FakeModel, n: int = 8, size: int = 32, noise: float = 0.02) -> FakeScene:
    """RGBA renders of the model with a little noise; every 4th view is held out."""
    cameras = ring_cameras(n, size)
    generator = np.random.default_rng(0)
    images = []
    for i in range(n):
        out = model.render_image(cameras, i)
        color = np.clip(out["color"] + noise * generator.standard_normal(out["color"].shape), 0, 1).astype(np.float32)
        images.append(np.concatenate([color, out["opacity"][..., None]], axis=2))
    ids = torch.arange(n)
    splits = {"train": ids[ids % 4 != 0], "val": ids[:0], "test": ids[ids % 4 == 0]}
    names = [f"view_{i:03d}.png" for i in range(n)]
    return FakeScene(FakePixels(images), cameras, names, splits, model.scene_from_world)
