"""Which photos a folder holds: names, sizes, cameras; what cannot be used is named with its reason."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from nerf.capture.exif import read_exif
from nerf.capture.panoramas import is_panorama
from nerf.datasets.named import PLACES, find_masks, listed
from nerf.errors import MissingPackage, UserError, brief, printable
from nerf.io.images import IMAGE_SUFFIXES, deep_channels, stored_size
from nerf.io.opening import opened
from nerf.io.outputs import read_record

PHOTO_SUFFIXES = tuple(s for s in IMAGE_SUFFIXES if s != ".exr")
# formats that other programs read too, and so are used as they are, with the suffixes that they go by
USUAL = {"JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "BMP": (".bmp",), "WEBP": (".webp",)}
USUAL |= {"TIFF": (".tif", ".tiff")}
SMALLEST = 200  # pixels on the longer side: below that there is too little to recognise
THUMBNAIL = 0.3  # of the median of the longer sides
SAME_PICTURE = 8.0  # grey levels on average between thumbnails of one picture in two formats
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
    altitude: float | None = None  # metres above the sea
    suffixes: tuple[str, ...] = ()  # that its format goes by; () where it is written anew
    panorama: bool = False  # of the whole sphere, equirectangular


@dataclass
class Photos:
    photos: list[Photo]
    left_out: dict[str, str] = field(default_factory=dict)  # name -> reason
    notes: list[str] = field(default_factory=list)
    is_video: bool = False  # consecutive names are consecutive in time


def list_photos(folder: Path, out: Path | None = None) -> list[Path]:
    """Files with a photo's suffix in the folder and in all below it; where it holds none itself and has images/,
    input/ or the like, of that. But not what lies below `out`, nor files that this package wrote (photos that lie
    beside them are photos; so are those of a data set of ours, where it is the folder), nor masks, depth maps, reduced
    copies (images_4/) and what is hidden."""

    def is_out(place: Path) -> bool:
        return out is not None and place.resolve() == out.resolve()

    def below(top: Path) -> list[Path]:
        found: list[Path] = []
        ours: set[Path] = set()
        for root, folders, names in os.walk(top):
            here = Path(root)
            record = read_record(here)
            if record is not None and not (here == top and record["kind"] == "dataset"):
                ours.update(here / name for name in record["files"])
            allowed = [n for n in folders if not _NO_PHOTOS.fullmatch(n.lower())]
            folders[:] = [n for n in allowed if here / n not in ours and not is_out(here / n)]
            found += [here / name for name in names if here / name not in ours]
        return _photos_among(found)

    if not _photos_among(folder.iterdir() if folder.is_dir() else []):
        for place in (folder / name for name in PLACES):
            if place.is_dir() and not is_out(place) and (found := below(place)):
                return found
    return below(folder)


# Of folders beside photos: macOS leaves __MACOSX/ in ZIPs, and files ._NAME beside the true ones on foreign disks.
_NO_PHOTOS = re.compile(r"\..*|__macosx|masks?|depths?|depth_maps?|confidence|images_\d+|thumb(nail)?s")


def _photos_among(paths: Iterable[Path]) -> list[Path]:
    """In order of names."""
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
    _leave_out_copies(found)
    if elsewhere := [p.source.parent for p in found.photos if p.source.parent != files[0].parent]:
        names = listed(sorted({str(os.path.relpath(place, folder)) for place in elsewhere}), 5)
        found.notes.append(f"{len(elsewhere)} of {len(found.photos)} photos lie in folders of their own: {names}")
    _refuse_too_few(found, folder, len(files))
    _add_masks(found, folder, masks)
    for photo in found.photos:
        photo.name = output_name(photo)
    return found


def _leave_out_copies(found: Photos) -> None:
    """Of pictures of one name in one folder, HEIC beside JPEG as phones and clouds export them, all but the largest."""
    groups: dict[tuple[Path, str], list[Photo]] = {}
    for photo in found.photos:
        groups.setdefault((photo.source.parent, photo.source.stem.lower()), []).append(photo)
    for group in groups.values():
        first, *others = sorted(group, key=lambda p: (-p.width * p.height, p.rewrite != "", p.source.name))
        for other in others:
            if _look_alike(first.source, other.source):
                found.photos.remove(other)
                found.left_out[other.source.name] = f"the same picture as {first.source.name}"


def _look_alike(a: Path, b: Path) -> bool:
    from PIL import ImageOps

    small = []
    for path in (a, b):
        with opened(path) as image:
            small.append(np.asarray(ImageOps.exif_transpose(image).convert("L").resize((16, 16)), np.float32))
    return float(np.abs(small[0] - small[1]).mean()) < SAME_PICTURE


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


def _header(path: Path) -> Photo | str:
    """The photo as its header describes it, or why it cannot be used."""
    try:
        with opened(path) as image:
            width, height = stored_size(image)
            exif, bits = read_exif(image), 16 if deep_channels(image, path) or image.mode.startswith("I;16") else 8
            panorama = is_panorama(image)
            # mode P and the like are fine; what else Pillow can open (MPO: two pictures) is used by its first picture
            suffixes = USUAL.get(str(image.format), ()) if image.format != "TIFF" or bits == 8 else ()
        fingerprint = hashlib.sha1(path.read_bytes()).hexdigest()
    except MissingPackage:
        raise
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
        rewrite="" if suffixes and exif.orientation == 1 else str(bits),
        suffixes=suffixes,
        fingerprint=fingerprint,
        gps=exif.gps,
        altitude=exif.altitude,
        panorama=panorama,
    )


def _add_masks(found: Photos, folder: Path, masks: Path | None) -> None:
    """Fill in Photo.mask from a folder of masks; UserError where a folder was named that does not fit."""
    beside = [folder / "masks", *([folder.parent / "masks"] if folder.name in PLACES else [])]
    place = masks if masks is not None else next(filter(Path.is_dir, beside), None)
    if place is None:
        return
    if not place.is_dir():
        raise UserError(f"{place}: there is no such folder of masks")
    of = find_masks(place, [photo.source for photo in found.photos])
    for photo in found.photos:
        photo.mask = of.get(photo.source)
    n = sum(p.mask is not None for p in found.photos)
    if masks is not None and n == 0:
        raise UserError(
            f"{masks}: none of its files belongs to a photo; expected {found.photos[0].source.name}.png or "
            f"{found.photos[0].source.stem}.png for {found.photos[0].source.name}"
        )
    found.notes.append(
        f"masks of {n} of {len(found.photos)} photos from {place.name}/: what is black there is ignored"
        if n
        else f"{place.name}/ is there, but none of its files belongs to a photo: no masks are used"
    )


def output_name(photo: Photo) -> str:
    """The photo's file name in images/: its own, with the suffix of what is written there."""
    if not photo.rewrite:  # also a JPEG that is named .HEIC, as phones and clouds write edited photos
        right = not photo.suffixes or Path(photo.name).suffix.lower() in photo.suffixes
        return photo.name if right else f"{Path(photo.name).stem}{photo.suffixes[0]}"
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
