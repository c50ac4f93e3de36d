"""Files that are whole or not there: written beside their place under a fresh name, synced, then renamed."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nerf.errors import UserError
from nerf.io.folders import scratch_folder

_LONGEST_NAME = 255  # bytes of a file's name, on every usual file system
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"  # process numbers are those of a machine, folders may not be
_TEMPORARY = re.compile(r"\..*\.nerf-(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]{1,19})-[0-9a-f]{8}(\.\w+)?", re.DOTALL)


@contextmanager
def atomic_write(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """A name beside `path` to write to, ending in suffix; it becomes `path` when the block ends, and is gone when the
    block raises. A link is written through; a device or a pipe gets the bytes at the end."""
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file() and not target.is_dir():
        with scratch_folder() as folder:
            whole = folder / f"whole{suffix}"
            yield whole
            with open(whole, "rb") as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    temporary = fresh(target, suffix)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):  # a full disk's error names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def fresh(target: Path, suffix: str = ".tmp") -> Path:
    """A new, empty file beside the target that no other process has, and that no link leads away from; its name says
    whose it is (see `remove_orphans`)."""
    while True:
        end = f".nerf-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"
        start = os.fsencode(f".{target.name}")[: _LONGEST_NAME - len(end)]
        temporary = target.with_name(os.fsdecode(start).rstrip(".") + end)
        try:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return temporary
        except FileExistsError:
            continue


def remove_orphans(folder: Path) -> None:
    """Remove what `atomic_write` left in a folder in processes of this machine that were killed; it can be large."""
    for path in folder.iterdir():
        name = _TEMPORARY.fullmatch(path.name)
        if name is not None and name["host"] == _HOST and not is_running(int(name["pid"])):
            path.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Whether `atomic_write` made this name."""
    return _TEMPORARY.fullmatch(path.name) is not None


def is_running(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def _sync(path: Path) -> None:
    """To the disk; some file systems cannot sync a folder, and those that cannot sync a file say so here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def page_bytes(text: str) -> bytes:
    """A page as UTF-8, which has no form for what names that are not UTF-8 become in Python: shown as \\udcff."""
    return text.encode("utf-8", "backslashreplace")


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file, or leave what was there; UserError where that cannot be done."""
    write_files(path, {path.name: data})


def write_files(path: Path, files: dict[str, bytes | str]) -> None:
    """Write files (name -> content) beside each other, `path` the last of them; none is replaced before all are
    whole. UserError where that cannot be done."""
    try:
        with ExitStack() as stack:  # left in reverse: `path`, which names the others, gets its name last
            for name in sorted(files, key=lambda name: name != path.name):
                data = files[name]
                temporary = stack.enter_context(atomic_write(path.with_name(name)))
                temporary.write_bytes(_encoded(data) if isinstance(data, str) else data)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): make room there, or choose another place with -o"
        ) from error


def _encoded(text: str) -> bytes:
    """UTF-8; names of files that are none keep their bytes, and what no file could be called is written as an escape:
    a name never ends the work that it is about."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")
