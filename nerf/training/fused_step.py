"""The usual training step in native code: one call draws the batch, another takes the default loss back to the field
without autograd; on a GPU a dozen launches. It is what `Trainer.learn` does in torch, by other random numbers, where
`serves` holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nerf import kernels
from nerf.datasets import PixelStore, Scene
from nerf.fields.radiance import RadianceField
from nerf.kernels import BatchPlan, BeforeCameras, DrawnRays, KnownPixels, LearnPlan, Light, PhotoLoss, PhotoTable
from nerf.rendering.losses import DEPTH_ROUNDING, HUBER_DELTA
from nerf.rendering.model import Model
from nerf.training.config import TrainConfig
from nerf.training.exposure import ExposureCorrections
from nerf.training.objective import NEAR_RAYS, near_end
from nerf.training.optimiser import FieldOptimiser
from nerf.training.pixel_sampler import BLOCK, KEYPOINTS, PixelSampler, ray_lengths
from nerf.training.schedule import Weights
from nerf.training.stepping import StepPlan, StepResult
from nerf.training.viewpoints import SPREAD, Viewpoints

FusedStep = Callable[[StepPlan], StepResult]


def fused_step(
    scene: Scene,
    model: Model,
    sampler: object,
    optimiser: FieldOptimiser,
    weights: Weights,
    config: TrainConfig,
    viewpoints: Viewpoints,
    light: ExposureCorrections | None,
) -> FusedStep | None:
    """What takes the steps of a training with our field and loss, None where `serves` does not hold. scene: where the
    field is."""
    if not serves(scene, model, sampler, config):
        return None
    assert isinstance(sampler, PixelSampler) and isinstance(model.field, RadianceField)
    light = light if light is not None and light.values else None  # NDC has no flash
    field, table = model.field, photo_table(scene, model, sampler, weights, viewpoints, light is not None)

    def learn(now: StepPlan) -> StepResult:
        drawn = kernels.draw_rays(
            table,
            BatchPlan(now.n_rays, config.seed, now.step, sampler.cumulative, sampler.near, now.diffuse, now.step_at),
        )
        at_once = optimiser.table_step(now.learning_rate, now.step)
        sink, bits = at_once or optimiser.grad_accumulator, model.occupancy.bits
        assert sink is not None and bits is not None
        held = isinstance(now.surface, Tensor)  # by the rates that a recorded step reads
        loss = PhotoLoss(
            *(weights.photo, 0.0 if held else float(now.surface), HUBER_DELTA),
            *(weights.depth, DEPTH_ROUNDING, weights.near_camera),
            now.rates if held else None,
        )
        settings, error_map = model.marching.settings(now.step_scale), (sampler.errors, sampler.counts)
        shown = None if light is None else light_of(light, drawn)
        done = kernels.learn_rays(drawn, LearnPlan(bits, field.view(), settings, sink, loss, error_map, shown))
        optimiser.step(now.learning_rate, now.step, now.rates, done.weights_grad, with_table=at_once is None)
        if light is not None and shown is not None:
            if done.median_depths is not None:
                shown = light_of(light, drawn, done.median_depths)
            shown.gains.backward(done.gains_grad)
            optimiser.ranks.mean_gradients(light.values.values())
            light.step(now.light_rate, now.step >= config.schedule.flash_after)
        return StepResult(done.loss, done.errors, done.evaluated, done.kept, done.capacity)

    return learn


def light_of(light: ExposureCorrections, drawn: DrawnRays, distances: Tensor | None = None) -> Light:
    """The light of what was drawn, differentiable; distances [n]: of what it shows, where they are known by now."""
    assert drawn.pixels is not None
    image_ids, rows, cols = drawn.pixels.unbind(1)
    nowhere = torch.zeros(len(rows), device=rows.device)
    gains = light.at(image_ids, rows, cols, nowhere if distances is None else distances)
    return Light(gains, light.flash_of(image_ids), light.reference)


def serves(scene: Scene, model: Model, sampler: object, config: TrainConfig) -> bool:
    """Whether a step is one of native code: of our field, of photos of 8 or 16 bits in its memory without depths, and
    learns nothing beside the field but the photos' light."""
    if kernels.backend() not in ("cpu", "cuda") or (kernels.on_gpu() and config.deterministic):
        return False
    if config.refine_poses:
        return False
    pixels = scene.pixels
    if not isinstance(model.field, RadianceField) or not isinstance(sampler, PixelSampler) or scene.linear:
        return False
    if not (isinstance(pixels, PixelStore) and pixels.is_on(kernels.device()) and pixels.is_integer):
        return False
    if scene.depths is not None or isinstance(scene.masks, PixelStore):
        return False
    return not scene.cameras.distorted() or scene.cameras.lens_table() is not None


def photo_table(
    scene: Scene,
    model: Model,
    sampler: PixelSampler,
    weights: Weights | None = None,
    viewpoints: Viewpoints | None = None,
    lit: bool = False,
) -> PhotoTable:
    """The scene as the kernels read it; scene: where the field is. viewpoints: rays begin there as well, where the
    weights have them penalised; lit: the photos' light is learnt."""
    pixels, cameras, marching = scene.pixels, scene.cameras, model.marching
    masks, objects = scene.masks, scene.silhouettes
    assert not isinstance(masks, PixelStore)
    before = None
    if viewpoints is not None and weights is not None and weights.near_camera > 0:
        before = BeforeCameras(viewpoints.centres, viewpoints.nearest, SPREAD, near_end(marching), NEAR_RAYS)
    return PhotoTable(
        *(pixels.flat, pixels.offsets, pixels.widths, pixels.heights),
        has_alpha=pixels.n_channels in (2, 4) and scene.has_alpha,
        blocks=sampler.blocks,
        side=BLOCK,
        cameras=cameras.packed(scene.scene_from_world),
        directions=cameras.lens_table() if cameras.distorted() else None,
        masks=None if masks is None else (masks.memory, masks.offsets),
        silhouettes=None if objects is None else (objects.memory, objects.offsets),
        background=None if scene.background is None else tuple(model.background.tolist()),
        exposure=model.exposure,
        space=scene.space,
        near=marching.near,
        far=marching.far,
        known=known_pixels(scene, sampler),
        before=before,
        lit=lit,
    )


def known_pixels(scene: Scene, sampler: PixelSampler) -> KnownPixels | None:
    """The scene's keypoints, and where they are on their rays."""
    points = sampler.keypoints
    if points is None:
        return None
    seen = sampler.look(points.image_ids, points.rows, points.cols, sampler.keypoint_places, points.z_depths)
    rays_o, rays_d = scene.cameras.rays(points.image_ids, points.rows, points.cols, scene.scene_from_world)
    t_depths = scene.space.depth_to_t(rays_o, rays_d, ray_lengths(scene, seen, rays_d))
    pixels = torch.stack([points.image_ids, points.rows, points.cols, sampler.keypoint_places], dim=1)
    return KnownPixels(pixels, t_depths, KEYPOINTS)
