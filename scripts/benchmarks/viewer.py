"""What the viewer is held to: what is run, and each result's target (two cores)."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target

ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "sample-field": ("train", {"scene": "{project}/data/sample", "minutes": 1}, "cpu"),
    "first-picture": ("first_picture", {"model": "{runs}/sample-field"}, "cpu"),
    "watched-training": ("watched_training", {"scene": "{project}/data/sample"}, "cpu"),
    "long-look": ("long_look", {"model": "{runs}/sample-field"}, "cpu"),
}

TARGETS = (
    Target("first picture, once the page is there", "first-picture", "first_picture", 1, 0.3, 0.1, "s"),
    Target("after a move, the next picture", "first-picture", "after_a_move", 1, 0.3, 0.15, "s"),
    Target(
        "a step of training longer while somebody moves",
        "watched-training",
        "longer_percent.moving",
        1,
        33.4,
        None,
        "%",
    ),
    Target("while somebody looks and rests", "watched-training", "longer_percent.resting", 1, 33.4, None, "%"),
    Target("while nobody looks", "watched-training", "longer_percent.nobody", 1, 2, None, "%"),
    Target("memory that an hour of looking adds", "long-look", "grown_bytes_an_hour", 1e9, 0.1, None, "GB"),
    Target("sent in an hour of moving without rest", "long-look", "bytes_an_hour", 1e9, 2, None, "GB"),
)
