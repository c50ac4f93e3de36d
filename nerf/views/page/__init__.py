"""A page that shows a scene in any browser: one file, no server, no network, no program to install."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nerf.errors import printable
from nerf.io.files import page_bytes, write_file
from nerf.io.pictures import data_uri, resized
from nerf.rendering.model import Model
from nerf.views.page.harmonics import bake_harmonics
from nerf.views.page.pack import (
    BEND,
    octahedral,
    pack,
    quantised_harmonics,
    quantised_positions,
    quantised_texture_coordinates,
)
from nerf.views.page.stage import Stage, stage_of
from nerf.views.paths import CameraPath, camera_path

if TYPE_CHECKING:
    import trimesh

NAMED_VIEWS = 8
_FRAMES, _SECONDS = 120, 20.0  # of a path that is made for a page
_MOST_TEXTURE = 16_000_000  # characters of a page that a texture may take


def make_path(model: Model, kind: str = "auto", up: Tensor | None = None) -> CameraPath:
    """A path of a kind that `camera_path` knows, at a calm pace."""
    return camera_path(kind, model.cameras, model.scene_from_world, model.space, _FRAMES, _FRAMES / _SECONDS, up=up)


def write_page(
    out: Path,
    model: Model,
    mesh: trimesh.Trimesh,
    title: str,
    notes: Sequence[str] = (),
    path: CameraPath | None = None,
    n_views: int = NAMED_VIEWS,
    directional: bool = True,
    up: Tensor | None = None,
) -> Path:
    """Write a page that shows the mesh (world frame) of a model; returns its path.

    path: that the page plays and begins on (None: see `make_path`). n_views: of the training cameras, to jump to.
    directional: whether colours change with the direction of view, as the field's do. up [3]: of the world (None: as
    the cameras say). Raises UserError where the file cannot be written.
    """
    visual: Any = mesh.visual
    coloured = texture_picture(mesh) is not None or visual.kind == "vertex"
    harmonics = bake_harmonics(model, mesh) if directional and coloured else None
    text = page_text(mesh, stage_of(model, path or make_path(model, up=up), n_views, up), title, notes, harmonics)
    write_file(out, page_bytes(text))
    return out


def page_text(
    mesh: trimesh.Trimesh, stage: Stage, title: str, notes: Sequence[str] = (), harmonics: Tensor | None = None
) -> str:
    """The page of a mesh (world frame) on a stage. harmonics [v,9,3]: see `bake_harmonics`."""
    points = (np.asarray(mesh.vertices, np.float64) - stage.middle.numpy()) @ stage.rotation.numpy().T
    positions, half = quantised_positions(points)
    normals = octahedral(np.asarray(mesh.vertex_normals, np.float64) @ stage.rotation.numpy().T)
    parts: dict[str, NDArray] = {"index": np.asarray(mesh.faces, np.uint32), "position": positions, "normal": normals}
    about: dict[str, Any] = {"bend": BEND, "half": half, **stage.settings()}
    visual: Any = mesh.visual
    picture = texture_picture(mesh)
    if picture is not None:
        parts["uv"] = quantised_texture_coordinates(np.asarray(visual.uv, np.float64) * [1, -1] + [0, 1])
    elif visual.kind == "vertex":
        parts["color"] = np.asarray(visual.vertex_colors, np.uint8)[:, :3]
    if harmonics is not None:
        parts["harmonics"], about["harmonics"] = quantised_harmonics(harmonics.numpy())
        about["turn"] = stage.rotation.flatten().tolist()
    data, about["layout"] = pack(parts)
    words = {"TITLE": html.escape(printable(title))}
    words["NOTES"] = "".join(f"<p>{html.escape(printable(note))}</p>" for note in notes)
    words["TEXTURE"] = "" if picture is None else f' src="{_texture_uri(picture)}"'
    words["SETTINGS"] = json.dumps(about, separators=(",", ":")).replace("<", "\\u003c")
    words["DATA"] = base64.b64encode(data).decode()
    words["SCRIPT"] = _file("page.js")
    return re.sub("@([A-Z]+)@", lambda found: words[found[1]], _file("page.html"))


def texture_picture(mesh: trimesh.Trimesh) -> Image.Image | None:
    """The texture of a mesh, if it has one."""
    visual: Any = mesh.visual
    if visual.kind != "texture" or visual.uv is None:
        return None
    picture = getattr(visual.material, "baseColorTexture", None) or getattr(visual.material, "image", None)
    return picture if isinstance(picture, Image.Image) else None


def _texture_uri(picture: Image.Image) -> str:
    """As a JPEG, at half the size as often as it takes to be small enough."""
    pixels = np.asarray(picture.convert("RGB"))
    while len(uri := data_uri(pixels)) > _MOST_TEXTURE:
        pixels = resized(pixels, max(pixels.shape) // 2)
    return uri


def _file(name: str) -> str:
    return files("nerf.views.page").joinpath(name).read_text(encoding="utf-8")
