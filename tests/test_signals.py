"""`nerf fit` and `nerf sample` on small images, sounds and videos, and what they say of bad ones."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.cli import main as cli
from nerf.errors import UserError
from nerf.io.images import read_header, read_pixels
from nerf.io.video import ffmpeg
from nerf.signals import audio, image, restore
from nerf.signals.fields import FieldChoice, SignalField
from nerf.signals.fitting import FitConfig, Fitted, fit
from nerf.signals.record import Signal


def smooth(h: int, w: int, c: int = 3, dtype: type = np.uint8) -> np.ndarray:
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    waves = [0.5 + 0.4 * np.sin(5 * x + 3 * y + k) for k in range(c)]
    one = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1.0
    return (np.stack(waves, axis=-1) * one).astype(dtype)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(smooth(24, 32)).save(path)
    return path


def run(*words: object) -> int:
    return cli.run([str(word) for word in words])


def test_an_image_is_fitted_and_given_out_larger(picture: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run("fit", "image", picture, "-o", out, "--steps", 150, "--learning-rate", 0.01) == 0
    result = json.loads((out / "fit.json").read_text())
    assert result["psnr"] > 30 and result["shape"] == [24, 32] and "sRGB" in result["colour_space"]
    assert np.asarray(Image.open(out / "reconstruction.png")).shape == (24, 32, 3)
    assert run("sample", out, "-o", tmp_path / "large.png", "--scale", 2) == 0
    large = np.asarray(Image.open(tmp_path / "large.png")).astype(float)
    assert large.shape == (48, 64, 3)
    small = large.reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(small - smooth(24, 32)).mean() < 8  # the same picture, not a shifted one
    assert run("sample", out, "-o", tmp_path / "large.png") == 2  # nothing is replaced unless asked
    capsys.readouterr()
    for words in (("--scale", "nan"), ("--scale", "inf"), ("--slow", "nan"), ("--fps", "1e300"), ("--seed", 1 << 50)):
        assert run("sample", out, "-o", tmp_path / "other.png", *words) == 2
        assert f"{words[0]} is " in capsys.readouterr().err
    assert run("fit", "image", picture, "-o", out, "--steps", 10) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_and_alpha_are_kept(tmp_path: Path, channels: int) -> None:
    pixels = smooth(5, 7, channels, np.uint16)
    with image.png_writer(tmp_path / "a.png", 7, 5, channels, np.dtype(np.uint16)) as write:
        write(pixels[:2])
        write(pixels[2:])
    signal = image.read_image(tmp_path / "a.png")
    assert signal.values.dtype == np.uint16 and signal.n_channels == channels
    np.testing.assert_array_equal(signal.values.reshape(5, 7, channels), pixels)
    np.testing.assert_array_equal(signal.to_values(signal.targets(torch.arange(35)).numpy()), signal.values)


@pytest.mark.parametrize("claimed", [0, math.inf, 7])
def test_how_many_channels_a_picture_has_is_the_field_s_to_say(tmp_path: Path, claimed: float) -> None:
    field = SignalField(FieldChoice("mlp"), n_dims=2, n_channels=3)
    meta = {"dtype": "uint8", "zero": 0.0, "one": 255.0, "n_channels": claimed}
    image.write_image(tmp_path / "a.png", field, meta, 5, 7)
    assert image.read_image(tmp_path / "a.png").n_channels == 3


def test_all_fields_learn_and_continue_bit_for_bit(picture: Path, tmp_path: Path) -> None:
    signal = image.read_image(picture)
    for kind in ("hash", "siren", "fourier", "mlp"):
        config = FitConfig(steps=40, batch=256)
        whole = fit(signal, kind, config, tmp_path / kind)

        class Stop(Signal):
            """Stops as Ctrl-C would, after 17 steps."""

            steps = 0

            def loss(self, field, batch, random):
                self.steps += 1
                if self.steps > 17:
                    raise KeyboardInterrupt
                return super().loss(field, batch, random)

        half = Stop(**{name: getattr(signal, name) for name in signal.__dataclass_fields__})
        with pytest.raises(KeyboardInterrupt):
            fit(half, kind, config, tmp_path / f"{kind}-half")
        again = fit(signal, kind, config, tmp_path / f"{kind}-half", resume=True)
        for p, q in zip(whole.field.parameters(), again.field.parameters(), strict=True):
            assert torch.equal(p, q), kind
        loaded = Fitted.load(tmp_path / kind)
        u = torch.rand(9, 2)
        assert torch.equal(loaded.field.evaluate(u), whole.field.evaluate(u)), kind


def test_another_signal_is_not_continued(picture: Path, tmp_path: Path) -> None:
    fit(image.read_image(picture), "mlp", FitConfig(steps=2), tmp_path / "out")
    Image.fromarray(smooth(24, 30)).save(tmp_path / "other.png")
    with pytest.raises(UserError, match="another"):
        fit(image.read_image(tmp_path / "other.png"), "mlp", FitConfig(steps=2), tmp_path / "out", resume=True)


def test_a_fit_goes_on_to_a_longer_length(picture: Path, tmp_path: Path) -> None:
    signal = image.read_image(picture)
    fit(signal, "mlp", FitConfig(steps=4), tmp_path / "fit")
    for config, steps in ((FitConfig(), 4), (FitConfig(steps=6), 6)):
        assert fit(signal, "mlp", config, tmp_path / "fit", resume=True).fitting["step"] == steps
    with pytest.raises(UserError, match="6 steps are done already"):
        fit(signal, "mlp", FitConfig(steps=5), tmp_path / "fit", resume=True)


def wav(path: Path, samples: np.ndarray, bits: int, rate: int = 8000) -> Path:
    audio.write_wav(path, samples, rate, bits)
    return path


@pytest.mark.parametrize(("bits", "dtype"), [(16, np.int16), (24, np.int32), (32, np.int32), (32, np.float32)])
def test_stereo_and_every_bit_are_kept(tmp_path: Path, bits: int, dtype: type) -> None:
    random = np.random.default_rng(0)
    limit = 2 ** (bits - 1) - 1
    samples = random.integers(-limit, limit, (50, 2)) if dtype != np.float32 else random.uniform(-1, 1, (50, 2))
    samples = samples.astype(dtype)
    signal = audio.read_audio(wav(tmp_path / "a.wav", samples, bits))
    np.testing.assert_array_equal(signal.values, samples)
    assert signal.meta["rate"] == 8000 and signal.meta["bits"] == bits
    targets = signal.targets(torch.arange(50)).numpy()
    assert np.abs(targets).max() <= 1.0
    if bits < 32:  # float32 holds 24 bits
        np.testing.assert_array_equal(signal.to_values(targets), samples)


def test_a_sound_is_fitted_resampled_and_slowed(tmp_path: Path) -> None:
    t = np.arange(800)[:, None] / 8000
    tone = (0.5 * 2**23 * np.sin(2 * np.pi * t * [[220.0, 330.0]])).astype(np.int32)
    out = tmp_path / "out"
    assert run("fit", "audio", wav(tmp_path / "a.wav", tone, 24), "-o", out, "--steps", 200) == 0
    result = json.loads((out / "fit.json").read_text())
    assert result["mse"] < 1e-4 and result["n_channels"] == 2 and result["bits"] == 24
    assert run("sample", out, "-o", tmp_path / "b.wav", "--rate", 16000, "--slow", 1.5) == 0
    again = audio.read_audio(tmp_path / "b.wav")
    assert again.values.shape == (2400, 2) and again.meta["bits"] == 24 and again.meta["rate"] == 16000
    assert run("sample", out, "-o", tmp_path / "c.wav", "--scale", 2) == 2


def test_a_video_is_fitted_and_slowed(tmp_path: Path) -> None:
    from nerf.io.video import mp4
    from nerf.signals import video

    with mp4(tmp_path / "in.mp4", 32, 16, 10.0) as write:
        for k in range(6):
            write(np.roll(smooth(16, 32), k, axis=1))
    signal = video.read_video(tmp_path / "in.mp4")
    assert signal.shape == (6, 16, 32)
    out = tmp_path / "out"
    assert run("fit", "video", tmp_path / "in.mp4", "-o", out, "--steps", 80) == 0
    assert json.loads((out / "fit.json").read_text())["psnr"] > 25
    assert run("sample", out, "-o", tmp_path / "slow.mp4", "--slow", 2, "--size", 16, 8) == 0
    assert video.read_video(tmp_path / "slow.mp4").shape == (12, 8, 16)


# ---- bad input


def test_bad_images_get_one_sentence(tmp_path: Path, picture: Path, capsys) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    Image.fromarray(smooth(5, 5)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / "black.png")
    out = tmp_path / "out"
    for words, expected in (
        ([tmp_path / "none.png"], "there is no such file"),
        ([tmp_path / "empty.png"], "is empty"),
        ([tmp_path / "broken.png"], "cannot be read"),
        ([picture, "--mask", tmp_path / "small.png"], "5x5 pixels and the image 32x24"),
        ([picture, "--mask", tmp_path / "black.png"], "no pixel is known"),
        ([picture, "--keep", "0"], "above 0"),
        ([picture, "--noise", "25"], "share of the range"),
        ([picture, "--super-resolution", "1"], "expected a whole number from 2 to 64"),
        ([picture, "--super-resolution", "100000"], "expected a whole number from 2 to 64"),
        ([picture, "--clean", tmp_path / "small.png"], "5x5 pixels and the restored image 32x24"),
        ([picture, "--steps", "5", "--minutes", "1"], "give one of them"),
        ([picture, "--omega", "5"], "is of the field siren"),
        ([picture, "--learn", "laplacian"], "hash grid"),
    ):
        assert run("fit", "image", *words, "-o", out) == 2
        message = capsys.readouterr().err
        assert expected in message and "Traceback" not in message
        assert not list(out.glob("*"))


def test_one_pixel_is_a_picture_too(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (200, 10, 90)).save(tmp_path / "one.png")
    assert run("fit", "image", tmp_path / "one.png", "-o", tmp_path / "out", "--steps", 60) == 0
    found = np.asarray(Image.open(tmp_path / "out/reconstruction.png")).astype(int)[0, 0]
    assert np.abs(found - [200, 10, 90]).max() < 12


def test_bad_and_silent_sounds(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound at all")
    whole = wav(tmp_path / "a.wav", np.zeros((64, 1), np.int16), 16).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:36])
    (tmp_path / "odd.wav").write_bytes(whole[:34] + struct.pack("<H", 12) + whole[36:])
    (tmp_path / "fast.wav").write_bytes(whole[:24] + struct.pack("<I", 0xFFFFFFFF) + whole[28:])
    wav(tmp_path / "none.wav", np.zeros((0, 1), np.int16), 16)
    for name, expected in (
        ("missing.wav", "no such file"),
        ("empty.wav", "is empty"),
        ("text.wav", "cannot be read as a sound"),
        ("cut.wav", "no data chunk"),
        ("odd.wav", "12 bits"),
        ("fast.wav", "at 4294967295/s is not supported"),
        ("none.wav", "no samples"),
    ):
        assert run("fit", "audio", tmp_path / name, "-o", tmp_path / "out") == 2
        assert expected in capsys.readouterr().err
    assert run("fit", "audio", tmp_path / "a.wav", "-o", tmp_path / "silent", "--steps", 150) == 0
    assert "silent" in capsys.readouterr().err
    assert np.abs(audio.read_audio(tmp_path / "silent/reconstruction.wav").values).max() < 0.02 * 2**15


@pytest.mark.parametrize("codec", ["pcm_mulaw", "pcm_alaw", "adpcm_ms", "adpcm_ima_wav", "libmp3lame"])
def test_wav_files_of_any_codec(tmp_path: Path, codec: str) -> None:
    tone = 0.5 * np.sin(np.arange(16000) / 8000 * 2 * np.pi * 440)
    plain = wav(tmp_path / "a.wav", np.rint(tone * 32767).astype(np.int16)[:, None], 16)
    ffmpeg("-i", str(plain), "-c:a", codec, "-f", "wav", str(tmp_path / "coded.wav"))
    signal = audio.read_audio(tmp_path / "coded.wav")
    assert signal.meta["bits"] == 32 and signal.values.dtype == np.float32
    whole = np.fft.rfft(signal.values[:8000, 0])
    rate = signal.meta["rate"]
    assert abs(np.abs(whole).argmax() * rate / 8000 - 440) < 5 and signal.values.max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 10**6])
def test_a_recorder_that_was_switched_off(tmp_path: Path, size: int) -> None:
    samples = np.arange(-400, 400, dtype=np.int16)[:, None]
    data = wav(tmp_path / "a.wav", samples, 16).read_bytes()
    (tmp_path / "a.wav").write_bytes(
        data[:4] + struct.pack("<I", size) + data[8:40] + struct.pack("<I", size) + data[44:]
    )
    assert (audio.read_audio(tmp_path / "a.wav").values == samples).all()
    wav(tmp_path / "none.wav", np.zeros((0, 1), np.int16), 16)
    (tmp_path / "none.wav").write_bytes(
        (tmp_path / "none.wav").read_bytes() + b"LIST" + struct.pack("<I4s", 4, b"INFO")
    )
    with pytest.raises(UserError, match="no samples"):
        audio.read_audio(tmp_path / "none.wav")


def test_floats_above_full_scale_are_not_cut(tmp_path: Path, capsys) -> None:
    tone = (1.7 * np.sin(np.arange(2000) / 40)).astype(np.float32)[:, None]
    signal = audio.read_audio(wav(tmp_path / "loud.wav", tone, 32))
    assert "1.7 of full scale" in capsys.readouterr().err

    class Exact:
        def evaluate(self, u: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(tone)

    audio.write_audio(tmp_path / "again.wav", Exact(), signal.describe())  # type: ignore[arg-type]
    assert np.abs(audio.read_audio(tmp_path / "again.wav").values - tone).max() < 1e-6


def test_bad_videos(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no frames at all")
    for name, expected in (("empty.mp4", "is empty"), ("text.mp4", "cannot be read as a video")):
        assert run("fit", "video", tmp_path / name, "-o", tmp_path / "out") == 2
        assert expected in capsys.readouterr().err


# ---- restoration


def test_in_painting_from_few_pixels_finds_the_others(picture: Path, tmp_path: Path) -> None:
    words = ("--keep", 0.25, "--field", "siren", "--steps", 150, "--width", 64, "--depth", 2, "--omega", 10)
    assert run("fit", "image", picture, "-o", tmp_path / "out", *words) == 0
    result = json.loads((tmp_path / "out/fit.json").read_text())
    assert result["n_known"] == 192 and result["psnr_of_unknown"] > 25


def test_a_mask_hides_what_is_black(picture: Path, tmp_path: Path) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[:, :10] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    signal = image.read_image(picture)
    restore.keep_known(signal, tmp_path / "mask.png", None)
    assert signal.n_known == 240
    assert (signal.coordinates(signal.draw(1000, torch.Generator()))[:, 0] < 10 / 32).all()


def test_noise_is_left_out(tmp_path: Path) -> None:
    clean = smooth(64, 64)
    random = np.random.default_rng(0)
    noisy = np.clip(clean + random.normal(0, 25.5, clean.shape), 0, 255).astype(np.uint8)
    Image.fromarray(clean).save(tmp_path / "clean.png")
    Image.fromarray(noisy).save(tmp_path / "noisy.png")
    words = ("--noise", 0.1, "--clean", tmp_path / "clean.png", "--field", "siren", "--width", 64, "--depth", 2)
    out = tmp_path / "out"
    assert run("fit", "image", tmp_path / "noisy.png", "-o", out, *words, "--omega", 10, "--steps", 400) == 0
    result = json.loads((out / "fit.json").read_text())
    assert result["psnr_against_clean"] > 26 > 22 > result["psnr"] - 2  # the noisy image has 20 dB
    assert result["step"] < 400


def test_super_resolution_averages_to_the_image(tmp_path: Path) -> None:
    fine = smooth(48, 64)
    coarse = fine.reshape(24, 2, 32, 2, 3).mean((1, 3)).round().astype(np.uint8)
    Image.fromarray(fine).save(tmp_path / "fine.png")
    Image.fromarray(coarse).save(tmp_path / "coarse.png")
    words = ("--super-resolution", 2, "--clean", tmp_path / "fine.png", "--field", "siren", "--width", 64)
    out = tmp_path / "out"
    assert run("fit", "image", tmp_path / "coarse.png", "-o", out, *words, "--depth", 2, "--steps", 150) == 0
    result = json.loads((out / "fit.json").read_text())
    assert result["shape"] == [48, 64] and result["psnr_of_averages"] > 28 and result["psnr_against_clean"] > 28
    assert read_pixels(read_header(out / "reconstruction.png")).shape == (48, 64, 3)


# ---- large images, and from Python


def test_a_large_image_is_drawn_by_index_without_a_copy() -> None:
    side = 10_000
    values = np.lib.stride_tricks.as_strided(np.zeros(3, np.uint8), (side * side, 3), (0, 1))  # 100 MP in three bytes
    signal = Signal("image", values, (side, side), 0.0, 255.0)
    assert signal._ready is None  # 1.2 GB as float32
    indices = signal.draw(1 << 12, torch.Generator())
    u = signal.coordinates(indices)
    assert signal.targets(indices).shape == (1 << 12, 3)
    assert (torch.bincount(indices // (side * side // 64), minlength=64) == 64).all()  # everywhere evenly
    back = (u[:, 1].double() * side - 0.5).round() * side + (u[:, 0].double() * side - 0.5).round()
    assert torch.equal(back.long(), indices)
    strip = next(image.rows_of_field(fit(signal, "mlp", FitConfig(steps=1)).field, side, side))
    assert strip.shape == (image.STRIP // side, side, 3)


def test_the_tutorial_is_as_short_as_in_torch(picture: Path) -> None:
    import nerf

    signal = nerf.read_image(picture)
    field = nerf.FieldChoice("mlp", width=32, depth=2, output="sigmoid")  # 2D -> 32 ReLU -> 32 ReLU -> RGB, sigmoid
    fitted = nerf.fit(signal, field, nerf.FitConfig(steps=400, learning_rate=0.01))
    pixels = image.image_of_field(fitted.field, *signal.shape)

    net = torch.nn.Sequential(
        *(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU()),
        *(torch.nn.Linear(32, 3), torch.nn.Sigmoid()),
    )
    assert fitted.field.n_parameters == sum(p.numel() for p in net.parameters())
    assert pixels.shape == (24, 32, 3) and 0 < pixels.min() and pixels.max() < 1
    assert np.square(pixels * 255 - smooth(24, 32)).mean() < 150  # 26 dB
