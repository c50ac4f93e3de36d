"""`nerf train`: posed photos to a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nerf.checks import FILES
from nerf.checks.verdict import LIGHT
from nerf.cli.check import Check, before_training, keep_verdict
from nerf.cli.kind import Kind
from nerf.cli.ranks import RANKS_FILE, is_restart, joined, write_ranks
from nerf.cli.view import PORT, serve, watching
from nerf.datasets.options import LoadOptions
from nerf.errors import UserError, check_numbers, note, say
from nerf.io.clock import LENGTH, SEED
from nerf.io.folders import BLOCKS_FILE, has_checkpoint
from nerf.training.runs import DEFAULT_MINUTES, HOLDOUT_FROM, RUN_FILE, Run, load_for_training, open_run, write_run

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.io.outputs import OutputFolder
    from nerf.rendering.model import Model
    from nerf.training.distributed import Ranks
    from nerf.views.viewer.server import Viewer

Backend = Literal["auto", "cuda", "tinycudann", "cpu", "reference"]


@dataclass
class TrainArgs(LoadOptions):
    """Train a radiance field on posed photos."""

    data: tyro.conf.Positional[Path]
    """folder with the photos and their poses (reconstruct: also photos or a video without poses)"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """folder to write to"""
    minutes: float | None = None
    """time to train, without loading and measuring; as many steps as it takes (5 unless --steps is given)"""
    steps: int | None = None
    """number of steps, instead of a time"""
    resume: bool = False
    """continue the run in the output folder, exactly as if it had not stopped, or on to more --minutes or --steps"""
    overwrite: bool = False
    """discard the run in the output folder"""
    backend: Backend = "auto"
    """auto takes the fastest that is there; cuda insists on the GPU, tinycudann on that package's networks, cpu on the
    native library; reference is slow"""
    refine_poses: bool = False
    """correct the cameras' poses while training, for poses that are not exact"""
    exposure: Literal["auto", "on", "off"] = "auto"
    """learn each photo's exposure and white balance, its lens's vignetting and its flash; auto: what the check finds"""
    ask: Annotated[Check, tyro.conf.arg(name="check")] = "warn"
    """ask the photos first whether they fit their poses, lenses and masks (`nerf check`); strict: stop where not"""
    seed: int = 0
    """of the random numbers: the same seed and --steps give the same model (on a GPU but for rounding)"""
    deterministic: bool = False
    """on a GPU: to the bit on the same kind of GPU, which takes longer; the CPU always does"""
    view: bool = False
    """watch it in the browser while it is trained, and walk through it then, until Ctrl-C (see `nerf view`)"""
    blocks: int | Literal["auto"] | None = None
    """of a place too large for one field: divide its ground into so many cells, each a field of its own learnt from the
    photos that see it, for --minutes or --steps each; auto: a cell for each 150 photos (docs/scale.md)"""
    cell: int | None = None
    """of --blocks: train this cell alone, from 0 on, as one job of many"""
    port: int = 8080
    """of --view: where the page is served"""
    host: str = "127.0.0.1"
    """of --view: 0.0.0.0 lets other machines in that have the token which is printed"""
    kind: Kind = field(default=None, kw_only=True)
    holdout_from: tyro.conf.Suppress[int] = field(default=HOLDOUT_FROM, kw_only=True)
    part: tyro.conf.Suppress[Path | None] = field(default=None, kw_only=True)


def main(args: TrainArgs) -> None:
    """`nerf train`: prints where the checkpoint lies, or the manifest of cells."""
    if args.blocks is not None or args.cell is not None or (args.resume and (args.out / BLOCKS_FILE).is_file()):
        from nerf.cli.blocks import train_blocks

        check(args)
        refuse_without_poses(args)
        train_blocks(args)
        return
    with joined(args) as ranks:
        with ranks.together():
            check(args)
            refuse_without_poses(args)
        if ranks.of_first(is_restart(args.out)):
            args = replace(args, resume=True, overwrite=False)
        with watching(args.view, args.host, args.port, args.out) as viewer:
            names = (*FILES, RANKS_FILE)
            with open_run(args.out, run_of(args, args.data), args.resume, args.overwrite, names, ranks) as out:
                _, scene = train_run(args, out, viewer=viewer, ranks=ranks)
            say(args.out / "checkpoint.safetensors")
            held = len(scene.splits.get("test", ()))
            note(f"next: nerf {'eval' if held else 'render'} {quote(str(args.out))}")
            if viewer is not None:
                serve(viewer)


def check(args: TrainArgs) -> None:
    """Everything that can be wrong with the arguments by themselves."""
    if args.minutes is not None and args.steps is not None:
        raise UserError("--minutes and --steps are two ways to say how long: give one of them")
    check_numbers(vars(args), LENGTH | {"seed": SEED, "port": PORT}, "--")
    LoadOptions.check(args, "--")
    if not args.data.exists():
        raise UserError(f"{args.data}: there is no such folder")


def without_poses(data: Path, kind: str | None) -> bool:
    """Whether these are photos or a video whose poses are not known yet; whoever names a kind says that they are."""
    from nerf.capture import needs_poses

    return kind is None and needs_poses(data)


def refuse_without_poses(args: TrainArgs) -> None:
    """UserError for photos whose poses are not known yet."""
    if without_poses(args.data, args.kind):
        raise UserError(
            f"{args.data}: holds photos without poses: `nerf poses {args.data} -o DATASET` finds them, and "
            "`nerf reconstruct` does that and all the rest"
        )


def run_of(args: TrainArgs, data: Path) -> Run:
    """How the scene in `data` is loaded."""
    run = Run(str(data.resolve()), **args.load_options())
    run.masks = None if args.masks is None or data != args.data else args.masks.resolve()
    return run


def train_run(
    args: TrainArgs,
    out: OutputFolder,
    data: Path | None = None,
    viewer: Viewer | None = None,
    ranks: Ranks | None = None,
) -> tuple[Model, Scene]:
    """Load the scene (data: that was made of the arguments' photos) and train in the folder; a viewer shows it. ranks:
    that train together, None where this process is alone."""
    run = run_of(args, data or args.data)

    from nerf import kernels
    from nerf.training.config import TrainConfig
    from nerf.training.distributed import ALONE
    from nerf.training.loop import train
    from nerf.training.same_scene import check_moved
    from nerf.training.same_start import check_data
    from nerf.views.viewer.edited import left_out_of

    ranks = ranks or ALONE
    with ranks.together():
        if args.backend != "auto":
            kernels.use(args.backend)
        verdict = None if args.resume or not ranks.is_first else before_training(args.ask, run)
        scene = load_for_training(run)
        if args.resume and ranks.is_first:
            check_moved(out.path, run, scene)
    check_data(ranks, scene)
    as_before = ranks.of_first(args.resume and has_checkpoint(out.path))
    with ranks.together():
        if ranks.is_first:
            if args.overwrite:  # only now: the scene could be loaded
                out.clear()
            out.claim(RUN_FILE)
            write_run(out.path, run)
            keep_verdict(verdict, out)
            write_ranks(out, ranks)
    minutes = DEFAULT_MINUTES if args.minutes is None and args.steps is None and not as_before else args.minutes
    given = {name: getattr(args, name) for name in ("steps", "seed", "deterministic", "refine_poses")}
    light = dict.fromkeys(LIGHT, args.exposure == "on")
    if args.exposure == "auto":
        light = _light_of_run(out.path) if as_before else {} if verdict is None else verdict.light()
        light = ranks.of_first(light)
    config = TrainConfig(minutes=minutes, **given).with_settings(**light)
    left_out = left_out_of(out.path, scene)
    if viewer is None:
        return train(scene, config, out, resume=args.resume, left_out=left_out, ranks=ranks), scene
    viewer.training_begins(scene)
    model = train(scene, config, out, resume=args.resume, between=viewer.sharing, left_out=left_out)
    viewer.training_ended(model)
    return model, scene


def _light_of_run(folder: Path) -> dict[str, bool]:
    """What a run that is resumed has learnt of its photos' light."""
    from nerf.io import checkpoint

    trained = checkpoint.load_last(folder / "checkpoint.safetensors")[1].get("training")
    config = trained.get("config") if isinstance(trained, dict) else None  # what is damaged is said when it is restored
    return {name: isinstance(config, dict) and bool(config.get(name)) for name in LIGHT}
