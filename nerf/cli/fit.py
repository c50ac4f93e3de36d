"""`nerf fit`: one argument type for each kind of signal, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nerf.cli import fit_kinds as kinds
from nerf.cli.fit_kinds import CtArgs, SetArgs, ShapeArgs
from nerf.cli.fit_options import CHECKPOINT, FitArgs, choice_of, run_fit, tell
from nerf.errors import UserError

if TYPE_CHECKING:
    from nerf.signals.record import Signal


@dataclass
class ImageArgs(FitArgs):
    """Fit a field to an image: 8 or 16 bits, EXR, grey or colour, with or without alpha, as large as it is."""

    file: tyro.conf.Positional[Path] = tyro.MISSING
    """PNG, JPEG, TIFF, WebP or EXR"""
    mask: Path | None = None
    """in-painting: an image of the same size, black where the pixels are unknown"""
    keep: float | None = None
    """in-painting: learn from this random share of the pixels only, and measure on the others"""
    noise: float | None = None
    """denoising: the standard deviation of the image's noise, as a share of its range; the fit stops when its error is
    that of the noise"""
    super_resolution: int | None = None
    """find an image so many times as wide and high, whose averages are the given pixels"""
    clean: Path | None = None
    """the true image, to measure a restored one against; it is not learnt from"""
    learn: Literal["value", "gradient", "gradient-points", "laplacian"] = "value"
    """find the image from its gradient or Laplacian alone (and its mean): fields siren, fourier, mlp; gradient-points:
    by the gradient at single pixels, as published, without its integrals along rows and columns"""


@dataclass
class AudioArgs(FitArgs):
    """Fit a field to a sound: all its channels and bits."""

    file: tyro.conf.Positional[Path] = tyro.MISSING
    """WAV, or what ffmpeg reads"""


@dataclass
class VideoArgs(FitArgs):
    """Fit a field to a video."""

    file: tyro.conf.Positional[Path] = tyro.MISSING
    """what ffmpeg reads"""
    downscale: int = 1
    """divide the sides by so much"""
    frames: int | None = None
    """only the first so many"""


# `nerf fit KIND`; a further kind is one more line here, one in `_FIT` and one in that of nerf.cli.sample.
FitVerbs = (
    Annotated[ImageArgs, tyro.conf.subcommand("image")]
    | Annotated[AudioArgs, tyro.conf.subcommand("audio")]
    | Annotated[VideoArgs, tyro.conf.subcommand("video")]
    | Annotated[ShapeArgs, tyro.conf.subcommand("shape")]
    | Annotated[CtArgs, tyro.conf.subcommand("ct")]
    | Annotated[SetArgs, tyro.conf.subcommand("set")]
)


def fit_image(args: ImageArgs, until: ExitStack) -> None:
    from nerf.signals import image, poisson, restore

    new_size, derived = args.super_resolution is not None, args.learn != "value"
    if (args.noise is not None) + new_size + derived > 1 or ((new_size or derived) and (args.mask or args.keep)):
        raise UserError("--mask or --keep with --noise, --super-resolution and --learn exclude each other")
    signal = image.read_image(args.file)
    clean = None if args.clean is None else image.read_image(args.clean)
    restore.keep_known(signal, args.mask, args.keep, args.seed)
    problem: Any = signal
    if args.super_resolution is not None:
        problem = restore.SuperResolution(signal, args.super_resolution)
    elif args.learn != "value":
        problem = poisson.PoissonProblem(signal, args.learn)
    h, w = problem.shape
    if clean is not None and clean.shape != (h, w):
        raise UserError(f"{args.clean}: has {clean.shape[1]}x{clean.shape[0]} pixels and the restored image {w}x{h}")
    choice = choice_of(args, problem.shape, signal.n_known / len(signal.values))
    target = args.out / ("reconstruction.exr" if signal.values.dtype.kind == "f" else "reconstruction.png")
    fitted = run_fit(args, problem, choice, target.name, until=until, stop_mse=restore.noise_mse(args.noise))
    if isinstance(problem, poisson.PoissonProblem):
        problem.settle(fitted.field)
        fitted.save(args.out / CHECKPOINT)
    image.write_image(target, fitted.field, problem.describe(), h, w)
    measured = problem.measure(fitted.field) if args.super_resolution else restore.measure(fitted.field, signal)
    if clean is not None and args.clean is not None:
        measured |= restore.psnr_against(fitted.field, clean, (h, w), args.clean)
    tell(args, fitted, measured, target)


def fit_audio(args: AudioArgs, until: ExitStack) -> None:
    from nerf.signals.audio import read_audio, write_audio

    _fit_signal(args, until, read_audio(args.file), write_audio, "reconstruction.wav")


def fit_video(args: VideoArgs, until: ExitStack) -> None:
    from nerf.signals.video import read_video, write_video

    signal = read_video(args.file, args.downscale, args.frames)
    _fit_signal(args, until, signal, write_video, "reconstruction.mp4", *signal.shape[1:])


def _fit_signal(
    args: FitArgs, until: ExitStack, signal: Signal, write: Callable[..., None], name: str, *size: int
) -> None:
    from nerf.signals.restore import measure

    fitted, target = run_fit(args, signal, choice_of(args, signal.shape), name, until=until), args.out / name
    write(target, fitted.field, signal.describe(), *size)
    tell(args, fitted, measure(fitted.field, signal), target)


_FIT: dict[type, Callable[[Any, ExitStack], None]] = {
    ImageArgs: fit_image,
    AudioArgs: fit_audio,
    VideoArgs: fit_video,
    ShapeArgs: kinds.fit_shape,
    CtArgs: kinds.fit_ct,
    SetArgs: kinds.fit_set,
}


def main(args: Any) -> None:
    """`nerf fit`: a checkpoint, the reconstruction and fit.json in the output folder."""
    with ExitStack() as until:
        _FIT[type(args)](args, until)
