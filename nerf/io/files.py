"""Files that are whole or not there: written beside their place under another name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nerf.errors import UserError


@contextmanager
def atomic_write(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """A name beside `path` to write to, ending in suffix; it becomes `path` when the block ends, and is gone when the
    block raises."""
    temporary = path.with_name(f".{path.name}{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file, or leave what was there; UserError where that cannot be done."""
    write_files(path, {path.name: data})


def write_files(path: Path, files: dict[str, bytes | str]) -> None:
    """Write files (name -> content) beside each other, `path` the last of them; none is replaced before all are
    whole. UserError where that cannot be done."""
    partial = {name: path.with_name(f".{name}.tmp") for name in files}
    try:
        for name, data in files.items():
            partial[name].write_bytes(_encoded(data) if isinstance(data, str) else data)
        for name, file in partial.items():  # the one that names the others comes last: where it stands, they do
            os.replace(file, path.with_name(name))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): make room there, or choose another place with -o"
        ) from error
    finally:
        for file in partial.values():
            file.unlink(missing_ok=True)


def _encoded(text: str) -> bytes:
    """UTF-8; names of files that are none keep their bytes, and what no file could be called is written as an escape:
    a name never ends the work that it is about."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")
