"""Finding the pictures that another program's file names: by path, by file name, or by the name without its suffix."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path, PurePosixPath

from nerf.datasets.depths import DepthMap
from nerf.datasets.parsed import ParsedScene
from nerf.errors import UserError
from nerf.io.images import IMAGE_SUFFIXES

_PLACES = ("images", "input", "photos", "rgb", "dense/images")


def find_named(folder: Path, names: list[str], where: str) -> dict[str, Path]:
    """{name: file} of names as another program wrote them, perhaps with a path of another machine, perhaps without a
    suffix; a name whose file is nowhere gets the path where it was expected. UserError where two could be meant."""
    usual = first_with_pictures((folder / place for place in _PLACES), "**/*")
    base, files = usual or (folder, pictures_in(folder))
    by_name: dict[str, list[Path]] = {}
    for file in files:
        for key in {file.name.lower(), file.stem.lower()}:
            by_name.setdefault(key, []).append(file)
    found = {}
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        candidates = by_name.get(parts.name.lower()) or by_name.get(parts.stem.lower(), [])
        if parts.suffix.lower() in IMAGE_SUFFIXES:  # img.jpg is not meant by img.png where both are there
            exact = [p for p in candidates if p.suffix.lower() == parts.suffix.lower()]
            candidates = exact or candidates
        if len(candidates) > 1:
            candidates = _closest(parts, candidates)
        if len(candidates) > 1:
            raise UserError(
                f"{where}: {name!r} may be {candidates[0]} or {candidates[1]}: keep one of them, or give them names "
                "that differ"
            )
        found[name] = candidates[0] if candidates else base / parts.name
    if names and not any(p.is_file() for p in found.values()):
        raise UserError(
            f"{where}: none of its {len(names)} pictures (the first is {names[0]!r}) is in {base} or in images/, "
            f"input/, photos/ or rgb/ of {folder}: copy the photos there"
        )
    return found


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


def pictures_in(folder: Path, pattern: str = "*") -> list[Path]:
    """In order of names; none where there is no such folder."""
    return sorted(p for p in folder.glob(pattern) if p.suffix.lower() in IMAGE_SUFFIXES)


def first_with_pictures(folders: Iterable[Path], pattern: str = "*") -> tuple[Path, list[Path]] | None:
    """(the first of the folders that holds pictures, those pictures); None where none does."""
    return next(((folder, found) for folder in folders if (found := pictures_in(folder, pattern))), None)


def _closest(name: PurePosixPath, candidates: list[Path]) -> list[Path]:
    """Those whose folders agree with most of the name's, counted from the end."""

    def agreement(file: Path) -> int:
        pairs = zip(reversed(name.parent.parts), reversed(file.parent.parts), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0].lower() == pair[1].lower(), pairs))

    best = max(agreement(p) for p in candidates)
    return [p for p in candidates if agreement(p) == best]


def find_mask(folder: Path, *names: str) -> Path | None:
    """NAME.png in the folder, or the name with .png for its suffix; of the first of the names that has one."""
    places = (folder / f"{p}.png" for name in names for p in (name, name.removesuffix(Path(name).suffix)))
    return next((place for place in places if place.is_file()), None)


def add_masks(parsed: ParsedScene, folder: Path) -> None:
    """Give the frames their masks from a folder: NAME.png, or the name with .png for its suffix, with the name's own
    folders or without. UserError where none is found; a frame without one keeps what its files name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of masks")
    n = 0
    for frame in parsed.frames:
        found = find_mask(folder, frame.name, frame.path.name)
        n += found is not None
        frame.mask = found or frame.mask
    if n == 0:
        first = parsed.frames[0].path
        raise UserError(
            f"{folder}: none of its files belongs to an image; expected {first.name}.png or {first.stem}.png"
        )
    parsed.notes.append(f"masks of {n} of {len(parsed.frames)} images from {folder}: what is black there is ignored")


def listed(names: list[str], limit: int = 20) -> str:
    """Names for a message, the first few of many."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def reduced_folders(folder: Path) -> list[Path]:
    """images_2/, images_4/ and the like, the least reduced first."""
    return sorted((p for p in folder.glob("images_*") if p.name[7:].isdigit()), key=lambda p: int(p.name[7:]))
