"""How a scene is trained: the settings, and the field and the steps of rays that they give its space."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from nerf.datasets import Scene
from nerf.fields.radiance import FieldOptions
from nerf.io.clock import Length
from nerf.rendering.marching import Marching
from nerf.training.exposure import HEADROOM
from nerf.training.pose_refinement import scene_scale
from nerf.training.schedule import Schedule, Weights


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Give `steps`, or `minutes`: the latter times the first steps, then fixes the number of steps for
    good.

    >>> nerf.TrainConfig(minutes=2).with_settings(depth=0.5, learning_rate=5e-3).weights.depth
    0.5
    """

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    # Work of a step, in samples with gradient (one only evaluated counts a third): sets n_rays. None: 3 * 2^13 on a
    # CPU, 2^17 on a GPU, which smaller batches leave idle.
    batch_samples: int | None = None
    weights: Weights = Weights()
    schedule: Schedule = Schedule()
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-15  # far below any gradient, so that rarely seen rows move as fast as others
    occupancy_resolution: int = 128  # cells along an edge of each level of the occupancy grid
    refine_poses: bool = False  # a correction of each training camera's pose, for poses that are not exact
    # An exposure for each channel of each photo, for photos whose exposure or white balance differ.
    exposure: bool = False
    checkpoint_seconds: float = 120.0
    # On a GPU: the same steps give the same bits in every run (not `minutes`, which decide how many). The CPU's always
    # do. It costs time; how much, no GPU has measured yet.
    deterministic: bool = False
    # On a GPU: steps are recorded as CUDA graphs and replayed, which spares Python's time for each launch. Off until a
    # GPU measured that it pays (scripts/gpu_check.py, section graph).
    graph: bool = False
    field: FieldOptions | None = None  # None: chosen for the scene's space

    @property
    def length(self) -> Length:
        """Raises UserError unless either steps or minutes are given."""
        return Length(self.steps, self.minutes)

    def with_settings(self, **values: Any) -> TrainConfig:
        """The same with other values of settings of its own, of its weights or its schedule, each by its name."""
        parts: dict[str, Any] = {}
        for name in ("weights", "schedule"):
            part = getattr(self, name)
            of_part = {f.name: values.pop(f.name) for f in fields(part) if f.name in values}
            parts[name] = replace(part, **of_part)
        return replace(self, **parts | values)

    def settings(self) -> dict[str, Any]:
        """Every setting by its name, those of weights and schedule among the others."""
        own = asdict(self)
        parts = own.pop("weights"), own.pop("schedule")
        return own | parts[0] | parts[1]

    @staticmethod
    def settings_of(saved: dict[str, Any]) -> dict[str, Any]:
        """`settings` of what a checkpoint holds, of any version: what it does not name had today's default."""
        known = TrainConfig().settings()
        named = saved | saved.get("weights", {}) | saved.get("schedule", {})
        named |= {new: named[old] for old, new in OLD_NAMES.items() if old in named}
        if named.get("surface_weight") is not None:  # which acted three times
            named["surface"] = 3.0 * named["surface_weight"]
        found = known | {name: value for name, value in named.items() if name in known}
        return found | {"occupancy_everywhere": tuple(found["occupancy_everywhere"])}


# settings of checkpoints of before 0.2 -> what they are called now
OLD_NAMES = {
    "depth_weight": "depth",
    "near_weight": "near_camera",
    "focus": "importance",
    "medium_stretch": "step_scale",
    "medium_until": "step_scale_until",
}


def default_field(scene: Scene, exposure: bool = False) -> FieldOptions:
    """Objects start as a solid hull that gets carved, so no floaters form; open scenes start almost empty."""
    scale = (scene.brightest if scene.linear else 1.0) * (HEADROOM if exposure else 1.0)
    if scene.space.bounded:
        return FieldOptions(density_bias=3.0, color_scale=scale)
    finest = 2048 if scene.space.contracted else 1024
    return FieldOptions(density_bias=-1.0, finest_resolution=finest, color_scale=scale)


def default_surface_weight(scene: Scene) -> float:
    """The weight of the surface loss where none is given."""
    return 0.3 if scene.space.contracted else 0.6


def default_marching(scene: Scene) -> Marching:
    """Steps and range of rays for this scene."""
    if scene.space.contracted:
        return Marching(
            scene.space,
            scene.near,
            scene.far,
            step_size=2 * math.sqrt(3) / 1024,
            cone_angle=1 / 256,
            gradient_distance=scene_scale(scene.cameras, scene.scene_from_world),
        )
    return Marching(scene.space, scene.near, scene.far, step_size=2 * math.sqrt(3) / 1024)
