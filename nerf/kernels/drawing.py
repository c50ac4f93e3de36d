"""What a fused training step is told, and what it draws: records that the GPU's kernels and their reference share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nerf.kernels.records import Rays


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
class Learnt:
    """What a fused step leaves before Adam: the loss [1], squared errors of the rays [n], the gradient of the networks'
    weights one after the other, and the counts of `RenderedRays`."""

    loss: Tensor
    errors: Tensor
    weights_grad: Tensor
    evaluated: Tensor
    kept: Tensor
    capacity: int
