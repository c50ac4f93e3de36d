"""How the package talks to its user: one clear sentence, never a traceback for a user's mistake."""

from __future__ import annotations

import sys


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


def brief(error: BaseException | str) -> str:
    """What an error of a library says, short and in one line, to be quoted in a sentence of ours."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120] or type(error).__name__


def note(message: str) -> None:
    """Print one line for the user to standard error (standard output is kept for results)."""
    print(f"nerf: {message}", file=sys.stderr, flush=True)
