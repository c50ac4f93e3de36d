"""SIFT features of every photo into COLMAP's database, and what the pictures are like (sharp, dark, plain)."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from nerf.capture.panoramas import Features, find_features
from nerf.capture.protocol import counted, in_order
from nerf.datasets.resize import fitted
from nerf.errors import brief
from nerf.io.files import write_file
from nerf.io.images import convert, deep_channels, read_header, read_pixels
from nerf.io.opening import opened

DEFAULT_FOCAL = 0.85  # of the longer side, where EXIF states none: between a phone's wide lens and a normal one
ENLARGED_UP_TO = 1000  # pixels on the longer side: small pictures are enlarged twice, for they have few features else
PROCESSES_FROM = 8  # photos; starting processes takes as long as finding the features of a few

_own: dict[str, Any] = {}  # of a process of the pool: folder, settings, extractor


def read_grey(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """([h,w] uint8 grey of the given (width, height), alpha of the same size or None)."""
    from PIL import Image

    with opened(path) as image:
        if image.format == "JPEG":
            image.draft("L", size)  # a reduced decoding is several times faster
        alpha = None
        if deep_channels(image, path) or image.mode.startswith("I;16"):
            pixels = convert(read_pixels(read_header(path)), 3, np.dtype(np.uint8))
            grey = Image.fromarray(pixels).convert("L")
        else:
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                alpha = np.asarray(image.convert("RGBA").getchannel("A").resize(size, Image.Resampling.NEAREST))
            grey = image.convert("L")
        return np.asarray(grey.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)), alpha


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian, of a picture reduced to a quarter: blur shows there, noise of the sensor hardly."""
    h, w = grey.shape[0] // 2 * 2, grey.shape[1] // 2 * 2
    half = grey[:h, :w].reshape(h // 2, 2, w // 2, 2).mean(axis=(1, 3), dtype=np.float32)
    if min(half.shape) < 3:
        return 0.0
    inner = half[1:-1, 1:-1]
    laplacian = half[:-2, 1:-1] + half[2:, 1:-1] + half[1:-1, :-2] + half[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def extract(job: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Keypoints and descriptors of all photos that the database lacks; returns the statistics of all."""
    import pycolmap

    database = pycolmap.Database.open(job["database"])
    ids = _images(database, job)
    log = Path(job["database"]).with_suffix(".jsonl")
    statistics: dict[str, dict[str, float]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        with suppress(ValueError):  # a line that was cut off
            statistics.update(json.loads(line))
    photos = [p for p in job["photos"] if not (p["name"] in statistics and database.exists_keypoints(ids[p["name"]]))]
    with _pool(job, len(photos)) as pool, open(log, "a", encoding="utf-8") as lines:
        results = in_order(pool, _features, photos, 2 * job["threads"])
        for photo, keypoints, descriptors, found in counted(results, "finding features", len(photos)):
            image_id = ids[photo["name"]]
            if not database.exists_keypoints(image_id):
                database.write_keypoints(image_id, keypoints)
            if not database.exists_descriptors(image_id):
                kind = pycolmap.FeatureExtractorType.SIFT
                database.write_descriptors(image_id, pycolmap.FeatureDescriptors(kind, descriptors))
            statistics[photo["name"]] = found
            lines.write("\n" + json.dumps({photo["name"]: found}))  # never behind a line that was cut off
            lines.flush()
    database.close()
    write_file(Path(job["folder"], "capture", "statistics.json"), json.dumps(statistics))
    return statistics


def usable(statistics: dict[str, dict[str, Any]]) -> int:
    """How many photos show enough to be placed at all: not damaged, not blank."""
    counts = [s["n_features"] for s in statistics.values()]
    return sum(n >= max(50, 0.05 * float(np.median(counts))) for n in counts)


def _pool(job: dict[str, Any], n: int) -> Executor:
    """Processes, because pycolmap's SIFT holds the interpreter's lock; a thread where they would not pay."""
    start = (job["folder"], job["settings"])
    if n < PROCESSES_FROM or job["threads"] < 2:
        return ThreadPoolExecutor(1, initializer=_begin, initargs=start)
    spawn = multiprocessing.get_context("spawn")  # a fork would copy this process's threads half
    return ProcessPoolExecutor(min(job["threads"], n // 2), spawn, _begin, start)


def _begin(folder: str, settings: dict[str, Any]) -> None:
    import pycolmap

    pycolmap.logging.minloglevel = 1
    _own.update(folder=Path(folder), settings=settings, sift={})


def _features(photo: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray, np.ndarray, dict[str, Any]]:
    """The photo again; keypoints [n,4] (x, y, scale, angle) and descriptors [n,128] uint8 in order of falling scale;
    statistics."""
    folder, settings = _own["folder"], _own["settings"]
    size = fitted((photo["width"], photo["height"]), settings["longest"])
    nothing = photo, np.zeros((0, 4), np.float32), np.zeros((0, 128), np.uint8)
    try:
        grey, use = read_grey(folder / "images" / photo["name"], size)
        if photo["mask"]:
            mask, _ = read_grey(folder / "masks" / f"{photo['name']}.png", size)
            use = mask if use is None else np.minimum(use, mask)
    except Exception as error:  # what a damaged picture makes Pillow or ffmpeg raise
        reason = brief(error)
        return *nothing, {"n_features": 0, "sharpness": 0.0, "mean": 0.0, "spread": 0.0, "damaged": reason}
    found = {"sharpness": sharpness(grey), "mean": float(grey.mean()), "spread": float(grey.std())}
    octave = -1 if max(size) <= ENLARGED_UP_TO else settings["first_octave"]
    find = _sift(octave)
    points, rows = find_features(grey, find) if photo.get("panorama") else find(grey)
    if use is not None and len(points):
        x, y = (np.clip(points[:, k].astype(int), 0, size[k] - 1) for k in (0, 1))
        keep = use[y, x] > 127
        points, rows = points[keep], rows[keep]
    order = np.argsort(-points[:, 2], kind="stable")
    return photo, points[order], rows[order], found | {"n_features": len(points)}


def _sift(octave: int) -> Callable[[np.ndarray], Features]:
    """Keypoints and descriptors of a picture [h,w] uint8, from that octave on."""
    import pycolmap

    settings = _own["settings"]
    if octave not in _own["sift"]:
        options = pycolmap.FeatureExtractionOptions()
        options.num_threads, options.use_gpu = 1, False
        options.sift.first_octave = octave
        options.sift.max_num_features = settings["n_features"]
        options.sift.peak_threshold = settings["peak_threshold"]
        if octave < 0:  # features enough: a second orientation for some would only double the time that matching takes
            options.sift.max_num_orientations = 1
        _own["sift"][octave] = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)

    def find(grey: np.ndarray) -> Features:
        keypoints, descriptors = _own["sift"][octave].extract_from_uint8_array(np.ascontiguousarray(grey))
        points = np.asarray(pycolmap.keypoints_to_matrix(keypoints), np.float32).reshape(-1, 4)
        return points, np.asarray(descriptors.data, np.uint8).reshape(-1, 128)

    return find


def _images(database: Any, job: dict[str, Any]) -> dict[str, int]:
    """{name: id} of the photos in the database, entered where they are new, with one camera for each group."""
    import pycolmap

    ids = {image.name: int(image.image_id) for image in database.read_all_images()}
    if len(ids) == len(job["photos"]):
        return ids
    with pycolmap.DatabaseTransaction(database):
        rigs: dict[int, tuple[int, Any]] = {}
        for photo in job["photos"]:
            if photo["name"] in ids:
                continue
            if photo["camera"] not in rigs:
                rigs[photo["camera"]] = _camera(database, photo, job["settings"]["longest"])
            rig_id, camera = rigs[photo["camera"]]
            image = pycolmap.Image(name=photo["name"], camera_id=camera.camera_id)
            ids[photo["name"]] = image.image_id = database.write_image(image)
            frame = pycolmap.Frame(rig_id=rig_id)
            frame.add_data_id(image.data_id)
            database.write_frame(frame)
    return ids


def _camera(database: Any, photo: dict[str, Any], longest: int) -> tuple[int, Any]:
    """A camera in pixels of the reduced picture, and the rig that holds it alone."""
    import pycolmap

    width, height = fitted((photo["width"], photo["height"]), longest)
    stated = photo["focal"] * width / photo["width"] if photo["focal"] else None
    focal = stated or DEFAULT_FOCAL * max(width, height)
    model = "EQUIRECTANGULAR" if photo.get("panorama") else "SIMPLE_RADIAL"
    camera = pycolmap.Camera.create_from_model_name(0, model, focal, width, height)
    camera.has_prior_focal_length = stated is not None
    camera.camera_id = database.write_camera(camera)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(camera.sensor_id)
    return database.write_rig(rig), camera
