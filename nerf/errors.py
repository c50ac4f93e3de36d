"""How the package talks to its user: one clear sentence, never a traceback for a user's mistake."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, NamedTuple


class UserError(Exception):
    """Something the user can put right: what is wrong, where, what was expected and what to do, in one sentence.

    The command line prints the message alone and exits with status 2; from Python it is an ordinary exception.

    >>> try:
    ...     nerf.load("no/such/folder")
    ... except nerf.UserError as error:
    ...     print(error)
    no/such/folder...
    """


class BadValue(UserError, ValueError):
    """A value that cannot be used where it entered; whoever read it from a file catches it and names the file."""


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
    """BadValue for the first that is not in its range; of a tuple, each of its numbers is. prefix: before its name."""
    for name, allowed in ranges.items():
        for value in given if isinstance(given := values[name], (tuple, list)) else (given,):
            if not allowed.holds(value):
                shown = name.replace("_", "-") if prefix == "--" else name
                raise BadValue(f"{prefix}{shown} is {value!r}, expected {allowed}")


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
    with suppress(OSError, ValueError):  # nobody reads on, or the stream is closed: no reason to end what is under way
        print(f"nerf: {message}", file=sys.stderr, flush=True)
