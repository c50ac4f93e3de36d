"""What a shape truly is: exact distances to a mesh or an oriented point cloud, and which side of it a point is on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf import kernels
from nerf.errors import UserError, note
from nerf.geometry.mesh_files import load_mesh_file
from nerf.geometry.triangles import Triangles, read_mesh, sample_surface

MARGIN = 0.1  # of the longest side, around the shape
_PROBE = 5e-3  # of the longest side: how far from the surface it is asked whether there is an inside
_CLOSED_SHARE = 0.6  # of a surface that must have an inside and an outside


@dataclass(frozen=True)
class Solid:
    """A surface in its unit frame, x = (p - low) / side, which puts the box and a margin into [0,1]^3 (the longest side
    fills it), and what has to be known about inside and outside.

    A mesh: `vertices` [v,3] and `faces` [f,3]. A cloud: `vertices` are the points, each of `areas` [v,3] its outward
    normal times the area it stands for, and `faces` [v,3] names it three times.
    """

    vertices: Tensor  # float64
    faces: Tensor
    areas: Tensor | None
    signed: bool  # below 0 inside; else distances are positive everywhere
    low: tuple[float, float, float]  # corner of the box with its margin, in the file's own frame
    sides: tuple[float, float, float]
    about: dict[str, Any]  # what was found: holes, elements

    @property
    def side(self) -> float:
        return max(self.sides)

    @property
    def extents(self) -> tuple[float, ...]:
        """Sides of the box in unit lengths, the longest 1."""
        return tuple(s / self.side for s in self.sides)

    def distances(self, x: Tensor) -> Tensor:
        """Distances [n] float32 (unit lengths) at x [n,3], below 0 inside (winding number above half): of meshes exact
        to 1e-6; of clouds to the plane of the nearest point, or further off than points lie apart to that point."""
        near = kernels.nearest_points(x, self.vertices, self.faces)
        if self.areas is None:
            return self._with_sign(x, near.distances)
        own = self.areas[near.faces]
        height = ((x.double() - self.vertices[near.faces]) * torch.nn.functional.normalize(own, dim=1)).sum(dim=1)
        close = near.distances < 2.0 * own.norm(dim=1).sqrt()
        return torch.where(close, height.float(), self._with_sign(x, near.distances))

    def inside(self, x: Tensor) -> Tensor:
        """Whether each of x [n,3] is inside."""
        return self.windings(x).abs() > 0.5 if self.areas is None else self.distances(x) < 0

    def windings(self, x: Tensor) -> Tensor:
        if self.areas is None:
            return kernels.winding_numbers(x, self.vertices, self.faces)
        return kernels.cloud_winding_numbers(x, self.vertices, self.areas)

    def _with_sign(self, x: Tensor, distances: Tensor) -> Tensor:
        if not self.signed:
            return distances
        return torch.where(self.windings(x).abs() > 0.5, -distances, distances)

    def on_surface(self, n: int) -> tuple[Tensor, Tensor]:
        """n points of the surface [n,3] float64, even by area, and their outward normals."""
        if self.areas is not None:
            which = torch.linspace(0, len(self.vertices) - 1, n).long()
            return self.vertices[which], torch.nn.functional.normalize(self.areas[which], dim=1)
        found = sample_surface(self.vertices, self.faces, n)
        corners = self.vertices[self.faces[found.faces]]
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return (corners * found.weights[..., None]).sum(dim=1), torch.nn.functional.normalize(normals, dim=1)

    def to_own(self, x: Tensor) -> Tensor:
        """Unit positions back in the frame of the file, float64."""
        return torch.tensor(self.low, dtype=torch.float64) + x.double() * self.side

    def samples(self, n: int, widths: tuple[float, ...], uniform: float, random: torch.Generator) -> Tensor:
        """x [n,3] float32: a share `uniform` of them anywhere in the box, the others around the surface, at Gaussian
        distances of all `widths` (unit lengths) alike; in no order."""
        n_uniform = round(uniform * n)
        box = torch.tensor(self.extents)
        anywhere = torch.rand(n_uniform, 3, generator=random) * box
        points, _ = self.on_surface(n - n_uniform)
        sigma = torch.tensor(widths)[torch.arange(len(points)) % len(widths)]
        around = points.float() + sigma[:, None] * torch.randn(len(points), 3, generator=random)
        return torch.cat([anywhere, torch.minimum(around.clamp_min(0), box)])


def read_solid(path: Path | str, unsigned: bool | None = None) -> Solid:
    """A mesh file (.ply, .obj, .glb, .stl, .off), or a PLY of points with normals, as a solid.

    unsigned: whether to give up on inside and outside; None finds out (a sheet is unsigned), and the user is told.
    """
    path = Path(path)
    cloud = _read_cloud(path) if path.suffix.lower() == ".ply" and path.is_file() else None
    if cloud is None:
        return solid_of_mesh(read_mesh(path), str(path), unsigned)
    return solid_of_cloud(*cloud, str(path), unsigned)


def solid_of_mesh(mesh: Triangles, name: str = "mesh", unsigned: bool | None = None) -> Solid:
    """See `read_solid`."""
    corners = mesh.vertices[mesh.faces]
    areas = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1) / 2
    faces = mesh.faces[areas > 0]
    if not len(faces):
        raise UserError(f"{name}: all its triangles are lines or points: expected a surface with an area")
    about = {"triangles": len(faces), "open_edges": _open_edges(mesh.vertices, faces)}
    return _decide_sign(_to_unit(mesh.vertices, faces, None, about), name, unsigned)


def solid_of_cloud(points: Tensor, normals: Tensor, name: str = "cloud", unsigned: bool | None = None) -> Solid:
    """A solid from points [n,3] on its surface and their outward normals [n,3], of any length."""
    if len(points) < 10:
        raise UserError(f"{name}: holds {len(points)} points: expected at least 10, with normals")
    numbers = torch.arange(len(points))[:, None].expand(-1, 3).contiguous()
    areas = torch.nn.functional.normalize(normals.double(), dim=1)
    solid = _to_unit(points, numbers, areas, {"points": len(points)})
    rough = _point_areas(solid.vertices)
    solid = replace(solid, areas=areas * rough[:, None])
    # The areas are right up to a factor; across the surface the winding number must fall by one.
    at, outward = solid.on_surface(min(len(points), 2000))
    step = 4.0 * rough.median().sqrt() * outward
    fall = (solid.windings(at - step) - solid.windings(at + step)).median()
    if not fall > 0.1:
        raise UserError(f"{name}: its normals do not agree on what is outside: orient them consistently")
    assert solid.areas is not None
    return _decide_sign(replace(solid, areas=solid.areas / fall), name, unsigned)


def _decide_sign(solid: Solid, name: str, unsigned: bool | None) -> Solid:
    """The solid with inside and outside decided, and the user told where that is not as expected."""
    share = enclosing_share(solid)
    signed = share >= _CLOSED_SHARE if unsigned is None else not unsigned
    if unsigned is None and not signed:
        note(
            f"{name} encloses nothing (only {share:.0%} of it has an inside): "
            "unsigned distances are fitted, and its mesh will be a thin shell around it"
        )
    elif signed and solid.about.get("open_edges"):
        note(
            f"{name} has holes ({solid.about['open_edges']} open edges): inside is where it goes around more than half"
        )
    return replace(solid, signed=signed, about={**solid.about, "enclosing_share": round(share, 4)})


def enclosing_share(solid: Solid, n: int = 4000) -> float:
    """The share of a surface on whose two sides the winding number is clearly inside and clearly outside."""
    points, normals = solid.on_surface(n)
    apart = 0.0 if solid.areas is None else float(solid.areas.norm(dim=1).median().sqrt())
    step = max(_PROBE, 4.0 * apart)
    back, front = (solid.windings(points + s * step * normals).abs() for s in (-1, 1))
    more, less = torch.maximum(back, front), torch.minimum(back, front)
    return float(((more > 0.75) & ((less - less.round()).abs() < 0.25)).double().mean())


def _to_unit(vertices: Tensor, faces: Tensor, areas: Tensor | None, about: dict[str, Any]) -> Solid:
    """A surface in the file's frame as a solid in that of its box with a margin; signed until that is decided."""
    low, high = vertices[faces.reshape(-1)].aminmax(dim=0)
    margin = MARGIN * float((high - low).max())
    if not margin > 0:
        raise UserError("the shape is a single point: expected a surface with an extent")
    low, sides = low - margin, (high - low + 2 * margin).tolist()
    unit = (vertices.double() - low.double()) / max(sides)
    return Solid(unit, faces, areas, True, tuple(low.tolist()), tuple(sides), about)


def _open_edges(vertices: Tensor, faces: Tensor) -> int:
    """Edges that belong to one triangle only, vertices at one place taken as one."""
    _, same = torch.unique(vertices, dim=0, return_inverse=True)
    corners = same[faces]
    edges = corners[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    edges = edges[edges[:, 0] != edges[:, 1]].sort(dim=1).values
    counts = torch.unique(edges[:, 0] * len(vertices) + edges[:, 1], return_counts=True)[1]
    return int((counts == 1).sum())


def _point_areas(points: Tensor) -> Tensor:
    """The area [n] each of points [n,3] stands for, up to a common factor: a cell's share among the points around."""
    cell = 2.0 * len(points) ** -0.5  # about 4 points on a surface of area 1
    at = (points / cell).floor().long()
    at = at - at.amin(dim=0) + 1
    width = at.amax(dim=0) + 2
    numbers = (at[:, 0] * width[1] + at[:, 1]) * width[2] + at[:, 2]
    cells, which, counts = torch.unique(numbers, return_inverse=True, return_counts=True)
    around = torch.zeros(len(cells))
    for dx, dy, dz in product((-1, 0, 1), repeat=3):
        other = cells + (dx * width[1] + dy) * width[2] + dz
        place = torch.searchsorted(cells, other).clamp_max(len(cells) - 1)
        around += torch.where(cells[place] == other, counts[place], 0)
    return (9.0 * cell**2 / around.double())[which]


def _read_cloud(path: Path) -> tuple[Tensor, Tensor] | None:
    """(points, normals) of a PLY without faces; None for any other file. UserError for points without normals."""
    import trimesh

    try:
        loaded = load_mesh_file(path)
    except UserError:
        raise
    except Exception as error:  # trimesh raises whatever its readers come upon
        raise UserError(f"{path} cannot be read as a mesh ({str(error) or type(error).__name__})") from error
    if not isinstance(loaded, trimesh.PointCloud):
        return None
    data = loaded.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    names = () if data is None else (data.dtype.names if hasattr(data, "dtype") else tuple(data))
    if not {"nx", "ny", "nz"} <= set(names or ()):
        raise UserError(f"{path} holds points without normals and no faces: expected a mesh, or points with nx, ny, nz")
    columns = [torch.from_numpy(np.array(data[name], np.float64).reshape(-1)) for name in ("nx", "ny", "nz")]
    points, normals = torch.from_numpy(np.array(loaded.vertices, np.float64)), torch.stack(columns, dim=1)
    good = points.isfinite().all(dim=1) & (normals.norm(dim=1) > 0) & normals.isfinite().all(dim=1)
    return points[good], normals[good]
