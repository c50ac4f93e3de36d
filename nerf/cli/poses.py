"""`nerf poses`: photos or a video without poses to a data set with poses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

import tyro

from nerf.capture import CaptureOptions, find_poses
from nerf.errors import note, say


@dataclass
class PosesArgs(CaptureOptions):
    """Find where photos were taken: features, matching and mapping, and a data set that every tool reads."""

    data: tyro.conf.Positional[Path]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]


def main(args: PosesArgs) -> None:
    """`nerf poses`: prints where the poses lie."""
    find_poses(args)
    say(args.out / "transforms.json")
    note(f"next: nerf reconstruct {quote(str(args.out))} -o RUN")
