"""Real scenes, as they are or with one thing put into their photos that captures have, trained as `nerf train` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.jobs import peak
from nerf import datasets
from nerf.checks.run import check_posed
from nerf.checks.verdict import LIGHT
from nerf.datasets.loading import parse
from nerf.datasets.parsed import ParsedScene
from nerf.datasets.posed import check_frames
from nerf.datasets.scene import assemble
from nerf.geometry.light import decode, encode
from nerf.io.images import read_header, read_pixels
from nerf.training.config import TrainConfig
from nerf.training.evaluation import evaluate
from nerf.training.loop import train as train_scene
from nerf.training.runs import HOLDOUT_FROM

STOPS, TINT, CORNER = 1.0, 0.12, 0.35  # exposure and white balance to either side; light that is lost in the corners
A_TENTH, BLOB = 0.1, (0.55, 0.35)  # of the photos; height and width of who passes by, as shares of the picture
SPOILT = 17  # the photo whose matte is


def real_scene(
    scene: str,
    minutes: float,
    change: str = "",
    longest: int | None = None,
    downscale: int = 1,
    photos: int | None = None,
    exposure: str = "auto",
    distractors: bool = True,
) -> dict[str, Any]:
    """Check, train and measure on held-out views (which `change` spares, but for the colour behind an object and the
    light, which are those of the capture). photos: train on so many, evenly spread."""
    started = time.perf_counter()
    options = datasets.LoadOptions(longest=longest, downscale=downscale, holdout_from=HOLDOUT_FROM)
    parsed = parse(scene)
    loaded = datasets.load(scene, options, quiet=True)
    train = loaded.splits["train"].tolist()
    if photos is not None:
        train = [train[k] for k in np.linspace(0, len(train) - 1, photos).round().astype(int)]
    splits = {"train": train, "test": loaded.splits["test"].tolist()}
    by_name = {loaded.names[i]: split for split, ids in splits.items() for i in ids}
    parsed.frames = [replace(f, split=by_name[f.name]) for f in parsed.frames if f.name in by_name]
    if change:
        CHANGES[change](parsed, by_name)
    spoilt = assemble(parsed, options)
    verdict = check_posed(check_frames(parsed, options))
    light = dict.fromkeys(LIGHT, False) if exposure == "off" else verdict.light()
    config = TrainConfig(minutes=minutes, distractors=distractors).with_settings(**light)
    with TemporaryDirectory() as scratch:
        model = train_scene(spoilt, config, scratch, progress=False)
    times = {"all_but_evaluation": time.perf_counter() - started}
    result = evaluate(model, spoilt, show_progress=False).to_dict()
    names = ("psnr", "ssim", "psnr_colour_corrected", "psnr_exposed")
    return {
        **{name: result[name] for name in names if name in result},
        "worst": min(view["psnr"] for view in result["views"]),
        "seconds": model.meta["seconds"],
        "steps": model.meta["steps"],
        "peak_bytes": peak(),
        "learnt": light,
        "check": verdict.paragraph(),
        "seconds_of": times | {"evaluate": result["seconds"], "all": time.perf_counter() - started},
        "protocol": result["protocol"] | {"budget_minutes": minutes, "n_train_views": len(train)},
    }


# ---- what is put into photos


def _pixels(
    parsed: ParsedScene, change: Callable[[int, np.ndarray], np.ndarray], names: list[str] | None = None
) -> None:
    for k, frame in enumerate(parsed.frames):
        if names is None or frame.name in names:
            pixels = read_pixels(read_header(frame.path)) if frame.pixels is None else frame.pixels
            frame.pixels = np.ascontiguousarray(change(k, pixels))


def _before(colour: int) -> Callable[[ParsedScene, dict[str, str]], None]:
    def put(parsed: ParsedScene, splits: dict[str, str]) -> None:
        def over(k: int, p: np.ndarray) -> np.ndarray:
            alpha = p[..., 3:].astype(np.float32) / 255
            return (p[..., :3] * alpha + colour * (1 - alpha) + 0.5).astype(np.uint8)

        _pixels(parsed, over)
        parsed.source, parsed.objects = "transforms", False

    return put


def _light(parsed: ParsedScene, splits: dict[str, str]) -> None:
    random = np.random.default_rng(1)
    gains = 2 ** random.uniform(-STOPS, STOPS, len(parsed.frames))
    tints = 1 + random.uniform(-TINT, TINT, (len(parsed.frames), 3))

    def exposed(k: int, p: np.ndarray) -> np.ndarray:
        h, w = p.shape[:2]
        y, x = np.mgrid[:h, :w]
        squares = ((2 * x + 1 - w) ** 2 + (2 * y + 1 - h) ** 2) / (w**2 + h**2)
        light = decode(p[..., :3].astype(np.float32) / 255) * (1 - CORNER * squares)[..., None] * gains[k] * tints[k]
        return (encode(light.clip(0, 1)) * 255 + 0.5).astype(np.uint8)

    _pixels(parsed, exposed)


def _passers_by(parsed: ParsedScene, splits: dict[str, str]) -> None:
    random = np.random.default_rng(0)
    trained = [f.name for f in parsed.frames if splits.get(f.name) == "train"]
    names = random.choice(trained, max(1, round(A_TENTH * len(trained))), replace=False).tolist()

    def passed(k: int, p: np.ndarray) -> np.ndarray:
        h, w = p.shape[:2]
        down, across = int(BLOB[0] * h), int(BLOB[1] * w)
        top, left = random.integers(0, h - down), random.integers(0, w - across)
        y, x = np.mgrid[-1 : 1 : down * 1j, -1 : 1 : across * 1j]
        coarse = random.integers(0, 255, (8, 6, 3)).astype(np.uint8)
        clothes = coarse[(y * 4 + 4).clip(0, 7).astype(int), (x * 3 + 3).clip(0, 5).astype(int)]
        p = p.copy()
        p[top : top + down, left : left + across][x**2 + y**2 < 1] = clothes[x**2 + y**2 < 1]
        return p

    _pixels(parsed, passed, names)


def _matte(kind: str) -> Callable[[ParsedScene, dict[str, str]], None]:
    def put(parsed: ParsedScene, splits: dict[str, str]) -> None:
        trained = [f.name for f in parsed.frames if splits.get(f.name) == "train"]

        def spoilt(k: int, p: np.ndarray) -> np.ndarray:
            p = p.copy()
            if kind == "opaque":
                alpha = p[..., 3:].astype(np.float32) / 255
                p[..., :3] = p[..., :3] * alpha + 255 * (1 - alpha)
                p[..., 3] = 255
            else:
                p[:, : p.shape[1] // (1 if kind == "empty" else 2), 3] = 0
            return p

        _pixels(parsed, spoilt, [trained[SPOILT]])

    return put


CHANGES: dict[str, Callable[[ParsedScene, dict[str, str]], None]] = {
    "white": _before(255),
    "grey": _before(128),
    "black": _before(0),
    "light": _light,
    "passers-by": _passers_by,
    "empty-matte": _matte("empty"),
    "half-matte": _matte("half"),
    "opaque-matte": _matte("opaque"),
}
