"""Frames of a video: the sharpest of each interval, without those that show what the one before shows."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nerf.capture.features import sharpness
from nerf.capture.photos import Photo, Photos
from nerf.datasets.resize import fitted
from nerf.errors import UserError, brief
from nerf.io.files import atomic_write
from nerf.io.hdr import NAMES, to_srgb
from nerf.io.outputs import OutputFolder
from nerf.io.video import MOST_PIXELS, input_options

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".3gp", ".wmv")
FRAMES = 120  # taken of a video by default ...
FRAMES_A_SECOND = 4.0  # ... and of short ones not more than so many a second
SMALL = 480  # pixels on the longer side of the pictures in which sharpness is measured
SAME = 0.12  # of the usual change from one frame to the next: less is the same view again
JPEG_QUALITY = 95

Kept = tuple[Path, tuple[int, int], np.ndarray]  # file, (width, height), thumbnail [64,64]


def check_video(video: Path) -> None:
    """UserError where it cannot be opened, holds no pictures, or its first frame cannot be decoded."""
    with _opened(video) as (container, stream):
        next(_decoded(container, stream, video))


def take_frames(video: Path, folder: OutputFolder | Path, frames: int | None = None) -> Photos:
    """Write the frames to images/ in the folder, upright and in sRGB, and return them as photos; UserError where the
    video cannot be read."""
    fingerprint = video_fingerprint(video)
    with _opened(video) as (container, stream):
        stream.thread_type = "AUTO"
        total = stream.frames or _count(video)
        seconds = float(stream.duration * stream.time_base) if stream.duration else total / 30.0
        wanted = min(total, frames or min(FRAMES, max(20, round(seconds * FRAMES_A_SECOND))))
        read = list(_sharpest(container, stream, total, wanted, folder, video)) if total >= 3 else []
        kind = NAMES.get(int(stream.codec_context.color_trc))  # often stated by the frames alone
    n_read = len(read)
    if n_read < 3:
        n = total if total < 3 else n_read
        raise UserError(f"{video}: only {n} of its frames can be decoded, at least 3 are needed")
    kept = _without_repeats(read)
    if len(kept) < 3:
        raise UserError(
            f"{video}: {n_read} frames were read and {len(kept)} of them differ, at least 3 are needed: the camera "
            "has to move around the subject"
        )
    dropped = f", {n_read - len(kept)} near-duplicates dropped" if n_read > len(kept) else ""
    note = f"{len(kept)} frames of {total} in {seconds:.0f} s of video: the sharpest of each interval{dropped}"
    notes = [note]
    if kind is not None:
        notes.append(f"HDR video ({kind}): its colours are brought to sRGB, what is brighter than white is rolled off")
    photos = [Photo(path, path.name, *size, 1, size, None, "", f"{fingerprint}:{path.name}") for path, size, _ in kept]
    return Photos(photos, notes=notes, is_video=True)


@contextmanager
def _opened(video: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its stream of pictures)."""
    try:
        import av
    except ImportError:
        raise UserError(
            'reading videos needs the package av: pip install av (or "nerf-reconstruct[capture]" for all that captures '
            "need)"
        ) from None
    av.logging.set_level(av.logging.PANIC)  # a damaged frame is ours to report
    try:
        container = av.open(str(video.absolute()), options=input_options())
    except (OSError, ValueError, av.FFmpegError) as error:  # most errors of av's are one of the former two
        # damaged headers ask for more memory than there can be
        why = "it claims to be larger than any" if getattr(error, "errno", None) == errno.ENOMEM else brief(error)
        raise UserError(f"{video}: cannot be opened as a video ({why})") from None
    try:
        with container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                kinds = ", ".join(s.type for s in container.streams) or "nothing"
                raise UserError(f"{video}: holds no pictures, only {kinds}")
            if stream.codec_context is None:
                raise UserError(f"{video}: its pictures are of a kind that cannot be decoded: write it again as MP4")
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            yield container, stream
    except av.FFmpegError as error:  # some are of no other kind
        raise UserError(f"{video}: is damaged, or of a kind that cannot be decoded ({brief(error)})") from error


def video_fingerprint(video: Path) -> str:
    """Of size and of both ends: hashing gigabytes would take longer than looking at them."""
    size = video.stat().st_size
    digest = hashlib.sha1(str(size).encode())
    with open(video, "rb") as f:
        digest.update(f.read(1 << 20))
        f.seek(max(0, size - (1 << 20)))
        digest.update(f.read())
    return digest.hexdigest()


def _count(video: Path) -> int:
    """Frames of a file whose header does not say: by its packets, without decoding."""
    with _opened(video) as (container, _):
        return sum(1 for packet in container.demux(video=0) if packet.size)


def _sharpest(
    container: Any, stream: Any, total: int, wanted: int, folder: OutputFolder | Path, video: Path
) -> Iterator[Kept]:
    """Of each of `wanted` equal intervals its sharpest frame, written as JPEG: (path, (width, height), thumbnail)."""
    from nerf.io.progress import Progress

    with Progress("reading frames", total) as shown:
        numbered = enumerate(_decoded(container, stream, video))
        for _, interval in groupby(numbered, lambda item: min(item[0] * wanted // total, wanted - 1)):
            best: tuple[float, int, Any] = -1.0, 0, None
            for number, frame in interval:
                width, height = fitted((frame.width, frame.height), SMALL)
                small = frame.reformat(width=max(2, width), height=max(2, height), format="gray")
                score = sharpness(small.to_ndarray())
                if score > best[0]:
                    best = score, number, frame
                shown.update(number + 1)
            yield _write(best[2], folder, best[1])


def _decoded(container: Any, stream: Any, video: Path) -> Iterator[Any]:
    """The frames that can be decoded; damaged ones between them are passed over."""
    from av import FFmpegError

    some, why = False, "is the file complete?"
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except (OSError, ValueError, FFmpegError) as error:
                why = brief(error)
                continue
            for frame in frames:
                some = True
                yield frame
    except (OSError, ValueError, FFmpegError) as error:  # of the file's own structure: it ends here
        why = brief(error)
    if not some:
        raise UserError(f"{video}: no frame of it can be decoded ({why})")


def _write(frame: Any, folder: OutputFolder | Path, number: int) -> Kept:
    """Upright, as the file says how it was held, and in sRGB."""
    from PIL import Image

    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    if (table := to_srgb(int(frame.color_trc), int(frame.color_primaries))) is not None:
        picture = picture.filter(table)
    turn = int(getattr(frame, "rotation", 0) or 0) % 360  # counter-clockwise, degrees
    if turn in (90, 180, 270):
        picture = picture.transpose(Image.Transpose[f"ROTATE_{turn}"])
    name = f"images/frame_{number:06d}.jpg"
    if isinstance(folder, OutputFolder):
        folder.claim(name)
    path = (folder.path if isinstance(folder, OutputFolder) else folder) / name
    try:
        with atomic_write(path) as temporary:
            picture.save(temporary, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place with -o"
        ) from None
    thumbnail = np.asarray(picture.convert("L").resize((64, 64), Image.Resampling.BOX), dtype=np.float32)
    return path, picture.size, thumbnail


def _without_repeats(kept: list[Kept]) -> list[Kept]:
    """Without the frames that hardly differ from the one kept before; their files are removed."""
    changes = [float(np.abs(b[2] - a[2]).mean()) for a, b in pairwise(kept)]
    least = max(0.3, SAME * float(np.median(changes)))  # grey levels; compression alone changes less than 0.3
    result = kept[:1]
    for item in kept[1:]:
        if float(np.abs(item[2] - result[-1][2]).mean()) >= least:
            result.append(item)
        else:
            item[0].unlink(missing_ok=True)
    return result
