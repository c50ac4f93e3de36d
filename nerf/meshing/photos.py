"""Photos as small pinholes without distortion see them, to be compared with one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nerf.meshing.preview import bilinear
from nerf.meshing.texture import load_photo_colors, shown_pixels
from nerf.training.alignment import as_trained

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.geometry.cameras import Cameras
    from nerf.rendering.model import Model


def grey_pictures(model: Model, scene: Scene, photos: Tensor, cameras: Cameras) -> list[Tensor]:
    """What pinholes [n] (world frame) see of the training photos [n] that they are of: grey [h,w] float32, sRGB values
    in the common exposure; NaN outside the photo and where its mask or its alpha shows nothing. A photo that the scene
    does not have, or not in its train split, is all NaN. Each pixel is the mean of four places, at a whole fraction of
    the photo's size."""
    scene = as_trained(scene, model)
    index = {scene.names[i]: i for i in scene.splits["train"].tolist()}
    pictures = []
    for i, photo in enumerate(photos.tolist()):
        h, w = int(cameras.heights[i]), int(cameras.widths[i])
        grey = torch.full((h * w,), torch.nan)
        j = index.get(model.names[photo])
        if j is not None:
            camera = scene.cameras.subset([j])
            shown = shown_pixels(scene, j).reshape(int(camera.heights[0]), int(camera.widths[0]))
            large = torch.where(shown, load_photo_colors(model, scene, j).mean(dim=2), torch.nan)
            factor = max(1, int(min(*large.shape, float(camera.fx[0] / cameras.fx[i]))))
            camera, large = camera.scaled(factor), avg_pool2d(large[None, None], factor)[0, 0, ..., None]
            grey = torch.stack([_seen(large, camera, cameras, i, *at) for at in _PLACES]).mean(dim=0)
        pictures.append(grey.reshape(h, w))
    return pictures


_PLACES = [(down, right) for down in (-0.25, 0.25) for right in (-0.25, 0.25)]  # of a pixel, from its centre


def _seen(picture: Tensor, camera: Cameras, cameras: Cameras, i: int, down: float, right: float) -> Tensor:
    """Values [h*w] of a picture [h,w,1] by one camera at places in the pixels of another, in the same pose."""
    h, w = int(cameras.heights[i]), int(cameras.widths[i])
    pixels = torch.arange(h * w)
    rows, cols = torch.div(pixels, w, rounding_mode="floor") + down, pixels % w + right
    rays_o, rays_d = cameras.rays(torch.full_like(pixels, i), rows, cols)
    uv, depths = (t[0] for t in camera.project(rays_o.double() + rays_d.double()))
    inside = (depths > 0) & (uv >= 0).all(dim=1) & (uv[:, 0] < picture.shape[1]) & (uv[:, 1] < picture.shape[0])
    return torch.where(inside, bilinear(picture, torch.where(inside[:, None], uv, 0.0))[:, 0], torch.nan)
