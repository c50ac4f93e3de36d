"""`nerf fit` and `nerf sample`: one argument type for each kind of signal, and what is done with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nerf.errors import UserError
from nerf.signals import kinds
from nerf.signals.kinds import CtArgs, SetArgs, ShapeArgs, Wanted
from nerf.signals.options import CHECKPOINT, FitArgs, choice_of, run_fit, tell
from nerf.views.files import model_files


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


# `nerf fit KIND`; a further kind is one more line here, one in `main_fit` and one in `main_sample`.
FitVerbs = (
    Annotated[ImageArgs, tyro.conf.subcommand("image")]
    | Annotated[AudioArgs, tyro.conf.subcommand("audio")]
    | Annotated[VideoArgs, tyro.conf.subcommand("video")]
    | Annotated[ShapeArgs, tyro.conf.subcommand("shape")]
    | Annotated[CtArgs, tyro.conf.subcommand("ct")]
    | Annotated[SetArgs, tyro.conf.subcommand("set")]
)


def main_fit(args: Any) -> None:
    """`nerf fit`: a checkpoint, the reconstruction and fit.json in the output folder."""
    if isinstance(args, ImageArgs):
        fit_image(args)
    elif isinstance(args, AudioArgs):
        fit_audio(args)
    elif isinstance(args, VideoArgs):
        fit_video(args)
    elif isinstance(args, ShapeArgs):
        kinds.fit_shape(args)
    elif isinstance(args, CtArgs):
        kinds.fit_ct(args)
    elif isinstance(args, SetArgs):
        kinds.fit_set(args)


def fit_image(args: ImageArgs) -> None:
    from nerf.signals import image, poisson, restore

    ways = [name for name in ("noise", "super_resolution") if getattr(args, name) is not None]
    ways += ["learn"] if args.learn != "value" else []
    if len(ways) > 1 or (ways and ways[0] != "noise" and (args.mask or args.keep)):
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
        (clean_h, clean_w) = clean.shape
        raise UserError(f"{args.clean}: has {clean_w}x{clean_h} pixels and the restored image {w}x{h}")
    choice = choice_of(args, problem.shape, signal.n_known / len(signal.values))
    fitted = run_fit(args, problem, choice, stop_mse=restore.noise_mse(args.noise))
    if isinstance(problem, poisson.PoissonProblem):
        problem.settle(fitted.field)
        fitted.save(args.out / CHECKPOINT)
    target = args.out / ("reconstruction.exr" if signal.values.dtype.kind == "f" else "reconstruction.png")
    image.write_image(target, fitted.field, problem.describe(), h, w)
    measured = problem.measure(fitted.field) if args.super_resolution else restore.measure(fitted.field, signal)
    if clean is not None and args.clean is not None:
        measured |= restore.psnr_against(fitted.field, clean, (h, w), args.clean)
    tell(args, fitted, measured, target)


def fit_audio(args: AudioArgs) -> None:
    from nerf.signals import audio, restore

    signal = audio.read_audio(args.file)
    fitted = run_fit(args, signal, choice_of(args, signal.shape))
    target = args.out / "reconstruction.wav"
    audio.write_audio(target, fitted.field, signal.describe())
    tell(args, fitted, restore.measure(fitted.field, signal), target)


def fit_video(args: VideoArgs) -> None:
    from nerf.signals import restore, video

    signal = video.read_video(args.file, args.downscale, args.frames)
    fitted = run_fit(args, signal, choice_of(args, signal.shape))
    target = args.out / "reconstruction.mp4"
    video.write_video(target, fitted.field, signal.describe(), *signal.shape[1:])
    tell(args, fitted, restore.measure(fitted.field, signal), target)


@dataclass
class SampleArgs:
    """Evaluate a fitted field at any resolution or rate: a larger image, a resampled sound, a slower video."""

    fit: tyro.conf.Positional[Path]
    """the folder that `nerf fit` wrote, a checkpoint file in it, or what `nerf pack` wrote"""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """the file to write: NAME.png or .exr, .wav, .mp4; of a shape .ply, .obj, .glb or .stl; of a slice .npy or .png"""
    scale: float | None = None
    """image, video, slice, set: times the width and height (1)"""
    size: tuple[int, int] | None = None
    """image, video, slice, set: WIDTH HEIGHT, instead of a scale"""
    grid: int | None = None
    """shape: points along the longest side (256)"""
    new: int | None = None
    """set: so many new pictures of the kind"""
    between: tuple[int, int] | None = None
    """set: from picture I to picture J, counted from 0"""
    latent: Path | None = None
    """set: pictures of the latents in this .npy, one a row"""
    seed: int = 0
    """set: of the new pictures"""
    rate: int | None = None
    """sound: samples a second (as the original)"""
    fps: float | None = None
    """video: frames a second (as the original)"""
    slow: float = 1.0
    """sound, video: times as long"""
    overwrite: bool = False
    """replace a file of that name"""


def main_sample(args: SampleArgs) -> None:
    """`nerf sample`: prints the name of the file it wrote."""
    from nerf.signals.packing import load_signal

    path = args.fit if args.fit.is_file() else model_files(args.fit)[1]
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out} exists: choose another name with -o, or give --overwrite")
    if not args.slow > 0:
        raise UserError(f"--slow {args.slow:g}: expected a number above 0")
    for name, value in (("rate", args.rate), ("fps", args.fps)):
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value:g}: expected a number above 0")
    fitted = load_signal(path)
    _check_options(args, fitted.kind)
    if fitted.kind == "image":
        from nerf.signals.image import write_image

        width, height = _size(args, fitted.signal["shape"])
        write_image(args.out, fitted.field, fitted.signal, height, width)
    elif fitted.kind == "audio":
        from nerf.signals.audio import write_audio

        write_audio(args.out, fitted.field, fitted.signal, args.rate, args.slow)
    elif fitted.kind == "video":
        from nerf.signals.video import write_video

        width, height = _size(args, fitted.signal["shape"][1:])
        write_video(args.out, fitted.field, fitted.signal, height, width, args.fps, args.slow)
    elif fitted.kind == "shape":
        kinds.sample_shape(fitted, args.grid, args.out)
    elif fitted.kind == "ct":
        width, height = _size(args, fitted.signal["shape"])
        kinds.sample_ct(fitted, height, width, args.out)
    elif fitted.kind == "set":
        wanted = Wanted(args.new, args.between, args.latent, args.seed)
        kinds.sample_set(fitted, path.parent, wanted, _size(args, fitted.signal["shape"]), args.out)
    else:
        raise UserError(f"{path} holds a fitted {fitted.kind}, which this nerf cannot sample")
    print(args.out)


def _check_options(args: SampleArgs, kind: str) -> None:
    takes = {
        "image": {"scale", "size"},
        "audio": {"rate", "slow"},
        "video": {"scale", "size", "fps", "slow"},
        "shape": {"grid"},
        "ct": {"scale", "size"},
        "set": {"scale", "size", "new", "between", "latent", "seed"},
    }
    defaults = {"scale": None, "size": None, "rate": None, "fps": None, "slow": 1.0}
    defaults |= {"grid": None, "new": None, "between": None, "latent": None, "seed": 0}
    for name, default in defaults.items():
        if getattr(args, name) != default and name not in takes.get(kind, ()):
            raise UserError(f"--{name} means nothing for a fitted {kind}")


def _size(args: SampleArgs, shape: list[int]) -> tuple[int, int]:
    height, width = shape
    if args.size is not None:
        if args.scale is not None:
            raise UserError("--scale and --size both say how large: give one of them")
        width, height = args.size
    elif args.scale is not None:
        width, height = round(width * args.scale), round(height * args.scale)
    if min(width, height) < 1 or max(width, height) > 1 << 17:
        raise UserError(f"a size of {width}x{height} was asked for, expected sides of 1 to {1 << 17} pixels")
    return width, height
