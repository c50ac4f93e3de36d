"""GLB files: one binary glTF 2.0 with the mesh, its colours or its texture, upright wherever it is opened.

Vertices keep their world coordinates; where those are too large for float32 (national grids), they are stored about
the mesh's middle, and a node below the first moves them back. glTF says that y is up, so the first node turns the
world's up to y; programs that turn y to their own up (Blender: z) then show a world whose up is z in its own
coordinates. Materials are unlit where the reader knows KHR_materials_unlit (the photos' light is in the colours
already), else rough and not metallic.
Source: Khronos glTF 2.0 specification; vertex colours are linear there, textures sRGB.
"""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nerf.geometry import light
from nerf.geometry.triangles import ORIGIN_NODE, WORLD_NODE

if TYPE_CHECKING:
    import trimesh

_FLOAT, _UNSIGNED, _SHORT = 5126, 5125, 5123  # component types
_VERTICES, _INDICES = 34962, 34963  # buffer targets


def glb(mesh: trimesh.Trimesh, up: NDArray[np.float64] | None = None) -> bytes:
    """A mesh in the world frame as the bytes of a GLB file; up [3]: the world's up (None: y, nothing is turned)."""
    binary = bytearray()
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def view(data: bytes, **about: Any) -> int:
        binary.extend(b"\0" * (-len(binary) % 4))
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(data), **about})
        binary.extend(data)
        return len(views) - 1

    def accessor(array: NDArray[Any], component: int, kind: str, target: int, **about: Any) -> int:
        at = view(np.ascontiguousarray(array).tobytes(), target=target)
        accessors.append({"bufferView": at, "componentType": component, "count": len(array), "type": kind, **about})
        return len(accessors) - 1

    origin = far_origin(np.asarray(mesh.vertices, np.float64))
    positions = (np.asarray(mesh.vertices, np.float64) - (0 if origin is None else origin)).astype(np.float32)
    span = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    attributes = {
        "POSITION": accessor(positions, _FLOAT, "VEC3", _VERTICES, **span),
        "NORMAL": accessor(np.asarray(mesh.vertex_normals, np.float32), _FLOAT, "VEC3", _VERTICES),
    }
    material: dict[str, Any] = {
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
        "extensions": {"KHR_materials_unlit": {}},
    }
    images: dict[str, Any] = {}
    visual: Any = mesh.visual
    if visual.kind == "texture":
        uv = np.asarray(visual.uv, np.float32) * np.array([1, -1], np.float32) + np.array(
            [0, 1], np.float32
        )  # v runs downwards here
        attributes["TEXCOORD_0"] = accessor(uv, _FLOAT, "VEC2", _VERTICES)
        picture = io.BytesIO()
        visual.material.baseColorTexture.save(picture, "PNG")
        images = {
            "images": [{"bufferView": view(picture.getvalue()), "mimeType": "image/png"}],
            "samplers": [
                {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}
            ],  # linear, mipmaps, clamp
            "textures": [{"source": 0, "sampler": 0}],
        }
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
    elif visual.kind == "vertex":
        rgba = _linear(np.asarray(visual.vertex_colors)[:, :3])
        attributes["COLOR_0"] = accessor(rgba, _SHORT, "VEC4", _VERTICES, normalized=True)
    faces = accessor(np.asarray(mesh.faces, np.uint32).reshape(-1), _UNSIGNED, "SCALAR", _INDICES)
    document = {
        "asset": {"version": "2.0", "generator": "nerf"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": _nodes(upright(up), origin),
        "meshes": [{"primitives": [{"attributes": attributes, "indices": faces, "material": 0}]}],
        "materials": [material],
        "extensionsUsed": ["KHR_materials_unlit"],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
        **images,
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary.extend(b"\0" * (-len(binary) % 4))
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + bytes(binary)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


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
    """The quaternion (x, y, z, w) of the shortest turn that brings the world's up [3] to y.

    An up within 15 degrees of a signed axis is taken for that axis: worlds are built along their axes, and cameras tell
    the up only roughly.
    """
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
    table = light.decode(np.arange(256) / 255)
    rgba = np.full((len(rgb), 4), 65535, np.uint16)
    rgba[:, :3] = np.round(table * 65535).astype(np.uint16)[rgb]
    return rgba
