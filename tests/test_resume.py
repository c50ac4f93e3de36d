"""Fits of shapes, slices and sets that were stopped go on to the same bits as those that were not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from test_depth_maps import native

from nerf.cli import main as cli
from nerf.io import checkpoint
from nerf.signals import ct, latents, shape, surface

STEPS = ("--steps", 20, "--width", 8, "--depth", 1)


def shape_of(folder: Path) -> tuple[object, ...]:
    trimesh.creation.icosphere(1).export(folder / "ball.ply")
    return ("shape", folder / "ball.ply", *STEPS, "--table", 10, "--batch", 512, "--samples", 4096, "--grid", 12)


def slice_of(folder: Path) -> tuple[object, ...]:
    np.save(folder / "sino.npy", np.random.default_rng(0).random((12, 6)).astype(np.float32))
    return ("ct", folder / "sino.npy", *STEPS)


def set_of(folder: Path) -> tuple[object, ...]:
    np.save(folder / "set.npy", np.random.default_rng(0).random((9, 6, 6)).astype(np.float32))
    return ("set", folder / "set.npy", *STEPS, "--latent", 3)


@native
@pytest.mark.parametrize(
    ("words_of", "problem"), [(shape_of, shape.Shape), (slice_of, ct.Sinogram), (set_of, latents.LatentFields)]
)
def test_a_stopped_fit_goes_on_to_the_bit(words_of, problem, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(surface, "CELLS", 8)
    words = words_of(tmp_path)
    loss, calls = problem.loss, []

    def run(out: str, *more: str) -> int:
        return cli.run([str(word) for word in ("fit", *words, "-o", tmp_path / out, *more)])

    def stops(self, *args):
        calls.append(args)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return loss(self, *args)

    assert run("whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(problem, "loss", stops)
        assert run("parts") == 130
    assert run("parts", "--resume") == 0
    a, b = (checkpoint.load(tmp_path / out / "checkpoint.safetensors")[0] for out in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
