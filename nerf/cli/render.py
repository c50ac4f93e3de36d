"""`nerf render`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nerf.errors import Range, check_numbers, say
from nerf.io.folders import model_files
from nerf.io.outputs import check_output
from nerf.io.video import FPS
from nerf.views.paths import camera_path, load_path, save_path
from nerf.views.video import check_modes, planned_outputs, render_video
from nerf.views.viewer.edited import edited
from nerf.views.viewer.edits import edits_of

SAMPLES = Range(1, 8, whole=True, optional=True)


@dataclass
class RenderArgs:
    """Render new views from a trained model, along a path, to a video or to pictures."""

    model: tyro.conf.Positional[Path]
    """the folder that `nerf train` or `nerf reconstruct` wrote, or a checkpoint file in it"""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """NAME.mp4 for a video, a folder for numbered pictures (default: render.mp4 in the model's folder)"""
    path: str = "auto"
    """orbit, interpolate (through the photos' cameras), spiral, or a camera path FILE.json; auto: orbit, but spiral for
    forward-facing scenes and interpolate for open ones of under 30 photos"""
    modes: tuple[str, ...] = ("color",)
    """what to show, one video or folder each: color, depth, opacity, normal"""
    width: int | None = None
    """pixels (default: as the input images, or as the camera path says)"""
    height: int | None = None
    """pixels"""
    frames: int = 120
    """number of frames (a camera path file has its own)"""
    fps: float | None = None
    """frames per second (default 30, or as the camera path says)"""
    save_path: Path | None = None
    """also write the camera path to this JSON file, to edit it or to use it again"""
    samples: int | None = None
    """rays a side of a pixel, 1 to 8: 1 is fastest (default: as many as make a ray no wider than a photo's pixel, so
    that small pictures and far views are smooth)"""
    exr: bool = False
    """write OpenEXR instead of PNGs into the folder: linear light with all its range, depths and normals as numbers"""
    edits: bool = True
    """use what was set in `nerf view`, where the run has any: crop, hidden regions, and up, for orbit and spiral"""
    overwrite: bool = False
    """replace files of the same name"""


def main(args: RenderArgs) -> None:
    """`nerf render`: prints one line for each file or folder written."""
    check_modes(args.modes)
    check_numbers({"fps": args.fps, "samples": args.samples}, {"fps": FPS, "samples": SAMPLES}, "--")
    folder, checkpoint = model_files(args.model, blocks=True)
    out = args.out if args.out is not None else folder / ("render" if args.exr else "render.mp4")
    planned_outputs(out, args.modes, args.overwrite, args.exr)
    if args.save_path is not None:
        check_output(args.save_path, args.overwrite, checkpoint)
    edits = edits_of(folder, args.edits, ("crop", "hidden", "up"))
    from nerf.training.runs import model_of_run

    if args.path.lower().endswith(".json"):  # read before the model: a mistake shows at once
        path = load_path(Path(args.path), args.width, args.height)
        model = model_of_run(checkpoint)
    else:
        model = model_of_run(checkpoint)
        size = args.width, args.height
        place = model.cameras, model.scene_from_world, model.space
        path = camera_path(args.path, *place, args.frames, 30.0, *size, up=edits.up_direction())
    if args.fps is not None:
        path.fps = args.fps
    if args.save_path is not None:
        save_path(args.save_path, path)
    shown = edited(model, edits)
    for written in render_video(shown, path, out, args.modes, args.overwrite, exr=args.exr, samples=args.samples):
        say(written)
