"""Marching cubes over a sparse grid: slab after slab, block after block, and no seams.

The grid is a box of points around which one more layer counts as outside, so the surface closes where it meets the
border. One slab of layers is in memory at a time and hands its last to the next, so every point is evaluated once. Each
vertex is known by the number of the grid's edge that it lies on, so blocks agree on vertices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.meshing.table import CORNERS, Table, derive_table

BLOCK = 64  # cells: what one round of array operations works on, small enough for the cache
_CHUNK = 1 << 18  # points or vertices at once: temporary arrays stay small beside the surface
_OFF_END = 1e-3  # how near a vertex comes to the ends of its edge, in edge lengths

Field = Callable[[Tensor], Tensor]  # points [n,3] float32 -> values [n] float32, above 0 inside
# what is known of a grid point; the field is asked about those of the kind ASK alone; no cell with a corner of the kind
# SKIP has faces, so the surface is open there
OUTSIDE, INSIDE, ASK, SKIP = 0, 1, 2, 3
Known = Callable[[slice, slice, slice], NDArray[np.uint8]]  # z, y, x ranges of grid points -> what is known of them


@dataclass(frozen=True)
class Grid:
    """Points origin + step * (i, j, k) with i < shape[0] along x, j < shape[1] along y, k < shape[2] along z."""

    origin: tuple[float, float, float]
    step: float
    shape: tuple[int, int, int]


@dataclass
class Surface:
    """Closed triangle mesh between grid points: vertex v lies `fractions[v]` of the way along edge `edges[v]`.

    An edge's number is 3 * p + axis with p = (k * (shape_y + 2) + j) * (shape_x + 2) + i of its lower end, counted from
    1 (0 is the layer outside). values_low, values_high [v]: the field at both ends.
    """

    grid: Grid
    edges: NDArray[np.int64]  # [v] ascending
    values_low: NDArray[np.float32]  # [v]
    values_high: NDArray[np.float32]  # [v]
    faces: NDArray[np.int32]  # [f,3] counter-clockwise seen from outside

    def low_ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Grid indices [v,3] (x, y, z; -1 is the layer outside) of the edges' lower ends, and the edges' axes [v]."""
        width, height = self.grid.shape[0] + 2, self.grid.shape[1] + 2
        point, axis = np.divmod(self.edges, 3)
        row, x = np.divmod(point, width)
        z, y = np.divmod(row, height)
        return np.stack([x, y, z], axis=1) - 1, axis

    def points(self, fractions: NDArray[np.float32]) -> Tensor:
        """Positions [v,3] float32 at fractions [v] in [0,1] along the edges, in the frame of the grid."""
        low, axis = self.low_ends()
        index = low.astype(np.float64)
        index[np.arange(len(index)), axis] += fractions
        return torch.from_numpy((index * self.grid.step + np.array(self.grid.origin)).astype(np.float32))

    def fractions(self) -> NDArray[np.float32]:
        """Where the field, linear between the ends, is zero, kept off the ends so that no triangle collapses; on the
        border of the grid where one end is the layer outside."""
        low, axis = self.low_ends()
        at = low[np.arange(len(axis)), axis]
        between = self.values_low / (self.values_low - self.values_high)
        between = np.where(at < 0, 1, np.where(at == np.array(self.grid.shape)[axis] - 1, 0, between))
        return np.clip(between, _OFF_END, 1 - _OFF_END).astype(np.float32)

    def refined_points(self, field: Field, n_steps: int) -> Tensor:
        """Positions [v,3] float32 of the refined vertices, worked out a chunk at a time."""
        some = [slice(k, k + _CHUNK) for k in range(0, len(self.edges), _CHUNK)]
        pieces = (Surface(self.grid, self.edges[k], self.values_low[k], self.values_high[k], self.faces) for k in some)
        return torch.cat([piece.points(piece.refined(field, n_steps)) for piece in pieces])

    def refined(self, field: Field, n_steps: int) -> NDArray[np.float32]:
        """Fractions after n_steps of regula falsi along each edge: one evaluation of the field per vertex and step."""
        fractions = self.fractions()
        low_index, axis = self.low_ends()
        at = low_index[np.arange(len(axis)), axis]
        moves = np.flatnonzero((at >= 0) & (at < np.array(self.grid.shape)[axis] - 1))
        a, b = np.zeros(len(moves), np.float32), np.ones(len(moves), np.float32)
        low, high = self.values_low[moves], self.values_high[moves]
        for _ in range(n_steps):
            value = _evaluate(field, self.points(fractions)[moves]).numpy()
            same = (value > 0) == (low > 0)
            a, low = np.where(same, fractions[moves], a), np.where(same, value, low)
            b, high = np.where(same, b, fractions[moves]), np.where(same, high, value)
            fractions[moves] = np.clip(a + (b - a) * (low / (low - high)), _OFF_END, 1 - _OFF_END)
        return fractions


def marching_cubes(field: Field, grid: Grid, known: Known | None = None, outside: float = -1.0) -> Surface:
    """The zero surface of a field on a grid, closed (but for points of the kind SKIP) and with every edge shared by
    exactly two triangles.

    field is asked once about every point of which no more is `known` than ASK (all without it); the others, and what
    lies outside the grid, have the value `outside` (below 0) or, inside, -outside. Memory: one slab of BLOCK + 1 layers
    and the surface. Source: Lorensen and Cline 1987; the cases are derived in nerf.meshing.table.
    """
    if outside >= 0:
        raise ValueError(f"outside must be below 0, got {outside}")
    nx, ny, nz = grid.shape
    origin, cases = torch.tensor(grid.origin, dtype=torch.float64), derive_table()
    xs, ys, zs = ((torch.arange(n) * grid.step + origin[[a]]).float().numpy() for a, n in enumerate(grid.shape))
    strides = np.array([1, nx + 2, (nx + 2) * (ny + 2)])  # between points of the padded grid, along x, y, z
    slab = np.full((BLOCK + 1, ny + 2, nx + 2), outside, np.float32)
    parts: list[Surface] = []
    for z0 in range(0, nz + 1, BLOCK):
        z1 = min(z0 + BLOCK, nz + 1)  # cells between layers z0 to z1 of the padded grid; layer z is grid layer z - 1
        slab[0] = slab[-1] if z0 else outside
        slab[1:] = outside
        layers = slice(z0, min(z1, nz))
        inner = slab[1 : 1 + layers.stop - z0, 1:-1, 1:-1]  # without the layers outside
        for rows, cols in product(_ranges(ny), _ranges(nx)):
            block = inner[:, rows, cols]
            code = np.full(block.shape, ASK, np.uint8) if known is None else known(layers, rows, cols)
            asked = code == ASK
            z, y, x = np.nonzero(asked)
            points = np.stack([xs[cols][x], ys[rows][y], zs[layers][z]], axis=1)
            block[code == INSIDE] = -outside
            block[code == SKIP] = math.nan
            block[asked] = _evaluate(field, torch.from_numpy(points)).numpy()
        for rows, cols in product(_ranges(ny + 1), _ranges(nx + 1)):
            block = slab[: z1 - z0 + 1, rows.start : rows.stop + 1, cols.start : cols.stop + 1]
            part = _march(grid, block, np.array([cols.start, rows.start, z0]) @ strides, strides, cases)
            if part is not None:
                parts.append(part)
    del slab, inner, block
    return _join_parts(grid, parts)


def _evaluate(field: Field, points: Tensor) -> Tensor:
    values = [field(points[k : k + _CHUNK]).float() for k in range(0, len(points), _CHUNK)]
    return torch.nan_to_num(torch.cat(values)) if values else torch.empty(0)


def _ranges(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def _march(
    grid: Grid, values: NDArray[np.float32], first: np.int64, grid_strides: NDArray[np.int64], cases: Table
) -> Surface | None:
    """The surface between the points of one block [z, y, x], vertices in the order in which they were found, or None
    if it does not pass; first: the block's first point in the padded grid, whose strides (x, y, z) are grid_strides."""
    inside = np.ascontiguousarray(values > 0)
    blank = np.isnan(values)
    if not inside.any() or inside.all():
        return None
    nz, ny, nx = inside.shape
    strides = np.array([1, nx, nx * ny])  # of a step along x, y, z
    lo, hi = slice(None, -1), slice(1, None)
    pairs = [((slice(None),) * (2 - a) + (s,) + (slice(None),) * a) for a in range(3) for s in (lo, hi)]
    number = np.empty(3 * inside.size, np.int32)
    crossed = []
    for axis in range(3):
        cross = np.zeros(inside.shape, bool)
        np.not_equal(inside[pairs[2 * axis]], inside[pairs[2 * axis + 1]], out=cross[pairs[2 * axis]])
        cross &= ~blank
        cross[pairs[2 * axis]] &= ~blank[pairs[2 * axis + 1]]
        crossed.append(np.flatnonzero(cross))
    point, axes = np.concatenate(crossed), np.repeat(np.arange(3), [len(c) for c in crossed])
    if not len(point):
        return None
    number[axes * inside.size + point] = np.arange(len(point))
    flat = np.ascontiguousarray(values).ravel()
    low, high = flat[point], flat[point + strides[axes]]

    bits = inside.view(np.uint8)
    case = np.zeros((nz - 1, ny - 1, nx - 1), np.uint8)
    corners = [np.s_[dz : nz - 1 + dz, dy : ny - 1 + dy, dx : nx - 1 + dx] for dx, dy, dz in CORNERS]
    for k, corner in enumerate(corners):
        case |= bits[corner] << np.uint8(k)
    if blank.any():
        for corner in corners:
            case[blank[corner]] = 0
    cell = np.flatnonzero(case.ravel() - np.uint8(1) < 254)  # neither 0 nor 255: unsigned numbers wrap
    kind = case.ravel()[cell]
    row, x = np.divmod(cell, nx - 1)
    z, y = np.divmod(row, ny - 1)
    counts = cases.n_triangles[kind]
    owner = np.repeat(np.arange(len(cell)), counts)
    which = np.arange(len(owner)) + np.repeat(cases.first_triangle[kind] - (np.cumsum(counts) - counts), counts)
    offset = cases.edge_axis * inside.size + cases.edge_base @ strides
    faces = number[((z * ny + y) * nx + x)[owner, None] + offset[cases.triangles[which]]]

    row, x = np.divmod(point, nx)
    z, y = np.divmod(row, ny)
    edges = (first + np.stack([x, y, z], axis=1) @ grid_strides) * 3 + axes
    return Surface(grid, edges, low, high, faces)


def _join_parts(grid: Grid, parts: list[Surface]) -> Surface:
    """One surface; vertices on the border of blocks, which several of them made, become one."""
    if not parts:
        nothing = np.empty(0, np.float32)
        return Surface(grid, np.empty(0, np.int64), nothing, nothing, np.empty((0, 3), np.int32))
    edges, first, again = np.unique(np.concatenate([p.edges for p in parts]), return_index=True, return_inverse=True)
    number = np.split(again.ravel().astype(np.int32), np.cumsum([len(part.edges) for part in parts])[:-1])
    del again
    for part, numbers in zip(parts, number, strict=True):
        part.faces = numbers[part.faces]
    ends = zip(*((p.values_low, p.values_high) for p in parts), strict=True)
    low, high = (np.concatenate(values)[first] for values in ends)
    return Surface(grid, edges, low, high, np.concatenate([p.faces for p in parts]))
