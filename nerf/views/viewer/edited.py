"""A model and its mesh as the edits leave them."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError, note
from nerf.meshing.extent import default_bounds
from nerf.meshing.extract import extract_mesh
from nerf.rendering.marching import cropped
from nerf.rendering.model import Model
from nerf.training.used_scene import without
from nerf.views.viewer.edits import EDITS_FILE, Edits, read_edits

if TYPE_CHECKING:
    import trimesh

    from nerf.rendering.blocks import BlockedModel
    from nerf.views.viewer.regions import Region

CUT_MARGIN = 1.5  # cells of the grid that was meshed, by which faces may reach over the edge of a crop
_CHUNK = 1 << 20


def edited(model: Model, edits: Edits) -> Model:
    """The model as it is shown: outside of the crop, and where it is hidden, nothing is. The field is not copied, so
    what is learnt meanwhile shows; the occupancy is as of now. Hidden regions end at cells of the occupancy grid."""
    if edits.crop is None and not edits.hidden:
        return model
    shown = copy(model)
    if edits.crop is not None:
        shown.marching = cropped(model.marching, edits.crop.moved(model.scene_from_world))
    if edits.hidden and model.n_cells:
        return cast("BlockedModel", shown).each(lambda cell: edited(cell, replace(edits, crop=None)))
    if edits.hidden:
        grid = model.occupancy
        occupied = grid.occupied.reshape(-1).clone()
        world_from_scene = model.scene_from_world.inverse()
        for cells in occupied.nonzero()[:, 0].split(_CHUNK):
            points = world_from_scene.apply(model.space.points_to_scene(grid.cell_centres(cells)[0].double()))
            occupied[cells] = ~within(points, edits.hidden)
        masked = copy(grid)
        masked.bits = None  # those of the grid itself stay as they are
        masked.restore(grid.tensors() | {"occupied": occupied.reshape(grid.occupied.shape)})
        shown.occupancy = masked
    return shown


def edited_scene(scene: Any, edits: Edits, folder: Path | None) -> Any:
    """The scene without the photos that the edits of a run's folder leave out of its training; None stays None."""
    if scene is None or not edits.left_out:
        return scene
    return without(scene, edits.left_out, EDITS_FILE if folder is None else folder / EDITS_FILE)


def left_out_of(folder: Path, scene: Any) -> tuple[str, ...]:
    """Names of the photos that a run's folder leaves out of its training, and a note of how many."""
    edits = read_edits(folder)
    kept = edited_scene(scene, edits, folder)
    if n := len(scene.splits["train"]) - len(kept.splits["train"]):
        note(f"{n} photo{'s are' if n > 1 else ' is'} left out of training by {folder / EDITS_FILE}")
    return edits.left_out


def within(points: Tensor, regions: tuple[Region, ...]) -> Tensor:
    """Which world points [n,3] lie in any of the regions: bool [n]."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for region in regions:
        inside |= region.contains(points)
    return inside


def mesh_box(model: Model, edits: Edits) -> tuple[float, ...] | None:
    """The box to mesh, x0 y0 z0 x1 y1 z1 in the scene frame, that a crop asks for; None without one. Of an object no
    more than where anything is: what no photo shows counts as solid. UserError where the crop holds nothing."""
    if edits.crop is None or model.space.warped:
        return None
    box = np.array(edits.crop.moved(model.scene_from_world).bounds()).reshape(2, 3)
    low, high = default_bounds(model) if model.space.bounded else box
    low, high = np.maximum(low, box[0]), np.minimum(high, box[1])
    if not bool((low < high).all()):
        raise UserError("the crop holds nothing of the scene: move it in `nerf view`, or give --no-edits")
    return (*low.tolist(), *high.tolist())


def cut_mesh(mesh: trimesh.Trimesh, edits: Edits, margin: float = 0.0) -> trimesh.Trimesh:
    """The faces of a mesh (world frame) whose middle lies in the crop, or not farther outside than the margin (world
    length), and in nothing hidden. The mesh itself where that is all of them."""
    if edits.crop is None and not edits.hidden:
        return mesh
    middles = torch.from_numpy(np.asarray(mesh.triangles_center, np.float64).copy())
    keep = ~within(middles, edits.hidden)
    if edits.crop is not None:
        keep &= edits.crop.grown(margin).contains(middles)
    if bool(keep.all()):
        return mesh
    if not bool(keep.any()):
        raise UserError("the edits leave nothing of the mesh: change them in `nerf view`, or give --no-edits")
    about = mesh.metadata
    part: Any = mesh.submesh([keep.numpy().nonzero()[0]], append=True, repair=False)
    part.metadata = {**about, "closed": bool(about.get("closed")) and part.is_watertight}
    whole: trimesh.Trimesh = part
    return whole


def scale_mesh(mesh: trimesh.Trimesh, edits: Edits) -> None:
    """Lengths as they were set in the viewer, in place, about the origin of the world."""
    if edits.scale != 1.0:
        mesh.apply_scale(edits.scale)


def edited_mesh(
    model: Model,
    edits: Edits,
    resolution: int | None = None,
    box: tuple[float, ...] | None = None,
    scene: Any = None,
    **settings: Any,
) -> Any:
    """`extract_mesh` of what the edits leave, lengths not yet scaled; box: instead of the crop's, scene frame."""
    shown = edited(model, edits)
    box = mesh_box(model, edits) if box is None else box
    mesh = extract_mesh(shown, resolution, box=box, scene=scene, **settings)
    return cut_mesh(mesh, edits, CUT_MARGIN * mesh.metadata["step"] / model.scene_from_world.scale)
