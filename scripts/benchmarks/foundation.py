"""The CPU foundation's numbers: what is run, and what each result is held to (two cores)."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target

LEGO = {"scene": "{data}/lego"}
# row -> job, options, backend; no falling back to another backend
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "lego-1min": ("train", LEGO | {"minutes": 1}, "cpu"),
    "lego-5min": ("train", LEGO | {"minutes": 5}, "cpu"),
    "lego-20min": ("train", LEGO | {"minutes": 20}, "cpu"),
    "lego-reference": ("train", LEGO | {"minutes": 5}, "reference"),
    "fox": ("train", {"scene": "{data}/fox", "minutes": 10}, "cpu"),
    "fern": ("train", {"scene": "{data}/fern", "minutes": 5}, "cpu"),
    "lego-sizes": ("smaller_views", LEGO | {"model": "{runs}/lego-5min"}, "cpu"),
    "mesh": ("extract", {"model": "{runs}/lego-5min", "resolution": 512}, "cpu"),
}

TARGETS = (
    Target("lego 800x800, 25 views, 60 s", "lego-1min", "psnr", 1, 28.5, 30, "dB", "best peer 15.8, probe 26.6"),
    Target("the same, 5 min", "lego-5min", "psnr", 1, 32, 33.5, "dB", "best peer 20.5, probe 30.1"),
    Target("the same, 20 min", "lego-20min", "psnr", 1, 34, 35.5, "dB", ""),
    Target("samples evaluated, mean of 5 min", "lego-5min", "evaluated_per_second", 1e6, 2, 4, "M/s", "1.4 marched"),
    Target("samples trained, mean of 5 min", "lego-5min", "trained_per_second", 1e6, 0.8, 1.5, "M/s", "0.37"),
    Target("lego, reference kernels, 5 min", "lego-reference", "psnr", 1, 22, None, "dB", "fast-ngp 19.6"),
    Target("one 800x800 lego view", "lego-5min", "seconds_per_view", 1, 1.5, 0.5, "s", "OpenSplat 0.7, fast-ngp 200"),
    Target("worst of 1/2, 1/4, 1/8 of the size, against full", "lego-sizes", "least", 1, 0, 1, "dB", "points: -8"),
    Target("fox 1080x1920, 10 min", "fox", "psnr", 1, 25, 26, "dB", ""),
    Target("fern 504x378, 5 min", "fern", "psnr", 1, 24.5, 25.5, "dB", "NeRF's paper 25.2 at 1008x756"),
    Target("peak memory, lego 5 min, all", "lego-5min", "peak_bytes", 1e9, 1.2, 0.8, "GB", "OpenSplat 4.9"),
    Target("512^3 mesh of lego", "mesh", "seconds", 1, 15, 6, "s", ""),
    Target("its peak memory", "mesh", "peak_bytes", 1e9, 1, None, "GB", ""),
)
