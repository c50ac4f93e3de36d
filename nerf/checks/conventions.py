"""What poses may have been meant to be, where they do not fit: every usual way to read them otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations, product

import torch
from torch import Tensor

from nerf.checks.residuals import FITS, Batch, Rays, residuals
from nerf.datasets.readings import axes_of, read_as
from nerf.geometry.cameras import Cameras

QUICK, IN_FULL = (14, 10), (40, 20)  # pairs and matches of each: of all readings, and of those kept
KEPT = 24  # readings that are judged in full
AT_ONCE = 48  # ways tried in one go
GAIN = 0.25  # in the mean share of matches that fit, for another reading to be believed
_AXES = {
    (1, 0): "x right",
    (-1, 0): "x left",
    (1, 1): "y up",
    (-1, 1): "y down",
    (1, 2): "z back",
    (-1, 2): "z forward",
}


@dataclass
class Reading:
    """One way to understand the given poses."""

    kind: str
    words: str  # "the poses are ..."
    c2w: Tensor  # [n,3,4]
    terms: str  # that `cameras_are` calls it by; empty: as given
    cost: int  # of two that fit alike, the cheaper one is meant

    mean: float = 0.0  # share of matches that fit, once judged
    ok: float = 0.0  # share of pairs that fit


def judge(readings: list[Reading], cameras: Cameras, batch: Batch) -> Reading:
    """The reading under which most matches fit; among those that do alike, the simplest. All are tried on a few
    matches, the best of them on more."""
    _judge(readings, cameras, batch, *QUICK)
    _judge(kept := sorted(readings, key=lambda r: (-r.mean, r.cost))[:KEPT] + readings[:1], cameras, batch, *IN_FULL)
    best = max(r.mean for r in kept)
    return min((r for r in kept if r.mean >= best - 0.03), key=lambda r: (r.cost, -r.mean))


def _judge(readings: list[Reading], cameras: Cameras, batch: Batch, n_pairs: int, n_matches: int) -> None:
    few = batch.rows(torch.arange(0, len(batch), max(1, len(batch) // n_pairs))[:n_pairs])
    keep = torch.linspace(0, int(few.valid.sum(dim=1).min()) - 1, n_matches).round().long()
    few = Batch(few.a, few.b, few.uv_a[:, keep], few.uv_b[:, keep], few.valid[:, keep])
    rays = Rays.of(cameras, few)
    for start in range(0, len(readings), AT_ONCE):
        part = readings[start : start + AT_ONCE]
        c2w = torch.stack([r.c2w for r in part])
        found = residuals(rays, few.valid, c2w[:, few.a], c2w[:, few.b])
        for reading, mean, shares in zip(part, found.mean.tolist(), found.shares, strict=True):
            reading.mean, reading.ok = mean, float((shares >= FITS).double().mean())


def readings(cameras: Cameras) -> list[Reading]:
    """Every way to read poses, the given one first: axes of the camera in another order or direction, matrices from the
    world to the camera, transposed rotations, axes of the world flipped for the positions alone."""
    found = []

    def add(kind: str, words: str, first: str, cost: int) -> None:
        start = read_as(cameras, first or None)
        for p, more in _signed_permutations():  # the first is the given one
            last = "" if _quarters(p) == 0 else axes_of(p)
            c2w = read_as(start, last or None).c2w
            said = (words if not last else f"{words}, {_words(p)}") if words else _words(p)
            found.append(Reading(_kind(kind, p), said, c2w, "+".join(filter(None, (first, last))), cost + more))

    add("axes", "", "", 0)
    add("inverted", "from the world to the camera (they were read as camera to world, or the reverse)", "inverted", 1)
    opencv = axes_of(torch.diag(torch.tensor([1.0, -1, -1])))
    stored = ("", opencv, "inverted", f"{opencv}+inverted")  # what the file may hold: what a reader makes of it, undone
    for k, first in enumerate(stored):
        for invert in (k >= 2, k < 2):
            terms = "+".join(filter(None, (first, "transposed", "inverted" if invert else "")))
            cost = 2 + k % 2 + (2 if invert != (k >= 2) else 0)
            add("transposed", "with transposed rotations (rows and columns exchanged)", terms, cost)
    for n in (1, 2, 3):
        for flipped in combinations("xyz", n):
            words = f"of a world whose {' and '.join(flipped)} is reversed for the positions alone"
            add("axes", words, f"flip={''.join(flipped)}", 4)
    return found


@cache
def _signed_permutations() -> list[tuple[Tensor, int]]:
    """The 48 ways to name a camera's axes, and how odd each is: signs alone are usual, other orders less so."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            matrix = torch.zeros(3, 3, dtype=torch.float64)
            for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
                matrix[row, column] = sign
            turned = _quarters(matrix)
            usual = 0 if turned == 0 else 1 if order == (0, 1, 2) else 2
            mirrored = float(torch.linalg.det(matrix)) < 0
            found.append((matrix, usual + (2 if mirrored else 0)))
    return sorted(found, key=lambda f: f[1])


def _quarters(p: Tensor) -> int | None:
    """By how many quarter turns counter-clockwise photos were turned whose cameras have these axes; None: others."""
    if float(p[2, 2]) != 1 or float(torch.linalg.det(p)) < 0:
        return None
    return {(1, 0): 0, (0, -1): 1, (-1, 0): 2, (0, 1): 3}[(int(p[0, 0]), int(p[1, 0]))]


def _kind(kind: str, p: Tensor) -> str:
    if float(torch.linalg.det(p)) < 0:
        return "mirrored"
    return "turned" if kind == "axes" and _quarters(p) else kind


def _words(p: Tensor) -> str:
    quarters = _quarters(p)
    if quarters == 0:
        return "as given"
    if quarters is not None:
        return f"of photos turned by {90 * quarters} degrees (EXIF orientation, or a camera held on its side)"
    if float(torch.linalg.det(p)) < 0:
        return "of mirrored photos (or of a left-handed world)"
    if torch.equal(p, torch.diag(torch.diagonal(p))):
        axes = ", ".join(_AXES[(int(p[k, k]), k)] for k in range(3))
        name = {(1, -1, -1): "OpenCV and COLMAP", (-1, 1, -1): "PyTorch3D"}.get(
            tuple(int(p[k, k]) for k in range(3)),  # type: ignore[arg-type]
            "",
        )
        return f"of cameras with {axes}{f' ({name})' if name else ''}"
    return "of cameras whose axes are in another order"
