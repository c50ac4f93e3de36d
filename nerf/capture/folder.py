"""The data set's folder while it is being made: what it is made from, and what of an earlier call is used again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from nerf.capture.photos import FEWEST, Photo, Photos
from nerf.capture.prepare import write_photo
from nerf.capture.video import take_frames, video_fingerprint
from nerf.errors import UserError, brief
from nerf.io.files import write_file
from nerf.io.folders import make_folder
from nerf.io.progress import progress

STATE = "capture/state.json"


def open_folder(folder: Path, source: Path, overwrite: bool) -> dict[str, Any] | None:
    """Make the folder; the state that an earlier call left there, or None. Nothing of others is touched."""
    state = folder / STATE
    if folder.is_dir() and any(folder.iterdir()) and not state.is_file():
        raise UserError(f"{folder} is not empty and was not made by nerf poses: choose a new folder with -o")
    before = None
    if state.is_file():
        try:
            before = json.loads(state.read_text(encoding="utf-8"))
            if not isinstance(before, dict) or before.get("format") != "nerf-capture":
                raise ValueError
        except ValueError:
            raise UserError(f"{state}: cannot be understood; remove {folder} or choose another -o") from None
        if before["source"] != str(source.resolve()):
            if not overwrite:
                raise UserError(
                    f"{folder} holds the poses of {before['source']}: choose another -o, or give --overwrite to "
                    "replace them"
                )
            forget(folder, images=True)
            before = None
    make_folder(folder)
    for name in ("images", "capture"):
        make_folder(folder / name)
    if before is None:  # from here on the folder is known as ours, whatever interrupts
        write_state(folder, {"format": "nerf-capture", "version": 1, "source": str(source.resolve())})
    return before if before and "photos" in before else None


def frames_of(folder: Path, source: Path, frames: int | None, before: dict[str, Any] | None) -> Photos:
    """Frames of the video as photos; those of before when it is the same."""
    images = folder / "images"
    same = before is not None and before["frames"] == frames and before["video"] == video_fingerprint(source)
    if same and before is not None and all((images / name).is_file() for name in before["photos"]):
        w, h = before["size"]
        listed = [Photo(images / name, name, w, h, 1, (w, h), None, "", of) for name, of in before["photos"].items()]
        return Photos(listed, notes=[f"{len(listed)} frames of the video are there already"], is_video=True)
    forget(folder, images=True)
    return take_frames(source, folder, frames)


def write_photos(photos: Photos, folder: Path, before: dict[str, Any] | None) -> None:
    """images/ and masks/; a photo whose pixels are damaged is left out. What is there of the same photos is kept."""
    was = {} if before is None else before["photos"]
    same = {photo.name for photo in photos.photos if was.get(photo.name) == photo.fingerprint}
    for path in (folder / "images").iterdir():
        if path.name not in same:
            path.unlink()
    shutil.rmtree(folder / "masks", ignore_errors=True)  # cheap to write again, and they may have changed
    if any(photo.mask for photo in photos.photos):
        (folder / "masks").mkdir()
    good = []
    for photo in progress(photos.photos, "preparing photos"):
        try:
            write_photo(photo, folder)
            good.append(photo)
        except UserError:
            raise
        except Exception as error:  # what damaged pictures make Pillow raise
            photos.left_out[photo.source.name] = f"damaged ({brief(error)})"
    photos.photos = good
    if len(good) < FEWEST:
        raise UserError(f"{len(good)} photos can be used, at least {FEWEST} are needed; the others are damaged")


def state_of(photos: Photos, source: Path, frames: int | None, matching: str, longest: int) -> dict[str, Any]:
    """What decides whether work of before can be used again."""
    return {
        "format": "nerf-capture",
        "version": 1,
        "source": str(source.resolve()),
        "photos": {p.name: p.fingerprint for p in photos.photos},
        "masks": {p.name: hashlib.sha1(p.mask.read_bytes()).hexdigest() for p in photos.photos if p.mask is not None},
        "frames": frames,
        "video": video_fingerprint(source) if photos.is_video else None,
        "size": [photos.photos[0].width, photos.photos[0].height],
        "matching": matching,
        "longest": longest,
    }


def identity(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if k not in ("source", "version")}


def write_state(folder: Path, state: dict[str, Any]) -> None:
    write_file(folder / STATE, json.dumps(state, indent=1))


def forget(folder: Path, images: bool = False) -> None:
    """Remove what an earlier call found, and its pictures too if asked; only what this module writes goes. The state
    stays until another is written: by it the folder is known as ours, whatever interrupts."""
    for name in ("transforms.json", "poses.json", "coverage.png", "sparse_pc.ply"):
        (folder / name).unlink(missing_ok=True)
    if (folder / "capture").is_dir():
        for path in (folder / "capture").iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path != folder / STATE:
                path.unlink(missing_ok=True)
    for name in ("sparse", *(("images", "masks") if images else ())):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("capture", "images"):
        (folder / name).mkdir(exist_ok=True)
