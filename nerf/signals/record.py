"""Signal: values on a regular grid, kept as the file had them, and drawn by index."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError, brief
from nerf.io.arrays import read_npy
from nerf.io.text import lines_of
from nerf.signals.fields import SignalField

IN_MEMORY = 1 << 28  # bytes of float32 up to which values are converted once, instead of batch by batch


class Problem(Protocol):
    """What `nerf.fit` can fit a field to: it draws its batches and says how wrong the field is there.

    `Signal` is one; examples/own_signal.py and examples/equations.py write others. It may also have `shape`, `extents`
    and `span` as a Signal has, from which a field that is named by its kind takes its size.

    >>> ramp = nerf.Signal("image", np.linspace(0, 1, 64, dtype=np.float32)[:, None], (8, 8))
    >>> problem: nerf.Problem = ramp
    >>> field = nerf.SignalField(nerf.FieldChoice("mlp"), problem.n_dims, problem.n_channels)
    >>> minimised, shown = problem.loss(field, 16, torch.Generator())
    >>> minimised.requires_grad, shown.requires_grad
    (True, False)
    """

    kind: str  # "image", "audio", ...: what `nerf sample` does with the result
    peak: float | None  # the mean squared error is shown as PSNR against this; None: shown as it is

    @property
    def n_dims(self) -> int: ...

    @property
    def n_channels(self) -> int: ...

    def loss(self, field: SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """(what is minimised, what is shown): scalars; the second is a mean squared error without regularisers."""

    def describe(self) -> dict[str, Any]:
        """JSON-able: what `nerf sample` needs, and by which a run is recognised when it is continued."""


@dataclass
class Signal:
    """Values [n, n_channels] on a grid of `shape` in row-major order, in the type of the file, in memory or mapped.

    Coordinates are unit coordinates u in [0,1]^d in the order x, y, t (the last axis of `shape` first), at the centres
    of cells: pixel (row i, column j) is at ((j + 0.5)/w, (i + 0.5)/h). A field's values are
    `(value - zero) / (one - zero)`.

    >>> signal = nerf.Signal("image", np.array([[0], [51], [102], [255]], np.uint8), (2, 2), one=255.0)
    >>> signal.coordinates(torch.tensor([1])), signal.targets(torch.tensor([1]))
    (tensor([[0.7500, 0.2500]]), tensor([[0.2000]]))
    """

    kind: str
    values: np.ndarray  # [n, c] uint8, uint16, int16, int32, float16 or float32
    shape: tuple[int, ...]
    zero: float = 0.0  # what in the file is 0 for the field, and what is 1
    one: float = 1.0
    peak: float | None = 1.0
    span: tuple[float, float] = (0.0, 1.0)  # between which the field's values lie
    known: Tensor | None = None  # int64 [m]: the only values to learn from
    meta: dict[str, Any] = field(default_factory=dict)  # name, colour space, rate: what the file is written from again

    def __post_init__(self) -> None:
        self._ready: Tensor | None = None
        if self.known is None and self.values.size * 4 <= IN_MEMORY:
            self._ready = self._converted(self.values)

    @property
    def n_dims(self) -> int:
        return len(self.shape)

    @property
    def n_channels(self) -> int:
        return int(self.values.shape[1])

    @property
    def n_known(self) -> int:
        return len(self.values) if self.known is None else len(self.known)

    @property
    def extents(self) -> tuple[float, ...]:
        """Lengths of the grid's sides in the order of the coordinates; pixels are square, and the longest side is 1."""
        longest = max(self.shape)
        return tuple(side / longest for side in reversed(self.shape))

    def coordinates(self, indices: Tensor) -> Tensor:
        """Unit coordinates [m,d] of flat indices [m]."""
        columns = []
        for side in reversed(self.shape):  # float32 holds every index of a side, but not every flat index
            columns.append((torch.remainder(indices, side).float() + 0.5) / side)
            indices = torch.div(indices, side, rounding_mode="floor")
        return torch.stack(columns, dim=1)

    def targets(self, indices: Tensor) -> Tensor:
        """Values [m,c] as the field gives them, float32."""
        if self._ready is not None:
            return self._ready.index_select(0, indices)
        return self._converted(self.values[indices.numpy()])

    def _converted(self, values: np.ndarray) -> Tensor:
        # float64 on the way: 32-bit integers do not fit into a float32 before they are scaled
        wide = values.astype(np.float64 if values.dtype == np.int32 else np.float32)
        return torch.from_numpy(((wide - self.zero) / (self.one - self.zero)).astype(np.float32))

    def draw(self, batch: int, random: torch.Generator) -> Tensor:
        """Flat indices of a batch: one from each of `batch` equal parts of what is known, so that a batch covers all
        of it evenly, in the order of memory; everything where it holds no more than that."""
        n = self.n_known
        if n <= batch:
            places = torch.arange(n)
        else:
            parts = torch.arange(batch, dtype=torch.float64)
            parts += torch.rand(batch, generator=random, dtype=torch.float64)
            places = (parts * (n / batch)).long().clamp_(max=n - 1)
        return places if self.known is None else self.known[places]

    def loss(self, field: SignalField, batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mean squared error of a random batch, in units of the scale: to learn by, and to show."""
        indices = self.draw(batch, random)
        device = field.device
        mse = field.mse(self.coordinates(indices).to(device), self.targets(indices).to(device))
        return mse, mse.detach()

    def describe(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, JSON-able."""
        return {
            "shape": list(self.shape),
            "n_channels": self.n_channels,
            "dtype": str(self.values.dtype),
            "zero": self.zero,
            "one": self.one,
            "n_known": self.n_known,
            **self.meta,
        }

    def to_values(self, field_values: np.ndarray) -> np.ndarray:
        """What a field gives [..., c] in the type of the file: scaled back, and integers rounded and clipped."""
        return to_values(field_values, self.values.dtype, self.zero, self.one)


def centres(n: int) -> Tensor:
    """Unit coordinates [n] of the centres of n cells."""
    return (torch.arange(n).float() + 0.5) / n


def unit_grid(y: Tensor, x: Tensor) -> Tensor:
    """u [h*w, 2] of the points of a grid with rows at y [h] and columns at x [w], row by row."""
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).reshape(-1, 2)


def to_values(field_values: np.ndarray, dtype: np.dtype, zero: float, one: float) -> np.ndarray:
    """See `Signal.to_values`."""
    wide = field_values.astype(np.float64) * (one - zero) + zero
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        wide = np.clip(np.rint(wide), limits.min, limits.max)
    return wide.astype(dtype)


def check_file(path: Path, expected: str) -> None:
    """Raises UserError where there is no file at path, or an empty one; expected: what should be there."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected {expected}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; expected {expected.partition(' (')[0]}")


def check_finite(path: Path, values: np.ndarray, what: str = "values") -> None:
    """Raises UserError where a number that was read from path is NaN or infinite."""
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds {what} that are no finite numbers (NaN or infinity): repair the file")


def read_array(path: Path, what: str, expected: str = "", text: bool = False) -> np.ndarray:
    """The array of a .npy, or with `text` of a text file of any other name; UserError where there is none."""
    try:
        if text and path.suffix.lower() != ".npy":
            return np.loadtxt(lines_of(path.read_bytes()))
        return read_npy(path)
    except UserError as error:
        raise UserError(f"{error}{expected}") from error
    except Exception as error:  # numpy raises whatever its parser comes upon
        raise UserError(f"{path} cannot be read as {what} ({brief(error)}){expected}") from error
