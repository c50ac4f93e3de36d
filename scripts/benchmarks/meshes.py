"""What meshes and textures are held to: what is run, and each result's target (two cores)."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target

# objects with a true surface: the bundled scene, and meshes photographed by scripts/make_objects.py
MADE = {"spot": "cow", "nefertiti": "nefertiti", "rocker-arm": "rocker-arm"}
SCENES = {"sample": "{project}/data/sample"} | {name: f"{{runs}}/objects/{file}" for name, file in MADE.items()}
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {}
for _name, _file in MADE.items():
    _photos = {"mesh": f"{{data}}/meshes/{_file}.obj", "up": "z" if _file == "nefertiti" else "y"}
    ROWS[f"{_name}-photos"] = ("photograph", _photos | {"out": "{runs}/objects"}, "cpu")
for _name, _scene in SCENES.items():
    ROWS[f"{_name}-field"] = ("train", {"scene": _scene, "minutes": 5}, "cpu")
    _model, _truth = f"{{runs}}/{_name}-field", f"{_scene}/mesh.ply"
    ROWS[_name] = ("textured_mesh", {"model": _model, "scene": _scene, "truth": _truth}, "cpu")
ROWS |= {
    "lego-field": ("train", {"scene": "{data}/lego", "minutes": 5}, "cpu"),
    "lego": (
        "textured_mesh",
        {"model": "{runs}/lego-field", "scene": "{data}/lego", "truth": None, "resolution": 512},
        "cpu",
    ),
    "room-field": ("train", {"scene": "{data}/room", "minutes": 10}, "cpu"),
    "room": (
        "textured_mesh",
        {
            "model": "{runs}/room-field",
            "scene": "{data}/room",
            "truth": None,
            "scored_by": "{data}/../tools/score_room.py",
        },
        "cpu",
    ),
    "bonsai-field": ("train", {"scene": "{data}/bonsai", "minutes": 10}, "cpu"),
    "bonsai": ("textured_mesh", {"model": "{runs}/bonsai-field", "scene": "{data}/bonsai", "truth": None}, "cpu"),
    "lego-1024": ("extract", {"model": "{runs}/lego-field", "resolution": 1024}, "cpu"),
    "lego-no-surface": ("train", {"scene": "{data}/lego", "minutes": 5, "overrides": ["surface=0"]}, "cpu"),
    "cup-field": ("train", {"scene": "{data}/cup", "minutes": 5}, "cpu"),
    "cup": ("distance_of_points", {"model": "{runs}/cup-field", "scene": "{data}/cup"}, "cpu"),
}

TARGETS = (
    *(Target(f"{n}: Chamfer of the diagonal", n, "truth.chamfer_percent", 1, 0.20, 0.12, "%") for n in SCENES),
    *(Target(f"{n}: F-score at 0.5 %", n, "truth.f_scores.0:5.f_score", 1, 0.97, 0.99, "") for n in SCENES),
    *(Target(f"{n}: normal consistency", n, "truth.normal_consistency", 1, 0.95, 0.97, "") for n in SCENES),
    Target("rocker-arm: genus beside 1", "rocker-arm", "genus_off_one", 1, 0, None, "wrong"),
    *(Target(f"{n}: texture below the field", n, "psnr_lost", 1, 3, 1.5, "dB lost") for n in MADE),
    Target("sample: textured mesh as its test views", "sample", "views.psnr", 1, 28, 30, "dB"),
    Target("above it: with colours by direction", "sample", "gained_by_direction", 1, 0.3, None, "dB"),
    Target("lego: textured mesh as its 25 test views", "lego", "views.psnr", 1, 25, 27, "dB"),
    Target("lego: 512^3, cleaning, texture of 4096", "lego", "seconds", 1, 120, 45, "s"),
    Target("its peak memory", "lego", "peak_bytes", 1e9, 3, None, "GB"),
    Target("lego: 1024^3 extraction", "lego-1024", "seconds", 1, 60, 30, "s"),
    Target("its peak memory", "lego-1024", "peak_bytes", 1e9, 2, None, "GB"),
    Target("room: F at 1 cm, of what three views see", "room", "scored.all_1cm.F", 1, 0.55, 0.75, ""),
    Target("room: F at 2 cm", "room", "scored.all_2cm.F", 1, 0.75, 0.90, ""),
    Target("room: F at 5 cm", "room", "scored.all_5cm.F", 1, 0.90, 0.97, ""),
    Target("room: rms of walls, floor and ceiling", "room", "scored.plain_rms_mm", 1, 10, 5, "mm"),
    Target("room: textured mesh as its test views", "room", "views.psnr", 1, 30, 32, "dB"),
    Target("room: mesh with a texture of 4096", "room", "seconds", 1, 180, None, "s"),
    Target("its peak memory", "room", "peak_bytes", 1e9, 3, None, "GB"),
    Target("bonsai: textured mesh as its held-out views", "bonsai", "views.psnr", 1, 26, 27.5, "dB"),
    Target("cup: COLMAP's points, of the diagonal", "cup", "median_percent", 1, 0.5, 0.25, "%"),
)
