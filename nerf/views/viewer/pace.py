"""How large the next picture of a client is: small at once, larger while the view rests, within a budget of time."""

from __future__ import annotations

import math
from dataclasses import dataclass

QUIET = 0.15  # seconds without a move after which the view rests
SMALLEST = 48  # pixels along the shorter side
LONGEST = 1280  # pixels along the longer side of the largest picture
FIRST_RATE = 100_000.0  # rays a second, before anything was measured
_NEARLY = 0.7  # of the pixels of the largest picture: then rather that one at once
BUDGETS = (0.07, 0.4)  # seconds of a picture while the view moves, and when it has come to rest
BESIDE_TRAINING = (0.04, 0.3)  # the same where pictures get but a share of the time
_FINER = 4.0  # times the time of the one before: of each further picture, until the largest


@dataclass(frozen=True)
class Size:
    """A picture to render, and whether a finer one would follow it."""

    width: int
    height: int
    level: int
    last: bool


class Pace:
    """What is rendered next for one client, from its moves and from how fast pictures come.

    Levels of a picture: 0 while the view moves, 1 when it rests, then finer ones up to the largest. A move goes back to
    0; what is being rendered then is of no use any more, but for a picture of level 0, without whose end nothing would
    ever be seen.

    >>> pace = Pace()
    >>> pace.moved(now=0.0)
    >>> pace.next_size(0.0, 1600, 900).level
    0
    >>> pace.finished(0, seconds=0.02, rays=4000, turn=pace.turn)
    >>> pace.next_size(0.05, 1600, 900) is None, pace.next_size(0.2, 1600, 900).level
    (True, 1)
    """

    def __init__(self, longest: int | None = None, budgets: tuple[float, float] = BUDGETS) -> None:
        self.longest, self.budgets = LONGEST if longest is None else longest, budgets
        self.rate = FIRST_RATE  # rays a second
        self.turn = 0  # of the view: pictures of another turn are out of date
        self.level: int | None = 0  # of the next picture; None: the largest has been shown
        self.moved_at = -math.inf
        self._largest = False  # the next picture is to be the largest

    def moved(self, now: float) -> None:
        """The view has changed."""
        self.turn += 1
        self.level, self.moved_at, self._largest = 0, now, False

    def changed(self) -> None:
        """What is seen has changed, but not the view: the picture is rendered again as it is now, with no coarser one
        in between."""
        self.turn += 1
        self.level, self._largest = 1 if self.level is None else min(self.level, 1), False

    def refresh(self) -> None:
        """The same, of no hurry: what is being rendered is finished, and only a view at rest begins anew."""
        if self.level is None:
            self.level, self._largest = 1, True

    def wait(self, now: float) -> float | None:
        """Seconds until the next picture may begin; None: there is none to come."""
        if self.level is None:
            return None
        return 0.0 if self.level == 0 else max(0.0, self.moved_at + QUIET - now)

    def next_size(self, now: float, width: int, height: int) -> Size | None:
        """The picture to begin with now, for a window of so many pixels; None while there is none."""
        if self.level is None or self.wait(now) or width < 1 or height < 1:
            return None
        shrink = min(1.0, self.longest / max(width, height))
        most = width * shrink * (height * shrink)
        seconds = self.budgets[min(self.level, 1)] * _FINER ** max(self.level - 1, 0)
        pixels = most if self._largest else self.rate * seconds
        pixels = max(pixels, SMALLEST**2 * max(width, height) / min(width, height))
        last = pixels >= _NEARLY * most
        factor = math.sqrt(min(most if last else pixels, most) / (width * height))
        return Size(max(1, round(width * factor)), max(1, round(height * factor)), self.level, last)

    def cancelled(self, level: int, turn: int) -> bool:
        """Whether a picture that is under way is of no use any more."""
        return level > 0 and turn != self.turn

    def finished(self, level: int, seconds: float, rays: int, turn: int, last: bool = False) -> None:
        """A picture is there; the rate follows what it took."""
        if seconds > 0 and rays > 0:
            measured = min(max(rays / seconds, 1e3), 1e9)
            self.rate = math.exp(0.6 * math.log(self.rate) + 0.4 * math.log(measured))
        if turn == self.turn:
            self.level = None if last else level + 1
