"""Fields from outside the package: what they are and what they return is checked where it enters, in one sentence."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nerf.errors import UserError
from nerf.fields.radiance import Field, RadianceField


class CheckedField:
    """A field whose every output is held against what was asked for: shape, type and device, which costs nothing."""

    def __init__(self, field: Any) -> None:
        self.field = field

    def density(self, x: Tensor, /) -> Tensor:
        """sigmas [n] at scene positions [n,3]."""
        if not callable(method := getattr(self.field, "density", None)):
            raise UserError(
                f"the field {_class(self.field)} has no method density(x), which gives sigmas [n] at x [n,3]"
            )
        return self._returned("density(x)", method(x), x, (len(x),))

    def __call__(self, x: Tensor, d: Tensor, /) -> tuple[Tensor, Tensor]:
        """sigmas [n] and rgbs [n,3]."""
        name, given = "forward(x, d)", self.field(x, d)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise self._error(name, _seen(given), f"a pair, sigmas [{len(x)}] and rgbs [{len(x)}, 3]")
        return (
            self._returned(f"{name}, sigmas", given[0], x, (len(x),)),
            self._returned(f"{name}, rgbs", given[1], x, (len(x), 3)),
        )

    def _returned(self, name: str, given: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        fits = isinstance(given, Tensor) and given.shape == shape
        if not fits or given.dtype != x.dtype or given.device != x.device:
            raise self._error(name, _seen(given), f"{list(shape)} of {x.dtype} on {x.device}")
        return given

    def _error(self, name: str, got: str, expected: str) -> UserError:
        return UserError(f"the field {_class(self.field)}: {name} returned {got}, expected {expected}")


def checked(field: Any) -> Field:
    """A field as it is to be asked: ours is itself, any other is checked at every call."""
    return field if isinstance(field, (RadianceField, CheckedField)) else CheckedField(field)


def check_module(field: Any) -> None:
    """UserError unless this is a module, which can be trained, moved and saved."""
    if isinstance(field, type):
        raise UserError(f"field: is the class {field.__name__}, expected one of its objects, as in {field.__name__}()")
    if not isinstance(field, nn.Module):
        raise UserError(f"field: is {_seen(field)}, expected an nn.Module with density(x) and forward(x, d)")


def _class(field: Any) -> str:
    return getattr(field, "__name__", type(field).__qualname__)


def _seen(given: Any) -> str:
    if isinstance(given, Tensor):
        return f"{list(given.shape)} of {given.dtype} on {given.device}"
    if isinstance(given, (tuple, list)):
        return f"a {type(given).__name__} of {len(given)}"
    return "None" if given is None else f"a {type(given).__name__}"
