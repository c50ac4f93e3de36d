"""Poses and points from the verified matches: by COLMAP's incremental mapper, where that does not convince by its
global one, then one adjustment with the full lens."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nerf.capture.dataset import write_model
from nerf.capture.judging import judge
from nerf.capture.panoramas import is_sphere
from nerf.capture.protocol import say
from nerf.capture.settings import ENOUGH
from nerf.capture.verifying import judged_pairs
from nerf.datasets.resize import fitted
from nerf.errors import UserError
from nerf.io.opening import opened

GLOBAL_FROM = 30  # photos from which on the global mapper is tried first: many pairs hold it, and it is faster
CALIBRATED_WITHIN = 0.3, 4.0  # of the longer side and the first guess: focal lengths that pairs may agree on
RADIAL_FROM = 8  # photos of one camera from which on its lens gets a second radial term ...
LENS_FROM = 20  # ... from which on its principal point is sought too, and whether its lens changes
CENTRE_FROM, CENTRE_WITHIN = 0.005, 0.06  # of the longer side: a principal point less or more off is not believed
FOR_LENSES = 6000  # points that say whether the lens changes
# Of the squared error with a shared lens: below that each photo gets its own. That adds two parameters a photo, which
# fit noise where the lens was the same. By Schwarz (1978) they pay below exp(-k ln N / N), for k new parameters
# and N residuals: 0.977 for 100 photos of 500 observations (k = 200, N = 100 000). Residuals within a photo are not
# independent, as that assumes, so twice as much is asked for.
OWN_LENS = 0.95
SHARP = 2.0  # pixels of reprojection error that a point may have in the end


def reconstruct(job: dict[str, Any]) -> dict[str, Any]:
    """Map in one way after the other until pairs of photos say that a model is right; refine the best and write it for
    the parent, unless it is worth no more than job["better_than"], which an earlier attempt reached. Returns what there
    is to say about it."""
    folder, n = Path(job["folder"], "capture"), len(job["photos"])
    seen, unseen = judged_pairs(job)
    longest = max(max(fitted((p["width"], p["height"]), job["settings"]["longest"])) for p in job["photos"])
    result: dict[str, Any] = {"n_placed": 0, "components": [], "worth": 0.0}
    best: list[Any] = []
    for name, models in _ways(job, folder / "models"):
        if not models:
            say(note=f"{name}: nothing could be placed")
            continue
        models.sort(key=lambda m: (-m.num_reg_images(), -m.num_points3D()))
        judgement = judge(models[0], seen, unseen, longest)
        say(note=f"{name}: {models[0].num_reg_images()} of {n} photos placed; {judgement}")
        worth = models[0].num_reg_images() * judgement.trust
        enough = models[0].num_reg_images() >= ENOUGH * n
        one_spot = enough and judgement.one_spot
        if worth > result["worth"] or not best or one_spot:
            best = models
            result = {"n_placed": models[0].num_reg_images(), "worth": worth, "way": name} | asdict(judgement)
            result |= {
                "convinces": judgement.convinces,
                "wrong": judgement.wrong,
                "judgement": str(judgement),
                "one_spot": one_spot,
            }
            result["components"] = [m.num_reg_images() for m in models]
        if enough and (judgement.convinces or one_spot):  # no other way changes that
            break
    shutil.rmtree(folder / "models", ignore_errors=True)
    if not best or result["worth"] <= job.get("better_than", 0):
        return result
    say(stage="refining", total=1)
    model = refine(best[0])
    say(done=1)
    if model.num_cameras() > best[0].num_cameras():
        say(note="the lens changed from photo to photo (focus or zoom): each keeps its own focal length")
    result |= {
        "placed": {str(model.images[i].name): int(model.images[i].num_points3D) for i in model.reg_image_ids()},
        "others": [[str(m.images[i].name) for i in m.reg_image_ids()] for m in best[1:]],
        "n_points": model.num_points3D(),
        "reprojection_error": model.compute_mean_reprojection_error(),
        "track_length": model.compute_mean_track_length(),
    }
    to_full_size(model, job)
    colour(model, job)
    write_model(model, folder / "model")
    return result


def _ways(job: dict[str, Any], output: Path) -> Iterator[tuple[str, list[Any]]]:
    """(name, models) of each way to map, tried as it is asked for."""
    start, is_calibrated = calibrated(job)
    ways = [("incremental mapping", _incremental), ("global mapping", _global)]
    if len(job["photos"]) >= GLOBAL_FROM and not job["is_video"]:
        ways.reverse()
    if job["settings"]["relaxed"]:  # which changes nothing for the global one
        ways = [(name, way) for name, way in ways if way is _incremental]
    for name, way in ways:
        yield name, way(start, job, output)
    if is_calibrated:
        yield "incremental mapping from an assumed focal length", _incremental(job["database"], job, output)


def calibrated(job: dict[str, Any]) -> tuple[str, bool]:
    """(a copy of the database with focal lengths that the pairs' fundamental matrices agree on, True), where no EXIF
    states them; else, or where they agree on none, (the database, False).

    Sweeney et al. 2015, Optimizing the Viewing Graph for Structure-from-Motion.
    """
    import pycolmap

    if all(photo["focal"] or photo.get("panorama") for photo in job["photos"]):
        return job["database"], False
    copy = Path(job["database"]).with_suffix(".calibrated.db")
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(job["database"])) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    options = pycolmap.ViewGraphCalibrationOptions()
    options.random_seed = 0
    options.reestimate_relative_pose = False  # the mappers do so themselves, and it takes minutes
    options.min_focal_length_ratio, options.max_focal_length_ratio = CALIBRATED_WITHIN
    if not pycolmap.calibrate_view_graph(str(copy), options):
        return job["database"], False
    return str(copy), True


def _incremental(database: str, job: dict[str, Any], output: Path) -> list[Any]:
    import pycolmap

    n, placed = len(job["photos"]), 0

    def one_more(first: bool = False) -> None:
        nonlocal placed
        placed = 2 if first else placed + 1
        say(done=min(placed, n))

    say(stage="placing photos", total=n)
    options = options_of(job["settings"], n)
    return list(
        pycolmap.incremental_mapping(
            database, job["folder"], _emptied(output), options, "", lambda: one_more(True), one_more
        ).values()
    )


def _global(database: str, job: dict[str, Any], output: Path) -> list[Any]:
    """Rotations averaged, then all positions at once (GLOMAP, Pan et al. 2024)."""
    import pycolmap

    say(stage="placing all photos at once", total=1)
    options = pycolmap.GlobalPipelineOptions()
    options.random_seed = options.mapper.random_seed = 0
    options.min_num_matches = job["settings"]["min_inliers"]
    options.mapper.global_positioning.use_gpu = options.mapper.bundle_adjustment.ceres.use_gpu = False
    found = pycolmap.global_mapping(database, job["folder"], _emptied(output), options)
    say(done=1)
    return list(found.values())


def _emptied(folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return str(folder)


def options_of(settings: dict[str, Any], n: int) -> Any:
    """COLMAP's options; `relaxed` begins with, and takes in, photos that share less and move less."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.extract_colors = False  # `colour` reads what COLMAP cannot
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = 0
    options.min_model_size = min(10, max(3, n // 3))
    options.max_num_models = 8
    options.init_num_trials = 60
    options.min_num_matches = settings["min_inliers"]
    options.min_focal_length_ratio, options.max_extra_param = 0.2, 2.0
    if settings["relaxed"]:
        options.mapper.init_min_num_inliers, options.mapper.init_min_tri_angle = 50, 5.0
        options.mapper.init_max_forward_motion = 0.98
        options.mapper.init_max_reg_trials, options.mapper.max_reg_trials = 4, 6
        options.mapper.abs_pose_min_num_inliers, options.mapper.abs_pose_min_inlier_ratio = 15, 0.15
        options.mapper.filter_min_tri_angle = options.triangulation.min_angle = 1.0
        options.triangulation.ignore_two_view_tracks = False
        options.min_model_size = 3
        options.random_seed = options.mapper.random_seed = 1
    return options


def refine(model: Any) -> Any:
    """Bundle adjustment with fuller lenses where there are photos enough; points that fit badly go between."""
    # The principal point is sought too where a camera took many photos: phones that steady their pictures have it many
    # pixels off the middle, and a pose cannot make up for that in every photo. Small shifts are not believed: rolling
    # shutters and whatever else a lens model lacks look like them, and poses absorb them. Where a plain lens for each
    # photo fits better than one for all, the lens has changed between them (focus, zoom), and each keeps its own.
    import pycolmap

    counts = Counter(model.images[i].camera_id for i in model.reg_image_ids())
    panoramas = [i for i in counts if is_sphere(model.cameras[i])]
    for i in panoramas:
        del counts[i]
    _fuller(model, [i for i, count in counts.items() if count >= RADIAL_FROM], "RADIAL")
    adjust(model, centre=False)
    pycolmap.ObservationManager(model).filter_all_points3D(SHARP, 1.5)
    if panoramas or max(counts.values(), default=0) < LENS_FROM:
        adjust(model, centre=False)
    elif _lens_changes(model):
        model = copied(model, own_lenses=True)
        adjust(model, centre=False)
    else:
        free = pycolmap.Reconstruction(model)
        adjust(free, centre=True)
        if all(_centre_is_credible(free.cameras[i]) for i in counts):
            model = free
            _fuller(model, [i for i, count in counts.items() if count >= LENS_FROM], "OPENCV")
            adjust(model, centre=True)
        else:
            adjust(model, centre=False)
    model.update_point_3d_errors()
    return model


def _fuller(model: Any, cameras: list[int], name: str) -> None:
    """The cameras with another of COLMAP's models, whose new terms begin at 0."""
    import pycolmap

    for i in cameras:
        camera = model.cameras[i]
        f, cx, cy, *terms = camera.params
        k = [*terms, 0.0, 0.0, 0.0]
        camera.model = getattr(pycolmap.CameraModelId, name)
        camera.params = [f, cx, cy, *k[:2]] if name == "RADIAL" else [f, f, cx, cy, *k[:4]]


def _lens_changes(model: Any) -> bool:
    """Whether a lens for each photo fits so much better that it is more than noise; asked of some of the points."""
    shared, own = (copied(model, FOR_LENSES, own_lenses) for own_lenses in (False, True))
    for some in (shared, own):
        adjust(some, centre=False)
    return squared_error(own) < OWN_LENS * squared_error(shared)


def squared_error(model: Any) -> float:
    """Mean squared reprojection error over all observations, pixels squared."""
    model.update_point_3d_errors()
    points = [(p.error, p.track.length()) for p in model.points3D.values()]
    errors, lengths = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return float((errors**2 * lengths).sum() / max(lengths.sum(), 1))


def copied(model: Any, most: int | None = None, own_lenses: bool = False) -> Any:
    """The same poses and points, or those of the longest tracks; with a SIMPLE_RADIAL camera for each photo, or with
    the cameras that there are."""
    import pycolmap

    copy = pycolmap.Reconstruction()
    if not own_lenses:
        for i in sorted({model.images[i].camera_id for i in model.reg_image_ids()}):
            copy.add_camera_with_trivial_rig(model.cameras[i])
    for i in sorted(model.reg_image_ids()):
        image = model.images[i]
        if own_lenses:
            shared = model.cameras[image.camera_id]
            focal = float(shared.mean_focal_length())
            camera = pycolmap.Camera.create_from_model_name(i, "SIMPLE_RADIAL", focal, shared.width, shared.height)
            copy.add_camera_with_trivial_rig(camera)
        points = np.array([p.xy for p in image.points2D], dtype=np.float64).reshape(-1, 2)
        camera_id = i if own_lenses else image.camera_id
        entry = pycolmap.Image(name=image.name, keypoints=points, camera_id=camera_id, image_id=i)
        copy.add_image_with_trivial_frame(entry, image.cam_from_world())
    ids = sorted(model.point3D_ids(), key=lambda i: (-model.points3D[i].track.length(), i))[:most]
    for point_id in ids:
        point = model.points3D[point_id]
        track = pycolmap.Track()
        for element in point.track.elements:
            track.add_element(element.image_id, element.point2D_idx)
        copy.add_point3D(point.xyz, track)
    return copy


def _centre_is_credible(camera: Any) -> bool:
    off = abs(camera.principal_point_x - camera.width / 2), abs(camera.principal_point_y - camera.height / 2)
    return CENTRE_FROM <= max(off) / max(camera.width, camera.height) <= CENTRE_WITHIN


def adjust(model: Any, centre: bool) -> None:
    """Bundle adjustment of everything; SOFT_L1 so that what still fits badly pulls little."""
    import pycolmap

    options = pycolmap.BundleAdjustmentOptions()
    options.refine_principal_point = centre
    options.print_summary = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.ceres.loss_function_scale = 1.0
    options.ceres.use_gpu = False
    options.ceres.solver_options.max_num_iterations = 60
    options.ceres.solver_options.function_tolerance = 1e-6  # what comes after moves no pose by a hundredth of a degree
    pycolmap.bundle_adjustment(model, options)


def to_full_size(model: Any, job: dict[str, Any]) -> None:
    """From pixels of the reduced pictures to those of the photos: intrinsics and observations."""
    size_of = {p["name"]: (p["width"], p["height"]) for p in job["photos"]}
    factors: dict[int, tuple[float, float]] = {}
    for image in model.images.values():
        if image.camera_id in factors:
            continue
        width, height = size_of[image.name]
        small = fitted((width, height), job["settings"]["longest"])
        factors[image.camera_id] = width / small[0], height / small[1]
        model.cameras[image.camera_id].rescale(width, height)
    for image in model.images.values():
        factor = np.array(factors[image.camera_id])
        if (factor != 1).any():
            for point in image.points2D:
                point.xy = point.xy * factor


def colour(model: Any, job: dict[str, Any]) -> None:
    """Colours of the points: the mean over the photos that see each."""
    ids = {int(p): k for k, p in enumerate(model.point3D_ids())}
    sums, counts = np.zeros((len(ids), 3)), np.zeros(len(ids))
    for i in model.reg_image_ids():
        image = model.images[i]
        seen = [(p.xy, ids[p.point3D_id]) for p in image.points2D if p.has_point3D()]
        if not seen:
            continue
        camera = model.cameras[image.camera_id]
        size = fitted((camera.width, camera.height), 800)
        try:
            with opened(Path(job["folder"], "images", image.name)) as picture:
                picture.draft("RGB", size)
                pixels = np.asarray(picture.convert("RGB").resize(size))
        except (OSError, UserError):
            continue
        xy, rows = np.array([s[0] for s in seen]), np.array([s[1] for s in seen])
        xy = (xy * (size[0] / camera.width, size[1] / camera.height)).astype(int)
        sums_of = pixels[np.clip(xy[:, 1], 0, size[1] - 1), np.clip(xy[:, 0], 0, size[0] - 1)]
        np.add.at(sums, rows, sums_of)
        np.add.at(counts, rows, 1)
    means = (sums / np.maximum(counts, 1)[:, None]).round().astype(np.uint8)
    for point_id, k in ids.items():
        model.points3D[point_id].color = means[k]
