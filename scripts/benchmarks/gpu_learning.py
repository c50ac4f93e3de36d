"""How fast and how well a scene is learnt on the GPU: the sections training, tuning and profile of gpu_check.py."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nerf import datasets
from nerf.datasets import Scene
from nerf.fields.radiance import FieldOptions
from nerf.kernels import cuda_render
from nerf.rendering import rays as rendering
from nerf.rendering.model import Model
from nerf.training import stepping
from nerf.training.config import TrainConfig
from nerf.training.loop import Trainer
from nerf.training.loop import train as train_scene

LATER = 110  # seconds that training leaves to the sections behind it
Clock = Callable[[], float]
Args = argparse.Namespace
TINY = FieldOptions(
    n_levels=4, log2_hashmap_size=12, base_resolution=8, finest_resolution=64, width=16, n_color_layers=2
)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(job: Callable[[], Any], repeats: int = 20, warm: int = 3) -> float:
    """Median seconds of one call on the GPU, back to back."""
    for _ in range(warm):
        job()
    if not torch.cuda.is_available():
        started = time.perf_counter()
        job()
        return time.perf_counter() - started
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        job()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks)) / 1e3


@lru_cache
def load(folder: Path, downscale: int) -> Scene:
    return datasets.load(str(folder), downscale=downscale, quiet=True)


@torch.no_grad()
def psnr_of(model: Model, scene: Scene, every: int = 1) -> float:
    """Mean PSNR of the test views (every so-manieth) at the size that was loaded, on white."""
    total, ids = 0.0, scene.splits["test"][::every].tolist()
    for i in ids:
        truth = scene.pixels.image(i)
        if scene.has_alpha:
            truth = truth[..., :3] * truth[..., 3:] + (1 - truth[..., 3:])
        color = torch.from_numpy(model.render_image(scene.cameras, i, normals=False).color)
        total += -10 * math.log10(max(float((color - truth[..., :3]).square().mean()), 1e-10))
    return total / max(len(ids), 1)


def trained(args: Args, scene: Scene, seconds: float, **settings: Any) -> tuple[Model, dict[str, Any]]:
    config = TrainConfig(minutes=seconds / 60).with_settings(**settings)
    if args.dry_run:
        config = TrainConfig(steps=2, batch_samples=256, field=TINY, occupancy_resolution=32)
    with TemporaryDirectory() as scratch:
        started = time.perf_counter()
        with _busy_shares() as busy:
            model = train_scene(scene, config, scratch, progress=False)
            synchronise()
        spent = time.perf_counter() - started
    meta = model.meta
    row = {
        "told_seconds": seconds,
        "train_seconds": round(meta["seconds"], 3),
        "with_setup_and_saving_seconds": round(spent, 3),
        "gpu_busy_share": sum(busy) / len(busy) if busy else None,  # of nvidia-smi's samples: some kernel was running
        "steps": meta["steps"],
        "steps_per_second": meta["steps"] / meta["seconds"],
        "rays_per_second": meta["n_rays"] / meta["seconds"],
        "evaluated_per_second": meta["n_evaluated"] / meta["seconds"],
        "trained_per_second": meta["n_trained"] / meta["seconds"],
    }
    return model, row


@contextmanager
def _busy_shares() -> Iterator[list[float]]:
    """A list that holds, afterwards, shares of time in which the GPU ran a kernel, sampled while within."""
    shares: list[float] = []
    program = shutil.which("nvidia-smi")
    if program is None:
        yield shares
        return
    command = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield shares
    finally:
        watching.terminate()
        lines = watching.communicate(timeout=10)[0].splitlines()
        shares += [float(line) / 100 for line in lines[2:] if line.strip().isdigit()]  # the first are of before


LAST: dict[str, Model] = {}  # the best model so far, for the sections after training


def training(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    loaded = load(scene, 32 if args.dry_run else 1)
    rows = []
    every = 12 if args.dry_run else max(1, len(loaded.splits["test"]) // 25)  # 25 of lego's 200
    # in the mode that section graph found to be the faster one, and once in the other
    faster = args.faster is not False
    lengths = [(2.5, faster), (2.5, faster), (6.0, faster), (6.0, not faster), (25.0, faster), (60.0, faster)]
    lengths = [(1.0, True)] if args.dry_run else lengths + ([(300.0, faster)] if args.only else [])
    left_out = []
    for k, (seconds, graph) in enumerate(lengths):
        if left() < seconds * 1.1 + 8 + (0 if args.only else LATER) and not args.dry_run:
            left_out.append(seconds)
            print(f"{seconds} s: skipped, {left():.0f} s are left")
            continue
        model, row = trained(args, loaded, seconds, graph=None if graph else False)
        row["kind"] = "warming up, not to be reported" if k == 0 and not args.dry_run else "measured"
        row["graphs"] = graph
        started = time.perf_counter()
        row["psnr"] = psnr_of(model, loaded, every)
        row["evaluation_seconds"] = round(time.perf_counter() - started, 2)
        LAST["lego"] = model
        rows.append(row)
        print(row)
    protocol = f"test views {len(loaded.splits['test'][::every])}, white background in evaluation, random in training"
    resolution = int(loaded.cameras.widths[0])
    result: dict[str, Any] = {"rows": rows, "protocol": protocol, "resolution": resolution, "left_out": left_out}
    if any(not math.isfinite(row["psnr"]) for row in rows):
        result["failed"] = "a PSNR is not a number"
    return result


# What other values of our guesses give, as (what is set, where: a setting of TrainConfig or a constant of a module).
SETTINGS: list[dict[str, Any]] = [
    *({"batch_samples": 1 << k} for k in (15, 16, 18, 19, 20)),
    *({"learning_rate": r} for r in (5e-3, 2e-2)),
    *({"surface": w} for w in (0.0, 0.15, 1.2)),
    {"coarse_steps": 100, "diffuse_steps": 50},
    {"step_scale": 1.0},
    {"occupancy_every": 32},
    {"graph": False},
]
CONSTANTS = (
    *((stepping, "READ_EVERY", v) for v in (1, 4, 64)),
    *((cuda_render, "TRAINING_THREADS", v) for v in (64, 256)),
    (cuda_render, "RAY_ROOM", 48),
)


def tuning(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    """What other batches, rates and sizes give in six seconds, and which are best; `--only tuning`."""
    loaded = load(scene, 32 if args.dry_run else 1)
    every = max(1, len(loaded.splits["test"]) // 8)
    rows: list[dict[str, Any]] = []

    def attempt(settings: dict[str, Any], **config: Any) -> None:
        if left() < 40 and not args.dry_run:
            return
        model, row = trained(args, loaded, 6.0, **config)
        LAST["lego"] = model
        rows.append(row | {"settings": settings, "psnr": psnr_of(model, loaded, every)})
        print(f"{rows[-1]['psnr']:.2f} dB, {row['steps']} steps: {settings or 'defaults'}")

    attempt({})
    rows.clear()  # that was to warm up
    for settings in [{}, {}, *(SETTINGS[:1] if args.dry_run else SETTINGS)]:  # twice: what two equal runs differ by
        attempt(settings, **settings)
    for module, name, value in CONSTANTS[:1] if args.dry_run else CONSTANTS:
        before = getattr(module, name)
        setattr(module, name, value)
        try:
            attempt({f"{module.__name__}.{name}": value})
        finally:
            setattr(module, name, before)
    views = _view_chunks(args, loaded)
    best = max(rows, key=lambda row: row["psnr"])
    spread = abs(rows[0]["psnr"] - rows[1]["psnr"]) if len(rows) > 1 else math.nan
    ours = max(row["psnr"] for row in rows[:2])
    print(
        f"best: {best['settings'] or 'the defaults'}, {best['psnr'] - ours:+.2f} dB; equal runs differ by {spread:.2f}"
    )
    batches = [row for row in rows if set(row["settings"]) <= {"batch_samples"}]
    best_batch = max(batches, key=lambda row: row["psnr"])["settings"].get("batch_samples", "the default")
    print(f"best batch_samples: {best_batch}; best rays at once in pictures: {min(views, key=lambda c: views[c])}")
    return {"rows": rows, "best": best["settings"], "best_batch_samples": best_batch, "view_seconds_by_chunk": views}


def _view_chunks(args: Args, scene: Scene) -> dict[int, float]:
    """Seconds a view, by the number of rays that are rendered at once."""
    model, cameras, found = LAST["lego"], scene.cameras.subset(scene.splits["test"][:1]), {}
    before = rendering.GPU_CHUNK
    for power in (16,) if args.dry_run else (16, 17, 18, 19, 20, 21, 22):
        rendering.GPU_CHUNK = 1 << power
        times = []
        for _ in range(1 if args.dry_run else 4):
            synchronise()
            started = time.perf_counter()
            model.render_image(cameras, 0)
            synchronise()
            times.append(time.perf_counter() - started)
        found[1 << power] = min(times)
        print(f"{1 << power} rays at once: {found[1 << power]:.4f} s a view")
    rendering.GPU_CHUNK = before
    return found


def profile(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    """Where a training step's time goes, kernel by kernel, in the middle of a short training."""
    loaded = load(scene, 32 if args.dry_run else 1)
    config = (
        TrainConfig(steps=2000, graph=None if args.faster is not False else False)
        if not args.dry_run
        else TrainConfig(steps=2, batch_samples=256, field=TINY, occupancy_resolution=32)
    )
    trainer = Trainer(loaded, config)
    n_warm, n = (0, 1) if args.dry_run else (600, 32)
    for _ in range(n_warm):
        trainer.train_step()
    synchronise()
    started = time.perf_counter()
    for _ in range(n):
        trainer.train_step()
    synchronise()
    step_seconds = (time.perf_counter() - started) / n
    result: dict[str, Any] = {"step_seconds": step_seconds, "n_rays": trainer.n_rays, "samples": trainer.samples}
    if torch.cuda.is_available():
        with suppress(Exception):  # a profiler is a bonus: some machines forbid it
            from torch.profiler import ProfilerActivity
            from torch.profiler import profile as profiler

            with profiler(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
                for _ in range(n):
                    trainer.train_step()
                torch.cuda.synchronize()
            table = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)[:30]
            result["kernels"] = [
                {"name": e.key[:80], "microseconds_a_step": e.self_device_time_total / n, "calls_a_step": e.count / n}
                for e in table
            ]
            result["gpu_seconds_a_step"] = sum(e.self_device_time_total for e in seen.key_averages()) / n / 1e6
            result["gpu_busy_share"] = result["gpu_seconds_a_step"] / step_seconds
    print({k: v for k, v in result.items() if k != "kernels"})
    for row in result.get("kernels", []):
        print(f"{row['microseconds_a_step']:9.1f} us  x{row['calls_a_step']:<5.1f} {row['name']}")
    if os.environ.get("CUDA_LAUNCH_BLOCKING"):
        result["note"] = "CUDA_LAUNCH_BLOCKING was set: these times mean nothing"
    return result
