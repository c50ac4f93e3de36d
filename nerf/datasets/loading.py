"""`load`: from a folder, by the reader of its format, to a Scene."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nerf.datasets.named import PLACES, add_masks, home_of, pictures_in, refuse_outside, visible
from nerf.datasets.options import LoadOptions
from nerf.datasets.parsed import ParsedScene
from nerf.datasets.parts import Part, restrict
from nerf.datasets.posed import Posed, check_frames
from nerf.datasets.readers import BUILT_IN, MODULES, kinds, readers
from nerf.datasets.scene import Scene, assemble
from nerf.errors import UserError, brief, note

_WITHOUT_MASKS = ("blender", "neus")  # they have mattes


def load(
    path: str | Path,
    options: LoadOptions | None = None,
    *,
    reader: Callable[[Path], ParsedScene] | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Scene:
    """Load posed images from a folder, or from a file of poses.

    options: how (see LoadOptions); its fields may be given by name instead, as in load(path, downscale=2, holdout=0).
    Without a hold-out asked for, the files' own split is taken, else every 8th image in order of names is for testing.
    reader: reads the path in place of the registered ones. What was chosen and why is in Scene.notes, and goes to
    standard error unless quiet. Raises UserError for everything that the user can put right.

    >>> scene = load("data/sample", downscale=4, quiet=True)
    >>> scene.source, len(scene.names), len(scene.splits["test"])
    ('blender', 72, 12)
    """
    options = replace(options or LoadOptions(), **changes)
    options.check()
    with _names_of_files(Path(path)):
        parsed = _read(Path(path), options.kind, reader)
        _add_masks(parsed, options.masks)
        if options.part is not None:
            options = restrict(parsed, Part.read(options.part), options)
        scene = assemble(parsed, options)
    if not quiet:
        for line in scene.notes:
            note(line)
    return scene


def load_posed(
    path: str | Path,
    kind: str | None = None,
    masks: str | Path | None = None,
    *,
    cameras_are: str | None = None,
    georeference: str | None = None,
    quiet: bool = False,
    options: LoadOptions | None = None,
) -> Posed:
    """The cameras, files and splits of what `load` reads, checked alike, without decoding any picture. options: all of
    them, instead of those before."""
    if options is None:
        where = None if masks is None else Path(masks)
        options = LoadOptions(kind=kind, masks=where, cameras_are=cameras_are, georeference=georeference)
    options.check()
    with _names_of_files(Path(path)):
        parsed = parse(path, options.kind)
        _add_masks(parsed, options.masks)
        posed = check_frames(parsed, options)
    for line in () if quiet else parsed.notes:
        note(line)
    return posed


def parse(path: str | Path, kind: str | None = None) -> ParsedScene:
    """What the reader of the path finds there, not yet checked against the pictures."""
    return _read(Path(path), kind)


@contextmanager
def _names_of_files(path: Path) -> Iterator[None]:
    """One sentence where the poses name a file by a name that no file can have."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise UserError(
            f"{path}: names a file that cannot be, {str(error.filename)[-60:]!r}: {brief(error)}"
        ) from error


def kinds_in(folder: Path) -> list[str]:
    """The formats that a folder could be read as, the most telling first; empty where it holds no poses, nor does a
    folder in it that is meant."""
    return _kinds(_unpacked(folder))


def _kinds(folder: Path) -> list[str]:
    return [kind for kind, reader in readers().items() if reader.find(folder) is not None]


def _unpacked(folder: Path) -> Path:
    """The folder with the poses, where a ZIP was unpacked into a folder of its own: that itself where it holds poses
    or photos, else the one in it that does. UserError where several do."""
    for _ in range(3):
        if not folder.is_dir() or _kinds(folder) or any(pictures_in(folder / name) for name in (".", *PLACES)):
            break
        below = [place for place in visible(folder) if place.is_dir()][:50]
        posed = [place for place in below if _kinds(place)]
        if len(posed) > 1:
            raise UserError(
                f"{folder}: holds no poses itself, but {posed[0].name}/ and {posed[1].name}/ in it do: give one of them"
            )
        if not posed and len(below) != 1:
            break
        folder = (posed or below)[0]
    return folder


def _add_masks(parsed: ParsedScene, given: Path | None) -> None:
    """Those given, else those in a folder masks/ beside the photos' or above it, where nothing else says which pixels
    are used."""
    if given is not None:
        add_masks(parsed, given)
        return
    frames = parsed.frames
    if not frames or any(f.mask is not None or f.matte is not None or f.pixels is not None for f in frames):
        return
    home = home_of(parsed.path)
    above = [p for p in Path(os.path.abspath(frames[0].path)).parents if p.is_relative_to(home) and p != home]
    place = next(filter(Path.is_dir, (p / "masks" for p in (*above, parsed.path))), None)
    if place is not None and parsed.source in BUILT_IN and parsed.source not in _WITHOUT_MASKS:
        add_masks(parsed, place, given=False)


def _read(path: Path, kind: str | None, read: Callable[[Path], ParsedScene] | None = None) -> ParsedScene:
    """By the reader given, by that of the kind, or by that of the most telling file on disk."""
    if kind is not None and kind not in kinds():
        raise UserError(
            f"kind is {kind!r}, expected one of {', '.join(kinds())}; a format of your own is known where {MODULES} "
            "names the module of its reader"
        )
    if not path.exists():
        raise UserError(f"{path}: there is no such folder")
    if read is not None:
        return read(path)
    given, path = path, _unpacked(path)
    known, is_file = readers(), path.is_file()
    places = {name: (path if r.opens(path) else None) if is_file else r.find(path) for name, r in known.items()}
    found = {name: place for name, place in places.items() if place is not None}
    if kind is not None and kind not in found:
        raise UserError(
            f"{path}: there is no data of the kind {kind!r} here (found: {', '.join(found) or 'nothing known'})"
        )
    if not found and is_file:
        raise UserError(f"{path}: expected a folder, or a .json, .xml, .csv or .r3d file of poses")
    if not found:
        raise UserError(
            f"{path}: no posed images found; looked for {', '.join(r.help for r in known.values())}; "
            "`nerf poses` finds the poses of photos that have none"
        )
    first, *others = found
    chosen = kind or first
    try:
        parsed = known[chosen].read(found[chosen])
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if chosen in BUILT_IN:
            raise
        raise UserError(
            f"{found[chosen]}: the reader of {chosen} (from outside) failed ({type(error).__name__}: {brief(error)})"
        ) from error
    if chosen in BUILT_IN:
        refuse_outside(parsed, path)
    if kind is None and not is_file:
        preferred = f", preferred to {', '.join(others)}, which is there too" if others else ""
        inside = f" from {path.relative_to(given)}/ in it" if path != given else ""
        parsed.notes.insert(0, f"read as {first}{inside}{preferred}")
    return parsed
