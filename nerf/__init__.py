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
    from nerf.evaluate import evaluate
    from nerf.model import Model
    from nerf.training import TrainConfig, train

# name -> module that defines it
_WHERE = {
    "load": "nerf.datasets",
    "Scene": "nerf.datasets",
    "Cameras": "nerf.cameras",
    "TrainConfig": "nerf.training",
    "train": "nerf.training",
    "Model": "nerf.model",
    "evaluate": "nerf.evaluate",
    "UserError": "nerf.errors",
}

__all__ = ["Cameras", "Model", "Scene", "TrainConfig", "UserError", "evaluate", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'nerf' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value  # the next access is a plain one
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
