"""Adam (Kingma and Ba 2015): for the parameters of a field, and for the small tensors of corrections."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nerf import kernels
from nerf.fields.radiance import RadianceField
from nerf.kernels import AdamState, AdamStep, GradAccumulator, GridLayout, TableStep
from nerf.training.distributed import ALONE, Ranks

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-15
TABLE_DECAY = 0.2  # of the learning rate
LEVEL_THREADS = 4  # at most so many threads take the table's step level by level: more are idle, for levels are few


def grad_accumulator_of(field: nn.Module) -> GradAccumulator | None:
    """Where the gradient of our field's table is added up; None for other fields, whose gradients lie in `.grad`."""
    if not isinstance(field, RadianceField):
        return None
    table = field.table.data
    if table.device.type != "cpu":
        return GradAccumulator(torch.zeros_like(table))
    return GradAccumulator(torch.from_numpy(np.zeros(table.shape, np.float32)))  # no memory until something is added


class FieldOptimiser:
    """Adam for all parameters of a field. Rows of our field's table that no sample of a batch touched keep still. Of
    several ranks, each takes the step of their mean gradient. table_decay: see `TrainConfig`.

    >>> field = RadianceField()
    >>> optimiser, before = FieldOptimiser(field), field.density_weights[0].clone()
    >>> field.density(torch.zeros(5, 3)).sum().backward()
    >>> optimiser.step(learning_rate=1e-2, step=0)
    >>> torch.equal(before, field.density_weights[0])
    False
    """

    def __init__(
        self,
        field: nn.Module,
        beta1: float = BETA1,
        beta2: float = BETA2,
        epsilon: float = EPSILON,
        ranks: Ranks = ALONE,
        table_decay: float = TABLE_DECAY,
    ) -> None:
        self.field, self.ranks = field, ranks
        self.live = [p for p in field.parameters() if p.requires_grad]
        ours = field if isinstance(field, RadianceField) else None
        # The layers of our field's networks are small: as views of one tensor they take one step together.
        self.layers = [] if ours is None else [p for p in self.live if p is not ours.table]
        self.flat = _as_views_of_one(self.layers)
        self.parameters = [p.data for p in self.live]
        adam = (beta1, beta2), epsilon
        self.flat_state = AdamState.of(self.flat, *adam)
        parts = [_split(moment, self.layers) for moment in (self.flat_state.m, self.flat_state.v)]
        shared = {id(p): AdamState(m, v, *adam) for p, m, v in zip(self.layers, *parts, strict=True)}
        self.states = [shared.get(id(p)) or AdamState.of(p, *adam) for p in self.live]
        if ours is not None and ours.table.requires_grad:
            state, layout = self._state_of(ours.table), ours.config.layout
            state.weight_decay, state.decay_from = table_decay, _first_hashed(layout)
        self.grad_accumulator = grad_accumulator_of(field)
        refresh_half(field)

    def _state_of(self, parameter: nn.Parameter) -> AdamState:
        return next(s for s, live in zip(self.states, self.live, strict=True) if live is parameter)

    def table_step(self, learning_rate: float, step: int) -> TableStep | None:
        """What our field's table is to do with its gradient where that is made: on the CPU, alone, with few threads;
        None elsewhere."""
        ours = self.field if isinstance(self.field, RadianceField) else None
        if ours is None or kernels.on_gpu() or self.ranks.size > 1 or not ours.table.requires_grad:
            return None
        if torch.get_num_threads() > LEVEL_THREADS:
            return None
        return TableStep(self._state_of(ours.table), AdamStep(learning_rate, step + 1, True, ours.table_half, True))

    def step(
        self,
        learning_rate: float,
        step: int,
        rates: Tensor | None = None,
        layers_grad: Tensor | None = None,
        with_table: bool = True,
    ) -> None:
        """Step number `step` (from 0) from the gradients, which are cleared. rates: see `AdamStep`; layers_grad [n]:
        that of `flat`, where the layers' own are not there; with_table: the table has not taken its `table_step`."""
        ours = self.field if isinstance(self.field, RadianceField) else None
        gradients = [p.grad for p in self.layers if p.grad is not None]
        if layers_grad is None and gradients and len(gradients) == len(self.layers):
            layers_grad = torch.cat([g.flatten() for g in gradients])
        if layers_grad is not None:
            self.ranks.mean_gradient(layers_grad)
            kernels.adam_step(self.flat, layers_grad, self.flat_state, AdamStep(learning_rate, step + 1, rates=rates))
            for layer in self.layers:
                layer.grad = None
        for p, state, live in zip(self.parameters, self.states, self.live, strict=True):
            is_table, grad, half = False, live.grad, None
            if ours is not None and self.grad_accumulator is not None and live is ours.table:
                if not with_table:
                    continue
                is_table, grad, half = True, self.grad_accumulator.table, ours.table_half
                self.ranks.mean_rows(grad)
            else:
                self.ranks.mean_gradient(grad)
            if grad is not None:
                kernels.adam_step(p, grad, state, AdamStep(learning_rate, step + 1, is_table, half, is_table, rates))
            live.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored to go on bit for bit."""
        return {f"{i}.{name}": t for i, s in enumerate(self.states) for name, t in (("m", s.m), ("v", s.v))}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors()` gave."""
        for name, t in self.tensors().items():
            t.copy_(tensors[name])
        refresh_half(self.field)


def _as_views_of_one(parameters: list[nn.Parameter]) -> Tensor:
    """Their numbers, one after the other [n]; the parameters become views of it."""
    flat = torch.cat([p.detach().flatten() for p in parameters]) if parameters else torch.zeros(0)
    for p, part in zip(parameters, _split(flat, parameters), strict=True):
        p.data = part
    return flat


def _split(flat: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    """Views of consecutive parts [n] of the shapes of these parameters."""
    parts = flat.split([p.numel() for p in like]) if like else ()
    return [part.view(p.shape) for part, p in zip(parts, like, strict=True)]


def _first_hashed(layout: GridLayout) -> int:
    """The first row of the table that several places may share."""
    return max((end for end, dense in zip(layout.offsets[1:], layout.dense, strict=True) if dense), default=0)


def refresh_half(field: nn.Module) -> None:
    """Make the half-precision copy of our field's table, which native passes read, that of its values."""
    if isinstance(field, RadianceField):
        field.table_half = field.table.detach().half()


class SmallAdam:
    """Adam for one tensor that is given at each step."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.state = AdamState.of(torch.zeros(shape, device=device), (BETA1, BETA2), EPSILON)
        self.n_updates = 0

    def step(self, values: Tensor, grad: Tensor, rate: float) -> None:
        """One step, in place."""
        self.n_updates += 1
        kernels.adam_step(values, grad, self.state, AdamStep(rate, self.n_updates))

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored to go on bit for bit."""
        return {"m": self.state.m, "v": self.state.v, "n_updates": torch.tensor([self.n_updates])}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.state.m, self.state.v = (tensors[name].to(self.state.m.device) for name in "mv")
        self.n_updates = int(tensors["n_updates"])
