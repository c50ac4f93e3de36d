"""Corrections of camera poses from the gradients of the rays: SO(3) x R^3 for each camera, without a drift of all."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf.geometry.cameras import Cameras
from nerf.geometry.lenses import sees_ahead_only
from nerf.geometry.rotations import rotations_of
from nerf.geometry.space import Similarity
from nerf.training.distributed import ALONE, Ranks
from nerf.training.optimiser import SmallAdam

DAMPING = 0.1  # of the diagonal, in the preconditioner (CamP, section 4.2)
SETTLING = 20  # steps of the cameras after which theirs are half as long
ALWAYS, EVERY = 300, 4  # so many steps of training move cameras, then one in so many
NEAREST, FARTHEST = 0.5, 4.0  # depths that count when parameters are weighed, in viewing distances


def scene_scale(cameras: Cameras, scene_from_world: Similarity) -> float:
    """Median distance of the cameras from the scene's origin, which is what they look at; scene units."""
    return float(scene_from_world.apply(cameras.centres).norm(dim=1).median())


class PoseCorrections:
    """What is added to the poses of n cameras, in the scene frame: directions are turned about the camera's own centre,
    d' = R d, and origins shifted, o' = o + v.

    A step is R <- exp(w) R, v <- v + D s, with (w, s) [6] from Adam: w in radians, s in viewing distances D, so that
    both move the picture alike. Adam sees z with (w, s) = P z, where P whitens what the parameters do to the pictures
    (CamP: Park et al. 2023, section 4): a turn and a sideways shift look nearly the same, and are told apart slowly
    else. The similarity that is common to all cameras cannot be seen in photos; it is projected out of each step, so
    that the cameras stay in the frame in which they were given.
    """

    def __init__(
        self, cameras: Cameras, ids: Tensor, scene_from_world: Similarity, distance: float, fixed_frame: bool = True
    ) -> None:
        """cameras: all of a scene, on the device of the rays; ids: those that may move; distance: D, scene units.

        fixed_frame False: each camera moves by itself, in front of a field that is done.
        """
        device, n = cameras.c2w.device, len(cameras)
        self.distance = distance
        self.ids = ids.to(device)
        self.rotations = torch.eye(3, dtype=torch.float64, device=device).repeat(n, 1, 1)
        self.shifts = torch.zeros(n, 3, dtype=torch.float64, device=device)
        self.adam = SmallAdam((n, 6), device)
        host = cameras.to(torch.device("cpu")).subset(ids.cpu())
        whitening = torch.zeros(n, 6, 6, dtype=torch.float64)
        whitening[ids.cpu()] = _whitening(host, scene_from_world)
        self.whitening = whitening.to(device)
        centres = scene_from_world.apply(host.centres) / distance
        self.frame = _similarities(centres).to(device) if fixed_frame else None  # [6 n_ids, 7], orthonormal
        self._packed: Tensor | None = None

    def apply(self, image_ids: Tensor, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
        """Rays [n,3] of the given cameras as the corrected ones have them; no gradient."""
        if self._packed is None:
            columns = self.rotations.transpose(1, 2).reshape(-1, 9)
            self._packed = torch.cat([columns, self.shifts], dim=1).float()
        p = self._packed.index_select(0, image_ids)
        turned = p[:, 0:3] * rays_d[:, 0:1] + p[:, 3:6] * rays_d[:, 1:2] + p[:, 6:9] * rays_d[:, 2:3]
        return rays_o + p[:, 9:12], turned

    @staticmethod
    def moves(since: int) -> bool:
        """Whether the cameras move in this step of training, counted from the first that may move them.

        Gradients of rays cost nearly half as much again as a step without; most of the way is gone in the first ones.
        """
        return since >= 0 and (since < ALWAYS or since % EVERY == 0)

    def rate(self, first: float) -> float:
        """The rate of the next step: as 1 / n, for a mean of noisy gradients (Robbins and Monro 1951).

        At a constant rate the cameras jitter by several times a step's length: at 1e-3 by 3 pixels in photos of 1920,
        for as long as it lasts, and the field learns no detail meanwhile.
        """
        return first / (1.0 + self.adam.n_updates / SETTLING)

    def step(
        self, image_ids: Tensor, rays_d: Tensor, grad_o: Tensor, grad_d: Tensor, rate: float, ranks: Ranks = ALONE
    ) -> None:
        """One step of Adam from the gradients [n,3] to the corrected rays (rays_d: their directions), of all ranks.

        For exp(w) d' at w = 0, dL/dw = d' x dL/dd'.
        """
        per_ray = torch.cat([torch.linalg.cross(rays_d, grad_d), grad_o * self.distance], dim=1)
        gradient = torch.zeros_like(self.adam.state.m).index_add_(0, image_ids, per_ray)
        ranks.mean_gradient(gradient)
        gradient = torch.einsum("nji,nj->ni", self.whitening, gradient.double()).float().contiguous()
        z = torch.zeros_like(gradient)
        self.adam.step(z, gradient, rate)
        moved = torch.einsum("nij,nj->ni", self.whitening, z.double())[self.ids]
        if self.frame is not None:
            flat = moved.reshape(-1)
            moved = _without(flat, self.frame).reshape(-1, 6)
        self.rotations[self.ids] = rotations_of(moved[:, :3]) @ self.rotations[self.ids]
        self.shifts[self.ids] += self.distance * moved[:, 3:]
        self._packed = None

    def poses(self, c2w: Tensor, scene_from_world: Similarity) -> Tensor:
        """Given poses [n,3,4] (all cameras, world, float64) with the corrections, on the CPU."""
        r, c2w = scene_from_world.rotation.cpu(), c2w.cpu()
        turned = r.T @ self.rotations.cpu() @ r @ c2w[:, :, :3]
        shifts = (self.shifts.cpu() @ r) / scene_from_world.scale
        return torch.cat([turned, c2w[:, :, 3:] + shifts[:, :, None]], dim=2)

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored to go on bit for bit."""
        return {"rotations": self.rotations, "shifts": self.shifts} | self.adam.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.rotations, self.shifts = (tensors[name].to(self.shifts.device) for name in ("rotations", "shifts"))
        self.adam.restore(tensors)
        self._packed = None


def _similarities(centres: Tensor) -> Tensor:
    """What an infinitesimal similarity of all n cameras does to their (w, s): an orthonormal basis [6n, 7].

    Turning by a: w = a, s = a x c; shifting by b: s = b; growing by g: s = g c. centres [n,3] in viewing distances.
    """
    n, eye = len(centres), torch.eye(3, dtype=torch.float64)
    generators = torch.zeros(7, n, 6, dtype=torch.float64)
    for k in range(3):
        generators[k, :, :3] = eye[k]
        generators[k, :, 3:] = torch.linalg.cross(eye[k].expand(n, 3), centres)
        generators[3 + k, :, 3:] = eye[k]
    generators[6, :, 3:] = centres - centres.mean(dim=0)
    basis = torch.zeros(6 * n, 0, dtype=torch.float64)
    for one in generators.reshape(7, -1):
        rest = _without(_without(one, basis), basis)  # twice is enough (Kahan)
        if (length := rest.square().sum().sqrt()) > 1e-9 * one.square().sum().sqrt():
            basis = torch.cat([basis, (rest / length)[:, None]], dim=1)
    return basis


def _without(x: Tensor, basis: Tensor) -> Tensor:
    """What of x [m] lies outside an orthonormal basis [m,k]. Sums over the first axis, as matrix products (and a
    singular value decomposition) add in an order that depends on the number of threads."""
    return x - (basis * (basis * x[:, None]).sum(dim=0)).sum(dim=1)


def _whitening(cameras: Cameras, scene_from_world: Similarity) -> Tensor:
    """P = (J^T J + damping)^(-1/2) [n,6,6], where J is what (w, s) do to the places of points in the picture, in
    radians of the camera's middle, over a frustum of depths about the viewing distance."""
    n = len(cameras)
    turn = scene_from_world.rotation @ cameras.c2w[:, :, :3]  # columns: right, up, backward, in the scene
    half_x, half_y = 0.5 * cameras.widths / cameras.fx, 0.5 * cameras.heights / cameras.fy
    places = torch.linspace(-0.8, 0.8, 5, dtype=torch.float64)
    inverse_depths = torch.linspace(1 / FARTHEST, 1 / NEAREST, 4, dtype=torch.float64)
    x, y, q = (t.reshape(-1) for t in torch.meshgrid(places, places, inverse_depths, indexing="ij"))
    x, y = x[None] * half_x[:, None], y[None] * half_y[:, None]  # [n,m] tangents
    q = q[None].expand(n, -1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    # A point at (x, y, -1) / q in the camera moves by -(w x p + s): du = dX + x dZ over depth, dv likewise.
    du = torch.stack([-x * y, 1 + x * x, y * one, -q, zero, -x * q], dim=2)
    dv = torch.stack([-(1 + y * y), x * y, -x * one, zero, -q, -y * q], dim=2)
    jacobian = torch.cat([du, dv], dim=1)  # [n,2m,6], camera frame
    wide = ~sees_ahead_only(cameras.models)
    if bool(wide.any()):
        jacobian[wide] = _on_the_sphere(x[wide], y[wide], q[wide], cameras.spherical[wide])
    normal = torch.einsum("nmi,nmj->nij", jacobian, jacobian) / (2 * x.shape[1])
    normal = normal + DAMPING * torch.diag_embed(normal.diagonal(dim1=1, dim2=2))
    values, vectors = torch.linalg.eigh(normal)
    root = vectors @ torch.diag_embed(values.clamp_min(1e-9).rsqrt()) @ vectors.transpose(1, 2)
    both = torch.zeros(n, 6, 6, dtype=torch.float64)
    both[:, :3, :3] = both[:, 3:, 3:] = turn
    return both @ root


def _on_the_sphere(x: Tensor, y: Tensor, q: Tensor, spherical: Tensor) -> Tensor:
    """What (w, s) do to directions at places (x, y) [n,m] of a fisheye (radians from the axis) or of a panorama
    (longitude and latitude), at inverse distances q: in longitude's and latitude's sense [n,2m,6], camera frame."""
    r = torch.sqrt(x * x + y * y).clamp_min(1e-12)
    longitude = torch.where(spherical[:, None], x, torch.atan2(x * r.sin() / r, r.cos()))
    latitude = torch.where(spherical[:, None], y, torch.asin((y * r.sin() / r).clamp(-1, 1)))
    sin, cos, zero = longitude.sin(), longitude.cos(), torch.zeros_like(x)
    d = torch.stack([sin * latitude.cos(), latitude.sin(), -cos * latitude.cos()], dim=2)
    across = torch.stack([cos, zero, sin], dim=2)
    upwards = torch.stack([-sin * latitude.sin(), latitude.cos(), cos * latitude.sin()], dim=2)
    # A point at d / q moves by -(w x p + s), its direction by what of that is at right angles to it, times q.
    rows = [torch.cat([-torch.linalg.cross(d, a), -q[..., None] * a], dim=2) for a in (across, upwards)]
    return torch.cat(rows, dim=1)
