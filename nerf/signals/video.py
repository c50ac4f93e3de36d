"""Videos as signals: frames as 8-bit RGB in a memory-mapped file, read and written by ffmpeg."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nerf.errors import UserError
from nerf.io.hdr import to_srgb, transfer_of
from nerf.io.memory import allocate
from nerf.io.video import input_arguments, mp4
from nerf.signals.record import Signal, centres, check_file, to_values, unit_grid

if TYPE_CHECKING:
    from nerf.signals.fields import SignalField


def read_video(path: str | Path, downscale: int = 1, frames: int | None = None) -> Signal:
    """A video as it is shown (turned upright), sRGB, 8 bits. downscale: of its sides; frames: only the first.

    Raises UserError for what is missing, empty or broken.

    >>> from nerf.io.video import mp4
    >>> with mp4(Path("grey.mp4"), 32, 16, 10.0) as write:
    ...     for k in range(5):
    ...         write(np.full((16, 32, 3), 40 * k, np.uint8))
    >>> nerf.read_video("grey.mp4").shape
    (5, 16, 32)
    """
    path = Path(path)
    check_file(path, "a video")
    if downscale < 1 or (frames is not None and frames < 1):
        raise UserError("--downscale and --frames: expected 1 or more")
    import imageio_ffmpeg
    from PIL import Image

    name, table = str(path.absolute()), to_srgb(*transfer_of(path))  # HDR, as phones record by default
    # ffmpeg turns the frames upright, but the header's size is that before: it is told by the first frame's filter
    filters = ["-vf", f"scale=iw/{downscale}:-1:flags=area"] if downscale > 1 else []
    try:
        reader = imageio_ffmpeg.read_frames(name, input_params=input_arguments(), output_params=filters)
        meta = next(reader)
        width, height = (int(side) for side in meta["size"])
        if meta.get("rotate") in (90, 270, -90):
            width, height = height, width
        first = next(reader)
        if downscale > 1:
            width = width // downscale
            height = len(first) // (3 * width)
        if len(first) != width * height * 3:
            raise ValueError(f"frames of {len(first)} bytes, expected {width}x{height}")
        expected = min(frames or 10**9, max(1, int(imageio_ffmpeg.count_frames_and_secs(name)[0])))
        memory = allocate(expected * height * width, 3, np.dtype(np.uint8))
        for count, frame in enumerate(itertools.islice(itertools.chain([first], reader), expected), 1):
            pixels = np.frombuffer(frame, np.uint8)
            if table is not None:
                pixels = np.asarray(Image.frombuffer("RGB", (width, height), frame, "raw", "RGB", 0, 1).filter(table))
            memory[(count - 1) * height * width : count * height * width] = pixels.reshape(-1, 3)
        reader.close()
    except (OSError, RuntimeError, ValueError, KeyError, StopIteration) as error:
        why = " ".join(str(error).split())[-120:] or type(error).__name__
        raise UserError(f"{path}: cannot be read as a video ({why}): restore the file") from error
    fps = float(meta.get("fps") or 25.0)
    about = {"name": path.name, "fps": fps, "channels": "RGB", "colour_space": "sRGB", "range": "0 to 255"}
    return Signal("video", memory[: count * height * width], (count, height, width), 0.0, 255.0, meta=about)


def frames_of_field(field: SignalField, n: int, height: int, width: int) -> Iterator[np.ndarray]:
    """[h,w,3] float32 of a fitted video, n frames over its whole length, one at a time."""
    xy = unit_grid(centres(height), centres(width))
    for k in range(n):
        t = torch.full((len(xy), 1), (k + 0.5) / n)
        yield field.evaluate(torch.cat([xy, t], dim=1)).reshape(height, width, -1).numpy()


def write_video(
    path: Path,
    field: SignalField,
    meta: dict[str, Any],
    height: int,
    width: int,
    fps: float | None = None,
    slow: float = 1.0,
) -> None:
    """Sample a fitted video to MP4 at any size and frame rate, `slow` times as long; meta: of Signal.describe()."""
    if path.suffix.lower() != ".mp4":
        raise UserError(f"{path}: expected a name that ends in .mp4")
    fps = fps or float(meta["fps"])
    n = max(1, round(meta["shape"][0] * slow * fps / meta["fps"]))
    with mp4(path, width, height, fps) as write:
        for frame in frames_of_field(field, n, height, width):
            write(to_values(frame, np.dtype(np.uint8), 0.0, 255.0))
