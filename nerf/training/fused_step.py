"""The usual training step in native code: one call draws the batch, another takes the default loss back to the field
without autograd; on a GPU a dozen launches. It is what `Trainer.learn` does in torch, by other random numbers, where
`serves` holds."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nerf import kernels
from nerf.datasets import PixelStore, Scene
from nerf.fields.radiance import RadianceField
from nerf.kernels import PhotoLoss, PhotoTable
from nerf.rendering.losses import HUBER_DELTA
from nerf.rendering.model import Model
from nerf.training.config import TrainConfig
from nerf.training.optimiser import FieldOptimiser
from nerf.training.pixel_sampler import BLOCK, PixelSampler
from nerf.training.schedule import Weights
from nerf.training.stepping import StepPlan, StepResult

FusedStep = Callable[[StepPlan], StepResult]


def fused_step(
    scene: Scene, model: Model, sampler: object, optimiser: FieldOptimiser, weights: Weights, config: TrainConfig
) -> FusedStep | None:
    """What takes the steps of a training with our field and loss, None where `serves` does not hold. scene: where the
    field is."""
    if not serves(scene, model, sampler, weights, config):
        return None
    assert isinstance(sampler, PixelSampler) and isinstance(model.field, RadianceField)
    field, table = model.field, photo_table(scene, model, sampler)

    def learn(now: StepPlan) -> StepResult:
        drawn = kernels.draw_rays(
            table, sampler.cumulative, config.seed, now.step, now.n_rays, now.diffuse, now.step_at
        )
        at_once = optimiser.table_step(now.learning_rate, now.step)
        sink, bits = at_once or optimiser.grad_accumulator, model.occupancy.bits
        assert sink is not None and bits is not None
        held = isinstance(now.surface, Tensor)  # by the rates that a recorded step reads
        loss = PhotoLoss(weights.photo, 0.0 if held else float(now.surface), now.rates if held else None, HUBER_DELTA)
        done = kernels.learn_rays(
            *(drawn, bits, field.view(), model.marching.settings(now.step_scale), sink, loss),
            (sampler.errors, sampler.counts),
        )
        optimiser.step(now.learning_rate, now.step, now.rates, done.weights_grad, with_table=at_once is None)
        return StepResult(done.loss, done.errors, done.evaluated, done.kept, done.capacity)

    return learn


def serves(scene: Scene, model: Model, sampler: object, weights: Weights, config: TrainConfig) -> bool:
    """Whether a step is one of native code: of our field, of photos of 8 or 16 bits in its memory without depths, of an
    object, for what is before cameras counts elsewhere; and learns nothing else than the field."""
    if kernels.backend() not in ("cpu", "cuda") or (kernels.on_gpu() and config.deterministic):
        return False
    if config.refine_poses or config.learns_light:
        return False
    field, pixels, space = model.field, scene.pixels, scene.space
    if not isinstance(field, RadianceField) or field.config.color_scale != 1.0 or scene.linear or space.warped:
        return False
    if not isinstance(sampler, PixelSampler) or len(sampler.near) or weights.near_camera > 0:
        return False
    if not (isinstance(pixels, PixelStore) and pixels.is_on(kernels.device()) and pixels.is_integer):
        return False
    if scene.depths is not None or isinstance(scene.masks, PixelStore):
        return False
    return not scene.cameras.distorted() or scene.cameras.lens_table() is not None


def photo_table(scene: Scene, model: Model, sampler: PixelSampler) -> PhotoTable:
    """The scene as the kernels read it; scene: where the field is."""
    pixels, cameras, marching = scene.pixels, scene.cameras, model.marching
    masks, objects = scene.masks, scene.silhouettes
    assert not isinstance(masks, PixelStore)
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
        half_extent=scene.space.half_extent,
        near=marching.near,
        far=marching.far,
    )
