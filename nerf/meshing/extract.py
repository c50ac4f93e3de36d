"""From a trained model to a closed, coloured triangle mesh in the frame of the photos."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.errors import UserError
from nerf.meshing.clean import compact, is_closed, keep_faces, vertex_normals
from nerf.meshing.marching import Grid, Mask, marching_cubes
from nerf.memory import give_back
from nerf.space import ndc_points_inverse
from nerf.views.pictures import to_display

if TYPE_CHECKING:
    import trimesh

    from nerf.model import Model

HALF_LENGTH = (
    1 / 64
)  # scene length over which the iso-surface's density absorbs half the light: a cell of a 128^3 occupancy grid
_CLAMP = 3.0  # of log(density / threshold): beyond a factor of 20 a value says "inside" or "outside", not how far
_NDC_FAR = 0.96  # NDC depth that is still meshed: 50 times the near distance; at 1 lies infinity
_CHUNK = 1 << 16  # vertices coloured or moved to the world at once


def default_threshold() -> float:
    """Density of the iso-surface in 1/scene length: ln 2 / HALF_LENGTH = 44.

    Light crosses a surface within about a cell of the occupancy grid, whatever the mesh's resolution, so the level is
    tied to that length and not to the step of the mesh grid: a finer mesh shows the same surface.
    """
    return math.log(2) / HALF_LENGTH


def extract(
    model: Model,
    resolution: int = 512,
    threshold: float | None = None,
    box: tuple[float, float, float, float, float, float] | None = None,
    min_fraction: float = 0.01,
    max_components: int | None = None,
    colours: bool = True,
    refine: int = 1,
) -> trimesh.Trimesh:
    """The surface where the model's density crosses `threshold`, as a trimesh.Trimesh in the world frame.

    resolution: cells along the longest side of the box that is meshed. threshold: 1/scene length (None: see
    default_threshold). box: (x0, y0, z0, x1, y1, z1), scene frame (NDC for forward-facing scenes); None: around the
    occupied cells for a bounded object, [-1,1]^3 for unbounded captures. Components under min_fraction of the largest
    one's faces go, as do, for bounded objects, cavities that nothing outside can see; max_components keeps only so many
    of the largest. refine: evaluations for each vertex to slide it onto the true surface along its edge.

    The mesh is closed (where it meets the box it is capped), 2-manifold, wound counter-clockwise seen from outside,
    with unit vertex normals and 8-bit sRGB vertex colours seen along the normal. `mesh.metadata` says threshold, step,
    components, closed. Raises UserError where there is no surface or an argument makes no sense. Not differentiable.
    Source: marching cubes (Lorensen and Cline 1987) on the logarithm of density, which is nearly linear where density
    is exp(network): a test measures what that gains over plain density.
    """
    import trimesh

    level = default_threshold() if threshold is None else float(threshold)
    _check(resolution, level, box, min_fraction, max_components)
    low, high = _bounds(model) if box is None else (np.array(box[:3], float), np.array(box[3:], float))
    step = float((high - low).max()) / resolution
    counts = np.maximum(np.ceil((high - low) / step - 1e-6).astype(int), 1) + 1
    grid = Grid((float(low[0]), float(low[1]), float(low[2])), step, (int(counts[0]), int(counts[1]), int(counts[2])))
    highest = 0.0

    def field(points: Tensor) -> Tensor:
        nonlocal highest
        density = model.density(points)
        highest = max(highest, float(density.max())) if len(density) else highest
        return (density.clamp_min(1e-30).log() - math.log(level)).clamp(-_CLAMP, _CLAMP)

    with torch.no_grad():
        surface = marching_cubes(field, grid, near_occupied(model.occupancy.occupied, grid), outside=-_CLAMP)
        if not len(surface.faces):
            raise UserError(
                f"there is no surface: the density reaches {highest:.3g} in the box, the threshold is {level:.3g} "
                f"(1/scene length); give a lower --threshold, or train longer"
            )
        points, faces = surface.refined_points(field, refine), torch.from_numpy(surface.faces)
        del surface
        give_back()
        kept, n_components = keep_faces(points, faces, min_fraction, max_components, cavities=model.space != "box")
        if not n_components:
            raise UserError(
                f"nothing solid was found at the threshold {level:.3g}: every piece is a cavity; try another one"
            )
        faces = faces[kept]
        vertices, faces = compact(faces, len(points))
        points = points[vertices]
        give_back()
        normals = vertex_normals(points, faces)
        rgb = _colours(model, points, normals) if colours else None
        give_back()
        world, faces, normals = _to_world(model, points, faces, normals)
    del points, vertices
    closed = is_closed(faces.numpy(), len(world))
    give_back()
    faces, normals = faces.long(), normals.double()  # as trimesh keeps them; the small ones are freed before it begins
    mesh = trimesh.Trimesh(
        vertices=world.numpy(),
        faces=faces.numpy(),
        vertex_normals=normals.numpy(),
        vertex_colors=rgb,
        process=False,
        validate=False,
    )
    mesh.metadata = {"threshold": level, "step": step, "components": n_components, "closed": closed}
    return mesh


def near_occupied(occupied: Tensor, grid: Grid) -> Mask:
    """Which grid points are worth evaluating: within one grid step of an occupied cell of the level that serves there.

    occupied [levels,R,R,R] bool indexed [level, z, y, x]; level k covers [-2^k, 2^k]^3 and serves where no finer one
    reaches.
    """
    levels = [level.numpy() for level in occupied.cpu()]
    resolution = occupied.shape[-1]

    def mask(*ranges: slice) -> NDArray[np.bool_]:  # z, y, x
        positions = [grid.origin[2 - a] + grid.step * np.arange(r.start, r.stop) for a, r in enumerate(ranges)]
        chosen = np.zeros([len(p) for p in positions], bool)
        for k in reversed(range(len(levels))):  # a finer level overrules
            extent = 2.0**k
            cell = 2 * extent / resolution
            here = [np.flatnonzero(np.abs(p) <= extent + (grid.step if k == len(levels) - 1 else 0)) for p in positions]
            if not all(len(h) for h in here):
                continue
            part = levels[k]
            for axis, (p, h) in enumerate(zip(positions, here, strict=True)):
                first = np.clip(((p[h] - grid.step + extent) / cell).astype(int), 0, resolution - 1)
                last = np.clip(((p[h] + grid.step + extent) / cell).astype(int), 0, resolution - 1)
                spread = part.take(first, axis=axis)
                for further in range(1, int((last - first).max()) + 1):
                    spread |= part.take(np.minimum(first + further, last), axis=axis)
                part = spread
            chosen[here[0][0] : here[0][-1] + 1, here[1][0] : here[1][-1] + 1, here[2][0] : here[2][-1] + 1] = part
        return chosen

    return mask


def _check(
    resolution: int, level: float, box: tuple[float, ...] | None, min_fraction: float, max_components: int | None
) -> None:
    if not 8 <= resolution <= 4096:
        raise UserError(f"--resolution must be from 8 to 4096 cells, got {resolution}")
    if not (math.isfinite(level) and level > 0):
        raise UserError(f"--threshold must be a density above 0 in 1/scene length, got {level}")
    if not 0 <= min_fraction <= 1:
        raise UserError(f"--min-fraction must be from 0 to 1, got {min_fraction}")
    if max_components is not None and max_components < 1:
        raise UserError(f"--max-components must be 1 or more, got {max_components}")
    if box is not None:
        if (
            len(box) != 6
            or not all(math.isfinite(b) for b in box)
            or not all(a < b for a, b in zip(box[:3], box[3:], strict=True))
        ):
            raise UserError(
                f"--box must be x0 y0 z0 x1 y1 z1 with x0 < x1, y0 < y1, z0 < z1, got {' '.join(map(str, box))}"
            )


def _bounds(model: Model) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The box to mesh when none is given: corners [3], scene frame (NDC for forward-facing scenes)."""
    if model.space == "unbounded":
        return np.full(3, -1.0), np.full(3, 1.0)
    occupied = model.occupancy.occupied[0]
    if not bool(occupied.any()):
        raise UserError("the model's occupancy grid is empty, so there is no surface; train it longer")
    low, high = np.empty(3), np.empty(3)
    for axis in range(3):  # x, y, z are dimensions 2, 1, 0
        cells = occupied.amax(dim=tuple(d for d in range(3) if d != 2 - axis)).nonzero()
        low[axis], high[axis] = int(cells.min()), int(cells.max()) + 1
    low, high = low * 2 / occupied.shape[0] - 1, high * 2 / occupied.shape[0] - 1
    if model.space == "ndc":
        high[2] = min(high[2], _NDC_FAR)
        low[2] = min(low[2], high[2] - 2 / occupied.shape[0])
    return low, high


def _colours(model: Model, points: Tensor, normals: Tensor) -> NDArray[np.uint8]:
    """What a camera straight above each vertex sees: [v,3] 8-bit sRGB."""
    chunks = [model.color(p, -n) for p, n in zip(points.split(_CHUNK), normals.split(_CHUNK), strict=True)]
    return to_display(torch.cat(chunks).numpy(), model.linear)


def _to_world(model: Model, points: Tensor, faces: Tensor, normals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices (float64), faces and normals in the world frame; the winding keeps the outside out."""
    world_from_scene = model.scene_from_world.inverse()
    if model.space != "ndc":
        world = torch.cat([world_from_scene.apply(some.double()) for some in points.split(_CHUNK)])
        return world, faces, world_from_scene.apply_directions(normals)
    assert model.ndc is not None
    # 1 - NDC depth shrinks to the right as depth grows, so x, y, z -> world keeps handedness or not: the Jacobian's
    # sign is that of -z' = -2 / (w - 1)^2 < 0 times the squares of z, so the map mirrors, and faces are turned over
    world = world_from_scene.apply(ndc_points_inverse(points.double(), model.ndc))
    faces = faces.flip(1)
    return world, faces, vertex_normals(world - world.mean(dim=0), faces)
