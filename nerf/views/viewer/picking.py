"""Clicks: the point of the surface that a ray meets, and the plane around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.geometry.rotations import rotations_of
from nerf.rendering.model import Model

PLANE_ANGLE = math.radians(3.0)  # from the click: the surface around it that a plane is fitted to
_RINGS, _SPOKES = 6, 16
_TRIED = 100  # planes


def surface_points(model: Model, rays_o: Tensor, rays_d: Tensor) -> Tensor:
    """World points [m,3] float64 where world rays [n,3] meet a surface; those that meet none are left out."""
    to_scene = model.scene_from_world
    o = to_scene.apply(rays_o.double()).float()
    d = torch.nn.functional.normalize(to_scene.apply_directions(rays_d.double()), dim=1).float()
    depths, _ = model.median_depths(o.to(model.device), d.to(model.device))
    depths = depths.cpu()
    hit = depths > 0
    return to_scene.inverse().apply((o[hit] + depths[hit, None] * d[hit]).double())


def surface_point(model: Model, ray_o: Tensor, ray_d: Tensor) -> Tensor | None:
    """The world point [3] that one ray meets; None where there is nothing."""
    points = surface_points(model, ray_o[None], ray_d[None])
    return points[0] if len(points) else None


def cone(direction: Tensor, angle: float = PLANE_ANGLE) -> Tensor:
    """Directions [n,3] around one, on rings out to an angle."""
    across = torch.linalg.cross(direction.double(), torch.eye(3, dtype=torch.float64)[int(direction.abs().argmin())])
    across = across / across.norm()
    radii = angle * (torch.arange(_RINGS, dtype=torch.float64) + 1) / _RINGS
    turns = 2 * math.pi * torch.arange(_SPOKES, dtype=torch.float64) / _SPOKES
    r, t = (x.reshape(-1) for x in torch.meshgrid(radii, turns, indexing="ij"))
    spun = rotations_of(t[:, None] * (direction.double() / direction.norm())) @ across
    return (rotations_of(r[:, None] * spun) @ direction.double()[:, None])[:, :, 0]


def plane_through(points: Tensor, towards: Tensor) -> Tensor | None:
    """The unit normal [3] of the plane nearest to most of the points [n,3], on the side of the world point `towards`;
    None where they span none. Planes through three of the points are tried, and the one from which the points are least
    far in the median is fitted to those near it by least squares."""
    points = points.double()
    if len(points) < 3:
        return None
    triples = torch.rand(_TRIED, len(points), generator=torch.Generator().manual_seed(0)).topk(3, dim=1).indices
    a, b, c = points[triples].unbind(1)
    normals = torch.linalg.cross(b - a, c - a)
    lengths = normals.norm(dim=1)
    size = float((points - points.mean(dim=0)).norm(dim=1).max())
    good = lengths > 1e-6 * size**2
    if not bool(good.any()):
        return None
    normals, a = normals[good] / lengths[good, None], a[good]
    away = (points[None] - a[:, None]).mul(normals[:, None]).sum(dim=2).abs()  # [planes, points]
    medians = away.median(dim=1).values
    best = int(medians.argmin())
    near = points[away[best] <= 2.5 * medians[best] + 1e-6 * size]
    middle = near.mean(dim=0)
    normal = torch.linalg.eigh((near - middle).T @ (near - middle))[1][:, 0]
    return normal if float(normal @ (towards.double() - middle)) >= 0 else -normal


def plane_at(model: Model, ray_o: Tensor, ray_d: Tensor) -> tuple[Tensor, Tensor] | None:
    """(point, unit normal towards the viewer) [3] of the surface around a click; None where there is none."""
    point = surface_point(model, ray_o, ray_d)
    if point is None:
        return None
    directions = cone(ray_d)
    normal = plane_through(surface_points(model, ray_o.expand_as(directions), directions), ray_o)
    return None if normal is None else (point, normal)
