"""A disk that is full at any moment of writing: the sentence names the file, what was there stays, nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_capture_resume import files_of_at_most

from nerf.cli import main as cli
from nerf.errors import UserError
from nerf.io import checkpoint, files, pictures

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def write_checkpoint(path: Path) -> None:
    checkpoint.save(path, {"t": torch.zeros(4000)}, {})


def write_strips(path: Path) -> None:
    from nerf.signals.image import png_writer

    with png_writer(path, 64, 64, 3, np.dtype(np.uint8)) as write:
        write(NOISE)


def write_film(path: Path) -> None:
    from nerf.io.video import mp4

    with mp4(path, 64, 64, 4) as write:
        for _ in range(4):
            write(NOISE)


def write_channels(path: Path) -> None:
    pytest.importorskip("OpenEXR")
    from nerf.io.exr import write_exr

    write_exr(path, {"Z": NOISE[..., 0].astype(np.float32)})


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.json": lambda path: files.write_file(path, "x" * 9000),
    "a.png": lambda path: pictures.write_png(path, NOISE),
    "a.safetensors": write_checkpoint,
    "strips.png": write_strips,
    "a.mp4": write_film,
    "a.exr": write_channels,
}


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_whole_or_not_there(name: str, there: bool, tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / name
    if there:
        path.write_bytes(b"before")
    for limit in (0, 1, 700):
        with files_of_at_most(limit), pytest.raises((UserError, OSError)) as raised:
            WRITERS[name](path)
        assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([(name, b"before")] if there else [])
        assert name in str(raised.value)

        def again(_: object, error: BaseException = raised.value) -> None:
            raise error

        import nerf.cli.doctor

        monkeypatch.setattr(nerf.cli.doctor, "main", again)
        assert cli.run(["doctor"]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and name in said[0], said
