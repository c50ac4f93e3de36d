"""GLB files: one binary glTF 2.0 with the mesh, its colours or its texture, upright wherever it is opened.

trimesh writes them; ours are where the mesh stands, how it is lit, and vertex colours of 16 bits. Vertices keep their
world coordinates; where those are too large for float32 (national grids), they are stored about the mesh's middle, and
a node below the first moves them back. glTF says that y is up, so the first node turns the world's up to y. Materials
are unlit (the photos' light is in the colours already), for readers that do not know that rough and not metallic.
Source: Khronos glTF 2.0 specification; vertex colours are linear there, textures sRGB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nerf.geometry import light
from nerf.geometry.triangles import ORIGIN_NODE, WORLD_NODE

if TYPE_CHECKING:
    import trimesh

_SAMPLER = {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}  # linear, mipmaps, clamp


def glb(mesh: trimesh.Trimesh, up: NDArray[np.float64] | None = None) -> bytes:
    """A mesh in the world frame as the bytes of a GLB file; up [3]: the world's up (None: y, nothing is turned)."""
    import trimesh
    from trimesh.exchange.gltf import export_glb

    vertices = np.asarray(mesh.vertices, np.float64)
    visual: Any = mesh.visual
    origin = far_origin(vertices)
    near = vertices if origin is None else vertices - origin
    stored = trimesh.Trimesh(near, mesh.faces, vertex_normals=mesh.vertex_normals, process=False, validate=False)
    if visual.kind == "texture":
        stored.visual = visual
    elif visual.kind == "vertex":  # trimesh would write them as they are, 8-bit sRGB
        stored.vertex_attributes["_COLOR_0"] = _linear(np.asarray(visual.vertex_colors)[:, :3])

    def finish(tree: dict[str, Any]) -> None:
        primitive = tree["meshes"][0]["primitives"][0]
        if "_COLOR_0" in primitive["attributes"]:
            colors = primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop("_COLOR_0")
            tree["accessors"][colors]["normalized"] = True
        surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        if "textures" in tree:
            surface["baseColorTexture"] = {"index": 0}
            tree["textures"][0]["sampler"], tree["samplers"] = 0, [_SAMPLER]
        primitive["material"] = 0
        tree["materials"] = [{"pbrMetallicRoughness": surface, "extensions": {"KHR_materials_unlit": {}}}]
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
        tree["nodes"], tree["scenes"] = _nodes(upright(up), origin), [{"nodes": [0]}]
        tree["asset"]["generator"] = "nerf"

    data: bytes = export_glb(stored, include_normals=True, tree_postprocessor=finish)
    return data


def far_origin(vertices: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The middle [3] of vertices [v,3] whose coordinates float32 would round by more than 1e-5 of their extent, rounded
    to whole units; None where it would not."""
    if not len(vertices):
        return None
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    rounding = np.abs(vertices).max() * 2.0**-24
    return np.round((low + high) / 2) if rounding > 1e-5 * np.linalg.norm(high - low) else None


def _nodes(rotation: list[float], origin: NDArray[np.float64] | None) -> list[dict[str, Any]]:
    if origin is None:
        return [{"name": WORLD_NODE, "mesh": 0, "rotation": rotation}]
    return [
        {"name": WORLD_NODE, "rotation": rotation, "children": [1]},
        {"name": ORIGIN_NODE, "mesh": 0, "translation": origin.tolist()},
    ]


def upright(up: NDArray[np.float64] | None) -> list[float]:
    """The quaternion (x, y, z, w) of the shortest turn that brings the world's up [3] to y; an up within 15 degrees of
    a signed axis is taken for that axis, as cameras tell it only roughly."""
    if up is None or not np.isfinite(up).all() or np.linalg.norm(up) == 0:
        return [0.0, 0.0, 0.0, 1.0]
    u = np.asarray(up, np.float64) / np.linalg.norm(up)
    axis = int(np.abs(u).argmax())
    if abs(u[axis]) > np.cos(np.radians(15)):
        u = np.sign(u[axis]) * np.eye(3)[axis]
    if u[1] < -1 + 1e-9:  # upside down: any half turn about a level axis
        return [1.0, 0.0, 0.0, 0.0]
    q = np.array([-u[2], 0.0, u[0], 1.0 + u[1]])  # u x y, 1 + u . y
    return [float(x) for x in q / np.linalg.norm(q)]


def _linear(rgb: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """8-bit sRGB [v,3] -> 16-bit linear RGBA [v,4]."""
    table = np.round(light.decode(np.arange(256) / 255) * 65535).astype(np.uint16)
    return np.concatenate([table[rgb], np.full((len(rgb), 1), 65535, np.uint16)], axis=1)
