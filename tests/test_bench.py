"""scripts/bench.py: rows in processes of their own, JSON with all that stands beside a number, nothing run twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.json and run/, of three seconds on quarter-size images."""
    out = tmp_path_factory.mktemp("bench")
    done = bench(*train_arguments(out))
    assert done.returncode == 0, done.stderr
    assert "PSNR dB" in done.stdout and "sample-0.05min" in done.stdout and "commit" in done.stdout
    return out


def train_arguments(out: Path) -> list[object]:
    options = ["--minutes", 0.05, "--downscale", 4, "--views", 1, "--threads", 1, "--run", out / "run"]
    return ["train", SAMPLE, *options, "--out", out / "train.json"]


def test_a_row_says_all_that_must_stand_beside_it(folder: Path) -> None:
    text = (folder / "train.json").read_text()
    assert str(folder) not in text and str(ROOT) not in text, "folders of one machine"
    (row,) = json.loads(text)["rows"]
    machine, result = row["machine"], row["result"]
    assert {"cpu", "cores", "system", "python", "torch", "numpy", "kernels", "backend", "load_at_start"} <= set(machine)
    assert machine["threads"] == 1 and row["options"]["minutes"] == 0.05
    protocol = result["protocol"]
    assert protocol["background"] == "white" and protocol["split"] == "test" and protocol["resolution"] == ["320x320"]
    assert protocol["training_downscale"] == 4 and protocol["n_train_views"] == 60 and protocol["colour_space"]
    assert 5 < result["psnr"] < 60 and len(result["views"]) == 1 and result["views"][0]["psnr"] == result["psnr"]
    assert result["seconds"] < result["seconds_of"]["all"]
    assert 1e7 < result["peak_bytes_after"]["load"] <= result["peak_bytes_after"]["train"] <= result["peak_bytes"] < 8e9
    assert result["rays_per_second"] == pytest.approx(result["n_rays"] / result["seconds"])
    assert result["n_evaluated"] >= result["n_trained"] > 0 and result["seconds_per_view"] > 0


def test_a_row_that_is_there_is_not_run_again(folder: Path) -> None:
    before = (folder / "train.json").read_bytes()
    done = bench(*train_arguments(folder))
    assert done.returncode == 0 and "already" in done.stderr and "PSNR dB" in done.stdout
    assert (folder / "train.json").read_bytes() == before
    other = bench("kernels", "--out", folder / "train.json")
    assert other.returncode == 2 and "choose another file" in other.stderr


def test_speed_kernels_and_extract_measure_something(folder: Path) -> None:
    outs = [folder / f"{name}.json" for name in ("speed", "kernels", "extract")]
    speed = ["speed", SAMPLE, "--threads", 1, "--tables", 15, "--warm-up", 2, "--steps", 2]
    kernels = ["kernels", "--threads", 1, "--samples", 4096]
    mesh = ["extract", folder / "run", "--resolution", 48, "--threshold", 5]
    for arguments, out in zip((speed, kernels, mesh), outs, strict=True):
        done = bench(*arguments, "--out", out)
        assert done.returncode == 0, done.stderr
    of_speed, of_kernels, of_mesh = (json.loads(out.read_text())["rows"][0]["result"] for out in outs)
    assert of_speed["config"]["field"]["log2_hashmap_size"] == 15 and of_speed["trained_per_second"] > 0
    assert len(of_kernels["ns"]) == 6 and min(of_kernels["ns"].values()) > 0
    assert of_mesh["triangles"] > 0 and of_mesh["seconds"] > 0 and of_mesh["peak_bytes"] > 1e7


def test_mistakes_show_before_anything_is_trained(tmp_path: Path) -> None:
    wrong = bench("ablation", SAMPLE, "importance=0", "nonsense=1", "--out", tmp_path / "a.json")
    assert wrong.returncode == 2 and "'nonsense=1'" in wrong.stderr and "learning_rate" in wrong.stderr
    lost = bench("foundation", "--data", tmp_path, "--rows", "lego-1min,lego-2min", "--out", tmp_path / "b.json")
    assert lost.returncode == 2 and "there is no lego-2min" in lost.stderr
    gone = bench("train", tmp_path / "gone", "--out", tmp_path / "c.json")
    assert gone.returncode == 1 and "there is no such folder" in gone.stderr and "Traceback" not in gone.stderr
    assert not list(tmp_path.glob("*.json")), "nothing is written where nothing was measured"


def test_a_target_may_lie_below_another_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benchmarks.targets import Target, against_targets

    target = Target("ours", "ours", "psnr", 1, 0.3, None, "dB lost", below="given")
    given, near, far = ({"row": r, "result": {"psnr": v}} for r, v in (("given", 30.0), ("ours", 29.8), ("ours", 29.6)))
    verdicts = [against_targets(rows, (target,))[1][4] for rows in ([given, near], [given, far], [near])]
    assert verdicts == ["reached", "missed", "not run"]


def test_whether_less_is_better_is_told_by_the_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benchmarks.targets import Target, against_targets

    def verdict(value: float, reach: float, aim: float | None, unit: str) -> str:
        target = Target("", "a", "x", 1, reach, aim, unit)
        return against_targets([{"row": "a", "result": {"x": value}}], (target,))[1][4]

    assert [verdict(v, 10, 5, "mm") for v in (24, 10, 5)] == ["missed", "reached", "aim"]
    assert [verdict(v, 26, 28, "dB") for v in (24, 26, 28)] == ["missed", "reached", "aim"]
    assert [verdict(v, 180, None, "s") for v in (181, 180)] == ["missed", "reached"]
