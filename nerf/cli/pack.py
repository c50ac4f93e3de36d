"""`nerf pack`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nerf.errors import UserError, say
from nerf.io.files import write_file
from nerf.io.folders import model_files
from nerf.io.outputs import check_output
from nerf.signals.fitting import Fitted
from nerf.signals.packing import pack


@dataclass
class PackArgs:
    """Write a fitted signal as a small file: weights rounded to few bits and entropy coded; `nerf sample` reads it."""

    fit: tyro.conf.Positional[Path]
    """the folder that `nerf fit` wrote, or a checkpoint file in it"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """the file to write"""
    bits: int = 8
    """for each weight, 2 to 16, before the entropy code"""
    overwrite: bool = False
    """replace a file of that name"""


def main(args: PackArgs) -> None:
    """`nerf pack`: prints the size."""
    if not 2 <= args.bits <= 16:
        raise UserError(f"--bits {args.bits}: expected 2 to 16")
    checkpoint = model_files(args.fit)[1]
    check_output(args.out, args.overwrite, checkpoint)
    fitted = Fitted.load(checkpoint)
    data = pack(fitted, args.bits)
    write_file(args.out, data)
    shape = fitted.signal.get("shape")
    about = f", {8 * len(data) / math.prod(shape):.3f} bits for each place of its grid" if shape else ""
    say(f"{args.out}: {len(data)} bytes{about}")
