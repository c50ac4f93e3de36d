"""A fitted field as a small file: its weights rounded to a few bits and entropy coded, all that is needed to sample it.

Each tensor is rounded to whole steps between its extremes, 2^bits of them (16 for biases and frequencies, which are few
and count), as COIN (Dupont et al. 2021) keeps images, and coded with its histogram (asymmetric numeral systems, Duda
2013).
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.errors import MISFITS, UserError, brief
from nerf.io.folders import model_files
from nerf.io.json_text import parse_json
from nerf.signals.fitting import Fitted, fitted_of_state

MAGIC = b"nerfpack1\n"
_SCALE = 14  # bits of a probability
_LOW = 1 << 16  # the coder's state stays in [_LOW, _LOW << 16)


def pack(fitted: Fitted, bits: int) -> bytes:
    """A fitted signal as bytes; `unpack` gives it back with its weights rounded."""
    tensors, config = fitted.to_state()
    parts, entries = [], []
    for name, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point():
            raise UserError(f"the field holds {tensor.dtype} numbers in {name}, which cannot be packed")
        exact = tensor.dim() < 2 or name.endswith(".matrix")
        coded, entry = _quantise(tensor.detach().float().cpu(), 16 if exact else bits)
        parts.append(coded)
        entries.append([name, list(tensor.shape), len(coded), *entry])
    header = zlib.compress(json.dumps([config, entries], separators=(",", ":")).encode(), 9)
    return MAGIC + struct.pack("<I", len(header)) + header + b"".join(parts)


def unpack(data: bytes, name: str = "file") -> Fitted:
    """What `pack` wrote; UserError where it is something else or damaged."""
    try:
        if not data.startswith(MAGIC):
            raise ValueError("it does not begin like one")
        (length,) = struct.unpack_from("<I", data, len(MAGIC))
        start = len(MAGIC) + 4
        config, entries = parse_json(zlib.decompress(data[start : start + length]))
        at, tensors = start + length, {}
        for key, shape, size, low, step, count in entries:
            if at + size > len(data):
                raise ValueError("it is cut short")
            symbols = _decode(data[at : at + size], math.prod(shape), count)
            tensors[key] = (low + step * torch.from_numpy(symbols).float()).reshape(shape)
            at += size
    except (*MISFITS, struct.error, zlib.error) as error:
        raise UserError(f"{name} is no packed signal that can be read ({brief(error)}): pack it again") from error
    return fitted_of_state(tensors, config, name)


def _quantise(values: Tensor, bits: int) -> tuple[bytes, tuple[float, float, int]]:
    """(bytes, (low, step, number of symbols))."""
    low, high = float(values.min()), float(values.max())
    count = 1 << bits
    step = (high - low) / (count - 1) or 1.0
    symbols = ((values.double() - low) / step).round().clamp(0, count - 1).to(torch.int64).reshape(-1).numpy()
    return _encode(symbols, count), (low, step, count)


def _frequencies(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts scaled to a sum of 2^_SCALE (more where there are many symbols), at least 1 where there is any."""
    total, present = 1 << _SCALE, counts > 0
    scaled = np.where(present, np.maximum(1, counts * (total - int(present.sum())) // max(int(counts.sum()), 1)), 0)
    scaled[int(np.argmax(scaled))] += total - int(scaled.sum())
    return scaled


def _encode(symbols: NDArray[np.int64], count: int) -> bytes:
    """Symbols 0 to count - 1 as bytes; of more symbols than the coder has probabilities for, as they are."""
    if count > 1 << 12:
        return symbols.astype("<u2").tobytes()
    frequencies = _frequencies(np.bincount(symbols, minlength=count))
    table = zlib.compress(frequencies.astype("<u2").tobytes(), 9)
    words, state = [], _LOW
    f_list, s_list = frequencies.tolist(), (frequencies.cumsum() - frequencies).tolist()
    for symbol in reversed(symbols.tolist()):
        f = f_list[symbol]
        while state >= (f << (32 - _SCALE)):
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // f << _SCALE) + state % f + s_list[symbol]
    stream = np.array(words[::-1], "<u2").tobytes()
    return struct.pack("<HI", len(table), state) + table + stream


def _decode(data: bytes, n: int, count: int) -> NDArray[np.int64]:
    if count > 1 << 12:
        return np.frombuffer(data, "<u2", n).astype(np.int64)
    size, state = struct.unpack_from("<HI", data)
    frequencies = np.frombuffer(zlib.decompress(data[6 : 6 + size]), "<u2").astype(np.int64)
    which = np.repeat(np.arange(len(frequencies)), frequencies).tolist()
    words = np.frombuffer(data[6 + size :], "<u2").tolist()
    f_list, s_list = frequencies.tolist(), (frequencies.cumsum() - frequencies).tolist()
    out, at = [], 0
    for _ in range(n):
        slot = state & ((1 << _SCALE) - 1)
        symbol = which[slot]
        out.append(symbol)
        state = f_list[symbol] * (state >> _SCALE) + slot - s_list[symbol]
        while state < _LOW and at < len(words):
            state = state << 16 | words[at]
            at += 1
    return np.array(out, np.int64)


def load_signal(path: Path) -> Fitted:
    """A fitted signal from a run's folder, a checkpoint, or a packed file."""
    if path.is_file() and path.open("rb").read(len(MAGIC)) == MAGIC:
        return unpack(path.read_bytes(), str(path))
    return Fitted.load(model_files(path)[1])
