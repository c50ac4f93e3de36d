"""Photos or a video without poses in; a data set with poses out, through pycolmap on the CPU."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nerf.capture.folder import forget, frames_of, identity, open_folder, state_of, write_photos, write_state
from nerf.capture.gps import Place
from nerf.capture.judging import STRONG
from nerf.capture.panoramas import FINER, need_spheres
from nerf.capture.photos import FEWEST, Photos, describe_cameras, group_cameras, list_photos, read_photos
from nerf.capture.settings import ENOUGH, Settings, attempts
from nerf.capture.video import VIDEO_SUFFIXES, check_video
from nerf.datasets.named import PLACES
from nerf.errors import Range, UserError, check_numbers, note
from nerf.io.files import write_file
from nerf.io.machine import usable_cores
from nerf.io.outputs import OutputFolder

if TYPE_CHECKING:
    from nerf.capture.report import FoundPoses

GROUPS = "groups.png"  # in the data set's folder: which photos hang together
FEW_FEATURES = 300  # in the middle one of the photos: blurred or plain (sharp ones have thousands)
LEAST_SHARE = 1 / 3  # of the photos; fewer in one model are no basis to train on


@dataclass
class CaptureOptions:
    """Find where photos were taken: features, matching and mapping, and a data set that every tool reads.

    >>> CaptureOptions(Path("photos"), Path("posed"), matching="sequential").longest
    1600
    """

    data: Path
    """folder of photos (JPEG, PNG, HEIC, TIFF, WebP), or a video"""
    out: Path
    """folder to write the data set to; the same command again continues what was interrupted"""
    frames: int | None = None
    """of a video: how many frames to take (default: 4 a second, at most 120)"""
    masks: Path | None = None
    """folder of masks, NAME.png for each photo: what is black is ignored (default: masks/ beside the photos)"""
    matching: Literal["auto", "exhaustive", "sequential", "spatial", "retrieval"] = "auto"
    """which photos are compared: all with all, neighbours in time, those taken nearest by GPS, or similar ones"""
    longest: int = 1600
    """pixels on the longer side of the pictures in which features are found"""
    distance: tuple[str, str, float] | None = None
    """PHOTO PHOTO LENGTH: how far apart two photos were taken; lengths are then true"""
    gps: Literal["auto", "off"] = "auto"
    """set scale (metres), north (+y) and up from GPS in EXIF where it agrees with the poses; or leave it"""
    scale: float = 1.0
    """multiply all lengths, say by TRUE / MEASURED of something measured in a first mesh"""
    overwrite: bool = False
    """replace the data set of other photos in the output folder"""


def needs_poses(path: Path) -> bool:
    """Whether this is a video, or a folder of photos in which no loader finds poses."""
    if path.is_file():
        return path.suffix.lower() in VIDEO_SUFFIXES
    from nerf.datasets import kinds_in

    return path.is_dir() and not kinds_in(path) and bool(list_photos(path))


def find_poses(args: CaptureOptions, show: bool = True) -> FoundPoses:
    """Photos or video -> transforms.json, images/, sparse/0, sparse_pc.ply, coverage.png and poses.json in args.out.

    Work that an earlier, interrupted call has done is used again if photos and settings are the same. Raises UserError
    when nothing of use can come of it, and says what would help.

    >>> find_poses(CaptureOptions(Path("no/photos"), Path("posed")))
    Traceback (most recent call last):
    nerf.errors.UserError: no/photos: there is no such folder or video
    """
    _check(args)
    started = time.perf_counter()
    photos = read_photos(args.data, args.masks, args.out) if args.data.is_dir() else None
    folder, before = open_folder(args.out, args.data, args.overwrite, photos)
    with folder:
        return _find(args, folder, photos, before, show, started)


def _find(
    args: CaptureOptions,
    folder: OutputFolder,
    photos: Photos | None,
    before: dict[str, Any] | None,
    show: bool,
    started: float,
) -> FoundPoses:
    if photos is None:
        photos = frames_of(folder, args.data, args.frames, before)
    else:
        write_photos(photos, folder, before)
    if args.matching == "spatial" and not any(p.gps for p in photos.photos):
        raise UserError(f"--matching spatial: none of the photos in {args.data} says by GPS where it was taken")
    for line in photos.notes:
        note(line)
    cameras = group_cameras(photos.photos)
    for line in describe_cameras(photos.photos, cameras):
        note(line)
    state = state_of(photos, args.data, args.frames, args.matching, args.longest)
    if before is not None and identity(before) != identity(state):
        note("the photos or settings are not those of before: poses are found anew")
        forget(folder)
    write_state(folder.path, state)
    job, prepared = _job(args, photos, cameras), time.perf_counter() - started
    result, settings = _solve(job, len(photos.photos), show)
    found = _found(folder.path, photos, result, settings, prepared + result["seconds"])
    one_spot = bool(result.get("one_spot"))
    if one_spot or result["n_placed"] < max(3, LEAST_SHARE * len(photos.photos)):
        raise UserError(_too_few(folder, found, one_spot))
    if result.get("wrong"):
        raise UserError(_contradicted(folder, found))
    if len(found.components) > 1:
        _show_groups(folder, found)
    places = {p.name: (*p.gps, p.altitude) for p in photos.photos if p.gps and args.gps == "auto"}
    _finish(folder.path, args, places)
    for line in str(found).splitlines():
        note(line)
    return found


def _check(args: CaptureOptions) -> None:
    """Everything that can be wrong before work begins."""
    if not args.data.exists():
        raise UserError(f"{args.data}: there is no such folder or video")
    if args.data.is_file() and args.data.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(
            f"{args.data}: expected a folder of photos or a video ({', '.join(s[1:] for s in VIDEO_SUFFIXES)})"
        )
    numbers = {"frames": Range(3, 100_000, whole=True, optional=True), "longest": Range(320, 32_768, whole=True)}
    check_numbers(vars(args), numbers, "--")
    for name, length in (("--scale", args.scale), ("--distance", args.distance[2] if args.distance else 1.0)):
        if not 0 < length < 1e9:
            raise UserError(f"{name} must be above 0, got {length:g}")
    if args.data.is_file():
        if args.masks is not None:
            raise UserError("--masks belongs to photos; of a video, take the frames first and mask those")
        check_video(args.data)
    here, there = args.out.resolve(), args.data.resolve()
    if here == there or here in [there / name for name in PLACES] or (there.parent == here and there.name in PLACES):
        raise UserError(f"{args.out}: the photos themselves lie there; give another folder with -o")
    if find_spec("pycolmap") is None:
        raise UserError(
            'finding poses needs the package pycolmap: pip install "nerf-reconstruct[capture]", or pip install pycolmap'
        )


def _job(args: CaptureOptions, photos: Photos, cameras: list[int]) -> dict[str, Any]:
    """What the worker is told, but for the settings of the attempt."""
    listed = [
        {name: getattr(p, name) for name in ("name", "width", "height", "focal", "gps", "panorama")}
        | {"camera": c, "mask": p.mask is not None}
        for p, c in zip(photos.photos, cameras, strict=True)
    ]
    return {
        "folder": str(args.out.resolve()),
        "photos": listed,
        "threads": usable_cores(),
        "is_video": photos.is_video,
        "matching": args.matching,
        "settings": asdict(Settings(longest=_longest(args, photos))),
    }


def _longest(args: CaptureOptions, photos: Photos) -> int:
    if not any(photo.panorama for photo in photos.photos):
        return args.longest
    need_spheres()
    return round(FINER * args.longest)


def _solve(job: dict[str, Any], n: int, show: bool) -> tuple[dict[str, Any], Settings]:
    """Attempt after attempt until enough photos are placed; the best one's result, its model in capture/model."""
    from nerf.capture.child import run_worker

    folder, first = Path(job["folder"], "capture"), Settings(**job["settings"])
    settings: Settings | None = first
    best: dict[str, Any] = {"worth": -1.0}
    best_settings, seconds = first, 0.0
    while settings is not None:
        number = 1 if settings.of_features() == first.of_features() else 2
        kept = folder / f"result_{number}{'_relaxed' if settings.relaxed else ''}.json"
        if kept.is_file() and (folder / "model").is_dir():
            result = json.loads(kept.read_text(encoding="utf-8"))
            note(f"{settings.name}: done already, {result['n_placed']} of {n} photos placed")
        else:
            own = job | {"settings": asdict(settings), "database": str(folder / f"features_{number}.db")}
            started = time.perf_counter()
            result = run_worker(own | {"better_than": max(0.0, best["worth"])}, show)
            result["seconds"] = time.perf_counter() - started
            write_file(kept, json.dumps(result))
        seconds += result["seconds"]
        result["database"] = f"features_{number}.db"
        if result["worth"] > best["worth"]:
            best, best_settings = result, settings
        previous, settings = settings, attempts(best["worth"] / max(1, result["n_usable"]), settings)
        if result.get("one_spot"):  # no other way changes that
            settings = None
        if settings is not None and settings.of_features() != previous.of_features():
            largest = _apart(folder / result["database"], result["n_usable"])
            if largest and best["worth"] >= ENOUGH * largest:
                note("the photos hang together in groups with no pair between them: of other places, or with a gap")
                settings = None
        if settings is not None:
            note(f"{previous.name}: {result['n_placed']} of {n} photos placed; trying {settings.name}")
    return best | {"seconds": seconds}, best_settings


def _apart(database: Path, n_usable: int) -> int:
    """Photos of the largest group, where nearly all hang together in groups without a strong pair between them; else
    0."""
    from nerf.capture.report import groups_of, verified_partners

    groups = [g for g in groups_of(verified_partners(database), STRONG) if len(g) >= FEWEST]
    return len(groups[0]) if len(groups) > 1 and sum(map(len, groups)) >= ENOUGH * n_usable else 0


def _found(folder: Path, photos: Photos, result: dict[str, Any], settings: Settings, seconds: float) -> FoundPoses:
    """What the worker found of these photos, and why the others were left out; also written to poses.json."""
    from nerf.capture.report import FoundPoses, groups_of, reasons, verified_partners, write_report

    statistics = json.loads((folder / "capture" / "statistics.json").read_text(encoding="utf-8"))
    placed = result.get("placed", {})
    partners = verified_partners(folder / "capture" / result["database"])
    why = reasons(photos.photos, set(placed), result.get("others", []), statistics, partners)
    told = {f.name: result[f.name] for f in fields(FoundPoses) if f.name in result}
    own = {
        "n_photos": len(photos.photos) + len(photos.left_out),
        "pixels": result.get("pixels") if result.get("n_pairs") else None,
        "groups": groups_of(partners, STRONG),
        "seconds": round(seconds, 1),
        "settings": settings,
        "left_out": photos.left_out | why,
        "photos": {
            name: {key: round(value, 2) if isinstance(value, float) else value for key, value in s.items()}
            | {"points_seen": placed.get(name, 0)}
            for name, s in statistics.items()
        },
    }
    found = FoundPoses(**told | own)
    write_report(folder, found)
    return found


def _too_few(folder: OutputFolder, found: FoundPoses, one_spot: bool) -> str:
    from collections import Counter
    from statistics import median

    from nerf.capture.report import ADVICE, all_alike

    if all_alike(folder.path / "images", list(found.photos)):
        return (
            f"only {found.n_placed} of {found.n_photos} photos could be placed, because they hardly differ: "
            "poses need photos from different places, each a step from the last"
        )
    if one_spot:
        return (
            "all photos were taken from one spot, by turning the camera: from there nothing shows how far things are. "
            "Walk around what you photograph, a step to the side for each photo"
        )
    kinds = Counter(reason.split("(")[0].strip() for reason in found.left_out.values())
    why = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(3))
    features = median([photo.get("n_features", 0) for photo in found.photos.values()] or [0])
    if features < FEW_FEATURES:
        why = f"they show little that can be recognised, {features:.0f} features in the middle: blurred or plain; {why}"
    shown = f"{_show_groups(folder, found)}. " if found.groups else ""
    return (
        f"only {found.n_placed} of {found.n_photos} photos could be placed, too few to go on ({why}; each one is in "
        f"{folder.path / 'poses.json'}). {shown}What helps: {ADVICE}"
    )


def _contradicted(folder: OutputFolder, found: FoundPoses) -> str:
    """A model that the photos contradict is no basis to train on; which of them hang together is shown."""
    from nerf.capture.report import ADVICE

    shown = _show_groups(folder, found)
    one = "Try one group alone, or " if len(found.groups) > 1 else "What helps: "
    return f"no poses were found that the photos bear out: of the best, {found.judgement}. {shown}. {one}{ADVICE}"


def _show_groups(folder: OutputFolder, found: FoundPoses) -> str:
    """groups.png: which photos hang together; and that in words."""
    from nerf.capture.report import groups_picture
    from nerf.io.pictures import write_png

    folder.claim(GROUPS)
    write_png(folder.path / GROUPS, groups_picture(folder.path / "images", found.groups))
    sizes = ", ".join(str(len(group)) for group in found.groups[:5])
    return (
        f"Groups that hang together by themselves: {sizes or 'none'} photos (shown in {folder.path / GROUPS}, listed "
        "in poses.json)"
    )


def _finish(folder: Path, args: CaptureOptions, places: dict[str, Place]) -> None:
    """The data set's files and the picture."""
    from nerf.capture.dataset import write_dataset
    from nerf.capture.report import coverage_picture
    from nerf.io.pictures import write_png

    try:
        found = write_dataset(folder, args.scale, args.distance, places)
        write_png(folder / "coverage.png", coverage_picture(found["c2w"], found["points"], found["colours"]))
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from None
