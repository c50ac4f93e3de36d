"""`nerf export-cameras`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nerf.errors import say
from nerf.training.export import export_cameras, model_file
from nerf.views.viewer.edits import Edits, edits_of


@dataclass
class ExportArgs:
    """Write a scene's cameras for other programs: a transforms.json, or a COLMAP model. The world stays what it is."""

    source: tyro.conf.Positional[Path]
    """folder (or file) of photos with poses, or the folder of a trained model, whose own cameras are then written"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """NAME.json for a transforms.json, a folder for a COLMAP model (its sparse/0, and images beside it)"""
    text: bool = False
    """write the COLMAP model as text instead of binary"""
    kind: str | None = None
    """read the folder as this format, where it could be several"""
    data: Path | None = None
    """of a trained model: the scene's folder, where it has moved since training"""
    cameras_are: str | None = None
    """of a folder: take its cameras as meant in another way, as `nerf check` says it, and write them so"""
    edits: bool = True
    """of a trained model: use what was set in `nerf view`: lengths as `nerf mesh` writes them, photos left out"""
    overwrite: bool = False
    """replace files of the same name"""


def main(args: ExportArgs) -> None:
    """`nerf export-cameras`: prints where they lie."""
    file = model_file(args.source)
    edits = Edits() if file is None else edits_of(file.parent, args.edits, ("scale", "left_out"))
    given = args.text, args.overwrite, args.kind, args.data, args.cameras_are
    say(export_cameras(args.source, args.out, *given, scale=edits.scale, left_out=edits.left_out))
