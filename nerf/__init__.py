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
    from nerf.fitting import FitConfig, Fitted, fit
    from nerf.meshing.extract import extract as extract_mesh
    from nerf.model import Model
    from nerf.recipe import TrainConfig
    from nerf.signals.audio import read_audio
    from nerf.signals.fields import FieldChoice, SignalField
    from nerf.signals.image import image_of_field, read_image
    from nerf.signals.video import read_video
    from nerf.training import train

# name -> where it is defined
_WHERE = {
    "load": "nerf.datasets:load",
    "Scene": "nerf.datasets:Scene",
    "Cameras": "nerf.cameras:Cameras",
    "TrainConfig": "nerf.recipe:TrainConfig",
    "train": "nerf.training:train",
    "Model": "nerf.model:Model",
    "evaluate": "nerf.evaluation:evaluate",
    "extract_mesh": "nerf.meshing.extract:extract",
    "export_cameras": "nerf.exports:export_cameras",
    "fit": "nerf.fitting:fit",
    "FitConfig": "nerf.fitting:FitConfig",
    "Fitted": "nerf.fitting:Fitted",
    "FieldChoice": "nerf.signals.fields:FieldChoice",
    "SignalField": "nerf.signals.fields:SignalField",
    "image_of_field": "nerf.signals.image:image_of_field",
    "read_image": "nerf.signals.image:read_image",
    "read_audio": "nerf.signals.audio:read_audio",
    "read_video": "nerf.signals.video:read_video",
    "UserError": "nerf.errors:UserError",
}

__all__ = [
    "Cameras",
    "FieldChoice",
    "FitConfig",
    "Fitted",
    "Model",
    "Scene",
    "SignalField",
    "TrainConfig",
    "UserError",
    "evaluate",
    "export_cameras",
    "extract_mesh",
    "fit",
    "image_of_field",
    "load",
    "read_audio",
    "read_image",
    "read_video",
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
