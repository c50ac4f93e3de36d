"""The kernels of a fused training step against plain torch: the batch that is drawn, its loss and all gradients.

Rows as those of cuda_checks.py, which gpu_check.py and the tests run alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from nerf.geometry.space import Ndc, Unbounded
from nerf.kernels import (
    BatchPlan,
    BeforeCameras,
    DrawnRays,
    FieldView,
    GradAccumulator,
    KnownPixels,
    LearnPlan,
    Light,
    MarchSettings,
    PhotoLoss,
    PhotoTable,
    reference,
)
from nerf.rendering import losses
from nerf.training.exposure import falloff
from nerf.training.objective import SceneLoss
from nerf.training.pixel_sampler import PixelBatch
from nerf.training.schedule import Weights

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
    shared |= {"cameras": cameras, "space": Unbounded(2), "near": 0.1, "far": 9.0}

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
    pixels = torch.tensor([[0, 3, 17, 1], [1, 17, 32, 3], [1, 16, 0, 4], [1, 0, 0, 2]])
    known = KnownPixels(pixels, torch.tensor([2.5, 0.0, 0.7, 5.0]), 8)
    before = BeforeCameras(torch.randn(5, 3, generator=g), torch.randint(5, (5, 3), generator=g), 0.25, 0.8, 4)
    kinds |= {"rgba, open scene": replace(table(4, alpha=True), known=known, before=before, lit=True)}
    kinds |= {"grey, forward-facing": replace(table(1), space=Ndc(1.2, 0.9), cameras=_forward_facing(cameras))}
    return kinds | {"grey and alpha, 16 bits": table(2, alpha=True, wide=True)}


def _forward_facing(cameras: Tensor) -> Tensor:
    """The same near the origin, looking along -z, one of them to a side that NDC has not."""
    cameras = cameras.clone()
    cameras[:, :9] = torch.tensor([1.0, 0, 0, 0, -1, 0, 0, 0, -1])
    cameras[1, :9] = torch.tensor([0.0, 0, -1, 0, -1, 0, -1, 0, 0])
    cameras[:, 9:12] *= 0.1
    return cameras


def placed(table: PhotoTable, device: torch.device) -> PhotoTable:
    """The same on a device."""
    names = ("pixels", "offsets", "widths", "heights", "blocks", "cameras")
    moved: dict[str, Any] = {name: getattr(table, name).to(device) for name in names}
    for name in ("directions", "masks", "silhouettes"):
        held = getattr(table, name)
        moved[name] = None if held is None else (held[0].to(device), held[1].to(device))
    if (known := table.known) is not None:
        moved["known"] = replace(known, pixels=known.pixels.to(device), t_depths=known.t_depths.to(device))
    if (before := table.before) is not None:
        moved["before"] = replace(before, centres=before.centres.to(device), nearest=before.nearest.to(device))
    return replace(table, **moved)


def check_draw(n: int = 4096) -> Iterator[Row]:
    device = kernels.device()
    shares = torch.tensor([0.5, 0.5, 0.6, 0.9, 1.0])  # the second block is never drawn
    for kind, table in photo_tables().items():
        for cumulative in (None, shares):
            read = None if cumulative is None else torch.tensor([7], dtype=torch.int32).to(device)
            there = None if cumulative is None else cumulative.to(device)
            plan = BatchPlan(n, 5, 7, cumulative, torch.tensor([0, 1, 3]), any_direction=True)
            moved = {"cumulative": there, "near": torch.tensor([0, 1, 3]).to(device), "step_at": read}
            moved |= {} if read is None else {"step": 0}
            found = kernels.draw_rays(placed(table, device), replace(plan, **moved))
            wanted = reference.draw_rays(table, plan)
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
            for part in ("used", "t_depths", "pixels", "alphas"):
                a, b = getattr(found, part), getattr(wanted, part)
                assert (a is None) == (b is None)
                if a is not None:
                    yield f"{name}: {part} that differ", differs(a, b), EXACT
            for part in ("targets", "backgrounds"):
                yield f"{name}: {part}", relative(getattr(found, part), getattr(wanted, part)), ROUNDED


@dataclass
class _Light:
    """In the place of `ExposureCorrections`: log gains [n,3] of whatever pixels, and a flash."""

    gains: Tensor
    exponents: Tensor
    reference: float = 1.5

    def at(self, image_ids: Tensor, rows: Tensor, cols: Tensor, distances: Tensor) -> Tensor:
        return self.gains + falloff(self.exponents, distances, self.reference)


def _colours(n: int, seed: int, device: torch.device) -> Tensor:
    return _uniform(n, 3, seed=seed).to(device)


def _batches(n: int, device: torch.device) -> dict[str, tuple[DrawnRays, PixelBatch, _Light | None]]:
    """n rays of make_rays as both kinds of step are given them: of an object, and of an open scene, of whose rays the
    last fifth are before cameras, a third have known depths, and photos have their own light."""
    tensors = [t.to(device) for t in make_rays(n, 1, 32)]
    rays, none = _rays(tensors, _directions(n, 8).to(device)), torch.zeros(0, device=device)

    def batch(n: int, alpha: Tensor, background: Tensor) -> tuple[DrawnRays, PixelBatch]:
        used, places = (_uniform(n, seed=4) < 0.8).float().to(device), torch.arange(n, device=device) % 7
        pixels = PixelBatch(
            *(none, none, none, places, _colours(n, 1, device), alpha[:, None], used[:, None]), background=background
        )
        return DrawnRays(rays, pixels.targets, background, places, used), pixels

    object_ = batch(n, torch.ones(n, device=device), _colours(n, 2, device))
    m = n - n // 5
    alpha = _uniform(m, seed=5).to(device).mul(2).clamp_max(1)
    drawn, pixels = batch(m, alpha, _colours(m, 2, device))
    pixels.rgb[::4], pixels.alpha[::4] = 1.0, 1.0  # saturated
    pixels.t_depths = ((_uniform(m, seed=6) < 0.3) * _uniform(m, seed=7, low=0.5, high=3.0)).to(device)
    gains = (0.5 * (_colours(m, 9, device) - 0.5)).requires_grad_()
    exponents = _uniform(m, seed=10, low=0.0, high=2.0).to(device)
    drawn = replace(drawn, targets=pixels.targets, t_depths=pixels.t_depths, alphas=pixels.alpha[:, 0])
    return {"object": (*object_, None), "open scene": (drawn, pixels, _Light(gains, exponents))}


def check_learn(half: bool, n: int = 512, step_size: float = 0.02, **size: Any) -> Iterator[Row]:
    """Beside `render_rays`, the loss of steps in torch and autograd, on the same device."""
    for kind, (drawn, pixels, light) in _batches(n, kernels.device()).items():
        yield from _check_learn(
            f"learn, {kind}, {'half' if half else 'single'}", half, step_size, drawn, pixels, light, size
        )


def _check_learn(
    name: str,
    half: bool,
    step_size: float,
    drawn: DrawnRays,
    pixels: PixelBatch,
    light: _Light | None,
    size: dict[str, Any],
) -> Iterator[Row]:
    device, n = kernels.device(), len(pixels.rgb)
    params, config = make_field(contracted=light is not None, **size)
    config = replace(config, color_scale=1.0 if light is None else 1.25)
    params = cast(params, device, torch.float32)
    view = FieldView(params, config, params.table.detach().half() if half else None)
    settings = MarchSettings(step_size, 0.0, step_size, 1e-3, 2e-3, 2.0)
    occupied = make_rays(n, 1, 32)[-1].to(device)
    bits = kernels.pack_occupancy(occupied)
    assert bits is not None
    pixels.surface, pixels.weights = 0.6, Weights(photo=10.0, depth=1.6, near_camera=0.05)

    sink = GradAccumulator(torch.zeros_like(params.table.detach()))
    every = kernels.render_rays(drawn.rays, occupied, view, settings, bits, sink, "drop")
    out = every._replace(**{part: getattr(every, part)[:n] for part in every._fields[:6]})
    objective = SceneLoss(corrections=light)  # type: ignore[arg-type]
    wanted = objective(out, pixels)
    if len(drawn.rays.o) > n:
        wanted = wanted + 0.05 * every.opacities[n:].mean()
    wanted.backward()
    errors = objective.errors(out, pixels)
    weights = torch.cat([_grad(w).flatten() for w in params.density_weights + params.color_weights])

    rates = torch.tensor([0.0, 0.0, 0.0, 0.6]).to(device)
    limit = SAME_HALF if half else SAME_SINGLE
    for surface, read in ((0.6, None), (0.0, rates)):
        ours = GradAccumulator(torch.zeros_like(sink.table))
        error_map = torch.zeros(7, device=device), torch.ones(7, device=device)
        loss = PhotoLoss(10.0, surface, losses.HUBER_DELTA, 1.6, losses.DEPTH_ROUNDING, 0.05, read)
        shown = None if light is None else Light(light.gains, light.exponents, light.reference)
        done = kernels.learn_rays(drawn, LearnPlan(bits, view, settings, ours, loss, error_map, shown))
        what = f"{name}{', weight read' * (read is not None)}"
        yield f"{what}: samples that differ", abs(int(done.kept) - int(every.kept)), EXACT
        yield f"{what}: loss", relative(done.loss, wanted[None]), ROUNDED
        yield f"{what}: errors", relative(done.errors, errors), ROUNDED
        sums = torch.zeros(7, device=device).index_add(0, drawn.places, errors)
        yield f"{what}: error map", relative(error_map[0], sums), ROUNDED
        yield f"{what}: counts that differ", differs(error_map[1], 1.0 + drawn.places.bincount(minlength=7)), EXACT
        yield f"{what}: gradient of the table", relative(ours.table, sink.table), limit
        yield f"{what}: gradient of the networks", relative(done.weights_grad, weights), limit
        if light is not None and done.gains_grad is not None and done.median_depths is not None:
            yield f"{what}: gradient of the gains", relative(done.gains_grad, _grad(light.gains)), ROUNDED
            yield f"{what}: median depths", relative(done.median_depths, out.median_depths), ROUNDED


def _grad(w: Tensor) -> Tensor:
    assert w.grad is not None
    return w.grad
