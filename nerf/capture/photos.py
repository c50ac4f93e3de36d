"""Which photos a folder holds: names, sizes, cameras; what cannot be used is named with its reason."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from nerf.capture.exif import read_exif
from nerf.capture.panoramas import is_panorama
from nerf.datasets.named import find_mask
from nerf.errors import UserError, brief, printable
from nerf.io.opening import opened
from nerf.io.outputs import read_record

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".heic", ".heif", ".tif", ".tiff", ".webp", ".bmp")
HEIF = (".heic", ".heif")
PLACES = ("images", "input", "photos", "rgb")  # where photos of a project are usually kept
SMALLEST = 200  # pixels on the longer side: below that there is too little to recognise
THUMBNAIL = 0.3  # of the median of the longer sides
FEWEST = 3  # photos; two fix no scale of a third, and leave nothing to check the poses with


@dataclass
class Photo:
    """One photo that will be used, upright."""

    source: Path
    name: str  # file name in the data set's images/
    width: int  # upright, as is height
    height: int
    orientation: int  # EXIF, of the source as stored
    camera: tuple[object, ...]  # photos that agree in this share their intrinsics
    focal: float | None  # pixels, a first guess from EXIF
    rewrite: str  # "" when the file is used as it is, else "8" or "16": bits of the new file
    fingerprint: str  # of the content
    mask: Path | None = None
    gps: tuple[float, float] | None = None  # latitude and longitude, degrees
    panorama: bool = False  # of the whole sphere, equirectangular


@dataclass
class Photos:
    photos: list[Photo]
    left_out: dict[str, str] = field(default_factory=dict)  # name -> reason
    notes: list[str] = field(default_factory=list)
    is_video: bool = False  # consecutive names are consecutive in time


def list_photos(folder: Path, out: Path | None = None) -> list[Path]:
    """Files with a photo's suffix in the folder, else in its images/, input/ and the like, else anywhere below it; but
    not what lies below `out` or in another folder that this package wrote."""

    def is_output(place: Path) -> bool:
        return (out is not None and place.resolve() == out.resolve()) or read_record(place) is not None

    for place in (folder, *(folder / name for name in PLACES)):
        found = _photos_among(place.iterdir()) if place.is_dir() and (place == folder or not is_output(place)) else []
        if found:
            return found
    below = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "masks" and not is_output(Path(root, name))]
        below += [Path(root, name) for name in names]
    return _photos_among(below)


def _photos_among(paths: Iterable[Path]) -> list[Path]:
    """In order of names; macOS leaves files ._NAME beside the true ones on foreign disks."""
    return sorted(p for p in paths if p.suffix.lower() in PHOTO_SUFFIXES and not p.name.startswith(".") and p.is_file())


def read_photos(folder: Path, masks: Path | None = None, out: Path | None = None) -> Photos:
    """Look at every photo's header; UserError when fewer than three can be used. masks: folder with a mask for each
    photo; one named masks/ beside the photos is taken without being asked for. out: is no input."""
    files = list_photos(folder, out)
    if not files:
        raise UserError(
            f"{folder}: holds no photos (looked for {', '.join(s[1:] for s in PHOTO_SUFFIXES)} in it, in "
            f"{'/, '.join(PLACES)}/ and below)"
        )
    _need_heif(files)
    found = Photos([])
    with ThreadPoolExecutor(max_workers=4) as pool:  # mostly waiting for the disk
        read = list(pool.map(_header, files))
    usual = median([max(r.width, r.height) for r in read if isinstance(r, Photo)] or [0])
    seen: dict[str, str] = {}
    for path, name, photo in zip(files, _names(files), read, strict=True):
        if isinstance(photo, str):
            found.left_out[path.name] = photo
        elif max(photo.width, photo.height) < max(SMALLEST, THUMBNAIL * usual):
            found.left_out[path.name] = f"too small ({photo.width}x{photo.height}): a thumbnail?"
        elif photo.fingerprint in seen:
            found.left_out[path.name] = f"the same file as {seen[photo.fingerprint]}"
        else:
            seen[photo.fingerprint] = path.name
            photo.name = name
            found.photos.append(photo)
    _refuse_too_few(found, folder, len(files))
    _add_masks(found, folder, masks)
    for photo in found.photos:
        photo.name = output_name(photo)
    return found


def _refuse_too_few(found: Photos, folder: Path, n_files: int) -> None:
    n = len(found.photos)
    if n >= FEWEST:
        return
    reasons = list(found.left_out.values())
    if n == 1 and reasons and all(r.startswith("the same file") for r in reasons):
        raise UserError(f"{folder}: all {n_files} photos are the same file; poses need photos from different places")
    if reasons and all(r.startswith("too small") for r in reasons):
        raise UserError(
            f"{folder}: all {n_files} images are smaller than {SMALLEST} pixels; these look like thumbnails, give the "
            "photos themselves"
        )
    first = next(iter(found.left_out.items()), None)
    why = f" ({len(reasons)} left out, the first {first[0]}: {first[1]})" if first else ""
    raise UserError(
        f"{folder}: {n} {'photo' if n == 1 else 'photos'} can be used, at least {FEWEST} are needed and 30 and more "
        f"are better{why}"
    )


def _names(files: list[Path]) -> list[str]:
    """A name for each in one folder; files of the same name in different folders keep their folders' names."""
    plain = [_plain(p.name) for p in files]
    if len({Path(n).stem.lower() for n in plain}) < len(plain):  # also IMG_1.HEIC beside IMG_1.JPG
        counts = Counter(p.name for p in files)
        plain = [f"{_plain(p.parent.name)}_{n}" if counts[p.name] > 1 else n for n, p in zip(plain, files, strict=True)]
    stems: Counter[str] = Counter()
    for i, name in enumerate(map(Path, plain)):
        stems[name.stem.lower()] += 1
        if (n := stems[name.stem.lower()]) > 1:
            plain[i] = f"{name.stem}_{n}{name.suffix}"
    return plain


def _plain(name: str) -> str:
    """A file name with _ for what COLMAP's files and other programs would trip over: controls and bytes that are no
    UTF-8."""
    return "".join(c if printable(c) == c else "_" for c in name)


def _need_heif(files: list[Path]) -> None:
    """Teach Pillow to read HEIC where a file needs it."""
    heif = [p for p in files if p.suffix.lower() in HEIF]
    if not heif:
        return
    try:
        import pillow_heif
    except ImportError:
        raise UserError(
            f"{heif[0]} and {len(heif) - 1} more are HEIC photos, which need the package pillow-heif: "
            'pip install pillow-heif (or "nerf-reconstruct[capture]" for all that captures need)'
        ) from None
    pillow_heif.register_heif_opener()


def _header(path: Path) -> Photo | str:
    """The photo as its header describes it, or why it cannot be used."""
    try:
        with opened(path) as image:
            width, height = image.size
            exif, bits = read_exif(image), bits_of(image, path)
            panorama = is_panorama(image)
            # mode P and the like are fine; what else Pillow can open (MPO: two pictures) is used by its first picture
            usual = image.format in ("JPEG", "PNG", "WEBP", "BMP", "MPO") or (image.format == "TIFF" and bits == 8)
        fingerprint = hashlib.sha1(path.read_bytes()).hexdigest()
    except Exception as error:  # whatever a damaged file makes Pillow raise
        return f"cannot be read as an image ({brief(error)})"
    if isinstance(panorama, str):
        return panorama
    upright = (height, width) if exif.orientation >= 5 else (width, height)
    return Photo(
        source=path,
        name=path.name,
        width=upright[0],
        height=upright[1],
        orientation=exif.orientation,
        camera=(*upright, *exif.camera(), panorama),
        focal=exif.focal_pixels(width, height),
        rewrite="" if usual and exif.orientation == 1 else str(bits),
        fingerprint=fingerprint,
        gps=exif.gps,
        panorama=panorama,
    )


def bits_of(image: Any, path: Path) -> int:
    """16 for pictures of 16 bits a channel, of which Pillow alone would keep 8."""
    if image.format == "TIFF":
        return 16 if max(image.tag_v2.get(258, (8,))) > 8 else 8
    if image.format != "PNG":
        return 8
    with open(path, "rb") as f:
        return 16 if f.read(25)[24:] == b"\x10" else 8


def _add_masks(found: Photos, folder: Path, masks: Path | None) -> None:
    """Fill in Photo.mask from a folder of masks; UserError where a folder was named that does not fit."""
    beside = [folder / "masks", *([folder.parent / "masks"] if folder.name in PLACES else [])]
    place = masks if masks is not None else next(filter(Path.is_dir, beside), None)
    if place is None:
        return
    if not place.is_dir():
        raise UserError(f"{place}: there is no such folder of masks")
    for photo in found.photos:
        others = (place / name for name in (f"{photo.source.stem}.jpg", photo.source.name))
        photo.mask = find_mask(place, photo.source.name) or next(filter(Path.is_file, others), None)
    n = sum(p.mask is not None for p in found.photos)
    if masks is not None and n == 0:
        raise UserError(
            f"{masks}: none of its files belongs to a photo; expected {found.photos[0].source.name}.png or "
            f"{found.photos[0].source.stem}.png for {found.photos[0].source.name}"
        )
    if n:
        found.notes.append(
            f"masks of {n} of {len(found.photos)} photos from {place.name}/: what is black there is ignored"
        )


def output_name(photo: Photo) -> str:
    """The photo's file name in images/: its own, with the suffix of what is written there."""
    if not photo.rewrite:
        return photo.name
    lossy = photo.rewrite == "8" and photo.source.suffix.lower() not in (".png", ".tif", ".tiff", ".bmp")
    return f"{Path(photo.name).stem}{'.jpg' if lossy else '.png'}"


def group_cameras(photos: list[Photo]) -> list[int]:
    """The camera of each photo: 0, 1, ... in order of first use; one for each size, model, lens and focal length."""
    numbers: dict[tuple[object, ...], int] = {}
    return [numbers.setdefault(photo.camera, len(numbers)) for photo in photos]


def describe_cameras(photos: list[Photo], cameras: list[int]) -> list[str]:
    """One line for each camera: how many photos, their size, and where the first guess of the focal length is from."""
    groups: dict[int, list[Photo]] = {}
    for photo, camera in zip(photos, cameras, strict=True):
        groups.setdefault(camera, []).append(photo)
    lines = []
    for group in groups.values():
        first = group[0]
        model = " ".join(str(part) for part in first.camera[3:5] if part) or "camera unknown"
        focal = f"focal length {first.focal:.0f} px by EXIF" if first.focal else "focal length not stated"
        focal = "panoramas of the whole sphere" if first.panorama else focal
        lines.append(f"{len(group)} pictures of {first.width}x{first.height} ({model}; {focal})")
    return lines
