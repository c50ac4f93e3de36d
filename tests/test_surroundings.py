"""What surrounds the package: threads of others, no home, no temporary files, code of others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nerf.capture import child
from nerf.datasets import tiles
from nerf.errors import UserError
from nerf.io import files, folders
from nerf.kernels import nvrtc
from nerf.meshing import clean

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing", "a count", "a policy"],
)
def test_waiting_threads_do_not_spin_for_long_from_python_either(given: dict[str, str], expected: str) -> None:
    """OpenMP reads it as torch is imported, so it must be set before; what the user has set stays."""
    code = "import os, sys, nerf; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code]
    done = subprocess.run(command, env=kept | given | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout.split() == [expected, "False"], done.stderr


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a user whom the system does not know, without $HOME."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NERF_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(folders.Path, "home", unknown)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_there_is_no_cache_and_all_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"no home folder .* set NERF_CACHE_DIR"):
        folders.cache_folder()
    assert tiles._writable(tmp_path) == tmp_path / tiles.FOLDER
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no place for the converted photos; set NERF_CACHE_DIR"):
        tiles._writable(tmp_path / "file")
    monkeypatch.setattr(nvrtc, "nvrtc_version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "compile_source", lambda *_: (b"code", ""))
    capsys.readouterr()
    assert nvrtc.cached(sorted(nvrtc.SOURCES.glob("*.cu"))[0].name, 90, {}) == b"code"
    assert "are not kept: there is no home folder" in capsys.readouterr().err


def test_no_place_for_temporary_files_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders.tempfile, "tempdir", "/no/such/place")
    with pytest.raises(UserError, match=r"no temporary files can be written .*; set TMPDIR"), folders.scratch_folder():
        pass
    files.write_file(tmp_path / "needs none", b"x")
    if os.name == "posix":
        with pytest.raises(UserError, match="set TMPDIR"):
            files.write_file(Path("/dev/null"), b"x")


def test_modules_in_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who works in a folder of data, perhaps of others, runs nothing that lies there."""
    for name in ("numpy", "fast_simplification", "runpy", "json", "nerf"):
        (tmp_path / f"{name}.py").write_text("open('run', 'w')\nraise SystemExit('code of others')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pipe = subprocess.PIPE  # the worker ends with its standard input
    with subprocess.Popen([*child.WORKER, "no such job"], stdin=pipe, stderr=pipe, text=True) as worker:
        assert worker.stderr is not None
        assert "No such file or directory: 'no such job'" in worker.stderr.read()
    assert not (tmp_path / "run").exists()
    pytest.importorskip("fast_simplification")
    u, v = np.meshgrid(np.arange(12), np.arange(12), indexing="ij")
    points = np.stack([u, v, 0 * u], axis=-1).reshape(-1, 3).astype(np.float32)
    corners = (u[:-1, :-1] * 12 + v[:-1, :-1]).reshape(-1, 1, 1)
    faces = (corners + np.array([[0, 12, 1], [1, 12, 13]])).reshape(-1, 3).astype(np.int32)
    assert 0 < len(clean._simplify(points, faces, 50)[1]) < len(faces)
    assert not (tmp_path / "run").exists()
