"""Measurements on scenes and meshes. Each takes the JSON-able options of its row and returns a JSON-able dict.

Seconds are wall-clock, after Python has started; peaks are of the whole process (torch and images included), in bytes.
"""

from __future__ import annotations

import ast
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch

from nerf import datasets, kernels
from nerf.datasets import Scene
from nerf.errors import UserError
from nerf.fields.radiance import FieldOptions
from nerf.geometry.triangles import Triangles, read_mesh
from nerf.io.machine import machine
from nerf.meshing.clean import component_labels
from nerf.meshing.evaluation import evaluate_mesh, evaluate_mesh_views
from nerf.meshing.extract import extract_mesh
from nerf.meshing.files import save_mesh
from nerf.meshing.finish import TEXTURED_FACES, texture_mesh
from nerf.rendering.metrics import psnr
from nerf.rendering.model import Model
from nerf.training.config import TrainConfig, default_field
from nerf.training.evaluation import evaluate, truth_of
from nerf.training.loop import Trainer
from nerf.training.loop import train as train_scene
from nerf.views.page.harmonics import bake_harmonics, colors_towards


def train(
    scene: str,
    minutes: float,
    downscale: int = 1,
    overrides: list[str] | None = None,
    every: int = 1,
    views: int | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """Load, train, then measure every test view at full resolution on white, and the time of one view (median of 3).

    downscale: of the training images only. every: train on every so-many-th of them (all are loaded). views:
    measure only so many. run: where the checkpoint is kept; nowhere by default.
    """
    started = time.perf_counter()
    loaded = datasets.load(scene, downscale=downscale, quiet=True)
    ids = loaded.splits["train"] = loaded.splits["train"][::every]
    config = configured(loaded, TrainConfig(minutes=minutes), overrides or [])
    times, peaks = {"load": time.perf_counter() - started}, {"load": peak()}
    with TemporaryDirectory() as scratch:
        model = train_scene(loaded, config, run or scratch, progress=sys.stderr.isatty())
    times["train_and_save"] = time.perf_counter() - started - sum(times.values())
    peaks["train"] = peak()
    if downscale > 1:
        loaded = datasets.load(scene, quiet=True)
    kernels.use("auto")  # what the reference kernels have learnt is drawn by the fastest: the same picture, sooner
    if loaded.background is None:
        model.background = torch.ones(3)
    result = evaluate(model, loaded, max_views=views, show_progress=False).to_dict()
    times["evaluate"] = result["seconds"]
    times["all"] = time.perf_counter() - started
    peaks["all"] = peak()
    test_view = int(loaded.splits["test"][0])
    view = statistics.median(
        seconds_of(lambda: model.render_image(loaded.cameras, test_view, normals=False)) for _ in range(3)
    )
    meta = model.meta
    return {
        **{name: result[name] for name in ("psnr", "ssim", "psnr_colour_corrected")},
        "seconds": meta["seconds"],  # from the first step to the last
        "steps": meta["steps"],
        **rates({name: meta[f"n_{name}"] for name in ("rays", "evaluated", "trained")}, meta["seconds"]),
        "seconds_per_view": view,
        "peak_bytes": peaks["all"],
        "seconds_of": times,
        "peak_bytes_after": peaks,
        "protocol": result["protocol"]
        | {
            "budget_minutes": minutes,
            "drawn_by": kernels.backend(),
            "training_downscale": downscale,
            "n_train_views": len(ids),
        },
        "config": asdict(config),
        "views": [{key: v[key] for key in ("name", "psnr", "ssim", "seconds")} for v in result["views"]],
    }


def speed(scene: str, log2_hashmap_size: int | None = None, warm_up: int = 512, steps: int = 256) -> dict[str, Any]:
    """Samples and rays a second over some steps after a warm-up; 64 steps hold their share of occupancy updates."""
    loaded = datasets.load(scene, quiet=True)
    table = [] if log2_hashmap_size is None else [f"log2_hashmap_size={log2_hashmap_size}"]
    trainer = Trainer(loaded, configured(loaded, TrainConfig(steps=10 * (warm_up + steps)), table))
    for _ in range(warm_up):
        trainer.train_step()
    before = dict(trainer.samples)

    def some_steps() -> None:
        for _ in range(steps):
            trainer.train_step()

    seconds = seconds_of(some_steps)
    counts = {name: trainer.samples[name] - before[name] for name in before}
    about = {"warm_up_steps": warm_up, "steps": steps, "config": asdict(trainer.config), "peak_bytes": peak()}
    return {"seconds": seconds, **rates(counts, seconds)} | about


def extract(model: str, resolution: int, threshold: float | None = None) -> dict[str, Any]:
    """Seconds and peak memory of extracting a coloured mesh from a checkpoint or the run folder that holds it."""
    loaded = Model.load(model)
    before, started = peak(), time.perf_counter()
    made = extract_mesh(loaded, resolution, threshold)
    numbers = {"seconds": time.perf_counter() - started, "peak_bytes": peak(), "peak_bytes_before": before}
    about = {"resolution": resolution, "triangles": len(made.faces), "trained_seconds": loaded.meta.get("seconds")}
    return numbers | about | made.metadata


def smaller_views(model: str, scene: str) -> dict[str, Any]:
    """PSNR of held-out views at full, half, ... an eighth of the size against the photos averaged over blocks, and with
    one ray a pixel."""
    loaded, found = Model.load(model), {}
    for factor in (1, 2, 4, 8):
        photos = datasets.load(scene, downscale=factor, quiet=True)
        if photos.background is None:
            loaded.background = torch.ones(3)
        result = evaluate(loaded, photos, show_progress=False)
        thin = [
            psnr(
                torch.from_numpy(loaded.render_image(photos.cameras, view.index, False, samples=1).color),
                truth_of(photos, view.index, loaded.background),
            )
            for view in result.views
        ]
        found[f"1/{factor}"] = {
            "psnr": result.psnr,
            "ssim": result.ssim,
            "psnr_one_ray": statistics.mean(thin),
            "seconds_per_view": statistics.median(view.seconds for view in result.views),
        }
    least = min(found[name]["psnr"] for name in found if name != "1/1")
    return {"sizes": found, "least": least - found["1/1"]["psnr"]}


def textured_mesh(
    model: str,
    scene: str,
    truth: str | None,
    texture: int = 4096,
    resolution: int | None = None,
    scored_by: str | None = None,
) -> dict[str, Any]:
    """Checkpoint to textured mesh: seconds of each stage, distances to the truth, and PSNR drawn as the test views
    beside the field's own (both on white). The whole extracted surface is what is judged against the truth. scored_by:
    a script that takes MESH SCENE --out FILE and writes its own numbers, of scenes that are no object."""
    loaded, photos = Model.load(model), datasets.load(scene, quiet=True)
    loaded.background = torch.ones(3)
    times, started = {}, time.perf_counter()
    surface = extract_mesh(loaded, resolution, colours=False, scene=photos)
    times["extract"] = time.perf_counter() - started
    made = texture_mesh(loaded, photos, surface, texture, TEXTURED_FACES)
    times["texture"] = time.perf_counter() - started - times["extract"]
    with TemporaryDirectory() as scratch:
        save_mesh(made, f"{scratch}/mesh.glb")
    seconds = time.perf_counter() - started
    times["save"] = seconds - sum(times.values())
    result: dict[str, Any] = {"seconds": seconds, "seconds_of": times, "peak_bytes": peak()}
    result |= {"triangles": len(made.faces), "extracted": len(surface.faces), "texture": texture, **surface.metadata}
    views = evaluate_mesh_views(made, photos, model=loaded)
    coefficients, vertices = bake_harmonics(loaded, made), torch.from_numpy(numpy.array(made.vertices))
    by_direction = evaluate_mesh_views(made, photos, lambda eye: colors_towards(coefficients, vertices, eye), loaded)
    result |= {"views_by_direction": by_direction.to_dict(), "gained_by_direction": by_direction.psnr - views.psnr}
    field = evaluate(loaded, photos, show_progress=False).psnr
    result |= {"views": views.to_dict(), "field_psnr": field, "psnr_lost": field - views.psnr}
    if truth is not None:
        against, whole = read_mesh(truth), Triangles.of(surface)
        pairs = {"truth": whole, "truth_textured": made}
        result |= {name: evaluate_mesh(mesh, against).to_dict() for name, mesh in pairs.items()}
        result["genus_off_one"] = abs(genus(whole) - 1)
    if scored_by is not None:
        with TemporaryDirectory() as scratch:
            ply, numbers = Path(scratch, "mesh.ply"), Path(scratch, "numbers.json")
            save_mesh(surface, ply)
            status = subprocess.run([sys.executable, scored_by, str(ply), scene, "--out", str(numbers)]).returncode
            if status:
                raise UserError(f"{Path(scored_by).name} ended with status {status}")
            result["scored"] = json.loads(numbers.read_text())
    return result


def genus(mesh: Triangles) -> float:
    """Handles of a closed mesh's largest component, by Euler's formula: vertices - edges + faces = 2 - 2 genus."""
    labels = component_labels(len(mesh.vertices), mesh.faces)[mesh.faces[:, 0]]
    faces = mesh.faces[labels == labels.mode().values]
    n_vertices = len(faces.unique())
    return 1 - (n_vertices - len(faces) / 2) / 2  # three edges for every two faces


def photograph(mesh: str, up: str, out: str) -> dict[str, Any]:
    """Photos of a mesh by scripts/make_objects.py, unless they are there."""
    home = Path(__file__).resolve().parent.parent
    folder, started = Path(out) / Path(mesh).stem, time.perf_counter()
    if not (folder / "transforms_test.json").is_file():
        command = [sys.executable, str(home / "make_objects.py"), mesh, "--up", up, "--out", out]
        status = subprocess.run(command).returncode
        if status:
            raise UserError(f"make_objects.py ended with status {status}")
    return {"seconds": time.perf_counter() - started, "peak_bytes": peak()}


def distance_of_points(model: str, scene: str) -> dict[str, Any]:
    """Median distance of COLMAP's good points (track of 3 and more, error below a pixel) in the object's box to the
    mesh, in per cent of the box's diagonal."""
    import pycolmap

    loaded = Model.load(model)
    started = time.perf_counter()
    made = extract_mesh(loaded, 512)
    seconds = time.perf_counter() - started
    found = pycolmap.Reconstruction(str(Path(scene) / "sparse" / "0"))
    good = [p.xyz for p in found.points3D.values() if p.track.length() >= 3 and p.error < 1]
    points = torch.from_numpy(numpy.array(good))
    inside = (loaded.scene_from_world.apply(points).abs() <= 1).all(dim=1)
    points = points[inside]
    diagonal = float((points.amax(dim=0) - points.amin(dim=0)).norm())
    vertices, faces = torch.from_numpy(numpy.array(made.vertices)), torch.from_numpy(numpy.array(made.faces))
    distances = kernels.nearest_points(points, vertices, faces).distances
    median = float(distances.median())
    about = {"points": len(points), "diagonal": diagonal, "median": median, "median_percent": 100 * median / diagonal}
    return about | {"seconds": seconds, "peak_bytes": peak(), "triangles": len(faces)}


def check(variants: list[list[str]]) -> dict[str, Any]:
    """Fail before anything is trained where an override is wrong."""
    for overrides in variants:
        split(overrides)
    return {}


def configured(scene: Scene, config: TrainConfig, overrides: list[str]) -> TrainConfig:
    """The configuration with KEY=VALUE of TrainConfig or FieldOptions applied, and its field written out."""
    training, field = split(overrides)
    return replace(config, field=replace(default_field(scene), **field)).with_settings(**training)


def split(overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """KEY=VALUE strings -> (those of TrainConfig, those of FieldOptions)."""
    of_training = set(TrainConfig().settings()) - {"field", "steps", "minutes"}
    of_field = {f.name for f in fields(FieldOptions)}
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or key not in of_training | of_field:
            known = ", ".join(sorted(of_training | of_field))
            raise UserError(f"override {override!r}: expected KEY=VALUE with KEY one of {known}")
        try:
            found[key in of_field][key] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise UserError(f"override {override!r}: {value!r} is no Python number, bool or string") from error
    return found


def rates(counts: dict[str, int], seconds: float) -> dict[str, Any]:
    return {f"n_{k}": n for k, n in counts.items()} | {f"{k}_per_second": n / seconds for k, n in counts.items()}


def seconds_of(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def peak() -> int:
    """Bytes of the largest resident set so far. That of the process that started this one counts: bench.py is small."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def surroundings() -> dict[str, Any]:
    """What must stand beside a number: machine, versions, commit, kernels, and what else was running."""
    return {
        **machine(),
        "numpy": numpy.__version__,
        "backend": kernels.backend(),
        "kernels": kernels.describe(),
        "nice": os.nice(0),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
