"""Triangle meshes as tensors: reading files, points sampled over the faces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.geometry.mesh_files import load_mesh_file

if TYPE_CHECKING:
    import trimesh

WORLD_NODE = "nerf_world"  # in our own GLB files: its turn is for those who look, the vertices below are in the world
ORIGIN_NODE = "nerf_origin"  # below it where the world's coordinates are large: a shift to them, vertices are about it
MESH_KINDS = (".ply", ".obj", ".glb", ".stl", ".off")


class SurfaceSamples(NamedTuple):
    """n points of a mesh: which face [n] each lies in, and the weights [n,3] of that face's corners."""

    faces: Tensor
    weights: Tensor


def sample_surface(vertices: Tensor, faces: Tensor, n: int) -> SurfaceSamples:
    """n points over the faces [f,3] of vertices [v,3], stratified by area; the same every time. Inside the faces a
    low-discrepancy sequence places them (R2: Roberts, "The unreasonable effectiveness of quasirandom sequences")."""
    a, b, c = (vertices[faces[:, k].long()].double() for k in range(3))
    ends = torch.linalg.cross(b - a, c - a).norm(dim=1).cumsum(0)
    k = torch.arange(n, dtype=torch.float64)
    which = torch.searchsorted(ends, (k + 0.5) / n * ends[-1]).clamp_max(len(faces) - 1)
    u, v = (0.5 + k * 0.7548776662466927) % 1, (0.5 + k * 0.5698402909980532) % 1
    u, v = (torch.where(u + v > 1, 1 - x, x) for x in (u, v))
    return SurfaceSamples(which, torch.stack([1 - u - v, u, v], dim=1))


class Triangles(NamedTuple):
    """A mesh as its file holds it: vertices [v,3] float64, faces [f,3] int64."""

    vertices: Tensor
    faces: Tensor

    @staticmethod
    def of(mesh: Triangles | trimesh.Trimesh) -> Triangles:
        """A copy of what trimesh keeps; triangles are themselves."""
        if isinstance(mesh, Triangles):
            return mesh
        return Triangles(*(torch.from_numpy(np.array(x, t)) for x, t in ((mesh.vertices, float), (mesh.faces, int))))

    def corners(self, which: Tensor) -> Tensor:
        """[n,3,3] the corners of faces [n]."""
        return self.vertices[self.faces[which]]

    def box(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest corner [3] of what the faces span."""
        used = self.vertices[self.faces.reshape(-1)]
        return used.amin(dim=0), used.amax(dim=0)

    def diagonal(self) -> float:
        """Length of the box's diagonal."""
        low, high = self.box()
        return float((high - low).norm())


def read_mesh(path: Path | str) -> Triangles:
    """The triangles of a mesh file, all its parts together, in the frame its vertices are written in.

    Raises UserError, in one sentence, for what is missing, unknown, broken, without faces or not finite.
    """
    meshes = _parts(Path(path))
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    placed = zip(meshes, starts[:-1], strict=True)
    parts = [(np.asarray(m.vertices, float), np.asarray(m.faces, int) + start) for m, start in placed]
    mesh = Triangles(*(torch.from_numpy(np.concatenate(x)) for x in zip(*parts, strict=True)))
    if bool(mesh.vertices.isfinite().all()):
        return mesh
    used, faces = mesh.faces.unique(return_inverse=True)  # depth cameras leave NaN where they measured nothing
    if not bool(mesh.vertices[used].isfinite().all()):
        raise UserError(f"{path} holds vertices that are no numbers (NaN or infinity)")
    return Triangles(mesh.vertices[used], faces)


def read_textured_mesh(path: Path | str) -> trimesh.Trimesh:
    """A mesh file with its texture or colours, as trimesh keeps it; its parts must share one way of colouring."""
    import trimesh

    parts = _parts(Path(path))
    whole: Any = parts[0] if len(parts) == 1 else trimesh.util.concatenate(parts)
    return whole


def _parts(path: Path) -> list[trimesh.Trimesh]:
    if path.suffix.lower() not in MESH_KINDS:
        raise UserError(f"{path}: a mesh file ends in one of {', '.join(MESH_KINDS)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    import trimesh

    try:
        loaded = load_mesh_file(path)
        parts = _placed(loaded) if isinstance(loaded, trimesh.Scene) else [loaded]
        meshes = [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except UserError:
        raise
    except Exception as error:  # trimesh raises whatever its readers come upon
        raise UserError(f"{path} cannot be read as a mesh ({str(error) or type(error).__name__})") from error
    if not meshes:
        raise UserError(f"{path} holds no triangles: expected a mesh, not points or lines")
    for mesh in meshes:
        low, high, n = int(mesh.faces.min()), int(mesh.faces.max()), len(mesh.vertices)
        if low < 0 or high >= n:
            raise UserError(
                f"{path}: a face names vertex {low if low < 0 else high}, and there are {n}: the file is cut off or "
                "damaged, write it again"
            )
    return meshes


def _placed(scene: trimesh.Scene) -> list[Any]:
    """The parts of a scene where its nodes put them."""
    parts = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph.get(node, WORLD_NODE if node == ORIGIN_NODE else None)
        parts.append(scene.geometry[name].copy())
        if node != WORLD_NODE:
            parts[-1].apply_transform(transform)
    return parts
