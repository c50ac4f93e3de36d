"""Does `nerf check` find what is wrong, and nothing where nothing is? Faults of every kind are put into clean sets in
memory; the table says what was found and whether it was called by its name.

    python scripts/check_faults.py SCENE_FOLDER ... [--out results.json] [--faults 'opencv;two by 90'] [--cache FOLDER]

Features are found once a scene, and anew for pictures that a fault changes. Scenes that are not there are left out, and
so are faults that a scene cannot have (masks of photos without any).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nerf.checks.looking import look_at_all
from nerf.checks.looks import Look
from nerf.checks.matches import Memory
from nerf.checks.run import check_posed, requests_of
from nerf.checks.verdict import Verdict
from nerf.datasets.loading import parse
from nerf.datasets.parsed import Frame, Lens, ParsedScene
from nerf.datasets.posed import Posed, check_frames
from nerf.errors import UserError
from nerf.io.images import read_pixels
from nerf.io.machine import machine

CV = np.diag([1.0, -1, -1, 1])
REFUSED = {"mirrored": "mirrored", "intrinsics are those of another size": "size"}  # what loading itself says: the kind
SECONDS = 600.0  # for each check: the machine may be busy, and what is measured here is not the time


def middlebury(folder: Path) -> ParsedScene | None:
    """The Middlebury multi-view sets: NAME K R t in NAME_par.txt."""
    file = next(folder.glob("*_par.txt"), None)
    if file is None:
        return None
    frames = []
    for line in file.read_text().splitlines()[1:]:
        name, *numbers = line.split()
        v = np.array(numbers, dtype=np.float64)
        k, w2c = v[:9].reshape(3, 3), np.eye(4)
        w2c[:3, :3], w2c[:3, 3] = v[9:18].reshape(3, 3), v[18:]
        lens = Lens(fx=k[0, 0], fy=k[1, 1], cx=k[0, 2] + 0.5, cy=k[1, 2] + 0.5)
        frames.append(Frame(name, folder / name, np.linalg.inv(w2c) @ CV, lens, f"{file.name}, {name}"))
    return ParsedScene("middlebury", folder, frames, [])


@dataclass
class Set:
    """A clean scene, whose frames a fault may change; pixels[i] is asked for only where a picture is changed."""

    parsed: ParsedScene
    posed: Posed
    looks: list[Look | str | None]
    rng: np.random.Generator
    changed: set[int]  # frames whose picture was changed

    @property
    def frames(self) -> list[Frame]:
        return self.parsed.frames

    def lens(self, i: int) -> Lens:
        """The checked lens, in the picture's own pixels."""
        c = self.posed.cameras
        values = {k: float(getattr(c, k)[i]) for k in ("fx", "fy", "cx", "cy")}
        return Lens(int(c.models[i]), **values, distortion=tuple(c.distortion[i].tolist()))  # type: ignore[arg-type]

    def pixels(self, i: int) -> np.ndarray:
        given = self.frames[i].pixels
        return read_pixels(self.posed.pictures[i]) if given is None else given

    def paint(self, i: int, pixels: np.ndarray) -> None:
        self.frames[i].pixels = np.ascontiguousarray(pixels)
        self.changed.add(i)

    def poses(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        for f in self.frames:
            f.c2w = change(np.vstack([f.c2w[:3], [0, 0, 0, 1]]))

    def lenses(self, change: Callable[[Lens], Lens]) -> None:
        for i, f in enumerate(self.frames):
            f.lens = change(self.lens(i))

    def alpha(self) -> bool:
        return self.posed.pictures[0].n_channels == 4

    def far_apart(self, k: int) -> list[int]:
        """k frames that see the scene from different sides."""
        forward = self.posed.cameras.forward.numpy()
        chosen = [int(self.rng.integers(len(forward)))]
        while len(chosen) < k:
            chosen.append(int((forward @ forward[chosen].T).max(axis=1).argmin()))
        return chosen


class NotHere(Exception):
    """This fault makes no sense for this scene; the text says why."""


def transposed(m: np.ndarray) -> np.ndarray:
    out = m.copy()
    out[:3, :3] = m[:3, :3].T
    return out


def rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis) * np.radians(degrees)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    a = np.radians(degrees)
    out = np.eye(4)
    out[:3, :3] = np.eye(3) + np.sin(a) / a * k + (1 - np.cos(a)) / a**2 * k @ k
    return out


def near_affine(s: Set) -> None:
    if float(s.posed.cameras.fx[0]) > 3 * s.posed.pictures[0].width:
        raise NotHere("seen through a tele lens this shows as good as nothing")


def mirrored(s: Set) -> None:
    near_affine(s)
    for i in range(len(s.frames)):
        s.paint(i, s.pixels(i)[:, ::-1])


def turned_all(s: Set) -> None:
    near_affine(s)
    for i in range(len(s.frames)):
        s.paint(i, s.pixels(i)[::-1, ::-1])


def turned_some(s: Set, quarters: int, k: int = 2) -> None:
    for i in s.far_apart(k):
        picture = s.pixels(i)
        if quarters % 2 and picture.shape[0] != picture.shape[1]:
            s.frames[i].lens = replace(s.lens(i), cx=np.nan, cy=np.nan)  # as one focal length for all would be read
        s.paint(i, np.rot90(picture, quarters))


def size(s: Set, factor: float) -> None:
    s.lenses(lambda a: replace(a, fx=a.fx * factor, fy=a.fy * factor, cx=a.cx * factor, cy=a.cy * factor))


def view(s: Set, factor: float) -> None:
    near_affine(s)
    s.lenses(lambda a: replace(a, fx=a.fx * factor, fy=a.fy * factor))


def order(s: Set) -> None:
    new = s.rng.permutation(len(s.frames))
    poses = [f.c2w for f in s.frames]
    for f, k in zip(s.frames, new, strict=True):
        f.c2w = poses[k]


def swapped(s: Set) -> None:
    a, b = s.far_apart(2)
    s.frames[a].c2w, s.frames[b].c2w = s.frames[b].c2w, s.frames[a].c2w


def wrong_cameras(s: Set, k: int) -> None:
    for i in s.far_apart(k):
        m = np.vstack([s.frames[i].c2w[:3], [0, 0, 0, 1]])
        s.frames[i].c2w = m @ rotation(s.rng, 25)


def one_point(s: Set) -> None:
    def change(m: np.ndarray) -> np.ndarray:
        m[:3, 3] = (1, 2, 3)
        return m

    s.poses(change)


def outlier(s: Set) -> None:
    m = np.vstack([s.frames[s.far_apart(1)[0]].c2w[:3], [0, 0, 0, 1]])
    i = s.far_apart(1)[0]
    m[:3, 3] += 8e4 * np.ptp(s.posed.cameras.centres.numpy(), axis=0).max()
    s.frames[i].c2w = m


def noisy(s: Set) -> None:
    """Each camera turned so that its picture moves by half a percent of the longer side, 4 px at 800."""
    c = s.posed.cameras
    for i, f in enumerate(s.frames):
        angle = np.degrees(0.005 * max(int(c.widths[i]), int(c.heights[i])) / float(c.fx[i]))
        f.c2w = np.vstack([f.c2w[:3], [0, 0, 0, 1]]) @ rotation(s.rng, angle)


def needs_alpha(s: Set) -> None:
    if not s.alpha():
        raise NotHere("its photos have no alpha")


def each_alpha(s: Set, rows: list[int], change: Callable[[np.ndarray], np.ndarray]) -> None:
    needs_alpha(s)
    for i in rows:
        picture = s.pixels(i).copy()
        picture[..., 3] = change(picture[..., 3])
        s.paint(i, picture)


def alpha_of_another(s: Set) -> None:
    needs_alpha(s)
    a, b = s.far_apart(2)
    picture = s.pixels(a).copy()
    picture[..., 3] = s.pixels(b)[..., 3]
    s.paint(a, picture)


def leaves_out(s: Set) -> None:
    """Alpha that is a mask: a person is left out who walks about near the border."""
    if s.alpha():
        raise NotHere("its alpha is a silhouette")
    for i in range(len(s.frames)):
        picture = s.pixels(i)
        h, w = picture.shape[:2]
        alpha = np.full((h, w, 1), 255, np.uint8)
        x = int(s.rng.integers(0, w - w // 5))
        alpha[h // 2 :, x : x + w // 5] = 0
        s.paint(i, np.concatenate([picture[..., :3], alpha], axis=2))


def mask_shape(s: Set) -> None:
    for f in s.frames:
        f.mask = np.ones((300, 1000), bool)


def masks_inverted(s: Set) -> None:
    """Masks that keep the object, then exchanged: only where an object is cut out."""
    needs_alpha(s)
    for i, f in enumerate(s.frames):
        picture = s.pixels(i)
        f.mask = picture[..., 3] < 128
        s.paint(i, picture[..., :3])


def background(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A picture full of things: blocks of many sizes."""
    from PIL import Image

    total = np.zeros((h, w, 3))
    for cell in (8, 16, 32, 64):
        grid = rng.integers(0, 256, (h // cell + 2, w // cell + 2, 3)).astype(np.uint8)
        total += np.asarray(Image.fromarray(grid).resize((w, h), Image.Resampling.NEAREST), np.float64)
    return (total / 4).astype(np.uint8)


def turntable(s: Set) -> None:
    """What is not the object is one picture that stands still: behind alpha, else all but an ellipse in the middle."""
    for i in range(len(s.frames)):
        picture = s.pixels(i)
        h, w = picture.shape[:2]
        if i == 0:
            wall = background(np.random.default_rng(5), h, w)
        y, x = np.mgrid[:h, :w]
        ellipse = ((x - w / 2) / (0.38 * w)) ** 2 + ((y - h / 2) / (0.38 * h)) ** 2 < 1
        keep = picture[..., 3:] > 127 if s.alpha() else ellipse[..., None]
        s.paint(i, np.where(keep, picture[..., :3], wall[:h, :w]))


def exposed(s: Set) -> None:
    for i in range(len(s.frames)):
        picture = s.pixels(i).copy()
        gain = 2.0 ** s.rng.uniform(-1, 1)
        light = (picture[..., :3] / 255.0) ** 2.2 * gain
        picture[..., :3] = np.clip(light ** (1 / 2.2) * 255, 0, 255)
        s.paint(i, picture)


def borders(s: Set) -> None:
    if s.alpha():
        raise NotHere("its photos are cut out")
    if float(s.pixels(0)[:8].mean()) < 12:
        raise NotHere("its background is black")
    for i in range(len(s.frames)):
        picture = s.pixels(i).copy()
        h, w = picture.shape[:2]
        y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
        picture[(np.abs(x) > 1 - 0.07 * (1 - y**2)) | (np.abs(y) > 1 - 0.05 * (1 - x**2))] = 0
        s.paint(i, picture)


def scaled_axis(m: np.ndarray, *signs: float) -> np.ndarray:
    return m @ np.diag([*signs, 1.0])


# name -> (the kinds that are right names for it, what puts it in)
FAULTS: dict[str, tuple[tuple[str, ...], Callable[[Set], None]]] = {
    "clean": ((), lambda s: None),
    "opencv": (("axes",), lambda s: s.poses(lambda m: m @ CV)),
    "x left": (("axes",), lambda s: s.poses(lambda m: scaled_axis(m, -1, 1, -1))),
    "inverted": (("inverted",), lambda s: s.poses(np.linalg.inv)),
    "inverted, opencv": (("inverted",), lambda s: s.poses(lambda m: np.linalg.inv(m @ CV))),
    "transposed": (("transposed",), lambda s: s.poses(transposed)),
    "transposed, opencv": (("transposed",), lambda s: s.poses(lambda m: transposed(m @ CV) @ CV)),
    "mirrored": (("mirrored",), mirrored),
    "all upside down": (("turned",), turned_all),
    "two by 90": (("turned",), lambda s: turned_some(s, 1)),
    "two by 180": (("turned",), lambda s: turned_some(s, 2)),
    "two by 270": (("turned",), lambda s: turned_some(s, 3)),
    "lens of twice the size": (("size", "principal-point"), lambda s: size(s, 2)),
    "lens of a quarter": (("size", "principal-point"), lambda s: size(s, 0.25)),
    "focal length x 0.7": (("focal",), lambda s: view(s, 0.7)),
    "focal length x 1.5": (("focal",), lambda s: view(s, 1.5)),
    "another order": (("order",), order),
    "two swapped": (("swapped",), swapped),
    "one wrong camera": (("camera",), lambda s: wrong_cameras(s, 1)),
    "three wrong cameras": (("camera",), lambda s: wrong_cameras(s, 3)),
    "one point": (("one-point",), one_point),
    "far outlier": (("outlier",), outlier),
    "half a percent off": (("pixels",), noisy),
    "one matte empty": (("mask-empty",), lambda s: each_alpha(s, s.far_apart(1), np.zeros_like)),
    "mattes inverted": (("mask-inverted",), lambda s: each_alpha(s, list(range(len(s.frames))), lambda a: 255 - a)),
    "one matte inverted": (("mask-inverted",), lambda s: each_alpha(s, s.far_apart(1), lambda a: 255 - a)),
    "one matte of another": (("mask-contradicts",), alpha_of_another),
    "masks inverted": (("mask-inverted",), masks_inverted),
    "masks of another shape": (("mask-size",), mask_shape),
    "alpha leaves out a person": (("not-a-silhouette",), leaves_out),
    "turntable": (("moving",), turntable),
    "exposure moves": (("exposure",), exposed),
    "black borders": (("black-border",), borders),
}


def read_clean(folder: Path, cache: Path | None, most: int) -> tuple[ParsedScene, Posed, list[Look | str | None]]:
    """A scene as it is, and what is seen in its photos."""
    parsed = middlebury(folder) or parse(folder)
    there = [f for f in parsed.frames if f.path.is_file()]
    parsed.frames = there[:: -(-len(there) // most)]
    parsed.depth_bounds = None
    posed = check_frames(copy.deepcopy(parsed))
    file = None if cache is None else cache / f"{folder.name}_{most}.npz"
    if file is not None and file.is_file():
        with np.load(file) as data:
            names = Look.__dataclass_fields__
            looks: list[Look | str | None] = [
                Look(**{k: data[f"{i}_{k}"] for k in names}) for i in range(len(posed.frames))
            ]
    else:
        looks = look_at_all(requests_of(posed), time.perf_counter() + 3600)
        if file is not None:
            all_ = {
                f"{i}_{k}": v for i, look in enumerate(looks) if isinstance(look, Look) for k, v in vars(look).items()
            }
            np.savez(file, **all_)
    return parsed, posed, looks


def run(
    clean: tuple[ParsedScene, Posed, list[Look | str | None]], fault: str, seed: int, memory: Memory
) -> dict[str, Any]:
    """One fault in one scene: what was said, and whether that is right."""
    parsed, posed, looks = clean
    parsed = copy.copy(parsed)
    parsed.frames, parsed.notes = [copy.copy(f) for f in parsed.frames], []
    s = Set(parsed, posed, list(looks), np.random.default_rng(seed), set())
    kinds, put = FAULTS[fault]
    try:
        put(s)
    except NotHere as why:
        return {"fault": fault, "left_out": str(why)}
    try:
        there = check_frames(s.parsed)
        masked = {i for i, (a, b) in enumerate(zip(there.frames, posed.frames, strict=True)) if a.mask is not b.mask}
        again = sorted(s.changed | masked)
        requests = requests_of(there)
        new = look_at_all([requests[i] for i in again], time.perf_counter() + 3600)
        for i, look in zip(again, new, strict=True):
            s.looks[i] = look
        bent = bool((posed.cameras.distortion != 0).any())  # the matches of such lenses are told apart by the lens
        there_is = Memory() if bent and {"focal", "size"} & set(kinds) else memory.without(set(again))
        verdict = check_posed(there, SECONDS, s.looks, memory=there_is)
    except UserError as error:
        verdict = Verdict("contradicts", why=str(error))
        found = [kind for words, kind in REFUSED.items() if words in str(error)]
    else:
        found = [f.kind for f in verdict.findings]
    alarms = [f.kind for f in verdict.findings if f.is_wrong]
    advice_in_clean = set(found) - set(alarms)
    if fault == "clean":
        right = not alarms and "pixels" not in found
    else:
        right = bool(set(kinds) & set(found)) and not (set(alarms) - set(kinds) - {"principal-point", "camera"})
    said = verdict.paragraph() if verdict.state != "contradicts" or verdict.findings else verdict.why
    return {
        "fault": fault,
        "state": verdict.state,
        "found": found,
        "right": right,
        "advice": sorted(advice_in_clean),
        "seconds": round(verdict.seconds, 2),
        "said": said.replace(f"{parsed.path}/", ""),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--faults", default=";".join(FAULTS))
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=1000, help="photos of a scene; of more, every so-many-th")
    parser.add_argument("--say", action="store_true", help="print every verdict")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for folder in args.scenes:
        if not folder.is_dir():
            print(f"{folder}: is not there, left out")
            continue
        clean = read_clean(folder, args.cache, args.most)
        rows = results[folder.name] = []
        memory = Memory()
        for fault in args.faults.split(";"):
            row = run(clean, fault.strip(), args.seed, memory)
            rows.append(row)
            mark = "  - " if "left_out" in row else " ok " if row["right"] else "MISS"
            about = (
                row.get("left_out") or f"{', '.join(row['found']) or 'nothing'} ({row['state']}, {row['seconds']} s)"
            )
            print(f"{folder.name:18}{mark} {fault:28}{about}", flush=True)
            if args.say or mark == "MISS":
                print(f"{'':24}{row['said']}", flush=True)
    every = [row for rows in results.values() for row in rows if "left_out" not in row]
    faults, cleans = [r for r in every if r["fault"] != "clean"], [r for r in every if r["fault"] == "clean"]
    n_right, n_clean = sum(r["right"] for r in faults), sum(r["right"] for r in cleans)
    print(f"{n_right} of {len(faults)} faults found and rightly named ({100 * n_right / max(1, len(faults)):.1f} %)")
    print(f"{len(cleans) - n_clean} false alarms in {len(cleans)} clean sets")
    if args.out:
        summary = {"right": n_right, "faults": len(faults), "false_alarms": len(cleans) - n_clean, "clean": len(cleans)}
        args.out.write_text(json.dumps({"machine": machine(), "summary": summary, "scenes": results}, indent=1))


if __name__ == "__main__":
    main()
