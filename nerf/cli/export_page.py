"""`nerf export-page`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nerf.errors import Range, UserError, check_numbers, note, say
from nerf.io.folders import model_files
from nerf.io.outputs import check_output
from nerf.views.viewer.edited import cut_mesh, edited, edited_mesh, edited_scene
from nerf.views.viewer.edits import Edits, edits_of

if TYPE_CHECKING:
    import trimesh

    from nerf.datasets import Scene
    from nerf.rendering.model import Model

_LARGE = 30_000_000  # bytes of a page, more than which a note names


@dataclass
class ExportPageArgs:
    """Write one HTML file that shows a trained scene in any browser, offline: to walk around in, and to send."""

    model: tyro.conf.Positional[Path]
    """the folder that `nerf train` or `nerf reconstruct` wrote, or a checkpoint file in it"""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """NAME.html (default: page.html in the model's folder)"""
    mesh: Path | None = None
    """the mesh to show, in the frame of the photos' poses (default: mesh.glb in the model's folder, made anew where the
    model is newer)"""
    faces: int = 200_000
    """at most about so many triangles"""
    texture: int | None = None
    """texels along the longer side of a texture made from the photos (default: 4096, small photos 2048; that of the
    mesh, if it has one)"""
    path: str = "auto"
    """that the page plays and begins on: orbit, interpolate, spiral, a path FILE.json, or auto as in `nerf render`"""
    views: int = 8
    """how many of the photos' cameras one can jump to, those far apart"""
    title: str | None = None
    """what stands above the notes (default: the name of the scene's folder)"""
    notes: tuple[str, ...] = ()
    """paragraphs that stand on the page, each in quotes"""
    directional: bool = True
    """colours change with the direction of view, as the model's do: highlights move"""
    data: Path | None = None
    """the scene's folder, for its photos, where it has moved since training"""
    edits: bool = True
    """use what was set in `nerf view`, where the run has any: crop, hidden regions, up"""
    overwrite: bool = False
    """replace a file of the same name"""


def main(args: ExportPageArgs) -> None:
    """`nerf export-page`: prints where the page lies."""
    folder, checkpoint = model_files(args.model)
    out = args.out if args.out is not None else folder / "page.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out}: a page's name ends in .html")
    ranges = {"views": Range(0, 1000, whole=True), "faces": Range(4, 1e9, whole=True)}
    check_numbers(vars(args), ranges, "--")
    if args.texture is not None:
        from nerf.meshing.atlas import check_size

        check_size(args.texture)
    check_output(out, args.overwrite, checkpoint, args.mesh)
    edits = edits_of(folder, args.edits)

    from nerf.rendering.model import Model
    from nerf.training.runs import read_run
    from nerf.views.page import make_path, write_page
    from nerf.views.paths import load_path

    given = (
        load_path(Path(args.path)) if args.path.lower().endswith(".json") else None
    )  # first: a mistake shows at once
    model = Model.load(checkpoint)
    path = given or make_path(model, args.path, edits.up_direction())
    mesh = mesh_to_show(model, folder, checkpoint, args, edits)
    run = read_run(folder)
    title = args.title or (Path(run.data).name if run is not None else folder.resolve().name)
    options = args.notes, path, args.views, args.directional, edits.up_direction()
    write_page(out, edited(model, edits), mesh, title, *options)
    size = out.stat().st_size
    if size > _LARGE:
        note(f"{out.name} takes {size / 1e6:.0f} MB: fewer --faces make it smaller, and --no-directional")
    say(f"{len(mesh.faces):,} triangles, {size / 1e6:.1f} MB")
    say(out)


def mesh_to_show(model: Model, folder: Path, checkpoint: Path, args: ExportPageArgs, edits: Edits) -> trimesh.Trimesh:
    """The mesh that was given or that lies in the run, else a new one, as the edits leave it; simplified where it has
    more than args.faces, and textured from the photos where it is not and they are at hand."""
    import trimesh

    from nerf.meshing.finish import decimate_mesh, texture_mesh, usual_texture
    from nerf.views.page import texture_picture

    mesh = _mesh_there(model, folder, checkpoint, args.mesh, edits)
    few = mesh is not None and len(mesh.faces) <= 1.01 * args.faces
    if mesh is not None and few and args.texture is None and texture_picture(mesh) is not None:
        return mesh
    photos = edited_scene(_photos(model, folder, args), edits, folder)
    if mesh is None:
        mesh = edited_mesh(model, edits, colours=False, scene=photos)
    elif few and photos is None and getattr(mesh.visual, "kind", None) == "vertex":
        return mesh
    else:
        mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
        mesh.merge_vertices()  # along the seams of a texture, which would come apart
    if photos is None:
        return decimate_mesh(model, mesh, args.faces)
    return texture_mesh(model, photos, mesh, args.texture or usual_texture(photos.cameras), args.faces)


def _mesh_there(
    model: Model, folder: Path, checkpoint: Path, given: Path | None, edits: Edits
) -> trimesh.Trimesh | None:
    """The mesh that was given, or that of the run unless the model is newer or nobody knows its size; where the model
    is, and as the edits leave it."""
    import numpy as np
    import torch

    from nerf.geometry.triangles import read_textured_mesh
    from nerf.views.page.harmonics import in_pictures

    file = given or folder / "mesh.glb"
    if given is None:
        if not file.is_file():
            return None
        newer = file.stat().st_mtime < checkpoint.stat().st_mtime
        if newer or edits.scale != 1.0:  # `nerf mesh` scales, `nerf reconstruct` does not
            why = "the model is newer" if newer else "lengths were set"
            note(f"{file} is passed over, for {why}, and the mesh is made anew; --mesh {file} shows it")
            return None
    mesh = read_textured_mesh(file)
    mesh.apply_scale(1 / edits.scale)
    mesh = cut_mesh(mesh, edits)
    points = torch.from_numpy(np.array(mesh.vertices[:: len(mesh.vertices) // 500 + 1], np.float64))
    if not bool(in_pictures(model.cameras, points).any()):
        raise UserError(
            f"{file} lies where no photo looks: expected a mesh in the frame of the photos' poses, as `nerf mesh` makes"
        )
    return mesh


def _photos(model: Model, folder: Path, args: ExportPageArgs) -> Scene | None:
    """The scene, for its photos; None, and a note, where it is gone."""
    from nerf.training.runs import photos_of_run

    return photos_of_run(folder, model.meta, args.data, "the model colours the mesh, not the photos")
