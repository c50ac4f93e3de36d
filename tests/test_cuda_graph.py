"""Training steps as CUDA graphs without a GPU: nothing is read back inside, and replayed is this step, not that one.

An emulated GPU has no graphs. The stand-in for one calls the recorded work again, while all that a real one would not
see (the trainer's own numbers) is put back to what it was when the step was recorded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import emulation
import pytest
import second_device
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from nerf import kernels
from nerf.datasets import Keypoints
from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.geometry.space import Ndc, Similarity, Unbounded
from nerf.kernels import cuda_graph
from nerf.training.config import TrainConfig
from nerf.training.loop import Trainer
from nerf.training.stepping import StepPlan, StepResult

FIELD = replace(tiny.FIELD, log2_hashmap_size=7)

# Operations whose result, or the size of it, the CPU has to wait for.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")
READS += ("is_nonzero", "item", "argwhere", "bincount", "repeat_interleave.Tensor")


class Reads(TorchDispatchMode):
    """Raises where an operation would make the CPU wait for the GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split("::")[1]
        read = any(name == r or name.startswith(r + ".") for r in READS)
        if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)):
            read |= any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1])
        if name.startswith("_to_copy"):
            read |= args[0].device.type != torch.device((kwargs or {}).get("device") or args[0].device).type
        if name.startswith("copy_"):
            read |= args[0].device.type != args[1].device.type
        if name.startswith("index"):  # by numbers that are on the CPU
            read |= any(i.device != args[0].device for i in tree_flatten(args[1:])[0] if isinstance(i, torch.Tensor))
        assert not read, f"{name} waits for the GPU"
        return function(*args, **(kwargs or {}))


@contextmanager
def nothing_is_read() -> Iterator[None]:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it waits for the GPU")

    with ExitStack() as stack:
        for name in ("tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "item"):
            stack.enter_context(mock.patch.object(torch.Tensor, name, refuse))
        stack.enter_context(Reads())
        yield


def test_reads_are_noticed() -> None:
    x = torch.arange(4.0)
    meta = torch.device("meta")
    for read in (
        lambda: float(x.sum()),
        lambda: x.tolist(),
        lambda: bool((x > 0).any()),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: x.to(meta),
        lambda: x.unique(),
    ):
        with pytest.raises(AssertionError, match="waits for the GPU"), nothing_is_read():
            read()
    with nothing_is_read():
        x[torch.tensor([1, 2])].cumsum(0)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if emulation.compiler() is None:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(OccupancyGrid, "update", tiny.flicker)  # asking the field everywhere takes long here
    with second_device.use():  # where copies between it and the CPU are seen
        yield


def config(**changes: Any) -> TrainConfig:
    small = {"steps": 20, "batch_samples": 16, "field": FIELD, "occupancy_every": 3, "coarse_steps": 5}
    return tiny.train_config(**(small | {"diffuse_steps": 2} | changes))


def scene_with_everything() -> Any:
    """Masks, depth maps, keypoints and open space, so that every branch of a step is taken."""
    scene = tiny.sphere_scene(3, 16, space=Unbounded(2))
    shape = [(16, 16, 1)] * 3
    ones = [torch.ones(s).numpy() for s in shape]
    some = Keypoints(torch.zeros(4, dtype=torch.int64), torch.arange(6, 10), torch.arange(6, 10), torch.full((4,), 2.0))
    return replace(scene, masks=tiny.store(ones), depths=tiny.store([2.0 * o for o in ones]), keypoints=some)


@pytest.mark.parametrize("everything", [False, True])
def test_a_step_reads_nothing_back(everything: bool, emulated: None) -> None:
    trainer = Trainer(scene_with_everything() if everything else tiny.sphere_scene(3, 16), config())
    trainer.train_step()  # what is prepared once may read
    if everything:
        trainer.sampler.update_importance(0.5)
    now = StepPlan(1, 16, 8.0, True, everything, 1e-2, 0.5)
    trainer.random.manual_seed(0)
    with nothing_is_read():
        result = trainer.learn(now)
    assert result.errors.shape == (16,) and int(result.evaluated) > 0


def test_frames_and_ndc_read_nothing_back() -> None:
    rays = [torch.randn(5, 3), torch.nn.functional.normalize(torch.randn(5, 3), dim=1)]
    frame = Similarity.identity()
    frame.apply(rays[0]), frame.apply_directions(rays[1])
    with nothing_is_read():
        frame.apply(rays[0]), frame.apply_directions(rays[1])
        Ndc(1.0, 1.0).clip_rays(rays[0], rays[1], 0.0, 9.0)


class StandIn:
    """A graph that is none: replays by calling, and sees the trainer as it was when it was recorded."""

    trainer: Trainer | None = None

    def __init__(self, work: Callable[[], Any], random: torch.Generator, pool: Any) -> None:
        assert StandIn.trainer is not None and random is StandIn.trainer.random
        self.work, self.results, self.places = work, None, self.addresses()
        self.then = {name: getattr(StandIn.trainer, name) for name in ("step", "n_rays", "total_steps", "seconds")}

    @staticmethod
    def addresses() -> list[int]:
        """Of all tensors that a step reads or writes and that are there between steps."""
        trainer = StandIn.trainer
        assert trainer is not None and trainer.recorded is not None
        sampler, field, bits = trainer.sampler, trainer.model.field, trainer.model.occupancy.bits
        optimiser = trainer.optimiser
        tensors = [*trainer.parameters, *optimiser.tensors().values(), optimiser.grad_accumulator.table]
        tensors += [sampler.errors, sampler.counts, sampler.blocks, bits.fine, bits.clearance, field.table_half]
        tensors += [trainer.recorded.rates, trainer.recorded.step_at, sampler.cumulative]
        return [0 if t is None else t.data_ptr() for t in tensors]

    def replay(self) -> None:
        trainer = StandIn.trainer
        assert self.addresses() == self.places, "a tensor is not where the graph reads it"
        now = {name: getattr(trainer, name) for name in self.then}
        vars(trainer).update(self.then)
        self.results = self.work()
        vars(trainer).update(now)


def test_replayed_steps_are_the_steps_that_they_stand_for(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as without graphs, through another learning rate, jitter, occupancy, error map and stretch."""
    monkeypatch.setattr(cuda_graph, "_Graph", StandIn)
    scene, found = tiny.sphere_scene(3, 16), []
    for graph in (False, True):
        trainer = StandIn.trainer = Trainer(scene, config(graph=graph, importance_after=4, importance_every=2))
        losses = []
        for _ in range(17):
            trainer.n_rays = 16
            losses.append(trainer.train_step())
        found.append([*trainer.parameters, trainer.sampler.errors, torch.tensor(losses)])
    assert trainer.recorded is not None and trainer.recorded.n_replayed >= 9
    assert len(trainer.recorded.graphs) >= 2
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_the_batch_keeps_its_rays_while_graphs_serve(emulated: None) -> None:
    trainer = Trainer(tiny.sphere_scene(3, 16), config(graph=True, batch_samples=6400))
    for samples, wanted in ((6000.0, 1024), (3000.0, 2048), (12000.0, 512)):
        trainer.n_rays = 1024
        counts = [torch.tensor([n]).to(trainer.device) for n in (0, int(samples))]
        trainer.look_at_numbers(trainer.plan(), StepResult(torch.ones(()), torch.ones(4), *counts, None))
        assert (trainer.n_rays == 1024) == (wanted == 1024), samples


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    made: list[str] = []

    class Graph:
        results = "replayed"

        def __init__(self, work: Callable[[], str], random: torch.Generator, pool: Any) -> None:
            made.append(work())

        def replay(self) -> None:
            pass

    steps = kernels.RecordedSteps(torch.device("cpu"), torch.Generator(), 0.9, 0.99)
    real, cuda_graph._Graph = cuda_graph._Graph, Graph  # type: ignore[assignment, misc]
    try:
        found = [steps.run(key, lambda: "called") for key in "aabababcc"]
        assert found == ["called"] + ["replayed"] + ["called"] + ["replayed"] + ["called"] + ["replayed"] + [
            "called"
        ] * 2 + ["replayed"]
        for key in range(9):
            steps.run(key, lambda: "x"), steps.run(key, lambda: "x")
        assert len(steps.graphs) == cuda_graph.MOST_GRAPHS
    finally:
        cuda_graph._Graph = real  # type: ignore[misc]


def test_graphs_and_waiting_exclude_each_other(emulated: None) -> None:
    with pytest.raises(UserError, match="cannot be recorded as CUDA graphs where each waits for the GPU"):
        Trainer(tiny.sphere_scene(3, 16), config(graph=True, deterministic=True))


def test_steps_are_recorded_where_they_can_be(emulated: None) -> None:
    scene = tiny.sphere_scene(3, 16)

    def recorded(**changes: Any) -> bool:
        return Trainer(scene, config(**changes)).recorded is not None

    assert recorded() and recorded(graph=True) and not recorded(graph=False)
    assert not any(recorded(**one) for one in ({"deterministic": True}, {"refine_poses": True}, {"exposure": True}))
    for graph, wanted in ((None, False), (True, True)):  # what a loss of one's own does beside launching is not known
        trainer = Trainer(scene, config(graph=graph), loss=lambda rendered, batch: rendered.opacities.mean())
        assert (trainer.recorded is not None) == wanted
    kernels.use("reference")
    assert not recorded()


class Broken:
    """A graph whose recording ends in the middle of the backward pass, as on a GPU: what was launched did not run."""

    def __init__(self, work: Callable[[], Any], random: torch.Generator, pool: Any) -> None:
        trainer = StandIn.trainer
        assert trainer is not None
        for p in trainer.optimiser.live:
            p.grad = torch.full_like(p, float("nan"))
        random.manual_seed = None  # type: ignore[assignment, method-assign]  # it still waits for the end
        raise kernels.NotRecorded("operation not permitted when stream is capturing")


def test_where_recording_fails_training_goes_on_step_by_step(
    emulated: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_graph, "_Graph", Broken)
    scene, found = tiny.sphere_scene(3, 16), []
    for graph in (False, None):
        # the occupancy has drawn no random numbers before a step that is begun anew
        trainer = StandIn.trainer = Trainer(scene, config(graph=graph, occupancy_every=100))
        losses = []
        for _ in range(6):
            trainer.n_rays = 16
            losses.append(trainer.train_step())
        found.append([*trainer.parameters, torch.tensor(losses)])
    assert trainer.recorded is None
    said = capsys.readouterr().err
    assert said.count("training goes on without CUDA graphs, for a step cannot be recorded (operation not") == 1
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_no_autograd_graph_outlives_a_step(emulated: None) -> None:
    """One that lives on keeps the stream of its parameters, and breaks the next recording."""
    trainer = Trainer(scene_with_everything(), config())
    for step in range(2):
        result = trainer.learn(StepPlan(step, 16, 8.0, True, False, 1e-2, 0.5))
    gc.collect()
    tensors = [t for t in gc.get_objects() if isinstance(t, torch.Tensor)]
    assert not [t.shape for t in tensors if t.grad_fn is not None] and not result.loss.requires_grad
