"""Photos in; a radiance field, new views and a mesh out.

Importing this costs milliseconds: torch and the rest are imported by the first attribute that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from nerf.cameras import Cameras
    from nerf.datasets import Scene, load
    from nerf.errors import UserError
    from nerf.evaluation import evaluate
    from nerf.exports import export_cameras
    from nerf.meshing.extract import extract as extract_mesh
    from nerf.model import Model
    from nerf.training import TrainConfig, train

# name -> where it is defined
_WHERE = {
    "load": "nerf.datasets:load",
    "Scene": "nerf.datasets:Scene",
    "Cameras": "nerf.cameras:Cameras",
    "TrainConfig": "nerf.training:TrainConfig",
    "train": "nerf.training:train",
    "Model": "nerf.model:Model",
    "evaluate": "nerf.evaluation:evaluate",
    "extract_mesh": "nerf.meshing.extract:extract",
    "export_cameras": "nerf.exports:export_cameras",
    "UserError": "nerf.errors:UserError",
}

__all__ = [
    "Cameras",
    "Model",
    "Scene",
    "TrainConfig",
    "UserError",
    "evaluate",
    "export_cameras",
    "extract_mesh",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'nerf' has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = _WHERE[name].partition(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value  # the next access is a plain one
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
