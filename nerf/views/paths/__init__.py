"""Camera paths: a turntable, a flight along the input cameras, a spiral for forward-facing sets, and paths from JSON.

Every path is `Cameras` in the world frame of the input, perspective and without distortion, its principal point in the
middle. The focal length is that of the input cameras (their median) in terms of the shorter side of the picture, so a
path drawn with the inputs' size sees what they saw, and at another size or aspect ratio nothing is stretched.
"""

from __future__ import annotations

from torch import Tensor

from nerf.errors import Range, UserError, check_numbers
from nerf.geometry.aim import common_up, focus_distance, look_at_point
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Similarity, Space
from nerf.views.paths.key_frames import PATH_FORMAT, load_path, save_path
from nerf.views.paths.kinds import interpolate, orbit, spiral
from nerf.views.paths.lens import CameraPath, picture_size, with_lens_of

__all__ = ["PATH_FORMAT", "PATH_KINDS", "CameraPath", "camera_path", "load_path", "save_path"]

PATH_KINDS = ("orbit", "interpolate", "spiral")
FEW = 30  # photos of an open scene, below which new views far from all of them are blurred


def camera_path(
    kind: str,
    cameras: Cameras,
    scene_from_world: Similarity,
    space: Space,
    n_frames: int = 120,
    fps: float = 30.0,
    width: int | None = None,
    height: int | None = None,
    longest: int | None = None,
    up: Tensor | None = None,
) -> CameraPath:
    """A path of the given kind around or along the input cameras: "orbit", "interpolate", "spiral" or "auto".

    "auto" takes the spiral for forward-facing scenes, the flight through the cameras (interpolate) for
    open ones of few photos, and the orbit for all others. width and height in pixels; without them the median size of
    the inputs, with one of them the other keeps their aspect ratio; longest caps what is not given. Orbit and spiral
    stand upright even where the photos lie on their side; up [3]: of unit length, world (None: as the cameras say).
    Raises UserError for an unknown kind or too few cameras.

    >>> model = nerf.Model.load("runs/robot/checkpoint.safetensors")
    >>> path = nerf.camera_path("orbit", model.cameras, model.scene_from_world, model.space, n_frames=8, longest=64)
    >>> len(path.cameras), path.fps
    (8, 30.0)
    """
    if len(cameras) == 0:
        raise UserError("a camera path needs the input cameras, but this model holds none; give a camera-path JSON")
    check_numbers({"frames": n_frames}, {"frames": Range(1, 100_000, whole=True)}, "--")  # nearly an hour
    if kind == "auto":
        few = space.contracted and 1 < len(cameras) < FEW
        kind = "spiral" if space.warped else "interpolate" if few else "orbit"
    if kind == "orbit":
        poses, description = orbit(cameras, look_at_point(cameras, scene_from_world, space), n_frames, up)
    elif kind == "interpolate":
        poses, description = interpolate(cameras, n_frames)
    elif kind == "spiral":
        poses, description = spiral(cameras, focus_distance(cameras, scene_from_world, space), n_frames, up)
    else:
        raise UserError(
            f"--path {kind}: expected {', '.join(PATH_KINDS)} or a camera-path file ending in .json that exists"
        )
    turned = kind != "interpolate" and common_up(cameras)[1]
    if turned:
        description += " (upright; the photos lie on their side)"
    w, h = picture_size(cameras, turned, width, height, longest)
    return CameraPath(with_lens_of(poses, cameras, w, h), fps, description)
