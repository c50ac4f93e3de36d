"""Photos in; a radiance field, new views and a mesh out.

Importing this costs milliseconds: torch and the rest are imported by the first attribute that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from nerf.capture import CaptureOptions, find_poses
    from nerf.datasets import Frame, Lens, LoadOptions, ParsedScene, Scene, load, reader
    from nerf.errors import UserError
    from nerf.fields.occupancy import OccupancyGrid
    from nerf.fields.radiance import Field, FieldOptions, RadianceField
    from nerf.geometry.cameras import Cameras
    from nerf.geometry.space import Box, Ndc, Similarity, Unbounded
    from nerf.kernels import Backend, RenderedRays, Samples
    from nerf.kernels import using as backend
    from nerf.meshing.extract import extract_mesh
    from nerf.rendering.marching import Marching
    from nerf.rendering.model import Model
    from nerf.rendering.rays import render_rays
    from nerf.rendering.sampling import composite, render_with, sample_rays
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
    "LoadOptions": "nerf.datasets:LoadOptions",
    "Scene": "nerf.datasets:Scene",
    "reader": "nerf.datasets:reader",
    "ParsedScene": "nerf.datasets:ParsedScene",
    "Frame": "nerf.datasets:Frame",
    "Lens": "nerf.datasets:Lens",
    "find_poses": "nerf.capture:find_poses",
    "CaptureOptions": "nerf.capture:CaptureOptions",
    "Cameras": "nerf.geometry.cameras:Cameras",
    "Similarity": "nerf.geometry.space:Similarity",
    "Box": "nerf.geometry.space:Box",
    "Unbounded": "nerf.geometry.space:Unbounded",
    "Ndc": "nerf.geometry.space:Ndc",
    "TrainConfig": "nerf.training.config:TrainConfig",
    "train": "nerf.training.loop:train",
    "Model": "nerf.rendering.model:Model",
    "Field": "nerf.fields.radiance:Field",
    "FieldOptions": "nerf.fields.radiance:FieldOptions",
    "RadianceField": "nerf.fields.radiance:RadianceField",
    "OccupancyGrid": "nerf.fields.occupancy:OccupancyGrid",
    "Marching": "nerf.rendering.marching:Marching",
    "Samples": "nerf.kernels:Samples",
    "RenderedRays": "nerf.kernels:RenderedRays",
    "Backend": "nerf.kernels:Backend",
    "backend": "nerf.kernels:using",
    "render_rays": "nerf.rendering.rays:render_rays",
    "render_with": "nerf.rendering.sampling:render_with",
    "sample_rays": "nerf.rendering.sampling:sample_rays",
    "composite": "nerf.rendering.sampling:composite",
    "evaluate": "nerf.training.evaluation:evaluate",
    "extract_mesh": "nerf.meshing.extract:extract_mesh",
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
    "Backend",
    "Box",
    "Cameras",
    "CaptureOptions",
    "Field",
    "FieldChoice",
    "FieldOptions",
    "FitConfig",
    "Fitted",
    "Frame",
    "Lens",
    "LoadOptions",
    "Marching",
    "Model",
    "Ndc",
    "OccupancyGrid",
    "ParsedScene",
    "RadianceField",
    "RenderedRays",
    "Samples",
    "Scene",
    "SignalField",
    "Similarity",
    "TrainConfig",
    "Unbounded",
    "UserError",
    "backend",
    "composite",
    "evaluate",
    "export_cameras",
    "extract_mesh",
    "find_poses",
    "fit",
    "image_of_field",
    "load",
    "read_audio",
    "read_image",
    "read_video",
    "reader",
    "render_rays",
    "render_with",
    "sample_rays",
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
