"""MP4 files, written by the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nerf.errors import UserError

if TYPE_CHECKING:
    pass


@contextmanager
def mp4(place: Path, width: int, height: int, fps: float) -> Iterator[Any]:
    """A function that takes frames [h,w,3] uint8; the video gets its name when all are written."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError(
            "writing MP4 needs imageio-ffmpeg: pip install imageio-ffmpeg, or give a folder for PNGs"
        ) from None
    if min(width, height) < 2:
        raise UserError(f"a video needs at least 2x2 pixels, got {width}x{height}")
    width, height = width // 2 * 2, height // 2 * 2
    temporary = place.with_name(f".{place.stem}.unfinished.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(temporary),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_in="rgb24",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        quality=None,
        ffmpeg_log_level="error",
        # Without the tags players guess the colour matrix from the size of the picture, and colours shift.
        output_params=[
            *("-crf", "18", "-preset", "medium", "-movflags", "+faststart"),
            *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-color_range", "tv"),
            *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
        ],
    )
    finished = False
    try:
        writer.send(None)

        def write(picture: np.ndarray) -> None:
            writer.send(np.ascontiguousarray(picture[:height, :width]))

        yield write
        writer.close()
        if not temporary.is_file() or temporary.stat().st_size == 0:
            raise UserError(f"{place}: ffmpeg wrote nothing; is the disk full?")
        os.replace(temporary, place)
        finished = True
    except OSError as error:
        raise UserError(f"{place}: writing the video failed ({error.strerror or error}); is the disk full?") from error
    finally:
        writer.close()
        if not finished:
            temporary.unlink(missing_ok=True)
