"""The native library: its C structs, finding and loading the right one, and tensors to addresses."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch  # before our library, so that both share one OpenMP runtime
from torch import Tensor

from nerf.kernels import build
from nerf.kernels.records import GridLayout

_P, _I, _F, _LL, _U = ctypes.c_void_p, ctypes.c_int, ctypes.c_float, ctypes.c_longlong, ctypes.c_uint32
MAX_LEVELS, MAX_LAYERS, MAX_NET_LAYERS = 24, 4, 12


def fields(**types: Any) -> list[tuple[str, Any]]:
    """Names and types of a struct, in order."""
    return list(types.items())


def all_of(kind: Any, names: str) -> dict[str, Any]:
    """Fields of one type."""
    return dict.fromkeys(names.split(), kind)


class GridLevel(ctypes.Structure):
    _fields_ = fields(scale=_F, **all_of(_U, "resolution rows offset hashed"))


class FieldDesc(ctypes.Structure):
    _fields_ = fields(
        **all_of(_I, "n_levels n_features width n_density_layers n_color_layers contracted"),
        density_bias=_F,
        **all_of(_P, "table table_half"),
        **all_of(_P * MAX_LAYERS, "density_weights color_weights"),
        levels=GridLevel * MAX_LEVELS,
    )


class OccupancyDesc(ctypes.Structure):  # OccupancyBits of march.h
    _fields_ = fields(**all_of(_P, "fine clearance"), **all_of(_U, "resolution n_levels"))


class MarchDesc(ctypes.Structure):  # MarchSettings of march.h
    _fields_ = fields(**all_of(_F, "step_size cone_angle max_step"))


class RenderDesc(ctypes.Structure):
    _fields_ = fields(
        grid=OccupancyDesc,
        march=MarchDesc,
        **all_of(_F, "stop_threshold alpha_threshold gradient_distance"),
        **all_of(_I, "n_rays n_threads"),
        **all_of(_P, "rays_o rays_d viewdirs t_near t_far jitter"),
        **all_of(_P, "colors opacities depths median_depths second_moments distortions"),
    )


class RenderGrads(ctypes.Structure):
    _fields_ = fields(
        **all_of(_P, "colors opacities depths second_moments distortions table"),
        **all_of(_P * MAX_LAYERS, "density_weights color_weights"),
        **all_of(_P, "rays_o rays_d viewdirs"),
    )


class AdamDesc(ctypes.Structure):
    _fields_ = fields(
        **all_of(_P, "param grad m v half_copy"),
        **all_of(_LL, "n_rows decay_from"),
        **all_of(_I, "n_columns skip_zero_rows zero_grad n_threads"),
        **all_of(_F, "lr beta1 beta2 eps correction1 correction2 weight_decay"),
        rates=_P,
    )


class NetDesc(ctypes.Structure):
    _fields_ = fields(
        **all_of(_I, "n_layers bf16 n_threads"),
        dims=_I * (MAX_NET_LAYERS + 1),
        activation=_I * MAX_NET_LAYERS,
        omega=_F * MAX_NET_LAYERS,
        **all_of(_P * MAX_NET_LAYERS, "weights biases grad_weights grad_biases"),
        **all_of(_P, "x targets grad_out grad_tangents out out_tangents grad_x"),
        n_tangents=_I,
        tangent_scale=_F * 3,
        n=_LL,
        loss=ctypes.c_double,
    )


class DepthViewDesc(ctypes.Structure):  # DepthView of cpu_fusion.h
    _fields_ = fields(
        camera_from_scene=_F * 12, intrinsics=_F * 4, **all_of(_I, "width height"), **all_of(_P, "depths weights")
    )


class MatchSourceDesc(ctypes.Structure):  # MatchSource of cpu_matching.h
    _fields_ = fields(homography=_F * 9, epipole=_F * 3, **all_of(_I, "width height"), picture=_P)


class MatchWindowDesc(ctypes.Structure):  # MatchWindow of cpu_matching.h
    _fields_ = fields(**all_of(_I, "radius step best"), **all_of(_F, "color space noise"))


Three = _F * 3


class DrawArgs(ctypes.Structure):  # of draw.h
    _fields_ = fields(
        **all_of(_P, "pixels offsets widths heights blocks cumulative cameras directions starts"),
        **all_of(_P, "masks silhouettes mask_offsets silhouette_offsets"),
        **all_of(_P, "keypoints keypoint_depths near centres nearest"),
        **all_of(_P, "rays_o rays_d viewdirs t_near t_far jitter targets backgrounds used t_depths alphas"),
        **all_of(_P, "places drawn step_at"),
        **all_of(_U, "seed step"),
        **all_of(_I, "n n_blocks side channels bytes has_alpha has_background any_direction warped"),
        **all_of(_I, "n_near n_known n_before before_every n_centres n_nearest"),
        background=Three,
        **all_of(_F, "ndc_x ndc_y exposure half_extent t_first t_last before_last spread"),
    )


class PhotoRays(ctypes.Structure):  # of photo.h
    _fields_ = fields(
        **all_of(_P, "targets backgrounds used t_depths gains alphas exponents places rates"),
        **all_of(_P, "errors grad_gains medians error_sums error_counts"),
        **all_of(_F, "photo surface depth before delta rounding reference brightest"),
        **all_of(_I, "n n_before"),
    )


STRUCTS = (
    GridLevel,
    FieldDesc,
    RenderDesc,
    RenderGrads,
    AdamDesc,
    NetDesc,
    DepthViewDesc,
    MatchSourceDesc,
    MatchWindowDesc,
    DrawArgs,
    PhotoRays,
)  # as nerf_sizeof counts them


# ---- loading -------------------------------------------------------------------------------------------------------


def cpu_flags() -> set[str]:
    """Instruction-set flags of this machine as the kernel lists them (Linux); empty where they cannot be read."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def suitable_variants() -> list[str]:
    """Library variants this machine can execute, best first. NERF_CPU_VARIANT narrows it to one, for tests."""
    machine, flags = platform.machine().lower(), cpu_flags()
    if machine in ("aarch64", "arm64"):
        variants = ["neon"]
    else:
        variants = ["baseline"]
        if {"avx2", "fma", "f16c"} <= flags:
            variants.insert(0, "avx2")
        if {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
            variants.insert(0, "avx512")
    wanted = os.environ.get("NERF_CPU_VARIANT")
    return [v for v in variants if v == wanted] if wanted else variants


@dataclass(frozen=True)
class Library:
    """A loaded native library, or the reason why there is none."""

    handle: ctypes.CDLL | None
    variant: str = ""
    reason: str = ""


@lru_cache(maxsize=1)
def load() -> Library:
    """Load the best library that is there, once. A library built from other sources than the ones beside it is
    refused."""
    reasons = []
    for variant in suitable_variants():
        path = build.LIBRARIES / build.file_name_of(variant)
        if not path.exists():
            reasons.append(f"{path.name} was not built")
            continue
        try:
            handle = ctypes.CDLL(str(path))
        except OSError as error:
            reasons.append(f"{path.name} does not load ({error})")
            continue
        handle.nerf_source_hash.restype = ctypes.c_char_p
        if handle.nerf_source_hash().decode() != build.source_hash():
            reasons.append(f"{path.name} was built from other sources (run `python -m nerf.kernels.build`)")
            continue
        _declare(handle)
        wrong = [s.__name__ for i, s in enumerate(STRUCTS) if handle.nerf_sizeof(i) != ctypes.sizeof(s)]
        if wrong:
            reasons.append(f"{path.name} lays out {', '.join(wrong)} in another way than Python declares")
            continue
        return Library(handle, variant)
    return Library(None, reason="; ".join(reasons) or "this processor fits none of the built libraries")


def _declare(lib: ctypes.CDLL) -> None:
    for name, restype, argtypes in (
        ("nerf_hashgrid_forward", _I, [_I, _I, _P, _LL, _P, _I, _P, _P, _I]),
        ("nerf_hashgrid_backward", _I, [_I, _I, _P, _LL, _P, _I, _P, _P, _P, _P, _I]),
        ("nerf_field_forward", None, [_P, _P, _P, _LL, _P, _P, _I]),
        ("nerf_march", None, [_P, _P, _P, _P, _P, _P]),
        ("nerf_pack_occupancy", None, [_P, _I, _I, _P, _P]),
        ("nerf_places_set", _LL, [_P, _LL, _P]),
        ("nerf_threshold_cells", None, [_P, _P, _LL, _F, _F, _P, _I]),
        ("nerf_render_forward", _P, [_P, _P, _I, _P]),
        ("nerf_render_backward", None, [_P, _P, _P, _P]),
        ("nerf_render_free", None, [_P]),
        ("nerf_draw_rays", None, [_P, _I]),
        ("nerf_learn", ctypes.c_double, [_P, _P, _P, _P, _P, _P]),
        ("nerf_adam_step", None, [_P]),
        ("nerf_network", None, [_P]),
        ("nerf_nearest_points", None, [_P, _P, _I, _P, _LL, _P, _P, _P, _I]),
        ("nerf_winding_numbers", None, [_P, _P, _I, _P, _P, _LL, _P, _I]),
        ("nerf_rasterise", None, [_P, _P, _P, _I, _I, _I, _P, _I]),
        ("nerf_drop_outlines", _I, [_P, _P, _P, _P, _P, _I, _I, _P]),
        ("nerf_fuse_depths", None, [_P, _P, _LL, _P, _I, ctypes.c_float, ctypes.c_float, _P, _P, _P, _I]),
        ("nerf_match_planes", None, [_P, _I, _I, _P, _I, _P, _P, _P, _I]),
        ("nerf_jitter", None, [ctypes.c_uint32, ctypes.c_uint32, _I, _P]),
        ("nerf_sizeof", _I, [_I]),
        ("nerf_lanes", _I, []),
        ("nerf_has_bf16", _I, []),
        ("nerf_has_openmp", _I, []),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes


def native() -> ctypes.CDLL:
    handle = load().handle
    if handle is None:
        raise RuntimeError(f"the CPU backend is not available: {load().reason}")
    return handle


# ---- tensors to pointers -------------------------------------------------------------------------------------------


class Pointers:
    """Turns tensors of one device into addresses and keeps the tensors alive for as long as this object lives. What
    does not begin at a multiple of `alignment` bytes (a view may begin anywhere) is copied to where it does."""

    def __init__(self, device: str = "cpu", alignment: int = 1) -> None:
        self.alive: list[object] = []
        self.device, self.alignment = torch.device(device), alignment

    def __call__(
        self, name: str, tensor: Tensor | None, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32
    ) -> int:
        if tensor is None:
            return 0
        if tensor.device != self.device or tensor.dtype != dtype:
            raise TypeError(
                f"{name}: expected a {dtype} tensor on the {self.device}, got {tensor.dtype} on {tensor.device}"
            )
        if tensor.dim() != len(shape) or any(
            w is not None and w != g for w, g in zip(shape, tensor.shape, strict=True)
        ):
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        tensor = tensor.detach().contiguous()
        if tensor.data_ptr() % self.alignment:
            tensor = tensor.clone()
        self.alive.append(tensor)
        return tensor.data_ptr()


def check_in_place(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> None:
    """Native code writes here: a copy made to fit would swallow the result."""
    is_as_told = tensor.dtype == dtype and tensor.shape == shape and tensor.device == torch.device(device)
    if is_as_told and tensor.is_contiguous():
        return  # soon: it is asked two dozen times in a step of training
    Pointers(device)(name, tensor, shape, dtype)
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, it is written in place")


@lru_cache(maxsize=64)
def grid_levels(layout: GridLayout) -> ctypes.Array:
    """The levels as the kernels read them; the same array for the same layout, so that nobody may write to it."""
    if layout.n_levels > MAX_LEVELS:
        raise ValueError(f"layout: expected at most {MAX_LEVELS} levels, got {layout.n_levels}")
    levels = (GridLevel * MAX_LEVELS)()
    for i in range(layout.n_levels):
        levels[i] = GridLevel(
            layout.scales[i],
            layout.resolutions[i],
            layout.level_sizes[i],
            layout.offsets[i],
            0 if layout.dense[i] else 1,
        )
    return levels
