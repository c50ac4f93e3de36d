"""A small photo studio: closed meshes, procedural paints, fixed light and a ray caster, for scripts that make scenes.

Light: a soft sky (sampled from fixed directions, so that it has no noise), one key light with a soft shadow, and a GGX
lobe (Walter et al. 2007, height-correlated Smith shadowing) with Schlick's Fresnel term. The same platform and library
versions give the same bytes. Needs embreex, which nothing in nerf does.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array: TypeAlias = NDArray[np.float64]

SEED = 20

# ------------------------------------------------------------------------------------------------ paints


def hashed(*integers: NDArray) -> Array:
    """Uniform numbers in [0,1) from integers, the same on every machine."""
    h = np.full(np.broadcast(*integers).shape, SEED, np.uint32)
    for value in integers:
        h = (h ^ value.astype(np.int64).astype(np.uint32)) * np.uint32(0x9E3779B1)
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x85EBCA77)
        h ^= h >> np.uint32(13)
    return h.astype(np.float64) / 2**32


def noise(p: Array) -> Array:
    """Smooth value noise in [0,1] at points [n,3]."""
    base = np.floor(p)
    t = p - base
    t = t * t * (3 - 2 * t)
    cell = base.astype(np.int64)
    total = np.zeros(len(p))
    for corner in range(8):
        bit = [(corner >> axis) & 1 for axis in range(3)]
        weight = np.prod([t[:, axis] if bit[axis] else 1 - t[:, axis] for axis in range(3)], axis=0)
        total += weight * hashed(cell[:, 0] + bit[0], cell[:, 1] + bit[1], cell[:, 2] + bit[2])
    return total


def soft(edge: float | Array, width: float, x: Array) -> Array:
    """0 below the edge, 1 above, smooth over the width."""
    t = np.clip((x - edge) / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Array | tuple[float, float, float], b: Array | tuple[float, float, float], t: Array) -> Array:
    return np.asarray(a, np.float64) * (1 - t[:, None]) + np.asarray(b, np.float64) * t[:, None]


Coat = tuple[
    Array, Array, Array
]  # linear albedo [n,3] (reflectance at normal incidence for metal), roughness [n], metalness [n]
Paint = Callable[[Array, NDArray, Array], Coat]  # points [n,3], their faces [n], weights of the corners [n,3]


def coat(albedo: Array, rough: float | Array, metal: float | Array = 0.0) -> Coat:
    n = len(albedo)
    return albedo, np.broadcast_to(np.asarray(rough, np.float64), n), np.broadcast_to(np.asarray(metal, np.float64), n)


# ------------------------------------------------------------------------------------------------ light

KEY = np.array([-0.48, -0.62, 0.72]) / np.linalg.norm([-0.48, -0.62, 0.72])
KEY_COLOUR = np.array([2.55, 2.30, 1.95])
KEY_RADIUS = 0.035  # radians: half the width of the light as seen from the scene
N_SKY = 400  # fixed directions that stand for the sky


def sky(d: Array) -> Array:
    """Radiance of the sky from directions [n,3]: blue-white above, warm at the horizon, a dim bounce from below."""
    up = d[:, 2:]
    above = (
        np.array([0.62, 0.78, 1.0]) * 0.95 * np.clip(up, 0, 1)
        + np.array([1.0, 0.93, 0.84]) * 0.62 * (1 - np.abs(up)) ** 1.5
    )
    return above + np.array([0.34, 0.31, 0.28]) * np.clip(-up, 0, 1) + 0.10


def sphere_points(n: int) -> Array:
    """Directions of a Fibonacci lattice: even, and the same everywhere."""
    k = np.arange(n) + 0.5
    z = 1 - 2 * k / n
    a = k * math.pi * (3 - math.sqrt(5))
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(a), r * np.sin(a), z], -1)


def corner_normals(vertices: Array, faces: NDArray, crease: float = 0.75) -> Array:
    """Normals [f,3,3] at the corners: area-weighted mean of the faces there that bend less than `crease` (a cosine)."""
    cross = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    unit = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-20)
    order = np.argsort(faces.ravel(), kind="stable")
    sorted_vertices = faces.ravel()[order]
    first = np.searchsorted(sorted_vertices, np.arange(len(vertices)))
    count = np.bincount(faces.ravel(), minlength=len(vertices))
    total = np.zeros((len(faces) * 3, 3))
    face_of = order // 3
    for step in range(int(count.max())):
        has = count[sorted_vertices] > step
        corners = order[has]
        other = face_of[first[sorted_vertices[has]] + step]
        near = (unit[corners // 3] * unit[other]).sum(1) > crease
        total[corners[near]] += cross[other[near]]
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-20, total / np.maximum(length, 1e-20), np.repeat(unit, 3, 0)).reshape(-1, 3, 3)


class World:
    """The solid in a ray caster; the sky light, the same from everywhere, is baked into a lattice on each face."""

    def __init__(
        self,
        vertices: Array,
        faces: NDArray,
        paint: NDArray,
        paints: list[Paint],
        gloss: bool = True,
        spacing: float = 0.04,
    ) -> None:
        """vertices [v,3] and faces [f,3] of a closed surface; paint [f] says which of the paints each face wears.

        gloss: with highlights and reflections; else everything is as matt as chalk. spacing: of the baked light.
        """
        self.vertices, self.faces, self.paint, self.paints, self.gloss = vertices, faces, paint, paints, gloss
        try:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        except ImportError as error:
            sys.exit(f"photographs need {error.name}, which nothing else in this project does: pip install embreex")

        self.scene = EmbreeScene(robust=True)
        TriangleMesh(self.scene, self.vertices[self.faces].astype(np.float32))
        self.normals = corner_normals(self.vertices, self.faces)
        corner = self.vertices[self.faces]
        flat = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        self.flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-20)
        self.bake(spacing)

    def hidden(self, points: Array, directions: Array) -> NDArray:
        """Whether something stands between points [n,3] and infinity along directions [n,3]."""
        return self.scene.run(points.astype(np.float32), directions.astype(np.float32), query="OCCLUDED") >= 0

    def bake(self, spacing: float) -> None:
        corner = self.vertices[self.faces]
        longest = np.linalg.norm(corner - corner[:, [1, 2, 0]], axis=2).max(1)
        self.split = np.clip(np.ceil(longest / spacing).astype(np.int64), 1, 64)
        side = self.split + 1
        self.start = np.concatenate([[0], np.cumsum(side * side)])
        face = np.repeat(np.arange(len(side)), side * side)
        k = np.arange(self.start[-1]) - self.start[face]
        i, j = k // side[face], k % side[face]
        keep = i + j <= self.split[face]
        face, i, j = face[keep], i[keep], j[keep]
        u, v = i / self.split[face], j / self.split[face]
        bary = (
            np.stack([1 - u - v, u, v], -1) * 0.96 + 0.04 / 3
        )  # a little inside, away from the neighbours across an edge
        points = (bary[:, :, None] * corner[face]).sum(1) + 1e-3 * self.flat[face]
        normals = (bary[:, :, None] * self.normals[face]).sum(1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        light, seen, total = np.zeros((len(face), 3)), np.zeros(len(face)), np.zeros(len(face))
        directions = sphere_points(N_SKY)
        radiance = sky(directions)
        for d, colour in zip(directions, radiance, strict=True):
            cosine = normals @ d
            facing = np.flatnonzero((cosine > 0) & (self.flat[face] @ d > 0))
            clear = facing[~self.hidden(points[facing], np.broadcast_to(d, (len(facing), 3)))]
            light[clear] += cosine[clear, None] * colour
            seen[clear] += cosine[clear]
            total += np.maximum(cosine, 0)
        self.baked = np.zeros((self.start[-1], 4))
        self.baked[keep, :3] = (
            light * (4 * math.pi / N_SKY) / math.pi
        )  # irradiance / pi: what a white diffuse surface sends back
        self.baked[keep, 3] = seen / np.maximum(total, 1e-9)

    def baked_at(self, face: NDArray, u: Array, v: Array) -> Array:
        n = self.split[face]
        i = np.minimum((u * n).astype(np.int64), n - 1)
        j = np.minimum((v * n).astype(np.int64), n - 1 - i)
        j = np.maximum(j, 0)
        a, b = u * n - i, v * n - j
        upper = (a + b > 1) & (i + j + 2 <= n)
        at = self.start[face] + i * (n + 1) + j
        origin = np.where(upper, at + n + 2, at)
        a, b = np.where(upper, 1 - b, a)[:, None], np.where(upper, 1 - a, b)[:, None]
        return self.baked[origin] * (1 - a - b) + self.baked[at + n + 1] * a + self.baked[at + 1] * b

    def shade(self, face: NDArray, u: Array, v: Array, view: Array, light: Array) -> Array:
        """Linear radiance [n,3] towards -view from hits on faces at (u, v); `light` [n,3] points to the key light."""
        bary = np.stack([1 - u - v, u, v], -1)
        points = (bary[:, :, None] * self.vertices[self.faces[face]]).sum(1)
        n = (bary[:, :, None] * self.normals[face]).sum(1)
        n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-12)
        to_eye = -view
        n_eye = np.maximum((n * to_eye).sum(1), 1e-3)
        albedo, rough, metal = np.empty((len(face), 3)), np.empty(len(face)), np.empty(len(face))
        for k, painted in enumerate(self.paints):
            rows = np.flatnonzero(self.paint[face] == k)
            if len(rows):
                albedo[rows], rough[rows], metal[rows] = painted(points[rows], face[rows], bary[rows])
        baked = self.baked_at(face, u, v)
        diffuse = albedo * (1 - metal[:, None])
        f0 = 0.04 * (1 - metal[:, None]) + albedo * metal[:, None]

        n_light = (n * light).sum(1)
        lit = np.flatnonzero((n_light > 0) & ((self.flat[face] * light).sum(1) > 0))
        lit = lit[~self.hidden(points[lit] + 1e-3 * self.flat[face[lit]], light[lit])]
        colour = diffuse * baked[:, :3]
        if not self.gloss:
            colour[lit] += diffuse[lit] / math.pi * KEY_COLOUR * n_light[lit, None]
            return colour
        half = light[lit] + to_eye[lit]
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        a2 = rough[lit] ** 4
        n_half = np.clip((n[lit] * half).sum(1), 0, 1)
        normal_distribution = a2 / (math.pi * (n_half * n_half * (a2 - 1) + 1) ** 2)
        nl, ne = n_light[lit], n_eye[lit]
        visibility = 0.5 / (nl * np.sqrt(ne * ne * (1 - a2) + a2) + ne * np.sqrt(nl * nl * (1 - a2) + a2))
        fresnel = f0[lit] + (1 - f0[lit]) * ((1 - np.clip((light[lit] * half).sum(1), 0, 1)) ** 5)[:, None]
        lobe = fresnel * (normal_distribution * visibility)[:, None]
        colour[lit] += (diffuse[lit] / math.pi * (1 - fresnel) + lobe) * KEY_COLOUR * nl[:, None]

        mirror = 2 * n_eye[:, None] * n - to_eye
        shine = f0 + (np.maximum((1 - rough[:, None]) ** 3, f0) - f0) * ((1 - n_eye) ** 5)[:, None]
        blurred = (
            sky(mirror / np.maximum(np.linalg.norm(mirror, axis=1, keepdims=True), 1e-12)) * (1 - 0.5 * rough[:, None])
            + 0.25 * rough[:, None]
        )
        return colour + shine * blurred * (baked[:, 3:] * (0.35 + 0.65 * baked[:, 3:]))

    def photograph(self, c2w: Array, width: int, angle: float, samples: int = 4, height: int | None = None) -> NDArray:
        """One picture [height, width, 4] uint8 (height None: a square): sRGB, straight alpha. c2w [4,4] (OpenGL);
        angle: horizontal field of view in radians; samples: sub-pixels per pixel side."""
        height = width if height is None else height
        total = np.zeros((height * width, 4))
        focal = width / 2 / math.tan(angle / 2)
        grid = np.arange(height * width)
        row, col = grid // width, grid % width
        east = np.cross(KEY, [0, 0, 1.0])
        east /= np.linalg.norm(east)
        spots = sphere_points(2 * samples**2)[: samples**2]
        for k in range(samples**2):
            # a lattice that is no grid: every sub-row and sub-column is used once (columns permuted by samples)
            x = col + (k + 0.5) / samples**2
            y = row + (k * samples % (samples**2) + k // samples + 0.5) / samples**2
            d = np.stack([(x - width / 2) / focal, (height / 2 - y) / focal, -np.ones(len(x))], -1) @ c2w[:3, :3].T
            d /= np.linalg.norm(d, axis=1, keepdims=True)
            hit = self.scene.run(
                np.broadcast_to(c2w[:3, 3], d.shape).astype(np.float32),
                d.astype(np.float32),
                output=1,
                query="INTERSECT",
            )
            seen = np.flatnonzero(hit["primID"] >= 0)
            if not len(seen):
                continue
            light = KEY + KEY_RADIUS * (spots[k, 0] * east + spots[k, 1] * np.cross(KEY, east))
            light /= np.linalg.norm(light)
            face = hit["primID"][seen].astype(np.int64)
            u, v = np.clip(hit["u"][seen].astype(np.float64), 0, 1), np.clip(hit["v"][seen].astype(np.float64), 0, 1)
            radiance = self.shade(face, u, v, d[seen], np.broadcast_to(light, (len(seen), 3)))
            total[seen, :3] += 1 - np.exp(
                -1.15 * radiance
            )  # a soft shoulder, per sample, so that highlights do not alias
            total[seen, 3] += 1
        alpha = total[:, 3:] / samples**2
        colour = to_srgb(total[:, :3] / np.maximum(total[:, 3:], 1))
        return np.round(np.concatenate([colour, alpha], 1) * 255).astype(np.uint8).reshape(height, width, 4)


def to_srgb(linear: Array) -> Array:
    x = np.clip(linear, 0, 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055)


# ------------------------------------------------------------------------------------------------ cameras and files


def cameras(n: int, phase: float, centre: Array, distance: float, lowest: float = -25, highest: float = 80) -> Array:
    """Camera-to-world [n,4,4] (OpenGL) on a spiral over the sphere, from `lowest` to `highest` degrees of elevation."""
    k = (np.arange(n) + 0.5) / n
    bottom, top = math.sin(math.radians(lowest)), math.sin(math.radians(highest))
    z = bottom + (top - bottom) * k
    a = 2 * math.pi * (np.arange(n) * (math.sqrt(5) - 1) / 2 + phase)
    back = np.stack([np.sqrt(1 - z * z) * np.cos(a), np.sqrt(1 - z * z) * np.sin(a), z], -1)
    right = np.cross([0, 0, 1.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.zeros((n, 4, 4))
    poses[:, :3, 0], poses[:, :3, 1], poses[:, :3, 2] = right, np.cross(back, right), back
    poses[:, :3, 3] = centre + distance * back
    poses[:, 3, 3] = 1
    return poses


def write_ply(path: Path, vertices: Array, faces: NDArray, colours: NDArray) -> None:
    """Binary little-endian PLY: float32 positions, 8-bit colours, int32 faces."""
    author = Path(sys.argv[0]).name
    vertex = np.empty(len(vertices), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertex["xyz"], vertex["rgb"] = vertices, colours
    face = np.empty(len(faces), [("n", "u1"), ("v", "<i4", 3)])
    face["n"], face["v"] = 3, faces
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment made by scripts/{author}",
        f"element vertex {len(vertices)}",
    ]
    header += [f"property float {c}" for c in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    path.write_bytes("\n".join(header).encode() + b"\n" + vertex.tobytes() + face.tobytes())


def shoot(
    world: World, out: Path, split: str, poses: Array, size: int, angle: float, samples: int, views: int | None = None
) -> list[Path]:
    """One split of a scene in Blender's format: its transforms file, and the pictures (only the first `views`).
    Returns what was written."""
    frames = [{"file_path": f"./{split}/r_{i:03d}", "transform_matrix": pose.tolist()} for i, pose in enumerate(poses)]
    written = [out / f"transforms_{split}.json"]
    written[0].write_text(json.dumps({"camera_angle_x": angle, "frames": frames}, indent=1) + "\n")
    (out / split).mkdir(exist_ok=True)
    for i, pose in enumerate(poses[:views]):
        written.append(out / split / f"r_{i:03d}.png")
        Image.fromarray(world.photograph(pose, size, angle, samples)).save(written[-1], optimize=True)
        print(f"\r{split} {i + 1}/{len(poses[:views])} ", end="", flush=True)
    print()
    return written
