"""The photo beside what is rendered from its camera."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from nerf.io.pictures import error_map, to_display
from nerf.rendering.metrics import psnr

ERROR_HIGH = 0.2  # of the error maps' scale, as `nerf eval` has it
_PAPER, _LINE = 236, (38, 112, 200)  # grey around the picture; the edge between photo and rendering


class Compared(NamedTuple):
    """Both as they are shown, sRGB values [h,w,3] float32, and the PSNR of what is rendered over the pixels that
    count."""

    photo: np.ndarray
    rendered: np.ndarray
    psnr: float


def compared(photo: np.ndarray, rendered: np.ndarray, mask: np.ndarray | None = None) -> Compared:
    """A photo of any size beside a rendering [h,w,3], at the size of the rendering: blocks of pixels are averaged, so
    that what is compared has no more detail than can be rendered."""
    h, w = rendered.shape[:2]
    if photo.shape[:2] != (h, w):
        photo = _averaged(photo, h, w)
        mask = None if mask is None else _averaged(mask.astype(np.float32)[..., None], h, w)[..., 0] > 0.99
    counts = None if mask is None else torch.from_numpy(mask)
    made, true = (torch.from_numpy(np.clip(x, 0, 1).astype(np.float32)) for x in (rendered, photo))
    return Compared(photo, rendered, psnr(made, true, counts))


def _averaged(image: np.ndarray, h: int, w: int) -> np.ndarray:
    channels = [Image.fromarray(np.ascontiguousarray(image[..., k], np.float32)) for k in range(image.shape[2])]
    return np.stack([np.asarray(c.resize((w, h), Image.Resampling.BOX)) for c in channels], axis=2)


def beside(found: Compared, share: float, window: tuple[int, int], error: bool = False) -> np.ndarray:
    """A picture [h,w,3] uint8 of the aspect ratio of the window: the photo left of `share` of the width, right of it
    the rendering, or how far the rendering is from the photo."""
    w = found.rendered.shape[1]
    right = error_map(found.rendered, found.photo, ERROR_HIGH) if error else to_display(found.rendered, linear=False)
    picture = right.copy()
    edge = round(min(max(share, 0.0), 1.0) * w)
    picture[:, :edge] = to_display(found.photo, linear=False)[:, :edge]
    if 0 < edge < w:
        picture[:, edge - 1 : edge + w // 400] = _LINE
    return fitted(picture, window)


def fitted(picture: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """The picture in the middle of grey paper of the window's (width, height) aspect ratio; no pixel is changed."""
    h, w = picture.shape[:2]
    aspect = window[0] / max(window[1], 1)
    height, width = (h, max(w, round(h * aspect))) if w / h <= aspect else (max(h, round(w / aspect)), w)
    paper = np.full((height, width, 3), _PAPER, np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    paper[top : top + h, left : left + w] = picture
    return paper


def inner_size(photo: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a photo as large as fits into the window, and never larger than it is."""
    scale = min(1.0, window[0] / photo[0], window[1] / photo[1])
    return max(1, round(photo[0] * scale)), max(1, round(photo[1] * scale))
