"""What a report shows of a run beside its numbers: depth and normals, where views are good from above, the exposure of
each photo; and in words what stands out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from nerf.geometry.aim import common_up
from nerf.io.folders import make_folder
from nerf.io.pictures import INK, apply_colour_map, panels, resized, write_png
from nerf.views.video import find_depth_range, picture_of

if TYPE_CHECKING:
    from nerf.geometry.cameras import Cameras
    from nerf.rendering.model import Model
    from nerf.training.scores import Evaluation

INSIDE, ABOVE, EXPOSURE = "survey/inside.png", "survey/above.png", "survey/exposure.png"
PICTURES = (INSIDE, ABOVE, EXPOSURE)
_LONGEST, _SIDE = 640, 900  # pixels of one picture
_WORSE = 4.0  # dB below the middle of all, from which on a view is named
_AWAY = math.radians(12)  # from the nearest photo's direction, or as an angle at what is looked at: nobody looked there
_NAMED = 5  # views at most


def write_survey(model: Model, cameras: Cameras, found: Evaluation, out: Path) -> list[str]:
    """Write PICTURES into `out`, exposure only where it was learnt; returns what stands out, a sentence each. cameras:
    of the scene whose views were measured."""
    make_folder(out / "survey")
    ranked = sorted((view for view in found.views if math.isfinite(view.psnr)), key=lambda view: view.psnr)
    if not ranked:
        return []
    rows = []
    for view in (ranked[len(ranked) // 2], ranked[0]):
        camera = cameras.subset([view.index])
        camera = camera.scaled(max(1, round(max(view.width, view.height) / _LONGEST)))
        seen = model.render_image(camera, 0, samples=1)
        limits = find_depth_range(model, camera)
        pictures = [picture_of(seen, mode, limits, model) for mode in ("color", "depth", "normal")]
        words = f"{Path(view.name).name[-40:]}  {view.psnr:.2f} dB"
        rows.append(panels([resized(p, _LONGEST) for p in pictures], [words, "depth", "normals"]))
    wide = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, wide - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    write_png(out / INSIDE, np.concatenate(rows))
    index = torch.tensor([view.index for view in ranked])
    write_png(out / ABOVE, _above(model.cameras, cameras.subset(index), [view.psnr for view in ranked]))
    said = _far_from_photos(model, cameras, found)
    if model.log_gains is not None:
        stops = model.log_gains.mean(dim=1) / math.log(2)
        write_png(out / EXPOSURE, _bars(stops.tolist()))
        said.append(
            f"exposure differs by {float(stops.max() - stops.min()):.1f} stops from photo to photo, and was learnt"
        )
    return said


def _far_from_photos(model: Model, cameras: Cameras, found: Evaluation) -> list[str]:
    """Which views are much worse than the middle of all, and whether photos are near them."""
    scores = [view.psnr for view in found.views if math.isfinite(view.psnr)]
    usual, said = float(np.median(scores)), []
    for view in sorted(found.views, key=lambda view: view.psnr)[:_NAMED]:
        if not view.psnr < usual - _WORSE:
            break
        away = _from_nearest(cameras.subset([view.index]), model)
        why = (
            f"no photo was taken within {math.degrees(_AWAY):.0f} degrees of it"
            if away > _AWAY
            else ("photos were taken beside it, so light, things that move or its pose may be the cause")
        )
        said.append(f"{view.name} is {usual - view.psnr:.1f} dB worse than the middle of all views: {why}")
    return said


def _from_nearest(camera: Cameras, model: Model) -> float:
    """The least angle, radians, from a camera [1] to a photo trained on: between their directions of view, and at the
    middle of what the scene shows, whichever is larger."""
    middle = model.scene_from_world.inverse().apply(torch.zeros(1, 3, dtype=torch.float64))

    def unit(v: Tensor) -> Tensor:
        return torch.nn.functional.normalize(v, dim=1)

    cosines = [model.cameras.forward @ camera.forward[0]]
    cosines.append(unit(model.cameras.centres - middle) @ unit(camera.centres - middle)[0])
    return float(torch.stack(cosines).clamp(-1, 1).acos().amax(dim=0).min())


def _above(trained: Cameras, measured: Cameras, scores: list[float]) -> np.ndarray:
    """Cameras from above, arrows along their view: grey those trained on, those measured by their PSNR."""
    up = common_up(trained)[0]
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.eye(3).double()[int(up.abs().argmin())], up), dim=0)
    plan = torch.stack([right, torch.linalg.cross(up, right)], dim=1)
    places = torch.cat([trained.centres, measured.centres]) @ plan
    ahead = torch.cat([trained.forward, measured.forward]) @ plan
    low, high = places.amin(dim=0), places.amax(dim=0)
    span = 1.2 * max(float((high - low).max()), 1e-9)
    low_score, high_score = min(scores), max(max(scores), min(scores) + 1e-6)
    grey = np.full((len(trained), 3), 190, np.uint8)
    colours = np.concatenate([grey, apply_colour_map(np.array([scores]), low_score, high_score, "depth")[0]])
    canvas = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(canvas)

    def pixel(p: Tensor) -> tuple[float, float]:
        x, y = (0.5 + (p - (low + high) / 2) / span * torch.tensor([1.0, -1.0])).tolist()
        return x * _SIDE, y * _SIDE

    for place, direction, colour in zip(places, ahead, colours, strict=True):
        fill = tuple(int(c) for c in colour)
        (x, y), tip = pixel(place), pixel(place + direction * span * 0.035)
        draw.line((x, y, *tip), fill=fill, width=2)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=fill, outline=INK)
    return panels(
        [np.asarray(canvas)],
        ["grey: trained on; in colours: PSNR of views that were measured"],
        ("depth", f"{low_score:.1f} dB", f"{high_score:.1f} dB"),
    )


def _bars(stops: list[float], height: int = 220) -> np.ndarray:
    """A bar for each photo, in their order: by how many stops it is brighter than the mean."""
    width, limit = max(2, min(12, 1200 // len(stops))), max(0.5, max(map(abs, stops)))
    canvas = Image.new("RGB", (width * len(stops), height), "white")
    draw = ImageDraw.Draw(canvas)
    for k, value in enumerate(stops):
        ends = sorted((height / 2, height / 2 * (1 - value / limit)))
        draw.rectangle((k * width, ends[0], k * width + width - 2, ends[1]), fill=(38, 112, 200))
    draw.line((0, height / 2, canvas.width, height / 2), fill=INK)
    return panels([np.asarray(canvas)], [f"exposure of each photo trained on, -{limit:.1f} to {limit:.1f} stops"])
