"""From a trained model to a closed, coloured triangle mesh in the frame of the photos."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.errors import Range, UserError, check_numbers
from nerf.geometry.aim import common_up
from nerf.io.memory import trim_heap
from nerf.io.pictures import to_display
from nerf.io.progress import Progress
from nerf.meshing.clean import Limits, compact, find_hole_faces, is_closed, keep_faces, taubin_smooth, vertex_normals
from nerf.meshing.extent import box_grid, open_grid
from nerf.meshing.fair import MAX_DENOISED_FACES, denoise_normals
from nerf.meshing.fused import MAX_SIDE, MAX_VIEWS, FusedSurface, depth_views, other_views, view_cameras
from nerf.meshing.level import DEFAULT_THRESHOLD, LevelSurface
from nerf.meshing.marching import marching_cubes
from nerf.meshing.photo_colors import photo_colors
from nerf.meshing.photos import grey_pictures
from nerf.meshing.stereo import refine_depths
from nerf.meshing.warp import Warp

if TYPE_CHECKING:
    import trimesh

    from nerf.datasets import Scene
    from nerf.kernels import DepthView
    from nerf.rendering.model import Model

MAX_HOLE_FACES = 100  # faces: as wide as some eight cells
_CHUNK = 1 << 16  # vertices coloured or moved to the world at once

_ROUNDS = Range(0, 100, whole=True)
MESHING = {
    "resolution": Range(8, 4096, whole=True, optional=True),
    "threshold": Range(0, 1e30, above=True, optional=True),  # 1/scene length
    "min_fraction": Range(0, 1, optional=True),
    "max_components": Range(1, 1e9, whole=True, optional=True),
    "smooth": _ROUNDS._replace(optional=True),
    "holes": Range(0, 1e9, whole=True),
    "denoise": _ROUNDS._replace(optional=True),
    "refine": _ROUNDS,
}
Method = Literal["auto", "tsdf", "density"]
Shape = FusedSurface | LevelSurface


@dataclass(frozen=True)
class MeshInfo:
    """What is known of an extracted mesh; `mesh.metadata` holds it as a dict."""

    method: str
    step: float  # of the grid, scene length
    components: int
    closed: bool
    unseen_faces: int  # that were removed because fewer than two views see them; those far from what is seen never were
    watertight: bool  # whether what no view sees was kept
    threshold: float | None = None  # of the density, 1/scene length, where the method is "density"

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def extract_mesh(
    model: Model,
    resolution: int | None = None,
    threshold: float | None = None,
    box: tuple[float, ...] | None = None,
    min_fraction: float | None = None,
    max_components: int | None = None,
    colours: bool = True,
    refine: int = 1,
    method: Method = "auto",
    watertight: bool | None = None,
    smooth: int | None = None,
    holes: int = MAX_HOLE_FACES,
    denoise: int | None = None,
    scene: Scene | None = None,
    show_progress: bool = True,
) -> trimesh.Trimesh:
    """The surface of a model, as a trimesh.Trimesh in the world frame.

    resolution: cells along the longest side of what is meshed (None: see extent.default_resolution, and open_grid for
    open scenes). method: "tsdf" fuses depth maps of the training views, and what no view sees is solid; "density" is
    the surface where the density crosses `threshold` (1/scene length; None: see level.DEFAULT_THRESHOLD); "auto" takes
    tsdf, and density where a threshold is given or the scene is forward-facing. box: (x0, y0, z0, x1, y1, z1), scene
    frame (NDC for forward-facing scenes); None: around the occupied cells for a bounded object; for unbounded captures
    around what views see from places apart, in cells that grow with distance (warp.Warp), or with "density" [-1,1]^3.
    Components under min_fraction (None: 0.01, of open scenes 0.00001) of the largest one's faces are removed, as are,
    for bounded objects, cavities that nothing outside can see; max_components keeps only so many of the largest.
    refine: evaluations for each vertex to slide it onto the zero crossing along its edge. watertight: whether to keep
    faces that one view or none has seen, or only views from within 1.5 degrees of one another (None: for bounded
    objects, and with "density"); at most `holes` of them in one place are kept anyway. smooth: rounds of Taubin
    smoothing (None: 6, or none with "density"). denoise: rounds of bilateral normal filtering (None: 12, or none with
    "density" and for over 4 million faces). scene: of open scenes fused by "tsdf", its training photos refine the
    depths (see stereo.refine_depths), which takes some minutes of computing, and colour the vertices that they show;
    without, and for bounded objects, depths and colours are the field's alone.

    Unless unseen faces are removed the mesh is closed (where it meets the box it is capped), 2-manifold, wound
    counter-clockwise seen from outside, with unit vertex normals and 8-bit sRGB vertex colours (of the field as
    seen along the normal).
    `mesh.metadata` is a MeshInfo as a dict. Raises UserError where there is no surface or an argument makes no sense.
    Not differentiable. Sources: marching cubes, Lorensen and Cline 1987; TSDF fusion, Curless and Levoy 1996.

    >>> model = nerf.Model.load("runs/robot/checkpoint.safetensors")
    >>> mesh = nerf.extract_mesh(model, resolution=24)
    >>> mesh.faces.shape[1], mesh.metadata["closed"]
    (3, True)
    """
    given = {"resolution": resolution, "threshold": threshold, "min_fraction": min_fraction}
    given |= {"max_components": max_components, "smooth": smooth, "holes": holes, "denoise": denoise, "refine": refine}
    check_numbers(given, MESHING, "--")
    if box is not None:
        _check_box(box)
    keep_unseen = model.space.bounded if watertight is None else watertight
    if model.n_cells and (method == "density" or threshold is not None):
        raise UserError(
            "--method density and --threshold are of one field, and this place has a field for each of its "
            f"{model.n_cells} cells: leave them out, or mesh one cell"
        )
    if method == "density" or (method == "auto" and (threshold is not None or model.space.warped)):
        level = DEFAULT_THRESHOLD if threshold is None else float(threshold)
        shape: Shape = LevelSurface(model, box_grid(model, resolution, box), level)
    else:
        skip = not keep_unseen and holes <= MAX_HOLE_FACES
        shape = _fuse(model, scene, resolution, box, skip, show_progress)
    if min_fraction is None:  # a wall that nothing joins to the rest is a small piece of a place
        min_fraction = 0.00001 if isinstance(shape, FusedSurface) and shape.is_open else 0.01
    limits = Limits(min_fraction, max_components)
    with torch.no_grad(), Progress("meshing", shown=show_progress):
        points, faces = _polygonise(shape, refine)
        trim_heap()
        kept, n_components = keep_faces(points, faces, limits, cavities=not model.space.bounded)
        if not n_components:
            raise UserError("nothing solid was found: every piece is a cavity; try another --threshold or --method")
        points = taubin_smooth(points, faces, shape.smooth if smooth is None else smooth)
        if denoise is None:
            denoise = shape.denoise if len(faces) <= MAX_DENOISED_FACES else 0
        points = denoise_normals(points, faces, denoise)
        n_whole, is_whole, towards = int(kept.sum()), True, None
        if isinstance(shape, FusedSurface) and not keep_unseen:
            seen, towards = shape.seen(points, faces, vertex_normals(points, faces))
            kept, n_components = _remove_unseen(seen, points, faces, kept, limits, holes)
            is_whole = False
        n_unseen = n_whole - int(kept.sum())
        faces = faces[kept]
        vertices, faces = compact(faces, len(points))
        points, towards = points[vertices], None if towards is None else towards[vertices]
        closed = is_closed(faces.numpy(), len(points))
        info = MeshInfo(shape.method, shape.grid.step, n_components, closed, n_unseen, is_whole, shape.level)
        views = shape.views if isinstance(shape, FusedSurface) else []
        del shape, vertices
        trim_heap()
        normals = vertex_normals(points, faces)
        if towards is not None:
            towards = torch.where((towards == 0).all(dim=1, keepdim=True), normals, towards)
        rgb = None
        if colours:
            photos = scene if model.space.contracted else None
            rgb = _colours(model, photos, views, points, faces, normals, normals if towards is None else towards)
        trim_heap()
        world, faces, normals = _to_world(model, points, faces, normals)
    del points
    trim_heap()
    faces, normals = faces.long(), normals.double()  # as trimesh keeps them; the small ones are freed before it begins
    return to_trimesh(world, faces, normals, info.to_dict(), vertex_colors=rgb)


@torch.no_grad()
def _fuse(
    model: Model, scene: Scene | None, resolution: int | None, box: tuple[float, ...] | None, skip: bool, show: bool
) -> FusedSurface:
    """Depth maps of the training views, of open scenes as its photos refine them where they are given, and the grid in
    which they are fused."""
    most = MAX_VIEWS * max(1, model.n_cells)
    views = depth_views(model, most, MAX_SIDE, show)
    if scene is not None and model.space.contracted:
        with Progress("matching photos", shown=show):
            up = model.scene_from_world.rotation @ common_up(model.cameras)[0]
            pictures = grey_pictures(model, scene, *view_cameras(model, most, MAX_SIDE))
            views = refine_depths(views, pictures, up=up)
    with Progress("fusing", shown=show):
        if box is None and model.space.contracted:
            others = other_views(model, most)
            return FusedSurface(views, *open_grid(model, views, resolution), skip, is_open=True, others=others)
        return FusedSurface(views, box_grid(model, resolution, box), Warp(), skip)


def to_trimesh(vertices: Tensor, faces: Tensor, normals: Tensor, info: dict[str, Any], **looks: Any) -> trimesh.Trimesh:
    """A trimesh.Trimesh of vertices [v,3] float64, faces [f,3] int64 and normals [v,3] float64, nothing merged."""
    import trimesh

    mesh = trimesh.Trimesh(
        vertices.numpy(), faces.numpy(), vertex_normals=normals.numpy(), process=False, validate=False, **looks
    )
    mesh.metadata = info
    return mesh


def _polygonise(shape: Shape, refine: int) -> tuple[Tensor, Tensor]:
    """Marching cubes: vertices [v,3] float32 in the scene frame and faces [f,3] int32."""
    surface = marching_cubes(shape.values, shape.grid, shape.known, shape.outside)
    if not len(surface.faces):
        raise UserError(f"there is no surface: {shape.explain_empty()}")
    return shape.warp.to_scene(surface.refined_points(shape.values, refine)), torch.from_numpy(surface.faces)


def _remove_unseen(
    seen: Tensor, points: Tensor, faces: Tensor, kept: Tensor, limits: Limits, holes: int
) -> tuple[Tensor, int]:
    """Which of the kept faces [f] have a corner that was seen [n], small holes among them filled, and in how many
    components."""
    removed = kept & ~seen[faces.long()].any(dim=1)
    kept &= ~removed
    kept[removed | kept] |= find_hole_faces(faces[removed | kept], removed[removed | kept], len(points), holes)
    # What was one component with unseen faces may be several small ones now.
    keep, n_components = keep_faces(points, faces[kept], limits, cavities=True)
    if not n_components:
        raise UserError(
            "no two photos see a surface there: train longer, choose another --box, or keep all with --watertight"
        )
    kept[kept.nonzero()[~keep]] = False
    return kept, n_components


def _check_box(box: tuple[float, ...]) -> None:
    ordered = len(box) == 6 and all(a < b for a, b in zip(box[:3], box[3:], strict=True))
    if not ordered or not all(math.isfinite(b) for b in box):
        got = " ".join(map(str, box))
        raise UserError(f"--box must be x0 y0 z0 x1 y1 z1 with x0 < x1, y0 < y1, z0 < z1, got {got}")


def box_in_scene(model: Model, box: tuple[float, ...], frame: str, scale: float = 1.0) -> tuple[float, ...]:
    """A box of the world (or scene) frame, x0 y0 z0 x1 y1 z1, as the one around it in the scene frame. scale: lengths
    of the box are so many times those of the world."""
    _check_box(box)
    reach = model.space.half_extent
    if frame == "scene":
        if any(a > reach or b < -reach for a, b in zip(box[:3], box[3:], strict=True)):
            raise UserError(f"--box lies outside the scene, which reaches from {-reach:g} to {reach:g} in scene units")
        return box
    if model.space.warped:
        raise UserError("--box: space is bent in forward-facing scenes, so a box must be given with --frame scene")
    x, y, z = (torch.tensor([box[k], box[k + 3]], dtype=torch.float64) / scale for k in range(3))
    corners = model.scene_from_world.apply(torch.cartesian_prod(x, y, z))
    low, high = corners.amin(dim=0), corners.amax(dim=0)
    if bool((low > reach).any() or (high < -reach).any()):
        ends = torch.tensor([[-reach] * 3, [reach] * 3], dtype=torch.float64)
        ends = model.scene_from_world.inverse().apply(ends) * scale
        first, last = (" ".join(f"{float(v):.4g}" for v in end) for end in (ends.amin(dim=0), ends.amax(dim=0)))
        raise UserError(f"--box lies outside the scene, which reaches from {first} to {last} in the units of the mesh")
    return (*low.tolist(), *high.tolist())


def _colours(
    model: Model,
    scene: Scene | None,
    views: list[DepthView],
    points: Tensor,
    faces: Tensor,
    normals: Tensor,
    towards: Tensor,
) -> NDArray[np.uint8]:
    """[v,3] 8-bit sRGB: of the photos of which the views hold the depths; where none shows a vertex, or there is no
    scene, what a camera in the direction [v,3] of the vertex sees of the field."""
    rgb, left = np.empty((len(points), 3), np.uint8), torch.ones(len(points), dtype=torch.bool)
    if scene is not None and views:
        photos, _ = view_cameras(model, MAX_VIEWS * max(1, model.n_cells), MAX_SIDE)
        found, shown = photo_colors(model, scene, photos, views, points, faces, normals)
        rgb[shown.numpy()], left = to_display(found[shown].numpy(), linear=False), ~shown
    asked = zip(points[left].split(_CHUNK), towards[left].split(_CHUNK), strict=True)
    chunks = [model.color(p, -d) for p, d in asked if len(p)]
    if chunks:
        rgb[left.numpy()] = to_display(torch.cat(chunks).numpy() * model.exposure, model.linear)
    return rgb


def _to_world(model: Model, points: Tensor, faces: Tensor, normals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices (float64), faces and normals in the world frame; the winding keeps the outside out."""
    world_from_scene = model.scene_from_world.inverse()
    parts = points.split(_CHUNK)
    world = torch.cat([world_from_scene.apply(model.space.points_to_scene(some.double())) for some in parts])
    if not model.space.warped:
        return world, faces, world_from_scene.apply_directions(normals)
    # 1 - NDC depth shrinks to the right as depth grows, so x, y, z -> world keeps handedness or not: the Jacobian's
    # sign is that of -z' = -2 / (w - 1)^2 < 0 times the squares of z, so the map mirrors, and faces are turned over
    faces = faces.flip(1)
    return world, faces, vertex_normals(world - world.mean(dim=0), faces)
