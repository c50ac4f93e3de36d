"""Poses and points from the verified matches: COLMAP's incremental mapper, then one adjustment with the full lens."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from nerf.capture.dataset import write_model
from nerf.capture.panoramas import is_sphere
from nerf.capture.protocol import say
from nerf.datasets.resize import fitted
from nerf.errors import UserError
from nerf.io.opening import opened

RADIAL_FROM = 8  # photos of one camera from which on its lens gets a second radial term ...
LENS_FROM = 20  # ... and all of OPENCV's: its own focal length for each axis, and tangential terms
CENTRE_FROM = 20  # from which on its principal point is sought too
CENTRE_WITHIN = 0.06  # of the longer side: a principal point farther from the middle is not believed
# Of the squared error with a shared lens: below that each photo gets its own. That adds two parameters a photo, which
# fit noise where the lens was the same. By Schwarz (1978) they pay below exp(-k ln N / N), for k new parameters
# and N residuals: 0.977 for 100 photos of 500 observations (k = 200, N = 100 000). Residuals within a photo are not
# independent, as that assumes, so twice as much is asked for.
OWN_LENS = 0.95
SHARP = 2.0  # pixels of reprojection error that a point may have in the end


def reconstruct(job: dict[str, Any]) -> dict[str, Any]:
    """Map, take the largest model, refine it, and write it for the parent, unless it is of no more photos than
    job["better_than"], what an earlier attempt has; returns what there is to say about it."""
    import pycolmap

    folder = Path(job["folder"], "capture")
    output = folder / "models"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    n, placed = len(job["photos"]), 0

    def one_more(first: bool = False) -> None:
        nonlocal placed
        placed = 2 if first else placed + 1
        say(done=min(placed, n))

    say(stage="placing photos", total=n)
    options = options_of(job["settings"], n)
    models = pycolmap.incremental_mapping(
        job["database"], job["folder"], str(output), options, "", lambda: one_more(True), one_more
    )
    if not models:
        return {"n_placed": 0, "components": []}
    sizes = sorted((m.num_reg_images() for m in models.values()), reverse=True)
    largest = max(models.values(), key=lambda m: (m.num_reg_images(), m.num_points3D()))
    if largest.num_reg_images() <= job.get("better_than", 0):
        return {"n_placed": largest.num_reg_images(), "components": sizes}
    say(stage="refining", total=1)
    others = [[str(m.images[i].name) for i in m.reg_image_ids()] for m in models.values() if m is not largest]
    model = refine(largest)
    say(done=1)
    if model is not largest:
        say(note="the lens changed from photo to photo (focus or zoom): each keeps its own focal length")
    result = {
        "n_placed": model.num_reg_images(),
        "components": sizes,
        "placed": {str(model.images[i].name): int(model.images[i].num_points3D) for i in model.reg_image_ids()},
        "others": sorted(others, key=len, reverse=True),
        "n_points": model.num_points3D(),
        "reprojection_error": model.compute_mean_reprojection_error(),
        "track_length": model.compute_mean_track_length(),
    }
    to_full_size(model, job)
    colour(model, job)
    write_model(model, folder / "model")
    shutil.rmtree(output, ignore_errors=True)
    return result


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
    """Bundle adjustment with fuller lenses where there are photos enough, twice; points that fit badly go between."""
    # The principal point is sought too where a camera took many photos: phones that steady their pictures have it many
    # pixels off the middle, and a pose cannot make up for that in every photo. Where a plain lens for each photo fits
    # better than a full one for all, the lens has changed between them (focus, zoom), and each photo keeps its own.
    import pycolmap

    counts = Counter(model.images[i].camera_id for i in model.reg_image_ids())
    panoramas = [i for i in counts if is_sphere(model.cameras[i])]
    for i in panoramas:
        del counts[i]
    for camera_id, count in counts.items():
        camera = model.cameras[camera_id]
        f, cx, cy, k = camera.params
        if count >= LENS_FROM:
            camera.model = pycolmap.CameraModelId.OPENCV
            camera.params = [f, f, cx, cy, k, 0.0, 0.0, 0.0]
        elif count >= RADIAL_FROM:
            camera.model = pycolmap.CameraModelId.RADIAL
            camera.params = [f, cx, cy, k, 0.0]
    adjust(model, centre=False)
    pycolmap.ObservationManager(model).filter_all_points3D(SHARP, 1.5)
    many = max(counts.values(), default=0) >= CENTRE_FROM
    own = with_own_lenses(model) if many and not panoramas else None
    lenses = {i: np.array(camera.params) for i, camera in model.cameras.items()}
    adjust(model, centre=many)
    if many and not all(_centre_is_credible(model.cameras[i]) for i in counts):
        for i, params in lenses.items():
            model.cameras[i].params = params
        adjust(model, centre=False)
    if own is not None:
        adjust(own, centre=False)
        if squared_error(own) < OWN_LENS * squared_error(model):
            model = own
    model.update_point_3d_errors()
    return model


def squared_error(model: Any) -> float:
    """Mean squared reprojection error over all observations, pixels squared."""
    model.update_point_3d_errors()
    points = [(p.error, p.track.length()) for p in model.points3D.values()]
    errors, lengths = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return float((errors**2 * lengths).sum() / max(lengths.sum(), 1))


def with_own_lenses(model: Any) -> Any:
    """The same poses and points, with a SIMPLE_RADIAL camera of its own for each photo."""
    import pycolmap

    own = pycolmap.Reconstruction()
    for i in sorted(model.reg_image_ids()):
        image = model.images[i]
        shared = model.cameras[image.camera_id]
        focal = float(shared.mean_focal_length())
        camera = pycolmap.Camera.create_from_model_name(i, "SIMPLE_RADIAL", focal, shared.width, shared.height)
        own.add_camera_with_trivial_rig(camera)
        points = np.array([p.xy for p in image.points2D], dtype=np.float64).reshape(-1, 2)
        copy = pycolmap.Image(name=image.name, keypoints=points, camera_id=i, image_id=i)
        own.add_image_with_trivial_frame(copy, image.cam_from_world())
    for point_id in model.point3D_ids():
        point = model.points3D[point_id]
        track = pycolmap.Track()
        for element in point.track.elements:
            track.add_element(element.image_id, element.point2D_idx)
        own.add_point3D(point.xyz, track)
    return own


def _centre_is_credible(camera: Any) -> bool:
    off = abs(camera.principal_point_x - camera.width / 2), abs(camera.principal_point_y - camera.height / 2)
    return max(off) <= CENTRE_WITHIN * max(camera.width, camera.height)


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
