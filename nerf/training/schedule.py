"""What each loss weighs, and how rates, batches and step lengths change over a training: every such number is here, in
the unit in which it acts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nerf.errors import BadValue, Range, check_record

WEIGHTS = {
    "photo": Range(0, 1e9),
    "surface": Range(0, 1e9, optional=True),
    "depth": Range(0, 1e9),
    "near_camera": Range(0, 1e9),
}
_SHARE, _COUNT, _RATE = Range(0, 1), Range(0, 1e9, whole=True), Range(0, 1e3)
SCHEDULE = {
    "learning_rate": Range(0, 1e3, above=True),
    "final_learning_rate": Range(0, 1e3, above=True),
    "decay_after": Range(0, 0.999),
    "batch_growth": Range(0, 1e12, above=True),
    "largest_batch": Range(0, 1e3, above=True),
    "surface_until": Range(0, 1e9, above=True),
    "diffuse_steps": _COUNT,
    "diffuse_share": _SHARE,
    "importance": _SHARE,
    "importance_after": _COUNT,
    "importance_every": Range(1, 1e9, whole=True),
    "distractors_after": Range(1, 1e9, whole=True),
    "coarse_steps": _COUNT,
    "step_scale": Range(0, 1e3, above=True),
    "step_scale_until": Range(0, 1e9),
    "occupancy_every": Range(1, 1e9, whole=True),
    "occupancy_everywhere": _COUNT._replace(many=True),
    "pose_rate": _RATE,
    "pose_after": _COUNT,
    "exposure_rate": _RATE,
    "exposure_after": _SHARE,
    "exposure_until": Range(0, 1e9, above=True),
    "flash_after": _COUNT,
}


@dataclass(frozen=True)
class Weights:
    """Factors of the terms of the loss, each a mean over the rays of a batch. See `nerf.SceneLoss`.

    >>> nerf.TrainConfig(steps=100, weights=Weights(depth=0.5)).weights.depth
    0.5
    """

    photo: float = 10.0  # Huber loss of colours as they are shown
    # Radiance-field loss, faded out: sharpens surfaces and so makes rays short. More is faster still and keeps specular
    # things from being hollowed out, but other hollows stay filled, and leaves and hair lose their blends. None: 0.3 in
    # unbounded scenes, 0.6 elsewhere.
    surface: float | None = None
    depth: float = 0.2  # of depth maps and of sparse points, where the scene has some
    near_camera: float = 0.05  # unbounded scenes: opacity right before cameras, where floaters hide from other photos

    def __post_init__(self) -> None:
        check_record(self, WEIGHTS)


@dataclass(frozen=True)
class Schedule:
    """When and how fast. `progress`: the share of the training that is done, 0 until its length is known.

    >>> Schedule().learning_rate_at(0.0), round(Schedule().learning_rate_at(1.0), 6)
    (0.01, 0.001)
    """

    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-3
    decay_after: float = 0.3  # progress from which the rate decays exponentially
    batch_growth: float = 1000.0  # steps in which the batch grows by its first size
    largest_batch: float = 4.0  # times the first
    surface_until: float = 0.75  # progress at which the surface loss has faded out
    # Objects: view dependence is disabled in the first steps, by asking for colours from random directions. Else what
    # fills a hollow (the solid hull it starts as) stays and explains its wrong geometry by view-dependent colour
    # (shape-radiance ambiguity); but in too many steps highlights hollow out what is solid.
    diffuse_steps: int = 150
    diffuse_share: float = 0.2  # of all steps, at most
    importance: float = 0.5  # share of pixels that are drawn in proportion to the error where they are
    importance_after: int = 256  # steps
    importance_every: int = 64  # steps between updates of the probabilities
    # Steps after which photos are held against one another (see `Distractors`): floaters that explain it grow early.
    distractors_after: int = 64
    # Rays march in longer steps at first: 4 and 2 times `step_scale` (a quarter, the rest of `coarse_steps`), then
    # `step_scale` times the steps of rendering until `step_scale_until` of the training.
    coarse_steps: int = 400
    step_scale: float = 2.0
    step_scale_until: float = 0.5
    occupancy_every: int = 16  # steps between occupancy updates
    occupancy_everywhere: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)  # steps at which every cell is sampled
    pose_rate: float = 1e-3  # radians in the picture, for the first steps of Adam (see PoseCorrections.rate)
    pose_after: int = 200  # steps until the field has a shape that poses can be held against
    exposure_rate: float = 2e-2  # of the logarithm, for each step of Adam
    exposure_after: float = 0.15  # progress from which it slows down, to a hundredth
    exposure_until: float = 0.85  # progress by which it has: photos' exposures settle before the field does
    # Steps until depths are such that light may fall off with them. Before, what floats before a camera grows to be the
    # brightness that its photo needs (fox lit by a flash, 1500 steps: 26.5 dB without, from step 0 on 23.7, 200 26.0,
    # 400 27.8, 700 27.5).
    flash_after: int = 400

    def __post_init__(self) -> None:
        check_record(self, SCHEDULE)
        if not self.exposure_after < self.exposure_until:
            raise BadValue(
                f"Schedule.exposure_until is {self.exposure_until:g}, expected more than exposure_after, "
                f"{self.exposure_after:g}"
            )

    def learning_rate_at(self, progress: float) -> float:
        """The field's learning rate at a share of the training in [0, 1]."""
        t = max(0.0, progress - self.decay_after) / (1.0 - self.decay_after)
        return self.learning_rate * (self.final_learning_rate / self.learning_rate) ** t

    def exposure_rate_at(self, progress: float) -> float:
        """The learning rate of exposure corrections at a share of the training in [0, 1]."""
        done = max(0.0, progress - self.exposure_after) / (self.exposure_until - self.exposure_after)
        return self.exposure_rate * 0.01 ** min(1.0, done)

    def batch_factor(self, step: int) -> float:
        """How many times the first batch a step's batch is: few rays find the shape soon, many refine it."""
        return min(1.0 + step / self.batch_growth, self.largest_batch)

    def step_scale_at(self, step: int, progress: float) -> float:
        """How many times longer the march's steps are than when rendering: a young field is smooth, and long steps are
        few."""
        if step < self.coarse_steps:
            return (4.0 if step < self.coarse_steps // 4 else 2.0) * self.step_scale
        return self.step_scale if progress < self.step_scale_until else 1.0

    def surface_fade(self, progress: float) -> float:
        """The factor of the surface loss's weight: from 1 to 0."""
        return max(0.0, 1.0 - progress / self.surface_until)

    def is_diffuse(self, step: int, total_steps: int | None) -> bool:
        """Whether colours are asked for from random directions in this step (of objects)."""
        return step < min(self.diffuse_steps, self.diffuse_share * (total_steps or math.inf))

    def looks_for_distractors(self, step: int) -> bool:
        """Whether photos are held against one another before this step: at powers of two."""
        return step >= self.distractors_after and step & (step - 1) == 0

    def importance_at(self, step: int) -> float:
        """The share of pixels that are drawn by their error."""
        return self.importance if step >= self.importance_after else 0.0

    def updates_importance(self, step: int) -> bool:
        """Whether the probabilities of pixels are computed anew before this step."""
        return self.importance > 0 and step >= self.importance_after and step % self.importance_every == 0
