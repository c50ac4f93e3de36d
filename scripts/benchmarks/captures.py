"""Measurements of nerf.capture: seconds, photos placed, and errors against known poses."""

from __future__ import annotations

import hashlib
import math
import resource
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from nerf import datasets
from nerf.capture import CaptureOptions, find_poses
from nerf.datasets import Scene
from nerf.geometry.rotations import rotations_of
from nerf.geometry.space import Similarity
from nerf.io import children
from nerf.training.alignment import similarity_between, with_poses
from nerf.training.config import TrainConfig
from nerf.training.evaluation import evaluate
from nerf.training.loop import train as train_scene
from nerf.training.pose_refinement import scene_scale


def poses(
    source: str, out: str, truth: str | None = None, frames: int | None = None, matching: Any = "auto"
) -> dict[str, Any]:
    """Photos or a video to poses, from nothing; errors against the poses of `truth` where there are some."""
    shutil.rmtree(out, ignore_errors=True)
    report = find_poses(CaptureOptions(Path(source), Path(out), frames=frames, matching=matching)).to_dict()
    result = {k: report[k] for k in ("n_photos", "n_placed", "components", "n_points", "reprojection_error", "seconds")}
    result |= {"settings": report["settings"]["name"], "left_out": report["left_out"]}
    result |= {name: report[name] for name in ("pairs_compared", "pairs_matched", "way", "judgement")}
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    result["peak_bytes"] = peak * (1 if sys.platform == "darwin" else 1024)
    if truth is not None:
        result |= errors(Path(out), Path(truth), in_order_of_time=Path(source).is_file())
    return result


def unordered(source: str, out: str, truth: str, every: int = 1) -> dict[str, Any]:
    """Some of the photos under names that tell nothing of their order, without EXIF; errors against known poses."""
    photos = sorted(p for p in Path(source).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[::every]
    folder = Path(f"{out}-photos")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = {f"{hashlib.sha1(p.name.encode()).hexdigest()[:10]}{p.suffix}": p.name for p in photos}
    for name, photo in zip(names, photos, strict=True):
        shutil.copy(photo, folder / name)
    return poses(str(folder), out) | errors(Path(out), Path(truth), in_order_of_time=False, names=names)


def film(source: str, out: str, truth: str) -> dict[str, Any]:
    """The same from a video that is made of the photos, one frame for each; nothing but the order is given."""
    import av

    photos = sorted(p for p in Path(source).iterdir() if p.suffix == ".jpg")
    video = Path(out).with_suffix(".mp4")
    video.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(video), "w") as container:
        with Image.open(photos[0]) as first:
            width, height = first.size
        stream: Any = container.add_stream("libx264", rate=5, options={"crf": "14"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for photo in photos:
            frame = av.VideoFrame.from_ndarray(numpy.asarray(Image.open(photo).convert("RGB")), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return poses(str(video), out, truth, frames=len(photos)) | {"video_bytes": video.stat().st_size}


def errors(found: Path, truth: Path, in_order_of_time: bool, names: dict[str, str] | None = None) -> dict[str, Any]:
    """Against known poses after the similarity that brings the positions together best.

    Rotations in degrees; positions in per cent of the extent: twice the largest distance of a true one from their mean.
    """
    ours, true = (datasets.load(p, downscale=8, holdout=0, quiet=True) for p in (found, truth))
    a, b = ({Path(n).name: s.cameras.c2w[i] for i, n in enumerate(s.names)} for s in (ours, true))
    if in_order_of_time:  # frame_000007.jpg is the eighth photo
        in_order = sorted(b)
        a = {in_order[int(name[6:12])]: pose for name, pose in a.items()}
    if names is not None:
        a = {names[name]: pose for name, pose in a.items()}
    focal = [float(ours.cameras.fx.median()) * 8, float(true.cameras.fx.median()) * 8]
    return {**apart(a, b), "focal": focal}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Any]:
    """How far the camera-to-world poses [3,4] of a lie from those of b, by name, after the best similarity."""
    common = sorted(set(a) & set(b))
    mine, theirs = (torch.stack([of[name] for name in common]) for of in (a, b))
    fit = aligned(mine[:, :, 3], theirs[:, :, 3])
    cosines = (((fit.rotation @ mine[:, :, :3]) * theirs[:, :, :3]).sum(dim=(1, 2)) - 1) / 2
    angles = cosines.clamp(-1, 1).acos().rad2deg()
    off = (fit.apply(mine[:, :, 3]) - theirs[:, :, 3]).norm(dim=1)
    extent = 2 * float((theirs[:, :, 3] - theirs[:, :, 3].mean(dim=0)).norm(dim=1).max())
    return {
        "n_compared": len(common),
        "rotation_median": float(angles.median()),
        "rotation_max": float(angles.max()),
        "position_median_percent": 100 * float(off.median()) / extent,
        "position_max_percent": 100 * float(off.max()) / extent,
    }


def halves(model: str, seed: int = 0) -> dict[str, Any]:
    """How well its own matches fix the poses of a COLMAP model, whose lenses it keeps: bundle adjustment of all its
    points, and of two random halves of them, each from the poses as given. Halves that differ by d leave an error of
    about d / 2 to all of them together.
    """
    import pycolmap

    from nerf.capture.mapping import adjust

    half = torch.rand(10_000_000, generator=torch.Generator().manual_seed(seed)) < 0.5
    found = []
    for kept in (half | True, half, ~half):
        part = pycolmap.Reconstruction(model)
        if not found:
            given = _poses_of(part)
        for point in part.point3D_ids():
            if not kept[point]:
                part.delete_point3D(point)
        adjust(part, centre=False)
        found.append(_poses_of(part))
    return {
        "adjusted_from_given": apart(found[0], given),
        "half_from_all": [apart(some, found[0]) for some in found[1:]],
        **apart(found[1], found[2]),
    }


def _poses_of(model: Any) -> dict[str, Tensor]:
    """{name: camera-to-world [3,4], OpenCV's axes} of a pycolmap model."""
    images = [model.images[i] for i in model.reg_image_ids()]
    return {str(i.name): torch.from_numpy(i.cam_from_world().inverse().matrix()) for i in images}


def noise(
    scene: str, degrees: float, minutes: float, refine: bool, downscale: int = 1, seed: int = 0
) -> dict[str, Any]:
    """Train with poses that are off, training and test cameras alike, and score with and without alignment.

    Each camera turns about its own centre by an axis-angle vector, and moves by a shift, whose components are normal;
    sigma: `degrees`, and as many radians of the (median) distance to the subject. psnr: cameras as given, moved as the
    training's were on the whole; psnr_aligned: after test-time alignment, which the unrefined get as well.
    """
    given = datasets.load(scene, downscale=downscale, quiet=True)
    n, random, off = len(given.cameras), torch.Generator().manual_seed(seed), math.radians(degrees)
    turns, shifts = (torch.randn(n, 3, generator=random, dtype=torch.float64) * off for _ in range(2))
    shifts *= scene_scale(given.cameras, given.scene_from_world) / given.scene_from_world.scale
    c2w = given.cameras.c2w
    shifted = (c2w[:, :, 3] + shifts)[:, :, None]
    wrong = with_poses(given, torch.cat([rotations_of(turns) @ c2w[:, :, :3], shifted], dim=2))
    config = TrainConfig(minutes=minutes, refine_poses=refine)
    with TemporaryDirectory() as scratch:
        model = train_scene(wrong, config, scratch, progress=sys.stderr.isatty())
    train = given.splits["train"]
    if model.given_poses is None:
        model.names, model.given_poses = [given.names[i] for i in train.tolist()], wrong.cameras.c2w[train]
    result = evaluate(model, wrong, show_progress=False).to_dict()
    names = ("psnr", "ssim", "psnr_colour_corrected", "psnr_aligned", "ssim_aligned", "protocol", "views")
    return {
        **{name: result[name] for name in names},
        "seconds": model.meta["seconds"],
        "steps": model.meta["steps"],
        "before": pose_errors(wrong.cameras.c2w[train], given, train),
        "after": pose_errors(model.cameras.c2w, given, train),
        "config": asdict(config),
    }


def pose_errors(c2w: torch.Tensor, given: Scene, ids: torch.Tensor) -> dict[str, float]:
    """Medians after the best similarity: degrees, and per cent of the distance to the subject."""
    true = given.cameras.c2w[ids]
    c2w = similarity_between(c2w, true).apply_poses(c2w)
    cosines = ((c2w[:, :, :3] * true[:, :, :3]).sum(dim=(1, 2)) - 1) / 2
    distance = scene_scale(given.cameras, given.scene_from_world) / given.scene_from_world.scale
    off = (c2w[:, :, 3] - true[:, :, 3]).norm(dim=1)
    degrees = cosines.clamp(-1, 1).acos().rad2deg()
    return {"rotation_median": float(degrees.median()), "position_median_percent": 100 * float(off.median()) / distance}


def whole(source: str, out: str, minutes: float) -> dict[str, Any]:
    """`nerf reconstruct` on photos without poses: poses, field, numbers, video, mesh and report."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    command = children.python("-m", "nerf", "reconstruct", source, "-o", out, "--minutes", str(minutes))
    status = children.run(command, cwd=Path.cwd()).returncode
    wrote = [name for name in ("video.mp4", "mesh.glb", "report.html") if (Path(out) / name).is_file()]
    return {"seconds": time.perf_counter() - started, "status": status, "wrote": wrote}


def aligned(positions: Tensor, onto: Tensor) -> Similarity:
    """The similarity that takes positions [n,3] onto others of least squared distance (Umeyama 1991, eq. 40-42)."""
    a, b = positions.double(), onto.double()
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    covariance = (b - mean_b).T @ (a - mean_a) / len(a)
    u, s, vt = torch.linalg.svd(covariance)
    sign = torch.ones(3, dtype=torch.float64)
    if float(torch.linalg.det(u) * torch.linalg.det(vt)) < 0:
        sign[2] = -1
    rotation = u @ torch.diag(sign) @ vt
    variance = float((a - mean_a).square().sum() / len(a))
    scale = float((s * sign).sum()) / max(variance, 1e-300)
    return Similarity(scale, rotation, mean_b - scale * (rotation @ mean_a))
