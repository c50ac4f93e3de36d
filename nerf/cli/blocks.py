"""`nerf train --blocks`: a place divided into cells, and each trained as a run of its own."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from nerf.checks import FILES
from nerf.checks.verdict import LIGHT
from nerf.cli.check import before_training, keep_verdict
from nerf.datasets.options import PART_FILE, LoadOptions
from nerf.errors import UserError, note, say, warn
from nerf.io.folders import BLOCKS_FILE, has_checkpoint
from nerf.io.locks import alone
from nerf.io.memory import trim_heap
from nerf.io.outputs import OutputFolder
from nerf.training.runs import (
    DEFAULT_MINUTES,
    RUN_FILE,
    Run,
    check_same_options,
    load_for_training,
    open_run,
    write_run,
)

if TYPE_CHECKING:
    from nerf.cli.train import TrainArgs
    from nerf.training.blocks import Manifest, State

NEXT = "part.next.json"  # what a cell is to be trained on, until its photos could be read


def train_blocks(args: TrainArgs) -> None:
    """Divide, or take up a division, and train what of it is still to be trained; prints where the manifest lies. A
    cell that fails does not stop the next; UserError at the end where one did."""
    from nerf.training import distributed
    from nerf.training.blocks import State

    place = distributed.launched()
    refuse(args, place is not None)
    distributed.take_gpu()
    if args.backend != "auto":
        from nerf import kernels

        kernels.use(args.backend)
    manifest = prepare(args, joins=args.cell is not None or place is not None)
    n = len(manifest.states)
    if args.cell is not None and not 0 <= args.cell < n:
        raise UserError(f"--cell {args.cell}: {args.out / BLOCKS_FILE} has the cells 0 to {n - 1}")
    cells = range(n) if args.cell is None else [args.cell]
    if place is not None:  # of several ranks each takes cells of its own
        cells = cells[place[0] :: place[1]]
    failed = []
    for k in cells:
        state = manifest.states[k]
        steps, minutes = length_of(args, [state, *manifest.states])
        longer = (steps, minutes) != (state.steps, state.minutes)
        is_there = state.state == "trained" and has_checkpoint(manifest.cell(k))
        if is_there and not longer and not (args.overwrite and args.cell == k):
            note(f"cell {k} of {n}: trained before")
            continue
        note(f"cell {k} of {n}: {manifest.division.plots[k].n_train} photos")
        manifest.check_part(k)
        manifest.set_state(k, State("training", steps, minutes))
        try:
            train_cell(replace(args, steps=steps, minutes=minutes), manifest, k)
            manifest.set_state(k, State("trained", steps, minutes))
        except UserError as error:
            failed.append(k)
            manifest.set_state(k, State("failed", steps, minutes, str(error)))
            warn(f"nerf: cell {k} of {n} failed: {error}")
        gc.collect()
        trim_heap()  # so that no cell takes more memory than by itself
    if failed:
        listed = ", ".join(map(str, failed))
        raise UserError(
            f"{args.out}: {len(failed)} of {n} cells failed ({listed}), the others are kept: the same command with "
            "--resume trains those alone"
        )
    say(args.out / BLOCKS_FILE)
    if all(state.state == "trained" for state in manifest.states):
        held = "test" in manifest.division.photos.values()
        note(f"next: nerf {'eval' if held else 'render'} {quote(str(args.out))}")


def length_of(args: TrainArgs, states: Sequence[State]) -> tuple[int | None, float | None]:
    """The steps or the minutes to train for: those asked for, else those that the first of these cells to know has."""
    lengths = [(args.steps, args.minutes), *((state.steps, state.minutes) for state in states)]
    return next((length for length in lengths if length != (None, None)), (None, DEFAULT_MINUTES))


def refuse(args: TrainArgs, launched: bool) -> None:
    """UserError for options that are of one field, or of one process alone."""
    if launched and args.overwrite:
        raise UserError("--overwrite: ranks that take cells would discard one another's: remove the folder before them")
    if args.view:
        raise UserError("--view shows one field: look at a cell with `nerf view OUT/cells/0` while --blocks trains")
    if args.refine_poses:
        raise UserError(
            "--refine-poses would move each cell's cameras by themselves, and cells apart: not for --blocks"
        )
    if args.space not in (None, "unbounded"):
        raise UserError(f"--blocks divides places, and --space {args.space} is for what one field holds: leave it out")
    if args.blocks != "auto" and args.blocks is not None and args.blocks < 1:
        raise UserError(f"--blocks is {args.blocks}, expected a number from 1 up, or auto")


def prepare(args: TrainArgs, joins: bool) -> Manifest:
    """The manifest in the output folder: made, or brought up to the photos that are there now. joins: of jobs that
    begin together the first divides, and the others take that up."""
    from nerf.datasets import load_posed
    from nerf.datasets.dividing import Division
    from nerf.training.blocks import CELLS, Manifest

    out, names = args.out, (BLOCKS_FILE, RUN_FILE, PART_FILE, f"{CELLS}/", *FILES)
    run = Run(str(args.data.resolve()), **args.load_options())
    run.masks, run.part = None if args.masks is None else args.masks.resolve(), out / PART_FILE
    above = next(place for place in out.absolute().parents if place.is_dir())
    with alone(above):
        there = (out / BLOCKS_FILE).is_file()
        goes_on = there and (args.resume or joins)
        overwrite = args.overwrite and not goes_on
        with OutputFolder.open(out, "blocks", args.resume or goes_on, overwrite, names) as folder:
            before = Manifest.read(out) if goes_on else None
            if before is not None:
                check_same_options(out, run)
                if args.blocks not in (None, "auto", len(before.states)):
                    raise UserError(
                        f"{out} is divided into {len(before.states)} cells, not {args.blocks}: go on with those, or "
                        "choose another -o"
                    )
            posed = load_posed(run.data, options=LoadOptions(**{**run.load_options(), "part": None}))
            if before is None:
                n = None if args.blocks in (None, "auto") else int(args.blocks)
                division = Division.of(posed, n)
                verdict = before_training(args.ask, run)
                light = dict.fromkeys(LIGHT, args.exposure == "on")
                if args.exposure == "auto" and verdict is not None:
                    light |= verdict.light()
                if overwrite:  # only now: the place could be divided
                    folder.clear()
                folder.claim(*names[:4])
                keep_verdict(verdict, folder)
                manifest = Manifest(out, division, light)
            else:
                check_known(before, {frame.name for frame in posed.frames}, args.data)
                manifest = replace(before, division=before.division.assigned(posed))
            run.images, run.held_out_views = len(posed.frames), list(manifest.division.photos.values()).count("test")
            manifest.whole().write(out / PART_FILE)
            write_run(out, run)
            with alone(out):  # other jobs say meanwhile how far their cells are
                if before is not None:
                    manifest = Manifest.read(out).brought_up_to(manifest.division)
                manifest.write()
    note(f"{len(manifest.states)} cells of {', '.join(str(p.n_train) for p in manifest.division.plots)} photos")
    return manifest


def check_known(manifest: Manifest, names: set[str], data: Path) -> None:
    """UserError where a manifest is of other photos than those of the data: nothing of its run is to be lost."""
    lost = sorted(set(manifest.division.photos) - names)
    if 2 * len(lost) > len(manifest.division.photos):
        raise UserError(
            f"{manifest.folder / BLOCKS_FILE} divides other photos than those of {data} ({lost[0]} is not there): it "
            "is the manifest of another run, or the data are others; choose another -o"
        )


def train_cell(args: TrainArgs, manifest: Manifest, k: int) -> None:
    """Train one cell as an ordinary run in its folder."""
    from nerf.training.config import TrainConfig
    from nerf.training.loop import train

    part, before, folder = manifest.part(k), manifest.check_part(k), manifest.cell(k)
    n_train = manifest.division.plots[k].n_train
    if n_train < 3:
        raise UserError(f"{n_train or 'no'} photos of {args.data} show this cell, at least three are needed")
    again = args.overwrite and args.cell == k
    goes_on = before is not None and before.photos == part.photos and not again
    run = Run(str(args.data.resolve()), **args.load_options())
    run.masks, run.part = None if args.masks is None else args.masks.resolve(), folder / PART_FILE
    there = (folder / RUN_FILE).is_file()
    with open_run(folder, run, goes_on, not goes_on, (RUN_FILE, PART_FILE, NEXT)) as out:
        if goes_on:
            scene = load_for_training(run)
        else:
            out.claim(NEXT)
            part.write(folder / NEXT)
            scene = load_for_training(replace(run, part=folder / NEXT))
            out.clear(say=there)  # only now: the photos could be read
            out.claim(RUN_FILE, PART_FILE)
            part.write(folder / PART_FILE)
        run.images, run.held_out_views = len(part.photos), len(scene.splits["test"])
        write_run(folder, run)
        given = {name: getattr(args, name) for name in ("steps", "minutes", "seed", "deterministic")}
        train(scene, TrainConfig(**given).with_settings(**manifest.light), out, resume=goes_on)
