"""From what a reader found to checked poses and lenses: one camera for each image that is there, in its own pixels."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf.datasets.named import listed
from nerf.datasets.options import LoadOptions
from nerf.datasets.parsed import Frame, Lens, ParsedScene, sphere
from nerf.datasets.readings import moves_principal_point, read_as
from nerf.errors import UserError
from nerf.geometry.cameras import Cameras
from nerf.geometry.geodesy import Georeference
from nerf.geometry.lenses import AHEAD, COEFFICIENTS, EQUIRECTANGULAR
from nerf.geometry.space import checked_similarity
from nerf.io.images import Picture, read_header

FARTHEST = 1e15  # world units or pixels: what is beyond in a file is damage, and distances still have squares


@dataclass
class Posed:
    """The frames whose image is there, the headers of the images, and their cameras in the images' own pixels."""

    frames: list[Frame]
    pictures: list[Picture]
    cameras: Cameras
    points: Tensor | None  # [m,3] float64 world, sparse points
    splits: dict[str, Tensor]  # "train", "val", "test" -> indices
    cameras_are: str | None = None  # how they are meant, where not as they stand in the files: applied to `cameras`
    georeference: Georeference | None = None  # where the world stands on the earth


def check_frames(parsed: ParsedScene, options: LoadOptions | None = None) -> Posed:
    """Check poses and lenses against the images' headers, and split; no image is decoded. Notes go to parsed.notes."""
    options = options or LoadOptions()

    def header(frame: Frame) -> Picture:
        if frame.pixels is None:
            return read_header(frame.path)
        height, width, n_channels = frame.pixels.shape
        return Picture(frame.path, width, height, n_channels, frame.pixels.dtype)

    if not parsed.frames:
        raise UserError(f"{parsed.path}: read as {parsed.source}, it holds no frames: expected one for each photo")
    frames = _with_images(parsed)
    poses = np.stack([checked_pose(f.c2w, f.where) for f in frames])
    with ThreadPoolExecutor(max_workers=2) as pool:
        pictures = list(pool.map(header, frames))
    _sizes_of_masks(frames, pictures, parsed.notes)
    _check_sizes(frames, pictures)
    _turn_back(frames, pictures, parsed.notes)
    as_stated = not moves_principal_point(options.cameras_are)
    lenses = [_fit_lens(f, pictures, i, parsed.notes, as_stated) for i, f in enumerate(frames)]
    cameras = read_as(cameras_of(torch.from_numpy(poses), lenses), options.cameras_are)
    if options.cameras_are is not None:
        parsed.notes.append(f"poses and lenses are not taken as they stand in the files but as {options.cameras_are}")
    if options.georeference is not None:
        parsed.georeference = Georeference.parse(options.georeference)
    if parsed.georeference is not None:
        parsed.notes.append(f"georeferenced: the world is {parsed.georeference}")
    if parsed.region is not None:
        checked_similarity(parsed.region, f"{parsed.path}: the region of interest")
    points = None
    if parsed.points is not None:
        parsed.points = parsed.points[(np.abs(parsed.points) < FARTHEST).all(axis=1)]
        points = torch.from_numpy(np.ascontiguousarray(parsed.points, np.float64))
    splits = _split(frames, options, parsed.notes)
    return Posed(frames, pictures, cameras, points, splits, options.cameras_are, parsed.georeference)


def cameras_of(c2w: Tensor, lenses: list[Lens]) -> Cameras:
    """Poses [n,3,4] and their lenses, whose sizes are known."""
    floats = {
        k: torch.tensor([getattr(lens, k) for lens in lenses], dtype=torch.float64) for k in ("fx", "fy", "cx", "cy")
    }
    n = len(COEFFICIENTS) if any(any(lens.distortion[6:]) for lens in lenses) else 6
    k = [[*lens.distortion, *[0.0] * n][:n] for lens in lenses]
    floats["distortion"] = torch.tensor(k, dtype=torch.float64)
    whole = {f"{k}s": torch.tensor([getattr(lens, k) for lens in lenses]) for k in ("width", "height", "model")}
    return Cameras(c2w=c2w, **floats, **whole)


def checked_pose(matrix: np.ndarray, where: str) -> np.ndarray:
    """[3,4] float64 with an exact rotation (the nearest one), or a UserError that says what is wrong."""
    m = np.asarray(matrix, dtype=np.float64)
    if m.shape not in ((3, 4), (4, 4)):
        raise UserError(f"{where}: the pose has shape {m.shape}, expected 4x4 or 3x4 (camera to world)")
    m = m[:3]
    if not np.isfinite(m).all():
        raise UserError(f"{where}: the pose holds NaN or infinity: repair or remove this frame")
    if np.abs(m[:, 3]).max() > FARTHEST:
        raise UserError(
            f"{where}: the camera stands {np.abs(m[:, 3]).max():.3g} units away: repair or remove this frame"
        )
    u, s, vt = np.linalg.svd(m[:, :3])
    problem = ""
    if s[2] < 1e-6 * max(s[0], 1e-300):
        problem = "singular (its rotation part has no inverse): repair or remove this frame"
    elif np.linalg.det(u @ vt) < 0:
        problem = "mirrored (negative determinant), expected a right-handed camera-to-world matrix: "
        problem += "one axis is flipped by the program that wrote it"
    elif s[0] / s[2] > 1.1:
        problem = f"no rotation (it stretches by {s[0] / s[2]:.2f}): repair or remove this frame"
    if problem:
        raise UserError(f"{where}: the pose is {problem}")
    return np.concatenate([u @ vt, m[:, 3:]], axis=1)


def _with_images(parsed: ParsedScene) -> list[Frame]:
    """The frames whose image is there; the others are named in a note."""
    there = [f.pixels is not None or f.path.is_file() for f in parsed.frames]
    found, missing = ([f for f, is_there in zip(parsed.frames, there, strict=True) if is_there == t] for t in (1, 0))
    if missing:
        names = [f.name for f in missing]
        parsed.notes.append(f"skipped {len(missing)} of {len(there)} frames without image: {listed(names)}")
    if len(found) < 3 and any(f.pixels is None for f in parsed.frames):
        first = f"; the first one missing is {missing[0].path}" if missing else ""
        raise UserError(
            f"{parsed.path}: {len(found)} of {len(there)} frames have an image, at least three are needed{first}"
        )
    if parsed.depth_bounds is not None:
        parsed.depth_bounds = parsed.depth_bounds[there]
    return found


def _turn_back(frames: list[Frame], pictures: list[Picture], notes: list[str]) -> None:
    """Pictures as they are stored where poses are of those, as COLMAP and nearly all programs take them: EXIF turns
    them only where the stated sizes (or principal points) are those of the turned pictures."""
    turned = [i for i, p in enumerate(pictures) if p.orientation != 1]
    votes = [_is_of_turned(frames[i].lens, pictures[i]) for i in turned]
    mostly = sum(v is True for v in votes) > sum(v is False for v in votes)
    back = [i for i, vote in zip(turned, votes, strict=True) if not (mostly if vote is None else vote)]
    for i in back:
        p = pictures[i]
        size = (p.height, p.width) if p.orientation >= 5 else (p.width, p.height)
        pictures[i] = replace(p, width=size[0], height=size[1], orientation=1)
    if back:
        notes.append(
            f"EXIF orientation of {len(back)} of {len(pictures)} photos ignored: poses are taken to be of the pixels "
            "as they are stored, as nearly all programs make them"
        )


def _is_of_turned(lens: Lens, picture: Picture) -> bool | None:
    """Whether a lens is stated for the picture as EXIF turns it; None where it does not say."""
    w, h = picture.width, picture.height
    if picture.orientation < 5 or w == h:
        return None
    stated = (lens.width, lens.height) if lens.width and lens.height else (lens.cx, lens.cy)
    if not all(map(math.isfinite, stated)) or stated[0] == stated[1]:
        return None
    return (stated[0] > stated[1]) == (w > h)


def _sizes_of_masks(frames: list[Frame], pictures: list[Picture], notes: list[str]) -> None:
    """Lenses without a stated size whose principal point lies towards a corner of the picture or outside, but inside
    its mask of another size: they are stated for pictures of that size."""
    n = 0
    for frame, picture in zip(frames, pictures, strict=True):
        lens, mask = frame.lens, frame.matte or frame.mask
        if lens.width or not isinstance(mask, Path) or not mask.is_file():
            continue
        if not (lens.cx > 0.75 * picture.width and lens.cy > 0.75 * picture.height):
            continue
        full = read_header(mask)
        if picture.width < full.width > lens.cx and lens.cy < full.height:
            frame.lens = replace(lens, width=full.width, height=full.height)
            n += 1
    if n:
        notes.append(f"{n} lenses are taken to be stated for pictures of their masks' size, which these are not")


def _check_centre(lens: Lens, size: tuple[int, int], frame: Frame, notes: list[str]) -> None:
    """UserError where the principal point lies outside the picture: the intrinsics are those of another size."""
    (w, h), (cx, cy), where = size, (lens.cx, lens.cy), frame.where
    in_corner = cx > 0.98 * w and cy > 0.98 * h  # or beyond: of half the size, say, and rounded
    if 0 < cx < w and 0 < cy < h and not in_corner:
        return
    if frame.pixels is not None or (lens.width and not in_corner):  # cut out of a larger picture, perhaps
        text = f"the principal point ({cx:.6g}, {cy:.6g}) lies outside the {w}x{h} picture, as in one that was cropped"
        notes.extend([f"{where}: {text}"] if not any(text in line for line in notes) else [])
        return
    remedy = "state w and h, of the picture that they belong to" if lens.width is None else "correct w and h"
    place = "in a corner of" if 0 < cx < w and 0 < cy < h else "outside"
    if (factor := _rounded(0.5 * w / cx) if cx > 0 else 0.0) >= 1e-3:
        remedy += f", or load with cameras_are='scale={factor:.6g}' (--cameras-are)"
    raise UserError(
        f"{where}: the principal point ({cx:.6g}, {cy:.6g}) lies {place} the picture of {w}x{h}: the intrinsics are "
        f"those of another size; {remedy}, or use the pictures that the poses were made from"
    )


def _rounded(factor: float) -> float:
    """One over a whole number where that is near: pictures are reduced so, and principal points are not in the very
    middle."""
    times = round(1 / factor)
    return 1 / times if times and abs(times * factor - 1) < 0.04 else factor


def _fit_lens(frame: Frame, pictures: list[Picture], i: int, notes: list[str], check_centre: bool) -> Lens:
    """The frame's lens in pixels of its image as it is."""
    lens, picture, where = frame.lens, pictures[i], frame.where

    def note_once(text: str) -> None:
        if text not in notes:
            notes.append(text)

    w, h = picture.width, picture.height
    for name, angle in (("camera_angle_x", lens.angle_x), ("camera_angle_y", lens.angle_y)):
        if math.isinf(angle) or (not math.isnan(angle) and not 0 < angle < math.pi):
            raise UserError(f"{where}: {name} is {angle}, expected radians between 0 and pi")
    if lens.model == EQUIRECTANGULAR:
        if abs(w - 2 * h) > max(2, 0.01 * w):
            note_once(f"{frame.name} is {w}x{h}: panoramas that show the whole sphere are twice as wide as high")
        return sphere(w, h)
    fx, fy = lens.fx, lens.fy
    stated_w, stated_h = lens.width or w, lens.height or h
    if math.isnan(fx) and not math.isnan(lens.angle_x):
        fx = 0.5 * stated_w / math.tan(0.5 * lens.angle_x)
    if math.isnan(fy) and not math.isnan(lens.angle_y):
        fy = 0.5 * stated_h / math.tan(0.5 * lens.angle_y)
    fx, fy = fy if math.isnan(fx) else fx, fx if math.isnan(fy) else fy
    for name, f in (("horizontal", fx), ("vertical", fy)):
        if not 0 < f < FARTHEST:
            raise UserError(f"{where}: the {name} focal length is {f}, expected pixels above zero")
    cx = 0.5 * stated_w if math.isnan(lens.cx) else lens.cx
    cy = 0.5 * stated_h if math.isnan(lens.cy) else lens.cy
    if not all(abs(value) < FARTHEST for value in (cx, cy, *lens.distortion)):
        raise UserError(f"{where}: the principal point or distortion is not finite, or far too large")
    if check_centre:
        _check_centre(replace(lens, cx=cx, cy=cy), (stated_w, stated_h), frame, notes)
    sx, sy = w / stated_w, h / stated_h
    if (sx, sy) != (1.0, 1.0):
        if abs(stated_w * sy - w) > max(2.0, 0.01 * w):
            raise UserError(
                f"{where}: the image is {w}x{h}, but its camera is stated for {stated_w}x{stated_h}, "
                "which is another aspect ratio: use the images that the poses were made from"
            )
        note_once(f"intrinsics stated for {stated_w}x{stated_h} were rescaled to images of {w}x{h}")
    if lens.model in AHEAD and max(w / fx, h / fy) * 0.5 > math.tan(math.radians(87.5)):
        raise UserError(
            f"{where}: focal length {fx:.4g} means a field of view near 180 degrees, which no perspective lens has"
        )
    return Lens(lens.model, fx * sx, fy * sy, cx * sx, cy * sy, w, h, lens.distortion)


def _check_sizes(frames: list[Frame], pictures: list[Picture]) -> None:
    """One focal length in pixels and no stated size can only be right for images of one size."""
    first = next((i for i, f in enumerate(frames) if not f.lens.width and not math.isnan(f.lens.fx)), None)
    for f, b in zip(frames, pictures, strict=True):
        if first is None or f.lens.width or repr(f.lens) != repr(frames[first].lens):
            continue
        a = pictures[first]
        if (a.width, a.height) != (b.width, b.height):
            raise UserError(
                f"{f.where}: the image is {b.width}x{b.height} and {frames[first].name} is {a.width}x{a.height}, but "
                "one focal length in pixels is stated for both: state w and h, or use images of one size"
            )


def check_lenses(cameras: Cameras, names: list[str], notes: list[str]) -> None:
    """Note where the distortion has no inverse at the picture's corners, so that rays there are approximate."""
    bad = []
    lens = (cameras.distortion != 0).any(dim=1) & (cameras.models != EQUIRECTANGULAR)
    for i in lens.nonzero()[:, 0].tolist():
        h, w = int(cameras.heights[i]), int(cameras.widths[i])
        rows, cols = torch.tensor([0.0, 0, h - 1, h - 1]), torch.tensor([0.0, w - 1, 0, w - 1])
        camera = cameras.subset([i])
        camera.c2w = camera.c2w * torch.tensor([1.0, 1, 1, 0])  # at the origin: worlds in a grid lie far from it
        _, direction = camera.rays(torch.zeros(4, dtype=torch.int64), rows, cols)
        uv, _ = camera.project(direction.double())
        if not bool(((uv[0] - torch.stack([cols, rows], dim=1) - 0.5).abs() < 0.5).all()):
            bad.append(names[i])
    if bad:
        notes.append(
            f"the distortion of {len(bad)} of {len(names)} cameras (the first is {bad[0]}) has no inverse at the "
            "corners of the picture: rays there are approximate, mask those pixels if it shows"
        )


def _split(frames: list[Frame], options: LoadOptions, notes: list[str]) -> dict[str, Tensor]:
    """The files' own split unless a hold-out is asked for, else every so-many-th image in order of names for testing
    (0: none)."""
    where: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    every, n = 8 if options.holdout is None else options.holdout, len(frames)
    if options.holdout is None and any(f.split in ("val", "test") for f in frames):
        for i, frame in enumerate(frames):
            where.get(frame.split or "train", where["train"]).append(i)
        counts = ", ".join(f"{len(v)} {k}" for k, v in where.items() if v)
        notes.append(f"the files' own split: {counts}")
        if not where["train"]:
            raise UserError(
                "the files put every image in val or test and none in train: load with holdout=0 to train on all of "
                "them, or with holdout=8 to hold every 8th out (--holdout)"
            )
    elif options.holdout is None and n < options.holdout_from:
        where["train"] = list(range(n))
        notes.append(
            f"all {n} images are trained on, none is held out, for they are fewer than {options.holdout_from} "
            "(--holdout 8 holds every 8th out)"
        )
    else:
        for rank, i in enumerate(sorted(range(n), key=lambda i: frames[i].name)):
            where["test" if every > 0 and rank % every == 0 else "train"].append(i)
        held_out = f"held out for testing: every {every}th of the {n} images in order of names"
        notes.append(held_out if every > 0 else "no image is held out")
        if not where["train"]:
            raise UserError(f"holdout {every} leaves no image to train on: choose 0 or a number from 2 up")
    return {k: torch.tensor(sorted(v), dtype=torch.int64) for k, v in where.items()}
