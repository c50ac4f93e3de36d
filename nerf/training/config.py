"""How a scene is trained: the settings, and the untrained model that they give it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from nerf import kernels
from nerf.datasets import Scene
from nerf.errors import BadValue, Range, check_record
from nerf.fields.occupancy import RESOLUTION, OccupancyGrid
from nerf.fields.own import check_module, checked
from nerf.fields.radiance import FieldOptions, RadianceField, check_sizes
from nerf.io.clock import LENGTH, SEED, Length
from nerf.rendering.marching import Marching
from nerf.rendering.model import Model
from nerf.rendering.sky import fit_sky
from nerf.training.exposure import HEADROOM
from nerf.training.optimiser import BETA1, BETA2, EPSILON, TABLE_DECAY
from nerf.training.pixel_sampler import KEYPOINTS
from nerf.training.pose_refinement import scene_scale
from nerf.training.schedule import Schedule, Weights
from nerf.training.some_pixels import random_pixels
from nerf.training.visibility import visible_cells

TRAINING = LENGTH | {
    "seed": SEED,
    "batch_samples": Range(16, 1 << 30, whole=True, optional=True),
    "beta1": Range(0, 0.999999),
    "beta2": Range(0, 0.999999),
    "epsilon": Range(0, 1, above=True),
    "table_decay": Range(0, 1e3),
    "occupancy_resolution": RESOLUTION,
    "checkpoint_seconds": Range(0),
}
SKY_PIXELS = 1 << 16  # of all photos, that say what is behind everything
SLACK = 0.03  # scene scales by which silhouettes are grown where poses are not exact: 1.7 degrees


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Give `steps`, or `minutes` of training, without loading and measuring: how many steps fill them is
    told from the speed of the latest ones, again and again, and schedules follow.

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
    beta1: float = BETA1
    beta2: float = BETA2
    epsilon: float = EPSILON  # far below any gradient, so that rarely seen rows move as fast as others
    # Decoupled weight decay of the rows of the hash table that several places share. Adam's steps are as long for what
    # photos contradict one another about as for what they agree on; the decay shrinks the former, which is noise.
    table_decay: float = TABLE_DECAY
    occupancy_resolution: int = 128  # cells along an edge of each level of the occupancy grid
    refine_poses: bool = False  # a correction of each training camera's pose, for poses that are not exact
    # An exposure for each channel of each photo, for photos whose exposure or white balance differ.
    exposure: bool = False
    vignetting: bool = False  # how each lens darkens its pictures towards the corners
    flash: bool = False  # how light from the camera falls off with distance (not in forward-facing scenes)
    # Open scenes: parts of photos that show something else than all others see there are not learnt from.
    distractors: bool = True
    checkpoint_seconds: float = 120.0
    # On a GPU: the same steps give the same bits in every run (not `minutes`, which decide how many). The CPU's always
    # do. It costs time; how much, no GPU has measured yet.
    deterministic: bool = False
    # On a GPU: steps are recorded as CUDA graphs and replayed, which spares Python's time for each launch. None: where
    # they can be; True: an error where the other settings rule it out. Where recording fails, steps run one by one.
    graph: bool | None = None
    field: FieldOptions | None = None  # None: chosen for the scene's space

    def __post_init__(self) -> None:
        check_record(self, TRAINING)
        for name, kind in (("weights", Weights), ("schedule", Schedule), ("field", FieldOptions)):
            if not isinstance(part := getattr(self, name), kind) and not (name == "field" and part is None):
                raise BadValue(f"TrainConfig.{name} is of the type {type(part).__name__}, expected {kind.__name__}")

    @property
    def learns_light(self) -> bool:
        """Whether anything is learnt of the photos' light."""
        return self.exposure or self.vignetting or self.flash

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


def default_field(scene: Scene, headroom: bool = False) -> FieldOptions:
    """Objects start as a solid hull that gets carved, so no floaters form; open scenes start almost empty.

    >>> default_field(nerf.load("data/sample", downscale=8)).density_bias
    3.0
    """
    scale = (scene.brightest if scene.linear else 1.0) * (HEADROOM if headroom else 1.0)
    if scene.space.bounded:
        return FieldOptions(density_bias=3.0, color_scale=scale)
    finest = 2048 if scene.space.contracted else 1024
    return FieldOptions(density_bias=-1.0, finest_resolution=finest, color_scale=scale)


def default_marching(scene: Scene) -> Marching:
    """Steps and range of rays for this scene.

    >>> round(default_marching(nerf.load("data/sample", downscale=8)).step_size, 4)
    0.0034
    """
    marching = Marching(scene.space, scene.near, scene.far, step_size=2 * math.sqrt(3) / 1024)
    if not scene.space.contracted:
        return marching
    scale = scene_scale(scene.cameras, scene.scene_from_world)
    return replace(marching, cone_angle=1 / 256, gradient_distance=scale)


def weights_of(scene: Scene, weights: Weights) -> Weights:
    """The weights as they act in this scene."""
    surface = weights.surface
    if surface is None:
        surface = 0.3 if scene.space.contracted else 0.6
    share = 1 if scene.depths is not None else KEYPOINTS  # the loss is a mean over all rays
    near_camera = weights.near_camera if scene.space.contracted else 0.0
    return replace(weights, surface=surface, depth=weights.depth * share, near_camera=near_camera)


def new_model(scene: Scene, config: TrainConfig, field: nn.Module | None = None) -> Model:
    """An untrained model of a scene, where the kernels in use want it; field: one of your own, None: ours."""
    ids = scene.splits["train"]
    if field is None:
        options = config.field or default_field(scene, config.learns_light)
        field = RadianceField(options, scene.space.contracted, config.seed)
    check_module(field)
    if isinstance(field, RadianceField):
        check_sizes(field)
    occupancy = OccupancyGrid(scene.space.n_levels, config.occupancy_resolution, _mean_density(field))
    if not scene.space.warped:
        slack = SLACK * scene_scale(scene.cameras, scene.scene_from_world) if config.refine_poses else 0.0
        occupancy.restrict(visible_cells(scene, ids, slack))
    # white as it is shown, or what the photos have there
    behind = torch.full((3,), 1.0 / scene.exposure) if scene.background is None else scene.background.clone()
    parts = field.to(kernels.device()), occupancy.to(kernels.device()), default_marching(scene)
    cameras = scene.cameras.subset(ids)
    model = Model(*parts, scene.scene_from_world, cameras, behind, scene.linear, exposure=scene.exposure)
    model.names = [scene.names[i] for i in ids.tolist()]
    model.georeference = scene.georeference
    if not (scene.space.bounded or scene.has_alpha):
        model.sky = _sky(scene, ids)
    if config.refine_poses:
        model.given_poses = scene.cameras.c2w[ids].clone()
    return model


def _sky(scene: Scene, ids: Tensor) -> Tensor | None:
    """What the photos show on average in each direction, for where nothing will be; None where masks leave nothing."""
    random = torch.Generator().manual_seed(0)
    shown = random_pixels(scene, ids.cpu()[torch.randint(len(ids), (SKY_PIXELS,), generator=random)], random)
    colours, directions = shown.rgb[shown.used], shown.rays_d[shown.used]
    return fit_sky(colours, directions) if len(colours) else None


def _mean_density(field: Any) -> float:
    """The density that cells are taken to have until they are sampled."""
    if isinstance(field, RadianceField):
        return math.exp(field.options.density_bias)
    points = torch.rand(4096, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return float(checked(field).density(points).mean())
