"""Other ways of doing the same on the GPU, beside the default: the sections graph and tinycudann of gpu_check.py."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import cuda_checks as checks
from benchmarks.gpu_learning import TINY, load, seconds_of, synchronise
from nerf import kernels
from nerf.errors import UserError
from nerf.fields.radiance import FieldOptions, RadianceField
from nerf.kernels import reference, tcnn
from nerf.training.config import TrainConfig
from nerf.training.loop import Trainer

Clock = Callable[[], float]
Args = argparse.Namespace
# tinycudann rounds to half precision after every product, also within sums: ours are float32
TINYCUDANN_VALUE = 2e-2
ALIKE = 0.05  # relative difference of two trainings' last errors that atomics alone explain


def graph(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    """Seconds a step as it is, with steps recorded as CUDA graphs, and deterministic; from the same start.

    `graph_pays` is what the default of TrainConfig.graph should be on this machine.
    """
    loaded = load(scene, 32 if args.dry_run else 1)
    n_warm, n = (0, 1) if args.dry_run else (600, 200)
    found: dict[str, Any] = {}
    for mode in ("plain", "graph", "deterministic"):
        small: dict[str, Any] = (
            {"batch_samples": 256, "field": TINY, "occupancy_resolution": 32} if args.dry_run else {}
        )
        config = TrainConfig(steps=3000, graph=mode == "graph", deterministic=mode == "deterministic", **small)
        try:
            trainer = Trainer(loaded, config)
            for _ in range(n_warm):
                trainer.train_step()
            synchronise()
            started = time.perf_counter()
            for _ in range(n):
                trainer.train_step()
            synchronise()
            row: dict[str, Any] = {"step_seconds": (time.perf_counter() - started) / n, "mse": trainer.meter.mse}
            if trainer.recorded is not None:
                row |= {"replayed": trainer.recorded.n_replayed, "graphs_kept": len(trainer.recorded.graphs)}
            elif mode == "graph" and not args.dry_run:
                row["failed"] = "steps could not be recorded (a line above says why)"
            found[mode] = row
        except (UserError, RuntimeError) as error:
            found[mode] = {"failed": " ".join(str(error).split())[:500]}
        print(mode, found[mode])
    kernels.be_deterministic(False)
    failed = [mode for mode, row in found.items() if "failed" in row]
    if failed:
        return found | {"failed": f"it does not train in the mode {' nor '.join(failed)}"}
    found["graph_pays"] = found["graph"]["step_seconds"] < 0.97 * found["plain"]["step_seconds"]
    found["deterministic_costs"] = found["deterministic"]["step_seconds"] / found["plain"]["step_seconds"]
    print({name: found[name] for name in ("graph_pays", "deterministic_costs")})
    for mode in ("graph", "deterministic"):
        if not args.dry_run and abs(found[mode]["mse"] / found["plain"]["mse"] - 1) > ALIKE:
            found["failed"] = f"training in the mode {mode} gives other errors than the plain one"
    return found


def tinycudann(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    """The backend tinycudann where it is installed: our field through it, and how fast it is beside our kernels."""
    missing = tcnn.why_missing()
    if missing:
        print(f"skipped: {missing}")
        return {"skipped": missing}
    place, n = kernels.device(), 1 << (8 if args.dry_run else 18)
    field = RadianceField(TINY if args.dry_run else FieldOptions()).to(place)
    field.table.data.uniform_(-0.5, 0.5)
    field.table_half = field.table.detach().half()
    points = torch.rand(n, 3, device=place) * 2 - 1
    directions = torch.nn.functional.normalize(torch.randn(n, 3, device=place), dim=1)
    params, config = field.params(), field.config
    some = slice(0, 4096)
    wanted = reference.radiance_field(
        points[some].double().cpu(), directions[some].double().cpu(), checks.cast(params, "cpu", torch.float64), config
    )
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for backend in ("cuda", "tinycudann"):
        kernels.use(backend)
        with torch.no_grad():
            sigmas, rgbs = field(points[some], directions[some])
        errors = {
            "densities": checks.relative(sigmas.log(), wanted[0].log()),
            "colours": checks.relative(rgbs, wanted[1]),
        }
        limit = checks.HALF_VALUE if backend == "cuda" else TINYCUDANN_VALUE
        wrong += [f"{backend}: {what}" for what, error in errors.items() if not error <= limit]
        with torch.no_grad():
            took = seconds_of(lambda: field(points, directions))
        found[backend] = {"errors": errors, "field_per_second": n / took}
    weights = torch.rand(n, 4, device=place)

    def both() -> None:
        sigmas, rgbs = tcnn.radiance_field(points, directions, params, config)
        loss = (sigmas * weights[:, 0]).sum() + (rgbs * weights[:, 1:]).sum()
        torch.autograd.grad(loss, [params.table, *params.density_weights, *params.color_weights])

    found["tinycudann"]["field_forward_backward_per_second"] = n / seconds_of(both)
    loaded = load(scene, 32 if args.dry_run else 1)
    for backend in ("cuda", "tinycudann"):
        kernels.use(backend)
        small: dict[str, Any] = (
            {"batch_samples": 256, "field": TINY, "occupancy_resolution": 32} if args.dry_run else {}
        )
        trainer, n_steps = Trainer(loaded, TrainConfig(steps=3000, **small)), 1 if args.dry_run else 100
        for _ in range(n_steps):
            trainer.train_step()
        synchronise()
        started, before = time.perf_counter(), trainer.samples["rays"]
        for _ in range(n_steps):
            trainer.train_step()
        synchronise()
        found[backend]["rays_per_second"] = (trainer.samples["rays"] - before) / (time.perf_counter() - started)
    kernels.use("cuda")
    print(found)
    found["faster_in_training"] = max(("cuda", "tinycudann"), key=lambda b: found[b]["rays_per_second"])
    return found | ({"failed": f"numbers that are not the reference's: {', '.join(wrong)}"} if wrong else {})
