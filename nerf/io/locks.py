"""Locks between processes: a folder that one command writes to, and files that several take turns at."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from nerf.errors import UserError, note
from nerf.io.files import is_running

LOCK = ".nerf.lock"


class Lock:
    """A folder's lock, held by this process until `release` or its end: an advisory flock on .nerf.lock, in which the
    process, its machine and its start are written. A file that a killed process left is no lock. Where the file system
    has no flock, the process named in the file is looked for instead, which is said."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            try:
                self._file = os.open(self._path, flags, 0o666)
            except OSError as error:
                raise UserError(
                    f"{self._path}: cannot be locked ({error.strerror}); choose another place with -o"
                ) from None
            has_locks = True
            try:
                has_locks = _flock(self._file)
                holder = _read(self._file)
                if not has_locks and _is_alive(holder):
                    raise BlockingIOError
            except BlockingIOError:
                holder = _read(self._file)
                os.close(self._file)
                gone = "" if has_locks else f", or remove {self._path} if that process is gone"
                raise UserError(
                    f"{folder} is in use by {_words(holder)}: wait for its end, or choose another -o{gone}"
                ) from None
            if _is_still(self._path, self._file):
                break
            os.close(self._file)  # whoever held it has removed it meanwhile
        if not has_locks:
            note(f"{folder}: this file system has no locks; two commands that start at the same moment go unnoticed")
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
        since = datetime.now().isoformat(" ", "seconds")
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(mine).encode("utf-8", "replace"), 0)

    def release(self) -> None:
        with suppress(OSError):
            self._path.unlink()
        os.close(self._file)


def _flock(file: int) -> bool:
    """Take the lock of an open file; False where there are no locks, BlockingIOError where another process has it."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False
    return True


def _read(file: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(file, 4096, 0))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote the file may still run; of another machine that cannot be told."""
    pid, host = holder.get("pid"), holder.get("host")
    if not isinstance(pid, int) or not isinstance(host, str) or pid == os.getpid():
        return False
    return host != socket.gethostname() or is_running(pid)


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except OSError:
        return False


def _words(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    host, since = holder.get("host"), holder.get("since")
    where = "" if host == socket.gethostname() else f" on {host}"
    return f"process {holder.get('pid')}{where} ({holder.get('command')}), since {since}"


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """One process at a time, the others wait; the lock ends with the process. place: a folder, or a file, which is
    made. Nothing happens on systems and file systems without locks."""
    flags = os.O_RDONLY if place.is_dir() else os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    file = os.open(place, flags, 0o666)
    try:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
