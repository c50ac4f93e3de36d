#!/usr/bin/env python3
"""Photograph any closed mesh as a scene to reconstruct, with its true surface: what `bench.py mesh` is measured on.

    pip install embreex                                             (needed by this script only)
    python scripts/make_objects.py spot.obj rocker-arm.obj --out DIR     writes DIR/spot and DIR/rocker-arm

The mesh is rounded (Phong tessellation, Boubekeur and Alexa 2008) and given a fine relief along its normals, wears its
own texture if it has one and a procedural stone else, is as matt as chalk, and is seen from all sides.

What is written:
    transforms_train.json, transforms_test.json, train/, test/     Blender format, RGBA, 8 bits, sRGB, straight alpha
    mesh.ply                                                       the true surface, as photographed, in the same frame
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from studio import Array, Coat, Paint, World, cameras, coat, mix, noise, shoot, soft, to_srgb, write_ply

ENOUGH_FACES = 60_000  # meshes with fewer are subdivided until they have as many
RELIEF = 0.0025, 0.03  # height and size of its bumps, in diagonals of the bounding box
DISTANCE = 3.0  # of the cameras from the centre, in radii of the sphere around the object
LIGHT_SPACING = 0.01  # of the baked light, in diagonals


class Mould:
    """A mesh before it is photographed: shared vertices, and for each corner what the file says of its texture."""

    def __init__(self, path: Path, up: str) -> None:
        loaded = trimesh.load(path, process=False, force="mesh")
        assert isinstance(loaded, trimesh.Trimesh)
        turn = {"z": np.eye(3), "y": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), "x": np.roll(np.eye(3), 1, axis=1)}
        vertices = np.asarray(loaded.vertices, np.float64) @ turn[up].T
        _, first, shared = np.unique(vertices.round(9), axis=0, return_index=True, return_inverse=True)
        self.vertices = vertices[first]
        self.faces = shared.ravel()[np.asarray(loaded.faces, np.int64)]
        self.uv = loaded.visual.uv[loaded.faces] if getattr(loaded.visual, "uv", None) is not None else None
        material = getattr(loaded.visual, "material", None)
        self.picture = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)

    def diagonal(self) -> float:
        return float(np.linalg.norm(np.ptp(self.vertices, axis=0)))

    def refine(self) -> None:
        """Split every face in four until there are enough; new vertices are moved onto a rounded surface."""
        faces, weights = self.faces, np.broadcast_to(np.eye(3), (len(self.faces), 3, 3))
        parent = np.arange(len(faces))
        n_vertices = len(self.vertices)
        while len(faces) < ENOUGH_FACES:
            sides = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]], axis=2).reshape(-1, 2)
            pairs, middle = np.unique(sides, axis=0, return_inverse=True)
            ab, bc, ca = (n_vertices + middle.reshape(-1, 3)).T
            a, b, c = faces.T
            wab, wbc, wca = ((weights[:, i] + weights[:, j]) / 2 for i, j in ((0, 1), (1, 2), (2, 0)))
            wa, wb, wc = weights.transpose(1, 0, 2)
            faces = np.stack([(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)], 0).transpose(0, 2, 1).reshape(-1, 3)
            corners = [(wa, wab, wca), (wab, wb, wbc), (wca, wbc, wc), (wab, wbc, wca)]
            weights = np.stack([np.stack(w, 1) for w in corners]).reshape(-1, 3, 3)
            parent, n_vertices = np.tile(parent, 4), n_vertices + len(pairs)
        corner, normal = self.vertices[self.faces][parent], normals_of(self.vertices, self.faces)[self.faces][parent]
        flat = weights @ corner  # [f, 3 corners, 3]
        above = np.einsum("fkid,fid->fki", flat[:, :, None] - corner[:, None], normal)
        rounded = flat - 0.75 * np.einsum("fki,fki,fid->fkd", weights, above, normal)
        if self.uv is not None:
            self.uv = weights @ self.uv[parent]
        self.vertices = np.empty((n_vertices, 3))
        self.vertices[faces.ravel()] = rounded.reshape(-1, 3)
        self.faces = faces

    def emboss(self) -> None:
        """Add the relief."""
        height, size = (part * self.diagonal() for part in RELIEF)
        bumps = noise(self.vertices / size) - 0.5
        self.vertices = self.vertices + height * bumps[:, None] * normals_of(self.vertices, self.faces)

    def paint(self) -> Paint:
        if self.uv is not None and self.picture is not None:
            return printed(self.uv, np.asarray(self.picture.convert("RGB"), np.float64) / 255)
        return stone(self.diagonal())


def normals_of(vertices: Array, faces: NDArray) -> Array:
    """Area-weighted normals [v,3] at the vertices."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    total = np.zeros_like(vertices)
    np.add.at(total, faces.ravel(), np.repeat(np.cross(b - a, c - a), 3, axis=0))
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-20)


def stone(diagonal: float) -> Paint:
    """Veined stone in three colours, with detail down to half a per cent of the diagonal."""

    def paint(points: Array, faces: NDArray, weights: Array) -> Coat:
        p = points / diagonal
        warped = p * 14 + 1.5 * np.stack([noise(p * 20 + k * 17) for k in range(3)], -1)
        veins = soft(0.06, 0.06, np.abs(noise(warped) - 0.5))
        ground = mix((0.62, 0.50, 0.34), (0.28, 0.36, 0.42), soft(0.5, 0.25, noise(p * 9 + 5)))
        speckled = mix(ground, (0.16, 0.10, 0.08), 0.75 * soft(0.62, 0.15, noise(p * 110) * 0.6 + noise(p * 190) * 0.4))
        return coat(mix((0.75, 0.16, 0.06), speckled, veins), 1.0)

    return paint


def printed(uv: Array, picture: Array) -> Paint:
    """A texture picture [h,w,3] (sRGB in [0,1]) at corner coordinates uv [f,3,2], sampled bilinearly."""
    linear = np.where(picture <= 0.04045, picture / 12.92, ((picture + 0.055) / 1.055) ** 2.4)
    height, width = picture.shape[:2]

    def paint(points: Array, faces: NDArray, weights: Array) -> Coat:
        u, v = np.einsum("nk,nkd->dn", weights, uv[faces])
        x, y = (u % 1) * width - 0.5, (1 - v % 1) * height - 0.5
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        dx, dy = (x - left)[:, None], (y - top)[:, None]
        at = [[linear[(top + j) % height, (left + i) % width] for i in (0, 1)] for j in (0, 1)]
        return coat((at[0][0] * (1 - dx) + at[0][1] * dx) * (1 - dy) + (at[1][0] * (1 - dx) + at[1][1] * dx) * dy, 1.0)

    return paint


def make(path: Path, out: Path, up: str, size: int, n_train: int, n_test: int, samples: int) -> None:
    mould = Mould(path, up)
    mould.refine()
    mould.emboss()
    diagonal = mould.diagonal()
    everywhere = np.zeros(len(mould.faces), np.int64)
    world = World(mould.vertices, mould.faces, everywhere, [mould.paint()], False, LIGHT_SPACING * diagonal)
    print(f"{path.stem}: {len(world.faces)} triangles, diagonal {diagonal:.4g}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    corners = np.broadcast_to(np.eye(3), (len(world.faces), 3, 3))
    albedo = np.empty((len(world.vertices), 3))
    for k in range(3):
        at = np.arange(len(world.faces))
        albedo[world.faces[:, k]] = world.paints[0](world.vertices[world.faces[:, k]], at, corners[:, k])[0]
    write_ply(out / "mesh.ply", world.vertices, world.faces, np.round(to_srgb(albedo) * 255).astype(np.uint8))
    centre = (world.vertices.min(0) + world.vertices.max(0)) / 2
    radius = float(np.linalg.norm(world.vertices - centre, axis=1).max())
    angle = 2 * math.asin(1.03 / DISTANCE)
    for split, n, phase in (("train", n_train, 0.0), ("test", n_test, 0.37)):
        poses = cameras(n, phase, centre, DISTANCE * radius, lowest=-75, highest=80)
        shoot(world, out, split, poses, size, angle, samples)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("meshes", type=Path, nargs="+", metavar="MESH", help="a closed mesh that trimesh can read")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to: a folder in it for each mesh")
    parser.add_argument("--up", choices="xyz", default="y", help="axis of the file that becomes z (default: y)")
    parser.add_argument("--size", type=int, default=512, help="pixels, width and height")
    parser.add_argument("--views", type=int, default=100, help="to train on")
    parser.add_argument("--test-views", type=int, default=20)
    parser.add_argument("--samples", type=int, default=3, help="sub-pixels per pixel side")
    arguments = parser.parse_args()
    for path in arguments.meshes:
        if not path.is_file():
            print(f"make_objects: {path}: there is no such file", file=sys.stderr)
            return 2
        size, views = arguments.size, (arguments.views, arguments.test_views)
        make(path, arguments.out / path.stem, arguments.up, size, *views, arguments.samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
