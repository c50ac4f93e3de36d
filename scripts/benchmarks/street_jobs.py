"""The street in one field and in cells: views, seams, mesh, memory and time."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nerf import kernels
from nerf.datasets import load_posed
from nerf.datasets.dividing import Division
from nerf.errors import UserError
from nerf.geometry.mesh_files import load_mesh_file
from nerf.geometry.triangles import Triangles, read_mesh, sample_surface
from nerf.io import children
from nerf.io.folders import model_files
from nerf.meshing import extract
from nerf.rendering.model import Model
from nerf.training.evaluation import truth_of
from nerf.training.runs import model_of_run, scene_of_run

DIVISIONS = (2, 4, 8)  # whose borders are looked at, in one field too
NEAR = 0.5  # metres from a border, within which a pixel shows it
DEPTH_MAPS, SIDE = 48, 200  # in all, and their longer side: the same for every row
WITHIN = (0.05, 0.1)  # metres
BOX = ((-1.0, -6.5, -0.2), (41.0, 6.5, 9.0))  # in which the mesh is held against the truth
SAMPLES = 200_000


def street(scene: str, blocks: int, steps: int, views: int = 16) -> dict[str, Any]:
    """Train, in so many cells with an equal share of the steps each; then views, mesh and what it took.

    seams: PSNR of pixels that show something within NEAR of a border of each division, and of all others; the borders
    of one field are those that it would have been divided at.
    """
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        words = ["-m", "nerf", "train", scene, "-o", str(out), "--steps", str(steps // blocks), "--check", "off"]
        jobs = [["--blocks", str(blocks), "--cell", str(k)] for k in range(blocks)] if blocks > 1 else [[]]
        started = time.perf_counter()
        for job in jobs:  # one after another, each in a process of its own
            if children.run(children.python(*words, *job)).returncode:
                raise UserError(f"nerf {' '.join(job)} failed")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        result: dict[str, Any] = {"seconds": time.perf_counter() - started, "peak_bytes": 1024 * used.ru_maxrss}
        result["processor_seconds"] = used.ru_utime + used.ru_stime
        model = model_of_run(model_files(out, blocks=True)[1])
        result |= seen(model, out, scene, views)
        before = time.perf_counter()
        result |= {"mesh": meshed(model, Path(scene)), "seconds_of_mesh": time.perf_counter() - before}
    return result


def seen(model: Model, out: Path, data: str, n_views: int) -> dict[str, Any]:
    """PSNR of held-out views, and near borders and elsewhere."""
    scene, posed = scene_of_run(out, model.meta), load_posed(data, quiet=True)
    divisions = {n: Division.of(posed, n) for n in DIVISIONS}
    test = scene.splits["test"].tolist()
    ids = [test[k] for k in np.linspace(0, len(test) - 1, n_views).round().astype(int)]
    errors, psnrs, seconds = {n: torch.zeros(2, 2, dtype=torch.float64) for n in DIVISIONS}, [], 0.0
    for i in ids:
        before = time.perf_counter()
        view = model.render_image(scene.cameras, i, normals=False, samples=1)
        seconds += time.perf_counter() - before
        wrong = (torch.from_numpy(view.color) - truth_of(scene, i, model.background)).square().mean(dim=2).flatten()
        psnrs.append(-10 * math.log10(float(wrong.mean())))
        rays_o, rays_d = scene.cameras.image_rays(i)
        depth = torch.from_numpy(view.depth).flatten() / model.scene_from_world.scale
        points = rays_o.double() + depth[:, None].double() * rays_d.double()
        for n, division in divisions.items():
            near = _from_border(points, division) < NEAR
            for k, which in enumerate((near, ~near)):
                errors[n][k] += torch.tensor([wrong[which].double().sum(), which.sum()])
    seams = {str(n): _dbs(e) for n, e in errors.items()}
    return {
        "psnr": float(np.mean(psnrs)),
        "worst": min(psnrs),
        "seconds_per_view": seconds / len(ids),
        "seams": seams,
        "protocol": {"n_train_views": len(scene.splits["train"]), "n_views": len(ids), "resolution": "320x200"},
    }


def _dbs(errors: torch.Tensor) -> dict[str, float]:
    near, far = (-10 * math.log10(float(e[0] / e[1])) for e in errors)
    share = float(errors[0, 1] / errors[:, 1].sum())
    return {"at_borders": near, "elsewhere": far, "gain": near - far, "share": share}


def _from_border(points: torch.Tensor, division: Division) -> torch.Tensor:
    """How far [n] world points lie from the nearest side of their cell, world length."""
    x, distance = division.scene_from_world.apply(points), torch.full((len(points),), math.inf, dtype=torch.float64)
    for plot in division.plots:
        mine = plot.cell.contains(x)
        sides = [(x[mine] - torch.tensor(side)).abs().amin(dim=1) for side in (plot.cell.low, plot.cell.high)]
        distance[mine] = torch.minimum(*sides)
    return distance / division.scene_from_world.scale


def meshed(model: Model, data: Path) -> dict[str, Any]:
    """Precision, recall and F of the mesh: its area in the street against the true surface, and of that what training
    views see against the mesh. Depths are the field's alone, for that takes a tenth of the time."""
    most = extract.MAX_VIEWS, extract.MAX_SIDE
    extract.MAX_VIEWS, extract.MAX_SIDE = DEPTH_MAPS // max(1, model.n_cells), SIDE  # as many in all
    try:
        mesh = Triangles.of(extract.extract_mesh(model, colours=False, show_progress=False))
    finally:
        extract.MAX_VIEWS, extract.MAX_SIDE = most
    truth, low, high = read_mesh(data / "truth.ply"), *(torch.tensor(c, dtype=torch.float64) for c in BOX)
    truth = Triangles.of(truth)
    on_mesh = sample_surface(mesh.vertices, mesh.faces, SAMPLES)
    points = (on_mesh.weights[..., None] * mesh.corners(on_mesh.faces)).sum(dim=1)
    points = points[((points > low) & (points < high)).all(dim=1)]
    shown = torch.from_numpy(np.asarray(load_mesh_file(data / "seen.ply").vertices, np.float64).copy())
    shown = shown[:: max(1, len(shown) // SAMPLES)]
    to_truth = kernels.nearest_points(points, truth.vertices, truth.faces).distances
    to_mesh = kernels.nearest_points(shown, mesh.vertices, mesh.faces).distances
    scores: dict[str, Any] = {"triangles": len(mesh.faces)}
    for within in WITHIN:
        precision, recall = (float((d <= within).double().mean()) for d in (to_truth, to_mesh))
        f = 2 * precision * recall / max(precision + recall, 1e-9)
        scores[f"{100 * within:g}cm"] = {"precision": precision, "recall": recall, "f": f}
    return scores
