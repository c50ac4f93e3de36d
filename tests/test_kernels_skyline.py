"""Outlines on a skyline: native code against the reference, and what both must do."""

from __future__ import annotations

import pytest
import torch
from native import native

from nerf.kernels import drop_outlines, skyline


@native
@pytest.mark.parametrize("n_columns", [64, 400])
def test_native_places_are_those_of_the_reference(n_columns: int) -> None:
    random = torch.Generator().manual_seed(0)
    widths = torch.randint(1, 9, (500,), generator=random)
    bottoms = torch.randint(0, 4, (int(widths.sum()),), generator=random)
    tops = bottoms + torch.randint(1, 9, bottoms.shape, generator=random)
    order = torch.randperm(len(widths), generator=random)
    given = bottoms, tops, widths, order, n_columns
    found, expected = (skyline.drop_outlines(*given, native=is_native) for is_native in (True, False))
    if n_columns == 64:
        assert found is None and expected is None  # they do not fit
    else:
        assert found is not None and expected is not None and torch.equal(found, expected)


@pytest.mark.parametrize("is_native", [pytest.param(True, marks=native), False])
def test_outlines_fall_to_where_they_lie_lowest(is_native: bool) -> None:
    # a step that is high on its left, then one that is hollow on its left: it hangs over the first's lower half
    bottoms, tops = torch.tensor([0, 0, 2, 0, 0]), torch.tensor([3, 1, 4, 2, 1])
    widths, order = torch.tensor([2, 2, 1]), torch.tensor([0, 1, 2])
    places = skyline.drop_outlines(bottoms, tops, widths, order, 4, native=is_native)
    assert places is not None and places.tolist() == [[0, 0], [1, 0], [3, 0]]
    assert skyline.drop_outlines(bottoms, tops, widths, order, 2, native=is_native) is None


def test_outlines_that_do_not_go_together_are_refused() -> None:
    one = torch.ones(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="3 columns of 1 outlines"):
        drop_outlines(one, one, 3 * one, 0 * one, 8)
    with pytest.raises(ValueError, match="at least one column"):
        drop_outlines(one[:0], one[:0], 0 * one, 0 * one, 8)
