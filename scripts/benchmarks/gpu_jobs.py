"""The sections of scripts/gpu_check.py: each takes its arguments, the scene's folder and a clock; returns a dict.

Times are medians of launches between CUDA events (wall-clock in a dry run). Nothing here is compared with a number from
elsewhere: targets stand in the README, beside what was measured.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import cuda_checks as checks
from benchmarks import cuda_step_checks as steps
from benchmarks.gpu_learning import LAST, TINY, load, profile, seconds_of, synchronise, trained, training, tuning
from benchmarks.gpu_modes import graph, tinycudann
from nerf import kernels as ops
from nerf.fields.radiance import FieldOptions
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Box
from nerf.kernels import GradAccumulator, GridLayout, Rays, nvrtc
from nerf.rendering.marching import Marching
from nerf.rendering.model import Model

Clock = Callable[[], float]
Args = argparse.Namespace


__all__ = ["compile", "correctness", "graph", "kernels", "mesh", "profile", "sanitizer", "tinycudann", "training"]
__all__ += ["tuning", "views"]


# ---- is it right ---------------------------------------------------------------------------------------------------


def compile(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    """The first launch of everything that training a default field needs: seconds with what the cache holds."""
    started = time.perf_counter()
    params, config = checks.make_field(**(_small() if args.dry_run else {"n_features": 32}))
    place = ops.device()
    table = params.table.to(place)
    placed = replace(params, table=table)
    moved = [[w.to(place) for w in ws] for ws in (params.density_weights, params.color_weights)]
    placed = replace(placed, density_weights=moved[0], color_weights=moved[1])
    ops.field_forward(torch.zeros(64, 3, device=place), None, ops.FieldView(placed, config, table.half()))
    synchronise()
    files = int(nvrtc.statistics["compiled"])
    result = {
        "cache": "warm" if files == 0 else "cold",
        "files_compiled": files,
        "compile_seconds": round(nvrtc.statistics["compile_seconds"], 3),
        "first_answer_seconds": round(time.perf_counter() - started, 3),
    }
    print(result)
    return result


def _small() -> dict[str, Any]:
    return {"width": 32, "n_features": 16}


def chosen_checks(args: Args) -> dict[str, Callable[[], Iterator[checks.Row]]]:
    tiny: dict[str, Callable[[], Iterator[checks.Row]]] = {
        "march": lambda: checks.check_march(100),
        "field, half": lambda: checks.check_field(True, 40, **_small()),
        "render, half": lambda: checks.check_render(True, 20, 0.1, **_small()),
        "Adam": lambda: checks.check_adam(100),
        "deterministic": lambda: checks.check_deterministic(20, **_small()),
    }
    if ops.backend() == "cuda":  # which alone has these
        tiny["numbers"] = checks.check_numbers
        tiny["step"] = lambda: itertools.chain(steps.check_draw(100), steps.check_learn(True, 20, 0.1, **_small()))
    whole = {
        "draw": steps.check_draw,
        "learn, half": lambda: steps.check_learn(True),
        "learn, single": lambda: steps.check_learn(False),
    }
    return tiny if args.dry_run or args.small else checks.ALL | whole


def correctness(args: Args, scene: Path, left: Clock, name: str) -> dict[str, Any]:
    """One of the checks, by name."""
    rows: list[dict[str, Any]] = []
    try:
        for what, error, limit in chosen_checks(args)[name]():
            rows.append({"what": what, "error": error, "limit": limit, "right": error <= limit})
    except Exception as broke:  # what it found before still counts
        rows.append({"what": name, "error": f"{type(broke).__name__}: {broke}"[:500], "right": False})
    wrong = [row for row in rows if not row["right"]]
    for row in rows:
        mark = "ok " if row["right"] else "BAD"
        error = row["error"] if isinstance(row["error"], str) else f"{row['error']:.2e} of {row['limit']:.0e}"
        print(f"{mark} {row['what']:<60} {error}")
    result: dict[str, Any] = {"rows": rows}
    if wrong:
        result["failed"] = f"{len(wrong)} of {len(rows)} numbers are not those of the reference"
    return result


SANITIZERS = ("memcheck", "initcheck", "racecheck", "synccheck")  # by what a finding is worth
# torch's own pool of memory would make an access beyond a tensor's end a legal one
UNPOOLED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def sanitizer(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    """compute-sanitizer's tools over the small checks, each in a process of its own, as far as the time reaches."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None or args.small:
        print("skipped: compute-sanitizer is not there")
        return {"skipped": "compute-sanitizer is not there"}
    until, found = left() - max(10.0, min(100.0, left() / 3)), {}
    for tool in SANITIZERS:
        found[tool] = _sanitized(program, tool, args, max(5.0, left() - until))
        print(tool, found[tool])
        if "skipped" in found[tool]:
            break  # it is slow or unable here: the others would be too
    failed = [tool for tool, result in found.items() if "failed" in result]
    return found | ({"failed": f"compute-sanitizer found errors ({', '.join(failed)})"} if failed else {})


def _sanitized(program: str, tool: str, args: Args, seconds: float) -> dict[str, Any]:
    script = Path(__file__).resolve().parent.parent / "gpu_check.py"
    with TemporaryDirectory() as scratch:
        inner = [sys.executable, str(script), "--data", str(args.data), "--only", "correctness", "--small"]
        inner += ["--out", str(Path(scratch) / "small.json")]
        command = [program, "--tool", tool, "--error-exitcode", "77", *inner]
        try:
            environment = os.environ | UNPOOLED
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
        except subprocess.TimeoutExpired:
            return {"skipped": "it took too long"}
    lines = [line.strip("= ") for line in done.stdout.splitlines() if line.startswith("=========")][-12:]
    if done.returncode == 77:
        return {"failed": "it found errors", "lines": lines}
    if done.returncode == 1:
        return {"failed": "checks are wrong or break under it", "lines": done.stdout.splitlines()[-12:]}
    if done.returncode:
        return {"skipped": f"it does not run here (exit {done.returncode})", "lines": lines}
    return {"clean": True, "lines": lines}


# ---- how fast are the kernels --------------------------------------------------------------------------------------


def kernels_timed(args: Args) -> dict[str, float]:
    """Samples a second and bytes a second of single ops, on random numbers of the default field's size."""
    place, dry = ops.device(), args.dry_run
    n = 1 << 8 if dry else 1 << 18
    found: dict[str, float] = {}
    if not dry:
        block = torch.empty(1 << 30, dtype=torch.uint8, device=place)
        other = torch.empty_like(block)
        found["copy_bytes_per_second"] = 2 * block.numel() / seconds_of(lambda: other.copy_(block))
        del block, other
    options = TINY if dry else FieldOptions()
    from nerf.fields.radiance import RadianceField

    field = RadianceField(options).to(place)
    field.table_half = field.table.detach().half()
    layout: GridLayout = field.config.layout
    points = torch.rand(n, 3, device=place)
    took = seconds_of(lambda: ops.hashgrid_encode(points, field.table.detach(), layout))
    moved = n * (layout.n_levels * 8 * layout.n_features_per_level * 4 + layout.n_features * 4 + 12)
    found["hashgrid_forward_float32_seconds"] = took
    found["hashgrid_forward_float32_bytes_per_second"] = moved / took
    directions = torch.nn.functional.normalize(torch.randn(n, 3, device=place), dim=1)
    scene_points = points * 2 - 1
    found["density_per_second"] = n / seconds_of(lambda: field.density(scene_points))
    with torch.no_grad():
        found["field_per_second"] = n / seconds_of(lambda: field(scene_points, directions))
    found |= _render_timed(field, n, place)
    sink = torch.rand_like(field.table.data)
    table, half = field.table.data, field.table_half
    state = ops.AdamState.of(table, (0.9, 0.99), 1e-15)

    def adam() -> None:
        ops.adam_step(table, sink, state, ops.AdamStep(1e-3, 3, skip_zero_rows=True, half_copy=half))

    found["adam_rows_per_second"] = layout.n_rows / seconds_of(adam)
    return found


def _render_timed(field: Any, n: int, place: torch.device) -> dict[str, float]:
    """Forward and backward of the whole field over about n samples, all of which count: full cells, thin fog."""
    rays = [t.to(place) for t in checks.make_rays(max(n // 64, 8), 1, 32, 2.0)]
    settings = replace(Marching(Box(), 0.0, 100.0).settings(), step_size=0.03, max_step=0.03)
    settings = replace(settings, stop_threshold=0.0, alpha_threshold=0.0)
    bits = ops.pack_occupancy(rays[-1])
    sink = GradAccumulator(torch.zeros_like(field.table.data))
    view, marched = field.view(), Rays(*rays[:2], rays[1], *rays[2:-1])

    def forward() -> ops.RenderedRays:
        return ops.render_rays(marched, rays[-1], view, settings, bits, sink, "drop")

    def both() -> None:
        out = forward()
        torch.autograd.grad(out.foregrounds.sum() + out.opacities.sum(), view.params.density_weights)

    samples = int(forward().evaluated)
    return {
        "render_samples": float(samples),
        "render_forward_per_second": samples / seconds_of(forward),
        "render_forward_backward_per_second": samples / seconds_of(both),
    }


def kernels(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    found = kernels_timed(args)
    for name, value in found.items():
        print(f"{name:<45} {value:.4g}")
    return dict(found)


# ---- what it is for ------------------------------------------------------------------------------------------------


def views(args: Args, scene: Path | None, left: Clock) -> dict[str, Any]:
    """Seconds a view: everything from the camera to the picture in the CPU's memory, and the rays' colours alone."""
    found: dict[str, Any] = {}
    if scene is not None:
        loaded = load(scene, 32 if args.dry_run else 1)
        model = LAST.get("lego") or trained(args, loaded, 5.0)[0]
        test = loaded.cameras.subset(loaded.splits["test"][: 1 if args.dry_run else 3])
        found["lego 800x800"] = _view_times(model, test)
        if not args.dry_run:
            found["lego 1920x1080"] = _view_times(model, test.resized(1920, 1080))
    fox = None if args.data is None else args.data / "fox.safetensors"
    if fox is not None and fox.is_file():
        model = Model.load(fox)
        last = len(model.cameras) - 1
        found["fox 1920x1080"] = _view_times(model, model.cameras.subset([0, last // 2, last]).resized(1920, 1080))
    else:
        found["fox 1920x1080"] = "not measured: DIR/fox.safetensors is not there"
    for name, value in found.items():
        print(name, value)
    return found


@torch.no_grad()
def _view_times(model: Model, cameras: Cameras) -> dict[str, float]:
    def colors(i: int) -> None:
        rays = cameras.to(model.device).image_rays(i, model.scene_from_world)
        model.render_rays(*(r.to(model.device) for r in rays))

    found = {}
    for name, job in (("view", lambda i: model.render_image(cameras, i)), ("colors", colors)):
        times = []
        for i in (0, *range(len(cameras))):  # the first is to warm up
            synchronise()
            started = time.perf_counter()
            job(i)
            synchronise()
            times.append(time.perf_counter() - started)
        found[f"{name}_seconds"] = statistics.median(times[1:])
    found["frames_per_second"] = 1 / found["colors_seconds"]
    return found


def mesh(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    loaded = load(scene, 32 if args.dry_run else 1)
    model = LAST.get("lego") or trained(args, loaded, 5.0)[0]
    n = 8 if args.dry_run else 256
    axis = torch.linspace(-1, 1, n, device=model.device)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    result: dict[str, Any] = {
        "densities": n**3,
        "densities_per_second": n**3 / seconds_of(lambda: model.density(points), 3),
    }
    try:
        import trimesh  # noqa: F401
    except ModuleNotFoundError:
        result["mesh"] = "not measured: trimesh is not installed"
    else:
        if not args.dry_run and left() > 60:
            from nerf.meshing.extract import extract_mesh

            started = time.perf_counter()
            found = extract_mesh(model, resolution=512)
            result |= {"mesh_seconds": time.perf_counter() - started, "triangles": len(found.faces)}
    print(result)
    return result
