"""Masks, mattes and alpha: sizes, empty ones, inverted ones, such as are no object's silhouette, and such as the other
photos contradict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nerf.checks.looks import Look
from nerf.checks.verdict import Finding, some
from nerf.datasets.borders import grown
from nerf.geometry.aim import nearest_point_to_axes
from nerf.geometry.cameras import Cameras
from nerf.io.images import Picture

GRID = 28  # cells along each side of the hull's cube
VIEWS = 32  # silhouettes that carve it
SHOWN = 0.6  # of the pictures that have to show a place, for their silhouettes to say that something is there
EMPTY = 0.001  # share of the picture
BORDER = 0.03  # of the picture's sides


def mask_findings(
    looks: list[Look], pictures: list[Picture], cameras: Cameras, names: list[str], trusted: list[int]
) -> list[Finding]:
    """trusted: photos whose cameras are right, so that their silhouettes can be compared with one another."""
    findings = _sizes(looks, pictures, names)
    for what, shapes in (("alpha", [look.alpha for look in looks]), ("mask", [look.mask for look in looks])):
        rows = [i for i, shape in enumerate(shapes) if shape.size]
        solid = {i: shapes[i] > 127 for i in rows}
        shares = {i: float(solid[i].mean()) for i in rows}
        if not rows or all(share > 0.999 for share in shares.values()):
            continue
        findings += _of_kind(what, solid, shares, cameras, names, trusted)
    return findings


def _sizes(looks: list[Look], pictures: list[Picture], names: list[str]) -> list[Finding]:
    other = []
    for look, picture, name in zip(looks, pictures, names, strict=True):
        if len(look.mask_size) == 2:
            w, h = look.mask_size.tolist()
            if abs(w * picture.height - h * picture.width) > 0.02 * w * picture.height:
                other.append((name, f"{w}x{h} for a photo of {picture.width}x{picture.height}"))
    if not other:
        return []
    text = f"{len(other)} masks have another shape than their photos ({other[0][0]}: {other[0][1]})"
    return [Finding("mask-size", text, [n for n, _ in other], "give masks of the photos' size", True)]


def _of_kind(
    what: str,
    solid: dict[int, np.ndarray],
    shares: dict[int, float],
    cameras: Cameras,
    names: list[str],
    trusted: list[int],
) -> list[Finding]:
    findings = []
    rows = list(solid)
    usual = float(np.median(list(shares.values())))
    word = "cut-outs (alpha)" if what == "alpha" else "masks"
    empty = [i for i in rows if shares[i] < min(EMPTY, 0.1 * usual) or shares[i] == 0]
    if empty:
        some_ = [names[i] for i in empty]
        all_of = "all" if len(empty) == len(rows) else f"{len(empty)} of {len(rows)}"
        text = f"{all_of} {word} are empty ({some(some_)})"
        findings.append(Finding("mask-empty", text, some_, "repair them or leave these photos out", True))
        rows = [i for i in rows if i not in empty]
    if len(rows) < 3:
        return findings
    border = {i: _border_share(solid[i]) for i in rows}
    middle = _at_the_subject(solid, rows, cameras)
    usual_border = float(np.median([border[i] for i in rows]))
    usual_middle = float(np.nanmedian([middle[i] for i in rows]))
    usual = float(np.median([shares[i] for i in rows]))
    numbers = {"border": usual_border, "subject": usual_middle, "share": usual}
    if usual_border > 0.8 and usual_middle < 0.3 and usual < 0.98:
        text = f"the {word} look inverted: what the cameras look at is left out, and the surroundings are kept"
        return [*findings, Finding("mask-inverted", text, [], "invert them (white is what is used)", True, numbers)]
    odd = []
    if usual_border < 0.2 and usual_middle > 0.7:  # silhouettes of an object
        odd = [i for i in rows if border[i] > 0.8 and middle[i] < 0.3 and shares[i] > 1 - 1.5 * usual]
        if odd:
            own = [names[i] for i in odd]
            text = f"{len(odd)} of {len(rows)} {word} are inverted against the others ({some(own)})"
            findings.append(Finding("mask-inverted", text, own, "invert these (white is what is used)", True, numbers))
        full = [i for i in rows if i not in odd and shares[i] > 0.98 and usual < 0.8]
        if full:
            own = [names[i] for i in full]
            text = f"{len(full)} of {len(rows)} {word} leave nothing out, the others do ({some(own)})"
            findings.append(
                Finding("mask-contradicts", text, own, "repair them or leave these photos out", True, numbers)
            )
        rest = [i for i in rows if i in trusted and i not in odd and i not in full]
        if len(rest) >= 6:
            findings += _contradicting(word, solid, rest, cameras, names)
    elif what == "alpha" and usual_border > 0.5:
        text = (
            "alpha is no object's silhouette, for it does not end within the picture: it is taken for a mask of what "
            "is not to be learnt"
        )
        findings.append(Finding("not-a-silhouette", text, [], "--space box where it is an object", False, numbers))
    return findings


def _border_share(solid: np.ndarray) -> float:
    """Of the picture's border, what is kept."""
    h, w = solid.shape
    k = max(1, round(BORDER * max(h, w)))
    ring = np.ones_like(solid)
    ring[k:-k, k:-k] = False
    return float(solid[ring].mean())


def _at_the_subject(solid: dict[int, np.ndarray], rows: list[int], cameras: Cameras) -> dict[int, float]:
    """What is kept about the place where all cameras look, else about the middle of the picture."""
    target = nearest_point_to_axes(cameras.subset(rows))
    found = {}
    for i in rows:
        h, w = solid[i].shape
        x, y = w / 2.0, h / 2.0
        if target is not None:
            uv, z = cameras.subset([i]).project(target[None])
            u, v = (uv[0, 0] * torch.tensor([w / int(cameras.widths[i]), h / int(cameras.heights[i])])).tolist()
            if float(z[0, 0]) > 0 and 0.15 * w < u < 0.85 * w and 0.15 * h < v < 0.85 * h:
                x, y = u, v
        k = max(1, round(0.04 * max(h, w)))
        part = solid[i][max(0, int(y) - k) : int(y) + k + 1, max(0, int(x) - k) : int(x) + k + 1]
        found[i] = float(part.mean()) if part.size else float("nan")
    return found


def _contradicting(
    word: str, solid: dict[int, np.ndarray], rows: list[int], cameras: Cameras, names: list[str]
) -> list[Finding]:
    """Silhouettes that show matter where the hull of the others has none, or nothing where the others agree on it."""
    hull = _hull(solid, rows, cameras)
    if hull is None:
        return []
    votes, seen = hull.kept.sum(axis=0), hull.within.sum(axis=0)
    scores = []
    for k, i in enumerate(rows):
        others, agreed = seen - hull.within[k], votes - hull.kept[k]
        matter = (others >= max(3, SHOWN * (len(rows) - 1))) & (agreed >= 0.95 * others)  # by all the others
        here = matter & hull.within[k]
        if here.sum() < 20:
            continue
        missing = 1 - float(hull.kept[k][here].mean())
        shown = _splat(hull, here, cameras, i, solid[i].shape)
        scores.append((i, missing, float((solid[i] & ~shown).sum() / max(1, solid[i].sum()))))
    if len(scores) < 6:
        return []
    usual = float(np.median([m + e for _, m, e in scores]))
    odd = [(names[i], m, e) for i, m, e in scores if m + e > max(0.18, 3 * usual + 0.12)]
    if not odd or len(odd) > 0.3 * len(rows):
        return []
    own = [name for name, _, _ in odd]
    numbers = {"missing": round(odd[0][1], 3), "beyond": round(odd[0][2], 3)}
    text = f"{len(odd)} of {len(rows)} {word} contradict the silhouettes of the others ({some(own)})"
    return [Finding("mask-contradicts", text, own, "repair them or leave these photos out", True, numbers)]


@dataclass
class _Hull:
    """A grid of points about the subject, and what each silhouette says of them."""

    points: torch.Tensor  # [n,3]
    step: float
    target: torch.Tensor  # [3], where the cameras look
    within: np.ndarray  # [photos,n] bool, whether the picture shows the point
    kept: np.ndarray  # [photos,n] bool, whether its silhouette keeps it


def _hull(solid: dict[int, np.ndarray], rows: list[int], cameras: Cameras) -> _Hull | None:
    """First a large cube, carved by some, then one about what is left, by all."""
    use = cameras.subset(rows)
    target = nearest_point_to_axes(use)
    if target is None:
        return None
    centre, half = target, 0.9 * float((use.centres - target).norm(dim=1).median())
    for by in (rows[:: max(1, len(rows) // VIEWS)], rows):
        axis = torch.linspace(-half, half, GRID, dtype=torch.float64)
        points = centre + torch.cartesian_prod(axis, axis, axis)
        step = 2 * half / (GRID - 1)
        # a point stands for its cell: silhouettes are grown by half of one
        cells = {i: _pixels(step, cameras, i, target, solid[i].shape) / 2 for i in by}
        said = [_seen_by(points, cameras, i, _grown(solid[i], cells[i])) for i in by]
        within, kept = (np.stack([pair[k] for pair in said]) for k in (0, 1))
        shown = within.sum(axis=0)
        matter = (shown >= max(3, SHOWN * len(by))) & (kept.sum(axis=0) >= 0.9 * shown)
        if matter.sum() < 8:
            return None
        low, high = points[matter].min(dim=0).values, points[matter].max(dim=0).values
        centre, half = (low + high) / 2, float((high - low).max()) / 2 + step
    return _Hull(points, step, target, within, kept)


def _seen_by(points: torch.Tensor, cameras: Cameras, i: int, solid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(whether a point [n,3] lies within picture i, whether its silhouette keeps it)."""
    uv, z = cameras.subset([i]).project(points)
    h, w = solid.shape
    x = (uv[0, :, 0].numpy() * w / int(cameras.widths[i])).clip(-1e6, 1e6)
    y = (uv[0, :, 1].numpy() * h / int(cameras.heights[i])).clip(-1e6, 1e6)
    within = (z[0].numpy() > 0) & (x >= 0) & (x < w) & (y >= 0) & (y < h)
    return within, within & solid[y.clip(0, h - 1).astype(int), x.clip(0, w - 1).astype(int)]


def _splat(hull: _Hull, chosen: np.ndarray, cameras: Cameras, i: int, shape: tuple[int, int]) -> np.ndarray:
    """[h,w] bool: where points fall, grown by as much as a cell of the grid covers."""
    uv, _ = cameras.subset([i]).project(hull.points[torch.from_numpy(chosen)])
    h, w = shape
    scale = w / int(cameras.widths[i])
    x, y = (uv[0, :, 0].numpy() * scale).astype(int), (uv[0, :, 1].numpy() * h / int(cameras.heights[i])).astype(int)
    out = np.zeros(shape, bool)
    out[y.clip(0, h - 1), x.clip(0, w - 1)] = True
    return _grown(out, _pixels(hull.step, cameras, i, hull.target, shape) + 1)


def _pixels(length: float, cameras: Cameras, i: int, target: torch.Tensor, shape: tuple[int, int]) -> float:
    """A length at the subject in pixels of a silhouette."""
    depth = float((cameras.centres[i] - target).norm())
    return float(cameras.fx[i]) * shape[1] / int(cameras.widths[i]) * length / max(depth, 1e-9)


def _grown(there: np.ndarray, by: float) -> np.ndarray:
    for _ in range(int(np.ceil(by))):
        there = grown(there)
    return there
