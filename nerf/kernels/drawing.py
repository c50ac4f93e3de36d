"""What a fused training step is told, what it draws and what it leaves: the records that the CPU, the GPU and their
reference share, and the structs that native code reads of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nerf.geometry.space import Ndc, Space
from nerf.kernels.bindings import DrawArgs, PhotoRays, Pointers, Three, check_in_place
from nerf.kernels.records import (
    AdamState,
    AdamStep,
    FieldView,
    GradAccumulator,
    MarchSettings,
    OccupancyBits,
    Rays,
)

RAY_PARTS = ("rays_o", "rays_d", "viewdirs", "t_near", "t_far", "jitter")


@dataclass(frozen=True)
class KnownPixels:
    """Pixels whose place on their ray is known, one in `every` of a batch: image, row, column and block [k,4] int64,
    and that place [k] (0: unknown after all)."""

    pixels: Tensor
    t_depths: Tensor
    every: int


@dataclass(frozen=True)
class BeforeCameras:
    """Rays whose opacity right before cameras is penalised, beside one pixel in `every`. Half of them begin at
    viewpoints: around the line from one of the cameras' centres [c,3] to one of the `nearest` [c,m] (int64) to it,
    `spread` of its length off. far: where they end."""

    centres: Tensor
    nearest: Tensor
    spread: float
    far: float
    every: int


@dataclass(frozen=True)
class PhotoTable:
    """The photos of a training, their cameras and what surrounds them; all tensors on one device.

    Pixel (row r, column j) of image i is `pixels[offsets[i] + r * widths[i] + j]`: grey, grey and alpha, RGB or RGBA,
    whose last channel counts as alpha where has_alpha. Its ray begins at `cameras[i, 9:12]` and goes along
    `A (x, y, 1)` with the axes A = cameras[i, 0:9] (right, down, forward), x = (j - cameras[i, 14]) cameras[i, 12] and
    y likewise, or along A times the lens's own direction where there are `directions`.
    """

    pixels: Tensor  # [total,c] uint8, or uint16 as torch's int16
    offsets: Tensor  # [images] int64
    widths: Tensor
    heights: Tensor
    has_alpha: bool
    blocks: Tensor  # [b,3] int64: image, row and column of blocks of side x side pixels that may be drawn from
    side: int
    cameras: Tensor  # [images,16] float32
    directions: tuple[Tensor, Tensor] | None  # [pixels of all lenses,3] float32, and where each image's begin [images]
    # Bits [bytes] of the images' pixels in order, the highest of a byte first, and the byte [images] with which each
    # image's begin: pixels that count, and those that show the object (in the place of alpha); None: all.
    masks: tuple[Tensor, Tensor] | None
    silhouettes: tuple[Tensor, Tensor] | None
    background: tuple[float, float, float] | None  # behind what is opaque, where one is known
    exposure: float  # random colours behind what is transparent are divided by it
    space: Space  # through which rays are marched
    near: float
    far: float
    known: KnownPixels | None = None
    before: BeforeCameras | None = None
    lit: bool = False  # the photos' light is learnt: what was drawn says which pixels, and their alpha


@dataclass(frozen=True)
class BatchPlan:
    """Which n pixels are drawn: cumulative [b], the growing shares of the total probability of the table's blocks,
    None: all alike; near [k] int64, which of its known pixels may be; any_direction: colours are asked for from random
    directions. step_at [1] int32, on a GPU: the step is read there."""

    n: int
    seed: int
    step: int
    cumulative: Tensor | None = None
    near: Tensor | None = None
    any_direction: bool = False
    step_at: Tensor | None = None

    def n_known(self, table: PhotoTable) -> int:
        """How many of the pixels, the last of the batch, are known ones."""
        none = table.known is None or self.near is None or len(self.near) == 0
        return 0 if none or table.known is None else self.n // table.known.every

    def n_before(self, table: PhotoTable) -> int:
        """How many rays before cameras there are beside them."""
        return 0 if table.before is None else -(-self.n // table.before.every)


@dataclass(frozen=True)
class DrawnRays:
    """A batch of n pixels: their rays and, behind these, m rays before cameras [n+m]; the colours [n,3] that pixels are
    to show over backgrounds [n,3], and the blocks [n] int64 that they were drawn from; used [n]: 0 where masks exclude
    them, None without masks; t_depths [n]: where on its ray what a pixel shows is known to be, 0: nowhere. Where light
    is learnt: which pixels they are [n,3] int64 (image, row, column), and their alpha [n]."""

    rays: Rays
    targets: Tensor
    backgrounds: Tensor
    places: Tensor
    used: Tensor | None = None
    t_depths: Tensor | None = None
    pixels: Tensor | None = None
    alphas: Tensor | None = None


@dataclass(frozen=True)
class PhotoLoss:
    """Weights of the default loss: of `losses.huber` with its delta, of `losses.surface`, of `losses.depth` with its
    rounding, and of the mean opacity of rays before cameras. rates [4]: whose last number is read instead of `surface`,
    where a recorded step is replayed."""

    photo: float
    surface: float
    delta: float
    depth: float = 0.0
    rounding: float = 0.0
    before: float = 0.0
    rates: Tensor | None = None


@dataclass(frozen=True)
class TableStep:
    """The step of Adam that the table is to take with its gradient, in the place of an accumulator for it (CPU)."""

    state: AdamState
    step: AdamStep


@dataclass(frozen=True)
class Light:
    """Logarithms of the light of the photos' pixels [n,3]; where there is a flash, the exponents [n] with which its
    light falls off, and the distance at which it changes nothing."""

    gains: Tensor
    exponents: Tensor | None = None
    reference: float = 1.0


@dataclass(frozen=True)
class LearnPlan:
    """What a drawn batch is learnt with: the field and what is marched through, the loss, where the table's gradient
    goes, and the error map (sums, counts), to which each pixel's squared error and 1 are added at its place."""

    bits: OccupancyBits
    field: FieldView
    settings: MarchSettings
    sink: GradAccumulator | TableStep
    loss: PhotoLoss
    error_map: tuple[Tensor, Tensor]
    light: Light | None = None


@dataclass(frozen=True)
class Learnt:
    """What a fused step leaves before Adam: the loss [1], squared errors of the pixels [n], the gradient of the
    networks' weights one after the other, and the counts of `RenderedRays`; capacity None: there is room for all
    samples. gains_grad [n,3]: that of the light's gains; median_depths [n]: those of a flash."""

    loss: Tensor
    errors: Tensor
    weights_grad: Tensor
    evaluated: Tensor | int
    kept: Tensor | int
    capacity: int | None
    gains_grad: Tensor | None = None
    median_depths: Tensor | None = None


class Written(NamedTuple):
    """Of `Learnt`, what the loss leaves."""

    errors: Tensor
    gains_grad: Tensor | None
    median_depths: Tensor | None


def drawn_by(draw: Callable[[DrawArgs], None], p: Pointers, table: PhotoTable, plan: BatchPlan) -> DrawnRays:
    """What native code draws; p: of the table's device. See `reference.draw_rays` for the meaning."""
    device, n, long = table.blocks.device, plan.n, torch.int64
    n_known, n_before, images = plan.n_known(table), plan.n_before(table), len(table.offsets)
    n_rays = n + n_before
    of_rays = torch.empty(12 * n_rays, device=device).split([3 * n_rays] * 3 + [n_rays] * 3)
    o, d, viewdirs = (part.view(n_rays, 3) for part in of_rays[:3])
    targets, backgrounds = (part.view(n, 3) for part in torch.empty(6 * n, device=device).split(3 * n))
    places = torch.empty(n, dtype=long, device=device)

    def some(wanted: bool, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return torch.empty(shape, dtype=dtype, device=device) if wanted else None

    used, t_depths = some(table.masks is not None, n), some(n_known > 0, n)
    pixels, alphas = some(table.lit, n, 3, dtype=long), some(table.lit, n)
    args = DrawArgs(
        pixels=p("pixels", table.pixels, tuple(table.pixels.shape), table.pixels.dtype),
        **{name: p(name, getattr(table, name), (images,), long) for name in ("offsets", "widths", "heights")},
        blocks=p("blocks", table.blocks, (None, 3), long),
        cumulative=p("cumulative", plan.cumulative, (len(table.blocks),)),
        cameras=p("cameras", table.cameras, (images, 16)),
        step_at=p("step_at", plan.step_at, (1,), torch.int32),
        seed=plan.seed & 0xFFFFFFFF,
        step=plan.step & 0xFFFFFFFF,
        n=n,
        n_known=n_known,
        n_before=n_before,
        n_blocks=len(table.blocks),
        side=table.side,
        channels=table.pixels.shape[1],
        bytes=table.pixels.element_size(),
        has_alpha=int(table.has_alpha),
        has_background=int(table.background is not None),
        background=Three(*(table.background or (0.0, 0.0, 0.0))),
        exposure=table.exposure,
        half_extent=table.space.half_extent,
        any_direction=int(plan.any_direction),
        t_first=table.near,
        t_last=table.far,
    )
    written = {"targets": targets, "backgrounds": backgrounds, "places": places, "used": used, "t_depths": t_depths}
    written |= {"drawn": pixels, "alphas": alphas} | dict(zip(RAY_PARTS, of_rays, strict=True))
    for name, tensor in written.items():
        setattr(args, name, 0 if tensor is None else tensor.data_ptr())
    for name, offsets, held in (
        ("masks", "mask_offsets", table.masks),
        ("silhouettes", "silhouette_offsets", table.silhouettes),
    ):
        if held is not None:
            setattr(args, name, p(name, held[0], (None,), torch.uint8))
            setattr(args, offsets, p(offsets, held[1], (images,), long))
    if table.known is not None and plan.near is not None and n_known:
        args.keypoints = p("known pixels", table.known.pixels, (None, 4), long)
        args.keypoint_depths = p("known t_depths", table.known.t_depths, (len(table.known.pixels),))
        args.near, args.n_near = p("near", plan.near, (None,), long), len(plan.near)
    if (before := table.before) is not None:
        args.n_centres, args.n_nearest = before.nearest.shape
        args.centres = p("centres", before.centres, (args.n_centres, 3))
        args.nearest = p("nearest", before.nearest, tuple(before.nearest.shape), long)
        args.before_every, args.before_last, args.spread = before.every, before.far, before.spread
    if table.directions is not None:
        args.directions = p("directions", table.directions[0], (None, 3))
        args.starts = p("starts", table.directions[1], (images,), long)
    if isinstance(table.space, Ndc):
        args.warped, args.ndc_x, args.ndc_y = 1, table.space.a, table.space.b
    elif not plan.any_direction:
        args.viewdirs, viewdirs = 0, d
    draw(args)
    rays = Rays(o, d, viewdirs, *of_rays[3:])
    return DrawnRays(rays, targets, backgrounds, places, used, t_depths, pixels, alphas)


def photo_rays(p: Pointers, drawn: DrawnRays, plan: LearnPlan) -> tuple[PhotoRays, Written]:
    """What native code reads of a batch and its loss, and what it writes."""
    n, loss, light, device = len(drawn.targets), plan.loss, plan.light, drawn.targets.device
    for name, held in zip(("error_map sums", "error_map counts"), plan.error_map, strict=True):
        check_in_place(name, held, tuple(plan.error_map[0].shape), torch.float32, str(device))
    torch.autograd.graph.increment_version(list(plan.error_map))
    rays = PhotoRays(
        targets=p("targets", drawn.targets, (n, 3)),
        backgrounds=p("backgrounds", drawn.backgrounds, (n, 3)),
        used=p("used", drawn.used, (n,)),
        t_depths=p("t_depths", drawn.t_depths, (n,)),
        places=p("places", drawn.places, (n,), torch.int64),
        rates=p("rates", loss.rates, (4,)),
        error_sums=plan.error_map[0].data_ptr(),
        error_counts=plan.error_map[1].data_ptr(),
        **{name: getattr(loss, name) for name in ("photo", "surface", "depth", "before", "delta", "rounding")},
        brightest=plan.field.config.color_scale,
        n=n,
        n_before=len(drawn.rays.o) - n,
    )
    errors, gains_grad, median_depths = torch.empty(n, device=device), None, None
    if light is not None:
        if drawn.alphas is None:
            raise ValueError("light: expected None, or rays drawn from a table whose light is learnt (`lit`)")
        rays.gains, rays.alphas = p("gains", light.gains, (n, 3)), p("alphas", drawn.alphas, (n,))
        gains_grad = torch.empty(n, 3, device=device)
        rays.grad_gains = gains_grad.data_ptr()
        if light.exponents is not None:
            rays.exponents, rays.reference = p("exponents", light.exponents, (n,)), light.reference
            median_depths = torch.empty(n, device=device)
            rays.medians = median_depths.data_ptr()
    rays.errors = errors.data_ptr()
    return rays, Written(errors, gains_grad, median_depths)
