"""The settings of a fitted signal as a checkpoint or a pack states them, checked before anything is made by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nerf.io.limits import number, same_shapes, whole
from nerf.signals.fields import OWN, SignalField
from nerf.signals.latents import ModulatedField

MOST_SAMPLES = 1 << 28  # of a sound: nearly two hours at 44100 a second
MOST_PIXELS = 1 << 32  # of a picture, a slice or a frame
_SIDE, _FRAMES = 1 << 17, 1 << 24
_DTYPES = ("uint8", "uint16", "int16", "int32", "float16", "float32")
_WHOLE = {"width": 1 << 14, "n_features": 1 << 20, "log2_hashmap_size": 30, "base_resolution": 1 << 20}
_WHOLE |= {"n_levels": 64, "n_features_per_level": 64, "finest_resolution": 1 << 24}


def check_state(tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """ValueError, KeyError or TypeError where `SignalField.from_dict` would make another field than that of the
    tensors, or sampling would not end; the tensors may be on the device meta."""
    settings = config["field"]
    choice, n_dims = settings["choice"], whole(settings["n_dims"], "n_dims", 1, 16)
    for name, most in _WHOLE.items():
        whole(choice.get(name, 1), name, 1, most)
    whole(choice.get("depth", 1), "depth", 0, 64)
    whole(choice.get("n_frequencies", 0), "n_frequencies", 0, 64)
    whole(settings["n_channels"], "n_channels", 1, 1 << 16)
    whole(settings["seed"], "seed", -(1 << 63), (1 << 64) - 1)
    for name in ("first_omega_0", "omega_0", "sigma"):
        number(choice.get(name, 1.0), name)
    for name in ("low", "high"):
        number(settings[name], name)
    if len([number(side, "a side of extents", 1e-6, 1e6) for side in settings["extents"]]) != n_dims:
        raise ValueError(f"extents are {len(settings['extents'])} lengths, expected {n_dims}")
    if "latent" in settings:
        whole(settings["latent"], "latent", 1, 1 << 16)
    if choice["kind"] != OWN:
        kind = ModulatedField if "latent" in settings else SignalField
        with torch.device("meta"):
            same_shapes(kind.from_dict(settings).state_dict(), tensors, "field")
    _check_signal(config["kind"], config["signal"])


def _check_signal(kind: str, signal: dict[str, Any]) -> None:
    """What `nerf sample` takes the size and the scale of its output from; of kinds from outside, what it knows."""
    if not isinstance(kind, str):
        raise ValueError(f"kind is {kind!r}, expected a name")
    if kind in ("image", "video", "ct", "set"):
        *frames, height, width = (whole(side, "a side of the signal", 1, _FRAMES) for side in signal["shape"])
        if max(height, width) > _SIDE or height * width > MOST_PIXELS or len(frames) != (kind == "video"):
            raise ValueError(f"the signal's shape is {signal['shape']}, expected sides of at most {_SIDE}")
    elif kind == "audio":
        if len(signal["shape"]) != 1:
            raise ValueError(f"the signal's shape is {signal['shape']}, expected one length")
        whole(signal["shape"][0], "the number of samples", 1, MOST_SAMPLES)
        whole(signal["rate"], "rate", 1, 1 << 30)
        whole(signal["bits"], "bits", 8, 64)
    elif kind == "shape":
        for name, least in (("low", -math.inf), ("sides", 1e-30)):
            if len([number(v, name, least) for v in signal[name]]) != 3:
                raise ValueError(f"{name} is {signal[name]}, expected three numbers")
        if not isinstance(signal["signed"], bool):
            raise ValueError(f"signed is {signal['signed']!r}, expected true or false")
    if kind == "video":
        number(signal["fps"], "fps", 1e-3, 1e5)
    if kind in ("image", "audio"):
        if signal["dtype"] not in _DTYPES:
            raise ValueError(f"dtype is {signal['dtype']!r}, expected one of {', '.join(_DTYPES)}")
        for name in ("zero", "one"):
            number(signal[name], name)
    for name in ("unit", "centre"):
        if kind == "ct":
            number(signal[name], name)
