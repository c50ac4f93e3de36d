"""Sound as a signal: WAV with 8 to 32 bits or floats and any number of channels; other formats through ffmpeg."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nerf.errors import UserError, note
from nerf.io.files import atomic_write
from nerf.io.video import ffmpeg
from nerf.signals.record import Signal, to_values

if TYPE_CHECKING:
    from nerf.signals.fields import SignalField

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_DTYPES: dict[tuple[int, int], np.dtype] = {
    (_PCM, 8): np.dtype(np.uint8),
    (_PCM, 16): np.dtype(np.int16),
    (_PCM, 24): np.dtype(np.int32),  # three bytes in the file
    (_PCM, 32): np.dtype(np.int32),
    (_FLOAT, 32): np.dtype(np.float32),
    (_FLOAT, 64): np.dtype(np.float64),
}


def read_audio(path: str | Path) -> Signal:
    """A sound as it is in the file: all channels, all bits. Values of the field are in [-1, 1], full scale 1."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected a sound (WAV, FLAC, MP3, OGG)")
    data = path.read_bytes()
    if not data:
        raise UserError(f"{path}: is empty; expected a sound")
    if data[:4] != b"RIFF":
        data = _through_ffmpeg(path)
    samples, rate, bits = _wav(path, data)
    if len(samples) == 0:
        raise UserError(f"{path}: holds no samples")
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise UserError(f"{path}: holds samples that are no finite numbers (NaN or infinity): repair the file")
    zero, one = (128.0, 256.0) if bits == 8 else (0.0, float(1 << (bits - 1)) if samples.dtype.kind == "i" else 1.0)
    meta = {"name": path.name, "rate": rate, "bits": bits, "range": "-1 to 1, full scale"}
    signal = Signal("audio", samples, (len(samples),), zero, one, peak=None, meta=meta)
    if samples.dtype.kind == "f":
        low, high = float(samples.min()), float(samples.max())
    else:
        low, high = ((float(v) - zero) / (one - zero) for v in (samples.min(), samples.max()))
    loudest = max(-low, high)
    if loudest == 0.0:
        note(f"{path}: is silent from beginning to end; there is nothing to learn but zero")
    signal.span = (-loudest, loudest) if loudest > 0 else (-1.0, 1.0)
    return signal


def _wav(path: Path, data: bytes) -> tuple[np.ndarray, int, int]:
    """(samples [n, channels], rate in 1/s, bits) of a RIFF WAVE file. Source: Microsoft, Multimedia Programming
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
            samples = body
        place += 8 + size + size % 2
    if form is None or samples is None:
        missing = "format" if form is None else "data"
        raise UserError(f"{path}: the WAV file is damaged (it has no {missing} chunk): restore the file")
    code, channels, rate, _, _, bits = form
    dtype = _DTYPES.get((code, bits))
    if dtype is None or channels < 1 or rate < 1:
        raise UserError(
            f"{path}: WAV format {code} with {bits} bits and {channels} channels at {rate}/s is not supported, "
            "expected integers of 8, 16, 24 or 32 bits or floats: convert it, as to 24-bit PCM"
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
    try:
        data = ffmpeg("-i", str(path.absolute()), "-vn", "-c:a", "pcm_f32le", "-f", "wav", "-")
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as a sound ({error})") from None
    if not data:
        raise UserError(f"{path}: cannot be read as a sound (it holds none)")
    return data


def write_wav(path: Path, samples: np.ndarray, rate: int, bits: int) -> None:
    """Samples [n, channels] in the type that `read_audio` gave them, as WAV; replaced when whole."""
    n, channels = samples.shape
    if bits == 24:
        raw = samples.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        raw = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    code, width = _FLOAT if samples.dtype.kind == "f" else _PCM, bits // 8
    body = struct.pack("<HHIIHH", code, channels, rate, rate * channels * width, channels * width, bits)
    parts = (
        b"fmt " + struct.pack("<I", 16) + body + b"data" + struct.pack("<I", len(raw)) + raw + b"\0" * (len(raw) % 2)
    )
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts)
    except OSError as error:
        raise UserError(f"{path}: writing the sound failed ({error.strerror or error}); is the disk full?") from error


def audio_of_field(field: SignalField, n: int) -> np.ndarray:
    """[n, channels] float32 of a fitted sound, over its whole length."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return field.evaluate(u.float()[:, None]).numpy()


def write_audio(path: Path, field: SignalField, meta: dict[str, Any], rate: int | None = None, slow: float = 1) -> None:
    """Sample a fitted sound to WAV at any rate (1/s), `slow` times as long; meta: of Signal.describe()."""
    if path.suffix.lower() != ".wav":
        raise UserError(f"{path}: expected a name that ends in .wav")
    rate = rate or int(meta["rate"])
    n = max(1, round(meta["shape"][0] * slow * rate / meta["rate"]))
    values = np.clip(audio_of_field(field, n), -1, 1)
    write_wav(path, to_values(values, np.dtype(meta["dtype"]), meta["zero"], meta["one"]), rate, int(meta["bits"]))
