"""THE loop for signals: a field learns an image, a sound, a shape. Read `fit` from top to bottom."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nerf import kernels
from nerf.errors import MISFITS, Range, UserError, brief, check_numbers, check_record, note
from nerf.io import checkpoint
from nerf.io.clock import LENGTH, SEED, Clock, Length, resumed
from nerf.io.folders import is_checkpoint
from nerf.io.interrupts import stoppable, whole
from nerf.io.limits import check_curve
from nerf.io.outputs import OutputFolder
from nerf.io.progress import Progress
from nerf.kernels import AdamState, AdamStep
from nerf.rendering.metrics import psnr_of
from nerf.signals.fields import FieldChoice, SignalField, choose
from nerf.signals.latents import ModulatedField
from nerf.signals.record import Problem
from nerf.signals.state import check_state


@dataclass(frozen=True)
class FitConfig:
    """How to fit. Give `steps`, or `minutes`: the latter times the first tenth, then fixes the number of steps for
    good.

    >>> FitConfig(steps=200).learning_rate is None  # by the kind of field
    True
    """

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    batch: int | None = None  # values a step; None: by the kind of field
    learning_rate: float | None = None  # None: by the kind of field
    final_learning_rate: float = 0.02  # of the first one; cosine decay from the start
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-15
    weight_decay: float = 0.0
    coarse_until: float = 0.7  # share of the steps whose products read bfloat16, where the processor has it
    stop_mse: float | None = None  # stop before the end once the error shown is no larger
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_record(self, FITTING)

    @property
    def length(self) -> Length:
        """Raises UserError unless either steps or minutes are given."""
        return Length(self.steps, self.minutes)


FITTING = LENGTH | {
    "seed": SEED,
    "batch": Range(1, 1 << 30, whole=True, optional=True),
    "learning_rate": Range(0, 1e3, above=True, optional=True),
    "final_learning_rate": Range(0, 1e3),
    "beta1": Range(0, 0.999999),
    "beta2": Range(0, 0.999999),
    "epsilon": Range(0, 1, above=True),
    "weight_decay": Range(0, 1e3),
    "coarse_until": Range(0, 1e9),
    "stop_mse": Range(0, optional=True),
    "checkpoint_seconds": Range(0),
}
CLOCK = Clock(warm_up=0.1, margin=0.02)
LEARNING_RATES = {"hash": 1e-2, "siren": 5e-4, "fourier": 2e-3, "mlp": 2e-3, "own": 2e-3}
BATCHES = {"hash": 1 << 16, "siren": 1 << 13, "fourier": 1 << 13, "mlp": 1 << 13, "own": 1 << 13}
CHECKPOINT = "checkpoint.safetensors"
SAVED = ("step", "seconds", "total_steps", "curve")  # of a fitter, in a checkpoint as they are


class Fitter:
    """Everything that changes while fitting, so that it can be saved and continued bit for bit."""

    def __init__(self, problem: Problem, field: SignalField, config: FitConfig) -> None:
        self.problem, self.config = problem, config
        self.field = field.to(kernels.device())
        kind = field.choice.kind
        self.batch = config.batch or BATCHES[kind]
        self.learning_rate = config.learning_rate or LEARNING_RATES[kind]
        self.parameters = [p for p in self.field.parameters() if p.requires_grad]
        table = getattr(self.field.encoding, "table", None)  # learns without decay
        self.states = [
            AdamState.of(p, (config.beta1, config.beta2), config.epsilon, 0.0 if p is table else config.weight_decay)
            for p in self.parameters
        ]
        self.random = torch.Generator()
        self.step, self.seconds = 0, 0.0
        self.saved: int | None = None  # step of the last checkpoint of this fit
        self.total_steps = config.steps  # fixed by the warm-up when minutes are given
        self.curve: list[dict[str, float]] = []

    def rate(self) -> float:
        """The learning rate of this step: a cosine from the first to the final one; constant at an open length."""
        if not self.total_steps:
            return self.learning_rate
        t, least = min(self.step / self.total_steps, 1.0), self.config.final_learning_rate
        return self.learning_rate * (least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * t)))

    def train_step(self) -> float:
        """One step of Adam on one batch; returns the batch's mean squared error."""
        c = self.config
        random = self.random.manual_seed(c.seed * 1_000_003 + self.step)  # of the step alone: resume needs no state
        self.field.bf16 = not self.total_steps or self.step < c.coarse_until * self.total_steps
        loss, shown = self.problem.loss(self.field, self.batch, random)
        loss.backward()
        rate, table = self.rate(), getattr(self.field.encoding, "table", None)
        for p, state in zip(self.parameters, self.states, strict=True):
            if p.grad is None:
                continue
            # of a table, rows that no sample of this batch touched keep still
            kernels.adam_step(p.data, p.grad, state, AdamStep(rate, self.step + 1, p is table))
            p.grad = None
        self.step += 1
        mse = float(shown)
        if not math.isfinite(mse):
            raise UserError(
                f"fitting broke down at step {self.step}: the error is {mse}; {checkpoint.kept(self.saved)}; "
                "try a lower learning rate, or look for values that are no numbers in the file"
            )
        return mse

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, config) of a checkpoint: the field, what it was fitted to, and how to go on."""
        tensors, config = Fitted(self.field, self.problem.kind, self.problem.describe()).to_state()
        for i, state in enumerate(self.states):
            tensors[f"adam.{i}.m"], tensors[f"adam.{i}.v"] = state.m, state.v
        now = {"config": asdict(self.config)} | {name: getattr(self, name) for name in SAVED}
        config["fitting"] = now | {"backend": kernels.backend(), "threads": torch.get_num_threads()}
        return tensors, config

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of the same signal, field and configuration."""
        tensors, config = checkpoint.load_last(path)
        saved = config.get("fitting")
        if saved is None or config.get("format") != "nerf-signal":
            raise UserError(f"{path} holds no signal that could be continued: start again with --overwrite")
        try:
            check_numbers(
                saved, {"step": Range(0, 1e9, whole=True), "seconds": Range(0, 1e9), "total_steps": LENGTH["steps"]}
            )
            check_curve(saved["curve"])
            for what, now in (("field", self.field.to_dict()), ("signal", self.problem.describe())):
                if json.loads(json.dumps(now)) != config[what]:
                    raise UserError(
                        f"{path} was fitted with another {what}: continue with the same file and options, "
                        "or start again with --overwrite"
                    )
            free = {"steps", "minutes", "checkpoint_seconds"}
            mine = asdict(self.config)
            other = [k for k in mine if k not in free and saved["config"].get(k) != mine[k]]
            if other:
                raise UserError(
                    f"{path} was fitted with other settings ({', '.join(other)}): continue with the same, "
                    "or start again with --overwrite"
                )
            checkpoint.fill(self.field, checkpoint.part(tensors, "field"), str(path), given=True)
            for i, state in enumerate(self.states):
                state.m.copy_(tensors[f"adam.{i}.m"])
                state.v.copy_(tensors[f"adam.{i}.v"])
            for name in SAVED:
                setattr(self, name, saved[name])
            before = Length(saved["config"].get("steps"), saved["config"].get("minutes"))
            asked = Length.of(self.config.steps, self.config.minutes)
            length, self.total_steps = resumed(asked, before, self.step, self.seconds, self.total_steps)
            self.config = replace(self.config, steps=length.steps, minutes=length.minutes)
        except MISFITS as error:
            raise UserError(f"{path}: its state is damaged ({brief(error)}): start again with --overwrite") from error
        self.saved = self.step

    def save(self, path: Path) -> None:
        """Write a checkpoint to continue from, unless the fit broke down."""
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            raise UserError(
                f"fitting broke down at step {self.step}: the field holds NaN or infinity; "
                f"{checkpoint.kept(self.saved)}; try a lower learning rate"
            )
        with whole("the save"):
            checkpoint.save(path, *self.state())
            self.saved = self.step


@dataclass
class Fitted:
    """A fitted field and what is needed to give it out as a file again: what a checkpoint holds.

    >>> ramp = nerf.Signal("image", np.linspace(0, 1, 64, dtype=np.float32)[:, None], (8, 8))
    >>> fitted = nerf.fit(ramp, "mlp", nerf.FitConfig(steps=2))
    >>> fitted.save("ramp.safetensors")
    >>> nerf.Fitted.load("ramp.safetensors").signal["shape"]
    [8, 8]
    """

    field: SignalField
    kind: str  # "image", "audio", "video", "shape", ...
    signal: dict[str, Any]  # of the problem's describe()
    fitting: dict[str, Any] | None = None  # seconds, steps, curve

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"field.{name}": t.detach() for name, t in self.field.state_dict().items()}
        config = {"format": "nerf-signal", "kind": self.kind, "signal": self.signal, "field": self.field.to_dict()}
        return tensors, config

    def save(self, path: str | Path) -> None:
        """Write the field alone (a run's own checkpoint also holds what `--resume` needs)."""
        checkpoint.save(path, *self.to_state())

    @staticmethod
    def load(path: str | Path, network: nn.Module | None = None) -> Fitted:
        """Read a fitted field from a checkpoint file, or from the folder that holds one.

        network: the module whose parameters are filled, where a module of your own was fitted.
        """
        path = Path(path)
        path = path / CHECKPOINT if path.is_dir() else path
        return fitted_of_state(*checkpoint.load(path), str(path), network)


def fitted_of_state(
    tensors: dict[str, Tensor], config: dict[str, Any], path: str, network: nn.Module | None = None
) -> Fitted:
    """What `Fitted.to_state` gave, again; path: for what is said of a state that cannot be used."""
    if not isinstance(config, dict) or config.get("format") != "nerf-signal":
        raise UserError(f"{path} holds no fitted signal: expected what `nerf fit` wrote")
    try:
        check_state(tensors, config)
        kind = ModulatedField if "latent" in config["field"] else SignalField
        field = kind.from_dict(config["field"], network)
        checkpoint.fill(field, checkpoint.part(tensors, "field"), path, given=network is not None)
        return Fitted(field.to(kernels.device()), config["kind"], config["signal"], config.get("fitting"))
    except MISFITS as error:
        raise UserError(
            f"{path} does not hold a field this version understands ({brief(error)}): fit it again"
        ) from error


def fit(
    problem: Problem,
    field: nn.Module | FieldChoice | str = "hash",
    config: FitConfig | None = None,
    out: str | Path | OutputFolder | None = None,
    resume: bool = False,
    progress: bool = False,
    overwrite: bool = False,
) -> Fitted:
    """Fit a field to an image, a sound, a video, or to anything else that is a `Problem`.

    field: the name of a kind ("hash", "siren", "fourier", "mlp"), a `FieldChoice`, a `SignalField`, or any module of
    your own that maps unit coordinates [n, n_dims] to values [n, n_channels] and is differentiable in its parameters.
    out: a folder for checkpoint.safetensors, written while fitting; Ctrl-C, SIGTERM and SIGHUP save and stop, and
    `resume` continues as if they never had, to the length of before or to another that the configuration asks for, or
    begins where there is nothing yet; a fit that is there is replaced only with `overwrite`. Raises UserError where
    sizes do not go together, or the error is not finite.

    >>> ramp = nerf.Signal("image", np.linspace(0, 255, 64).astype(np.uint8)[:, None], (8, 8), one=255.0)
    >>> fitted = nerf.fit(ramp, "hash", nerf.FitConfig(steps=50))
    >>> nerf.image_of_field(fitted.field, 16, 16).shape
    (16, 16, 1)
    """
    config = config or FitConfig(minutes=1.0)
    if not resume:
        _ = config.length  # which must be given
    fitter = Fitter(problem, field_for(problem, field, config.seed), config)
    with ExitStack() as until_the_end:
        until_the_end.enter_context(stoppable())
        path = None
        if out is not None:
            if not isinstance(out, OutputFolder):
                names = (CHECKPOINT, checkpoint.previous_path(CHECKPOINT).name)
                before = names if is_checkpoint(Path(out) / CHECKPOINT) else ()
                out = until_the_end.enter_context(OutputFolder.open(Path(out), "fit", resume, overwrite, names, before))
                if overwrite:
                    out.clear()
            path = out.path / CHECKPOINT
            out.claim(path.name, checkpoint.previous_path(path).name)
            if resume and (path.exists() or checkpoint.previous_path(path).exists()):
                fitter.restore(path)
                note(f"going on at step {fitter.step}" + (f" of {fitter.total_steps}" if fitter.total_steps else ""))
            elif resume:
                _ = config.length
                note(f"{out.path}: there is no checkpoint yet; the fit starts from the beginning")
        return _fit(fitter, path, progress)


def _fit(fitter: Fitter, path: Path | None, progress: bool) -> Fitted:
    """Step after step until the length is reached, or the error is small enough."""
    problem, config = fitter.problem, fitter.config
    display = Progress("fitting", shown=progress, start=fitter.step)
    started = time.perf_counter() - fitter.seconds
    saved_at, recent = time.perf_counter(), []
    try:
        while fitter.total_steps is None or fitter.step < fitter.total_steps:
            with whole():  # half a step could not be continued bit for bit
                recent.append(fitter.train_step())
            now = time.perf_counter()
            fitter.seconds = now - started
            if fitter.total_steps is None and fitter.step >= 3:
                fitter.total_steps = CLOCK.steps_to_fill(config.length.seconds, [(fitter.step, fitter.seconds)])
            if fitter.step % 50 == 0:
                mse = sum(recent) / len(recent)
                fitter.curve.append({"step": fitter.step, "seconds": round(fitter.seconds, 2), "mse": mse})
                peak = problem.peak
                words = f"error {mse:.2e}" if peak is None else f"PSNR {psnr_of(mse, peak):.2f} dB"
                display.update(fitter.step, fitter.total_steps, words)
                recent.clear()
                if config.stop_mse is not None and mse <= config.stop_mse:
                    break
            if path is not None and now - saved_at > config.checkpoint_seconds:
                fitter.save(path)
                saved_at = time.perf_counter()
    except KeyboardInterrupt:
        with whole("the save"):
            display.close()
            if path is not None:
                fitter.save(path)
                note(f"stopped at step {fitter.step}; saved")
        raise
    finally:
        display.close()
    fitter.field.bf16 = False
    if path is not None:
        fitter.save(path)
    return Fitted(fitter.field, problem.kind, problem.describe(), {"seconds": fitter.seconds, "step": fitter.step})


def field_for(problem: Problem, field: nn.Module | FieldChoice | str, seed: int = 0) -> SignalField:
    """The field for a problem: as it is, or made from a choice or a kind's name."""
    if isinstance(field, SignalField):
        for name in ("n_dims", "n_channels"):
            if getattr(field, name) != getattr(problem, name):
                raise UserError(
                    f"the field has {name} {getattr(field, name)}, and the {problem.kind} {getattr(problem, name)}"
                )
        return field
    if isinstance(field, nn.Module):
        return SignalField.of(field, problem.n_dims, problem.n_channels)
    # what has no grid of its own is as wide as high, with values around zero
    shape = getattr(problem, "shape", (256,) * problem.n_dims)
    choice = choose(field, shape) if isinstance(field, str) else field
    extents, (low, high) = getattr(problem, "extents", None), getattr(problem, "span", (-1.0, 1.0))
    return SignalField(choice, problem.n_dims, problem.n_channels, extents, low, high, seed)
