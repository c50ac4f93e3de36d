"""The number of steps that fills a time: pure arithmetic, shared by trainings and fits."""

from __future__ import annotations

import pytest

from nerf.errors import UserError
from nerf.io.clock import Clock, Length

CLOCK = Clock(warm_up=0.1, margin=0.0)


@pytest.mark.parametrize("wrong", [{}, {"steps": 5, "minutes": 1.0}])
def test_either_steps_or_minutes(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="either steps or minutes"):
        Length(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0, expected a whole number from 1"),
        ({"minutes": 0.0}, "minutes is 0.0, expected a number above 0"),
    ],
)
def test_a_length_is_positive(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Length(**wrong)  # type: ignore[arg-type]


def test_nothing_is_settled_before_the_warm_up_is_over() -> None:
    assert CLOCK.steps_to_fill(100.0, [(5, 9.9)]) is None
    assert CLOCK.steps_to_fill(100.0, [(5, 10.0)]) == 50


def test_the_first_half_of_the_time_passed_is_not_measured() -> None:
    # 2 steps in the first 6 seconds, 10 in the next 5: two a second for the 89 seconds that are left
    assert CLOCK.steps_to_fill(100.0, [(2, 6.0), (12, 11.0)]) == 12 + 178
    assert CLOCK.steps_to_fill(100.0, [(2, 5.0), (10, 10.0)]) == 10 + 90  # no mark past the half: all of the time


def test_what_steps_cost_counts() -> None:
    dearer = CLOCK.steps_to_fill(100.0, [(10, 10.0)], cost=lambda step: 2.0)
    assert dearer == 10 + 45
    assert CLOCK.steps_to_fill(100.0, [(10, 10.0)], cost=lambda step: 2.0, past_cost=lambda step: 2.0) == 100


def test_the_margin_ends_early_and_a_time_that_is_over_adds_nothing() -> None:
    assert Clock(0.1, 0.03).steps_to_fill(100.0, [(10, 10.0)]) == 97
    assert CLOCK.steps_to_fill(1.0, [(1, 5.0)]) == 1
