"""The cost of planes between pictures: native equals reference, and it is lowest at the true plane."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerf.kernels import MatchSource, MatchWindow, bindings, matching

BACKENDS = [pytest.param(False, id="reference")]
BACKENDS.append(
    pytest.param(True, id="native", marks=pytest.mark.skipif(bindings.load().handle is None, reason="no library"))
)


def texture(x: Tensor, y: Tensor) -> Tensor:
    """Grey from 0.2 to 0.8 that repeats nowhere near."""
    return 0.5 + 0.1 * ((3.1 * x).sin() + (2.3 * y + 1).cos() + (1.7 * x + 2.9 * y).sin())


def slanted(h: int = 24, w: int = 37, shift: float = 0.5) -> tuple[Tensor, MatchSource, Tensor]:
    """Pictures of the plane 1/z = 0.3 + 0.02 X/z + 0.03 Y/z by two cameras of focal length 40, the second to the right,
    and the planes [3,h,w] that are true."""
    focal, inverse = 40.0, torch.tensor([0.3, 0.02, 0.03])
    y, x = torch.meshgrid(
        (torch.arange(h) + 0.5 - h / 2) / focal, (torch.arange(w) + 0.5 - w / 2) / focal, indexing="ij"
    )
    q = inverse[0] + inverse[1] * x + inverse[2] * y
    first = texture(4 * x / q, 4 * y / q)
    # from the other camera X = X' + shift, so 1/z (1 - a shift) = c + ...: its rays meet the plane at
    far = (inverse[0] + inverse[1] * x + inverse[2] * y) / (1 - inverse[1] * shift)
    second = texture(4 * (x / far + shift), 4 * y / far)
    source = MatchSource(torch.eye(3).double(), torch.tensor([-focal * shift, 0.0, 0.0]).double(), second)
    return first, source, torch.stack([q, (inverse[1] / focal).expand(h, w), (inverse[2] / focal).expand(h, w)])


@pytest.mark.parametrize("native", BACKENDS)
def test_the_true_plane_costs_least(native: bool) -> None:
    picture, source, planes = slanted()
    window = MatchWindow(best=1)
    middle = (slice(6, -6), slice(14, -6))  # what the other camera sees too

    def cost(planes: Tensor) -> Tensor:
        return matching.match_planes(picture, [source], planes.contiguous(), window, native)[middle]

    least = float(cost(planes).mean())
    assert least < 0.005
    for change in ([1.05, 1, 1], [0.95, 1, 1], [1, -8, 1], [1, 1, -8]):
        assert float(cost(planes * torch.tensor(change)[:, None, None]).mean()) > 5 * least, change


@pytest.mark.parametrize("native", BACKENDS)
def test_what_says_nothing_costs_one(native: bool) -> None:
    picture, source, planes = slanted()
    window = MatchWindow(best=1)
    plain = torch.full_like(picture, 0.4)
    hidden = torch.full_like(picture, torch.nan)
    behind = MatchSource(torch.diag(torch.tensor([1.0, 1.0, -1.0])).double(), torch.zeros(3).double(), picture)
    for here, there in (
        (plain, source),
        (hidden, source),
        (picture, MatchSource(source.homography, source.epipole, plain)),
        (picture, MatchSource(source.homography, source.epipole, hidden)),
        (picture, behind),
    ):
        costs = matching.match_planes(here, [there], planes, window, native)
        assert float(costs.min()) > 0.99, there
    assert torch.equal(matching.match_planes(picture, [], planes, window, native), torch.ones_like(picture))


@pytest.mark.parametrize("native", BACKENDS)
def test_views_that_are_hidden_do_not_count(native: bool) -> None:
    picture, source, planes = slanted()
    other = MatchSource(source.homography, source.epipole, texture(*torch.rand(2, *picture.shape) * 9))
    alone = matching.match_planes(picture, [source], planes, MatchWindow(best=1), native)
    assert torch.equal(matching.match_planes(picture, [other, source], planes, MatchWindow(best=1), native), alone)
    both = matching.match_planes(picture, [other, source], planes, MatchWindow(best=2), native)
    assert float((both - alone).mean()) > 0.2


@pytest.mark.skipif(bindings.load().handle is None, reason="no library")
@pytest.mark.parametrize("best", [1, 3, 8])
@pytest.mark.parametrize("size", [(24, 37), (7, 16), (3, 5)])
def test_native_is_the_reference(size: tuple[int, int], best: int) -> None:
    """On planes of all kinds, pictures of other sizes, with holes; sums in another order differ by rounding."""
    torch.manual_seed(best)
    picture, source, planes = slanted(*size)
    picture[1, 2] = torch.nan
    there = torch.rand(20, 31)
    there[5:7, 3:9] = torch.nan
    turned = torch.eye(3).double() + 0.01 * torch.randn(3, 3).double()
    sources = [source, MatchSource(turned, torch.tensor([30.0, -20.0, 0.2]).double(), there), source]
    planes = planes * (1 + 0.2 * torch.randn(3, *size))
    window = MatchWindow(best=best, radius=3, step=1)
    fast, plain = (matching.match_planes(picture, sources, planes, window, native) for native in (True, False))
    assert float((fast - plain).abs().max()) < 1e-4


def test_wrong_arguments_are_named() -> None:
    picture, source, planes = slanted()
    for wrong, message in (
        ((picture.double(), [source], planes, MatchWindow()), "picture: expected"),
        ((picture, [source], planes[:2], MatchWindow()), "planes: expected"),
        ((picture, [source], planes, MatchWindow(best=9)), "window: expected"),
        ((picture, [MatchSource(torch.eye(3), torch.zeros(2), picture)], planes, MatchWindow()), "sources: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            matching.match_planes(*wrong, native=False)
