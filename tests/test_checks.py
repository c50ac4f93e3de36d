"""`nerf check` names what was put in: a corner of three textured walls, photographed from known places."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nerf
from nerf.checks.looking import look_at_all, spread_order
from nerf.checks.looks import Look
from nerf.checks.matches import Memory
from nerf.checks.run import check_posed, requests_of
from nerf.checks.verdict import KINDS, LIGHT, Finding, Verdict
from nerf.cli.main import run
from nerf.datasets.options import LoadOptions
from nerf.datasets.parsed import Frame, Lens, ParsedScene
from nerf.datasets.posed import Posed, check_frames
from nerf.errors import UserError
from nerf.geometry.aim import look_at
from nerf.geometry.cameras import Cameras
from nerf.training.alignment import similarity_between

pytest.importorskip("pycolmap")

N, WIDTH, HEIGHT, FOCAL = 14, 280, 210, 260.0
CV = np.diag([1.0, -1, -1, 1])


def wall(seed: int, n: int = 512) -> np.ndarray:
    """[n,n,3] of blocks of many sizes, smoothed: something to recognise at any distance."""
    rng = np.random.default_rng(seed)
    total = np.zeros((n, n, 3))
    for cell in (8, 16, 32, 64):
        grid = rng.uniform(0, 255, (n // cell, n // cell, 3))
        total += np.kron(grid, np.ones((cell, cell, 1)))
    small = Image.fromarray((total / 4).astype(np.uint8)).resize((n // 2, n // 2), Image.Resampling.BOX)
    return np.asarray(small.resize((n, n), Image.Resampling.BICUBIC), np.float64)


WALLS = [wall(k) for k in range(3)]
MEMORY = Memory()  # of the pictures of `clean`


def distances(cameras: Cameras, i: int) -> np.ndarray:
    """[h,w] from the camera to the walls x = 0, y = 0 and z = 0."""
    origin, direction = (x.double().numpy() for x in cameras.image_rays(i))
    t = np.where(direction < 0, -origin / np.minimum(direction, -1e-9), np.inf).min(axis=1)
    return (t * np.linalg.norm(direction, axis=1)).reshape(int(cameras.heights[i]), int(cameras.widths[i]))


def photograph(cameras: Cameras, i: int) -> np.ndarray:
    """[h,w,3] uint8 of the corner where the walls x = 0, y = 0 and z = 0 meet, seen from inside."""
    origin, direction = (x.double().numpy() for x in cameras.image_rays(i))
    t = np.where(direction < 0, -origin / np.minimum(direction, -1e-9), np.inf)
    axis = t.argmin(axis=1)
    hit = origin + t.min(axis=1, keepdims=True) * direction
    out = np.zeros((len(hit), 3))
    for k in range(3):
        rows = axis == k
        u, v = np.delete(hit[rows], k, axis=1).T
        at = (np.clip(np.stack([u, v]), 0, 3.99) / 4 * 511).astype(int)
        out[rows] = WALLS[k][at[0], at[1]]
    return out.reshape(int(cameras.heights[i]), int(cameras.widths[i]), 3).astype(np.uint8)


def scene() -> ParsedScene:
    angle = torch.linspace(0.45, 1.15, N, dtype=torch.float64)
    height = torch.tensor([1.6, 2.2, 2.9], dtype=torch.float64).repeat(N)[:N]
    places = torch.stack([3.2 * angle.cos(), 3.2 * angle.sin(), height], dim=1)
    target = torch.tensor([0.6, 0.7, 0.5], dtype=torch.float64)
    poses = look_at(places, target, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    cameras = Cameras.perspective(poses, FOCAL, WIDTH, HEIGHT)
    frames = [
        Frame(
            f"{i:02d}",
            Path(f"{i:02d}.png"),
            poses[i].numpy(),
            Lens(fx=FOCAL),
            f"frame {i}",
            pixels=photograph(cameras, i),
        )
        for i in range(N)
    ]
    return ParsedScene("made here", Path("made"), frames, [])


@pytest.fixture(scope="module")
def clean() -> tuple[ParsedScene, list[Look | str | None]]:
    parsed = scene()
    return parsed, look_at_all(requests_of(check_frames(parsed)), time.perf_counter() + 600)


Change = Callable[[list[Frame]], set[int] | None]


def loaded(parsed: ParsedScene, change: Change, cameras_are: str | None = None) -> tuple[Posed, set[int]]:
    """The frames once `change` was made to them; it returns which pictures or masks it changed."""
    parsed = copy.copy(parsed)
    parsed.frames, parsed.notes = [copy.copy(f) for f in parsed.frames], []
    new = change(parsed.frames) or set()
    return check_frames(parsed, LoadOptions(cameras_are=cameras_are)), new


def asked(
    clean: tuple[ParsedScene, list[Look | str | None]], change: Change, cameras_are: str | None = None
) -> Verdict:
    looks = list(clean[1])
    posed, new = loaded(clean[0], change, cameras_are)
    requests = requests_of(posed)
    for i in new:
        looks[i] = look_at_all([requests[i]], time.perf_counter() + 600)[0]
    bent = bool((posed.cameras.distortion != 0).any())  # what one motion explains is asked of rays then
    return check_posed(posed, 600, looks, memory=Memory() if bent else MEMORY.without(new))


def assert_the_flag_applies(
    clean: tuple[ParsedScene, list[Look | str | None]], change: Change, finding: Finding, rel: float = 1e-9
) -> None:
    """What the finding says to load with gives the true cameras, up to a similarity, and these fit."""
    assert finding.cameras_are
    cameras, truth = loaded(clean[0], change, finding.cameras_are)[0].cameras, check_frames(clean[0]).cameras
    torch.testing.assert_close(
        similarity_between(cameras.c2w, truth.c2w).apply_poses(cameras.c2w), truth.c2w, rtol=0, atol=1e-6
    )
    for name in ("fx", "fy", "cx", "cy", "distortion"):
        torch.testing.assert_close(getattr(cameras, name), getattr(truth, name), rtol=rel, atol=0)
    verdict = asked(clean, change, finding.cameras_are)
    assert verdict.state == "fits" and not verdict.is_wrong


def poses(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[list[Frame]], None]:
    def put(frames: list[Frame]) -> None:
        for f in frames:
            f.c2w = change(np.vstack([f.c2w[:3], [0, 0, 0, 1]]))

    return put


def transposed(m: np.ndarray) -> np.ndarray:
    m[:3, :3] = m[:3, :3].T.copy()
    return m


def test_a_clean_set_fits(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    verdict = asked(clean, lambda frames: None)
    assert verdict.state == "fits" and not verdict.findings and not verdict.not_judged
    assert verdict.pixels is not None and verdict.pixels < 0.5
    assert verdict.paragraph().startswith("The photos fit their cameras")


CONVENTIONS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "OpenCV": ("axes", lambda m: m @ CV, "OpenCV and COLMAP"),
    "x left": ("axes", lambda m: m @ np.diag([-1.0, 1, -1, 1]), "PyTorch3D"),
    "inverted": ("inverted", np.linalg.inv, "from the world to the camera"),
    "inverted OpenCV": ("inverted", lambda m: np.linalg.inv(m @ CV), "from the world to the camera"),
    "transposed": ("transposed", transposed, "transposed"),
    "y of positions": ("axes", lambda m: np.vstack([m[:1], [[*m[1, :3], -m[1, 3]]], m[2:]]), "whose y is reversed"),
    "upside down": ("turned", lambda m: m @ np.diag([-1.0, -1, 1, 1]), "180 degrees"),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_another_convention_is_named(clean: tuple[ParsedScene, list[Look | str | None]], name: str) -> None:
    kind, change, words = CONVENTIONS[name]
    verdict = asked(clean, poses(change))
    assert verdict.state == "contradicts" and [f.kind for f in verdict.findings] == [kind]
    assert words in verdict.findings[0].sentence and kind in KINDS
    assert f"--cameras-are {verdict.findings[0].cameras_are} takes them so" in verdict.paragraph()
    assert_the_flag_applies(clean, poses(change), verdict.findings[0])


def test_mirrored_photos_are_named(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    def put(frames: list[Frame]) -> set[int]:
        for f in frames:
            assert f.pixels is not None
            f.pixels = np.ascontiguousarray(f.pixels[:, ::-1])
        return set(range(N))

    (finding,) = asked(clean, put).findings
    assert finding.kind == "mirrored" and not finding.cameras_are and "no option mirrors them" in finding.fix


@pytest.mark.parametrize(
    ("kind", "lens"),
    [
        ("focal", Lens(fx=0.6 * FOCAL)),
        ("focal", Lens(fx=1.6 * FOCAL)),
        ("size", Lens(fx=0.5 * FOCAL, cx=0.25 * WIDTH, cy=0.25 * HEIGHT)),
        ("size", Lens(fx=2 * FOCAL, cx=WIDTH, cy=HEIGHT)),
        ("principal-point", Lens(fx=FOCAL, cx=0.35 * WIDTH, cy=0.4 * HEIGHT)),
    ],
)
def test_a_wrong_lens_is_named(clean: tuple[ParsedScene, list[Look | str | None]], kind: str, lens: Lens) -> None:
    def put(frames: list[Frame]) -> None:
        for f in frames:
            f.lens = replace(lens)

    verdict = asked(clean, put)
    assert kind in [f.kind for f in verdict.findings] and verdict.is_wrong
    finding = next(f for f in verdict.findings if f.kind == kind and f.cameras_are)
    assert_the_flag_applies(clean, put, finding, rel=0.03)


def test_a_distortion_of_undistorted_photos_is_told_from_a_focal_length(
    clean: tuple[ParsedScene, list[Look | str | None]],
) -> None:
    from nerf.checks.lenses import best_lens
    from nerf.checks.matches import Matcher
    from nerf.checks.residuals import Batch

    cameras = check_frames(clean[0]).cameras
    matcher = Matcher([x for x in clean[1] if isinstance(x, Look)], cameras, time.perf_counter() + 600)
    batch = Batch.of([p for p in matcher.match(matcher.choose()) if p.is_strong])
    assert best_lens(cameras, batch).kind == "given"
    k = torch.tensor([-0.4, 0.15, 0, 0, 0, 0], dtype=torch.float64).expand(N, 6)
    bent = Cameras(**cameras.tensors() | {"distortion": k, "models": torch.ones(N, dtype=torch.int64)})
    found = best_lens(bent, batch)
    assert found.kind == "distortion" and found.pixels < 0.2
    assert found.terms == "undistorted"


def test_photos_that_are_all_turned_are_named_and_turned_back(
    clean: tuple[ParsedScene, list[Look | str | None]],
) -> None:
    def put(frames: list[Frame]) -> set[int]:
        for f in frames:
            assert f.pixels is not None
            f.pixels, f.lens = np.ascontiguousarray(np.rot90(f.pixels)), Lens(fx=FOCAL, fy=FOCAL)
        return set(range(N))

    (finding,) = asked(clean, put).findings
    assert (finding.kind, finding.cameras_are) == ("turned", "turned=90") and "90 degrees" in finding.sentence
    verdict = asked(clean, put, "turned=90")
    assert verdict.state == "fits" and not verdict.findings


def test_what_is_still_wrong_is_added_to_what_was_asked_for(
    clean: tuple[ParsedScene, list[Look | str | None]],
) -> None:
    def put(frames: list[Frame]) -> None:
        poses(lambda m: np.linalg.inv(m @ CV))(frames)

    (finding,) = asked(clean, put, "inverted").findings
    assert finding.cameras_are == "inverted+axes=x,-y,-z"
    assert_the_flag_applies(clean, put, finding)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_one_turned_photo_is_named(clean: tuple[ParsedScene, list[Look | str | None]], quarters: int) -> None:
    def put(frames: list[Frame]) -> set[int]:
        f = frames[5]
        assert f.pixels is not None
        f.pixels = np.ascontiguousarray(np.rot90(f.pixels, quarters))
        f.lens = Lens(fx=FOCAL, fy=FOCAL)  # its own: one for pictures of two sizes is refused
        return {5}

    (finding,) = asked(clean, put).findings
    assert finding.kind == "turned" and finding.photos == ["05"]


def test_swapped_photos_are_named_with_the_cameras_that_they_fit(
    clean: tuple[ParsedScene, list[Look | str | None]],
) -> None:
    def put(frames: list[Frame]) -> None:
        frames[2].c2w, frames[11].c2w = frames[11].c2w, frames[2].c2w

    (finding,) = asked(clean, put).findings
    assert finding.kind == "swapped" and finding.photos == ["02", "11"]
    assert "02 fits the camera of 11" in finding.sentence and "11 fits the camera of 02" in finding.sentence


def test_another_order_is_found(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    def put(frames: list[Frame]) -> None:
        there = [f.c2w for f in frames]
        for f, k in zip(frames, np.random.default_rng(1).permutation(N), strict=True):
            f.c2w = there[k]

    verdict = asked(clean, put)
    assert [f.kind for f in verdict.findings] == ["order"]


def test_one_wrong_camera_is_named(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    def put(frames: list[Frame]) -> None:
        turn = np.array([[0.9, -0.436, 0, 0.4], [0.436, 0.9, 0, -0.2], [0, 0, 1, 0.3], [0, 0, 0, 1]])
        frames[7].c2w = turn @ np.vstack([frames[7].c2w[:3], [0, 0, 0, 1]])

    (finding,) = asked(clean, put).findings
    assert finding.kind == "camera" and finding.photos == ["07"]


def test_poses_good_to_a_few_pixels_are_advice(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    def put(frames: list[Frame]) -> None:
        rng = np.random.default_rng(3)
        for f in frames:
            x, y, z = rng.normal(0, 0.005, 3)
            f.c2w = f.c2w[:3].copy()
            f.c2w[:, :3] = f.c2w[:, :3] @ np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]])

    verdict = asked(clean, put)
    assert [f.kind for f in verdict.findings] == ["pixels"] and not verdict.is_wrong
    assert "--refine-poses" in verdict.paragraph()


def test_cameras_at_one_point_and_far_away(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    def together(m: np.ndarray) -> np.ndarray:
        m[:3, 3] = 1
        return m

    assert [f.kind for f in asked(clean, poses(together)).findings] == ["one-point"]

    def away(frames: list[Frame]) -> None:
        frames[4].c2w = frames[4].c2w.copy()
        frames[4].c2w[:3, 3] += 8e4

    found = asked(clean, away).findings
    assert found[0].kind == "outlier" and found[0].photos == ["04"]


def painted(change: Callable[[int, np.ndarray], np.ndarray]) -> Callable[[list[Frame]], set[int]]:
    def put(frames: list[Frame]) -> set[int]:
        for i, f in enumerate(frames):
            assert f.pixels is not None
            f.pixels = np.ascontiguousarray(change(i, f.pixels))
        return set(range(len(frames)))

    return put


def test_what_stands_still_behind_a_turntable_is_named(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    still = np.asarray(Image.fromarray(wall(9).astype(np.uint8)).resize((WIDTH, WIDTH)))[:HEIGHT]
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    for size, words in (
        (0.6, "part of what is seen stands still"),
        (0.02, "nearly all that is recognised stands still"),
    ):
        verdict = asked(clean, painted(lambda i, p, size=size: np.where((x**2 + y**2 < size)[..., None], p, still)))  # type: ignore[misc]
        (finding,) = [f for f in verdict.findings if f.kind == "moving"]
        assert finding.sentence.startswith(words) and "--masks" in finding.fix


def test_exposure_that_moves_is_advice(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    gains = 2.0 ** np.random.default_rng(0).uniform(-1.2, 0.6, N)
    verdict = asked(clean, painted(lambda i, p: np.clip(p * gains[i] ** (1 / 2.2), 0, 255).astype(np.uint8)))
    assert "exposure" in [f.kind for f in verdict.findings] and not verdict.is_wrong
    assert verdict.light() == {"exposure": True, "vignetting": False, "flash": False}
    tints = 1 + np.random.default_rng(1).uniform(-0.25, 0.25, (N, 3))
    verdict = asked(clean, painted(lambda i, p: np.clip(p * tints[i] ** (1 / 2.2), 0, 255).astype(np.uint8)))
    (finding,) = [f for f in verdict.findings if f.kind == "exposure"]
    assert "white balance differs" in finding.sentence


def test_surfaces_that_shine_are_no_exposure(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    """Each photo of another brightness on average, but every place in it of its own: no gain is what differs."""
    rng = np.random.default_rng(0)
    gains = 2.0 ** rng.uniform(-0.4, 0.4, (N, 1, 1))
    shine = np.stack([np.kron(2.0 ** rng.normal(0, 0.8, (12, 16)), np.ones((100, 100))) for _ in range(N)])
    shine = (shine[:, :HEIGHT, :WIDTH] * gains)[..., None] ** (1 / 2.2)
    verdict = asked(clean, painted(lambda i, p: np.clip(p * shine[i], 0, 255).astype(np.uint8)))
    assert "exposure" not in [f.kind for f in verdict.findings]


def test_corners_that_are_darker_are_told(clean: tuple[ParsedScene, list[Look | str | None]]) -> None:
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    squares = (x**2 * WIDTH**2 + y**2 * HEIGHT**2) / (WIDTH**2 + HEIGHT**2)
    assert asked(clean, lambda frames: None).light() == dict.fromkeys(LIGHT, False)
    darker = (0.5**squares)[..., None] ** (1 / 2.2)
    verdict = asked(clean, painted(lambda i, p: (p * darker).astype(np.uint8)))
    (finding,) = verdict.findings
    assert verdict.light() == {"exposure": False, "vignetting": True, "flash": False} and not verdict.is_wrong
    assert finding.numbers["corner"] == pytest.approx(-1.0, abs=0.2), "half of the light is one stop"


@pytest.mark.parametrize("automatic", [False, True], ids=["one exposure", "exposed for the middle"])
def test_a_flash_on_the_camera_is_told(clean: tuple[ParsedScene, list[Look | str | None]], automatic: bool) -> None:
    cameras = check_frames(clean[0]).cameras
    away = [distances(cameras, i) for i in range(N)]
    usual = [float(np.median(d)) if automatic else 4.0 for d in away]
    lit = [np.clip(m / d, 0.4, 1.6)[..., None] ** (2 / 2.2) for d, m in zip(away, usual, strict=True)]
    verdict = asked(clean, painted(lambda i, p: np.clip(0.7 * p * lit[i], 0, 255).astype(np.uint8)))
    (finding,) = [f for f in verdict.findings if f.kind == "flash"]
    assert finding.numbers["flash"] == pytest.approx(-2, abs=0.6) and not verdict.is_wrong
    assert verdict.light()["flash"] and not verdict.light()["vignetting"]
    half = [0.5 + 0.5 * light**2.2 for light in lit]  # with as much other light
    verdict = asked(clean, painted(lambda i, p: np.clip(0.7 * p * half[i] ** (1 / 2.2), 0, 255).astype(np.uint8)))
    assert verdict.light()["flash"]


def test_black_borders_are_named_and_a_black_background_is_not(
    clean: tuple[ParsedScene, list[Look | str | None]],
) -> None:
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    border = (np.abs(x) > 1 - 0.1 * (1 - y**2))[..., None]
    verdict = asked(clean, painted(lambda i, p: np.where(border, 0, p)))
    assert [f.kind for f in verdict.findings] == ["black-border"]

    def dark(i: int, p: np.ndarray) -> np.ndarray:  # an object that moves about in the picture, black around it
        rng = np.random.default_rng(i)
        away = (x - rng.uniform(-0.2, 0.2)) ** 2 + (y - rng.uniform(-0.2, 0.2)) ** 2 > rng.uniform(0.4, 0.6)
        return np.where(away[..., None], 0, p)

    assert "black-border" not in [f.kind for f in asked(clean, painted(dark)).findings]


# ---- silhouettes, without any feature


def ball(n: int = 16, longest: int = 64) -> tuple[ParsedScene, list[np.ndarray]]:
    """Plain photos of a plain ball, whose alpha is its silhouette."""
    angle = torch.arange(n, dtype=torch.float64) / n * 2 * torch.pi
    places = torch.stack([3 * angle.cos(), 3 * angle.sin(), 1 + 0.5 * (3 * angle).sin()], dim=1)
    cameras = Cameras.perspective(
        look_at(places, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64)),
        70,
        longest,
        longest,
    )
    shapes = []
    for i in range(n):
        o, d = cameras.image_rays(i)
        nearest = (o - (o * d).sum(dim=1, keepdim=True) * d - torch.tensor([0.2, 0.1, 0])).norm(dim=1)
        shapes.append(((nearest < 0.7).numpy().reshape(longest, longest) * 255).astype(np.uint8))
    frames = [
        Frame(f"{i:02d}", Path(f"{i}.png"), cameras.c2w[i].numpy(), Lens(fx=70.0), f"frame {i}") for i in range(n)
    ]
    return ParsedScene("made here", Path("made"), frames, []), shapes


def of_shapes(shapes: list[np.ndarray], masks: bool = False) -> Verdict:
    parsed, _ = ball(len(shapes))
    for f, shape in zip(parsed.frames, shapes, strict=True):
        grey = np.full((*shape.shape, 3), 90, np.uint8)
        f.pixels = grey if masks else np.concatenate([grey, shape[..., None]], axis=2)
        f.mask = shape if masks else None
    return check_posed(check_frames(parsed))


def test_silhouettes_that_agree_are_no_finding() -> None:
    verdict = of_shapes(ball()[1])
    assert not verdict.findings and verdict.state == "not judged"
    assert "64 pixels" in verdict.paragraph()


@pytest.mark.parametrize("masks", [False, True])
def test_wrong_silhouettes_are_named(masks: bool) -> None:
    def found(change: Callable[[list[np.ndarray]], None]) -> list[tuple[str, list[str]]]:
        shapes = [s.copy() for s in ball()[1]]
        change(shapes)
        return [(f.kind, f.photos) for f in of_shapes(shapes, masks).findings]

    def put(i: int, shape: np.ndarray) -> Callable[[list[np.ndarray]], None]:
        return lambda shapes: shapes.__setitem__(i, shape)

    good = ball()[1]
    assert found(lambda shapes: [s.__ixor__(255) for s in shapes] and None) == [("mask-inverted", [])]
    assert found(put(3, 255 - good[3])) == [("mask-inverted", ["03"])]
    assert found(put(5, np.zeros_like(good[5]))) == [("mask-empty", ["05"])]
    assert found(put(6, np.full_like(good[6], 255))) == [("mask-contradicts", ["06"])]
    half = good[7].copy()
    half[:, 32:] = 0
    assert found(put(7, half)) == [("mask-contradicts", ["07"])]


def test_masks_of_another_shape_are_named() -> None:
    shapes = [np.full((64, 64), 255, np.uint8) for _ in range(6)]
    shapes[2] = np.full((64, 200), 255, np.uint8)
    parsed, _ = ball(6)
    for f, shape in zip(parsed.frames, shapes, strict=True):
        f.pixels, f.mask = np.full((64, 64, 3), 90, np.uint8), shape
    (finding,) = check_posed(check_frames(parsed)).findings
    assert finding.kind == "mask-size" and finding.photos == ["02"]
    assert "200x64" in finding.sentence and "64x64" in finding.sentence


def test_alpha_that_leaves_out_the_sky_is_no_silhouette() -> None:
    shape = np.full((64, 64), 255, np.uint8)
    shape[:14] = 0
    (finding,) = of_shapes([shape] * 8).findings
    assert finding.kind == "not-a-silhouette" and "taken for a mask" in finding.sentence
    assert not finding.is_wrong  # the loader does right by it


# ---- the verb


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corner as a data set on disk."""
    place = tmp_path_factory.mktemp("corner")
    parsed = scene()
    frames = []
    for f in parsed.frames:
        assert f.pixels is not None
        Image.fromarray(f.pixels).save(place / f"{f.name}.png")
        frames.append({"file_path": f"{f.name}.png", "transform_matrix": np.vstack([f.c2w[:3], [0, 0, 0, 1]]).tolist()})
    said = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT, "frames": frames}
    (place / "transforms.json").write_text(json.dumps(said))
    for f in frames:
        f["transform_matrix"] = (np.array(f["transform_matrix"]) @ CV).tolist()
    (place / "wrong").mkdir()
    for f in frames:
        (place / "wrong" / str(f["file_path"])).symlink_to(place / str(f["file_path"]))
    (place / "wrong" / "transforms.json").write_text(json.dumps(said))
    return place


def test_the_verb_says_it_and_writes_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(folder), "--seconds", "100"]) == 0
    assert "The photos fit their cameras" in capsys.readouterr().out
    out = tmp_path / "out"
    assert run(["check", str(folder / "wrong"), "-o", str(out), "--seconds", "100"]) == 2
    said = capsys.readouterr()
    assert "OpenCV and COLMAP" in said.out and "(axes)" in said.err
    found = json.loads((out / "check.json").read_text())
    assert found["state"] == "contradicts" and found["findings"][0]["kind"] == "axes"
    assert f"--cameras-are {found['findings'][0]['cameras_are']} takes them so" in said.out
    flag = ["--cameras-are", found["findings"][0]["cameras_are"]]
    assert run(["check", str(folder / "wrong"), *flag, "--seconds", "100"]) == 0
    assert "The photos fit their cameras" in capsys.readouterr().out
    assert run(["check", str(folder / "wrong"), "--cameras-are", "opencv"]) == 2
    assert "--cameras-are opencv: 'opencv' is not known; known are" in capsys.readouterr().err
    with Image.open(out / "check.png") as picture:
        assert picture.size[0] > 2 * WIDTH - 1
    assert run(["check", str(folder), "-o", str(out)]) == 2  # another's result is not replaced unasked
    assert "--overwrite" in capsys.readouterr().err


def test_training_warns_stops_or_does_not_ask(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked before it begins; what comes after is left out here."""

    def begins(*args: object, **kwargs: object) -> None:
        raise UserError("training begins")

    monkeypatch.setattr("nerf.training.loop.train", begins)
    said = {}
    for how in ("strict", "warn", "off"):
        asked = ["train", str(folder / "wrong"), "-o", str(tmp_path / how), "--longest", "32", "--check", how]
        assert run(asked) == 2
        said[how] = capsys.readouterr().err
    assert "OpenCV and COLMAP" in said["strict"] and "training begins" not in said["strict"]
    assert "OpenCV and COLMAP" in said["warn"] and "training begins" in said["warn"]
    assert "check:" not in said["off"] and "training begins" in said["off"]
    assert json.loads((tmp_path / "warn" / "check.json").read_text())["findings"][0]["kind"] == "axes"
    assert not (tmp_path / "off" / "check.json").exists()
    from nerf.views.report import write_report

    page = write_report(tmp_path / "warn").read_text()
    assert "Photos against cameras" in page and "OpenCV and COLMAP" in page


def test_without_pycolmap_it_says_so_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerf.checks.run.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    verdict = nerf.check(folder)
    assert verdict.state == "not judged" and "pip install" in verdict.paragraph() and not verdict.is_wrong


def test_time_that_is_over_leaves_photos_out_evenly() -> None:
    order = spread_order(20)
    assert sorted(order) == list(range(20)) and order[:3] == [0, 8, 16]
    posed: Posed = check_frames(scene())
    assert look_at_all(requests_of(posed), time.perf_counter() - 1) == [None] * N
    verdict = check_posed(posed, seconds=1e-6)
    assert verdict.state == "not judged" and not verdict.is_wrong


def test_processes_see_what_this_one_sees(folder: Path) -> None:
    from nerf.datasets import load_posed

    requests = requests_of(load_posed(folder, quiet=True))
    assert len(requests) >= 12 and all(r.is_of_files for r in requests)
    there = look_at_all(requests, time.perf_counter() + 600)
    here = look_at_all(requests[:3], time.perf_counter() + 600)
    for a, b in zip(there, here, strict=False):
        assert isinstance(a, Look) and isinstance(b, Look) and len(a.points) > 100
        for name, value in vars(b).items():
            np.testing.assert_array_equal(getattr(a, name), value)
