"""`nerf train` and `nerf reconstruct`: posed photos to a model, and on to numbers, a video, a mesh and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from nerf.checks import FILES
from nerf.cli.mesh import save_placed
from nerf.cli.train import TrainArgs, check, run_of, train_run, without_poses
from nerf.cli.view import serve, watching
from nerf.errors import UserError, brief, note, say
from nerf.training.runs import RUN_FILE, open_run, write_run

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.io.outputs import OutputFolder
    from nerf.rendering.model import Model

# What is written after training, beside the folder eval/.
SIDES = ("front", "right", "back", "left", "top", "bottom")
STEPS = ("poses", "training", "evaluation", "video", "mesh")
SURVEY = tuple(f"survey/{name}.png" for name in ("inside", "above", "exposure"))
SHOWN = (
    "video.mp4",
    "mesh.glb",
    "mesh.geo.json",
    "mesh.html",
    "report.html",
    *SURVEY,
    *(f"mesh_views/{side}.png" for side in SIDES),
)
VIDEO_LONGEST = 640  # pixels; of the turntable in the report
VIDEO_FRAMES = 96
VIDEO_FPS = 24.0
TRAIN_VIEWS_SHOWN = 8  # measured where none are held out
MEASURED_PIXELS = 1 << 21  # of a view in the report, so that measuring takes less time than training: 1920x1080
VIDEO_STRETCH = 1.5  # of the steps along rays in the report's video: 0.2 dB on fox, and 1.6 times as fast


@dataclass
class ReconstructArgs(TrainArgs):
    """Photos in; a model, its measured quality, a video, a mesh and a report out."""

    resolution: int | None = None
    """of the mesh: cells along the longest side (default: as fine as the photos' pixels, at most 512)"""
    texture: int | None = None
    """texels along the longer side of the mesh's texture, 0: coloured vertices (default: 4096, small photos 2048)"""
    frames: int | None = None
    """of a video: how many frames to take (default: 4 a second, at most 120)"""
    distance: tuple[str, str, float] | None = None
    """of photos without poses: PHOTO PHOTO LENGTH, how far apart two were taken; lengths are then true"""
    gps: Literal["auto", "off"] = "auto"
    """of photos without poses: set scale (metres), north (+y) and up from GPS in EXIF where it agrees with the poses"""
    blocks: tyro.conf.Suppress[None] = None
    cell: tyro.conf.Suppress[None] = None
    scale: float = 1.0
    """of photos without poses: multiply all lengths, say by TRUE / MEASURED of something in a first mesh"""


def main(args: ReconstructArgs) -> None:
    """`nerf reconstruct`: prints the numbers and where everything lies; a stage that fails does not stop the next."""
    if args.resolution is not None and args.resolution < 16:
        raise UserError(f"--resolution must be at least 16, got {args.resolution}")
    if args.texture:
        from nerf.meshing.atlas import check_size

        check_size(args.texture)
    check(args)
    started = time.perf_counter()
    find_poses = _pose_finder(args)
    data = args.data if find_poses is None else args.out / "dataset"
    run = run_of(args, data)
    with watching(args.view, args.host, args.port, args.out) as viewer:
        with open_run(args.out, run, args.resume, args.overwrite, (*SHOWN, *FILES)) as out:
            step = "poses"
            try:
                if find_poses is not None:
                    out.claim(RUN_FILE)
                    write_run(args.out, run)  # so that --resume knows the folder, should this be interrupted
                    find_poses()
                step = "training"
                model, scene = train_run(args, out, data, viewer)
            except Exception as error:
                if args.resume or not (args.out / "report.html").exists():  # of a run that is still to be replaced
                    _report_failure(out, step, error)
                raise
            out.claim(*SHOWN)
            failures = finish(model, scene, args.out, args.resolution, args.texture)
        for name in ("checkpoint.safetensors", "eval/eval.json", "video.mp4", "mesh.glb", "mesh.html", "report.html"):
            if (args.out / name).exists():
                say(args.out / name)
        note(f"done in {time.perf_counter() - started:.0f} s: open {args.out / 'report.html'}")
        if viewer is not None:
            viewer.subject.open_mesh()
            serve(viewer)
    for failure in failures.values():
        if not isinstance(failure, (UserError, OSError)):
            raise failure
    if failures:
        raise UserError("; ".join(failures))


def _report_failure(out: OutputFolder, step: str, error: Exception) -> None:
    """The report of a run that ended before there was a model; whatever this comes upon, `error` is what is told."""
    from nerf.views.report import write_report

    later = ", ".join(STEPS[STEPS.index(step) + 1 :])
    try:
        out.claim("report.html")
        path = write_report(out.path, failures=[_told(step, error), f"{later}: not begun, for they need what failed"])
        note(f"{path} says what is there and what is not")
    except (UserError, OSError) as another:
        note(f"report: {another}")


def _told(step: str, error: Exception) -> str:
    """A step's failure in one sentence."""
    if isinstance(error, UserError):
        return f"{step}: {error}"
    return (
        f"{step}: {brief(error)}" if isinstance(error, OSError) else f"{step}: {type(error).__name__}: {brief(error)}"
    )


def _pose_finder(args: ReconstructArgs) -> Callable[[], object] | None:
    """What makes OUT/dataset of photos without poses, using again what an interrupted run has found; else None."""
    if not without_poses(args.data, args.kind):
        for name, usual in (("frames", None), ("distance", None), ("gps", "auto"), ("scale", 1.0)):
            if getattr(args, name) != usual:
                raise UserError(f"--{name} is for photos or a video without poses, and {args.data} has poses")
        return None
    for name in ("cameras_are", "georeference"):
        if getattr(args, name) is not None:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is for photos with poses, and {args.data} has none yet: leave it out")

    def find() -> object:
        from nerf.capture import CaptureOptions, find_poses

        given = {name: getattr(args, name) for name in ("frames", "masks", "distance", "gps", "scale", "overwrite")}
        return find_poses(CaptureOptions(args.data, args.out / "dataset", **given))

    return find


def finish(
    model: Model, scene: Scene, out: Path, resolution: int | None = None, texture: int | None = None
) -> dict[str, Exception]:
    """All after training: eval/, video.mp4, mesh.glb, report.html in `out`; a stage that fails does not stop the next.
    Returns the errors of those that did, by a sentence for each.

    resolution, texture: of the mesh, as for the command line.
    """
    from nerf.training.evaluation import evaluate
    from nerf.views.report import write_report
    from nerf.views.survey import write_survey
    from nerf.views.viewer.edits import EDITS_FILE, read_edits

    seen: list[str] = []

    def measure() -> None:
        held_out = len(scene.splits.get("test", ())) > 0
        split, limit = ("test", None) if held_out else ("train", TRAIN_VIEWS_SHOWN)
        result = evaluate(model, scene, split, out / "eval", max_views=limit, most_pixels=MEASURED_PIXELS)
        say(result)
        if "rendered smaller" in result.protocol.down_scaling:
            note(f"measured at {', '.join(result.protocol.resolution)}; `nerf eval` measures every pixel")
        seen.extend(write_survey(model, scene.cameras, result, out))

    if not read_edits(out).empty:
        note(f"video.mp4 and mesh.glb show all, without {out / EDITS_FILE}; `nerf mesh` and `nerf render` use it")
    failures: dict[str, Exception] = {}
    stages: dict[str, Callable[[], object]] = {
        "evaluation": measure,
        "video": lambda: turntable(model, out / "video.mp4"),
        "mesh": lambda: make_mesh(model, scene, out / "mesh.glb", resolution, texture),
        "report": lambda: write_report(out, scene.notes, list(failures), seen),
    }
    for name, stage in stages.items():
        try:
            stage()
        except Exception as error:  # a machine without ffmpeg should still get its mesh
            failures[_told(name, error)] = error
            note(_told(name, error))
    return failures


def turntable(model: Model, out: Path) -> None:
    """A short video around the scene, or along its photos (path "auto"), at most 640 pixels on its longest side."""
    from nerf.views.paths import camera_path
    from nerf.views.video import render_video

    path = camera_path(
        "auto", model.cameras, model.scene_from_world, model.space, VIDEO_FRAMES, VIDEO_FPS, longest=VIDEO_LONGEST
    )
    render_video(model.coarser(VIDEO_STRETCH), path, out, overwrite=True, samples=1)  # more take many times as long


def make_mesh(model: Model, scene: Scene, out: Path, resolution: int | None, texture: int | None) -> None:
    """The mesh, textured from the photos; beside it a page that shows it and mesh_views/, pictures from six sides."""
    from nerf.geometry.aim import common_up
    from nerf.meshing.extract import extract_mesh
    from nerf.meshing.finish import TEXTURED_FACES, texture_mesh, usual_texture
    from nerf.meshing.sides import front_direction, write_six_sides
    from nerf.views.page import write_page

    started = time.perf_counter()
    texture = usual_texture(scene.cameras) if texture is None else texture
    mesh = extract_mesh(model, resolution, colours=texture == 0, scene=scene)
    if texture:
        mesh = texture_mesh(model, scene, mesh, texture, TEXTURED_FACES)
    up, front = common_up(model.cameras)[0], front_direction(model)
    save_placed(mesh, out, up, model.georeference)
    note(f"mesh: {len(mesh.faces):,} triangles in {time.perf_counter() - started:.1f} s")
    write_page(out.with_suffix(".html"), model, mesh, Path(scene.path).name, directional=False)
    write_six_sides(mesh, front, up, out.parent / "mesh_views")
