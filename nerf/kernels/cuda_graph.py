"""Whole training steps as CUDA graphs: the launches of one step are recorded once and then replayed in a single call.

A step may differ from the recorded one by numbers that its kernels read from the GPU's memory (`RecordedSteps.place`),
and by what the tensors hold that it reads. All else (number of rays, length of the march's steps, which losses there
are) makes the step's key: each key has its graph, recorded when it comes a second time in a row. Nothing may be read
back to the CPU while a step is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from nerf.kernels import nvrtc
from nerf.kernels.cuda_args import NumbersArgs

MOST_GRAPHS = 4  # kept at a time; a key that went away seldom comes back


class NotRecorded(Exception):
    """A step could not be recorded, for the reason that the message says; nothing of it was done on the GPU."""


class RecordedSteps:
    """The graphs of one training."""

    def __init__(self, device: torch.device, random: torch.Generator, beta1: float, beta2: float) -> None:
        self.random, self.betas = random, (beta1, beta2)
        self.rates = torch.zeros(4, device=device)
        self.step_at = torch.zeros(1, dtype=torch.int32, device=device)
        self.graphs: dict[Hashable, _Graph] = {}
        self.last: Hashable = None
        self.n_replayed = 0
        # Steps are recorded on a stream of their own, and the one before it runs there as well: autograd remembers on
        # which stream it first met a parameter. Graphs share memory: one's results are read before the next runs.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        if hasattr(torch.autograd.graph, "set_override_stale_capture_stream"):  # of newer torch, for the same
            torch.autograd.graph.set_override_stale_capture_stream(True)

    def place(self, step: int, learning_rate: float, surface_weight: float) -> tuple[Tensor, Tensor]:
        """What changes with every step, written to where a graph reads it, in one launch: rates [4] (learning rate,
        Adam's two corrections, weight of the surface loss), and the step [1] (int32, from 0)."""
        corrections = [1.0 - beta ** (step + 1) for beta in self.betas]
        written = self.rates.data_ptr(), self.step_at.data_ptr()
        args = NumbersArgs(*written, learning_rate, *corrections, surface_weight, step)
        nvrtc.program("cuda_adam.cu").launch("set_numbers", args, 1, 32)
        return self.rates, self.step_at

    def run(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """What `work()` returns, by calling it or by replaying what it launched for the same key; its tensors hold
        until the next call. Raises NotRecorded."""
        graph = self.graphs.get(key)
        if graph is None and key != self.last:
            self.last = key
            with self._aside():
                return work()
        if graph is None:
            while len(self.graphs) >= MOST_GRAPHS:
                self.graphs.pop(next(iter(self.graphs)))
            with self._aside():
                graph = self.graphs[key] = _Graph(work, self.random, self.pool)
        self.last = key
        self.n_replayed += 1
        graph.replay()
        return graph.results

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within it work goes to the stream on which steps are recorded, behind and before all else."""
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)


class _Graph:
    """One recorded step."""

    def __init__(self, work: Callable[[], Any], random: torch.Generator, pool: Any) -> None:
        try:
            self.graph = torch.cuda.CUDAGraph()
            self.graph.register_generator_state(random)
            self.graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self.results = work()
            except BaseException:
                with suppress(RuntimeError):  # a recording that broke may not end well: the first error says why
                    self.graph.capture_end()
                raise
            self.graph.capture_end()
        except RuntimeError as error:
            raise NotRecorded(" ".join(str(error).split())[:300]) from error

    def replay(self) -> None:
        self.graph.replay()
