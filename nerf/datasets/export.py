"""Cameras to files that other programs read: transforms.json (nerfstudio, instant-ngp), and COLMAP models.

Poses and points stay in their world. A transforms.json holds OpenGL cameras; COLMAP has OpenCV ones (y down,
z ahead) from the world. Lenses keep their distortion; numbers are written with all their digits.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.datasets.colmap_models import COLMAP_MODELS, FISHEYE624_ORDER, NATURAL_NAMES
from nerf.datasets.named import home_of, is_inside
from nerf.errors import UserError, note
from nerf.geometry.cameras import Cameras
from nerf.geometry.geodesy import Georeference
from nerf.geometry.lenses import COEFFICIENTS, EQUIRECTANGULAR, FISHEYE624, OPENCV, PERSPECTIVE, padded
from nerf.geometry.rotations import matrix_to_quaternion
from nerf.io.files import write_file
from nerf.io.ply import Columns, ply

# by which of COLMAP's names each of our models goes: the last one with two focal lengths, but OPENCV_FISHEYE
_NAMES = {model: name for name, (_, model, order) in COLMAP_MODELS.items() if not order.startswith("f ")}
_NAMES |= {COLMAP_MODELS["OPENCV_FISHEYE"][1]: "OPENCV_FISHEYE"}


@dataclass
class PosedFiles:
    """n cameras in the full pixels of their images, and where those lie."""

    cameras: Cameras
    files: list[Path]
    splits: dict[str, Tensor]  # "train", "val", "test" -> indices
    masks: Sequence[Path | None] = ()  # () or one for each image
    points: Tensor | None = None  # [m,3] float64, world
    georeference: Georeference | None = None  # where the world stands on the earth


def transforms_json(posed: PosedFiles, home: Path, link: Path | None = None) -> dict[str, Any]:
    """What a transforms.json in the folder `home` holds: intrinsics for all where they agree, else frame by frame.
    link: in `home`, to a folder with the files, by which they are named."""
    cameras = posed.cameras
    lenses = [_intrinsics(cameras, i) for i in range(len(cameras))]
    common = {k: v for k, v in lenses[0].items() if all(lens.get(k) == v for lens in lenses)}
    names = [_relative(f, home, link) for f in posed.files]
    frames = []
    for i, lens in enumerate(lenses):
        frame: dict[str, Any] = {"file_path": names[i]}
        if posed.masks and (mask := posed.masks[i]) is not None:
            frame["mask_path"] = _relative(mask, home, link)
        frame |= {k: v for k, v in lens.items() if k not in common}
        frame["transform_matrix"] = [*cameras.c2w[i].double().tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append(frame)
    held_out = any(len(posed.splits.get(s, ())) for s in ("val", "test"))
    lists = {f"{s}_filenames": [names[int(i)] for i in ids] for s, ids in posed.splits.items()} if held_out else {}
    placed = {} if posed.georeference is None else {"georeference": posed.georeference.to_dict()}
    return placed | common | lists | {"frames": frames}


def write_transforms(posed: PosedFiles, file: Path, cloud: str = "") -> None:
    """Write FILE.json; a link FILE_images to photos that lie far from it, where `load` would not look for them; and,
    where there are sparse points, FILE.ply beside it, or name a cloud that is there already."""
    content = transforms_json(posed, file.parent, _linked(posed, file))
    if posed.points is not None and len(posed.points):
        cloud = file.with_suffix(".ply").name
        write_file(file.with_name(cloud), ply([Columns("double", "x y z", posed.points.numpy())]))
    if cloud:
        content = {"ply_file_path": cloud} | content
    write_file(file, json.dumps(content, indent=1) + "\n")


def _intrinsics(cameras: Cameras, i: int) -> dict[str, Any]:
    model, w, h = (int(t[i]) for t in (cameras.models, cameras.widths, cameras.heights))
    lens: dict[str, Any] = {"camera_model": "FISHEYE624" if model == FISHEYE624 else _NAMES[model], "w": w, "h": h}
    if model == EQUIRECTANGULAR:  # as nerfstudio has it: u = cx + fl_x longitude / pi, v = cy - fl_y latitude / pi
        return lens | {"fl_x": w / 2, "fl_y": float(h), "cx": w / 2, "cy": h / 2}
    lens |= {"fl_x": float(cameras.fx[i]), "fl_y": float(cameras.fy[i])}
    lens |= {"cx": float(cameras.cx[i]), "cy": float(cameras.cy[i])}
    k = dict(zip(COEFFICIENTS, padded(cameras.distortion[i]).tolist(), strict=True))
    if model == FISHEYE624:
        lens["distortion_params"] = [k.pop(name) for name in FISHEYE624_ORDER]
        return lens | {name: value for name, value in k.items() if value}
    names = NATURAL_NAMES.get(model, {})
    kept = () if model == PERSPECTIVE else COEFFICIENTS[: 2 if names else 6]
    return lens | {names.get(name, name): value for name, value in k.items() if name in kept or value}


def _linked(posed: PosedFiles, file: Path) -> Path | None:
    """A link beside the file to the folder of all photos and masks; None where they lie near it, or nothing can be
    linked."""
    files = [*posed.files, *filter(None, posed.masks)]
    if all(is_inside(f.resolve(), home_of(file.parent)) for f in files):  # names are written with links followed
        return None
    root, link = Path(os.path.commonpath([f.resolve().parent for f in files])), file.with_name(f"{file.stem}_images")
    if link.is_symlink() and link.resolve() == root:
        return link
    try:
        if root != root.parent:
            link.symlink_to(root, target_is_directory=True)
            return link
    except OSError:  # something is there, or a disk without links
        pass
    note(f"the photos lie outside {file.parent}: nerf reads {file.name} once they, or a link to them, are beside it")
    return None


def _relative(path: Path, home: Path, link: Path | None = None) -> str:
    if link is not None:
        return f"{link.name}/{path.resolve().relative_to(link.resolve()).as_posix()}"
    try:
        return Path(os.path.relpath(path.resolve(), home.resolve())).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()


# ---- COLMAP


_Lens = tuple[str, int, int, tuple[float, ...]]  # model, width, height, parameters


@dataclass
class _ColmapModel:
    lenses: list[_Lens]
    lens_of: list[int]
    poses: np.ndarray  # [n,7] quaternion (w, x, y, z) and translation, world to OpenCV camera
    names: list[str]
    points: np.ndarray  # [m,3]


def write_colmap(posed: PosedFiles, folder: Path, image_root: Path, text: bool = False) -> None:
    """Write cameras, images and points3D, .bin or .txt, into the folder; names of images are relative to image_root.
    Cameras with the same lens share one; images carry no 2-D points and points no tracks."""
    cameras = posed.cameras
    lenses = [_colmap_lens(cameras, i, posed.files[i].name) for i in range(len(cameras))]
    distinct = list(dict.fromkeys(lenses))
    camera_from_world = cameras.opencv_axes.double().transpose(1, 2)
    shifts = -(camera_from_world @ cameras.centres.double()[:, :, None])[:, :, 0]
    poses = torch.cat([matrix_to_quaternion(camera_from_world), shifts], dim=1).numpy()
    names = [_relative(f, image_root) for f in posed.files]
    if text and (broken := [name for name in names if name.splitlines() != [name]]):
        raise UserError(f"a COLMAP model as text cannot name {broken[0]!r}, for its line break: leave out --text")
    points = np.zeros((0, 3)) if posed.points is None else posed.points.double().numpy()
    number = {lens: i for i, lens in enumerate(distinct)}
    model = _ColmapModel(distinct, [number[lens] for lens in lenses], poses, names, points)
    files = _as_text(model) if text else _as_binary(model)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_file(folder / name, data)


def _colmap_lens(cameras: Cameras, i: int, name: str) -> _Lens:
    values = {k: float(getattr(cameras, k)[i]) for k in ("fx", "fy", "cx", "cy")}
    k = dict(zip(COEFFICIENTS, padded(cameras.distortion[i]).tolist(), strict=True))
    model, size = int(cameras.models[i]), (int(cameras.widths[i]), int(cameras.heights[i]))
    if model == EQUIRECTANGULAR:
        return "EQUIRECTANGULAR", *size, (float(size[0]), float(size[1]))
    known = "FULL_OPENCV" if model == OPENCV and k["k3"] else _NAMES[model]
    order = COLMAP_MODELS[known][2].split()
    beyond = [
        n for n, value in k.items() if value and (n not in order or (model == OPENCV and n in ("k4", "k5", "k6")))
    ]
    if beyond:
        what = "k4 (r^8)" if beyond[0] == "k4" else beyond[0]
        raise UserError(
            f"{name}: its lens has a {what}, which no camera model of COLMAP has: write a transforms.json instead"
        )
    values |= k
    return known, *size, tuple(values[n] for n in order)


def _as_text(model: _ColmapModel) -> dict[str, bytes]:
    def row(*values: Any) -> str:
        return " ".join(repr(float(v)) if isinstance(v, float) else str(v) for v in values)

    cameras = [f"# Number of cameras: {len(model.lenses)}"]
    cameras += [row(k + 1, m, w, h, *map(float, p)) for k, (m, w, h, p) in enumerate(model.lenses)]
    images = [f"# Number of images: {len(model.names)}, mean observations per image: 0"]
    for i, name in enumerate(model.names):
        images += [row(i + 1, *map(float, model.poses[i]), model.lens_of[i] + 1, name), ""]
    points = [f"# Number of points: {len(model.points)}, mean track length: 0"]
    points += [row(k + 1, *map(float, p), 128, 128, 128, 0.0) for k, p in enumerate(model.points)]
    parts = {"cameras.txt": cameras, "images.txt": images, "points3D.txt": points}
    return {name: os.fsencode("\n".join(lines) + "\n") for name, lines in parts.items()}


def _as_binary(model: _ColmapModel) -> dict[str, bytes]:
    cameras = struct.pack("<Q", len(model.lenses))
    for k, (name, w, h, p) in enumerate(model.lenses, 1):
        cameras += struct.pack(f"<IiQQ{len(p)}d", k, COLMAP_MODELS[name][0], w, h, *p)
    images = struct.pack("<Q", len(model.names))
    for i, (name, pose, lens) in enumerate(zip(model.names, model.poses, model.lens_of, strict=True), 1):
        images += struct.pack("<I7dI", i, *pose, lens + 1) + os.fsencode(name) + struct.pack("<BQ", 0, 0)
    columns = [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")]
    table = np.zeros(len(model.points), columns)
    table["id"], table["xyz"], table["rgb"] = np.arange(1, len(table) + 1), model.points, 128
    points = struct.pack("<Q", len(table)) + table.tobytes()
    return {"cameras.bin": cameras, "images.bin": images, "points3D.bin": points}
