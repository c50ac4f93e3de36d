#!/usr/bin/env python3
"""Make data/sample: a wind-up lantern robot, modelled and photographed by this script alone.

The scene that the demo and the tests train on. Everything in it is ours, seeded and deterministic: the solid is built
from lathes, tubes and boolean cuts, painted by procedural textures, lit, and photographed by a small ray caster.

    pip install numpy pillow embreex manifold3d      (embreex, manifold3d: needed by this script only)
    python scripts/make_sample.py                    writes data/sample (a few minutes on two cores)
    python scripts/make_sample.py --out DIR          writes somewhere else
    python scripts/make_sample.py --check            makes it again and compares every file, byte for byte
    python scripts/make_sample.py --check --views 2  the same for mesh, cameras and the first two views of each split

What is written:
    transforms_train.json, transforms_test.json      Blender format: camera_angle_x, camera-to-world (OpenGL camera)
    train/r_000.png ..., test/r_000.png ...          RGBA, 8 bits, sRGB, straight alpha, 16 samples a pixel
    mesh.ply                                         the true surface: world frame, closed, vertex colours = albedo

World frame: z up, the robot looks along -y, about 2.6 units tall around the origin. Light and camera are those of
scripts/studio.py. The same platform and library versions give the same bytes.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from studio import Array, Coat, Paint, World, cameras, coat, hashed, mix, noise, shoot, soft, to_srgb, write_ply

try:
    import manifold3d
except ImportError as error:
    sys.exit(
        f"make_sample.py needs {error.name}, which nothing else in this project does: pip install embreex manifold3d"
    )

Solid: Any = manifold3d.Manifold

SIZE = 320  # pixels, width and height
N_TRAIN, N_TEST = 60, 12
SAMPLES = 4  # sub-pixels per pixel side
DISTANCE = 4.2  # of every camera from the centre it looks at
CENTRE = np.array([0.02, 0.0, -0.04])
FILL = 1.44  # radius around the centre that just fits the picture

# ------------------------------------------------------------------------------------------------ solids


def solid(vertices: Array, faces: NDArray) -> Any:
    """A closed triangle mesh, as a manifold."""
    made = Solid(
        manifold3d.Mesh(vert_properties=np.asarray(vertices, np.float32), tri_verts=np.asarray(faces, np.uint32))
    )
    if made.status() != manifold3d.Error.NoError or made.volume() <= 0:
        raise ValueError(f"not a closed, outward solid: {made.status()}, volume {made.volume():.3g}")
    return made


def grid_faces(rows: int, cols: int, close_rows: bool) -> NDArray:
    """Triangles of a grid of vertices [rows, cols] that wraps along columns, and along rows if asked."""
    i, j = np.meshgrid(np.arange(rows if close_rows else rows - 1), np.arange(cols), indexing="ij")
    a, b = i * cols + j, i * cols + (j + 1) % cols
    c, d = (i + 1) % rows * cols + j, (i + 1) % rows * cols + (j + 1) % cols
    return np.stack([np.stack([a, b, d], -1), np.stack([a, d, c], -1)], 2).reshape(-1, 3)


def capped(vertices: Array, rows: int, cols: int, bottom: Array, top: Array) -> Any:
    """A stack of rings [rows, cols, 3], closed by a fan at either end."""
    n = rows * cols
    k = np.arange(cols)
    low = np.stack([np.full(cols, n), (k + 1) % cols, k], -1)
    high = np.stack([np.full(cols, n + 1), n - cols + k, n - cols + (k + 1) % cols], -1)
    return solid(
        np.concatenate([vertices.reshape(-1, 3), [bottom, top]]),
        np.concatenate([grid_faces(rows, cols, False), low, high]),
    )


def lathe(profile: list[tuple[float, float]], cols: int = 64) -> Any:
    """Turn a profile of (radius, z), from bottom to top, around the z axis."""
    points = np.array(profile)
    angle = np.arange(cols) * 2 * math.pi / cols
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(cols)], -1)
    vertices = points[:, None, :1] * ring + points[:, None, 1:] * np.array([0, 0, 1.0])
    return capped(vertices, len(points), cols, np.array([0, 0, points[0, 1]]), np.array([0, 0, points[-1, 1]]))


def slab(radius: float, low: float, high: float, bevel: float, rows: int = 4) -> list[tuple[float, float]]:
    """Profile of a disc with rounded edges."""
    turn = np.linspace(0, math.pi / 2, rows)
    lower = [(radius - bevel + bevel * math.sin(t), low + bevel - bevel * math.cos(t)) for t in turn]
    return lower + [(r, high + low - z) for r, z in reversed(lower)]


def ball(radius: float, cols: int = 24) -> Any:
    turn = np.linspace(0, math.pi, cols // 2 + 1)[1:-1]
    return lathe([(radius * math.sin(t), -radius * math.cos(t)) for t in turn], cols)


def ring(radius: float, thickness: float, cols: int = 64, around: int = 12) -> Any:
    """A torus around the z axis."""
    a = np.arange(cols)[:, None] * 2 * math.pi / cols
    b = np.arange(around)[None] * 2 * math.pi / around
    r = radius + thickness * np.cos(b)
    vertices = np.stack([r * np.cos(a), r * np.sin(a), thickness * np.sin(b) + 0 * a], -1)
    return solid(vertices.reshape(-1, 3), grid_faces(cols, around, True)[:, ::-1])


def tube(path: Array, radius: float, around: int = 10) -> Any:
    """A round wire along a polyline [n,3], with flat ends; the frame is carried along without twist."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross(tangent[0], np.eye(3)[np.argmin(np.abs(tangent[0]))])
    angle = np.arange(around) * 2 * math.pi / around
    rings = []
    for point, t in zip(path, tangent, strict=True):
        side = side - t * (side @ t)
        side /= np.linalg.norm(side)
        rings.append(point + radius * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * np.cross(t, side)))
    return capped(np.array(rings), len(path), around, path[0], path[-1])


def rod(start: tuple[float, float, float], end: tuple[float, float, float], radius: float, around: int = 12) -> Any:
    return tube(np.linspace(start, end, 4), radius, around)


def pebble(size: tuple[float, float, float], power: float, cols: int = 36) -> Any:
    """A rounded box: the superellipsoid |x/a|^p + |y/b|^p + |z/c|^p = 1."""
    low = np.linspace(-math.pi / 2, math.pi / 2, cols // 2 + 1)[1:-1, None]
    a = np.arange(cols)[None] * 2 * math.pi / cols
    unit = np.stack([np.cos(low) * np.cos(a), np.cos(low) * np.sin(a), np.sin(low) + 0 * a], -1)
    unit /= (np.abs(unit) ** power).sum(-1, keepdims=True) ** (1 / power)
    return capped(unit * np.array(size), cols // 2 - 1, cols, np.array([0, 0, -size[2]]), np.array([0, 0, size[2]]))


def gear(radius: float, thickness: float, teeth: int, holes: int, hub: float) -> Any:
    """A cog around the z axis, with a hub and a ring of round windows."""
    made = Solid.cylinder(thickness, radius, radius, 72, True)
    for k in range(teeth):
        made += (
            Solid.cube((0.16 * radius, 0.30 * math.pi * radius / teeth * 2, thickness), True)
            .translate((radius * 1.04, 0, 0))
            .rotate((0, 0, 360 * k / teeth))
        )
    for k in range(holes):
        made -= (
            Solid.cylinder(1, 0.19 * radius, 0.19 * radius, 28, True)
            .translate((0.6 * radius, 0, 0))
            .rotate((0, 0, 360 * (k + 0.5) / holes))
        )
    return (made + Solid.cylinder(thickness * 2.2, hub, hub, 28, True)) - Solid.cylinder(
        1, hub * 0.5, hub * 0.5, 24, True
    )


HEAD = 0.70  # height of the head's centre


def robot() -> list[tuple[str, Any]]:
    """Every part with the name of what it is painted with, in the world frame."""
    parts: list[tuple[str, Any]] = []

    def add(paint: str, part: Any) -> None:
        parts.append((paint, part))

    # the plinth: a low brick tower with a planked floor, a dark rim above and below, and a pressure gauge at the front
    add("brick", lathe([(0.68, -1.22), (0.68, -0.93)], 80))
    add("walnut", lathe(slab(0.73, -1.27, -1.20, 0.03), 80))
    add(
        "walnut",
        lathe(slab(0.72, -0.96, -0.885, 0.025), 80) - Solid.cylinder(0.2, 0.645, 0.645, 80).translate((0, 0, -0.91)),
    )
    add("planks", lathe([(0.66, -0.98), (0.66, -0.905)], 80))
    add("dial", Solid.cylinder(0.1, 0.135, 0.135, 48).rotate((90, 0, 0)).translate((0, -0.63, -1.08)))
    add("brass", ring(0.14, 0.024, 48).rotate((90, 0, 0)).translate((0, -0.73, -1.08)))
    add(
        "red",
        rod((0.0, -0.738, -1.08), (0.06, -0.738, -0.99), 0.009, 8) + ball(0.016, 12).translate((0, -0.735, -1.08)),
    )

    # feet and bellows
    for side in (-1, 1):
        add("red", pebble((0.17, 0.27, 0.11), 3.2).translate((side * 0.24, -0.07, -0.83)))
        turns = np.linspace(-0.76, -0.34, 43)
        add(
            "steel",
            lathe([(0.088 + 0.022 * math.cos(2 * math.pi * (z + 0.76) / 0.06), z) for z in turns], 24).translate(
                (side * 0.24, 0, 0)
            ),
        )
        for k in range(5):
            add("brass", ball(0.02, 10).translate((side * 0.24 + 0.07 * (k - 2), -0.325 + 0.012 * (k - 2) ** 2, -0.83)))

    # the body is a lantern: two turned plates, a cage of rods with two hoops, and a paper globe behind them
    add(
        "walnut",
        lathe(
            [
                (0.30, -0.40),
                (0.40, -0.395),
                (0.46, -0.37),
                (0.455, -0.34),
                (0.43, -0.325),
                (0.46, -0.31),
                (0.50, -0.28),
                (0.50, -0.25),
                (0.47, -0.225),
                (0.40, -0.22),
            ]
        ),
    )
    add("band", lathe(slab(0.50, 0.27, 0.43, 0.022), 80))
    add("brass", lathe(slab(0.44, 0.42, 0.46, 0.012)))
    for k in range(14):
        a = 2 * math.pi * (k + 0.5) / 14
        add(
            "brass",
            rod(
                (0.44 * math.cos(a), 0.44 * math.sin(a), -0.25),
                (0.44 * math.cos(a), 0.44 * math.sin(a), 0.30),
                0.0165,
                10,
            ),
        )
    for z in (-0.08, 0.13):
        add("steel", ring(0.44, 0.012, 64, 8).translate((0, 0, z)))
    globe = np.linspace(0.12, math.pi - 0.12, 25)
    add("paper", lathe([(0.315 * math.sin(t) ** 0.8, 0.025 - 0.285 * math.cos(t)) for t in globe]))

    # the neck is a spring around a post, and the head a ribbed copper can with a crest
    turns = np.linspace(0, 1, 90)
    add(
        "steel",
        tube(
            np.stack(
                [0.15 * np.cos(turns * 9 * math.pi), 0.15 * np.sin(turns * 9 * math.pi), 0.455 + 0.10 * turns], -1
            ),
            0.014,
            8,
        ),
    )
    add("brass", rod((0, 0, 0.42), (0, 0, 0.60), 0.07, 20))
    can: list[tuple[float, float]] = [
        (0.30, 0.53),
        (0.345, 0.535),
        (0.355, 0.545),
        (0.355, 0.575),
        (0.34, 0.585),
        (0.34, 0.80),
        (0.355, 0.81),
        (0.355, 0.835),
    ]
    for t in np.linspace(0.03, math.pi / 2 - 0.12, 34):
        r = 0.345 - 0.009 * (math.cos(t * 32) > 0.55)
        can.append((r * math.cos(t), 0.84 + 0.80 * r * math.sin(t)))
    add("head", lathe(can, 64))
    crest = Solid.cylinder(0.026, 0.425, 0.425, 72, True)
    for k in range(9):
        crest -= Solid.cylinder(1, 0.026, 0.026, 20, True).translate((0.378, 0, 0)).rotate((0, 0, 18 + 18 * k))
    add(
        "red",
        crest.trim_by_plane((0, 1, 0), 0.07)
        .rotate((0, 0, 0))
        .rotate((90, 0, 0))
        .rotate((0, 0, 90))
        .translate((0, 0, HEAD + 0.06)),
    )
    for side in (-1, 1):
        add("brass", rod((side * 0.17, -0.29, 0.715), (side * 0.18, -0.40, 0.72), 0.098, 40))
        add(
            "brass",
            ring(0.098, 0.02, 40).rotate((90, 0, 0)).rotate((0, 0, side * 5)).translate((side * 0.18, -0.395, 0.72)),
        )
        add("eye", ball(0.09, 32).scale((1, 0.55, 1)).translate((side * 0.18, -0.39, 0.72)))
        # ears: spoked wheels
        ear = ring(0.135, 0.02, 48).translate((0, 0, 0.06)) + Solid.cylinder(0.14, 0.035, 0.045, 24)
        for k in range(6):
            ear += rod(
                (0, 0, 0.06), (0.135 * math.cos(k * math.pi / 3), 0.135 * math.sin(k * math.pi / 3), 0.06), 0.011, 8
            )
        add("steel", ear.rotate((0, 90 * side, 0)).translate((side * 0.325, 0.03, 0.72)))
        # antennae
        bend = np.linspace(0, 1, 12)
        add("steel", tube(np.stack([side * (0.16 + 0.14 * bend**2), 0.06 + 0 * bend, 1.0 + 0.25 * bend], -1), 0.011, 8))
        add("red", ball(0.038, 20).translate((side * 0.30, 0.06, 1.262)))
    # a mouth of bars in a frame
    frame = Solid.cube((0.26, 0.10, 0.085), True) - Solid.cube((0.22, 0.30, 0.05), True)
    for k in range(6):
        frame += rod(
            (0.22 * (k / 5 - 0.5) * 0.84, -0.03, -0.035), (0.22 * (k / 5 - 0.5) * 0.84, -0.03, 0.035), 0.0085, 8
        )
    add("brass", frame.translate((0, -0.335, 0.588)))

    # the wind-up key in its back
    key = rod((0, 0.45, 0.35), (0, 0.78, 0.35), 0.035, 20) + Solid.cylinder(0.05, 0.075, 0.075, 32).rotate(
        (-90, 0, 0)
    ).translate((0, 0.48, 0.35))
    for side in (-1, 1):
        key += ring(0.105, 0.034, 40).rotate((90, 0, 0)).scale((1.15, 0.8, 1)).translate((side * 0.135, 0.76, 0.35))
    add("brass", key)

    # arms: one hangs and ends in a claw, one holds up a cog
    for side, elbow, hand in (
        (-1, (-0.80, -0.02, 0.06), (-0.74, -0.36, -0.10)),
        (1, (0.84, -0.06, 0.22), (0.76, -0.26, 0.58)),
    ):
        shoulder = (side * 0.56, 0.0, 0.35)
        add("red", ball(0.105, 28).translate(shoulder))
        add("steel", rod(shoulder, elbow, 0.042, 16))
        add("red", ball(0.07, 24).translate(elbow))
        along = np.linspace(0, 1, 49)
        path = np.array(elbow) + along[:, None] * (np.array(hand) - elbow)
        add("steel", rod(elbow, hand, 0.036, 16))
        for t in along[8:-6:6]:
            add(
                "brass",
                ball(0.052, 18).scale((1, 1, 0.9)).translate(tuple(np.array(elbow) + t * (np.array(hand) - elbow))),
            )
        add("red", ball(0.062, 24).translate(tuple(path[-1])))
    claw = np.linspace(0.5, 2 * math.pi - 0.5, 33)
    grip = tube(np.stack([0.10 * np.sin(claw), 0.10 * np.cos(claw), 0 * claw], -1), 0.024, 10)
    add(
        "brass",
        grip.rotate((0, 0, 180)).translate((0, -0.12, 0)).rotate((-20, 0, 0)).translate((-0.735, -0.39, -0.115)),
    )
    add("brass", gear(0.20, 0.045, 14, 5, 0.05).rotate((90, 0, 0)).rotate((0, 0, 20)).translate((0.76, -0.28, 0.86)))
    add("steel", rod((0.76, -0.26, 0.58), (0.76, -0.28, 0.86), 0.021, 12))
    return parts


def build() -> tuple[Array, NDArray, NDArray]:
    """One closed surface: vertices [v,3] float32 values, faces [f,3], and which of PAINTS each face wears [f]."""
    paints = list(PAINTS)
    owner: dict[int, int] = {}
    originals = []
    for paint, part in robot():
        original = part.as_original()
        owner[original.original_id()] = paints.index(paint)
        originals.append(original)
    union = Solid.batch_boolean(originals, manifold3d.OpType.Add)
    union = max(union.decompose(), key=lambda piece: piece.num_tri())
    mesh = union.to_mesh()
    faces = np.asarray(mesh.tri_verts, np.int64)
    paint_of_face = np.empty(len(faces), np.int64)
    for k, original_id in enumerate(mesh.run_original_id):
        paint_of_face[mesh.run_index[k] // 3 : mesh.run_index[k + 1] // 3] = owner[original_id]
    return np.asarray(mesh.vert_properties[:, :3], np.float64), faces, paint_of_face


# ------------------------------------------------------------------------------------------------ paints


def brick(p: Array) -> Coat:
    around, tall = 34, 0.058
    row = np.floor((p[:, 2] + 1.2) / tall)
    u = np.arctan2(p[:, 1], p[:, 0]) / (2 * math.pi) * around + 0.5 * (row % 2)
    column = np.floor(u)
    inside = np.minimum(
        np.minimum(u - column, 1 - u + column) * 0.125,
        np.minimum((p[:, 2] + 1.2) / tall - row, row + 1 - (p[:, 2] + 1.2) / tall) * tall,
    )
    tone = hashed(column % around, row)
    colour = mix((0.42, 0.10, 0.045), (0.62, 0.24, 0.10), tone) * (0.7 + 0.5 * noise(p * 38))[:, None]
    return coat(mix((0.55, 0.52, 0.46), colour, soft(0.0065, 0.006, inside)), 0.7)


def grain(p: Array, ring_scale: float) -> Array:
    """Growth rings of a trunk that lies along x, bent by noise."""
    bent = p + 0.10 * np.stack(
        [0 * p[:, 0], noise(p * np.array([1.5, 4, 4])) - 0.5, noise(p * np.array([1.5, 4, 4]) + 9) - 0.5], -1
    )
    r = np.hypot(bent[:, 1] - 0.15, bent[:, 2] + 1.6) * ring_scale
    saw = r - np.floor(r)
    return np.clip(saw * saw * 0.8 + 0.35 * noise(p * np.array([6, 70, 70])), 0, 1)


def planks(p: Array) -> Coat:
    v = p[:, 1] / 0.128
    lane = np.floor(v)
    moved = p + np.stack([hashed(lane) * 7, lane * 0.31, hashed(lane, lane) * 0.9], -1)
    colour = mix((0.60, 0.36, 0.16), (0.30, 0.145, 0.055), grain(moved, 16)) * (0.75 + 0.5 * hashed(lane + 77))[:, None]
    gap = np.minimum(v - lane, 1 - v + lane) * 0.128
    end = p[:, 0] / 0.62 + hashed(lane + 5)
    gap = np.minimum(gap, np.abs(end - np.round(end)) * 0.62)
    return coat(mix((0.03, 0.02, 0.012), colour, soft(0.005, 0.006, gap)), 0.42)


def walnut(p: Array) -> Coat:
    return coat(mix((0.20, 0.085, 0.035), (0.055, 0.022, 0.010), grain(p, 19)), 0.30)


def brass(p: Array) -> Coat:
    worn = noise(p * 9) * 0.6 + noise(p * 31) * 0.4
    return coat(mix((0.80, 0.54, 0.20), (0.62, 0.38, 0.13), worn), 0.26 + 0.16 * worn, 1.0)


def steel(p: Array) -> Coat:
    worn = noise(p * 12)
    return coat(mix((0.58, 0.60, 0.63), (0.40, 0.42, 0.46), worn), 0.27 + 0.12 * worn, 1.0)


def red(p: Array) -> Coat:
    chips = soft(0.80, 0.05, noise(p * 24) * 0.7 + noise(p * 55) * 0.3)
    colour = mix((0.56, 0.035, 0.025), (0.42, 0.025, 0.025), noise(p * 7))
    return coat(mix(colour, (0.30, 0.26, 0.24), chips), 0.22 + 0.25 * chips)


LETTERS = {
    " ": "00000 00000 00000 00000 00000 00000 00000",
    "*": "00000 00100 10101 01110 10101 00100 00000",
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01110 10001 10000 10111 10001 10001 01110",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "01110 00100 00100 00100 00100 00100 01110",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "N": "10001 11001 11001 10101 10011 10011 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "W": "10001 10001 10001 10101 10101 11011 10001",
}
MOTTO = "LIGHT IN * PHOTOS IN * WORLD OUT * "


def band(p: Array) -> Coat:
    """Teal enamel with a motto in gold around it and a row of dots above and below."""
    bitmap = np.concatenate(
        [np.pad([[int(c) for c in row] for row in LETTERS[letter].split()], ((0, 0), (0, 1))) for letter in MOTTO], 1
    )
    u = (np.arctan2(p[:, 1], p[:, 0]) / (2 * math.pi) + 0.25) % 1 * bitmap.shape[1]
    v = (0.402 - p[:, 2]) / 0.0150
    inside = (v >= 0) & (v < 7)
    gold = np.where(
        inside, bitmap[np.clip(v.astype(int), 0, 6), np.minimum(u.astype(int), bitmap.shape[1] - 1)], 0
    ).astype(np.float64)
    gold *= np.hypot(p[:, 0], p[:, 1]) > 0.49
    gold = np.maximum(
        gold,
        np.maximum(
            soft(0.006, 0.004, 0.012 - np.abs(p[:, 2] - 0.413)), soft(0.006, 0.004, 0.012 - np.abs(p[:, 2] - 0.287))
        ),
    )
    enamel = mix((0.015, 0.16, 0.17), (0.02, 0.22, 0.20), noise(p * 8))
    return coat(mix(enamel, (0.83, 0.58, 0.22), gold), 0.20 + 0.12 * gold, gold)


def paper(p: Array) -> Coat:
    """A paper lantern: a lattice of diamonds in red and cream."""
    u = np.arctan2(p[:, 1], p[:, 0]) / (2 * math.pi) * 16
    v = (p[:, 2] + 0.3) * 16 * 0.55
    a, b = u + v, u - v
    cell = (np.floor(a) + np.floor(b)) % 2
    edge = np.minimum(np.abs(a - np.round(a)), np.abs(b - np.round(b))) * 0.1
    colour = mix((0.90, 0.62, 0.22), (0.80, 0.20, 0.05), cell)
    dot = np.hypot(a - np.floor(a) - 0.5, b - np.floor(b) - 0.5)
    colour = mix(colour, (0.95, 0.88, 0.70), soft(0, 0.06, 0.20 - dot))
    return coat(mix((0.16, 0.03, 0.02), colour, soft(0.008, 0.007, edge)), 0.55)


def head(p: Array) -> Coat:
    """Cream tin with dark pin-stripes, and copper where the dome begins and on the two beads."""
    r = np.hypot(p[:, 0], p[:, 1])
    turn = np.arctan2(p[:, 1], p[:, 0]) / (2 * math.pi) * 36
    stripe = soft(0, 0.05, 0.13 - np.abs(turn - np.round(turn)))
    cream = mix((0.74, 0.66, 0.50), (0.62, 0.53, 0.38), noise(p * 10))
    tin = mix(cream, (0.03, 0.12, 0.16), stripe)
    z = p[:, 2]
    line = np.maximum(soft(0, 0.004, 0.009 - np.abs(z - 0.612)), soft(0, 0.004, 0.009 - np.abs(z - 0.775)))
    tin = mix(tin, (0.55, 0.05, 0.03), line)
    metal = np.maximum(soft(0.80, 0.003, z), soft(0, 0.003, 0.583 - z))
    height = (z - 0.84) / 0.80
    groove = (np.cos(np.arctan2(height, r) * 32) > 0.55) & (z > 0.845)
    copper = mix((0.78, 0.40, 0.25), (0.60, 0.29, 0.18), noise(p * 14)) * np.where(groove, 0.45, 1.0)[:, None]
    return coat(mix(tin, copper, metal), 0.30, metal)


def eye(p: Array) -> Coat:
    side = np.sign(p[:, 0])
    r = np.hypot(p[:, 0] - side * 0.18, p[:, 2] - 0.72)
    turn = np.arctan2(p[:, 2] - 0.72, p[:, 0] - side * 0.18) / (2 * math.pi) * 18
    rays = soft(0, 0.2, 0.25 - np.abs(turn - np.round(turn)))
    iris = mix((0.02, 0.30, 0.42), (0.25, 0.65, 0.70), rays)
    colour = mix(iris, (0.90, 0.88, 0.82), soft(0.066, 0.006, r))
    return coat(mix((0.008, 0.008, 0.012), colour, soft(0.030, 0.006, r)), 0.10)


def dial(p: Array) -> Coat:
    r = np.hypot(p[:, 0], p[:, 2] + 1.08)
    turn = np.arctan2(p[:, 2] + 1.08, p[:, 0]) / (2 * math.pi)
    tick = np.maximum(
        soft(0, 0.01, 0.017 - np.abs(turn * 12 - np.round(turn * 12)) * r * 4) * (r > 0.082),
        soft(0, 0.004, 0.006 - np.abs(r - 0.108)),
    )
    danger = ((turn > 0.06) & (turn < 0.17) & (r > 0.055) & (r < 0.078)).astype(np.float64)
    colour = mix((0.86, 0.82, 0.72), (0.65, 0.04, 0.02), danger)
    return coat(mix(colour, (0.02, 0.02, 0.02), np.clip(tick, 0, 1)), 0.25)


PAINTS: dict[str, Callable[[Array], Coat]] = {
    "brick": brick, "planks": planks, "walnut": walnut, "brass": brass, "steel": steel, "red": red, "band": band,
    "paper": paper, "head": head, "eye": eye, "dial": dial,
}  # fmt: skip


def plain(paint: Callable[[Array], Coat]) -> Paint:
    """A paint that looks at the points only."""
    return lambda points, faces, weights: paint(points)


# ------------------------------------------------------------------------------------------------ files


def make(out: Path, views: int | None) -> list[Path]:
    """Write the scene into `out`; `views` limits the pictures of each split. Returns what was written."""
    vertices, faces, paint = build()
    world = World(vertices, faces, paint, [plain(PAINTS[name]) for name in PAINTS])
    print(
        f"robot: {len(world.faces)} triangles, {len(world.vertices)} vertices, {len(world.baked)} baked points",
        flush=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    first = np.full(len(world.vertices), -1)
    first[world.faces.ravel()] = np.repeat(world.paint, 3)
    albedo = np.zeros((len(world.vertices), 3))
    for k, painted in enumerate(PAINTS.values()):
        albedo[first == k] = painted(world.vertices[first == k])[0]
    write_ply(out / "mesh.ply", world.vertices, world.faces, np.round(to_srgb(albedo) * 255).astype(np.uint8))
    written = [out / "mesh.ply"]
    angle = 2 * math.asin(FILL / DISTANCE)  # the sphere of radius FILL just fits
    for split, n, phase in (("train", N_TRAIN, 0.0), ("test", N_TEST, 0.37)):
        written += shoot(world, out, split, cameras(n, phase, CENTRE, DISTANCE), SIZE, angle, SAMPLES, views)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    home = Path(__file__).resolve().parent.parent / "data" / "sample"
    parser.add_argument("--out", type=Path, default=home, help="folder to write (default: data/sample)")
    parser.add_argument("--check", action="store_true", help="write to a temporary folder and compare with --out")
    parser.add_argument("--views", type=int, default=None, help="only the first so many pictures of each split")
    arguments = parser.parse_args()
    if not arguments.check:
        written = make(arguments.out, arguments.views)
        print(f"{sum(path.stat().st_size for path in written) / 1e6:.2f} MB in {arguments.out}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder), arguments.views)
        wrong = [
            p.relative_to(folder)
            for p in made
            if not (arguments.out / p.relative_to(folder)).is_file()
            or (arguments.out / p.relative_to(folder)).read_bytes() != p.read_bytes()
        ]
        print(
            f"{len(made) - len(wrong)} of {len(made)} files are the same" + "".join(f"\n  differs: {p}" for p in wrong)
        )
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
