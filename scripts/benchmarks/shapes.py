"""What fields of shapes, slices and sets are held to: what is run, and each result's target (two cores)."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target

MESHES = ("spot", "nefertiti", "rocker-arm")

ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    **{
        f"shape-{name}": (
            "shape_of",
            {"file": f"{{data}}/meshes/{name}.obj", "minutes": 5, "kinds": ["hash", "siren"]},
            "cpu",
        )
        for name in MESHES
    },
    "ct": ("tomography", {"side": 256, "n_angles": 20, "minutes": 1, "kinds": ["hash", "fourier", "siren"]}, "cpu"),
    "faces": ("faces", {"minutes": 5, "latent": 64}, "cpu"),
    "compression": (
        "compression",
        {"image_name": "astronaut", "side": 512, "minutes": 2, "widths": [32, 64, 96], "tables": [10, 12]},
        "cpu",
    ),
}

TARGETS = (
    *(Target(f"IoU, hash, 5 min: {name}", f"shape-{name}", "hash.iou", 1, 0.99, 0.997, "") for name in MESHES),
    Target("Shepp-Logan, 20 projections, best field", "ct", "psnr", 1, 28.3, None, "dB", "Gaussian Fourier, published"),
    Target("Shepp-Logan, 20 projections: above SART", "ct", "lead_over_sart", 1, 3, None, "dB"),
)
