"""What fields of signals are held to: what is run, and each result's target (two cores)."""

from __future__ import annotations

from typing import Any

from benchmarks import shapes
from benchmarks.targets import Target

IMAGES = ["astronaut", "coffee", "chelsea", "rocket"]  # of scikit-image's wheel: squares of 512, 400, 300, 426 pixels
MAPPINGS = ["none", "basic", "positional", "gaussian", "hash", "siren"]
SIZES = [1 / 64, 1 / 16, 1 / 4]

ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "natural": ("natural", {"minutes": 1, "images": IMAGES, "kinds": MAPPINGS}, "cpu"),
    "albert": (
        "budgets",
        {"file": "{data}/image/albert.exr", "minutes": 1, "per_value": SIZES, "kinds": ["hash", "siren", "fourier"]},
        "cpu",
    ),
    "bach-5": ("sound", {"file": "{data}/audio/gt_bach.wav", "minutes": 5, "kinds": ["siren", "hash"]}, "cpu"),
    "bach-30": ("sound", {"file": "{data}/audio/gt_bach.wav", "minutes": 30, "kinds": ["siren", "hash"]}, "cpu"),
    "poisson": ("poisson", {"image_name": "camera", "side": 256, "minutes": 10, "learn": "gradient"}, "cpu"),
    "in-painting": (
        "inpaint",
        {"images": IMAGES, "keep": 0.1, "minutes": 1, "kinds": ["hash", "siren", "fourier"]},
        "cpu",
    ),
    **shapes.ROWS,
}

TARGETS = (
    *(
        Target(f"natural images, rest of the pixels: {kind}", "natural", f"{kind}.psnr_of_unknown", 1, dB, None, "dB")
        for kind, dB in (("none", 19.3), ("basic", 21.7), ("positional", 25.0), ("gaussian", 25.6))
    ),
    Target("Gaussian features above none", "natural", "gaussian_over_none", 1, 5, 6, "dB"),
    Target("albert, 60 s: hash above the others, least", "albert", "least_lead", 1, 0, 1, "dB"),
    # 30, 40 and 49.6 dB below full scale are mean squared errors of 1e-3, 1e-4 and 1.1e-5
    Target("bach, SIREN, 5 min: error below full scale", "bach-5", "siren.level", 1, 30, 49.6, "dB"),
    Target("bach, SIREN, 30 min: error below full scale", "bach-30", "siren.level", 1, 40, 49.6, "dB"),
    Target("bach, hash above SIREN, 5 min", "bach-5", "hash_lead", 1, 0, 3, "dB"),
    Target("bach, hash above SIREN, 30 min", "bach-30", "hash_lead", 1, 0, 3, "dB"),
    Target("Poisson from gradients, 256x256, 10 min", "poisson", "psnr", 1, 27, 30, "dB"),
    Target("10 % of pixels: best field above cubic", "in-painting", "lead_over_cubic", 1, 1, None, "dB"),
    *shapes.TARGETS,
)
