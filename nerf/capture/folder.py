"""The data set's folder while it is being made: what it is made from, and what of an earlier call is used again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from nerf.capture.panoramas import is_panorama
from nerf.capture.photos import FEWEST, Photo, Photos
from nerf.capture.prepare import write_photo
from nerf.capture.video import take_frames, video_fingerprint
from nerf.errors import Range, UserError, brief, check_numbers, note
from nerf.io.files import write_file
from nerf.io.folders import make_folder
from nerf.io.json_text import parse_json
from nerf.io.opening import opened
from nerf.io.outputs import OutputFolder, is_inside, read_record
from nerf.io.progress import progress

STATE = "capture/state.json"
PICTURES = ("images/", "masks/")


# What is made in the folder, beside the pictures in images/ and masks/; capture/ is wholly ours.
MADE = ("transforms.json", "poses.json", "coverage.png", "sparse_pc.ply", "sparse/0/", "sparse/.0.new/")


def open_folder(
    path: Path, source: Path, overwrite: bool, photos: Photos | None = None
) -> tuple[OutputFolder, dict[str, Any] | None]:
    """Make the folder; and the state that an earlier call left there, or None. Nothing of others is touched. photos:
    those of the source, unless it is a video."""
    before = _read_state(path)
    if before is not None and before["source"] != str(source.resolve()) and _has_moved(before, source, photos):
        note(f"{source} holds what was in {before['source']}: going on with it")
        before["source"] = str(source.resolve())
    of_older = [*MADE, "capture/"] if before is not None else []
    if before is not None:  # before nerf.json there was no list; these are the names that were given
        of_older += [f"images/{name}" for name in before.get("photos", ())]
        of_older += [f"masks/{name}.png" for name in before.get("masks", ())]
        if before["source"] != str(source.resolve()) and not overwrite:
            raise UserError(
                f"{path} holds the poses of {before['source']}: choose another -o, or give --overwrite to replace them"
            )
    ours = before is not None or read_record(path) is not None
    names = (*MADE, "capture/")
    folder = OutputFolder.open(path, "dataset", ours, overwrite and not ours, names, of_older)
    folder.claim(*names)
    if before is not None and before["source"] != str(source.resolve()):
        forget(folder, images=True)
        before = None
    for name in ("images", "capture"):
        make_folder(path / name)
    if before is None:
        write_state(path, {"format": "nerf-capture", "version": 1, "source": str(source.resolve())})
    return folder, before if before and "photos" in before else None


def _has_moved(before: dict[str, Any], source: Path, photos: Photos | None) -> bool:
    """Whether all that the state of an earlier call was made from lies there now, by name and content."""
    if photos is None:
        return source.is_file() and before.get("video") == video_fingerprint(source)
    given = {photo.name: photo.fingerprint for photo in photos.photos}
    return bool(before.get("photos")) and before["photos"].items() <= given.items()


def _read_state(folder: Path) -> dict[str, Any] | None:
    file = folder / STATE
    if not file.is_file():
        return None
    try:
        state = parse_json(file.read_bytes())
        if state["format"] != "nerf-capture" or not isinstance(state["source"], str):
            raise ValueError
        names = {key: state.get(key, {}) for key in ("photos", "masks")}
        if not all(isinstance(found, dict) and all(map(is_inside, found)) for found in names.values()):
            raise ValueError
        if "photos" in state:
            check_numbers(dict(zip("wh", state["size"], strict=True)), dict.fromkeys("wh", Range(1, 1e9, whole=True)))
            if not {"frames", "video"} <= state.keys():
                raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file}: cannot be understood; remove {folder} or choose another -o") from None
    return dict(state)


def frames_of(folder: OutputFolder, source: Path, frames: int | None, before: dict[str, Any] | None) -> Photos:
    """Frames of the video as photos, of a 360-degree camera as panoramas; those of before when it is the same."""
    photos = _frames_of(folder, source, frames, before)
    with opened(photos.photos[0].source) as image:
        spherical = is_panorama(image) is True
    for photo in photos.photos:
        photo.panorama = spherical
    return photos


def _frames_of(folder: OutputFolder, source: Path, frames: int | None, before: dict[str, Any] | None) -> Photos:
    images = folder.path / "images"
    same = before is not None and before["frames"] == frames and before["video"] == video_fingerprint(source)
    if same and before is not None and all((images / name).is_file() for name in before["photos"]):
        w, h = before["size"]
        listed = [Photo(images / name, name, w, h, 1, (w, h), None, "", of) for name, of in before["photos"].items()]
        return Photos(listed, notes=[f"{len(listed)} frames of the video are there already"], is_video=True)
    forget(folder, images=True)
    return take_frames(source, folder, frames)


def write_photos(photos: Photos, folder: OutputFolder, before: dict[str, Any] | None) -> None:
    """images/ and masks/; a photo whose pixels are damaged is left out. What is there of the same photos is kept."""
    was = {} if before is None else before["photos"]
    same = {f"images/{photo.name}" for photo in photos.photos if was.get(photo.name) == photo.fingerprint}
    # masks are cheap to write again, and they may have changed
    folder.clear([name for name in folder.listed() if not name.startswith(PICTURES) or name in same], say=False)
    masked = [photo for photo in photos.photos if photo.mask]
    folder.claim(*(f"images/{photo.name}" for photo in photos.photos), *(f"masks/{p.name}.png" for p in masked))
    for place in ("images", *(["masks"] if masked else [])):
        make_folder(folder.path / place)
    good = []
    for photo in progress(photos.photos, "preparing photos"):
        try:
            write_photo(photo, folder.path)
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


def forget(folder: OutputFolder, images: bool = False) -> None:
    """Remove what an earlier call found, and its pictures too if asked. The state stays until another is written."""
    kept = ["capture/", *(name for name in folder.listed() if not images and name.startswith(PICTURES))]
    folder.clear(kept, say=False)
    folder.claim(*MADE)
    for path in (folder.path / "capture").glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path != folder.path / STATE:
            path.unlink(missing_ok=True)
    for name in ("capture", "images"):
        (folder.path / name).mkdir(exist_ok=True)
