"""Where results may go: which folder is ours, which files in it we wrote, and who is writing there now.

A folder is ours if nerf.json is in it. Its list of files is all that is ever replaced or removed there; it is written
before the files are, so that a process that is killed leaves nothing unlisted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nerf.errors import UserError, note
from nerf.io.files import is_temporary, remove_orphans, write_file
from nerf.io.folders import is_probe, make_folder, resumable
from nerf.io.json_text import parse_json
from nerf.io.locks import LOCK, Lock, alone

RECORD = "nerf.json"
PARTS = ("evaluation", "pictures")  # kinds of folders that go with the run that they lie in
_FORMAT, _VERSION = "nerf-folder", 1


class OutputFolder:
    """A folder that a command writes to, locked until `close` (or the end of a `with` block).

    kind: "run", "fit", "dataset", "evaluation", "pictures"; a folder of one kind is never written to as another.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self._lock: Lock | None = None
        self._made: list[Path] = []  # what is removed again where nothing gets written

    @staticmethod
    def open(
        path: Path,
        kind: str,
        resume: bool = False,
        overwrite: bool = False,
        names: Sequence[str] = (),
        before: Sequence[str] = (),
    ) -> OutputFolder:
        """Make the folder, lock it and mark it as ours.

        names: that the command may write; where a file of such a name is not ours, nothing is done. before: of these
        names, those that are there are ours although nothing says so (folders of older versions). UserError where the
        folder is in use or is not ours, or holds results and neither resume nor overwrite is given.
        """
        folder = OutputFolder(path, kind)
        folder.check(resume, overwrite, names, before)
        new = [place for place in (path, *path.parents) if not place.exists()]
        make_folder(path)
        folder._lock = Lock(path)
        try:
            there = folder.check(resume, overwrite, names, before)  # another may have been faster
            above = owner_of(path)
            wholly_ours = [
                place for name in folder.listed() if name.endswith("/") for place, *_ in os.walk(path / name)
            ]
            parents = [(path / name).parent for name in folder.listed()]
            for place in {path, above or path, *parents, *map(Path, wholly_ours)}:
                if place.is_dir():
                    remove_orphans(place)
            if read_record(path) is None:
                _write_record(path, kind, there)
                folder._made = [path / RECORD, *new]
            if above is not None and kind in PARTS:
                _list(above, [os.path.relpath(path.absolute(), above) + "/"])
        except BaseException:
            folder.close()
            raise
        return folder

    def check(
        self, resume: bool = False, overwrite: bool = False, names: Sequence[str] = (), before: Sequence[str] = ()
    ) -> list[str]:
        """The files of ours that are there; UserError where `open` would raise one. Changes nothing."""
        path, kind = self.path, self.kind
        above = next((place for place in (path, *path.absolute().parents) if os.path.lexists(place)), path)
        if not above.is_dir():
            what = "is a file" if above == path else f"cannot be made, for {above} is a file"
            raise UserError(f"{path} {what}; expected a folder to write to")
        if resume and overwrite:
            raise UserError("--resume continues what is there and --overwrite discards it: give one of them")
        record = read_record(path)
        if record is None:
            ours = [name for name in before if os.path.lexists(path / name)]
        elif record["kind"] != kind:
            raise UserError(f"{path} holds {_one(record['kind'])} and no {kind}: choose another -o")
        else:
            ours = [name for name in record["files"] if os.path.lexists(path / name)]
        if ours and not resume and not overwrite:
            what = f"{kind} already" if kind.endswith("s") else f"another {kind}"
            raise UserError(
                f"{path} holds {what} ({', '.join(ours[:3])}{', ...' if len(ours) > 3 else ''}): "
                f"choose another -o, or give {'--resume to continue it or ' * resumable(path)}--overwrite to discard it"
            )
        if record is None and not ours and not _is_empty(path):
            if resume:
                raise UserError(f"{path} holds no {kind} to resume, but files of others: choose another -o")
            if not overwrite:
                raise UserError(
                    f"{path} is not empty: choose a new folder with -o, or give --overwrite to write into it (what is "
                    "there stays)"
                )
        for name in ours:  # written as a file, and since then made into something that no file can replace
            if not name.endswith("/") and (path / name).exists() and not (path / name).is_file():
                raise _in_the_way(path / name)
        wanted = names if record is not None else (RECORD, *names)  # which may be there, and be no file
        others = [name for name in wanted if os.path.lexists(path / name) and not _is_listed(name, ours)]
        if others:
            raise _in_the_way(path / others[0])
        return ours

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Others may write there again; where nothing was written after all, it is as it was before."""
        unused = self._made if self._lock is not None and not self.files() else []
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._made = []
        with suppress(OSError):  # others have put something there
            for place in unused:
                place.rmdir() if place.is_dir() else place.unlink()

    def files(self) -> list[str]:
        """The names on the list that are there; a folder that is wholly ours ends in a slash."""
        return [name for name in self.listed() if os.path.lexists(self.path / name)]

    def listed(self) -> list[str]:
        """All names on the list, also of what was not written yet."""
        record = read_record(self.path)
        return [] if record is None else list(record["files"])

    def claim(self, *names: str) -> None:
        """Put names, relative to the folder, on its list; to be called before they are written. UserError where a file
        of such a name is there and not ours."""
        _claim(self.path, names)

    def clear(self, keep: Iterable[str] = (), say: bool = True) -> None:
        """Take all names off the list, but for those to keep, and remove their files, and say which; of folders below
        that are ours, what is on theirs."""
        keep = set(keep)
        gone = [name for name in self.files() if name not in keep]
        if gone and say:
            listed = ", ".join(gone[:6]) + (f" and {len(gone) - 6} more" if len(gone) > 6 else "")
            note(f"{self.path}: removing what the {self.kind} there has left ({listed}); all else stays")
        _clear(self.path, keep)


class OthersFolder(OutputFolder):
    """A folder as processes have it that do not write there: another of the same command does, and has locked it."""

    def claim(self, *names: str) -> None:
        pass

    def clear(self, keep: Iterable[str] = (), say: bool = True) -> None:
        pass

    def close(self) -> None:
        pass


def read_record(folder: Path) -> dict[str, Any] | None:
    """What nerf.json of a folder says: its kind and files; None where it is not ours."""
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        content = parse_json(file.read_bytes())
        if content["format"] != _FORMAT or not isinstance(content["kind"], str):
            raise ValueError
        names = content["files"]
        if not all(isinstance(name, str) and is_inside(name) for name in names):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file}: cannot be understood, so nothing in {folder} is touched: choose another -o") from None
    return {"kind": content["kind"], "files": names}


def owner_of(path: Path) -> Path | None:
    """The nearest folder above a path that is ours."""
    return next((folder for folder in path.absolute().parents if read_record(folder) is not None), None)


def check_output(path: Path, overwrite: bool, *inputs: Path | None) -> None:
    """Ask whether a command may write a file, before it begins, and put it on the list of the folder of ours that it
    lies in, if there is one, so that it goes with it. UserError for an input, for what holds a run together, for a
    file that is there and may not be replaced. Devices and pipes are written to as they are."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected the name of a file to write")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: there is no such folder to write {path.name} to")
    if not os.access(path.parent, os.W_OK) and not (path.exists() and os.access(path, os.W_OK)):
        raise UserError(f"{path.parent} is not writable, so {path.name} cannot go there")
    for file in filter(None, inputs):
        if path.exists() and file.exists() and path.samefile(file):
            raise UserError(f"{path} is what is read: choose another name to write to")
    if not overwrite and (path.is_file() or path.is_symlink()):
        raise UserError(f"{path} exists; choose another name or give --overwrite")
    folder = owner_of(path)
    for place in filter(None, (path.parent, folder)):
        remove_orphans(place)
    if folder is not None and path.name in KEPT and path.parent.samefile(folder):
        raise UserError(f"{path} belongs to what is in {folder} and is not replaced: choose another name")
    if folder is not None and (path.is_file() or not os.path.lexists(path)):
        _claim(folder, [os.path.relpath(path.absolute(), folder)])


# of a run or fit: what it cannot do without, and no other command may replace
KEPT = ("checkpoint.safetensors", "checkpoint.previous.safetensors", "run.json", "training.json", "fit.json", RECORD)


def _write_record(folder: Path, kind: str, files: Iterable[str]) -> None:
    content = {"format": _FORMAT, "version": _VERSION, "kind": kind, "files": list(files)}
    write_file(folder / RECORD, json.dumps(content, indent=1) + "\n")


def _claim(folder: Path, names: Iterable[str]) -> None:
    record = read_record(folder)
    listed = [] if record is None else record["files"]
    new = [name for name in dict.fromkeys(names) if not _is_listed(name, listed)]
    for name in new:
        if os.path.lexists(folder / name):
            raise _in_the_way(folder / name)
    if new:
        _list(folder, new)


def _list(folder: Path, names: Iterable[str]) -> None:
    """Add names to the list of a folder, to which several commands may add at the same time."""
    with alone(folder):
        record = read_record(folder)
        assert record is not None
        _write_record(folder, record["kind"], dict.fromkeys([*record["files"], *names]))


def _one(kind: str) -> str:
    return kind if kind.endswith("s") else f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def _in_the_way(path: Path) -> UserError:
    return UserError(
        f"{path} is in the way: nerf did not write it and does not replace it; move it elsewhere, or choose another -o"
    )


def _clear(folder: Path, keep: Collection[str] = ()) -> None:
    record = read_record(folder)
    if record is None:
        return
    emptied = set()
    for name in record["files"]:
        path = folder / name
        if name in keep or not path.parent.resolve().is_relative_to(folder.resolve()):  # a link leads elsewhere
            continue
        if name.endswith("/") and not path.is_symlink():
            if read_record(path) is not None:
                _clear(path)
                (path / RECORD).unlink()
                emptied.add(path)
            else:
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        emptied.update(parent for parent in path.parents if parent != folder and parent.is_relative_to(folder))
    for path in sorted(emptied, key=lambda p: -len(p.parts)):
        with suppress(OSError):  # what is not empty holds files of others
            path.rmdir()
    _write_record(folder, record["kind"], [name for name in record["files"] if name in keep])


def _is_listed(name: str, files: Sequence[str]) -> bool:
    return any(name == file or (file.endswith("/") and f"{name}/".startswith(file)) for file in files)


def is_inside(name: str) -> bool:
    """Whether a relative name leads nowhere else: the list is read, and files are removed by it."""
    return bool(name.strip("/.")) and not os.path.isabs(name) and ".." not in Path(name).parts and "\0" not in name


def _is_empty(folder: Path) -> bool:
    """Whether nothing is there but what a process of ours left that was killed before its first file."""
    return not folder.is_dir() or all(p.name == LOCK or is_probe(p) or is_temporary(p) for p in folder.iterdir())
