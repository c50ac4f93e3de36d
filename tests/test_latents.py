"""Sets of signals with a latent each, and fields packed into few bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.cli import main as cli
from nerf.errors import UserError
from nerf.signals import latents, packing
from nerf.signals.fields import FieldChoice
from nerf.signals.fitting import FitConfig, Fitted, fit
from nerf.signals.record import Signal


def blobs(n: int, side: int = 10) -> np.ndarray:
    """Pictures of one soft spot each, at places of a circle: one number tells them apart."""
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    at = 0.5 + 0.25 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return np.stack([np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.03) for a, b in at]).astype(np.float32)


def run(*words: object) -> int:
    return cli.run([str(word) for word in words])


def test_a_set_is_learned_blended_and_drawn_from(tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "set.npy", blobs(24))
    out = tmp_path / "out"
    sizes = ("--steps", 200, "--width", 24, "--depth", 2, "--latent", 6, "--learning-rate", 2e-3)
    assert run("fit", "set", tmp_path / "set.npy", "-o", out, *sizes) == 0
    result = json.loads((out / "fit.json").read_text())
    flat = -10 * np.log10(np.mean((blobs(24) - blobs(24).mean(axis=0)) ** 2))
    assert result["psnr"] > flat + 3 and result["psnr_held_out"] > flat + 1  # better than the mean of all
    z = np.load(out / "latents.npy")
    assert z.shape == (24, 6)
    assert run("sample", out, "-o", tmp_path / "new.png", "--new", 5, "--scale", 2) == 0
    assert np.asarray(Image.open(tmp_path / "new.png")).shape == (21, 105, 3)
    assert run("sample", out, "-o", tmp_path / "between.png", "--between", 1, 7) == 0
    np.save(tmp_path / "own.npy", z[3])
    assert run("sample", out, "-o", tmp_path / "own.png", "--latent", tmp_path / "own.npy") == 0
    capsys.readouterr()
    np.save(tmp_path / "long.npy", np.zeros(9))
    for words, said in (
        (["--latent", tmp_path / "long.npy"], "latents of length 6"),
        (["--between", 1, 99], "0 to 23"),
        ([], "--new N"),
        (["--new", 0], "expected a whole number from 1 to 65536\n"),
        (["--grid", 64], "means nothing for a fitted set"),
    ):
        assert run("sample", out, "-o", tmp_path / "bad.png", *words) == 2
        assert said in capsys.readouterr().err, said
    loaded = Fitted.load(out)
    assert isinstance(loaded.field, latents.ModulatedField)
    with pytest.raises(UserError, match="length 5"):
        loaded.field.values(torch.zeros(3, 2), torch.zeros(1, 5))


def test_the_steps_to_a_latent_can_be_learned_through() -> None:
    """The gradient of the error after the inner steps, in a shared weight, against a difference of it."""
    problem = latents.LatentFields(blobs(4)[..., None])
    field = latents.latent_field(problem, latent=3, width=8, depth=2).double()
    field.rates.data.fill_(0.5)
    u, targets = problem.u.double(), problem.values.double()

    def error() -> torch.Tensor:
        z = field.find_latents(u, targets, train=True)
        return (field.values(u, z) - targets).square().mean()

    weight = field.network.layers[0].linear.weight
    for parameter in (weight, field.rates, field.shifts):
        (grad,) = torch.autograd.grad(error(), parameter)
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
        start, h = parameter.data.clone(), 1e-5
        parameter.data = start + h * direction
        above = float(error().detach())
        parameter.data = start - h * direction
        slope = (above - float(error().detach())) / (2 * h)
        parameter.data = start
        assert slope == pytest.approx(float((grad * direction).sum()), rel=1e-4, abs=1e-9)


def test_a_density_draws_what_its_latents_are_like() -> None:
    random = torch.Generator().manual_seed(0)
    z = torch.randn(400, 3, generator=random) @ torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 0.1]]) + 5
    drawn = latents.LatentPrior.of(z).draw(20_000, temperature=1.0)
    torch.testing.assert_close(torch.cov(drawn.t()), torch.cov(z.t()), rtol=0.1, atol=0.05)
    torch.testing.assert_close(drawn.mean(dim=0), z.mean(dim=0), rtol=0.02, atol=0.02)
    with pytest.raises(UserError, match="3 latents"):
        latents.LatentPrior.of(z[:2])


def test_bad_sets_are_one_sentence(tmp_path: Path, capsys) -> None:
    (tmp_path / "mixed").mkdir()
    for name, side in (("a", 8), ("b", 9)):
        Image.fromarray(np.zeros((side, 8), np.uint8)).save(tmp_path / "mixed" / f"{name}.png")
    (tmp_path / "none").mkdir()
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    np.save(tmp_path / "nan.npy", np.full((4, 4, 4), np.nan))
    for name, said in (
        ("mixed", "a set has one size"),
        ("none", "2 or more"),
        ("flat.npy", "[n,h,w]"),
        ("nan.npy", "no finite numbers"),
        ("missing.npy", "cannot be read"),
    ):
        assert run("fit", "set", tmp_path / name, "-o", tmp_path / "out") == 2
        assert said in capsys.readouterr().err, said
    np.save(tmp_path / "fine.npy", blobs(3))
    assert run("fit", "set", tmp_path / "fine.npy", "-o", tmp_path / "out", "--latent", 0) == 2


# ---- packing


def test_symbols_come_back_and_take_no_more_than_their_entropy() -> None:
    random = np.random.default_rng(0)
    for symbols, count in (
        (random.binomial(63, 0.3, 5000), 64),
        (np.zeros(100, np.int64), 256),
        (random.integers(0, 4, 7), 4),
        (random.integers(0, 1 << 16, 300), 1 << 16),
        (np.zeros(0, np.int64), 16),
    ):
        data = packing._encode(symbols.astype(np.int64), count)
        assert np.array_equal(packing._decode(data, len(symbols), count), symbols)
    symbols = random.binomial(63, 0.3, 20_000)
    p = np.bincount(symbols) / len(symbols)
    entropy = -(p[p > 0] * np.log2(p[p > 0])).sum() * len(symbols) / 8
    assert len(packing._encode(symbols.astype(np.int64), 64)) < 1.01 * entropy + 200


def test_a_packed_field_is_small_and_nearly_the_same(tmp_path: Path, capsys) -> None:
    y, x = np.mgrid[0:32, 0:32] / 32
    pixels = (127 + 100 * np.sin(4 * x + 3 * y))[..., None].astype(np.uint8)
    signal = Signal("image", pixels.reshape(-1, 1), (32, 32), 0.0, 255.0, meta={"name": "waves"})
    fitted = fit(signal, FieldChoice("siren", 16, 2), FitConfig(steps=200, learning_rate=2e-3), tmp_path / "run")
    u = signal.coordinates(torch.arange(1024))
    exact = fitted.field.evaluate(u)
    fields = [packing.unpack(packing.pack(fitted, b)).field for b in (4, 8, 12)]
    errors = [float((field.evaluate(u) - exact).abs().max()) for field in fields]
    assert errors[2] < 0.01 and errors[2] < errors[1] < errors[0]
    sizes = [len(packing.pack(fitted, b)) for b in (4, 8, 16)]
    assert sizes[0] < sizes[1] < sizes[2] < 4 * fitted.field.n_parameters
    assert run("pack", tmp_path / "run", "-o", tmp_path / "waves.pack", "--bits", 10) == 0
    assert "bits for each place" in capsys.readouterr().out
    assert run("sample", tmp_path / "waves.pack", "-o", tmp_path / "waves.png") == 0
    assert np.abs(np.asarray(Image.open(tmp_path / "waves.png")).astype(float) - pixels[..., 0]).mean() < 12
    assert run("pack", tmp_path / "run", "-o", tmp_path / "waves.pack") == 2
    assert run("pack", tmp_path / "run", "-o", tmp_path / "w2.pack", "--bits", 1) == 2
    data = (tmp_path / "waves.pack").read_bytes()
    for cut in (data[:40], data[:-100], data[:60] + b"zzzz" + data[64:]):
        (tmp_path / "cut.pack").write_bytes(cut)
        assert run("sample", tmp_path / "cut.pack", "-o", tmp_path / "x.png") == 2
    assert "pack it again" in capsys.readouterr().err
