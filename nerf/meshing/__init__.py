"""From a trained model to a triangle mesh in the frame of the photos; `nerf mesh`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nerf.errors import note
from nerf.meshing.extract import default_threshold, extract
from nerf.meshing.files import check_path, save

__all__ = ["MeshArgs", "default_threshold", "extract", "main", "save"]


@dataclass
class MeshArgs:
    """Extract a closed, coloured mesh from a trained model, in the frame of the photos' poses."""

    model: tyro.conf.Positional[Path]
    """the folder that `nerf train` or `nerf reconstruct` wrote, or a checkpoint file in it"""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """NAME.glb, NAME.ply or NAME.obj (default: mesh.glb in the model's folder)"""
    resolution: int = 512
    """cells along the longest side of what is meshed"""
    threshold: float | None = None
    """density of the surface in 1/scene length (default 44: half the light is absorbed over 1/64); lower keeps more"""
    box: tuple[float, float, float, float, float, float] | None = None
    """x0 y0 z0 x1 y1 z1 in the scene frame (default: the object; unbounded scenes: -1 -1 -1 1 1 1)"""
    min_fraction: float = 0.01
    """drop pieces with fewer faces than this share of the largest piece's"""
    max_components: int | None = None
    """keep at most so many of the largest pieces"""
    colours: bool = True
    """colour the vertices"""
    overwrite: bool = False
    """replace a file of the same name"""


def main(args: MeshArgs) -> None:
    """`nerf mesh`: prints what the mesh is and where it lies."""
    from nerf.views.video import model_files

    folder, checkpoint = model_files(args.model)
    out = args.out if args.out is not None else folder / "mesh.glb"
    check_path(out, args.overwrite)

    from nerf.model import Model  # after the checks: a mistake shows at once

    model = Model.load(checkpoint)
    start = time.perf_counter()
    mesh = extract(
        model,
        resolution=args.resolution,
        threshold=args.threshold,
        box=args.box,
        min_fraction=args.min_fraction,
        max_components=args.max_components,
        colours=args.colours,
    )
    seconds = time.perf_counter() - start
    save(mesh, out)
    about = mesh.metadata
    if not about["closed"]:
        note("the mesh is not closed everywhere, which should not happen; please report it")
    pieces = "one piece" if about["components"] == 1 else f"{about['components']} pieces"
    print(
        f"{len(mesh.faces):,} triangles, {pieces}, closed, {seconds:.1f} s"
        if about["closed"]
        else f"{len(mesh.faces):,} triangles"
    )
    print(out)
