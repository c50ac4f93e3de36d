"""THE loop for scenes: posed photos to a radiance field. Read `Trainer.train_step` and `train` from top to bottom;
everything they call is small."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nerf import kernels
from nerf.datasets import Scene
from nerf.errors import UserError, note
from nerf.fields.own import checked
from nerf.fields.radiance import RadianceField
from nerf.io import checkpoint
from nerf.io.interrupts import stoppable, whole
from nerf.io.outputs import OutputFolder
from nerf.io.progress import Progress
from nerf.kernels import RenderedRays
from nerf.rendering.metrics import psnr_of
from nerf.rendering.model import Model
from nerf.rendering.rays import render_rays
from nerf.training import stepping
from nerf.training.config import TrainConfig, new_model, weights_of
from nerf.training.distractors import Distractors, left_out_in_words
from nerf.training.distributed import ALONE, Ranks
from nerf.training.exposure import ExposureCorrections
from nerf.training.fused_step import fused_step
from nerf.training.objective import SceneLoss, near_camera_opacity_loss, nothing_learns
from nerf.training.optimiser import FieldOptimiser
from nerf.training.pixel_cache import sampler_of
from nerf.training.pixel_sampler import PixelBatch, PixelSampler, ray_lengths
from nerf.training.pose_refinement import PoseCorrections, scene_scale
from nerf.training.resuming import restore, save, state_of
from nerf.training.runs import TRAINED, open_run
from nerf.training.same_start import check_same_start
from nerf.training.stepping import Meter, StepPlan, StepResult
from nerf.training.used_scene import on_device, without
from nerf.training.viewpoints import Viewpoints
from nerf.training.watched import WatchedPixels, curve_in_words, watched_pixels

Loss = Callable[[RenderedRays, PixelBatch], Tensor]
Between = Callable[["Trainer"], bool]
CURVE_EVERY = 50  # steps


class Trainer:
    """Everything that changes while training, so that it can be saved and continued bit for bit.

    field: one of your own, an nn.Module with `density(x [s,3]) -> sigmas [s]` and `forward(x, d) -> (sigmas, rgbs
    [s,3])`; None: ours, of the configuration's size. loss: `loss(rendered, batch) -> Tensor` in the place of
    `SceneLoss`.

    >>> trainer = nerf.Trainer(nerf.load("data/sample", downscale=8), nerf.TrainConfig(steps=2))
    >>> 0 < trainer.train_step() < 1
    True
    """

    def __init__(
        self,
        scene: Scene,
        config: TrainConfig,
        field: nn.Module | None = None,
        loss: Loss | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.ranks, self.device, on_gpu = config, ranks, kernels.device(), kernels.on_gpu()
        ids = scene.splits["train"]
        self.model = new_model(scene, config, field)
        self.scene = on_device(scene, self.device)
        self.sampler = sampler_of(self.scene, ids)
        self.random = torch.Generator(self.device)
        adam = config.beta1, config.beta2, config.epsilon, ranks, config.table_decay
        self.optimiser = FieldOptimiser(self.model.field, *adam)
        self.parameters = self.optimiser.parameters
        self.poses: PoseCorrections | None = None
        if config.refine_poses:
            distance = scene_scale(scene.cameras, scene.scene_from_world)
            self.poses = PoseCorrections(self.scene.cameras, ids, scene.scene_from_world, distance)
        self.exposures: ExposureCorrections | None = None
        if config.learns_light:
            if loss is not None:
                raise UserError("the photos' light is learnt by the default loss: leave out either it or loss")
            light = config.exposure, config.vignetting, config.flash and not scene.space.warped
            distance = scene_scale(scene.cameras, scene.scene_from_world)
            self.exposures = ExposureCorrections(self.scene.cameras, ids, *light, distance)
        self.distractors: Distractors | None = None
        is_open = not (scene.space.bounded or scene.has_alpha)
        if config.distractors and is_open and isinstance(self.sampler, PixelSampler) and self.poses is None:
            self.distractors = Distractors(self.scene, ids)
        self.objective = SceneLoss(scene.linear, scene.exposure, self.exposures)
        self.loss: Loss = loss or self.objective
        self.weights = weights_of(scene, config.weights)
        self._look_from(self.scene)
        self.step, self.seconds = 0, 0.0
        self.total_steps = config.steps  # settled by the warm-up when minutes are given, and then again and again
        self.settled_step, self.settled_progress, self.settled_at = 0, 0.0, 0.0  # when it was last; at: seconds
        self.curve: list[dict[str, float]] = []
        self.batch_samples = config.batch_samples or (1 << 17 if on_gpu else 3 << 13)
        self.n_rays = min(8192, self.batch_samples // 16) if on_gpu else 1024
        self.most_rays = 1 << 18 if on_gpu else 1 << 16
        self.growth = stepping.GPU_GROWTH if on_gpu else stepping.GROWTH
        self.meter = Meter(self.device, stepping.READ_EVERY if on_gpu else 1, ranks)
        self.samples = self.meter.samples  # numbers of rays, and of samples evaluated and trained
        self._choose_step()

    def progress(self) -> float:
        """Fraction of the training that is done; 0 until its length is known, so no schedule may start before the warm-
        up ends."""
        if not self.total_steps:
            return 0.0
        done = (self.step - self.settled_step) / max(self.total_steps - self.settled_step, 1)
        return min(self.settled_progress + (1.0 - self.settled_progress) * done, 1.0)

    def _look_from(self, scene: Scene) -> None:
        """Measure by, and keep the air empty between, the photos of this scene's train split."""
        self.watched: dict[str, WatchedPixels] = {}  # where poses are refined, the given ones show something else
        if not self.config.refine_poses:
            self.watched = watched_pixels(scene, self.exposures)
        self.viewpoints = Viewpoints(scene.scene_from_world.apply(scene.cameras.centres[scene.splits["train"]]))

    def _choose_step(self) -> None:
        """How steps are taken, with the sampler's photos and the viewpoints as they are."""
        own = self.loss is not self.objective or not isinstance(self.model.field, RadianceField)
        parts = self.scene, self.model, self.sampler, self.optimiser, self.weights, self.ranks.own(self.config)
        self.fused = None if own else fused_step(*parts, self.viewpoints, self.exposures)
        self.recorded = stepping.recorder_of(self.config, self.scene, own, self.random, self.ranks)

    def leave_out_photos(self, names: Collection[str], said_by: object = "left_out") -> None:
        """Learn nothing more from photos of these names, and from all others again. said_by: what names them, in the
        UserError where one is no photo of the scene, or none would be left."""
        kept, ids = without(self.scene, names, said_by), self.scene.splits["train"]
        self.sampler.leave_out_photos(ids[~torch.isin(ids, kept.splits["train"])])
        self._look_from(kept)
        self._choose_step()

    def plan(self) -> StepPlan:
        """What the next step is told: how many rays, and what the schedules say."""
        schedule, step, progress = self.config.schedule, self.step, self.progress()
        return StepPlan(
            step,
            self.n_rays,
            schedule.step_scale_at(step, progress),
            self.scene.space.bounded and schedule.is_diffuse(step, self.total_steps),
            self.sampler.cumulative is not None,
            schedule.learning_rate_at(progress),
            (self.weights.surface or 0.0) * schedule.surface_fade(progress),
            schedule.exposure_rate_at(progress),
        )

    def train_step(self) -> float:
        """One step of Adam on one batch of pixels; returns the batch's mean squared error."""
        schedule, model = self.config.schedule, self.model
        random = self.random.manual_seed(self.config.seed * 1_000_003 + self.step)  # so that resume needs no state
        with stepping.determinism(self.config.deterministic):
            if self.step % schedule.occupancy_every == 0:
                budget = 1 << 18 if self.step < 256 or self.scene.space.contracted else 1 << 17
                everywhere = self.step in schedule.occupancy_everywhere
                with torch.no_grad():
                    density = checked(model.field).density
                    model.occupancy.update(density, model.marching.step_size, random, budget, everywhere)
            if self._leave_out_distractors() or schedule.updates_importance(self.step):
                self.ranks.mean_errors(self.sampler)
                self.sampler.update_importance(schedule.importance_at(self.step))
            self.ranks.draw_own(random, self.config.seed, self.step)
            plan = self.plan()
            self.look_at_numbers(plan, stepping.run_step(self, plan))
        self.step += 1
        return self.meter.mse

    def learn(self, now: StepPlan) -> StepResult:
        """Draw pixels, cast their rays, render, compare, go back, and take a step of Adam: on a GPU all at once, where
        that serves. Nothing here waits for a GPU."""
        if self.fused is not None:
            return self.fused(now)
        c, scene, model, random, n = self.config, self.scene, self.model, self.random, now.n_rays
        field, occupancy, marching = model.field, model.occupancy, model.marching

        batch = self.sampler.draw(n, random)
        batch.weights, batch.surface = self.weights, now.surface
        # what is transparent must look so on any colour
        batch.background = torch.rand(n, 3, generator=random, device=self.device) / model.exposure
        if scene.background is not None:  # and through holes of what is not
            batch.background = torch.where(batch.alpha > 0.5, model.background.to(self.device), batch.background)

        rays_o, rays_d = scene.cameras.rays(batch.image_ids, batch.rows, batch.cols, scene.scene_from_world)
        lengths = None if batch.depths is None else ray_lengths(scene, batch, rays_d)
        viewdirs = None
        if now.diffuse:
            anywhere = torch.randn(n, 3, generator=random, device=self.device)
            viewdirs = torch.nn.functional.normalize(anywhere, dim=1)
        poses_move = self.poses_move(now.step)
        if self.poses is not None:
            rays_o, rays_d = self.poses.apply(batch.image_ids, rays_o, rays_d)
            rays_o.requires_grad_(poses_move)
            rays_d.requires_grad_(poses_move)
        if lengths is not None:
            batch.t_depths = model.space.depth_to_t(rays_o.detach(), rays_d.detach(), lengths)

        accumulator = self.optimiser.grad_accumulator
        rendered = render_rays(
            *(field, occupancy, marching, rays_o, rays_d),
            jitter=kernels.ray_jitter(self.ranks.own(c).seed, now.step, n, now.step_at),
            step_scale=now.step_scale,
            viewdirs=viewdirs,
            grad_accumulator=accumulator,
        )

        loss, errors = self.loss(rendered, batch), self.objective.errors(rendered, batch)
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
            raise nothing_learns(own_loss=self.loss is not self.objective)
        if self.weights.near_camera > 0:
            in_front = (field, occupancy, marching, rays_o, rays_d, now.step_scale, accumulator, random)
            loss = loss + self.weights.near_camera * near_camera_opacity_loss(*in_front, self.viewpoints)

        loss.backward()
        self.optimiser.step(now.learning_rate, now.step, now.rates)
        if self.poses is not None and poses_move:
            assert rays_o.grad is not None and rays_d.grad is not None
            rate = self.poses.rate(c.schedule.pose_rate)
            self.poses.step(batch.image_ids, rays_d.detach(), rays_o.grad, rays_d.grad, rate, self.ranks)
        if self.exposures is not None:
            self.ranks.mean_gradients(self.exposures.values.values())
            self.exposures.step(now.light_rate, now.step >= c.schedule.flash_after)
        self.sampler.record(batch, errors)
        return StepResult(loss.detach(), errors, rendered.evaluated, rendered.kept, rendered.capacity)

    def _leave_out_distractors(self) -> bool:
        """Choose anew which parts of photos are not drawn, where it is time to; whether it was."""
        if self.distractors is None or not self.config.schedule.looks_for_distractors(self.step):
            return False
        assert isinstance(self.sampler, PixelSampler)
        cells = self.ranks.of_first(self.distractors.find(self.model, self.exposures, self.step))
        self.sampler.left_out = self.distractors.blocks(cells, self.sampler.blocks).to(self.device)
        return True

    def look_at_numbers(self, plan: StepPlan, result: StepResult) -> None:
        """Count a step's samples, stop where it broke down, and choose by its work how many rays the next one has."""
        spent = self.meter.read(plan, result)
        if spent is not None:
            wanted = self.batch_samples * self.config.schedule.batch_factor(self.step)
            steady = 1.0 if self.recorded is None else stepping.RAYS_TOO_FAR
            self.n_rays = stepping.next_n_rays(self.n_rays, wanted, spent, self.most_rays, steady)

    def poses_move(self, step: int) -> bool:
        """Whether the cameras move in this step, which takes the gradients of its rays."""
        return self.poses is not None and self.poses.moves(step - self.config.schedule.pose_after)

    def steps_to_fill(self) -> int | None:
        """The number of steps that fills the configuration's minutes, once the warm-up is over; None until then."""

        def cost(step: int, batch_of: int | None = None) -> float:
            factor = self.config.schedule.batch_factor(step if batch_of is None else batch_of)
            return (1.0 + self.growth * factor) * (1.0 + stepping.RAY_GRADIENTS * self.poses_move(step))

        past = self.step
        marks = [(int(point["step"]), point["seconds"]) for point in self.curve] + [(past, self.seconds)]
        return stepping.CLOCK.steps_to_fill(self.config.length.seconds, marks, cost, lambda k: cost(k, past))

    def keep_time(self) -> None:
        """Where minutes were asked for: settle how many steps fill them once the warm-up is over, and again whenever
        SETTLE_EVERY of them has passed. The schedules go on from where they were."""
        length = self.config.length
        if length.minutes is None:
            return
        if self.total_steps is not None and self.seconds < self.settled_at + stepping.SETTLE_EVERY * length.seconds:
            return
        total, progress = self.steps_to_fill(), self.progress()
        if total is None:
            return
        if self.total_steps is not None:
            self.settled_step, self.settled_progress = self.step, progress
        self.total_steps, self.settled_at = total, self.seconds

    def point(self, psnr: float) -> dict[str, float]:
        """Where the training is, for its curve: PSNR of pixels of the photos learnt from (psnr: that of the batches,
        where none are watched) and, as `held_out`, of held-out photos."""
        found = {name: pixels.psnr(self.model) for name, pixels in self.watched.items()}
        found = {"psnr": psnr} | {name: value for name, value in found.items() if math.isfinite(value)}
        point = {"step": self.step, "seconds": round(self.seconds, 2)}
        return point | {name: round(value, 3) for name, value in found.items()}

    # ---- stop and go on

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, config) of a checkpoint: the model, and how to go on."""
        return state_of(self)

    def parts(self) -> dict[str, Any]:
        """What keeps its own state in a checkpoint, under this name."""
        parts = {"adam": self.optimiser, "sampler": self.sampler, "poses": self.poses, "gains": self.exposures}
        return {name: part for name, part in parts.items() if part is not None}

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of the same scene and configuration."""
        restore(self, path)


def train(
    scene: Scene,
    config: TrainConfig,
    out: Path | str | OutputFolder,
    resume: bool = False,
    progress: bool = True,
    field: nn.Module | None = None,
    loss: Loss | None = None,
    overwrite: bool = False,
    between: Between | None = None,
    left_out: Collection[str] = (),
    ranks: Ranks = ALONE,
) -> Model:
    """Train a radiance field on the scene's train split; writes out/checkpoint.safetensors and out/training.json.

    Ctrl-C, SIGTERM and SIGHUP save and stop; `resume` continues as if they never had (bit for bit on the same machine
    type and thread count or another), to the length of before or to another that the configuration asks for, or begins
    where there is nothing yet. A run that is there is replaced only with
    `overwrite`, and files of others never. field, loss: of your own, see `Trainer`. between: called with the trainer
    before each step, in time that does not count as training; where it returns False, training ends there as if its
    length were reached. left_out: names of photos that nothing is learnt from, which may be others when resumed. ranks:
    processes that train together (`nerf.training.distributed.join`). Raises UserError.

    >>> scene = nerf.load("data/sample", downscale=8)
    >>> model = nerf.train(scene, nerf.TrainConfig(steps=4), out="runs/short", overwrite=True, progress=False)
    >>> model.meta["steps"]
    4
    """
    if not resume:
        _ = config.length  # which must be given
    with ranks.together():
        trainer = Trainer(scene, config, field, loss, ranks)
    with ExitStack() as until_the_end:
        if not isinstance(out, OutputFolder):
            out = until_the_end.enter_context(open_run(Path(out), None, resume, overwrite, ranks=ranks))
            if overwrite:
                out.clear()
        out.claim(*TRAINED)
        until_the_end.enter_context(stoppable())
        until_the_end.enter_context(ranks.whole())
        file = out.path / "checkpoint.safetensors"
        if resume and ranks.of_first(file.exists() or checkpoint.previous_path(file).exists()):
            with ranks.together():
                trainer.restore(file)
            note(f"going on at step {trainer.step}" + (f" of {trainer.total_steps}" if trainer.total_steps else ""))
        elif resume:
            _ = config.length
            note(f"{out.path}: there is no checkpoint yet; training starts from the beginning")
        trainer.leave_out_photos(left_out)
        check_same_start(trainer)
        return _train(trainer, file, progress, between)


def _train(trainer: Trainer, file: Path, progress: bool, between: Between | None = None) -> Model:
    """Step after step until the configuration's length is reached."""
    display = Progress("training", None, progress and trainer.ranks.is_first, trainer.step)
    recent = deque[float](maxlen=50)
    started = time.perf_counter() - trainer.seconds
    saved_at = time.perf_counter()
    try:
        while trainer.total_steps is None or trainer.step < trainer.total_steps:
            if between is not None:
                away = time.perf_counter()
                if not between(trainer):
                    note(f"training ended at step {trainer.step}, as it was asked to")
                    break
                started += time.perf_counter() - away
            with whole():  # half a step could not be continued bit for bit
                recent.append(trainer.train_step())
            now = time.perf_counter()
            due = now - saved_at > trainer.config.checkpoint_seconds
            trainer.seconds, due = trainer.ranks.agree(now - started, due)
            trainer.keep_time()
            psnr = psnr_of(sum(recent) / len(recent))
            if trainer.step % CURVE_EVERY == 0:
                trainer.curve.append(trainer.point(psnr))
            rate = trainer.samples["rays"] / max(trainer.seconds, 1e-9)
            words = f"{curve_in_words(psnr, trainer.curve)}  {rate / 1e3:.0f} k rays/s"
            display.update(trainer.step, trainer.total_steps, words)
            if due:
                save(trainer, file)
                saved_at = time.perf_counter()
    except KeyboardInterrupt:
        with whole("the save"):
            display.close()
            save(trainer, file)
            note(f"stopped at step {trainer.step}; saved")
        raise
    finally:
        display.close()
    save(trainer, file)
    if isinstance(trainer.sampler, PixelSampler) and (words := left_out_in_words(trainer.scene.names, trainer.sampler)):
        note(words)
    return trainer.model
