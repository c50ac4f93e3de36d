"""Sound as a signal: WAV with 8 to 32 bits or floats and any number of channels; other formats through ffmpeg.

The standard library's `wave` neither reads nor writes floats, so the chunks are read here.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nerf.errors import UserError, note
from nerf.io.files import write_file
from nerf.io.video import FORMATS, SOUND_FORMATS, ffmpeg, input_arguments
from nerf.signals.record import Signal, check_file, check_finite, to_values

if TYPE_CHECKING:
    from nerf.signals.fields import SignalField

LONGEST = 1 << 28  # bytes of decoded sound, 12 minutes in stereo, that a file of any size may hold ...
A_BYTE = 100  # ... and as many more for each byte of it, twice what speech at 16 kbit/s takes
_MAX_RATE = 1 << 24  # samples a second, far above what is recorded
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_CHUNKS = (b"LIST", b"id3 ", b"ID3 ", b"fact", b"bext", b"cue ", b"JUNK", b"iXML", b"PAD ", b"smpl")  # after no samples
_DTYPES: dict[tuple[int, int], np.dtype] = {
    (_PCM, 8): np.dtype(np.uint8),
    (_PCM, 16): np.dtype(np.int16),
    (_PCM, 24): np.dtype(np.int32),  # three bytes in the file
    (_PCM, 32): np.dtype(np.int32),
    (_FLOAT, 32): np.dtype(np.float32),
    (_FLOAT, 64): np.dtype(np.float64),
}


def read_audio(path: str | Path) -> Signal:
    """A sound as it is in the file: all channels, all bits. Values of the field are in [-1, 1], full scale 1.

    Raises UserError for what is missing, empty, broken or not finite.

    >>> import wave
    >>> with wave.open("tone.wav", "wb") as file:
    ...     file.setparams((1, 2, 8000, 0, "NONE", ""))
    ...     file.writeframes(np.arange(800, dtype="<i2").tobytes())
    >>> signal = nerf.read_audio("tone.wav")
    >>> signal.shape, signal.meta["rate"], signal.meta["bits"]
    ((800,), 8000, 16)
    """
    path = Path(path)
    check_file(path, "a sound (WAV, FLAC, MP3, OGG)")
    data = path.read_bytes()
    found = _wav(path, data) if data[:4] == b"RIFF" else None
    if found is None:
        found = _wav(path, _through_ffmpeg(path))
    assert found is not None  # 32-bit floats
    samples, rate, bits = found
    if len(samples) == 0:
        raise UserError(f"{path}: holds no samples")
    check_finite(path, samples, "samples")
    zero, one = (128.0, 256.0) if bits == 8 else (0.0, float(1 << (bits - 1)) if samples.dtype.kind == "i" else 1.0)
    meta = {"name": path.name, "rate": rate, "bits": bits, "range": "-1 to 1, full scale"}
    signal = Signal("audio", samples, (len(samples),), zero, one, peak=None, meta=meta)
    low, high = ((float(v) - zero) / (one - zero) for v in (samples.min(), samples.max()))
    loudest = max(-low, high)
    if loudest == 0.0:
        note(f"{path}: is silent from beginning to end; there is nothing to learn but zero")
    if loudest > 1.0:  # of floats
        note(f"{path}: reaches {loudest:.3g} of full scale, which its floats can hold, and is kept so")
        meta["loudest"] = loudest
    signal.span = (-loudest, loudest) if loudest > 0 else (-1.0, 1.0)
    return signal


def _wav(path: Path, data: bytes) -> tuple[np.ndarray, int, int] | None:
    """(samples [n, channels], rate in 1/s, bits) of a RIFF WAVE file; None where it holds anything but plain integers
    or floats (mu-law, ADPCM, MP3), which ffmpeg reads. Source: Microsoft, Multimedia Programming
    Interface 1.0, 1991; WAVEFORMATEXTENSIBLE, 2001."""
    if data[8:12] != b"WAVE":
        raise UserError(f"{path}: cannot be read as a WAV file (it does not begin as one): restore the file")
    place, form, samples = 12, None, None
    while place + 8 <= len(data):
        name, size = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        body = data[place + 8 : place + 8 + size]  # what ffmpeg writes to a pipe says more than there is
        if name == b"fmt " and len(body) >= 16:
            form = struct.unpack_from("<HHIIHH", body)
            if form[0] == _EXTENSIBLE and len(body) >= 26:
                form = (struct.unpack_from("<H", body, 24)[0], *form[1:])
        elif name == b"data":
            if size == 0 and data[place + 8 : place + 12] not in _CHUNKS:  # the recorder was switched off: all the rest
                body, size = data[place + 8 :], len(data)
            samples = body
        place += 8 + size + size % 2
    if form is None or samples is None:
        missing = "format" if form is None else "data"
        raise UserError(f"{path}: the WAV file is damaged (it has no {missing} chunk): restore the file")
    code, channels, rate, _, _, bits = form
    dtype = _DTYPES.get((code, bits))
    if dtype is None and code not in (_PCM, _FLOAT):
        return None
    if dtype is None or channels < 1 or not 1 <= rate <= _MAX_RATE:
        raise UserError(
            f"{path}: WAV format {code} with {bits} bits and {channels} channels at {rate}/s is not supported, "
            f"expected integers of 8, 16, 24 or 32 bits or floats at up to {_MAX_RATE}/s: convert it, as to 24-bit PCM"
        )
    width = bits // 8
    n = len(samples) // (width * channels)
    raw = np.frombuffer(samples, np.uint8, n * width * channels)
    if bits == 24:  # into the upper three bytes of 32 bits, so that the sign is in its place, and down again
        wide = np.zeros((n * channels, 4), np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        values = wide.view("<i4")[:, 0] >> 8
    else:
        values = raw.view(dtype.newbyteorder("<")).astype(dtype)
    if dtype == np.float64:
        values = values.astype(np.float32)
        bits = 32
    return values.reshape(n, channels), rate, bits


def _through_ffmpeg(path: Path) -> bytes:
    source = (*input_arguments(f"{SOUND_FORMATS},{FORMATS}"), "-i", str(path.absolute()))
    most = LONGEST + A_BYTE * path.stat().st_size  # a few bytes can stand for minutes of silence
    try:
        data = ffmpeg(*source, "-vn", "-c:a", "pcm_f32le", "-fs", str(most), "-f", "wav", "-")
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as a sound ({error})") from None
    if not data:
        raise UserError(f"{path}: cannot be read as a sound (it holds none)")
    if len(data) >= most:
        raise UserError(
            f"{path}: is more than {most / 1e9:.1f} GB of sound in a file of {path.stat().st_size:,} bytes: cut it "
            "into shorter parts"
        )
    return data


def write_wav(path: Path, samples: np.ndarray, rate: int, bits: int) -> None:
    """Samples [n, channels] in the type that `read_audio` gave them, as WAV; replaced when whole."""
    channels = samples.shape[1]
    if bits == 24:
        raw = samples.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        raw = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    code, frame = _FLOAT if samples.dtype.kind == "f" else _PCM, channels * bits // 8
    if max(channels << 16, rate * frame, len(raw) + 64) >= 1 << 32:
        raise UserError(f"{path}: WAV cannot hold {len(samples)} samples of {channels} channels at {rate} a second")
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, code, channels, rate, rate * frame, frame, bits)
    body = form + struct.pack("<4sI", b"data", len(raw)) + raw + b"\0" * (len(raw) % 2)
    write_file(path, struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WAVE") + body)


def write_audio(path: Path, field: SignalField, meta: dict[str, Any], rate: int | None = None, slow: float = 1) -> None:
    """Sample a fitted sound to WAV at any rate (1/s), `slow` times as long; meta: of Signal.describe()."""
    if path.suffix.lower() != ".wav":
        raise UserError(f"{path}: expected a name that ends in .wav")
    rate = rate or int(meta["rate"])
    n = max(1, round(meta["shape"][0] * slow * rate / meta["rate"]))
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    loudest = float(meta.get("loudest", 1.0))  # integers are cut at full scale when they are made
    values = field.evaluate(u.float()[:, None]).numpy().clip(-loudest, loudest)
    write_wav(path, to_values(values, np.dtype(meta["dtype"]), meta["zero"], meta["one"]), rate, int(meta["bits"]))
