"""OpenEXR files: colours in linear light, and single channels such as depths. Source: OpenEXR, "File Layout"."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from nerf.errors import UserError, brief
from nerf.io.files import atomic_write
from nerf.io.opening import check_size

_MAGIC = 20000630
_TYPES: dict[int, np.dtype] = {0: np.dtype(np.uint32), 1: np.dtype(np.float16), 2: np.dtype(np.float32)}
_LAYERS = ("combined", "beauty", "rgba", "color", "colour")  # which to take when colours come in named layers only


def read_header(path: Path) -> tuple[int, int, dict[str, np.dtype]]:
    """(width, height, {channel: type}) of the (first) picture, its display window, without decoding it."""
    try:
        attributes = _attributes(path)
        width, height = _size(_window(attributes, "display"))
        channels = _channels(attributes)
    except (OSError, KeyError, ValueError, struct.error) as e:
        raise UserError(f"{path}: cannot be read as an EXR image ({brief(e)}): restore or remove the file") from e
    return width, height, channels


def _channels(attributes: dict[str, bytes]) -> dict[str, np.dtype]:
    channels: dict[str, np.dtype] = {}
    data = attributes["channels"]
    while len(data) > 1:
        name, _, rest = data.partition(b"\0")
        channels[name.decode()] = _TYPES[struct.unpack_from("<i", rest)[0]]
        data = rest[16:]
    return channels


def _window(attributes: dict[str, bytes], name: str) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), inclusive, of "data" or "display". ValueError where it is empty."""
    x0, y0, x1, y1 = struct.unpack("<4i", attributes[f"{name}Window"])
    if x1 < x0 or y1 < y0:
        raise ValueError(f"its {name} window is empty")
    return x0, y0, x1, y1


def _size(window: tuple[int, int, int, int]) -> tuple[int, int]:
    return window[2] - window[0] + 1, window[3] - window[1] + 1


def _attributes(path: Path) -> dict[str, bytes]:
    """The attributes of the first header by name, as they are in the file: the package OpenEXR tells no channel's type
    before it has decoded the picture. UserError where the file cannot hold a picture of that size."""

    def text() -> bytes:
        found = b""
        while (c := f.read(1)) != b"\0":
            if not c or len(found) > 255:
                raise ValueError("its header is cut off")
            found += c
        return found

    attributes = {}
    with open(path, "rb") as f:
        n_bytes = os.fstat(f.fileno()).st_size
        if struct.unpack("<i4x", f.read(8))[0] != _MAGIC:  # then version and flags
            raise ValueError("it does not begin as one")
        while name := text():
            text()  # its type
            (size,) = struct.unpack("<i", f.read(4))
            if not 0 <= size <= n_bytes:
                raise ValueError("its header is cut off")
            attributes[name.decode()] = f.read(size)
            if len(attributes[name.decode()]) != size:
                raise ValueError("its header is cut off")
    for window in ("data", "display"):
        size, n_channels = _size(_window(attributes, window)), max(1, len(_channels(attributes)))  # all are decoded
        check_size(size, n_bytes, path, n_layers=n_channels)
    return attributes


def read_channels(path: Path) -> dict[str, np.ndarray]:
    """{channel: [h,w]} over the display window (which the camera is stated for); 0 where the file holds no data."""
    try:
        import OpenEXR
    except ImportError as e:
        raise UserError(f"{path}: reading EXR images needs the package OpenEXR: pip install OpenEXR") from e
    try:
        attributes = _attributes(path)
        data, display = (_window(attributes, name) for name in ("data", "display"))
        with OpenEXR.File(os.fsencode(path), separate_channels=True) as f:
            found = {name: channel.pixels for name, channel in f.channels().items()}
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"{path}: cannot be read as an EXR image ({brief(e)}): restore or remove the file") from e
    return {name: _placed(pixels, data, display) for name, pixels in found.items()}


def _placed(pixels: np.ndarray, data: tuple[int, ...], display: tuple[int, ...]) -> np.ndarray:
    """Data [h,w] of one window (x0, y0, x1, y1, inclusive) as seen through another."""
    x0, y0, x1, y1 = display
    h, w, top, left = y1 - y0 + 1, x1 - x0 + 1, data[1] - y0, data[0] - x0
    if (top, left) == (0, 0) and pixels.shape == (h, w):
        return pixels
    out = np.zeros((h, w), pixels.dtype)
    target = out[max(top, 0) : max(top + pixels.shape[0], 0), max(left, 0) : max(left + pixels.shape[1], 0)]
    target[...] = pixels[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    return out


def colour_channels(names: list[str], path: Path) -> list[str]:
    """Which channels are the colours, in order: R, G, B (and A), else Y (and A), else those of a named layer."""
    layers = sorted({n.rpartition(".")[0] for n in names}, key=lambda p: (p != "", p))
    complete = [p for p in layers if {_join(p, c) for c in "RGB"} <= set(names)]
    if len(complete) > 1 and complete[0] != "":
        told = [p for p in complete if p.rpartition(".")[2].lower() in _LAYERS]
        if len(told) != 1:
            raise UserError(
                f"{path}: holds colours in {len(complete)} layers ({', '.join(complete[:6])}) and none without a name: "
                "write the one that is to be used as R, G, B"
            )
        complete = told
    if complete:
        return [_join(complete[0], c) for c in "RGBA" if c != "A" or _join(complete[0], c) in names]
    if "Y" in names:
        return ["Y", "A"] if "A" in names else ["Y"]
    raise UserError(f"{path}: holds the channels {', '.join(names)}, expected R, G, B (and A) or Y")


def _join(layer: str, channel: str) -> str:
    return f"{layer}.{channel}" if layer else channel


def read_colours(path: Path) -> np.ndarray:
    """[h,w,c] float16 or float32, linear light; alpha made straight (EXR stores colours times alpha)."""
    channels = read_channels(path)
    names = colour_channels(list(channels), path)
    n_colours = len(names) - 1 if names[-1].rpartition(".")[2] == "A" else len(names)
    colours = np.stack([channels[n] for n in names[:n_colours]], axis=-1)
    if colours.dtype not in (np.float16, np.float32):
        colours = colours.astype(np.float32)
    if n_colours == len(names):
        return colours
    alpha = channels[names[-1]][..., None].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        straight = np.where(alpha > 0, colours / np.maximum(alpha, 1e-6), 0)
        return np.concatenate([straight, alpha], axis=-1).astype(colours.dtype)


def check_exr() -> None:
    """UserError where EXR files cannot be written; asked before the work begins."""
    from importlib.util import find_spec

    if find_spec("OpenEXR") is None:
        raise UserError("writing EXR images needs the package OpenEXR: pip install OpenEXR")


def write_exr(path: Path, channels: dict[str, np.ndarray]) -> None:
    """Write [h,w] float16 or float32 channels, losslessly compressed; a file of that name is replaced when whole."""
    check_exr()
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    try:
        with atomic_write(path) as temporary:
            picture = OpenEXR.File(header, {name: np.ascontiguousarray(c) for name, c in channels.items()})
            picture.write(os.fsencode(temporary))
    except (OSError, RuntimeError) as e:
        raise UserError(f"{path}: writing the picture failed ({brief(e)}); is the disk full?") from e
