"""HDR video, as phones record it by default: its frames have the colours that were filmed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerf.capture.video import take_frames
from nerf.io.hdr import HLG, PQ, to_srgb, transfer_of
from nerf.io.video import ffmpeg
from nerf.signals.video import read_video

COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 60], [128, 128, 128], [235, 235, 235], [30, 30, 30]]
)
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def coded(colours: np.ndarray, transfer: int, white: float = 203.0) -> np.ndarray:
    """[n,3] of 0 to 1 in BT.2020 of what SDR video shows as these bytes, its white at so many cd/m2: the standard's own
    equations from light to signal (BT.2100, tables 4 and 5)."""
    light = (colours / 255) ** 2.4 @ TO_BT2020.T * white
    if transfer == HLG:
        scene = (light / 1000) ** (1 / 1.2)
        a, b, c = 0.17883277, 1 - 4 * 0.17883277, 0.55991073
        return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    y = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def write_hdr(path: Path, transfer: int, n_frames: int = 4) -> Path:
    """A row of squares of 32 pixels, which move a little from frame to frame."""
    row = np.repeat(coded(COLOURS, transfer), 32, axis=0)
    frames = [np.broadcast_to(np.roll(row, k, axis=0), (32, len(row), 3)) for k in range(n_frames)]
    data = b"".join(np.rint(frame * 65535).astype("<u2").tobytes() for frame in frames)
    tags = f"h264_metadata=colour_primaries=9:transfer_characteristics={transfer}:matrix_coefficients=9"
    ffmpeg(
        *("-f", "rawvideo", "-pix_fmt", "rgb48le", "-s", f"{len(row)}x32", "-r", "5", "-i", "-"),
        *(
            "-vf",
            "scale=out_color_matrix=bt2020:out_range=tv",
            "-pix_fmt",
            "yuv444p10le",
            "-c:v",
            "libx264",
            "-qp",
            "0",
        ),
        *("-bsf:v", tags, str(path)),
        data=data,
    )
    return path


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_frames_have_the_colours_that_were_filmed(tmp_path: Path, transfer: int) -> None:
    pytest.importorskip("av")
    video = write_hdr(tmp_path / "hdr.mp4", transfer)
    (tmp_path / "images").mkdir()
    taken = take_frames(video, tmp_path, 4)
    assert any("HDR video" in line for line in taken.notes)
    signal = read_video(video)
    for frame in (np.asarray(Image.open(taken.photos[0].source)), signal.values.reshape(*signal.shape, 3)[0]):
        for k, colour in enumerate(COLOURS):
            got = frame[10:22, 32 * k + 10 : 32 * k + 22].mean(axis=(0, 1))
            # next to nothing of a channel, beside much of another, is lost in the 8 bits of a decoded frame
            assert (np.abs(got - colour) < np.where(colour < 16, 40, 8)).all(), (k, got)


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_what_is_brighter_than_white_is_rolled_off(transfer: int) -> None:
    table = to_srgb(transfer, 9)
    assert table is not None
    grey = np.linspace(0, 255, 256).astype(np.uint8).reshape(1, -1, 1).repeat(3, axis=2)
    shown = np.asarray(Image.fromarray(grey).filter(table))[0].astype(int)
    assert (np.ptp(shown, axis=1) <= 2).all() and (np.diff(shown[:, 0]) >= 0).all() and shown[-1, 0] == 255
    assert to_srgb(1, 1) is None  # SDR


@pytest.mark.parametrize("error", ["EOFError", "PatchWelcomeError", "InvalidDataError"])
def test_what_a_damaged_film_does_not_say_of_its_colours_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """FFmpeg has errors of many kinds, and not all are those of the operating system."""
    av = pytest.importorskip("av")

    def fails(*_: object, **__: object) -> None:
        raise getattr(av.error, error)(1, "damaged", "a.mkv")

    monkeypatch.setattr(av, "open", fails)
    assert transfer_of(tmp_path / "a.mkv") == (2, 2)
