"""Spaces: the similarity between world and scene, the contraction of unbounded scenes, and NDC for forward-facing ones.

Space kinds are plain strings: "box" (everything lies in [-1,1]^3 of the scene frame), "unbounded" (nested occupancy
levels; the contraction warps what the encoding eats) and "ndc" (scene rays are warped to normalised device coordinates
before marching).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Similarity:
    """x_s = scale * rotation @ x_w + translation, in float64; takes points of one frame (world) to another (scene)."""

    scale: float
    rotation: Tensor  # [3,3] float64, orthonormal, determinant +1
    translation: Tensor  # [3] float64

    def _at(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotation and translation on a device, copied there once: copying waits for a GPU."""
        placed = self.__dict__.setdefault("_placed", {})
        if device not in placed:
            placed[device] = self.rotation.to(device), self.translation.to(device)
        return placed[device]

    @staticmethod
    def identity() -> Similarity:
        return Similarity(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))

    @staticmethod
    def around(centre: Any, half_size: float) -> Similarity:
        """The unrotated map that takes the cube of the given centre [3] and half side length to [-1,1]^3."""
        c = torch.as_tensor(centre, dtype=torch.float64)
        return Similarity(1.0 / float(half_size), torch.eye(3, dtype=torch.float64), -c / float(half_size))

    def apply(self, points: Tensor) -> Tensor:
        """[...,3] -> [...,3], same dtype (computed in float64), differentiable."""
        r, t = self._at(points.device)
        return (self.scale * (points.double() @ r.T) + t).to(points.dtype)

    def apply_directions(self, directions: Tensor) -> Tensor:
        """Rotate directions [...,3]; their length is unchanged."""
        return (directions.double() @ self._at(directions.device)[0].T).to(directions.dtype)

    def inverse(self) -> Similarity:
        return Similarity(1.0 / self.scale, self.rotation.T.clone(), -(self.rotation.T @ self.translation) / self.scale)

    def compose(self, first: Similarity) -> Similarity:
        """The map that applies `first`, then self."""
        return Similarity(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.scale * (self.rotation @ first.translation) + self.translation,
        )

    def matrix(self) -> Tensor:
        """The same map as a homogeneous [4,4] float64 matrix."""
        m = torch.eye(4, dtype=torch.float64)
        m[:3, :3] = self.scale * self.rotation
        m[:3, 3] = self.translation
        return m

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives the same numbers back exactly."""
        return {"scale": self.scale, "rotation": self.rotation.tolist(), "translation": self.translation.tolist()}

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Similarity:
        return Similarity(
            float(d["scale"]),
            torch.tensor(d["rotation"], dtype=torch.float64),
            torch.tensor(d["translation"], dtype=torch.float64),
        )


def contract(x: Tensor) -> Tensor:
    """Squeeze space into [-2,2]^3: identity where |x|_inf <= 1, else (2 - 1/|x|_inf) x / |x|_inf.

    x [...,3] any float dtype -> same shape; differentiable. Source: mip-NeRF 360, eq. 10, with the L-inf norm.
    """
    norm = x.abs().amax(dim=-1, keepdim=True).clamp_min(1.0)
    return (x / norm) * (2.0 - 1.0 / norm)  # in this order the largest component is rounded once only


def uncontract(y: Tensor) -> Tensor:
    """Inverse of `contract`: y [...,3] with |y|_inf < 2 -> x; values at or beyond 2 come back very large but finite."""
    norm = y.abs().amax(dim=-1, keepdim=True).clamp_min(1.0)
    return y / (norm * (2.0 - norm).clamp_min(torch.finfo(y.dtype).tiny ** 0.25))


def ndc_points(points: Tensor, ndc: tuple[float, float]) -> Tensor:
    """Scene points [...,3] in front of the near plane (z <= -1) to NDC: (-a x/z, -b y/z, 1 + 2/z) with (a, b) = ndc.

    z = -1 (near plane) maps to -1, z = -inf to +1. Source: NeRF, appendix C, with n = 1 and f -> inf. Differentiable.
    """
    x, y, z = points.unbind(-1)
    return torch.stack([-ndc[0] * x / z, -ndc[1] * y / z, 1.0 + 2.0 / z], dim=-1)


def ndc_points_inverse(points: Tensor, ndc: tuple[float, float]) -> Tensor:
    """NDC points [...,3] back to the scene frame; NDC depth +1 is infinitely far and gives inf."""
    u, v, w = points.unbind(-1)
    z = 2.0 / (w - 1.0)
    return torch.stack([-u * z / ndc[0], -v * z / ndc[1], z], dim=-1)


def ndc_rays(rays_o: Tensor, rays_d: Tensor, ndc: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Warp scene-frame rays to NDC: (rays_o [n,3] on the near plane, rays_d [n,3] unit, t_near [n], t_far [n]).

    Rays look along -z; the scene's near plane is z = -1. t is NDC length, t_near = 0 lies on the near plane (NDC z =
    -1), t_far at infinity (NDC z = +1). A ray that does not look along -z never reaches either: t_near = t_far = 0, a
    miss. Source: NeRF, appendix C (eq. 25, 26). Differentiable.
    """
    ok = rays_d[:, 2:] < -1e-6
    d = torch.cat([torch.where(ok, rays_d[:, :2], 0.0), torch.where(ok, rays_d[:, 2:], -1.0)], dim=1)
    o = rays_o - ((1.0 + rays_o[:, 2:]) / d[:, 2:]) * d  # slide to z = -1
    start = ndc_points(o, ndc)
    end = torch.stack([-ndc[0] * d[:, 0] / d[:, 2], -ndc[1] * d[:, 1] / d[:, 2], torch.ones_like(d[:, 2])], dim=-1)
    step = end - start
    length = step.norm(dim=-1, keepdim=True)
    t_far = torch.where(ok[:, 0], length[:, 0], torch.zeros_like(length[:, 0]))
    return start, step / length, torch.zeros_like(t_far), t_far
