"""What came of it, for the user: which photos were left out and why, how the rest hangs together, a view from above."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import numpy as np

from nerf.capture.photos import Photo
from nerf.capture.settings import Settings
from nerf.errors import UserError, printable
from nerf.io.files import write_file
from nerf.io.opening import opened

ADVICE = (
    "take more photos with two thirds of each shared with the next, walk around the subject instead of turning on the "
    "spot, keep everything sharp and lit alike, and let something with texture stand in the picture"
)
ALIKE = 1.0  # grey levels, mean over pictures of 32 x 32: what compression and noise of the sensor change is less
_IDS = 2147483647  # COLMAP: pair_id = smaller image_id * this + larger


@dataclass(frozen=True, kw_only=True)
class FoundPoses:
    """What `find_poses` found; distances are in pixels of pictures of at most 1600. As a string it is a few lines.

    >>> print(FoundPoses(n_photos=9, n_placed=0, seconds=4.2, left_out={"a.jpg": "blank: nothing to be seen in it"}))
    0 of 9 photos placed in 4 s
    left out a.jpg: blank: nothing to be seen in it
    """

    n_photos: int
    n_placed: int
    components: list[int] = field(default_factory=list)  # photos of each part that hangs together, the largest first
    pairs_compared: int | None = None
    pairs_matched: int | None = None
    n_points: int = 0  # of the sparse point cloud
    way: str | None = None  # of mapping that was used
    judgement: str | None = None  # what pairs of photos say of the poses, in words
    convinces: bool | None = None  # whether as many pairs fit as do with right poses
    n_pairs: int | None = None  # pairs that were asked
    n_fit: int | None = None  # of these, that fit
    n_unseen: int | None = None  # pairs that were asked and that mapping did not use
    n_unseen_fit: int | None = None
    pixels: float | None = None  # median distance of the pairs' matches from their epipolar lines
    groups: list[list[str]] = field(default_factory=list)  # photos that pairs join, the largest group first
    reprojection_error: float | None = None  # pixels, mean over the points' observations
    track_length: float | None = None  # mean number of photos that show a point
    seconds: float
    settings: Settings = field(default_factory=Settings)  # of features, matching and mapping
    left_out: dict[str, str] = field(default_factory=dict)  # photo: why
    photos: dict[str, dict[str, Any]] = field(default_factory=dict)  # photo: features, sharpness, points seen and more

    def to_dict(self) -> dict[str, Any]:
        """As poses.json holds it: JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.n_placed} of {self.n_photos} photos placed in {self.seconds:.0f} s"]
        if self.n_placed:
            lines[0] += f", {self.n_points:,} points; {self.judgement}"
            if not self.convinces:
                lines.append("that is less than right poses usually reach: look at coverage.png before you trust them")
        if len(self.components) > 1:
            lines.append(
                f"the photos fall into {len(self.components)} groups that do not hang together (of "
                f"{', '.join(map(str, self.components))}; shown in groups.png): the largest is used. Of one place, "
                "photos of what lies between would join them; of several places, give each its own folder"
            )
        left = _grouped(self.left_out)
        lines += left[:12]
        if len(left) > 12:
            lines.append(f"and {len(left) - 12} more, all in poses.json")
        return "\n".join(lines)


def reasons(
    photos: list[Photo], placed: set[str], others: list[list[str]], statistics: dict[str, Any], partners: dict[str, Any]
) -> dict[str, str]:
    """{photo: likely reason} of the photos that found no place in the largest model, by the statistics of
    nerf.capture.features and the partners of `verified_partners`."""
    known = [s for s in statistics.values() if "damaged" not in s] or [{"n_features": 0, "sharpness": 0, "mean": 0}]
    usual = {key: median(s[key] for s in known) for key in ("n_features", "sharpness", "mean")}
    group = {name: len(names) for names in reversed(others) for name in names}
    lost = [photo.name for photo in photos if photo.name not in placed]
    return {n: _reason(statistics.get(n), usual, partners.get(n, {}), placed, group.get(n, 0)) for n in lost}


def _reason(
    s: dict[str, Any] | None, usual: dict[str, float], partners: dict[str, int], placed: set[str], group: int
) -> str:
    if s is None:
        return "not looked at"
    if "damaged" in s:
        return f"damaged ({s['damaged']})"
    few = s["n_features"] < max(100, 0.3 * usual["n_features"])
    if s["mean"] < 20 or s["mean"] > 235:
        return f"{'too dark' if s['mean'] < 20 else 'overexposed'} (mean brightness {s['mean']:.0f} of 255)"
    if s["spread"] < 4:
        return "blank: nothing to be seen in it"
    if s["sharpness"] < 0.25 * usual["sharpness"] and (few or not partners):
        return f"blurred ({100 * s['sharpness'] / max(usual['sharpness'], 1e-9):.0f} % of the usual sharpness)"
    if few:
        return f"little texture ({s['n_features']} features, usual are {usual['n_features']:.0f})"
    if abs(s["mean"] - usual["mean"]) > 80:
        return f"lit very differently (mean brightness {s['mean']:.0f}, usual is {usual['mean']:.0f})"
    if group:
        return f"in a group of {group} photos that overlaps with the rest too little"
    inside = {name: n for name, n in partners.items() if name in placed}
    if inside:
        return f"too little overlap (shares at most {max(inside.values())} features with a photo that was placed)"
    if partners:
        return f"overlaps only with photos that were left out too ({', '.join(list(partners)[:2])})"
    return "no overlap with any other photo was found"


def verified_partners(database: Path) -> dict[str, dict[str, int]]:
    """{photo: {photo: shared features that one camera motion explains}}, best first, from COLMAP's database."""
    query = "SELECT pair_id, rows FROM two_view_geometries WHERE rows > 0 ORDER BY rows DESC, pair_id"
    with closing(sqlite3.connect(f"file:{quote(os.fsencode(database))}?mode=ro", uri=True)) as connection:
        names = dict(connection.execute("SELECT image_id, name FROM images"))
        found: dict[str, dict[str, int]] = {}
        for pair_id, n in connection.execute(query):
            a, b = names[pair_id // _IDS], names[pair_id % _IDS]
            found.setdefault(a, {})[b] = found.setdefault(b, {})[a] = n
    return found


def groups_of(partners: dict[str, dict[str, int]], least: int) -> list[list[str]]:
    """The photos that hang together by pairs that share at least so many features, largest group first."""
    groups, known = [], set()
    for name in sorted(partners):
        if name in known:
            continue
        group, waiting = [], [name]
        known.add(name)
        while waiting:
            group.append(waiting.pop())
            new = {p for p, n in partners.get(group[-1], {}).items() if n >= least} - known
            known |= new
            waiting += sorted(new)
        groups.append(sorted(group))
    return sorted((g for g in groups if len(g) > 1), key=len, reverse=True)


def groups_picture(images: Path, groups: list[list[str]], size: int = 160, most: int = 8) -> np.ndarray:
    """[h,w,3] uint8: a row of thumbnails for each group of photos that hang together."""
    from PIL import Image, ImageDraw

    rows = groups[:most] or [[]]
    sheet = Image.new("RGB", (size * most, (size + 20) * len(rows)), (250, 249, 246))
    draw = ImageDraw.Draw(sheet)
    for k, group in enumerate(rows):
        draw.text((6, k * (size + 20) + 4), f"{len(group)} photos that hang together", fill=(40, 40, 40))
        for j, name in enumerate(group[:: max(1, -(-len(group) // most))]):
            with suppress(OSError, UserError), opened(images / name) as picture:
                picture.draft("RGB", (size, size))
                small = picture.convert("RGB")
                small.thumbnail((size - 6, size - 6))
                sheet.paste(small, (j * size + 3, k * (size + 20) + 20))
    return np.asarray(sheet)


def all_alike(images: Path, names: list[str]) -> bool:
    """Whether photos, of a few that were not blank, show nearly the same picture: one saved twice, or a camera that
    stood still."""
    from PIL.Image import Resampling

    small = []
    for name in names[:: max(1, len(names) // 40)]:
        with suppress(OSError, UserError), opened(images / name) as picture:
            picture.draft("L", (128, 128))
            small.append(np.asarray(picture.convert("L").resize((32, 32), Resampling.BOX), np.float32))
    if len(small) < 2:
        return False
    usual = np.median(small, axis=0)
    changes = [float(np.abs(picture - usual).mean()) for picture in small]
    return float(usual.std()) > 4 and max(changes) < ALIKE


def write_report(folder: Path, found: FoundPoses) -> None:
    """poses.json in the data set: all that is said on the terminal, and each photo that was left out."""
    said = {"summary": str(found).splitlines()}
    text = json.dumps({"format": "nerf-poses", "version": 1, **said, **found.to_dict()}, indent=1)
    write_file(folder / "poses.json", text + "\n")


def _grouped(left_out: dict[str, str]) -> list[str]:
    """A line for each photo; one for all of a kind where they are many, so that thumbnails do not hide the others."""
    kinds: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        kinds.setdefault(reason.split("(")[0].strip(), []).append(name)
    lines = []
    for kind, names in kinds.items():
        if len(names) > 4:
            some = ", ".join(map(printable, names[:3]))
            lines.append(f"left out {len(names)} photos: {kind} ({some} and others, see poses.json)")
        else:
            lines += [printable(f"left out {name}: {left_out[name]}") for name in names]
    return lines


def coverage_picture(c2w: np.ndarray, points: np.ndarray, colours: np.ndarray, size: int = 900) -> np.ndarray:
    """[size,size,3] uint8: points and cameras (arrows along their view) from above; z is up, y goes up the page."""
    from PIL import Image, ImageDraw

    origins, ahead = c2w[:, :2, 3], -c2w[:, :2, 2]
    low, high = origins.min(axis=0), origins.max(axis=0)
    near = points[:, :2]
    if len(points):
        inner = np.percentile(near, (5, 95), axis=0)
        low, high = np.minimum(low, inner[0]), np.maximum(high, inner[1])
        inside = ((near >= low) & (near <= high)).all(axis=1)
        near, colours = near[inside], colours[inside]
    middle, span = (low + high) / 2, 1.15 * max(float((high - low).max()), 1e-9)

    def pixel(xy: np.ndarray) -> np.ndarray:
        return (0.5 + (xy - middle) / span * (1, -1)) * size

    canvas = Image.new("RGB", (size, size), (250, 249, 246))
    draw = ImageDraw.Draw(canvas)
    for (x, y), colour in zip(pixel(near), colours, strict=True):
        draw.rectangle((x - 1, y - 1, x, y), fill=tuple(int(v) for v in colour))
    for origin, direction in zip(origins, ahead, strict=True):
        x, y = pixel(origin)
        tip = pixel(origin + direction * span * 0.035)
        draw.line((x, y, *tip), fill=(200, 60, 30), width=2)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(200, 60, 30), outline=(90, 20, 10))
    return np.asarray(canvas)
