"""A street of 40 metres (scripts/make_street.py): one field against cells, in the same number of steps in all."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target

STEPS = 4800  # of all cells together
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    f"street-{n}": ("street", {"scene": "{data}/street", "blocks": n, "steps": STEPS}, "cpu") for n in (1, 2, 4, 8)
}

CELLS = (2, 4, 8)
TARGETS = (
    *(
        Target(f"street in {n} cells against one field", f"street-{n}", "psnr", 1, 0, None, "dB lost", "", "street-1")
        for n in CELLS
    ),
    *(
        Target(
            f"borders of {n} cells, beyond what is lost elsewhere",
            f"street-{n}",
            f"seams.{n}.gain",
            1,
            0.2,
            None,
            "dB lost",
            "",
            "street-1",
        )
        for n in CELLS
    ),
)
