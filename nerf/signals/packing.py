"""A fitted field as a small file: its weights rounded to a few bits and entropy coded, all that is needed to sample it.

Each tensor is rounded to whole steps between its extremes, 2^bits of them (16 for biases and frequencies, which are few
and count), as COIN (Dupont et al. 2021) keeps images, and coded with its histogram (asymmetric numeral systems, Duda
2013).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf.errors import MISFITS, UserError, brief
from nerf.io.folders import model_files
from nerf.io.limits import number, whole
from nerf.signals.fitting import Fitted, fitted_of_state
from nerf.signals.state import check_state

MAGIC, OLD_MAGIC = b"nerfpack2\n", b"nerfpack1\n"  # the old one has no checksum
_SUM = 16  # bytes of the SHA-256 of all that follows
_SCALE = 14  # bits of a probability
_LOW = 1 << 16  # the coder's state stays in [_LOW, _LOW << 16)
_LONGEST_HEADER = 1 << 24  # bytes
_FREE, _A_BYTE = 1 << 22, 32  # numbers of any stream, and as many more as it has bytes times this: a quarter bit each


def pack(fitted: Fitted, bits: int) -> bytes:
    """A fitted signal as bytes; `unpack` gives it back with its weights rounded."""
    tensors, config = fitted.to_state()
    parts, entries = [], []
    for name, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point():
            raise UserError(f"the field holds {tensor.dtype} numbers in {name}, which cannot be packed")
        exact = tensor.dim() < 2 or name.endswith(".matrix")
        coded, entry = _quantise(tensor.detach().float().cpu(), 16 if exact else bits)
        if tensor.numel() > _FREE + _A_BYTE * len(coded):
            raise UserError(f"with {bits} bits, {name} is nearly everywhere the same number: give more bits")
        parts.append(coded)
        entries.append([name, list(tensor.shape), len(coded), *entry])
    header = zlib.compress(json.dumps([config, entries], separators=(",", ":")).encode(), 9)
    content = struct.pack("<I", len(header)) + header + b"".join(parts)
    return MAGIC + hashlib.sha256(content).digest()[:_SUM] + content


def unpack(data: bytes, name: str = "file") -> Fitted:
    """What `pack` wrote, today or when it wrote no checksum; UserError where it is something else, damaged, or says
    that it holds more than its length allows."""
    try:
        config, entries, at = _read_header(data)
        sized = [(key, _numel(key, shape, size, count), *rest) for key, shape, size, *rest, count in entries]
        if at + sum(size for _, _, size, *_ in entries) != len(data):
            raise ValueError("it is cut short, or has extra bytes at its end")
        check_state({key: torch.empty(shape, device="meta") for key, shape, *_ in entries}, config)
        tensors = {}
        for (key, shape, size, low, step, count), (_, n, *_) in zip(entries, sized, strict=True):
            low, step = number(low, "its lowest value"), number(step, "its step")
            symbols = _decode(data[at : at + size], n, count)
            tensors[key] = (low + step * torch.from_numpy(symbols).float()).reshape(shape)
            at += size
    except (*MISFITS, struct.error, zlib.error) as error:
        raise UserError(f"{name} is no packed signal that can be read ({brief(error)}): pack it again") from error
    return fitted_of_state(tensors, config, name)


def _numel(key: str, shape: list[int], size: int, count: int) -> int:
    """How many numbers an entry has; ValueError for more than its bytes can hold."""
    n = math.prod(whole(side, f"a side of {key}", 0, 1 << 32) for side in shape)
    whole(count, f"the number of levels of {key}", 1, 1 << 16)
    if n > _FREE + _A_BYTE * whole(size, f"the size of {key}", 0, 1 << 40):
        raise ValueError(f"{size} bytes cannot hold the {n} numbers of {key}")
    return n


def _read_header(data: bytes) -> tuple[dict[str, Any], list[Any], int]:
    """(config, entries, where the streams begin); ValueError for what is no pack, or was altered."""
    start = len(MAGIC)
    if data.startswith(MAGIC):
        start += _SUM
        if hashlib.sha256(data[start:]).digest()[:_SUM] != data[len(MAGIC) : start]:
            raise ValueError("it was altered or damaged after it was written, its checksum does not match")
    elif not data.startswith(OLD_MAGIC):
        raise ValueError("it does not begin like one")
    (length,) = struct.unpack_from("<I", data, start)
    config, entries = json.loads(_inflated(data[start + 4 : start + 4 + length], _LONGEST_HEADER))
    return config, entries, start + 4 + length


def _inflated(data: bytes, most: int) -> bytes:
    """What zlib compressed, of at most so many bytes."""
    unpacker = zlib.decompressobj()
    found = unpacker.decompress(data, most)
    if not unpacker.eof:
        raise ValueError("it is cut short, or larger than it can be")
    return found


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
    frequencies = np.frombuffer(_inflated(data[6 : 6 + size], 2 * count), "<u2").astype(np.int64)
    if int(frequencies.sum()) != 1 << _SCALE:
        raise ValueError("its probabilities do not sum to 1")
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
    if path.is_file():
        with path.open("rb") as file:
            is_pack = file.read(len(MAGIC)) in (MAGIC, OLD_MAGIC)
        if is_pack:
            return unpack(path.read_bytes(), str(path))
    return Fitted.load(model_files(path)[1])
