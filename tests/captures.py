"""Photos with known poses for tests of nerf.capture: a corner of three textured walls, seen by a pinhole camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, FOCAL = 320, 240, 300.0


def texture(seed: int, size: int = 512) -> np.ndarray:
    """[size,size,3] float in 0..255: noise of all scales, so that every spot looks different."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size, 3), np.float32)
    for octave in range(2, 9):
        n = 2**octave
        small = Image.fromarray((rng.random((n, n, 3)) * 255).astype(np.uint8))
        total += np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32) * 0.75**octave
    total -= total.min()
    return total / total.max() * 255


WALLS = [texture(k) for k in range(3)]


def pose(k: int, n: int) -> np.ndarray:
    """[3,4] OpenGL camera-to-world of photo k of n: an arc around the corner, upright, z up."""
    angle = np.deg2rad(15 + 60 * k / max(n - 1, 1))
    position = np.array([2.6 * np.cos(angle), 2.6 * np.sin(angle), 1.1 + 0.3 * np.sin(3 * angle)])
    backward = position - np.array([0.35, 0.35, 0.5])
    backward /= np.linalg.norm(backward)
    right = np.cross([0, 0, 1], backward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(backward, right), backward, position], axis=1)


def draw(c2w: np.ndarray, width: int = WIDTH, height: int = HEIGHT, focal: float = FOCAL) -> np.ndarray:
    """[h,w,3] uint8 of the walls x = 0, y = 0 and the floor z = 0, each 2 x 2 units of texture, black beyond."""
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    d = np.stack([x / focal, -y / focal, -np.ones_like(x)], axis=-1) @ c2w[:, :3].T
    nearest, image = np.full(x.shape, np.inf), np.zeros((height, width, 3), np.float32)
    for axis, wall in enumerate(WALLS):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = -c2w[axis, 3] / d[..., axis]
        hit = c2w[:, 3] + t[..., None] * d
        uv = np.delete(hit, axis, axis=-1) / 2
        here = (t > 0) & (t < nearest) & ((uv >= 0) & (uv < 1)).all(axis=-1)
        image[here] = _sample(wall, uv[here])
        nearest[here] = t[here]
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _sample(wall: np.ndarray, uv: np.ndarray) -> np.ndarray:
    at = uv * (len(wall) - 1.001)
    i, f = at.astype(int), (at % 1)[:, :, None].astype(np.float32)
    rows = wall[i[:, 1], i[:, 0]] * (1 - f[:, 0]) + wall[i[:, 1], i[:, 0] + 1] * f[:, 0]
    below = wall[i[:, 1] + 1, i[:, 0]] * (1 - f[:, 0]) + wall[i[:, 1] + 1, i[:, 0] + 1] * f[:, 0]
    return rows * (1 - f[:, 1]) + below * f[:, 1]


def write_photos(folder: Path, n: int = 8, suffix: str = ".png") -> list[np.ndarray]:
    """photo_00 ... in the folder; their poses."""
    folder.mkdir(parents=True, exist_ok=True)
    poses = [pose(k, n) for k in range(n)]
    for k, c2w in enumerate(poses):
        Image.fromarray(draw(c2w)).save(folder / f"photo_{k:02d}{suffix}")
    return poses
