"""What kernels are given and give back: plain records that every backend reads and none computes with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_GRID_DIMS = 4


@dataclass(frozen=True)
class GridLayout:
    """Shape of a multi-resolution hash grid; every number is a plain Python value, the same for every backend.

    The convention is tiny-cuda-nn's, so that its configurations carry over: level `l` samples the unit cube with
    `scale = base_resolution * per_level_scale**l - 1` and `position = x * scale + 0.5`; it stores all its corners
    ("dense") while they fit in `2**log2_hashmap_size` rows, and hashes them otherwise.

    Source: Mueller et al. 2022, Instant Neural Graphics Primitives, section 3, and tiny-cuda-nn's GridEncoding.
    """

    n_dims: int
    n_levels: int
    n_features_per_level: int
    log2_hashmap_size: int
    base_resolution: int
    per_level_scale: float

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n_dims", 1, MAX_GRID_DIMS),
            ("n_levels", 1, 64),
            ("n_features_per_level", 1, 64),
            ("log2_hashmap_size", 1, 30),
            ("base_resolution", 1, 2**20),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"GridLayout.{name}: expected {low}..{high}, got {value!r}")
        if not (math.isfinite(self.per_level_scale) and self.per_level_scale >= 1.0):
            raise ValueError(f"GridLayout.per_level_scale: expected a number >= 1, got {self.per_level_scale!r}")
        # Cells are 32-bit integers and must stay exact in float32 positions.
        if self.scales[-1] >= 2.0**24:
            raise ValueError(
                f"GridLayout: the finest level has resolution {self.scales[-1]:.0f}, expected less than 2**24; "
                "lower n_levels or per_level_scale"
            )

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Cells along the unit edge per level: computed in float64, then rounded to float32 so that all backends
        agree."""
        return tuple(
            float(np.float32(self.base_resolution * self.per_level_scale**level - 1.0))
            for level in range(self.n_levels)
        )

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Corners along an edge per level."""
        return tuple(math.ceil(scale) + 1 for scale in self.scales)

    @cached_property
    def dense(self) -> tuple[bool, ...]:
        """Whether a level stores each of its corners (true) or hashes them (false)."""
        return tuple(resolution**self.n_dims <= 2**self.log2_hashmap_size for resolution in self.resolutions)

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """Table rows per level; a power of two where the level is hashed."""
        limit = 2**self.log2_hashmap_size
        return tuple(min(-(-(resolution**self.n_dims) // 8) * 8, limit) for resolution in self.resolutions)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First row of each level, and the total at the end: `n_levels + 1` entries."""
        return tuple(accumulate(self.level_sizes, initial=0))

    @property
    def n_rows(self) -> int:
        return self.offsets[-1]

    @property
    def n_features(self) -> int:
        """Features of one encoded position, all levels together."""
        return self.n_levels * self.n_features_per_level


@dataclass(frozen=True)
class Samples:
    """Packed intervals of many rays, sorted by ray and then by t (scene length).

    t_starts, t_ends: [s] float; ray_indices: [s] int64, the owner; packed_info: [n,2] int64, (start, count) per ray,
    where count may be 0.

    >>> import torch
    >>> from nerf import Samples
    >>> Samples.of(torch.tensor([0.0, 0.5]), torch.tensor([0.5, 1.0]), torch.tensor([1, 1]), n_rays=2).packed_info
    tensor([[0, 0],
            [0, 2]])
    """

    t_starts: Tensor
    t_ends: Tensor
    ray_indices: Tensor
    packed_info: Tensor

    @staticmethod
    def of(t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int) -> Samples:
        """Of sorted intervals [s]."""
        counts = torch.bincount(ray_indices, minlength=n_rays)
        return Samples(t_starts, t_ends, ray_indices, torch.stack([counts.cumsum(0) - counts, counts], dim=1))


@dataclass(frozen=True)
class FieldParams:
    """Learned numbers of a radiance field: table [n_rows, F], and bias-free weights, each [out, in], in order."""

    table: Tensor
    density_weights: list[Tensor]
    color_weights: list[Tensor]


@dataclass(frozen=True)
class Rays:
    """Rays in the space in which they are marched (NDC where the scene is). o, d, viewdirs [n,3]: origins, unit
    directions, and those that the colours are asked for; t_near, t_far, jitter [n]: range, and shift of the steps in
    [0,1)."""

    o: Tensor
    d: Tensor
    viewdirs: Tensor
    t_near: Tensor
    t_far: Tensor
    jitter: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Rays:
        """The rays with a change made to each of their tensors."""
        return Rays(*(change(t) for t in (self.o, self.d, self.viewdirs, self.t_near, self.t_far, self.jitter)))


@dataclass(frozen=True)
class FieldConfig:
    """What decides a radiance field besides its learned numbers.

    contracted: false maps the scene box [-1,1]^3 to the unit cube, true maps all of space (L-inf contraction).
    density_bias: added to the first output of the density network, before the exponential.
    color_scale: brightest colour. Compositing is linear, so `nerf.kernels` applies it to what a backend returns, and
    nobody else.
    """

    layout: GridLayout
    contracted: bool = False
    density_bias: float = 0.0
    color_scale: float = 1.0


@dataclass(frozen=True)
class FieldView:
    """What a kernel may read of a field. `half`: a copy of the table in half precision, given for mixed precision."""

    params: FieldParams
    config: FieldConfig
    half: Tensor | None = None

    @property
    def precision(self) -> Literal["single", "mixed"]:
        """mixed: features are read from `half`, and networks' products read half precision with single sums."""
        return "single" if self.half is None else "mixed"

    @property
    def leaves(self) -> list[Tensor]:
        """Table, weights of the density network, weights of the colour network."""
        return [self.params.table, *self.params.density_weights, *self.params.color_weights]

    def with_leaves(self, leaves: Sequence[Tensor]) -> FieldView:
        """The same field with other learned numbers, in the order of `leaves`."""
        n = 1 + len(self.params.density_weights)
        return replace(self, params=FieldParams(leaves[0], list(leaves[1:n]), list(leaves[n:])))


@dataclass(frozen=True)
class OccupancyBits:
    """Occupancy as the marchers read it: one bit a cell, x fastest, and for every block of 4^3 cells the distance in
    blocks (largest coordinate difference) to the nearest one that is not empty, or belongs to another level."""

    fine: Tensor  # int32
    clearance: Tensor  # uint8
    resolution: int
    n_levels: int


@dataclass(frozen=True)
class MarchSettings:
    """How rays are cut into samples, and which of these count; see `march.h` and `reference.render_rays`.

    step_size, max_step: scene length; cone_angle: 0, or growth of the step with distance. Raises ValueError for steps
    that would never end.
    """

    step_size: float
    cone_angle: float = 0.0
    max_step: float = 1e10
    stop_threshold: float = 0.0
    alpha_threshold: float = 0.0
    gradient_distance: float = 0.0  # gradients of samples nearer than this are scaled by (t / distance)^2

    def __post_init__(self) -> None:
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size: expected a positive length, got {self.step_size!r}")
        if not 0 <= self.cone_angle < math.inf:
            raise ValueError(f"cone_angle: expected a number >= 0, got {self.cone_angle!r}")
        if not self.max_step >= self.step_size:
            raise ValueError(f"max_step: expected at least step_size ({self.step_size!r}), got {self.max_step!r}")


@dataclass
class GradAccumulator:
    """Where the table's gradient is added in place instead of into a new tensor the size of the table at every step."""

    table: Tensor


@dataclass
class AdamState:
    """What Adam remembers of one tensor, moments m and v of its shape, and its settings: betas, eps, weight_decay (of
    the learning rate: the share of itself that a parameter loses in a step; of rows from decay_from on alone)."""

    m: Tensor
    v: Tensor
    betas: tuple[float, float]
    eps: float
    weight_decay: float = 0.0
    decay_from: int = 0

    @staticmethod
    def of(param: Tensor, betas: tuple[float, float], eps: float, weight_decay: float = 0.0) -> AdamState:
        """That before the first step."""
        return AdamState(torch.zeros_like(param), torch.zeros_like(param), betas, eps, weight_decay)

    def corrections(self, step: int) -> tuple[float, float]:
        """1 - beta^step for both betas. Raises ValueError unless the step is 1 or more."""
        if step < 1:
            raise ValueError(f"step: expected 1 or more (it counts from 1), got {step!r}")
        return 1.0 - self.betas[0] ** step, 1.0 - self.betas[1] ** step


class AdamStep(NamedTuple):
    """One step of Adam. `step`: global, 1 for the first. skip_zero_rows: rows [c] of a table whose gradient is all zero
    stay untouched, their moments too. half_copy: of the parameters in half precision, to be refreshed. zero_grad: clear
    the gradient. rates [4], on a GPU: begins with the learning rate and the two corrections, which are read instead of
    those of `lr` and `step`."""

    lr: float
    step: int
    skip_zero_rows: bool = False
    half_copy: Tensor | None = None
    zero_grad: bool = False
    rates: Tensor | None = None


class RenderedRays(NamedTuple):
    """What n rays see, in front of any background.

    foregrounds [n,3] (sum w rgb), opacities (sum w), depths (sum w t), median_depths (not differentiable, 0: nowhere),
    second_moments (sum w |rgb|^2), distortions [n]; see `reference.composite` for the equations. evaluated, kept:
    how many samples were asked for their density, and how many of them have colour and gradient (tensors [1] on a GPU,
    which nobody need wait for); capacity: how many of these have room for their gradient, None: all.

    >>> import torch
    >>> from nerf import RenderedRays
    >>> half = torch.full((2,), 0.5)
    >>> rays = RenderedRays(torch.zeros(2, 3), half, half, half, half, half)
    >>> rays.over(torch.ones(3))
    tensor([[0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000]])
    """

    foregrounds: Tensor
    opacities: Tensor
    depths: Tensor
    median_depths: Tensor
    second_moments: Tensor
    distortions: Tensor
    evaluated: int | Tensor = 0
    kept: int | Tensor = 0
    capacity: int | None = None
    weights: Tensor | None = None  # per sample, of the staged path alone: [s] of all that were marched
    trans: Tensor | None = None

    def scaled(self, factor: float) -> RenderedRays:
        """What the same rays see of colours `factor` times as bright."""
        if factor == 1.0:
            return self
        moments = self.second_moments * factor**2
        return self._replace(foregrounds=self.foregrounds * factor, second_moments=moments)

    def to(self, device: torch.device) -> RenderedRays:
        """The same on a device; the numbers of samples stay where they are."""
        return self._replace(**{name: getattr(self, name).to(device) for name in self._fields[:6]})

    def over(self, background: Tensor) -> Tensor:
        """Colours [n,3] over a background ([3] or [n,3]): foregrounds + (1 - opacities) background. Differentiable."""
        return self.foregrounds + (1.0 - self.opacities)[:, None] * background.to(self.opacities.device)
