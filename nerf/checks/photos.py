"""Which single photos contradict cameras that the others fit, and what would fit them: another photo's pose, a turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nerf.capture.pairs import Pair, ordered
from nerf.checks.matches import Matched, Matcher
from nerf.checks.residuals import FAILS, FITS, Batch, Rays, Residuals, of_cameras, residuals
from nerf.checks.verdict import Finding, some
from nerf.geometry.cameras import Cameras

AGAINST = 2  # pairs with photos that fit, weak ones counted half, for one photo to be called wrong
MORE = 8  # further partners that are tried for a photo that seems wrong
PART = 0.3  # of a photo's pairs that fit, for it to be right
MAIN = 0.5  # share of the judged photos that must be right for the others to be what is wrong
BEAM, MOST_PHOTOS, FEWEST_PHOTOS = 60, 8, 5  # of the search for another order
BY_CHANCE = 0.01  # explanations to be expected of photos in any order, up to which one that was found is believed
MOST_CAMERAS = 400  # every two of which are tried for two photos; of more, only the usual orders are
CLOSE = 10  # photos that look most alike, among which it searches


@dataclass
class Graph:
    """The strong pairs, and which of them fit."""

    pairs: list[Matched]
    found: Residuals
    n: int

    @property
    def judged(self) -> set[int]:
        return {i for p in self.pairs for i in (p.a, p.b)}

    def main(self) -> set[int]:
        """The photos of whose pairs a good part fits."""
        fits, of = np.zeros(self.n), np.zeros(self.n)
        for pair, share in zip(self.pairs, self.found.shares.tolist(), strict=True):
            of[[pair.a, pair.b]] += 1
            fits[[pair.a, pair.b]] += share >= FITS
        return {int(i) for i in np.flatnonzero((fits >= 1) & (fits >= PART * of))}


def graph_of(cameras: Cameras, pairs: list[Matched]) -> Graph:
    return Graph(pairs, of_cameras(cameras, Batch.of(pairs)), len(cameras))


def wrong_photos(cameras: Cameras, matcher: Matcher, graph: Graph, main: set[int], names: list[str]) -> list[Finding]:
    """Photos all of whose pairs with those that fit contradict them, by what is the matter with each."""
    suspects = sorted(graph.judged - main)
    if not suspects:
        return []
    asked: set[Pair] = set()
    members = sorted(main)
    for k, alike in zip(suspects[:24], matcher.alike(suspects[:24]), strict=True):
        near = alike[members].topk(min(MORE, len(members))).indices.tolist()
        asked |= {ordered(k, members[j]) for j in near}
    known = {(p.a, p.b) for p in graph.pairs}
    more = [p for p in matcher.match(sorted(asked - known)) if p.is_strong or p.is_weak]
    if more:
        graph = graph_of(cameras, graph.pairs + more)
    groups: dict[str, list[tuple[int, int | None]]] = {}
    with_main: dict[int, list[int]] = {}  # photo -> its pairs with one that fits
    for r, p in enumerate(graph.pairs):
        for one, partner in ((p.a, p.b), (p.b, p.a)):
            if partner in main:
                with_main.setdefault(one, []).append(r)
    for k in suspects:
        rows = with_main.get(k, [])
        shares = graph.found.shares[rows] if rows else torch.zeros(0)
        if sum(1 if graph.pairs[r].is_strong else 0.5 for r in rows) < AGAINST:
            continue
        if float(shares.max()) >= FITS or float(shares.mean()) > FAILS:
            continue
        what, other = _what_fits(cameras, [graph.pairs[r] for r in rows], k, set(suspects))
        groups.setdefault(what, []).append((k, other))
    return _findings(groups, names)


def _findings(groups: dict[str, list[tuple[int, int | None]]], names: list[str]) -> list[Finding]:
    findings = []
    for what, photos in groups.items():
        own = [names[k] for k, _ in photos]
        if what == "swapped":
            pairs = "; ".join(f"{names[k]} fits the camera of {names[int(c)]}" for k, c in photos[:4] if c is not None)
            text = f"{len(own)} photos stand at the cameras of others ({pairs})"
            fix = "give these photos their own names"
        elif what.startswith("turned"):
            text = (
                f"{len(own)} photos are {what} against their cameras ({some(own)}): their EXIF orientation is taken "
                "twice, or not at all"
            )
            fix = "turn them, or leave them out"
        else:
            text = f"the cameras of {len(own)} photos contradict all others ({some(own)})"
            fix = "leave these photos out, or find the poses anew with nerf poses"
        kind = "turned" if what.startswith("turned") else what
        findings.append(Finding(kind, text, own, fix, True))
    return findings


def _what_fits(cameras: Cameras, pairs: list[Matched], k: int, suspects: set[int]) -> tuple[str, int | None]:
    """What one photo is: ("turned by ...", None), ("swapped", whose camera it fits) or ("camera", None)."""
    batch = Batch.of(pairs)
    for quarters in (1, 2, 3):
        if float(of_cameras(cameras, turned(cameras, batch, quarters, k)).mean) >= FITS:
            return f"turned by {90 * quarters} degrees", None
    # the camera of another photo that is wrong, too: one that fits its own photo fits this one by chance
    others = sorted(suspects - {k} - {p.a for p in pairs} - {p.b for p in pairs})
    if others:
        shares = _as(Rays.of(cameras, batch), batch, cameras, k, cameras.c2w[others]).mean
        if float(shares.max()) >= FITS:
            return "swapped", others[int(shares.argmax())]
    return "camera", None


def turned(cameras: Cameras, batch: Batch, quarters: int, photo: int | None = None) -> Batch:
    """The matches as they would be, had a photo (None: all) not been turned; quarters: counter-clockwise, by which it
    was. 4: mirrored."""
    out = Batch(batch.a, batch.b, batch.uv_a.clone(), batch.uv_b.clone(), batch.valid)
    c, s = [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0), (1.0, 0.0)][quarters]
    back = torch.tensor([[c, -s], [s, c]], dtype=torch.float64) * torch.tensor([-1.0 if quarters == 4 else 1.0, 1.0])
    for ids, uv in ((batch.a, out.uv_a), (batch.b, out.uv_b)):
        rows = torch.ones_like(ids, dtype=torch.bool) if photo is None else ids == photo
        middle = torch.stack([cameras.widths, cameras.heights], dim=1)[ids[rows]].double()[:, None] / 2
        uv[rows] = (
            middle + (uv[rows] - middle) @ back.T if quarters != 4 else middle + (uv[rows] - middle) * back.diagonal()
        )
    return out


def _as(rays: Rays, batch: Batch, cameras: Cameras, k: int, poses: Tensor) -> Residuals:
    """The pairs, with photo k at each of some poses [h,3,4]."""
    c2w_a = cameras.c2w[batch.a].expand(len(poses), -1, 3, 4)
    c2w_b = cameras.c2w[batch.b].expand(len(poses), -1, 3, 4)
    own = poses[:, None]
    return residuals(
        rays,
        batch.valid,
        torch.where((batch.a == k)[None, :, None, None], own, c2w_a),
        torch.where((batch.b == k)[None, :, None, None], own, c2w_b),
    )


def other_order(cameras: Cameras, matcher: Matcher, pairs: list[Matched], names: list[str]) -> Finding | None:
    """Whether the photos fit the same cameras in another order: a usual one, or one found by search."""
    n = len(cameras)
    batch = Batch.of(pairs, n=24)
    rays = Rays.of(cameras, batch)

    def share(order: list[int]) -> float:
        c2w = cameras.c2w[torch.tensor(order)]
        found = residuals(rays, batch.valid, c2w[batch.a], c2w[batch.b])
        return float((found.shares >= FITS).double().mean())

    usual: dict[str, Callable[[int], int]] = {"in reverse order": lambda i: n - 1 - i}
    for shift in (1, -1, 2, -2, 3, -3):
        usual[f"shifted by {abs(shift)}"] = lambda i, shift=shift: (i + shift) % n  # type: ignore[misc]
    for words, place in usual.items():
        if share([place(i) for i in range(n)]) >= 0.6:
            return Finding(
                "order",
                f"the photos are {words} against their cameras",
                [],
                "give each photo the name of its camera",
                True,
            )
    if n > MOST_CAMERAS:
        return None
    placed = _search(cameras, pairs)
    for start in [] if placed else sorted(pairs, key=lambda p: -int(p.inliers.sum()))[:9:3]:
        near = matcher.alike([start.a, start.b]).sum(dim=0).topk(min(CLOSE, n)).indices.tolist()
        group = sorted({start.a, start.b, *near})
        found = matcher.match([(i, j) for i in group for j in group if i < j])
        placed = placed or _search(cameras, [p for p in found if p.is_strong])
    if placed is None:
        return None
    moved = [f"{names[i]} fits the camera of {names[c]}" for i, c in placed.items() if i != c]
    text = f"the photos are in another order than their cameras ({'; '.join(moved[:3])} and so on)"
    return Finding(
        "order", text, [], "give each photo the name of its camera (are the names sorted as text or as numbers?)", True
    )


def _search(cameras: Cameras, pairs: list[Matched]) -> dict[int, int] | None:
    """{photo: camera} of a few photos that hang together, where some cameras of the set explain all matches between
    them; None where none do, or where chance might. Chance does not carry on where each photo taken in has pairs with
    two before it; nor in a chain, where few pairs of cameras explain a pair of photos."""
    by_pair = {(p.a, p.b): p for p in pairs}
    weight = {pair: int(p.inliers.sum()) for pair, p in by_pair.items()}
    n = len(cameras)

    def to_all(photo: int, before: list[int]) -> list[Pair]:
        return [ordered(photo, j) for j in before if ordered(photo, j) in by_pair]

    starts = sorted(weight, key=lambda pair: -weight[pair])
    for first in starts[:6]:
        chosen = list(first)
        while len(chosen) < MOST_PHOTOS:
            links = {k: to_all(k, chosen) for k in range(n) if k not in chosen}
            best = max(links, key=lambda k: (min(len(links[k]), 3), sum(weight[p] for p in links[k])))
            if not links[best]:
                break
            chosen.append(best)
        if len(chosen) < FEWEST_PHOTOS:
            continue
        states, explain = _first(cameras, by_pair[first])
        placed: tuple[int, ...] = ()
        by_chance, is_tight = n * (n - 1) * explain, True
        for depth in range(2, len(chosen)):
            links_here = to_all(chosen[depth], chosen[:depth])
            states = _extend(cameras, [by_pair[p] for p in links_here], chosen[: depth + 1], states)
            if not states:
                placed = placed if len(links_here) < 2 else ()
                break
            by_chance *= n * explain ** len(links_here)
            is_tight &= len(links_here) >= 2
            if depth + 1 >= FEWEST_PHOTOS and (is_tight or by_chance <= BY_CHANCE):
                placed = states[0]
        if any(i != c for i, c in zip(chosen, placed, strict=False)):
            return dict(zip(chosen, placed, strict=False))
    return None


def _first(cameras: Cameras, pair: Matched) -> tuple[list[tuple[int, ...]], float]:
    """The ordered pairs of cameras that explain one pair of photos, and the share of all that do, about."""
    batch = Batch.of([pair], n=24)
    rays = Rays.of(cameras, batch)
    n = len(cameras)
    grid = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    grid = grid[grid[:, 0] != grid[:, 1]]
    found = residuals(rays, batch.valid, cameras.c2w[grid[:, 0], None], cameras.c2w[grid[:, 1], None])
    good = found.shares[:, 0] >= 0.8
    order = found.medians[good, 0].argsort()[: 20 * BEAM]
    explain = float((found.shares >= FITS).double().mean())
    return [tuple(row) for row in grid[good][order].tolist()], explain


def _extend(
    cameras: Cameras, pairs: list[Matched], photos: list[int], states: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Every state with every camera for the last of the photos, those that explain all its pairs."""
    batch = Batch.of(pairs, n=16)
    rays = Rays.of(cameras, batch)
    n, new = len(cameras), photos[-1]
    place = {photo: k for k, photo in enumerate(photos)}
    found: list[tuple[float, tuple[int, ...]]] = []
    for start in range(0, len(states), 16):
        part = torch.tensor(states[start : start + 16])
        table = torch.cat(
            [part[:, None].expand(-1, n, -1), torch.arange(n)[None, :, None].expand(len(part), -1, 1)], dim=2
        )
        table = table.reshape(-1, len(photos))
        at_a = table[:, [place[int(i)] for i in batch.a]]
        at_b = table[:, [place[int(i)] for i in batch.b]]
        judged = residuals(rays, batch.valid, cameras.c2w[at_a], cameras.c2w[at_b])
        fresh = ~(part[:, None, :] == torch.arange(n)[None, :, None]).any(dim=2).reshape(-1)
        good = (judged.shares.min(dim=1).values >= FITS) & fresh
        found += [(float(judged.medians[r].mean()), tuple(table[r].tolist())) for r in good.nonzero()[:, 0].tolist()]
    assert new == photos[-1]
    return [state for _, state in sorted(found)[:BEAM]]
