"""Tomography: the forward operator against exact integrals, a slice found again, bad sinograms."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.cli import main as cli
from nerf.errors import UserError
from nerf.signals import beamline, ct


def disc(n: int, angles: np.ndarray, at: tuple[float, float], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """(slice, exact projections) of a disc of density 1 at (x right, y down) pixels from the middle."""
    points = (np.arange(4 * n) + 0.5) / 4 - n / 2
    inside = (points - at[0]) ** 2 + (points[:, None] - at[1]) ** 2 <= radius**2
    s = (np.arange(16 * n) + 0.5) / 16 - n / 2
    theta = np.radians(angles)
    off = s[:, None] - at[0] * np.cos(theta) + at[1] * np.sin(theta)
    chords = 2 * np.sqrt(np.maximum(radius**2 - off**2, 0))
    return inside.reshape(n, 4, n, 4).mean(axis=(1, 3)), chords.reshape(n, 16, -1).mean(axis=1).astype(np.float32)


def run(*words: object) -> int:
    return cli.run([str(word) for word in words])


def test_line_integrals_are_those_of_the_disc_and_the_gradient_is_the_transpose() -> None:
    angles = np.array([0.0, 30, 90, 137])
    picture, exact = disc(48, angles, (8, -5), 9)
    problem = ct.Sinogram(exact, angles)
    values = torch.from_numpy(picture).float().reshape(-1)[problem.where].requires_grad_()
    found = ct._Project.apply(values, problem.rays, problem.back)
    assert float((found.detach() - torch.from_numpy(exact).reshape(-1)).abs().mean()) < 0.15  # of chords of 18
    weights = torch.randn(len(found), generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad((found * weights).sum(), values)
    torch.testing.assert_close(grad, problem.rays.to_dense().t() @ weights, rtol=1e-4, atol=1e-4)


def scan(n: int = 16, n_angles: int = 12) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What a beamline measures of a disc in the second of three rows, and its line integrals [detectors, angles]."""
    _, exact = disc(n, np.arange(n_angles) * 15.0, (2, -1), 4)
    exact = exact * np.float32(0.1)
    white, dark = 50000 + 100.0 * np.arange(n), np.full(n, 300.0)
    counts = dark + np.exp(-exact.T) * (white - dark)
    rows = np.stack([np.broadcast_to(white, counts.shape), counts, np.broadcast_to(white, counts.shape)], axis=1)
    flat = np.broadcast_to(white, (5, 3, n)).copy()
    flat[2] = 65535  # a zinger
    file = {"data": np.rint(rows).astype(np.uint16), "data_white": flat, "data_dark": np.broadcast_to(dark, (3, 3, n))}
    file["theta"] = np.arange(n_angles) * 15.0
    return {f"exchange/{name}": values for name, values in file.items()}, exact


def test_projections_of_a_beamline_become_line_integrals() -> None:
    file, exact = scan()
    found, angles = beamline.sinogram_of(file)
    assert found.dtype == np.float32 and np.abs(found - exact).max() < 1e-3
    assert angles is not None and (angles == np.arange(12) * 15.0).all()
    turned = beamline.sinogram_of({**file, "exchange/theta": np.deg2rad(np.arange(12) * 15.0)})[1]
    assert turned is not None and np.allclose(turned, angles)
    assert np.abs(beamline.sinogram_of(file, row=0)[0]).max() < 1e-6  # nothing in the beam
    file["exchange/data"][3, 1, 5] = 0  # darker than the dark field
    assert np.isfinite(beamline.sinogram_of(file)[0]).all()
    integrals = {"data": exact.T[:, None, :]}
    assert (
        np.abs(beamline.sinogram_of(integrals)[0] - exact).max() < 1e-6 and beamline.sinogram_of(integrals)[1] is None
    )
    for change, words in (
        ({"exchange/theta": np.zeros(3)}, "3 angles for 12 projections"),
        ({"exchange/data": np.zeros((4, 4))}, "expected [angles, rows, detectors]"),
        ({"exchange/data_white": np.zeros((2, 3, 9))}, "expected [fields, 3, 16]"),
        ({"exchange/data_white": np.zeros((2, 3, 16))}, "nowhere brighter"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            beamline.sinogram_of({**file, **change})
    with pytest.raises(UserError, match="--row 3: x has the rows 0 to 2"):
        beamline.sinogram_of(file, 3, "x")
    with pytest.raises(UserError, match="holds no exchange/data"):
        beamline.sinogram_of({"entry": np.zeros(1)})


def test_a_beamlines_file(tmp_path: Path, capsys) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "scan.h5", "w") as out:
        for name, values in scan()[0].items():
            out[name] = values
    sizes = ("--steps", 5, "--width", 16, "--depth", 1)
    assert run("fit", "ct", tmp_path / "scan.h5", "-o", tmp_path / "out", *sizes) == 0
    assert "row 1 of 3" in capsys.readouterr().err
    (tmp_path / "cut.h5").write_bytes((tmp_path / "scan.h5").read_bytes()[:700])
    assert run("fit", "ct", tmp_path / "cut.h5", "-o", tmp_path / "no") == 2
    assert "cannot be read as HDF5" in capsys.readouterr().err


def test_a_beamlines_file_names_no_other_and_holds_what_it_says(tmp_path: Path, capsys) -> None:
    h5py = pytest.importorskip("h5py")
    data = scan()[0]["exchange/data"]
    (tmp_path / "secret.h5").write_bytes(b"no HDF5, and never opened")

    def link(out: Any) -> None:
        out["exchange/data"] = h5py.ExternalLink("secret.h5", "x")

    def behind_a_link(out: Any) -> None:
        out["elsewhere"] = h5py.ExternalLink("secret.h5", "x")
        out["exchange/data"] = h5py.SoftLink("/elsewhere")

    def raw(out: Any) -> None:
        out.create_dataset(
            "exchange/data", data.shape, "f4", external=[(tmp_path / "secret.h5", 0, h5py.h5f.UNLIMITED)]
        )

    def virtual(out: Any) -> None:
        layout = h5py.VirtualLayout(data.shape, "f4")
        layout[:] = h5py.VirtualSource("secret.h5", "x", shape=data.shape)
        out.create_virtual_dataset("exchange/data", layout)

    def group(out: Any) -> None:
        out.create_group("exchange/data")

    def loop(out: Any) -> None:
        out["exchange/data"] = h5py.SoftLink("/exchange/data")

    def huge(out: Any) -> None:
        out.create_dataset("exchange/data", (10**6, 10, 1000), "f4", chunks=(1, 10, 1000))

    def turns(out: Any) -> None:
        out["exchange/data"], out["exchange/theta"] = data, np.full(len(data), np.nan)

    for k, (write, words) in enumerate(
        (
            *((write, "leads to another file, which is not opened") for write in (link, behind_a_link, raw, virtual)),
            (group, "is a group"),
            (loop, "cannot be read as HDF5"),
            (huge, "which the file cannot hold"),
            (turns, "angles that are no finite numbers"),
        )
    ):
        with h5py.File(tmp_path / f"{k}.h5", "w") as out:
            write(out)
        assert run("fit", "ct", tmp_path / f"{k}.h5", "-o", tmp_path / "no") == 2, write
        assert words in capsys.readouterr().err, words
    assert not (tmp_path / "no").exists()


def test_the_rays_of_an_angle_are_those_that_it_has_alone() -> None:
    several = np.linspace(0, 180, 40, endpoint=False)
    whole = ct._matrix(12, torch.from_numpy(several), 5.5, torch.arange(144)).to_dense().reshape(12, 40, 144)
    for k in (0, 17, 39):
        one = ct._matrix(12, torch.from_numpy(several[k : k + 1]), 5.5, torch.arange(144)).to_dense()
        assert torch.equal(whole[:, k], one)


def test_without_h5py_its_package_is_named(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "scan.data").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert run("fit", "ct", tmp_path / "scan.data", "-o", tmp_path / "out") == 2
    assert "needs the package h5py: pip install h5py" in capsys.readouterr().err


def test_a_slice_is_found_from_its_projections(tmp_path: Path, capsys) -> None:
    angles = np.arange(12) * 15.0
    picture, exact = disc(32, angles, (5, -3), 7)
    np.save(tmp_path / "sino.npy", 2.5 * exact)
    out = tmp_path / "out"
    sizes = ("--steps", 150, "--width", 16, "--depth", 1, "--variation", 0.01)
    assert run("fit", "ct", tmp_path / "sino.npy", "-o", out, *sizes) == 0
    assert json.loads((out / "fit.json").read_text())["projection_error"] < 0.05
    found = np.load(out / "slice.npy")
    assert found.shape == (32, 32)
    assert -10 * np.log10(np.mean((found / 2.5 - picture) ** 2)) > 20  # density in the sinogram's own units
    assert np.asarray(Image.open(out / "slice.png")).max() == 65535
    assert run("sample", out, "-o", tmp_path / "large.npy", "--scale", 2) == 0
    large = np.load(tmp_path / "large.npy")
    assert np.abs(large.reshape(32, 2, 32, 2).mean(axis=(1, 3)) - found).mean() < 0.1
    assert run("sample", out, "-o", tmp_path / "large.exr") == 2
    np.savetxt(tmp_path / "angles.txt", angles[:-1])
    assert run("fit", "ct", tmp_path / "sino.npy", "-o", tmp_path / "b", "--angles", tmp_path / "angles.txt") == 2
    np.save(tmp_path / "turned.npy", exact.T)
    np.savetxt(tmp_path / "angles.txt", angles)
    assert run("fit", "ct", tmp_path / "turned.npy", "-o", tmp_path / "b", "--angles", tmp_path / "angles.txt") == 2
    said = capsys.readouterr().err
    assert "11 angles were given" in said and "--transpose" in said


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones((4, 4, 3)), "detectors x angles"),
        (np.ones(5), "detectors x angles"),
        (np.ones((1, 9)), "at least 2 x 2"),
        (np.full((8, 4), np.nan), "no finite numbers"),
        (np.zeros((8, 4)), "zero everywhere"),
        (np.array([["a", "b"], ["c", "d"]]), "detectors x angles"),
    ],
)
def test_a_bad_sinogram_is_one_sentence(tmp_path: Path, capsys, values: np.ndarray, words: str) -> None:
    np.save(tmp_path / "bad.npy", values)
    assert run("fit", "ct", tmp_path / "bad.npy", "-o", tmp_path / "out") == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_bad_input_of_ct(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.npy").write_bytes(b"")
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "colour.png")
    np.save(tmp_path / "fine.npy", np.ones((8, 4)))
    (tmp_path / "words.txt").write_text("north\n")
    for words, said in (
        (["empty.npy"], "cannot be read as a NumPy array"),
        (["colour.png"], "is in colour"),
        (["missing.npy"], "cannot be read"),
        (["fine.npy", "--angles", tmp_path / "words.txt"], "one number a line"),
        (["fine.npy", "--center", 40], "a detector between 1 and 6"),
        (["fine.npy", "--variation", "nan"], "--variation is nan, expected a number from 0"),
    ):
        assert run("fit", "ct", tmp_path / str(words[0]), *words[1:], "-o", tmp_path / "out") == 2
        assert said in capsys.readouterr().err, said
