"""Finding the files that another program's file names, wherever they lie now: one resolver for all readers.

Names are compared without the direction of slashes, case, composed or decomposed umlauts; then without the suffix. Of
several files the one whose folders agree with most of the name's is meant.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nerf.datasets.depths import DepthMap
from nerf.datasets.parsed import ParsedScene
from nerf.errors import UserError
from nerf.io.images import IMAGE_SUFFIXES

PLACES = ("images", "input", "photos", "rgb")  # where photos of a project are usually kept
_HEIC = (".heic", ".heif", ".hif")
_AFFIX = re.compile(r"^mask[_.-]|[_.-]mask$")  # of a mask's name, around that of its photo


class Match(NamedTuple):
    """How well a file fits a name: compared in this order."""

    folders: int  # of the name, from the last on, that the file lies in
    key: int  # 0: by the whole name, below: by less of it
    suffix: bool  # not one that another program cannot read, where a photo is there twice


def find_named(folder: Path, names: list[str], where: str, near: Sequence[Path] = ()) -> dict[str, Path]:
    """{name: file} of pictures as another program named them, see `search_named`; a name whose file is nowhere gets
    the path where it was expected. UserError where none is there."""
    best, base = search_named(folder, names, where, near)
    if names and not best:
        raise UserError(
            f"{where}: none of its {len(names)} pictures (the first is {names[0]!r}) is in images/, images_N/, "
            f"{'/, '.join(PLACES[1:])}/ of {folder} or anywhere below: copy the photos there"
        )
    return {name: best.get(name, base / _parts(name).name) for name in names}


def search_named(
    folder: Path, names: list[str], where: str, near: Sequence[Path] = (), folders: int = 0
) -> tuple[dict[str, Path], Path]:
    """({name: file} of the pictures that are there, the folder that most are in or below). They are looked for in the
    usual places of the folders `near`, then of the folder, then anywhere below. folders: see `match_names`. UserError
    where two could be meant."""
    best: dict[str, Path] = {}
    base = folder
    for place in _places(folder, near):
        if place == folder and best:
            break
        found = match_names(names, keyed(pictures_in(place, "**/*")), where, folders)
        if len(found) > len(best):
            best, base = found, place
        if 2 * len(found) >= len(set(names)):
            break
    return best, base


def _places(folder: Path, near: Sequence[Path]) -> list[Path]:
    places = []
    for home in (*near, folder):
        places += [home / PLACES[0], *reduced_folders(home), *(home / name for name in PLACES[1:])]
    return list(dict.fromkeys([*filter(Path.is_dir, [*places, folder / "dense" / "images"]), folder]))


def match_names(
    names: Iterable[str], files: dict[Path, list[str]], where: str, folders: int | None = 0, strict: bool = True
) -> dict[str, Path]:
    """{name: file} for those that have one. files: by which keys each is known, the best first. folders: how many of
    the name's, from the last on, must agree (None: all). Where a name fits two files alike, or two names fit one:
    UserError, or none of them where not strict."""
    by_key: dict[str, list[tuple[int, Path]]] = {}
    for file, keys in files.items():
        for rank, key in enumerate(dict.fromkeys(keys)):
            by_key.setdefault(key, []).append((rank, file))
    claims: dict[Path, list[tuple[Match, str]]] = {}
    for name in dict.fromkeys(names):
        parts, best = _parts(name), None
        for nth, key in enumerate(dict.fromkeys((_plain(parts.name), _plain(parts.stem)))):
            for rank, file in by_key.get(key, ()):
                match = Match(_agreement(parts, file), -nth - rank, file.suffix.lower() not in _HEIC)
                n_folders = len(parts.parent.parts)
                if match.folders < (n_folders if folders is None else min(folders, n_folders)):
                    continue
                if best is None or match > best[0]:
                    best = match, [file]
                elif match == best[0] and file not in best[1]:
                    best[1].append(file)
        if best is None:
            continue
        if len(best[1]) > 1:
            if not strict:
                continue
            raise UserError(
                f"{where}: {name!r} may be {best[1][0]} or {best[1][1]}: keep one of them, or give them names that "
                "differ"
            )
        claims.setdefault(best[1][0], []).append((best[0], name))
    found = {}
    for file, claimed in claims.items():
        first, *others = sorted(claimed, key=lambda claim: claim[0], reverse=True)
        if others and others[0][0] == first[0]:
            if not strict:
                continue
            raise UserError(
                f"{where}: {first[1]!r} and {others[0][1]!r} would both be {file}: keep the photos in their folders"
            )
        found[first[1]] = file
    return found


def _parts(name: str) -> PurePosixPath:
    return PurePosixPath(*(part for part in PurePosixPath(name.replace("\\", "/")).parts if part != ".."))


def _plain(text: str) -> str:
    """A name as it is compared: bytes that are no UTF-8 as in the code page of Windows, umlauts composed, no case."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = os.fsencode(text).decode("cp1252", "replace")
    return unicodedata.normalize("NFC", text).casefold()


def keyed(files: Iterable[Path]) -> dict[Path, list[str]]:
    """The files for `match_names`: known by their names, less well by these without suffix."""
    return {file: [_plain(file.name), _plain(file.stem)] for file in files}


def _agreement(name: PurePosixPath, file: Path) -> int:
    pairs = zip(reversed(name.parent.parts), reversed(file.parent.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: _plain(pair[0]) == _plain(pair[1]), pairs))


# ---- where files may lie


def home_of(folder: Path) -> Path:
    """Where the files that a data set names may lie: in the folder above its poses and below, for nerfstudio and
    instant-ngp write ../images/x.jpg; in the poses' own where the one above is the whole disk."""
    above = Path(os.path.abspath(folder)).parent
    return Path(os.path.abspath(folder)) if above == above.parent else above


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads nowhere but into the folder, by its words or once links are followed: a link that lies in
    the folder is its owner's, wherever it leads."""
    named = Path(os.path.abspath(path))
    return named.is_relative_to(os.path.abspath(folder)) or named.resolve().is_relative_to(Path(folder).resolve())


def refuse_outside(parsed: ParsedScene, place: Path) -> None:
    """UserError where a frame names a file that is there, but in none of the places in which a data set's may lie."""
    home = home_of(place.parent if place.is_file() else place)
    for frame in parsed.frames:
        depth = frame.depth if isinstance(frame.depth, DepthMap) else None
        named = (frame.path, frame.mask, frame.matte, depth and depth.path, depth and depth.confidence)
        for path in (p for p in named if isinstance(p, Path)):
            if not is_inside(path, home) and path.exists():
                raise UserError(
                    f"{frame.where}: {path} leads out of {home} and is not opened, for a data set from elsewhere may "
                    "name any file: copy the files into its folder, or put a link to their folder there, named images"
                )


# ---- folders


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What a folder holds, in order of names, without what systems hide: ._NAME that macOS leaves on foreign disks and
    in ZIPs, .thumbnails and the like."""
    found = (p for p in folder.glob(pattern) if not any(_is_hidden(part) for part in p.relative_to(folder).parts))
    try:
        return sorted(found)
    except (FileNotFoundError, NotADirectoryError) as error:
        gone = f"{folder}: {error.filename} went away while the folder was read"
        raise UserError(f"{gone}; run again when nothing is moved there") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def pictures_in(folder: Path, pattern: str = "*", suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """In order of names; none where there is no such folder."""
    return [p for p in visible(folder, pattern) if p.suffix.lower() in suffixes]


def first_with_pictures(folders: Iterable[Path], pattern: str = "*") -> tuple[Path, list[Path]] | None:
    """(the first of the folders that holds pictures, those pictures); None where none does."""
    return next(((folder, found) for folder in folders if (found := pictures_in(folder, pattern))), None)


def reduced_folders(folder: Path) -> list[Path]:
    """images_2/, images_4/ and the like, the least reduced first."""
    return sorted((p for p in folder.glob("images_*") if p.name[7:].isdigit()), key=lambda p: int(p.name[7:]))


# ---- masks


def find_masks(folder: Path, photos: Sequence[Path]) -> dict[Path, Path]:
    """{photo: mask} for the photos that have one in the folder: under the photo's name, with another suffix or one
    more (NAME.jpg.png), before or after it "mask"; in folders as the photo's or without."""
    own = set(photos)
    files = keyed(path for path in pictures_in(folder, "**/*") if path not in own)
    for path, keys in files.items():
        bare = _AFFIX.sub("", _plain(path.stem))
        keys += [bare, PurePosixPath(bare).stem if bare.endswith(IMAGE_SUFFIXES) else bare]
    found = match_names(map(str, photos), files, str(folder), strict=False)
    return {Path(photo): mask for photo, mask in found.items()}


def add_masks(parsed: ParsedScene, folder: Path, given: bool = True) -> None:
    """Give the frames their masks from a folder, see `find_masks`. A frame without one keeps what its files name.
    UserError where none is found in a folder that was given; a note in one that is only there."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of masks")
    found = find_masks(folder, [frame.path for frame in parsed.frames])
    for frame in parsed.frames:
        frame.mask = found.get(frame.path, frame.mask)
    n, first = sum(f.path in found for f in parsed.frames), parsed.frames[0].path
    if n == 0:
        what = f"{folder}: none of its files belongs to an image; expected {first.name}.png or {first.stem}.png"
        if given:
            raise UserError(what)
        parsed.notes.append(f"{what}: no masks are used")
        return
    parsed.notes.append(f"masks of {n} of {len(parsed.frames)} images from {folder}: what is black there is ignored")


def listed(names: list[str], limit: int = 20) -> str:
    """Names for a message, the first few of many."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
