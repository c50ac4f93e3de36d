"""A mesh in few bytes: 16-bit positions, octahedral normals and texture coordinates, 8-bit harmonics, in one block."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Positions are finer towards the middle, where the cameras look, than far away in an open scene: steps of asinh.
BEND = 5.0


def pack(parts: dict[str, NDArray]) -> tuple[bytes, dict[str, list[int]]]:
    """Arrays one after another, each from a multiple of four bytes on; and name -> [offset, how many numbers]."""
    data, layout = bytearray(), {}
    for name, part in parts.items():
        layout[name] = [len(data), part.size]
        data += np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes()
        data += bytes(-len(data) % 4)
    return bytes(data), layout


def quantised_positions(points: NDArray[np.float64]) -> tuple[NDArray[np.uint16], float]:
    """Points [v,3] as 16 bits a coordinate, and the largest coordinate `half`: a number q stands for
    half sinh(BEND (q / 32767.5 - 1)) / sinh(BEND)."""
    half = float(np.abs(points).max(initial=0.0)) or 1.0
    bent = np.arcsinh(points / half * math.sinh(BEND)) / BEND
    return np.round((bent + 1) * 32767.5).astype(np.uint16), half


def octahedral(normals: NDArray[np.float64]) -> NDArray[np.int16]:
    """Unit vectors [v,3] as places in a square [v,2], of 32767: the octahedron, its lower half folded outwards.
    Source: Cigolle et al., "A Survey of Efficient Representations for Independent Unit Vectors", 2014."""
    flat = normals / np.abs(normals).sum(axis=1, keepdims=True).clip(1e-30)
    x, y = flat[:, 0], flat[:, 1]
    below = flat[:, 2] < 0
    folded = np.stack([(1 - np.abs(y)) * np.copysign(1, x), (1 - np.abs(x)) * np.copysign(1, y)], axis=1)
    return np.round(np.where(below[:, None], folded, flat[:, :2]) * 32767).astype(np.int16)


def quantised_texture_coordinates(uv: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Texture coordinates [v,2] in [0,1], of 65535."""
    return np.round(np.clip(uv, 0, 1) * 65535).astype(np.uint16)


def quantised_harmonics(coefficients: NDArray[np.float32]) -> tuple[NDArray[np.int8], list[float]]:
    """Coefficients [v,k,3] as 8 bits, and what 127 stands for of each of the k: all but one in a thousand lie within,
    and those are cut off."""
    scales = [float(np.quantile(np.abs(part), 0.999)) or 1.0 for part in np.moveaxis(coefficients, 1, 0)]
    steps = coefficients / np.asarray(scales, np.float32)[:, None]
    return np.round(np.clip(steps, -1, 1) * 127).astype(np.int8), scales
