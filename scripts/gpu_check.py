"""Correctness and speed of the CUDA backend on the GPU that is there; run it through gpu_check.sh, which says how.

Sections run one after the other, each within what is left of the time, and the JSON is written after each: what a later
one breaks, an earlier one keeps. A section that fails is a sentence in the report and exit status 1 at the end.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECTIONS = (
    "compile",
    "correctness",
    "sanitizer",
    "kernels",
    "training",
    "views",
    "mesh",
    "profile",
    "graph",
    "tinycudann",
)
OTHERS = ("tuning",)  # run only when asked for
SECONDS = 540.0  # for all of it, after the CPU library was built


def main() -> int:
    args = arguments()
    try:
        import torch

        from nerf import kernels
        from nerf.errors import UserError
        from nerf.kernels import nvrtc
    except ModuleNotFoundError as error:
        print(f"gpu_check: the package {error.name} is missing in {sys.executable}", file=sys.stderr)
        return 2
    started = time.perf_counter()
    world: Any = nullcontext()
    if args.dry_run:
        sys.path.append(str(HERE.parent / "tests"))
        import second_device

        from nerf import training
        from nerf.occupancy import OccupancyGrid

        training.OccupancyGrid = functools.partial(OccupancyGrid, resolution=32)  # type: ignore[assignment, misc]
        torch.set_num_threads(1)
        world = second_device.use()  # an emulated GPU
    else:
        gpu, reason = nvrtc.find()
        if gpu is None:
            print(f"gpu_check: no GPU to check: {reason}", file=sys.stderr)
            return 2
    with world:
        try:
            kernels.use("cuda")
            scene = find_scene(args)
        except UserError as error:
            print(f"gpu_check: {error}", file=sys.stderr)
            return 2
        if args.only == "nothing":
            return 0
        report = Report(args, started)
        from benchmarks import gpu_jobs

        for section in (*SECTIONS, *OTHERS):
            if section == args.only or (args.only is None and section in SECTIONS):
                report.run(section, getattr(gpu_jobs, section), scene)
        return report.end()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="correctness and speed of the CUDA backend on this machine's GPU")
    parser.add_argument("--data", type=Path, help="folder that holds lego/ (and fox.safetensors)")
    parser.add_argument("--out", type=Path, help="JSON to write (default: scripts/results/gpu-NAME-DATE.json)")
    parser.add_argument("--only", choices=(*SECTIONS, *OTHERS, "nothing"), help="one section alone")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything together")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on an emulated GPU; needs a C++ compiler")
    parser.add_argument("--small", action="store_true", help="only the correctness of small sizes (for sanitizers)")
    args = parser.parse_args()
    if args.data is None and not args.dry_run:
        parser.error("--data DIR is needed: the folder that holds lego/")
    return args


def find_scene(args: argparse.Namespace) -> Path:
    from nerf.errors import UserError

    if args.dry_run:
        return HERE.parent / "data" / "sample"
    for place in (args.data / "lego", args.data / "nerf_synthetic" / "lego", args.data):
        if (place / "transforms_train.json").is_file():
            return place
    raise UserError(f"{args.data} holds no lego: expected {args.data}/lego/transforms_train.json")


class Report:
    """What was found, on the screen and in the JSON."""

    def __init__(self, args: argparse.Namespace, started: float) -> None:
        import torch

        from nerf.doctor import machine
        from nerf.kernels import cuda, nvrtc

        self.args, self.started, self.failed = args, started, []  # type: ignore[var-annotated]
        gpu = cuda.gpu()
        self.found: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "device": gpu.name,
            "architecture": f"sm_{gpu.architecture}",
            "emulated": args.dry_run,
            "multiprocessors": gpu.n_multiprocessors,
            "driver": _driver_release(),
            "driver_cuda": nvrtc.driver_version(),
            "torch_cuda": torch.version.cuda,
            "nvrtc": nvrtc.nvrtc_version(),
            "machine": machine(),
        }
        name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
        self.path = args.out or HERE / "results" / f"gpu-{name}-{self.found['date'][:10]}.json"
        for key, value in self.found.items():
            print(f"{key}: {value}")

    def left(self) -> float:
        """Seconds that are left."""
        return self.args.seconds - (time.perf_counter() - self.started)

    def run(self, section: str, job: Any, scene: Path) -> None:
        print(f"\n== {section} ({self.args.seconds - self.left():.0f} s so far)")
        before = time.perf_counter()
        if self.left() < 5:
            result: dict[str, Any] = {"skipped": "no time was left"}
            print("skipped: no time was left")
        else:
            try:
                result = job(self.args, scene, self.left)
            except Exception as error:
                import traceback

                traceback.print_exc()
                result = {"failed": f"{type(error).__name__}: {error}"[:1000]}
        if result.get("failed"):
            self.failed.append(section)
            print(f"FAILED: {result['failed']}")
        result["section_seconds"] = round(time.perf_counter() - before, 2)
        self.found[section] = result
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps(self.found, indent=1))
        os.replace(temporary, self.path)

    def end(self) -> int:
        print(f"\n{self.args.seconds - self.left():.0f} s in all; {self.path}")
        print("failed: " + ", ".join(self.failed) if self.failed else "everything that ran is right")
        return 1 if self.failed else 0


def _driver_release() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


if __name__ == "__main__":
    sys.exit(main())
