"""scripts/gpu_check.sh without a GPU: rehearsed from end to end, and where something breaks or time is short."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import emulation
import pytest
import tiny

from nerf.errors import UserError
from nerf.training.config import TrainConfig
from nerf.training.loop import Trainer

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

needs_compiler = pytest.mark.skipif(emulation.compiler() is None, reason="needs a C++ compiler")


def gpu_check(*arguments: object, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_gpu_check_without_a_gpu_is_one_sentence(tmp_path: Path) -> None:
    done = gpu_check("--data", tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("gpu_check: no GPU to check: ") and done.stderr.count("\n") == 1


@needs_compiler
def test_gpu_check_can_be_rehearsed_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--dry-run", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["emulated"] is True and found["correctness"]["wrong"] == 0 < found["correctness"]["right"]
    for section in ("compile", "correctness", "sanitizer", "kernels", "training", "views", "mesh", "profile", "graph"):
        assert "failed" not in found[section], section
    assert "is not installed" in found["tinycudann"].get("skipped", "") or found["tinycudann"]["tinycudann"]
    assert set(found["graph"]) >= {"plain", "graph", "deterministic", "graph_pays", "deterministic_costs"}
    assert found["training"]["rows"][0]["steps"] == 2 and found["views"]["lego 800x800"]["view_seconds"] > 0


def test_gpu_check_can_be_rehearsed_without_compiler_trimesh_and_tyro(tmp_path: Path) -> None:
    for name in ("trimesh", "tyro", "ziglang"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})")
    results = tmp_path / "results"
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--dry-run"]
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | {"OMP_NUM_THREADS": "1", "OUT": str(results)}
    environment |= {"PATH": str(tmp_path / "nothing"), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "no C++ compiler, so no kernel is rehearsed" in done.stdout
    (out,) = results.glob("gpu-emulated-gpu-*.json")
    found = json.loads(out.read_text())
    assert found["correctness"]["wrong"] == 0 < found["correctness"]["right"] and not found["failed"]
    assert found["mesh"]["mesh"] == "not measured: trimesh is not installed"
    assert found["training"]["rows"][0]["steps_per_second"] > 0 and found["views"]["lego 800x800"]["view_seconds"] > 0


WORKER = """
import json, os, pathlib, sys, time
state, fault = pathlib.Path(sys.argv[1]), sys.argv[2]
found = json.loads(state.read_text()) if state.is_file() else {"done": [], "failed": [], "processes": 0}
found["processes"] += 1
def write():
    state.with_suffix(".tmp").write_text(json.dumps(found))
    os.replace(state.with_suffix(".tmp"), state)
broken = found.pop("running", None)
if broken:
    found["done"].append(broken["job"])
    found["failed"].append(broken["job"])
for job in ("one", "two", "three"):
    if job in found["done"]:
        continue
    found["running"] = {"job": job, "since": time.time()}
    write()
    if job == "two" and fault == "dies":
        os.abort()
    if job == "two" and fault == "hangs":
        time.sleep(60)
    del found["running"]
    found["done"].append(job)
    write()
    if job == "two" and fault == "loses":
        sys.exit(3)
    if fault == "never begins":
        state.unlink()
        os.abort()
write()
sys.exit(len(found["failed"]))
"""


@pytest.mark.parametrize(
    ("fault", "status", "processes"),
    [("none", 0, 1), ("dies", 1, 2), ("hangs", 1, 2), ("loses", 0, 2), ("never begins", 1, 0)],
)
def test_gpu_check_goes_on_behind_a_job_that_takes_its_process(
    fault: str, status: int, processes: int, tmp_path: Path
) -> None:
    import gpu_check

    state = tmp_path / "state.json"
    command = [sys.executable, "-c", WORKER, str(state), fault]
    assert gpu_check.supervise(command, state, 2.0 if fault == "hangs" else 60.0) == status
    if processes:
        found = json.loads(state.read_text())
        assert found["done"] == ["one", "two", "three"] and found["processes"] == processes
        assert found["failed"] == ["two"] * status


def test_a_process_that_cannot_be_ended_ends_gpu_check(tmp_path: Path, monkeypatch, capsys) -> None:
    """A kernel that never ends keeps its process in the driver, whatever is done to it."""
    import gpu_check

    state, polled = tmp_path / "state.json", []
    state.write_text(json.dumps({"done": [], "running": {"job": "kernels", "since": 1.0}}))

    class Hangs:
        returncode = None

        def poll(self) -> int | None:
            polled.append(None)
            return 0 if len(polled) == 3 else None  # so that the loop ends; at its end it still runs

        def kill(self) -> None:
            pass

        def wait(self, timeout: float) -> None:
            raise subprocess.TimeoutExpired("worker", timeout)

    monkeypatch.setattr(gpu_check.subprocess, "Popen", lambda command: Hangs())
    assert gpu_check.supervise(["worker"], state, 1.0) == 1
    assert "kernels hangs in the driver and cannot be ended; what was found is kept" in capsys.readouterr().out


def test_what_no_time_is_left_for_is_left_out_and_said(emulated: None, tmp_path: Path, monkeypatch, capsys) -> None:
    import gpu_check

    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--data", str(tmp_path), "--seconds", "20"])
    report = gpu_check.Report(gpu_check.arguments())
    assert report.run("kernels", lambda *ignored: {"seconds": 1}, tmp_path)
    assert report.run("mesh", lambda *ignored: pytest.fail("there is no time"), tmp_path)
    report.found["graph"] = {"graph_pays": False}
    assert report.run("kernels", lambda args, *ignored: {"faster": args.faster}, tmp_path) and report.end() == 0
    found = json.loads(next(tmp_path.glob("gpu-emulated-gpu-*.json")).read_text())
    assert found["kernels"]["faster"] is False and "it takes 40 s or more, and " in found["mesh"]["skipped"]
    assert found["left_out"] == ["mesh"] and "left out for want of time: mesh" in capsys.readouterr().out


def test_gpu_check_goes_on_behind_a_job_that_fails(emulated: None, tmp_path: Path, monkeypatch, capsys) -> None:
    import gpu_check

    arguments = ["gpu_check.py", "--dry-run", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--worker", str(tmp_path / "state.json")])
    args = gpu_check.arguments()
    report = gpu_check.Report(args)
    has_gpu = True
    monkeypatch.setattr(gpu_check, "_gpu_answers", lambda: has_gpu)

    def breaks(*ignored: object) -> dict:
        raise RuntimeError("an illegal memory access was encountered")

    assert report.run("correctness: march", breaks, tmp_path)
    assert report.run("correctness: Adam", lambda *ignored: {"rows": [{"what": "m", "right": True}]}, tmp_path)
    has_gpu = False
    assert not report.run("kernels", breaks, tmp_path)
    report.found["running"] = {"job": "training", "since": 0.0}  # and the next one hung
    report.write()
    again = gpu_check.Report(args)
    assert again.found["done"] == ["correctness: march", "correctness: Adam", "kernels", "training"]
    assert again.run("views", lambda *ignored: {"seconds": 1}, tmp_path) and again.end() == 1
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["correctness"]["right"] == found["correctness"]["wrong"] == 1 and found["views"]["seconds"] == 1
    assert "illegal memory access" in found["kernels"]["failed"] and "hung" in found["training"]["failed"]
    assert "failed: correctness: march, kernels, training" in capsys.readouterr().out


def test_gpu_check_draws_fox_without_lego(emulated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_check
    from benchmarks import gpu_jobs

    args = argparse.Namespace(data=tmp_path, only="views", dry_run=False)
    with pytest.raises(UserError, match="holds no lego"):
        gpu_check.find_scene(args)
    trainer = Trainer(tiny.sphere_scene(4, 8), TrainConfig(steps=1, field=tiny.FIELD))
    trainer.model.save(tmp_path / "fox.safetensors")
    monkeypatch.setattr(gpu_jobs, "_view_times", lambda model, cameras: {"size": int(cameras.widths[2])})
    assert gpu_jobs.views(args, gpu_check.find_scene(args), lambda: 60.0) == {"fox 1920x1080": {"size": 1920}}
