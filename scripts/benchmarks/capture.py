"""What finding poses is held to: what is run, and each result's target (two cores)."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target

# row -> job, options, backend. The photos of scenes with known poses are read from their images folder alone.
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "sceaux": ("poses", {"source": "{data}/sceaux_castle", "out": "{runs}/poses-sceaux"}, "cpu"),
    "fox": ("poses", {"source": "{data}/fox/images", "truth": "{data}/fox", "out": "{runs}/poses-fox"}, "cpu"),
    "cup": ("poses", {"source": "{data}/cup/images", "truth": "{data}/cup", "out": "{runs}/poses-cup"}, "cpu"),
    "bonsai-third": (
        "unordered",
        {"source": "{data}/bonsai/images", "truth": "{data}/bonsai", "out": "{runs}/poses-bonsai3", "every": 3},
        "cpu",
    ),
    "bonsai": (
        "unordered",
        {"source": "{data}/bonsai/images", "truth": "{data}/bonsai", "out": "{runs}/poses-bonsai"},
        "cpu",
    ),
    "fox-film": ("film", {"source": "{data}/fox/images", "truth": "{data}/fox", "out": "{runs}/poses-film"}, "cpu"),
    "sceaux-all": ("whole", {"source": "{data}/sceaux_castle", "out": "{runs}/sceaux-all", "minutes": 5}, "cpu"),
    "fox-retrieval": (
        "poses",
        {"source": "{data}/fox/images", "truth": "{data}/fox", "out": "{runs}/poses-fox-r", "matching": "retrieval"},
        "cpu",
    ),
    "cup-retrieval": (
        "poses",
        {"source": "{data}/cup/images", "truth": "{data}/cup", "out": "{runs}/poses-cup-r", "matching": "retrieval"},
        "cpu",
    ),
    "cup-halves": ("halves", {"model": "{data}/cup/sparse/0"}, "cpu"),  # what the bounds on cup can mean
    "large": ("large", {"out": "{runs}/large", "photos": 1000, "minutes": 1}, "cpu"),  # 9 GB of disk, 8 minutes
    "fox-given": ("train", {"scene": "{data}/fox", "minutes": 10}, "cpu"),
    "fox-ours": ("train", {"scene": "{runs}/poses-fox", "minutes": 10}, "cpu"),  # after fox
    "fox-noise-0": ("noise", {"scene": "{data}/fox", "degrees": 0.0, "minutes": 10, "refine": False}, "cpu"),
    "fox-noise-0-refined": ("noise", {"scene": "{data}/fox", "degrees": 0.0, "minutes": 10, "refine": True}, "cpu"),
    "fox-noise-0.2": ("noise", {"scene": "{data}/fox", "degrees": 0.2, "minutes": 10, "refine": True}, "cpu"),
    "fox-noise-0.7": ("noise", {"scene": "{data}/fox", "degrees": 0.7, "minutes": 10, "refine": True}, "cpu"),
    "fox-noise-0.7-as-it-is": ("noise", {"scene": "{data}/fox", "degrees": 0.7, "minutes": 10, "refine": False}, "cpu"),
}


def _against_truth(row: str, n: int) -> tuple[Target, ...]:
    return (
        Target(f"{row}: photos placed", row, "n_placed", 1, n, None, ""),
        Target(f"{row}: rotation error, median", row, "rotation_median", 1, 0.05, 0.02, "degrees"),
        Target(f"{row}: position error, median, of the extent", row, "position_median_percent", 1, 0.2, None, "%"),
    )


def _below(what: str, row: str, key: str, reach: float, other: str) -> Target:
    return Target(what, row, key, 1, reach, None, "dB lost", below=other)


TARGETS = (
    Target("sceaux_castle: photos placed", "sceaux", "n_placed", 1, 11, None, ""),
    Target("sceaux_castle: seconds to poses", "sceaux", "seconds", 1, 90, None, "s", "COLMAP's defaults 38 s"),
    *_against_truth("fox", 50),
    *_against_truth("cup", 75),
    *_against_truth("fox-film", 50),
    Target("bonsai, every 3rd: photos placed", "bonsai-third", "n_placed", 1, 95, None, ""),
    Target("bonsai, every 3rd: seconds to poses", "bonsai-third", "seconds", 1, 300, None, "s", "COLMAP global 607 s"),
    Target("bonsai, every 3rd: rotation, median", "bonsai-third", "rotation_median", 1, 0.2, None, "degrees"),
    Target("bonsai, every 3rd: position, median", "bonsai-third", "position_median_percent", 1, 0.5, None, "%"),
    Target("bonsai, all: photos placed", "bonsai", "n_placed", 1, 284, None, ""),
    Target("bonsai, all: rotation, median", "bonsai", "rotation_median", 1, 0.2, None, "degrees"),
    Target("bonsai, all: position, median", "bonsai", "position_median_percent", 1, 0.5, None, "%"),
    Target("sceaux_castle: field, video and mesh too", "sceaux-all", "seconds", 1, 600, None, "s"),
    Target(
        "1000 photos of 12 MP: peak memory of the run",
        "large",
        "first.peak_bytes",
        1e9,
        4.3,
        None,
        "GB",
        "a cgroup of 4 GiB",
    ),
    Target("1000 photos of 12 MP: load to first step", "large", "first.seconds_to_first_step", 1, 60, None, "s"),
    Target("fox by retrieval: photos placed", "fox-retrieval", "n_placed", 1, 50, None, ""),
    Target("cup by retrieval: photos placed", "cup-retrieval", "n_placed", 1, 75, None, ""),
    Target("fox 10 min, given poses", "fox-given", "psnr", 1, 26, None, "dB"),
    _below("fox 10 min, our poses, below the given", "fox-ours", "psnr", 0.3, "fox-given"),
    _below("poses 0.2 degrees off, below exact ones", "fox-noise-0.2", "psnr_aligned", 0.3, "fox-noise-0"),
    _below("poses 0.7 degrees off, below exact ones", "fox-noise-0.7", "psnr_aligned", 1.0, "fox-noise-0"),
)
