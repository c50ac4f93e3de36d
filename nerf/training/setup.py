"""What a training begins with: an untrained model of a scene, and the scene where the field is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nerf import kernels
from nerf.datasets import Scene
from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import RadianceField
from nerf.kernels import RecordedSteps
from nerf.rendering.model import Model
from nerf.training.config import TrainConfig, default_field, default_marching, default_surface_weight
from nerf.training.pixel_sampler import KEYPOINTS
from nerf.training.pose_refinement import scene_scale
from nerf.training.schedule import Weights
from nerf.training.visibility import visible_cells

SLACK = 0.03  # scene scales by which silhouettes are grown where poses are not exact: 1.7 degrees


def new_model(scene: Scene, config: TrainConfig, field: nn.Module | None = None) -> Model:
    """An untrained model of a scene, where the kernels in use want it; field: one of your own, None: ours."""
    ids = scene.splits["train"]
    if field is None:
        options = config.field or default_field(scene, config.exposure)
        field = RadianceField(options, scene.space.contracted, config.seed)
    occupancy = OccupancyGrid(scene.space.n_levels, config.occupancy_resolution, _mean_density(field))
    if not scene.space.warped:
        slack = SLACK * scene_scale(scene.cameras, scene.scene_from_world) if config.refine_poses else 0.0
        occupancy.restrict(visible_cells(scene, ids, slack))
    white = torch.full((3,), 1.0 / scene.exposure)  # as it is shown
    model = Model(
        field.to(kernels.device()),
        occupancy.to(kernels.device()),
        default_marching(scene),
        scene.scene_from_world,
        scene.cameras.subset(ids),
        white,
        scene.linear,
        exposure=scene.exposure,
    )
    model.names = [scene.names[i] for i in ids.tolist()]
    if config.refine_poses:
        model.given_poses = scene.cameras.c2w[ids].clone()
    return model


def _mean_density(field: Any) -> float:
    """The density that cells are taken to have until they are sampled."""
    if isinstance(field, RadianceField):
        return math.exp(field.options.density_bias)
    points = torch.rand(4096, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return float(field.density(points).mean())


def weights_of(scene: Scene, weights: Weights) -> Weights:
    """The weights as they act in this scene."""
    surface = default_surface_weight(scene) if weights.surface is None else weights.surface
    share = 1 if scene.depths is not None else KEYPOINTS  # the loss is a mean over all rays
    near_camera = weights.near_camera if scene.space.contracted else 0.0
    return replace(weights, surface=surface, depth=weights.depth * share, near_camera=near_camera)


def on_device(scene: Scene, device: torch.device) -> Scene:
    """The scene with its pixels and cameras where the field is."""
    masks = None if scene.masks is None else scene.masks.to(device)
    depths = None if scene.depths is None else scene.depths.to(device)
    pixels, cameras, frame = scene.pixels.to(device), scene.cameras.to(device), scene.scene_from_world.to(device)
    return replace(scene, pixels=pixels, cameras=cameras, scene_from_world=frame, masks=masks, depths=depths)


def recorder_of(config: TrainConfig, scene: Scene, random: torch.Generator) -> RecordedSteps | None:
    """What records the steps of a training as CUDA graphs; None where that is not asked for, or there is no GPU."""
    if not config.graph or not kernels.on_gpu():
        return None
    if config.deterministic or kernels.backend() == "tinycudann" or scene.pixels.tile:
        raise UserError(
            "steps cannot be recorded as CUDA graphs where each waits for the GPU: leave graph out, or "
            "deterministic and the backend tinycudann, or load fewer pixels than need a file of tiles"
        )
    if config.refine_poses or config.exposure:
        raise UserError("steps that refine poses or exposure cannot be recorded: leave graph out")
    return RecordedSteps(kernels.device(), random, config.beta1, config.beta2)
