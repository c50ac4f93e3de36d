"""Numbers that rows of a benchmark are held to, and the table that says how they did."""

from __future__ import annotations

from typing import Any, NamedTuple

LESS_IS_BETTER = ("s", "GB", "%", "dB lost", "wrong", "degrees")  # units; of the others more is


class Target(NamedTuple):
    what: str
    row: str
    key: str  # dotted path into the row's result
    scale: float
    reach: float
    aim: float | None
    unit: str
    known: str = ""
    below: str = ""  # a row: how far under its value this one's lies


def value_of(result: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, or None. A colon in a path stands for a dot in a key."""
    value: Any = result
    for key in path.split("."):
        value = value.get(key.replace(":", ".")) if isinstance(value, dict) else None
    return value


def against_targets(rows: list[dict[str, Any]], targets: tuple[Target, ...]) -> list[list[str]]:
    """The lines of a table: measured, what to reach, what to aim for, and which of them it is."""
    results = {row["row"]: row["result"] for row in rows}
    lines = [["what", "measured", "reach", "aim", "", "known"]]
    for t in targets:
        value = value_of(results.get(t.row, {}), t.key)
        if t.below:
            other = value_of(results.get(t.below, {}), t.key)
            value = None if value is None or other is None else other - value
        value = None if value is None else value / t.scale
        less = t.unit in LESS_IS_BETTER if t.aim is None else t.aim < t.reach
        sign = -1 if less else 1
        verdict = "not run"
        if value is not None:
            reached, aimed = sign * (value - t.reach) >= 0, t.aim is not None and sign * (value - t.aim) >= 0
            verdict = "aim" if aimed else "reached" if reached else "missed"
        goals = [f"{goal:g} {t.unit}" if goal is not None else "" for goal in (t.reach, t.aim)]
        shown = "-" if value is None else f"{value:.3f} {t.unit}" if abs(value) < 1 else f"{value:.2f} {t.unit}"
        lines.append([t.what, shown, *goals, verdict, t.known])
    return lines
