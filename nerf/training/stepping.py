"""What surrounds a training step: what it is told, how long it takes, how large the next batch is - and what a GPU
makes of it, where nothing waits for numbers and whole steps may be replayed as CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nerf import kernels
from nerf.datasets import Scene
from nerf.errors import UserError, note
from nerf.io import checkpoint
from nerf.io.clock import Clock
from nerf.kernels import RecordedSteps
from nerf.training.config import TrainConfig
from nerf.training.distributed import ALONE, Ranks

if TYPE_CHECKING:
    from nerf.training.loop import Trainer

CLOCK = Clock(warm_up=0.15, margin=0.005, recent=0.1)  # schedules are constant until later than the warm-up
SETTLE_EVERY = 0.02  # of the time, after which the number of steps that fills it is settled anew
GROWTH = 0.55  # of a step's time with the batch, beside 1 for the optimiser and other fixed work (measured)
GPU_GROWTH = 0.15  # the same on a GPU, which many launches of any size keep waiting (estimated: none was measured)
RAY_GRADIENTS = 0.45  # of a step's time, beside 1 without them (measured)
RAYS_TOO_FAR = 1.15  # with graphs: factor by which the batch may miss its size before its rays, and so all, change
READ_EVERY = 16  # steps of a GPU between looks at its numbers, for looking waits for it


@dataclass(frozen=True)
class StepPlan:
    """What one step is told before it begins; rates, step_at: numbers on a GPU, where a recorded step reads them."""

    step: int  # from 0
    n_rays: int
    step_scale: float  # times the march's steps when rendering
    diffuse: bool  # colours are asked for from random directions
    by_importance: bool  # pixels are drawn by their error
    learning_rate: float
    surface: float | Tensor  # weight of the surface loss
    light_rate: float = 0.0  # learning rate of the photos' light
    rates: Tensor | None = None
    step_at: Tensor | None = None

    def shape(self) -> tuple[int, float, bool, bool, bool]:
        """What the launches depend on beside numbers and contents of tensors: a recorded step serves while it stays."""
        return self.n_rays, self.step_scale, self.diffuse, bool(self.surface > 0), self.by_importance


class StepResult(NamedTuple):
    """What a step leaves: its loss, the rays' squared errors [n], and numbers of samples (see RenderedRays)."""

    loss: Tensor
    errors: Tensor
    evaluated: int | Tensor
    kept: int | Tensor
    capacity: int | None


def recorder_of(
    config: TrainConfig, scene: Scene, own: bool, random: torch.Generator, ranks: Ranks = ALONE
) -> RecordedSteps | None:
    """What records the steps of a training as CUDA graphs; None where there is no GPU, where the configuration says
    False, or says nothing and a step cannot be recorded, or might be another each time. scene: where the field is;
    own: the field or the loss is the user's."""
    if config.graph is False or not kernels.on_gpu():
        return None
    if config.deterministic or kernels.backend() == "tinycudann" or not scene.pixels.is_on(kernels.device()):
        why = (
            "steps cannot be recorded as CUDA graphs where each waits for the GPU: leave graph out, or "
            "deterministic and the backend tinycudann, or load fewer pixels than need a file of tiles"
        )
    elif config.refine_poses or config.learns_light:
        why = "steps that learn poses or the photos' light cannot be recorded: leave graph out"
    elif ranks.size > 1:
        why = "steps that several ranks take together cannot be recorded: leave graph out"
    else:  # what a user's own parts do besides launching would not be done again
        why = "own" if own and config.graph is None else ""
    if why and config.graph:
        raise UserError(why)
    return None if why else RecordedSteps(kernels.device(), random, config.beta1, config.beta2)


def run_step(trainer: Trainer, plan: StepPlan) -> StepResult:
    """The result of `trainer.learn(plan)`, called or replayed from what it launched for a plan of the same shape;
    called, from now on, where it cannot be recorded."""
    recorded = trainer.recorded
    if recorded is None:
        return trainer.learn(plan)
    rates, step_at = recorded.place(plan.step, plan.learning_rate, float(plan.surface))
    here = replace(plan, surface=rates[3] if plan.surface > 0 else 0.0, rates=rates, step_at=step_at)
    try:
        return recorded.run(plan.shape(), lambda: trainer.learn(here))
    except kernels.NotRecorded as error:
        note(f"training goes on without CUDA graphs, for a step cannot be recorded ({error})")
        # what the broken recording left: gradients that were never computed, a generator that waits for its end
        trainer.recorded = None
        for p in trainer.optimiser.live:
            p.grad = None
        trainer.random = torch.Generator(trainer.device).manual_seed(trainer.random.initial_seed())
        return trainer.learn(plan)


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Within, sums on a GPU do or do not depend on the order of their terms; afterwards as before."""
    before = kernels.is_deterministic()
    kernels.be_deterministic(wanted)
    try:
        yield
    finally:
        kernels.be_deterministic(before)


class Meter:
    """Counts what steps did, on all ranks. On a GPU numbers stay there and are read every so many steps, for reading
    waits for it."""

    def __init__(self, device: torch.device, every: int, ranks: Ranks = ALONE) -> None:
        self.every, self.ranks = every, ranks
        self.samples = {"rays": 0, "evaluated": 0, "trained": 0}
        self.unread = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2)]
        self.mse, self.warned_overflow = float("inf"), False
        self.saved: int | None = None  # step of the last checkpoint of this training

    def read(self, plan: StepPlan, result: StepResult) -> float | None:
        """Add a step. Returns how many samples with gradient its work amounts to, one only evaluated counting a third;
        None where it was not looked at.

        Raises UserError where the loss or an error is no number.
        """
        self.samples["rays"] += plan.n_rays * self.ranks.size
        self.unread[0] += result.evaluated
        self.unread[1] += result.kept
        if (plan.step + 1) % self.every and plan.step > self.every:
            return None
        kept, numbers = int(result.kept), (float(result.loss), float(result.errors.mean()))
        loss, self.mse, all_kept, evaluated = self.ranks.mean([*numbers, kept, int(result.evaluated)])
        for value in (loss, self.mse):
            if not math.isfinite(value):
                raise self.ranks.said_by_all(broken(plan.step, f"the loss is {value:g}", self.saved))
        if result.capacity is not None and kept > result.capacity and not self.warned_overflow:
            self.warned_overflow = True
            lost = kept - result.capacity
            note(f"step {plan.step}: sample buffer overflow, {lost} of {kept} samples got no gradient")
        self.flush()
        return all_kept + evaluated / 3

    def flush(self) -> None:
        """Bring `samples` up to date."""
        means = self.ranks.mean([int(count) for count in self.unread])
        for name, count, mean in zip(("evaluated", "trained"), self.unread, means, strict=True):
            self.samples[name] += round(mean * self.ranks.size)
            count.zero_()


def broken(step: int, what: str, saved: int | None) -> UserError:
    """What is said of a training that gives no numbers any more; saved: the step of its last checkpoint."""
    return UserError(
        f"training broke down at step {step}: {what}; {checkpoint.kept(saved)}; try a lower learning rate, or look for "
        "broken images and poses, or at a loss and field of your own"
    )


def next_n_rays(n_rays: int, wanted: float, spent: float, most: int, steady: float = 1.0) -> int:
    """How many rays do the wanted work if so many did what was spent: a multiple of 64 from 256 to `most`, at most
    twice as many as now; as many as now where it is within a factor `steady`.

    >>> next_n_rays(1024, wanted=30000, spent=20000, most=1 << 16)
    1536
    """
    n = n_rays * min(2.0, wanted / max(spent, 1))
    n = int(min(max(n, 256), most)) // 64 * 64
    return n_rays if 1 / steady < n / n_rays < steady else n
