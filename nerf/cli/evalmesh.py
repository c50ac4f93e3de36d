"""`nerf evalmesh`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from nerf.errors import Range, UserError, check_numbers, note, say
from nerf.geometry.triangles import read_mesh, read_textured_mesh
from nerf.io.files import write_file
from nerf.io.folders import model_files
from nerf.io.outputs import check_output
from nerf.meshing.evaluation import check_frames, evaluate_mesh, evaluate_mesh_views


@dataclass
class EvalMeshArgs:
    """Measure a mesh against the true one, or against photos; all in one frame."""

    mesh: tyro.conf.Positional[Path]
    """the mesh to evaluate: .ply, .obj, .glb, .stl or .off"""
    truth: Path | None = None
    """the true mesh, in the same frame and units: distances, F-score, normals"""
    views: Path | None = None
    """a folder of photos with poses: PSNR of the mesh drawn as its test views"""
    run: Path | None = None
    """with --views: the run that the mesh is of: its refined poses and vignetting, as in nerf eval"""
    samples: int = 200_000
    """points spread over each of the two surfaces"""
    out: Path | None = None
    """also write the numbers to this JSON file"""
    overwrite: bool = False
    """replace a file of that name"""


def main(args: EvalMeshArgs) -> None:
    """`nerf evalmesh`: prints a table."""
    import json

    if args.truth is None and args.views is None:
        raise UserError("give --truth MESH, --views DATA, or both: there must be something to measure against")
    if args.run is not None and args.views is None:
        raise UserError("--run: how photos were lit matters where the mesh is drawn as them; give --views DATA, too")
    check_numbers(vars(args), {"samples": Range(1, 1e9, whole=True)}, "--")
    if args.out is not None:
        check_output(args.out, args.overwrite, args.mesh, args.truth)
    mesh = read_mesh(args.mesh)
    result: dict[str, Any] = {"mesh": str(args.mesh)}
    if args.truth is not None:
        truth = read_mesh(args.truth)
        check_frames(mesh, truth, str(args.mesh), str(args.truth))
        scores = evaluate_mesh(mesh, truth, args.samples)
        result |= scores.to_dict() | {"truth": str(args.truth)}
        say(scores)
    if args.views is not None:
        from nerf import datasets
        from nerf.rendering.model import Model
        from nerf.training.alignment import as_trained
        from nerf.views.viewer.edits import read_edits

        scene, model = datasets.load(args.views), None
        if args.run is not None:
            model = Model.load(args.run)
            if not set(model.names) & set(scene.names):
                raise UserError(f"--run: {args.run} was trained on none of the photos in {args.views}")
            if (scale := read_edits(model_files(args.run)[0]).scale) != 1.0:
                note(f"{args.run} has lengths times {scale:.6g}: a mesh to measure is made with --no-edits")
            scene = as_trained(scene, model)
        views = evaluate_mesh_views(read_textured_mesh(args.mesh), scene, model=model)
        result |= {"views": views.to_dict()}
        say(f"drawn as {views.n_views} test views: PSNR {views.psnr:.2f} dB, SSIM {views.ssim:.4f} (mean)")
    if args.out is not None:
        write_file(args.out, json.dumps(result, indent=1) + "\n")
        say(args.out)
