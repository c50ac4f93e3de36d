"""How a scene is trained: the settings, and the field and the steps of rays that they give its space."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nerf.datasets import Scene
from nerf.fields.radiance import FieldOptions
from nerf.rendering.marching import Marching
from nerf.training.exposure import HEADROOM
from nerf.training.pose_refinement import viewing_distance


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Give `steps`, or `minutes`: the latter times the first steps, then fixes the number of steps for
    good.

    >>> config = nerf.TrainConfig(minutes=2, refine_poses=True)
    >>> config.learning_rate
    0.01
    """

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    # Work of a step, in samples learnt from (one only evaluated counts a third): sets n_rays. None: 3 * 2^13 on a CPU,
    # 2^17 on a GPU, which smaller batches leave idle.
    batch_samples: int | None = None
    batch_growth: float = 1000.0  # steps in which the batch grows by its first size, up to four times that
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-3  # exponential decay over the last 70 %
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-15  # far below any gradient, so that rarely seen rows move as fast as others
    # Radiance-field loss, faded out: sharpens surfaces and so makes rays short. More is faster still and keeps shiny
    # things from being hollowed out, but other hollows stay filled, and leaves and hair lose their blends. None: 0.1 in
    # open scenes, 0.2 elsewhere.
    surface_weight: float | None = None
    surface_until: float = 0.75
    # Objects: colours are asked for from random directions at first, so that none can depend on them. Else what fills a
    # hollow (the solid hull it starts as) stays and learns to look hollow from every camera; but in too many steps
    # highlights hollow out what is solid. At most a fifth of all.
    diffuse_steps: int = 150
    focus: float = 0.5  # share of pixels drawn where the error was large
    depth_weight: float = 0.2  # of the loss on depth maps and on sparse points, where the scene has some
    near_weight: float = 0.05  # open scenes: of the opacity right before cameras, where fog hides from other photos
    # Rays march in longer steps at first: 4 and 2 times `medium_stretch` (a quarter, the rest of `coarse_steps`), then
    # `medium_stretch` times the steps of rendering until `medium_until` of the training.
    coarse_steps: int = 400
    medium_stretch: float = 2.0
    medium_until: float = 0.5
    occupancy_every: int = 16  # steps between occupancy updates
    # A correction of each training camera's pose, for poses that are not exact.
    refine_poses: bool = False
    pose_rate: float = 1e-3  # radians in the picture, for the first steps of Adam (see PoseCorrections.rate)
    pose_after: int = 200  # steps until the field has a shape that poses can be held against
    # A gain for each channel of each photo, for photos whose exposure or white balance differ.
    exposure: bool = False
    exposure_rate: float = 2e-2  # of the logarithm, for each step of Adam
    checkpoint_seconds: float = 120.0
    # On a GPU: the same steps give the same bits in every run (not `minutes`, which decide how many). The CPU's always
    # do. It costs time; how much, no GPU has measured yet.
    deterministic: bool = False
    # On a GPU: steps are recorded as CUDA graphs and replayed, which spares Python's time for each launch. Off until a
    # GPU measured that it pays (scripts/gpu_check.py, section graph).
    graph: bool = False
    field: FieldOptions | None = None  # None: chosen for the scene's space


def default_field(scene: Scene, exposure: bool = False) -> FieldOptions:
    """Objects start as a solid hull that gets carved, which needs no fog to clear; open scenes start almost empty."""
    scale = (scene.brightest if scene.linear else 1.0) * (HEADROOM if exposure else 1.0)
    if scene.space.bounded:
        return FieldOptions(density_bias=3.0, color_scale=scale)
    finest = 2048 if scene.space.contracted else 1024
    return FieldOptions(density_bias=-1.0, finest_resolution=finest, color_scale=scale)


def marching_of(scene: Scene) -> Marching:
    """Steps and range of rays for this scene."""
    if scene.space.contracted:
        return Marching(
            scene.space,
            scene.near,
            scene.far,
            step_size=2 * math.sqrt(3) / 1024,
            cone_angle=1 / 256,
            gradient_distance=viewing_distance(scene.cameras, scene.scene_from_world),
        )
    return Marching(scene.space, scene.near, scene.far, step_size=2 * math.sqrt(3) / 1024)
