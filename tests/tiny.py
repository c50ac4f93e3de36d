"""Small things for tests of kernels and training: a field, rays, an occupancy, a scene of an analytic sphere."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from fakes import FakeModel, ring_cameras
from torch import Tensor

from nerf.datasets import Keypoints, PixelStore, Scene
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import FieldOptions
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Unbounded, ray_box
from nerf.kernels import FieldConfig, FieldParams, GridLayout, MarchSettings, Rays
from nerf.training.config import TrainConfig

FIELD = FieldOptions(
    n_levels=4,
    log2_hashmap_size=12,
    base_resolution=8,
    finest_resolution=64,
    width=16,
    n_color_layers=2,
    density_bias=1.0,
)


def train_config(**settings: Any) -> TrainConfig:
    """For small scenes, with settings by name, those of weights and schedule among them."""
    return TrainConfig(occupancy_resolution=32).with_settings(**settings)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(*shape, generator=generator(seed)) * (high - low) + low


def unit_vectors(n: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator(seed)), dim=1)


def small_field(
    seed: int = 0,
    contracted: bool = False,
    features: int = 4,
    width: int = 32,
    bias: float = 1.0,
    layers: tuple[int, int] = (2, 3),
) -> tuple[FieldParams, FieldConfig]:
    """A field of random numbers, dense and hashed levels, densities spread over some orders of magnitude."""
    layout = GridLayout(3, 16 // features, features, 12, 8, 2.0 if features == 4 else 1.4)
    g = generator(seed)

    def network(n_layers: int, n_in: int, n_out: int, gain: float) -> list[Tensor]:
        sizes = [n_in, *[width] * (n_layers - 1), n_out]
        return [torch.randn(b, a, generator=g) * (gain / a) ** 0.5 for a, b in itertools.pairwise(sizes)]

    table = torch.rand(layout.n_rows, features, generator=g) * 2 - 1
    density, color = network(layers[0], layout.n_features, 16, 6.0), network(layers[1], 32, 3, 2.0)
    return FieldParams(table, density, color), FieldConfig(layout, contracted, bias)


def cast(params: FieldParams, dtype: torch.dtype, requires_grad: bool = False) -> FieldParams:
    """A copy of the numbers in another type."""

    def one(t: Tensor) -> Tensor:
        return t.detach().clone().to(dtype).requires_grad_(requires_grad)

    density, color = ([one(w) for w in ws] for ws in (params.density_weights, params.color_weights))
    return FieldParams(one(params.table), density, color)


def flat(params: FieldParams) -> list[Tensor]:
    return [params.table, *params.density_weights, *params.color_weights]


@dataclass
class RayBatch:
    """What a march takes, in the order in which it takes it."""

    rays_o: Tensor
    rays_d: Tensor
    t_near: Tensor
    t_far: Tensor
    jitter: Tensor
    occupied: Tensor

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.rays_o, self.rays_d, self.t_near, self.t_far, self.jitter, self.occupied

    def rays(self, viewdirs: Tensor | None = None) -> Rays:
        views = self.rays_d if viewdirs is None else viewdirs
        return Rays(self.rays_o, self.rays_d, views, self.t_near, self.t_far, self.jitter)

    def first(self, n: int) -> RayBatch:
        names = ("rays_o", "rays_d", "t_near", "t_far", "jitter")
        return replace(self, **{k: getattr(self, k)[:n].clone() for k in names})


def ray_batch(
    n: int, seed: int = 0, n_levels: int = 1, resolution: int = 32, filled: float = 0.3, far: float = 100.0
) -> RayBatch:
    """Rays from around the outermost box towards its inside, some missing it; cells occupied at random."""
    half = 2.0 ** (n_levels - 1)
    origins = unit_vectors(n, seed) * half * 2.2
    targets = uniform(n, 3, seed=seed + 1, low=-0.8, high=0.8) * min(half, 1.5)
    directions = torch.nn.functional.normalize(targets - origins, dim=1)
    directions[::17] *= -1  # these look away
    occupied = uniform(n_levels, resolution, resolution, resolution, seed=seed + 2) < filled
    t_near, t_far = ray_box(origins, directions, half, 0.0, far)
    return RayBatch(origins, directions, t_near, t_far, uniform(n, seed=seed + 3), occupied)


SETTINGS = MarchSettings(0.05, 0.0, 0.05)


def flicker(grid: OccupancyGrid, density: Any, step_size: float, random: torch.Generator, *rest: Any) -> None:
    """In the place of OccupancyGrid.update, which asks the field everywhere: other cells are occupied than before."""
    some = torch.rand(grid.candidates.shape, generator=random, device=grid.candidates.device) < 0.1
    grid._set(some & grid.candidates)


# --- a scene ---------------------------------------------------------------------------------------------------------


def join_cameras(parts: list[Cameras]) -> Cameras:
    return Cameras(**{name: torch.cat([p.tensors()[name] for p in parts]) for name in parts[0].tensors()})


def store(images: list[np.ndarray]) -> PixelStore:
    """Images [h,w,c] of one type as the loaders keep them."""
    sizes = [im.shape[:2] for im in images]
    heights, widths = (torch.tensor([s[k] for s in sizes], dtype=torch.int64) for k in (0, 1))
    counts = heights * widths
    memory = np.concatenate([im.reshape(-1, im.shape[2]) for im in images])
    return PixelStore(memory, counts.cumsum(0) - counts, heights, widths)


def make_scene(images: list[np.ndarray], cameras: Cameras, n_test: int = 1, **changes: Any) -> Scene:
    """A box scene of these images; the last `n_test` are for testing."""
    n = len(images) - n_test
    scene = Scene.from_arrays(
        images,
        cameras.c2w,
        torch.stack([cameras.fx, cameras.fy, cameras.cx, cameras.cy], dim=1),
        space="box",
        names=[f"view_{i:03d}.png" for i in range(len(images))],
        splits={"train": range(n), "test": range(n, len(images))},
        linear=changes.get("linear", False),
        scene_from_world=FakeModel().scene_from_world,
    )
    has_alpha = images[0].shape[2] in (2, 4)  # also where all is opaque
    fixed = {"cameras": cameras, "far": 100.0, "has_alpha": has_alpha, "brightest": 1.0, "exposure": 1.0}
    return replace(scene, **fixed | changes)  # type: ignore[arg-type]


def sphere_scene(n: int = 12, size: int = 48, **changes: Any) -> Scene:
    """A sphere coloured by its normals, seen from two rings of cameras, with alpha; the last view is for testing."""
    model = FakeModel()
    cameras = join_cameras([ring_cameras(n - n // 2, size, elevation=0.6), ring_cameras(n // 2, size, elevation=-0.3)])
    images = []
    for i in range(n):
        out = model.render_image(cameras, i)
        rgba = np.concatenate([out.color, out.opacity[..., None]], axis=2)
        images.append((rgba * 255 + 0.5).astype(np.uint8))
    return make_scene(images, cameras, **changes)


def open_scene(n: int = 4, size: int = 24) -> Scene:
    """A sphere without alpha before black, in unbounded space; every pixel near the middle shows a keypoint."""
    full = sphere_scene(n, size)
    images = [full.pixels.raw(i)[..., :3].copy() for i in range(n)]
    image, row, column = torch.cartesian_prod(*(torch.arange(a, b) for a, b in ((0, n), (8, 16), (8, 16)))).unbind(1)
    points = Keypoints(image, row, column, torch.linspace(1.0, 2.0, len(row)))
    scene = make_scene(images, full.cameras, scene_from_world=full.scene_from_world, space=Unbounded(3))
    return replace(scene, keypoints=points)


def cameras_of(sizes: list[tuple[int, int]]) -> Cameras:
    heights, widths = (torch.tensor([s[k] for s in sizes]) for k in (0, 1))
    return replace(ring_cameras(len(sizes)), heights=heights, widths=widths)


def numbered_scene(sizes: list[tuple[int, int]], channels: int = 3) -> Scene:
    """Opaque images whose colours are (image, row, column) / 255."""
    images = []
    for i, (h, w) in enumerate(sizes):
        rows, cols = np.mgrid[:h, :w]
        image = np.stack([np.full((h, w), i), rows, cols, np.full((h, w), 255)], axis=2).astype(np.uint8)
        images.append(image[..., :channels])
    return make_scene(images, cameras_of(sizes), n_test=0)
