"""The formats that `load` reads: one file each, and the registry by which a format of your own enters.

Yours is a function with the decorator `reader` in a module that the environment variable NERF_READERS names (modules
or .py files, with commas between them), or that an installed package offers as an entry point of the group
"nerf.readers". `load` and the command line then know it by its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from nerf.errors import UserError

if TYPE_CHECKING:
    from nerf.datasets.parsed import ParsedScene

    Read = Callable[[Path], ParsedScene]

# kind -> (module here, the programs that write it); where a folder holds several, the first of them is taken
BUILT_IN = {
    "blender": ("transforms", "Blender"),
    "transforms": ("transforms", "instant-ngp or nerfstudio (transforms.json)"),
    "neus": ("neus", "NeuS"),
    "colmap": ("colmap", "COLMAP"),
    "llff": ("llff", "LLFF"),
    "metashape": ("metashape", "Metashape"),
    "realitycapture": ("realitycapture", "RealityCapture"),
    "opensfm": ("opensfm", "OpenDroneMap"),
    "polycam": ("polycam", "Polycam"),
    "record3d": ("record3d", "Record3D"),
}
MODULES = "NERF_READERS"

_registered: dict[str, Reader] = {}
_imported: set[str] = set()


@dataclass(frozen=True)
class Reader:
    """One format: how it is recognised, and what reads it."""

    kind: str
    read: Read  # from what `find` found, or from a file that `opens`
    find: Callable[[Path], Path | None]  # in a folder: what tells of the format, else None
    opens: Callable[[Path], bool]  # whether a single file of poses, given instead of a folder, is of this format
    help: str  # what is looked for


def reader(
    kind: str,
    tells: str | tuple[str, ...] | Callable[[Path], Path | None],
    help: str = "",
    file: str | Callable[[Path], bool] = "",
) -> Callable[[Read], Read]:
    """Decorator that registers read(path) -> ParsedScene as the reader of a format.

    kind: its name, for `load(kind=...)` and `--kind`. tells: names of files, one of which is in every such folder, or
    a function from a folder to what tells of the format in it (None: nothing does); read is given that path.
    file: the suffix of files that may be given in place of a folder, or a function that says whether a file is one.
    help: what is looked for, in a few words. Raises UserError where the name is taken.

    >>> import numpy as np
    >>> from nerf import Frame, Lens, ParsedScene, reader
    >>> @reader("lines", tells="lines.txt", help="lines.txt (ours)")
    ... def read_lines(file):
    ...     rows = [line.split() for line in file.read_text().splitlines()]
    ...     frames = [
    ...         Frame(r[0], file.parent / r[0], np.reshape(r[1:], (3, 4)).astype(float), Lens(fx=500.0), r[0])
    ...         for r in rows
    ...     ]
    ...     return ParsedScene("lines", file.parent, frames, [])
    """

    def find(folder: Path) -> Path | None:
        if callable(tells):
            return tells(folder)
        names = (tells,) if isinstance(tells, str) else tells
        return next(filter(Path.is_file, (folder / name for name in names)), None)

    def register(read: Read) -> Read:
        before = _registered.get(kind)
        if before is not None and (before.read.__module__, before.read.__name__) != (read.__module__, read.__name__):
            raise UserError(f"two readers have the name {kind!r}, one of {before.read.__module__}: rename the other")
        opens = file if callable(file) else lambda path: bool(file) and path.suffix.lower() == file
        text = help or (tells if isinstance(tells, str) else kind)
        _registered[kind] = Reader(kind, read, find, opens, text)
        return read

    return register


def readers() -> dict[str, Reader]:
    """All formats by name, ours first; the order in which they are looked for."""
    for module, _ in BUILT_IN.values():
        import_module(f"nerf.datasets.readers.{module}")
    return {kind: _registered[kind] for kind in kinds()}


def kinds() -> list[str]:
    """The names of all formats in that order; imports what registers formats from outside, and none of ours."""
    from importlib.metadata import entry_points

    for point in entry_points(group="nerf.readers"):
        _import(point.value.partition(":")[0], f"the entry point {point.name} of nerf.readers")
    for name in filter(None, os.environ.get(MODULES, "").split(",")):
        _import(name.strip(), MODULES)
    return [*BUILT_IN, *(kind for kind in _registered if kind not in BUILT_IN)]


def programs() -> str:
    """The programs whose formats are built in, for the overview of the command line."""
    names = [program for _, program in BUILT_IN.values()]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _import(name: str, where: str) -> None:
    """A module by its name, or a file; once. Whatever somebody else's code raises becomes one sentence."""
    from importlib.util import module_from_spec, spec_from_file_location

    if name in _imported:
        return
    try:
        spec = spec_from_file_location(Path(name).stem, name) if name.endswith(".py") else None
        if spec is None or spec.loader is None:
            import_module(name)
        else:
            spec.loader.exec_module(module_from_spec(spec))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {name} cannot be imported ({type(error).__name__}: {error})") from error
    _imported.add(name)
