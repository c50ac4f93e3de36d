"""The command line's usage mistakes in one sentence: tyro, which parses it, prints a box and exits."""

from __future__ import annotations

import re
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from nerf.errors import UserError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NONE = re.compile(r"\{None\}\|")  # beside the type of an option that may be left out


def parse(arguments: Any, argv: list[str], prog: str) -> Any:
    """The record that the arguments make; UserError in one sentence, with the nearest option and where help is."""
    import tyro

    said = StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(arguments, args=argv, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as exit:
        if exit.code != 2:  # --help
            raise
        raise UserError(f"{sentence(said.getvalue())} (`{prog} --help` lists all)") from None


def sentence(box: str) -> str:
    """What a box of tyro says, in one line; words that it does not know are left as they are."""
    lines = _COLOUR.sub("", box).splitlines() or ["the arguments cannot be read"]
    lines = lines[1:-1] if "╭" in lines[0] else lines[2:]  # else drawn without a frame
    parts: list[list[str]] = [[]]  # between its lines
    for line in lines:
        inner = line[2:].rstrip("│ ")
        if inner and not inner.strip("─-"):
            parts.append([])
        elif inner:
            parts[-1].append(inner)
    first, *rest = [part for part in parts if part] or [lines[:1]]
    if first[0].startswith("Missing from"):
        words = [f"; {line.split(',')[0].strip()}:" if _is_name(line) else line.strip() for line in first[1:]]
        return "missing " + " ".join(words).replace(" (required)", "").replace(" ; ", "; ").lstrip("; ")
    text = _NONE.sub("", " ".join(map(str.strip, first))).rstrip(".")
    if match := re.match(r"Error parsing (\S+): no type matching (.+?) could be instantiated from \[(.*?)\]", text):
        text = f"{match[1]}: expected {match[2].strip('{}')}, got {match[3] or 'nothing'}"
    if near := [part[1] for part in rest if part[0].startswith("Perhaps you meant") and len(part) > 1]:
        text += f"; did you mean {re.split('[ ,]', near[0].strip())[0]}?"
    others = [part[0] for part in rest if part[0].startswith("Available subcommands")]
    return "; ".join([text[:1].lower() + text[1:], *(words[:1].lower() + words[1:] for words in others)])


def _is_name(line: str) -> bool:
    """Whether this line of the box names an argument, and is not its help, which is indented further."""
    return len(line) - len(line.lstrip()) == 4
