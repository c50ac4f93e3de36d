"""Whole training steps as CUDA graphs: the launches of one step are recorded once and then replayed in a single call.

A step may differ from the recorded one by numbers that its kernels read from the GPU's memory (`RecordedSteps.place`),
and by what the tensors hold that it reads. All else (number of rays, length of the march's steps, which losses there
are) makes the step's key: each key has its graph, recorded when it comes a second time in a row. Nothing may be read
back to the CPU while a step is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.kernels import nvrtc
from nerf.kernels.cuda_args import NumbersArgs

MOST_GRAPHS = 4  # kept at a time; a key that went away seldom comes back


class RecordedSteps:
    """The graphs of one training."""

    def __init__(self, device: torch.device, random: torch.Generator, beta1: float, beta2: float) -> None:
        self.random, self.betas = random, (beta1, beta2)
        self.rates = torch.zeros(4, device=device)
        self.step_at = torch.zeros(1, dtype=torch.int32, device=device)
        self.graphs: dict[Hashable, _Graph] = {}
        self.last: Hashable = None
        self.n_replayed = 0

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
        until the next call."""
        graph = self.graphs.get(key)
        if graph is None and key != self.last:
            self.last = key
            return work()
        if graph is None:
            while len(self.graphs) >= MOST_GRAPHS:
                self.graphs.pop(next(iter(self.graphs)))
            graph = self.graphs[key] = _Graph(work, self.random)
        self.last = key
        self.n_replayed += 1
        graph.replay()
        return graph.results


class _Graph:
    """One recorded step. Its tensors live in memory of its own, for as long as it does."""

    def __init__(self, work: Callable[[], Any], random: torch.Generator) -> None:
        self.graph, current, aside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()
        self.graph.register_generator_state(random)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            self.graph.capture_begin(capture_error_mode="thread_local")
            try:
                try:
                    self.results = work()
                except BaseException:
                    with suppress(RuntimeError):  # a recording that broke may not end well: the first error says why
                        self.graph.capture_end()
                    raise
                self.graph.capture_end()
            except RuntimeError as error:
                raise UserError(
                    f"a training step cannot be recorded as a CUDA graph ({' '.join(str(error).split())[:300]}): "
                    "train without graphs"
                ) from error
        current.wait_stream(aside)

    def replay(self) -> None:
        self.graph.replay()
