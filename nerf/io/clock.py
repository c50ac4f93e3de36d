"""How long a training or a fit takes: a number of steps, or a time, from which the first steps settle that number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nerf.errors import Range, UserError, check_record, note

# What is said of how long, wherever it is asked for.
LENGTH = {
    "steps": Range(1, 1e9, whole=True, optional=True),
    "minutes": Range(0, 1e6, above=True, optional=True),
}

SEED = Range(-(1 << 40), 1 << 40, whole=True)


@dataclass(frozen=True)
class Length:
    """How long to train: a number of steps or a time in minutes, one of the two, above zero (UserError otherwise).

    >>> Length(minutes=2.0).seconds
    120.0
    """

    steps: int | None = None
    minutes: float | None = None

    @staticmethod
    def of(steps: int | None, minutes: float | None) -> Length | None:
        """None where neither is given, as where a run goes on."""
        return None if steps is None and minutes is None else Length(steps, minutes)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise UserError("say how long: either steps or minutes, not both")
        check_record(self, LENGTH)

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else f"{self.minutes:g} minutes"

    @property
    def seconds(self) -> float:
        """The time to fill, 0 where a number of steps was given."""
        return 60.0 * (self.minutes or 0.0)


def resumed(
    asked: Length | None, before: Length, step: int, seconds: float, total: int | None
) -> tuple[Length, int | None]:
    """How long a run that goes on at `step`, after so many seconds, is to be: the length, and its number of steps (None
    where the clock is still to settle it).

    asked: for now, None: as before; before, total: what was asked for at first, and the steps that it came to. With the
    same length the run goes on as if it had never stopped. With another one, which must not be over (UserError), its
    schedules follow that one from here on.

    >>> resumed(Length(steps=40), Length(steps=20), 20, 1.5, 20)
    (Length(steps=40, minutes=None), 40)
    """
    if asked is None or asked == before or (total is not None and asked.steps == total):
        return before, total
    if asked.steps is not None and asked.steps < step:
        raise UserError(f"{step} steps are done already: give --steps above that, or none to go on as before")
    if asked.minutes is not None and asked.seconds <= seconds:
        done = f"{seconds / 60:.3g} minutes are done already"
        raise UserError(f"{done}: give --minutes above that, or none to go on as before")
    note(f"another length than before ({before}): the learning rate follows the new one from here on")
    return asked, asked.steps


def _same(step: int) -> float:
    return 1.0


@dataclass(frozen=True)
class Clock:
    """Settles, once a part of a time is over, how many steps fill it.

    >>> Clock(warm_up=0.1, margin=0.0).steps_to_fill(60.0, [(20, 6.0)])  # 20 steps took 6 seconds
    200
    """

    warm_up: float  # share of the time that passes before the number of steps is settled
    margin: float  # share of the time that is left over: rather early than late
    recent: float = 1.0  # share of the time, up to now, that says how long steps take, at most

    def steps_to_fill(
        self,
        seconds: float,
        marks: Sequence[tuple[int, float]],
        cost: Callable[[int], float] = _same,
        past_cost: Callable[[int], float] = _same,
    ) -> int | None:
        """The number of steps, those done included, that fills so many seconds; None before the warm-up is over.

        marks: (steps done, seconds passed) at times until now; steps are measured from the first mark in the second
        half, for the first of a process are slow, and within what is recent. cost: what a step takes relative to
        others, by its index, from now on; past_cost: of those that are measured.
        """
        step, passed = marks[-1]
        if passed < self.warm_up * seconds:
            return None
        begin = max(passed / 2, passed - self.recent * seconds)
        first, since = next((mark for mark in marks if mark[1] > begin), (0, 0.0))
        if first >= step:  # no mark lies between the half and now
            first, since = 0, 0.0
        unit = (passed - since) / sum(past_cost(k) for k in range(first, step))
        left = (1.0 - self.margin) * seconds - passed
        while left > 0:
            step += 1
            left -= unit * cost(step)
        return step
