"""Readers of JSON poses: Blender (transforms_train.json), instant-ngp and nerfstudio (transforms.json)."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from nerf.datasets.colmap_models import COLMAP_MODELS, FISHEYE624_ORDER, NATURAL_NAMES, coefficients
from nerf.datasets.depths import DepthMap
from nerf.datasets.named import home_of, is_inside, keyed, match_names, pictures_in, search_named
from nerf.datasets.parsed import Frame, Lens, ParsedScene
from nerf.datasets.readers import colmap, reader
from nerf.errors import MISFITS, UserError, brief
from nerf.geometry.geodesy import Georeference
from nerf.geometry.lenses import COEFFICIENTS, EQUIRECTANGULAR, FISHEYE, FISHEYE624, OPENCV, PERSPECTIVE, RATIONAL
from nerf.geometry.mesh_files import load_mesh_file
from nerf.geometry.space import Similarity
from nerf.io.images import IMAGE_SUFFIXES, read_header
from nerf.io.json_text import parse_json as parse_json_text
from nerf.io.text import decode_text

_SPLITS = ("train", "val", "test")
_CAMERA_MODELS = {name: model for name, (_, model, _) in COLMAP_MODELS.items()}
_CAMERA_MODELS |= {"": PERSPECTIVE, "PERSPECTIVE": PERSPECTIVE, "FISHEYE624": FISHEYE624}  # Blender's, nerfstudio's


@reader("blender", tells="transforms_train.json", help="transforms_train.json (Blender)")
def read_blender(file: Path) -> ParsedScene:
    """transforms_train.json with, where they are there, transforms_val.json and transforms_test.json."""
    folder = file.parent
    files = ((split, folder / f"transforms_{split}.json") for split in _SPLITS)
    notes: list[str] = []
    frames = [frame for split, f in files if f.is_file() for frame in _frames(f, read_json(f), split, notes)]
    if not any(f.split == "train" for f in frames):
        raise UserError(f"{folder}: transforms_train.json names no frame, so there is nothing to train on")
    return ParsedScene("blender", folder, frames, notes, objects=True)


def is_list(file: Path) -> bool:
    """Whether a JSON file holds a list, as OpenSfM writes it, and no object with frames."""
    with open(file, "rb") as f:
        return decode_text(f.read(64)).lstrip().startswith("[")


@reader(
    "transforms",
    tells="transforms.json",
    help="transforms.json (instant-ngp, nerfstudio)",
    file=lambda path: path.suffix.lower() == ".json" and not is_list(path),
)
def read_transforms(file: Path) -> ParsedScene:
    """transforms.json as instant-ngp or nerfstudio write it."""
    data = read_json(file)
    notes: list[str] = []
    frames = _frames(file, data, None, notes)
    if not frames:
        raise UserError(f"{file}: names no frame, so there is nothing to train on")
    parsed = ParsedScene("transforms", file.parent, frames, notes)
    _apply_lists(parsed, data, file)
    _apply_region(parsed, data, file)
    if data.get("georeference") is not None:
        parsed.georeference = Georeference.from_dict(data["georeference"], f"{file}: georeference")
    if "applied_transform" in data or "applied_scale" in data:
        parsed.notes.append(
            f"{file.name} says that its poses were moved from another frame (applied_transform, applied_scale): "
            "they are used as they stand, and meshes and cameras are written in that same frame"
        )
    try:  # from the frame of the COLMAP model to that of the poses, where nerfstudio moved them
        moved = np.array(data.get("applied_transform", np.eye(4)[:3]), dtype=np.float64)[:3]
        applied = moved * float(data.get("applied_scale", 1.0)) if moved.shape == (3, 4) else None
    except MISFITS:
        applied = None
    colmap.beside(file.parent, frames, applied, parsed.notes)
    if isinstance(data.get("ply_file_path"), str):
        cloud = file.parent / data["ply_file_path"]
        if not is_inside(cloud, home_of(file.parent)):
            raise UserError(
                f"{file}: ply_file_path {data['ply_file_path']} leads out of its folder: copy the file there"
            )
        _apply_points(parsed, cloud)
    return parsed


def _apply_lists(parsed: ParsedScene, data: dict[str, Any], file: Path) -> None:
    """nerfstudio's train_filenames, val_filenames, test_filenames: frames in none of the lists are left out."""
    lists = {split: data[f"{split}_filenames"] for split in _SPLITS if f"{split}_filenames" in data}
    if not lists:
        return
    for split, names in lists.items():
        if not isinstance(names, list):
            raise UserError(f"{file}: {split}_filenames must be a list of file paths")
    split_of = {str(name).removeprefix("./"): split for split, names in lists.items() for name in names}
    if unknown := sorted(split_of.keys() - {f.name for f in parsed.frames}):
        raise UserError(f"{file}: its lists name {unknown[0]!r} ({len(unknown)} such), which is no frame's file_path")
    for frame in parsed.frames:
        frame.split = split_of.get(frame.name)
    if unlisted := [f.name for f in parsed.frames if f.split is None]:
        parsed.notes.append(
            f"left out {len(unlisted)} frames that are in none of the file's lists, the first {unlisted[0]}"
        )
    parsed.frames = [f for f in parsed.frames if f.split is not None]


def _apply_region(parsed: ParsedScene, data: dict[str, Any], file: Path) -> None:
    """instant-ngp: x * scale + offset puts the object into [0,1]^3; aabb_scale says how far beyond to look."""
    if not any(key in data for key in ("aabb_scale", "scale", "offset")):
        return
    try:
        scale, aabb = float(data.get("scale", 0.33)), float(data.get("aabb_scale", 1))
        offset = np.broadcast_to(np.array(data.get("offset", 0.5), dtype=np.float64), (3,))
    except (ValueError, TypeError) as e:
        raise UserError(f"{file}: scale, offset and aabb_scale must be numbers (offset: three of them)") from e
    if not (scale > 0 and aabb > 0 and math.isfinite(scale * aabb) and np.isfinite(offset).all()):
        raise UserError(
            f"{file}: scale {scale:g}, offset {offset.tolist()} and aabb_scale {aabb:g} must be finite and above zero"
        )
    parsed.extent = 0.5 * aabb / scale
    if "scale" in data or "offset" in data or data.get("aabb_scale") == 1:
        parsed.region = Similarity.around(torch.from_numpy((0.5 - offset) / scale), 0.5 / scale)
    parsed.objects = data.get("aabb_scale") == 1


def _apply_points(parsed: ParsedScene, path: Path) -> None:
    """nerfstudio's sparse point cloud, in the frame of the poses."""
    try:
        cloud = load_mesh_file(path)
        points = np.asarray(getattr(cloud, "vertices", ()), dtype=np.float64).reshape(-1, 3)  # a file may hold none
    except Exception as e:
        parsed.notes.append(f"its point cloud {path.name} was not read ({type(e).__name__})")
        return
    parsed.points = points[np.isfinite(points).all(axis=1)]
    parsed.notes.append(f"{len(parsed.points)} sparse points from {path.name}")


def parse_json(file: Path) -> Any:
    """What a JSON file holds; UserError where it cannot be read."""
    try:
        return parse_json_text(file.read_bytes())
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise UserError(f"{file}: not valid JSON ({brief(e)}): the file is cut off or damaged, write it again") from e


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds; UserError where it cannot be read or holds something else."""
    data = parse_json(file)
    if not isinstance(data, dict):
        raise UserError(f"{file}: holds a {type(data).__name__}, expected an object with the key 'frames'")
    return data


def finite(value: Any, name: str, where: str) -> float:
    """A value out of a JSON file as a float; UserError where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: {name} is {value!r}, expected a finite number")
    return float(value)


def numbers(value: Any, otherwise: str) -> np.ndarray:
    """Nested lists as a float64 array; UserError(otherwise) where they are none of numbers."""
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise UserError(otherwise) from e


def _frames(file: Path, data: dict[str, Any], split: str | None, notes: list[str]) -> list[Frame]:
    if "frames" not in data:
        raise UserError(f"{file}: the key 'frames' is missing")
    if not isinstance(data["frames"], list) or not all(isinstance(f, dict) for f in data["frames"]):
        raise UserError(f"{file}: 'frames' must be a list of objects")
    frames: list[Frame] = []
    for number, entry in enumerate(data["frames"]):
        for key in ("file_path", "transform_matrix"):
            if key not in entry:
                raise UserError(f"{file}: frame {number} lacks the key '{key}'")
        name = str(entry["file_path"])
        where = f"{file.name}, frame {number} ({name})"
        path = _image_path(file, name, where)
        c2w = numbers(entry["transform_matrix"], f"{where}: transform_matrix is no matrix of numbers")
        frame = Frame(name.removeprefix("./"), path, c2w, _lens(data, entry, file, where), where, split)
        if entry.get("mask_path"):
            frame.mask = _image_path(file, str(entry["mask_path"]), where)
        frame.depth = _depth(data, entry, file, where)
        frames.append(frame)
    _find_elsewhere(file, frames, notes)
    return frames


def _find_elsewhere(file: Path, frames: list[Frame], notes: list[str]) -> None:
    """Pictures, masks and depth maps that are not where the file says. Those whose paths are of another machine, or all
    of them where none is there: by their names in images/ and the like, or below the file. The others: in the folder
    that is named, with another suffix, case or form of umlauts."""
    home = home_of(file.parent)
    lost = [f for f in frames if not _is_there(f.path, home)]
    anywhere = [f.name for f in lost if len(lost) == len(frames) or _is_foreign(f, home)]
    least = int(any(frame.split for frame in frames))  # train/r_0 is another picture than test/r_0
    found = search_named(file.parent, anywhere, file.name, folders=least)[0] if anywhere else {}
    around = {file.parent: "**/*"} | {f.path.parent: "*" for f in lost if is_inside(f.path.parent, home)}
    below = {picture: keys for place in around for picture, keys in keyed(pictures_in(place, around[place])).items()}
    rest = [f.name for f in lost if f.name not in found]
    found |= match_names(rest, below, file.name, folders=None) if rest else {}
    for frame in lost:
        if frame.name in found:
            reduced = found[frame.name].parent.name
            if re.fullmatch(r"images_\d+", reduced) and reduced not in PurePosixPath(frame.name).parts:
                _of_full_size(frame, found[frame.name], int(reduced[7:]))
            frame.path = found[frame.name]
    if found:
        notes.append(f"{file.name} names {len(found)} pictures as they lay elsewhere: they are taken by their names")
    _find_beside(file, frames, home)


def _of_full_size(frame: Frame, path: Path, factor: int) -> None:
    """State the size of the full picture, of which the path holds one reduced by the factor: the lens is of that."""
    if frame.lens.width or math.isnan(frame.lens.fx):
        return
    picture = read_header(path)
    size = [picture.width * factor, picture.height * factor]
    for k, centre in enumerate((frame.lens.cx, frame.lens.cy)):  # a reduced picture has lost less than a pixel
        if size[k] < 2 * centre < size[k] + factor:
            size[k] = round(2 * centre)
    frame.lens = replace(frame.lens, width=size[0], height=size[1])


def _find_beside(file: Path, frames: list[Frame], home: Path) -> None:
    """Masks and depth maps that are not where the file says: by their names in the last folder that is named."""
    masks = {str(f.mask): f for f in frames if isinstance(f.mask, Path) and not _is_there(f.mask, home)}
    depths = {
        str(f.depth.path): f for f in frames if isinstance(f.depth, DepthMap) and not _is_there(f.depth.path, home)
    }
    if masks or depths:
        below = keyed(pictures_in(file.parent, "**/*", (*IMAGE_SUFFIXES, ".npy")))
        for name, path in match_names(masks, below, file.name, folders=1).items():
            masks[name].mask = path
        for name, path in match_names(depths, below, file.name, folders=1).items():
            depths[name].depth = replace(depths[name].depth, path=path)  # type: ignore[type-var]


def _is_there(path: Path, home: Path) -> bool:
    return is_inside(path, home) and path.is_file()


def _is_foreign(frame: Frame, home: Path) -> bool:
    return PureWindowsPath(frame.name).is_absolute() or not is_inside(frame.path, home)


def _depth(data: dict[str, Any], entry: dict[str, Any], file: Path, where: str) -> DepthMap | None:
    """nerfstudio's depth_file_path, instant-ngp's depth_path; integers are millimetres unless a unit is stated."""
    name = entry.get("depth_file_path") or entry.get("depth_path")
    if not name:
        return None
    scale = data.get("depth_unit_scale_factor", data.get("integer_depth_scale"))
    if scale is not None and not (isinstance(scale, (int, float)) and math.isfinite(scale) and scale > 0):
        raise UserError(f"{where}: the unit of the depth maps is {scale!r}, expected a number above zero")
    return DepthMap(file.parent / str(name).replace("\\", "/"), None if scale is None else float(scale))


def _image_path(file: Path, name: str, where: str) -> Path:
    """The image a file_path means: as written, or with a suffix added; must look like an image before it is opened."""
    path = file.parent / name.replace("\\", "/")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path
    candidates = [path.parent / f"{path.name}{suffix}" for suffix in IMAGE_SUFFIXES]
    if (found := next(filter(Path.is_file, candidates), None)) is not None:
        return found
    if not path.resolve().is_relative_to(file.parent.resolve()):
        if not path.exists() and PureWindowsPath(name).is_absolute():  # of another machine
            return path.parent / f"{path.name}.png"
        raise UserError(f"{where}: the path {name!r} leads out of {file.parent} and names no image")
    if path.is_file():
        raise UserError(f"{where}: {name!r} is no image (expected a name ending in {', '.join(IMAGE_SUFFIXES)})")
    return path.parent / f"{path.name}.png"


def _lens(data: dict[str, Any], entry: dict[str, Any], file: Path, where: str) -> Lens:
    """Intrinsics of one frame; a frame's own values come before the file's."""

    def number(key: str, default: float = math.nan) -> float:
        value = entry.get(key, data.get(key))
        return default if value is None else finite(value, key, where)

    kind = str(entry.get("camera_model", data.get("camera_model", "")))
    if kind.upper() not in _CAMERA_MODELS:
        known = ", ".join(filter(None, _CAMERA_MODELS))
        raise UserError(f"{where}: camera_model {kind} is not supported (known: {known})")
    model = _CAMERA_MODELS[kind.upper()]
    w, h = int(number("w", 0)) or None, int(number("h", 0)) or None
    if model == EQUIRECTANGULAR:
        return Lens(model, width=w, height=h)
    if all(math.isnan(number(k)) for k in ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")):
        raise UserError(
            f"{file}: no focal length: expected fl_x or camera_angle_x in the file or in the frame ({where})"
        )
    k = _coefficients(data, entry, model, where)
    if model == RATIONAL and not any((*k[3:4], *k[6:8])):
        model = OPENCV
    if model in (PERSPECTIVE, OPENCV):
        fisheye = bool(entry.get("is_fisheye", data.get("is_fisheye", False)))  # instant-ngp's
        model = FISHEYE if fisheye else OPENCV if any(k) else PERSPECTIVE
    fx, fy = number("fl_x"), number("fl_y")
    angles = number("camera_angle_x"), number("camera_angle_y")
    return Lens(model, fx, fy, number("cx"), number("cy"), w, h, k, *angles)


def _coefficients(data: dict[str, Any], entry: dict[str, Any], model: int, where: str) -> tuple[float, ...]:
    """Distortion, by the coefficients' names or as nerfstudio's list distortion_params."""
    listed = entry.get("distortion_params", data.get("distortion_params"))
    order = FISHEYE624_ORDER if model == FISHEYE624 else COEFFICIENTS[:6]
    if listed is not None:
        if not isinstance(listed, list) or len(listed) != len(order):
            raise UserError(f"{where}: distortion_params must be a list of {len(order)} numbers: {', '.join(order)}")
        return coefficients({k: finite(v, "distortion_params", where) for k, v in zip(order, listed, strict=True)})
    names = {name: NATURAL_NAMES.get(model, {}).get(name, name) for name in COEFFICIENTS}
    values = {name: entry.get(key, data.get(key)) for name, key in names.items()}
    return coefficients({k: finite(v, names[k], where) for k, v in values.items() if v is not None})
