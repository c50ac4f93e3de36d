#!/usr/bin/env python3
"""Make a street of 12 x 40 metres: the scene on which blocks of a large scene are measured.

    pip install numpy pillow embreex                 (embreex: needed by scripts that make scenes only)
    python scripts/make_street.py --out DIR          300 views of 320x200 to train on, 48 to test (some minutes)

What is written, all of it ours, seeded and deterministic:
    transforms.json, images/         pinhole cameras (OpenGL camera-to-world, metres, z up), JPEG, and the split
    points.ply                       sparse points as a capture has them: 8000, each off by a centimetre
    truth.ply                        the true surface
    seen.ply                         points of it that at least three training views show, 4 cm apart

Two rows of houses with doors, windows and gutters, a road with kerbs, cars, trees, lamps and boxes; light as in
scripts/studio.py, everything as matt as chalk. Photos are taken from both pavements, at eye height.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from studio import Array, Coat, World, coat, hashed, mix, noise, sky, soft, to_srgb, write_ply

LENGTH, HALF_WIDTH = 40.0, 6.0  # metres: x from 0 on, y to either side
ROAD, KERB = 3.2, 0.14  # half its width; height of the pavements
ANGLE = math.radians(75)  # horizontal field of view
STATIONS, EYE = 75, 1.6  # on each pavement; metres above the road
N_TEST = 48
SPARSE, OFF = 8000, 0.01  # points, and how far each is off
FEWEST, APART = 3, 0.04  # views that show what counts as seen; metres between its points
Random = np.random.Generator


class Bricks:
    """Boxes and other closed pieces of one triangle mesh, each with a colour of its own."""

    def __init__(self) -> None:
        self.vertices: list[Array] = []
        self.faces: list[NDArray] = []
        self.colours: list[Array] = []
        self.kinds: list[NDArray] = []  # of each face: which paint
        self.n = 0

    def add(self, vertices: Array, faces: NDArray, colour: tuple[float, ...], kind: int) -> None:
        self.vertices.append(vertices)
        self.faces.append(faces + self.n)
        self.colours.append(np.tile(np.asarray(colour, np.float64), (len(faces), 1)))
        self.kinds.append(np.full(len(faces), kind))
        self.n += len(vertices)

    def box(self, low: tuple[float, ...], high: tuple[float, ...], colour: tuple[float, ...], kind: int = 0) -> None:
        corners = np.array([[(low, high)[i >> k & 1][k] for k in range(3)] for i in range(8)], np.float64)
        quads = ((0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5))
        faces = np.array([[q[a] for a in t] for q in quads for t in ((0, 1, 2), (0, 2, 3))])
        self.add(corners, faces, colour, kind)

    def blob(self, centre: tuple[float, ...], size: tuple[float, ...], colour: tuple[float, ...], kind: int) -> None:
        """An ellipsoid with bumps."""
        rings, around = 12, 20
        v, u = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.arange(around) * 2 * np.pi / around, indexing="ij")
        p = np.stack([np.sin(v) * np.cos(u), np.sin(v) * np.sin(u), np.cos(v)], -1).reshape(-1, 3)
        p *= 0.85 + 0.3 * noise(p * 2.5 + np.asarray(centre))[:, None]
        i = np.arange(rings * around)
        row, col = i // around, i % around
        a, b = row * around + col, row * around + (col + 1) % around
        faces = np.concatenate([np.stack([a, a + around, b], 1), np.stack([b, a + around, b + around], 1)])
        self.add(p * np.asarray(size) + np.asarray(centre), faces, colour, kind)


WALL, GROUND, LEAVES, PLAIN = range(4)


def build(random: Random) -> Bricks:
    b = Bricks()
    grey = (0.24, 0.24, 0.25)
    b.box((-30, -ROAD, -0.5), (LENGTH + 30, ROAD, 0), grey, GROUND)
    for side in (-1, 1):
        ends = sorted((side * ROAD, side * 30))
        b.box((-30, ends[0], -0.5), (LENGTH + 30, ends[1], KERB), (0.45, 0.43, 0.40), GROUND)
        x = -4.0
        while x < LENGTH + 4:
            x = house(b, random, x, side)
        for k in range(7):
            furniture(b, random, 2 + 6 * k + random.uniform(-1.5, 1.5), side)
    for k in range(6):
        car(b, random, 3 + 6.5 * k + random.uniform(-1, 1), (-1) ** k)
    return b


def house(b: Bricks, random: Random, x: float, side: int) -> float:
    """One house whose front begins at x; where the next one does."""
    width, height = random.uniform(4.5, 7.0), random.uniform(5.0, 8.5)
    tone = random.uniform(0.25, 0.75)
    colour = tuple(np.clip(tone + random.uniform(-0.18, 0.18, 3), 0.08, 0.9))
    front = HALF_WIDTH + random.uniform(0.0, 0.35)

    def part(x0: float, x1: float, out: float, deep: float, z0: float, z1: float, c: tuple, kind: int = PLAIN) -> None:
        ys = sorted((side * (front - out), side * (front + deep)))
        b.box((x0, ys[0], z0), (x1, ys[1], z1), c, kind)

    part(x, x + width, 0, 8, 0, height, colour, WALL)
    part(x, x + width, 0.25, 0, height - 0.3, height + 0.05, tuple(0.6 * c for c in colour))
    n = int(width // 1.7)
    for floor in range(int(height // 2.7)):
        z = KERB + 2.7 * floor
        for k in range(n):
            left = x + (k + 0.5) * width / n - 0.45
            shade = tuple(random.uniform(0.05, 0.35, 3))
            if floor == 0 and k == n // 2:
                part(left, left + 0.9, 0.05, 0, z, z + 2.1, tuple(random.uniform(0.05, 0.5, 3)))
                part(left - 0.1, left + 1.0, 0.4, 0, KERB, KERB + 0.12, (0.5, 0.5, 0.48))
                continue
            part(left - 0.1, left + 1.0, 0.10, 0, z + 0.85, z + 0.95, (0.7, 0.7, 0.68))
            part(left, left + 0.9, 0.04, 0, z + 0.95, z + 2.2, shade)
            part(left + 0.42, left + 0.48, 0.07, 0, z + 0.95, z + 2.2, (0.8, 0.8, 0.78))
    if random.uniform() < 0.5:
        part(x + 0.3, x + width - 0.3, 1.0, 0, 2.55, 2.65, tuple(random.uniform(0.1, 0.8, 3)), WALL)
    return x + width


def furniture(b: Bricks, random: Random, x: float, side: int) -> None:
    y, what = side * (ROAD + 0.5), random.integers(4)
    if what == 0:
        b.box((x - 0.09, y - 0.09, 0), (x + 0.09, y + 0.09, 2.3), (0.25, 0.17, 0.1), WALL)
        b.blob((x, y, 3.0), (1.0, 0.9, 1.1), tuple(random.uniform((0.08, 0.26, 0.04), (0.18, 0.36, 0.14))), LEAVES)
    elif what == 1:
        b.box((x - 0.05, y - 0.05, 0), (x + 0.05, y + 0.05, 4.0), (0.1, 0.12, 0.14), PLAIN)
        b.box((x - 0.2, y - 0.2, 4.0), (x + 0.2, y + 0.2, 4.4), (0.8, 0.78, 0.7), PLAIN)
    elif what == 2:
        b.box((x - 0.3, y - 0.25, 0), (x + 0.3, y + 0.25, 1.1), tuple(random.uniform(0.1, 0.7, 3)), WALL)
    else:
        b.box((x - 0.8, y - 0.2, KERB), (x + 0.8, y + 0.25, 0.6), (0.4, 0.25, 0.12), WALL)
        b.blob((x, y, 0.8), (0.75, 0.22, 0.35), (0.2, 0.35, 0.12), LEAVES)


def car(b: Bricks, random: Random, x: float, side: int) -> None:
    colour, y = tuple(random.uniform(0.05, 0.7, 3)), side * (ROAD - 1.0)
    b.box((x - 2.0, y - 0.8, 0.25), (x + 2.0, y + 0.8, 0.85), colour, PLAIN)
    b.box((x - 1.1, y - 0.7, 0.85), (x + 1.3, y + 0.7, 1.4), tuple(0.25 * c + 0.05 for c in colour), PLAIN)
    b.box((x - 1.0, y - 0.68, 1.4), (x + 1.2, y + 0.68, 1.45), colour, PLAIN)
    for end in (-1.3, 1.3):
        b.box((x + end - 0.3, y - 0.82, 0), (x + end + 0.3, y + 0.82, 0.55), (0.04, 0.04, 0.045), PLAIN)


def world_of(b: Bricks) -> World:
    colours = np.concatenate(b.colours)

    def wall(p: Array, faces: NDArray, _: Array) -> Coat:
        """Courses of bricks that differ, with mortar."""
        along, course = p[:, 0] + p[:, 1], np.floor(p[:, 2] / 0.2)
        brick = np.floor((along + 0.2 * (course % 2)) / 0.4)
        base = colours[faces] * (0.75 + 0.5 * hashed(brick, course, np.floor(colours[faces, 0] * 97))[:, None])
        edge = np.minimum(p[:, 2] / 0.2 % 1 * 0.2, (along + 0.2 * (course % 2)) / 0.4 % 1 * 0.4)
        return coat(mix((0.55, 0.53, 0.5), base, soft(0.02, 0.02, edge)) * (0.85 + 0.3 * noise(p * 6)[:, None]), 1.0)

    def ground(p: Array, faces: NDArray, _: Array) -> Coat:
        stone = hashed(np.floor(p[:, 0] / 0.6), np.floor(p[:, 1] / 0.6))
        paved = (np.abs(p[:, 1]) > ROAD).astype(float)
        line = (1 - soft(0.06, 0.02, np.abs(p[:, 1]))) * (p[:, 0] % 3 < 1.6) * (1 - paved)
        rough = 0.6 + 0.5 * noise(p * 1.3) + 0.35 * (noise(p * 11) - 0.5)
        base = colours[faces] * (rough * (1 - paved * 0.35 * (1 - stone)))[:, None]
        return coat(mix(base, (0.8, 0.8, 0.75), line), 1.0)

    def leaves(p: Array, faces: NDArray, _: Array) -> Coat:
        return coat(colours[faces] * (0.4 + 1.2 * noise(p * 14))[:, None], 1.0)

    def plain(p: Array, faces: NDArray, _: Array) -> Coat:
        return coat(colours[faces] * (0.9 + 0.2 * noise(p * 5))[:, None], 1.0)

    vertices, faces = np.concatenate(b.vertices), np.concatenate(b.faces)
    return World(vertices, faces, np.concatenate(b.kinds), [wall, ground, leaves, plain], gloss=False, spacing=0.3)


def poses(random: Random, n_test: int) -> tuple[Array, NDArray]:
    """Camera-to-world [n,4,4] (OpenGL) and which are for testing [n]: from both pavements, two views at each station,
    ahead and across; those for testing in between."""
    found, test = [], []

    def take(x: float, y: float, yaw: float, is_test: bool) -> None:
        pitch = math.radians(random.uniform(-10, 14))
        forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)])
        right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(right, forward), -forward], 1)
        pose[:3, 3] = x, y, KERB + EYE + random.uniform(-0.2, 0.2)
        found.append(pose)
        test.append(is_test)

    def yaw(side: int, across: bool) -> float:
        """Across the street, or along it either way; a little to each side."""
        if across:
            return -side * math.radians(90 + random.uniform(-35, 35))
        return math.radians(random.choice((0, 180)) + random.uniform(-40, 40))

    for side in (-1, 1):
        for k in range(STATIONS):
            x, y = (k + 0.5) * LENGTH / STATIONS, side * (ROAD + random.uniform(1.2, 1.7))
            for across in (True, False):
                take(x, y, yaw(side, across), False)
        for k in range(n_test // 2):
            x, y = (k + 0.5) * 2 * LENGTH / n_test, side * (ROAD + random.uniform(1.2, 1.7))
            take(x, y, yaw(side, k % 2 == 0), True)
    return np.stack(found), np.array(test)


def hits(world: World, pose: Array, width: int, height: int, step: int) -> Array:
    """Points [n,3] that a view shows at every so-many-th pixel."""
    focal = width / 2 / math.tan(ANGLE / 2)
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    d = np.stack([(x + 0.5 - width / 2) / focal, (height / 2 - y - 0.5) / focal, -np.ones(x.shape)], -1).reshape(-1, 3)
    d = (d / np.linalg.norm(d, axis=1, keepdims=True)) @ pose[:3, :3].T
    o = np.broadcast_to(pose[:3, 3], d.shape)
    found = world.scene.run(o.astype(np.float32), d.astype(np.float32), output=1, query="INTERSECT")
    hit = found["primID"] >= 0
    return o[hit] + found["tfar"][hit, None].astype(np.float64) * d[hit]


def seen(world: World, views: Array, width: int, height: int) -> Array:
    """One point [n,3] in each cube of APART that FEWEST views show from within 10 m, along the street's length."""
    cubes, points, owners = [], [], []
    for i, pose in enumerate(views):
        p = hits(world, pose, width, height, 1)
        p = p[(p[:, 0] > -1) & (p[:, 0] < LENGTH + 1) & (np.linalg.norm(p - pose[:3, 3], axis=1) < 10)]
        cube, first = np.unique(np.floor(p / APART).astype(np.int64), axis=0, return_index=True)
        cubes.append(cube)
        points.append(p[first])
        owners.append(np.full(len(cube), i))
    cube, p = np.concatenate(cubes), np.concatenate(points)
    _, first, counts = np.unique(cube, axis=0, return_index=True, return_counts=True)
    return p[first[counts >= FEWEST]]


def write_points(path: Path, points: Array) -> None:
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
    head += "".join(f"property float {c}\n" for c in "xyz") + "end_header\n"
    path.write_bytes(head.encode() + points.astype("<f4").tobytes())


def make(out: Path, width: int, height: int, n_test: int, samples: int, every: int) -> None:
    random = np.random.default_rng(7)
    bricks = build(random)
    world = world_of(bricks)
    print(f"{len(world.faces)} triangles", flush=True)
    views, test = poses(random, n_test)
    views, test = views[::every], test[::every]
    (out / "images").mkdir(parents=True, exist_ok=True)
    frames, focal = [], width / 2 / math.tan(ANGLE / 2)
    y, x = np.mgrid[:height, :width]
    d = np.stack([(x + 0.5 - width / 2) / focal, (height / 2 - y - 0.5) / focal, -np.ones(x.shape)], -1).reshape(-1, 3)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    for i, pose in enumerate(views):
        name = f"images/{'test' if test[i] else 'train'}_{i:03d}.jpg"
        rgba = world.photograph(pose, width, ANGLE, samples, height).astype(np.float64) / 255
        behind = to_srgb(1 - np.exp(-1.15 * sky(d @ pose[:3, :3].T))).reshape(height, width, 3)
        rgb = rgba[..., :3] * rgba[..., 3:] + behind * (1 - rgba[..., 3:])
        Image.fromarray(np.round(rgb * 255).astype(np.uint8)).save(out / name, quality=95)
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
        print(f"\r{i + 1}/{len(views)} ", end="", flush=True)
    print()
    lens = {"camera_model": "PINHOLE", "w": width, "h": height, "fl_x": focal, "fl_y": focal}
    lens |= {"cx": width / 2, "cy": height / 2, "ply_file_path": "points.ply"}
    names = {s: [f["file_path"] for f, t in zip(frames, test, strict=True) if t == (s == "test")] for s in SPLITS}
    content = lens | {"frames": frames} | {f"{s}_filenames": names[s] for s in SPLITS}
    (out / "transforms.json").write_text(json.dumps(content, indent=1) + "\n")
    shown = np.concatenate([hits(world, pose, width, height, 8) for pose in views[~test]])
    near = shown[(np.abs(shown - [LENGTH / 2, 0, 0]) < [LENGTH, 12, 20]).all(1)]
    sparse = near[random.choice(len(near), min(SPARSE, len(near)), replace=False)]
    write_points(out / "points.ply", sparse + random.normal(scale=OFF, size=sparse.shape))
    write_points(out / "seen.ply", seen(world, views[~test], width, height))
    corners = world.vertices[world.faces].reshape(-1, 3)  # each face its own, in its colour
    colours = np.round(to_srgb(np.concatenate(bricks.colours)) * 255).astype(np.uint8).repeat(3, axis=0)
    write_ply(out / "truth.ply", corners, np.arange(len(corners)).reshape(-1, 3), colours)


SPLITS = ("train", "test")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--width", type=int, default=320, help="pixels")
    parser.add_argument("--height", type=int, default=200, help="pixels")
    parser.add_argument("--test-views", type=int, default=N_TEST)
    parser.add_argument("--samples", type=int, default=2, help="sub-pixels per pixel side")
    parser.add_argument("--every", type=int, default=1, help="only every so-many-th view")
    a = parser.parse_args()
    make(a.out, a.width, a.height, a.test_views, a.samples, a.every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
