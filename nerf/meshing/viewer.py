"""A page that shows a mesh in a browser: one file, no network, no program to install."""

from __future__ import annotations

import base64
import html
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nerf.io.files import page_bytes, write_file


def page_path(glb: Path) -> Path:
    """Where the page of a GLB file lies: NAME.html beside it."""
    return glb.with_suffix(".html")


def write_page(glb: Path, front: NDArray[np.float64] | None = None) -> Path:
    """Write NAME.html beside a GLB that `save` wrote, with the mesh inside (a page on the disk may read no other file);
    returns its path. front [3]: from the object towards the viewer, world frame (None: along the world's z)."""
    settings = json.dumps({"front": [0.0, 0.0, 1.0] if front is None else [float(x) for x in front]})
    page = files("nerf.meshing").joinpath("viewer.html").read_text(encoding="utf-8")
    data = base64.b64encode(glb.read_bytes()).decode()
    for name, text in {"TITLE": html.escape(glb.name), "SETTINGS": settings, "GLB": data}.items():
        page = page.replace(f"@{name}@", text, 1)
    path = page_path(glb)
    write_file(path, page_bytes(page))
    return path
