"""Measurements of nerf.capture: seconds, photos placed, and errors against known poses."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from nerf import datasets
from nerf.capture import PosesArgs, find_poses
from nerf.space import Similarity


def poses(
    source: str, out: str, truth: str | None = None, frames: int | None = None, matching: Any = "auto"
) -> dict[str, Any]:
    """Photos or a video to poses, from nothing; errors against the poses of `truth` where there are some."""
    shutil.rmtree(out, ignore_errors=True)
    report = find_poses(PosesArgs(Path(source), Path(out), frames=frames, matching=matching))
    result = {k: report[k] for k in ("n_photos", "n_placed", "components", "n_points", "reprojection_error", "seconds")}
    result |= {"settings": report["settings"]["name"], "left_out": report["left_out"]}
    result |= {name: report[name] for name in ("pairs_compared", "pairs_matched")}
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    result["peak_bytes"] = peak * (1 if sys.platform == "darwin" else 1024)
    if truth is not None:
        result |= errors(Path(out), Path(truth), in_order_of_time=Path(source).is_file())
    return result


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


def errors(found: Path, truth: Path, in_order_of_time: bool) -> dict[str, Any]:
    """Against known poses after the similarity that brings the positions together best.

    Rotations in degrees; positions in per cent of the extent: twice the largest distance of a true one from their mean.
    """
    ours, true = (datasets.load(p, downscale=8, holdout=0, quiet=True) for p in (found, truth))
    a, b = ({Path(n).name: s.cameras.c2w[i] for i, n in enumerate(s.names)} for s in (ours, true))
    if in_order_of_time:  # frame_000007.jpg is the eighth photo
        names = sorted(b)
        a = {names[int(name[6:12])]: pose for name, pose in a.items()}
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
        "focal": [float(ours.cameras.fx.median()) * 8, float(true.cameras.fx.median()) * 8],
    }


def whole(source: str, out: str, minutes: float) -> dict[str, Any]:
    """`nerf reconstruct` on photos without poses: poses, field, numbers, video, mesh and report."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    command = [sys.executable, "-m", "nerf", "reconstruct", source, "-o", out, "--minutes", str(minutes)]
    status = subprocess.run(command).returncode
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
