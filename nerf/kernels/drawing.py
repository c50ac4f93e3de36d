"""What a fused training step is told, and what it draws: what the CPU, the GPU and their reference share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf.kernels.bindings import DrawArgs, Pointers, Three, check_in_place
from nerf.kernels.records import AdamState, AdamStep, Rays


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
    half_extent: float  # of the box through which rays are marched
    near: float
    far: float


@dataclass(frozen=True)
class DrawnRays:
    """A batch of n rays, with the colours [n,3] that they are to show over backgrounds [n,3], and the blocks [n] int64
    that their pixels were drawn from; used [n]: 0 where masks exclude them, None without masks."""

    rays: Rays
    targets: Tensor
    backgrounds: Tensor
    places: Tensor
    used: Tensor | None = None


@dataclass(frozen=True)
class PhotoLoss:
    """Weights of the default loss, of `losses.huber` with its delta and of `losses.surface`; rates [4]: whose last
    number is read instead of `surface`, where a recorded step is replayed."""

    photo: float
    surface: float
    rates: Tensor | None
    delta: float


@dataclass(frozen=True)
class TableStep:
    """The step of Adam that the table is to take with its gradient, in the place of an accumulator for it (CPU)."""

    state: AdamState
    step: AdamStep


@dataclass(frozen=True)
class Learnt:
    """What a fused step leaves before Adam: the loss [1], squared errors of the rays [n], the gradient of the networks'
    weights one after the other, and the counts of `RenderedRays`; capacity None: there is room for all samples."""

    loss: Tensor
    errors: Tensor
    weights_grad: Tensor
    evaluated: Tensor | int
    kept: Tensor | int
    capacity: int | None


def drawn_by(
    draw: Callable[[DrawArgs], None],
    p: Pointers,
    table: PhotoTable,
    cumulative: Tensor | None,
    seed: int,
    step: int,
    n: int,
    any_direction: bool,
    step_at: Tensor | None,
) -> DrawnRays:
    """What native code draws; p: of the table's device. See `reference.draw_rays` for the meaning."""
    device = table.blocks.device
    parts = torch.empty(18 * n, device=device).split([3 * n] * 5 + [n] * 3)
    o, d, viewdirs, targets, backgrounds = (part.view(n, 3) for part in parts[:5])
    places = torch.empty(n, dtype=torch.int64, device=device)
    images, long = len(table.offsets), torch.int64
    args = DrawArgs(
        pixels=p("pixels", table.pixels, tuple(table.pixels.shape), table.pixels.dtype),
        **{name: p(name, getattr(table, name), (images,), long) for name in ("offsets", "widths", "heights")},
        blocks=p("blocks", table.blocks, (None, 3), long),
        cumulative=p("cumulative", cumulative, (len(table.blocks),)),
        cameras=p("cameras", table.cameras, (images, 16)),
        **dict(zip(("rays_o", "rays_d", "viewdirs", "targets", "backgrounds"), _places(parts[:5]), strict=True)),
        **dict(zip(("t_near", "t_far", "jitter"), _places(parts[5:]), strict=True)),
        places=places.data_ptr(),
        step_at=p("step_at", step_at, (1,), torch.int32),
        seed=seed & 0xFFFFFFFF,
        step=step & 0xFFFFFFFF,
        n=n,
        n_blocks=len(table.blocks),
        side=table.side,
        channels=table.pixels.shape[1],
        bytes=table.pixels.element_size(),
        has_alpha=int(table.has_alpha),
        has_background=int(table.background is not None),
        background=Three(*(table.background or (0.0, 0.0, 0.0))),
        exposure=table.exposure,
        half_extent=table.half_extent,
        near=table.near,
        far=table.far,
    )
    for name, offsets, held in (
        ("masks", "mask_offsets", table.masks),
        ("silhouettes", "silhouette_offsets", table.silhouettes),
    ):
        if held is not None:
            setattr(args, name, p(name, held[0], (None,), torch.uint8))
            setattr(args, offsets, p(offsets, held[1], (images,), long))
    used = torch.empty(n, device=device) if table.masks is not None else None
    args.used = 0 if used is None else used.data_ptr()
    if table.directions is not None:
        args.directions = p("directions", table.directions[0], (None, 3))
        args.starts = p("starts", table.directions[1], (images,), long)
    if not any_direction:
        args.viewdirs, viewdirs = 0, d
    draw(args)
    return DrawnRays(Rays(o, d, viewdirs, *parts[5:]), targets, backgrounds, places, used)


def _places(tensors: tuple[Tensor, ...]) -> list[int]:
    return [t.data_ptr() for t in tensors]


def check_error_map(error_map: tuple[Tensor, Tensor], device: str = "cpu") -> None:
    """The sums and counts of errors, which native code adds to; torch is told of the change."""
    for name, held in zip(("error_map sums", "error_map counts"), error_map, strict=True):
        check_in_place(name, held, tuple(error_map[0].shape), torch.float32, device)
    torch.autograd.graph.increment_version(list(error_map))
