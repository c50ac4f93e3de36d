"""`nerf fit shape`, `nerf fit ct` and `nerf fit set`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from nerf.cli.fit_options import FitArgs, adjust_choice, choice_of, run_fit, tell
from nerf.errors import Range, UserError, check_numbers

LATENTS = "latents.npy"
COLUMNS = 10  # pictures of a set in a row
WEIGHT = Range(0, 1e9)  # of a part of a loss


@dataclass
class ShapeArgs(FitArgs):
    """Fit a field to a 3D shape: the signed distance to a mesh, or to points with normals."""

    file: tyro.conf.Positional[Path] = tyro.MISSING
    """.ply, .obj, .glb, .stl or .off: a mesh, holes and overlaps allowed, or a .ply of points with normals"""
    distance: Literal["auto", "signed", "unsigned"] = "auto"
    """unsigned: no inside and outside, as sheets have none; auto finds out and says so"""
    eikonal: float = 0.0
    """weight of (|gradient| - 1)^2, for the field siren: smooth normals"""
    samples: int = 1 << 20
    """points at which the distance is worked out before the fit"""
    grid: int = 256
    """points along the longest side, of which mesh.ply is made"""


@dataclass
class CtArgs(FitArgs):
    """Find a slice from its projections: a sinogram of parallel beams, one column for each angle."""

    file: tyro.conf.Positional[Path] = tyro.MISSING
    """.npy, .png, .tif or .exr: detectors x angles, as scikit-image's radon writes it; or .h5 of a beamline"""
    angles: Path | None = None
    """text file or .npy with the angles in degrees (evenly from 0 to 180, the end left out)"""
    center: float | None = None
    """the detector on which the axis of rotation falls, counted from 0 (the middle; scikit-image: detectors // 2)"""
    transpose: bool = False
    """the file has one row, not one column, for each angle"""
    row: int | None = None
    """of HDF5: the row of detectors that saw the slice (the middle one)"""
    variation: float = 0.03
    """weight of the slice's total variation: more is flatter, for noisy data; 0: none"""


@dataclass
class SetArgs(FitArgs):
    """Fit one network to many pictures of a kind, each a short latent: to blend them, and to draw new ones."""

    file: tyro.conf.Positional[Path] = tyro.MISSING
    """a folder of pictures of one size, or a .npy [n,h,w] or [n,h,w,c]"""
    field: Literal["siren"] = "siren"
    """sine layers, whose phases the latents shift"""
    latent: int = 64
    """numbers for each picture"""


def fit_shape(args: ShapeArgs, until: ExitStack) -> None:
    from nerf.io.pictures import write_png
    from nerf.meshing import files
    from nerf.signals import shape, solid, surface

    numbers = {"grid": surface.GRID, "eikonal": WEIGHT, "samples": Range(1000, 1e9, whole=True)}
    check_numbers(vars(args), numbers, "--")
    unsigned = None if args.distance == "auto" else args.distance == "unsigned"
    choice = adjust_choice(args, shape.choose_shape(args.field))
    truth = solid.read_solid(args.file, unsigned)
    problem = shape.Shape(truth, args.file.name, args.eikonal, args.samples, args.seed)
    field = shape.shape_field(problem, choice, args.seed)
    fitted = run_fit(args, problem, field, "mesh.ply", "preview.png", until=until)
    measured = surface.measure_shape(fitted.field, truth, args.seed)
    mesh = surface.mesh_of_field(fitted.field, fitted.signal, args.grid)
    files.save_mesh(mesh, args.out / "mesh.ply")
    if truth.areas is None and truth.signed:
        measured |= {"chamfer_percent": surface.chamfer_of(mesh, truth).chamfer_percent}
    views = [surface.trace(fitted.field, fitted.signal, azimuth=a) for a in (35.0, 215.0)]
    write_png(args.out / "preview.png", np.hstack(views))
    tell(args, fitted, measured, args.out / "mesh.ply")


def fit_ct(args: CtArgs, until: ExitStack) -> None:
    from nerf.signals import beamline, ct

    check_numbers(vars(args), {"variation": WEIGHT}, "--")
    stated = None
    if args.file.is_file() and beamline.is_hdf5(args.file):
        values, stated = beamline.read_hdf5(args.file, args.row)
        ct.check_sinogram(values, args.file)
    else:
        values = ct.read_sinogram(args.file, args.transpose)
    if args.center is not None and not 1 <= args.center <= len(values) - 2:
        raise UserError(f"--center {args.center:g}: expected a detector between 1 and {len(values) - 2}")
    angles = ct.read_angles(args.angles, values.shape[1], stated)
    problem = ct.Sinogram(values, angles, args.center, args.variation, name=args.file.name)
    slices = ("slice.npy", "slice.png")
    fitted = run_fit(args, problem, choice_of(args, problem.shape), *slices, until=until)
    found = ct.slice_of_field(fitted.field, fitted.signal, *problem.shape)
    for name in slices:
        ct.write_slice(args.out / name, found)
    tell(args, fitted, {"projection_error": problem.relative_error(fitted.field)}, args.out / "slice.npy")


def fit_set(args: SetArgs, until: ExitStack) -> None:
    from nerf.io.pictures import write_png
    from nerf.signals import latents

    images = latents.read_set(args.file)
    problem = latents.LatentFields(images, args.file.name)
    field = latents.latent_field(problem, args.latent, args.width, args.depth, args.seed)
    fitted = run_fit(args, problem, field, LATENTS, "reconstruction.png", until=until)
    z = latents.latents_of(field, problem)
    latents.write_latents(args.out / LATENTS, z)
    found = latents.pictures_of(field, z, *problem.shape)
    pairs, target = np.concatenate([images[:COLUMNS], found[:COLUMNS]]), args.out / "reconstruction.png"
    write_png(target, latents.sheet(pairs, min(COLUMNS, len(images))))
    tell(args, fitted, latents.measure_set(problem, found), target)
