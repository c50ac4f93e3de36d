"""Camera paths: a turntable, a flight along the input cameras, a spiral for forward-facing sets, and paths from JSON.

Every path is `Cameras` in the world frame of the input, perspective and without distortion, its principal point in the
middle. The focal length is that of the input cameras (their median) in terms of the shorter side of the picture, so a
path drawn with the inputs' size sees what they saw, and at another size or aspect ratio nothing is stretched.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.cameras import Cameras
from nerf.errors import UserError
from nerf.space import Similarity

PATH_FORMAT = "nerf-camera-path"
PATH_KINDS = ("orbit", "interpolate", "spiral")


@dataclass
class CameraPath:
    """A path ready to be rendered: cameras in the world frame, frames per second, a sentence on how it was made."""

    cameras: Cameras
    fps: float
    description: str


def make_path(
    kind: str,
    cameras: Cameras,
    scene_from_world: Similarity,
    space: str,
    n_frames: int = 120,
    fps: float = 30.0,
    width: int | None = None,
    height: int | None = None,
    longest: int | None = None,
) -> CameraPath:
    """A path of the given kind around or along the input cameras: "orbit", "interpolate", "spiral" or "auto".

    "auto" takes the spiral for forward-facing scenes (space "ndc") and the orbit for all others. width and height in
    pixels; without them the median size of the inputs, with one of them the other keeps their aspect ratio; longest
    caps what is not given. Orbit and spiral stand upright even where the photos lie on their side.
    Raises UserError for an unknown kind or too few cameras.
    """
    if len(cameras) == 0:
        raise UserError("a camera path needs the input cameras, but this model holds none; give a camera-path JSON")
    if n_frames < 1:
        raise UserError(f"--frames must be at least 1, got {n_frames}")
    if kind == "auto":
        kind = "spiral" if space == "ndc" else "orbit"
    if kind == "orbit":
        poses, description = orbit(cameras, look_at_point(cameras, scene_from_world, space), n_frames)
    elif kind == "interpolate":
        poses, description = interpolate(cameras, n_frames)
    elif kind == "spiral":
        poses, description = spiral(cameras, focus_distance(cameras, scene_from_world, space), n_frames)
    else:
        raise UserError(
            f"--path {kind}: expected {', '.join(PATH_KINDS)} or a camera-path file ending in .json that exists"
        )
    turned = kind != "interpolate" and common_up(cameras)[1]
    if turned:
        description += " (upright; the photos lie on their side)"
    w, h = _size(cameras, turned, width, height, longest)
    return CameraPath(with_lens_of(poses, cameras, w, h), fps, description)


# ---- what the input cameras say about the scene


def common_up(cameras: Cameras) -> tuple[Tensor, bool]:
    """(up [3] float64 of unit length in the world frame, whether the photos lie on their side).

    Photos are seldom rolled, so their right axes lie in the level plane: up is what is most nearly perpendicular to all
    of them. (The mean of the up axes leans over as soon as the cameras look down and stand on one side only; it decides
    the sign, and everything where the right axes do not span a plane.) Phones held upright may save photos on their
    side; then it is the up axes that lie in the level plane, much more nearly than the right axes do.
    """
    rights, ups = cameras.c2w[:, :, 0].double(), cameras.c2w[:, :, 1].double()
    level, axis = _normal_of(rights)
    level_sideways, axis_sideways = _normal_of(ups)
    if level_sideways < 0.3 * level and abs(float(axis_sideways @ rights.mean(dim=0))) > 0.3:
        # Turned to the left or to the right? More photos look down on things than up at them.
        return axis_sideways * math.copysign(
            1.0, float(axis_sideways @ cameras.c2w[:, :, 2].double().mean(dim=0))
        ), True
    mean = ups.mean(dim=0)
    along = float(axis @ mean)
    if math.isfinite(level) and abs(along) > 0.05:
        return axis * math.copysign(1.0, along), False
    if float(mean.norm()) < 0.05:  # cameras of every orientation: no common up to be found
        return torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), False
    return mean / mean.norm(), False


def _normal_of(axes: Tensor) -> tuple[float, Tensor]:
    """The direction most nearly perpendicular to axes [n,3]: (mean squared cosine to it, direction [3]).

    Infinity where they do not span a plane: they are all parallel, or of every direction.
    """
    spread, directions = torch.linalg.eigh(axes.T @ axes / len(axes))
    plane = float(spread[1]) > 0.1 and float(spread[0]) < 0.5 * float(spread[1])
    # Rounding may leave a tiny negative number; a floor of (half a degree) squared keeps ratios of nothing out.
    return max(float(spread[0]), 1e-4) if plane else math.inf, directions[:, 0]


def nearest_point_to_axes(cameras: Cameras) -> Tensor | None:
    """The world point [3] with the least squared distance to all optical axes; None where these are parallel."""
    origins, forward = cameras.c2w[:, :, 3].double(), -cameras.c2w[:, :, 2].double()
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    system = across.mean(dim=0)
    # The smallest eigenvalue is the mean squared sine of the angles to the most common direction.
    if float(torch.linalg.eigvalsh(system)[0]) < 1e-3:
        return None
    point = torch.linalg.solve(system, torch.einsum("nij,nj->i", across, origins) / len(origins))
    in_front = torch.einsum("nj,nj->n", point - origins, forward)
    return point if float(in_front.median()) > 0 else None


def look_at_point(cameras: Cameras, scene_from_world: Similarity, space: str) -> Tensor:
    """The world point [3] float64 to circle: the middle of the object's box, else where the optical axes meet."""
    middle = scene_from_world.inverse().apply(torch.zeros(3, dtype=torch.float64))
    if space == "box":
        return middle
    point = nearest_point_to_axes(cameras)
    if point is not None:
        return point
    origins, forward = cameras.c2w[:, :, 3].double(), -cameras.c2w[:, :, 2].double()
    return origins.mean(dim=0) + focus_distance(cameras, scene_from_world, space) * forward.mean(dim=0)


def focus_distance(cameras: Cameras, scene_from_world: Similarity, space: str) -> float:
    """How far in front of the cameras the scene lies, in world units."""
    if space == "ndc":
        # The near plane is at 1 in the scene, the far one at infinity; NeRF's choice: 3/4 of the way in disparity.
        return 1.0 / ((0.25 + 0.75 / 5.0) * scene_from_world.scale)
    point = nearest_point_to_axes(cameras)
    if point is None:
        return 1.0 / scene_from_world.scale
    forward = -cameras.c2w[:, :, 2].double()
    return max(float(((point - cameras.c2w[:, :, 3].double()) * forward).sum(dim=1).median()), 1e-6)


def look_at(origins: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Poses [n,3,4], OpenGL camera-to-world, at origins [n,3] towards target [3] or [n,3], `up` [3] upwards."""
    backward = torch.nn.functional.normalize(origins - target, dim=-1)
    up = up.expand_as(backward)
    right = torch.linalg.cross(up, backward)
    # Looking straight along `up` leaves the roll open: take any axis that is not parallel to it.
    other = torch.eye(3, dtype=origins.dtype)[int(up[0].abs().argmin())].expand_as(backward)
    right = torch.where(right.norm(dim=-1, keepdim=True) > 1e-6, right, torch.linalg.cross(other, backward))
    right = torch.nn.functional.normalize(right, dim=-1)
    return torch.stack([right, torch.linalg.cross(backward, right), backward, origins], dim=-1)


# ---- the paths: poses [n,3,4] float64 in the world frame, and a sentence


def orbit(cameras: Cameras, centre: Tensor, n_frames: int) -> tuple[Tensor, str]:
    """A turntable around `centre` [3] at the cameras' mean elevation and distance; the last frame leads into the first.

    Where the photos cover only part of the circle (a gap of more than 70 degrees), the camera swings to and fro within
    the part that they saw, for nothing is known of the rest.
    """
    up = common_up(cameras)[0]
    offsets = cameras.c2w[:, :, 3].double() - centre
    distances = offsets.norm(dim=1).clamp_min(1e-9)
    distance = float(distances.mean())
    elevations = torch.asin((offsets @ up / distances).clamp(-1, 1))
    # Straight above, a turntable spins on the spot; 75 degrees is steep enough.
    elevation = float(elevations.mean().clamp(-math.radians(75), math.radians(75)))
    # Azimuth is measured from the first camera, so that the path begins near a photo.
    level = offsets - (offsets @ up)[:, None] * up
    first = level[int(level.norm(dim=1).argmax())] if float(level[0].norm()) < 1e-3 * distance else level[0]
    if float(first.norm()) < 1e-6 * distance:  # all cameras on the axis: any direction will do
        first = torch.linalg.cross(up, torch.eye(3, dtype=torch.float64)[int(up.abs().argmin())])
    ahead = first / first.norm()
    left = torch.linalg.cross(up, ahead)
    seen = level.norm(dim=1) > 0.05 * distance  # cameras near the axis say nothing about azimuth
    azimuths = torch.atan2(level @ left, level @ ahead)[seen]
    start, covered = covered_arc(azimuths)
    steps = torch.arange(n_frames, dtype=torch.float64) / n_frames
    if covered > math.radians(290):
        angles = 2 * math.pi * steps
        description = "orbit: a full turn"
    else:
        angles = start + covered * (0.5 - 0.5 * torch.cos(2 * math.pi * steps))
        description = f"orbit: to and fro over the {math.degrees(covered):.0f} degrees that the photos cover"
    level_distance, height = distance * math.cos(elevation), distance * math.sin(elevation)
    circle = angles.cos()[:, None] * ahead + angles.sin()[:, None] * left
    description += f" at elevation {math.degrees(elevation):.0f} degrees, distance {distance:.4g}"
    return look_at(centre + level_distance * circle + height * up, centre, up), description


def covered_arc(azimuths: Tensor) -> tuple[float, float]:
    """(start, length) in radians of the shortest arc that holds all azimuths [n]; (0, 0) for none."""
    if len(azimuths) == 0:
        return 0.0, 0.0
    ordered = azimuths.double().sort().values
    gaps = torch.cat([ordered[1:], ordered[:1] + 2 * math.pi]) - ordered
    widest = int(gaps.argmax())
    return float(ordered[(widest + 1) % len(ordered)]), 2 * math.pi - float(gaps[widest])


def interpolate(cameras: Cameras, n_frames: int, n_keys: int = 24) -> tuple[Tensor, str]:
    """A smooth flight through at most `n_keys` of the input cameras, spread evenly over their order, ends included.

    The order is that of the cameras where it is a walk (a capture, sorted by name), else a short tour from neighbour
    to neighbour. Positions and (sign-aligned, normalised) quaternions run along Catmull-Rom splines through the keys,
    timed by distance, so the speed hardly changes and the path passes through every key.
    """
    order = _walking_order(cameras)
    keys = order[torch.linspace(0, len(order) - 1, min(n_keys, len(order))).round().long()]
    origins = cameras.c2w[keys, :, 3].double()
    quaternions = _aligned(matrix_to_quaternion(cameras.c2w[keys, :, :3].double()))
    description = f"interpolate: through {len(keys)} of {len(cameras)} input cameras"
    if len(keys) == 1:
        return cameras.c2w[keys].double().expand(n_frames, 3, 4).clone(), description
    # Time between keys: distance, plus turning weighted so that one radian counts as the mean step.
    steps = (origins[1:] - origins[:-1]).norm(dim=1)
    turns = 2 * torch.acos((quaternions[1:] * quaternions[:-1]).sum(dim=1).clamp(-1, 1))
    lengths = steps + turns * max(float(steps.mean()), 1e-9)
    lengths = lengths.clamp_min(1e-3 * max(float(lengths.mean()), 1e-9))
    times = torch.cat([torch.zeros(1, dtype=torch.float64), lengths.cumsum(0)])
    at = torch.linspace(0, float(times[-1]), n_frames, dtype=torch.float64)
    values = _catmull_rom(times, torch.cat([origins, quaternions], dim=1), at)
    rotations = quaternion_to_matrix(torch.nn.functional.normalize(values[:, 3:], dim=1))
    return torch.cat([rotations, values[:, :3, None]], dim=2), description


def spiral(cameras: Cameras, focus: float, n_frames: int, turns: int = 2) -> tuple[Tensor, str]:
    """The spiral of LLFF and NeRF: loops around the mean camera, towards a point `focus` world units ahead of it.

    Its radii are the 80th percentile of the input cameras' offsets along the mean camera's own axes, so it stays among
    them; the last frame leads into the first.
    """
    origins = cameras.c2w[:, :, 3].double()
    centre = origins.mean(dim=0)
    backward = torch.nn.functional.normalize(cameras.c2w[:, :, 2].double().mean(dim=0), dim=0)
    mean = look_at(centre[None], (centre - backward)[None], common_up(cameras)[0])[0]
    offsets = (origins - centre) @ mean[:, :3]
    radii = torch.quantile(offsets.abs(), 0.8, dim=0)
    steps = 2 * math.pi * turns * torch.arange(n_frames, dtype=torch.float64) / n_frames
    # In depth it goes to and fro at half the rate: a spiral and not a circle.
    local = torch.stack([steps.cos(), -steps.sin(), -(0.5 * steps).sin()], dim=1) * radii
    poses = look_at(centre + local @ mean[:, :3].T, centre - focus * mean[:, 2], mean[:, 1])
    return poses, f"spiral: {turns} loops around the mean camera, towards a point {focus:.4g} ahead"


def _size(
    cameras: Cameras, turned: bool, width: int | None, height: int | None, longest: int | None
) -> tuple[int, int]:
    """(width, height) of the pictures of a path, from what was asked for and the inputs' median size."""
    w0, h0 = int(cameras.widths.median()), int(cameras.heights.median())
    if turned:
        w0, h0 = h0, w0
    if width is None and height is None:
        scale = 1.0 if longest is None else min(1.0, longest / max(w0, h0))
        width, height = max(1, round(w0 * scale)), max(1, round(h0 * scale))
    elif height is None:
        assert width is not None
        height = max(1, round(h0 * width / w0))
    elif width is None:
        width = max(1, round(w0 * height / h0))
    for name, value in (("--width", width), ("--height", height)):
        if not 1 <= value <= 16384:
            raise UserError(f"{name} must be from 1 to 16384 pixels, got {value}")
    return width, height


def with_lens_of(poses: Tensor, cameras: Cameras, width: int, height: int) -> Cameras:
    """Perspective cameras at poses [n,3,4] with pictures of width x height, their focal length that of the inputs."""
    shorter = torch.minimum(cameras.widths, cameras.heights).double()
    focal_x = float((cameras.fx / shorter).median()) * min(width, height)
    focal_y = float((cameras.fy / shorter).median()) * min(width, height)
    return _perspective(poses, [focal_x] * len(poses), [focal_y] * len(poses), width, height)


def _perspective(poses: Tensor, fx: list[float], fy: list[float], width: int, height: int) -> Cameras:
    n = len(poses)
    return Cameras(
        c2w=poses.double(),
        fx=torch.tensor(fx, dtype=torch.float64),
        fy=torch.tensor(fy, dtype=torch.float64),
        cx=torch.full((n,), width / 2, dtype=torch.float64),
        cy=torch.full((n,), height / 2, dtype=torch.float64),
        widths=torch.full((n,), width, dtype=torch.int64),
        heights=torch.full((n,), height, dtype=torch.int64),
        models=torch.zeros(n, dtype=torch.int64),
        distortion=torch.zeros(n, 6, dtype=torch.float64),
    )


# ---- splines and rotations


def _walking_order(cameras: Cameras) -> Tensor:
    """Indices [n]: as given, unless a tour from neighbour to neighbour is much shorter."""
    origins = cameras.c2w[:, :, 3].double()
    n = len(origins)
    as_given = list(range(n))
    if n < 4:
        return torch.tensor(as_given)
    apart = torch.cdist(origins, origins).tolist()
    # Begin at the camera farthest from the middle, go to the nearest unvisited one, then undo crossings (2-opt).
    tour = [int((origins - origins.mean(dim=0)).norm(dim=1).argmax())]
    left = set(as_given) - set(tour)
    while left:
        tour.append(min(left, key=apart[tour[-1]].__getitem__))
        left.remove(tour[-1])
    for _ in range(10 if n <= 300 else 0):
        improved = False
        for i in range(n - 2):
            for j in range(i + 2, n):
                a, b, c = tour[i], tour[i + 1], tour[j]
                change = apart[a][c] - apart[a][b]
                if j + 1 < n:
                    change += apart[b][tour[j + 1]] - apart[c][tour[j + 1]]
                if change < -1e-12:
                    tour[i + 1 : j + 1] = tour[i + 1 : j + 1][::-1]
                    improved = True
        if not improved:
            break

    def length(order: list[int]) -> float:
        return sum(apart[a][b] for a, b in zip(order[:-1], order[1:], strict=True))

    return torch.tensor(as_given if length(as_given) < 1.7 * length(tour) else tour)


def _catmull_rom(times: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """Cubic Hermite spline through values [k,c] at increasing times [k], evaluated at [n]: [n,c].

    Tangents are the slopes of the parabolas through neighbouring keys (non-uniform Catmull-Rom), one-sided at the ends.
    """
    step = times[1:] - times[:-1]
    slope = (values[1:] - values[:-1]) / step[:, None]
    tangent = torch.cat([slope[:1], slope[-1:]]) if len(times) == 2 else torch.empty_like(values)
    if len(times) > 2:
        weight = (step[1:] / (step[1:] + step[:-1]))[:, None]
        tangent[1:-1] = weight * slope[:-1] + (1 - weight) * slope[1:]
        tangent[0], tangent[-1] = slope[0], slope[-1]
    k = (torch.searchsorted(times, at, right=True) - 1).clamp(0, len(times) - 2)
    u = ((at - times[k]) / step[k])[:, None]
    h = step[k][:, None]
    return (
        (1 + 2 * u) * (1 - u) ** 2 * values[k]
        + u * (1 - u) ** 2 * h * tangent[k]
        + u**2 * (3 - 2 * u) * values[k + 1]
        + u**2 * (u - 1) * h * tangent[k + 1]
    )


def _aligned(quaternions: Tensor) -> Tensor:
    """q and -q are one rotation: choose signs [k,4] so that each is on the side of the one before."""
    out = quaternions.clone()
    for i in range(1, len(out)):
        if float((out[i] * out[i - 1]).sum()) < 0:
            out[i] = -out[i]
    return out


def matrix_to_quaternion(rotations: Tensor) -> Tensor:
    """[n,3,3] -> unit quaternions [n,4] (w, x, y, z), from the largest component, so that none is divided by 0."""
    m = rotations
    squares = torch.stack(
        [
            1 + m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2],
            1 + m[:, 0, 0] - m[:, 1, 1] - m[:, 2, 2],
            1 - m[:, 0, 0] + m[:, 1, 1] - m[:, 2, 2],
            1 - m[:, 0, 0] - m[:, 1, 1] + m[:, 2, 2],
        ],
        dim=1,
    )
    a = torch.stack([m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], dim=1)
    s01, s02, s12 = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    rows = torch.stack(
        [
            torch.stack([squares[:, 0], a[:, 0], a[:, 1], a[:, 2]], dim=1),
            torch.stack([a[:, 0], squares[:, 1], s01, s02], dim=1),
            torch.stack([a[:, 1], s01, squares[:, 2], s12], dim=1),
            torch.stack([a[:, 2], s02, s12, squares[:, 3]], dim=1),
        ],
        dim=1,
    )  # each row is 4 q_k q: the quaternion times its own k-th component
    best = rows[torch.arange(len(m)), squares.argmax(dim=1)]
    return torch.nn.functional.normalize(best, dim=1)


def quaternion_to_matrix(quaternions: Tensor) -> Tensor:
    """Unit quaternions [n,4] (w, x, y, z) -> rotations [n,3,3]."""
    w, x, y, z = quaternions.unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


# ---- camera paths in JSON


def save_path(path: Path, camera_path: CameraPath) -> None:
    """Write our own camera-path JSON.

    {"format": "nerf-camera-path", "version": 1, "width": pixels, "height": pixels, "fps": number, "frames": [
     {"camera_to_world": 3 or 4 rows of 4 numbers, "vertical_fov": degrees}, ...]}
    Poses are OpenGL camera-to-world (x right, y up, looking along -z) in the world frame of the input photos' poses.
    """
    cameras = camera_path.cameras
    fovs = torch.rad2deg(2 * torch.atan(cameras.heights / (2 * cameras.fy)))
    frames = [
        {"camera_to_world": pose, "vertical_fov": fov}
        for pose, fov in zip(cameras.c2w.tolist(), fovs.tolist(), strict=True)
    ]
    content = {
        "format": PATH_FORMAT,
        "version": 1,
        "width": int(cameras.widths[0]),
        "height": int(cameras.heights[0]),
        "fps": camera_path.fps,
        "frames": frames,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_path(path: Path, width: int | None = None, height: int | None = None) -> CameraPath:
    """Read a camera path: our own format (see `save_path`) or nerfstudio's camera_path JSON.

    nerfstudio: {"render_width", "render_height", "fps", "camera_path": [{"camera_to_world": 16 numbers, row by row,
    "fov": vertical, degrees}, ...]}. Its viewer writes poses in nerfstudio's own normalised frame; we read them as
    they are, in the world frame. width and height override the file's; the vertical field of view stays.
    Raises UserError, one sentence with file, frame and key, for anything missing or impossible.
    """
    content = _read_json(path)
    if content.get("format") == PATH_FORMAT:
        if content.get("version") != 1:
            raise UserError(f"{path}: version {content.get('version')!r} of the camera-path format; expected 1")
        keys, fov_key = ("width", "height", "frames"), "vertical_fov"
        description = "camera path"
    elif "camera_path" in content:
        keys, fov_key = ("render_width", "render_height", "camera_path"), "fov"
        description = "nerfstudio camera path, its poses taken as world frame of the input"
        if content.get("camera_type", "perspective") != "perspective":
            raise UserError(f'{path}: camera_type {content["camera_type"]!r} is not supported, only "perspective"')
    else:
        raise UserError(
            f'{path}: no camera path; expected "format": "{PATH_FORMAT}" with "frames", or nerfstudio\'s "camera_path"'
        )
    frames = content.get(keys[2])
    if not isinstance(frames, list) or not frames:
        raise UserError(f'{path}: "{keys[2]}" must be a list of at least one frame')
    file_width, file_height = (_number(path, content, key, "") for key in keys[:2])
    if width is None and height is None:
        width, height = int(file_width), int(file_height)
    elif height is None:
        assert width is not None
        height = max(1, round(file_height * width / file_width))
    elif width is None:
        width = max(1, round(file_width * height / file_height))
    if not (1 <= width <= 16384 and 1 <= height <= 16384):
        raise UserError(f"{path}: a picture of {width}x{height} pixels; expected 1 to 16384 each way")
    poses, focals = [], []
    for i, frame in enumerate(frames):
        where = f"frame {i}: "
        if not isinstance(frame, dict):
            raise UserError(f"{path}: {where}expected an object with camera_to_world and {fov_key}")
        poses.append(_pose(path, frame.get("camera_to_world"), where))
        fov = _number(path, frame, fov_key, where)
        if not 0 < fov < 180:
            raise UserError(f'{path}: {where}"{fov_key}" must lie between 0 and 180 degrees, got {fov:g}')
        focals.append(height / (2 * math.tan(math.radians(fov) / 2)))
    fps = _number(path, content, "fps", "") if "fps" in content else 30.0
    if not 0 < fps <= 1000:
        raise UserError(f'{path}: "fps" must be above 0 and at most 1000, got {fps:g}')
    cameras = _perspective(torch.stack(poses), focals, focals, width, height)
    return CameraPath(cameras, fps, f"{description} from {path.name}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such camera-path file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; expected a camera path in JSON") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not valid JSON, line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply for a camera path") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _number(path: Path, where_from: dict[str, Any], key: str, where: str) -> float:
    value = where_from.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        got = "nothing" if key not in where_from else repr(value)
        raise UserError(f'{path}: {where}"{key}" must be a number above 0, got {got}')
    return float(value)


def _pose(path: Path, value: Any, where: str) -> Tensor:
    """16 or 12 numbers, flat or in rows -> [3,4] float64 with an orthonormal rotation (uniform scale is taken out)."""
    try:
        numbers = torch.tensor(value, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = torch.zeros(0)
    if len(numbers) not in (12, 16):
        raise UserError(f'{path}: {where}"camera_to_world" must be 16 numbers (or 12), row by row')
    if not bool(numbers.isfinite().all()):
        raise UserError(f'{path}: {where}"camera_to_world" holds a number that is not finite')
    pose = numbers.reshape(-1, 4)[:3]
    size = torch.linalg.det(pose[:, :3])
    if float(size) <= 1e-12:
        reason = "is singular" if float(size.abs()) <= 1e-12 else "is mirrored"
        raise UserError(f'{path}: {where}"camera_to_world" {reason} (determinant {float(size):.3g}, expected 1)')
    u, stretch, v = torch.linalg.svd(pose[:, :3])
    if float(stretch[0] / stretch[2]) > 1.02:
        raise UserError(f'{path}: {where}"camera_to_world" is no rotation: its axes are skewed or of unequal length')
    return torch.cat([u @ v, pose[:, 3:]], dim=1)
