"""A second device for tests without a GPU: tensors that say they are on the device "meta" and hold their numbers on the
CPU, so that the emulated GPU's kernels can work on them, and an op that mixes devices fails as it would on a GPU.

`with second_device.use(): ...` is `emulation.use()` with such a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import emulation
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

HERE = torch.device("meta")
CROSSING = ("_to_copy", "copy_")  # may take tensors of both
INDEXING = ("index", "index_put_", "_index_put_impl_")  # whose indices may be on the CPU


class Far(torch.Tensor):
    """A tensor of the second device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Far:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=HERE,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, other: Far) -> None:
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.inner = other.inner

    def tolist(self) -> Any:
        return self.inner.tolist()


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function.name().split("::")[1].split(".")[0]
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    far = [t for t in tensors if isinstance(t, Far)]
    device = kwargs.get("device")
    to_far = bool(far) if device is None else torch.device(device).type == HERE.type
    if name == "copy_":
        to_far = isinstance(args[0], Far)
    elif name not in CROSSING:
        near = [t for t in tensors if not isinstance(t, Far) and t.dim() > 0]
        if name in INDEXING and isinstance(args[0], Far):
            near = [t for t in near if t.dtype not in (torch.int64, torch.bool)]
        assert not (far and near), f"{name} takes tensors of two devices"
    if not far and not to_far:
        return function(*args, **kwargs)
    owners = {id(t.inner): t for t in far}
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda t: t.inner if isinstance(t, Far) else t, (args, kwargs))
    if name == "_to_copy" and not to_far:
        assert not kwargs.get("non_blocking"), "a copy from a GPU must be waited for"
    found = function(*args, **kwargs)

    def wrapped(t: Any) -> Any:
        if not isinstance(t, torch.Tensor) or not to_far:
            return t
        return owners.get(id(t)) if id(t) in owners else Far(t)

    return tree_map(wrapped, found)


class _Everywhere(TorchDispatchMode):
    """Makes what is asked for on the second device; plain tensors stay what they are."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class _Generator(torch.Generator):
    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls)


@contextmanager
def use() -> Iterator[None]:
    card = replace(emulation.GPU, device=HERE)
    with (
        mock.patch.object(emulation, "GPU", card),
        mock.patch.object(torch, "Generator", _Generator),
        _Everywhere(),
        emulation.use(),
    ):
        yield
