"""`nerf eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nerf.errors import UserError, say
from nerf.training.evaluation import evaluate


@dataclass
class EvalArgs:
    """Measure a trained model: PSNR and SSIM for each view and their means, JSON, side-by-side pictures, error maps."""

    model: tyro.conf.Positional[Path]
    """the folder that `nerf train` or `nerf reconstruct` wrote, or a checkpoint file in it"""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """folder to write to (default: eval in the model's folder)"""
    data: Path | None = None
    """the scene (default: the one that the model was trained on)"""
    split: str = "test"
    """test, val or train"""
    overwrite: bool = False
    """replace an earlier evaluation"""


def main(args: EvalArgs) -> None:
    """`nerf eval`: prints the means and where everything lies."""
    from nerf.io.folders import model_files
    from nerf.io.outputs import OutputFolder
    from nerf.training.runs import model_of_run, scene_of_run

    folder, checkpoint = model_files(args.model, blocks=True)
    out = args.out if args.out is not None else folder / "eval"
    if (out / "eval.json").exists() and not args.overwrite:
        raise UserError(f"{out} holds an evaluation already; choose another folder with -o or give --overwrite")
    OutputFolder(out, "evaluation").check(overwrite=True)
    from nerf.views.viewer.edits import edits_of

    edits_of(folder, uses=())
    model = model_of_run(checkpoint)
    scene = scene_of_run(folder, model.meta, args.data)
    say(evaluate(model, scene, args.split, out))
    say(out / "eval.json")
