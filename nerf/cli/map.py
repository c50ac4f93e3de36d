"""`nerf map`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nerf.cli.mesh import map_frame
from nerf.errors import Range, UserError, check_numbers, note, say
from nerf.io.folders import make_folder, model_files
from nerf.io.geotiff import Band, check_map_system, geotiff, need_rasterio
from nerf.io.outputs import check_output
from nerf.io.progress import Progress
from nerf.views.viewer.edited import edited, edited_mesh
from nerf.views.viewer.edits import edits_of

ORTHOPHOTO, HEIGHTS = "orthophoto.tif", "height.tif"


@dataclass
class MapArgs:
    """Write an orthophoto and a height map of a georeferenced model as GeoTIFF: seen straight down, north up."""

    model: tyro.conf.Positional[Path]
    """the folder that `nerf train` or `nerf reconstruct` wrote, or a checkpoint file in it"""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """folder to write orthophoto.tif and height.tif to (default: the model's folder)"""
    pixel: float | None = None
    """metres that a pixel is wide (default: as a photo's pixel is on the ground)"""
    epsg: int | None = None
    """code of the projected reference system to draw in (default: that of the poses, else the UTM zone)"""
    resolution: int | None = None
    """of the mesh whose heights are drawn: cells along its longest side, as for `nerf mesh`"""
    edits: bool = True
    """use what was set in `nerf view`, where the run has any: crop, hidden regions"""
    overwrite: bool = False
    """replace maps of the same names"""


def main(args: MapArgs) -> None:
    """`nerf map`: prints what the maps are and where they lie."""
    check_numbers(vars(args), {"pixel": Range(1e-4, 1e6, optional=True)}, "--")
    folder, checkpoint = model_files(args.model, blocks=True)
    need_rasterio()
    if args.epsg is not None:
        check_map_system(args.epsg)
    out = folder if args.out is None else args.out
    make_folder(out)
    for name in (ORTHOPHOTO, HEIGHTS):
        check_output(out / name, args.overwrite, checkpoint)

    import torch

    from nerf.meshing.maps import NO_HEIGHT, draw_map, map_grid, usual_pixel
    from nerf.training.runs import model_of_run

    started, edits = time.perf_counter(), edits_of(folder, args.edits, ("crop", "hidden"))
    model = model_of_run(checkpoint)
    if model.space.warped:
        raise UserError(f"{folder}: forward-facing scenes have no view from above: train with --space unbounded")
    frame = map_frame(model, folder, args.epsg)
    pixel = usual_pixel(model, frame) if args.pixel is None else args.pixel
    mesh = edited_mesh(model, edits, resolution=args.resolution, colours=False)
    corners = frame.from_world(torch.from_numpy(mesh.vertices.copy()))
    grid = map_grid(corners, frame, pixel, args.pixel is not None)
    low, high, n_seen = float("inf"), -float("inf"), 0
    with (
        Progress("drawing maps") as bar,
        geotiff(out / ORTHOPHOTO, grid, "uint8", 4) as colors,
        geotiff(out / HEIGHTS, grid, "float32", 1, NO_HEIGHT) as heights,
    ):
        for rows in draw_map(edited(model, edits), mesh, frame, grid, corners):
            colors(Band(rows.first, rows.colors))
            heights(Band(rows.first, rows.heights))
            known = rows.heights[rows.heights != NO_HEIGHT]
            if len(known):
                low, high, n_seen = min(low, known.min()), max(high, known.max()), n_seen + len(known)
            bar.update(rows.first + len(rows.heights), grid.height)
    if grid.pixel != pixel:
        note(f"pixels of {grid.pixel:g} m, for photos show {pixel:g} m: --pixel {pixel:g} makes a larger map")
    size = f"{grid.width} x {grid.height} pixels of {grid.pixel:g} m"
    share = 100 * n_seen / (grid.width * grid.height)
    span = f", heights {low:.2f} to {high:.2f} m" if n_seen else ""
    say(f"{size} in EPSG:{grid.epsg}, {share:.0f} % known{span}; {time.perf_counter() - started:.1f} s")
    for name in (ORTHOPHOTO, HEIGHTS):
        say(out / name)
