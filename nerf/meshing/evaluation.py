"""How far a mesh is from the true one: accuracy, completeness, Chamfer distance, F-score, normals; `nerf evalmesh`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from nerf import kernels
from nerf.errors import UserError
from nerf.geometry.light import shown_as
from nerf.geometry.triangles import Triangles, sample_surface
from nerf.meshing.preview import render_mesh
from nerf.training.evaluation import as_taken, compare, mask_of, truth_of

if TYPE_CHECKING:
    import trimesh

    from nerf.datasets import Scene
    from nerf.rendering.model import Model

F_SCORE_PERCENTS = (0.25, 0.5, 1.0)  # per cent of the truth's diagonal
_SUPERSAMPLE = 4  # of a pixel: with 2, the four shades of a silhouette's pixels cost 0.4 dB at 40 dB
_LENGTHS = ("accuracy", "completeness", "chamfer")
_MAX_SIZE_RATIO = 10.0  # of the two diagonals, beyond which frames are taken to differ


class FScore(NamedTuple):
    """Shares of points within a distance: of the mesh's to the truth, of the truth's to the mesh, harmonic mean."""

    precision: float
    recall: float
    f_score: float


@dataclass(frozen=True)
class MeshScores:
    """What `evaluate_mesh` measures; lengths in the units of the two meshes. As a string it is a table.

    >>> import trimesh
    >>> box = trimesh.creation.box()
    >>> scores = nerf.evaluate_mesh(box, box, samples=1000)
    >>> scores.f_scores["0.25"].f_score, scores.to_dict()["faces"]
    (1.0, 12)
    """

    accuracy: float  # mean distance of the mesh's points to the truth
    completeness: float  # mean distance of the truth's points to the mesh
    f_scores: dict[str, FScore]  # by the distance in per cent of the diagonal, of F_SCORE_PERCENTS
    normal_consistency: float  # mean |cosine| of a point's face normal and its nearest face's, over both ways
    diagonal: float  # of the truth's bounding box
    samples: int
    faces: int
    faces_of_truth: int

    @property
    def chamfer(self) -> float:
        """The mean of accuracy and completeness."""
        return (self.accuracy + self.completeness) / 2

    @property
    def chamfer_percent(self) -> float:
        """Of the diagonal."""
        return 100 * self.chamfer / self.diagonal

    def to_dict(self) -> dict[str, Any]:
        """As `nerf evalmesh` writes it: JSON-able, with lengths in per cent of the diagonal too."""
        lengths = {name: getattr(self, name) for name in _LENGTHS}
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*_LENGTHS, "f_scores")}
        percents = {f"{name}_percent": 100 * value / self.diagonal for name, value in lengths.items()}
        return lengths | percents | {"f_scores": {k: f._asdict() for k, f in self.f_scores.items()}} | rest

    def __str__(self) -> str:
        """A table for a person."""
        lines = [f"{'':20}{'length':>12}{'of diagonal':>14}"]
        for name, length in ((name, getattr(self, name)) for name in _LENGTHS):
            lines.append(f"{name:20}{length:12.5g}{100 * length / self.diagonal:12.4f} %")
        lines.append(f"{'within':20}{'precision':>12}{'recall':>14}{'F-score':>10}")
        lines += [f"{percent + ' %':20}{p:12.4f}{r:14.4f}{f:10.4f}" for percent, (p, r, f) in self.f_scores.items()]
        lines.append(f"{'normal consistency':20}{self.normal_consistency:12.4f}")
        counts = f"{self.samples:,} points on each; {self.faces:,} faces against {self.faces_of_truth:,}"
        return "\n".join([*lines, f"{counts}; diagonal {self.diagonal:.5g}"])


class ViewScore(NamedTuple):
    """One view: its photo's name, PSNR in dB, SSIM; None where its mask leaves nothing to compare."""

    name: str
    psnr: float | None
    ssim: float | None


class MeshViewScores(NamedTuple):
    """Means over views, how many there are, and each."""

    psnr: float
    ssim: float
    n_views: int
    views: list[ViewScore]

    def to_dict(self) -> dict[str, Any]:
        """As `nerf evalmesh` writes it: JSON-able."""
        return self._asdict() | {"views": [view._asdict() for view in self.views]}


def evaluate_mesh_views(
    mesh: trimesh.Trimesh,
    scene: Scene,
    added: Callable[[torch.Tensor], torch.Tensor] | None = None,
    model: Model | None = None,
) -> MeshViewScores:
    """PSNR and SSIM of a mesh (world frame) drawn in its colours, unlit, as the scene's test views, on white, within
    their masks. added: from a camera's place [3], what is added to the colours of vertices [v,3]. model: that the mesh
    is of, whose lenses' vignetting and flash the views have then, as `nerf.evaluate` gives them to its own. Not
    differentiable. Raises UserError where no view is held out."""
    rows, white = [], torch.ones(3)
    for i in scene.splits["test"].tolist():
        more = None if added is None else added(scene.cameras.centres[i])
        view = render_mesh(mesh, scene.cameras, i, supersample=_SUPERSAMPLE, added=more)
        if model is not None:
            view = replace(view, depth=view.depth * np.float32(model.scene_from_world.scale))
            view = as_taken(model, scene.cameras.subset([i]), view, white, linear=False)
        drawn = torch.from_numpy(view.color)
        scores = compare(drawn, shown_as(scene, truth_of(scene, i, white / scene.exposure)), mask_of(scene, i))
        numbers = scores.to_dict()
        rows.append(ViewScore(scene.names[i], numbers["psnr"], numbers["ssim"]))
    if not rows:
        raise UserError(f"{scene.path}: no view is held out, so there is none to compare with")
    psnr, ssim = (sum(score or 0.0 for score in scores) / len(rows) for scores in list(zip(*rows, strict=True))[1:])
    return MeshViewScores(psnr, ssim, len(rows), rows)


def evaluate_mesh(
    mesh: Triangles | trimesh.Trimesh, truth: Triangles | trimesh.Trimesh, samples: int = 200_000
) -> MeshScores:
    """Distances between two surfaces in one frame, from `samples` points sampled by area on each to the other's faces.

    A mesh against itself scores 0 but for float32 (1e-6 of its size). Deterministic; not differentiable.
    Sources: F-score, Knapitsch et al., "Tanks and Temples", 2017, equations 3 to 5; normal consistency, Mescheder et
    al., "Occupancy Networks", 2019.

    >>> import trimesh
    >>> box, larger = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((1.2, 1.2, 1.2))
    >>> f"{nerf.evaluate_mesh(box, larger, samples=6000).accuracy:.3f}"
    '0.100'
    """
    mesh, truth = Triangles.of(mesh), Triangles.of(truth)
    diagonal = truth.diagonal()
    to_truth, normals_there = _distances(mesh, truth, samples)
    to_mesh, normals_back = _distances(truth, mesh, samples)
    f_scores = {}
    for percent in F_SCORE_PERCENTS:
        within = percent / 100 * diagonal
        precision, recall = float((to_truth <= within).double().mean()), float((to_mesh <= within).double().mean())
        both = precision + recall
        f_scores[f"{percent:g}"] = FScore(precision, recall, 2 * precision * recall / both if both > 0 else 0.0)
    accuracy, completeness, normals = float(to_truth.mean()), float(to_mesh.mean()), (normals_there + normals_back) / 2
    counts = samples, len(mesh.faces), len(truth.faces)
    return MeshScores(accuracy, completeness, f_scores, normals, diagonal, *counts)


def _distances(one: Triangles, other: Triangles, samples: int) -> tuple[torch.Tensor, float]:
    """Distances [samples] of points of one surface to the other, and how well the normals agree."""
    points = sample_surface(one.vertices, one.faces, samples)
    corners = one.corners(points.faces)
    nearest = kernels.nearest_points((points.weights[..., None] * corners).sum(dim=1), other.vertices, other.faces)
    cosine = (_normals(corners) * _normals(other.corners(nearest.faces))).sum(dim=1).abs()
    return nearest.distances.double(), float(cosine.mean())


def _normals(corners: torch.Tensor) -> torch.Tensor:
    a, b, c = corners.unbind(dim=1)
    return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-300)


def check_frames(mesh: Triangles, truth: Triangles, mesh_name: str, truth_name: str) -> None:
    """UserError where two meshes cannot stand in one frame: boxes that do not touch, or of wholly different size."""
    (low, high), (true_low, true_high) = boxes = [m.box() for m in (mesh, truth)]
    apart = bool((low > true_high).any() or (high < true_low).any())
    ratio = mesh.diagonal() / max(truth.diagonal(), 1e-300)
    if truth.diagonal() == 0:
        raise UserError(f"{truth_name} has no extent, so nothing can be measured against it")
    if apart or not 1 / _MAX_SIZE_RATIO < ratio < _MAX_SIZE_RATIO:
        spans = [" to ".join(f"({', '.join(f'{float(x):.4g}' for x in corner)})" for corner in box) for box in boxes]
        raise UserError(
            f"{mesh_name} spans {spans[0]} and {truth_name} spans {spans[1]}: they do not stand in the same frame and "
            "units; bring one into the other's frame first"
        )
