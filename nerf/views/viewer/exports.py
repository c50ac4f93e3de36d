"""What the page writes: pictures, meshes, cameras, films; into the run's folder under names that are free."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from nerf.errors import UserError
from nerf.geometry.aim import common_up
from nerf.geometry.cameras import Cameras
from nerf.io.outputs import check_output
from nerf.io.pictures import write_png
from nerf.io.video import mp4
from nerf.meshing.files import save_mesh
from nerf.meshing.finish import TEXTURED_FACES, texture_mesh
from nerf.rendering.model import Model
from nerf.training.export import export_cameras
from nerf.views.paths import CameraPath
from nerf.views.video import picture_of
from nerf.views.viewer.edited import cut_mesh, edited_mesh, edited_scene, scale_mesh
from nerf.views.viewer.subject import Subject
from nerf.views.viewer.viewport import depth_range, in_tiles

Progress = Callable[[float], None]
Work = Generator[None, None, Path | None]
RATE = 200_000.0  # rays a second, by which tiles of long work are sized


def free_name(folder: Path | None, name: str) -> Path:
    """`name` in the folder (None: where the program was started), or the first of name-2, name-3, ... that is free."""
    folder = Path.cwd() if folder is None else folder
    path, k = folder / name, 1
    while path.exists() or path.is_symlink():
        k += 1
        path = folder / f"{Path(name).stem}-{k}{Path(name).suffix}"
    return path


def told(work: Work, done: Callable[[Path | None], None], failed: Callable[[Exception], None]) -> Iterator[None]:
    """Long work for the render loop, with its result or its mistake told."""
    try:
        path = yield from work
    except Exception as error:
        failed(error)
    else:
        done(path)


def _model(subject: Subject) -> Model:
    model = subject.shown()
    if model is None:
        raise UserError("there is no model to render, only a mesh")
    return model


def picture(
    subject: Subject,
    pose: Tensor,
    fov: float,
    size: tuple[int, int],
    mode: str,
    progress: Progress,
    cancelled: Callable[[], bool],
) -> Work:
    """One view as a PNG; a step is a tile. None where it was cancelled."""
    model, (width, height) = _model(subject), size
    focal = height / (2 * np.tan(np.radians(fov) / 2))
    cameras = Cameras.perspective(pose[None], float(focal), width, height)
    seen = None
    n_tiles = width * height / max(1024.0, RATE * 0.03)
    for n, (seen, _) in enumerate(in_tiles(model, cameras, mode == "normal", RATE), 1):
        progress(min(n / n_tiles, 1.0))
        if seen is None:
            yield
            if cancelled():
                return None
    assert seen is not None
    path = free_name(subject.folder, "view.png")
    check_output(path, overwrite=False)
    write_png(path, picture_of(seen, mode, depth_range(seen), model))
    return path


def film(
    subject: Subject,
    path: CameraPath,
    progress: Progress,
    cancelled: Callable[[], bool],
    name: str = "film.mp4",
) -> Work:
    """The colours along a path as an MP4; a step is a tile. None where it was cancelled, and then there is no file."""
    model, cameras = _model(subject), path.cameras
    place = free_name(subject.folder, name)
    check_output(place, overwrite=False)
    try:
        with mp4(place, int(cameras.widths[0]), int(cameras.heights[0]), path.fps) as sink:
            for i in range(len(cameras)):
                view = None
                for seen, _ in in_tiles(model, cameras.subset([i]), False, RATE):
                    view = seen
                    yield
                    if cancelled():
                        raise _Cancelled
                assert view is not None
                sink(picture_of(view, "color", (0.0, 1.0), model))
                progress((i + 1) / len(cameras))
    except _Cancelled:
        return None
    return place


class _Cancelled(Exception):
    """Ends a film before its file gets its name."""


def mesh(subject: Subject, resolution: int | None, texture: int, show_progress: bool = False) -> Path:
    """The mesh as the edits leave it, as a GLB; of a subject without a model, its own."""
    path = free_name(subject.folder, "mesh-edited.glb" if not subject.edits.empty else "mesh-view.glb")
    check_output(path, overwrite=False)
    edits = subject.edits
    up = edits.up_direction()
    if subject.model is None:
        assert subject.mesh is not None
        made = cut_mesh(subject.mesh, edits).copy()
        up = subject.mesh_up if up is None else up
    else:
        model, scene = subject.model, edited_scene(subject.scene, edits, subject.folder)
        if texture and scene is None:
            raise UserError("a texture is made from the photos, which are not here: choose coloured vertices")
        made = edited_mesh(model, edits, resolution, scene=scene, colours=not texture, show_progress=show_progress)
        if texture:
            made = texture_mesh(model, scene, made, texture, TEXTURED_FACES, show_progress)
        up = common_up(model.cameras)[0] if up is None else up
    scale_mesh(made, edits)
    save_mesh(made, path, up)
    return path


def cameras(subject: Subject, colmap: bool) -> Path:
    """The input cameras as transforms.json, or as a COLMAP model in a folder."""
    if subject.folder is None:
        raise UserError("there is no run here whose cameras could be written")
    out = free_name(subject.folder, "colmap" if colmap else "cameras.json")
    if not colmap:
        check_output(out, overwrite=False)
    edits = subject.edits
    return export_cameras(subject.folder, out, scale=edits.scale, left_out=edits.left_out)
