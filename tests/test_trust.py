"""Checkpoints, packs and compiled kernels: their settings agree with what they hold, and nothing altered is used."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_scenes import write_transforms

import nerf
from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Box, Similarity, Unbounded
from nerf.io import checkpoint
from nerf.kernels import nvrtc
from nerf.rendering.marching import Marching
from nerf.rendering.model import Model
from nerf.signals.audio import write_wav
from nerf.signals.packing import MAGIC, OLD_MAGIC, load_signal, pack, unpack


@pytest.fixture(scope="module")
def model() -> Model:
    field = nerf.RadianceField(nerf.FieldOptions(n_levels=4, log2_hashmap_size=8, width=16))
    cameras = Cameras.perspective(torch.eye(4, dtype=torch.float64)[None, :3].repeat(2, 1, 1), 50.0, 8, 8)
    frame = Similarity(1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    marching = Marching(Unbounded(2), 0.1, 100.0, cone_angle=1 / 256)
    return Model(field, OccupancyGrid(2, 32), marching, frame, cameras, torch.ones(3))


@pytest.fixture(scope="module")
def fitted() -> nerf.Fitted:
    ramp = nerf.Signal("image", np.linspace(0, 1, 64, dtype=np.float32)[:, None], (8, 8))
    return nerf.fit(ramp, nerf.FieldChoice("hash", 16, n_levels=2, log2_hashmap_size=8), nerf.FitConfig(steps=3))


def refused(path: Path, tensors: dict, config: dict, words: str, load: Callable[[Path], Any]) -> None:
    """In one sentence, at once; the file's own checksum is right."""
    checkpoint.save(path, tensors, config)
    began = time.perf_counter()
    with pytest.raises(UserError, match=words):
        load(path)
    assert time.perf_counter() - began < 5


MODEL_EDITS: list[tuple[str, str, Any, str]] = [
    ("field", "log2_hashmap_size", 26, "settings and its tensors do not agree: field.table has the shape"),
    ("field", "n_levels", 10**9, "n_levels is 1000000000"),
    ("field", "width", 4096, "do not agree: field.density_weights.0"),
    ("field", "width", 1 << 40, "width is"),
    ("field", "n_color_layers", 60, "do not agree: field.color_weights"),
    ("field", "n_density_layers", 10**8, "n_density_layers is"),
    ("field", "density_bias", float("nan"), "density_bias is nan"),
    ("marching", "step_size", 1e-30, "step_size is 1e-30"),
    ("marching", "step_size", float("nan"), "step_size is nan"),
    ("marching", "cone_angle", -1.0, "cone_angle is -1.0"),
    ("marching", "near", 1e9, "expected far beyond near"),
    ("marching", "n_levels", 10**6, "n_levels is 1000000"),
    ("occupancy", "resolution", 2000, "do not agree: occupancy.values"),
    ("occupancy", "resolution", 1 << 40, "resolution is"),
    ("occupancy", "n_levels", "2", "n_levels is '2'"),
    ("scene_from_world", "scale", 0, "scene_from_world: its scale is 0"),
    ("scene_from_world", "scale", 1e300, "scene_from_world: its scale is 1e.300"),
    ("marching", "step_size", [0.1], r"step_size is \[0.1\]"),
    ("field", "contracted", "", "contracted is ''"),
    ("", "linear", [], "linear is expected"),
    ("", "meta", 3, "meta an object"),
    ("", "names", ["a.png", 7], "names are expected to be those of the 2 photos"),
    ("", "exposure", "1", "exposure is '1'"),
]


@pytest.mark.parametrize(("part", "name", "value", "words"), MODEL_EDITS)
def test_settings_of_a_model(model: Model, part: str, name: str, value: Any, words: str, tmp_path: Path) -> None:
    tensors, config = model.to_state()
    config = json.loads(json.dumps(config))
    (config[part] if part else config)[name] = value
    refused(tmp_path / "a.safetensors", tensors, config, f"a.safetensors does not hold a model.*{words}", Model.load)


def test_tensors_of_a_model(model: Model, tmp_path: Path) -> None:
    tensors, config = model.to_state()
    wide = {"cameras.widths": torch.tensor([8, 1 << 40]), "cameras.heights": torch.tensor([8, 1 << 40])}
    refused(tmp_path / "a.safetensors", tensors | wide, config, "a camera has 1.21e.24 pixels", Model.load)
    bad = {"cameras.fx": torch.tensor([1, float("nan")], dtype=torch.float64)}
    refused(tmp_path / "a.safetensors", tensors | bad, config, "cameras.fx holds NaN", Model.load)
    for name, t in (("background", torch.ones(4)), ("log_gains", torch.ones(3, 3)), ("given_poses", torch.ones(2, 4))):
        refused(tmp_path / "a.safetensors", tensors | {name: t}, config, f"{name} is expected to be", Model.load)
    bits = {"occupancy.candidates": tensors["occupancy.candidates"].long()}
    refused(tmp_path / "a.safetensors", tensors | bits, config, "the occupancy's tensors are", Model.load)
    checkpoint.save(tmp_path / "a.safetensors", tensors, config)
    assert Model.load(tmp_path / "a.safetensors").marching == model.marching


def test_sizes_that_kernels_do_not_take(model: Model, tmp_path: Path) -> None:
    tensors, config = model.to_state()
    odd = nerf.RadianceField(nerf.FieldOptions(n_levels=4, log2_hashmap_size=8, width=24))
    with nerf.backend("reference"):
        cells = OccupancyGrid(2, 40).tensors()
        others = Model(odd, OccupancyGrid(2, 32), model.marching, model.scene_from_world, model.cameras, torch.ones(3))
        others.save(tmp_path / "wide.safetensors")
        coarse = tensors | {f"occupancy.{name}": t for name, t in cells.items()}
        checkpoint.save(
            tmp_path / "cells.safetensors", coarse, config | {"occupancy": {"n_levels": 2, "resolution": 40}}
        )
        for name in ("wide", "cells"):
            assert Model.load(tmp_path / f"{name}.safetensors").render_image(model.cameras, 0).color.shape == (8, 8, 3)
    if nerf.kernels.backend() != "cpu":
        pytest.skip("the kernels in use take any")
    for name, words in (("wide", "a width of 16 to 128"), ("cells", "a multiple of 32")):
        with pytest.raises(UserError, match=f"{name}.safetensors.*{words}"):
            Model.load(tmp_path / f"{name}.safetensors")
    scene = nerf.load(write_transforms(tmp_path / "scene", n=6), quiet=True)
    for settings, words in (
        ({"occupancy_resolution": 40}, "a multiple of 32"),
        ({"field": odd.options}, "a width of 16 to 128"),
    ):
        with pytest.raises(UserError, match=words):
            nerf.Trainer(scene, nerf.TrainConfig(steps=1, **settings))


def test_every_default_march_is_taken() -> None:
    for space in (Box(), Unbounded(1), Unbounded(8), nerf.Ndc(1.0, 1.0)):
        for cone in (0.0, 1 / 256):
            march = Marching(space, 0.05, 1e6, cone_angle=cone)
            assert Marching.from_dict(json.loads(json.dumps(march.to_dict()))) == march
    with pytest.raises(ValueError, match="step_size is 1e-08"):
        Marching.from_dict(Marching(Box(), 0.05, 10.0, step_size=1e-8).to_dict())


SIGNAL_EDITS: list[tuple[tuple[str, ...], Any, str]] = [
    (("field", "choice", "log2_hashmap_size"), 26, "do not agree: field.encoding.table"),
    (("field", "choice", "width"), 10**9, "width is 1000000000"),
    (("field", "choice", "depth"), 10**9, "depth is 1000000000"),
    (("field", "n_dims"), 3, "extents are 2 lengths"),
    (("field", "low"), float("inf"), "low is inf"),
    (("signal", "shape"), [300_000_000, 300_000_000], "a side of the signal is 300000000"),
    (("signal", "shape"), [8, 1 << 18], "the signal's shape is"),
    (("signal", "dtype"), "V1000000000", "dtype is 'V1000000000'"),
    (("kind",), {}, "kind is {}"),
    (("signal", "one"), float("nan"), "one is nan"),
]


def test_a_fit_is_no_scene_and_a_scene_no_fit(fitted: nerf.Fitted, model: Model, tmp_path: Path) -> None:
    refused(tmp_path / "a.safetensors", *fitted.to_state(), "holds a fitted image and no scene", Model.load)
    refused(tmp_path / "b.safetensors", *model.to_state(), "holds no fitted signal", nerf.Fitted.load)


@pytest.mark.parametrize(("keys", "value", "words"), SIGNAL_EDITS)
def test_settings_of_a_signal(
    fitted: nerf.Fitted, keys: tuple[str, ...], value: Any, words: str, tmp_path: Path
) -> None:
    tensors, config = fitted.to_state()
    config = json.loads(json.dumps(config))
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    refused(tmp_path / "a.safetensors", tensors, config, words, nerf.Fitted.load)
    with pytest.raises(UserError, match=words):
        unpack(repacked(fitted, lambda old, entries: (config, entries)))


def test_a_sound_of_too_many_samples(fitted: nerf.Fitted, tmp_path: Path) -> None:
    tensors, config = fitted.to_state()
    config |= {"kind": "audio", "signal": {"shape": [300_000_000], "rate": 8000, "bits": 16, "dtype": "int16"}}
    refused(tmp_path / "a.safetensors", tensors, config, "number of samples is 300000000", nerf.Fitted.load)
    config["signal"]["shape"] = []
    refused(tmp_path / "a.safetensors", tensors, config, "expected one length", nerf.Fitted.load)
    with pytest.raises(UserError, match=r"a.wav: WAV cannot hold 8 samples of 2 channels at 2147483648 a second"):
        write_wav(tmp_path / "a.wav", np.zeros((8, 2), np.int16), 1 << 31, 16)


def old(data: bytes) -> bytes:
    """A pack as it was before there was a checksum."""
    return OLD_MAGIC + data[len(MAGIC) + 16 :]


def repacked(fitted: nerf.Fitted, edit: Callable[[Any, Any], Any]) -> bytes:
    """A pack without a checksum whose header was changed."""
    data = pack(fitted, 8)[len(MAGIC) + 16 :]
    (length,) = struct.unpack_from("<I", data)
    config, entries = json.loads(zlib.decompress(data[4 : 4 + length]))
    header = zlib.compress(json.dumps(edit(config, entries)).encode())
    return OLD_MAGIC + struct.pack("<I", len(header)) + header + data[4 + length :]


def test_one_flipped_bit_of_a_pack_is_refused(fitted: nerf.Fitted, tmp_path: Path) -> None:
    data = pack(fitted, 6)
    rng = np.random.default_rng(0)
    for bit in {*range(8 * 40), *rng.integers(0, 8 * len(data), 400).tolist()}:
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError, match=r"a.pack is no packed signal that can be read"):
            unpack(bytes(broken), "a.pack")
    for n in (1, 9, 100):
        with pytest.raises(UserError):
            unpack(data[:-n])


def test_packs_of_before_are_read(fitted: nerf.Fitted, tmp_path: Path) -> None:
    data = pack(fitted, 8)
    (tmp_path / "old.pack").write_bytes(old(data))
    (tmp_path / "new.pack").write_bytes(data)
    before, now = (load_signal(tmp_path / name).field.state_dict() for name in ("old.pack", "new.pack"))
    assert all(torch.equal(before[name], now[name]) for name in now) and len(data) - len(old(data)) == 16


def test_packs_that_unpack_to_gigabytes(fitted: nerf.Fitted) -> None:
    bomb = zlib.compress(b" " * (1 << 28))  # 256 MB of 260 kB
    with pytest.raises(UserError, match="larger than it can be"):
        unpack(OLD_MAGIC + struct.pack("<I", len(bomb)) + bomb)

    def longer(config: Any, entries: Any) -> Any:
        entries[0][1] = [300_000_000, 1]
        return config, entries

    with pytest.raises(UserError, match=r"bytes cannot hold the 300000000 numbers of field.encoding.table"):
        unpack(repacked(fitted, longer))


# ---- compiled kernels


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled, in a cache of its own."""
    compiled: list[str] = []

    def compile_source(name: str, *_: Any) -> tuple[bytes, str]:
        compiled.append(name)
        return b"CUBIN" * 20, ""

    monkeypatch.setenv("NERF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(nvrtc, "compile_source", compile_source)
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: (13, 0))
    return compiled


def kernel() -> bytes:
    return nvrtc.cached("cuda_adam.cu", 90, {})


def test_compiled_kernels_are_kept_to_their_user(cache: list[str], tmp_path: Path) -> None:
    assert kernel() == kernel() == b"CUBIN" * 20 and len(cache) == 1
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_mode & 0o077 == 0 and (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_altered_kernels_are_compiled_anew(cache: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kernel()
    (file,) = (tmp_path / "cache").iterdir()
    for data in (file.read_bytes()[:-1] + b"x", b"CUBIN" * 20, b""):
        file.write_bytes(data)
        assert kernel() == b"CUBIN" * 20
        assert f"{file} is not used: it was altered or damaged" in capsys.readouterr().err
    assert len(cache) == 4 and kernel() and len(cache) == 4


def test_kernels_that_others_could_write_are_compiled_anew(
    cache: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel()
    (file,) = (tmp_path / "cache").iterdir()
    for path in (file, file.parent):
        path.chmod(0o777)
        kernel()
        assert f"{path} can be written to by other users" in capsys.readouterr().err
        assert kernel() and "not used" not in capsys.readouterr().err  # it is the user's alone again
    assert len(cache) == 3
    monkeypatch.setattr(nvrtc.os, "getuid", lambda: 4321)
    file.chmod(0o600)
    if file.stat().st_uid != 0:  # what the system's administrator owns is believed
        kernel()
        assert "belongs to another user" in capsys.readouterr().err
