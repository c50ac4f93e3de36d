"""Frames and spaces: the similarity between world and scene, and the three kinds of scene that rays march through.

A `Space` says where rays are marched: `Box`, an object in [-1,1]^3 of the scene frame; `Unbounded`, nested boxes whose
outside is contracted for the encoding; `Ndc`, forward-facing captures whose rays are warped to normalised device
coordinates. The space takes points, directions and depths from scene to march and back, so nobody has to ask its kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nerf.errors import BadValue, Range, check_numbers

Rays = tuple[Tensor, Tensor, Tensor, Tensor]  # rays_o, rays_d [n,3], t_near, t_far [n]


@dataclass(frozen=True, eq=False)
class Similarity:
    """The map x_s = scale * rotation @ x_w + translation from one frame (world) to another (scene), in float64.

    Points and directions keep their dtype and device, and their gradients pass through. Rotation and translation are
    copied to the points' device at each call, for which a GPU waits: `to` places them there for good.

    >>> import torch
    >>> to_scene = Similarity.around(centre=[1.0, 2.0, 3.0], half_size=0.5)
    >>> to_scene.apply(torch.tensor([[1.5, 2.0, 3.0]])).tolist()
    [[1.0, 0.0, 0.0]]
    >>> to_scene.inverse().apply(torch.tensor([[1.0, 0.0, 0.0]])).tolist()
    [[1.5, 2.0, 3.0]]
    """

    scale: float  # scene lengths per world length
    rotation: Tensor  # [3,3] float64, orthonormal, determinant +1
    translation: Tensor  # [3] float64, scene lengths

    @staticmethod
    def identity() -> Similarity:
        return Similarity(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))

    @staticmethod
    def around(centre: Any, half_size: float) -> Similarity:
        """The unrotated map that takes the cube of the given centre [3] and half side length to [-1,1]^3."""
        c = torch.as_tensor(centre, dtype=torch.float64)
        return Similarity(1.0 / float(half_size), torch.eye(3, dtype=torch.float64), -c / float(half_size))

    def to(self, device: torch.device) -> Similarity:
        """The same map, its tensors on a device; itself where they are there already."""
        if self.rotation.device == device:
            return self
        return Similarity(self.scale, self.rotation.to(device), self.translation.to(device))

    def apply(self, points: Tensor) -> Tensor:
        """[...,3] -> [...,3], same dtype (computed in float64), differentiable."""
        here = self.to(points.device)
        return (self.scale * (points.double() @ here.rotation.T) + here.translation).to(points.dtype)

    def apply_directions(self, directions: Tensor) -> Tensor:
        """Rotate directions [...,3]; their length is unchanged."""
        return (directions.double() @ self.rotation.to(directions.device).T).to(directions.dtype)

    def apply_poses(self, c2w: Tensor) -> Tensor:
        """Camera poses [n,3,4] of the one frame in the other; their rotations stay orthonormal."""
        rotations = self.rotation.to(c2w.device) @ c2w[:, :, :3]
        return torch.cat([rotations, self.apply(c2w[:, :, 3])[:, :, None]], dim=2)

    def inverse(self) -> Similarity:
        """The map back."""
        return Similarity(1.0 / self.scale, self.rotation.T.clone(), -(self.rotation.T @ self.translation) / self.scale)

    def matrix(self) -> Tensor:
        """The same map as a homogeneous [4,4] float64 matrix."""
        m = torch.eye(4, dtype=torch.float64)
        m[:3] = torch.cat([self.scale * self.rotation, self.translation[:, None]], dim=1)
        return m

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives the same numbers back exactly."""
        return {"scale": self.scale, "rotation": self.rotation.tolist(), "translation": self.translation.tolist()}

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Similarity:
        rotation, translation = (torch.tensor(d[name], dtype=torch.float64) for name in ("rotation", "translation"))
        return checked_similarity(Similarity(float(d["scale"]), rotation, translation), "scene_from_world")


def checked_similarity(given: Any, name: str) -> Similarity:
    """One from outside, in float64; BadValue unless it is a scale above zero, a rotation and finite numbers."""
    if not isinstance(given, Similarity):
        raise BadValue(
            f"{name}: is of the type {type(given).__name__}, expected a nerf.Similarity, "
            "such as Similarity.around(centre=[0, 0, 0], half_size=1.5)"
        )
    scale = float(given.scale)
    rotation, translation = (torch.as_tensor(t, dtype=torch.float64) for t in (given.rotation, given.translation))
    if not 1e-15 <= scale <= 1e15:  # beyond, distances have no squares in float32
        raise BadValue(f"{name}: its scale is {scale:g}, expected a number above 0 (from 1e-15 to 1e15)")
    exact = rotation.shape == (3, 3) and torch.allclose(rotation @ rotation.T, torch.eye(3).double(), atol=1e-4)
    if not exact or float(torch.linalg.det(rotation)) < 0:
        raise BadValue(f"{name}: its rotation is no rotation [3,3] (orthonormal, with the determinant 1)")
    if translation.shape != (3,) or not bool(translation.isfinite().all()):
        raise BadValue(f"{name}: its translation is not three finite numbers")
    return Similarity(scale, rotation, translation)


class Space:
    """What the three spaces have in common; as it stands here, the march runs through the scene frame itself.

    Exactly one of `bounded`, `contracted` and `warped` is true of a space: what depends on its kind asks these.
    """

    name: str  # "box", "unbounded" or "ndc", as in files
    n_levels: int  # nested occupancy levels, boxes of half extent 1, 2, 4, ...
    bounded = False  # all there is lies in [-1,1]^3: an object
    contracted = False  # the field's encoding gets scene points contracted, see `contract`
    warped = False  # the march is not in the scene frame: directions and lengths change from place to place

    @property
    def half_extent(self) -> float:
        """Of the outermost box that rays are marched through."""
        return 2.0 ** (self.n_levels - 1)

    def clip_rays(self, rays_o: Tensor, rays_d: Tensor, near: float, far: float) -> Rays:
        """Scene rays (unit directions) as rays of the march, and where [n] they enter and leave it, between near and
        far (lengths of the march); t_near >= t_far is a miss. The rays are differentiable, their range is not."""
        t_near, t_far = ray_box(rays_o.detach(), rays_d.detach(), self.half_extent, near, far)
        return rays_o, rays_d, t_near, t_far

    def depth_to_t(self, rays_o: Tensor, rays_d: Tensor, depths: Tensor) -> Tensor:
        """Lengths along scene rays [n] (0: nowhere) as lengths t along the march; the inverse of `t_to_depth`."""
        return depths

    def t_to_depth(self, rays_o: Tensor, rays_d: Tensor, t: Tensor) -> Tensor:
        """Lengths t along the march [n] (0: nowhere) as lengths along the scene rays, at most 1e6."""
        return t

    def points_to_scene(self, points: Tensor) -> Tensor:
        """Points of the march [...,3] in the scene frame."""
        return points

    def points_to_march(self, points: Tensor) -> Tensor:
        """Scene points [...,3] as points of the march."""
        return points

    def directions_to_scene(self, points: Tensor, directions: Tensor) -> Tensor:
        """Unit directions [n,3] at points of the march [n,3] as unit directions in the scene frame."""
        return directions

    def directions_to_march(self, points: Tensor, directions: Tensor) -> Tensor:
        """Unit directions [n,3] at scene points [n,3] as unit directions of the march."""
        return directions


@dataclass(frozen=True)
class Box(Space):
    """An object: everything lies in [-1,1]^3 of the scene frame, and rays are marched through that cube.

    >>> import torch
    >>> towards = torch.tensor([[0.0, 0.0, -1.0]])
    >>> o, d, t_near, t_far = Box().clip_rays(torch.tensor([[0.0, 0.0, 3.0]]), towards, near=0.0, far=10.0)
    >>> t_near.tolist(), t_far.tolist()
    ([2.0], [4.0])
    """

    name, n_levels, bounded = "box", 1, True


@dataclass(frozen=True)
class Unbounded(Space):
    """A scene without a border: `n_levels` nested boxes, each twice as large as the one before, are marched through.

    What the cameras look at fills the first, [-1,1]^3. The encoding gets points contracted to [-2,2]^3 (mip-NeRF 360,
    Barron et al. 2022, equation 10, with the maximum norm).

    >>> Unbounded(5).half_extent
    16.0
    """

    n_levels: int

    name, contracted = "unbounded", True


@dataclass(frozen=True)
class Ndc(Space):
    """A forward-facing capture in normalised device coordinates: rays look along -z, from the near plane z = -1 of the
    scene frame (NDC -1) to infinity (NDC +1).

    Scene points map to (-a x/z, -b y/z, 1 + 2/z); a and b are chosen such that all pictures fall within [-1,1]^3.
    Differentiable. Source: NeRF (Mildenhall et al. 2020), appendix C, with n = 1 and f -> infinity.

    >>> import torch
    >>> space = Ndc(a=2.0, b=3.0)
    >>> space.points_to_march(torch.tensor([[0.5, 0.25, -2.0]])).tolist()
    [[0.5, 0.375, 0.0]]
    >>> space.points_to_scene(torch.tensor([[0.5, 0.375, 0.0]])).tolist()
    [[0.5, 0.25, -2.0]]
    """

    a: float
    b: float

    name, n_levels, warped = "ndc", 1, True

    def clip_rays(self, rays_o: Tensor, rays_d: Tensor, near: float, far: float) -> Rays:
        rays_o, rays_d, t_near, t_far = self.warp_rays(rays_o, rays_d)
        low, high = ray_box(rays_o.detach(), rays_d.detach(), 1.0, 0.0, far)
        return rays_o, rays_d, torch.maximum(low, t_near), torch.minimum(high, t_far)

    def warp_rays(self, rays_o: Tensor, rays_d: Tensor) -> Rays:
        """Scene rays in NDC (NeRF, equations 25 and 26): rays_o [n,3] on the near plane, rays_d [n,3] of unit length,
        t_near = 0 there, t_far [n] at infinity, both 0 (a miss) for rays that do not look along -z. Differentiable."""
        ok = rays_d[:, 2:] < -1e-6
        d = torch.cat([torch.where(ok, rays_d[:, :2], 0.0), torch.where(ok, rays_d[:, 2:], -1.0)], dim=1)
        o = rays_o - ((1.0 + rays_o[:, 2:]) / d[:, 2:]) * d  # slide to z = -1
        start = self.points_to_march(o)
        end = torch.stack([-self.a * d[:, 0] / d[:, 2], -self.b * d[:, 1] / d[:, 2], torch.ones_like(d[:, 2])], dim=-1)
        step = end - start
        length = step.norm(dim=-1, keepdim=True)
        t_far = torch.where(ok[:, 0], length[:, 0], 0.0)
        return start, step / length, torch.zeros_like(t_far), t_far

    def depth_to_t(self, rays_o: Tensor, rays_d: Tensor, depths: Tensor) -> Tensor:
        start, direction, *_ = self.warp_rays(rays_o, rays_d)
        points = self.points_to_march(rays_o + depths[:, None] * rays_d)
        return torch.where(depths > 0, ((points - start) * direction).sum(dim=1), 0.0)

    def t_to_depth(self, rays_o: Tensor, rays_d: Tensor, t: Tensor) -> Tensor:
        hit = (t > 0).nonzero()[:, 0]
        o, d, *_ = self.warp_rays(rays_o[hit], rays_d[hit])
        there = self.points_to_scene(o + t[hit, None] * d)
        return t.index_copy(0, hit, (there - rays_o[hit]).norm(dim=1).clamp_max(1e6))

    def points_to_scene(self, points: Tensor) -> Tensor:
        """NDC points [...,3] in the scene frame; NDC depth +1 is infinitely far and gives inf."""
        u, v, w = points.unbind(-1)
        z = 2.0 / (w - 1.0)
        return torch.stack([-u * z / self.a, -v * z / self.b, z], dim=-1)

    def points_to_march(self, points: Tensor) -> Tensor:
        """Scene points [...,3] in front of the near plane (z <= -1) in NDC."""
        x, y, z = points.unbind(-1)
        return torch.stack([-self.a * x / z, -self.b * y / z, 1.0 + 2.0 / z], dim=-1)

    def directions_to_scene(self, points: Tensor, directions: Tensor) -> Tensor:
        shifted = self.points_to_scene(points + 1e-3 * directions)
        return torch.nn.functional.normalize(shifted - self.points_to_scene(points), dim=1)

    def directions_to_march(self, points: Tensor, directions: Tensor) -> Tensor:
        shifted = self.points_to_march(points + 1e-3 * directions)
        return torch.nn.functional.normalize(shifted - self.points_to_march(points), dim=1)


def space_to_dict(space: Space) -> dict[str, Any]:
    """The three entries that a checkpoint keeps of a space."""
    ndc = (space.a, space.b) if isinstance(space, Ndc) else None
    return {"space": space.name, "n_levels": space.n_levels, "ndc": ndc}


def space_from_dict(d: dict[str, Any]) -> Space:
    """The inverse of `space_to_dict`. Raises KeyError or ValueError for what it did not write."""
    match d["space"]:
        case "box":
            return Box()
        case "unbounded":
            check_numbers(d, {"n_levels": Range(1, 16, whole=True)})
            return Unbounded(d["n_levels"])
        case "ndc":
            check_numbers(d, {"ndc": Range(0, 1e9, above=True, many=True)})
            return Ndc(*map(float, d["ndc"]))
    raise ValueError(f"no space is called {d['space']!r}")


def ray_box(
    rays_o: Tensor, rays_d: Tensor, half_extent: float, near: float = 0.0, far: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Where rays [n,3] cross the box [-half_extent, half_extent]^3, cut to [near, far]: (t_near, t_far) [n], in units
    of |d|; `t_near >= t_far` is a miss. An axis that a ray is parallel to allows everything, or nothing if the origin
    lies outside. Raises ValueError for other shapes."""
    if rays_o.dim() != 2 or rays_o.shape[1] != 3 or rays_d.shape != rays_o.shape:
        raise ValueError(f"rays_o, rays_d: expected shapes [n, 3], got {list(rays_o.shape)} and {list(rays_d.shape)}")
    parallel = rays_d == 0
    divisor = torch.where(parallel, 1.0, rays_d)
    t0, t1 = ((side - rays_o) / divisor for side in (-half_extent, half_extent))
    unlimited = torch.where(rays_o.abs() <= half_extent, math.inf, -math.inf).to(rays_o.dtype)
    t_enter = torch.where(parallel, -unlimited, torch.minimum(t0, t1)).amax(dim=1)
    t_exit = torch.where(parallel, unlimited, torch.maximum(t0, t1)).amin(dim=1)
    return t_enter.clamp(min=near), t_exit.clamp(max=far)


def contract(x: Tensor) -> Tensor:
    """Scene points [...,d] into [-2,2]^d: `(2 - 1/|x|_inf) * x/|x|_inf` where `|x|_inf > 1` (mip-NeRF 360, equation
    10, with the maximum norm). Differentiable; where two coordinates tie for the maximum they share its gradient."""
    # With the norm clamped at 1 the factor is exactly 1 inside, so one formula serves both sides.
    norm = x.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
    return x * ((2.0 - 1.0 / norm) / norm)


def scene_to_unit(x: Tensor, contracted: bool) -> Tensor:
    """Scene frame to unit frame, [n,d] to [n,d]: `(x+1)/2` for the box [-1,1]^d, else `(contract(x)+2)/4`."""
    return (contract(x) + 2.0) * 0.25 if contracted else (x + 1.0) * 0.5
