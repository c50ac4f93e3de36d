"""The Shepp-Logan head: its picture, and its exact projections, which no discrete operator has touched."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# density, half axes, centre (x, y up), turn in degrees; the modified contrasts of Toft 1996, table B.3
ELLIPSES = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.8740, 0.0, -0.0184, 0.0),
    (-0.2, 0.1100, 0.3100, 0.22, 0.0, -18.0),
    (-0.2, 0.1600, 0.4100, -0.22, 0.0, 18.0),
    (0.1, 0.2100, 0.2500, 0.0, 0.35, 0.0),
    (0.1, 0.0460, 0.0460, 0.0, 0.1, 0.0),
    (0.1, 0.0460, 0.0460, 0.0, -0.1, 0.0),
    (0.1, 0.0460, 0.0230, -0.08, -0.605, 0.0),
    (0.1, 0.0230, 0.0230, 0.0, -0.606, 0.0),
    (0.1, 0.0230, 0.0460, 0.06, -0.605, 0.0),
)


def picture(n: int, points: int = 8) -> NDArray[np.float64]:
    """[n,n] densities, each the mean of points^2 places in its pixel; the centre is pixel n // 2, as scikit-image's
    radon has it, and the head fills a circle of n // 2 pixels."""
    at = (np.arange(n * points) + 0.5) / points - 0.5 - n // 2
    x, y = at / (n // 2), -at[:, None] / (n // 2)
    total = np.zeros((n * points, n * points))
    for density, a, b, x0, y0, turn in ELLIPSES:
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        along, across = (x - x0) * cos + (y - y0) * sin, -(x - x0) * sin + (y - y0) * cos
        total += density * ((along / a) ** 2 + (across / b) ** 2 <= 1)
    return total.reshape(n, points, n, points).mean(axis=(1, 3))


def projections(n: int, angles: NDArray[np.float64], points: int = 16) -> NDArray[np.float32]:
    """[n, angles] exact line integrals in pixels, the mean over each detector's width; s = 0 at detector n // 2."""
    s = (((np.arange(n * points) + 0.5) / points - 0.5) - n // 2)[:, None] / (n // 2)
    theta = np.radians(angles)[None]
    total = np.zeros((n * points, len(angles)))
    for density, a, b, x0, y0, turn in ELLIPSES:
        off = s - x0 * np.cos(theta) - y0 * np.sin(theta)
        width = (a * np.cos(theta - np.radians(turn))) ** 2 + (b * np.sin(theta - np.radians(turn))) ** 2
        total += 2 * density * a * b * np.sqrt(np.maximum(width - off**2, 0)) / width
    return (total.reshape(n, points, -1).mean(axis=1) * (n // 2)).astype(np.float32)
