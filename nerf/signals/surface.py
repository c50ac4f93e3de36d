"""Fitted shapes back as surfaces: meshes in the file's own frame, their distance to the truth, and pictures of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.errors import Range, UserError, check_numbers
from nerf.geometry.triangles import Triangles
from nerf.meshing.clean import Limits, compact, keep_faces, vertex_normals
from nerf.meshing.evaluation import MeshScores, evaluate_mesh
from nerf.meshing.marching import ASK, INSIDE, OUTSIDE, Grid, marching_cubes
from nerf.signals.fields import SignalField
from nerf.signals.shape import distances_at
from nerf.signals.solid import Solid

if TYPE_CHECKING:
    import trimesh

BLOCK = 8  # grid points a side, of which all are skipped where the field says that the surface is far
_SAFE = 1.5  # how wrong the field may be about that
GRID = Range(8, 2048, whole=True)  # points along the longest side
CELLS = 128  # a side of the grid that inside and outside are compared on
_SMALL = 0.01  # of the largest part's faces: what floats about below that is dropped


@dataclass(frozen=True)
class Placed:
    """Where the unit frame of a fitted shape lies in the file's: p = low + side x; of `Shape.describe()`."""

    low: tuple[float, float, float]
    sides: tuple[float, float, float]
    signed: bool

    @staticmethod
    def of(signal: dict[str, Any]) -> Placed:
        return Placed(tuple(signal["low"]), tuple(signal["sides"]), bool(signal["signed"]))

    @property
    def side(self) -> float:
        return max(self.sides)


def mesh_of_field(field: SignalField, signal: dict[str, Any], grid: int = 256) -> trimesh.Trimesh:
    """The mesh of a fitted shape in the file's own frame, of an unsigned one a shell two grid steps thick.

    grid: points along the longest side of its box; the field is asked only in blocks that the surface may pass.
    """
    import trimesh

    check_numbers({"grid": grid}, {"grid": GRID}, "--")
    placed = Placed.of(signal)
    extents = np.array(placed.sides) / placed.side
    step = 1.0 / (grid - 1)
    nx, ny, nz = (max(2, int(np.ceil(e / step)) + 1) for e in extents)
    level = 0.0 if placed.signed else step
    lattice = Grid((0.0, 0.0, 0.0), step, (nx, ny, nz))
    known = _known(field, lattice, level)

    def ask(points: Tensor) -> Tensor:
        return level - distances_at(field, points)

    surface = marching_cubes(ask, lattice, lambda z, y, x: known[z, y, x])
    if not len(surface.faces):
        raise UserError("the fitted field has no surface in its box: fit it for longer")
    faces = torch.from_numpy(surface.faces)
    vertices = surface.refined_points(ask, 2)
    keep, _ = keep_faces(vertices, faces, Limits(_SMALL), cavities=True)
    used, faces = compact(faces[keep], len(vertices))
    vertices = vertices[used].double() * placed.side + torch.tensor(placed.low, dtype=torch.float64)
    normals = vertex_normals(vertices - vertices.mean(dim=0), faces)
    return trimesh.Trimesh(vertices.numpy(), faces.numpy(), vertex_normals=normals.numpy(), process=False)


def _known(field: SignalField, grid: Grid, level: float) -> NDArray[np.uint8]:
    """[z,y,x] what is known of the grid's points from one value in the middle of each block."""
    counts = [-(-n // BLOCK) for n in grid.shape]
    middles = [((torch.arange(c) + 0.5) * BLOCK - 0.5) * grid.step for c in counts]
    z, y, x = torch.meshgrid(middles[2], middles[1], middles[0], indexing="ij")
    points = torch.stack([x, y, z], dim=-1).reshape(-1, 3).clamp(0, 1)
    values = (level - distances_at(field, points)).reshape(z.shape).numpy()
    reach = _SAFE * 0.5 * 3**0.5 * BLOCK * grid.step
    code = np.where(np.abs(values) < reach, ASK, np.where(values > 0, INSIDE, OUTSIDE)).astype(np.uint8)
    # a wrong value in one block must not tear the surface: what touches the other side is asked too
    around = np.lib.stride_tricks.sliding_window_view(np.pad(code, 1, constant_values=ASK), (3, 3, 3))
    touches = ((around != code[..., None, None, None]) & (around != ASK)).any(axis=(3, 4, 5))
    whole = np.where(touches, ASK, code).repeat(BLOCK, 0).repeat(BLOCK, 1).repeat(BLOCK, 2)
    return whole[: grid.shape[2], : grid.shape[1], : grid.shape[0]]


def measure_shape(field: SignalField, solid: Solid, seed: int = 0) -> dict[str, Any]:
    """Mean error of the distance at 2^18 points near the surface (1 % of the longest side); of a signed shape also the
    intersection over union of the fitted and the true inside, at those and at 128^3 cells of its own box."""
    random = torch.Generator().manual_seed(seed + 1)  # other points than those of the fit
    near = solid.samples(1 << 18, (0.01,), 0.0, random)
    truth, found = solid.distances(near), distances_at(field, near)
    result: dict[str, Any] = {"distance_error": float((truth - found).abs().mean()) * solid.side}
    if solid.signed:
        result["iou_near"] = float(((found < 0) & (truth < 0)).sum()) / max(
            float(((found < 0) | (truth < 0)).sum()), 1.0
        )
        low, high = solid.vertices[solid.faces.reshape(-1)].aminmax(dim=0)
        at = (torch.arange(CELLS).double() + 0.5) / CELLS
        axes = [float(a) + at * float(b - a) for a, b in zip(low, high, strict=True)]
        both = either = 0
        for part in axes[0].split(16):
            x = torch.cartesian_prod(part, axes[1], axes[2])
            a, b = distances_at(field, x) < 0, solid.inside(x)
            both, either = both + int((a & b).sum()), either + int((a | b).sum())
        result["iou"] = both / max(either, 1)
    return result


def chamfer_of(mesh: trimesh.Trimesh, solid: Solid, samples: int = 100_000) -> MeshScores:
    """How far a mesh is from a true mesh, both in the file's frame; see `meshing.evaluation.evaluate_mesh`."""
    return evaluate_mesh(mesh, Triangles(solid.to_own(solid.vertices), solid.faces.long()), samples)


def trace(
    field: SignalField, signal: dict[str, Any], size: int = 384, azimuth: float = 35.0, elevation: float = 20.0
) -> NDArray[np.uint8]:
    """A picture [size,size,3] of a fitted shape on white, y up; source: Hart 1996, "Sphere Tracing"."""
    placed = Placed.of(signal)
    extents = torch.tensor([s / placed.side for s in placed.sides])
    middle, radius = extents / 2, 0.5 * float(extents.norm())
    a, e = np.radians(azimuth), np.radians(elevation)
    toward = torch.tensor([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)], dtype=torch.float32)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), toward), dim=0)
    up = torch.linalg.cross(toward, right)
    eye = middle + 3.2 * radius * toward
    at = ((torch.arange(size) + 0.5) / size - 0.5) * 0.54
    v, u = torch.meshgrid(-at, at, indexing="ij")
    rays = torch.nn.functional.normalize(u[..., None] * right + v[..., None] * up - toward, dim=-1).reshape(-1, 3)
    t0 = (torch.zeros(3) - eye) / rays
    t1 = (extents - eye) / rays
    t, far = torch.minimum(t0, t1).amax(dim=1).clamp_min(0), torch.maximum(t0, t1).amin(dim=1)
    active = (t < far).nonzero()[:, 0]
    thin = 0.0 if placed.signed else 2e-3
    hit = torch.zeros(len(rays), dtype=torch.bool)
    for _ in range(128):
        d = distances_at(field, eye + t[active, None] * rays[active]) - thin
        close = d < 4e-4
        hit[active[close]] = True
        active, d = active[~close], d[~close]
        t[active] += 0.85 * d
        active = active[t[active] < far[active]]
        if not len(active):
            break
    where = hit.nonzero()[:, 0]
    points, h = eye + t[where, None] * rays[where], 5e-3
    offsets = h * torch.eye(3)
    normals = torch.stack([distances_at(field, points + o) - distances_at(field, points - o) for o in offsets], dim=1)
    normals = torch.nn.functional.normalize(normals, dim=1)
    light = torch.nn.functional.normalize(toward + 0.6 * up - 0.5 * right, dim=0)
    facing = torch.stack([(normals * right).sum(1), (normals * up).sum(1), (normals * toward).sum(1)], dim=1)
    color = (0.25 + 0.75 * (normals @ light).clamp_min(0))[:, None] * (0.62 + 0.38 * facing)
    picture = torch.ones(size * size, 3)
    picture[where] = color.clamp(0, 1)
    return (picture.reshape(size, size, 3) * 255).round().byte().numpy()
