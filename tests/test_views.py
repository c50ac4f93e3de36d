"""Camera paths, their JSON, colour maps, and pictures and videos written to disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeModel, ring_cameras

from nerf.errors import UserError
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Box, Ndc, Similarity, Unbounded
from nerf.io.pictures import apply_colour_map, colour_map, error_map, panels, to_display
from nerf.rendering.view import View
from nerf.views import paths, video

ORIGIN = torch.zeros(3, dtype=torch.float64)
IDENTITY, NDC = Similarity.identity(), Ndc(1.0, 1.0)


def is_rotation(poses: torch.Tensor) -> bool:
    r = poses[:, :, :3]
    eye = torch.eye(3, dtype=r.dtype)
    return bool(torch.allclose(r @ r.transpose(1, 2), eye.expand_as(r), atol=1e-9)) and bool(
        (torch.linalg.det(r) > 0).all()
    )


# ---- paths


def test_orbit_of_a_ring_is_the_ring() -> None:
    cameras = ring_cameras(12, elevation=0.4, distance=3.0)
    poses, _ = paths.orbit(cameras, ORIGIN, 12)
    assert is_rotation(poses)
    torch.testing.assert_close(poses, cameras.c2w, atol=1e-9, rtol=0)


def test_orbit_keeps_elevation_distance_and_target() -> None:
    centre = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    cameras = ring_cameras(20, elevation=0.3, distance=2.0)
    cameras.c2w[:, :, 3] += centre
    poses, _ = paths.orbit(cameras, centre, 50)
    offsets = poses[:, :, 3] - centre
    torch.testing.assert_close(offsets.norm(dim=1), torch.full((50,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(offsets[:, 2], torch.full((50,), 2 * math.sin(0.3), dtype=torch.float64))
    torch.testing.assert_close(-poses[:, :, 2], -offsets / 2.0)  # looks at the centre
    # Equal steps, and the step from the last frame to the first is one of them: it loops.
    steps = (poses[:, :, 3] - poses[:, :, 3].roll(1, 0)).norm(dim=1)
    assert float(steps.max() - steps.min()) < 1e-9


def test_orbit_of_a_partial_capture_stays_where_the_photos_were() -> None:
    cameras = ring_cameras(20, arc=math.radians(120))  # azimuths 0 to 114 degrees
    poses, description = paths.orbit(cameras, ORIGIN, 60)
    azimuths = torch.rad2deg(torch.atan2(poses[:, 1, 3], poses[:, 0, 3]))
    assert float(azimuths.min()) == pytest.approx(0, abs=1e-6) and float(azimuths.max()) == pytest.approx(114, abs=1e-6)
    assert "114 degrees" in description


@pytest.mark.parametrize("n", [1, 2])
def test_orbit_of_very_few_or_overhead_cameras_is_finite(n: int) -> None:
    cameras = ring_cameras(n)
    cameras.c2w[:, :, 3] = torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64)
    poses, _ = paths.orbit(cameras, ORIGIN, 5)
    assert poses.isfinite().all() and is_rotation(poses)


def test_covered_arc_wraps_around() -> None:
    start, length = paths.kinds.covered_arc(torch.deg2rad(torch.tensor([170.0, -170.0, 150.0, -150.0])))
    assert math.degrees(start) == pytest.approx(150) and math.degrees(length) == pytest.approx(60)


def test_interpolated_path_passes_through_its_keys() -> None:
    cameras = ring_cameras(6, arc=math.radians(200))
    poses, _ = paths.interpolate(cameras, 5 * 40 + 1)
    assert is_rotation(poses)
    for pose in cameras.c2w:
        nearest = (poses - pose).abs().amax(dim=(1, 2)).min()
        assert float(nearest) < 0.03  # a frame lies within half a step of every key
    torch.testing.assert_close(poses[0], cameras.c2w[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(poses[-1], cameras.c2w[-1], atol=1e-9, rtol=0)
    steps = (poses[1:, :, 3] - poses[:-1, :, 3]).norm(dim=1)
    assert float(steps.max()) < 1.5 * float(steps.mean())


def test_interpolation_survives_a_single_and_coincident_cameras() -> None:
    one = ring_cameras(1)
    poses, _ = paths.interpolate(one, 4)
    assert poses.shape == (4, 3, 4)
    same = ring_cameras(3)
    same.c2w[:] = same.c2w[:1]
    poses, _ = paths.interpolate(same, 7)
    torch.testing.assert_close(poses, same.c2w[:1].expand(7, 3, 4), atol=1e-9, rtol=0)


def test_shuffled_cameras_are_walked_in_order() -> None:
    cameras = ring_cameras(16, arc=math.radians(180))
    shuffled = cameras.subset(torch.randperm(16, generator=torch.Generator().manual_seed(0)))
    poses, _ = paths.interpolate(shuffled, 100)
    length = float((poses[1:, :, 3] - poses[:-1, :, 3]).norm(dim=1).sum())
    direct = float((cameras.c2w[1:, :, 3] - cameras.c2w[:-1, :, 3]).norm(dim=1).sum())
    assert length < 1.05 * direct


def test_spiral_stays_among_the_cameras_and_loops() -> None:
    grid = torch.tensor([[x, y, 0.1 * x] for x in (-1.0, 0.0, 1.0) for y in (-0.5, 0.0, 0.5)], dtype=torch.float64)
    cameras = ring_cameras(9)
    cameras.c2w[:, :, :3] = torch.eye(3, dtype=torch.float64)
    cameras.c2w[:, :, 3] = grid
    poses, _ = paths.spiral(cameras, focus=4.0, n_frames=60)
    assert is_rotation(poses)
    assert float(poses[:, 0, 3].abs().max()) <= 1 + 1e-9 and float(poses[:, 1, 3].abs().max()) <= 0.5 + 1e-9
    # All axes go through the point 4 ahead of the middle.
    to_focus = torch.tensor([0.0, 0.0, -4.0], dtype=torch.float64) - poses[:, :, 3]
    torch.testing.assert_close(-poses[:, :, 2], to_focus / to_focus.norm(dim=1, keepdim=True))
    steps = (poses[:, :, 3] - poses[:, :, 3].roll(1, 0)).norm(dim=1)
    assert float(steps.max()) < 3 * float(steps.mean())


@pytest.mark.parametrize("quarter", [1, -1])
def test_photos_on_their_side_give_an_upright_orbit(quarter: int) -> None:
    """A phone held upright that saved its photos turned by 90 degrees, either way, with a shaky hand."""
    upright = ring_cameras(24, elevation=0.5, distance=3.0)
    cameras = ring_cameras(24, elevation=0.5, distance=3.0)
    right, top = upright.c2w[:, :, 0].clone(), upright.c2w[:, :, 1].clone()
    shake = 0.1 * torch.randn(24, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right, top = right * shake.cos() + top * shake.sin(), top * shake.cos() - right * shake.sin()
    cameras.c2w[:, :, 0], cameras.c2w[:, :, 1] = quarter * top, -quarter * right
    cameras.heights[:] = 24  # 32 wide, 24 high
    up, sideways = paths.common_up(cameras)
    assert sideways and float(up[2]) > 0.99
    path = paths.camera_path("orbit", cameras, IDENTITY, Box(), 24)
    assert (int(path.cameras.widths[0]), int(path.cameras.heights[0])) == (
        24,
        32,
    ) and "on their side" in path.description
    assert float(path.cameras.c2w[:, 2, 1].min()) > 0.8  # the pictures' up is the world's
    path = paths.camera_path("interpolate", cameras, IDENTITY, Box(), 24)
    assert (int(path.cameras.widths[0]), int(path.cameras.heights[0])) == (32, 24)  # as the photos were


def test_lens_at_other_sizes() -> None:
    cameras = ring_cameras(size=32)
    path = paths.camera_path("orbit", cameras, IDENTITY, Box(), 4, width=128, height=64)
    assert float(path.cameras.fy[0]) == pytest.approx(64 * 1.3)  # the shorter side keeps its field of view
    assert (int(path.cameras.widths[0]), int(path.cameras.heights[0])) == (128, 64)
    path = paths.camera_path("auto", cameras, IDENTITY, NDC, 4, width=16)
    assert int(path.cameras.heights[0]) == 16 and "spiral" in path.description


def test_the_path_fits_the_scene() -> None:
    for n, space, expected in (
        *((12, NDC, "spiral"), (12, Box(), "orbit"), (40, Unbounded(5), "orbit")),
        *((12, Unbounded(5), "interpolate"), (1, Unbounded(5), "orbit")),
    ):
        path = paths.camera_path("auto", ring_cameras(n), IDENTITY, space, 4, width=16)
        assert expected in path.description, f"{n} photos, {space}"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"kind": "circle"}, "orbit, interpolate, spiral"),
        ({"kind": "orbit", "n_frames": 0}, "--frames"),
        ({"kind": "orbit", "width": 0}, "--width"),
        ({"kind": "orbit", "width": 30, "height": 99999}, "--height"),
    ],
)
def test_impossible_paths_are_named(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        paths.camera_path(cameras=ring_cameras(), scene_from_world=IDENTITY, space=Box(), **kwargs)


# ---- camera-path JSON


def test_our_format_round_trips(tmp_path: Path) -> None:
    made = paths.camera_path("orbit", ring_cameras(), IDENTITY, Box(), 5, fps=24, width=40, height=30)
    paths.save_path(tmp_path / "path.json", made)
    read = paths.load_path(tmp_path / "path.json")
    assert read.fps == 24
    torch.testing.assert_close(read.cameras.c2w, made.cameras.c2w, atol=1e-12, rtol=0)
    torch.testing.assert_close(read.cameras.fy, made.cameras.fy)
    assert (int(read.cameras.widths[0]), int(read.cameras.heights[0])) == (40, 30)
    larger = paths.load_path(tmp_path / "path.json", width=80)
    assert int(larger.cameras.heights[0]) == 60 and float(larger.cameras.fy[0]) == pytest.approx(
        2 * float(made.cameras.fy[0])
    )


def nerfstudio(**changes: Any) -> dict[str, Any]:
    frame = {"camera_to_world": [1, 0, 0, 1, 0, 1, 0, 2, 0, 0, 1, 3, 0, 0, 0, 1], "fov": 90, "aspect": 2.0}
    content = {
        "camera_type": "perspective",
        "render_height": 50,
        "render_width": 100,
        "camera_path": [frame],
        "fps": 24,
        "seconds": 1,
        "smoothness_value": 0.5,
        "is_cycle": False,
        "crop": None,
    }
    content.update(changes)
    return content


def test_nerfstudio_camera_path(tmp_path: Path) -> None:
    file = tmp_path / "camera_path.json"
    file.write_text(json.dumps(nerfstudio()))
    path = paths.load_path(file)
    assert path.fps == 24 and "nerfstudio" in path.description
    assert path.cameras.centres[0].tolist() == [1, 2, 3]
    assert float(path.cameras.fy[0]) == pytest.approx(25.0)  # 90 degrees over 50 pixels
    assert float(path.cameras.cx[0]) == 50 and float(path.cameras.cy[0]) == 25


FRAME = nerfstudio()["camera_path"][0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON, line 1"),
        ("[1, 2]", "JSON object"),
        ("{}", "no camera path"),
        (nerfstudio(camera_path=[]), "at least one frame"),
        (nerfstudio(camera_path=[3]), "frame 0"),
        (nerfstudio(camera_path=[FRAME, {"fov": 50}]), 'frame 1: "camera_to_world" must be 16 numbers'),
        (nerfstudio(camera_path=[{**FRAME, "camera_to_world": ["x"] * 16}]), "16 numbers"),
        (nerfstudio(camera_path=[{**FRAME, "camera_to_world": [0] * 16}]), "singular"),
        (nerfstudio(camera_path=[{**FRAME, "camera_to_world": [-1, *FRAME["camera_to_world"][1:]]}]), "mirrored"),
        (nerfstudio(camera_path=[{**FRAME, "camera_to_world": [3, *FRAME["camera_to_world"][1:]]}]), "no rotation"),
        (nerfstudio(camera_path=[{**FRAME, "camera_to_world": [math.nan] * 16}]), "not finite"),
        (nerfstudio(camera_path=[{**FRAME, "fov": 180}]), "between 0 and 180"),
        (nerfstudio(camera_path=[{**FRAME, "fov": "wide"}]), '"fov" must be a number'),
        (nerfstudio(render_width=0), '"render_width" must be a number above 0'),
        (nerfstudio(render_width=10**9), "16384"),
        (nerfstudio(fps=-1), '"fps"'),
        (nerfstudio(camera_type="fisheye"), "fisheye"),
        ({"format": "nerf-camera-path", "version": 7}, "version 7"),
        ({"format": "nerf-camera-path", "version": 1}, '"frames" must be a list'),
    ],
)
def test_bad_camera_paths_are_named(tmp_path: Path, content: Any, words: str) -> None:
    file = tmp_path / "path.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        paths.load_path(file)
    assert words in str(caught.value) and "path.json" in str(caught.value) and "\n" not in str(caught.value)


def test_camera_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such"):
        paths.load_path(tmp_path / "nothing.json")
    (tmp_path / "picture.json").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x80")
    with pytest.raises(UserError, match="not valid JSON"):
        paths.load_path(tmp_path / "picture.json")
    with pytest.raises(UserError, match="cannot be read"):
        paths.load_path(tmp_path)


# ---- pictures


@pytest.mark.parametrize("name", ["error", "depth"])
def test_colour_maps_change_lightness_evenly(name: str) -> None:
    colors = colour_map(name).astype(float) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.cbrt(luminance)  # CIE lightness, but for an affine map
    steps = np.diff(lightness) * (1 if name == "error" else -1)
    # 8-bit rounding and the difference between Oklab's and CIE's lightness leave small wiggles.
    assert lightness.max() - lightness.min() > 0.6
    assert steps.min() > -0.01 and steps.max() < 0.03


def test_to_display() -> None:
    assert to_display(np.array([[[0.0, 0.5, 1.5]]]), linear=False).tolist() == [[[0, 128, 255]]]
    assert to_display(np.array([[[0.0, 0.2158605, 1.0]]]), linear=True).tolist() == [[[0, 128, 255]]]
    assert to_display(np.array([[[np.nan, np.inf, -1.0]]]), linear=False).tolist() == [[[0, 255, 0]]]


def test_error_map_runs_from_dark_to_light() -> None:
    truth = np.zeros((1, 2, 3), dtype=np.float32)
    rendered = np.array([[[0, 0, 0], [1, 1, 1]]], dtype=np.float32)
    picture = error_map(rendered, truth, high=0.2)
    assert picture[0, 0].sum() < 60 and picture[0, 1].sum() > 600
    assert (
        apply_colour_map(np.full((2, 2), 3.0), 3.0, 3.0, "depth") == colour_map("depth")[0]
    ).all()  # no span: no 0/0


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (300, 200)])
def test_panels_hold_every_picture_whole(size: tuple[int, int]) -> None:
    pictures = [np.full((*size, 3), shade, dtype=np.uint8) for shade in (40, 90, 140)]
    sheet = panels(pictures, ["truth", "render 31.20 dB", "error"], ("error", "0", "0.2 and more"))
    for shade in (40, 90, 140):
        assert (sheet == shade).all(axis=2).sum() >= size[0] * size[1]


# ---- videos


def decoded(file: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(file))
    about = next(reader)
    w, h = about["size"]
    return about, [np.frombuffer(frame, np.uint8).reshape(h, w, 3) for frame in reader]


def orbit_path(width: int = 33, height: int = 24, n: int = 3) -> paths.CameraPath:
    model = FakeModel()
    space, size = Box(), {"width": width, "height": height}
    return paths.camera_path("orbit", model.cameras, model.scene_from_world, space, n, fps=24, **size)


def test_video_shows_what_was_rendered(tmp_path: Path) -> None:
    model, path = FakeModel(), orbit_path(65, 49, 5)  # odd sizes: yuv420p cannot have them
    assert video.render_video(model, path, tmp_path / "a.mp4", show_progress=False) == [tmp_path / "a.mp4"]
    about, frames = decoded(tmp_path / "a.mp4")
    assert about["size"] == (64, 48) and about["fps"] == 24 and "yuv420p" in about["pix_fmt"]
    assert len(frames) == 5
    want = to_display(model.render_image(path.cameras, 2).color, linear=False)[:48, :64]
    # H.264 at crf 18 with halved chroma on a small, sharp picture: a few grey levels in the mean, colours not shifted.
    assert np.abs(frames[2].astype(int) - want).mean() < 4
    assert abs(frames[2].astype(float).mean((0, 1)) - want.mean((0, 1))).max() < 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]  # nothing half-written left behind


def test_every_mode_has_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = FakeModel(), orbit_path()
    written = video.render_video(model, path, tmp_path / "b.mp4", video.MODES, show_progress=False)
    assert [p.name for p in written] == ["b.mp4", "b_depth.mp4", "b_opacity.mp4", "b_normal.mp4"]
    assert all(p.stat().st_size > 0 for p in written)
    # Seen from 4 away, the front of the sphere (radius 0.7 scene = 1.05 world) is between 2.95 and 4 world units.
    text = capsys.readouterr().err
    near, far = (float(text.split("depth: ")[1].split(" (")[0]), float(text.split("(light) to ")[1].split(" (")[0]))
    assert 2.9 < near < 3.2 and 3.2 < far < 4.0
    written = video.render_video(model, path, tmp_path / "pictures", ("color", "depth"), show_progress=False)
    assert [p.name for p in written] == ["color", "depth"]
    assert sorted(p.name for p in written[1].iterdir()) == ["00000.png", "00001.png", "00002.png", "nerf.json"]


def test_a_failure_leaves_no_half_video(tmp_path: Path) -> None:
    class Breaks(FakeModel):
        def render_image(self, cameras: Cameras, i: int, *how: Any) -> View[np.ndarray]:
            if i == 2:
                raise KeyboardInterrupt
            return super().render_image(cameras, i, *how)

    (tmp_path / "a.mp4").write_bytes(b"an older video")
    with pytest.raises(KeyboardInterrupt):
        video.render_video(Breaks(), orbit_path(), tmp_path / "a.mp4", overwrite=True, show_progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"an older video"


def test_nothing_is_overwritten_silently(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"precious")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "00000.png").write_bytes(b"precious")
    for out in (tmp_path / "a.mp4", tmp_path / "pictures"):
        with pytest.raises(UserError, match="--overwrite"):
            video.planned_outputs(out, ("color",), overwrite=False)
    video.planned_outputs(tmp_path / "a.mp4", ("color",), overwrite=True)
    with pytest.raises(UserError, match="in the way"):  # a photo of the user's may have that name
        video.planned_outputs(tmp_path / "pictures", ("color",), overwrite=True)
    assert (tmp_path / "a.mp4").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("out", "words"),
    [("a.gif", "NAME.mp4"), ("file/a.mp4", "is a file"), ("file/deeper", "cannot be written|is a file")],
)
def test_impossible_outputs_are_named(tmp_path: Path, out: str, words: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=words):
        video.planned_outputs(tmp_path / out, ("color",), overwrite=False)


def test_unknown_modes_are_named() -> None:
    for modes in ((), ("colour",), ("color", "color")):
        with pytest.raises(UserError, match="--modes"):
            video.check_modes(modes)
