"""How far a mesh is from the true one: accuracy, completeness, Chamfer distance, F-score, normals; `nerf evalmesh`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nerf import kernels
from nerf.errors import UserError
from nerf.geometry.triangles import Triangles, sample_surface
from nerf.meshing.preview import render_mesh
from nerf.training.evaluation import compare, mask_of, shown_as, truth_of

if TYPE_CHECKING:
    import trimesh

    from nerf.datasets import Scene

F_SCORE_PERCENTS = (0.25, 0.5, 1.0)  # per cent of the truth's diagonal
_SUPERSAMPLE = 4  # of a pixel: with 2, the four shades of a silhouette's pixels cost 0.4 dB at 40 dB
_MAX_SIZE_RATIO = 10.0  # of the two diagonals, beyond which frames are taken to differ


def evaluate_mesh_views(mesh: trimesh.Trimesh, scene: Scene) -> dict[str, Any]:
    """PSNR and SSIM of a mesh (world frame) drawn in its colours, unlit, as the scene's test views, on white; means and
    one by one. Pixels outside a view's mask do not count."""
    white = torch.ones(3)
    rows = []
    for i in scene.splits["test"].tolist():
        drawn = torch.from_numpy(render_mesh(mesh, scene.cameras, i, supersample=_SUPERSAMPLE)["color"])
        numbers = compare(drawn, shown_as(scene, truth_of(scene, i, white / scene.exposure)), mask_of(scene, i))
        rows.append({"name": scene.names[i], "psnr": numbers["psnr"], "ssim": numbers["ssim"]})
    if not rows:
        raise UserError(f"{scene.path}: no view is held out, so there is none to compare with")
    means = {k: sum(row[k] or 0.0 for row in rows) / len(rows) for k in ("psnr", "ssim")}
    return means | {"n_views": len(rows), "views": rows}


def evaluate_mesh(mesh: Triangles, truth: Triangles, samples: int = 200_000) -> dict[str, Any]:
    """Distances between two surfaces, from `samples` points sampled by area on each to the faces of the other.

    Returns, in units of the frame: "accuracy", mean distance of the mesh's points to the truth; "completeness", of the
    truth's to the mesh; "chamfer", the mean of both; each also as "..._percent" of the diagonal of the truth's bounding
    box. "f_scores": {per cent of the diagonal: {"precision", "recall", "f_score"}}. "normal_consistency": mean over
    both ways of |cosine| between a point's face normal and that of the face nearest to it.
    A mesh against itself scores 0 but for float32 (1e-6 of its size). Not differentiable.
    Sources: F-score, Knapitsch et al., "Tanks and Temples", 2017, equations 3 to 5; normal consistency, Mescheder et
    al., "Occupancy Networks", 2019.
    """
    diagonal = truth.diagonal()
    to_truth, normals_there = _distances(mesh, truth, samples)
    to_mesh, normals_back = _distances(truth, mesh, samples)
    means = {"accuracy": float(to_truth.mean()), "completeness": float(to_mesh.mean())}
    means["chamfer"] = (means["accuracy"] + means["completeness"]) / 2
    f_scores = {}
    for percent in F_SCORE_PERCENTS:
        within = percent / 100 * diagonal
        precision, recall = float((to_truth <= within).double().mean()), float((to_mesh <= within).double().mean())
        both = precision + recall
        f_score = 2 * precision * recall / both if both > 0 else 0.0
        f_scores[f"{percent:g}"] = {"precision": precision, "recall": recall, "f_score": f_score}
    return {
        **means,
        **{f"{name}_percent": 100 * value / diagonal for name, value in means.items()},
        "f_scores": f_scores,
        "normal_consistency": (normals_there + normals_back) / 2,
        "diagonal": diagonal,
        "samples": samples,
        "faces": len(mesh.faces),
        "faces_of_truth": len(truth.faces),
    }


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
    boxes = [m.box() for m in (mesh, truth)]
    (low, high), (true_low, true_high) = boxes
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


def format_scores(result: dict[str, Any]) -> str:
    """The numbers of `evaluate_mesh` for a person."""
    lines = [f"{'':20}{'length':>12}{'of diagonal':>14}"]
    for name in ("accuracy", "completeness", "chamfer"):
        lines.append(f"{name:20}{result[name]:12.5g}{result[f'{name}_percent']:12.4f} %")
    lines.append(f"{'within':20}{'precision':>12}{'recall':>14}{'F-score':>10}")
    for percent, f in result["f_scores"].items():
        lines.append(f"{percent + ' %':20}{f['precision']:12.4f}{f['recall']:14.4f}{f['f_score']:10.4f}")
    lines.append(f"{'normal consistency':20}{result['normal_consistency']:12.4f}")
    lines.append(
        f"{result['samples']:,} points on each; {result['faces']:,} faces against {result['faces_of_truth']:,}; "
        f"diagonal {result['diagonal']:.5g}"
    )
    return "\n".join(lines)
