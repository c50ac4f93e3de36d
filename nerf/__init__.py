"""Photos in; a radiance field, new views and a mesh out.

Importing this costs milliseconds: torch and the rest are imported by the first attribute that needs them.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing is not imported: `python -m nerf` must not take one that lies in the current folder

__version__ = "0.2.0"

# Threads that wait for work spin for long by default, which makes two busy programs on one machine many times slower.
# OpenMP reads this once, as torch is imported: whoever imports torch first sets it in the shell.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

if TYPE_CHECKING:
    from typing import Any

    from nerf.capture import CaptureOptions, find_poses
    from nerf.capture.report import FoundPoses
    from nerf.checks import check
    from nerf.checks.verdict import Finding, Verdict
    from nerf.datasets import Frame, Lens, LoadOptions, ParsedScene, Scene, load, reader
    from nerf.errors import UserError
    from nerf.fields.encodings import FourierFeatures, HashGrid
    from nerf.fields.networks import MLP, Siren
    from nerf.fields.occupancy import OccupancyGrid
    from nerf.fields.radiance import Field, FieldOptions, RadianceField
    from nerf.geometry.cameras import Cameras
    from nerf.geometry.space import Box, Ndc, Similarity, Unbounded
    from nerf.kernels import Backend, RenderedRays, Samples, ray_jitter
    from nerf.kernels import using as backend
    from nerf.meshing.evaluation import MeshScores, evaluate_mesh
    from nerf.meshing.extract import extract_mesh
    from nerf.meshing.files import save_mesh
    from nerf.meshing.finish import texture_mesh
    from nerf.rendering.marching import Marching
    from nerf.rendering.model import Model
    from nerf.rendering.rays import render_rays
    from nerf.rendering.sampling import composite, render_with, sample_rays
    from nerf.rendering.view import View
    from nerf.signals.audio import read_audio
    from nerf.signals.derivatives import gradient, laplacian, second_derivatives
    from nerf.signals.fields import FieldChoice, SignalField
    from nerf.signals.fitting import FitConfig, Fitted, fit
    from nerf.signals.image import image_of_field, read_image
    from nerf.signals.record import Problem, Signal
    from nerf.signals.video import read_video
    from nerf.training.config import TrainConfig, default_field, default_marching
    from nerf.training.evaluation import evaluate
    from nerf.training.export import export_cameras
    from nerf.training.loop import Trainer, train
    from nerf.training.objective import SceneLoss
    from nerf.training.optimiser import FieldOptimiser
    from nerf.training.pixel_sampler import PixelBatch, PixelSampler
    from nerf.training.schedule import Schedule, Weights
    from nerf.training.scores import Evaluation
    from nerf.training.stepping import next_n_rays
    from nerf.training.visibility import visible_cells
    from nerf.views.paths import camera_path
    from nerf.views.video import render_video

# name -> where it is defined
_WHERE = {
    "gradient": "nerf.signals.derivatives:gradient",
    "laplacian": "nerf.signals.derivatives:laplacian",
    "second_derivatives": "nerf.signals.derivatives:second_derivatives",
    "load": "nerf.datasets:load",
    "LoadOptions": "nerf.datasets:LoadOptions",
    "Scene": "nerf.datasets:Scene",
    "reader": "nerf.datasets:reader",
    "ParsedScene": "nerf.datasets:ParsedScene",
    "Frame": "nerf.datasets:Frame",
    "Lens": "nerf.datasets:Lens",
    "find_poses": "nerf.capture:find_poses",
    "CaptureOptions": "nerf.capture:CaptureOptions",
    "FoundPoses": "nerf.capture.report:FoundPoses",
    "check": "nerf.checks:check",
    "Verdict": "nerf.checks.verdict:Verdict",
    "Finding": "nerf.checks.verdict:Finding",
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
    "View": "nerf.rendering.view:View",
    "Samples": "nerf.kernels:Samples",
    "RenderedRays": "nerf.kernels:RenderedRays",
    "Backend": "nerf.kernels:Backend",
    "backend": "nerf.kernels:using",
    "render_rays": "nerf.rendering.rays:render_rays",
    "render_with": "nerf.rendering.sampling:render_with",
    "sample_rays": "nerf.rendering.sampling:sample_rays",
    "composite": "nerf.rendering.sampling:composite",
    "Trainer": "nerf.training.loop:Trainer",
    "FieldOptimiser": "nerf.training.optimiser:FieldOptimiser",
    "PixelSampler": "nerf.training.pixel_sampler:PixelSampler",
    "PixelBatch": "nerf.training.pixel_sampler:PixelBatch",
    "SceneLoss": "nerf.training.objective:SceneLoss",
    "Schedule": "nerf.training.schedule:Schedule",
    "Weights": "nerf.training.schedule:Weights",
    "default_field": "nerf.training.config:default_field",
    "default_marching": "nerf.training.config:default_marching",
    "visible_cells": "nerf.training.visibility:visible_cells",
    "ray_jitter": "nerf.kernels:ray_jitter",
    "next_n_rays": "nerf.training.stepping:next_n_rays",
    "evaluate": "nerf.training.evaluation:evaluate",
    "Evaluation": "nerf.training.scores:Evaluation",
    "extract_mesh": "nerf.meshing.extract:extract_mesh",
    "save_mesh": "nerf.meshing.files:save_mesh",
    "camera_path": "nerf.views.paths:camera_path",
    "render_video": "nerf.views.video:render_video",
    "texture_mesh": "nerf.meshing.finish:texture_mesh",
    "evaluate_mesh": "nerf.meshing.evaluation:evaluate_mesh",
    "MeshScores": "nerf.meshing.evaluation:MeshScores",
    "export_cameras": "nerf.training.export:export_cameras",
    "fit": "nerf.signals.fitting:fit",
    "FitConfig": "nerf.signals.fitting:FitConfig",
    "Fitted": "nerf.signals.fitting:Fitted",
    "FieldChoice": "nerf.signals.fields:FieldChoice",
    "SignalField": "nerf.signals.fields:SignalField",
    "Problem": "nerf.signals.record:Problem",
    "Signal": "nerf.signals.record:Signal",
    "HashGrid": "nerf.fields.encodings:HashGrid",
    "FourierFeatures": "nerf.fields.encodings:FourierFeatures",
    "MLP": "nerf.fields.networks:MLP",
    "Siren": "nerf.fields.networks:Siren",
    "image_of_field": "nerf.signals.image:image_of_field",
    "read_image": "nerf.signals.image:read_image",
    "read_audio": "nerf.signals.audio:read_audio",
    "read_video": "nerf.signals.video:read_video",
    "UserError": "nerf.errors:UserError",
}

__all__ = [
    "MLP",
    "Backend",
    "Box",
    "Cameras",
    "CaptureOptions",
    "Evaluation",
    "Field",
    "FieldChoice",
    "FieldOptimiser",
    "FieldOptions",
    "Finding",
    "FitConfig",
    "Fitted",
    "FoundPoses",
    "FourierFeatures",
    "Frame",
    "HashGrid",
    "Lens",
    "LoadOptions",
    "Marching",
    "MeshScores",
    "Model",
    "Ndc",
    "OccupancyGrid",
    "ParsedScene",
    "PixelBatch",
    "PixelSampler",
    "Problem",
    "RadianceField",
    "RenderedRays",
    "Samples",
    "Scene",
    "SceneLoss",
    "Schedule",
    "Signal",
    "SignalField",
    "Similarity",
    "Siren",
    "TrainConfig",
    "Trainer",
    "Unbounded",
    "UserError",
    "Verdict",
    "View",
    "Weights",
    "backend",
    "camera_path",
    "check",
    "composite",
    "default_field",
    "default_marching",
    "evaluate",
    "evaluate_mesh",
    "export_cameras",
    "extract_mesh",
    "find_poses",
    "fit",
    "gradient",
    "image_of_field",
    "laplacian",
    "load",
    "next_n_rays",
    "ray_jitter",
    "read_audio",
    "read_image",
    "read_video",
    "reader",
    "render_rays",
    "render_video",
    "render_with",
    "sample_rays",
    "save_mesh",
    "second_derivatives",
    "texture_mesh",
    "train",
    "visible_cells",
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
