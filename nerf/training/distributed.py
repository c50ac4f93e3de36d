"""Several processes that train one field together, each on pixels of its own: data parallel on torch.distributed.

A launcher (torchrun, or another that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) starts them. Every rank holds
the whole scene, field and optimiser; in each step the gradients are averaged, so that all take the same step of Adam.
What is decided from numbers or from a clock is decided alike on all: from means over the ranks, or by rank 0.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError, brief
from nerf.io.interrupts import Stopped, pending, whole

if TYPE_CHECKING:
    from nerf.training.config import TrainConfig
    from nerf.training.pixel_sampler import Sampler

JOIN_SECONDS = 300.0  # for all ranks to come
WAIT_SECONDS = 1800.0  # for the others at any later point: they may load photos from slower disks
INDEX_BYTES = 4  # of a row's number, where rows travel


class SaidByRank0(UserError):
    """What ends all ranks alike, so that one of them says it."""


class Ranks:
    """The processes of a training and what they exchange. This class itself is a training of one process, in which all
    of it is nothing; `Group` is one of several."""

    rank, size = 0, 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def own(self, config: TrainConfig) -> TrainConfig:
        """The configuration with the seed of what this rank draws."""
        return config

    def draw_own(self, random: torch.Generator, seed: int, step: int) -> None:
        """From here on the numbers of a step are this rank's own; before, all ranks drew the same."""

    def mean(self, numbers: Sequence[float]) -> list[float]:
        """The means of the ranks' numbers."""
        return list(numbers)

    def mean_gradient(self, gradient: Tensor | None) -> None:
        """Make a gradient the mean of the ranks' (in place)."""

    def mean_gradients(self, parameters: Iterable[Tensor]) -> None:
        """`mean_gradient` of all that have one."""

    def mean_rows(self, gradient: Tensor) -> None:
        """`mean_gradient` of a table's [n,c], of which a step touches some rows."""

    def mean_errors(self, sampler: Sampler) -> None:
        """Make the error map the mean of the ranks': all of them draw by the same one."""

    def of_first(self, value: Any) -> Any:
        """Rank 0's value (anything that can be pickled) on all ranks."""
        return value

    def agree(self, seconds: float, due: bool) -> tuple[float, bool]:
        """Rank 0's clock, and whether it finds a checkpoint due. Raises `Stopped` on all ranks where any one was asked
        to stop."""
        return seconds, due

    def whole(self) -> AbstractContextManager[None]:
        """Within, signals wait for `agree`, for ranks that stop at different steps would wait for each other."""
        return nullcontext()

    def together(self) -> AbstractContextManager[None]:
        """All ranks come to the end of the block, or all raise what one of them did."""
        return nullcontext()

    def check_same(self, facts: Mapping[str, object]) -> None:
        """UserError, on all ranks, where one has other facts (what it is -> value) than rank 0."""

    def said_by_all(self, error: UserError) -> UserError:
        """An error that all ranks raise at the same place."""
        return error

    def close(self) -> None:
        """Leave the group, at the end."""


ALONE = Ranks()


def launched() -> tuple[int, int, int] | None:
    """(rank, number of ranks, rank on this machine) where a launcher has started this process as one of several; None
    where it is alone. UserError for variables that are no such numbers."""
    if not os.environ.get("WORLD_SIZE") or not os.environ.get("RANK"):
        return None
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
        if not 0 <= rank < size or local < 0:
            raise ValueError
    except ValueError:
        raise UserError(
            f"RANK {os.environ['RANK']!r} and WORLD_SIZE {os.environ['WORLD_SIZE']!r} in the environment: expected two "
            "whole numbers, the first below the second, as torchrun sets them; unset both to train in one process"
        ) from None
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if size > 1 and missing:
        raise UserError(
            f"WORLD_SIZE is {size} and {missing[0]} is not set: start with torchrun, or set RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT for every process"
        )
    return (rank, size, local) if size > 1 else None


def join(join_seconds: float = JOIN_SECONDS, wait_seconds: float = WAIT_SECONDS) -> Ranks:
    """The group that a launcher has started this process in, once all have come; `ALONE` where there is none. On
    machines with GPUs each rank must take its own (`take_gpu`) before. UserError where not all come in time."""
    place = launched()
    return ALONE if place is None else Group(*place[:2], join_seconds, wait_seconds)


def take_gpu() -> None:
    """Show this process the one GPU that is its own, of those it may see; to be called before anything looks for
    one."""
    place = launched()
    if place is None:
        return
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()  # asks the driver's library, and starts nothing on a GPU
    devices = seen.split(",") if seen else [str(i) for i in range(count)]
    if count == 0 or not devices:
        return
    if place[2] >= len(devices):
        raise UserError(
            f"rank {place[2]} of this machine has no GPU, for there are {len(devices)}: start at most as many ranks a "
            "machine (--nproc-per-node), or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on its processors"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[place[2]]


class Group(Ranks):
    """See `Ranks`. Gradients travel by NCCL where they are on GPUs, all else by gloo."""

    def __init__(self, rank: int, size: int, join_seconds: float, wait_seconds: float) -> None:
        import torch.distributed as dist

        if not dist.is_available():
            raise UserError("this build of torch cannot train in several processes: install one with torch.distributed")
        self.rank, self.size, self.seconds, self._dist, self._nccl = rank, size, wait_seconds, dist, None
        try:
            patience = timedelta(seconds=join_seconds)
            store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=patience))  # type: ignore[attr-defined]
            # torchrun's store outlives its workers: those of a restart must not find where dead ones listened
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"nerf/{attempt}", store)  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
            self._gloo = dist.new_group(backend="gloo", timeout=timedelta(seconds=wait_seconds))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"rank {rank} waited {join_seconds:.0f} s for all of the {size} ranks to come to "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({brief(error)}): start all of them, with "
                "the same number of ranks, address and port"
            ) from None
        self.bytes_sent = 0  # of gradients, by the formulas of docs/scale.md

    def close(self) -> None:
        """Leave the group; a process that ends within it may crash on its way out."""
        with suppress(RuntimeError):
            self._dist.destroy_process_group()

    @contextmanager
    def _talk(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise SaidByRank0(
                f"the ranks lost each other: one has ended, or did not answer within {self.seconds:.0f} s "
                f"({brief(error)}); the last checkpoint is kept, and --resume goes on from it"
            ) from None

    def _for(self, tensor: Tensor) -> Any:
        """The group that carries a tensor of this device."""
        if tensor.device.type != "cuda" or not self._dist.is_nccl_available():
            return self._gloo
        if self._nccl is None:
            self._nccl = self._dist.new_group(backend="nccl", timeout=timedelta(seconds=self.seconds))
        return self._nccl

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which are of one shape."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._talk():
            self._dist.all_gather(parts, tensor, group=self._for(tensor))
        return parts

    def _gathered_objects(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        with self._talk():
            self._dist.all_gather_object(values, value, group=self._gloo)
        return values

    # ---- numbers of its own

    def own(self, config: TrainConfig) -> TrainConfig:
        return replace(config, seed=mixed(config.seed, self.rank) >> 33)

    def draw_own(self, random: torch.Generator, seed: int, step: int) -> None:
        random.manual_seed(mixed(seed, step, self.rank) >> 1)

    # ---- what is decided

    def mean(self, numbers: Sequence[float]) -> list[float]:
        parts = self._gathered(torch.tensor(list(numbers), dtype=torch.float64))
        return [float(x) for x in torch.stack(parts).mean(dim=0)]  # a NaN of one rank is one on all

    def of_first(self, value: Any) -> Any:
        return self._gathered_objects(value if self.is_first else None)[0]

    def agree(self, seconds: float, due: bool) -> tuple[float, bool]:
        parts = self._gathered(torch.tensor([seconds, float(due), float(pending())], dtype=torch.float64))
        if asked := max(int(part[2]) for part in parts):
            raise Stopped(signal.Signals(asked))
        return float(parts[0][0]), bool(parts[0][1])

    def whole(self) -> AbstractContextManager[None]:
        return whole()

    @contextmanager
    def together(self) -> Iterator[None]:
        said = None
        try:
            yield
        except UserError as error:
            said = str(error)
        told = self._gathered_objects(said)
        for rank, words in enumerate(told):
            if words is not None:
                raise SaidByRank0(words if rank == 0 else f"rank {rank}: {words}")

    def check_same(self, facts: Mapping[str, object]) -> None:
        first, *others = self._gathered_objects({name: str(value) for name, value in facts.items()})
        for rank, theirs in enumerate(others, 1):
            for name in first | theirs:
                mine, its = first.get(name, "none"), theirs.get(name, "none")
                if mine != its:
                    raise SaidByRank0(
                        f"rank {rank} has another {name} than rank 0 ({its[:80]}, not {mine[:80]}): all ranks need the "
                        "same data, options, version and kind of machine"
                    )

    def said_by_all(self, error: UserError) -> UserError:
        return SaidByRank0(str(error))

    # ---- what is averaged

    def mean_gradient(self, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        with self._talk():
            self._dist.all_reduce(gradient, group=self._for(gradient))
        gradient /= self.size
        self.bytes_sent += dense_bytes(self.size, gradient.numel() * gradient.element_size())

    def mean_gradients(self, parameters: Iterable[Tensor]) -> None:
        for p in parameters:
            self.mean_gradient(p.grad)

    def mean_rows(self, gradient: Tensor) -> None:
        rows = touched(gradient)
        counts = [int(n) for n in self._gathered(torch.tensor([len(rows)]))]
        row_bytes = gradient.shape[1] * gradient.element_size() + INDEX_BYTES
        as_rows = (self.size - 1) * max(counts) * row_bytes
        if as_rows >= dense_bytes(self.size, gradient.numel() * gradient.element_size()):
            self.mean_gradient(gradient)
            return
        n = len(rows)  # lists are filled up to the longest, for all must be of one length
        numbers = torch.zeros(max(counts), dtype=torch.int32, device=gradient.device)
        values = torch.zeros(max(counts), gradient.shape[1], device=gradient.device)
        numbers[:n] = rows
        torch.index_select(gradient, 0, rows, out=values[:n])
        values /= self.size
        parts = list(zip(self._gathered(numbers), self._gathered(values), counts, strict=True))
        if self.size == 2:  # a sum of two is the same in either order
            gradient.index_copy_(0, rows, values[:n])
            parts = [parts[1 - self.rank]]
        else:  # on all ranks in the order of the ranks, which gives the same bits
            gradient.index_fill_(0, rows, 0.0)
        for where, theirs, k in parts:
            gradient.index_add_(0, where[:k].long(), theirs[:k])
        self.bytes_sent += as_rows

    def mean_errors(self, sampler: Sampler) -> None:
        for name in ("errors", "counts"):
            held = getattr(sampler, name)
            with self._talk():
                self._dist.all_reduce(held, group=self._for(held))
            held /= self.size  # its scale does not matter: pixels are drawn by errors over counts


def touched(table: Tensor) -> Tensor:
    """Numbers [k] of the rows of a table [n,c] of float32 that are not all zero."""
    if table.device.type == "cpu" and table.shape[1] == 4 and table.is_contiguous():
        pairs = table.numpy().view(np.int64)  # two numbers each: read so in a fourth of the time
        return torch.from_numpy(np.flatnonzero(pairs[:, 0] | pairs[:, 1]))
    return (table != 0).any(dim=1).nonzero()[:, 0]


def dense_bytes(size: int, n_bytes: int) -> int:
    """Bytes that each rank sends in a ring's sum of n_bytes."""
    return 2 * (size - 1) * n_bytes // size


def mixed(*numbers: int) -> int:
    """An integer hash of 64 bits (splitmix64), which gives every rank and step a stream of its own."""
    mask, x = (1 << 64) - 1, 0
    for number in numbers:
        x = (x + 0x9E3779B97F4A7C15 + (number & mask)) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
    return x
