"""What every `nerf fit` takes, and the folder that it writes."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nerf.errors import UserError, check_numbers, say
from nerf.io.files import write_file
from nerf.io.folders import has_checkpoint, is_checkpoint
from nerf.io.outputs import OutputFolder

if TYPE_CHECKING:
    from nerf.signals.fields import FieldChoice, SignalField
    from nerf.signals.fitting import FitConfig, Fitted
    from nerf.signals.record import Problem

CHECKPOINT, RESULT = "checkpoint.safetensors", "fit.json"
FITTED = (CHECKPOINT, "checkpoint.previous.safetensors", RESULT)


@dataclass
class FitArgs:
    """What all of `nerf fit image`, `audio`, `video`, ... take."""

    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """folder to write to"""
    field: Literal["hash", "siren", "fourier", "mlp"] = "hash"
    """hash: a grid of features, fastest; siren: sine layers, smooth with derivatives; fourier: Gaussian Fourier
    features; mlp: a plain network, or with NeRF's encoding (--frequencies)"""
    minutes: float | None = None
    """time to fit; it settles the number of steps from the speed of the first ones (1 unless --steps is given)"""
    steps: int | None = None
    """number of steps, instead of a time"""
    batch: int | None = None
    """values a step"""
    learning_rate: float | None = None
    """of the first steps; it falls along a cosine"""
    width: int | None = None
    """of the network's layers"""
    depth: int | None = None
    """hidden layers"""
    omega: float | None = None
    """siren: frequency of the first layer (30; 3000 for sound)"""
    sigma: float | None = None
    """fourier: standard deviation of the frequencies, in cycles along the longest side"""
    frequencies: int | None = None
    """mlp: octaves of NeRF's positional encoding (0: none)"""
    table: int | None = None
    """hash: log2 of the rows of a level"""
    resume: bool = False
    """continue the fit in the output folder, exactly as if it had not stopped, or on to more --minutes or --steps"""
    overwrite: bool = False
    """discard the fit in the output folder"""
    seed: int = 0
    """of the random numbers: the same seed gives the same field"""


def run_fit(
    args: FitArgs,
    problem: Problem,
    field: SignalField | FieldChoice,
    *names: str,
    until: ExitStack,
    stop_mse: float | None = None,
) -> Fitted:
    """Fit into the folder of the arguments, with a progress bar. names: that will be written there after the fit;
    until: the folder is locked until it ends."""
    from nerf.signals.fitting import fit

    config = config_of(args)
    before = FITTED if is_checkpoint(args.out / CHECKPOINT) else ()
    folder = OutputFolder.open(args.out, "fit", args.resume, args.overwrite, (*FITTED, *names), before)
    until.enter_context(folder)
    if args.overwrite:
        folder.clear()
    folder.claim(RESULT, *names)
    return fit(problem, field, replace(config, stop_mse=stop_mse), folder, args.resume, progress=True)


def choice_of(args: FitArgs, shape: tuple[int, ...], known: float = 1.0) -> FieldChoice:
    """The field that was asked for, for a signal on a grid of `shape` of which a share is known."""
    from nerf.signals.fields import choose
    from nerf.signals.restore import choose_for_few

    return adjust_choice(args, choose(args.field, shape) if known > 0.5 else choose_for_few(args.field, shape, known))


def adjust_choice(args: FitArgs, choice: FieldChoice) -> FieldChoice:
    """A choice with the sizes that the arguments give."""
    given: dict[str, Any] = {}
    for option, (name, least, kind) in _SIZES.items():
        value = getattr(args, option)
        if value is None:
            continue
        if not value >= least:
            raise UserError(f"--{option}: expected a positive number, got {value:g}")
        if kind is not None and args.field != kind:
            raise UserError(f"--{option} is of the field {kind}, and this is {args.field}")
        given[name] = value
    return replace(choice, **given)


# option -> (what it is called in FieldChoice, its least value, the kind of field that has it)
_SIZES: dict[str, tuple[str, int, str | None]] = {
    "width": ("width", 1, None),
    "depth": ("depth", 0, None),
    "omega": ("first_omega_0", 1, "siren"),
    "sigma": ("sigma", 1, "fourier"),
    "frequencies": ("n_frequencies", 0, "mlp"),
    "table": ("log2_hashmap_size", 1, "hash"),
}


def config_of(args: FitArgs) -> FitConfig:
    from nerf.signals.fitting import FITTING, FitConfig

    if args.steps is not None and args.minutes is not None:
        raise UserError("--steps and --minutes both say how long to fit: give one of them")
    check_numbers(
        vars(args), {name: FITTING[name] for name in ("steps", "minutes", "seed", "batch", "learning_rate")}, "--"
    )
    as_before = args.resume and has_checkpoint(args.out)
    minutes = 1.0 if args.minutes is None and args.steps is None and not as_before else args.minutes
    return FitConfig(args.steps, minutes, args.seed, args.batch, args.learning_rate)


def tell(args: FitArgs, fitted: Fitted, measured: dict[str, Any], target: Path) -> None:
    """Write fit.json, and print what was reached in one line."""
    assert fitted.fitting is not None
    about = {"field": args.field, "parameters": fitted.field.n_parameters, **fitted.fitting}
    result = {"kind": fitted.kind, **fitted.signal, **about, **measured}
    write_file(args.out / RESULT, json.dumps(result, indent=1) + "\n")
    numbers = ", ".join(f"{k} {v:.4g}" for k, v in measured.items() if isinstance(v, float))
    say(f"{target}: {numbers} after {fitted.fitting['step']} steps, {fitted.fitting['seconds']:.1f} s")
