"""Measurements on shapes, slices, sets of pictures and packed images. Options and results are JSON-able."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import phantom
from benchmarks.signal_jobs import natural_image
from nerf.errors import UserError
from nerf.rendering.metrics import psnr_of
from nerf.signals import ct, latents, packing, restore, shape, solid, surface
from nerf.signals.fields import FieldChoice, choose
from nerf.signals.fitting import FitConfig, fit


def shape_of(file: str, minutes: float, kinds: list[str]) -> dict[str, Any]:
    """IoU and Chamfer distance of a mesh, for each kind of field, `minutes` of fitting each.

    iou: at the centres of 128^3 cells of the mesh's box; iou_near: at 2^18 points at a Gaussian distance of 1 % of the
    longest side (with its margin) from the surface. The truth is the winding number. Seconds before the fit (reading,
    a million exact distances) and those of the mesh (grid 256) are told apart.
    """
    started = time.perf_counter()
    truth = solid.read_solid(file)
    problem = shape.Shape(truth, Path(file).name)
    result: dict[str, Any] = {"file": Path(file).name, "seconds_before": time.perf_counter() - started, **truth.about}
    for kind in kinds:
        found = fit(problem, shape.shape_field(problem, shape.choose_shape(kind)), FitConfig(minutes=minutes))
        assert found.fitting is not None
        begun = time.perf_counter()
        mesh = surface.mesh_of_field(found.field, found.signal, 256)
        about = {"mesh_seconds": time.perf_counter() - begun, "parameters": found.field.n_parameters}
        about |= {"chamfer_percent": surface.chamfer_of(mesh, truth).chamfer_percent}
        result[kind] = {**found.fitting, **about, **surface.measure_shape(found.field, truth)}
    return result


def tomography(side: int, n_angles: int, minutes: float, kinds: list[str]) -> dict[str, Any]:
    """PSNR of the Shepp-Logan head found from few exact projections, beside scikit-image's methods on the same data.

    The sinogram is that of ellipses, integrated over each detector's width: neither our forward operator nor
    scikit-image's made it. PSNR is against 1 (the skull's density), all pixels, clipped to [0,1]. SART and SART with
    total variation between its rounds are given the best number of rounds and weight, as judged by the truth.
    """
    try:
        from skimage.restoration import denoise_tv_chambolle
        from skimage.transform import iradon, iradon_sart
    except ImportError as error:
        raise UserError("needs scikit-image: pip install scikit-image") from error
    angles = np.arange(n_angles) * (180.0 / n_angles)
    truth, sinogram = phantom.picture(side), phantom.projections(side, angles)
    exact = sinogram.astype(np.float64)

    def score(picture: NDArray[Any]) -> float:
        return psnr_of(float(np.square(picture.clip(0, 1) - truth).mean()))

    result: dict[str, Any] = {"fbp": {"psnr": score(iradon(exact, angles, circle=True))}}
    guess, rounds = None, []
    for _ in range(30):
        guess = iradon_sart(exact, angles, image=guess)
        rounds.append(score(guess))
    result["sart"] = {"psnr": max(rounds), "rounds": int(np.argmax(rounds)) + 1}
    best: dict[float, float] = {}
    started = time.perf_counter()
    for weight in (0.005, 0.01, 0.02, 0.03):
        guess = None
        for _ in range(60):
            guess = denoise_tv_chambolle(iradon_sart(exact, angles, image=guess), weight=weight)
            best[weight] = max(best.get(weight, 0.0), score(guess))
    weight = max(best, key=lambda w: best[w])
    result["sart_tv"] = {"psnr": best[weight], "weight": weight, "seconds": (time.perf_counter() - started) / len(best)}
    for kind in kinds:
        problem = ct.Sinogram(sinogram, angles, float(side // 2))
        found = fit(problem, choose(kind, problem.shape), FitConfig(minutes=minutes))
        assert found.fitting is not None
        picture = ct.slice_of_field(found.field, found.signal, side, side)
        result[kind] = {"psnr": score(picture), "parameters": found.field.n_parameters, **found.fitting}
    leader = max(result[kind]["psnr"] for kind in kinds)
    return result | {"psnr": leader, "lead_over_sart": leader - result["sart"]["psnr"]}


def faces(minutes: float, latent: int) -> dict[str, Any]:
    """Mean PSNR over the 100 faces of 25x25 pixels that scikit-image's wheel carries: 90 learned from, 10 held out and
    found by three steps on their latents; beside the first `latent` principal components of the 90."""
    try:
        from skimage.data import lfw_subset
    except ImportError as error:
        raise UserError("needs scikit-image: pip install scikit-image") from error
    images = lfw_subset()[:100].astype(np.float32)[..., None]
    problem = latents.LatentFields(images, "lfw_subset")
    field = latents.latent_field(problem, latent)
    found = fit(problem, field, FitConfig(minutes=minutes))
    assert found.fitting is not None
    z = latents.latents_of(field, problem)
    result = {**found.fitting, **latents.measure_set(problem, latents.pictures_of(field, z, 25, 25))}
    flat = images.reshape(100, -1).astype(np.float64)
    mean = flat[problem.learned.numpy()].mean(axis=0)
    axes = np.linalg.svd(flat[problem.learned.numpy()] - mean, full_matrices=False)[2][:latent]
    linear = ((flat - mean) @ axes.T @ axes + mean).reshape(images.shape).astype(np.float32).clip(0, 1)
    return result | {"principal_components": latents.measure_set(problem, linear)}


def compression(image_name: str, side: int, minutes: float, widths: list[int], tables: list[int]) -> dict[str, Any]:
    """Bits per pixel of the whole file against PSNR: packed SIRENs and hash grids beside JPEG of the same image.

    lead_over_jpeg: of the best packed file at each rate over JPEG at that rate (its curve is linear in log rate between
    qualities; rates below its smallest file are left out).
    """
    signal = natural_image(image_name, side)
    h, w = signal.shape
    pixels = signal.values.reshape(h, w, -1)
    jpeg = []
    for quality in (1, 5, 10, 20, 30, 50, 70, 85, 95):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, optimize=True)
        shown = np.asarray(Image.open(file)).astype(np.float64)
        error = float(np.square((shown - pixels) / 255).mean())
        jpeg.append({"quality": quality, "bits_per_pixel": 8 * file.tell() / (h * w), "psnr": psnr_of(error)})
    fields = [(f"siren {n}", replace(choose("siren", signal.shape), width=n)) for n in widths]
    fields += [(f"hash 2^{n}", hash_of(n, max(h, w))) for n in tables]
    packed: list[dict[str, Any]] = []
    for name, choice in fields:
        found = fit(signal, choice, FitConfig(minutes=minutes))
        for bits in (4, 5, 6, 8):
            data = packing.pack(found, bits)
            measured = restore.measure(packing.unpack(data).field, signal)
            row = {"bits": bits, "bytes": len(data), **measured}
            rate = 8 * row["bytes"] / (h * w)
            lead = row["psnr"] - _at(jpeg, rate) if rate >= jpeg[0]["bits_per_pixel"] else None
            packed.append({"field": name, "bits_per_pixel": rate, "over_jpeg": lead, **row})
    leads = [row["over_jpeg"] for row in packed if row["over_jpeg"] is not None]
    return {"jpeg": jpeg, "packed": packed, "lead_over_jpeg": max(leads) if leads else None}


def hash_of(table: int, longest: int) -> FieldChoice:
    """A hash grid of 2^table rows a level, with a small network."""
    choice = FieldChoice("hash", 32, 2, n_levels=8, n_features_per_level=2, log2_hashmap_size=table)
    return replace(choice, finest_resolution=longest // 2)


def _at(curve: list[dict[str, float]], rate: float) -> float:
    rates = np.log([row["bits_per_pixel"] for row in curve])
    return float(np.interp(np.log(rate), rates, [row["psnr"] for row in curve]))
