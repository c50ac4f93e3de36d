"""How fast and how well a scene is learnt on the GPU: the sections training, tuning and profile of gpu_check.py."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nerf import datasets
from nerf.datasets import Scene
from nerf.fields import FieldOptions
from nerf.model import Model
from nerf.training import TrainConfig, Trainer
from nerf.training import train as train_scene

Clock = Callable[[], float]
Args = argparse.Namespace
TINY = FieldOptions(
    n_levels=4, log2_hashmap_size=12, base_resolution=8, finest_resolution=64, width=16, n_color_layers=2
)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@lru_cache
def load(folder: Path, downscale: int) -> Scene:
    return datasets.load(str(folder), downscale, quiet=True)


@torch.no_grad()
def psnr_of(model: Model, scene: Scene, every: int = 1) -> float:
    """Mean PSNR of the test views (every so-manieth) at the size that was loaded, on white."""
    total, ids = 0.0, scene.splits["test"][::every].tolist()
    for i in ids:
        truth = scene.pixels.image(i)
        if scene.has_alpha:
            truth = truth[..., :3] * truth[..., 3:] + (1 - truth[..., 3:])
        color = torch.from_numpy(model.render_image(scene.cameras, i, normals=False)["color"])
        total += -10 * math.log10(max(float((color - truth[..., :3]).square().mean()), 1e-10))
    return total / max(len(ids), 1)


def trained(args: Args, scene: Scene, seconds: float, **settings: Any) -> tuple[Model, dict[str, Any]]:
    config = TrainConfig(minutes=seconds / 60, **settings)
    if args.dry_run:
        config = TrainConfig(steps=2, batch_samples=256, field=TINY)
    with TemporaryDirectory() as scratch:
        started = time.perf_counter()
        model = train_scene(scene, config, scratch, progress=False)
        synchronise()
        spent = time.perf_counter() - started
    meta = model.meta
    row = {
        "told_seconds": seconds,
        "train_seconds": round(meta["seconds"], 3),
        "with_setup_and_saving_seconds": round(spent, 3),
        "steps": meta["steps"],
        "rays_per_second": meta["n_rays"] / meta["seconds"],
        "evaluated_per_second": meta["n_evaluated"] / meta["seconds"],
        "trained_per_second": meta["n_trained"] / meta["seconds"],
    }
    return model, row


LAST: dict[str, Model] = {}  # the best model so far, for the sections after training


def training(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    loaded = load(scene, 32 if args.dry_run else 1)
    rows = []
    every = 12 if args.dry_run else max(1, len(loaded.splits["test"]) // 25)  # 25 of lego's 200
    lengths = (1.0,) if args.dry_run else (2.5, 2.5, 6.0, 25.0, 60.0, 300.0)
    for k, seconds in enumerate(lengths):
        if left() < seconds * 1.1 + (20 if args.only else 75):
            print(f"{seconds} s: skipped, no time is left")
            continue
        model, row = trained(args, loaded, seconds)
        row["kind"] = "warming up, not to be reported" if k == 0 and not args.dry_run else "measured"
        started = time.perf_counter()
        row["psnr"] = psnr_of(model, loaded, every)
        row["evaluation_seconds"] = round(time.perf_counter() - started, 2)
        LAST["lego"] = model
        rows.append(row)
        print(row)
    protocol = f"test views {len(loaded.splits['test'][::every])}, white background in evaluation, random in training"
    result: dict[str, Any] = {"rows": rows, "protocol": protocol, "resolution": int(loaded.cameras.widths[0])}
    if any(not math.isfinite(row["psnr"]) for row in rows):
        result["failed"] = "a PSNR is not a number"
    return result


def tuning(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    """What other batches, rates and sizes give in six seconds; `--only tuning`."""
    loaded = load(scene, 32 if args.dry_run else 1)
    trials: list[dict[str, Any]] = [{}, {}]  # the first is to warm up
    trials += [{"batch_samples": 1 << k} for k in (15, 16, 18, 19)]
    trials += [{"learning_rate": r} for r in (5e-3, 2e-2)]
    trials += [{"surface_weight": w} for w in (0.0, 0.05, 0.4)]
    trials += [{"coarse_steps": 100, "diffuse_steps": 50}, {"medium_stretch": 1.0}, {"occupancy_every": 32}]
    rows = []
    for settings in trials[:1] if args.dry_run else trials:
        if left() < 20:
            break
        model, row = trained(args, loaded, 6.0, **settings)
        psnr = psnr_of(model, loaded, max(1, len(loaded.splits["test"]) // 8))
        rows.append(row | {"settings": settings, "psnr": psnr})
        print(f"{psnr:.2f} dB, {row['steps']} steps: {settings or 'defaults'}")
    return {"rows": rows}


def profile(args: Args, scene: Path, left: Clock) -> dict[str, Any]:
    """Where a training step's time goes, kernel by kernel, in the middle of a short training."""
    loaded = load(scene, 32 if args.dry_run else 1)
    config = TrainConfig(steps=2000) if not args.dry_run else TrainConfig(steps=2, batch_samples=256, field=TINY)
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
    print({k: v for k, v in result.items() if k != "kernels"})
    for row in result.get("kernels", []):
        print(f"{row['microseconds_a_step']:9.1f} us  x{row['calls_a_step']:<5.1f} {row['name']}")
    if os.environ.get("CUDA_LAUNCH_BLOCKING"):
        result["note"] = "CUDA_LAUNCH_BLOCKING was set: these times mean nothing"
    return result
