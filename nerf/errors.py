"""How the package talks to its user: one clear sentence, never a traceback for a user's mistake, and plain text alone,
whatever is in the names and values that files bring."""

from __future__ import annotations

import math
import sys
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, NamedTuple

_JOINERS = "\u200c\u200d"  # formatting characters that some scripts and emoji need
_SPECIAL = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, formatting (the direction of writing), half of a pair, line breaks


def printable(text: object) -> str:
    r"""The text with everything that a terminal or a page would obey instead of showing it written as an escape:
    control characters, line breaks, changes of the direction of writing, bytes of names that are no UTF-8.

    >>> from nerf.errors import printable
    >>> print(printable("a\x1b[31m.png"), printable("Größe.jpg"), printable("caf\udce9.jpg"))
    a\x1b[31m.png Größe.jpg caf\xe9.jpg
    """
    return "".join(c if c.isprintable() or not _is_special(c) else _escaped(c) for c in str(text))


def _is_special(c: str) -> bool:
    return c not in _JOINERS and unicodedata.category(c) in _SPECIAL


def _escaped(c: str) -> str:
    byte = ord(c) - 0xDC00  # Python keeps a byte that is no UTF-8 as U+DC80 to U+DCFF
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else c.encode("unicode_escape").decode("ascii")


class UserError(Exception):
    """Something the user can put right: what is wrong, where, what was expected and what to do, in one sentence.

    The command line prints the message alone and exits with status 2; from Python it is an ordinary exception.

    >>> try:
    ...     nerf.load("no/such/folder")
    ... except nerf.UserError as error:
    ...     print(error)
    no/such/folder...
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class BadValue(UserError, ValueError):
    """A value that cannot be used where it entered; whoever read it from a file catches it and names the file."""


class MissingPackage(UserError):
    """Nothing is wrong with the file: what reads it is not installed."""


# What Python raises where data are of other types or sizes than the code takes them for; caught where data are what is
# to blame, never around code that can be wrong by itself.
MISFITS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError)


class Range(NamedTuple):
    """The numbers that a setting may be: from `low` to `high`, `low` itself only if not `above`."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    optional: bool = False  # None may be given too
    many: bool = False  # a list or tuple of such numbers

    def holds(self, value: Any) -> bool:
        """Whether a value is such a number; True and False are none."""
        if value is None:
            return self.optional
        fits = isinstance(value, Integral if self.whole else Real) and not isinstance(value, bool)
        return fits and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        start = f"{'above' if self.above else 'from'} {self.low:.12g}"
        end = " up" if self.high == math.inf else f"{', at most' if self.above else ' to'} {self.high:.12g}"
        return f"{'a whole number' if self.whole else 'a number'} {start}{end}{', or None' if self.optional else ''}"


def check_numbers(values: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "") -> None:
    """BadValue for the first that is not in its range. prefix: before its name."""
    for name, allowed in ranges.items():
        given = values[name]
        for value in given if allowed.many and isinstance(given, tuple | list) else (given,):
            if not allowed.holds(value):
                if prefix == "--":  # an option that is left out has no value to name
                    name, allowed = name.replace("_", "-"), allowed._replace(optional=False)
                raise BadValue(f"{prefix}{name} is {value!r}, expected {allowed}")


def check_record(record: Any, ranges: Mapping[str, Range]) -> None:
    """`check_numbers` of a dataclass as it is made; numbers of numpy become those of Python, which files can hold."""
    check_numbers(vars(record), ranges, f"{type(record).__name__}.")
    for name in ranges:
        if hasattr(value := getattr(record, name), "item"):
            object.__setattr__(record, name, value.item())


def brief(error: BaseException | str) -> str:
    """What an error of a library says, short and in one line, to be quoted in a sentence of ours."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120] or type(error).__name__


def note(message: str) -> None:
    """Print one line for the user to standard error (standard output is kept for results)."""
    warn(f"nerf: {message}")


def warn(line: str) -> None:
    """Print one line to standard error as it is, but for what a terminal would obey."""
    with suppress(OSError, ValueError):  # nobody reads on, or the stream is closed: no reason to end what is under way
        print(encodable(printable(line), sys.stderr), file=sys.stderr, flush=True)


def say(*words: object) -> None:
    """Print results, words with blanks between as `print` does, to standard output; line breaks are kept."""
    text = " ".join(map(str, words))
    with suppress(OSError, ValueError):
        print(encodable("\n".join(map(printable, text.split("\n"))), sys.stdout))


def encodable(text: str, stream: object) -> str:
    """The text, with escapes for what the stream's encoding has no letter for."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
