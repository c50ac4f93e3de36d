"""Rendering along a camera path: colour, depth, opacity and normals, to MP4 files or folders of PNGs; `nerf render`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nerf.errors import UserError, note
from nerf.geometry.cameras import Cameras
from nerf.geometry.light import decode
from nerf.io.exr import check_exr, write_exr
from nerf.io.folders import make_folder
from nerf.io.outputs import OutputFolder, check_output
from nerf.io.pictures import apply_colour_map, to_display, write_png
from nerf.io.progress import progress
from nerf.io.video import mp4
from nerf.rendering.view import View
from nerf.views.paths import CameraPath

if TYPE_CHECKING:
    from nerf.rendering.model import Model

MODES = ("color", "depth", "opacity", "normal")


def check_modes(modes: tuple[str, ...]) -> None:
    unknown = [m for m in modes if m not in MODES]
    if unknown or not modes:
        raise UserError(f"--modes {' '.join(unknown) or '(none)'}: expected one or more of {', '.join(MODES)}")
    if len(set(modes)) != len(modes):
        raise UserError(f"--modes {' '.join(modes)}: each mode once, please")


def frame_names(n: int, exr: bool) -> list[str]:
    """Of the pictures in a folder."""
    return [f"{k:05d}{'.exr' if exr else '.png'}" for k in range(n)]


def planned_outputs(
    out: Path, modes: tuple[str, ...], overwrite: bool, exr: bool = False, frames: int = 1
) -> dict[str, Path]:
    """Where each mode goes: the video or folder itself for a single mode, else one for each, named after it; UserError
    for an unknown kind of file, a file in the way, a folder that is not writable."""
    video = out.suffix.lower() == ".mp4"
    if exr:
        if video:
            raise UserError(f"{out}: --exr writes a folder of pictures; give a folder with -o")
        check_exr()
    if out.suffix and not video and not out.is_dir():
        raise UserError(f"{out}: cannot write {out.suffix} files; expected NAME.mp4 for a video or a folder for PNGs")
    if len(modes) == 1:
        places = {modes[0]: out}
    elif video:
        places = {m: out.with_name(out.name if m == "color" else f"{out.stem}_{m}{out.suffix}") for m in modes}
    else:
        places = {m: out / m for m in modes}
    for place in places.values():
        if video and place.is_dir():
            raise UserError(f"{place} is a folder; choose another name for the video")
        if video:
            make_folder(place.parent)
            check_output(place, overwrite)
        else:
            OutputFolder(place, "pictures").check(overwrite=overwrite, names=frame_names(frames, exr))
    return places


def render_video(
    model: Model,
    path: CameraPath,
    out: Path | str,
    modes: tuple[str, ...] = ("color",),
    overwrite: bool = False,
    show_progress: bool = True,
    exr: bool = False,
    samples: int | None = None,
) -> list[Path]:
    """Render every camera of the path once and write the wanted modes; returns the files or folders written.

    out: NAME.mp4 (H.264, yuv420p, even sizes: an odd last row or column is cut) or a folder of 00000.png ...; with
    several modes NAME.mp4 is colour and the others NAME_depth.mp4 ..., or a folder for each.
    color: over the model's background. depth: distance along the ray to the median of its weights, near light, far
    dark, between the 2nd and 98th percentile over the whole path; rays that hit nothing are dark. opacity: 0 black, 1
    white. normal: world axes (x, y, z) as (r, g, b), 0.5 + 0.5 n, fading to white with opacity.
    exr: a folder of 00000.exr ... with numbers instead of pictures; see exr_channels.
    samples: rays a side of a pixel, see Model.render_image. A file appears under its name only when it is complete.
    Raises UserError.

    >>> model = nerf.Model.load("runs/robot/checkpoint.safetensors")
    >>> path = nerf.camera_path("orbit", model.cameras, model.scene_from_world, model.space, n_frames=2, longest=32)
    >>> nerf.render_video(model, path, "flight.mp4", show_progress=False)
    [PosixPath('flight.mp4')]
    """
    check_modes(modes)
    out = Path(out)
    frames = frame_names(len(path.cameras), exr)
    places = planned_outputs(out, modes, overwrite, exr, len(frames))
    video = out.suffix.lower() == ".mp4"
    cameras = path.cameras
    note(f"{path.description}; {len(cameras)} frames of {int(cameras.widths[0])}x{int(cameras.heights[0])}")
    depth_range = (0.0, 1.0)
    if "depth" in modes and not exr:
        depth_range = find_depth_range(model, cameras)
        near, far = (d * (1.0 / model.scene_from_world.scale) for d in depth_range)
        note(f"depth: {near:.4g} (light) to {far:.4g} (dark) world units along the ray, 2nd to 98th percentile")
    with ExitStack() as stack:
        sinks: dict[str, Callable[[Any], None]] = {}
        for mode, place in places.items():
            film = mp4(place, int(cameras.widths[0]), int(cameras.heights[0]), path.fps) if video else None
            if film is None:
                folder = stack.enter_context(OutputFolder.open(place, "pictures", overwrite=overwrite, names=frames))
                folder.clear()
                folder.claim(*frames)
            pictures = _numbered(place, frames, write_exr if exr else write_png)
            sinks[mode] = stack.enter_context(film or pictures)
        for i in progress(range(len(cameras)), "rendering", show_progress):
            view = model.render_image(cameras, i, "normal" in modes, samples)
            for mode, sink in sinks.items():
                if exr:
                    sink(exr_channels(model, cameras, i, view, mode))
                else:
                    sink(picture_of(view, mode, depth_range, model))
    return list(places.values())


def picture_of(view: View[np.ndarray], mode: str, depth_range: tuple[float, float], model: Model) -> np.ndarray:
    """One mode of a rendered view as [h,w,3] uint8; see render_video."""
    if mode == "color":
        return to_display(view.color * model.exposure, model.linear)
    opacity = np.clip(view.opacity, 0, 1)[..., None]
    if mode == "opacity":
        return to_display(np.repeat(opacity, 3, axis=2), linear=False)
    if mode == "normal":
        assert view.normal is not None
        return to_display(opacity * (0.5 + 0.5 * view.normal) + (1 - opacity), linear=False)
    near, far = depth_range
    depth = np.where(view.opacity > 0.5, view.depth, far)
    return apply_colour_map(depth, near, far, "depth")


def find_depth_range(model: Model, cameras: Cameras) -> tuple[float, float]:
    """2nd and 98th percentile of the depths (scene length) over up to 6 cameras of the path, at a coarse resolution."""
    some = cameras.subset(sorted({round(k * (len(cameras) - 1) / 5) for k in range(6)}))
    shrink = max(1.0, int(max(some.widths.max(), some.heights.max())) / 96)
    small = some.resized(*((size / shrink).round().clamp_min(1).long() for size in (some.widths, some.heights)))
    views = (model.render_image(small, i, normals=False, samples=1) for i in range(len(small)))
    values = np.concatenate([v.depth[(v.opacity > 0.5) & np.isfinite(v.depth)] for v in views])
    if len(values) == 0:
        note("depth: the path sees nothing solid")
        return 0.0, 1.0
    near, far = (float(v) for v in np.percentile(values, [2, 98]))
    return near, max(far, near * 1.0001 + 1e-9)


def exr_channels(model: Model, cameras: Cameras, i: int, view: View[np.ndarray], mode: str) -> dict[str, np.ndarray]:
    """One mode of a rendered view as the channels [h,w] of an EXR file.

    color: R, G, B linear light (pictures of an sRGB model are decoded). depth: Z in world units along the optical axis,
    0 where nothing is: what `depth_file_path` of a transforms.json takes. opacity: A. normal: X, Y, Z, world axes.
    """
    if mode == "color":
        color = view.color if model.linear else decode(view.color)
        return {c: color[..., k].astype(np.float32) for k, c in enumerate("RGB")}
    if mode == "opacity":
        return {"A": view.opacity.astype(np.float32)}
    if mode == "normal":
        assert view.normal is not None
        return {c: view.normal[..., k].astype(np.float32) for k, c in enumerate("XYZ")}
    directions = cameras.image_rays(i)[1].double()
    along_axis = (directions @ cameras.forward[i]).reshape(view.depth.shape).numpy()
    z = view.depth * along_axis / model.scene_from_world.scale
    return {"Z": np.where((view.opacity > 0.5) & np.isfinite(z), z, 0).astype(np.float32)}


@contextmanager
def _numbered(folder: Path, names: list[str], write: Callable[[Path, Any], None]) -> Iterator[Callable[[Any], None]]:
    """A function that writes its argument to the folder under the first name, then the second, ..."""
    left = iter(names)
    try:
        yield lambda picture: write(folder / next(left), picture)
    except OSError as error:
        raise UserError(f"{folder}: writing a picture failed ({error.strerror or error})") from error
