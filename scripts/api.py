"""docs/api.md: every public name of nerf, with its signature, where it lies and what its docstring says.

`python scripts/api.py` writes the page anew; tests/test_docstrings.py says when it is stale, which makes it the record
of the public names and signatures too.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from rooms import ROOMS, room_of

import nerf

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
LONGEST = 110  # characters of a signature on one line

HEAD = """\
# Public API

Written by `python scripts/api.py` from the names in `nerf.__all__`; do not edit. All else may change without notice.
Examples assume `import nerf`, `import numpy as np` and `import torch`, and run as tests from the top of the repository.
Frames, units and names of tensors: [glossary](architecture.md#glossary).
"""


def signature(name: str, thing: Any, bound: bool = False) -> str:
    """`name(a: int, b: str = "x") -> T`, one argument a line where it is long."""
    found = inspect.signature(thing)
    parts = []
    kinds = [p.kind for p in found.parameters.values()]
    for i, p in enumerate(found.parameters.values()):
        if bound and i == 0 and p.name in ("self", "cls"):
            continue
        if p.kind is p.KEYWORD_ONLY and p.VAR_POSITIONAL not in kinds and "*" not in parts:
            parts.append("*")
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        text = stars + p.name
        if p.annotation is not p.empty:
            text += f": {_type(p.annotation)}"
        if p.default is not p.empty:
            text += (" = " if ": " in text else "=") + _value(p.default)
        parts.append(text)
    gives = "" if found.return_annotation in (found.empty, "None", None) else f" -> {_type(found.return_annotation)}"
    line = f"{name}({', '.join(parts)}){gives}"
    if len(line) <= LONGEST:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){gives}"


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _value(default: Any) -> str:
    if default is dataclasses.MISSING or type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
        return "..."
    if inspect.isfunction(default) or inspect.isclass(default):
        return default.__name__
    return re.sub(r" at 0x[0-9a-f]+", "", repr(default))


def prose(doc: str) -> str:
    """A docstring as Markdown: its examples as blocks, what Markdown would read as markup escaped."""
    out: list[str] = []
    inside = False
    for line in doc.splitlines():
        if line.lstrip().startswith(">>>") and not inside:
            out += ["", "```python"]
            inside = True
        elif inside and not line.strip():
            out += ["```"]
            inside = False
        if inside:
            out.append(line)
        else:
            out.append(re.sub(r"(?<!`)([*<>])(?![^`]*`[^`]*$)", r"\\\1", line) if "`" not in line else line)
    if inside:
        out.append("```")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def _own_doc(thing: Any) -> str:
    """The docstring that stands in the source; not the signature that a dataclass makes up."""
    doc = inspect.getdoc(thing) or ""
    return "" if inspect.isclass(thing) and re.match(rf"{thing.__name__}\(", doc) else doc


def entry(name: str) -> str:
    thing = getattr(nerf, name)
    file = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "").resolve().relative_to(ROOT).as_posix()
    lines = [f"### `nerf.{name}`", "", f"[{file}](../{file})", "", "```text"]
    if not inspect.isclass(thing):
        lines += [signature(name, thing), "```", "", prose(_own_doc(thing))]
        return "\n".join(lines)
    protocol = getattr(thing, "_is_protocol", False)
    plain = issubclass(thing, BaseException) or protocol
    lines += [f"class {name}" if plain else signature(name, thing), "```", "", prose(_own_doc(thing))]
    for key, member in vars(thing).items():
        what = inspect.unwrap(member.__func__) if isinstance(member, (staticmethod, classmethod)) else member
        if key.startswith("_") or not (inspect.isfunction(what) or isinstance(what, property)):
            continue
        doc = prose(_own_doc(member if not isinstance(member, (staticmethod, classmethod)) else what))
        if isinstance(what, property):
            gives = inspect.signature(what.fget).return_annotation if what.fget else ""
            title = f"{key}: {_type(gives)}"
        else:
            title = signature(key, what, bound=not isinstance(member, staticmethod))
        lines += ["", "```text", title, "```", *(["", doc] if doc else [])]
    return "\n".join(lines)


def page() -> str:
    """The whole page: a table of all names, then each room's."""
    by_room: dict[str, list[str]] = {room: [] for room in ROOMS}
    for name in sorted(nerf.__all__):
        by_room[room_of(getattr(nerf, name).__module__)].append(name)
    parts = [HEAD]
    for room, names in by_room.items():
        if names:
            parts.append(f"## {room}: {ROOMS[room][0]}\n")
            parts += [entry(name) + "\n" for name in names]
    return textwrap.dedent("\n".join(parts)).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE, len(nerf.__all__), "names")
