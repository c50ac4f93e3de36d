"""Photos asked whether they fit the poses, lenses and masks that are given with them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nerf.checks.verdict import Finding, Verdict
    from nerf.io.outputs import OutputFolder

FILES = ("check.json", "check.png")


def check(
    path: str | Path,
    kind: str | None = None,
    masks: str | Path | None = None,
    seconds: float | None = None,
    cameras_are: str | None = None,
) -> Verdict:
    """Ask the photos of a data set whether they fit their cameras, lenses and masks.

    kind, masks, cameras_are: as for `load`. seconds: the most time to take (None: 10 for a hundred photos). What is
    found is in the verdict; UserError is raised for what cannot be read at all. Comparing photos needs the package
    pycolmap.

    >>> verdict = nerf.check("data/sample", seconds=0.5)
    >>> verdict.is_wrong
    False
    """
    return check_folder(path, kind, masks, seconds, cameras_are)


def check_folder(
    path: str | Path,
    kind: str | None,
    masks: str | Path | None,
    seconds: float | None,
    cameras_are: str | None,
    spent: float = 0.0,
) -> Verdict:
    """`check`, of whose usual time so many seconds have gone by already."""
    started = time.perf_counter() - spent
    from nerf.checks.run import check_posed
    from nerf.datasets import load_posed

    posed = load_posed(path, kind, masks, cameras_are=cameras_are, quiet=True)
    return check_posed(posed, seconds, picture=True, spent=time.perf_counter() - started)


def write_check(verdict: Verdict, folder: Path) -> None:
    """check.json and, where there is one, check.png into a folder that is ours."""
    from nerf.io.files import write_file
    from nerf.io.pictures import write_png

    write_file(folder / "check.json", json.dumps(verdict.to_json(), indent=1))
    if verdict.picture is not None:
        write_png(folder / "check.png", verdict.picture)


__all__ = ["FILES", "Finding", "OutputFolder", "Verdict", "check", "check_folder", "write_check"]
