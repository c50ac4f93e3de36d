"""`nerf mesh`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from nerf.errors import UserError, note, say
from nerf.geometry.geodesy import Georeference
from nerf.io.outputs import check_output
from nerf.io.progress import Progress
from nerf.meshing.atlas import check_size
from nerf.meshing.clean import check_count, enclosed_volume
from nerf.meshing.extract import MAX_HOLE_FACES, Method, box_in_scene
from nerf.meshing.files import beside_mesh, check_path, save_georeference, save_mesh, taken_off
from nerf.meshing.finish import TEXTURED_FACES, decimate_mesh, texture_mesh, transform_mesh
from nerf.views.viewer.edited import edited, edited_mesh, edited_scene, scale_mesh
from nerf.views.viewer.edits import ALL_EDITS, edits_of

if TYPE_CHECKING:
    import trimesh
    from torch import Tensor

    from nerf.datasets import Scene
    from nerf.io.geotiff import MapFrame
    from nerf.rendering.model import Model

# options that go to extract_mesh as they are
PASSED_ON = (
    *("resolution", "method", "threshold", "watertight", "smooth", "holes", "denoise"),
    *("min_fraction", "max_components"),
)


@dataclass
class MeshArgs:
    """Extract a closed, coloured mesh from a trained model, in the frame of the photos' poses."""

    model: tyro.conf.Positional[Path]
    """the folder that `nerf train` or `nerf reconstruct` wrote, or a checkpoint file in it"""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """NAME.glb, NAME.obj, NAME.ply or NAME.stl (default: mesh.glb in the model's folder)"""
    resolution: int | None = None
    """cells along the longest side of what is meshed (default: four for three pixels of the photos, at most 512; of
    open scenes at most 1024, and as many as make some 3 million triangles)"""
    method: Method = "auto"
    """tsdf fuses what the training views see; density is where the density crosses the threshold; auto: tsdf, but
    density for forward-facing scenes or with --threshold"""
    threshold: float | None = None
    """density of the surface in 1/scene length (default 44: half the light is absorbed over 1/64); lower keeps more"""
    watertight: bool | None = None
    """keep what one photo or none has seen, so that the surface closes (default: for objects, not for open scenes)"""
    box: tuple[float, float, float, float, float, float] | None = None
    """x0 y0 z0 x1 y1 z1 in the --frame of the mesh: only what lies in it, in cells of one size (default: the object; of
    open scenes all that several photos show, in cells that grow with distance)"""
    smooth: int | None = None
    """rounds of smoothing that keeps size and shape (default: 6, none with density)"""
    holes: int = MAX_HOLE_FACES
    """of open meshes, holes of at most so many faces are closed"""
    denoise: int | None = None
    """rounds of averaging face normals that agree, which flattens noise and keeps edges (default: 12; none with density
    and above 4 million triangles)"""
    min_fraction: float | None = None
    """drop pieces with fewer faces than this share of the largest piece's (default: 0.01, of open scenes 0.00001)"""
    max_components: int | None = None
    """keep at most so many of the largest pieces"""
    colours: bool = True
    """colour the vertices: from the photos of open scenes, else from the field"""
    faces: int | None = None
    """at most about so many triangles (default: all, 200000 with a texture)"""
    texture: int = 0
    """texels along the longer side of a texture made from the photos; 0: coloured vertices instead"""
    points: int = 0
    """write a point cloud of so many points with normals and colours instead, to a .ply"""
    page: bool = False
    """write NAME.html beside NAME.glb too, as `nerf export-page` does: the mesh to walk around in any browser"""
    frame: Literal["world", "scene", "map"] = "world"
    """world: that of the photos' poses; scene: the frame nerf works in, where the object fills [-1,1]^3; map: of
    georeferenced scenes, east, north and height in --epsg"""
    epsg: int | None = None
    """of --frame map: code of the projected reference system (default: that of the poses, else the UTM zone)"""
    data: Path | None = None
    """the scene's folder, for its photos (a texture's, and of open scenes those that refine the depths), where it has
    moved since training"""
    edits: bool = True
    """use what was set in `nerf view`, where the run has any: crop, hidden regions, up, size"""
    overwrite: bool = False
    """replace a file of the same name"""


def main(args: MeshArgs) -> None:
    """`nerf mesh`: prints what the mesh is and where it lies."""
    from nerf.io.folders import model_files

    folder, checkpoint = model_files(args.model, blocks=True)
    out = args.out if args.out is not None else folder / ("points.ply" if args.points else "mesh.glb")
    if args.texture:
        check_size(args.texture)
    check_path(out, args.overwrite, bool(args.texture), [checkpoint])
    if args.points and (args.points < 0 or args.texture or args.faces is not None or out.suffix.lower() != ".ply"):
        raise UserError("--points must be above 0, goes to a .ply file, and without --texture and --faces")
    check_frame(args, out)
    if args.page:
        if out.suffix.lower() != ".glb":
            raise UserError(f"--page shows a .glb, and {out} is none; give -o NAME.glb")
        check_output(out.with_suffix(".html"), args.overwrite)
    if args.texture or args.faces is not None:
        check_count(args.faces)

    import torch

    from nerf.geometry.aim import common_up
    from nerf.training.runs import model_of_run, scene_of_run  # after the checks: a mistake shows at once

    uses = [name for name in ALL_EDITS if name != "scale" or args.frame != "map"]
    edits = edits_of(folder, args.edits, uses)
    model = model_of_run(checkpoint)
    frame = map_frame(model, folder, args.epsg) if args.frame == "map" else None
    if args.points:
        write_points(edited(model, edits), args.points, args.frame, out, edits.scale, frame)
        return
    box = None if args.box is None else box_in_scene(model, args.box, args.frame, edits.scale)
    scene = edited_scene(scene_of_run(folder, model.meta, args.data) if args.texture else None, edits, folder)
    photos = scene or edited_scene(_photos(model, folder, args), edits, folder)
    start = time.perf_counter()
    colours = args.colours and scene is None
    passed_on = {name: getattr(args, name) for name in PASSED_ON}
    mesh = edited_mesh(model, edits, box=box, colours=colours, scene=photos, **passed_on)
    if scene is not None:
        mesh = texture_mesh(model, scene, mesh, args.texture, args.faces or TEXTURED_FACES)
    elif args.faces is not None:
        with Progress("simplifying"):
            mesh = decimate_mesh(model, mesh, args.faces, args.colours)
    seconds = time.perf_counter() - start
    chosen = edits.up_direction()
    up = common_up(model.cameras)[0] if chosen is None else chosen
    if args.page:
        from nerf.views.page import write_page

        page = partial(write_page, out.with_suffix(".html"), edited(model, edits), mesh.copy(), out.stem, up=up)
    if frame is not None:
        place_mesh(mesh, frame)
        up = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    elif args.frame == "world":
        scale_mesh(mesh, edits)
    else:
        transform_mesh(mesh, model.scene_from_world)
        up = model.scene_from_world.apply_directions(up)
    save_placed(mesh, out, up, placed(model, args.frame, edits.scale, frame))
    about = mesh.metadata
    if not about["closed"] and about["watertight"] and scene is None and args.faces is None:
        note("the mesh is not closed everywhere, which should not happen; please report it")
    pieces = "one piece" if about["components"] == 1 else f"{about['components']} pieces"
    open_ = "not closed everywhere" if about["watertight"] else "open where no photo has seen it"
    closed = "closed" if about["closed"] else open_
    known = edits.unit or ("metres" if in_metres(model, edits.scale) else "the photos' units")
    units = {"world": known, "scene": "scene units", "map": f"metres, EPSG:{frame and frame.epsg}"}[args.frame]
    size = " x ".join(f"{x:.4g}" for x in mesh.extents)
    volume = f", volume {enclosed_volume(mesh.vertices, mesh.faces):.4g}" if about["closed"] else ""
    say(f"{len(mesh.faces):,} triangles, {pieces}, {closed}; {size} in {units}{volume}; {seconds:.1f} s")
    say(out)
    if args.page:
        say(page())


def check_frame(args: MeshArgs, out: Path) -> None:
    """What can be wrong with --frame and --epsg by themselves, and with the file beside the mesh."""
    if args.frame != "map" and args.epsg is not None:
        raise UserError("--epsg belongs to --frame map")
    if args.frame == "map":
        from nerf.io.geotiff import check_map_system, need_rasterio

        need_rasterio()
        if args.epsg is not None:
            check_map_system(args.epsg)
        if args.box is not None:
            raise UserError("--box is in the frame of the poses or of the scene, not in that of a map: leave one out")
    if args.frame != "scene":
        check_output(beside_mesh(out), args.overwrite)


def _photos(model: Model, folder: Path, args: MeshArgs) -> Scene | None:
    """The scene of an open capture, whose photos refine the depths; None, and a note, where it is gone."""
    from nerf.training.runs import photos_of_run

    if not model.space.contracted or args.method == "density" or args.threshold is not None:
        return None
    return photos_of_run(
        folder, model.meta, args.data, "the mesh is made without the photos, so walls and floors may be off"
    )


def georeference_of(model: Model, folder: Path) -> Georeference:
    """Of a run; UserError where it has none."""
    if model.georeference is not None:
        return model.georeference
    raise UserError(
        f"{folder}: does not say where on earth it is: `nerf poses` finds it by GPS in the photos; OpenDroneMap, "
        "OpenSfM and Metashape state it; else train with --georeference EPSG:CODE or LATITUDE,LONGITUDE,HEIGHT"
    )


def map_frame(model: Model, folder: Path, epsg: int | None) -> MapFrame:
    """Of a georeferenced run."""
    import torch

    from nerf.io.geotiff import MapFrame

    middle = model.scene_from_world.inverse().apply(torch.zeros(1, 3, dtype=torch.float64))[0]
    return MapFrame(georeference_of(model, folder), middle, epsg)


def placed(model: Model, frame: str, scale: float, of_map: MapFrame | None) -> Georeference | None:
    """Where on earth what is written stands; None where nobody knows, or where it is in the frame of the scene."""
    if of_map is not None:
        return Georeference(epsg=of_map.epsg)
    return model.georeference.scaled(scale) if model.georeference is not None and frame == "world" else None


def in_metres(model: Model, scale: float) -> bool:
    """Whether lengths of the world are known to be metres."""
    place = model.georeference
    return place is not None and place.origin is not None and abs(place.metres / scale - 1) < 1e-6


def place_mesh(mesh: trimesh.Trimesh, frame: MapFrame) -> None:
    """From the world frame to that of a map, in place."""
    import torch

    vertices, normals = (torch.from_numpy(np.array(part)) for part in (mesh.vertices, mesh.vertex_normals))
    turn = frame.rotation(vertices.mean(dim=0))
    mesh.vertices = frame.from_world(vertices).numpy()
    mesh.vertex_normals = (normals @ turn.T).numpy()  # type: ignore[method-assign]


def save_placed(mesh: trimesh.Trimesh, out: Path, up: Tensor, place: Georeference | None) -> None:
    """The mesh, and beside it where on earth it stands, where that is known."""
    shift = None if place is None else taken_off(mesh, out)
    save_mesh(mesh, out, up)
    if place is not None:
        save_georeference(out, place, shift)


def write_points(model: Model, n: int, frame: str, out: Path, scale: float, of_map: MapFrame | None = None) -> None:
    """`nerf mesh --points`: prints how many there are and where they lie."""
    from nerf.meshing.cloud import point_cloud, save_cloud

    start = time.perf_counter()
    cloud = point_cloud(model, n)
    if frame == "scene":
        to = model.scene_from_world
        cloud = cloud._replace(points=to.apply(cloud.points), normals=to.apply_directions(cloud.normals))
    elif of_map is not None:
        turn = of_map.rotation(cloud.points.mean(dim=0))
        cloud = cloud._replace(points=of_map.from_world(cloud.points), normals=cloud.normals @ turn.T)
    else:
        cloud = cloud._replace(points=cloud.points * scale)
    save_cloud(cloud, out)
    if (place := placed(model, frame, scale, of_map)) is not None:
        save_georeference(out, place)
    say(f"{len(cloud.points):,} points with normals and colours; {time.perf_counter() - start:.1f} s")
    say(out)
