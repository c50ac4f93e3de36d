"""The structs that CUDA kernels take, field by field as the .cu files declare them."""

from __future__ import annotations

import ctypes

from nerf.kernels.bindings import MAX_LEVELS, FieldDesc, GridLevel, MarchDesc, OccupancyDesc, PhotoRays, all_of, fields

_P, _I, _F, _LL, _U = ctypes.c_void_p, ctypes.c_int, ctypes.c_float, ctypes.c_longlong, ctypes.c_uint32


class Kept(ctypes.Structure):  # KeptSamples of cuda_samples.h
    _fields_ = fields(
        n=_P, capacity=_I, **all_of(_P, "last_samples totals intervals rgb_sigmas unit_positions links features")
    )


class JitterArgs(ctypes.Structure):
    _fields_ = fields(out=_P, seed=_U, step=_U, n=_I, step_at=_P)


class NumbersArgs(ctypes.Structure):
    _fields_ = fields(
        rates=_P, step_at=_P, **all_of(_F, "learning_rate correction1 correction2 surface_weight"), step=_U
    )


class MarchArgs(ctypes.Structure):
    _fields_ = fields(
        grid=OccupancyDesc,
        march=MarchDesc,
        n_rays=_I,
        **all_of(_P, "rays_o rays_d t_near t_far jitter starts counts t_starts t_ends ray_indices"),
    )


class OccupancyArgs(ctypes.Structure):  # PackArgs of cuda_march.cu
    _fields_ = fields(**all_of(_P, "occupied fine source to"), **all_of(_I, "n_levels resolution axis"))


class GridArgs(ctypes.Structure):
    _fields_ = fields(
        **all_of(_P, "positions table out grad_out grad_table grad_positions sums fixed_scale"),
        n_numbers=_LL,
        n=_LL,
        n_levels=_I,
        levels=GridLevel * MAX_LEVELS,
    )


class PackArgs(ctypes.Structure):
    _fields_ = fields(field=FieldDesc, forward=_P, backward=_P)


class DirectionArgs(ctypes.Structure):
    _fields_ = fields(directions=_P, sh=_P, n=_I)


class FieldArgs(ctypes.Structure):
    _fields_ = fields(field=FieldDesc, **all_of(_P, "weights positions sh sigmas rgbs"), n=_I)


class RenderArgs(ctypes.Structure):
    _fields_ = fields(
        field=FieldDesc,
        grid=OccupancyDesc,
        march=MarchDesc,
        stop_threshold=_F,
        alpha_threshold=_F,
        n_rays=_I,
        **all_of(_P, "rays_o rays_d t_near t_far jitter sh weights"),
        **all_of(_P, "colors opacities depths median_depths second_moments distortions next_ray n_evaluated"),
        kept=Kept,
    )


class CompositeArgs(ctypes.Structure):
    _fields_ = fields(
        kept=Kept,
        **all_of(_P, "colors opacities depths second_moments distortions"),
        gradient_distance=_F,
        n_rays=_I,
        grads=_P,
        largest_bits=_P,
    )


class PhotoArgs(ctypes.Structure):
    _fields_ = fields(
        composite=CompositeArgs,
        photo=PhotoRays,
        **all_of(_P, "colors opacities depths median_depths second_moments loss"),
    )


class BackwardArgs(ctypes.Structure):
    _fields_ = fields(
        kept=Kept,
        **all_of(_P, "sh forward backward grads largest_bits grad_features grad_sh"),
        by_sample=_I,
        partials=_P,
    )


class ReduceArgs(ctypes.Structure):
    _fields_ = fields(partials=_P, largest_bits=_P, grads=_P, n_blocks=_I)


class ScatterArgs(ctypes.Structure):
    _fields_ = fields(
        field=FieldDesc,
        kept=Kept,
        **all_of(_P, "grad_features largest_bits grad_table sums fixed_scale"),
        n_numbers=_LL,
    )


class RayGradientArgs(ctypes.Structure):
    _fields_ = fields(
        field=FieldDesc,
        kept=Kept,
        **all_of(_P, "grad_features largest_bits rays_o_in rays_d_in viewdirs grad_sh rays_o rays_d grad_viewdirs"),
        n_rays=_I,
        by_sample=_I,
    )


class SumArgs(ctypes.Structure):
    _fields_ = fields(kept=Kept, values=_P, out=_P, columns=_I, n_rays=_I)
