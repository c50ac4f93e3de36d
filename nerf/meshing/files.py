"""Meshes to files: PLY, OBJ, GLB and STL, in the world frame of the photos, through trimesh."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nerf.errors import UserError, note
from nerf.geometry.geodesy import Georeference
from nerf.geometry.space import Similarity
from nerf.io.files import write_file, write_files
from nerf.io.outputs import check_output
from nerf.io.ply import Columns, ply
from nerf.meshing.glb import far_origin, glb

if TYPE_CHECKING:
    import trimesh
    from torch import Tensor

KINDS = (".ply", ".obj", ".glb", ".stl")
TEXTURED_KINDS = (".obj", ".glb")


def check_path(path: Path, overwrite: bool = True, textured: bool = False, inputs: Sequence[Path] = ()) -> None:
    """UserError unless a mesh can be written there, see `check_output`; asked before the work begins."""
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise UserError(f"{path}: a mesh file ends in {', '.join(KINDS)}")
    if textured and kind not in TEXTURED_KINDS:
        raise UserError(f"{path}: a {path.suffix} file carries no texture; choose {' or '.join(TEXTURED_KINDS)}")
    if kind == ".obj" and (path.stem.splitlines() != [path.stem] or any("\ud800" <= c <= "\udfff" for c in path.stem)):
        raise UserError(
            f"{path}: an OBJ names the files beside it, in UTF-8 and without line breaks: choose another name"
        )
    beside = [path.with_suffix(".mtl"), path.with_suffix(".png")] if textured and kind == ".obj" else []
    for file in (path, *beside):
        check_output(file, overwrite, *inputs)


def beside_mesh(path: Path) -> Path:
    """The file that says where on earth a mesh or a cloud stands."""
    return path.with_suffix(".geo.json")


def save_georeference(path: Path, place: Georeference, shift: np.ndarray | None = None) -> None:
    """Write beside a mesh or a cloud where on earth it stands: its coordinates, moved by to_ground (scale, rotation,
    translation), are metres east, north and up of `origin` or coordinates of `epsg`. shift [3]: what was taken off its
    vertices."""
    if shift is not None:
        place = place.after(Similarity(1.0, torch.eye(3, dtype=torch.float64), torch.from_numpy(shift).double()))
    content = {"format": "nerf-georeference", "version": 1, "file": path.name, "world": str(place)} | place.to_dict()
    write_file(beside_mesh(path), json.dumps(content, indent=1) + "\n")


def taken_off(mesh: trimesh.Trimesh, path: Path) -> np.ndarray | None:
    """Of a mesh whose coordinates an STL would round: a shift [3] in whole units, taken off its vertices in place."""
    shift = far_origin(np.asarray(mesh.vertices, np.float64)) if path.suffix.lower() == ".stl" else None
    if shift is not None:
        mesh.vertices = np.asarray(mesh.vertices, np.float64) - shift
    return shift


def save_mesh(mesh: trimesh.Trimesh, path: Path | str, up: Tensor | None = None) -> None:
    """Write a mesh; the ending says how. A file of that name is replaced only when the new one is complete.

    Vertices keep their world coordinates in all formats; a GLB turns them so that `up` [3] of the world is up where it
    is opened (see glb.py). PLY, GLB and STL hold float32; where the coordinates are too large for that, a PLY holds
    float64 and a GLB a shift. STL holds the shape alone. A texture is inside a GLB; with an OBJ it is NAME.mtl and
    NAME.png. Raises UserError for an unknown ending, and where the file cannot be written.

    >>> import trimesh
    >>> nerf.save_mesh(trimesh.creation.box(), "box.glb", up=torch.tensor([0.0, 0.0, 1.0]))
    >>> len(trimesh.load("box.glb", force="mesh").faces)
    12
    """
    path = Path(path)
    check_path(path)
    write_files(path, _contents(mesh, path, up))


def _contents(mesh: trimesh.Trimesh, path: Path, up: Tensor | None) -> dict[str, bytes | str]:
    """Name -> bytes of the files that make up a mesh, the mesh's own last."""
    from trimesh.exchange.obj import export_obj

    beside: dict[str, bytes] = {}
    kind, far = path.suffix.lower(), far_origin(np.asarray(mesh.vertices, np.float64)) is not None
    if kind == ".obj":
        visual: Any = mesh.visual
        if visual.kind == "texture":
            visual.material.name = path.stem  # of NAME.png, too
        data, beside = export_obj(mesh, return_texture=True, mtl_name=f"{path.stem}.mtl", header=None)
    elif kind == ".glb":
        data = glb(mesh, None if up is None else up.double().numpy())
    elif kind == ".ply" and far:
        data = _ply(mesh)
    else:
        if far:
            note(f"{path.name}: STL rounds coordinates as large as these; a .ply, .obj or .glb keeps them")
        data = mesh.export(file_type=kind[1:])
    return {**beside, path.name: data.encode() if isinstance(data, str) else data}


def _ply(mesh: trimesh.Trimesh) -> bytes:
    """Binary PLY with float64 positions, float32 normals and, where the vertices have any, 8-bit colours."""
    columns = [Columns("double", "x y z", mesh.vertices), Columns("float", "nx ny nz", mesh.vertex_normals)]
    visual: Any = mesh.visual
    if visual.kind == "vertex":
        columns.append(Columns("uchar", "red green blue", np.asarray(visual.vertex_colors)[:, :3]))
    return ply(columns, np.asarray(mesh.faces))
