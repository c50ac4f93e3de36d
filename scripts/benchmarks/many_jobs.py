"""Measurement of thousands of photos: the processor's time and the peak memory of each stage of a run."""

from __future__ import annotations

import json
import math
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from nerf.capture.pairs import nearest_places, promising, retrieve_similar, transitive
from nerf.checks import check_folder
from nerf.datasets import load
from nerf.training.config import TrainConfig
from nerf.training.evaluation import evaluate
from nerf.training.loop import Trainer
from nerf.views.report import write_report
from nerf.views.survey import write_survey

WIDTH, HEIGHT, FOCAL = 160, 120, 140.0  # pixels
EVERY, ABOVE = 0.25, 1.5  # how far apart the photos of a flight are, and how high
TEXTURE = 2048  # pixels on a side of the ground's picture
STEPS = 64
EVALUATED = 1200  # pixels of an evaluated view, so that thousands take minutes
ALIKE = 256  # numbers of a photo's signature in the stage choose_pairs (8192 in nerf poses)


def many(out: str, photos: int) -> dict[str, Any]:
    """Each stage of a run on stand-ins: small JPEGs of a textured plane, seen from a flight over it.

    cpu_seconds count all threads and started processes; peak_bytes is the largest memory of this process in the stage.
    """
    folder = Path(out)
    shutil.rmtree(folder, ignore_errors=True)
    write_flight(folder / "set", photos)
    result: dict[str, Any] = {"photos": photos}

    def stage(name: str, do: Callable[[], Any]) -> Any:
        forget_peak()
        before = time.perf_counter(), cpu_seconds()
        given = do()
        seconds, cpu = (now - then for now, then in zip((time.perf_counter(), cpu_seconds()), before, strict=True))
        result[name] = {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak_bytes()}
        return given

    stage("choose_pairs", lambda: choose_pairs(photos))
    stage("check", lambda: check_folder(folder / "set", None, None, None, None))
    scene = stage("load", lambda: load(folder / "set", quiet=True))
    trainer = stage("set_up", lambda: Trainer(scene, TrainConfig(steps=STEPS)))
    stage("first_steps", lambda: [trainer.train_step() for _ in range(STEPS)])
    model = trainer.model
    found = stage("evaluate", lambda: evaluate(model, scene, "test", folder / "run" / "eval", most_pixels=EVALUATED))

    def report() -> None:
        seen = write_survey(model, scene.cameras, found, folder / "run")
        write_report(folder / "run", scene.notes, [], seen)

    stage("report", report)
    shutil.rmtree(folder)
    return result


def choose_pairs(n: int) -> int:
    """What `nerf poses` compares of photos with GPS, without the comparing; how many pairs those are."""
    side, random = math.ceil(n**0.5), torch.Generator().manual_seed(0)
    gps = [(52 + 1e-4 * (k // side), 13 + 1e-4 * (k % side)) for k in range(n)]
    alike = torch.nn.functional.normalize(torch.randn(n, ALIKE, generator=random), dim=1)
    candidates = sorted({*nearest_places(gps), *retrieve_similar(alike, 20)})
    chosen = promising(dict.fromkeys(candidates, 50), 15, 10)
    partners: dict[int, list[int]] = {}
    for a, b in chosen:
        partners.setdefault(a, []).append(b)
        partners.setdefault(b, []).append(a)
    return len(candidates) + len(transitive({i: of[:8] for i, of in partners.items()}, set(candidates)))


def write_flight(folder: Path, n: int) -> None:
    """n JPEG files and a transforms.json."""
    images = folder / "images"
    images.mkdir(parents=True)
    random, ground = numpy.random.default_rng(0), numpy.zeros((TEXTURE, TEXTURE, 3), numpy.float32)
    for size in (8, 32, 128, 512, TEXTURE):
        noise = Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=numpy.uint8))
        ground += numpy.asarray(noise.resize((TEXTURE, TEXTURE), Image.Resampling.BICUBIC), numpy.float32) / 5
    picture, side = ground.astype(numpy.uint8), math.ceil(n**0.5)
    j, i = numpy.meshgrid(numpy.arange(WIDTH) + 0.5, numpy.arange(HEIGHT) + 0.5)
    rays = numpy.stack([(j - WIDTH / 2) / FOCAL, (HEIGHT / 2 - i) / FOCAL, -numpy.ones_like(i)], axis=-1)
    frames = []
    for k in range(n):
        eye = numpy.array([k % side * EVERY, k // side * EVERY, ABOVE + 0.1 * random.standard_normal()])
        tilt = 0.15 * random.standard_normal(2)  # radians
        (c, d), (s, t) = numpy.cos(tilt), numpy.sin(tilt)
        turn = numpy.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ numpy.array([[d, 0, t], [0, 1, 0], [-t, 0, d]])
        seen = rays @ turn.T
        place = eye[:2] - seen[..., :2] * eye[2] / seen[..., 2:]
        u, v = ((place + 2) / (side * EVERY + 4) * TEXTURE).astype(int).clip(0, TEXTURE - 1).transpose(2, 0, 1)
        Image.fromarray(picture[v, u]).save(images / f"{k:05d}.jpg", quality=85)
        pose = numpy.concatenate([turn, eye[:, None]], axis=1).tolist()
        frames.append({"file_path": f"images/{k:05d}.jpg", "transform_matrix": [*pose, [0, 0, 0, 1]]})
    lens = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))


def cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def forget_peak() -> None:
    """Linux counts the peak of a process anew from here."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
