"""Photos in; a radiance field, new views and a mesh out.

Importing this costs milliseconds: torch and the rest are imported by the first attribute that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from nerf.datasets import Scene, load
    from nerf.errors import UserError
    from nerf.geometry.cameras import Cameras
    from nerf.meshing.extract import extract as extract_mesh
    from nerf.rendering.model import Model
    from nerf.signals.audio import read_audio
    from nerf.signals.fields import FieldChoice, SignalField
    from nerf.signals.fitting import FitConfig, Fitted, fit
    from nerf.signals.image import image_of_field, read_image
    from nerf.signals.video import read_video
    from nerf.training.config import TrainConfig
    from nerf.training.evaluation import evaluate
    from nerf.training.export import export_cameras
    from nerf.training.loop import train

# name -> where it is defined
_WHERE = {
    "load": "nerf.datasets:load",
    "Scene": "nerf.datasets:Scene",
    "Cameras": "nerf.geometry.cameras:Cameras",
    "TrainConfig": "nerf.training.config:TrainConfig",
    "train": "nerf.training.loop:train",
    "Model": "nerf.rendering.model:Model",
    "evaluate": "nerf.training.evaluation:evaluate",
    "extract_mesh": "nerf.meshing.extract:extract",
    "export_cameras": "nerf.training.export:export_cameras",
    "fit": "nerf.signals.fitting:fit",
    "FitConfig": "nerf.signals.fitting:FitConfig",
    "Fitted": "nerf.signals.fitting:Fitted",
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
