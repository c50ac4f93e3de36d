"""The curve of a training, PSNR over time, drawn as SVG."""

from __future__ import annotations

import math
from typing import Any


def curves(training: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """(seconds of training, PSNR) from training.json, of the pixels learnt from ("psnr") and of held-out photos
    ("held_out"): those with two points or more."""
    found = {name: curve_points(training, name) for name in ("psnr", "held_out")}
    return {name: points for name, points in found.items() if len(points) > 1}


def curve_points(training: dict[str, Any], name: str = "psnr") -> list[tuple[float, float]]:
    """One curve from training.json: "curve", a list of {"seconds", "psnr", ...}; finite numbers only."""
    entries = [entry for entry in training.get("curve", []) if isinstance(entry, dict)]
    points = [(entry.get("seconds"), entry.get(name)) for entry in entries]
    numbers = [(float(s), float(p)) for s, p in points if isinstance(s, (int, float)) and isinstance(p, (int, float))]
    return sorted(point for point in numbers if all(map(math.isfinite, point)))


def curve_svg(found: dict[str, list[tuple[float, float]]], width: int = 760, height: int = 280) -> str:
    """The lines of `curves`, at least one, with axes, as inline SVG."""
    left, right, top, bottom = 46, 14, 12, 34
    minutes = max(points[-1][0] for points in found.values()) > 180
    unit = 60.0 if minutes else 1.0
    xs, ys = zip(*((s / unit, p) for points in found.values() for s, p in points), strict=True)
    x_ticks, y_ticks = nice_ticks(0.0, max(xs)), nice_ticks(min(ys), max(ys))
    x_high = max(max(xs), 1e-9)
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))
    y_span = max(y_high - y_low, 1e-9)

    def x_of(x: float) -> float:
        return left + (width - left - right) * x / x_high

    def y_of(y: float) -> float:
        return top + (height - top - bottom) * (1 - (y - y_low) / y_span)

    parts = []
    for y in y_ticks:
        parts.append(f'<line class="rule" x1="{left}" x2="{width - right}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y_of(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    parts += [
        f'<text x="{x_of(x):.1f}" y="{height - bottom + 18}" text-anchor="middle">{x:g}</text>'
        for x in x_ticks
        if x <= x_high * 1.0001
    ]
    for name, points in found.items():
        # A curve of thousands of points looks the same with some hundred.
        some = [points[k] for k in sorted({round(k * (len(points) - 1) / 400) for k in range(401)})]
        line = " ".join(f"{x_of(s / unit):.1f},{y_of(p):.1f}" for s, p in some)
        kind = "curve" if name == "psnr" else "held-out"
        parts.append(f'<polyline class="{kind}" points="{line}"/>')
    words = "minutes" if minutes else "seconds"
    parts.append(f'<text x="{width - right}" y="{height - 2}" text-anchor="end">{words}</text>')
    parts.append(f'<text x="{left + 8}" y="{top + 17}">PSNR, dB</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="PSNR over time">{"".join(parts)}</svg>'


def nice_ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About n round numbers (1, 2 or 5 times a power of ten apart) that enclose low and high."""
    span = high - low
    if not span > 0:
        return [low, low + 1]
    rough = span / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]
