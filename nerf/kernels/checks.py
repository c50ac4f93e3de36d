"""What every op asks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nerf.errors import BadValue


def check(name: str, tensor: Tensor, shape: Sequence[int | str], floating: bool = True) -> None:
    """Raise with the argument's name unless `tensor` has this shape (letters stand for any size) and a float dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(tensor).__name__}")
    fits = tensor.dim() == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name}: expected shape [{expected}], got {list(tensor.shape)}")
    if floating and not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a float dtype, got {tensor.dtype}")


def check_occupied(occupied: Tensor, multiple: int = 1) -> tuple[int, int]:
    """(levels, R) of a bool grid [levels,R,R,R]; BadValue for anything else, and unless R is a multiple."""
    shape = list(occupied.shape)
    is_cube = occupied.dtype == torch.bool and len(shape) == 4 and len(set(shape[1:])) == 1 and 0 not in shape
    if not is_cube or shape[1] % multiple:
        sides = f" with R a multiple of {multiple}" if multiple > 1 else ""
        raise BadValue(f"occupied: expected a bool tensor [levels,R,R,R]{sides}, got {occupied.dtype} {shape}")
    return shape[0], shape[1]
