"""Correctness and speed of the CUDA backend on the GPU that is there; run it through gpu_check.sh, which says how.

Jobs (the checks of correctness, and the other sections) run one after the other in a process beside this one, each
within what is left of the time, and the JSON is written after each. One that fails is a sentence in the report and exit
status 1 at the end. One that takes the GPU from its process (after an illegal access every later call fails), ends it
or hangs costs that process only: another one goes on behind it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parent
# In the order in which they are run: what is wrong shows first, and training knows which mode is the faster one.
# Seconds that each needs at least (estimates); training, tuning and sanitizer take what is left.
SECTIONS = {
    "compile": 30,
    "correctness": 8,  # each check
    "kernels": 15,
    "graph": 30,
    "training": 25,
    "profile": 20,
    "views": 20,
    "mesh": 40,
    "tinycudann": 40,
    "sanitizer": 25,
}
OTHERS = {"tuning": 60}  # run only when asked for
SECONDS = 470.0  # for all of it, after the CPU library was built: within eight minutes together
LONGEST = 120.0  # seconds of one job, but of those that look at the clock themselves
WATCHFUL = ("training", "tuning")
PATIENCE = 20.0  # seconds that a process has to end after it was killed: the driver may wait for a kernel
LOST = 3  # exit status of a process from which the GPU was taken


def main() -> int:
    args = arguments()
    if args.worker is not None or args.only == "nothing" or args.small:
        return work(args)
    with TemporaryDirectory() as scratch:
        state = Path(scratch) / "state.json"
        command = [sys.executable, str(HERE / "gpu_check.py"), *sys.argv[1:], "--began", str(time.time())]
        return supervise([*command, "--worker", str(state)], state, None if args.dry_run else LONGEST)


def supervise(command: list[str], state: Path, longest: float | None) -> int:
    """Runs workers until one comes to the end, and returns its exit status. One that loses the GPU, dies or hangs in a
    job (for `longest` seconds) is followed by another, which takes that job for failed and goes on."""
    before = _progress(state)
    while True:
        worker = subprocess.Popen(command)
        try:
            while worker.poll() is None:
                time.sleep(0.1)
                job, since = _progress(state)[1:]
                if since and longest and job not in WATCHFUL and time.time() > since + longest:
                    worker.kill()
        finally:
            if worker.poll() is None:
                worker.kill()
            try:
                worker.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                job = _progress(state)[1]
                print(f"gpu_check: {job} hangs in the driver and cannot be ended; what was found is kept", flush=True)
                return 1
        if 0 <= worker.returncode != LOST:
            return worker.returncode
        now = _progress(state)
        if now == before:  # it did not even begin
            print(f"gpu_check: the process ended with status {worker.returncode}", file=sys.stderr)
            return 1
        before = now
        print(f"gpu_check: {now[1] or 'that'} cost this process; another one goes on", flush=True)


def _progress(state: Path) -> tuple[int, str, float]:
    """Jobs done, the one that runs, and since when (0: none does)."""
    found = json.loads(state.read_text()) if state.is_file() else {"done": []}
    running = found.get("running", {"job": "", "since": 0.0})
    return len(found["done"]), running["job"], running["since"]


def work(args: argparse.Namespace) -> int:
    """One worker: what has not been done yet of the jobs."""
    try:
        import torch  # noqa: F401

        from nerf import kernels
        from nerf.errors import UserError
        from nerf.kernels import nvrtc
    except ModuleNotFoundError as error:
        print(f"gpu_check: the package {error.name} is missing in {sys.executable}", file=sys.stderr)
        return 2
    if not args.dry_run:
        gpu, reason = nvrtc.find()
        if gpu is None:
            print(f"gpu_check: no GPU to check: {reason}", file=sys.stderr)
            return 2
    if args.small:  # a sanitizer looks at it, and is to name lines
        nvrtc.OPTIONS = (*nvrtc.OPTIONS, "--generate-line-info")
    with _emulated() if args.dry_run else nullcontext():
        try:
            if not args.dry_run:
                kernels.use("cuda")
            scene = find_scene(args)
        except UserError as error:
            print(f"gpu_check: {error}", file=sys.stderr)
            return 2
        if args.only == "nothing":
            return 0
        from benchmarks import gpu_jobs

        report = Report(args)
        chosen = [args.only] if args.only else SECTIONS
        jobs: list[str] = []
        for section in chosen:
            checks = gpu_jobs.chosen_checks(args) if section == "correctness" else ()
            jobs += [f"{section}: {name}" for name in checks] or [section]
        for job in jobs:
            if job not in report.found["done"] and not report.run(job, getattr(gpu_jobs, job.split(": ")[0]), scene):
                return LOST
        return report.end()


@contextmanager
def _emulated() -> Iterator[None]:
    """A GPU for rehearsals: emulated, or where there is no compiler one that runs the reference in its place."""
    sys.path.append(str(HERE.parent / "tests"))
    import emulation
    import second_device
    import torch

    from nerf import kernels
    from nerf.kernels import nvrtc

    torch.set_num_threads(1)
    if emulation.compiler() is not None:
        with second_device.use():
            yield
        return
    print("gpu_check: no C++ compiler, so no kernel is rehearsed: the reference runs in their place", flush=True)
    kernels.use("reference")
    nvrtc.find = lambda: (emulation.GPU, "")  # type: ignore[assignment]
    yield


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="correctness and speed of the CUDA backend on this machine's GPU")
    parser.add_argument("--data", type=Path, help="folder that holds lego/ (and fox.safetensors)")
    parser.add_argument(
        "--out", type=Path, help="JSON to write (default: gpu-NAME-DATE.json in $OUT or scripts/results)"
    )
    parser.add_argument("--only", choices=(*SECTIONS, *OTHERS, "nothing"), help="one section alone")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything together")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on an emulated GPU")
    parser.add_argument("--small", action="store_true", help="only the correctness of small sizes (for sanitizers)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # what was done so far
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.faster = None  # whether steps are faster as CUDA graphs, where that was found
    if args.data is None and not args.dry_run:
        parser.error("--data DIR is needed: the folder that holds lego/")
    return args


def find_scene(args: argparse.Namespace) -> Path | None:
    from nerf.errors import UserError

    if args.dry_run:
        return HERE.parent / "data" / "sample"
    for place in (args.data / "lego", args.data / "nerf_synthetic" / "lego", args.data):
        if (place / "transforms_train.json").is_file():
            return place
    if (
        args.only in ("views", "nothing") and (args.data / "fox.safetensors").is_file()
    ):  # both together are much to carry
        return None
    raise UserError(f"{args.data} holds no lego: expected {args.data}/lego/transforms_train.json")


class Report:
    """What was found, on the screen and in the JSON; what an earlier process found comes first."""

    def __init__(self, args: argparse.Namespace) -> None:
        from nerf.kernels import cuda

        self.args = args
        self.found: dict[str, Any] = {}
        if args.worker is not None and args.worker.is_file():
            self.found = json.loads(args.worker.read_text())
        else:
            self.found = self._facts()
        name = re.sub(r"[^a-z0-9]+", "-", cuda.gpu().name.lower()).strip("-")
        folder = Path(os.environ.get("OUT") or HERE / "results")  # of a borrowed machine only the folder OUT comes back
        self.path = args.out or folder / f"gpu-{name}-{self.found['date'][:10]}.json"
        broken = self.found.pop("running", None)
        if broken is not None:
            self._keep(broken["job"], {"failed": "the process ended, hung or lost the GPU in it"})

    def _facts(self) -> dict[str, Any]:
        import torch

        from nerf.io.machine import machine
        from nerf.kernels import cuda, nvrtc

        gpu = cuda.gpu()
        facts: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "device": gpu.name,
            "architecture": f"sm_{gpu.architecture}",
            "emulated": self.args.dry_run,
            "multiprocessors": gpu.n_multiprocessors,
            "driver": _driver_release(),
            "driver_cuda": nvrtc.driver_version(),
            "torch_cuda": torch.version.cuda,
            "nvrtc": nvrtc.nvrtc_version(),
            "machine": machine(),
        }
        for key, value in facts.items():
            print(f"{key}: {value}")
        return facts | {"done": [], "failed": [], "left_out": []}

    def left(self) -> float:
        """Seconds that are left."""
        return self.args.seconds - (time.time() - self.args.began)

    def run(self, job: str, work: Any, scene: Path | None) -> bool:
        """Do a job; returns whether this process still has the GPU."""
        print(f"\n== {job} ({self.args.seconds - self.left():.0f} s so far)", flush=True)
        before = time.perf_counter()
        self.found["running"] = {"job": job, "since": time.time()}
        self.write()
        has_gpu = True
        needed = (SECTIONS | OTHERS).get(job.split(": ")[0], 5)
        self.args.faster = _faster(self.found)
        if self.left() < needed and not self.args.dry_run:
            result: dict[str, Any] = {"skipped": f"it takes {needed} s or more, and {max(self.left(), 0):.0f} are left"}
            self.found["left_out"].append(job)
            print(f"skipped: {result['skipped']}")
        else:
            check = job.partition(": ")[2]
            try:
                result = work(self.args, scene, self.left, *([check] if check else []))
            except Exception as error:
                import traceback

                traceback.print_exc()
                result = {"failed": f"{type(error).__name__}: {error}"[:1000]}
            if result.get("failed"):
                has_gpu = _gpu_answers()
        result["section_seconds"] = round(time.perf_counter() - before, 2)
        del self.found["running"]
        self._keep(job, result)
        self.write()
        return has_gpu

    def _keep(self, job: str, result: dict[str, Any]) -> None:
        if result.get("failed"):
            self.found["failed"].append(job)
            print(f"FAILED: {result['failed']}")
        self.found["done"].append(job)
        section, _, check = job.partition(": ")
        if not check:
            self.found[section] = result
            return
        whole = self.found.setdefault(section, {"rows": [], "right": 0, "wrong": 0, "section_seconds": 0.0})
        if "skipped" in result:
            whole.setdefault("skipped", []).append(check)
            return
        whole["rows"] += result.get("rows") or [{"what": check, "error": result.get("failed"), "right": False}]
        whole["right"] = sum(row["right"] for row in whole["rows"])
        whole["wrong"] = len(whole["rows"]) - whole["right"]
        whole["section_seconds"] += result.get("section_seconds", 0.0)
        if whole["wrong"]:
            whole["failed"] = f"{whole['wrong']} of {len(whole['rows'])} numbers are not those of the reference"

    def write(self) -> None:
        for path in (self.path, self.args.worker):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.tmp")
                temporary.write_text(json.dumps(self.found, indent=1))
                os.replace(temporary, path)

    def end(self) -> int:
        self.write()
        failed, left_out = self.found["failed"], self.found["left_out"]
        print(f"\n{self.args.seconds - self.left():.0f} s in all; {self.path}")
        if left_out:
            print("left out for want of time: " + ", ".join(left_out))
        print("failed: " + ", ".join(failed) if failed else "everything that ran is right")
        return 1 if failed else 0


def _faster(found: dict[str, Any]) -> bool | None:
    """Whether steps are faster as CUDA graphs, as section graph found; None where it did not run."""
    return found.get("graph", {}).get("graph_pays")


def _gpu_answers() -> bool:
    """Whether this process still has the GPU: after an illegal access, nothing that it asks for is done."""
    import torch

    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _driver_release() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


if __name__ == "__main__":
    sys.exit(main())
