"""The files of a COLMAP model on their way into pycolmap: lengths compared, text cleaned, names in any encoding."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

from nerf.errors import UserError
from nerf.io.text import decode_text, lines_of

_FILES = ("cameras", "images", "points3D", "rigs", "frames")


def suffix_of(model: Path) -> str | None:
    """.bin or .txt, of which the folder holds cameras and images of a model; else None."""
    both = (s for s in (".bin", ".txt") if all((model / f"{name}{s}").is_file() for name in ("images", "cameras")))
    return next(both, None)


def read_model(path: Path, notes: list[str]) -> Any:
    """pycolmap.Reconstruction of a folder; raises whatever pycolmap does, and UserError."""
    import pycolmap

    model = pycolmap.Reconstruction()
    if suffix_of(path) == ".bin":
        names = _check_binary(path)
        model.read_binary(str(path))
    else:
        with tempfile.TemporaryDirectory(prefix="nerf-colmap-") as place:
            names = _clean(path, Path(place), notes)
            model.read_text(place)
        _check_text(path, model)
    for number, image in model.images.items():
        image.name = names.get(number, f"image {number}")
    return model


# ---- text


def _clean(model: Path, into: Path, notes: list[str]) -> dict[int, str]:
    """Write the text files as COLMAP reads them, without the names of images, which are returned by their ids."""
    names: dict[int, str] = {}
    for name in _FILES:
        file = model / f"{name}.txt"
        lines = lines_of(file.read_bytes()) if file.is_file() else []
        if name == "images":
            lines = _images(lines, file, names, notes)
        if lines or name == "points3D":  # poses made by hand often come without points
            (into / file.name).write_text("\n".join([*lines, ""]), encoding="utf-8")
    return names


def _images(lines: list[str], file: Path, names: dict[int, str], notes: list[str]) -> list[str]:
    """Two lines for each image: its pose, with "-" for its name, and its 2-D points; the latter are often left out
    where somebody wrote the file."""
    clean: list[str] = []
    place, without = 0, []
    while place < len(lines):
        line = lines[place].strip()
        place += 1
        if not line or line.startswith("#"):
            clean += [line] if line else []
            continue
        if (words := _header(line)) is None:
            what = "is the empty line after each image missing?" if _are_points(line) or not clean else "it is cut off"
            raise UserError(
                f"{file}: line {place} is no image (expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME): {what}"
            )
        names[int(words[0])] = words[9]
        points = lines[place].strip() if place < len(lines) else ""
        if points.startswith("#") or (not _are_points(points) and _header(points)):
            without.append(place + 1)
            points = ""
        elif not _are_points(points):
            raise UserError(
                f"{file}: line {place + 1} is no list of 2-D points (x y id): the line after each image holds them, "
                "or is empty; the file is damaged, write it again"
            )
        else:
            place += 1
        clean += [" ".join([*words[:9], f"{words[0]}.png"]), points]
    if without:
        notes.append(
            f"{file.name}: the empty line after each image is missing (line {without[0]} is an image and no list of "
            f"2-D points x y id; {len(without)} such): taken as if it were there"
        )
    return clean


def _header(line: str) -> list[str] | None:
    """The ten parts of an image's line, of which the last is all the rest: names may hold blanks."""
    words = line.split(None, 9)
    return words if len(words) == 10 and words[0].isdigit() and words[8].isdigit() and _numbers(words[1:8]) else None


def _are_points(line: str) -> bool:
    words = line.split()
    return len(words) % 3 == 0 and _numbers(words[:12])  # a look at the first few will do


def _numbers(words: list[str]) -> bool:
    try:
        return all(map(float, words)) or True
    except ValueError:
        return False


def _check_text(path: Path, model: Any) -> None:
    """Compare with the counts that COLMAP writes into the comments of its text files."""
    counts = {"cameras": model.num_cameras(), "images": len(model.images), "points3D": model.num_points3D()}
    for name, got in counts.items():
        file = path / f"{name}.txt"
        for line in lines_of(file.read_bytes())[:6] if file.is_file() else []:
            words = line.replace(",", " ").replace(":", " ").split()
            if line.startswith("#") and "Number" in words and "of" in words:
                stated = next((int(w) for w in words[words.index("of") + 2 :] if w.isdigit() and len(w) < 19), got)
                if stated != got:
                    raise UserError(
                        f"{file}: announces {stated} {name} and holds {got}: the file is cut off, write it again"
                    )


# ---- binary


def _check_binary(model: Path) -> dict[int, str]:
    """Walk the records and compare with the files' lengths: COLMAP's own reader hangs on a file that was cut off.
    Returns the images' names by their ids."""
    import pycolmap

    n_params = {
        int(model_id.value): len(pycolmap.Camera.create_from_model_name(1, name, 1.0, 1, 1).params)
        for name, model_id in pycolmap.CameraModelId.__members__.items()
        if name != "INVALID"
    }
    names: dict[int, str] = {}
    if not (model / "points3D.bin").is_file():
        raise UserError(f"{model}: points3D.bin is missing: copy the whole COLMAP model")
    for name in _FILES:
        file = model / f"{name}.bin"
        if not file.is_file():
            continue
        data = file.read_bytes()
        try:
            end = _walk(name, data, n_params, names)
        except (struct.error, ValueError, KeyError, IndexError):
            end = len(data) + 1
        if end != len(data):
            raise UserError(
                f"{file}: the file is cut off or damaged ({len(data)} bytes do not hold what it announces): "
                "write it again"
            )
    return names


def _walk(name: str, data: bytes, n_params: dict[int, int], names: dict[int, str]) -> int:
    """Where the last record ends; raises where a record does not fit."""
    (count,) = struct.unpack_from("<Q", data, 0)
    at = 8
    if count * 8 > len(data):
        raise ValueError
    for _ in range(count):
        if name == "cameras":
            at += 24 + 8 * n_params[struct.unpack_from("<i", data, at + 4)[0]]
        elif name == "images":
            end = data.index(b"\0", at + 64)
            names[struct.unpack_from("<I", data, at)[0]] = decode_text(data[at + 64 : end])
            at = end + 9 + 24 * struct.unpack_from("<Q", data, end + 1)[0]
        elif name == "points3D":
            at += 51 + 8 * struct.unpack_from("<Q", data, at + 43)[0]
        elif name == "rigs":  # id, number of sensors, the first's type and id; of others also whether a pose follows
            n_sensors = struct.unpack_from("<I", data, at + 4)[0]
            at += 16 if n_sensors else 8
            for _ in range(1, n_sensors):
                at += 9 + 56 * (data[at + 8] != 0)
        else:  # frames: id, rig id, pose, then sensor and data ids
            at += 68 + 16 * struct.unpack_from("<I", data, at + 64)[0]
        if at > len(data):
            raise ValueError
    return at
