"""A scene from arrays: a striped ball is drawn from 24 places, trained on for some steps, and measured."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

import numpy as np

import nerf

SIZE, FOCAL, RADIUS = 64, 80.0, 0.8


def pose(azimuth: float, height: float) -> np.ndarray:
    """[4,4] camera to world of a camera 4 from the origin that looks at it; columns: right, up, backward, place."""
    eye = 4 * np.array([np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)])
    backward = eye / np.linalg.norm(eye)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(backward, right), backward, eye], axis=1)
    return c2w


def draw(c2w: np.ndarray) -> np.ndarray:
    """[h,w,4] float32: the ball as that camera sees it, transparent around it."""
    rows, cols = np.mgrid[:SIZE, :SIZE] + 0.5
    d = np.stack([(cols - SIZE / 2) / FOCAL, (SIZE / 2 - rows) / FOCAL, -np.ones((SIZE, SIZE))], axis=2)
    d = d / np.linalg.norm(d, axis=2, keepdims=True) @ c2w[:3, :3].T
    o = c2w[:3, 3]
    b = d @ o
    inside = b**2 - o @ o + RADIUS**2
    p = (o + (-b - np.sqrt(np.maximum(inside, 0)))[..., None] * d) / RADIUS
    colors = 0.5 + 0.4 * p * np.sign(np.sin(8 * p[..., 2:]))
    return np.concatenate([colors.clip(0, 1), (inside > 0)[..., None]], axis=2).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> float:
    """PSNR of the held-out views (dB)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args(argv)
    poses = [pose(2.4 * i, 0.9 * np.sin(1.7 * i)) for i in range(24)]
    scene = nerf.Scene.from_arrays(
        images=[draw(p) for p in poses],
        c2w=np.stack(poses),
        intrinsics=[FOCAL, FOCAL, SIZE / 2, SIZE / 2],
        splits={"train": range(3, 24), "test": range(3)},
    )
    print("\n".join(scene.notes))
    with tempfile.TemporaryDirectory() as out:
        model = nerf.train(scene, nerf.TrainConfig(steps=args.steps), out)
    psnr = nerf.evaluate(model, scene, show_progress=False).psnr
    print(f"{psnr:.2f} dB on held-out views after {args.steps} steps")
    return psnr


if __name__ == "__main__":
    main()
