"""Measure a model on views of a scene: numbers with their whole protocol as JSON, and pictures; `nerf eval`."""

from __future__ import annotations

import datetime
import json
import math
import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nerf import kernels
from nerf.errors import UserError, note
from nerf.geometry.light import shown_as
from nerf.io.exr import write_exr
from nerf.io.files import write_file
from nerf.io.folders import make_folder
from nerf.io.machine import machine
from nerf.io.outputs import OutputFolder, owner_of
from nerf.io.pictures import error_map, panels, resized, to_display, write_png
from nerf.io.progress import progress
from nerf.rendering.metrics import colour_correct, hdr_psnr, psnr, ssim
from nerf.rendering.view import View
from nerf.training.alignment import RAYS, STEPS, as_trained, optimise_test_poses, shrunk, with_poses
from nerf.training.exposure import (
    OPAQUE,
    apply_exposure,
    apply_exposure_over,
    darkened_by_distance,
    darkened_by_lens,
    fitted,
)
from nerf.training.scores import Evaluation, Protocol, Scores, ViewScores, in_words

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.geometry.cameras import Cameras
    from nerf.rendering.model import Model

ERROR_HIGH = 0.2  # of the error maps' scale, the same for every picture so that they can be compared
EXPOSED = "of the right half of a view, with gains of its channels that were fitted on the left half"
VIGNETTING = "of lens and flash, as learnt from the training photos: views are compared as their camera takes them"
HDR_PSNR = "of a view after log(1 + 5000 c / brightest) / log(5001), clipped to [0, 1]; mean over views"
_GROUP = 8  # views whose poses are looked for at once
_SHEET_LONGEST = 1080  # pixels of one panel in a side-by-side picture


def evaluate(
    model: Model,
    scene: Scene,
    split: str = "test",
    out: Path | None = None,
    max_views: int | None = None,
    show_progress: bool = True,
    most_pixels: float = math.inf,
) -> Evaluation:
    """Render every view of a split and compare.

    Truth with alpha is composited over the model's background; both pictures are compared as sRGB values (linear light
    is encoded first), clipped to [0, 1], at the scene's resolution; where the scene has masks, only their pixels count.
    Infinite are the numbers of equal pictures, NaN those that do not exist (SSIM of a view under 11 pixels). Linear
    light has `psnr_hdr` too, which sees what is brighter than white.
    out: folder for eval.json, NAME.png (truth | render | error), renders/NAME.png and, of linear light,
    renders/NAME.exr, in the place of an earlier evaluation's; None writes nothing.
    max_views: at most so many, evenly spread; the protocol says so.
    most_pixels: larger views are rendered smaller, by a whole factor, and compared with the average of each block of
    the photo's pixels; the sizes in the protocol are those compared.
    A model with refined poses has `psnr_aligned` and `ssim_aligned` too: beside the cameras as given, moved as the
    training's were on the whole, each view from the pose at which it looks most like its photo. One that learnt the
    photos' exposure has `psnr_exposed`: gains fitted on the left half of the view, scored on the right half.
    Raises UserError for a split that is unknown or empty.

    >>> model = nerf.Model.load("runs/robot/checkpoint.safetensors")
    >>> scene = nerf.load("data/sample", downscale=8)
    >>> found = nerf.evaluate(model, scene, max_views=1, show_progress=False)
    >>> found.n_views, 5 < found.psnr < 60
    (1, True)
    """
    ids, scene = _views_of(scene, split), as_trained(scene, model)
    n_in_split = len(ids)
    if max_views is not None and n_in_split > max_views:
        ids = [ids[round(k * (n_in_split - 1) / max(1, max_views - 1))] for k in range(max_views)]
        note(f"evaluating {len(ids)} of the {n_in_split} {split} views, evenly spread")
    folder = None if out is None else _open(out, scene, ids, model.linear)
    started = time.perf_counter()
    sought = _by_sight(model, scene, ids) if model.given_poses is not None and split != "train" else None
    views: list[ViewScores] = []
    for i in progress(ids, f"evaluating {split} views", show_progress):
        before = time.perf_counter()
        w, h = int(scene.cameras.widths[i]), int(scene.cameras.heights[i])
        factor = max(math.ceil(math.sqrt(w * h / most_pixels)), 1)
        view = best = _rendered(model, scene.cameras.subset([i]), factor)
        seconds = time.perf_counter() - before
        light, mask = shrunk(truth_of(scene, i, model.background), mask_of(scene, i), factor)
        rendered = torch.from_numpy(np.ascontiguousarray(view.color, dtype=np.float32))
        truth, shown = shown_as(model, light), shown_as(model, rendered)
        scores: dict[str, Any] = asdict(compare(shown, truth, mask))
        if sought is not None:
            best = _rendered(model, sought.cameras.subset([i]), factor)
            aligned = compare(shown_as(model, torch.from_numpy(best.color)), truth, mask)
            scores |= {"psnr_aligned": aligned.psnr, "ssim_aligned": aligned.ssim}
        if model.log_gains is not None:
            scores["psnr_exposed"] = _exposed(model, best, truth, mask)
        if model.linear:
            scores["psnr_hdr"] = hdr_psnr(rendered, light, scene.brightest, mask)
        h, w = truth.shape[:2]
        views.append(ViewScores(**scores, name=scene.names[i], index=i, width=w, height=h, seconds=seconds))
        if out is not None:
            _write_pictures(out, views[-1], truth.numpy(), shown.numpy(), rendered.numpy() if model.linear else None)
    about = _protocol(model, scene, split, views, n_in_split)
    result = Evaluation.of(views, about, time.perf_counter() - started)
    if out is not None and folder is not None:
        write_file(out / "eval.json", json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")
        folder.close()
    return result


def _open(out: Path, scene: Scene, ids: list[int], linear: bool) -> OutputFolder:
    """The folder of an evaluation, without what an earlier one wrote there."""
    pictures = [picture_name(i, scene.names[i]) for i in ids]
    renders = [Path("renders", name) for name in pictures]
    names = ["eval.json", *pictures, *map(str, renders)]
    names += [str(name.with_suffix(".exr")) for name in renders] if linear else []
    before = names if (out / "eval.json").is_file() and owner_of(out) is not None else ()  # of an older version's run
    folder = OutputFolder.open(out, "evaluation", overwrite=True, names=names, before=before)
    folder.clear()
    folder.claim(*names)
    make_folder(out / "renders")
    return folder


def compare(rendered: Tensor, truth: Tensor, mask: Tensor | None = None) -> Scores:
    """One view; rendered, truth [h,w,3] floats, mask [h,w] bool or None."""
    return Scores(
        psnr=psnr(rendered, truth, mask),
        ssim=math.nan if min(truth.shape[:2]) < 11 else ssim(rendered, truth, mask),
        psnr_colour_corrected=psnr(colour_correct(rendered, truth, mask=mask), truth, mask),
    )


def as_taken(
    model: Model, camera: Cameras, view: View[np.ndarray], background: Tensor, linear: bool
) -> View[np.ndarray]:
    """A view of a camera [1], seen in the model's common light over a background [3], with the vignetting and the flash
    of cameras like it, as its photo has it; depths in scene length; linear: colours are linear light."""
    if model.vignetting is None and model.falloff is None:
        return view
    opacities = torch.from_numpy(view.opacity)[..., None]
    behind = (1 - opacities) * background.cpu()
    darker = torch.zeros(1, 1, 1)
    if model.vignetting is not None:
        darker = darkened_by_lens(camera, model.cameras, model.vignetting)
    if model.falloff is not None:
        depth = torch.from_numpy(view.depth)
        logs = darkened_by_distance(camera, model.cameras, model.falloff, depth.flatten())
        darker = darker + logs.reshape(*depth.shape, 1)
    front = apply_exposure(torch.from_numpy(view.color) - behind, darker, linear, opacities)
    return replace(view, color=(front + behind).numpy())


def _rendered(model: Model, camera: Cameras, factor: int) -> View[np.ndarray]:
    """A camera's view, smaller by a factor: then with one ray a pixel, for it is made smaller to save time."""
    view = model.render_image(camera.scaled(factor), 0, normals=False, samples=None if factor == 1 else 1)
    return as_taken(model, camera.scaled(factor), view, model.background, model.linear)


def _by_sight(model: Model, scene: Scene, ids: list[int]) -> Scene:
    """The scene with these of its views posed so that the model's look most like their photos."""
    c2w = scene.cameras.c2w.clone()
    for some in (ids[first : first + _GROUP] for first in range(0, len(ids), _GROUP)):
        photos, masks = [truth_of(scene, i, model.background) for i in some], [mask_of(scene, i) for i in some]
        c2w[some] = optimise_test_poses(model, scene.cameras.subset(some), photos, masks)
    return with_poses(scene, c2w)


def _exposed(model: Model, view: View[np.ndarray], truth: Tensor, mask: Tensor | None) -> float:
    """PSNR of the right half of a view with the gains that fit its left half best, as NeRF in the Wild does; truth
    [h,w,3] as it is shown."""
    opacities = torch.from_numpy(view.opacity)[..., None]
    colors, background = (shown_as(model, t) for t in (torch.from_numpy(view.color), model.background.cpu()))
    half, votes = truth.shape[1] // 2, opacities[..., 0] > OPAQUE
    votes = votes if mask is None else votes & mask
    logs = fitted(*(t[:, :half].flatten(0, 1) for t in (colors, truth, votes)))
    shown = apply_exposure_over(colors[:, half:], logs, opacities[:, half:], background)
    return psnr(shown, truth[:, half:], None if mask is None else mask[:, half:])


def truth_of(scene: Scene, i: int, background: Tensor) -> Tensor:
    """Image i as [h,w,3] float32 in its file's colour space: grey repeated, alpha composited over background [3]."""
    pixels = torch.as_tensor(scene.pixels.image(i)).float()
    n_channels = pixels.shape[-1]
    colors = pixels[..., :3] if n_channels >= 3 else pixels[..., :1].expand(-1, -1, 3)
    if n_channels in (2, 4):
        alpha = pixels[..., -1:]
        colors = colors * alpha + background.detach().cpu().float() * (1 - alpha)
    return colors.contiguous()


def mask_of(scene: Scene, i: int) -> Tensor | None:
    """[h,w] bool, True where the pixel counts; None where the scene has no masks."""
    return None if scene.masks is None else torch.as_tensor(scene.masks.image(i))[..., 0] > 0.5


def _protocol(model: Model, scene: Scene, split: str, views: list[ViewScores], n_in_split: int) -> Protocol:
    sizes = sorted({(view.width, view.height) for view in views})
    full = {(int(scene.cameras.widths[v.index]), int(scene.cameras.heights[v.index])) for v in views}
    reduced = "" if full == set(sizes) else "; large views were rendered smaller, against averaged blocks of the photo"
    scaling = [line for line in scene.notes if "down-scaled" in line]
    exposed = "" if model.exposure == 1.0 else f", exposed by {model.exposure:.4g}"
    light = f" of the linear light in the files{exposed}, white at 1" if model.linear else " as in the files"
    background = ", ".join(f"{float(c):g}" for c in model.background)
    background = {"1, 1, 1": "white", "0, 0, 0": "black"}.get(background, f"colour ({background})")
    return Protocol(
        data=Path(scene.path).name,
        format=scene.source,
        split=split,
        held_out=split != "train",
        n_views=len(views),
        n_views_in_split=n_in_split,
        n_train_views=len(scene.splits["train"]),
        resolution=[f"{w}x{h}" for w, h in sizes],
        down_scaling=(scaling[0] if scaling else "none") + reduced,
        background=background if scene.has_alpha else "of the photos (no alpha)",
        colour_space="sRGB values" + light,
        masks="only pixels inside the masks count" if scene.masks is not None else "none: every pixel counts",
        poses=_of_poses(model, split),
        vignetting=VIGNETTING if model.vignetting is not None or model.falloff is not None else None,
        psnr_exposed=EXPOSED if model.log_gains is not None else None,
        psnr_hdr=HDR_PSNR if model.linear else None,
        training={key: model.meta[key] for key in ("steps", "seconds", "minutes", "seed") if key in model.meta},
        backend=kernels.backend(),
        machine=machine(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _of_poses(model: Model, split: str) -> str:
    if model.given_poses is None:
        return "as given"
    if split == "train":
        return "as refined in training"
    return (
        "training cameras refined; psnr and ssim: cameras as given, after the similarity between given and refined "
        "training cameras; psnr_aligned and ssim_aligned: each camera moved to where the field, which stays as it is, "
        f"looks most like its photo ({STEPS} steps of {RAYS} random pixels, coarse to fine)"
    )


def picture_name(i: int, name: str) -> str:
    """A file name for view i that is unique, sorts as the views do, and keeps the photo's name readable."""
    return f"{i:04d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', Path(name).stem)[:60]}.png"


def _write_pictures(
    out: Path, view: ViewScores, truth: np.ndarray, rendered: np.ndarray, light: np.ndarray | None
) -> None:
    """truth, rendered: as they are shown; light: what was rendered in linear light, for an EXR beside the PNG."""
    picture, name = to_display(rendered, linear=False), picture_name(view.index, view.name)
    write_png(out / "renders" / name, picture)
    if light is not None:
        write_exr((out / "renders" / name).with_suffix(".exr"), {c: light[..., k] for k, c in enumerate("RGB")})
    three = [to_display(truth, linear=False), picture, error_map(rendered, truth, ERROR_HIGH)]
    caption = f"render  {in_words(view.psnr)} dB"
    labels = [f"truth  {Path(view.name).name[-40:]}", caption, "mean absolute error"]
    sheet = panels([resized(p, _SHEET_LONGEST) for p in three], labels, ("error", "0", f"{ERROR_HIGH:g} and more"))
    write_png(out / name, sheet)


def _views_of(scene: Scene, split: str) -> list[int]:
    ids = [int(i) for i in scene.splits.get(split, ())]
    if not ids:
        there = ", ".join(f"{name} ({len(which)} images)" for name, which in scene.splits.items() if len(which))
        what = "is empty" if split in scene.splits else "is no split"
        raise UserError(f"--split {split}: {split} {what} of this scene, expected one of {there}")
    return ids
