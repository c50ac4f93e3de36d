"""Every kernel again in plain torch: the oracle of the native backends, and the fallback where there is none.

Differentiable operations are written in terms of torch's own, so that they work in any float dtype, on any device, and
to any order of differentiation; the dtype of the positions (or rays) decides. The march is vectorised; its
definition, one ray and one interval at a time, is what tests hold it to (tests/march_definition.py).
One file for each subject, as in `../src`.
"""

from __future__ import annotations

from nerf.geometry.space import contract, ray_box, scene_to_unit
from nerf.kernels.reference.adam import adam_step
from nerf.kernels.reference.compositing import composite
from nerf.kernels.reference.drawing import draw_rays
from nerf.kernels.reference.field import density_activation, mlp, radiance_density, radiance_field
from nerf.kernels.reference.hashgrid import accumulating, hashgrid_encode
from nerf.kernels.reference.march_vectorised import march
from nerf.kernels.reference.rays import ray_jitter
from nerf.kernels.reference.rendering import render_rays, render_samples, sample_positions
from nerf.kernels.reference.sh import sh_encode

__all__ = [
    "accumulating",
    "adam_step",
    "composite",
    "contract",
    "density_activation",
    "draw_rays",
    "hashgrid_encode",
    "march",
    "mlp",
    "radiance_density",
    "radiance_field",
    "ray_box",
    "ray_jitter",
    "render_rays",
    "render_samples",
    "sample_positions",
    "scene_to_unit",
    "sh_encode",
]
