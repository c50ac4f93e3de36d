"""Which cells of the scene can hold anything, so that rays skip the rest (Mueller et al. 2022, appendix E)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nerf import kernels
from nerf.errors import Range, check_numbers

DECAY = 0.8  # of a cell's remembered density at each update, so that cleared space is forgotten
MAX_ALPHA = 0.01  # a cell is occupied above this opacity over one step, or above half the mean if that is smaller

RESOLUTION = Range(4, 512, whole=True)  # cells along an edge
GRID = {"n_levels": Range(1, 16, whole=True), "resolution": RESOLUTION}


class OccupancyGrid:
    """Nested levels of R^3 cells; level k covers the scene box [-2^k, 2^k]^3 and serves where no finer level reaches.

    `values` [levels*R^3] float: decayed maximum of density seen in a cell; `candidates`: cells that may be occupied at
    all (seen by a camera, inside the silhouettes, not served by a finer level); `occupied` [levels,R,R,R] bool, indexed
    [level,z,y,x].

    >>> grid = nerf.OccupancyGrid(resolution=32)
    >>> grid.restrict(lambda centres, sizes: centres.norm(dim=1) < 0.5)  # a ball
    >>> round(float(grid.occupied.float().mean()) * 8, 1)  # its volume, of the box's 8
    0.5
    """

    def __init__(self, n_levels: int = 1, resolution: int = 128, initial_density: float = 0.0) -> None:
        check_numbers({"n_levels": n_levels, "resolution": resolution}, GRID, "OccupancyGrid: ")
        self.n_levels, self.resolution = n_levels, resolution
        n = n_levels * resolution**3
        self.values = torch.full((n,), initial_density)  # a cell not yet sampled counts as the untrained field
        self.candidates = torch.ones(n, dtype=torch.bool)
        self._cells: Tensor | None = None  # indices of the candidates
        self.bits: kernels.OccupancyBits | None = None
        if n_levels > 1:
            inner = torch.zeros((resolution,) * 3, dtype=torch.bool)
            q = resolution // 4
            inner[q:-q, q:-q, q:-q] = True
            for level in range(1, n_levels):
                self.candidates[level * resolution**3 : (level + 1) * resolution**3] = ~inner.reshape(-1)
        self._set(self.candidates.clone())

    def to(self, device: torch.device) -> OccupancyGrid:
        """Move it, in place: to where the field is that it belongs to."""
        self.values, self.candidates, self._cells = self.values.to(device), self.candidates.to(device), None
        self._set(self.occupied.reshape(-1).to(device))
        return self

    def _set(self, flat: Tensor) -> None:
        r = self.resolution
        self.occupied = flat.reshape(self.n_levels, r, r, r)
        bits = kernels.pack_occupancy(self.occupied)
        if bits is not None and self.bits is not None and self.bits.fine.device == bits.fine.device:
            self.bits.fine.copy_(bits.fine)  # in place: a recorded step of training reads them where they were
            self.bits.clearance.copy_(bits.clearance)
        else:
            self.bits = bits

    def cell_centres(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Scene positions [n,3] of the centres of flat cell indices [n], and the cells' edge lengths [n]."""
        r = self.resolution
        level, rest = cells // r**3, cells % r**3
        index = torch.stack([rest % r, rest // r % r, rest // (r * r)], dim=1)
        extent = torch.pow(2.0, level.float())
        return ((index.float() + 0.5) * (2.0 / r) - 1.0) * extent[:, None], extent * (2.0 / r)

    def restrict(self, possible: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Rule out candidates for good: `possible(centres [n,3], sizes [n]) -> bool [n]` says which cells can hold
        anything."""
        cells = self.candidates.nonzero()[:, 0]
        for chunk in cells.split(1 << 21):
            self.candidates[chunk] = possible(*self.cell_centres(chunk))
        self._cells = None
        self._set(self.candidates.clone())

    @torch.no_grad()
    def update(
        self,
        density: Callable[[Tensor], Tensor],
        step_size: float,
        generator: torch.Generator,
        budget: int = 1 << 18,
        everywhere: bool = False,
    ) -> None:
        """Sample the density at a random point of up to `budget` candidate cells, half of them occupied ones (of all
        when `everywhere`), and threshold anew. `step_size`: the march's step in a cell."""
        cells = self._candidate_cells()
        if not everywhere and len(cells) > budget:
            occupied = kernels.places_set(self.occupied.reshape(-1))
            half, device = (budget // 2,), cells.device
            anywhere = cells[torch.randint(len(cells), half, generator=generator, device=device)]
            if len(occupied) > budget // 2:
                occupied = occupied[torch.randint(len(occupied), half, generator=generator, device=device)]
            cells = torch.cat([anywhere, occupied]).unique()
        for chunk in cells.split(1 << 20):
            centres, sizes = self.cell_centres(chunk)
            shifts = torch.rand(centres.shape, generator=generator, device=centres.device) - 0.5
            points = centres + shifts * sizes[:, None]
            sampled = density(points).nan_to_num(nan=math.inf)  # a broken field must not look like empty space
            self.values[chunk] = torch.maximum(self.values[chunk] * DECAY, sampled)
        self.threshold(step_size)

    def threshold(self, step_size: float) -> None:
        """Mark as occupied the candidates whose opacity over one step exceeds min(MAX_ALPHA, half the mean over
        candidates)."""
        self._set(kernels.threshold_cells(self.values, self.candidates, step_size, MAX_ALPHA))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds; `restore` takes it back."""
        return {"values": self.values, "candidates": self.candidates, "occupied": self.occupied}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave, onto this grid."""
        self.values, self.candidates, self._cells = tensors["values"], tensors["candidates"], None
        self._set(tensors["occupied"].reshape(-1))

    def _candidate_cells(self) -> Tensor:
        if self._cells is None:
            self._cells = kernels.places_set(self.candidates)
        return self._cells
