"""The curve of a training, PSNR over time, drawn as SVG."""

from __future__ import annotations

import math
from typing import Any


def curve_points(training: dict[str, Any]) -> list[tuple[float, float]]:
    """(seconds of training, PSNR) from training.json: "curve", a list of {"seconds", "psnr", ...}; finite ones only."""
    entries = [entry for entry in training.get("curve", []) if isinstance(entry, dict)]
    points = [(entry.get("seconds"), entry.get("psnr")) for entry in entries]
    numbers = [(float(s), float(p)) for s, p in points if isinstance(s, (int, float)) and isinstance(p, (int, float))]
    return sorted(point for point in numbers if all(map(math.isfinite, point)))


def curve_svg(points: list[tuple[float, float]], width: int = 760, height: int = 280) -> str:
    """A line of (seconds, PSNR) points with axes, as inline SVG."""
    left, right, top, bottom = 46, 14, 12, 34
    minutes = points[-1][0] > 180
    xs, ys = [s / 60 if minutes else s for s, _ in points], [p for _, p in points]
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
    # A curve of thousands of points looks the same with some hundred.
    some = sorted({round(k * (len(xs) - 1) / 400) for k in range(401)})
    line = " ".join(f"{x_of(xs[k]):.1f},{y_of(ys[k]):.1f}" for k in some)
    parts.append(f'<polyline class="curve" points="{line}"/>')
    unit = "minutes" if minutes else "seconds"
    parts.append(f'<text x="{width - right}" y="{height - 2}" text-anchor="end">{unit}</text>')
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
