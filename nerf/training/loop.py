"""THE loop for scenes: posed photos to a radiance field. Read `train` from top to bottom; everything it calls is
small."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf import kernels
from nerf.datasets import Scene
from nerf.errors import UserError, note
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import RadianceField
from nerf.io import checkpoint
from nerf.io.files import write_whole
from nerf.io.interrupts import whole_steps
from nerf.io.progress import Progress
from nerf.kernels import GradAccumulator, RecordedSteps, StepNumbers
from nerf.rendering import losses
from nerf.rendering.model import Model
from nerf.rendering.rays import render_rays
from nerf.training.config import TrainConfig, default_field, marching_of
from nerf.training.exposure import PhotoGains
from nerf.training.objective import near_fog, photo_loss, without_masked
from nerf.training.pixel_cache import TileSampler, sampler_of
from nerf.training.pixel_sampler import KEYPOINTS, PixelSampler, ray_lengths
from nerf.training.pose_refinement import PoseCorrections, viewing_distance
from nerf.training.visibility import possible_cells

WARM_UP = 0.15  # of the minutes, before the number of steps is fixed; schedules are constant until later than that
GROWTH = 0.55  # of a step's time with the batch, beside 1 for the optimiser and other fixed work (measured)
FOCUS_AFTER, FOCUS_EVERY = 256, 64  # steps
SLACK = 0.03  # viewing distances by which silhouettes are grown where poses are not exact: 1.7 degrees
EXPOSED_UNTIL = 0.85  # of the training: corrections of photos' light slow down to a hundredth by then
RAY_GRADIENTS = 0.45  # of a step's time, beside 1 without them (measured)
RAYS_TOO_FAR = 1.15  # with graphs: factor by which the batch may miss its size before its rays, and so all, change
READ_EVERY = 16  # steps of a GPU between looks at its numbers: looking waits for it, and else it never waits for Python


@dataclass(frozen=True)
class StepShape:
    """What a step's launches depend on beside numbers and contents of tensors: a recorded one serves while it stays."""

    n_rays: int
    coarser: float  # times the march's steps when rendering
    diffuse: bool  # colours are asked for from random directions
    surface: bool  # with the surface loss
    focused: bool  # pixels are drawn by their error


class Trainer:
    """Everything that changes while training, so that it can be saved and continued bit for bit."""

    def __init__(self, scene: Scene, config: TrainConfig) -> None:
        kernels.be_deterministic(config.deterministic)
        self.config, self.device = config, kernels.device()
        on_gpu = kernels.on_gpu()
        self.batch_samples = config.batch_samples or (1 << 17 if on_gpu else 3 << 13)
        self.most_rays = 1 << 18 if on_gpu else 1 << 16
        self.read_every = READ_EVERY if on_gpu else 1
        train_ids = scene.splits["train"]
        options = config.field or default_field(scene, config.exposure)
        field = RadianceField(options, scene.space.contracted, config.seed)
        occupancy = OccupancyGrid(scene.space.n_levels, initial_density=math.exp(field.options.density_bias))
        at = viewing_distance(scene.cameras, scene.scene_from_world)
        if not scene.space.warped:
            occupancy.restrict(possible_cells(scene, train_ids, SLACK * at if config.refine_poses else 0.0))
        self.model = Model(
            field,
            occupancy,
            marching_of(scene),
            scene.scene_from_world,
            scene.cameras.subset(train_ids),
            torch.full((3,), 1.0 / scene.exposure),  # white as it is shown
            scene.linear,
            exposure=scene.exposure,
        )
        self.model.names = [scene.names[i] for i in train_ids.tolist()]
        self.scene = _on_device(scene, self.device)
        self.poses: PoseCorrections | None = None
        if config.refine_poses:
            self.model.given_poses = scene.cameras.c2w[train_ids].clone()
            self.poses = PoseCorrections(self.scene.cameras, train_ids, scene.scene_from_world, at)
        self.gains: PhotoGains | None = None
        if config.exposure:
            self.gains = PhotoGains(train_ids, len(scene.names), scene.linear, self.device)
        self.sampler = sampler_of(self.scene, train_ids)
        field.to(self.device)
        occupancy.to(self.device)
        self.random = torch.Generator(self.device)
        field.table_half = field.table.detach().half()
        self.sink = GradAccumulator(torch.zeros_like(field.table.data))
        self.parameters = [p.data for p in field.parameters()]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        by_space = 0.1 if scene.space.contracted else 0.2
        self.surface_weight = by_space if config.surface_weight is None else config.surface_weight
        self.step, self.seconds = 0, 0.0
        self.n_rays = min(8192, self.batch_samples // 16) if on_gpu else 1024
        self.total_steps = config.steps  # fixed by the warm-up when minutes are given
        self.curve: list[dict[str, float]] = []
        self.samples = {"rays": 0, "evaluated": 0, "trained": 0}
        self.recorded: RecordedSteps | None = None
        if config.graph and on_gpu:
            if config.deterministic or kernels.backend() == "tinycudann" or scene.pixels.tile:
                raise UserError(
                    "steps cannot be recorded as CUDA graphs where each waits for the GPU: leave graph out, or "
                    "deterministic and the backend tinycudann, or load fewer pixels than need a file of tiles"
                )
            if config.refine_poses or config.exposure:
                raise UserError("steps that refine poses or exposure cannot be recorded: leave graph out")
            self.recorded = RecordedSteps(self.device, self.random, config.beta1, config.beta2)
        self.unread = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(2)]  # of a GPU's last steps
        self.last_mse, self.told_of_room = math.inf, False

    def progress(self) -> float:
        """Fraction of the training that is done; 0 until its length is known, so no schedule may start before the warm-
        up ends."""
        return min(self.step / self.total_steps, 1.0) if self.total_steps else 0.0

    def learning_rate(self) -> float:
        c, t = self.config, max(0.0, self.progress() - 0.3) / 0.7
        return c.learning_rate * (c.final_learning_rate / c.learning_rate) ** t

    def exposure_rate(self) -> float:
        """The rate of a step of Adam for the photos' gains, which settle before the field does."""
        done = min(1.0, max(0.0, self.progress() - WARM_UP) / (EXPOSED_UNTIL - WARM_UP))
        return self.config.exposure_rate * 0.01**done

    def poses_move(self, step: int) -> bool:
        """Whether the cameras move in this step, which takes the gradients of its rays."""
        return self.poses is not None and self.poses.moves(step - self.config.pose_after)

    def batch_factor(self, step: int | None = None) -> float:
        """How many times the first batch a step's batch is: few rays find the shape soon, many refine it."""
        return min(1.0 + (self.step if step is None else step) / self.config.batch_growth, 4.0)

    def step_stretch(self) -> float:
        """How many times longer the march's steps are than when rendering: a young field is smooth, and long steps are
        few."""
        c = self.config
        if self.step < c.coarse_steps:
            return 4.0 * c.medium_stretch if self.step < c.coarse_steps // 4 else 2.0 * c.medium_stretch
        return c.medium_stretch if self.progress() < c.medium_until else 1.0

    def train_step(self) -> float:
        """One step of Adam on one batch of pixels; returns the batch's mean squared error."""
        c, model, field = self.config, self.model, self.model.field
        random = self.random.manual_seed(c.seed * 1_000_003 + self.step)  # of the step alone: resume needs no state
        if self.step % c.occupancy_every == 0:
            budget = 1 << 18 if self.step < 256 or self.scene.space.contracted else 1 << 17
            everywhere = self.step in (64, 128, 256, 512, 1024, 2048)
            model.occupancy.update(field.density, model.marching.step_size, random, budget, everywhere)
        if c.focus > 0 and self.step >= FOCUS_AFTER and self.step % FOCUS_EVERY == 0:
            self.sampler.refocus(c.focus)
        surface = self.surface_weight * max(0.0, 1.0 - self.progress() / c.surface_until)
        diffuse = self.scene.space.bounded and self.step < min(c.diffuse_steps, 0.2 * (self.total_steps or math.inf))
        focused = self.sampler.cumulative is not None
        shape = StepShape(self.n_rays, self.step_stretch(), diffuse, surface > 0, focused)
        now = StepNumbers(self.step, self.learning_rate(), surface * 3.0)
        if self.recorded is None:
            errors, counts = self._learn(shape, now)
        else:
            placed = self.recorded.place(now)
            errors, counts = self.recorded.run(shape, lambda: self._learn(shape, placed))
        self._read(errors, counts)
        self.step += 1
        return self.last_mse

    def _learn(self, shape: StepShape, now: StepNumbers) -> tuple[Tensor, dict[str, Any]]:
        """The part of a step that a GPU does alone: reads nothing back and nothing that changes between steps but `now`
        and contents of tensors, so that it can be recorded. Returns the rays' squared errors [n], and how many samples
        there were."""
        c, model, random, n = self.config, self.model, self.random, shape.n_rays
        batch = self.sampler.draw(n, random)
        # What is transparent must look so on any colour.
        background = torch.rand(n, 3, generator=random, device=self.device) / model.exposure
        rays_o, rays_d = self.scene.cameras.rays(batch.image_ids, batch.rows, batch.cols, self.scene.scene_from_world)
        seen_from = None
        if shape.diffuse:
            anywhere = torch.randn(n, 3, generator=random, device=self.device)
            seen_from = torch.nn.functional.normalize(anywhere, dim=1)
        given_d, moves = rays_d, self.poses_move(now.step)
        if self.poses is not None:
            rays_o, rays_d = self.poses.apply(batch.image_ids, rays_o, rays_d)
            rays_o.requires_grad_(moves)
            rays_d.requires_grad_(moves)
        jitter = kernels.ray_jitter(c.seed, now.step, n, now.step_at)
        space = (model.field, model.occupancy, model.marching)
        out = render_rays(
            *(*space, rays_o, rays_d),
            jitter=jitter,
            step_scale=shape.coarser,
            viewdirs=seen_from,
            grad_accumulator=self.sink,
        )
        out = without_masked(out, batch)

        surface = now.surface if shape.surface else None
        loss, errors = photo_loss(out, batch, background, model.linear, model.exposure, surface, self.gains)
        if batch.depths is not None and c.depth_weight > 0:
            lengths = ray_lengths(self.scene, batch, given_d)
            t = model.space.depth_to_t(rays_o.detach(), rays_d.detach(), lengths)
            share = 1 if self.scene.depths is not None else KEYPOINTS  # the loss is a mean over all rays
            loss = loss + c.depth_weight * share * losses.depth(out.depths, out.opacities, t)
        if self.scene.space.contracted and c.near_weight > 0:
            loss = loss + c.near_weight * near_fog(*space, rays_o, rays_d, shape.coarser, self.sink, random)
        if self.read_every == 1:  # a GPU would have to be waited for
            self._check(loss)
        loss.backward()
        self._optimise(now)
        if self.poses is not None and moves:
            assert rays_o.grad is not None and rays_d.grad is not None
            rate = self.poses.rate(c.pose_rate)
            self.poses.step(batch.image_ids, rays_d.detach(), rays_o.grad, rays_d.grad, rate)
        if self.gains is not None:
            self.gains.step(self.exposure_rate())
        self.sampler.record(batch, errors)
        return errors, {"evaluated": out.evaluated, "kept": out.kept, "capacity": out.capacity}

    def _check(self, loss: Tensor) -> None:
        if not bool(loss.isfinite()):
            raise UserError(
                f"training broke down at step {self.step}: the loss is {float(loss.detach()):g}; the last good "
                "checkpoint is kept, try a lower learning rate, or look for broken images and poses"
            )

    def _read(self, errors: Tensor, out: dict[str, Any]) -> None:
        """Look at a step's numbers and choose the next batch's size by them; on a GPU only every few steps."""
        self.samples["rays"] += self.n_rays
        self.unread[0] += out["evaluated"]
        self.unread[1] += out["kept"]
        if (self.step + 1) % self.read_every and self.step > self.read_every:
            return
        mse, evaluated, kept = float(errors.mean()), int(out["evaluated"]), int(out["kept"])
        self._check(errors.mean())
        if out["capacity"] is not None and kept > out["capacity"] and not self.told_of_room:
            self.told_of_room = True
            note(f"step {self.step}: {kept - out['capacity']} of {kept} samples found no room and taught nothing")
        self.last_mse = mse
        self._count()
        work = self.batch_samples * self.batch_factor()
        wanted = self.n_rays * min(2.0, work / max(kept + evaluated / 3, 1))
        n_rays = int(min(max(wanted, 256), self.most_rays)) // 64 * 64
        if self.recorded is None or not 1 / RAYS_TOO_FAR < n_rays / self.n_rays < RAYS_TOO_FAR:
            self.n_rays = n_rays

    def _count(self) -> None:
        for name, count in zip(("evaluated", "trained"), self.unread, strict=True):
            self.samples[name] += int(count)
            count.zero_()

    def _optimise(self, now: StepNumbers) -> None:
        c, field = self.config, self.model.field
        for p, (m, v), live in zip(self.parameters, self.moments, field.parameters(), strict=True):
            is_table = live is field.table
            grad = self.sink.table if is_table else live.grad
            assert grad is not None
            half = field.table_half if is_table else None
            betas = (c.beta1, c.beta2, c.epsilon)
            kernels.adam_step(
                *(p, grad, m, v, now.learning_rate, *betas, now.step + 1, is_table, half), is_table, rates=now.rates
            )
            live.grad = None

    def _settle(self) -> None:
        """The model's cameras and gains become those that were learnt."""
        ids, cameras = self.scene.splits["train"], self.model.cameras
        if self.poses is not None:
            c2w = self.poses.poses(self.scene.cameras.c2w, self.scene.scene_from_world)[ids]
            self.model.cameras = cameras.with_poses(c2w)
        if self.gains is not None:
            self.model.log_gains = self.gains.logs.detach().cpu()[ids]

    # ---- stop and go on

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        model = self.model
        self._count()
        self._settle()
        model.meta |= {
            "steps": self.step,
            "total_steps": self.total_steps,
            "seconds": self.seconds,
            "minutes": self.config.minutes,
            "seed": self.config.seed,
            "data": str(self.scene.path),
            "backend": kernels.backend(),
            "threads": torch.get_num_threads(),
        } | {f"n_{k}": v for k, v in self.samples.items()}
        tensors, config = model.to_state()
        for i, (m, v) in enumerate(self.moments):
            tensors[f"adam.{i}.m"], tensors[f"adam.{i}.v"] = m, v
        for part, held in self._parts().items():
            tensors |= {f"{part}.{name}": t for name, t in held.tensors().items()}
        config["training"] = {
            "config": asdict(self.config),
            "step": self.step,
            "n_rays": self.n_rays,
            "seconds": self.seconds,
            "total_steps": self.total_steps,
            "curve": self.curve,
            "samples": self.samples,
            "names": model.names,
        }
        return tensors, config

    def _parts(self) -> dict[str, PixelSampler | TileSampler | PoseCorrections | PhotoGains]:
        """What keeps its own state in a checkpoint, under this name."""
        parts = {"sampler": self.sampler, "poses": self.poses, "gains": self.gains}
        return {name: part for name, part in parts.items() if part is not None}

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of the same scene and configuration."""
        tensors, config = checkpoint.load(path)
        saved = config.get("training")
        if saved is None:
            raise UserError(
                f"{path} holds a model without its training state, so it cannot be continued: "
                "start again with --overwrite"
            )
        mine = asdict(self.config)
        free = {"steps", "minutes", "checkpoint_seconds"}  # how long is settled by the first run
        free |= {"deterministic", "graph"}  # they say how, not what
        before = asdict(TrainConfig()) | saved["config"]  # what it does not name did not exist: the default
        other = [k for k in mine if k not in free and before[k] != mine[k]]
        if self.config.steps is not None and saved["total_steps"] != self.config.steps:
            other.append("steps")
        if other:
            raise UserError(_different(path, before, mine, other))
        if saved["names"] != self.model.names:
            raise UserError(
                f"{path} was trained on other images than the {len(self.model.cameras)} of {self.scene.path}: "
                "start again with --overwrite"
            )
        loaded = Model.from_state(tensors, config, str(path))
        with torch.no_grad():
            for p, q in zip(self.parameters, loaded.field.parameters(), strict=True):
                p.copy_(q)
        self.model.field.table_half = self.model.field.table.detach().half()
        self.model.occupancy = loaded.occupancy.to(self.device)
        for i, (m, v) in enumerate(self.moments):
            m.copy_(tensors[f"adam.{i}.m"])
            v.copy_(tensors[f"adam.{i}.v"])
        for part, held in self._parts().items():
            held.restore(checkpoint.part(tensors, part))
        self.step, self.n_rays, self.seconds = saved["step"], saved["n_rays"], saved["seconds"]
        self.total_steps, self.curve, self.samples = saved["total_steps"], saved["curve"], saved["samples"]


def _on_device(scene: Scene, device: torch.device) -> Scene:
    """The scene with its pixels and cameras where the field is."""
    masks = None if scene.masks is None else scene.masks.to(device)
    depths = None if scene.depths is None else scene.depths.to(device)
    pixels, cameras, frame = scene.pixels.to(device), scene.cameras.to(device), scene.scene_from_world.to(device)
    return replace(scene, pixels=pixels, cameras=cameras, scene_from_world=frame, masks=masks, depths=depths)


def _different(path: Path, saved: dict[str, Any], mine: dict[str, Any], keys: list[str]) -> str:
    listed = ", ".join(f"{k} {saved.get(k)!r}, now {mine[k]!r}" for k in keys)
    return (
        f"{path} was trained with another configuration ({listed}): "
        "resume with the same one, or start again with --overwrite"
    )


def train(scene: Scene, config: TrainConfig, out: Path | str, resume: bool = False, progress: bool = True) -> Model:
    """Train a radiance field on the scene's train split; writes out/checkpoint.safetensors and out/training.json.

    Ctrl-C saves and stops; `resume` continues as if it never had (bit for bit on the same machine type and thread count
    or another).

    >>> scene = nerf.load("data/sample", downscale=8)
    >>> model = nerf.train(scene, nerf.TrainConfig(steps=4), out="runs/short", progress=False)
    >>> model.meta["steps"]
    4
    """
    if (config.steps is None) == (config.minutes is None):
        raise UserError("say how long to train: either steps or minutes")
    out = Path(out)
    path = out / "checkpoint.safetensors"
    trainer = Trainer(scene, config)
    if resume and path.exists():
        trainer.restore(path)
    display = Progress("training", shown=progress, start=trainer.step)
    started = time.perf_counter() - trainer.seconds
    saved_at = time.perf_counter()
    recent: list[float] = []
    try:
        while trainer.total_steps is None or trainer.step < trainer.total_steps:
            with whole_steps():
                recent.append(trainer.train_step())
            now = time.perf_counter()
            trainer.seconds = now - started
            if trainer.total_steps is None:
                trainer.total_steps = _settle_steps(trainer, config.minutes or 0.0)
            if trainer.step % 50 == 0:
                psnr = -10.0 * math.log10(max(sum(recent[-50:]) / len(recent[-50:]), 1e-10))
                trainer.curve.append(
                    {"step": trainer.step, "seconds": round(trainer.seconds, 2), "psnr": round(psnr, 3)}
                )
                rate = trainer.samples["rays"] / max(trainer.seconds, 1e-9)
                words = f"PSNR {psnr:.1f} dB  {rate / 1e3:.0f} k rays/s"
                display.update(trainer.step, trainer.total_steps, words)
            if now - saved_at > config.checkpoint_seconds:
                _save(trainer, out)
                saved_at = time.perf_counter()
    except KeyboardInterrupt:
        display.close()
        _save(trainer, out)
        note(f"stopped at step {trainer.step}; saved")
        raise
    finally:
        display.close()
    _save(trainer, out)
    return trainer.model


def _settle_steps(trainer: Trainer, minutes: float) -> int | None:
    """The number of steps that fills the minutes, once the warm-up is over; None until then."""
    budget = minutes * 60.0
    if trainer.seconds < WARM_UP * budget:
        return None
    half = next((p for p in trainer.curve if p["seconds"] > trainer.seconds / 2), None)
    first, since = (int(half["step"]), trainer.seconds - half["seconds"]) if half else (0, trainer.seconds)
    if trainer.step <= first:
        first, since = 0, trainer.seconds

    def work(step: int, batch: float) -> float:
        return (1.0 + GROWTH * batch) * (1.0 + RAY_GRADIENTS * trainer.poses_move(step))

    now, steps = trainer.batch_factor(), trainer.step
    unit = since / sum(work(step, now) for step in range(first, steps))
    left = 0.97 * budget - trainer.seconds  # rather early than late
    while left > 0:
        steps += 1
        left -= unit * work(steps, trainer.batch_factor(steps))
    return steps


def _save(trainer: Trainer, out: Path) -> None:
    if not all(bool(p.isfinite().all()) for p in trainer.parameters):
        raise UserError(
            f"training broke down at step {trainer.step}: the field holds NaN or infinity; the last good one "
            "is kept, try a lower learning rate, or look for broken images and poses"
        )
    checkpoint.save(out / "checkpoint.safetensors", *trainer.state())
    log = {"steps": trainer.step, "seconds": trainer.seconds, "samples": trainer.samples, "curve": trainer.curve}
    write_whole(out / "training.json", json.dumps(log, indent=1))
