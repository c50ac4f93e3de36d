"""One safetensors file that survives crashes: config JSON and a SHA-256 in its metadata, no pickle.

The checksum is that of the whole file, taken with its own 64 characters as zeros. The file is written here tensor by
tensor (the format is a length, a JSON header and the bytes), because the library's writer copies everything first and a
checkpoint is the largest thing in memory; the library reads it back.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from torch import Tensor, nn

from nerf.errors import UserError, brief, note
from nerf.io.files import atomic_write, fresh, remove_orphans
from nerf.io.json_text import parse_json

FORMAT = "nerf-checkpoint"
VERSION = 1

_NO_SUM = "0" * 64
_BLOCK = 1 << 22  # bytes hashed or written at once
_LONGEST_HEADER = 100_000_000  # bytes; the library's own limit

_DTYPES = {torch.bfloat16: "BF16", torch.uint8: "U8", torch.bool: "BOOL"}
_DTYPES |= {getattr(torch, f"float{bits}"): f"F{bits}" for bits in (16, 32, 64)}
_DTYPES |= {getattr(torch, f"int{bits}"): f"I{bits}" for bits in (8, 16, 32, 64)}


def previous_path(path: str | Path) -> Path:
    """Where `save` keeps the checkpoint before the last: `run/checkpoint.previous.safetensors`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those called `name.`something, without that prefix."""
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}


def fill(module: nn.Module, tensors: dict[str, Tensor], where: str, given: bool) -> None:
    """Give a module the parameters and buffers that `where` holds of it. Where they are others nothing is changed, and
    what differs is said: in a UserError of a module that the user has given, else in a ValueError."""
    wanted = {name: list(t.shape) for name, t in module.state_dict().items()}
    found = {name: list(t.shape) for name, t in tensors.items()}
    differ = [name for name in wanted | found if wanted.get(name) != found.get(name)]
    if differ:
        name, others = differ[0], f", and {len(differ) - 1} more differ" if len(differ) > 1 else ""
        there, here = (f"{of[name]}" if name in of else "missing" for of in (found, wanted))
        what = f"{name} is {there} there and {here} here{others}"
        if not given:
            raise ValueError(f"its parameters are not those of its config: {what}")
        raise UserError(
            f"{where} holds other parameters than the {type(module).__qualname__} to fill: {what}; make it as it was "
            "when it was trained"
        )
    with torch.no_grad():
        for name, t in module.state_dict().items():
            t.copy_(tensors[name])


def kept(step: int | None) -> str:
    """What is left of a training that broke down, whose last checkpoint is of this step (None: it wrote none)."""
    return "no checkpoint was written yet" if step is None else f"the checkpoint of step {step} is kept"


def save(path: str | Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Writes `tensors` (any shape, any device) and the JSON-able `config` to `path`; what was there becomes
    `previous_path(path)`, and at every moment one of the two is complete and on disk.

    Raises UserError when the disk is full or the folder cannot be written; then the old files are untouched and the
    temporary one is gone. Raises TypeError for what JSON or safetensors cannot hold.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    header, ordered = _header(tensors, config)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(target.parent)
        with atomic_write(target) as temporary:
            with open(temporary, "wb") as file:
                _write(file, header, ordered)
                file.flush()
                os.fsync(file.fileno())  # before anything happens to the one that is there
            if target.exists():
                _keep_as_previous(target)
    except OSError as error:
        untouched = f"the last good checkpoint is untouched: {target}"
        kept = untouched if target.is_file() else "no checkpoint was there before"
        raise UserError(
            f"cannot write the checkpoint {path}: {error.strerror or error}; {kept}. "
            "Free some space there, or choose another output folder"
        ) from error


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save` wrote: (tensors on the CPU, config); UserError when it is missing, truncated, altered, of an
    unknown version, or no checkpoint of ours. Nothing in the file is ever executed."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            raw, header = _read_header(file, path)
            metadata = _checked_metadata(header, path)
            if _digest(raw.replace(metadata["sha256"].encode(), _NO_SUM.encode(), 1), file) != metadata["sha256"]:
                raise _unusable(path, "was altered or damaged after it was written (its checksum does not match)")
        tensors = load_file(path) if _is_text(path) else load_bytes(path.read_bytes())
        config = parse_json(metadata["config"])
        if not isinstance(config, dict):
            raise _unusable(path, "holds no object as its config")
    except FileNotFoundError as error:
        raise _unusable(path, "does not exist") from error
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise _unusable(path, f"is no valid safetensors file ({brief(error)})") from error
    except ValueError as error:
        raise _unusable(path, f"has a damaged config ({brief(error)})") from error
    return tensors, config


def load_last(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `load` reads; where the file is gone or damaged, that is said and the one before it is read."""
    try:
        return load(path)
    except DamagedCheckpoint as error:
        if not previous_path(path).is_file():
            raise
        note(f"{error.what}; going on from the one before it, {previous_path(path).name}")
        return load(previous_path(path))


def _header(tensors: dict[str, Tensor], config: dict[str, Any]) -> tuple[bytes, list[Tensor]]:
    """The header with a blank checksum, padded to 8 bytes, and the tensors in the order in which their bytes follow."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"tensor {name!r} is {tensor.dtype}, which a checkpoint cannot hold")
    # widest first, as the library does, so that every tensor is aligned in the file
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {
        "__metadata__": {"format": FORMAT, "version": str(VERSION), "sha256": _NO_SUM, "config": json.dumps(config)}
    }
    offset = 0
    for name in names:
        end = offset + tensors[name].numel() * tensors[name].element_size()
        tensor = tensors[name]
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), [tensors[name] for name in names]


def _write(file: BinaryIO, header: bytes, tensors: list[Tensor]) -> None:
    prefix = len(header).to_bytes(8, "little")
    file.write(prefix + header)
    digest = hashlib.sha256(prefix + header)
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(data), _BLOCK):
            digest.update(data[start : start + _BLOCK])
            file.write(data[start : start + _BLOCK])
    file.seek(len(prefix) + header.index(_NO_SUM.encode()))
    file.write(digest.hexdigest().encode())


def _keep_as_previous(target: Path) -> None:
    previous = previous_path(target)
    try:
        link = fresh(previous)
        link.unlink()
        os.link(target, link)  # a second name: `target` itself never disappears
        os.replace(link, previous)
        link.unlink(missing_ok=True)  # which stays where both were names of one file already
    except OSError:
        os.replace(target, previous)  # no hard links on this file system: for an instant only the previous one is there


def _read_header(file: BinaryIO, path: Path) -> tuple[bytes, dict[str, Any]]:
    """The file's first bytes, up to where the data starts, and the parsed header; the file's length is checked."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise _unusable(path, "is empty")
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if size < 8 or length < 2 or length > _LONGEST_HEADER:
        raise _unusable(path, "is no safetensors file, or its start is damaged")
    if length > size - 8:
        raise _unusable(path, f"is no safetensors file, or is truncated ({size} bytes are not even its header)")
    raw = prefix + file.read(length)
    try:
        header = json.loads(raw[8:])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max([0, *map(int, ends)])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise _unusable(path, "is no safetensors file, or its header is damaged") from error
    if size != expected:
        what = "is truncated" if size < expected else "has extra bytes at its end"
        raise _unusable(path, f"{what}: {size} bytes where its header says {expected}")
    return raw, header


def _checked_metadata(header: dict[str, Any], path: Path) -> dict[str, str]:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _unusable(path, "is a safetensors file, but no checkpoint of nerf")
    if metadata.get("version") != str(VERSION):
        raise UserError(
            f"the checkpoint {path} has format version {metadata.get('version')}, and this nerf reads version {VERSION}"
            ": use the version of nerf that wrote it, or train again"
        )
    if not all(isinstance(metadata.get(key), str) for key in ("sha256", "config")) or len(metadata["sha256"]) != 64:
        raise _unusable(path, "lacks its checksum or config")
    return metadata


def _is_text(path: Path) -> bool:
    """Whether a name is one in UTF-8: the library opens no others."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _digest(start: bytes, file: BinaryIO) -> str:
    digest = hashlib.sha256(start)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


class DamagedCheckpoint(UserError):
    """A checkpoint that is gone or not as it was written; `what` says so in half a sentence."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what


def _unusable(path: Path, what: str) -> UserError:
    previous, advice = previous_path(path), "check the path, or train again"
    if previous.is_file() and not path.stem.endswith(".previous"):
        advice = f"the one before it is still there: use {previous}"
    return DamagedCheckpoint(f"the checkpoint {path} {what}", advice)
