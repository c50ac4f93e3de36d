"""What is changed in the viewer and kept in the run: edits.json, which `mesh` and `render` then use."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.errors import MISFITS, BadValue, Range, UserError, brief, check_numbers, note
from nerf.io.files import write_file
from nerf.io.json_text import parse_json
from nerf.io.outputs import check_output
from nerf.views.viewer.regions import Region, Vector, vector

EDITS_FILE = "edits.json"
_FORMAT, _VERSION = "nerf-edits", 1
MOST_UNDONE = 200  # steps that are remembered
ALL_EDITS = ("crop", "hidden", "left_out", "up", "scale")
SCALE = Range(0, 1e12, above=True)


@dataclass(frozen=True)
class Edits:
    """Everything in the world frame of the photos' poses. scale: lengths are shown, and meshes written, so many times
    as long; unit: what they then are in. left_out: names of photos that training is not to learn from.

    >>> Edits().empty, Edits(scale=0.5, unit="m").in_words()
    (True, 'lengths times 0.5 (m)')
    """

    crop: Region | None = None
    hidden: tuple[Region, ...] = ()
    up: Vector | None = None
    ground: Vector | None = None  # a point on it
    scale: float = 1.0
    unit: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return self == Edits()

    def only(self, names: Sequence[str]) -> Edits:
        """Those of ALL_EDITS with these names; what goes with one goes along."""
        along = {"up": ("up", "ground"), "scale": ("scale", "unit")}
        return Edits(**{part: getattr(self, part) for name in names for part in along.get(name, (name,))})

    @property
    def shape(self) -> tuple[Region | None, tuple[Region, ...]]:
        """What changes which parts of the scene there are."""
        return self.crop, self.hidden

    def up_direction(self) -> Tensor | None:
        """[3] float64 of unit length, world; None: as the cameras say."""
        return None if self.up is None else torch.tensor(self.up, dtype=torch.float64)

    def in_words(self) -> str:
        """One line for whoever uses them elsewhere."""
        n, m = len(self.hidden), len(self.left_out)
        parts = ["cropped"] * (self.crop is not None) + [f"{n} region{'s' * (n > 1)} hidden"] * (n > 0)
        parts += [f"{m} photo{'s' * (m > 1)} left out"] * (m > 0)
        parts += ["up direction set"] * (self.up is not None)
        if self.scale != 1.0:
            parts.append(f"lengths times {self.scale:.6g}{f' ({self.unit})' if self.unit else ''}")
        return ", ".join(parts) or "nothing changed"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` is the way back."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "crop": None if self.crop is None else self.crop.to_dict(),
            "hidden": [region.to_dict() for region in self.hidden],
            "up": None if self.up is None else list(self.up),
            "ground": None if self.ground is None else list(self.ground),
            "scale": self.scale,
            "unit": self.unit,
            "left_out": list(self.left_out),
        }

    @staticmethod
    def from_dict(d: Any) -> Edits:
        """BadValue for what is none."""
        if not isinstance(d, dict) or d.get("format") != _FORMAT:
            raise BadValue(f'expected "format": "{_FORMAT}"')
        if d.get("version") != _VERSION:
            raise BadValue(f"version {d.get('version')!r}, expected {_VERSION}")
        crop, hidden = d.get("crop"), d.get("hidden") or []
        if crop is not None and (crop := Region.from_dict(crop)).shape != "box":
            raise BadValue("crop: expected a box")
        up, ground = (None if d.get(name) is None else vector(d[name], name) for name in ("up", "ground"))
        if up is not None:
            length = sum(x * x for x in up) ** 0.5
            if not length > 1e-9:
                raise BadValue("up has no length")
            up = (up[0] / length, up[1] / length, up[2] / length)
        scale, unit = d.get("scale", 1.0), d.get("unit", "")
        check_numbers({"scale": scale}, {"scale": SCALE})
        if not isinstance(unit, str) or len(unit) > 20:
            raise BadValue("unit: expected a short text")
        left_out = d.get("left_out") or []
        if not isinstance(left_out, list) or not all(isinstance(name, str) for name in left_out):
            raise BadValue("left_out: expected a list of names of photos")
        regions = tuple(Region.from_dict(r) for r in hidden)
        return Edits(crop, regions, up, ground, float(scale), unit, tuple(sorted(set(left_out))))


def read_edits(folder: Path) -> Edits:
    """The edits of a run's folder; none where there is no such file. UserError where it is damaged."""
    path = folder / EDITS_FILE
    if not path.is_file():
        return Edits()
    try:
        return Edits.from_dict(parse_json(path.read_bytes()))
    except (OSError, *MISFITS) as error:
        raise UserError(
            f"{path}: holds no edits of the viewer ({brief(error)}): put it right or remove it; commands that have "
            "--no-edits can go without it"
        ) from None


def edits_of(folder: Path, wanted: bool = True, uses: Sequence[str] = ALL_EDITS) -> Edits:
    """The edits of a run's folder for another verb, which says which of them it uses, and which it does not; none where
    they are not wanted."""
    edits, path = read_edits(folder) if wanted else Edits(), folder / EDITS_FILE
    used = edits.only(uses)
    if not used.empty:
        note(f"with the edits of {path} ({used.in_words()}); --no-edits leaves them out")
    if not (unused := edits.only([name for name in ALL_EDITS if name not in uses])).empty:
        note(f"without the edits of {path} that change nothing here ({unused.in_words()})")
    return edits


def write_edits(folder: Path, edits: Edits) -> None:
    """Replace the edits of a folder. UserError where that cannot be done."""
    path = folder / EDITS_FILE
    check_output(path, overwrite=True)
    write_file(path, json.dumps(edits.to_dict(), indent=1) + "\n")


@dataclass
class History:
    """The edits as they are, with what was before and what was undone; every change is saved and told to all.

    save: what keeps them. told: called after each change.

    >>> history = History()
    >>> history.change(scale=2.0)
    >>> history.undo(), history.now.scale, history.redo(), history.now.scale
    (True, 1.0, True, 2.0)
    """

    now: Edits = field(default_factory=Edits)
    save: Callable[[Edits], None] = lambda edits: None
    told: list[Callable[[], None]] = field(default_factory=list)
    before: list[Edits] = field(default_factory=list)
    after: list[Edits] = field(default_factory=list)

    def change(self, **changes: Any) -> None:
        """The edits with these fields changed; saved before anybody is told."""
        self._set(replace(self.now, **changes))

    def undo(self) -> bool:
        """Take the last change back; False where there is none."""
        return self._step(self.before, self.after)

    def redo(self) -> bool:
        """Make the change again that was undone last; False where there is none."""
        return self._step(self.after, self.before)

    def _step(self, there: list[Edits], back: list[Edits]) -> bool:
        if not there:
            return False
        self.save(there[-1])
        back.append(self.now)
        self.now = there.pop()
        self._tell()
        return True

    def _set(self, edits: Edits) -> None:
        if edits == self.now:
            return
        self.save(edits)
        self.before = [*self.before, self.now][-MOST_UNDONE:]
        self.now, self.after = edits, []
        self._tell()

    def _tell(self) -> None:
        for tell in list(self.told):
            tell()
