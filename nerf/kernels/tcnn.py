"""The tinycudann backend: its hash grid and fully fused networks evaluate the field, with our numbers in its layout.

The rest stays with our CUDA kernels, and compositing with the staged path of `reference`. Nothing of a model is stored
in its modules. Its package raises where it is imported without a GPU, so only the functions here import it.

Its conventions: a grid's parameters are the rows of its levels, one level after the other, features fastest; a
network's are its weight matrices [out, in] row-major, one after the other, without biases, inputs and outputs padded to
multiples of 16. It computes in half precision.
"""

from __future__ import annotations

import itertools
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nerf.errors import UserError
from nerf.kernels import cuda, reference
from nerf.kernels.records import (
    FieldConfig,
    FieldParams,
    FieldView,
    GradAccumulator,
    GridLayout,
    MarchSettings,
    OccupancyBits,
    Rays,
    RenderedRays,
)

WIDTHS = (16, 32, 64, 128)  # of the hidden layers of its fully fused networks
LARGEST = 1 / 16  # largest gradient handed over, up to a factor of two
GRID_ERROR = 1e-2  # largest |theirs - ours| / |ours| of a level's features: half precision, scales rounded elsewhere


def why_missing() -> str:
    """Empty where tinycudann can be imported, else the reason with what to do. Only ask where there is a GPU."""
    try:
        import_module("tinycudann")
    except ModuleNotFoundError as error:
        if error.name != "tinycudann":
            return f"tinycudann is installed, but needs the package {error.name}: pip install {error.name}"
        return (
            "the package tinycudann is not installed; it has to be built on the machine with the GPU, "
            "see https://github.com/NVlabs/tiny-cuda-nn"
        )
    except Exception as error:  # it looks for its compiled half by the GPU's version, and raises what it likes
        return f"tinycudann is installed but cannot be imported ({' '.join(str(error).split())[:200]}); build it again"
    return ""


# ---- our numbers in its layout, and back ---------------------------------------------------------------------------


def padded(n: int) -> int:
    return -(-n // 16) * 16


def pack_network(weights: list[Tensor]) -> Tensor:
    """Weights [out, in], in order, as the one vector that a fully fused network takes; what is padded is zero."""
    missing = [[padded(n) - n for n in w.shape] for w in weights]
    parts = zip(weights, missing, strict=True)
    return torch.cat([pad(w.detach(), (0, n_in, 0, n_out)).reshape(-1) for w, (n_out, n_in) in parts])


def unpack_network(vector: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """The other way: weights (or their gradients) of these shapes from the vector."""
    weights, at = [], 0
    for n_out, n_in in shapes:
        size = padded(n_out) * padded(n_in)
        weights.append(vector[at : at + size].view(padded(n_out), padded(n_in))[:n_out, :n_in].contiguous())
        at += size
    return weights


def grid_config(layout: GridLayout) -> dict[str, Any]:
    sizes = {f.name: getattr(layout, f.name) for f in fields(layout) if f.name != "n_dims"}
    return {"otype": "Grid", "type": "Hash", **sizes, "interpolation": "Linear"}


def network_config(width: int, n_layers: int) -> dict[str, Any]:
    return {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": width,
        "n_hidden_layers": n_layers - 1,
    }


@lru_cache(maxsize=4)
def _modules(layout: GridLayout, width: int, n_density: int, n_color: int) -> tuple[Any, Any, Any]:
    """Its grid, density network and colour network of these sizes, found to mean what ours mean."""
    if layout.n_features_per_level not in (1, 2, 4, 8) or width not in WIDTHS or min(n_density, n_color) < 2:
        raise UserError(
            f"tinycudann cannot express this field ({layout.n_features_per_level} features a level, networks {width} "
            f"wide with {n_density} and {n_color} layers): it takes 1, 2, 4 or 8 features, widths of "
            f"{', '.join(map(str, WIDTHS))} and 2 layers or more; use --backend cuda"
        )
    theirs = import_module("tinycudann")
    where = cuda.gpu().device
    grid = theirs.Encoding(layout.n_dims, grid_config(layout)).to(where)
    density = theirs.Network(layout.n_features, 16, network_config(width, n_density)).to(where)
    color = theirs.Network(32, 3, network_config(width, n_color)).to(where)
    _check_grid(grid, layout)
    for name, network, n_in, n_out, n_layers in (
        ("density", density, layout.n_features, 16, n_density),
        ("colour", color, 32, 3, n_color),
    ):
        sizes = [padded(n_in), *[width] * (n_layers - 1), padded(n_out)]
        wanted = sum(a * b for a, b in itertools.pairwise(sizes))
        if network.params.numel() != wanted:
            raise UserError(
                f"this tinycudann lays networks out in another way (the {name} network has {network.params.numel()} "
                f"numbers, expected {wanted}): use --backend cuda"
            )
    return grid, density, color


def _check_grid(grid: Any, layout: GridLayout) -> None:
    """Raises unless its grid gives our features for our table: it computes its scales in float32, on which the size of
    a dense level can hang."""
    other = "use --backend cuda, or another number of levels or resolution"
    if grid.params.numel() != layout.n_rows * layout.n_features_per_level:
        raise UserError(
            f"tinycudann lays this hash grid out in another way ({grid.params.numel()} numbers, expected "
            f"{layout.n_rows * layout.n_features_per_level}): {other}"
        )
    where, random = grid.params.device, torch.Generator().manual_seed(0)
    positions = torch.rand(1024, layout.n_dims, generator=random).to(where)
    table = (torch.rand(layout.n_rows, layout.n_features_per_level, generator=random) - 0.5).to(where)
    with torch.no_grad():
        found = _call(grid, table.view(-1), positions).double()
        ours = reference.hashgrid_encode(positions.double(), table, layout)
    for level in range(layout.n_levels):
        columns = slice(level * layout.n_features_per_level, (level + 1) * layout.n_features_per_level)
        error = float((found[:, columns] - ours[:, columns]).norm() / ours[:, columns].norm())
        if not error < GRID_ERROR:
            raise UserError(f"tinycudann computes level {level} of this hash grid in another way: {other}")


def _call(module: Any, vector: Tensor, x: Tensor) -> Tensor:
    """One of its modules with these parameters in the place of its own."""
    return torch.func.functional_call(module, {"params": vector}, (x,))


# ---- the field -----------------------------------------------------------------------------------------------------


def _modules_of(params: FieldParams, config: FieldConfig) -> tuple[Any, Any, Any]:
    n_density, n_color = len(params.density_weights), len(params.color_weights)
    return _modules(config.layout, params.density_weights[0].shape[0], n_density, n_color)


class _Logits(torch.autograd.Function):
    """Logits of density [s] and colour [s,3] at unit positions [s,3] seen along directions with harmonics sh [s,16].

    Gradients travel in half precision between its modules, and a row of the table sums thousands of them in it: they
    are scaled by a power of two that brings the largest one to LARGEST (its modules scale by 128 more), and back at the
    end. That leaves a factor of 4000 above, and 27 binary orders below.
    """

    @staticmethod
    def forward(
        ctx: Any,
        modules: tuple[Any, Any, Any],
        unit: Tensor,
        sh: Tensor,
        table: Tensor,
        n_density: int,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        groups = weights[:n_density], weights[n_density:]
        inputs = [unit, sh, table.reshape(-1), *(pack_network(list(ws)) for ws in groups)]
        wanted = [*ctx.needs_input_grad[1:4], *(any(w.requires_grad for w in ws) for ws in groups)]
        inputs = [t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
        grid, density, color = modules
        with torch.enable_grad():
            h = _call(density, inputs[3], _call(grid, inputs[2], inputs[0]))
            logits = _call(color, inputs[4], torch.cat([inputs[1], h.to(inputs[1].dtype)], dim=1))
            outputs = h[:, 0].to(unit.dtype), logits.to(unit.dtype)
        ctx.state = (inputs, outputs, table.shape, [[tuple(w.shape) for w in ws] for ws in groups])
        ctx.save_for_backward(table, *weights)  # notices changes made in between
        return outputs[0].detach(), outputs[1].detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_density: Tensor, grad_color: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        inputs, outputs, table_shape, shapes = ctx.state
        largest = torch.maximum(grad_density.abs().max(), grad_color.abs().max())
        scale = LARGEST * torch.exp2(-largest.log2().floor().clamp(-100, 100))
        scale = torch.where((largest > 0) & largest.isfinite(), scale, torch.ones_like(scale))
        wanted = [t for t in inputs if t.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, [grad_density * scale, grad_color * scale]))
        unit, sh, table, *networks = (next(found) / scale if t.requires_grad else None for t in inputs)
        weights: list[Tensor | None] = []
        for vector, group in zip(networks, shapes, strict=True):
            weights += [None] * len(group) if vector is None else unpack_network(vector, group)
        ctx.state = None
        return None, unit, sh, None if table is None else table.view(table_shape), None, *weights


def _unit(positions: Tensor, config: FieldConfig) -> Tensor:
    return reference.scene_to_unit(positions, config.contracted).clamp(0.0, 1.0)


def density(positions: Tensor, params: FieldParams, config: FieldConfig) -> Tensor:
    """sigmas [s] at scene positions [s,3]; no gradient. See `reference.radiance_density`."""
    modules = _modules_of(params, config)
    if not len(positions):
        return positions.new_zeros(0)
    with torch.no_grad():
        features = _call(modules[0], params.table.detach().reshape(-1), _unit(positions, config))
        h = _call(modules[1], pack_network(params.density_weights), features)
        return reference.density_activation(h[:, 0].to(positions.dtype) + config.density_bias)


def radiance_field(
    positions: Tensor, directions: Tensor, params: FieldParams, config: FieldConfig
) -> tuple[Tensor, Tensor]:
    """sigmas [s], rgbs [s,3] as `reference.radiance_field`; once differentiable in all but the config."""
    modules = _modules_of(params, config)
    if not len(positions):
        return reference.radiance_field(positions, directions, params, config)
    unit, sh, n_density = _unit(positions, config), reference.sh_encode(directions, 4), len(params.density_weights)
    h, logits = _Logits.apply(
        modules, unit, sh, params.table, n_density, *params.density_weights, *params.color_weights
    )
    return reference.density_activation(h + config.density_bias), torch.sigmoid(logits)


def field_forward(positions: Tensor, directions: Tensor | None, field: FieldView) -> tuple[Tensor, Tensor | None]:
    """As `cuda.field_forward`."""
    params, config = field.params, field.config
    if directions is None:
        return density(positions, params, config), None
    with torch.no_grad():
        return radiance_field(positions, directions, params, config)


# ---- the staged render op ------------------------------------------------------------------------------------------


def render_rays(
    rays: Rays,
    bits: OccupancyBits,
    field: FieldView,
    settings: MarchSettings,
    grad_accumulator: GradAccumulator | None = None,
    overflow: str = "grow",
) -> RenderedRays:
    """March (our kernel), field (tinycudann), composite (torch); see `cpu.render_rays` for the meaning. What a surface
    hides costs a density here, which the fused op never asks for."""
    field = reference.accumulating(field, grad_accumulator)
    params, config = field.params, field.config
    return reference.render_samples(
        lambda x, d: radiance_field(x, d, params, config),
        lambda x: density(x, params, config),
        cuda.march(rays.each(lambda t: t.detach().float().contiguous()), bits, settings),
        rays,
        settings,
    )
