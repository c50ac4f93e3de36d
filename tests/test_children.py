"""Nothing that lies in the current folder is imported: not by the command, not by the processes that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trimesh

from nerf.errors import UserError
from nerf.io import children
from nerf.meshing.clean import decimate

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("json", "numpy", "torch", "PIL", "sqlite3", "trimesh", "multiprocessing", "pickle", "tempfile", "typing")
NAMES += ("fast_simplification", "pycolmap", "safetensors", "dataclasses", "random", "nerf_readers")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules that leave a mark."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'RAN')!r}, 'a').write({name!r})\nraise SystemExit(66)"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(folder: Path) -> str:
    return (folder / "RAN").read_text() if (folder / "RAN").exists() else ""


@pytest.mark.parametrize("path", [str(ROOT), f"{ROOT}{os.pathsep}", f"{os.pathsep}{ROOT}"])
def test_children_import_nothing_of_the_current_folder(
    hostile: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where PYTHONPATH ends in a colon, which names it."""
    monkeypatch.setenv("PYTHONPATH", path)
    code = "import json, sqlite3, sys; print('' in sys.path, any('RAN' in p for p in sys.path)); import nerf.errors"
    done = children.run(children.python("-c", code), capture_output=True, text=True)
    assert done.stdout == "False False\n" and done.returncode == 0 and not ran(hostile), done.stderr


def test_pools_of_children_import_nothing_of_the_current_folder(hostile: Path) -> None:
    """They start in the working folder of their parent, which is none of the user's, also without `-P`."""
    code = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        print(pool.submit(os.getcwd).result())
"""
    done = children.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(children.HOME) and not ran(hostile), done.stderr


def test_simplifying_a_mesh(hostile: Path) -> None:
    ball = trimesh.creation.icosphere(3)
    _, faces = decimate(torch.tensor(ball.vertices), torch.tensor(ball.faces), 300)
    assert 0 < len(faces) <= 300 and not ran(hostile)


def test_the_process_of_pycolmap(hostile: Path) -> None:
    from nerf.capture.child import run_worker

    (hostile / "out" / "capture").mkdir(parents=True)
    with pytest.raises(UserError, match="KeyError"):  # of a job that says nothing
        run_worker({"folder": str(hostile / "out")}, show=False)
    assert not ran(hostile)


@pytest.mark.parametrize(
    "verb", [["doctor"], ["train", "nothing", "-o", "out"], ["--help"], ["fit", "image", "json.py"]]
)
def test_the_command_as_a_module(hostile: Path, verb: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, "-m", "nerf", *verb]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)})
    assert done.returncode in (0, 2) and not ran(hostile), done.stderr
