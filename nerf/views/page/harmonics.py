"""Colours that change with the direction of view, baked to a mesh: spherical harmonics of degree 2 at each vertex.

At a vertex the field's colour is rendered from the training cameras that see it; by how much it differs from the mesh's
own colour is fitted by least squares. A ridge holds the coefficients down where the cameras see a vertex from few
directions. Source of the basis: Ramamoorthi
and Hanrahan, "An Efficient Representation for Irradiance Environment Maps", 2001, equation 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nerf.geometry.cameras import Cameras
from nerf.geometry.light import shown_as
from nerf.io.progress import progress
from nerf.meshing.consistency import AGREE
from nerf.meshing.fused import farthest_point_sample
from nerf.meshing.preview import surface_colors
from nerf.rendering.model import Model

if TYPE_CHECKING:
    import trimesh

N_BASIS = 9
CONSTANT = 0.28209479  # the first of them
RIDGE = 0.2  # in cameras that look straight on; of all coefficients but the constant one
SMOOTH = 3  # rounds
_MIN_COSINE = 0.1  # between the normal and the way to a camera: what is more aslant is not asked for
_MAX_CAMERAS = 48  # asked, those far apart
_CHUNK = 1 << 14  # vertices at once


class Seen(NamedTuple):
    """What n cameras see of m points: unit directions to the cameras [m,n,3], colours (sRGB values) [m,n,3], and
    weights [m,n], 0 where a camera does not see the point."""

    directions: Tensor
    colors: Tensor
    weights: Tensor


def basis_of(d: Tensor) -> Tensor:
    """Real spherical harmonics up to degree 2 [...,9] of unit directions [...,3], orthonormal over the sphere."""
    x, y, z = d.unbind(-1)
    first = [torch.full_like(x, CONSTANT), 0.48860251 * y, 0.48860251 * z, 0.48860251 * x]
    second = [1.09254843 * x * y, 1.09254843 * y * z, 0.31539157 * (3 * z * z - 1), 1.09254843 * x * z]
    return torch.stack([*first, *second, 0.54627422 * (x * x - y * y)], dim=-1)


def fit_harmonics(seen: Seen, ridge: float = RIDGE) -> Tensor:
    """Coefficients [m,9,3] whose sums with `basis_of` are nearest to the colours seen; 0 where nothing is."""
    basis = basis_of(seen.directions.double())
    weighted = (basis * seen.weights[..., None]).mT
    held = torch.full((N_BASIS,), ridge, dtype=torch.float64)
    held[0] = 0.0
    system = weighted @ basis + torch.diag(held + 1e-9)
    return torch.linalg.solve(system, weighted @ seen.colors.double())


def about_mean(coefficients: Tensor, seen: Seen) -> Tensor:
    """The coefficients [m,9,3] less what they give in the mean over the cameras."""
    basis = weighted_mean(basis_of(seen.directions.double()), seen)
    constant = -torch.einsum("mk,mkc->mc", basis[:, 1:], coefficients[:, 1:]) / CONSTANT
    return torch.cat([constant[:, None], coefficients[:, 1:]], dim=1)


def weighted_mean(values: Tensor, seen: Seen) -> Tensor:
    """Of [m,n,k] over the cameras: [m,k], 0 where nothing is seen."""
    weights = seen.weights.double()[..., None]
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-9)


def bake_harmonics(model: Model, mesh: trimesh.Trimesh, show_progress: bool = True) -> Tensor:
    """By how much the field's colours (sRGB values) differ from those of a mesh (world frame) at its vertices, by the
    direction of view: coefficients [v,9,3] float32 of `basis_of` the world direction from a vertex to the viewer.

    What does not depend on the direction is averaged over the surface around: a texture shows more than vertices can
    hold, and by what it differs from the field there would be noise between them.
    """
    cameras = model.cameras.subset(farthest_point_sample(model.cameras.centres, _MAX_CAMERAS))
    vertices, normals = (torch.from_numpy(np.array(x, np.float64)) for x in (mesh.vertices, mesh.vertex_normals))
    parts, means, weights = [], [], []
    for some in progress(torch.arange(len(vertices)).split(_CHUNK), "colours by direction", show_progress):
        seen = observe(model, cameras, vertices[some], normals[some])
        own = surface_colors(mesh, some[:, None].expand(-1, 3), torch.tensor([[1.0, 0.0, 0.0]]).double())
        parts.append(about_mean(fit_harmonics(seen), seen).float())
        means.append(weighted_mean(seen.colors - own[:, None], seen).float())
        weights.append(seen.weights.sum(dim=1))
    faces, seen_by = torch.from_numpy(np.array(mesh.faces, np.int64)), torch.cat(weights)
    coefficients, mean = torch.cat(parts), smooth(torch.cat(means), seen_by, vertices, faces)
    coefficients[:, 0] += torch.where(seen_by[:, None] > 0, mean, 0.0) / CONSTANT
    return coefficients


def smooth(values: Tensor, weights: Tensor, vertices: Tensor, faces: Tensor, rounds: int = SMOOTH) -> Tensor:
    """Values [v,k] of vertices averaged with those around them, by weights [v]; vertices in one place are one."""
    place = vertices.unique(dim=0, return_inverse=True)[1]
    edges = place[faces][:, [[0, 1], [1, 2], [2, 0], [1, 0], [2, 1], [0, 2]]].reshape(-1, 2)
    nothing = torch.zeros(int(place.max()) + 1, values.shape[1] + 1)
    sums = nothing.index_add(0, place, torch.cat([values, torch.ones(len(values), 1)], dim=1) * weights[:, None])
    for _ in range(rounds):
        sums = sums + nothing.index_add(0, edges[:, 0], sums[edges[:, 1]])
    return (sums[:, :-1] / sums[:, -1:].clamp_min(1e-9))[place]


def colors_towards(coefficients: Tensor, vertices: Tensor, eye: Tensor) -> Tensor:
    """What is added to the colours of vertices [v,3] that are seen from `eye` [3]: [v,3]."""
    towards = torch.nn.functional.normalize(eye - vertices, dim=1).to(coefficients.dtype)
    return torch.einsum("vk,vkc->vc", basis_of(towards), coefficients)


def observe(model: Model, cameras: Cameras, points: Tensor, normals: Tensor) -> Seen:
    """What cameras (world frame) see of a surface at points [m,3] with normals [m,3], rendered from the field."""
    m, n = len(points), len(cameras)
    seen = Seen(torch.zeros(m, n, 3), torch.zeros(m, n, 3), torch.zeros(m, n))
    to_scene = model.scene_from_world
    scene_points = to_scene.apply(points)
    inside = in_pictures(cameras, points)
    for k in range(n):
        towards = torch.nn.functional.normalize(cameras.centres[k] - points, dim=1)
        cosine = (normals * towards).sum(dim=1)
        some = (inside[k] & (cosine > _MIN_COSINE)).nonzero()[:, 0]
        origin = to_scene.apply(cameras.centres[k])
        away = scene_points[some] - origin
        distance = away.norm(dim=1)
        rays_d = torch.nn.functional.normalize(away, dim=1).float()
        rays_o = origin.float().expand(len(some), 3).contiguous()
        rays = model.render_rays(rays_o, rays_d)
        depth = model.space.t_to_depth(rays_o, rays_d, rays.median_depths)
        hits = (rays.opacities > 0.5) & ((depth - distance).abs() < AGREE * distance)
        colors = shown_as(model, rays.foregrounds / rays.opacities.clamp_min(0.5)[:, None]).clamp(0, 1)
        seen.directions[some, k] = towards[some].float()
        seen.colors[some, k] = torch.where(hits[:, None], colors, 0.0)
        seen.weights[some, k] = torch.where(hits, cosine[some], 0.0).float()
    return seen


def in_pictures(cameras: Cameras, points: Tensor) -> Tensor:
    """Which of the pictures of n cameras (world frame) points [m,3] fall into, whatever hides them: bool [n,m]."""
    uv, z = cameras.project(points)
    sizes = torch.stack([cameras.widths, cameras.heights], dim=1)[:, None]
    return (z > 0) & (uv >= 0).all(dim=2) & (uv < sizes).all(dim=2)
