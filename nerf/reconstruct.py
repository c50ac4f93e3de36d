"""`nerf train` and `nerf reconstruct`: posed photos to a model, and on to numbers, a video, a mesh and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nerf.errors import UserError, note
from nerf.runs import Run, clear_run, load_for_training, open_run, write_run

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.model import Model

DEFAULT_MINUTES = 5.0
VIDEO_LONGEST = 640  # pixels; of the turntable in the report
VIDEO_FRAMES = 96
VIDEO_FPS = 24.0
SMALL_PHOTOS = 640  # pixels; a smaller texture holds all that they show
TRAIN_VIEWS_SHOWN = 8  # measured where none are held out
MEASURED_PIXELS = 1 << 21  # of a view in the report, so that measuring takes less time than training: 1920x1080
VIDEO_STRETCH = 1.5  # of the steps along rays in the report's video: 0.2 dB on fox, and 1.6 times as fast

Backend = Literal["auto", "cuda", "tinycudann", "cpu", "reference"]


@dataclass
class TrainArgs:
    """Train a radiance field on posed photos."""

    data: tyro.conf.Positional[Path]
    """folder with the photos and their poses (reconstruct: also photos or a video without poses)"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """folder to write to"""
    minutes: float | None = None
    """time to train; it settles the number of steps from the speed of the first ones (5 unless --steps is given)"""
    steps: int | None = None
    """number of steps, instead of a time"""
    resume: bool = False
    """continue the run in the output folder, exactly as if it had not stopped"""
    overwrite: bool = False
    """discard the run in the output folder"""
    downscale: int = 1
    """average blocks of so many pixels squared"""
    longest: int | None = None
    """pixels that photos have at most on their longer side (default: all, but 1600 where they would take over 2 GB)"""
    holdout: int | None = None
    """hold out every K-th image for measuring, 0: none (default: the files' split, else every 8th from 30 images up)"""
    kind: str | None = None
    """read the folder as this format, where it could be several: blender, transforms, colmap, llff, neus, metashape,
    realitycapture, opensfm, polycam, record3d"""
    backend: Backend = "auto"
    """auto takes the fastest that is there; cuda insists on the GPU, tinycudann on that package's networks, cpu on the
    native library; reference is slow"""
    masks: Path | None = None
    """folder of masks, NAME.png for each photo: what is black there is ignored (default: those that the data names, or
    masks/ beside photos without poses)"""
    refine_poses: bool = False
    """correct the cameras' poses while training, for poses that are not exact"""
    exposure: bool = False
    """learn each photo's exposure and white balance, for photos that differ in them"""
    seed: int = 0
    """of the random numbers: the same seed and --steps give the same model (on a GPU but for rounding)"""
    deterministic: bool = False
    """on a GPU: to the bit on the same kind of GPU, which takes longer; the CPU always does"""


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
    scale: float = 1.0
    """of photos without poses: multiply all lengths, say by TRUE / MEASURED of something in a first mesh"""


def main_train(args: TrainArgs) -> None:
    """`nerf train`: prints where the checkpoint lies."""
    _, scene = train_run(args)
    print(args.out / "checkpoint.safetensors")
    held = len(scene.splits.get("test", ()))
    note(f"next: nerf eval {args.out}" if held else f"next: nerf render {args.out}")


def main_reconstruct(args: ReconstructArgs) -> None:
    """`nerf reconstruct`: prints the numbers and where everything lies; a stage that fails does not stop the next."""
    if args.resolution is not None and args.resolution < 16:
        raise UserError(f"--resolution must be at least 16, got {args.resolution}")
    if args.texture:
        from nerf.meshing.atlas import check_size

        check_size(args.texture)
    started = time.perf_counter()
    model, scene = train_run(args)
    failures = finish(model, scene, args.out, args.resolution, args.texture)
    for name in ("checkpoint.safetensors", "eval/eval.json", "video.mp4", "mesh.glb", "mesh.html", "report.html"):
        if (args.out / name).exists():
            print(args.out / name)
    note(f"done in {time.perf_counter() - started:.0f} s: open {args.out / 'report.html'}")
    if failures:
        raise UserError("; ".join(failures))


def train_run(args: TrainArgs) -> tuple[Model, Scene]:
    """Check the arguments, load the scene and train in args.out."""
    if args.minutes is not None and args.steps is not None:
        raise UserError("--minutes and --steps are two ways to say how long: give one of them")
    if args.minutes is not None and not 0 < args.minutes < 1e6:
        raise UserError(f"--minutes must be above 0, got {args.minutes:g}")
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps must be at least 1, got {args.steps}")
    if args.downscale < 1:
        raise UserError(f"--downscale must be a whole number from 1 up, got {args.downscale}")
    if args.longest is not None and args.longest < 16:
        raise UserError(f"--longest must be at least 16, got {args.longest}")
    if args.holdout is not None and (args.holdout < 0 or args.holdout == 1):
        raise UserError(f"--holdout must be 0 (none) or 2 and more (every so-many-th), got {args.holdout}")
    if not args.data.exists():
        raise UserError(f"{args.data}: there is no such folder")
    data = _data_of(args)
    run = Run(str(data.resolve()), args.downscale, args.kind, args.holdout, longest=args.longest)
    if data == args.data and args.masks is not None:
        run.masks = str(args.masks.resolve())
    open_run(args.out, run, args.resume, args.overwrite)
    if data != args.data:
        _find_poses(args, data, run)

    from nerf import kernels
    from nerf.recipe import TrainConfig
    from nerf.training import train

    if args.backend != "auto":
        kernels.use(args.backend)
    scene = load_for_training(run)
    if args.overwrite:  # only now: the scene could be loaded
        clear_run(args.out)
    write_run(args.out, run)
    minutes = DEFAULT_MINUTES if args.minutes is None and args.steps is None else args.minutes
    config = TrainConfig(
        steps=args.steps,
        minutes=minutes,
        seed=args.seed,
        deterministic=args.deterministic,
        refine_poses=args.refine_poses,
        exposure=args.exposure,
    )
    return train(scene, config, args.out, resume=args.resume, progress=True), scene


def _data_of(args: TrainArgs) -> Path:
    """The folder to train on: that of the arguments, or OUT/dataset where its photos have no poses yet."""
    from nerf.capture import needs_poses

    if args.kind is not None or not needs_poses(args.data):
        for name, usual in (("frames", None), ("distance", None), ("scale", 1.0)):
            if getattr(args, name, usual) != usual:
                raise UserError(f"--{name} is for photos or a video without poses, and {args.data} has poses")
        return args.data
    if not isinstance(args, ReconstructArgs):
        raise UserError(
            f"{args.data}: holds photos without poses: `nerf poses {args.data} -o DATASET` finds them, and "
            "`nerf reconstruct` does that and all the rest"
        )
    return args.out / "dataset"


def _find_poses(args: TrainArgs, dataset: Path, run: Run) -> None:
    """Photos or video to OUT/dataset; what an interrupted run has found there is used again."""
    from nerf.capture import PosesArgs, find_poses

    assert isinstance(args, ReconstructArgs)
    write_run(args.out, run)  # so that --resume knows the folder, should this be interrupted
    find_poses(
        PosesArgs(
            args.data,
            dataset,
            args.frames,
            args.masks,
            distance=args.distance,
            scale=args.scale,
            overwrite=args.overwrite,
        )
    )


def finish(
    model: Model, scene: Scene, out: Path, resolution: int | None = None, texture: int | None = None
) -> list[str]:
    """All after training: eval/, video.mp4, mesh.glb, report.html in `out`; returns a sentence for each that failed.

    resolution, texture: of the mesh, as for the command line.
    """
    from nerf.evaluation import evaluate, summary
    from nerf.views.report import write_report

    def measure() -> None:
        held_out = len(scene.splits.get("test", ())) > 0
        split, limit = ("test", None) if held_out else ("train", TRAIN_VIEWS_SHOWN)
        result = evaluate(model, scene, split, out / "eval", max_views=limit, most_pixels=MEASURED_PIXELS)
        print(summary(result))
        if "rendered smaller" in result["protocol"]["down_scaling"]:
            note(f"measured at {', '.join(result['protocol']['resolution'])}; `nerf eval` measures every pixel")

    stages: dict[str, Callable[[], object]] = {
        "evaluation": measure,
        "video": lambda: turntable(model, out / "video.mp4"),
        "mesh": lambda: make_mesh(model, scene, out / "mesh.glb", resolution, texture),
        "report": lambda: write_report(out, scene.notes),
    }
    failures = []
    for name, stage in stages.items():
        try:
            stage()
        except UserError as error:  # a machine without ffmpeg should still get its mesh
            failures.append(f"{name}: {error}")
            note(failures[-1])
    return failures


def turntable(model: Model, out: Path) -> None:
    """A short video around the scene, or along its photos (path "auto"), at most 640 pixels on its longest side."""
    from nerf.views.paths import make_path
    from nerf.views.video import render_path

    path = make_path(
        "auto", model.cameras, model.scene_from_world, model.space, VIDEO_FRAMES, VIDEO_FPS, longest=VIDEO_LONGEST
    )
    render_path(model.coarser(VIDEO_STRETCH), path, out, overwrite=True)


def make_mesh(model: Model, scene: Scene, out: Path, resolution: int | None, texture: int | None) -> None:
    """The mesh, textured from the photos; beside it a page that shows it and mesh_views/, pictures from six sides."""
    from nerf.meshing import TEXTURED_FACES, extract, save, textured
    from nerf.meshing.sides import front_of, write_six_sides
    from nerf.meshing.viewer import write_page
    from nerf.views.paths import common_up

    started = time.perf_counter()
    if texture is None:
        largest = max(int(scene.cameras.widths.max()), int(scene.cameras.heights.max()))
        texture = 4096 if largest >= SMALL_PHOTOS else 2048
    mesh = extract(model, resolution, colours=texture == 0)
    if texture:
        mesh = textured(model, scene, mesh, texture, TEXTURED_FACES)
    up, front = common_up(model.cameras)[0], front_of(model)
    save(mesh, out, up)
    note(f"mesh: {len(mesh.faces):,} triangles in {time.perf_counter() - started:.1f} s")
    write_page(out, front.numpy())
    write_six_sides(mesh, front, up, out.parent / "mesh_views")
