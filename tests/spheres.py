"""Panoramas of a room with textured walls, for tests: the colour of every ray is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from captures import texture
from PIL import Image

HALF = np.array([3.0, 2.5, 1.4])  # of the room, about the world's origin
METRES = 6.4  # that a picture takes: more than any wall is wide, so that nothing is there twice


def pose(k: int, n: int, lean: float = 0.05) -> np.ndarray:
    """[3,4] OpenGL camera-to-world of panorama k of n: on an oval, turned as it comes, nearly upright, z up."""
    g, angle = np.random.default_rng(k), 2 * np.pi * k / n
    centre = np.array([1.2 * np.cos(angle), 0.7 * np.sin(angle), 0.1 + 0.2 * np.sin(2 * angle)])
    up = np.array([*(lean * g.normal(size=2)), 1.0])
    up /= np.linalg.norm(up)
    yaw = 1.7 * angle + 0.3 * g.normal()
    back = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    back -= (back @ up) * up
    back /= np.linalg.norm(back)
    return np.stack([np.cross(up, back), up, back, centre], axis=1)


def walls(smooth: bool = False) -> list[np.ndarray]:
    """The pictures of the six walls; smooth: what a small field learns in a few hundred steps."""
    if not smooth:
        return [texture(k) for k in range(6)]
    return [
        np.asarray(Image.fromarray(texture(k).astype(np.uint8)).resize((4, 4)).resize((512, 512), 3)) for k in range(6)
    ]


def room(pictures: list[np.ndarray], origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Colours [...,3] float 0..255 that rays see from within, in world directions [...,3]."""
    with np.errstate(divide="ignore"):
        t = (np.sign(directions) * HALF - origin) / directions
    axis = np.nanargmin(np.where(t > 0, t, np.inf), axis=-1)
    hit = origin + np.take_along_axis(t, axis[..., None], axis=-1) * directions
    colours = np.zeros(directions.shape)
    for wall, picture in enumerate(pictures):
        here = (axis == wall // 2) & (np.take_along_axis(directions, axis[..., None], -1)[..., 0] > 0) == (
            wall % 2 == 1
        )
        here &= axis == wall // 2
        at = (np.delete(hit[here], wall // 2, axis=-1) + 10) / METRES * len(picture)
        i, f = np.floor(at).astype(int), (at % 1)[:, :, None]

        def texel(x: np.ndarray, y: np.ndarray, of: np.ndarray = picture) -> np.ndarray:
            return of[y % len(of), x % len(of)].astype(np.float64)

        upper = texel(i[:, 0], i[:, 1]) * (1 - f[:, 0]) + texel(i[:, 0] + 1, i[:, 1]) * f[:, 0]
        lower = texel(i[:, 0], i[:, 1] + 1) * (1 - f[:, 0]) + texel(i[:, 0] + 1, i[:, 1] + 1) * f[:, 0]
        colours[here] = upper * (1 - f[:, 1]) + lower * f[:, 1]
    return colours


def sphere_directions(width: int) -> np.ndarray:
    """Of the pixels of a panorama width x width / 2: [h,w,3], OpenGL camera. Longitude grows to the right of -z."""
    longitude = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    latitude = (0.5 - (np.arange(width // 2) + 0.5) / (width // 2)) * np.pi
    longitude, latitude = np.meshgrid(longitude, latitude)
    x, z = np.sin(longitude) * np.cos(latitude), -np.cos(longitude) * np.cos(latitude)
    return np.stack([x, np.sin(latitude), z], axis=-1)


def panorama(pictures: list[np.ndarray], c2w: np.ndarray, width: int) -> np.ndarray:
    """[width / 2,width,3] uint8."""
    seen = room(pictures, c2w[:, 3], sphere_directions(width) @ c2w[:, :3].T)
    return np.clip(seen + 0.5, 0, 255).astype(np.uint8)


def write_panoramas(folder: Path, n: int, width: int, smooth: bool = False) -> list[np.ndarray]:
    """sphere_00.png ... in the folder; their poses."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, poses = walls(smooth), [pose(k, n) for k in range(n)]
    for k, c2w in enumerate(poses):
        Image.fromarray(panorama(pictures, c2w, width)).save(folder / f"sphere_{k:02d}.png")
    return poses
