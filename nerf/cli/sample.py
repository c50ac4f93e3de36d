"""`nerf sample`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nerf.cli.fit_kinds import COLUMNS, LATENTS
from nerf.errors import Range, UserError, check_numbers, note, say
from nerf.io.clock import SEED
from nerf.io.folders import model_files
from nerf.io.outputs import check_output
from nerf.io.video import FPS

if TYPE_CHECKING:
    from nerf.signals.fitting import Fitted


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
    check_output(args.out, args.overwrite, path, args.latent)
    check_numbers(vars(args), _NUMBERS, "--")
    fitted = load_signal(path)
    write, takes = _KINDS.get(fitted.kind, (None, set()))
    for option in fields(args):
        given = option.name in _OPTIONS and getattr(args, option.name) != option.default
        if given and option.name not in takes:
            raise UserError(f"--{option.name} means nothing for a fitted {fitted.kind}")
    if write is None:
        raise UserError(f"{path} holds a fitted {fitted.kind}, which this nerf cannot sample")
    write(args, fitted)
    say(args.out)


def _image(args: SampleArgs, fitted: Fitted) -> None:
    from nerf.signals.image import write_image

    write_image(args.out, fitted.field, fitted.signal, *_size(args, fitted.signal["shape"]))


def _audio(args: SampleArgs, fitted: Fitted) -> None:
    from nerf.signals.audio import write_audio

    write_audio(args.out, fitted.field, fitted.signal, args.rate, args.slow)


def _video(args: SampleArgs, fitted: Fitted) -> None:
    from nerf.signals.video import write_video

    write_video(args.out, fitted.field, fitted.signal, *_size(args, fitted.signal["shape"][1:]), args.fps, args.slow)


def _shape(args: SampleArgs, fitted: Fitted) -> None:
    from nerf.meshing import files
    from nerf.signals import surface

    files.check_path(args.out)
    files.save_mesh(surface.mesh_of_field(fitted.field, fitted.signal, args.grid or 256), args.out)


def _ct(args: SampleArgs, fitted: Fitted) -> None:
    from nerf.signals import ct

    ct.write_slice(args.out, ct.slice_of_field(fitted.field, fitted.signal, *_size(args, fitted.signal["shape"])))


def _set(args: SampleArgs, fitted: Fitted) -> None:
    """A sheet of pictures as PNG."""
    import torch

    from nerf.io.pictures import write_png
    from nerf.signals import latents

    field, (height, width) = fitted.field, _size(args, fitted.signal["shape"])
    if not isinstance(field, latents.ModulatedField):
        raise UserError("the checkpoint holds no shared network of a set: fit it again")
    if args.out.suffix.lower() != ".png":
        raise UserError(f"{args.out}: expected a name that ends in .png")
    if sum(x is not None for x in (args.new, args.between, args.latent)) != 1:
        raise UserError("say which pictures of the set: --new N, --between I J, or --latent FILE.npy")
    folder = args.fit.parent if args.fit.is_file() else args.fit
    z = latents.check_latents(args.latent or folder / LATENTS, field.latent)
    if args.new is not None:
        z = latents.LatentPrior.of(z).draw(args.new, args.seed)
    elif args.between is not None:
        if not all(0 <= i < len(z) for i in args.between):
            raise UserError(f"--between: expected two of the pictures 0 to {len(z) - 1}, got {args.between}")
        a, b = z[list(args.between)]
        z = a + torch.linspace(0, 1, COLUMNS)[:, None] * (b - a)
    pictures = latents.pictures_of(field, z, height, width)
    write_png(args.out, latents.sheet(pictures, min(COLUMNS, len(z))))
    note(f"{len(z)} pictures, {width}x{height} each")


# kind -> (what writes the file, the options that it takes)
_KINDS: dict[str, tuple[Callable[[SampleArgs, Fitted], None], set[str]]] = {
    "image": (_image, {"scale", "size"}),
    "audio": (_audio, {"rate", "slow"}),
    "video": (_video, {"scale", "size", "fps", "slow"}),
    "shape": (_shape, {"grid"}),
    "ct": (_ct, {"scale", "size"}),
    "set": (_set, {"scale", "size", "new", "between", "latent", "seed"}),
}
_NUMBERS = {
    "scale": Range(0, 1 << 17, above=True, optional=True),
    "new": Range(1, 1 << 16, whole=True, optional=True),
    "seed": SEED,
    "rate": Range(1, 1 << 31, whole=True, optional=True),
    "fps": FPS,
    "slow": Range(1e-6, 1e6),
}
_OPTIONS = set().union(*(takes for _, takes in _KINDS.values()))


def _size(args: SampleArgs, shape: list[int]) -> tuple[int, int]:
    """(height, width) that was asked for, of a grid of that shape."""
    height, width = shape
    if args.size is not None:
        if args.scale is not None:
            raise UserError("--scale and --size both say how large: give one of them")
        width, height = args.size
    elif args.scale is not None:
        width, height = round(width * args.scale), round(height * args.scale)
    if min(width, height) < 1 or max(width, height) > 1 << 17:
        raise UserError(f"a size of {width}x{height} was asked for, expected sides of 1 to {1 << 17} pixels")
    return height, width
