"""Checkpoints of a training, and going on from one as if it had never stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nerf import kernels
from nerf.errors import MISFITS, Range, UserError, brief, check_numbers
from nerf.io import checkpoint
from nerf.io.clock import LENGTH, Length, resumed
from nerf.io.files import write_file
from nerf.io.interrupts import whole
from nerf.io.limits import check_curve, same_kinds
from nerf.rendering.model import Model
from nerf.training import stepping
from nerf.training.config import TrainConfig
from nerf.training.same_scene import check_same_scene
from nerf.training.same_start import check_same_field

if TYPE_CHECKING:
    from nerf.training.loop import Trainer

# of a trainer, in a checkpoint as they are, with a curve and numbers of samples
SAVED = {
    "step": Range(0, 1e9, whole=True),
    "n_rays": Range(1, 1 << 18, whole=True),
    "seconds": Range(0, 1e9),
    "total_steps": LENGTH["steps"],
    "settled_step": Range(0, 1e9, whole=True),
    "settled_progress": Range(0, 1),
}
NEVER_SETTLED = {"settled_step": 0, "settled_progress": 0.0}  # of checkpoints of before 0.2
HOW = {"steps", "minutes", "checkpoint_seconds", "deterministic", "graph"}  # settings that resuming may change


def restore(trainer: Trainer, path: Path) -> None:
    """Continue from a checkpoint of the same scene and configuration; UserError where it is another or damaged."""
    tensors, config = checkpoint.load_last(path)
    saved = config.get("training")
    if saved is None:
        raise UserError(
            f"{path} holds a model without its training state, so it cannot be continued: start again with --overwrite"
        )
    saved = NEVER_SETTLED | saved
    try:
        check_numbers(saved, SAVED)
        check_numbers(saved["samples"], dict.fromkeys(trainer.samples, Range(0, whole=True)))
        check_curve(saved["curve"])
        _check_same(trainer.config, path, saved)
        check_same_scene(path, tensors, config, trainer.scene)
        trainer.model.occupancy = Model.from_state(tensors, config, str(path), trainer.model.field).occupancy
        for part, held in trainer.parts().items():
            before = held.tensors()
            held.restore(checkpoint.part(tensors, part))
            same_kinds(before, held.tensors())
        for name in (*SAVED, "curve"):
            setattr(trainer, name, saved[name])
        _set_length(trainer, Length(saved["config"].get("steps"), saved["config"].get("minutes")))
        trainer.samples.update(saved["samples"])
    except MISFITS as error:
        raise UserError(
            f"{path}: its training state is damaged ({brief(error)}): start again with --overwrite"
        ) from error
    trainer.meter.saved = trainer.step


def _set_length(trainer: Trainer, before: Length) -> None:
    asked = Length.of(trainer.config.steps, trainer.config.minutes)
    length, total = resumed(asked, before, trainer.step, trainer.seconds, trainer.total_steps)
    if total != trainer.total_steps:
        trainer.settled_step, trainer.settled_progress = 0, 0.0
    trainer.total_steps, trainer.settled_at = total, trainer.seconds
    trainer.config = replace(trainer.config, steps=length.steps, minutes=length.minutes)


def _check_same(now: TrainConfig, path: Path, saved: dict[str, Any]) -> None:
    """Raise UserError where a checkpoint was trained in another way."""
    mine, before = now.settings(), TrainConfig.settings_of(saved["config"])
    other = [name for name in mine if name not in HOW and before[name] != mine[name]]
    if other:
        listed = ", ".join(f"{name} {before[name]!r}, now {mine[name]!r}" for name in other)
        raise UserError(
            f"{path} was trained with another configuration ({listed}): "
            "resume with the same one, or start again with --overwrite"
        )


def save(trainer: Trainer, file: Path) -> None:
    """Write the checkpoint and training.json beside it; of several ranks, the first does. UserError where the field
    holds no numbers, and the last checkpoint is kept."""
    if not all(bool(p.isfinite().all()) for p in trainer.parameters):
        broken = stepping.broken(trainer.step, "the field holds NaN or infinity", trainer.meter.saved)
        raise trainer.ranks.said_by_all(broken)
    check_same_field(trainer)
    trainer.ranks.mean_errors(trainer.sampler)
    with whole("the save"), trainer.ranks.together():
        state = trainer.state()
        if trainer.ranks.is_first:
            checkpoint.save(file, *state)
            log = {name: getattr(trainer, name) for name in ("seconds", "samples", "curve")}
            write_file(file.with_name("training.json"), json.dumps({"steps": trainer.step} | log, indent=1))
        trainer.meter.saved = trainer.step


def state_of(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config) of a checkpoint: the model, and how to go on."""
    model, ids = trainer.model, trainer.scene.splits["train"]
    trainer.meter.flush()
    if trainer.poses is not None:
        c2w = trainer.poses.poses(trainer.scene.cameras.c2w, trainer.scene.scene_from_world)[ids]
        model.cameras = model.cameras.with_poses(c2w)
    if trainer.exposures is not None:
        model.log_gains, model.vignetting = trainer.exposures.gains(), trainer.exposures.vignetting()
        model.falloff = trainer.exposures.falloff()
    model.meta |= {"steps": trainer.step, "total_steps": trainer.total_steps, "seconds": trainer.seconds}
    model.meta |= {"minutes": trainer.config.minutes, "seed": trainer.config.seed, "data": str(trainer.scene.path)}
    model.meta |= {"backend": kernels.backend(), "threads": torch.get_num_threads()}
    model.meta |= {f"n_{k}": v for k, v in trainer.samples.items()}
    tensors, config = model.to_state()
    for part, held in trainer.parts().items():
        tensors |= {f"{part}.{name}": t for name, t in held.tensors().items()}
    config["training"] = {name: getattr(trainer, name) for name in (*SAVED, "curve")} | {
        "config": trainer.config.settings(),
        "samples": trainer.samples,
        "names": model.names,
    }
    return tensors, config
