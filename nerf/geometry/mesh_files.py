"""Mesh files from outside, read by trimesh: no counts that the file cannot hold, no files but those beside it, and only
pictures for textures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nerf.errors import UserError

_TEXTURES = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # formats of Pillow, which would run Ghostscript on others
_LONGEST_HEADER = 1 << 16  # bytes, of a PLY
_SPARE = 1 << 26  # bytes that accessors of a small GLB may take together: they may share what they refer to
_PLY_SIZES = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8}
_PLY_SIZES |= {f"{kind}{bits}": bits // 8 for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)}
_GLB_SIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_GLB_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


def load_mesh_file(path: Path) -> Any:
    """What `trimesh.load` makes of a mesh file, nothing merged and in the file's order; raises whatever its readers
    come upon, and UserError for counts that the file cannot hold or files that it names outside its folder."""
    import trimesh
    from trimesh.resolvers import Resolver

    kind, folder, refused = path.suffix.lower()[1:], Path(os.path.abspath(path)).parent, []

    class Beside(Resolver):
        def __init__(self) -> None:
            pass

        def get(self, name: str) -> bytes:
            named = folder / str(name).strip().replace("\\", "/")
            if not Path(os.path.normpath(named)).is_relative_to(folder):
                named = folder / named.name  # as another machine wrote it
                if not named.is_file():
                    refused.append(str(name))
                    raise FileNotFoundError(name)
            return named.read_bytes()

        def keys(self) -> list[str]:
            return [p.name for p in folder.iterdir() if p.is_file()]

        def namespaced(self, namespace: str) -> Beside:
            return self

        def write(self, name: str, data: bytes) -> None:
            raise OSError("a mesh that is read writes no file")

    with open(path, "rb") as file:
        _check_counts(file, kind, path)
        with _textures_only():
            try:
                return trimesh.load(file, file_type=kind, resolver=Beside(), process=False, maintain_order=True)
            finally:
                if refused:
                    raise UserError(
                        f"{path}: names {refused[0]}, which lies outside its folder and is not opened: put it beside "
                        "the mesh, or a link to it"
                    )


def _check_counts(file: BinaryIO, kind: str, path: Path) -> None:
    """UserError where a PLY or GLB says that it holds more than its length allows; leaves the file at its start."""
    n_bytes = os.fstat(file.fileno()).st_size
    least = {"ply": _ply_bytes, "glb": _glb_bytes}.get(kind)
    try:
        claimed = 0 if least is None else least(file, n_bytes)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        claimed = 0  # not as it should be: what is wrong, its reader says
    file.seek(0)
    if claimed > n_bytes:
        raise UserError(
            f"{path}: says that it holds {claimed:,} bytes of vertices and faces, and is {n_bytes:,} bytes long: the "
            "file is cut off or damaged, write it again"
        )


def _ply_bytes(file: BinaryIO, n_bytes: int) -> int:
    """The fewest that a file with this header can have."""
    total, count, binary = 0, 0, False
    for line in file.read(_LONGEST_HEADER).split(b"end_header")[0].decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["format"]:
            binary = words[1] != "ascii"
        elif words[:1] == ["element"]:
            count = int(words[2])
        elif words[:1] == ["property"]:  # of a list, its length; in a text, a digit and what separates it
            total += count * (_PLY_SIZES[words[2] if words[1] == "list" else words[1]] if binary else 2)
    return total - 1  # a text may end without a line break


def _glb_bytes(file: BinaryIO, n_bytes: int) -> int:
    """That its chunks take, or its accessors together, less what small files may share."""
    end = 12
    while end < n_bytes:
        file.seek(end)
        end += 8 + int.from_bytes(file.read(4), "little")
    if end > n_bytes + 3:  # some pad the last one to four bytes in its length alone
        return end
    file.seek(0)
    header = file.read(20)
    content = json.loads(file.read(min(int.from_bytes(header[12:16], "little"), n_bytes)))
    sizes = (int(a["count"]) * _GLB_SIZES[a["componentType"]] * _GLB_WIDTHS[a["type"]] for a in content["accessors"])
    return sum(sizes) - _SPARE - 15 * n_bytes


@contextmanager
def _textures_only() -> Iterator[None]:
    """Within it, Pillow opens no other formats, whoever asks it."""
    from PIL import Image

    Image.init()
    before, Image.ID = Image.ID, [name for name in _TEXTURES if name in Image.OPEN]
    try:
        yield
    finally:
        Image.ID = before
