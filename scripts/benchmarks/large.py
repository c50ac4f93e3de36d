"""Measurement of sets that do not fit into memory: many large photos of a synthetic scene, in a limited memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from nerf.errors import UserError
from nerf.io import children

SIDE = 4000, 3000  # 12 megapixels
DISTINCT = 8  # pictures; every file is a copy of one of them, so that making them takes seconds
LIMIT = 4 << 30  # bytes
POINT = 0.75  # of the longer side: the focal length

CHILD = """
import json, sys, time
from pathlib import Path
started = time.perf_counter()
from nerf import datasets
from nerf.training.config import TrainConfig
from nerf.training.loop import train, Trainer
scene = datasets.load(sys.argv[1])
loaded = time.perf_counter()
first = []
step = Trainer.train_step
def timed(self):
    result = step(self)
    first or first.append(time.perf_counter())
    return result
Trainer.train_step = timed
model = train(scene, TrainConfig(minutes=float(sys.argv[2])), Path(sys.argv[3]), progress=False)
curve = json.loads(Path(sys.argv[3], "training.json").read_text())["curve"]  # empty after very few steps
print(json.dumps({"seconds_to_load": loaded - started, "seconds_to_first_step": first[0] - loaded,
    "steps": model.meta["steps"], "rays": model.meta["n_rays"], "seconds": model.meta["seconds"],
    "size": [int(scene.cameras.widths[0]), int(scene.cameras.heights[0])],
    "psnr_of_batches": curve[-1]["psnr"] if curve else None}))
"""


def large(out: str, photos: int, minutes: float) -> dict[str, Any]:
    """Convert so many photos of 12 megapixels and train, in a memory cgroup of 4 GB; then again, converted already.

    The first run's seconds_to_load holds the conversion, the second's shows what a later run waits for. The peak is
    the cgroup's own (page cache included) where one can be made; else the largest sum of the process's memory and
    the file pages it has mapped, and `limited` is false.
    """
    folder = Path(out)
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    write_set(folder / "set", photos)
    result: dict[str, Any] = {"photos": photos, "seconds_to_generate": time.perf_counter() - started}
    result["photo_bytes"] = sum(p.stat().st_size for p in (folder / "set" / "images").iterdir())
    for path in (folder / "set" / "images").iterdir():  # photos come from the disk, as they would
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    result["first"] = limited(folder / "set", minutes, folder / "run")
    result["again"] = limited(folder / "set", 0.1, folder / "again")
    result["store_bytes"] = sum(p.stat().st_size for p in (folder / "set" / "nerf-pixels").iterdir())
    shutil.rmtree(folder)
    return result


def write_set(folder: Path, n: int) -> None:
    """n JPEG files of noise of all scales and a transforms.json: cameras on rings that look at the middle.

    They are no photos of one scene, so nothing can be learnt from them; time and memory are what they are for.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    rng = numpy.random.default_rng(0)
    frames = []
    for k in range(n):
        path = images / f"{k:04d}.jpg"
        if k < DISTINCT:
            total = numpy.zeros((SIDE[1], SIDE[0], 3), numpy.float32)
            for size in (8, 40, 200, 800):
                small = Image.fromarray(rng.integers(0, 256, (size * 3 // 4, size, 3), dtype=numpy.uint8))
                total += numpy.asarray(small.resize(SIDE, Image.Resampling.BICUBIC), numpy.float32) / 4
            Image.fromarray(total.astype(numpy.uint8)).save(path, quality=90)
        else:
            shutil.copyfile(images / f"{k % DISTINCT:04d}.jpg", path)
        angle, height = 2 * numpy.pi * k / 97, 0.3 + 0.5 * (k % 7) / 7
        eye = 4 * numpy.array([numpy.cos(angle), numpy.sin(angle), height])
        back = eye / numpy.linalg.norm(eye)
        right = numpy.cross([0, 0, 1], back)
        right /= numpy.linalg.norm(right)
        pose = numpy.stack([right, numpy.cross(back, right), back, eye], axis=1)
        frames.append({"file_path": f"images/{path.name}", "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]})
    lens = {"w": SIDE[0], "h": SIDE[1], "fl_x": POINT * SIDE[0], "cx": SIDE[0] / 2, "cy": SIDE[1] / 2, "k1": 0.01}
    (folder / "transforms.json").write_text(json.dumps({**lens, "camera_model": "OPENCV", "frames": frames}))


def limited(data: Path, minutes: float, out: Path) -> dict[str, Any]:
    """Load and train in a process of its own, in a memory cgroup of LIMIT bytes where one can be made."""
    group = make_group()
    command = children.python("-c", CHILD, str(data), str(minutes), str(out))

    def join() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    process = children.start(command, stdout=subprocess.PIPE, text=True, preexec_fn=join, cwd=Path.cwd())
    largest = peak = 0
    try:
        while process.poll() is None:
            largest = max(largest, memory_of(process.pid))
            time.sleep(0.2)
        if group is not None:
            names = ("memory.peak", "memory.max_usage_in_bytes")
            peak = int(next(group / n for n in names if (group / n).exists()).read_text())
    finally:
        process.kill()
        process.wait()
        if group is not None:
            group.rmdir()
    assert process.stdout is not None
    text = process.stdout.read()
    if process.returncode:
        raise UserError(f"the process ended with status {process.returncode}: was it killed for its memory?")
    measured = {"limited": group is not None, "own_bytes": largest, "peak_bytes": peak or largest}
    return {**json.loads(text.splitlines()[-1]), **measured}


def make_group() -> Path | None:
    """A memory cgroup (version 2 or 1) below this process's own, or None where none can be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        version_1 = "memory" in controllers.split(",")
        if not version_1 and controllers:
            continue
        root = Path("/sys/fs/cgroup/memory" if version_1 else "/sys/fs/cgroup")
        group = root / path.lstrip("/") / f"nerf-bench-{os.getpid()}"
        try:
            group.mkdir()
            (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT))
            return group
        except OSError:
            if group.is_dir():
                group.rmdir()
    return None


def memory_of(pid: int) -> int:
    """Bytes that a process keeps for itself: not the pages of files, which the system takes back when it needs them."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return 1024 * int(fields["RssAnon"].split()[0])
    except (OSError, KeyError):
        return 0
