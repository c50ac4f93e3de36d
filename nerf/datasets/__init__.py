"""Data sets: load(path) looks at what is on disk, says what it chose and why, and gives a Scene.

Importing this costs nothing: torch is imported by the first name that needs it, so that the command line can ask
`nerf.datasets.readers` for the formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nerf.datasets.options import LoadOptions
from nerf.datasets.readers import reader

if TYPE_CHECKING:
    from nerf.datasets.keypoints import Keypoints
    from nerf.datasets.loading import kinds_in, load, load_posed
    from nerf.datasets.parsed import Frame, Lens, ParsedScene
    from nerf.datasets.scene import Scene
    from nerf.datasets.store import PixelStore

__all__ = [
    "Frame",
    "Keypoints",
    "Lens",
    "LoadOptions",
    "ParsedScene",
    "PixelStore",
    "Scene",
    "kinds_in",
    "load",
    "load_posed",
    "reader",
]

_WHERE = {
    "keypoints": ("Keypoints",),
    "loading": ("kinds_in", "load", "load_posed"),
    "parsed": ("Frame", "Lens", "ParsedScene"),
    "scene": ("Scene",),
    "store": ("PixelStore",),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    module = next((module for module, names in _WHERE.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'nerf.datasets' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"nerf.datasets.{module}"), name)
    return value
