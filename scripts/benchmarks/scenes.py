"""Real scenes' numbers: captures as they are, and with one thing put into them that captures have (two cores)."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target

LEGO, FOX = {"scene": "{data}/lego"}, {"scene": "{data}/fox", "longest": 960, "minutes": 3}
FEW = LEGO | {"downscale": 4, "photos": 40, "minutes": 1}
# row -> job, options, backend; change: what is put into the photos, see scene_jobs.CHANGES
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "bonsai": ("real_scene", {"scene": "{data}/bonsai", "minutes": 10}, "cpu"),
    "dtu24": ("real_scene", {"scene": "{data}/dtu24", "minutes": 10}, "cpu"),
    "fox": ("real_scene", {"scene": "{data}/fox", "minutes": 10}, "cpu"),
    "room": ("real_scene", {"scene": "{data}/room", "minutes": 10}, "cpu"),
    "lego": ("real_scene", LEGO | {"minutes": 2}, "cpu"),
    **{f"lego-{c}": ("real_scene", LEGO | {"minutes": 2, "change": c}, "cpu") for c in ("white", "grey", "black")},
    "fox-half": ("real_scene", FOX, "cpu"),
    "fox-light": ("real_scene", FOX | {"change": "light"}, "cpu"),
    "fox-light-off": ("real_scene", FOX | {"change": "light", "exposure": "off"}, "cpu"),
    "fox-passers-by": ("real_scene", FOX | {"change": "passers-by"}, "cpu"),
    "fox-passers-by-kept": ("real_scene", FOX | {"change": "passers-by", "distractors": False}, "cpu"),
    "mattes": ("real_scene", FEW, "cpu"),
    **{f"mattes-{c}": ("real_scene", FEW | {"change": f"{c}-matte"}, "cpu") for c in ("empty", "half", "opaque")},
}

TARGETS = (
    Target("bonsai 800x533, 10 min", "bonsai", "psnr", 1, 31, 32, "dB", "instant-ngp 30.3, 3DGS 32.0"),
    Target("dtu24 800x600, 10 min", "dtu24", "psnr", 1, 29, 31, "dB", ""),
    Target("fox 1080x1920, 10 min", "fox", "psnr", 1, 31.5, 32, "dB", ""),
    Target("room 640x480, 10 min", "room", "psnr", 1, 36, 37, "dB", ""),
    *(
        Target(f"lego before {c}, no alpha", f"lego-{c}", "psnr", 1, 0.5, None, "dB lost", "", "lego")
        for c in ("white", "grey", "black")
    ),
    Target(
        "fox, light moves, colour-corrected",
        "fox-light",
        "psnr_colour_corrected",
        1,
        0.5,
        0.2,
        "dB lost",
        "",
        "fox-half",
    ),
    Target("fox, passers-by", "fox-passers-by", "psnr", 1, 0.5, 0.2, "dB lost", "", "fox-half"),
    *(
        Target(f"one {c} matte of 40", f"mattes-{c}", "psnr", 1, 0.3, None, "dB lost", "", "mattes")
        for c in ("empty", "half", "opaque")
    ),
)
