"""Measurements on images and sounds. Each takes the JSON-able options of its row and returns a JSON-able dict.

Seconds are those of the fit alone, from the first step to the last. Images are as in their files (sRGB where they are
8 bits, linear light where they are EXR), divided by their range (the brightest value of an EXR); PSNR is against 1,
over all channels, after clipping to [0, 1]. Sounds are in [-1, 1], full scale.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerf.errors import UserError
from nerf.rendering.metrics import psnr_of
from nerf.signals import audio, image, restore
from nerf.signals.fields import FieldChoice, SignalField, choose
from nerf.signals.fitting import FitConfig, field_for, fit
from nerf.signals.poisson import PoissonProblem
from nerf.signals.record import Signal


def natural_image(name: str, side: int, grey: bool = False) -> Signal:
    """The square in the middle of a picture that scikit-image's wheel carries, at most side x side pixels."""
    try:
        import skimage
    except ImportError as error:
        raise UserError("needs the pictures of scikit-image: pip install scikit-image") from error
    path = next(iter(sorted(Path(skimage.__file__).parent.glob(f"data/{name}.*"))), None)
    if path is None:
        raise UserError(f"this scikit-image does not carry {name}")
    whole = image.read_image(path)
    h, w = whole.shape
    pixels = whole.values.reshape(h, w, -1)[..., :3]
    n = min(h, w, side) // 2 * 2
    top, left = (h - n) // 2, (w - n) // 2
    pixels = pixels[top : top + n, left : left + n]
    if grey:
        pixels = pixels.mean(axis=2, keepdims=True).round().astype(np.uint8)
    return Signal("image", np.ascontiguousarray(pixels).reshape(n * n, -1), (n, n), 0.0, 255.0, meta={"name": name})


def fitted(signal: Signal, field: FieldChoice | SignalField, minutes: float, **settings: Any) -> dict[str, Any]:
    """Fit and measure one field."""
    found = fit(signal, field, FitConfig(minutes=minutes, **settings))
    assert found.fitting is not None
    about = {"parameters": found.field.n_parameters, "per_value": found.field.n_parameters / signal.values.size}
    return about | dict(found.fitting) | restore.measure(found.field, signal)


# ---- natural images: every other pixel trained, the rest scored


def half_of(signal: Signal) -> Signal:
    """Learn every other row and column."""
    h, w = signal.shape
    signal.known = torch.arange(h * w).reshape(h, w)[::2, ::2].reshape(-1)
    return signal


def fourier_field(signal: Signal, kind: str) -> SignalField:
    """The networks of Tancik et al. 2020, section 6 (4 layers of 256, ReLU, sigmoid) on their four mappings."""
    if kind == "none":
        return field_for(signal, FieldChoice("mlp", 256, 4, "sigmoid"))
    if kind == "basic":
        matrix = torch.eye(2)
    elif kind == "positional":  # 128 frequencies an axis, from 1 to 2^6 cycles
        octaves = 2.0 ** (6.0 * torch.arange(128) / 128)
        matrix = torch.cat([torch.outer(octaves, axis) for axis in torch.eye(2)])
    else:  # gaussian, sigma 10
        return field_for(signal, FieldChoice("fourier", 256, 4, "sigmoid", n_features=256, sigma=10.0))
    field = field_for(signal, FieldChoice("fourier", 256, 4, "sigmoid", n_features=len(matrix)))
    field.encoding.matrix.copy_(matrix)
    return field


def natural(minutes: float, images: list[str], kinds: list[str]) -> dict[str, Any]:
    """PSNR of the pixels that were not learnt, mean over images, for each field."""
    result: dict[str, Any] = {"images": images}
    for kind in kinds:
        rows = []
        for name in images:
            signal = half_of(natural_image(name, 512))
            known = (signal.shape[0] // 2,) * 2  # a field as fine as what it learns from
            field = fourier_field(signal, kind) if kind in ("none", "basic", "positional", "gaussian") else None
            rows.append(fitted(signal, field or choose(kind, known), minutes) | {"image": name})
        result[kind] = {"psnr_of_unknown": float(np.mean([r["psnr_of_unknown"] for r in rows])), "rows": rows}
    if {"none", "gaussian"} <= set(kinds):
        result["gaussian_over_none"] = result["gaussian"]["psnr_of_unknown"] - result["none"]["psnr_of_unknown"]
    return result


# ---- PSNR against the number of parameters


def sized(kind: str, signal: Signal, budget: int) -> FieldChoice:
    """The largest field of a kind with no more than `budget` parameters."""
    base = choose(kind, signal.shape)
    if kind == "hash":
        width = 64 if budget > 40_000 else 32
        options = [
            replace(base, width=width, log2_hashmap_size=size, n_levels=levels)
            for size in range(8, 22)
            for levels in range(4, 15)
        ]
    else:
        options = [replace(base, width=width, n_features=width) for width in range(16, 1025, 16)]
    counts = [(field_for(signal, option).n_parameters, k) for k, option in enumerate(options)]
    fitting = [c for c in counts if c[0] <= budget]
    if not fitting:
        raise UserError(f"no {kind} field has as few as {budget} parameters")
    return options[max(fitting)[1]]


def budgets(file: str, minutes: float, per_value: list[float], kinds: list[str]) -> dict[str, Any]:
    """PSNR over all pixels of each field at each number of parameters per value."""
    signal = image.read_image(file)
    result: dict[str, Any] = {"shape": list(signal.shape), "range": signal.meta["range"]}
    leads = []
    for share in per_value:
        for kind in kinds:
            choice = sized(kind, signal, int(share * signal.values.size))
            result.setdefault(kind, {})[f"{share:g}"] = fitted(signal, choice, minutes)
        others = [result[kind][f"{share:g}"]["psnr"] for kind in kinds if kind != "hash"]
        leads.append(result["hash"][f"{share:g}"]["psnr"] - max(others))
    return result | {"least_lead": min(leads)}


# ---- sound


def sound(file: str, minutes: float, kinds: list[str]) -> dict[str, Any]:
    """Mean squared error of each field after the same time; fields choose their own size."""
    signal = audio.read_audio(file)
    result: dict[str, Any] = {"loudest": signal.span[1]}
    for kind in kinds:
        result[kind] = fitted(signal, choose(kind, signal.shape), minutes)
        result[kind]["level"] = psnr_of(result[kind]["mse"])  # below full scale
    if {"siren", "hash"} <= set(kinds):
        result["hash_lead"] = result["hash"]["level"] - result["siren"]["level"]
    return result


# ---- from derivatives, and from few pixels


def poisson(image_name: str, side: int, minutes: float, learn: str) -> dict[str, Any]:
    """PSNR of an image found by a SIREN from its gradients (or Laplacian) and its mean alone; learn: of
    nerf.signals.poisson.LEARN."""
    signal = natural_image(image_name, 2 * side, grey=True)
    n = signal.shape[0] // 2
    small = signal.values.reshape(n, 2, n, 2, 1).astype(np.float64).mean((1, 3)).round().astype(np.uint8)
    signal = Signal("image", small.reshape(-1, 1), (n, n), 0.0, 255.0, meta=signal.meta)
    problem = PoissonProblem(signal, learn)
    found = fit(problem, "siren", FitConfig(minutes=minutes))
    problem.settle(found.field)
    assert found.fitting is not None
    about = {"shape": list(signal.shape), "relative_error_of_derivatives": problem.relative_error(found.field)}
    return about | dict(found.fitting) | restore.measure(found.field, signal)


def inpaint(images: list[str], keep: float, minutes: float, kinds: list[str]) -> dict[str, Any]:
    """PSNR of the unknown pixels, mean over images, beside scipy's cubic interpolation of scattered points."""
    try:
        from scipy.interpolate import griddata
    except ImportError as error:
        raise UserError("needs scipy: pip install scipy") from error
    result: dict[str, Any] = {"images": images, "keep": keep}
    found: dict[str, list[float]] = {kind: [] for kind in ["cubic", *kinds]}
    for name in images:
        signal = natural_image(name, 512)
        restore.keep_known(signal, None, keep)
        assert signal.known is not None
        truth = signal.targets(torch.arange(len(signal.values))).double().numpy()
        places = signal.coordinates(torch.arange(len(truth))).numpy()
        known = signal.known.numpy()
        started = time.perf_counter()
        guess = griddata(places[known], truth[known], places, method="cubic")
        outside = np.isnan(guess[:, 0])  # beyond the hull of the known pixels
        guess[outside] = griddata(places[known], truth[known], places[outside], method="nearest")
        result["cubic_seconds"] = time.perf_counter() - started
        hidden = np.ones(len(truth), bool)
        hidden[known] = False
        found["cubic"].append(psnr_of(float(np.square(guess[hidden].clip(0, 1) - truth[hidden]).mean())))
        for kind in kinds:
            field = restore.choose_for_few(kind, signal.shape, keep)
            found[kind].append(fitted(signal, field, minutes)["psnr_of_unknown"])
    result |= {kind: {"psnr": float(np.mean(values)), "each": values} for kind, values in found.items()}
    return result | {"lead_over_cubic": max(result[kind]["psnr"] for kind in kinds) - result["cubic"]["psnr"]}
