"""`nerf check`: whether photos fit their poses, lenses and masks; and the same before training."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nerf.cli.kind import Kind
from nerf.errors import MISFITS, Range, UserError, brief, check_numbers, note, say

if TYPE_CHECKING:
    from nerf.checks.verdict import Verdict
    from nerf.io.outputs import OutputFolder
    from nerf.training.runs import Run

Check = Literal["off", "warn", "strict"]
STARTING = 3.0  # seconds, at most, that starting Python and its libraries takes


@dataclass
class CheckArgs:
    """Ask photos whether they fit the poses, lenses and masks that are given with them."""

    data: tyro.conf.Positional[Path]
    """folder with the photos and their poses"""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """folder to write check.json to, and check.png: the pair of photos that fits least"""
    masks: Path | None = None
    """folder of masks, NAME.png for each photo: what is black there is ignored"""
    seconds: float | None = None
    """the most time to take (default: 10, and 0.05 for each photo beyond a hundred)"""
    cameras_are: str | None = None
    """check them as meant in another way, as an earlier check said"""
    overwrite: bool = False
    """replace the result of another check in the output folder"""
    kind: Kind = field(default=None, kw_only=True)


def main(args: CheckArgs) -> None:
    """`nerf check`: prints a paragraph; exits with 2 where the data contradict themselves."""
    from nerf.checks import FILES, check_folder, write_check
    from nerf.datasets.readings import check_reading

    started = min(STARTING, time.process_time())  # the time that it may take begins where the command does
    check_numbers(vars(args), {"seconds": Range(0, 1e6, above=True, optional=True)}, "--")
    if args.cameras_are is not None:
        check_reading(args.cameras_are, "--cameras-are")
    if not args.data.exists():
        raise UserError(f"{args.data}: there is no such folder")
    if args.out is None:
        verdict = check_folder(args.data, args.kind, args.masks, args.seconds, args.cameras_are, started)
    else:
        from nerf.io.outputs import OutputFolder

        with OutputFolder.open(args.out, "pictures", overwrite=args.overwrite, names=FILES) as out:
            verdict = check_folder(args.data, args.kind, args.masks, args.seconds, args.cameras_are, started)
            if args.overwrite:
                out.clear()
            out.claim(*FILES)
            write_check(verdict, args.out)
    say(verdict.paragraph())
    if args.out is not None:
        say(args.out / "check.json")
    if verdict.is_wrong:
        kinds = ", ".join(sorted({finding.kind for finding in verdict.findings if finding.is_wrong}))
        raise UserError(f"{args.data}: the photos contradict what is given with them ({kinds})")


def before_training(how: Check, run: Run) -> Verdict | None:
    """The check as `train` and `reconstruct` make it: its result is noted; UserError where it is strict and something
    is wrong. None where there is none."""
    from nerf.checks import check

    if how == "off":
        return None
    try:
        verdict = check(run.data, run.kind, run.masks, cameras_are=run.cameras_are)
    except UserError:
        return None  # what cannot be read is said when it is loaded
    except MISFITS as error:  # whatever is odd about photos and cameras, training has its own checks
        note(f"check: it failed ({type(error).__name__}: {brief(error)}); --check off leaves it out")
        return None
    if how == "strict" and verdict.is_wrong:
        raise UserError(f"{run.data}: {verdict.paragraph()} --check warn trains nevertheless")
    note(f"check: {verdict.paragraph()}")
    return verdict


def keep_verdict(verdict: Verdict | None, out: OutputFolder) -> None:
    """Write it beside the run, for the report, where it says something."""
    from nerf.checks import FILES, write_check

    if verdict is not None and (verdict.state != "not judged" or verdict.findings):
        out.claim(*FILES)
        write_check(verdict, out.path)
