"""What a camera, or rays one by one, see of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

T = TypeVar("T", np.ndarray, Tensor)


@dataclass
class View(Generic[T]):
    """A rendered view: of a picture [h,w] (NumPy, float32) or of n rays [n] (tensors).

    color [...,3]: over the background, in the scene's own light. opacity [...]: the share of light that does not come
    from behind. depth [...]: along the ray to the median of its weights (scene length; of a mesh world length), 0:
    nowhere. normal [...,3]: world, unit, 0 where nothing is; None where normals were not asked for.

    >>> model = nerf.Model.load("runs/robot/checkpoint.safetensors")
    >>> model.render_image(model.cameras, 0).color.dtype
    dtype('float32')
    """

    color: T
    opacity: T
    depth: T
    normal: T | None = None
