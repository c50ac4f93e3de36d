"""`nerf sample`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from nerf.cli import fit_kinds as kinds
from nerf.cli.fit_kinds import Wanted
from nerf.errors import UserError
from nerf.io.folders import model_files


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


def main(args: SampleArgs) -> None:
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


_TAKES = {
    "image": {"scale", "size"},
    "audio": {"rate", "slow"},
    "video": {"scale", "size", "fps", "slow"},
    "shape": {"grid"},
    "ct": {"scale", "size"},
    "set": {"scale", "size", "new", "between", "latent", "seed"},
}


def _check_options(args: SampleArgs, kind: str) -> None:
    for option in fields(args):
        given = option.name in set().union(*_TAKES.values()) and getattr(args, option.name) != option.default
        if given and option.name not in _TAKES.get(kind, ()):
            raise UserError(f"--{option.name} means nothing for a fitted {kind}")


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
