"""MP4 files, written by imageio; and the ffmpeg that imageio-ffmpeg brings, for what imageio has not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nerf.errors import Range, UserError, brief
from nerf.io import children
from nerf.io.files import atomic_write

FPS = Range(0.01, 1000, optional=True)  # frames a second; of fewer, ffmpeg makes no film


@contextmanager
def mp4(place: Path, width: int, height: int, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that takes frames [h,w,3] uint8; the video gets its name when all are written."""
    try:
        import imageio.v2 as imageio  # v3 takes all frames at once
        import imageio_ffmpeg  # noqa: F401  (imageio would ask for it at the first frame only)
    except ImportError:
        needed = "writing MP4 needs imageio-ffmpeg: pip install imageio-ffmpeg, or give a folder for PNGs"
        raise UserError(needed) from None
    if min(width, height) < 2:
        raise UserError(f"a video needs at least 2x2 pixels, got {width}x{height}")
    width, height = width // 2 * 2, height // 2 * 2
    options: dict[str, Any] = {"format": "FFMPEG", "mode": "I", "fps": fps, "codec": "libx264", "quality": None}
    options |= {"pixelformat": "yuv420p", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    # Without the tags players guess the colour matrix from the size of the picture, and colours shift.
    tags = "-colorspace bt709 -color_primaries bt709 -color_trc bt709"
    scale = "-vf scale=out_color_matrix=bt709:out_range=tv -color_range tv"
    options["output_params"] = f"-crf 18 -preset medium -movflags +faststart {scale} {tags}".split()
    try:
        with atomic_write(place, suffix=".mp4") as temporary:
            # absolute: imageio takes what stands before a colon for a protocol; closed: its own end leaves ffmpeg
            with closing(imageio.get_writer(temporary.absolute(), **options)) as writer:
                film: Any = writer
                yield lambda picture: film.append_data(picture[:height, :width])
            if not _is_whole(temporary):  # imageio does not say how ffmpeg ended
                raise UserError(f"{place}: ffmpeg could not write all of the video; is the disk full?")
    except OSError as error:
        raise UserError(f"{place}: writing the video failed ({brief(error)}); is the disk full?") from error


# ffmpeg reads what it takes a file for: only formats of which one file is the whole, no playlists or patterns that
# name others, and pictures no larger than those of 16K video (a header may claim any size).
FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,mxf,dv,ivf,gif,yuv4mpegpipe,h264,hevc"
SOUND_FORMATS = "wav,w64,aiff,caf,au,flac,mp3,aac,ac3,amr,ape,wv"
MOST_PIXELS = 1 << 27


def input_options(formats: str = FORMATS) -> dict[str, str]:
    """Options of ffmpeg's library for opening a file of one of these formats."""
    return {"protocol_whitelist": "file", "format_whitelist": formats}


def input_arguments(formats: str = FORMATS) -> list[str]:
    """The same before -i on its command line; the name must be absolute, for `a:b.mp4` names a protocol."""
    limits = {"max_pixels": str(MOST_PIXELS)} if formats == FORMATS else {}
    return [word for name, value in (input_options(formats) | limits).items() for word in (f"-{name}", value)]


def _is_whole(path: Path) -> bool:
    """Whether the boxes of an MP4 file fill it, the index (moov) and the pictures (mdat) among them. Source: ISO/IEC
    14496-12, section 4.2."""
    place, end, found = 0, path.stat().st_size, set()
    with open(path, "rb") as file:
        while place < end:
            file.seek(place)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size
            found.add(head[4:8])
            place += max(size, 8)
    return place == end and {b"moov", b"mdat"} <= found


def ffmpeg(*arguments: str, data: bytes | None = None) -> bytes:
    """What ffmpeg writes to standard output, given `data` on standard input; ValueError with its last line where it
    fails or writes nothing."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments]
    stdin = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
    done = children.run(command, capture_output=True, check=False, **stdin)
    if done.returncode:
        raise ValueError(brief(done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "ffmpeg failed"))
    output: bytes = done.stdout
    return output
