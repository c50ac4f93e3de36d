"""The kernels of a fused training step against plain torch: the batch that is drawn, its loss and all gradients.

Rows as those of cuda_checks.py, which gpu_check.py and the tests run alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cuda_checks import (
    EXACT,
    Row,
    _directions,
    _rays,
    _uniform,
    cast,
    differs,
    make_field,
    make_rays,
    relative,
)
from nerf import kernels
from nerf.kernels import DrawnRays, FieldView, GradAccumulator, MarchSettings, PhotoLoss, PhotoTable, reference
from nerf.rendering import losses

# float32, a division or a square root rounded otherwise
ROUNDED = 2e-5
# the same gradients through half precision: those that differ in their last digit may round to another half
SAME_SINGLE, SAME_HALF = 1e-5, 2e-3


def photo_tables() -> dict[str, PhotoTable]:
    """Two photos of all kinds that a store has, on the CPU: sizes that no block fits, lenses with and without bend."""
    g = torch.Generator().manual_seed(0)
    sizes, offsets = torch.tensor([[7, 20], [18, 33]]), torch.tensor([0, 140])
    n = int((sizes[:, 0] * sizes[:, 1]).sum())
    cameras = torch.randn(2, 16, generator=g)
    cameras[:, :9] = torch.linalg.qr(torch.randn(2, 3, 3, generator=g))[0].flatten(1)
    cameras[:, 12:14] = 0.05
    shared: dict[str, Any] = {"offsets": offsets, "widths": sizes[:, 1].clone(), "heights": sizes[:, 0].clone()}
    shared |= {"blocks": torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 2], [1, 1, 1]]), "side": 16}
    shared |= {"cameras": cameras, "half_extent": 2.0, "near": 0.1, "far": 9.0}

    def bits() -> tuple[Tensor, Tensor]:
        return torch.randint(256, (100,), generator=g).to(torch.uint8), torch.tensor([0, 18])

    def table(c: int, alpha: bool = False, wide: bool = False, bent: bool = False, cut: bool = False) -> PhotoTable:
        values = torch.randint(65536 if wide else 256, (n, c), generator=g)
        pixels = (values - 65536 * (values > 32767)).to(torch.int16) if wide else values.to(torch.uint8)
        lens = (torch.randn(n, 3, generator=g), offsets) if bent else None
        more: dict[str, Any] = dict.fromkeys(("masks", "silhouettes", "background"))
        if cut:
            more = {"masks": bits(), "silhouettes": bits(), "background": (0.1, 0.2, 0.9)}
        return PhotoTable(pixels, has_alpha=alpha, directions=lens, exposure=2.0 if bent else 1.0, **shared, **more)

    kinds = {"rgba": table(4, alpha=True), "rgb, lenses": table(3, bent=True), "grey": table(1)}
    kinds |= {"rgb, masks, silhouettes": table(3, cut=True)}
    return kinds | {"grey and alpha, 16 bits": table(2, alpha=True, wide=True)}


def placed(table: PhotoTable, device: torch.device) -> PhotoTable:
    """The same on a device."""
    names = ("pixels", "offsets", "widths", "heights", "blocks", "cameras")
    moved: dict[str, Any] = {name: getattr(table, name).to(device) for name in names}
    for name in ("directions", "masks", "silhouettes"):
        held = getattr(table, name)
        moved[name] = None if held is None else (held[0].to(device), held[1].to(device))
    return replace(table, **moved)


def check_draw(n: int = 4096) -> Iterator[Row]:
    device = kernels.device()
    shares = torch.tensor([0.5, 0.5, 0.6, 0.9, 1.0])  # the second block is never drawn
    for kind, table in photo_tables().items():
        for cumulative in (None, shares):
            read = None if cumulative is None else torch.tensor([7], dtype=torch.int32).to(device)
            there = None if cumulative is None else cumulative.to(device)
            found = kernels.draw_rays(placed(table, device), there, 5, 7 if read is None else 0, n, True, read)
            wanted = reference.draw_rays(table, cumulative, 5, 7, n, True)
            hit = wanted.rays.t_near < wanted.rays.t_far
            name = f"draw, {kind}{', by shares' * (cumulative is not None)}"
            yield f"{name}: places that differ", differs(found.places, wanted.places), EXACT
            yield f"{name}: jitter that differs", differs(found.rays.jitter, wanted.rays.jitter), EXACT
            yield f"{name}: hits that differ", differs(found.rays.t_near < found.rays.t_far, hit), EXACT
            for part in ("o", "d", "viewdirs"):
                yield f"{name}: rays, {part}", relative(getattr(found.rays, part), getattr(wanted.rays, part)), ROUNDED
            for part in ("t_near", "t_far"):
                a, b = (getattr(drawn.rays, part).cpu()[hit] for drawn in (found, wanted))
                yield f"{name}: {part}", relative(a, b), ROUNDED
            assert (found.used is None) == (wanted.used is None)
            if found.used is not None and wanted.used is not None:
                yield f"{name}: masked pixels that differ", differs(found.used, wanted.used), EXACT
            for part in ("targets", "backgrounds"):
                yield f"{name}: {part}", relative(getattr(found, part), getattr(wanted, part)), ROUNDED


def check_learn(half: bool, n: int = 512, step_size: float = 0.02, **size: Any) -> Iterator[Row]:
    """Beside `render_rays`, the losses in torch and autograd, on the same device."""
    device = kernels.device()
    params, config = make_field(**size)
    params = cast(params, device, torch.float32)
    tensors = [t.to(device) for t in make_rays(n, 1, 32)]
    rays, occupied = _rays(tensors, _directions(n, 8).to(device)), tensors[-1]
    targets, backgrounds = (_uniform(n, 3, seed=seed).to(device) for seed in (1, 2))
    places, used = torch.arange(n, device=device) % 7, (_uniform(n, seed=4) < 0.8).float().to(device)
    view = FieldView(params, config, params.table.detach().half() if half else None)
    settings = MarchSettings(step_size, 0.0, step_size, 1e-3, 2e-3, 2.0)
    bits = kernels.pack_occupancy(occupied)
    assert bits is not None
    sink = GradAccumulator(torch.zeros_like(params.table.detach()))
    out = kernels.render_rays(rays, occupied, view, settings, bits, sink, "drop")
    shown = out.over(backgrounds)
    per_ray = out.second_moments, out.foregrounds, out.opacities
    wanted = 10.0 * losses.huber(shown, targets, weights=used)
    wanted = wanted + 0.6 * losses.surface(*per_ray, targets, backgrounds, used)
    wanted.backward()
    errors = (shown - targets).square().mean(dim=1).detach() * used
    weights = torch.cat([_grad(w).flatten() for w in params.density_weights + params.color_weights])
    rates = torch.tensor([0.0, 0.0, 0.0, 0.6]).to(device)
    limit = SAME_HALF if half else SAME_SINGLE
    for surface, read in ((0.6, None), (0.0, rates)):
        ours = GradAccumulator(torch.zeros_like(sink.table))
        error_map = torch.zeros(7, device=device), torch.ones(7, device=device)
        loss = PhotoLoss(10.0, surface, read, losses.HUBER_DELTA)
        done = kernels.learn_rays(
            DrawnRays(rays, targets, backgrounds, places, used), bits, view, settings, ours, loss, error_map
        )
        name = f"learn, {'half' if half else 'single'}{', weight read' * (read is not None)}"
        yield f"{name}: samples that differ", abs(int(done.kept) - int(out.kept)), EXACT
        yield f"{name}: loss", relative(done.loss, wanted[None]), ROUNDED
        yield f"{name}: errors", relative(done.errors, errors), ROUNDED
        sums = torch.zeros(7, device=device).index_add(0, places, errors)
        yield f"{name}: error map", relative(error_map[0], sums), ROUNDED
        yield f"{name}: counts that differ", differs(error_map[1], 1.0 + places.bincount(minlength=7)), EXACT
        yield f"{name}: gradient of the table", relative(ours.table, sink.table), limit
        yield f"{name}: gradient of the networks", relative(done.weights_grad, weights), limit


def _grad(w: Tensor) -> Tensor:
    assert w.grad is not None
    return w.grad
