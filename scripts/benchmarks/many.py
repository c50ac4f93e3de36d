"""What sets of thousands of photos are held to: what is run, and each result's target."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target

COUNTS = (500, 1000, 2000, 5000)

# row -> job, options, backend
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    str(n): ("many", {"out": f"{{runs}}/many-{n}", "photos": n}, "cpu") for n in COUNTS
}
STAGES = ("check", "load", "set_up", "first_steps", "evaluate", "report", "choose_pairs")


def _peak(stage: str) -> Target:
    what = f"5000 photos: {stage.replace('_', ' ')}, peak memory"
    return Target(what, "5000", f"{stage}.peak_bytes", 1e9, 2, None, "GB")


def _takes(stage: str, reach: float) -> Target:
    return Target(
        f"5000 photos: {stage.replace('_', ' ')}, processor", "5000", f"{stage}.cpu_seconds", 1, reach, None, "s"
    )


TARGETS = (
    *map(_peak, STAGES),
    _takes("load", 15),
    _takes("set_up", 60),
    _takes("report", 15),
    _takes("choose_pairs", 30),
)
